"""What a model carries from one batch to the next, as the hidden state of a recurrent network that is not reset.

The loss of a pass then depends on the cut into batches and on their order. It is found by the same batch twice in one
pass, from the same random numbers: the second value is another, while that of a new pass is the first again. Price: two
passes over a few samples.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.data.batches import Batch
from lossmap.data.borrow import entries_of, temporary_parameters
from lossmap.data.counters import numbers_of
from lossmap.data.memos import memos_of
from lossmap.data.module_state import CONTAINERS
from lossmap.data.problem import Problem
from lossmap.seeding import same_random_state


def carried_state(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The names of what changes the next batch's loss, such as `rnn.hidden`; None where nothing does.

    tolerance  relative difference of two values that is rounding
    """

    def total() -> float:
        with same_random_state(20):
            return float(problem.total(batch).detach())

    with torch.enable_grad():
        with temporary_parameters(problem.model, {}):
            first, second = total(), total()
        if _agree(first, second, tolerance):
            return None
        with temporary_parameters(problem.model, {}):
            before = _held(problem.model)
            again, after = total(), _held(problem.model)
    if not _agree(first, again, tolerance):  # it is not repeatable, whatever is carried
        return None
    for then, now in zip(before, after, strict=True):
        if names := [name for name, value in now.items() if not _is_same(value, then.get(name))]:
            return ", ".join(names[:3])
    return "something"


def _agree(a: float, b: float, tolerance: float) -> bool:
    """Whether two values are the same but for rounding; one that is not finite says nothing."""
    gap = abs(a - b)
    return not np.isfinite(gap) or gap <= tolerance * max(abs(a), abs(b))


def _held(model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the modules hold beside their parameters, and their loss with them, by name; tensors as copies; numbers."""
    held: dict[str, Any] = dict(model.named_buffers())
    for prefix, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        held |= {f"{prefix}.{name}".lstrip("."): value for name, value in own.items()}
    held |= {memo.name: memo.value for memo in memos_of(model)}
    return {name: _as_now(value) for name, value in held.items()}, numbers_of(model)[1]


def _as_now(value: Any) -> Any:
    """A copy of a tensor, and what a container holds now."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(entries_of(value)) if type(value) in CONTAINERS else value


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(operator.is_, a, b))
    return a is b or (isinstance(a, str) and a == b)
