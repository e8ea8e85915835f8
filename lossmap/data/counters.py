"""Numbers that every call of a model or its loss changes: schedules, warm-up counters, annealed weights.

A loss that depends on how often it was called is no function of the weights. Most such counters show in the second call
already, or only in the fiftieth: so where some number moves, the same batch is evaluated many more times, and then with
all numbers that count, of the model and of the loss, ever further ahead: a change that lasts for a quarter of the calls
before it is seen, also where it passes again. All is put back afterwards, here as at every point, but iterators in a
loss's closure, and what no look finds, which cannot be set.

Price: two passes over a few samples; some hundred and seventy where a number moves.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.attributes import attribute
from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.module_state import STANDARD, ModuleState
from lossmap.data.outside_state import alive, at, attributes_of, measures, modules_beside, name_of_place, places_of
from lossmap.data.problem import Problem
from lossmap.seeding import is_own_generator, same_random_state, shown_state_of

CALLS = 128  # evaluations of one batch among which a schedule is to show
CALLS_OF_LARGE = 16
LARGE = 1_000_000  # parameters from which fewer are made
MAX_AHEAD = 1_000_000  # calls by which numbers are set ahead
AHEAD_BY, AHEAD_BY_OF_LARGE = 1.25, 2.0  # each time so much further
LINEAR = 1e-6  # relative difference of a number's steps up to which it counts calls
MAX_NUMBERS = 16  # of a tensor that may be a counter
MAX_ENTRIES = 1_000  # of a container that is looked into
MAX_DEPTH = 3


@dataclass(frozen=True)
class Counters:
    """What moves with every call, and what that does to the loss of one batch.

    names        of the numbers, such as `anneal.step`
    is_put_back  whether all of them are as before at every point
    low, high    the smallest and the largest loss of the batch among the calls
    calls        how many these were
    changes      whether they differ by more than rounding
    """

    names: tuple[str, ...]
    is_put_back: bool
    low: float
    high: float
    calls: int
    changes: bool

    def __str__(self) -> str:
        shown = ", ".join(self.names[:3])
        return f"{shown} and {len(self.names) - 3} more" if len(self.names) > 3 else shown


def moving_counters(problem: Problem, batch: Batch, tolerance: float) -> Counters | None:
    """The numbers that each evaluation of this batch changes, and whether its loss follows; None where nothing moves.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model

    def total() -> float:
        with same_random_state(20):
            return float(problem.total(batch).detach())

    with torch.enable_grad(), temporary_parameters(model, {}):
        state = ModuleState(model)
        given = numbers_of(model)
        try:
            total()  # the first one may build what stays
            inside, outside = _inside(model), _outside(model)
            values = [total()]
            inside_then, outside_then = _inside(model), _outside(model)
            names = (*_moved(inside, inside_then), *_moved(outside, outside_then))
            if not names:
                return None
            size = sum(p.numel() for p in model.parameters())
            calls = CALLS if size <= LARGE else CALLS_OF_LARGE
            values += [total() for _ in range(calls - 1)]
            counting = [
                *_counting(inside, inside_then, _inside(model), calls - 1),
                *_counting(outside, outside_then, _outside(model), calls - 1),
            ]
            values += _far_ahead(counting, calls, AHEAD_BY if size <= LARGE else AHEAD_BY_OF_LARGE, total)
        finally:
            state.restore()
        is_put_back = numbers_of(model) == given
    finite = [v for v in values if np.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (np.nan, np.nan)
    changes = len(finite) not in (0, len(values)) or high - low > tolerance * max(abs(low), abs(high))
    return Counters(names, is_put_back, low, high, calls, changes)


@dataclass
class _Numbers:
    """Numbers as they show themselves, by name; and of those that can be set: the holder, its key there, the value."""

    shown: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)


