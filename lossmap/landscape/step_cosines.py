"""How the steps of a training run lie to the gradient of the loss, from checkpoint to checkpoint.

    cosine      between the step and the negative gradient where it begins, over the tensors that the step moves:
                1 straight downhill, 0 across, < 0 uphill to first order

A tensor that stands still from one checkpoint to the next, to the last bit, was not trained: its gradient is not what
the step follows, as of a body that is frozen while its head is trained.

Weights are stored rounded. Where that may have moved both checkpoints by a distance r, over entries that move or have
a gradient, the step of length |s| may be turned by the angle arcsin(r / |s|), and by any where r is longer than it.

The gradient is that of the mean loss in evaluation mode, with running statistics and without dropout. Training follows
another one where a layer does something else there: that of a batch by its own statistics, or of a network thinned at
random, of which one checkpoint after the other does not tell the batches and the draws.

The price is a gradient for each checkpoint but the last, and two of one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import acos, asin, cos, nan, pi

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.curvature.operators import differentiated
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.device_errors import raise_if_of_device
from lossmap.geometry.directions import Named, difference
from lossmap.geometry.parameter_vector import selected
from lossmap.geometry.training_path import half_spacings
from lossmap.seeding import same_random_state
from lossmap.sums import dot, in_float64, norm_of

SAME_GRADIENT = 0.01  # of its length: a difference that moves no cosine by more

log = logging.getLogger("lossmap")

Steps = Sequence[tuple[Tensor, Tensor]]  # each tensor's step and gradient, of one shape, in float64


def step_cosines(
    problem: Problem, whole: Named, states: Sequence[Named], parameters: str
) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of a run's steps, and how far rounding of the stored weights may change each, both (states,).

    NaN of the last, where there is no gradient, and where nothing moves; where rounding may be longer than the step the
    cosine is NaN, and may be wrong by 2.
    """
    cosines, errors = np.full(len(states), nan), np.full(len(states), nan)
    still: dict[str, None] = {}  # tensors that have a gradient, and do not move in some step that moves others
    for t, (here, there) in enumerate(pairwise(states)):
        own = {name: here[name].to(w.device, w.dtype).view(w.shape) for name, w in whole.items()}
        try:
            with temporary_parameters(problem.model, own):
                if t == 0:
                    check_gradient(problem, parameters)
                found = loss_and_gradient(problem, parameters)
        except (FloatingPointError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            log.warning("no cosines of steps and gradients: at checkpoint %d there is no gradient: %s", t, reason)
            return np.full(len(states), nan), np.full(len(states), nan)
        step = difference(own, {name: there[name].to(w.device, w.dtype) for name, w in own.items()})
        gradient = found.layout.unflatten(found.gradient)
        moved = [name for name in found.layout.names if step[name].any()]
        if moved:  # of the same checkpoint twice nothing was trained
            still |= {name: None for name, part in gradient.items() if name not in moved and part.any()}
            steps = [(in_float64(step[name]), gradient[name]) for name in moved]
            rounding = sum(_rounding((half_spacings(x[n], own[n]) for n in moved), steps) for x in (here, there))
            cosines[t], errors[t] = _cosine(steps, rounding)
    if still and np.isfinite(cosines).any():
        log.warning(
            "cosines are over the tensors that a step moves; %d of %d stand still in some, such as %s",
            len(still), len(found.layout.names), next(iter(still)),
        )  # fmt: skip
    return cosines, errors


def _rounding(spacings: Iterable[Tensor], steps: Steps) -> float:
    """The length of these half spacings, of the entries that move: what has no gradient either was not trained."""
    return norm_of(spacing[(s != 0) | (g != 0)] for spacing, (s, g) in zip(spacings, steps, strict=True))


def _cosine(steps: Steps, rounding: float) -> tuple[float, float]:
    """The cosine of a step and the negative gradient, and how far a change of the step may change it."""
    length, slope = norm_of(s for s, _ in steps), norm_of(g for _, g in steps)
    if not length * slope:
        return nan, nan
    if rounding >= length:
        return nan, 2.0
    along = sum(dot(s.reshape(-1), g.reshape(-1)) for s, g in steps) / length / slope
    cosine = min(1.0, max(-1.0, -along))
    angle, turn = acos(cosine), asin(rounding / length)
    return cosine, max(cos(max(0.0, angle - turn)) - cosine, cosine - cos(min(pi, angle + turn)))


def is_other_in_training(problem: Problem, parameters: str) -> bool:
    """Whether the gradient of the first batch is another one in training mode, or none can be taken there."""
    weights = list(selected(problem.model, parameters).values())
    batch, gradients = next(iter(problem.data)), []
    with differentiated(problem.model, weights):  # which puts back modes, and buffers that a pass writes to
        for is_training in (False, True):
            try:
                if is_training:
                    problem.model.train()
                with same_random_state():
                    loss = problem.total(batch)
                parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            except Exception as error:  # as of auxiliary heads, which give outputs of another kind
                raise_if_of_device(error)
                return is_training
            gradients.append(parts)
    between = norm_of(trained - evaluated for evaluated, trained in zip(*gradients, strict=True))
    return not between <= SAME_GRADIENT * norm_of(gradients[0])
