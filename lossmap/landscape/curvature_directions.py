"""Directions made of the gradient and of the Hessian's extreme eigenvectors, for planes through them."""

from __future__ import annotations

from torch import Tensor

from lossmap.curvature.gradient import mean_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout
from lossmap.sums import norm


def curved_direction(problem: Problem, kind: str, seed: int = 0) -> tuple[Tensor, Layout]:
    """A unit vector, (n,): `gradient`, or an extreme eigenvector of the Hessian, `hessian:max` or `hessian:min`."""
    if kind == "gradient":
        v, layout = mean_gradient(problem)
        length = norm(v)
        if length == 0:
            raise ValueError("the gradient is zero here: no direction can be made of it")
        return v / length, layout
    from lossmap.curvature.operators import CurvatureOperator
    from lossmap.linalg.lanczos import extremes

    with temporary_parameters(problem.model, {}):
        matrix = CurvatureOperator(problem)
        pairs = extremes(matrix, tol=1e-3, seed=seed)
    column = {"hessian:max": 0, "hessian:min": -1}[kind]
    v = pairs.vectors[:, column]
    return v / norm(v), matrix.layout
