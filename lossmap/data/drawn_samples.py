"""Data sets that draw when a sample is read (augmentation), and what puts samples together at random (masked words).

    sample i        is read with the global generators seeded by i
    a batch         is put together with them seeded by what its samples hold

So every pass, rank and later run reads the same: one draw of the data, which the log says. A data set that counts its
reads, and gives other samples by that, is read from the count as it stands. One with a generator of its own is reached
by neither, and named. Source of the seeds: `lossmap.seeding`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lossmap.attributes import dictionary_of
from lossmap.data.told import tell
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import generator, preserved_random_state, random_states, same_random_state

MAX_DEPTH = 4  # of data sets within each other
SAMPLES_LOOKED_AT = 4  # an image is not flipped, but a number is drawn for it, in every sample


@dataclass(frozen=True, eq=False)
class FixedDraws(Dataset[Any]):
    """A Dataset of which each sample is drawn from numbers of its own, the same at every reading."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        with same_random_state(generator("sample", str(index)).initial_seed(), devices=False):
            return self.dataset[index]


@dataclass(frozen=True, eq=False)
class FixedDrawsAtOnce(FixedDraws):
    """A Dataset that puts its samples together as it reads them, and draws the same for the same samples."""

    def __getitems__(self, indices: Any) -> Any:
        with same_random_state(generator("samples", ", ".join(map(str, indices))).initial_seed(), devices=False):
            return self.dataset.__getitems__(indices)


@dataclass(frozen=True, eq=False)
class FixedCounts(Dataset[Any]):
    """A Dataset that counts its reads, of which each sample is read from the same counts, by their places."""

    dataset: Any
    counts: Mapping[tuple[int, str], float]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        finally:
            _put_back(self.dataset, self.counts)


@dataclass(frozen=True, eq=False)
class FixedCountsAtOnce(FixedCounts):
    """One that puts its samples together as it reads them."""

    def __getitems__(self, indices: Any) -> Any:
        try:
            return self.dataset.__getitems__(indices)
        finally:
            _put_back(self.dataset, self.counts)


def _holders(dataset: Any) -> list[dict[str, Any]]:
    """The attributes of a data set, and of those that it is made of."""
    found: list[dict[str, Any]] = []
    while len(found) < MAX_DEPTH and (own := dictionary_of(dataset)) is not None:
        found.append(own)
        dataset = own.get("dataset")
    return found


def _counts_of(dataset: Any) -> dict[tuple[int, str], float]:
    """The numbers among the attributes of a data set, by their places."""
    entries = [(i, name, value) for i, own in enumerate(_holders(dataset)) for name, value in own.items()]
    return {(i, name): value for i, name, value in entries if type(value) in (int, float)}


def _put_back(dataset: Any, counts: Mapping[tuple[int, str], float]) -> None:
    holders = _holders(dataset)
    for i, name in _changed(dataset, counts):
        holders[i][name] = counts[i, name]


def _changed(dataset: Any, counts: Mapping[tuple[int, str], float]) -> list[tuple[int, str]]:
    """The places where another number stands now."""
    return [place for place, value in _counts_of(dataset).items() if place in counts and value != counts[place]]


@dataclass(frozen=True, eq=False)
class FixedCollate:
    """A function that puts samples together, and draws the same for the same samples."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of these samples."""
        with same_random_state(generator("batch", _content_of(samples)).initial_seed(), devices=False):
            return self.collate(samples)


def _content_of(samples: Any) -> str:
    """A digest of numbers and words, the same in every process: no object's address is in it."""
    digest = hashlib.sha256()
    for leaf in _leaves(samples):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, (np.ndarray, np.generic)):
            digest.update(leaf.tobytes())
        elif isinstance(leaf, (str, bytes, int, float)):
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Mapping):  # such as a UserDict, which PyTorch takes for one value
            yield from _leaves(dict(leaf))
        else:
            yield leaf


@preserved_random_state()
def with_fixed_draws(
    dataset: Any, collate: Callable[[list[Any]], Any], name: str
) -> tuple[Any, Callable[[list[Any]], Any]]:
    """The Dataset and the function that puts its samples together, with fixed draws where they draw, as is logged."""
    counts = _counts_of(dataset)
    first, states = range(min(SAMPLES_LOOKED_AT, len(dataset))), random_states()
    samples: Any = [dataset[index] for index in first]
    if not samples:
        return dataset, collate
    at_once = _put_together(dataset, list(first))
    draws, states = random_states() != states, random_states()
    for part in (samples[:1], samples) if at_once is None else (at_once,):
        try:
            collate(part)
            break
        except Exception as error:  # of samples of several lengths, or all of which it leaves out
            raise_if_of_device(error)
    mixes = random_states() != states
    if draws or mixes:
        who, what = (name, "each sample") if draws else ("the loader's collate_fn", "each batch")
        tell(
            f"{who} draws at random (augmentation, masking): {what} is drawn once, from numbers of its own, and all "
            "numbers are of these draws; give the data without it to have those of the data themselves"
        )
    if draws:
        dataset = FixedDraws(dataset) if at_once is None else FixedDrawsAtOnce(dataset)
        counts = {(i + 1, attribute): value for (i, attribute), value in counts.items()}  # one data set further in
    if not _is_repeatable(dataset):
        dataset = _with_fixed_counts(dataset, counts, name, at_once is not None)
    return dataset, FixedCollate(collate) if mixes else collate


def _is_repeatable(dataset: Any) -> bool:
    return _content_of(dataset[0]) == _content_of(dataset[0])


def _with_fixed_counts(dataset: Any, counts: Mapping[tuple[int, str], float], name: str, at_once: bool) -> Any:
    """A Dataset that gives other samples at each reading, read from the counts that it had; itself where these are not
    why. Its counts are put back.
    """
    counted = _changed(dataset, counts)
    _put_back(dataset, counts)
    fixed = (FixedCountsAtOnce if at_once else FixedCounts)(dataset, counts)
    if counted and _is_repeatable(fixed):
        names = ", ".join(attribute for _, attribute in counted)
        tell(
            f"{name} counts its reads, and gives other samples by that ({names}): each sample is read from the count "
            "as it stands, which is put back"
        )
        return fixed
    tell(
        f"{name} gives other samples at each reading, by what it draws or keeps itself: numbers are of one reading "
        "where the samples fit into memory; where they are streamed, no two passes will agree"
    )
    return dataset


def _put_together(dataset: Any, indices: list[int]) -> Any:
    """Some samples as PyTorch's loaders read them where these are no list of samples, as of a Subset; else None."""
    read = getattr(dataset, "__getitems__", None)
    samples = read(indices) if read else []
    return None if isinstance(samples, list) and len(samples) in (0, len(indices)) else samples


def loader_with_fixed_draws(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over the same samples with fixed draws; the loader itself where nothing is drawn, or all is its own."""
    data = loader.dataset
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return loader
    try:
        dataset, collate = with_fixed_draws(data, loader.collate_fn, type(data).__name__)
    except Exception as error:  # samples by other keys than 0, 1, ..., or that its own sampler leaves out
        raise_if_of_device(error)
        return loader
    is_unchanged = dataset is data and collate is loader.collate_fn
    if is_unchanged or type(loader).__iter__ is not DataLoader.__iter__:
        return loader
    order: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_size is not None or loader.batch_sampler is None:
        order = {"batch_size": loader.batch_size, "sampler": loader.sampler}
    if loader.batch_size is not None:
        order["drop_last"] = loader.drop_last
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **order,
    )
