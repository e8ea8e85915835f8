"""One pass of a model of Hugging Face: its logits or its own loss for a batch, with derivatives that are the loss's.

    logits(model, batch)      a batch is a dict of the model's keywords, its targets under `labels`
    own_loss(model, batch)

A pass has no cache of keys and values, and attention that can be differentiated twice: PyTorch's own or the plain
formula; kernels such as FlashAttention are replaced for the pass. Models cast to float32 within, before a softmax or a
norm; a float64 model stays in float64 here, or its second opinions would be float32. Nothing here imports transformers:
any module with a `config` will do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch
from lossmap.data.one_precision import in_one_precision
from lossmap.data.outputs import logits_of

TWICE_DIFFERENTIABLE = ("eager", "sdpa", None)  # of attention; PyTorch's own by its plain formula where asked twice


def model_within(model: nn.Module) -> Any:
    """The model without its wrappers: PEFT's, `torch.compile`'s, DataParallel's."""
    within: Any = model
    while True:
        if hasattr(within, "get_base_model"):
            within = within.get_base_model()
        elif isinstance(getattr(within, "_orig_mod", None), nn.Module):
            within = within._orig_mod
        elif isinstance(within, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            within = within.module
        else:
            return within


def is_huggingface(model: nn.Module) -> bool:
    """Whether a model, in whatever wrapper, is one of transformers."""
    kinds = type(model_within(model)).__mro__
    return any(kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers") for kind in kinds)


def is_causal(model: nn.Module) -> bool:
    """Whether a model predicts the next token, by the name of its class or its configuration."""
    within = model_within(model)
    return is_causal_class(type(within)) and not getattr(within.config, "is_encoder_decoder", False)


def is_causal_class(kind: type) -> bool:
    """Whether a class of models predicts the next token, by its name."""
    return re.search(r"CausalLM|LMHeadModel|DoubleHeads", kind.__name__) is not None


def has_prepended_prompt(model: nn.Module) -> bool:
    """Whether PEFT puts a trained prompt before the tokens, so that the first token is predicted, too."""
    config = getattr(model, "active_peft_config", None)
    kind = getattr(getattr(config, "peft_type", None), "value", "")
    return bool(getattr(config, "is_prompt_learning", False)) and kind != "PREFIX_TUNING"  # that stands in the cache


@contextmanager
def _differentiable(model: nn.Module, double: bool) -> Iterator[None]:
    """Inside, the model's derivatives are those of its loss, and there are second ones; all is put back afterwards.

    Attention without second derivatives is computed by its plain formula, and in float64 (`double`) so are the experts
    of a mixture, whose grouped products PyTorch has in lower precisions alone. That embeddings give no gradient to the
    row of the token that pads is seen to where derivatives are taken (`curvature.formulas`).
    """
    within = model_within(model)
    attention = getattr(within.config, "_attn_implementation", None)
    experts = getattr(within.config, "_experts_implementation", None)
    is_attention = attention not in TWICE_DIFFERENTIABLE and hasattr(within, "set_attn_implementation")
    is_experts = double and experts not in ("eager", None) and hasattr(within, "set_experts_implementation")
    if is_attention:
        within.set_attn_implementation("eager")
    if is_experts:
        within.set_experts_implementation("eager")
    try:
        yield
    finally:
        if is_attention:
            within.set_attn_implementation(attention)
        if is_experts:
            within.set_experts_implementation(experts)


def call(model: nn.Module, entries: Mapping[str, Any]) -> Any:
    """What the model returns for these keywords, without a cache of keys and values."""
    keywords = dict(entries)
    if hasattr(model_within(model).config, "use_cache"):
        keywords["use_cache"] = False
    double = any(p.dtype == torch.float64 for p in model.parameters())
    with _differentiable(model, double):
        return in_one_precision(lambda: model(**keywords), double)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits for a batch, which is a dict of its keywords with `labels`."""
    entries = {name: value for name, value in batch.items() if name != "labels"}
    within = model_within(model)
    if getattr(within.config, "is_encoder_decoder", False) and "decoder_input_ids" not in entries:
        shifted = getattr(within, "prepare_decoder_input_ids_from_labels", None)
        if shifted is None:  # Whisper: the model shifts the labels itself
            entries["labels"] = batch["labels"]
        else:
            entries["decoder_input_ids"] = shifted(labels=batch["labels"])
    result: Tensor = logits_of(call(model, entries))
    return result


class NoLossError(ValueError):
    """A model returns no loss for the batches that it was given."""


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that the model returns for a batch. Raises NoLossError where it returns none."""
    loss = getattr(call(model, batch), "loss", None)
    if loss is None:
        name = type(model_within(model)).__name__
        if "return_loss" in signature(model_within(model).forward).parameters:  # CLIP and its like
            raise NoLossError(
                f"{name} has a loss that compares the samples of a batch with each other, no mean over samples: take "
                "Problem.custom(model, lambda model, batch: model(**batch, return_loss=True).loss, [batch, ...])"
            )
        if "labels" not in signature(model_within(model).forward).parameters:
            raise NoLossError(
                f"{name} returns no loss for batches of {', '.join(batch)}, since it has no argument `labels`: take a "
                "model with a head, such as one ForSequenceClassification, or Problem.custom with a loss of its outputs"
            )
        raise NoLossError(
            f"{name} returns no loss for batches of {', '.join(batch)}; they must hold "
            "its labels, in most models under the name `labels`"
        )
    result: Tensor = loss
    return result


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside, transformers does not warn, as it does of a default for a loss that is only looked at here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
