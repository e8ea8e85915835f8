"""Tensors that an earlier pass made of a model's weights and the model keeps: they stay as they are at other weights.

A `functools.cached_property` of a weight, or an attribute that is computed `if self.kept is None`, is right for the
weights of the pass that made it. Such a one is found at weights moved at random: without it the loss is another. What
is made of constants, a mask or a table of positions, is made anew the same.

What is kept outside of the model (`functools.lru_cache`, a dictionary of a module of Python) is found by a copy of the
model, for which nothing is kept yet: at the moved weights both must have one loss.

Price: three passes over a few samples and a copy of the model; of models that keep tensors beside parameters and
buffers two more, and up to two for each of `MAX_MEMOS` tensors where the model needs some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch
from lossmap.data.borrow import STANDARD, ModuleState, copy_of, temporary_parameters
from lossmap.data.moved_weights import moved_weights
from lossmap.data.outside_state import at, name_of_place, places_of
from lossmap.data.problem import Problem
from lossmap.seeding import same_random_state

MAX_MEMOS = 32
REPEATS = 4  # evaluations that must agree
MAX_COPIED = 50_000_000  # parameters of a model that is copied


@dataclass(frozen=True)
class _Memo:
    """A tensor, or a dictionary of some, that may be one: where it is kept, under which key, and what to call it."""

    holder: dict[str, Any]
    key: str
    name: str

    def forget(self, entirely: bool) -> None:
        """Take it away, or put None in its place; of a dictionary what it holds."""
        kept = self.holder[self.key]
        if isinstance(kept, dict):
            kept.clear()
        elif entirely:
            del self.holder[self.key]
        else:
            self.holder[self.key] = None


def stale_memo(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The name of a tensor that an earlier pass made of the weights, and later ones take as it is; None without any.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    if not _memos(model):
        return None
    with torch.enable_grad(), temporary_parameters(model, moved_weights(model)):
        memos, expected = _memos(model), _total(model, problem, batch, [], True)
        if expected is None:
            return None
        together = _total(model, problem, batch, memos, True)
        if together is not None and _agree(expected, together, tolerance):
            return None
        for memo in memos[:MAX_MEMOS]:
            for entirely in (True, False):
                value = _total(model, problem, batch, [memo], entirely)
                if value is not None and not _agree(expected, value, tolerance):
                    return memo.name
    return None


def kept_outside(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """What keeps something made of the weights outside of the model, by name where it has one; None where nothing does.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    if sum(p.numel() for p in model.parameters()) > MAX_COPIED:
        return None
    with torch.enable_grad():
        with temporary_parameters(model, {}):
            own = _total(model, problem, batch, [], True)  # what is kept is kept of the model's own weights
        try:
            twin = copy_of(model)
        except Exception:  # it cannot be copied
            return None
        moved = moved_weights(model)
        # both are moved, since what a function of the twin closes over is the model's
        with temporary_parameters(model, moved), temporary_parameters(twin, moved):
            fresh_problem = replace(problem, model=twin)
            pairs = []
            for _ in range(REPEATS):  # a loss that is not repeatable has other reasons, which others name
                pairs.append((_total(model, problem, batch, [], True), _total(twin, fresh_problem, batch, [], True)))
                if _agree(*pairs[-1], tolerance):
                    return None
    if own is None or not all(_agree(a, b, tolerance) for each in zip(*pairs, strict=True) for a, b in pairwise(each)):
        return None
    with torch.enable_grad():  # a loss that sets the model's own modules to work is another function of the twin
        twin = copy_of(model)
        with temporary_parameters(model, {}), temporary_parameters(twin, {}):
            if not _agree(own, _total(twin, replace(problem, model=twin), batch, [], True), tolerance):
                return None
    return ", ".join(_caches(model)) or "something outside of the model"


def _caches(model: nn.Module) -> list[str]:
    """What may keep something: functions of `functools.cache` in classes and beside their passes, and tables there."""
    found: dict[str, None] = {}
    for kind in {type(module) for module in model.modules()}:
        for owner in kind.__mro__:
            found |= {f"{owner.__name__}.{k}": None for k, v in vars(owner).items() if hasattr(v, "cache_clear")}
        code, scope = getattr(kind.forward, "__code__", None), getattr(kind.forward, "__globals__", {})
        for name in getattr(code, "co_names", ()):
            if hasattr(scope.get(name), "cache_clear"):
                found[name] = None
    for holder, key in places_of(model):
        if isinstance(at(holder, key), dict) and at(holder, key):
            found[name_of_place(model, holder, key)] = None
    return list(found)


def _memos(model: nn.Module) -> list[_Memo]:
    """What may be one: floating-point tensors that are neither parameters nor buffers, and dictionaries of them."""
    found = []
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in STANDARD and _holds_numbers(value):
                found.append(_Memo(vars(module), key, f"{prefix}.{key}".lstrip(".")))
    for holder, key in places_of(model):
        value = at(holder, key)
        if isinstance(value, dict) and _holds_numbers(value):
            found.append(_Memo({key: value}, key, name_of_place(model, holder, key)))
    return found


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_numbers(each) for each in value.values() if isinstance(each, Tensor))
    return isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter)


def _total(model: nn.Module, problem: Problem, batch: Batch, memos: Sequence[_Memo], entirely: bool) -> float | None:
    """The loss without some of them; None where it fails so, as it does without a constant."""
    with _restored(model):
        try:
            for memo in memos:
                memo.forget(entirely)
            with same_random_state(20):
                return float(problem.total(batch).detach())
        except Exception:  # user code may raise any exception
            return None


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    state = ModuleState(model)
    try:
        yield
    finally:
        state.restore(everything=True)


def _agree(a: float | None, b: float | None, tolerance: float) -> bool:
    """Whether two values differ by rounding alone, or one of them says nothing."""
    if a is None or b is None:
        return True
    gap = abs(a - b)
    return not np.isfinite(gap) or gap <= tolerance * max(abs(a), abs(b))