def numbers_of(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of a model and of what takes part beside it as they show themselves, by name."""
    return _inside(model).shown, _outside(model).shown


def _moved(before: _Numbers, after: _Numbers) -> list[str]:
    return [name for name, value in before.shown.items() if name in after.shown and after.shown[name] != value]


def _inside(model: nn.Module) -> _Numbers:
    """The numbers that the modules of a model hold, by name."""
    found = _Numbers()
    for prefix, module in model.named_modules():
        if not type(module).__module__.startswith("torch.nn."):  # batch norm counts, and its evaluation does not ask
            _enter_module(module, prefix, found)
    return found


def _outside(model: nn.Module) -> _Numbers:
    """Those of the modules and functions that take part beside it."""
    found = _Numbers()
    for module in modules_beside(model):
        _enter_module(module, type(module).__name__, found)
    for holder, name in places_of(model):
        _enter(at(holder, name), name_of_place(model, holder, name), found, MAX_DEPTH, (holder, name))
    return found


def _enter_module(module: nn.Module, prefix: str, found: _Numbers) -> None:
    for name, value in (*module._buffers.items(), *vars(module).items()):
        if name not in STANDARD:
            _enter(value, f"{prefix}.{name}".lstrip("."), found, MAX_DEPTH, (module, name))


def _enter(value: Any, name: str, found: _Numbers, depth: int, place: tuple[Any, Any]) -> None:
    """Note a number, or those in a container or a plain object, under their names; of a list its length too."""
    value = alive(value)
    if isinstance(value, (bool, int, float)):
        found.shown[name] = repr(value)
        if not isinstance(value, bool):
            found.places[name] = (*place, value)
    elif isinstance(value, (Tensor, np.ndarray, np.number)):
        _enter_tensor(value, name, found)
    elif is_own_generator(value):
        found.shown[name] = shown_state_of(value)
    elif isinstance(value, Iterator):
        found.shown[name] = _place_of(value)
    elif isinstance(value, (dict, list, tuple, deque)):
        if not isinstance(value, dict):
            found.shown[f"the length of {name}"] = len(value)
        if len(value) <= MAX_ENTRIES and depth:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, each in list(entries):
                _enter(each, f"{name}[{key!r}]", found, depth - 1, (value, key))
    elif depth and not (_is_code(value) or measures(value)):
        for key in attributes_of(value):
            _enter(at(value, key), f"{name}.{key}", found, depth - 1, (value, key))


def _enter_tensor(value: Tensor | np.ndarray | np.number[Any], name: str, found: _Numbers) -> None:
    if not isinstance(value, Tensor):
        if value.size <= MAX_NUMBERS and value.dtype.kind in "fiu":
            found.shown[name] = repr(value.tolist())
        return
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
        return
    if value.numel() > MAX_NUMBERS:
        return
    found.shown[name] = repr(value.detach().tolist())
    if value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
        found.places[name] = (value, None, value.item())


def _is_code(value: Any) -> bool:
    return isinstance(value, (type, nn.Module)) or (callable(value) and attribute(value, "__code__") is not None)


def _place_of(iterator: Iterator[Any]) -> Any:
    """Where an iterator stands: what is left of it, or how it shows itself, as `itertools.count` does."""
    left, taken = operator.length_hint(iterator, -1), attribute(iterator, "_num_yielded")  # a loader's
    return repr(iterator) if left < 0 else (left, taken)


def _counting(before: _Numbers, then: _Numbers, now: _Numbers, calls: int) -> list[tuple[Any, Any, Any, float]]:
    """The numbers that grow or fall with every call: holder, key, value now, and the step of a call.

    before, then, now  before and after one call, and after so many calls more. What does not go on by its first step is
                       no count: an index that starts anew, a running mean.
    """
    found = []
    for name in _moved(before, then):
        if not (name in before.places and name in then.places and name in now.places):
            continue
        holder, key, value = now.places[name]
        first, rate = then.places[name][2] - before.places[name][2], (value - then.places[name][2]) / calls
        if np.isfinite(rate) and abs(rate - first) <= LINEAR * abs(first):
            found.append((holder, key, value, first))
    return found


def _far_ahead(
    counting: list[tuple[Any, Any, Any, float]], calls: int, factor: float, total: Callable[[], float]
) -> list[float]:
    """The losses with all these numbers as after `calls` calls more, and each time after `factor` times as many."""
    losses: list[float] = []
    ahead = float(calls)
    while counting and ahead <= MAX_AHEAD * factor:
        with suppress(Exception):  # it may be an index, and too large now; or stand where nothing can be set
            for holder, key, value, step in counting:
                _set(holder, key, value + step * round(ahead))
            losses.append(total())
        ahead *= factor
    for holder, key, value, _ in counting:  # `ModuleState` remembers so many objects and no more
        with suppress(Exception):
            _set(holder, key, value)
    return losses


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, Tensor):
        holder.data.fill_(value)
    elif isinstance(holder, (dict, list, deque)):
        holder[key] = value
    else:
        setattr(holder, key, value)
