"""Batches of one data set: in a fixed order, cut at will, shared among the ranks of a team.

`Resident` holds all samples as tensors, on the rank's device, and slices them; `Streamed` reads a
larger data set in the same fixed order, batch by batch. Both are re-iterable, say how many `samples` they
hold, and can be cut anew: `rebatched(size)` and `share(rank, size)` return other views of the same data.
`FixedBatches` are never cut: batches that make no sense in parts, such as graphs, or padded each to its own width.
A batch is what the model and loss take: a tensor, a tuple or a dict of them, or an object that holds some.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lossmap import memory
from lossmap.data.batch_marks import with_mark_of
from lossmap.data.batch_structure import CLOSED, holds_tensors, is_one_batch, open_batch
from lossmap.data.copy_stream import copied_ahead, streams_of
from lossmap.data.sample_count import (
    Collated,
    CountedCollate,
    have_columns,
    is_counted_otherwise,
    leaves_of,
    lengths_of,
    samples_in,
    told_count,
    with_count_of,
    with_entries,
)
from lossmap.data.told import tell
from lossmap.sums import for_float64, has_float64
from lossmap.trees import NotJoined, clones, has_views, rebuilt

Batch = Any  # a pytree of tensors whose first dimension counts samples

log = logging.getLogger("lossmap")
SPARSE = "they hold sparse tensors"
FIRST_REPORT = 10.0  # seconds of reading after which the log says how much was read
TENSOR_BYTES = 500  # that a tensor takes beside its numbers (measured): small batches are mostly that


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


def is_even(batch: Batch) -> bool:
    """Whether all tensors of a batch have the same first dimension, so that it can be cut; no sparse one can."""
    if is_counted_otherwise(batch):
        return False
    tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, torch.Tensor)]
    if any(t.layout != torch.strided for t in tensors):
        return False
    return len({(*t.shape, -1)[0] for t in tensors} | {-1}) == 2 and all(t.dim() for t in tensors)


def _why_uneven(batches: Sequence[Batch]) -> str:
    tensors = (t for t in pytree.tree_leaves(list(batches)) if isinstance(t, torch.Tensor))
    if any(t.layout != torch.strided for t in tensors):
        return SPARSE
    if all(map(is_counted_otherwise, batches)):
        return "their samples are no rows of tensors"
    return "the parts of a batch differ in number"


def _without_nested(batch: Batch) -> Batch:
    """The batch. Raises ValueError for one with a nested tensor, of which PyTorch lacks most operations."""
    if any(isinstance(t, torch.Tensor) and t.is_nested for t in pytree.tree_leaves(batch)):
        raise ValueError(
            "a batch holds a nested tensor, of which PyTorch lacks most operations; give its parts as a list "
            "(list(tensor.unbind())) and join them in the loss, or pad them"
        )
    return batch


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Batch:
    """The batch with a function applied to every tensor in it; other leaves stay."""

    def mapped(leaf: Any) -> Any:
        return with_mark_of(function(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf

    return rebuilt(mapped, batch)


def copied(batch: Batch) -> Batch:
    """The batch with copies of its tensors, and of arrays and objects in it."""
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = dict(clones([t for t in pytree.tree_leaves(batch) if isinstance(t, torch.Tensor)]))

        def copy_of(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return with_mark_of(memo[id(leaf)], leaf)
            try:
                return leaf if isinstance(leaf, (*CLOSED, Dataset)) else deepcopy(leaf, memo)
            except Exception:  # a lock, a file, what somebody's class raises
                return leaf

        return rebuilt(copy_of, batch)


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of batches of one structure.

    Raises NotJoined where the structures differ, where a leaf that is no tensor differs between the batches or
    cannot be compared (a graph, a name, a number of each batch), and where tensors do not fit together.
    """
    structure, *others = (pytree.tree_flatten(batch)[1] for batch in batches)  # before PyTorch 2.7 they have no hash
    if any(other != structure for other in others):
        raise NotJoined("they differ in structure")
    return rebuilt(_join_leaves, *batches)


