"""Data as people have them, arrays, Datasets and loaders, made into batches in a fixed order.

Samples live in memory while they take no more than a quarter of what is free (`memory.SAMPLE_SHARE`): a loader is
read once. What is larger is streamed from its Dataset in the same order, batch by batch, in the Dataset's own
order; a loader that has none, or draws by a sampler of its own, cannot be, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)

from lossmap import memory
from lossmap.data.batch_parts import targets_of
from lossmap.data.batch_structure import is_one_batch, open_batch, without_end_refused
from lossmap.data.batches import (
    TENSOR_BYTES,
    Batch,
    Batches,
    FixedBatches,
    Resident,
    Streamed,
    as_torch_has_it,
    join_batches,
    map_tensors,
    prepared,
    read_into_memory,
)
from lossmap.data.drawn_samples import loader_with_fixed_draws, with_fixed_draws
from lossmap.data.sample_count import Collated, CountedCollate, is_counted_otherwise, samples_in, with_entries
from lossmap.data.told import keeping_what_is_told, tell
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import leaves_own_generators, preserved_random_state
from lossmap.trees import rebuilt

log = logging.getLogger(__name__)
DEFAULT_BATCH_SIZE = 256
UNEQUAL = "stack expects each tensor to be equal size, but "  # what PyTorch says of samples that cannot be collated


@contextmanager
def _faults_named() -> Iterator[None]:
    """Raise ValueError, which says what to do, for samples without end and for those that a loader cannot collate."""
    try:
        with without_end_refused():
            yield
    except RuntimeError as error:
        if UNEQUAL not in str(error):
            raise
        raise ValueError(
            f"the loader cannot put samples of different shapes into one batch ({str(error).rpartition(UNEQUAL)[2]}): "
            "give it a collate_fn that pads them, or the Dataset itself, whose samples are then batches of one each"
        ) from error


@dataclass(frozen=True)
class Source:
    """Samples by their indices.

    fetch    indices -> a batch on the host, ready for the model
    samples  how many there are
    whole    what it was made of, read as batches that are not cut where samples do not join; None where they always do
    batch_size    samples in a batch of the loader that it was made of; None without a loader
    loader_sizes  of each of these batches, where they differ
    prepare       a function of every batch of `whole`, as `fetch` has applied it already
    """

    fetch: Callable[[Sequence[int]], Batch]
    samples: int
    whole: Any = None
    batch_size: int | None = None
    loader_sizes: tuple[int, ...] = ()
    prepare: Callable[[Batch], Batch] | None = None

    def bytes_each(self, batch_size: int = 0) -> float:
        """The bytes that a sample takes in memory; in batches of this size with its share of what a tensor takes."""
        first = [leaf for leaf in pytree.tree_leaves(self.fetch([0])) if isinstance(leaf, Tensor)]
        beside = TENSOR_BYTES * len(first) / batch_size if batch_size else 0
        return beside + sum(leaf.numel() * leaf.element_size() for leaf in first)


@keeping_what_is_told
@preserved_random_state()
@leaves_own_generators
@_faults_named()
def as_batches(
    data: Any,
    batch_size: int | None = None,
    budget: int | None = None,
    *,
    ranks_sharing: int | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Batches:
    """A DataLoader, a Dataset, a tuple or dict of tensors or arrays, or any iterable of batches, as batches.

    batch_size     samples in a batch; if left out the loader's own, else DEFAULT_BATCH_SIZE
    budget         bytes that the samples may take in memory; by default `memory.sample_budget`, a quarter of the free
    ranks_sharing  ranks that share the memory of this host and load the same, which divides that default; those that
                   the launcher started here, if left out
    prepare        a function of every batch, such as one that leaves out what the model does not take

    Generators, global ones and the loader's, are left as they were: a training goes on as if nothing had been read.
    Raises ValueError where the batches do not fit together, or are too many for memory and cannot be streamed.
    """
    if isinstance(data, (tuple, dict)) and any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(data)):
        data = rebuilt(lambda leaf: _as_tensor(leaf, "data") if isinstance(leaf, np.ndarray) else leaf, data)
    if budget is None:
        budget = memory.sample_budget(ranks_sharing=ranks_sharing)
    if isinstance(data, DataLoader):
        data = loader_with_fixed_draws(data)
    if isinstance(data, DataLoader) and _plain_loader(data):
        size = batch_size or data.batch_size or DEFAULT_BATCH_SIZE
        streamed = _streamed_if_large(data.dataset, prepared_collate(data.collate_fn, prepare), size, budget)
        return streamed or read_into_memory(data, batch_size, budget, prepare=prepare)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        size = batch_size or DEFAULT_BATCH_SIZE
        data, _ = with_fixed_draws(data, _same, type(data).__name__)
        try:
            streamed = _streamed_if_large(data, prepared_collate(default_collate, prepare), size, budget)
            return streamed or read_into_memory(DataLoader(data, size), batch_size, budget, prepare=prepare)
        except (TypeError, RuntimeError):  # as `default_collate` raises of objects, and of samples that differ in shape
            return read_into_memory(_each_alone(data), batch_size, budget, prepare=prepare)
    _report_drawing(data)
    if isinstance(data, IterableDataset):
        data = _batches_of_stream(data, batch_size or DEFAULT_BATCH_SIZE)
    return read_into_memory(data, batch_size, budget, prepare=prepare)


@dataclass(frozen=True)
class PreparedCollate:
    """samples -> a batch: put together by one function, then taken through another."""

    collate: Callable[[list[Any]], Batch]
    prepare: Callable[[Batch], Batch]

    def __call__(self, samples: list[Any]) -> Batch:
        """The batch of these samples."""
        return self.prepare(self.collate(samples))


def prepared_collate(
    collate: Callable[[list[Any]], Batch], prepare: Callable[[Batch], Batch] | None
) -> Callable[[list[Any]], Batch]:
    """The function that puts samples together, and what comes after it."""
    return collate if prepare is None else PreparedCollate(collate, prepare)


def _streamed_if_large(dataset: Any, collate: Callable[[list[Any]], Any], size: int, budget: int) -> Streamed | None:
    """The samples of a Dataset as a stream, where they are more than the bytes for them; None where they fit."""
    fetch, samples = DatasetFetch(dataset, collate), len(dataset)
    try:
        if not samples or samples * Source(fetch, samples).bytes_each(size) <= budget:
            return None
    except Exception as error:  # as where the first sample is left out, and nothing put together
        raise_if_of_device(error)
        return None
    if not _keeps_samples(Source(fetch, samples)):
        return None
    log.info("%d samples are more than the memory for samples; they are streamed", samples)
    return Streamed(CompleteFetch(of_dataset(dataset, collate).fetch), range(samples), size)


def _keeps_samples(source: Source) -> bool:
    """Whether two samples are put together as two and three as three; not so where a sample is a batch by itself."""
    try:
        return all(samples_in(source.fetch(range(n))) == n for n in (2, 3) if n <= source.samples)
    except Exception as error:  # a user's collate may raise any: of unequal samples, or as it leaves all of them out
        raise_if_of_device(error)
    try:
        return all(pytree.tree_leaves(source.fetch([i])) for i in range(min(2, source.samples)))
    except Exception as error:
        raise_if_of_device(error)
        return False


def _each_alone(dataset: Any) -> Iterator[Batch]:
    """The samples of a Dataset, each as a batch of its own."""
    return (_alone(dataset[i]) for i in range(len(dataset)))


def _alone(sample: Any) -> Batch:
    """A sample as a batch; what cannot be collated, such as a graph, as it is."""
    try:
        return default_collate([sample])
    except TypeError:
        return sample


def collated(data: Any) -> Any:
    """A list of single samples as a loader of batches of them, inputs and targets in a list as one batch of both.

    Anything else as it is. A sample is known by its target, which is one number, or a row of another length than its
    inputs, which are one.
    Raises ValueError for a list of tensors that are no pair.
    """
    of_several = isinstance(data, tuple) and all(isinstance(entry, (tuple, list, Mapping)) for entry in data)
    if of_several and (len(data) == 1 or all(map(_is_sample, data))):
        data = list(data)
    if isinstance(data, list) and data and all(isinstance(entry, (Tensor, np.ndarray)) for entry in data):
        if len(data) != 2 or len({len(entry) if entry.ndim else -1 for entry in data}) != 1:
            raise ValueError(
                f"a list holds batches, (inputs, targets) each; this one holds {len(data)} tensors, of shapes "
                f"{', '.join(str(tuple(entry.shape)) for entry in data[:4])}: one batch is the tuple (x, targets), or "
                "(x1, x2, targets)"
            )
        log.warning("the list of two tensors is one batch, inputs and targets: of %d samples", len(data[0]))
        return tuple(data)
    if not isinstance(data, list) or not data or not all(_is_sample(each) or _is_pair_of_rows(each) for each in data):
        return data
    log.info("the list holds %d single samples, which are put together into batches", len(data))
    return _Samples(data)


def check_no_pair(data: Any) -> None:
    """Raise ValueError where a list of batches holds tensors that must be parts of one batch, as inputs and targets.

    These are as many rows of other kinds. Of two that may be batches each the log says how they are read.
    """
    if not (
        isinstance(data, list) and len(data) > 1 and all(isinstance(entry, (Tensor, np.ndarray)) for entry in data)
    ):
        return
    if len({len(entry) if entry.ndim else -1 for entry in data}) > 1:
        return
    kinds = {(_is_floating(entry), entry.ndim) for entry in data}
    parts = "one batch of inputs and targets is the tuple (x, y), or the list [(x, y)]"
    if len(kinds) > 1:
        described = ", ".join(f"{entry.dtype} {tuple(entry.shape)}" for entry in data[:4])
        raise ValueError(f"a list holds batches, and these tensors are none of one kind ({described}): {parts}")
    if len(data) == 2:
        log.warning("the list of two tensors is read as two batches; %s", parts)


def _is_floating(values: Tensor | NDArray[Any]) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"


def _is_pair_of_rows(entry: Any) -> bool:
    """Whether these are inputs and targets of one sample, two rows of different lengths."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        return False
    are_rows = all(isinstance(part, (Tensor, np.ndarray)) and part.ndim == 1 for part in entry)
    return are_rows and len(entry[0]) != len(entry[1])


