"""Directions made of the gradient and of the Hessian's extreme eigenvectors, for planes through them.

    angle   of an eigenvector that was found to one of H, radians: at most residual / (|lambda_1 - lambda_2| - residual)

lambda_1 is its eigenvalue, lambda_2 the next one (Davis and Kahan 1970): an end that is small beside the other needs a
smaller residual than that. Price: the products of a search, up to MAX_SEARCHES times.
"""

from __future__ import annotations

import logging
from math import inf, isfinite, nan, pi

from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.lanczos import extremes
from lossmap.linalg.operator import SymmetricOperator
from lossmap.sums import norm

logger = logging.getLogger("lossmap")

EIGENVECTOR_TOL = 1e-3  # relative to the largest absolute eigenvalue, of the first search
MAX_ANGLE = 0.05  # radians, to an eigenvector; a picture needs no more
SIDES = {"hessian:max": "top", "hessian:min": "bottom"}
MAX_SEARCHES = 4  # each with the residual that the gap seen by the one before asks for
MAX_PRODUCTS = 1000  # of all of them; those of the first are not limited further


def curved_direction(
    problem: Problem, kind: str, seed: int = 0, parameters: str | None = None
) -> tuple[Tensor, Layout, dict[str, float]]:
    """A direction of length one, (n,) in the model's precision, how the parameters lie in it, and what is known of it.

    Of an eigenvector that is its `eigenvalue` and `residual`, both in the loss's unit per squared unit of theta, and
    `max_angle` in radians to one of the Hessian, pi / 2 where it cannot be told from others; of the gradient nothing.

    kind        `gradient` of the mean loss, or an extreme eigenvector of the Hessian: `hessian:max`, `hessian:min`
    seed        of the eigenvectors' start
    parameters  to differentiate by; by default all for the gradient, the weights for the Hessian

    Raises ValueError where the gradient is zero or not that of the loss, or for another kind; FloatingPointError where
    the loss or its derivatives are not finite.
    """
    if kind == "gradient":
        return (*_gradient_direction(problem, parameters or "all"), {})
    if kind not in SIDES:
        raise ValueError(f"the direction must be one of gradient, {', '.join(SIDES)}; got {kind!r}")
    with temporary_parameters(problem.model, {}):
        operator = build_operator(problem, "hessian", parameters or "weights")
        v, facts = _eigenvector(operator, kind, seed)
    return v / norm(v), operator.layout, facts


def _eigenvector(operator: SymmetricOperator, kind: str, seed: int) -> tuple[Tensor, dict[str, float]]:
    """The eigenvector (n,) of one end, near to it by its angle, and how near; where it is not near that is reported."""
    count = min(2, operator.size)
    tol, start, spent = EIGENVECTOR_TOL, None, 0
    for number in range(MAX_SEARCHES):
        pairs = extremes(
            operator,
            f"{SIDES[kind]}:{count}",
            tol=tol,
            start=start,
            seed=f"{seed} {number}" if number else seed,
            certify=True,
            max_products=MAX_PRODUCTS - spent if spent else None,
        )
        spent += pairs.products
        angle, gap = _angle(pairs)
        if angle <= MAX_ANGLE or not pairs.converged or spent >= MAX_PRODUCTS:
            break
        # Half of what the gap asks for, as the second search may see a smaller one; where none was seen, a tenth.
        asked = 0.5 * MAX_ANGLE * gap if gap > 0 else 0.1 * float(pairs.residuals[0])
        tol, start = asked / pairs.scale, pairs.vectors
    value, error = float(pairs.values[0]), float(pairs.residuals[0])
    if angle > MAX_ANGLE:
        beside = f", beside the next one, {float(pairs.values[1]):.4g}" if count > 1 else ""
        within = f"within {angle:.2g} radians of an eigenvector" if angle < 1 else "not told from those next to it"
        logger.warning("the axis %s is %s: its eigenvalue is %.4g +- %.1g%s", kind, within, value, error, beside)
    return pairs.vectors[:, 0], {"eigenvalue": value, "residual": error, "max_angle": min(angle, pi / 2)}


def _angle(pairs: EigenPairs) -> tuple[float, float]:
    """A bound on the first vector's angle to an eigenvector, radians, and the gap to the next eigenvalue."""
    first = float(pairs.residuals[0])
    if first == 0.0:
        return 0.0, nan
    if pairs.values.size < 2:
        return (0.0, nan) if isfinite(first) else (inf, nan)
    if not isfinite(float(pairs.values[1])):  # without a second eigenvalue nothing is known of the gap
        return inf, nan
    gap = abs(float(pairs.values[0] - pairs.values[1])) - float(pairs.residuals[1])
    room = gap - first
    return (first / room if room > 0 else inf), gap


def _gradient_direction(problem: Problem, parameters: str) -> tuple[Tensor, Layout]:
    check_gradient(problem, parameters)
    loss, gradient, layout = loss_and_gradient(problem, parameters)
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these parameters: no direction can be made of its gradient")
    v = gradient.to(next(problem.model.parameters()).dtype)
    length = norm(v)
    if length == 0:
        raise ValueError("the gradient is zero here: no direction can be made of it")
    return v / length, layout
