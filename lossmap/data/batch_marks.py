"""Marks by which fixed batches are told apart, however they are copied, moved, converted or shared among ranks.

A loss that draws at random needs other numbers for every batch, the same at every evaluation. A mark is made once, of
what a batch holds and of how many equal ones stand before it: of no position among ranks, no device and no precision.
It rides on the batch's first tensor as an attribute, which `map_tensors` and `move_batch` hand on.

Price: one pass over the data, SHA-256.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batch_structure import strided_parts
from lossmap.trees import rebuilt

MARK = "_lossmap_mark"


def mark_of(batch: Any) -> str:
    """The mark of a batch; empty where it has none."""
    return str(getattr(_first_tensor(batch), MARK, ""))


def with_mark_of(tensor: Tensor, original: Tensor) -> Tensor:
    """The tensor, with the mark that another one bears, if any."""
    mark = getattr(original, MARK, None)
    if mark is not None and tensor is not original:
        setattr(tensor, MARK, mark)
    return tensor


def marked(batches: tuple[Any, ...]) -> tuple[Any, ...]:
    """The batches, each with a mark of its own; their tensors share the memory of the given ones."""
    seen: Counter[str] = Counter()
    result = []
    for batch in batches:
        content = _digest(batch)
        result.append(_with_mark(batch, f"{content} {seen[content]}"))
        seen[content] += 1
    return tuple(result)


def _first_tensor(batch: Any) -> Tensor | None:
    return next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)


def _with_mark(batch: Any, mark: str) -> Any:
    first = _first_tensor(batch)
    if first is None:
        return batch
    own = first.detach()  # an object of its own: one tensor may stand in several batches
    setattr(own, MARK, mark)
    return rebuilt(lambda leaf: own if leaf is first else leaf, batch)


def _digest(batch: Any) -> str:
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)}".encode())
            for part in strided_parts(leaf):
                digest.update(_content(part))
    return digest.hexdigest()[:16]


def _content(t: Tensor) -> bytes:
    """The values, as coarse as bfloat16, so that they are the same in every precision; none of unusual layouts."""
    if t.layout != torch.strided or t.is_quantized or t.is_nested:
        return b""
    t = t.detach().cpu()
    if t.is_complex():
        t = torch.view_as_real(t.resolve_conj())
    if t.is_floating_point():
        t = t.float().bfloat16().float()
    values: bytes = t.contiguous().numpy().tobytes()
    return values
