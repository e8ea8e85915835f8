"""Batches in a random order: those of an epoch, and of a step of many epochs, each epoch in an order of its own.

The order comes from what it is for, a seed and the epoch alone, so that the same step gets the same batch anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
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


@dataclass(frozen=True)
class NoSamples:
    """Batches without any: what a rank of a team holds where the others hold all that is read."""

    batch_size: int
    samples: int = 0

    def __iter__(self) -> Iterator[Batch]:
        return iter(())

    def rebatched(self, size: int) -> NoSamples:
        """The same."""
        return NoSamples(size)

    def share(self, rank: int, size: int) -> NoSamples:
        """The same."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NoSamples:
        """The same."""
        return self


def part_of(data: Batches, rows: np.ndarray) -> Batches:
    """These samples of the data, by their indices, in that order. Raises TypeError for data that are not to be cut."""
    if not rows.size:
        return NoSamples(data.batch_size)
    if isinstance(data, Streamed):
        return replace(data, indices=[data.indices[i] for i in rows.tolist()])
    if not isinstance(data, Resident):
        raise TypeError(f"a part of the samples is of Resident or Streamed data; got {type(data).__name__}")
    return replace(data, tensors=rows_of(data, torch.from_numpy(rows)), loader_sizes=())


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
