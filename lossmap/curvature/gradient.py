"""The mean loss, alone or with its gradient, at the model's present parameters, in one pass over the data.

    L(theta) = 1/N sum_i loss_i,   g = dL/dtheta  (n,)        in the problem's unit, and that per unit of theta

Sums over samples are accumulated in float64 and divided by the samples of all ranks of a team, so that no cut into
batches or shares changes the result but for rounding. Price: one forward and, with the gradient, one backward pass.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from lossmap.curvature.operators import Total, differentiated, single_rank, total_or_raise
from lossmap.data.criteria import NoWeight
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.stable.forms import stable_forms
from lossmap.sums import float64_device, in_float64


class LossAndGradient(NamedTuple):
    """The mean loss, its gradient (n,) in float64, and how the parameters lie in it."""

    loss: float
    gradient: Tensor
    layout: Layout


def loss_and_gradient(problem: Problem, parameters: str = "weights", total: Total = single_rank) -> LossAndGradient:
    """The mean loss and its gradient over all samples of all ranks, in evaluation mode; `.grad` is not touched.

    problem     model, loss and this rank's share of the data
    parameters  `weights` (dimension > 1), `all`, `trainable`, or a regular expression
    total       adds a tensor up over the ranks of a team; called once

    A loss that is NaN or infinite is a result, with whatever its gradient is. Raises FloatingPointError where the loss
    is finite and its gradient is not; ValueError where the data hold no sample; what the model raises, and then
    RuntimeError on the other ranks of the team.
    """
    named = selected(problem.model, parameters)
    layout = Layout.of(named)
    # gradient, loss, samples and whether this rank failed travel together, so that all ranks raise as one
    device = float64_device(next(iter(named.values())).device)
    message = torch.zeros(layout.size + 3, dtype=torch.float64, device=device)
    message = total_or_raise(total, message, partial(_add_local_sums, problem, list(named.values())), "gradient")
    is_finite = message[:-3].isfinite().all()
    loss_sum, samples, _, finite = torch.cat([message[-3:], is_finite.to(message)[None]]).tolist()  # one wait
    if samples == 0:
        raise NoWeight
    loss, gradient = loss_sum / samples, message[:-3] / samples
    if isfinite(loss) and not finite:
        raise FloatingPointError(f"the loss is {loss:g}, but its gradient is not finite at these parameters")
    return LossAndGradient(loss, gradient, layout)


def mean_loss(problem: Problem, total: Total = single_rank) -> float:
    """The mean loss over all samples of all ranks, in evaluation mode, by one forward pass.

    Arguments and what it raises are those of `loss_and_gradient`; NaN and infinity are results.
    """
    # loss, samples and whether this rank failed
    message = torch.zeros(3, dtype=torch.float64, device=float64_device(next(problem.model.parameters()).device))
    message = total_or_raise(total, message, partial(_add_loss, problem), "loss")
    loss_sum, samples, _ = message.tolist()
    if samples == 0:
        raise NoWeight
    return float(loss_sum / samples)


def refuse_without_loss(problem: Problem, total: Total = single_rank) -> None:
    """Raises FloatingPointError where the mean loss is no number: a batch of NaN counts, and has no second derivative.

    Price: a forward pass over the data.
    """
    refuse_no_number(mean_loss(problem, total))


def refuse_no_number(loss: float) -> None:
    """Raises FloatingPointError for a mean loss that is NaN or infinite."""
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these weights: there is no curvature to read here")


def _add_to(entry: Tensor, loss: Tensor) -> None:
    """Adds a batch's loss to a sum on its device: the host waits for no batch."""
    entry += in_float64(loss.detach()).to(entry.device)


def _add_loss(problem: Problem, message: Tensor) -> None:
    """Adds this rank's sums over samples to (loss, samples, failed)."""
    # a loss of model and batch may differentiate by its inputs
    mode = torch.no_grad() if problem.separable else nullcontext()
    with torch.inference_mode(False), temporary_parameters(problem.model, {}):
        with mode, stable_forms("losses"):
            for batch in problem.data:
                _add_to(message[0], problem.total(batch))
        message[1] = float(problem.weight)


def _add_local_sums(problem: Problem, parameters: list[torch.nn.Parameter], message: Tensor) -> None:
    """Adds this rank's sums over samples to (gradient, loss, samples, failed)."""
    with temporary_parameters(problem.model, {}), differentiated(problem.model, parameters):
        for batch in problem.data:
            loss = problem.total(batch)
            if loss.requires_grad:  # else no chosen parameter reaches the loss, and the gradient is zero
                parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
                message[:-3] += in_float64(torch.cat([part.reshape(-1) for part in parts]))
            _add_to(message[-3], loss)
        message[-2] = float(problem.weight)  # with gradients: to count them may mean to run a loss
