"""Batches for models of Hugging Face: whatever holds tokens or images, as dicts of the model's keywords.

    BatchEncoding, dict, (inputs, targets), a tensor  ->  {"input_ids": (B, T), "attention_mask": ..., "labels": ...}

Samples of unequal length are padded on the right, masked, with labels that do not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lossmap.data.batch_parts import TARGET_NAMES
from lossmap.data.batches import Batches, FixedBatches, MappedFetch, Resident, Streamed
from lossmap.data.loaders import DEFAULT_BATCH_SIZE, as_batches

IGNORED = -100  # the label of a token that does not count


def _tokens_as_labels(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens as labels (B, T), -100 where they are masked, or would be predicted from a masked one."""
    if mask is None:
        return tokens
    is_seen = mask != 0
    is_predicted = torch.cat([is_seen[:, :1], is_seen[:, 1:] & is_seen[:, :-1]], 1)
    return tokens.masked_fill(~is_predicted, IGNORED)


@dataclass(frozen=True)
class Entries:
    """batch -> a dict of the model's keywords, tensors alone, its targets under `labels`.

    main    the name of what a tensor without a name is
    causal  whether the labels are the tokens themselves where a batch has none
    """

    main: str
    causal: bool

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The dict. Raises ValueError for a batch that is neither a mapping, a tensor nor inputs and targets."""
        if isinstance(batch, Tensor):
            batch = {self.main: batch}
        elif isinstance(batch, Sequence) and 1 <= len(batch) <= 2:
            first, *rest = batch
            batch = dict(first) if isinstance(first, Mapping) else {self.main: first}
            if rest:
                batch["labels"] = rest[0]
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"a batch must be a mapping of the model's keywords, such as input_ids and labels, a tensor, or inputs "
                f"and targets; got {type(batch).__name__}"
            )
        entries = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        name = next((name for name in TARGET_NAMES if name in entries), None)
        if name is not None:
            entries["labels"] = entries.pop(name)
        elif self.causal and "input_ids" in entries:
            entries["labels"] = _tokens_as_labels(entries["input_ids"], entries.get("attention_mask"))
        if "labels" in entries and not entries["labels"].is_floating_point():
            entries["labels"] = entries["labels"].long()
        return entries


@dataclass(frozen=True)
class Collated:
    """samples -> a batch: put together by a function, then made a dict of the model's keywords."""

    collate: Callable[[list[Any]], Any]
    entries: Callable[[Any], dict[str, Tensor]]

    def __call__(self, samples: list[Any]) -> dict[str, Tensor]:
        """The batch of these samples."""
        return self.entries(self.collate(samples))


@dataclass(frozen=True)
class Padded:
    """Samples, each a dict, in one batch: tokens padded on the right to one width, where the model does not look.

    pad    the token that stands there; it is masked, and its label does not count
    width  to pad to; None: that of the longest sample
    """

    pad: int = 0
    width: int | None = None

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch: input_ids, attention_mask, labels and whatever else the samples hold."""
        columns = {name: [torch.as_tensor(sample[name]) for sample in samples] for name in samples[0]}
        if "input_ids" in columns and "attention_mask" not in columns:
            columns["attention_mask"] = [torch.ones_like(tokens) for tokens in columns["input_ids"]]
        filled = {"input_ids": self.pad, "labels": IGNORED}
        lengths = [len(tokens) for tokens in columns.get("input_ids", [])]
        width = self.width or max(lengths, default=0)
        for name, values in columns.items():
            if [len(v) if v.dim() == 1 else None for v in values] == lengths:
                values[:] = [F.pad(v, (0, width - len(v)), value=filled.get(name, 0)) for v in values]
        return {name: torch.stack(values) for name, values in columns.items()}


def model_batches(data: Any, entries: Entries, batch_size: int | None, pad: int) -> Batches:
    """The data as batches of the model's keywords."""
    if isinstance(data, DataLoader):
        data = copy.copy(data)
        data.collate_fn = Collated(data.collate_fn, entries)
    elif hasattr(data, "column_names") and hasattr(data, "with_format"):  # of the datasets library
        rows = data.with_format("torch")
        data = DataLoader(rows, batch_size or DEFAULT_BATCH_SIZE, collate_fn=Collated(Padded(pad), entries))
    elif isinstance(data, Dataset) and hasattr(data, "__len__"):
        collated = Collated(default_collate, entries)
        data = DataLoader(data, batch_size or DEFAULT_BATCH_SIZE, collate_fn=collated)
    elif isinstance(data, (Mapping, Tensor, tuple)):
        data = entries(data)
    elif isinstance(data, Streamed):
        return replace(data, fetch=MappedFetch(data.fetch, entries))
    elif isinstance(data, Resident):
        return replace(data, tensors=entries(data.tensors))
    elif isinstance(data, FixedBatches):
        return FixedBatches(tuple(map(entries, data)))
    else:
        data = map(entries, data)
    return as_batches(data, batch_size)
