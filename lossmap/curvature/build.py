"""The named matrix of a problem (Hessian, Gauss-Newton, Fisher) as an operator, its products by the chosen backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lossmap.curvature.autotune import prepare
from lossmap.curvature.drawn_targets import with_drawn_targets
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck, backend_of
from lossmap.curvature.linearized_operator import LinearizedOperator
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
from lossmap.curvature.rounding import RoundingProbe
from lossmap.curvature.team_check import check_by_all
from lossmap.data.loss_check import check_loss
from lossmap.data.moved_loss import refuse_unmoved
from lossmap.data.problem import Problem

PRODUCTS_AT_A_POINT = 50  # about as many as a search of both ends takes
MATRICES = {"hessian": hessian, "gauss-newton": gauss_newton, "fisher": fisher, "mc-fisher": fisher}


def _over(product: Product, parameters: str, total: Total, problem: Problem) -> CurvatureOperator:
    """The operator of a problem by double backward."""
    return CurvatureOperator(problem, product, parameters, total)


def product_of(problem: Problem, matrix: str, total: Total = single_rank) -> tuple[Problem, Product]:
    """The problem over which a named matrix is a mean, and one batch's product with it.

    Of the Monte-Carlo Fisher matrix the problem is that with drawn targets, which takes a pass over the data.

    Raises ValueError for an unknown name, and where the loss implies no distribution to draw from.
    """
    if matrix not in MATRICES:
        raise ValueError(f"the matrix must be one of {', '.join(MATRICES)}; got {matrix!r}")
    if matrix == "mc-fisher":
        device = next(problem.model.parameters()).device
        problem = made_by_all(total, device, lambda: with_drawn_targets(problem), "drawing of targets")
    return problem, MATRICES[matrix]


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

    matrix      `hessian`, `gauss-newton`, `fisher`, or `mc-fisher`, whose targets are drawn as `problem.draws` says
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
    if matrix not in MATRICES:
        raise ValueError(f"the matrix must be one of {', '.join(MATRICES)}; got {matrix!r}")
    problem, product = product_of(check_loss(problem, total=total), matrix, total)
    measure = RoundingProbe(problem, parameters, product, total, partial(_over, product, parameters, total))
    plain = CurvatureOperator(problem, product, parameters, total, measure)
    refuse_unfit(plain.named.values())
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
    factory = prepare(
        problem, parameters, product, total=total, backend=backend, plan=plan, memory=memory, check=check,
        products=PRODUCTS_AT_A_POINT,
    )  # fmt: skip
    return factory.at(measured=True)
