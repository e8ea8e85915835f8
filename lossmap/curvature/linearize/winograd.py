"""A 3x3 convolution and its two transposes with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Of a convolution with stride 1 and padding 1, each tile of 4x4 outputs needs 6x6 inputs. With fixed matrices B, G, A

    y = A^T [ (G w G^T) * (B^T x B) ] A        per tile, * entry by entry, summed over input channels,

so that 36 products of small matrices take the place of 9 times 16; the input's and the weight's gradients are the
transposes of that. What makes it pay here is that in a product with many vectors the transforms of theta's own values
are made once, and a tangent's is used forwards and backwards. Rounding is some ten times that of the direct way.
Tiled arrays are (36, tiles, channels); images (B, C, H, W), H and W multiples of 4.
Sources: Winograd (1980), Arithmetic complexity of computations; Lavin and Gray (2016), doi:10.1109/CVPR.2016.435.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_BT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
       [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_AT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


@cache
def transform(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of a transform of whole tiles, both directions at once: `B` (36, 36), `G` (36, 9), `A` (16, 36).

    A name in small letters is the transpose.
    """
    one = torch.tensor({"B": _BT, "G": _G, "A": _AT}[name.upper()], dtype=torch.float64)
    # rows and columns of a tile at once: vec(M x M^T) = (M kron M) vec(x), one matrix product for all tiles
    both = torch.kron(one, one)
    return (both if name.isupper() else both.T).to(device, dtype).contiguous()


def fits(x: tuple[int, ...], w: tuple[int, ...], stride: object, padding: object, dilation: object) -> bool:
    """Whether a convolution of these shapes, not transposed and with one group, is of the kind that is done here."""
    # sides that 4 does not divide would need partial tiles, whose transposes are not those of whole ones
    plain = (list(stride), list(padding), list(dilation)) == ([1, 1], [1, 1], [1, 1])  # type: ignore[call-overload]
    return plain and len(x) == 4 and w[2:] == (3, 3) and x[2] % 4 == 0 and x[3] % 4 == 0


def tiles(x: Tensor) -> Tensor:
    """B^T x B of the input's overlapping 6x6 tiles: (B, C, H, W) -> (36, tiles, C)."""
    samples, channels, height, width = x.shape
    # channels last, so that a tile's numbers for all channels lie side by side
    padded = x.new_zeros(samples, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    s = padded.stride()
    # a view with a step of 4 and a reach of 6: tiles share two rows and columns with their neighbours
    overlapping = padded.as_strided(
        (6, 6, samples, height // 4, width // 4, channels), (s[1], s[2], s[0], 4 * s[1], 4 * s[2], 1)
    )
    flat = overlapping.reshape(36, -1)
    return torch.mm(transform("B", x.dtype, x.device), flat).view(36, -1, channels)


def tiles_back(tiled: Tensor, shape: list[int]) -> Tensor:
    """The transpose of `tiles`: (36, tiles, C) -> (B, C, H, W), overlaps added."""
    samples, channels, height, width = shape
    down, across = height // 4, width // 4
    flat = torch.mm(transform("b", tiled.dtype, tiled.device), tiled.view(36, -1))
    t = flat.view(6, 6, samples, down, across, channels)
    # the outermost rows and columns of a tile lie in its neighbours; columns first, corners with them
    t[:, 4, :, :, :-1] += t[:, 0, :, :, 1:]
    t[:, 1, :, :, 1:] += t[:, 5, :, :, :-1]
    t[4, 1:5, :, :-1] += t[0, 1:5, :, 1:]
    t[1, 1:5, :, 1:] += t[5, 1:5, :, :-1]
    whole = t[1:5, 1:5].permute(2, 3, 0, 4, 1, 5).reshape(samples, height, width, channels)
    return whole.permute(0, 3, 1, 2)


def outputs(tiled: Tensor, shape: list[int]) -> Tensor:
    """A^T m A: (36, tiles, C) -> the images (B, C, H, W)."""
    samples, channels, height, width = shape
    flat = torch.mm(transform("A", tiled.dtype, tiled.device), tiled.view(36, -1))
    t = flat.view(4, 4, samples, height // 4, width // 4, channels)
    return t.permute(2, 3, 0, 4, 1, 5).reshape(samples, height, width, channels).permute(0, 3, 1, 2)


def outputs_back(g: Tensor) -> Tensor:
    """The transpose of `outputs`: (B, C, H, W) -> (36, tiles, C)."""
    samples, channels, height, width = g.shape
    t = g.permute(0, 2, 3, 1).reshape(samples, height // 4, 4, width // 4, 4, channels)
    flat = t.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
    return torch.mm(transform("a", g.dtype, g.device), flat).view(36, -1, channels)


def weights(w: Tensor) -> Tensor:
    """G w G^T: (K, C, 3, 3) -> (36, C, K)."""
    k, c = w.shape[:2]
    return torch.mm(transform("G", w.dtype, w.device), w.permute(2, 3, 1, 0).reshape(9, -1)).view(36, c, k)


def weights_back(tiled: Tensor) -> Tensor:
    """The transpose of `weights`: (36, C, K) -> (K, C, 3, 3)."""
    c, k = tiled.shape[1:]
    flat = torch.mm(transform("g", tiled.dtype, tiled.device), tiled.view(36, -1))
    return flat.view(3, 3, c, k).permute(3, 2, 0, 1)


def turned(tiled: Tensor) -> Tensor:
    """Each of the 36 matrices transposed, in order in memory."""
    return tiled.transpose(1, 2).contiguous()


def two_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """A b + c d, matrix by matrix."""
    return torch.bmm(a, b).baddbmm_(c, d)
