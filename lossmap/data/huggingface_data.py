"""Data in local files of Hugging Face, `hf:PATH`: a data set as `save_to_disk` leaves it, or a text.

    columns of a data set                        batches
    input_ids, attention_mask, labels or label   as they are, padded to the longest row; others that the model takes too
    text or sentence, label                      by the tokenizer of the model's folder, cut at its maximum
    two texts, such as premise and hypothesis    the same, as a pair
    pixel_values, labels or label                as they are
    image or img, labels or label                by the image processor of the model's folder
    input_features or input_values, labels       as they are, of a model of sound that takes them

A text is read by the tokenizer as one line of tokens, cut into blocks; the last one is padded. It is refused for models
that do not predict the next token. Where a data set has no labels they are the tokens, if the model is a causal
language model. Nothing is fetched from a network, and no code of a folder runs. Price: rows are read when they are
used; those of unequal length are once more read for the longest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lossmap.data.batches import Batch
from lossmap.data.huggingface_batches import Padded, accepted_names, columns_read
from lossmap.data.huggingface_files import (
    PREFIX,
    existing_path,
    is_in_folder,
    missing_library,
    model_folder,
    path_in,
    read_json,
    tokenizer_folder,
)
from lossmap.data.huggingface_folder import class_of
from lossmap.data.huggingface_pass import is_causal_class, without_warnings
from lossmap.data.loaders import RowsOf, Source

log = logging.getLogger(__name__)
MAX_BLOCK = 1024  # tokens in a sample of a text, where neither the user nor the model says fewer
SPLITS = {"train": ("train",), "test": ("test", "validation")}  # their names in a data set, the first that is there
TEXTS, IMAGES = ("text", "sentence"), ("image", "img")
SOUNDS = ("input_features", "input_values")  # what models of sound call their main input
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
TARGETS = ("labels", "label")
# Columns of two texts that are one sample, as in GLUE, each before the other; the first that a data set has.
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text", "text_pair"),
)


def _folder_of(path: Path) -> Path:
    return path.parent if path.is_file() else path


@dataclass(frozen=True)
class Reader:
    """What a data set is read with: the model's folder, and the length of samples of a text.

    model         `hf:FOLDER`, or None
    block_length  tokens in a sample; None: the model's maximum, `MAX_BLOCK` at most
    """

    model: str | None = None
    block_length: int | None = None

    def tokenizer(self, path: Path) -> Any:
        """The tokenizer of the model's folder, or of the data's: a folder, or a file in one.

        Raises ValueError where there is none.
        """
        from transformers import AutoTokenizer

        folder = tokenizer_folder(self.model) if is_in_folder(self.model) else _folder_of(path)
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
            raise ValueError(
                f"{path} holds text, which needs a tokenizer, and {folder} has none (tokenizer.json); "
                "tokenizer.save_pretrained(FOLDER) puts it beside the model of --model hf:FOLDER"
            )
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def image_processor(self, path: Path) -> Any:
        """The image processor of the model's folder. Raises ValueError where there is none."""
        from transformers import AutoImageProcessor

        folder = model_folder(self.model) if is_in_folder(self.model) else path
        if not (folder / "preprocessor_config.json").is_file():
            raise ValueError(
                f"{path} holds images, which need the model's image processor, and {folder} has none "
                "(preprocessor_config.json); save it there, or give the data set a column pixel_values"
            )
        processors: Any = AutoImageProcessor
        return processors.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def config(self) -> dict[str, Any]:
        """The configuration of the model's folder; empty for a model that has none."""
        if not is_in_folder(self.model):
            return {}
        path = model_folder(self.model) / "config.json"
        return read_json(path) if path.is_file() else {}

    def model_class(self) -> Any:
        """The class of transformers of the model's folder; None for a model that has none."""
        if not is_in_folder(self.model):
            return None
        folder = model_folder(self.model)
        return class_of(folder) if (folder / "config.json").is_file() else None

    def accepted(self) -> frozenset[str] | None:
        """The columns that the model takes; None where it takes all, or is not known."""
        kind = self.model_class()
        return None if kind is None else accepted_names(kind.forward)

    def length(self) -> int:
        """Tokens in a sample of a text at most. Raises ValueError where that is more than the model takes."""
        config = self.config()
        limits = [config[name] for name in ("n_positions", "max_position_embeddings") if config.get(name)]
        limit = min(limits, default=MAX_BLOCK)
        if self.block_length is None:
            return int(min(limit, MAX_BLOCK))
        if limits and self.block_length > limit:
            raise ValueError(f"--block-length must be <= {limit}, the positions of the model; got {self.block_length}")
        return self.block_length

    def pad(self, tokenizer: Any = None) -> int:
        """The token that pads: the tokenizer's or the model's; where they have none, 0, which is masked."""
        for value in (getattr(tokenizer, "pad_token_id", None), self.config().get("pad_token_id")):
            if value is not None:
                return int(value)
        return 0


