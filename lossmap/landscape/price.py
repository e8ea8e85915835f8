"""What a map is expected to cost, before its first point: from passes or products over one batch at the origin.

How many products a point takes from its neighbor's eigenvectors, and from a cold start with limits, are those of the
benchmarks (docs/cost.md); `lossmap estimate` measures points of the grid itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lossmap.curvature.hvp_plan import HvpPlan
from lossmap.curvature.linearized_operator import OperatorFactory
from lossmap.curvature.operators import hessian, single_rank
from lossmap.curvature.product_time import seconds_of_first, seconds_of_product
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane
from lossmap.landscape.audit import AUDITED_SHARE, MIN_AUDITED
from lossmap.landscape.loss import ForwardPlan, plain_forward, seconds_of_pass
from lossmap.landscape.run_on_plane import PASSES
from lossmap.linalg.solver_time import seconds_of_step
from lossmap.memory import memory_now
from lossmap.report.price import Price

WARM_PRODUCTS, COLD_PRODUCTS = 14, 24  # of a point's two ends at --tol 1e-3
VECTOR_PRODUCTS = {"max": 15, "min": 130}  # of the outermost eigenvector of an end, about
FURTHER_PRODUCTS = 8  # of each eigenvalue beyond the ends
TRACE_PRODUCTS = 60
PLAIN_BATCH = 64  # samples of a batch where no probe chooses
POINT_SECONDS = 0.005  # of a point beside its search: its record, the loss, the rounding
SEARCH_VECTORS = 40  # of the length of theta, that a search holds, about


def price_of_losses(
    problems: Mapping[str, Problem],
    plane: Plane,
    plan: ForwardPlan,
    points: int,
    *,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    repeats: int | None = None,
) -> Price:
    """The price of the losses at so many points.

    problems  this rank's share of each split
    workers   ranks, or teams of ranks, that share the points
    repeats   realisations of a loss that draws at random
    """
    each = sum(seconds_of_pass(p, plane, plan, autocast) for p in problems.values()) * (repeats or 1)
    model = next(iter(problems.values())).model
    return Price(points, points * each, memory_now(model), "point", workers, each)


def price_of_path(problem: Problem, plane: Plane, checkpoints: int) -> Price:
    """The price of the losses at so many checkpoints of a run, and of a gradient at each."""
    return price_of_losses({"train": problem}, plane, plain_forward(problem), checkpoints, repeats=PASSES)


def price_of_directions(problem: Problem, kinds: Sequence[str], parameters: str | None = None) -> Price:
    """The price of directions of curvature, before they are made: of eigenvectors; a gradient counts as a product.

    kinds       such as `gradient` or `hessian:max`; others cost nothing here
    parameters  as of `curved_direction`
    """
    products = sum(_products_of(kind) for kind in kinds)
    if not products:
        return Price(0, 0.0, memory_now(problem.model))
    operator = plain_factory(problem, parameters or "weights").at()
    vectors = SEARCH_VECTORS * operator.size * operator.dtype.itemsize
    beside = products * seconds_of_step(operator.size, operator.dtype, COLD_PRODUCTS, operator.device)
    seconds = products * seconds_of_product(operator) + beside
    return Price(products, seconds, memory_now(problem.model) + vectors, beside=beside)


def _products_of(kind: str) -> int:
    """Products that a direction takes, about; a gradient counts as one."""
    what, _, rest = kind.partition(":")
    side, _, number = rest.partition(":")
    if what not in ("hessian", "preconditioned") or side not in VECTOR_PRODUCTS or not (number or "1").isdigit():
        return int(what in ("gradient", "sam", "preconditioned"))
    return VECTOR_PRODUCTS[side] + FURTHER_PRODUCTS * max(0, int(number or 1) - 1)


def products_at_a_point(which: str, is_warm: bool) -> int:
    """Products that the eigenvalues `which` (ends, top:3, trace, ...) take at a point."""
    total = 0
    for part in which.split(","):
        kind, _, count = part.strip().partition(":")
        if kind == "trace":
            total += TRACE_PRODUCTS
            continue
        total += WARM_PRODUCTS if is_warm else COLD_PRODUCTS
        total += FURTHER_PRODUCTS * (int(count or 1) - 1)
    return total


def price_of_eigenvalues(
    factories: Mapping[str, OperatorFactory], which: str, certify: str, points: int, *, workers: int = 1
) -> Price:
    """The price of the eigenvalues at so many points, and of their audit.

    factories  of each split's operators, over this rank's share of the data
    which      as of `EigenvalueMap`
    certify    audit, each or none
    """
    warm, cold = (products_at_a_point(which, is_warm) for is_warm in (certify != "each", False))
    audited = 0
    if certify == "audit" and points:
        audited = min(points, max(MIN_AUDITED, math.ceil(AUDITED_SHARE * points)))
    operators = [alone_in_team(factory).at() for factory in factories.values()]
    seconds = longest = products = 0.0
    for operator in operators:
        each = seconds_of_product(operator)
        first = seconds_of_first(operator, each)
        for count, spent in ((points, warm), (audited, cold)):
            step = seconds_of_step(operator.size, operator.dtype, spent, operator.device)
            longest_here = first + POINT_SECONDS + spent * (each + step)
            seconds += count * longest_here
            products += count * spent * each
        longest += longest_here
    found = max(int(part.partition(":")[2] or 1) for part in which.split(","))
    vectors = max(SEARCH_VECTORS, found) * operators[0].size * operators[0].dtype.itemsize
    return Price(
        (points * warm + audited * cold) * len(operators),
        seconds,
        memory_now(operators[0].problem.model) + vectors,
        workers=workers,
        longest=longest,
        beside=seconds - products,
    )


def alone_in_team(factory: OperatorFactory) -> OperatorFactory:
    """The factory without its team, none of whose other ranks takes part in a timing."""
    return replace(factory, total=single_rank)


def plain_factory(problem: Problem, parameters: str) -> OperatorFactory:
    """Operators by double backward, as no probe has chosen them yet: for the price of a dry run."""
    plan = HvpPlan("double-backward", min(problem.data.samples, PLAIN_BATCH))
    return OperatorFactory(problem, parameters, hessian, single_rank, plan, 0)


def points_that_fit(price: Price, points: int, seconds: float) -> int:
    """How many of so many points the seconds hold."""
    return math.floor(points * min(1.0, seconds / max(price.wall, 1e-9)))
