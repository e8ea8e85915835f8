"""The named matrix of a problem (Hessian, Gauss-Newton, Fisher) as an operator, its products by the chosen backend."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any

import torch

from lossmap.curvature.autotune import prepare_here
from lossmap.curvature.drawn_targets import with_drawn_targets
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck, backend_of
from lossmap.curvature.linearized_operator import LinearizedOperator
from lossmap.curvature.moved_loss import refuse_unmoved
from lossmap.curvature.operators import (
    CurvatureOperator,
    Product,
    Total,
    fisher,
    gauss_newton,
    hessian,
    made_by_all,
    refuse_unfit,
    single_rank,
)
from lossmap.curvature.product_check import check_product
from lossmap.curvature.rounding import RoundingProbe, problem_in
from lossmap.curvature.team_check import check_by_all
from lossmap.data.criteria import ScaledCriterion, SupervisedLoss
from lossmap.data.loss_check import NO_MEAN, check_loss
from lossmap.data.problem import Problem
from lossmap.data.weight_check import refuse_moving_frozen
from lossmap.interrupt import Interrupted
from lossmap.linalg.preconditioned import PreconditionedOperator

logger = logging.getLogger("lossmap")
MAX_NAMED = 4  # tensors that a note names
PRODUCTS_AT_A_POINT = 50  # about as many as a search of both ends takes
MATRICES = {
    "hessian": hessian,
    "gauss-newton": gauss_newton,
    "fisher": fisher,
    "mc-fisher": fisher,
    "preconditioned": hessian,
}


def _over(product: Product, parameters: str, total: Total, problem: Problem) -> CurvatureOperator:
    """The operator of a problem by double backward."""
    return CurvatureOperator(problem, product, parameters, total)


def product_of(problem: Problem, matrix: str, total: Total = single_rank) -> tuple[Problem, Product]:
    """The problem over which a named matrix is a mean, and one batch's product with it.

    The empirical Fisher matrix is a mean over the samples that count. Of the Monte-Carlo Fisher matrix the problem is
    that with drawn targets, which takes a pass over the data.

    Raises ValueError for an unknown name, for the empirical Fisher matrix of a loss that is no mean over samples, and
    where the loss implies no distribution to draw from.
    """
    if matrix not in MATRICES:
        raise ValueError(f"the matrix must be one of {', '.join(MATRICES)}; got {matrix!r}")
    if matrix == "mc-fisher":
        device = next(problem.model.parameters()).device
        problem = made_by_all(total, device, lambda: with_drawn_targets(problem), "drawing of targets")
    if matrix == "fisher":
        if any(note.startswith(NO_MEAN) for note in problem.notes):
            raise ValueError(
                f"the empirical Fisher matrix is a mean over samples of each one's own gradient, and {NO_MEAN}; where "
                "targets are ignored or classes weighted, give nn.CrossEntropyLoss(...), whose weights are known"
            )
        problem = _over_counted(problem)
    if matrix == "preconditioned":
        if problem.preconditioner is None:
            raise ValueError(
                "the preconditioned Hessian needs the diagonal of a preconditioner: preconditioner= in Python, an "
                "optimizer's state in the checkpoint or --optimizer-state in a command"
            )
        problem = _in_float64(problem, total)
    return problem, MATRICES[matrix]


def _over_counted(problem: Problem) -> Problem:
    """The problem whose mean square of the samples' gradients is one over those that count.

    Each of K samples of N whose target is not ignored has a gradient of (N / K) times its share of the mean over K: by
    the root of K / N its square times K is what N of them have.
    """
    loss = problem.loss
    total = loss.total if isinstance(loss, SupervisedLoss) else None
    if not isinstance(loss, SupervisedLoss) or not isinstance(total, ScaledCriterion) or total.counted == 1.0:
        return problem
    scaled = replace(total, scale=(total.scale or 1.0) * sqrt(total.counted), counted=1.0)
    return replace(problem, loss=replace(loss, total=scaled))


def _in_float64(problem: Problem, total: Total) -> Problem:
    """The problem in float64, where model and loss bear that on every rank: entries of P differ by many orders."""
    first = next(p for p in problem.model.parameters() if p.is_floating_point())
    if first.dtype == torch.float64:
        return problem
    try:
        twin = made_by_all(total, first.device, lambda: problem_in(problem, torch.float64))
    except Interrupted:
        raise
    except Exception as failure:  # user code may raise any exception in another precision
        logger.warning("the preconditioned Hessian is made in the model's own precision: %s", failure)
        return problem
    return replace(twin, checked=True)


def notes_of(problem: Problem, matrix: str) -> tuple[str, ...]:
    """What a reader of a named matrix of this problem should know, a sentence each."""
    if matrix == "preconditioned" and problem.preconditioner is not None:
        origin = problem.preconditioner.name or "a given diagonal"
        notes = [f"P of {origin}; products in float64 where the model runs in it"]
        if unmoved := problem.preconditioner.unmoved:
            names = ", ".join(unmoved[:MAX_NAMED]) + (
                f" and {len(unmoved) - MAX_NAMED} more" * (len(unmoved) > MAX_NAMED)
            )
            notes.append(f"0 in the matrix, as the optimizer has not moved them by more than rounding: {names}")
        return tuple(notes)
    return draw_notes(problem, matrix)


def draw_notes(problem: Problem, matrix: str) -> tuple[str, ...]:
    """How targets were drawn, as a sentence, where the named matrix is of drawn targets."""
    if matrix != "mc-fisher":
        return ()
    number = "one" if problem.draws.count == 1 else f"{problem.draws.count}"
    return (
        f"targets drawn from the model's own predictions, {number} for each sample, from seed {problem.draws.seed}",
    )


def build_operator(
    problem: Problem,
    matrix: str,
    parameters: str,
    total: Total = single_rank,
    *,
    backend: str = "double-backward",
    plan: HvpPlan | Mapping[str, Any] | None = None,
    memory: int | None = None,
    check: bool | ProductCheck = True,
) -> CurvatureOperator | LinearizedOperator:
    """The named matrix of a problem, (n, n), at the model's present parameters.

    matrix      `hessian`, `gauss-newton`, `fisher`, or `mc-fisher`, whose targets are drawn as `problem.draws` says;
                for `preconditioned` see `build_matrix`
    parameters  `weights` (dimension > 1), `all`, `trainable`, or a regular expression
    total       adds a tensor up over the ranks of a team
    backend     of its products, see `autotune.prepare`; not asked for where a plan is given
    plan        what an earlier probe chose, as a value or as a file holds it
    memory      bytes for kept values, see `autotune.prepare`; give less where ranks share the memory
    check       compares products with differences of the gradient, once for a problem (see `product_check`); or what
                rank 0 found. The ranks of a team come to one decision (see `team_check`)

    The model may be in training mode: it is read in evaluation mode. Raises ValueError for what cannot be
    differentiated twice in good faith, weights in less than float32 or an operation without a right second derivative;
    and for an unknown matrix, backend or parameter.
    """
    if matrix == "preconditioned":
        raise ValueError("the preconditioned Hessian is no operator of this kind: see build_matrix")
    own, product = _checked_product(problem, matrix, total)
    return _operator(own, product, parameters, total, backend, plan, memory, check)


def build_matrix(
    problem: Problem,
    matrix: str,
    parameters: str,
    total: Total = single_rank,
    *,
    backend: str = "double-backward",
    plan: HvpPlan | Mapping[str, Any] | None = None,
    memory: int | None = None,
    check: bool | ProductCheck = True,
) -> CurvatureOperator | LinearizedOperator | PreconditionedOperator:
    """As `build_operator`; or, where the matrix is `preconditioned`, P^-1/2 (H + W) P^-1/2 of `problem.preconditioner`.

    Raises ValueError too where there is no preconditioner, or none of these parameters.
    """
    own, product = _checked_product(problem, matrix, total)
    inner = _operator(own, product, parameters, total, backend, plan, memory, check)
    if matrix != "preconditioned" or own.preconditioner is None:
        return inner
    return PreconditionedOperator(inner, *own.preconditioner.vectors(inner.layout.names, inner.device))


def _checked_product(problem: Problem, matrix: str, total: Total) -> tuple[Problem, Product]:
    """As `product_of`, after a look at the loss."""
    if matrix not in MATRICES:
        raise ValueError(f"the matrix must be one of {', '.join(MATRICES)}; got {matrix!r}")
    return product_of(check_loss(problem, total=total), matrix, total)


def _operator(
    problem: Problem,
    product: Product,
    parameters: str,
    total: Total,
    backend: str,
    plan: HvpPlan | Mapping[str, Any] | None,
    memory: int | None,
    check: bool | ProductCheck,
) -> CurvatureOperator | LinearizedOperator:
    """The operator of a product; arguments as of `build_operator`."""
    measure = RoundingProbe(problem, parameters, product, total, partial(_over, product, parameters, total))
    plain = CurvatureOperator(problem, product, parameters, total, measure)
    refuse_unfit(plain.named.values())
    refuse_moving_frozen(problem, plain.named)
    device = next(iter(plain.named.values())).device
    unplanned = plan is None and backend_of(backend) == "double-backward"

    def look() -> ProductCheck:
        if check:
            refuse_unmoved(problem)
        if check is True and unplanned:  # one point alone, so that a distant one need not be looked at
            return check_product(problem, parameters, product, distant=False)
        return check if isinstance(check, ProductCheck) else ProductCheck()

    own = check_by_all(total, device, look)
    if unplanned:
        if not check or "double-backward" not in own.rejected:
            return replace(plain, kinks=own.disagreement)
        check, plan = own, HvpPlan("linearized", problem.data.batch_size)  # no probe: it is not for speed
    return prepare_here(
        problem, parameters, product, total=total, backend=backend, plan=plan, memory=memory, check=check,
        products=PRODUCTS_AT_A_POINT,
    )  # fmt: skip
