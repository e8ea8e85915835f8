"""The mean loss and its gradient with what rounding may have moved them by: measured, by the same in another precision.

    loss_error   SAFETY |L - L64|          over some `MAX_SAMPLES` samples, and as a share of L as large
    errors       SAFETY |g - g64|          the same, tensor by tensor: bounds what the norm of each is off by

As in `rounding`: a loss whose terms cancel loses the same digits in every sum, which float64 sees and noise does not.
For float64 itself the difference to float32 is scaled by the ratio of the precisions. Price: a gradient in either
precision over those samples, and a copy of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import hypot, isfinite, nan
from typing import NamedTuple

import torch
from torch import Tensor

from lossmap.curvature.gradient import LossAndGradient, loss_and_gradient
from lossmap.curvature.operators import Total, made_by_all, single_rank
from lossmap.curvature.rounding import EXTRAPOLATED_SAFETY, MAX_SAMPLES, SAFETY, first_samples, problem_in
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.sums import norm

log = logging.getLogger("lossmap")

FLOOR_EPSILONS = 4.0  # of loss and gradient, which are rounded at the end in any case


class MeasuredGradient(NamedTuple):
    """The mean loss, its gradient (n,) in float64, how the parameters lie in it, and how far rounding may move them.

    loss_error  of the loss, in its unit; NaN where it could not be measured
    errors      of the gradient by tensor, an upper bound of what its norm is off by; NaN as well
    """

    loss: float
    gradient: Tensor
    layout: Layout
    loss_error: float
    errors: Mapping[str, float]

    @property
    def norm_error(self) -> float:
        """How far rounding may have moved the gradient's norm."""
        return hypot(*self.errors.values())


def measured_gradient(problem: Problem, parameters: str = "weights", total: Total = single_rank) -> MeasuredGradient:
    """The mean loss and its gradient, and what rounding may have moved them by; NaN where no other precision runs.

    Arguments and what it raises are those of `loss_and_gradient`.
    """
    found = loss_and_gradient(problem, parameters, total)
    names = found.layout.names
    unknown = MeasuredGradient(*found, nan, dict.fromkeys(names, nan))
    own = next(iter(selected(problem.model, parameters).values())).dtype
    if not isfinite(found.loss) or own not in (torch.float32, torch.float64):
        return unknown
    few, is_whole = first_samples(problem, MAX_SAMPLES)
    other, safety = torch.float64, SAFETY
    if own == torch.float64:
        other, safety = torch.float32, EXTRAPOLATED_SAFETY * _ratio(own, torch.float32)
    try:
        twin = made_by_all(
            total, found.gradient.device, lambda: problem_in(few, other), "loss and gradient in another precision"
        )
        here = found if is_whole else loss_and_gradient(few, parameters, total)
        there = loss_and_gradient(twin, parameters, total)
    except Exception as failure:  # somebody's own forward may raise anything in another precision
        text = (str(failure).splitlines() or [type(failure).__name__])[0]
        log.info("the rounding of loss and gradient is not measured in another precision (%s)", text)
        return unknown
    floor = FLOOR_EPSILONS * float(torch.finfo(own).eps)
    loss_error = _error(found.loss, here.loss, abs(here.loss - there.loss), safety, floor)
    return MeasuredGradient(*found, loss_error, _errors(found, here, there, safety, floor))


def _ratio(one: torch.dtype, other: torch.dtype) -> float:
    return float(torch.finfo(one).eps / torch.finfo(other).eps)


def _errors(
    found: LossAndGradient, here: LossAndGradient, there: LossAndGradient, safety: float, floor: float
) -> dict[str, float]:
    """By tensor, of a gradient, from that of some samples in both precisions."""
    parts = zip(*(g.layout.split(g.gradient) for g in (found, here, there)), strict=True)
    return {
        name: _error(norm(g), norm(h), norm(h - t.to(h)), safety, floor)
        for name, (g, h, t) in zip(found.layout.names, parts, strict=True)
    }


def _error(size: float, size_here: float, difference: float, safety: float, floor: float) -> float:
    """Of a number of this size, from the difference where some samples give it another."""
    relative = difference / abs(size_here) if size_here else 0.0
    return safety * max(difference, min(relative, 1.0) * abs(size)) + floor * abs(size)


__all__ = ["MeasuredGradient", "measured_gradient"]
