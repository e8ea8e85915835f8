"""Data as people have them, arrays, Datasets and loaders, made into batches in a fixed order.

Samples live in memory while they take no more than a quarter of what is free (`memory.SAMPLE_SHARE`): a loader is
read once. What is larger is streamed from its Dataset in the same order, batch by batch, in the Dataset's own
order; a loader that has none, or draws by a sampler of its own, cannot be, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)

from lossmap import memory
from lossmap.data.batches import (
    Batch,
    Batches,
    FixedBatches,
    Resident,
    Streamed,
    join_batches,
    map_tensors,
    read_into_memory,
)

log = logging.getLogger(__name__)
DEFAULT_BATCH_SIZE = 256


@dataclass(frozen=True)
class Source:
    """Samples by their indices.

    fetch    indices -> a batch on the host, ready for the model
    samples  how many there are
    """

    fetch: Callable[[Sequence[int]], Batch]
    samples: int

    def bytes_each(self) -> int:
        """The bytes that a sample takes in memory."""
        first = pytree.tree_leaves(self.fetch([0]))
        return sum(leaf.numel() * leaf.element_size() for leaf in first if isinstance(leaf, Tensor))


def as_batches(
    data: Any, batch_size: int | None = None, budget: int | None = None, *, ranks_sharing: int | None = None
) -> Batches:
    """A DataLoader, a Dataset, a tuple or dict of tensors or arrays, or any iterable of batches, as batches.

    batch_size     samples in a batch; if left out the loader's own, else DEFAULT_BATCH_SIZE
    budget         bytes that the samples may take in memory; by default `memory.sample_budget`, a quarter of the free
    ranks_sharing  ranks that share the memory of this host and load the same, which divides that default; those that
                   the launcher started here, if left out

    Raises ValueError where the batches do not fit together, or are too many for memory and cannot be streamed.
    """
    if isinstance(data, (tuple, dict)) and any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(data)):
        data = pytree.tree_map(lambda leaf: _as_tensor(leaf, "data") if isinstance(leaf, np.ndarray) else leaf, data)
    if budget is None:
        budget = memory.sample_budget(ranks_sharing=ranks_sharing)
    collate: Callable[[list[Any]], Any]
    if isinstance(data, DataLoader) and _plain_loader(data):
        dataset, collate, size = data.dataset, data.collate_fn, batch_size or data.batch_size or DEFAULT_BATCH_SIZE
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        dataset, collate, size = data, default_collate, batch_size or DEFAULT_BATCH_SIZE
    else:
        _report_drawing(data)
        return read_into_memory(data, batch_size, budget)
    fetch, samples = DatasetFetch(dataset, collate), len(cast(Any, dataset))
    if samples and samples * Source(fetch, samples).bytes_each() > budget:
        log.info("%d samples are more than the memory for samples; they are streamed", samples)
        return Streamed(of_dataset(dataset, collate, type(dataset).__name__).fetch, range(samples), size)
    if not isinstance(data, DataLoader):
        data = DataLoader(data, size)
    return read_into_memory(data, batch_size, budget)


def _report_drawing(data: Any) -> None:
    """Log that a loader draws its samples by chance, with repetitions: one draw stands for the data."""
    sampler = getattr(data, "sampler", None)
    if isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False):
        log.warning(
            "the loader draws its samples by chance (%s): numbers are of one draw of %d samples, some of them several "
            "times; give the Dataset itself to use all",
            type(sampler).__name__,
            len(cast(Any, sampler)),
        )


def collect_in_memory(streamed: Streamed) -> Batch:
    """All samples of a stream in one batch."""
    return join_batches(list(streamed.rebatched(1024)))


def source_of(value: Any, name: str, ranks_sharing: int | None = None) -> Source:
    """A source from whatever a user's function returned; the ranks that share this host divide its memory.

    Raises ValueError, which names the function, where it is neither tensors, a Dataset nor batches.
    """
    if isinstance(value, (Resident, Streamed, FixedBatches)):
        return _of_batches(value, name)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(a, (Tensor, np.ndarray)) for a in value):
        return _of_arrays(value[0], value[1], name)
    if isinstance(value, DataLoader):
        if _plain_loader(value):
            return of_dataset(value.dataset, value.collate_fn, name)
        return _of_batches(read_into_memory(value, ranks_sharing=ranks_sharing), name)
    if isinstance(value, IterableDataset):
        return _of_batches(
            read_into_memory(DataLoader(value, batch_size=DEFAULT_BATCH_SIZE), ranks_sharing=ranks_sharing), name
        )
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (dict, list, tuple, str)):
        return of_dataset(value, default_collate, name)
    if isinstance(value, (dict, Tensor)) or hasattr(value, "__iter__"):
        return _of_batches(read_into_memory(value, ranks_sharing=ranks_sharing), name)
    raise ValueError(f"{name} must return (x, y) tensors, a Dataset or a DataLoader; got {type(value).__name__}")


def _of_arrays(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], name: str) -> Source:
    x, y = _as_tensor(x, name), _as_tensor(y, name)
    if x.dim() < 1 or y.dim() < 1 or len(x) != len(y):
        raise ValueError(
            f"{name} has x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}: there must be one y for each x"
        )
    if x.dtype == torch.uint8:
        if x.dim() >= 3:
            log.warning("%s: the images are bytes (uint8), taken as 0 to 255; divide by 255 if training did", name)
        x = x.float()
    if not y.is_floating_point():
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
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(values))


def _rows(values: Tensor, indices: Sequence[int]) -> Tensor:
    if isinstance(indices, range):
        return values[indices.start : indices.stop]
    return values[torch.as_tensor(indices)]


def _of_batches(batches: Any, name: str) -> Source:
    if isinstance(batches, Streamed):
        return Source(_SubsetFetch(batches), batches.samples)
    if isinstance(batches, FixedBatches):
        raise ValueError(
            f"{name} gives batches that cannot be cut; give them as a whole problem: --problem file.py:factory, "
            "which returns (model, batches, loss)"
        )
    return Source(RowsOf(batches.tensors), batches.samples)


def _plain_loader(loader: DataLoader[Any]) -> bool:
    """Whether a loader passes over every sample of a data set once, in whatever order."""
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler)
    )
    indexed = not isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "__len__")
    usual = type(loader.batch_sampler).__module__.startswith("torch.utils.data")
    all_of_it = indexed and len(cast(Any, sampler)) == len(cast(Any, loader.dataset))
    return all_of_it and whole and usual and not loader.drop_last


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
        batch = self.collate([self.dataset[int(i)] for i in indices])
        if isinstance(batch, list):
            return tuple(batch)
        return batch


def of_dataset(dataset: Any, collate: Callable[[list[Any]], Any], name: str) -> Source:
    """A source of a Dataset's samples, put together by `collate`; of one that gives others each time the log warns."""
    fetch = DatasetFetch(dataset, collate)
    if len(dataset):
        first, again = (pytree.tree_leaves(fetch([0])) for _ in range(2))
        same = (torch.equal(a, b) for a, b in zip(first, again, strict=True) if isinstance(a, Tensor))
        if not all(same):
            log.warning("%s gives other samples each time (augmentation?): no two passes will agree", name)
    return Source(fetch, len(dataset))
