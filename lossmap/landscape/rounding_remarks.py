"""Remarks on points where a loss is rounded by more than a hundredth of itself, as where its terms cancel.

    |L32 - L64| of some samples  against  L of all      the same loss in the model's own precision and in float64

Cross entropy and its like are computed in forms that do not cancel; a loss written by hand, such as
`log(sum(exp(f))) - f[y]`, is not, and loses its digits where the network fits. Looked at are the first point of a
measure and each whose loss is a tenth of the smallest looked at, until one has been remarked on. Price: a pass over
at most `MAX_SAMPLES` samples in either precision at such a point, and a float64 copy of the model while it lasts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from lossmap.curvature.rounding import SAFETY, problem_in
from lossmap.data.batches import Batch, FixedBatches, map_tensors
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Point
from lossmap.seeding import same_random_state
from lossmap.stable.forms import stable_forms
from lossmap.sums import for_float64

log = logging.getLogger("lossmap")

MAX_SAMPLES = 64  # of the data, in which rounding is looked for
TOLD = 0.01  # of a loss: rounding, with its safety, that is remarked on
SMALLER = 0.1  # of the smallest loss looked at: from there on another is

# a batch -> the context of a forward pass in a lower precision
Lowered = Callable[[Batch], AbstractContextManager[Any]]


class RoundingRemarks:
    """What is said of rounded losses by one measure: a sentence at the first of them that was looked at."""

    def __init__(self) -> None:
        self.is_done = False
        self.smallest: dict[str, float] = {}  # loss that was looked at, by split

    def remark(
        self,
        problems: Mapping[str, Problem],
        losses: Mapping[str, float],
        plane: Plane,
        point: Point,
        lowered: Lowered,
    ) -> str | None:
        """The sentence, where one of these losses at the point is rounded so; None else, and later."""
        for split, problem in problems.items():
            loss = abs(losses[split])
            if self.is_done or not isfinite(loss) or not loss < SMALLER * self.smallest.get(split, inf):
                continue
            self.smallest[split] = loss
            if loss == 0.0:
                continue
            try:
                low, high, samples = _in_two_precisions(problem, plane.at(point), lowered)
            except Exception as failure:  # user code may raise any exception, in another precision and elsewhere
                text = (str(failure).splitlines() or [type(failure).__name__])[0]
                log.info("the rounding of losses is not measured in another precision (%s)", text)
                self.is_done = True
                continue
            share = SAFETY * abs(low - high) / loss
            if not share > TOLD:
                continue
            self.is_done = True
            coordinates = ", ".join(f"{c:g}" for c in point)
            return (
                f"at ({coordinates}) the loss of {samples:g} samples is {low:.6g} in this survey's precision and "
                f"{high:.6g} in float64: rounding may be {share:.0%} of the loss there, and at other points where it "
                "is small, which are not looked at; take --precision float64, or a criterion of PyTorch's, such as "
                "nn.CrossEntropyLoss() of logits, which is computed without such rounding"
            )
        return None


def _in_two_precisions(problem: Problem, state: Mapping[str, Tensor], lowered: Lowered) -> tuple[float, float, float]:
    """(the mean loss of the first samples as the survey computes it, in float64, how many these are)."""
    data = problem.data
    few = data if isinstance(data, FixedBatches) else data.rebatched(min(MAX_SAMPLES, data.samples))
    batch = problem.first_that_counts(few)
    count, grads = problem.count(batch), not problem.separable  # a loss of the model may differentiate by its inputs
    with temporary_parameters(problem.model, state), _as_read(grads), lowered(batch):
        outputs = problem.forward(problem.model, batch)
        low = float(problem.loss(outputs, batch).detach())
    try:
        twin = problem_in(problem.with_data(FixedBatches((batch,))), torch.float64, state)
        with temporary_parameters(twin.model, {}), _as_read(grads):
            high = float(twin.total(next(iter(twin.data))).detach())
    except Exception:
        if not problem.separable:
            raise
        # a model that runs in its own precision alone: what the loss adds to its outputs
        double, precise = map_tensors(for_float64, batch), map_tensors(for_float64, outputs)
        with _as_read(grads):
            high = float(problem.loss(precise, double))
    return low / count, high / count, count


@contextmanager
def _as_read(grads: bool) -> Iterator[None]:
    """Inside, losses are computed as a survey reads them, from the same random numbers at every call."""
    with torch.set_grad_enabled(grads), stable_forms("losses"), same_random_state(20):
        yield


__all__ = ["RoundingRemarks"]