def _is_sample(entry: Any) -> bool:
    """Whether this is one sample with a target that is a number."""
    try:
        target = targets_of(entry)
    except ValueError:
        return False
    return isinstance(target, (int, float, np.generic)) or (isinstance(target, Tensor) and target.dim() == 0)


@dataclass(frozen=True, eq=False)
class _Samples(Dataset[Any]):
    """A list of samples as a Dataset."""

    entries: list[Any]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Any:
        return self.entries[index]


def _batches_of_stream(data: IterableDataset[Any], size: int) -> Iterable[Any]:
    """What an IterableDataset yields, single samples put together; it is passed over once, since it may be used up."""
    entries = iter(data)
    first = next(entries, None)
    if first is None:
        return []
    whole = chain([first], entries)
    if _is_sample(first):
        return _put_together(whole, size)
    log.warning(
        "what the %s yields is taken for batches; single samples are put together by DataLoader(data, batch_size=%d)",
        type(data).__name__, size,
    )  # fmt: skip
    return whole


def _put_together(samples: Iterator[Any], size: int) -> Iterator[Collated]:
    """Samples in batches of this size, each as a batch of its own among those that differ in shape."""
    while group := list(islice(samples, size)):
        try:
            yield CountedCollate(default_collate)(group)
        except (TypeError, RuntimeError):  # as `default_collate` raises of objects, and of samples that differ in shape
            yield from (Collated(_alone(sample), 1) for sample in group)


