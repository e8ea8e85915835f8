"""Whether a loss is what curvature is defined for: a mean over samples."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import samples_in
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem


def check_mean(problem: Problem) -> None:
    """Raises ValueError where the loss of a batch is not the mean over its samples.

    The summed loss of some samples must be the sum of that of two parts of them; asked on a few samples.
    """
    few = problem.rebatched(min(problem.data.batch_size, 8))
    batch = next(iter(few.data))
    if not isinstance(batch, (Tensor, tuple, list, dict)) or samples_in(batch) < 3:
        return
    b = samples_in(batch)

    def rows(first: int, last: int) -> object:
        return pytree.tree_map(lambda t: t[first:last] if isinstance(t, Tensor) and t.dim() else t, batch)

    with temporary_parameters(problem.model, {}), torch.enable_grad():  # a loss may hold derivatives by its inputs
        whole, *parts = (float(problem.total(part).detach()) for part in (batch, rows(0, 1), rows(1, b)))
    gap = abs(whole - sum(parts))
    if isfinite(gap) and gap > 1e-3 * max(abs(whole), sum(abs(p) for p in parts)):
        raise ValueError(
            f"the loss is no mean over samples: {b} samples have the sum {whole:.6g}, one and the other {b - 1} have "
            f"{parts[0]:.6g} + {parts[1]:.6g}; use reduction='mean' (class weights and ignore_index divide by "
            "something else than samples: divide by the batch's samples yourself), or check=False"
        )
