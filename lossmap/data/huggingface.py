"""Models of Hugging Face with their own losses, as problems whose loss is a mean over tokens (or samples).

    L(theta) = sum_t loss(f(theta)_t, label_t) / T       T labels that count: not -100, and for a causal language model
                                                         not the first of a sequence; nats per token

A model's own loss is the mean over the labels that count in one batch; the mean of such means depends on how the data
are cut and padded. Here every batch gives its sum and its number, so that the mean is the same for any cut. The formula
is chosen by the model's kind and compared with the model's own loss on the first samples; where none agrees (auxiliary
losses, detection, answers by position, CTC) the model's own loss is taken, times the number of labels where a few
samples show it to be a mean over these, and else times the samples, as what it is shown to be by `loss_check`: their
mean, their sum, or neither. Price of making a problem: two passes over at most four samples, and of such a loss three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap.data.batches import Batch, Batches, Streamed
from lossmap.data.borrow import temporary_parameters
from lossmap.data.criteria import Metric, largest_outputs
from lossmap.data.huggingface_batches import IGNORED, Entries, accepted_names, model_batches
from lossmap.data.huggingface_pass import (
    NoLossError,
    has_prepended_prompt,
    is_causal,
    logits,
    model_within,
    own_loss,
    without_warnings,
)
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.device_errors import raise_if_of_device
from lossmap.keywords import checked_keywords

MAX_PROBED = 4  # samples on which a formula is compared with the model's own loss
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}  # of that comparison, relative; other precisions 5e-2
TWICE_DIFFERENTIABLE = ("eager", "sdpa", None)  # of attention; PyTorch's own by its plain formula where asked twice
NEXT_TOKEN, TOKENS, CLASSES, SQUARES, LABELS = "next token", "tokens", "classes", "squares", "labels"


def counted_labels(labels: Tensor, kind: str, ignored: int = IGNORED) -> int:
    """How many of a batch's labels enter its loss."""
    if kind in (SQUARES, LABELS):
        return int(labels.shape[0])
    counted = labels[:, 1:] if kind == NEXT_TOKEN else labels
    return int((counted != ignored).sum())


@dataclass(frozen=True)
class LabelCount:
    """batch -> the number of its labels that count."""

    kind: str
    ignored: int = IGNORED

    def __call__(self, batch: Batch) -> int:
        """The number, without a look at the model."""
        return counted_labels(batch["labels"], self.kind, self.ignored)


def _pairs(outputs: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Logits (M, C) and labels (M,), one row a label."""
    if kind == NEXT_TOKEN:
        outputs, labels = outputs[:, :-1], labels[:, 1:]
    return outputs.reshape(-1, outputs.shape[-1]), labels.reshape(-1)


@dataclass(frozen=True)
class SummedLoss:
    """(logits, batch) -> the loss summed over the labels that count, a scalar."""

    kind: str

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum: cross entropy in nats; squares and independent labels as means over a sample's outputs."""
        labels: Tensor = batch["labels"]
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        if self.kind == SQUARES:
            return F.mse_loss(outputs.reshape(labels.shape), labels.to(outputs.dtype)) * len(labels)
        if self.kind == LABELS:
            return F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype)) * len(labels)
        rows, targets = _pairs(outputs, labels, self.kind)
        return F.cross_entropy(rows, targets, ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True)
