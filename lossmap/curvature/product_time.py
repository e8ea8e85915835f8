"""How long a Hessian-vector product takes, from a few of them over one batch.

The seconds are those of all samples of this rank: the batch's, times how many batches there are. A first product, which
traces and computes what the others read, is left out where it is quick enough to be followed by another. Price: up to
five products with one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import torch

from lossmap.curvature.linearized_operator import BatchList, LinearizedOperator
from lossmap.curvature.operators import single_rank
from lossmap.data.problem import Problem
from lossmap.linalg.preconditioned import PreconditionedOperator
from lossmap.seeding import generator

MAX_TIMED_BATCH = 256  # samples of a batch of double backward, whose price is proportional to them
MAX_FIRST_SECONDS = 5.0  # of a first product that is followed by another
MAX_SECONDS = 0.5  # after which no further product is timed
MAX_TIMED = 3


def seconds_of_product(operator: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one product of this operator, over all samples of this rank.

    operator  of `build_operator` or `OperatorFactory.at`
    clock     in seconds

    No other rank of a team takes part. Raises what a product raises.
    """
    small, share = _over_one_batch(operator)
    first = _seconds_of_next(small, clock)
    if first > MAX_FIRST_SECONDS:
        return first * share
    taken = [_seconds_of_next(small, clock)]
    while len(taken) < MAX_TIMED and sum(taken) < MAX_SECONDS:
        taken.append(_seconds_of_next(small, clock))
    return min(taken) * share


def seconds_of_first(operator: Any, each: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """What the first product at a point takes more than any other, once its shapes have been met elsewhere.

    operator, clock  as above; each: the seconds of a product
    """
    if each > MAX_FIRST_SECONDS:
        return 0.0
    small, share = _over_one_batch(operator)
    return max(0.0, _seconds_of_next(small, clock) * share - each)


def seconds_of_rounding(operator_at: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds in which the rounding of products is measured at a point, in float64 over a few samples.

    operator_at  makes an operator that measures its rounding at the point; what points share is not counted where a
                 first one is quick enough to be followed by another
    """
    taken = inf
    for _ in range(2):
        start = clock()
        float(operator_at().rounding_ratio or 0.0)
        taken = min(taken, clock() - start)
        if taken > MAX_SECONDS:
            break
    return taken


def _seconds_of_next(operator: Any, clock: Callable[[], float]) -> float:
    """Seconds of the operator's next product."""
    v = torch.randn(operator.size, generator=generator("price", operator.size)).to(operator.device, operator.dtype)
    start = clock()
    float((operator @ v)[0])  # read on the host, so that a GPU has done it
    return clock() - start


def _over_one_batch(operator: Any) -> tuple[Any, float]:
    """The operator over its first batch alone, and how many such batches all samples are."""
    if isinstance(operator, PreconditionedOperator):
        inner, share = _over_one_batch(operator.inner)
        return replace(operator, inner=inner), share
    problem: Problem = operator.problem
    if isinstance(operator, LinearizedOperator) and operator.factory is not None:
        few = first_batch(operator.factory.batched)
        factory = replace(operator.factory, problem=few, total=single_rank)
        small: Any = factory.at(None if operator.probe.state is None else operator.probe.state)
    else:
        few = first_batch(problem.rebatched(min(problem.data.batch_size, MAX_TIMED_BATCH)))
        small = replace(operator, problem=few, total=single_rank, measure=None)
    return small, problem.data.samples / max(1, few.data.samples)


def first_batch(problem: Problem) -> Problem:
    """The problem over its first batch alone."""
    return problem.with_data(BatchList([next(iter(problem.data))]))
