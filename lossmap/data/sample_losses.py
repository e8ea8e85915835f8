"""The loss of each sample of a batch, where the loss is one of PyTorch's that can be asked for it.

    mean of the b losses = the batch's mean loss        b samples; nothing is known of other losses

Understood are the names crossentropy and mse, and PyTorch's modules below with reduction `mean` that weigh no class and
ignore no target of the data. What a loss returns otherwise is one number for a batch, in which the samples cannot be
told apart.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batch_parts import targets_of
from lossmap.data.batches import Batch
from lossmap.data.criteria import ScaledCriterion, SupervisedLoss, squared_errors
from lossmap.data.one_precision import floating_dtypes, in_one_precision
from lossmap.data.problem import Problem

MODULES = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.BCELoss,
)  # fmt: skip


def sample_losses(problem: Problem, outputs: Any, batch: Batch) -> Tensor | None:
    """The losses (b,) of a batch's samples in float64; None where the loss cannot be asked for them."""
    loss = problem.loss
    if not isinstance(loss, SupervisedLoss) or not isinstance(outputs, Tensor):
        return None
    if not isinstance(loss.total, ScaledCriterion) or loss.total.scale is not None:
        return None  # weights of classes, ignored targets, sums: no plain mean over samples
    criterion = _elementwise(loss.loss)
    if criterion is None:
        return None
    double = torch.float64 in floating_dtypes(outputs)
    each: Tensor = in_one_precision(criterion, double, outputs, targets_of(batch, outputs))
    return each.detach().double().reshape(each.shape[0], -1).mean(1)


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