class CorrectLabels:
    """(logits, batch) -> 100 times the labels that count and have the largest logit."""

    kind: str

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum, whose mean is a percentage."""
        rows, targets = _pairs(outputs, batch["labels"], self.kind)
        percent: Tensor = 100.0 * ((largest_outputs(rows, -1) == targets) & (targets != IGNORED)).sum()
        return percent


@dataclass(frozen=True)
class OwnLoss:
    """(model, batch) -> the model's own loss times the number over which it is a mean, of labels or of samples."""

    count: Callable[[Batch], int]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum; 0 of a batch in which no label counts, whose own loss is NaN."""
        number = self.count(batch)
        loss = own_loss(model, batch)
        return loss * number if number else torch.zeros_like(loss)


def _itself(outputs: Tensor, batch: Batch) -> Tensor:
    return outputs


def _candidates(model: nn.Module, outputs: Tensor, labels: Tensor) -> list[str]:
    """The formulas that fit logits and labels, the most likely first."""
    if labels.is_floating_point():
        within = model_within(model)
        single = getattr(within.config, "problem_type", None) == "regression" or outputs.shape[-1] == 1
        kinds = [SQUARES, LABELS] if single else [LABELS, SQUARES]
        return [kind for kind in kinds if outputs.numel() == labels.numel()]
    if outputs.dim() == 3 and labels.dim() == 2 and outputs.shape[:2] == labels.shape:
        return [NEXT_TOKEN, TOKENS] if is_causal(model) else [TOKENS, NEXT_TOKEN]
    if outputs.dim() == 2 and labels.numel() == outputs.shape[0]:
        return [CLASSES]
    return []


def _kind(model: nn.Module, batches: Batches) -> str | None:
    """The formula that gives the model's own loss on a few samples; None where there is no such formula.

    Raises ValueError, in one sentence, where the model does not take them, or has not the classes of the labels.
    """
    few = {name: value[:MAX_PROBED] for name, value in next(iter(batches)).items()}
    try:
        return _fitting_kind(model, few, batches)
    except (NoLossError, LabelError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"the model refuses the first samples: {reason}; they are {_described(few)}{_without(model, few)}"
        ) from error


def _without(model: nn.Module, batch: Batch) -> str:
    """That a batch lacks what the model reads first, such as `pixel_values`, for a message; nothing where it has it."""
    main = getattr(model_within(model), "main_input_name", None)
    return f", without {main}" if isinstance(main, str) and main not in batch else ""


def _described(batch: Batch) -> str:
    """Shapes and ranges of a batch, for a message."""
    texts = []
    for name, value in batch.items():
        text = f"{name} {' x '.join(map(str, value.shape))}"
        is_whole = not value.is_floating_point() and value.numel()
        texts.append(f"{text} from {int(value.min())} to {int(value.max())}" if is_whole else text)
    return ", ".join(texts)


class LabelError(ValueError):
    """The labels are not of the model's classes, or not as many as it predicts."""


def _mismatch(model: nn.Module, outputs: Any, labels: Tensor) -> str:
    """How the number of labels differs from what the model predicts, as a sentence; empty where it does not, or may."""
    name, shape = type(model_within(model)).__name__, " x ".join(map(str, labels.shape))
    is_of_tokens = isinstance(outputs, Tensor) and outputs.dim() == 3
    if labels.dim() == 1 and (is_of_tokens or getattr(model_within(model).config, "is_encoder_decoder", False)):
        remedy = "take a model with a head for sequences, such as one ForSequenceClassification, or labels of tokens"
        if is_causal(model):
            remedy += " (a data set without labels has its tokens as labels)"
        return f"the labels are one for each sample ({shape}), where {name} predicts one for each token; {remedy}"
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        return ""
    if labels.dim() == 2 and not labels.is_floating_point():
        return (
            f"the labels are one for each token ({shape}), where {name} predicts one for each sample; take a model "
            "with a head for tokens, such as one ForTokenClassification, or one label for each sample"
        )
    if labels.is_floating_point() and outputs.numel() != labels.numel():
        return (
            f"the labels of a sample must be as many numbers as {name} predicts, {outputs.shape[-1]}; got "
            f"{labels.numel() // len(labels)}: set its config's num_labels, or give classes as whole numbers"
        )
    return ""


def _check_labels(batches: Batches, classes: int) -> None:
    """Raises LabelError where a label is none of the model's classes."""
    for batch in () if isinstance(batches, Streamed) else batches:
        labels = batch["labels"]
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            advice = "; a model of one number is a regression, whose labels are floating-point" if classes == 1 else ""
            raise LabelError(
                f"labels must be >= 0 and < {classes}, the classes of the model, or {IGNORED} where they do not count; "
                f"got {int(wrong[0])}{advice}"
            )


