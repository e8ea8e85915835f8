"""Batches for models of Hugging Face: whatever holds tokens or images, as dicts of the model's keywords.

    BatchEncoding, dict, (inputs, targets), a tensor  ->  {"input_ids": (B, T), "attention_mask": ..., "labels": ...}

Samples of unequal length are padded on the right, masked, with labels that do not count.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Number
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lossmap.data.batch_structure import TARGET_NAMES
from lossmap.data.batches import Batches, FixedBatches, MappedFetch, Resident, Streamed
from lossmap.data.huggingface_files import listed
from lossmap.data.loaders import DEFAULT_BATCH_SIZE, as_batches

log = logging.getLogger(__name__)

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

    main      the name of what a tensor without a name is
    causal    whether the labels are the tokens themselves where a batch has none
    accepted  what of a table's columns the model and its loss take; None: all
    """

    main: str
    causal: bool
    accepted: frozenset[str] | None = None

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The dict. Raises ValueError for a batch of other things, and for labels in lists."""
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
        elif lists := [n for n, v in batch.items() if str(n).endswith("labels") and isinstance(v, (tuple, list))]:
            raise ValueError(
                f"the batches hold {' and '.join(lists)} as lists, where lossmap.huggingface takes tensors "
                "alone: take Problem.custom(model, lambda model, batch: model(**batch).loss, data)"
            )
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

    Columns of numbers alone are taken, such as the tokens beside a text that they were made of.

    pad     the token that stands there; it is masked, and its label does not count
    widths  of columns, to pad to; of others that of the longest sample. Labels of an encoder and decoder have their own
    """

    pad: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch: input_ids, attention_mask, labels and whatever else the samples hold."""
        names = [name for name, value in samples[0].items() if _is_numbers(name, value)]
        columns = {name: [torch.as_tensor(sample[name]) for sample in samples] for name in names}
        if "input_ids" in columns and "attention_mask" not in columns:
            columns["attention_mask"] = [torch.ones_like(tokens) for tokens in columns["input_ids"]]
        filled = {"input_ids": self.pad, "decoder_input_ids": self.pad} | dict.fromkeys(TARGET_NAMES, IGNORED)
        tokens = [len(row) for row in columns.get("input_ids", [])]
        for name, values in columns.items():
            lengths = [len(v) if v.dim() == 1 else None for v in values]
            if None in lengths or not (lengths == tokens or _are_whole(values)):
                continue
            of = "input_ids" if lengths == tokens else name
            width = max([self.widths.get(of, 0), *map(len, values)])
            values[:] = [F.pad(v, (0, width - len(v)), value=filled.get(name, 0)) for v in values]
        return {name: torch.stack(values) for name, values in columns.items()}


def _are_whole(values: Sequence[Tensor]) -> bool:
    return not any(v.is_floating_point() or v.is_complex() for v in values)


def _is_numbers(name: str, value: Any) -> bool:
    """Whether a column holds numbers. Raises ValueError where it holds the targets and other things."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, (Number, np.ndarray, np.number, Tensor, list, tuple)):
        return True
    if name in TARGET_NAMES:
        raise ValueError(
            f"the column {name} must hold numbers; got {value!r}: words become the numbers of classes by the model's "
            "config.label2id, or by dataset.class_encode_column"
        )
    return False


def accepted_names(forward: Callable[..., Any]) -> frozenset[str] | None:
    """The columns of a table that a model's `forward` names, and those of targets; None where it names none itself."""
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return frozenset(named).union(TARGET_NAMES) if named else None


def columns_read(columns: Sequence[str], accepted: Collection[str] | None) -> list[str]:
    """The columns that a model takes, as its Trainer does; the others are reported.

    Raises ValueError where it takes none but targets.
    """
    read = [name for name in columns if accepted is None or name in accepted]
    if len(read) < len(columns):
        unread = [name for name in columns if name not in read]
        if not set(read).difference(TARGET_NAMES):
            raise ValueError(
                f"the model takes no samples from the data, whose columns are {listed(columns)}: it is a model of "
                "another kind of data"
            )
        log.warning(
            "read are the columns %s; not those that the model does not take: %s", ", ".join(read), listed(unread)
        )
    return read


def _is_text(sample: Any, main: str) -> bool:
    """Whether this is one sample with tokens in a row, as a tokenizer gives them of one text, and no batch of such."""
    if main != "input_ids":
        return False
    tokens = sample.get(main) if isinstance(sample, Mapping) else sample
    if isinstance(tokens, list):
        return isinstance(sample, Mapping) and bool(tokens) and all(isinstance(token, int) for token in tokens)
    return isinstance(tokens, (Tensor, np.ndarray)) and tokens.ndim == 1


def model_batches(data: Any, entries: Entries, batch_size: int | None, pad: int) -> Batches:
    """The data as batches of the model's keywords."""
    if isinstance(data, DataLoader):
        data = copy.copy(data)
        data.collate_fn = Collated(data.collate_fn, entries)
    elif hasattr(data, "column_names") and hasattr(data, "with_format"):  # of the datasets library
        if isinstance(data, Mapping):
            raise ValueError(
                f"a DatasetDict holds several splits: give one of them, such as data[{next(iter(data))!r}]"
            )
        if data.column_names:  # a stream of rows may not know them
            data = data.select_columns(columns_read(data.column_names, entries.accepted))
        rows = data.with_format("torch")
        data = DataLoader(rows, batch_size or DEFAULT_BATCH_SIZE, collate_fn=Collated(Padded(pad), entries))
    elif isinstance(data, list) and data and all(_is_text(each, entries.main) for each in data):
        samples = [each if isinstance(each, Mapping) else {entries.main: each} for each in data]
        log.info("the list holds %d single samples, which are padded and put together into batches", len(samples))
        data = DataLoader(
            cast(Any, samples), batch_size or DEFAULT_BATCH_SIZE, collate_fn=Collated(Padded(pad), entries)
        )
    elif isinstance(data, Dataset) and hasattr(data, "__len__"):
        is_padded = len(data) > 0 and isinstance(data[0], Mapping) and _is_text(data[0], entries.main)
        collated = Collated(Padded(pad) if is_padded else default_collate, entries)
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
