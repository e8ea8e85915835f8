"""What the tasks of sharpness are expected to cost, before any is done: from a timed pass, gradient and product.

The number of products of a task is an expectation (`linalg.expected_products`), those of gradients and passes are known
but for ascents that end early; seconds are measured on this rank, over one batch of each subject.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from lossmap.curvature.operators import single_rank
from lossmap.curvature.product_time import first_batch, seconds_of_product
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.critical_sharpness import PASSES
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_tasks import SharpnessTask, SharpnessTasks
from lossmap.linalg.expected_products import ends_products, trace_products
from lossmap.memory import memory_now
from lossmap.report.price import Price

SEARCH_VECTORS = 40  # of the length of theta that a search for an eigenvalue holds, about


@dataclass(frozen=True)
class TaskCost:
    """What a task is expected to take: passes over the data of whatever kind, and seconds of one rank."""

    products: int
    seconds: float


def expected_costs(
    tasks: SharpnessTasks,
    clock: Callable[[], float] = time.perf_counter,
    numbers: Sequence[int] | np.ndarray | None = None,
    seconds: Mapping[int, Mapping[str, float]] | None = None,
) -> list[TaskCost]:
    """The cost expected of each of the tasks of these numbers, or of all, from a timed pass, gradient and product.

    seconds  of these, as `seconds_of_subjects` has timed them

    Raises what these raise. Counts are expectations (`linalg.expected_products`); times are measured over one batch of
    each subject.
    """
    costs: list[TaskCost] = []
    chosen = tasks.tasks if numbers is None else [tasks.tasks[int(i)] for i in numbers]
    if seconds is None:
        seconds = seconds_of_subjects(tasks, clock, {task.subject for task in chosen})
    for task in chosen:
        counts, each = _counts_of(task, _size_of(tasks, task.subject), tasks.request), seconds[task.subject]
        costs.append(TaskCost(sum(counts.values()), sum(each[kind] * count for kind, count in counts.items())))
    return costs


def seconds_of_subjects(
    tasks: SharpnessTasks, clock: Callable[[], float] = time.perf_counter, subjects: Iterable[int] | None = None
) -> dict[int, dict[str, float]]:
    """Seconds of a product, a gradient and a forward pass (by kind) of these subjects, or of all."""
    alone = replace(tasks, total=single_rank, made={})  # none of the team's other ranks takes part here
    numbers = range(len(tasks.subjects)) if subjects is None else subjects
    return {i: _seconds_by_kind(alone, i, clock) for i in numbers}


def price_of_sharpness(
    tasks: SharpnessTasks, workers: int = 1, numbers: Sequence[int] | np.ndarray | None = None
) -> Price:
    """The price of the tasks of these numbers, or of all. Raises what a product raises.

    workers  ranks, or teams of ranks, that share the tasks
    """
    chosen = expected_costs(tasks, numbers=numbers)
    model = tasks.subjects[0].problem.model
    vectors = max(_size_of(tasks, i) for i in range(len(tasks.subjects))) * 4 * SEARCH_VECTORS
    return Price(
        sum(cost.products for cost in chosen),
        sum(cost.seconds for cost in chosen),
        memory_now(model) + vectors + tasks.expected_bytes,
        unit="pass",
        workers=workers,
        longest=max((cost.seconds for cost in chosen), default=0.0),
    )


def _size_of(tasks: SharpnessTasks, subject: int) -> int:
    """The number of parameters that are displaced."""
    named = selected(tasks.subjects[subject].problem.model, tasks.request.parameters)
    return sum(p.numel() for p in named.values())


def _counts_of(task: SharpnessTask, n: int, request: SharpnessRequest) -> dict[str, int]:
    """Products, gradients and forward passes of a task of n parameters."""
    if task.kind in ("largest", "preconditioned"):
        return {"product": ends_products(1, 0, n, request.tol, None)}
    if task.kind == "trace":
        return {"product": trace_products(request.trace_products, n, None)}
    if task.kind == "worst":
        return {"gradient": request.starts * (request.steps + 1)}
    if task.kind == "average":
        return {"pass": 2 * request.draws + 3}
    if task.kind == "critical":
        return {"gradient": 1, "pass": PASSES}
    if task.kind == "batch":  # each over its own samples, counted as all
        return {"gradient": request.batches, "product": request.batches}
    return {"gradient": 1}


def _seconds_by_kind(tasks: SharpnessTasks, subject: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a product, a gradient and a forward pass over all samples of this rank."""
    problem = tasks.subjects[subject].problem
    shifted = tasks.shifted(first_batch(problem))
    share = problem.data.samples / max(1, shifted.problem.data.samples)

    def seconds(work: Callable[[Any], Any]) -> float:
        best = inf
        for _ in range(2):
            start = clock()
            work(shifted.zero)
            best = min(best, clock() - start)
        return best * share

    with shifted.borrowed():
        gradient, forward = seconds(shifted.gradient_at), seconds(shifted.at)
    product = seconds_of_product(tasks.operator(subject), clock)
    return {"product": product, "gradient": gradient, "pass": forward}