def _report_drawing(data: Any) -> None:
    """Log what stands for the data where a loader draws its samples by chance, with repetitions, or gives a part."""
    sampler = getattr(data, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        whole = len(cast(Any, sampler.dataset))
        tell(
            f"the loader's sampler ({type(sampler).__name__}) gives the share of rank {sampler.rank} of "
            f"{sampler.num_replicas}, {len(sampler)} of {whole} samples: numbers are of these; give the Dataset itself "
            "to use all"
        )
    elif isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False):
        tell(
            f"the loader draws its samples by chance ({type(sampler).__name__}): numbers are of one draw of "
            f"{len(cast(Any, sampler))} samples, some of them several times; give the Dataset itself to use all"
        )


def collect_in_memory(streamed: Streamed) -> Batch:
    """All samples of a stream in one batch."""
    return join_batches(list(streamed.rebatched(1024)))


@_faults_named()
def source_of(
    value: Any, name: str, ranks_sharing: int | None = None, prepare: Callable[[Batch], Batch] | None = None
) -> Source | FixedBatches:
    """A source from whatever a user's function returned; the ranks that share this host divide its memory.

    prepare  a function of every batch, such as one that leaves out what the model does not take

    Batches that cannot be cut are returned as they are.

    Raises ValueError, which names the function, where it is neither tensors, a Dataset nor batches.
    """
    value = collated(value)
    if isinstance(value, (Resident, Streamed, FixedBatches)):
        return _of_batches(value if prepare is None else prepared(value, prepare))
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(a, (Tensor, np.ndarray)) for a in value):
        return _of_arrays(value[0], value[1], name)
    if isinstance(value, DataLoader):
        value = loader_with_fixed_draws(value)
        if _plain_loader(value):
            source = of_dataset(value.dataset, prepared_collate(value.collate_fn, prepare))
            if _keeps_samples(source):
                fetch = CompleteFetch(source.fetch)
                return replace(source, fetch=fetch, whole=value, batch_size=value.batch_size, prepare=prepare)
        _report_drawing(value)
        return _of_batches(read_into_memory(value, ranks_sharing=ranks_sharing, prepare=prepare))
    if isinstance(value, IterableDataset):
        batches = _put_together(iter(value), DEFAULT_BATCH_SIZE)
        return _of_batches(read_into_memory(batches, ranks_sharing=ranks_sharing, prepare=prepare))
    is_indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if is_indexed and not isinstance(value, (dict, list, tuple, str)) and not is_one_batch(value):
        value, _ = with_fixed_draws(value, _same, name)
        try:
            source = of_dataset(value, prepared_collate(default_collate, prepare))
            if source.samples:
                source.fetch([0])  # tells whether they can be put together so
            return replace(source, whole=value, prepare=prepare)
        except TypeError:  # objects, which `default_collate` does not take
            return _of_batches(read_into_memory(_each_alone(value), ranks_sharing=ranks_sharing, prepare=prepare))
    if isinstance(value, (Mapping, Tensor)) or hasattr(value, "__iter__") or is_one_batch(value):
        return _of_batches(read_into_memory(value, ranks_sharing=ranks_sharing, prepare=prepare))
    raise ValueError(
        f"{name} must return (x, y) tensors, a Dataset, a DataLoader or a list of batches; got {type(value).__name__}"
    )


