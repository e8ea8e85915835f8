"""Dot products and norms of tensors, accumulated in float64.

In float32 `torch.linalg.vector_norm` is off by 4e-4 at eleven million entries, which a Lanczos run shows as
eigenvalues 1e-3 too large. Price: one pass over the entries; memory for one block of them in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ENTRIES_AT_ONCE = 1 << 20  # converted to float64 at a time, so that the copies stay small beside n


def dot(a: Tensor, b: Tensor) -> float:
    """The scalar product of two flat vectors, (n,) each, accumulated in float64."""
    if a.dtype == torch.float64:
        return float(torch.dot(a, b))
    pairs = zip(torch.split(a, ENTRIES_AT_ONCE), torch.split(b, ENTRIES_AT_ONCE), strict=True)
    return float(sum(torch.dot(x.double(), y.double()) for x, y in pairs))


def norm(a: Tensor) -> float:
    """The Euclidean norm of a tensor of any shape, accumulated in float64."""
    flat = a.reshape(-1)
    return float(dot(flat, flat) ** 0.5)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over several tensors of any shapes together."""
    return float(sum(norm(t) ** 2 for t in tensors) ** 0.5)
