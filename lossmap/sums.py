"""Dot products and norms of tensors, accumulated in float64.

In float32 `torch.linalg.vector_norm` is off by 4e-4 at eleven million entries, which a Lanczos run shows as
eigenvalues 1e-3 too large. Price: one pass over the entries; memory for one block of them in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot, inf, isfinite

import torch
from torch import Tensor

ENTRIES_AT_ONCE = 1 << 20  # converted to float64 at a time, so that the copies stay small beside n
SMALLEST_SQUARE = 1e-280  # a sum of squares below it may have lost some that underflowed


def dot(a: Tensor, b: Tensor) -> float:
    """The scalar product of two flat vectors, (n,) each, accumulated in float64."""
    if a.dtype == torch.float64:
        return float(torch.dot(a, b))
    pairs = zip(torch.split(a, ENTRIES_AT_ONCE), torch.split(b, ENTRIES_AT_ONCE), strict=True)
    return float(sum(torch.dot(x.double(), y.double()) for x, y in pairs))


def norm(a: Tensor) -> float:
    """The Euclidean norm of a tensor of any shape, accumulated in float64."""
    flat = a.reshape(-1)
    square = dot(flat, flat)
    if SMALLEST_SQUARE < square < inf or not len(flat):
        return float(square**0.5)
    # the squares leave the range of float64, as those of the derivatives of a loss of 1e-200 do
    largest = float(flat.abs().max())
    if largest == 0.0 or not isfinite(largest):
        return largest
    scaled = flat.double() / largest
    return float(largest * dot(scaled, scaled) ** 0.5)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over several tensors of any shapes together."""
    return hypot(*map(norm, tensors))
