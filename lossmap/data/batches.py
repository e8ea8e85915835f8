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
    raise ValueError(f"a batch wants at least one tensor with a first dimension of samples; got {type(batch)}")


def moved(batch: Batch, device: torch.device | str | None, dtype: torch.dtype | None) -> Batch:
    """The batch on a device; floating-point tensors in dtype, others as they are."""
    # towards a GPU the copy may overlap; from one, the host would read before it has arrived
    overlaps = device is not None and torch.device(device).type == "cuda"

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        floating = dtype is not None and leaf.is_floating_point()
        return leaf.to(device=device, dtype=dtype if floating else None, non_blocking=overlaps)

    return pytree.tree_map(move, batch)


def shared_range(samples: int, rank: int, size: int) -> tuple[int, int]:
    """The first and one past the last sample of a rank's share."""
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size} ranks")
    return samples * rank // size, samples * (rank + 1) // size


@dataclass(frozen=True, eq=False)
class Resident:
    """All samples in memory: a pytree of tensors with equal first dimension."""

    tensors: Batch
    batch_size: int

    def __post_init__(self) -> None:
        lengths = {
            int(t.shape[0]) if t.dim() else -1 for t in pytree.tree_leaves(self.tensors) if isinstance(t, torch.Tensor)
        }
        if len(lengths) != 1 or -1 in lengths:
            raise ValueError(
                f"inputs and targets want the same number of samples; got first dimensions {sorted(lengths)}"
            )
        if lengths == {0}:
            raise ValueError("the data hold no sample")
        if self.batch_size < 1:
            raise ValueError(f"a batch wants at least one sample; got {self.batch_size}")

    @property
    def samples(self) -> int:
        return samples_in(self.tensors)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self._rows(start, min(start + self.batch_size, self.samples))

    def _rows(self, start: int, stop: int) -> Batch:
        return pytree.tree_map(lambda t: t[start:stop] if isinstance(t, torch.Tensor) else t, self.tensors)

    def rebatched(self, size: int) -> Resident:
        return replace(self, batch_size=size)

    def share(self, rank: int, size: int) -> Resident:
        return replace(self, tensors=self._rows(*shared_range(self.samples, rank, size)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Resident:
        return replace(self, tensors=moved(self.tensors, device, dtype))


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
            yield moved(self.fetch(self.indices[start : start + self.batch_size]), self.device, self.dtype)

    def rebatched(self, size: int) -> Streamed:
        return replace(self, batch_size=size)

    def share(self, rank: int, size: int) -> Streamed:
        start, stop = shared_range(self.samples, rank, size)
        return replace(self, indices=self.indices[start:stop])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Streamed:
        return replace(self, device=device or self.device, dtype=dtype or self.dtype)


def drained(
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
        return batches if batch_size is None else batches.rebatched(batch_size)
    if isinstance(batches, torch.Tensor) or (
        isinstance(batches, (tuple, dict))
        and all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(batches))
        and pytree.tree_leaves(batches)
    ):
        return Resident(batches, batch_size or min(samples_in(batches), 256))
    drawn, left = [], memory.sample_budget(ranks_sharing=ranks_sharing) if budget is None else budget
    for batch in batches:
        drawn.append(moved(batch, "cpu", None))
        left -= sum(t.numel() * t.element_size() for t in pytree.tree_leaves(batch) if isinstance(t, torch.Tensor))
        if left < 0:
            raise ValueError(
                f"the first {len(drawn)} batches are more than memory has room for, a quarter of what is free; give "
                "a Dataset with a length, or a DataLoader over one without a sampler of its own: that is streamed"
            )
    if not drawn:
        raise ValueError("the loader gave no batch")
    drawn = [tuple(b) if isinstance(b, list) else b for b in drawn]
    specs = {pytree.tree_flatten(b)[1] for b in drawn}
    if len(specs) != 1:
        raise ValueError("the loader's batches differ in structure; all want the same tuple or dict")
    spec = specs.pop()
    columns = zip(*(pytree.tree_leaves(b) for b in drawn), strict=True)
    joined = [torch.cat(c) if isinstance(c[0], torch.Tensor) else c[0] for c in columns]
    return Resident(pytree.tree_unflatten(joined, spec), batch_size or samples_in(drawn[0]))
