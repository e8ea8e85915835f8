"""Corrupted images: the fifteen corruptions of CIFAR-10-C, and three extra ones, at five severities.

    corrupt(images, "fog", 3)   images (N, H, W, C), uint8 0..255 or floating-point 0..1, C 1 or 3 -> the same

The strengths are those published with the benchmark for 32x32 images (Hendrycks and Dietterich 2019,
arXiv:1903.12261); ImageNet-C's, which packages carry, destroy images so small. Of the four noises, which do not
depend on a size, ImageNet-C's are there too, as `imagenet-c`: coarse images such as the digits withstand the weaker
ones, Gaussian noise of 0.1, which leaves nothing to adapt to. The arithmetic is our own, so that
images agree with the benchmark's in kind and strength, not in their bytes. Frost differs in more than that: the
benchmark pastes photographs of ice, and here the ice is drawn by a random process.

Chance comes from (seed, corruption, stream, index of the image): an image is corrupted alone as among others, and a
higher severity has the same flakes, but more of them. Lengths in pixels count those of 32x32 images except where
the table divides by 32.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from lossmap.images.operations import (
    Draw,
    Images,
    box_matrix,
    luma,
    plasma_clouds,
    sampled,
    smeared,
    smoothed,
    zoomed,
)

Strength = tuple[float, ...]

# name -> severities 1 to 5; what the numbers are stands at each function
STRENGTHS: dict[str, tuple[Strength, ...]] = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
# the stronger ones of ImageNet-C, of the same paper, in the same units
IMAGENET_STRENGTHS: dict[str, tuple[Strength, ...]] = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "speckle_noise": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
}
BENCHMARKS = {"cifar-10-c": STRENGTHS, "imagenet-c": IMAGENET_STRENGTHS}
EXTRA = ("speckle_noise", "gaussian_blur", "saturate")  # beside the fifteen over which the benchmark is a mean
_CHUNK = 1024  # images at once


def known(name: str, level: int | str, benchmark: str = "cifar-10-c") -> tuple[str, int]:
    """A corruption's name and severity as they are meant; raises ValueError for others, with the nearest names."""
    plain = name.strip().lower().replace("-", "_")
    if plain not in STRENGTHS:
        near = difflib.get_close_matches(plain, STRENGTHS, 3, 0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(STRENGTHS)}"
        raise ValueError(f"no corruption is named {name!r}; {hint}")
    if str(level) not in ("1", "2", "3", "4", "5"):
        raise ValueError(f"the severity must be 1 to 5; got {level!r}")
    if benchmark not in BENCHMARKS:
        raise ValueError(f"strengths are those of {' or '.join(BENCHMARKS)}; got {benchmark!r}")
    if plain not in BENCHMARKS[benchmark]:
        raise ValueError(f"{benchmark} has strengths here for {', '.join(BENCHMARKS[benchmark])} alone; got {plain}")
    return plain, int(level)


def corrupt(
    images: NDArray[Any],
    name: str,
    level: int,
    seed: int = 0,
    *,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    stream: str = "",
    benchmark: str = "cifar-10-c",
) -> NDArray[Any]:
    """Images (N, H, W, C) corrupted, in their own type: uint8 0..255, or floating-point 0..1.

    indices  the number of each image in its data set, from which its chance comes; by default 0 to N - 1
    stream   tells apart images of the same number, such as those of two splits
    benchmark  whose strengths: `cifar-10-c`, or `imagenet-c` for the noises

    Raises ValueError for an unknown name or severity, other shapes or types.
    """
    name, level = known(name, level, benchmark)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images must have shape (N, H, W, 1 or 3); got {images.shape}")
    is_bytes = images.dtype == np.uint8
    if not is_bytes and images.dtype.kind != "f":
        raise ValueError(f"images must be uint8 0..255 or floating-point 0..1; got {images.dtype}")
    numbers = np.asarray(range(len(images)) if indices is None else indices)
    if numbers.shape != (len(images),):
        raise ValueError(f"indices must be one for each of {len(images)} images; got shape {numbers.shape}")
    key = int.from_bytes(hashlib.sha256(f"{seed}\x1f{name}\x1f{stream}".encode()).digest()[:16], "little")
    strength = BENCHMARKS[benchmark][name][level - 1]
    result = np.empty_like(images, order="C")
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        x = images[part].astype(np.float32)
        if is_bytes:
            x = x / np.float32(255.0)
        chances = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(i), 0])) for i in numbers[part]]
        x = np.clip(_METHODS[name](x, strength, _drawing(chances)), 0.0, 1.0)
        if is_bytes:
            x = np.rint(x * np.float32(255.0)).astype(np.uint8)
        result[part] = x
    return result


def _drawing(chances: list[np.random.Generator]) -> Draw:
    def draw(one: Callable[[np.random.Generator], Any]) -> NDArray[np.float32]:
        return np.stack([np.asarray(one(chance), np.float32) for chance in chances])

    return draw


