"""Models and losses that write into their batch, `x /= 255` or `y[y == 255] = -100`: they are given a copy each time.

In training every batch comes fresh from its loader; here one batch is read many times. Whether one is written to is
seen by the version that PyTorch counts of each tensor. Price: one pass over a few samples, and a copy of each batch
where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch, map_tensors
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import CustomCount, Problem
from lossmap.data.skipped_checks import skip
from lossmap.seeding import same_random_state


def copied(batch: Batch) -> Batch:
    """The batch with copies of its tensors."""
    with torch.inference_mode(False), torch.no_grad():
        return map_tensors(lambda t: t.detach().clone(), batch)


@dataclass(frozen=True)
class OnACopy:
    """A function whose last argument is a batch, called with a copy of it."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        *first, batch = args
        return self.function(*first, map_tensors(torch.clone, batch))


def with_copied_batches(problem: Problem, batch: Batch) -> Problem:
    """The problem whose model, or loss, is given a copy of every batch where it writes into this one; else as it is.

    The batch itself stays as it is. Where the model or the loss fails, which the checks after this one name, as it is.
    """
    try:
        return replace(problem, **_on_copies(problem, copied(batch)))
    except Exception as error:  # user code may raise any exception
        skip("whether batches are written into", error, problem, batch)
        return problem


def _on_copies(problem: Problem, batch: Batch) -> dict[str, Any]:
    """The functions of a problem that write into this batch, each to be called with a copy, by their names."""
    changed: dict[str, Any] = {}
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
        before = _versions(batch)
        outputs = problem.forward(problem.model, batch)
        if _versions(batch) != before:
            changed["forward"] = OnACopy(problem.forward)
            if isinstance(problem.count, CustomCount):  # it runs the loss
                changed["count"] = CustomCount(OnACopy(problem.count.loss), problem.count.model)
        before = _versions(batch)
        problem.loss(outputs, batch)
        if _versions(batch) != before:
            changed["loss"] = OnACopy(problem.loss)
    return changed


def _versions(batch: Batch) -> list[int]:
    return [t._version for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