def _join_leaves(*column: Any) -> Any:
    """One leaf of all batches: tensors end to end; anything else only where it is the same plain value in all."""
    first = column[0]
    if isinstance(first, torch.Tensor):
        if any(isinstance(t, torch.Tensor) and t.layout != torch.strided for t in column):
            if len(column) == 1:
                return first
            raise NotJoined(SPARSE)
        widths = {tuple(t.shape[1:]) for t in column if isinstance(t, torch.Tensor)}
        if len(widths) > 1:
            shapes = ", ".join(str(w) for w in sorted(widths)[:3])
            raise NotJoined(f"their tensors have different shapes beyond the first dimension ({shapes})")
        return torch.cat(list(column))
    plain = first is None or isinstance(first, (str, int, float, bool))
    if len(column) == 1 or (plain and all(type(leaf) is type(first) and leaf == first for leaf in column)):
        return first
    raise NotJoined(f"they hold a {type(first).__name__} that is no tensor and differs from batch to batch")


def move_batch(batch: Batch, device: torch.device | str | None, dtype: torch.dtype | None) -> Batch:
    """The batch on a device; floating-point tensors in dtype, others as they are.

    Without a device each tensor stays where it is; to float64 it goes where that is computed.
    """
    # towards a GPU the copy may overlap; from one, the host would read before it has arrived
    overlaps = device is not None and torch.device(device).type == "cuda"

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if device is None and dtype == torch.float64:
            return with_mark_of(for_float64(leaf), leaf)
        if leaf.is_floating_point():
            return with_mark_of(leaf.to(device=device, dtype=dtype, non_blocking=overlaps), leaf)
        return with_mark_of(leaf.to(device=device, non_blocking=overlaps), leaf)

    return rebuilt(move, batch)


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
    loader_sizes: tuple[int, ...] = ()  # samples in each batch of the loader that they came from, where they differ
    first: int = 0  # number of the first sample in the data of which these are a share
    had_views: bool = False  # whether two tensors of a batch were views of one memory before batches were joined
    told: tuple[str, ...] = ()  # sentences on how they were read

    def __post_init__(self) -> None:
        tensors = [t for t in pytree.tree_leaves(self.tensors) if isinstance(t, torch.Tensor)]
        lengths = {(*t.shape, -1)[0] for t in tensors}  # -1 of a scalar
        if len(lengths) != 1 or -1 in lengths:
            raise ValueError(
                f"inputs and targets must have the same number of samples; got first dimensions {sorted(lengths)}"
            )
        if told_count(self.tensors) is not None:
            raise ValueError("the samples are no rows of the tensors: batches as their loader made them are not joined")
        if lengths == {0}:
            raise ValueError("the data must hold at least one sample; got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1; got {self.batch_size}")

    @cached_property
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
        start, stop = shared_range(self.samples, rank, size)
        return replace(self, tensors=self._rows(start, stop), loader_sizes=(), first=self.first + start)

    def uncut(self) -> FixedBatches:
        """The loader's own batches, never to be cut or joined again."""
        sizes = self.loader_sizes or [self.batch_size] * -(-self.samples // self.batch_size)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        rows = tuple(self._rows(e - s, e) for s, e in zip(sizes, ends, strict=True))
        return FixedBatches(rows, self.first, told=self.told)

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
    told: tuple[str, ...] = ()  # sentences on how they are read

    @property
    def samples(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, self.samples, self.batch_size)
        batches = (self.fetch(self.indices[start : start + self.batch_size]) for start in starts)
        move = partial(move_batch, device=self.device, dtype=self.dtype)
        module = streams_of(self.device)
        if self.device is None or module is None:
            return map(move, batches)
        return copied_ahead(batches, self.device, move, module)

    def rebatched(self, size: int) -> Streamed:
        return replace(self, batch_size=size)

    def share(self, rank: int, size: int) -> Streamed:
        start, stop = shared_range(self.samples, rank, size)
        return replace(self, indices=self.indices[start:stop])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Streamed:
        device = device or self.device
        if device is not None and dtype == torch.float64 and not has_float64(torch.device(device)):
            device = "cpu"
        return replace(self, device=device, dtype=dtype or self.dtype)


@dataclass(frozen=True)
class MappedFetch:
    """A `Streamed.fetch` whose batches go through a function: a value, so that it can travel to another process."""

    fetch: Callable[[Sequence[int]], Batch]
    function: Callable[[Batch], Batch]

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The function of the batch of these samples."""
        return self.function(self.fetch(indices))


@dataclass(frozen=True, eq=False)
class FixedBatches:
    """Batches that stay as they were made: where cutting makes no sense, and for a loss that couples the samples of a
    batch or draws at random.

    `rebatched` changes nothing; `share` hands out whole batches, so that a team can have no more ranks than batches.
    """

    batches: tuple[Batch, ...]
    first: int = 0  # number of the first sample in the data of which these are a share
    doubt: str = ""  # a sentence, where they may count otherwise than they should
    told: tuple[str, ...] = ()  # sentences on how they were read

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError(
                "there are fewer batches than ranks in the team; a batch is not cut: take a smaller --team"
            )

    @property
    def samples(self) -> int:
        return sum(samples_in(batch) for batch in self.batches)

    @property
    def batch_size(self) -> int:
        return max(samples_in(batch) for batch in self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def rebatched(self, size: int) -> FixedBatches:
        return self

    def share(self, rank: int, size: int) -> FixedBatches:
        start, stop = shared_range(len(self.batches), rank, size)
        before = sum(map(samples_in, self.batches[:start]))
        return replace(self, batches=self.batches[start:stop], first=self.first + before)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FixedBatches:
        return replace(self, batches=tuple(move_batch(batch, device, dtype) for batch in self.batches))


def largest_to_cut(data: Iterable[Batches]) -> int:
    """The most samples that can be taken together of any of these; 1 where their batches stay as they were made.

    Half of it is what is left to try where memory ran out: a part of a batch that is not to be cut has another loss.
    """
    return max((d.samples for d in data if not isinstance(d, FixedBatches)), default=1)


def _report_dropped(loader: Any, samples: int) -> None:
    """Log how many samples a loader leaves out because its last batch is not full (`drop_last`)."""
    if not getattr(loader, "drop_last", False) or not hasattr(getattr(loader, "dataset", None), "__len__"):
        return
    number = len(loader.dataset)
    if samples < number:
        tell(
            f"the loader left out {number - samples} of {number} samples, its last batch (drop_last): numbers are of "
            f"the other {samples}; make it without drop_last to use all"
        )


def _is_one_batch(value: Any) -> bool:
    """Whether these are samples, and no series of batches. Raises ValueError for what holds no tensor."""
    if isinstance(value, tuple):
        leaves = pytree.tree_leaves(value)
        return bool(leaves) and all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    if hasattr(value, "__iter__") and not (isinstance(value, (torch.Tensor, Mapping)) or is_one_batch(value)):
        return False
    if not holds_tensors(value):
        raise ValueError(f"data must be tensors, a Dataset or batches; got {type(value).__name__}")
    return True


def prepared(batches: Batches, prepare: Callable[[Batch], Batch]) -> Batches:
    """Batches with a function applied to each; those that were not cut join where that makes them fit."""
    if isinstance(batches, Resident):
        return replace(batches, tensors=prepare(batches.tensors))
    if isinstance(batches, Streamed):
        return replace(batches, fetch=MappedFetch(batches.fetch, prepare))
    if not isinstance(batches, FixedBatches):
        return batches
    made = [with_count_of(prepare(batch), batch) for batch in batches.batches]
    if all(new is old for new, old in zip(made, batches.batches, strict=True)):
        return batches
    return read_into_memory(made)


def read_into_memory(
    batches: Any,
    batch_size: int | None = None,
    budget: int | None = None,
    *,
    ranks_sharing: int | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Batches:
    """Any iterable of batches, a DataLoader for instance, as `Resident` tensors: read once, in its order.

    A tuple, dict or tensor of samples is taken as it is, and so is one object or mapping that holds tensors.

    budget         bytes that the batches may take; by default `memory.sample_budget`, a quarter of what is free
    ranks_sharing  ranks that share the memory of this host and load the same, which divides that default; those that
                   the launcher started here, if left out
    prepare        a function of every batch, such as one that leaves out what the model does not take

    Batches that cannot be cut and joined are kept as given (`FixedBatches`), which the log says: graphs, tensors padded
    to another width in every batch, parts that differ in number, names and numbers of a batch.

    Raises ValueError where there is no batch, and where they take more than that: an endless number of them does.
    """
    if isinstance(batches, (Resident, Streamed, FixedBatches)):
        made = batches if prepare is None else prepared(batches, prepare)
        if batch_size is None:
            return made
        return made.rebatched(batch_size)
    if _is_one_batch(batches):
        one = _without_nested(open_batch(batches if prepare is None else prepare(batches)))
        if not is_even(one):
            return _as_given((one,), _why_uneven((one,)))
        return Resident(one, batch_size or min(samples_in(one), 256))
    if budget is None:
        budget = memory.sample_budget(ranks_sharing=ranks_sharing)
    collected, told = _collected(_counted(batches), budget, prepare)
    if not collected:
        raise ValueError("the loader must yield at least one batch; got none")
    collected = with_entries(collected, told)
    of_loader = [each.samples or 0 for each in told]
    sizes = tuple(samples_in(batch) for batch in collected)
    _report_dropped(batches, sum(of_loader or sizes))
    doubt, in_columns = "", have_columns(told) and list(sizes) != of_loader
    if in_columns or (of_loader and len(set(of_loader)) > len(set(sizes)) == 1):
        doubt = (
            f"the batches count {listed_counts(collected)} where the loss gives no weight of its own, though the "
            f"loader's hold {', '.join(map(str, sorted(set(of_loader), reverse=True)))} samples: the first dimension "
            "of their tensors is another, such as time; return (mean, weight) from the loss, or give tensors whose "
            "first dimension is that of the samples"
        )
        log.warning(doubt)
    equal = set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0]
    if in_columns or not all(map(is_even, collected)):
        return _as_given(collected, _why_uneven(collected), doubt)
    try:
        joined = join_batches(collected)
    except NotJoined as reason:
        return _as_given(collected, str(reason), doubt)
    own = () if equal or batch_size else sizes
    return Resident(joined, batch_size or sizes[0], own, had_views=any(map(has_views, collected)))


def _counted(batches: Any) -> Any:
    """A DataLoader that says how many samples it puts into each batch; anything else as it is."""
    if not isinstance(batches, DataLoader) or not batches._auto_collation:  # it gives its samples as they are
        return batches
    own = type(batches)
    if own.__iter__ is not DataLoader.__iter__ or own._get_iterator is not DataLoader._get_iterator:
        return batches
    counted = object.__new__(own)
    order: Any = batches.batch_sampler
    if not isinstance(batches.dataset, IterableDataset):
        order = _CountedOrder(order)
    changed = {"collate_fn": CountedCollate(batches.collate_fn), "batch_sampler": order}
    # the loader's own workers, where it keeps them, have its own `collate_fn`
    vars(counted).update({**vars(batches), **changed, "_iterator": None, "persistent_workers": False, "in_order": True})
    return counted


class _CountedOrder:
    """A batch sampler that says how many samples it asked for: of a Dataset's `__getitems__` the batch may not."""

    def __init__(self, order: Any) -> None:
        self.order = order
        self.numbers: list[int | None] = []

    def __iter__(self) -> Iterator[Any]:
        for indices in self.order:
            self.numbers.append(len(indices) if hasattr(indices, "__len__") else None)
            yield indices


def _collected(
    batches: Any, budget: int, prepare: Callable[[Batch], Batch] | None
) -> tuple[list[Batch], list[Collated]]:
    """All batches of a loader, on the CPU, and what it tells of each if it does; a line says so where that takes long.

    budget   bytes that they may take
    prepare  a function of every batch

    Raises ValueError where they take more than that.
    """
    collected: list[Batch] = []
    told: list[Collated] = []
    taken, report = 0, time.monotonic() + FIRST_REPORT
    for given in batches:
        if isinstance(given, Collated):
            told.append(replace(given, batch=None))
            given = given.batch
        batch = _of_arrays(given)
        if prepare is not None:
            batch = _of_arrays(prepare(batch))
        collected.append(move_batch(_without_nested(open_batch(batch)), "cpu", None))
        tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, torch.Tensor)]
        taken += sum(t.numel() * t.element_size() + TENSOR_BYTES for t in tensors)
        if taken > budget:
            raise ValueError(
                f"the first {len(collected)} batches are more than the memory for samples, a quarter of what is free; "
                "give a Dataset with a length, or a DataLoader over one without a sampler of its own: that is "
                "streamed; where they never end, give some (itertools.islice(loader, 100))"
            )
        now = time.monotonic()
        if now >= report:
            report = now + 6 * FIRST_REPORT
            log.warning(
                "reading the loader into memory: %d batches so far, %.2g of %.2g GB; where it never ends, give some of "
                "its batches, as in itertools.islice(loader, 100)",
                len(collected),
                taken / 1e9,
                budget / 1e9,
            )
    order = getattr(batches, "batch_sampler", None)
    if isinstance(order, _CountedOrder):
        told = [
            each if each.samples is not None and each.samples + each.left_out == n else Collated(None, n)
            for each, n in zip(told, order.numbers, strict=False)
        ]
    sizes = {each.samples for each in told}
    is_shown = all(any(each.lists) for each in told) or have_columns(told)
    are_whole = sizes == {1} and not is_shown  # its samples may be batches
    return collected, [] if None in sizes or are_whole else told


