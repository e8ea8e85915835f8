"""Batches of one data set: in a fixed order, cut at will, shared among the ranks of a team.

`Resident` holds all samples as tensors, on the rank's device, and slices them; `Streamed` reads a
larger data set in the same fixed order, batch by batch. Both are re-iterable, say how many `samples` they
hold, and can be cut anew: `rebatched(size)` and `share(rank, size)` return other views of the same data.
A batch is what the model and loss take: a tensor, a tuple or a dict of them (any pytree).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from lossmap import memory

Batch = Any  # a pytree of tensors whose first dimension counts samples


class Batches(Protocol):
    """What a problem reads its samples from."""

    @property
    def samples(self) -> int:
        """How many samples an iteration passes over."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last one may be shorter."""

    def __iter__(self) -> Iterator[Batch]: ...

    def rebatched(self, size: int) -> Batches:
        """The same samples in the same order, cut into batches of this size."""

    def share(self, rank: int, size: int) -> Batches:
        """The part of rank `rank` among `size`: consecutive samples, differing by at most one in number."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batches:
        """The same samples there; dtype is applied to floating-point tensors only."""


def samples_in(batch: Batch) -> int:
    """The samples of a batch: the length of its first tensor's first dimension."""
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    raise ValueError(f"a batch must hold at least one tensor, its first dimension the samples; got {type(batch)}")


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Batch:
    """The batch with a function applied to every tensor in it; other leaves stay."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of batches of one structure; leaves other than tensors are the first batch's.

    Raises ValueError where the structures differ.
    """
    structures = {pytree.tree_flatten(batch)[1] for batch in batches}
    if len(structures) != 1:
        raise ValueError("the loader's batches differ in structure; all must be the same tuple or dict")
    columns = zip(*(pytree.tree_leaves(batch) for batch in batches), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], torch.Tensor) else column[0] for column in columns]
    return pytree.tree_unflatten(joined, structures.pop())


def move_batch(batch: Batch, device: torch.device | str | None, dtype: torch.dtype | None) -> Batch:
    """The batch on a device; floating-point tensors in dtype, others as they are."""
    # towards a GPU the copy may overlap; from one, the host would read before it has arrived
    overlaps = device is not None and torch.device(device).type == "cuda"

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.is_floating_point():
            return leaf.to(device=device, dtype=dtype, non_blocking=overlaps)
        return leaf.to(device=device, non_blocking=overlaps)

    return pytree.tree_map(move, batch)


def shared_range(samples: int, rank: int, size: int) -> tuple[int, int]:
    """The first and one past the last sample of a rank's share. Raises ValueError for a rank that is not below size."""
    if not 0 <= rank < size:
        raise ValueError(f"rank must be >= 0 and < {size}, the number of ranks; got {rank}")
    return samples * rank // size, samples * (rank + 1) // size


@dataclass(frozen=True, eq=False)
class Resident:
    """All samples in memory: a pytree of tensors with equal first dimension."""

    tensors: Batch
    batch_size: int

    def __post_init__(self) -> None:
        tensors = [t for t in pytree.tree_leaves(self.tensors) if isinstance(t, torch.Tensor)]
        lengths = {(*t.shape, -1)[0] for t in tensors}  # -1 of a scalar
        if len(lengths) != 1 or -1 in lengths:
            raise ValueError(
                f"inputs and targets must have the same number of samples; got first dimensions {sorted(lengths)}"
            )
        if lengths == {0}:
            raise ValueError("the data must hold at least one sample; got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1; got {self.batch_size}")

    @property
    def samples(self) -> int:
        return samples_in(self.tensors)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self._rows(start, min(start + self.batch_size, self.samples))

    def _rows(self, start: int, stop: int) -> Batch:
        return map_tensors(lambda t: t[start:stop], self.tensors)

    def rebatched(self, size: int) -> Resident:
        return replace(self, batch_size=size)

    def share(self, rank: int, size: int) -> Resident:
        return replace(self, tensors=self._rows(*shared_range(self.samples, rank, size)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Resident:
        return replace(self, tensors=move_batch(self.tensors, device, dtype))


@dataclass(frozen=True, eq=False)
class Streamed:
    """Samples read in a fixed order from something larger than memory.

    fetch       indices of samples -> one batch on the host
    indices     which samples, in order
    """

    fetch: Callable[[Sequence[int]], Batch]
    indices: Sequence[int]
    batch_size: int
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    @property
    def samples(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield move_batch(self.fetch(self.indices[start : start + self.batch_size]), self.device, self.dtype)

    def rebatched(self, size: int) -> Streamed:
        return replace(self, batch_size=size)

    def share(self, rank: int, size: int) -> Streamed:
        start, stop = shared_range(self.samples, rank, size)
        return replace(self, indices=self.indices[start:stop])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Streamed:
        return replace(self, device=device or self.device, dtype=dtype or self.dtype)


def read_into_memory(
    batches: Any, batch_size: int | None = None, budget: int | None = None, *, ranks_sharing: int = 1
) -> Batches:
    """Any iterable of batches, a DataLoader for instance, as `Resident` tensors: read once, in its order.

    A tuple, dict or tensor of samples is taken as it is.

    budget         bytes that the batches may take; by default `memory.sample_budget`, a quarter of what is free
    ranks_sharing  ranks that share the memory of this host and load the same; divides that default

    Raises ValueError where the batches do not fit together, and where they take more than that: an endless number
    of them does.
    """
    if isinstance(batches, (Resident, Streamed)):
        if batch_size is None:
            return batches
        return batches.rebatched(batch_size)
    if isinstance(batches, torch.Tensor) or (
        isinstance(batches, (tuple, dict))
        and all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(batches))
        and pytree.tree_leaves(batches)
    ):
        return Resident(batches, batch_size or min(samples_in(batches), 256))
    if budget is None:
        budget = memory.sample_budget(ranks_sharing=ranks_sharing)
    collected: list[Batch] = []
    for batch in batches:
        collected.append(move_batch(batch, "cpu", None))
        budget -= sum(t.numel() * t.element_size() for t in pytree.tree_leaves(batch) if isinstance(t, torch.Tensor))
        if budget < 0:
            raise ValueError(
                f"the first {len(collected)} batches are more than the memory for samples, a quarter of what is free; "
                "give a Dataset with a length, or a DataLoader over one without a sampler of its own: that is streamed"
            )
    if not collected:
        raise ValueError("the loader must yield at least one batch; got none")
    collected = [tuple(batch) if isinstance(batch, list) else batch for batch in collected]
    return Resident(join_batches(collected), batch_size or samples_in(collected[0]))
