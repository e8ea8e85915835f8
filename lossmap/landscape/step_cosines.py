"""How the steps of a training run lie to the gradient of the loss, from checkpoint to checkpoint.

    cosine      between the step and the negative gradient where it begins, over the tensors that the step moves:
                1 straight downhill, 0 across, < 0 uphill to first order

A tensor that stands still from one checkpoint to the next, to the last bit, was not trained: its gradient is not what
the step follows, as of a body that is frozen while its head is trained. Nor is that of a row at `padding_idx`. Entries
that a hook or a mask holds still are counted, since nothing tells them from others.

Weights are stored rounded. Where that may have moved both checkpoints by a distance r, over entries that move or have
a gradient, the step of length |s| may be turned by the angle arcsin(r / |s|), and by any where r is longer than it. The
gradient g is taken at rounded weights, too: once more at weights that are moved at random within their rounding it is
another one by d, as the true one may be. Along one steep direction the ratio of the two has Student's distribution;
with d the root mean square of n neighbouring checkpoints, the gradient may be turned by arcsin(t_n d / |g|), with t_n
its 97.5 % quantile.

The gradient is that of the mean loss in evaluation mode, with running statistics and without dropout. Training follows
another one where a layer does something else there: that of a batch by its own statistics, or of a network thinned at
random, of which one checkpoint after the other does not tell the batches and the draws.

The price is two gradients for each checkpoint but the last, and two of one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import acos, asin, cos, nan, pi

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from lossmap.curvature.formulas import padding_still
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.curvature.operators import differentiated
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.device_errors import raise_if_of_device
from lossmap.geometry.directions import Named, difference
from lossmap.geometry.parameter_vector import selected
from lossmap.geometry.training_path import half_spacings, stored_precisions
from lossmap.seeding import generator, same_random_state
from lossmap.sums import dot, in_float64, norm_of

SAME_GRADIENT = 0.01  # of its length: a difference that moves no cosine by more

log = logging.getLogger("lossmap")


@dataclass(frozen=True)
class _Turn:
    """A step against the gradient: their lengths, the cosine, and by how much rounding may have changed either."""

    length: float
    slope: float
    cosine: float
    rounding: float
    change: float


def step_cosines(
    problem: Problem, whole: Named, states: Sequence[Named], parameters: str
) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of a run's steps, and how far rounding of the stored weights may change each, both (states,).

    NaN of the last, where there is no gradient, and where nothing moves; where rounding may be longer than the step, or
    change the gradient by more than its length, the cosine is NaN, and may be wrong by 2.
    """
    turns: list[_Turn | None] = []
    still: dict[str, None] = {}  # tensors that have a gradient, and do not move in some step that moves others
    stored = stored_precisions(states)
    for t, (here, there) in enumerate(pairwise(states)):
        own = {name: here[name].to(w.device, w.dtype).view(w.shape) for name, w in whole.items()}
        spacings = [
            {name: half_spacings(x[name], w, at[name]) for name, w in own.items() if w.is_floating_point()}
            for x, at in zip((here, there), stored[t:], strict=False)
        ]
        try:
            if t == 0:
                with temporary_parameters(problem.model, own):
                    check_gradient(problem, parameters)
            gradient = _gradient(problem, own, parameters)
            other = _gradient(problem, _within(own, spacings[0], gradient, t), parameters)
        except (FloatingPointError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            log.warning("no cosines of steps and gradients: at checkpoint %d there is no gradient: %s", t, reason)
            return np.full(len(states), nan), np.full(len(states), nan)
        step = difference(own, {name: there[name].to(w.device, w.dtype) for name, w in own.items()})
        moved = [name for name in gradient if step[name].any()]
        if moved:  # of the same checkpoint twice nothing was trained
            still |= {name: None for name, part in gradient.items() if name not in moved and part.any()}
        turns.append(_turn([(in_float64(step[n]), gradient[n], other[n], [x[n] for x in spacings]) for n in moved]))
    cosines, errors = (np.array([*column, nan]) for column in zip(*_with_errors(turns), strict=True))
    if still and np.isfinite(cosines).any():
        log.warning(
            "cosines are over the tensors that a step moves; %d of %d stand still in some, such as %s",
            len(still), len(gradient), next(iter(still)),
        )  # fmt: skip
    return cosines, errors


def _gradient(problem: Problem, weights: Named, parameters: str) -> dict[str, Tensor]:
    with temporary_parameters(problem.model, weights), padding_still():
        found = loss_and_gradient(problem, parameters)
    return found.layout.unflatten(found.gradient)


def _within(own: Named, spacings: Named, moving: Iterable[str], t: int) -> dict[str, Tensor]:
    """The weights with those that move anywhere within their rounding, at random."""
    moved = dict(own)
    for name in moving:
        w = own[name]
        places = 2.0 * torch.rand(w.shape, generator=generator("rounding", t, name), dtype=torch.float64) - 1.0
        moved[name] = (in_float64(w) + spacings[name] * places.to(spacings[name])).to(w.dtype)
    return moved


def _turn(parts: Sequence[tuple[Tensor, Tensor, Tensor, list[Tensor]]]) -> _Turn | None:
    """Of each tensor that moves: its step, its gradient, that within the rounding, and the half spacings at both ends.

    None where there is no step or no gradient. An entry that has neither was not trained: its rounding does not count.
    """
    length, slope = norm_of(s for s, *_ in parts), norm_of(g for _, g, *_ in parts)
    if not length * slope:
        return None
    along = sum(dot(s.reshape(-1), g.reshape(-1)) for s, g, *_ in parts) / length / slope
    rounding = sum(norm_of(ends[i][(s != 0) | (g != 0)] for s, g, _, ends in parts) for i in (0, 1))
    change = norm_of(other - g for _, g, other, _ in parts)
    return _Turn(length, slope, min(1.0, max(-1.0, -along)), rounding, change)


def _with_errors(turns: Sequence[_Turn | None]) -> Iterator[tuple[float, float]]:
    """Each step's cosine, and how far rounding may change it."""
    for t, turn in enumerate(turns):
        if turn is None:
            yield nan, nan
            continue
        beside = [each.change for each in turns[max(0, t - 2) : t + 3] if each is not None]
        change = student(len(beside)).ppf(0.975) * float(np.sqrt(np.mean(np.square(beside))))
        if turn.rounding >= turn.length or change >= turn.slope:
            yield nan, 2.0
            continue
        angle, turned = acos(turn.cosine), asin(turn.rounding / turn.length) + asin(change / turn.slope)
        low, high = cos(min(pi, angle + turned)), cos(max(0.0, angle - turned))
        yield turn.cosine, max(high - turn.cosine, turn.cosine - low)


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
