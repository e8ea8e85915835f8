"""Batches in a random order: those of an epoch, and of a step of many epochs, each epoch in an order of its own.

The order comes from what it is for, a seed and the epoch alone, so that the same step gets the same batch anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lossmap.data.batches import Batch, Batches, FixedBatches, Resident, Streamed, map_tensors
from lossmap.seeding import generator


def cuts_of(samples: int, size: int) -> list[tuple[int, int]]:
    """Where an epoch's order is cut; a last batch of one sample, of which batch norm has no variance, is joined."""
    starts = list(range(0, samples, size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


def rows_of(data: Batches, rows: Tensor) -> Batch:
    """A batch of these samples. Raises TypeError for data that are not to be cut."""
    if isinstance(data, Streamed):
        return next(iter(replace(data, indices=[data.indices[i] for i in rows.tolist()], batch_size=len(rows))))
    if not isinstance(data, Resident):
        raise TypeError(f"training needs Resident or Streamed data; got {type(data).__name__}")
    return map_tensors(lambda t: t[rows.to(t.device)], data.tensors)


def shuffled_batch(data: Batches, size: int, step: int, *purpose: str | int) -> Batch:
    """The batch of one step; of data that are not to be cut one of their own batches.

    size     samples in a batch
    step     counted over all epochs
    purpose  what the order is for, and its seed
    """
    if isinstance(data, FixedBatches):
        epoch, index = divmod(step, len(data.batches))
        return data.batches[int(torch.randperm(len(data.batches), generator=generator(*purpose, epoch))[index])]
    cuts = cuts_of(data.samples, size)
    epoch, index = divmod(step, len(cuts))
    order = torch.randperm(data.samples, generator=generator(*purpose, epoch))
    return rows_of(data, order[slice(*cuts[index])])