def gaussian_noise(x: Images, strength: Strength, draw: Draw) -> Images:
    """Normal numbers of deviation sigma added."""
    return x + np.float32(strength[0]) * draw(lambda c: c.standard_normal(x.shape[1:], np.float32))


def speckle_noise(x: Images, strength: Strength, draw: Draw) -> Images:
    """Normal numbers of deviation sigma times the image added."""
    return x + x * np.float32(strength[0]) * draw(lambda c: c.standard_normal(x.shape[1:], np.float32))


def shot_noise(x: Images, strength: Strength, draw: Draw) -> Images:
    """The photons of a Poisson process; the strength is their mean number at value 1."""
    photons = strength[0]
    rows = iter(np.clip(x, 0.0, 1.0).astype(np.float64) * photons)
    return draw(lambda c: c.poisson(next(rows)) / photons)


def impulse_noise(x: Images, strength: Strength, draw: Draw) -> Images:
    """A share of all values set to 0 or 1."""
    hit = draw(lambda c: c.random(x.shape[1:], np.float32)) < strength[0]
    salt = draw(lambda c: c.integers(0, 2, x.shape[1:]))
    return np.where(hit, salt, x)


def gaussian_blur(x: Images, strength: Strength, draw: Draw) -> Images:
    """Smoothed by a normal curve of deviation sigma."""
    return smoothed(x, strength[0])


def defocus_blur(x: Images, strength: Strength, draw: Draw) -> Images:
    """Every point a disk of this radius, whose edge is smoothed over three pixels by sigma."""
    radius, sigma = strength
    reach = int(np.ceil(radius)) + 1
    along = np.arange(-reach, reach + 1)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).astype(np.float64)
    edge = np.exp(-(np.arange(-1, 2) ** 2) / (2.0 * sigma**2))
    edge /= edge.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, edge, axis, mode="constant")
    kernel = (disk / disk.sum()).astype(np.float32)
    blurred: Images = ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")
    return blurred


def glass_blur(x: Images, strength: Strength, draw: Draw) -> Images:
    """Smoothed, pixels exchanged with neighbours in several passes, smoothed again.

    As in the benchmark a shift of at most d is one of -d, ..., d - 1.
    """
    sigma, reach, passes = strength[0], int(strength[1]), int(strength[2])
    x = smoothed(x, sigma).copy()
    _, height, width, _ = x.shape
    shape = (passes, height, width, 2)
    shifts = draw(lambda c: c.integers(-reach, reach, shape)).astype(np.int64)
    every = np.arange(len(x))
    for turn in range(passes):
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                other = row + shifts[:, turn, row, column, 0], column + shifts[:, turn, row, column, 1]
                before = x[:, row, column].copy()
                x[:, row, column] = x[every, other[0], other[1]]
                x[every, other[0], other[1]] = before
    return smoothed(x, sigma)


def motion_blur(x: Images, strength: Strength, draw: Draw) -> Images:
    """Smeared to one side along a line of this radius with a normal curve, at an angle of -45..45 degrees."""
    radius, sigma = strength
    angles = draw(lambda c: c.uniform(-45.0, 45.0))
    return smeared(x, radius, sigma, angles)


def zoom_blur(x: Images, strength: Strength, draw: Draw) -> Images:
    """The mean of the image and of itself enlarged by 1, 1.01, ... up to the end, which is left out."""
    factors = [1.0 + 0.01 * i for i in range(round(100 * (strength[0] - 1.0)))]
    total = x.copy()
    for factor in factors:
        total += zoomed(x, factor)
    return total / np.float32(len(factors) + 1)


def snow(x: Images, strength: Strength, draw: Draw) -> Images:
    """Flakes (mean, spread, zoom, threshold) smeared (radius, sigma) at -135..-45 degrees, on a paler image."""
    mean, spread, zoom, threshold, radius, sigma, share = strength
    flakes = mean + spread * draw(lambda c: c.standard_normal(x.shape[1:3], np.float32))
    layer = zoomed(flakes[..., None].astype(np.float32), zoom)
    layer = np.clip(np.where(layer < threshold, 0.0, layer), 0.0, 1.0).astype(np.float32)
    layer = smeared(layer, radius, sigma, draw(lambda c: c.uniform(-135.0, -45.0)))
    pale = np.maximum(x, luma(x) * 1.5 + 0.5)
    whiter = np.float32(share) * x + np.float32(1.0 - share) * pale
    snowed: Images = whiter + layer + layer[:, ::-1, ::-1]
    return snowed


