"""Operations on stacks of images: smoothing, smearing, zooming, clouds, reading between pixels. NumPy and SciPy.

Images are (N, H, W, C) float32, 0..1; lengths are pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Images = NDArray[np.float32]  # (N, H, W, C), 0..1
Draw = Callable[[Callable[[np.random.Generator], Any]], NDArray[np.float32]]  # one draw an image, stacked


def smoothed(x: Images, sigma: float) -> Images:
    """Smoothed by a normal curve of deviation sigma, pixels."""
    blurred: Images = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    return blurred


def smeared(x: Images, radius: float, sigma: float, degrees: NDArray[np.float32]) -> Images:
    """Smeared to one side over `radius` pixels with a normal curve of deviation sigma.

    degrees  (N,), the angle of each image
    """
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    angles = np.deg2rad(degrees.astype(np.float64))
    every = np.arange(len(x))[:, None, None]
    rows, columns = np.arange(x.shape[1]), np.arange(x.shape[2])
    smeared = np.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        down = np.rint(step * np.sin(angles)).astype(np.int64)[:, None]
        right = np.rint(step * np.cos(angles)).astype(np.int64)[:, None]
        row = np.clip(rows + down, 0, len(rows) - 1)
        column = np.clip(columns + right, 0, len(columns) - 1)
        smeared += np.float32(weight) * x[every, row[:, :, None], column[:, None, :]]
    return smeared


def zoomed(x: Images, factor: float) -> Images:
    """(N, H, W, C) enlarged about its centre, linearly."""
    down, across = (_zoom_matrix(length, factor) for length in x.shape[1:3])
    once = np.einsum("rh,nhwc->nrwc", down, x, optimize=True)
    enlarged: Images = np.einsum("sw,nrwc->nrsc", across, once, optimize=True)
    return enlarged


def _zoom_matrix(length: int, factor: float) -> NDArray[np.float32]:
    """(length, length): what linear enlarging by a factor about the centre does along one axis."""
    centre = (length - 1) / 2.0
    positions = (np.arange(length) - centre) / factor + centre
    low = np.clip(np.floor(positions).astype(np.int64), 0, max(length - 2, 0))
    matrix = np.zeros((length, length), np.float32)
    every = np.arange(length)
    matrix[every, low] = 1.0 - (positions - low)
    if length > 1:
        matrix[every, low + 1] += positions - low
    return matrix


def luma(x: Images) -> Images:
    """(N, H, W, 1) the luma of an image."""
    if x.shape[3] == 1:
        return x
    return (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def plasma_clouds(shape: tuple[int, int], decay: float, draw: Draw) -> NDArray[np.float32]:
    """(N, H, W) clouds of 0..1 by diamonds and squares on a torus; an octave's amplitude falls by decay squared."""
    size = 1 << max(2, (max(shape) - 1).bit_length())
    chance = draw(lambda c: c.uniform(-1.0, 1.0, (size, size)))
    field = np.zeros_like(chance)
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        middle = (slice(None), slice(half, None, step), slice(half, None, step))
        field[middle] = (pairs + np.roll(pairs, -1, 2)) / 4.0 + amplitude * chance[middle]
        centres = field[middle]
        for axis, edge in (
            (2, (slice(None), slice(None, None, step), slice(half, None, step))),
            (1, (slice(None), slice(half, None, step), slice(None, None, step))),
        ):
            around = corners + np.roll(corners, -1, axis) + centres + np.roll(centres, 1, 3 - axis)
            field[edge] = around / 4.0 + amplitude * chance[edge]
        step, amplitude = half, amplitude / decay**2
    low, high = field.min((1, 2), keepdims=True), field.max((1, 2), keepdims=True)
    cloud: NDArray[np.float32] = ((field - low) / (high - low))[:, : shape[0], : shape[1]]
    return cloud


def sampled(x: Images, rows: NDArray[Any], columns: NDArray[Any]) -> Images:
    """(N, H, W, C) read between pixels, linearly, mirrored beyond the edges; rows and columns (N, H, W)."""
    every = np.arange(len(x))[:, None, None]
    low, left = np.floor(rows), np.floor(columns)
    total = np.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - (rows - low)) * np.abs(1 - right - (columns - left))
            row = _mirrored((low + down).astype(np.int64), x.shape[1])
            column = _mirrored((left + right).astype(np.int64), x.shape[2])
            total += share[..., None].astype(np.float32) * x[every, row, column]
    return total


def _mirrored(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices beyond the edges of 0..length - 1, mirrored at them."""
    folded = index % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def box_matrix(length: int, smaller: int) -> NDArray[np.float32]:
    """(length, length): what Pillow's box filter does along one axis, down to `smaller` and back."""
    shrunk = Image.fromarray(np.eye(length, dtype=np.float32)).resize((length, smaller), Image.Resampling.BOX)
    enlarged = shrunk.resize((length, length), Image.Resampling.BOX)
    return np.asarray(enlarged, np.float32)
