"""The gradient of the mean loss, and directions made of it and of the Hessian's ends, for planes through them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossmap.curvature.operators import Total, differentiated, single_rank
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected


def mean_gradient(problem: Problem, parameters: str = "all") -> tuple[Tensor, Layout]:
    """The gradient of the mean loss at the model's present parameters, (n,), in evaluation mode, and its layout.

    Divided by samples, so that any cut into batches gives the same; nothing is left in `.grad`.
    """
    named = selected(problem.model, parameters)
    layout = Layout.of(named)
    total: Tensor | None = None
    with temporary_parameters(problem.model, {}):
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


def loss_and_gradient(
    problem: Problem, parameters: str = "weights", total: Total = single_rank
) -> tuple[float, Tensor]:
    """The mean loss and its gradient by the chosen parameters, (n,) in float64, over all ranks of a team."""
    named = list(selected(problem.model, parameters).values())
    size = sum(p.numel() for p in named)
    sums = torch.zeros(size + 2, dtype=torch.float64, device=named[0].device)
    with differentiated(problem.model, named):
        for batch in problem.data:
            loss = problem.total(batch)
            if loss.requires_grad:
                parts = torch.autograd.grad(loss, named, materialize_grads=True)
                sums[:size] += torch.cat([p.reshape(-1) for p in parts]).double()
            sums[size] += float(loss.detach())
    sums[-1] = float(problem.samples)
    sums = total(sums)
    mean = sums / sums[-1]
    return float(mean[size]), mean[:size]
