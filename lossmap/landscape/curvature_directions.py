"""Directions made of the gradient and of the Hessian's outer eigenvectors, for planes through them.

    gradient          g of the mean loss
    sam:KIND          the ascent of sharpness-aware minimisation in a ball of that kind, T T g (`ball`); g if absolute
    hessian:max:K     the eigenvector of the K-th largest eigenvalue; hessian:max is the first
    hessian:min:K     the same of the K-th smallest
    preconditioned:max:K, preconditioned:min:K   D u, u the eigenvector of D (H + W) D, D = P^-1/2 of an optimizer
    preconditioned:gradient                      P^-1 (g + W theta), that optimizer's step without momentum, uphill;
                                                 of AdamW without its decay, which is no part of W

    angle   of an eigenvector that was found to one of H, radians: at most residual / (|lambda - lambda'| - residual)

lambda is its eigenvalue, lambda' the nearest other one (Davis and Kahan 1970): an end that is small beside the other
needs a smaller residual than that. Of D u the angle is at most max(D) / |D u| times that of u. Price: the products of a
search, up to MAX_SEARCHES times. Sources of SAM: `ball`; of P: `diagnostics.step_rule`.
"""

from __future__ import annotations

import logging
from math import inf, isfinite, nan, pi
from typing import Any

import torch
from torch import Tensor

from lossmap.curvature.build import build_matrix
from lossmap.curvature.gradient import loss_and_gradient, refuse_without_loss
from lossmap.curvature.gradient_check import check_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.landscape.ball import KINDS, Ball
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.preconditioned import PreconditionedOperator
from lossmap.linalg.solvers import repeated_in_float64
from lossmap.report.text import meaningful_digits, value_with_error
from lossmap.sums import in_float64, norm

logger = logging.getLogger("lossmap")

EIGENVECTOR_TOL = 1e-3  # relative to the largest absolute eigenvalue, of the first search
MAX_ANGLE = 0.05  # radians, to an eigenvector; a picture needs no more
SIDES = {"max": "top", "min": "bottom"}
MAX_SEARCHES = 4  # each with the residual that the gap seen by the one before asks for
MAX_PRODUCTS = 1000  # of all of them; those of the first are not limited further


def curved_direction(
    problem: Problem, kind: str, seed: int = 0, parameters: str | None = None
) -> tuple[Tensor, Layout, dict[str, float]]:
    """A direction of length one, (n,) in the model's precision, how the parameters lie in it, and what is known of it.

    Of an eigenvector that is its `eigenvalue` and `residual`, both in the loss's unit per squared unit of theta (of a
    preconditioned one of P^1/2 theta), and `max_angle` in radians to one of the matrix, pi / 2 where it cannot be told
    from others; of the gradient nothing.

    problem     of preconditioned ones with its `preconditioner`
    kind        `gradient`, `sam:adaptive`, `hessian:max`, `hessian:min:2` and so on, see above
    seed        of the eigenvectors' start
    parameters  to differentiate by; by default all for the gradient, the weights for the Hessian

    Raises ValueError where the gradient is zero or not that of the loss, for an eigenvector beyond the last one, or for
    another kind; FloatingPointError where the loss or its derivatives are not finite.
    """
    what, _, rest = kind.partition(":")
    if what == "gradient" and not rest:
        return (*_ascent(problem, parameters or "all", "absolute"), {})
    if what == "sam" and rest in KINDS:
        return (*_ascent(problem, parameters or "all", rest), {})
    if what == "preconditioned" and rest == "gradient":
        return (*_preconditioned_gradient(problem, parameters or "all"), {})
    side, _, number = rest.partition(":")
    if (
        what not in ("hessian", "preconditioned")
        or side not in SIDES
        or not (number or "1").isdigit()
        or int(number or 1) < 1
    ):
        balls = ", ".join(f"sam:{ball}" for ball in KINDS)
        raise ValueError(
            f"the direction must be gradient, {balls}, preconditioned:gradient, preconditioned:max, hessian:max, "
            f"hessian:min:2 and so on; got {kind!r}"
        )
    with temporary_parameters(problem.model, {}):
        operator = build_matrix(problem, what, parameters or "weights")
        inner: Any = operator.inner if isinstance(operator, PreconditionedOperator) else operator
        refuse_without_loss(inner.problem)
        if int(number or 1) > operator.size:
            raise ValueError(f"the direction {kind}: the Hessian has {operator.size} eigenvectors")
        scale = operator.scale if isinstance(operator, PreconditionedOperator) else None
        v, facts = _eigenvector(operator, kind, SIDES[side], int(number or 1), seed, scale)
        layout: Layout = operator.layout
    if scale is not None:
        v = scale.to(v.device) * in_float64(v)
        v = v / norm(v)
    v = v.to(next(problem.model.parameters()).dtype)
    return v / norm(v), layout, facts


