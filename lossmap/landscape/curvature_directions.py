"""Directions made of the gradient and of the Hessian's extreme eigenvectors, for planes through them."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.lanczos import extremes
from lossmap.sums import norm

EIGENVECTOR_TOL = 1e-3  # relative, of the eigenvalue; a picture needs no more


def curved_direction(
    problem: Problem, kind: str, seed: int = 0, parameters: str | None = None
) -> tuple[Tensor, Layout]:
    """A direction of length one, (n,) in the model's precision, and how the parameters lie in it.

    kind        `gradient` of the mean loss, or an extreme eigenvector of the Hessian: `hessian:max`, `hessian:min`
    seed        of the eigenvectors' start
    parameters  to differentiate by; by default all for the gradient, the weights for the Hessian

    Raises ValueError where the gradient is zero or not that of the loss, or for another kind; FloatingPointError where
    the loss or its derivatives are not finite.
    """
    if kind == "gradient":
        return _gradient_direction(problem, parameters or "all")
    columns = {"hessian:max": 0, "hessian:min": -1}
    if kind not in columns:
        raise ValueError(f"the direction must be one of gradient, {', '.join(columns)}; got {kind!r}")
    with temporary_parameters(problem.model, {}):
        operator = build_operator(problem, "hessian", parameters or "weights")
        pairs = extremes(operator, tol=EIGENVECTOR_TOL, seed=seed)
    v = pairs.vectors[:, columns[kind]]
    return v / norm(v), operator.layout


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
