"""Dot products and norms of tensors, accumulated in float64, and where float64 is computed.

In float32 `torch.linalg.vector_norm` is off by 4e-4 at eleven million entries, which a Lanczos run shows as
eigenvalues 1e-3 too large. Price: one pass over the entries; memory for one block of them in float64.

Some devices have no float64 (Apple's GPUs, and some of Intel's): for these the CPU adds up, and all else that is
computed in float64 is on it too. Price there: a copy to the host of what is summed up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from math import hypot, inf, isfinite

import torch
from torch import Tensor

ENTRIES_AT_ONCE = 1 << 20  # converted to float64 at a time, so that the copies stay small beside n
SMALLEST_SQUARE = 1e-280  # a sum of squares below it may have lost some that underflowed

CPU = torch.device("cpu")


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; found out by one sum, and once."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        return float(torch.ones(1, dtype=torch.float64, device=device).sum()) == 1.0
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):  # MPS raises the first, XPU the second
        return False


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for what is on a device: there, or on the CPU."""
    return device if has_float64(device) else CPU


def in_float64(t: Tensor) -> Tensor:
    """A tensor in float64: on its device, or on the CPU where that has none."""
    if has_float64(t.device):
        return t.double()
    return t.cpu().double()  # in two steps: the first would convert on the device


def for_float64(t: Tensor) -> Tensor:
    """A tensor as a model in float64 takes it: where that is computed, other numbers as they are."""
    return in_float64(t) if t.is_floating_point() else t.to(float64_device(t.device))


def alike(t: Tensor, other: Tensor) -> Tensor:
    """A tensor where another one is, and in its precision, which the device that it comes from may not have."""
    return (in_float64(t) if other.dtype == torch.float64 else t).to(other.device, other.dtype)


def sums_in(device: torch.device) -> torch.dtype:
    """The precision of a batch's sums that stay on a device until the host reads all of them together."""
    return torch.float64 if has_float64(device) else torch.float32


def moved_from(device: torch.device) -> torch.device | None:
    """The device from which `for_float64` takes tensors away; None where they stay."""
    return None if has_float64(device) else device


def dot(a: Tensor, b: Tensor) -> float:
    """The scalar product of two flat vectors, (n,) each, accumulated in float64."""
    if a.dtype == torch.float64:
        return float(torch.dot(a, b))
    if not has_float64(a.device):
        a, b = a.cpu(), b.cpu()
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
    scaled = in_float64(flat) / largest
    return float(largest * dot(scaled, scaled) ** 0.5)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over several tensors of any shapes together."""
    return hypot(*map(norm, tensors))
