"""The loss of each sample of a batch, where the loss is one of PyTorch's that can be asked for it.

    mean of the b losses = the batch's mean loss        b samples; nothing is known of other losses

Understood are the names crossentropy and mse, and PyTorch's modules below with reduction `mean` that weigh no class and
ignore no target of the data (`sample_losses`). Where these weigh classes, ignore targets or take a sum, each sample has
a part of the sum, and a weight (`weighted_sample_losses`). What a loss returns otherwise is one number for a batch, in
which the samples cannot be told apart.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batch_parts import targets_of
from lossmap.data.batches import Batch
from lossmap.data.criteria import (
    CorrectClasses,
    Metric,
    ScaledCriterion,
    SupervisedLoss,
    are_classes,
    largest_outputs,
    squared_errors,
)
from lossmap.data.one_precision import floating_dtypes, in_one_precision
from lossmap.data.problem import Problem
from lossmap.sums import in_float64

MODULES = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.BCELoss,
)  # fmt: skip


def sample_losses(problem: Problem, outputs: Any, batch: Batch) -> Tensor | None:
    """The losses (b,) of a batch's samples in float64; None where the loss cannot be asked for them."""
    criterion = _criterion(problem)
    if criterion is None or not isinstance(outputs, Tensor):
        return None
    double = torch.float64 in floating_dtypes(outputs)
    each: Tensor = in_one_precision(criterion, double, outputs, targets_of(batch, outputs))
    return in_float64(each.detach()).reshape(each.shape[0], -1).mean(1)


def weighted_sample_losses(problem: Problem, outputs: Any, batch: Batch) -> Tensor | None:
    """(b, 2) in float64: each sample's part of the loss's sum over a batch, and its weight in the mean.

    The mean over any samples is the sum of their parts over the sum of their weights, which are 1 but for classes that
    have weights and for targets that are ignored. None where the loss cannot be asked for its samples.
    """
    losses = sample_losses(problem, outputs, batch)
    if losses is not None:
        return torch.stack([losses, torch.ones_like(losses)], 1)
    summed = _summed(problem)
    if summed is None or not isinstance(outputs, Tensor):
        return None
    criterion, scale = summed
    targets = targets_of(batch, outputs)
    elementwise = copy.copy(criterion)
    elementwise.reduction = "none"
    double = torch.float64 in floating_dtypes(outputs)
    each: Tensor = in_one_precision(elementwise, double, outputs, targets)
    sums = in_float64(each.detach()).reshape(each.shape[0], -1).sum(1)
    if _is_sum(problem):
        return torch.stack([sums, torch.ones_like(sums)], 1)
    counts = targets != elementwise.ignore_index
    weights = in_float64(counts)
    if elementwise.weight is not None:
        of_classes = in_float64(elementwise.weight).to(targets.device)
        weights = weights * of_classes[torch.where(counts, targets, 0)]
    return scale * torch.stack([sums, weights.reshape(len(sums), -1).sum(1)], 1)


def has_sample_losses(problem: Problem) -> bool:
    """Whether the loss can be asked for single samples, as far as it can be said without its outputs."""
    return _criterion(problem) is not None


def has_weighted_sample_losses(problem: Problem) -> bool:
    """Whether single samples have a part of the loss and a weight, as far as it can be said without its outputs."""
    return has_sample_losses(problem) or _summed(problem) is not None


def sample_correct(metric: Metric, outputs: Any, batch: Batch) -> Tensor | None:
    """100 for each sample (b,) of a batch that is classified as its target says, else 0, in float64; 0 without a class.

    None for a metric other than the accuracy, of which single samples are not known.
    """
    if not isinstance(metric.total, CorrectClasses) or not isinstance(outputs, Tensor):
        return None
    targets = targets_of(batch)
    if targets.dim() == outputs.dim():  # one-hot or probabilities
        targets = targets.argmax(-1)
    correct = (largest_outputs(outputs, 1) == targets) & are_classes(targets, metric.total.ignored)
    return 100.0 * in_float64(correct) if correct.dim() == 1 else None


def _criterion(problem: Problem) -> Any:
    """The criterion with a number for each sample, or for each entry of it; None where the loss is no such mean."""
    loss = problem.loss
    if not isinstance(loss, SupervisedLoss):
        return None
    if not isinstance(loss.total, ScaledCriterion) or loss.total.scale is not None:
        return None  # weights of classes, ignored targets, sums: no plain mean over samples
    return _elementwise(loss.loss)


def _summed(problem: Problem) -> tuple[Any, float] | None:
    """The criterion whose sum, times a factor, stands for a mean over weights, or that is a sum itself; else None."""
    loss = problem.loss
    if not isinstance(loss, SupervisedLoss) or not isinstance(loss.total, ScaledCriterion) or loss.total.scale is None:
        return None
    is_known = loss.loss == "crossentropy" or type(loss.loss) in MODULES
    return (loss.total.criterion, loss.total.scale) if is_known else None


def _is_sum(problem: Problem) -> bool:
    """Whether the loss is a sum over a batch as it was given."""
    return getattr(getattr(problem.loss, "loss", None), "reduction", "mean") == "sum"


def _elementwise(loss: Any) -> Any:
    """The criterion with a number for each sample, or for each entry of it; None where there is none."""
    if loss == "crossentropy":
        return nn.CrossEntropyLoss(reduction="none")
    if loss == "mse":
        return squared_errors
    if type(loss) in MODULES and loss.reduction == "mean":
        elementwise = copy.copy(loss)
        elementwise.reduction = "none"
        return elementwise
    return None
