"""How sharp several checkpoints are, task by task: a measure whose point is the number of a task.

A survey over Grid(x=arange(tasks)) dispatches the tasks over ranks, records and resumes them. A reading is named
numbers in one group, `tasks/SUBJECT/KIND/BALL`, written as it arrives; `SharpnessTasks.results` makes values of them
again.

    gradient   loss, gradient_norm, and how far rounding may move them: loss_error, gradient_norm_error
    largest    value, error, limit of the Hessian's largest eigenvalue; products
    trace      value, error, terms, products, size, error_target, method
    critical   value, low, high, passes, rounding, reason
    batch      value, error, batches, size
    preconditioned  value, error, limit of the largest eigenvalue of P^-1/2 (H + W) P^-1/2; products; threshold and
               optimizer, of P
    average    of one ball: value, error, rounding; rises (draws,); movable, the number of entries that it moves
    worst      of one ball: value, sam, gradients, rounding, sam_error, movable
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from math import nan
from typing import Any, ClassVar

import numpy as np

from lossmap import accelerators
from lossmap.curvature.build import build_matrix, build_operator
from lossmap.curvature.gradient import refuse_without_loss
from lossmap.curvature.gradient_check import check_gradient
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.linearized_operator import LinearizedOperator
from lossmap.curvature.operators import CurvatureOperator, Total, made_by_all, single_rank
from lossmap.data.batches import largest_to_cut
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field, Point
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.ball import Ball
from lossmap.landscape.batch_sharpness import batch_sharpness
from lossmap.landscape.critical_sharpness import critical_sharpness
from lossmap.landscape.rises import average_rise, worst_rise
from lossmap.landscape.sharpness_from_tasks import AboutCheckpoint, group_of_task, kinds_of, sharpness_of
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_result import Sharpness
from lossmap.landscape.shifted_loss import ShiftedLoss
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.eigenpairs import with_rounding_measured
from lossmap.linalg.trace import trace
from lossmap.report.stored import refuse_alike
from lossmap.sums import norm

Arrays = Mapping[str, Any]
Readings = Mapping[str, Arrays]  # group of a task -> its numbers; tasks that failed are missing


@dataclass(frozen=True, eq=False)
class SharpnessSubject:
    """One checkpoint on one split: its label, the problem (a rank's share of it in a team), and how it was rescaled."""

    label: str
    problem: Problem
    full: Problem | None = None  # the problem over all samples, where `problem` is a share
    rescaled: float = 1.0
    rescaled_layers: str = ""  # their names

    @property
    def samples_of(self) -> Problem:
        """The problem over all samples."""
        return self.problem if self.full is None else self.full


@dataclass(frozen=True)
class SharpnessTask:
    """One piece of work: of which subject (its number), of which kind, and in which ball."""

    subject: int
    kind: str
    ball: tuple[str, float] | None = None


@dataclass(frozen=True, eq=False)
class SharpnessTasks:
    """The measure. Made by `make_sharpness_tasks`.

    settings  what the readings depend on, for the file
    total     adds a tensor up over the ranks of a team
    made      operators that this rank has prepared
    limits    the largest batches that memory allows, the newest last; none until it runs out
    """

    points_cost_alike: ClassVar[bool] = False  # a trace may take a hundred times a gradient

    subjects: tuple[SharpnessSubject, ...]
    request: SharpnessRequest
    tasks: tuple[SharpnessTask, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    total: Total = single_rank
    made: dict[int, Any] = field(default_factory=dict, repr=False)
    limits: list[int] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """The prefix of its status in the file."""
        return "sharpness"

    @property
    def fields(self) -> tuple[Field, ...]:
        """None: a reading is a group of numbers."""
        return ()

    @property
    def expected_bytes(self) -> int:
        """What the numbers of all tasks will take, about."""
        return len(self.tasks) * (4_000 + 8 * self.request.draws)

    @cached_property
    def about(self) -> tuple[AboutCheckpoint, ...]:
        """What is known of each subject before any task is done."""
        return tuple(self._about(subject) for subject in self.subjects)

    def _about(self, subject: SharpnessSubject) -> AboutCheckpoint:
        named = selected(subject.problem.model, self.request.parameters)
        return AboutCheckpoint(
            label=subject.label,
            size=sum(p.numel() for p in named.values()),
            precision=str(next(iter(named.values())).dtype).removeprefix("torch."),
            samples=subject.samples_of.sample_count,
            unit=subject.problem.unit,
            rescaled=subject.rescaled,
            rescaled_layers=subject.rescaled_layers,
            notes=tuple(subject.problem.notes),
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The group of each task in the file."""
        return tuple(group_of_task(self.subjects[t.subject].label, t.kind, t.ball) for t in self.tasks)

    def __call__(self, point: Point) -> dict[str, dict[str, np.ndarray]]:
        """Does the task of this number: {its group: {name: array}}."""
        number = int(point[0])
        task = self.tasks[number]
        work: Callable[[SharpnessTask, Problem], Arrays] = getattr(self, "_" + task.kind)
        arrays = work(task, self._problem(task))
        return {self.groups[number]: {name: np.asarray(value) for name, value in arrays.items()}}

    def smaller(self) -> str | None:
        """Halve the batches, after memory ran out; what was done, or None where they are of one sample, or uncut."""
        data = [subject.problem.data for subject in self.subjects]
        largest = min(max(d.batch_size for d in data), largest_to_cut(data))
        now = self.limits[-1] if self.limits else largest
        self.made.clear()
        accelerators.release_cache()  # held for batches of the former size
        if now <= 1:
            return None
        self.limits.append(now // 2)
        return f"batches of {now // 2} samples at most from here on"

    def results(self, readings: Readings) -> dict[str, Sharpness]:
        """The values by label, from the numbers of the tasks; what failed or is not done is missing in them."""
        return {subject.label: self._result(i, readings) for i, subject in enumerate(self.subjects)}

    def refuse_without_loss(self) -> None:
        """Raises FloatingPointError where a subject's loss is no number, all ranks of a team together."""
        for subject in self.subjects:
            refuse_without_loss(subject.problem, self.total)

    def operator(self, subject: int) -> CurvatureOperator | LinearizedOperator:
        """The Hessian of a subject, made once on this rank."""
        if subject not in self.made:
            problem = self._problem(SharpnessTask(subject, ""))
            self.made[subject] = build_operator(problem, "hessian", self.request.parameters, self.total)
        made: CurvatureOperator | LinearizedOperator = self.made[subject]
        return made

    def shifted(self, problem: Problem) -> ShiftedLoss:
        """The loss around the problem's parameters."""
        return ShiftedLoss(problem, self.request.parameters, self.total)

    def _problem(self, task: SharpnessTask) -> Problem:
        """The problem of a task's subject, with batches that memory allows."""
        problem = self.subjects[task.subject].problem
        if not self.limits or problem.data.batch_size <= self.limits[-1]:
            return problem
        return problem.rebatched(self.limits[-1])

    def _ball(self, task: SharpnessTask, shifted: ShiftedLoss) -> Ball:
        kind, radius = task.ball or ("", nan)
        return Ball.around(shifted.origin, kind, radius)

    def _gradient(self, task: SharpnessTask, problem: Problem) -> Arrays:
        found = measured_gradient(problem, self.request.parameters, self.total)
        errors = {"loss_error": found.loss_error, "gradient_norm_error": found.norm_error}
        return {"loss": found.loss, "gradient_norm": norm(found.gradient), **errors}

    def _largest(self, task: SharpnessTask, problem: Problem) -> Arrays:
        operator, request = self.operator(task.subject), self.request
        pairs = with_rounding_measured(
            operator, successive_eigenpairs(operator, "top:1", tol=request.tol, seed=f"{request.seed}")
        )
        return {
            "value": pairs.values[0],
            "error": pairs.residuals[0],
            "limit": pairs.limits[0],
            "products": pairs.products,
        }

    def _preconditioned(self, task: SharpnessTask, problem: Problem) -> Arrays:
        request, own = self.request, problem.preconditioner
        matrix = build_matrix(problem, "preconditioned", request.parameters, self.total)
        pairs = successive_eigenpairs(matrix, "top:1", tol=request.tol, seed=f"{request.seed}")
        pairs = with_rounding_measured(matrix, pairs)
        return {
            "value": pairs.values[0],
            "error": pairs.residuals[0],
            "limit": pairs.limits[0],
            "products": pairs.products,
            "threshold": nan if own is None else own.threshold,
            "optimizer": "" if own is None else own.name,
        }

    def _trace(self, task: SharpnessTask, problem: Problem) -> Arrays:
        request = self.request
        estimate = trace(self.operator(task.subject), products=request.trace_products, seed=request.seed, sums=False)
        arrays = {name: value for name, value in asdict(estimate).items() if name not in ("sums", "diagonal")}
        return {"error_target": arrays.pop("target"), **arrays}

    def _batch(self, task: SharpnessTask, problem: Problem) -> Arrays:
        # over all samples, by every rank of a team alone: a batch of a share would be another one
        request, full = self.request, self.subjects[task.subject].samples_of
        return asdict(
            batch_sharpness(full, request.batch, request.batches, parameters=request.parameters, seed=request.seed)
        )

    def _critical(self, task: SharpnessTask, problem: Problem) -> Arrays:
        return asdict(critical_sharpness(self.shifted(problem)))

    def _average(self, task: SharpnessTask, problem: Problem) -> Arrays:
        shifted, request = self.shifted(problem), self.request
        ball = self._ball(task, shifted)
        return {**asdict(average_rise(shifted, ball, request.draws, request.seed)), "movable": ball.movable}

    def _worst(self, task: SharpnessTask, problem: Problem) -> Arrays:
        shifted, request = self.shifted(problem), self.request
        ball = self._ball(task, shifted)
        return {
            **asdict(worst_rise(shifted, ball, request.steps, request.starts, request.seed)),
            "movable": ball.movable,
        }

    def _result(self, i: int, readings: Readings) -> Sharpness:
        done = {
            (task.kind, task.ball): readings[group]
            for task, group in zip(self.tasks, self.groups, strict=True)
            if task.subject == i and group in readings
        }
        return sharpness_of(self.about[i], self.request, done)


def tasks_of(subject: int, request: SharpnessRequest) -> list[SharpnessTask]:
    """The tasks of a subject, the ones that take longest first."""
    return [SharpnessTask(subject, kind, ball) for kind, ball in kinds_of(request)]


def make_sharpness_tasks(
    subjects: Sequence[SharpnessSubject],
    request: SharpnessRequest,
    *,
    settings: Mapping[str, Any] | None = None,
    total: Total = single_rank,
) -> SharpnessTasks:
    """The tasks of these subjects; the arguments are those of `SharpnessTasks`.

    Raises ValueError for a request out of range, labels that are not unique, parameters that match nothing, and a loss
    that is no repeatable mean, or whose gradient is another function's, before anything long begins.
    """
    request.check()
    refuse_alike([subject.label for subject in subjects], "two subjects")
    checked = []
    for subject in subjects:
        named = selected(subject.problem.model, request.parameters)
        problem = check_loss(subject.problem, total=total)
        if request.preconditioned:
            if problem.preconditioner is None:
                raise ValueError(f"the preconditioned eigenvalue needs a preconditioner; {subject.label!r} has none")
            problem.preconditioner.vectors(tuple(named), next(iter(named.values())).device)
        check = partial(check_gradient, problem, request.parameters)
        made_by_all(total, next(iter(named.values())).device, check, "check of the gradient")
        checked.append(replace(subject, problem=problem))
    tasks = tuple(task for i in range(len(checked)) for task in tasks_of(i, request))
    return SharpnessTasks(tuple(checked), request, tasks, settings or {}, total)