def _few_logits(model: nn.Module, few: Batch) -> Any:
    """The model's logits of a few samples. Raises LabelError where they have one label each, which shifts to none."""
    try:
        return logits(model, few)
    except (IndexError, TypeError, RuntimeError, ValueError) as error:
        if sentence := _mismatch(model, None, few["labels"]):
            raise LabelError(sentence) from error
        raise


def _few_own_loss(model: nn.Module, few: Batch, outputs: Any) -> Tensor:
    """The model's own loss of a few samples. Raises LabelError where their labels are not as many as the outputs."""
    try:
        return own_loss(model, few)
    except (IndexError, TypeError, RuntimeError, ValueError) as error:
        if "labels" in few and (sentence := _mismatch(model, outputs, few["labels"])):
            raise LabelError(sentence) from error
        raise


def _fitting_kind(model: nn.Module, few: Batch, batches: Batches) -> str | None:
    """The formula of `_kind`, by a few samples."""
    with temporary_parameters(model, {}), torch.no_grad(), without_warnings():
        outputs = _few_logits(model, few) if "labels" in few else None
        kinds = _candidates(model, outputs, few["labels"]) if isinstance(outputs, Tensor) else []
        if isinstance(outputs, Tensor) and set(kinds) & {NEXT_TOKEN, TOKENS, CLASSES}:
            _check_labels(batches, outputs.shape[-1])
        own = float(_few_own_loss(model, few, outputs))
        if not isinstance(outputs, Tensor):
            return None
        tolerance = TOLERANCE.get(outputs.dtype, 5e-2)
        for kind in kinds:
            number = counted_labels(few["labels"], kind)
            if number == 0:  # nothing to compare with: the model's own loss is 0 / 0
                return kind
            value = float(SummedLoss(kind)(outputs, few)) / number
            if abs(value - own) <= tolerance * max(abs(own), 1e-3):
                return kind
    return None


def _token_table(model: nn.Module) -> nn.Embedding | None:
    """The embeddings of a model's tokens; None for one of images or sound, and where it does not name them."""
    try:
        table = model_within(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):  # the latter of all that have none (ResNet, CLIP, Wav2Vec2)
        return None
    return table if isinstance(table, nn.Embedding) else None


def _check_tokens(model: nn.Module, batches: Batches) -> None:
    """Raises ValueError where the data hold tokens that the model's vocabulary does not have."""
    table = _token_table(model)
    if table is None or isinstance(batches, Streamed):
        return
    for batch in batches:
        largest = int(batch["input_ids"].max()) if "input_ids" in batch else 0
        if largest >= table.num_embeddings:
            raise ValueError(
                f"input_ids must be < {table.num_embeddings}, the model's vocabulary; got {largest}: the tokens are "
                "those of another model's tokenizer"
            )