def source(name: str, split: str, reader: Reader) -> Source:
    """The samples of `hf:PATH`. Raises ValueError, FileNotFoundError and ImportError, in one sentence."""
    path = existing_path(path_in(name), "--dataset hf:PATH")
    try:
        with without_warnings():
            return _text(path, split, reader) if path.is_file() else _table(path, split, reader)
    except ImportError as error:
        raise missing_library(name, error) from None


def _text(path: Path, split: str, reader: Reader) -> Source:
    """The blocks of a text."""
    if split != "train":
        raise ValueError(f"{path} is one text, of the split train; for a test name another one: --dataset {PREFIX}FILE")
    kind = reader.model_class()
    if kind is not None and not is_causal_class(kind):
        raise ValueError(
            f"{path} is a text, whose tokens are the labels of a model that predicts the next one, which "
            f"{kind.__name__} does not; save a data set with its labels (dataset.save_to_disk(FOLDER)), -100 where a "
            "token does not count, and name that folder"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    tokenizer, length = reader.tokenizer(path), reader.length()
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(tokens) < 2:
        raise ValueError(f"{path} must have at least two tokens; got {len(tokens)}")
    width = min(length, len(tokens))
    blocks = [torch.tensor(tokens[i : i + width]) for i in range(0, len(tokens), width)]
    if len(blocks[-1]) < 2:  # nothing precedes its only token
        blocks.pop()
    rows = Padded(reader.pad(tokenizer))([{"input_ids": block, "labels": block} for block in blocks])
    return Source(RowsOf(rows), len(blocks))


def _table(path: Path, split: str, reader: Reader) -> Source:
    """The rows of a data set that `save_to_disk` has left."""
    import datasets

    try:
        table = datasets.load_from_disk(str(path))
    except IndexError:  # it has no file of rows
        raise ValueError(
            f"{path} has no rows, or a split of it has none, which the datasets library cannot load"
        ) from None
    except FileNotFoundError:
        raise ValueError(
            f"{path} is no data set of the datasets library; dataset.save_to_disk(FOLDER) makes one. A text is named "
            f"as a file: --dataset {PREFIX}corpus.txt"
        ) from None
    if isinstance(table, datasets.DatasetDict):
        present = [name for name in SPLITS[split] if name in table]
        if not present:
            raise ValueError(f"{path} has no split {split}; it has {', '.join(table)}")
        table = table[present[0]]
    elif split != "train":
        raise ValueError(f"{path} is one table, for the split train; a DatasetDict has several")
    if not len(table):
        raise ValueError(f"{path} has no rows in its split {split}")
    columns = list(table.column_names)
    fetch = _fetch_of(path, table, columns, reader)
    return Source(fetch, len(table))


def _fetch_of(path: Path, table: Any, columns: Sequence[str], reader: Reader) -> Rows:
    """How rows of these columns become batches. Raises ValueError where no column holds samples."""
    target = next((name for name in TARGETS if name in columns), None)
    kept = [target] if target else []
    text_columns: list[tuple[str, ...]] = [*PAIRS, *((name,) for name in TEXTS)]
    texts = next((names for names in text_columns if set(names) <= set(columns)), ())
    image = next((name for name in IMAGES if name in columns), None)
    if "input_ids" in columns:
        accepted = reader.accepted()
        read = columns_read(columns, {*TOKENS, *kept} if accepted is None else accepted.difference(TARGETS).union(kept))
        used = table.select_columns(read)
        return Rows(used, Padded(reader.pad(), _widths(used)), target)
    if "pixel_values" in columns:
        columns_read(columns, ["pixel_values", *kept])
        return Rows(table.select_columns(["pixel_values", *kept]), Padded(), target)
    main = getattr(reader.model_class(), "main_input_name", None)
    if main in SOUNDS and main in columns:
        read = columns_read(columns, (reader.accepted() or {main}).difference(TARGETS).union(kept))
        return Rows(table.select_columns(read), Padded(), target)
    if texts:
        columns_read(columns, [*texts, *kept])
        tokenizer = reader.tokenizer(path)
        encode = _Encode(tokenizer, texts, reader.length())
        chosen = table.select_columns([*texts, *kept])
        encoded = [encode(row) for row in chosen]
        _report_cut(sum(map(encode.is_cut, chosen, encoded)), len(encoded), encode.length)
        widths = {"input_ids": max(len(row["input_ids"]) for row in encoded)}
        return Rows(encoded, Padded(reader.pad(tokenizer), widths), target)
    if image is not None:
        columns_read(columns, [image, *kept])
        return Rows(_Images(table, image, kept, reader.image_processor(path)), Padded(), target)
    raise ValueError(
        f"{path} has the columns {', '.join(columns)}; the samples must stand in input_ids, text, pixel_values, "
        "image or, of sound, input_features or input_values, their classes in label or labels. Other columns are read "
        f"by a function of yours, --dataset data.py:samples, that returns load_from_disk({str(path)!r}).with_format"
        "('torch')"
    )


def _widths(table: Any) -> dict[str, int]:
    """The longest row of every column of lists, so that batches of any rows join."""
    widths = {}
    for name, values in table.with_format(None)[:].items():
        if values and all(isinstance(value, list) for value in values):
            widths[name] = max(map(len, values))
    return widths


@dataclass(frozen=True, eq=False)
class Rows:
    """Indices -> a batch of the rows, a dict of tensors, its targets under `labels`."""

    table: Any
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    target: str | None

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The batch of these rows."""
        batch = self.collate([self.table[int(i)] for i in indices])
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].float()
        if self.target is not None:
            batch["labels"] = batch.pop(self.target)
        return batch


@dataclass(frozen=True, eq=False)
class _Encode:
    """A row with one text or two -> the row with its tokens, the special ones of the tokenizer among them."""

    tokenizer: Any
    texts: Sequence[str]
    length: int

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in row.items() if name not in self.texts}
        tokens = self.tokenizer(*self._texts(row), truncation=True, max_length=self.length)
        return {**tokens, **others}

    def is_cut(self, row: dict[str, Any], encoded: dict[str, Any]) -> bool:
        """Whether a row has more tokens than were taken."""
        if len(encoded["input_ids"]) < self.length:
            return False
        return len(self.tokenizer(*self._texts(row), verbose=False)["input_ids"]) > self.length

    def _texts(self, row: dict[str, Any]) -> list[Any]:
        return [row[name] for name in self.texts]


def _report_cut(count: int, of: int, length: int) -> None:
    """Say how many texts were longer than the model takes."""
    if count:
        log.warning("%d of %d texts have more than %d tokens: those behind are left out", count, of, length)


@dataclass(frozen=True, eq=False)
class _Images:
    """Rows with an image -> rows with its pixel values, by the model's image processor."""

    table: Any
    column: str
    others: Sequence[str]
    processor: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        pixels = self.processor(row[self.column].convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, **{name: row[name] for name in self.others}}
