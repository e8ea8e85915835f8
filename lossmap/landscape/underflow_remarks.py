"""Remarks on points where the loss is exactly 0 because it underflows, far from the origin, where the loss was checked.

Price: two passes over a few samples at such a point, until one has been remarked on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lossmap.data.loss_check import few_samples
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.underflow import underflow
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Point
from lossmap.seeding import same_random_state
from lossmap.stable.forms import stable_forms


class UnderflowRemarks:
    """What is said of such points by one measure: a sentence at the first of them."""

    def __init__(self) -> None:
        self.is_done = False

    def remark(self, problems: Sequence[Problem], plane: Plane, point: Point) -> str | None:
        """The sentence, where the loss of one of these problems underflows at the point; None else, and later."""
        for problem in problems:
            if self.is_done:
                break
            note = _underflow_at(problem, plane, point)
            if note is not None:
                self.is_done = True
                coordinates = ", ".join(f"{c:g}" for c in point)
                return f"at ({coordinates}) {note}. Other points with 0 may be alike: they are not looked at again"
        return None


def _underflow_at(problem: Problem, plane: Plane, point: Point) -> str | None:
    batch = few_samples(problem)

    def evaluate() -> float:
        return float(problem.total(batch).detach())

    try:
        state = plane.at(point)
        with temporary_parameters(problem.model, state), torch.enable_grad(), stable_forms(), same_random_state(20):
            return underflow(evaluate) if evaluate() == 0 else None
    except Exception:  # user code may raise any exception, such as for a batch of this size
        return None