def _eigenvector(
    operator: SymmetricOperator, kind: str, side: str, place: int, seed: int, scale: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The eigenvector (n,) at a place from one end, near to it by its angle, and how near; a far one is reported.

    kind   what the report calls it
    side   top or bottom
    place  1 for the outermost
    scale  D (n,), where the axis is D times the vector, of which the angle is told then; None: 1
    """
    count = min(place + 1, operator.size)
    tol, start, spent = EIGENVECTOR_TOL, None, 0
    for number in range(MAX_SEARCHES):
        pairs = _search(
            operator,
            f"{side}:{count}",
            is_inner=place > 1,
            tol=tol,
            start=start,
            seed=f"{seed} {number}" if number else seed,
            max_products=MAX_PRODUCTS - spent if spent else None,
        )
        spent += pairs.products
        angle, gap = _angle(pairs, place - 1)
        stretch = 1.0 if scale is None else _stretch(scale, pairs.vectors[:, place - 1])
        angle *= stretch
        if angle <= MAX_ANGLE or not pairs.converged or spent >= MAX_PRODUCTS:
            break
        # Half of what the gap asks for, as the second search may see a smaller one; where none was seen, a tenth.
        asked = 0.5 * MAX_ANGLE * gap / stretch if gap > 0 else 0.1 * float(pairs.residuals[place - 1])
        tol, start = asked / pairs.scale, pairs.vectors
    value, error = float(pairs.values[place - 1]), float(pairs.residuals[place - 1])
    if angle > MAX_ANGLE:
        near = [i for i in (place - 2, place) if 0 <= i < pairs.values.size]
        next_one = min(near, key=lambda i: abs(float(pairs.values[i]) - value), default=None)
        beside = (
            ""
            if next_one is None
            else f", beside the next one, {meaningful_digits(float(pairs.values[next_one]), error)}"
        )
        within = f"within {angle:.2g} radians of an eigenvector" if angle < 1 else "not told from those next to it"
        logger.warning(
            "the axis %s is %s: its eigenvalue is %s%s", kind, within, value_with_error(value, error), beside
        )
    return pairs.vectors[:, place - 1], {"eigenvalue": value, "residual": error, "max_angle": min(angle, pi / 2)}


def _search(
    operator: SymmetricOperator,
    which: str,
    *,
    is_inner: bool,
    tol: float,
    start: Tensor | None,
    seed: int | str,
    max_products: int | None,
) -> EigenPairs:
    """The outermost eigenpairs; where an inner one is counted from its end, with every copy of a multiple eigenvalue.

    The words are those of `lanczos`; a search for an inner one begins without a start. The outermost vector is as good
    as any other where its eigenvalue has copies: from one start the next value is the next other one.
    """
    if not is_inner:

        def search(products_of: SymmetricOperator) -> EigenPairs:
            return lanczos(products_of, which, tol=tol, start=start, seed=seed, certify=True, max_products=max_products)

        return repeated_in_float64(search, operator)
    return successive_eigenpairs(operator, which, tol=tol, seed=seed, max_products=max_products)


def _stretch(scale: Tensor, v: Tensor) -> float:
    """By how much a small angle to v grows at most where every vector is multiplied with D entry by entry."""
    moved = norm(scale.to(v.device) * in_float64(v)) / norm(in_float64(v))
    return float(scale.max()) / float(moved) if moved else inf


def _angle(pairs: EigenPairs, i: int) -> tuple[float, float]:
    """A bound on the angle of vector i to an eigenvector, radians, and the gap to the nearest other eigenvalue."""
    own = float(pairs.residuals[i])
    if own == 0.0:
        return 0.0, nan
    if pairs.values.size < 2:
        return (0.0, nan) if isfinite(own) else (inf, nan)
    near = [k for k in (i - 1, i + 1) if 0 <= k < pairs.values.size]
    if not all(isfinite(float(pairs.values[k])) for k in near):  # without them nothing is known of the gap
        return inf, nan
    gap = min(abs(float(pairs.values[i] - pairs.values[k])) - float(pairs.residuals[k]) for k in near)
    room = gap - own
    return (own / room if room > 0 else inf), gap


def _preconditioned_gradient(problem: Problem, parameters: str) -> tuple[Tensor, Layout]:
    """P^-1 (g + W theta), of length one. Raises ValueError where there is no preconditioner."""
    if problem.preconditioner is None:
        raise ValueError("the direction preconditioned:gradient needs a preconditioner, which the problem has not")
    check_gradient(problem, parameters)
    loss, gradient, layout = loss_and_gradient(problem, parameters)
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these parameters: no direction can be made of its gradient")
    root, decay = problem.preconditioner.vectors(layout.names, gradient.device)
    named = selected(problem.model, parameters)
    theta = torch.cat([in_float64(named[name].detach()).reshape(-1) for name in layout.names])
    v = root.square() * (in_float64(gradient) + decay * theta)
    length = norm(v)
    if length == 0:
        raise ValueError("the optimizer's step is zero here: no direction can be made of it")
    return (v / length).to(next(problem.model.parameters()).dtype), layout


def _ascent(problem: Problem, parameters: str, kind: str) -> tuple[Tensor, Layout]:
    """The direction in which the loss rises most within a small ball of this kind."""
    check_gradient(problem, parameters)
    loss, gradient, layout = loss_and_gradient(problem, parameters)
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these parameters: no direction can be made of its gradient")
    if kind != "absolute":
        named = selected(problem.model, parameters)
        if any(p.is_complex() for p in named.values()):
            raise ValueError(f"the direction sam:{kind} is of real parameters; the model has complex ones")
        gradient = in_float64(gradient) * Ball.around(named, kind, 1.0).scale.square()
    v = gradient.to(next(problem.model.parameters()).dtype)
    length = norm(v)
    if length == 0:
        raise ValueError("the gradient is zero here, or where the ball may move: no direction can be made of it")
    return v / length, layout
