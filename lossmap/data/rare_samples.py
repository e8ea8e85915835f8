"""Samples that differ from the others in a number of their own: a rare class, a weight, an offset.

A loss that couples its batch by such a number, as one that weighs classes does, looks like a mean over samples that all
have the same: most tasks with weighted classes have one class that the first samples share. Such a number is a tensor
with one entry for each sample. Price: a sort of these entries; of samples that are read from elsewhere, `LOOKED_AT` are
read where the ones at hand are all alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch

LOOKED_AT = 64  # samples of a stream


def rare_rows(batch: Batch, samples: int, at_hand: Sequence[int], most: int) -> list[int]:
    """Rows whose numbers none of the rows at hand has, the rarest first: so many at most.

    batch    tensors (samples, ...)
    at_hand  rows that are taken anyway
    """
    rows: list[int] = []
    taken = torch.tensor(list(at_hand))
    for numbers in _numbers(batch, samples):
        missing = _missing(numbers, taken.to(numbers.device))
        rows += [row for row in missing if row not in rows]
    return rows[:most]


def all_alike(batch: Batch, samples: int) -> bool:
    """Whether some number of the samples is the same for all of them."""
    return any(bool((numbers == numbers[0]).all()) for numbers in _numbers(batch, samples))


def _numbers(batch: Batch, samples: int) -> list[Tensor]:
    """The tensors of a batch with one entry for each sample."""
    leaves = pytree.tree_leaves(batch)
    return [
        t.reshape(-1)
        for t in leaves
        if isinstance(t, Tensor) and t.dim() and len(t) == samples == t.numel() and not t.is_complex()
    ]


def _missing(numbers: Tensor, taken: Tensor) -> list[int]:
    """The first row of each whole number that no taken row has, the rarest first; of others the extremes, if alike."""
    own = numbers[taken]
    if numbers.is_floating_point():
        if bool((own == own[0]).all()) and not bool(numbers.isnan().any()):
            return list(dict.fromkeys((int(numbers.argmin()), int(numbers.argmax()))))
        return []
    numbers, own = numbers.long(), own.long()  # PyTorch does not compare booleans
    values, counts = torch.unique(numbers, return_counts=True)
    order = counts.argsort(stable=True)
    absent = values[order][~torch.isin(values[order], own)][: len(taken)]
    return [int((numbers == v).nonzero()[0]) for v in absent]