def _of_arrays(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], name: str) -> Source:
    x, y = _as_tensor(x, name), _as_tensor(y, name)
    if x.dim() < 1 or y.dim() < 1 or len(x) != len(y):
        raise ValueError(
            f"{name} has x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}: there must be one y for each x"
        )
    if x.dtype == torch.uint8:
        what = "images" if x.dim() >= 3 else "inputs"
        log.warning("%s: the %s are bytes (uint8), taken as 0 to 255; divide by 255 if training did", name, what)
        x = x.float()
    if not y.is_floating_point() and y.dtype != torch.bool:  # a mask stays one
        y = y.long()
    for what, tensor in (("x", x), ("y", y)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: {what} has {int((~tensor.isfinite()).sum())} entries that are not finite")
    return Source(RowsOf((x, y)), len(x))


def _as_tensor(values: Tensor | NDArray[Any], name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if values.dtype.kind not in "fiub":
        raise ValueError(f"the arrays of {name} must hold numbers; got {values.dtype}")
    return torch.from_numpy(np.ascontiguousarray(as_torch_has_it(values)))


def _rows(values: Tensor, indices: Sequence[int]) -> Tensor:
    if isinstance(indices, range):
        return values[indices.start : indices.stop]
    return values[torch.as_tensor(indices)]


def _of_batches(batches: Any) -> Source | FixedBatches:
    if isinstance(batches, Streamed):
        return Source(_SubsetFetch(batches), batches.samples, batch_size=batches.batch_size)
    if isinstance(batches, FixedBatches):
        return batches
    size, sizes = batches.batch_size, batches.loader_sizes
    return Source(RowsOf(batches.tensors), batches.samples, batch_size=size, loader_sizes=sizes)


def _plain_loader(loader: DataLoader[Any]) -> bool:
    """Whether a loader passes over every sample of a data set once, in whatever order."""
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler)
    )
    indexed = not isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "__len__")
    usual = type(loader.batch_sampler).__module__.startswith("torch.utils.data")
    all_of_it = indexed and whole and len(cast(Any, sampler)) == len(cast(Any, loader.dataset))
    return all_of_it and usual and not loader.drop_last


