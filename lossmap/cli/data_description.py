"""What data were read, in words: number, shapes, types, ranges and classes; for people who look before they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batch_structure import strided_parts
from lossmap.data.batches import Batches, FixedBatches, Resident
from lossmap.sums import in_float64

MAX_TENSORS = 12  # that are described, of a batch that may be a list of many graphs
MAX_CLASSES = 1000  # whole numbers of more different values are no class labels


def description_of(data: Batches, of_pairs: bool = True) -> list[str]:
    """One line for the number of samples, and one for each tensor of a batch.

    of_pairs  whether the loss is one of outputs and targets, so that a batch of two is inputs and targets

    Of streamed data, and of batches as they are given, the tensors of the first batch are described.
    """
    if isinstance(data, Resident):
        return [_counted(data.samples, "sample"), *_lines_of(data.tensors, "", of_pairs)]
    batch, where = next(iter(data)), " in the first batch"
    if isinstance(data, FixedBatches):
        number = _counted(len(data.batches), "batch", "batches")
        head = f"{number} as given, never cut; {_counted(data.samples, 'sample')}"
        return [head, *_lines_of(batch, where, of_pairs)]
    return [f"{_counted(data.samples, 'sample')}, read as they are needed", *_lines_of(batch, where, of_pairs)]


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _lines_of(batch: Any, where: str, of_pairs: bool) -> list[str]:
    named = pytree.tree_flatten_with_path(batch)[0]
    tensors = [(_name(path, batch, of_pairs), leaf) for path, leaf in named if isinstance(leaf, Tensor)]
    lines = [f"{name}: {_described(t)}{where}" for name, t in tensors[:MAX_TENSORS]]
    rest = len(tensors) - len(lines)
    return [*lines, f"and {_counted(rest, 'tensor')} more"] if rest else lines


def _name(path: Any, batch: Any, of_pairs: bool) -> str:
    """`inputs` and `targets` of a pair; a key of a dict; else where it stands."""
    match path:
        case [pytree.SequenceKey(place)] if of_pairs and isinstance(batch, (tuple, list)) and len(batch) == 2:
            return ("inputs", "targets")[place]
        case [pytree.MappingKey(key)]:
            return str(key)
        case [pytree.GetAttrKey(), pytree.MappingKey(key)] if isinstance(batch, Mapping):
            return str(key)  # of a UserDict, which holds its entries in a dict
    return f"batch{pytree.keystr(path)}"


def _described(t: Tensor) -> str:
    kind = str(t.dtype).removeprefix("torch.")
    shape = " x ".join(map(str, t.shape[1:]))
    text = f"{kind}, {shape} each" if shape else kind
    if t.layout != torch.strided:
        t = strided_parts(t)[-1]
        text = f"{kind}, sparse, {t.numel():,} entries" + (f", {shape} each" if shape else "")
    if t.numel() == 0 or t.is_complex():
        return text
    low, high = float(t.min()), float(t.max())
    if t.is_floating_point():
        wide = in_float64(t)
        mean, deviation = float(wide.mean()), float(wide.std(correction=0))
        return f"{text}, {low:.4g} to {high:.4g}, mean {mean:.4g}, standard deviation {deviation:.4g}"
    if t.dim() == 1:
        values, counts = torch.unique(t, return_counts=True)
        if len(values) <= MAX_CLASSES:
            few, most = int(counts.min()), int(counts.max())
            each = f"{few}" if few == most else f"{few} to {most}"
            return f"{text}, {_counted(len(values), 'class', 'classes')}, {low:.0f} to {high:.0f}, {each} of each"
    return f"{text}, {low:.0f} to {high:.0f}"
