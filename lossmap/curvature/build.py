"""The named matrix of a problem (Hessian, Gauss-Newton) as an operator, its products made by the chosen backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lossmap.curvature.autotune import prepare
from lossmap.curvature.linearized_operator import LinearizedOperator
from lossmap.curvature.operators import CurvatureOperator, Total, gauss_newton, hessian, refuse_training, single_rank
from lossmap.data.problem import Problem

MATRICES = {"hessian": hessian, "gauss-newton": gauss_newton}


def build_operator(
    problem: Problem,
    matrix: str,
    parameters: str,
    total: Total = single_rank,
    *,
    way: str = "double",
    choice: Mapping[str, Any] | None = None,
) -> CurvatureOperator | LinearizedOperator:
    """The named matrix of a problem, its products made by `way` (see `linearize.prepare`), or as `choice` says.

    Raises ValueError for what cannot be differentiated twice in good faith.
    """
    if matrix not in MATRICES:
        raise ValueError(f"the matrix is one of {', '.join(MATRICES)}; got {matrix!r}")
    refuse_training(problem.model)
    plain = CurvatureOperator(problem, MATRICES[matrix], parameters, total)
    if plain.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the weights are {str(plain.dtype).removeprefix('torch.')}, in which second derivatives drown in "
            "rounding; call model.float() first"
        )
    if way == "double" and choice is None:
        return plain
    given = None if choice is None else dict(choice)
    return prepare(problem, parameters, MATRICES[matrix], total=total, way=way, choice=given).at()
