"""The mean loss at displacements from a network's parameters, and how far rounding may have moved its differences.

    rise(d) = L(theta + d) - L(theta)        d (n,) over the selected parameters, in the problem's unit

A displaced parameter is rounded once to the model's precision; sums over samples are in float64. Memory: a few vectors
of 8 n bytes. Price: one forward pass for a loss, a forward and a backward pass for a gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan

import torch
from torch import Tensor

from lossmap.curvature.gradient import loss_and_gradient, mean_loss
from lossmap.curvature.operators import Total, made_by_all, single_rank
from lossmap.curvature.rounding import problem_in
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.sums import float64_device, in_float64

logger = logging.getLogger("lossmap")


@dataclass(frozen=True, eq=False)
class ShiftedLoss:
    """The loss of a problem around its model's present parameters.

    parameters  that are displaced: `weights`, `all`, `trainable` or a regular expression
    total       adds a tensor up over the ranks of a team, each with its share of the data
    spent       forward passes and gradients so far
    """

    problem: Problem
    parameters: str = "weights"
    total: Total = single_rank
    spent: dict[str, int] = field(default_factory=lambda: {"passes": 0, "gradients": 0})

    @cached_property
    def origin(self) -> dict[str, Tensor]:
        """The selected parameters as they were when first asked for, by name."""
        return {name: p.detach().clone() for name, p in selected(self.problem.model, self.parameters).items()}

    @cached_property
    def layout(self) -> Layout:
        """How the displaced parameters lie in a flat vector."""
        return Layout.of(self.origin)

    @property
    def zero(self) -> Tensor:
        """(n,) no displacement."""
        device = float64_device(next(iter(self.origin.values())).device)
        return torch.zeros(self.layout.size, dtype=torch.float64, device=device)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Inside, what the model keeps beside its parameters is remembered once, and not anew at each displacement."""
        with temporary_parameters(self.problem.model, {}):
            yield

    def at(self, d: Tensor) -> float:
        """L(theta + d); NaN and infinity are results."""
        self.spent["passes"] += 1
        with temporary_parameters(self.problem.model, self._tensors(d), copied=False):
            return mean_loss(self.problem, self.total)

    def base(self) -> float:
        """L(theta). Raises FloatingPointError where it is not finite: there is nothing that it could rise from."""
        loss = self.at(self.zero)
        if not isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at these weights: there is no rise to measure")
        return loss

    def gradient_at(self, d: Tensor) -> tuple[float, Tensor]:
        """L(theta + d) and its gradient there, (n,) in float64."""
        self.spent["gradients"] += 1
        with temporary_parameters(self.problem.model, self._tensors(d), copied=False):
            loss, slope, _ = loss_and_gradient(self.problem, self.parameters, self.total)
        return loss, slope

    def rounding_at(self, d: Tensor, rise: float) -> float:
        """How far a rise that was measured at d is from that in float64; as `distance_to_float64` has it."""
        return self.distance_to_float64(rise, lambda double: double.at(d) - double.at(double.zero))

    def distance_to_float64(self, rise: float, read: Callable[[ShiftedLoss], float]) -> float:
        """How far a rise is from what `read` finds in float64; NaN where float64 is not to be had.

        0 where the model is in float64 itself. Price: a copy of the model in float64, and what is read with it.
        """
        if not isfinite(rise):
            return nan
        own = next(iter(self.origin.values()))
        if own.dtype == torch.float64:
            return 0.0
        try:
            # on all ranks of a team or on none: a rank alone would wait for the sums of the others
            twin = made_by_all(self.total, own.device, lambda: problem_in(self.problem, torch.float64))
            double = ShiftedLoss(twin, self.parameters, self.total)
            with double.borrowed():
                return abs(rise - read(double))
        except Exception as failure:  # user code may raise any exception in another precision
            logger.info("the rounding of a rise is not measured: %s", failure)
            return nan

    def _tensors(self, d: Tensor) -> dict[str, Tensor]:
        """The displaced parameters by name, in the model's precision."""
        parts = self.layout.unflatten(d)
        return {name: (in_float64(p) + parts[name]).to(p.device, p.dtype) for name, p in self.origin.items()}