@dataclass(frozen=True, eq=False)
class RowsOf:
    """A fetch from tensors in memory: indices of samples -> their rows."""

    tensors: Batch

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The batch of these samples."""
        return map_tensors(lambda t: _rows(t, indices), self.tensors)


@dataclass(frozen=True, eq=False)
class _SubsetFetch:
    """A fetch from the samples of a stream, counted in its own order."""

    stream: Streamed

    def __call__(self, indices: Sequence[int]) -> Batch:
        return self.stream.fetch([self.stream.indices[i] for i in indices])


@dataclass(frozen=True, eq=False)
class DatasetFetch:
    """A fetch from a Dataset, its samples put together by `collate`."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The batch of these samples."""
        at_once = getattr(self.dataset, "__getitems__", None)  # as PyTorch's loaders read it
        samples = at_once([int(i) for i in indices]) if at_once else [self.dataset[int(i)] for i in indices]
        told = CountedCollate(self.collate)(samples)
        is_listed = told.samples == len(indices)
        (batch,) = with_entries([open_batch(told.batch)], [told if is_listed else Collated(None, len(indices))], True)
        return batch


@dataclass(frozen=True, eq=False)
class CompleteFetch:
    """A fetch of samples that count by their indices, so that none may be left out: a loss would be too small."""

    fetch: Callable[[Sequence[int]], Batch]

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The batch of these samples. Raises ValueError where it has fewer rows, and nothing else of their number."""
        batch = self.fetch(indices)
        shapes = {leaf.shape[:2] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
        rows, n = {shape[0] for shape in shapes}, len(indices)
        if len(rows) != 1 or max(rows) >= n or n in {shape[-1] for shape in shapes} or is_counted_otherwise(batch):
            return batch
        raise ValueError(
            f"the loader's collate_fn leaves samples out ({n} were put together into {max(rows)}), so that samples "
            "streamed or drawn would be counted wrong: give a Dataset without them, such as torch.utils.data.Subset"
        )


def _same(samples: list[Any]) -> list[Any]:
    """In the place of what puts samples together where it is known to draw nothing."""
    return samples


def of_dataset(dataset: Any, collate: Callable[[list[Any]], Any]) -> Source:
    """A source of a Dataset's samples, put together by `collate`."""
    return Source(DatasetFetch(dataset, collate), len(dataset))
