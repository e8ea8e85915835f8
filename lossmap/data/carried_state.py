"""What a model or its loss carries from one batch to the next: a hidden state, a queue, a weight by the last losses.

The loss of a pass then depends on the cut into batches and on their order. It is found by the same batch twice in one
pass, from the same random numbers: the second value is another, while that of a new pass is the first again; and, of
what stands beside the model, by other samples in front of the batch, as where a loss is divided by the first one that
it ever had. Price: two passes over a few samples; some fifteen where something beside the model is left changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.copies import lazy_copy
from lossmap.data.batches import Batch
from lossmap.data.borrow import entries_of, temporary_parameters
from lossmap.data.counters import numbers_of
from lossmap.data.first_batch import other_samples
from lossmap.data.memos import memos_of
from lossmap.data.module_state import CONTAINERS
from lossmap.data.outside_state import at, modules_beside, name_of_place, places_of
from lossmap.data.problem import Problem
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import same_random_state


def carried_state(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The names of what changes the next batch's loss, such as `rnn.hidden`; None where nothing does.

    tolerance  relative difference of two values that is rounding
    """

    def totals(*batches: Batch) -> tuple[float, ...]:
        """Of these batches one after the other."""
        with temporary_parameters(problem.model, {}):
            return tuple(_total(problem, each) for each in batches)

    with torch.enable_grad():
        first, second = totals(batch, batch)
        if _agree(first, second, tolerance):
            return _set_by_others(problem, batch, tolerance, first, totals)
        if not _agree(first, totals(batch)[0], tolerance):  # it is not repeatable, whatever is carried
            return None
        inside, beside = _changed_by(problem, batch)
        if not _agree(first, totals(batch)[0], tolerance):  # it agreed by chance
            return None
    return _listed(inside or beside) or "something"


def _set_by_others(
    problem: Problem, batch: Batch, tolerance: float, alone: float, totals: Callable[..., tuple[float, ...]]
) -> str | None:
    """The names of what other samples set beside the model, and what the loss of these then depends on."""
    inside, beside = _changed_by(problem, batch)
    if inside or not beside:  # what the first batch sets in a model is looked at by `first_batch`
        return None
    for other in other_samples(problem, batch):
        try:
            behind, repeated = (totals(other, batch, batch)[1:] for _ in range(2))
        except Exception as error:  # user code may raise any exception, as on few samples
            raise_if_of_device(error)
            continue
        are_repeatable = all(_agree(a, b, tolerance) for a, b in zip(behind, repeated, strict=True))
        if are_repeatable and not all(_agree(alone, each, tolerance) for each in behind):
            return _listed(beside)
    return None


def _listed(names: list[str]) -> str:
    """Some of the names, without what is in another of them, such as `h[0]` in `h`."""
    outer = [name for name in names if not any(other != name and other in name for other in names)]
    return ", ".join(outer[:3])


def _changed_by(problem: Problem, batch: Batch) -> tuple[list[str], list[str]]:
    """The names of what a pass changes in the model and beside it."""
    with temporary_parameters(problem.model, {}):
        before = _held(problem.model)
        _total(problem, batch)
        after = _held(problem.model)
    inside, beside = (
        [name for name, value in now.items() if name not in then or not _is_same(value, then[name])]
        for then, now in zip(before, after, strict=True)
    )
    return inside, beside


def _total(problem: Problem, batch: Batch) -> float:
    with same_random_state(20):
        return float(problem.total(batch).detach())


def _agree(a: float, b: float, tolerance: float) -> bool:
    """Whether two values are the same but for rounding; one that is not finite says nothing."""
    gap = abs(a - b)
    return not np.isfinite(gap) or gap <= tolerance * max(abs(a), abs(b))


def _held(model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the modules hold beside their parameters, and what stands beside them, by name; tensors as copies."""
    inside: dict[str, Any] = dict(model.named_buffers())
    for prefix, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        inside |= {f"{prefix}.{name}".lstrip("."): value for name, value in own.items()}
    beside = {memo.name: memo.value for memo in memos_of(model) if memo.name.partition("[")[0] not in inside}
    beside |= numbers_of(model)[1] | _tensors_beside(model)
    return _as_now_all(inside), _as_now_all(beside)


def _tensors_beside(model: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of the networks that stand beside a model, such as a teacher's, by the names that people know."""
    own = {id(module) for module in model.modules()}
    named = [(name_of_place(model, *place), at(*place)) for place in places_of(model)]
    roots = [(name, value) for name, value in named if isinstance(value, torch.nn.Module) and id(value) not in own]
    known = own.union(id(module) for _, root in roots for module in root.modules())
    roots += [(type(module).__name__, module) for module in modules_beside(model) if id(module) not in known]
    return {f"{name}.{key}": t for name, root in roots for key, t in (*root.named_parameters(), *root.named_buffers())}


def _as_now_all(held: dict[str, Any]) -> dict[str, Any]:
    return {name: _as_now(value) for name, value in held.items()}


def _as_now(value: Any) -> Any:
    """A copy of a tensor, and what a container holds now."""
    if isinstance(value, Tensor) and not value.is_nested:
        return lazy_copy(value)
    return list(entries_of(value)) if type(value) in CONTAINERS else value


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and not (a.is_nested or b.is_nested):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(operator.is_, a, b))
    return a is b or (isinstance(a, str) and a == b)
