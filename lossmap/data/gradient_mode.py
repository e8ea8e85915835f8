"""Models and losses that ask whether gradients are recorded (`torch.is_grad_enabled()`), and compute something else.

Losses of a surface are read without a graph, derivatives with one: of such a model those would be two functions. One
that differentiates in its own forward pass, as by an inner step of training, fails where nothing is recorded. Both are
run with gradients recorded everywhere, as in training. Price: two passes over a few samples, two more if they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.data.skipped_checks import skip
from lossmap.device_errors import out_of_memory
from lossmap.seeding import same_random_state
from lossmap.stable.forms import stable_forms


@dataclass(frozen=True)
class Recorded:
    """A function that is called with gradients recorded; what it returns has no graph where none was asked for."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        is_asked = torch.is_grad_enabled()
        with torch.enable_grad():
            result = self.function(*args)
        if is_asked:
            return result
        return pytree.tree_map_only(Tensor, torch.detach, result)


def with_gradients_recorded(problem: Problem, batch: Batch, tolerance: float) -> Problem:
    """The problem as it is; with a note, and gradients recorded everywhere, where its loss over this batch differs, or
    fails without.

    Where the model or the loss fails in either way, which other checks name, as it is; so is a loss of model and batch,
    which is read with gradients recorded anyhow, where it fails without.
    """
    try:
        recorded = _loss(problem, batch, True)
    except Exception as error:  # user code may raise any exception
        skip("whether the loss follows the recording of gradients", error, problem, batch)
        return problem
    try:
        plain = _loss(problem, batch, False)
    except Exception as error:
        skip("whether the loss follows the recording of gradients", error, problem, batch)
        if not problem.separable or out_of_memory(error):
            return problem
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        note = (
            f"a pass without gradients recorded fails ({reason}), as of a model that differentiates in its forward "
            "pass: it is evaluated with gradients recorded everywhere"
        )
        return replace(
            problem, forward=Recorded(problem.forward), loss=Recorded(problem.loss), notes=(*problem.notes, note)
        )
    if not abs(recorded - plain) > tolerance * max(abs(recorded), abs(plain)):
        return problem
    if not abs(_loss(problem, batch, True) - recorded) <= tolerance * abs(recorded):
        return problem  # it changes from call to call, which other checks name
    note = (
        f"the loss of a few samples is {recorded:.6g} where gradients are recorded and {plain:.6g} where not, as of a "
        "model that asks torch.is_grad_enabled(): it is evaluated with gradients recorded everywhere"
    )
    forward, loss = Recorded(problem.forward), problem.loss
    if abs(_loss(replace(problem, forward=forward), batch, False) - recorded) > tolerance * abs(recorded):
        loss = Recorded(problem.loss)
    return replace(problem, forward=forward, loss=loss, notes=(*problem.notes, note))


def _loss(problem: Problem, batch: Batch, is_recorded: bool) -> float:
    """The loss of a batch, summed over its samples."""
    mode = torch.set_grad_enabled(is_recorded)
    with temporary_parameters(problem.model, {}), mode, stable_forms(), same_random_state(20):
        return float(problem.total(batch).detach())
