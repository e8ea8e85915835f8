"""Whether a loss is still the same function at the end of a run as at its beginning.

A counter that no look can reach (in an object with `__slots__`, in C, the wall clock) may change a loss after thousands
of calls, in the midst of a survey. So the loss of a few samples is evaluated before the first point and once more after
the last one, at the same weights and from the same random numbers, by each process that computes.

Price: two passes over 16 samples at most, or over the smallest batch where batches are not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.copies import lazy_copy
from lossmap.data.batches import Batch, FixedBatches
from lossmap.data.loss_check import few_samples, rounding_of
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.device_errors import loses_gpu, out_of_memory
from lossmap.module_walks import named_tensors
from lossmap.seeding import same_random_state


@dataclass(frozen=True)
class _Look:
    """A problem, a few of its samples, its weights at the beginning, and the mean loss there."""

    problem: Problem
    batch: Batch
    weights: Mapping[str, Tensor]
    start: float


class LossAtStart:
    """The losses of a few samples at their models' weights as they are now, to be compared later.

    problems  whose losses are looked at; one that cannot be evaluated is left out
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._looks: list[_Look] = []
        self.values: dict[str, float] = {}  # the mean losses over the few samples, as a fingerprint names them
        self.eps = 0.0  # the coarsest rounding unit of the models' weights
        for number, problem in enumerate({id(p): p for p in problems}.values(), 1):
            try:
                batch = _few(problem)
                # copies, which cost nothing until the weights are written to: a run may load others
                weights = {name: lazy_copy(t) for name, t in named_tensors(problem.model).items()}
                self._looks.append(_Look(problem, batch, weights, _loss(problem, batch, weights)))
                self.values[f"loss {number} of a few samples"] = self._looks[-1].start
                units = [torch.finfo(t.dtype).eps for t in weights.values() if t.is_floating_point()]
                self.eps = max([self.eps, *units])
            except Exception:  # user code may raise any exception; the points say so
                continue

    def change(self) -> str | None:
        """A sentence on the first loss that is another one by now, None where all are the same but for rounding."""
        for look in self._looks:
            try:
                end = _loss(look.problem, look.batch, look.weights)
            except Exception as error:  # user code may raise any exception
                if loses_gpu(error) or out_of_memory(error):  # neither says anything of the loss
                    continue
                return f"{_was(look)}, and fails at its end with {type(error).__name__}: {error}; {_ADVICE}"
            if not _agree(look.start, end, rounding_of(look.problem.model)):
                return f"{_was(look)}, and {end:.8g} at its end; {_ADVICE}"
        return None

    def refuse_change(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Raise ValueError where a loss changed, on all ranks of a team where it did on one of them.

        total  adds a tensor up over these ranks, all of which call this; without it this rank decides alone
        """
        change = self.change()
        if total is None:
            if change is not None:
                raise ValueError(change)
            return
        changed = int(total(torch.tensor([float(change is not None)], dtype=torch.float64))[0])
        if changed:
            raise ValueError(change or f"the loss changed during the run on {changed} other rank(s), which say how")


def _loss(problem: Problem, batch: Batch, weights: Mapping[str, Tensor]) -> float:
    mode = torch.no_grad() if problem.separable else torch.enable_grad()
    with same_random_state(problem.noise_seed or 0), temporary_parameters(problem.model, weights), mode:
        return float(problem.total(batch).detach()) / (problem.count(batch) or 1.0)


def _was(look: _Look) -> str:
    return (
        f"the loss changed during the run: over {samples_in(look.batch):,} samples, at the same weights, it was "
        f"{look.start:.8g} at its beginning"
    )


_ADVICE = (
    "what was measured is of several functions, and not to be used; count no calls and ask no clock in the model or "
    "the loss, and begin anew"
)


def _few(problem: Problem) -> Batch:
    data: Any = problem.data
    return min(data.batches, key=samples_in) if isinstance(data, FixedBatches) else few_samples(problem)


def _agree(a: float, b: float, tolerance: float) -> bool:
    """Whether two losses differ by rounding alone; what is not finite must be so both times."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return bool(np.isfinite(a) == np.isfinite(b))
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))
