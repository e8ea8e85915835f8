"""The gradient of the mean loss, and directions made of it and of the Hessian's ends, for planes through them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossmap.space.problem import Problem, placed
from lossmap.space.vectors import Layout, norm, selected


def gradient(problem: Problem, parameters: str = "all") -> tuple[Tensor, Layout]:
    """The gradient of the mean loss at the model's present parameters, (n,), in evaluation mode, and its layout.

    Divided by samples, so that any cut into batches gives the same; nothing is left in `.grad`.
    """
    named = selected(problem.model, parameters)
    layout = Layout.of(named)
    total: Tensor | None = None
    with placed(problem.model, {}):
        for batch in problem.data:
            parts = torch.autograd.grad(problem.total(batch), list(named.values()), materialize_grads=True)
            flat = torch.cat([p.reshape(-1) for p in parts]).detach()
            total = flat if total is None else total + flat
    if total is None:
        raise ValueError("the data hold no batch")
    mean = total / problem.samples
    if not bool(mean.isfinite().all()):
        raise FloatingPointError("the gradient is not finite: look at the loss here first")
    return mean, layout


def curved_direction(problem: Problem, kind: str, seed: int = 0) -> tuple[Tensor, Layout]:
    """A unit vector, (n,): `gradient`, or an extreme eigenvector of the Hessian, `hessian:max` or `hessian:min`."""
    if kind == "gradient":
        v, layout = gradient(problem)
        length = norm(v)
        if length == 0:
            raise ValueError("the gradient is zero here: no direction can be made of it")
        return v / length, layout
    from lossmap.measure.curvature import Curvature
    from lossmap.measure.eigen import extremes

    with placed(problem.model, {}):
        matrix = Curvature(problem)
        pairs = extremes(matrix, tol=1e-3, seed=seed)
    column = {"hessian:max": 0, "hessian:min": -1}[kind]
    v = pairs.vectors[:, column]
    return v / norm(v), matrix.layout