def _of_arrays(batch: Batch) -> Batch:
    """A batch of NumPy's arrays as one of tensors; one with a tensor in it as it is."""
    leaves = pytree.tree_leaves(batch)
    if any(map(holds_tensors, leaves)):
        return batch
    return rebuilt(lambda leaf: _of_array(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)


def _of_array(values: Any) -> Any:
    """An array of numbers as a tensor, any other as it is."""
    if values.dtype.kind not in "fiub":
        return values
    return torch.from_numpy(np.array(as_torch_has_it(values)))  # an owned, writable copy


def as_torch_has_it(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers in a type that PyTorch has: in this machine's order of bytes, unsigned ones as int64, at most float64."""
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        return values.astype(np.int64)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        return values.astype(np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def listed_counts(batches: Sequence[Batch], count: Callable[[Batch], float] = samples_in) -> str:
    """How many samples the first few batches hold, for a message."""
    return ", ".join(str(count(batch)) for batch in batches[:6]) + (", ..." if len(batches) > 6 else "")


def _as_given(batches: Sequence[Batch], reason: str, doubt: str = "") -> FixedBatches:
    """The batches as they are, never cut, which the log says."""
    counts = [samples_in(batch) for batch in batches]
    weight = "once" if set(counts) == {1} else f"by its samples ({listed_counts(batches)})"
    log.warning(
        "the batches are kept as given, uncut, since %s: %d of them; each counts %s, where the loss gives no weight of "
        "its own (PyTorch's cross entropy counts its targets). It is taken for a mean, unless parts of a batch show a "
        'sum, or the problem has reduction="sum"', reason, len(batches), weight,
    )  # fmt: skip
    lengths = [lengths_of(leaves_of(batch)) for batch in batches]
    known = [is_counted_otherwise(batch) or len(rows) == 1 for batch, rows in zip(batches, lengths, strict=True)]
    by_chance = [n for n, is_known in zip(counts, known, strict=True) if is_known and n > 1]
    once = [n == 1 and n not in rows for n, rows in zip(counts, lengths, strict=True)]
    if by_chance and any(is_one and not is_known for is_one, is_known in zip(once, known, strict=True)):
        doubt = (
            f"{len(by_chance)} of these batches count by their samples, since all their parts have one length, perhaps "
            "by chance, and others once, since theirs differ: return (mean, weight) from the loss"
        )
        log.warning(doubt)
    return FixedBatches(tuple(batches), doubt=doubt)
