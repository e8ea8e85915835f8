"""Copies of large tensors that take memory only when one of the two is written to.

    lazy_copy(t)            what t.detach().clone() gives; memory is taken at the first write to either
    copy_without_memory(t)  the same, or None where memory would be taken at once
    same_memory             whether two tensors still share what they were made with: then they are equal

A model is evaluated on copies of its weights, since a forward pass may write into them; hardly any does, so that the
copies of a large one would be memory for nothing. PyTorch's copy-on-write storage (`torch._lazy_clone`, the same from
2.6 on) sees every write, `.data` and a view too. A pointer that is asked for from Python counts as a write; one that
was asked for before the copy was made, as of a NumPy array, does not: what is written through it reaches both. Where a
tensor is small, a view of a larger one, or of memory that PyTorch does not manage, the copy is made at once.

Price: some microseconds; a write to either costs the copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MIN_LAZY_BYTES = 1 << 20  # of a tensor whose copy waits for a write


def lazy_copy(t: Tensor) -> Tensor:
    """A detached copy of a tensor, which shares its memory until one of the two is written to; no inference tensor."""
    with torch.inference_mode(False), torch.no_grad():
        return _copied(t)


def lazy_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Such copies of many tensors, by their names."""
    with torch.inference_mode(False), torch.no_grad():
        return {name: _copied(t) for name, t in tensors.items()}


def copy_without_memory(t: Tensor) -> Tensor | None:
    """Such a copy of a large tensor; None where one would take memory at once."""
    with torch.inference_mode(False), torch.no_grad():
        return _lazily_copied(t.detach())


def _copied(t: Tensor) -> Tensor:
    """A copy; called where no gradient is recorded."""
    if t.numel() * t.element_size() < MIN_LAZY_BYTES:
        return t.clone()
    t = t.detach()
    copy = _lazily_copied(t)
    return t.clone() if copy is None else copy


def _lazily_copied(t: Tensor) -> Tensor | None:
    if not has_own_storage(t):
        return None
    try:
        return torch._lazy_clone(t)
    except RuntimeError:  # memory of NumPy's, of another process or of a file
        return None


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor is a copy of the other that still shares its memory. False says nothing of their values."""
    if a is b:
        return True
    if not (has_own_storage(a) and has_own_storage(b)):
        return False
    is_lazy = torch._C._is_cow_tensor(a) and torch._C._is_cow_tensor(b)  # type: ignore[attr-defined]
    address = torch._C._data_address  # type: ignore[attr-defined]  # which, unlike data_ptr(), counts as no write
    return bool(is_lazy and a.shape == b.shape and a.dtype == b.dtype and address(a) == address(b))


def has_own_storage(t: Tensor) -> bool:
    """Whether a tensor is large, dense, in memory of PyTorch's, and the only one in its storage."""
    if type(t) not in (Tensor, torch.nn.Parameter) or t.layout != torch.strided or t.device.type not in ("cpu", "cuda"):
        return False
    size = t.numel() * t.element_size()
    return size >= MIN_LAZY_BYTES and t.is_contiguous() and t.untyped_storage().nbytes() == size


__all__ = ["copy_without_memory", "has_own_storage", "lazy_copies", "lazy_copy", "same_memory"]