def frost(x: Images, strength: Strength, draw: Draw) -> Images:
    """The image's share and the frost's, added; the frost drawn by a random process, bluish-white ridges."""
    image, ice = strength
    cloud = plasma_clouds(x.shape[1:3], 1.6, draw)
    needles = 1.0 - np.abs(2.0 * plasma_clouds(x.shape[1:3], 1.25, draw) - 1.0)
    pale = np.clip(0.25 + 0.45 * cloud + 0.5 * needles**3, 0.0, 1.0).astype(np.float32)
    tint = np.array([0.86, 0.95, 1.0] if x.shape[3] == 3 else [0.94], np.float32)
    frosted: Images = np.float32(image) * x + np.float32(ice) * pale[..., None] * tint
    return frosted


def fog(x: Images, strength: Strength, draw: Draw) -> Images:
    """A plasma of this strength added, brightness kept within that of the image."""
    amount, decay = np.float32(strength[0]), strength[1]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    fogged = x + amount * plasma_clouds(x.shape[1:3], decay, draw)[..., None]
    dimmed: Images = fogged * brightest / (brightest + amount)
    return dimmed


def brightness(x: Images, strength: Strength, draw: Draw) -> Images:
    """Added to the value of hue, saturation and value."""
    value = x.max(3, keepdims=True)
    raised = np.clip(value + np.float32(strength[0]), 0.0, 1.0)
    brighter: Images = np.where(value > 0, x * (raised / np.where(value > 0, value, 1.0)), raised)
    return brighter


def saturate(x: Images, strength: Strength, draw: Draw) -> Images:
    """The saturation of hue, saturation and value, times a factor, and added to; one channel has none."""
    if x.shape[3] == 1:
        return x
    factor, added = np.float32(strength[0]), np.float32(strength[1])
    value = x.max(3, keepdims=True)
    spread = value - x.min(3, keepdims=True)
    saturation = spread / np.where(value > 0, value, 1.0)
    changed = np.clip(saturation * factor + added, 0.0, 1.0)
    # how far each channel lies below the value, as a share of the spread; a grey pixel's hue is red by convention
    below = np.where(spread > 0, (value - x) / np.where(spread > 0, spread, 1.0), np.array([0, 1, 1], np.float32))
    coloured: Images = value * (1.0 - below * changed)
    return coloured


def contrast(x: Images, strength: Strength, draw: Draw) -> Images:
    """Distances from each channel's mean, times a factor."""
    means = x.mean((1, 2), np.float64, keepdims=True).astype(np.float32)
    flatter: Images = (x - means) * np.float32(strength[0]) + means
    return flatter


def elastic_transform(x: Images, strength: Strength, draw: Draw) -> Images:
    """A random affine map, and smooth random displacements: amplitude, smoothing and jitter, each of the size."""
    height, width = x.shape[1:3]
    amplitude, sigma, jitter = (s * min(height, width) for s in strength)
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (min(height, width) // 3)
    displaced = corners + draw(lambda c: c.uniform(-jitter, jitter, (3, 2)) if jitter else np.zeros((3, 2)))
    # output -> input, about the centre: three corners of a square go where chance has moved them
    affine = np.linalg.solve(np.column_stack([corners, np.ones(3)]), displaced)  # (N, 3, 2)
    across = (np.arange(length) - (length - 1) / 2.0 for length in (height, width))
    rows, columns = np.meshgrid(*across, indexing="ij")
    positions = np.stack([rows, columns, np.ones_like(rows)], -1) @ affine[:, None]  # (N, H, W, 2)
    if amplitude:
        chance = draw(lambda c: c.uniform(-1.0, 1.0, (height, width, 2)))
        positions = positions + amplitude * ndimage.gaussian_filter(
            chance, (0, sigma, sigma, 0), mode="reflect", truncate=3
        )
    return sampled(x, positions[..., 0] + (height - 1) / 2.0, positions[..., 1] + (width - 1) / 2.0)


def pixelate(x: Images, strength: Strength, draw: Draw) -> Images:
    """Made smaller to this share, and enlarged again, by box filters."""
    down, across = (box_matrix(length, int(length * strength[0])) for length in x.shape[1:3])
    once = np.einsum("rh,nhwc->nrwc", down, x, optimize=True)
    coarse: Images = np.einsum("sw,nrwc->nrsc", across, once, optimize=True)
    return coarse


def jpeg_compression(x: Images, strength: Strength, draw: Draw) -> Images:
    """Written and read as JPEG of this quality, 8 bits a channel."""
    bytes_of = np.rint(np.clip(x, 0.0, 1.0) * 255.0).astype(np.uint8)
    back = np.empty_like(x)
    for i, image in enumerate(bytes_of):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if x.shape[3] == 1 else image).save(buffer, "JPEG", quality=int(strength[0]))
        back[i] = np.asarray(Image.open(buffer), np.float32).reshape(x.shape[1:]) / 255.0
    return back


_METHODS: dict[str, Callable[[Images, Strength, Draw], Images]] = {
    method.__name__: method
    for method in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
        speckle_noise,
        gaussian_blur,
        saturate,
    )
}
