"""Data as people have them, arrays, Datasets and loaders, made into batches in a fixed order.

Samples live in memory while they take no more than a quarter of what is free (`memory.SAMPLE_SHARE`): a loader is
drained once. What is larger is streamed from its Dataset in the same order, batch by batch, in the Dataset's own
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
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from lossmap import memory
from lossmap.data.batches import Batch, Batches, Resident, Streamed, drained

log = logging.getLogger(__name__)
BATCH = 256  # samples of a batch, where nobody says


@dataclass(frozen=True)
class Source:
    """Samples by their indices.

    fetch    indices -> a batch on the host, ready for the model
    samples  how many there are
    """

    fetch: Callable[[Sequence[int]], Batch]
    samples: int

    def bytes_each(self) -> int:
        """What a sample takes in memory."""
        first = pytree.tree_leaves(self.fetch([0]))
        return sum(leaf.numel() * leaf.element_size() for leaf in first if isinstance(leaf, Tensor))


def as_batches(
    data: Any, batch_size: int | None = None, budget: int | None = None, *, ranks_sharing: int = 1
) -> Batches:
    """A DataLoader, a Dataset, a tuple or dict of tensors or arrays, or any iterable of batches, as batches.

    budget         bytes that the samples may take in memory; by default `memory.sample_budget`, a quarter of the free
    ranks_sharing  ranks that share the memory of this host and load the same; divides that default

    Raises ValueError where the batches do not fit together, or are too many for memory and cannot be streamed.
    """
    if isinstance(data, (tuple, dict)) and any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(data)):
        data = pytree.tree_map(lambda leaf: _as_tensor(leaf, "data") if isinstance(leaf, np.ndarray) else leaf, data)
    budget = memory.sample_budget(ranks_sharing=ranks_sharing) if budget is None else budget
    collate: Callable[[list[Any]], Any]
    if isinstance(data, DataLoader) and _plain_loader(data):
        dataset, collate, size = data.dataset, data.collate_fn, batch_size or data.batch_size or BATCH
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        dataset, collate, size = data, default_collate, batch_size or BATCH
    else:
        return drained(data, batch_size, budget)
    fetch, samples = _fetch(dataset, collate), len(cast(Any, dataset))
    if samples and samples * Source(fetch, samples).bytes_each() > budget:
        log.info("%d samples are more than memory has room for; they are streamed", samples)
        return Streamed(of_dataset(dataset, collate, type(dataset).__name__).fetch, range(samples), size)
    loader = data if isinstance(data, DataLoader) else DataLoader(data, size)
    return drained(loader, batch_size, budget)


def collect_in_memory(streamed: Streamed) -> Batch:
    """All samples of a stream in one batch."""
    drawn = list(streamed.rebatched(1024))
    spec = pytree.tree_flatten(drawn[0])[1]
    columns = zip(*(pytree.tree_leaves(batch) for batch in drawn), strict=True)
    return pytree.tree_unflatten([torch.cat(c) if isinstance(c[0], Tensor) else c[0] for c in columns], spec)


def source_of(made: Any, name: str, ranks_sharing: int = 1) -> Source:
    """A source from whatever a user's function returned; the ranks that share this host divide its memory."""
    if isinstance(made, (Resident, Streamed)):
        return _of_batches(made)
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(a, (Tensor, np.ndarray)) for a in made):
        return _of_arrays(made[0], made[1], name)
    if isinstance(made, DataLoader):
        if _plain_loader(made):
            return of_dataset(made.dataset, made.collate_fn, name)
        return _of_batches(drained(made, ranks_sharing=ranks_sharing))
    if isinstance(made, IterableDataset):
        return _of_batches(drained(DataLoader(made, batch_size=BATCH), ranks_sharing=ranks_sharing))
    if hasattr(made, "__getitem__") and hasattr(made, "__len__") and not isinstance(made, (dict, list, tuple, str)):
        return of_dataset(made, default_collate, name)
    if isinstance(made, (dict, Tensor)) or hasattr(made, "__iter__"):
        return _of_batches(drained(made, ranks_sharing=ranks_sharing))
    raise ValueError(f"{name} gave a {type(made).__name__}; wanted (x, y) tensors, a Dataset or a DataLoader")


def _of_arrays(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], name: str) -> Source:
    x, y = _as_tensor(x, name), _as_tensor(y, name)
    if x.dim() < 1 or y.dim() < 1 or len(x) != len(y):
        raise ValueError(f"{name} has x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}: one y for each x")
    x = x.float() if x.dtype == torch.uint8 else x
    y = y if y.is_floating_point() else y.long()
    for what, tensor in (("x", x), ("y", y)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: {what} has {int((~tensor.isfinite()).sum())} entries that are not finite")
    return Source(lambda indices: (_taken(x, indices), _taken(y, indices)), len(x))


def _as_tensor(values: Tensor | NDArray[Any], name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds an array of {values.dtype}; wanted numbers")
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(values))


def _taken(values: Tensor, indices: Sequence[int]) -> Tensor:
    if isinstance(indices, range):
        return values[indices.start : indices.stop]
    return values[torch.as_tensor(indices)]


def _of_batches(batches: Any) -> Source:
    if isinstance(batches, Streamed):
        inner = batches
        return Source(lambda indices: inner.fetch([inner.indices[i] for i in indices]), inner.samples)
    tensors = batches.tensors

    def fetch(indices: Sequence[int]) -> Batch:
        return pytree.tree_map(lambda t: _taken(t, indices) if isinstance(t, Tensor) else t, tensors)

    return Source(fetch, batches.samples)


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


def _fetch(dataset: Any, collate: Callable[[list[Any]], Any]) -> Callable[[Sequence[int]], Batch]:
    def fetch(indices: Sequence[int]) -> Batch:
        batch = collate([dataset[int(i)] for i in indices])
        return tuple(batch) if isinstance(batch, list) else batch

    return fetch


def of_dataset(dataset: Any, collate: Callable[[list[Any]], Any], name: str) -> Source:
    """A source of a Dataset's samples, put together by `collate`; one that gives others at every look is told of."""
    fetch = _fetch(dataset, collate)
    if len(dataset):
        first, again = (pytree.tree_leaves(fetch([0])) for _ in range(2))
        same = (torch.equal(a, b) for a, b in zip(first, again, strict=True) if isinstance(a, Tensor))
        if not all(same):
            log.warning("%s gives other samples at every look (augmentation?): no two passes will agree", name)
    return Source(fetch, len(dataset))