@checked_keywords
def huggingface(model: nn.Module, data: Any, *, batch_size: int | None = None) -> Problem:
    """A model of Hugging Face with its own loss, the mean over all labels that count: nats per token.

    Args:
        model: a model of transformers with a head (GPT-2, Llama, BERT, ViT and others), also within PEFT's wrapper, on
            any device; it is evaluated in evaluation mode.
        data: a DataLoader, a Dataset (also of the datasets library), a list of batches or of tokenized samples, or one
            batch of all samples.
            A batch is a mapping of the model's keywords with `labels` (or `label`), or inputs and targets; where a
            causal language model's has no labels they are its tokens that are not masked. Labels of -100 do not count.
        batch_size: samples in a batch; by default the loader's.

    Returns:
        The problem. Its loss weighs every label that counts alike, however the data are cut and padded; of models for
        classification and language there is the accuracy in percent, and Gauss-Newton works. A model whose own loss
        follows no formula known here has that loss as one step, weighted by what it is a mean over, its labels or its
            samples.

    Raises:
        ValueError: where the model refuses such batches or returns no loss for them, no label counts, or tokens or
            labels are not its own.

    Example:
        >>> import lossmap, torch, transformers
        >>> sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=7, **sizes))
        >>> lossmap.huggingface(model, {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
        Problem(LlamaForCausalLM, 204 parameters, 2 samples, metrics: acc)

    """
    if not hasattr(model_within(model), "config"):
        raise ValueError(
            f"{type(model).__name__} is no model of transformers (it has no config); see Problem.supervised and "
            "Problem.custom for others"
        )
    within = model_within(model)
    main = getattr(within, "main_input_name", "input_ids")
    entries = Entries(main, is_causal(model), accepted_names(within.forward))
    pad = getattr(within.config, "pad_token_id", None) or 0
    first = next(model.parameters())
    batches = model_batches(data, entries, batch_size, pad).to(first.device, first.dtype)
    _check_tokens(model, batches)
    batch = next(iter(batches))
    kind = _kind(model, batches)
    if kind is None:
        return _own_problem(model, batches, batch)
    count = LabelCount(kind)
    if not isinstance(batches, Streamed) and not any(map(count, batches)):
        raise ValueError(f"no label counts: all are {IGNORED}, or the first of their sequence; the loss is undefined")
    unit = {NEXT_TOKEN: "nats per token", TOKENS: "nats per token", SQUARES: "1"}.get(kind, "nats")
    metrics = {}
    if kind not in (SQUARES, LABELS):
        metrics["acc"] = Metric(CorrectLabels(kind), "percent", "accuracy")
    return Problem(model, batches, logits, SummedLoss(kind), count, metrics, True, unit)


def _own_problem(model: nn.Module, batches: Batches, batch: Batch) -> Problem:
    """The problem of a model whose loss is its own, in one step."""
    labels, kind = batch.get("labels"), CLASSES
    if is_causal(model):
        kind = TOKENS if has_prepended_prompt(model) else NEXT_TOKEN
    ignored = getattr(model_within(model).config, "semantic_loss_ignore_index", IGNORED)
    count = LabelCount(kind, ignored)
    if labels is None or labels.is_floating_point() or not _is_mean_over_labels(model, batches, count):
        return Problem(model, batches, OwnLoss(samples_in), _itself, samples_in, {}, False, "1")
    unit = {1: "1", 2: "nats per token"}.get(labels.dim(), "nats per label")
    return Problem(model, batches, OwnLoss(count), _itself, count, {}, False, unit)


def _is_mean_over_labels(model: nn.Module, batches: Batches, count: LabelCount) -> bool:
    """Whether a model's own loss is the mean over the labels that count, and not rather over samples.

    Evaluated together, and each by themselves, are a few samples and as many others with half the labels: the same
    turned around, with every second label ignored.
    """
    batch = next((batch for batch in batches if count(batch)), None)
    if batch is None:
        return False
    is_counted = batch["labels"] != count.ignored
    rows = is_counted.reshape(len(is_counted), -1).any(1).nonzero()[:MAX_PROBED, 0]
    few = {name: value[rows] for name, value in batch.items()}
    fewer = {name: value.flip(1) if value.dim() > 1 else value.clone() for name, value in few.items()}
    labels = fewer["labels"].view(-1)
    labels[(labels != count.ignored).nonzero()[::2, 0]] = count.ignored
    parts = [{name: torch.cat([value, fewer[name]]) for name, value in few.items()}, few, fewer]
    try:
        with temporary_parameters(model, {}), torch.no_grad(), without_warnings():
            losses = [float(own_loss(model, part)) for part in parts]
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:  # it takes no such labels
        raise_if_of_device(error)
        return False

    def gap(number: Callable[[Batch], int]) -> float:
        """By how much the mean over both parts differs from the loss of them together."""
        numbers = [number(part) for part in parts]
        whole, *sums = [loss * n if n else 0.0 for loss, n in zip(losses, numbers, strict=True)]
        return abs(whole - sum(sums)) / numbers[0]

    allowed = 0.2 * TOLERANCE.get(next(model.parameters()).dtype, 5e-2) * max(abs(losses[0]), 1e-3)
    return gap(count) <= allowed and not gap(samples_in) < gap(count) - 0.05 * allowed
