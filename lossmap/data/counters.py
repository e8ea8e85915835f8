"""Numbers that every call of a model or its loss changes: schedules, warm-up counters, annealed weights.

A loss that depends on how often it was called is no function of the weights. Most such counters show in the second call
already, or only in the fiftieth: so where some number moves, the same batch is evaluated many more times, and once more
with every whole number of the model far ahead. All is put back afterwards, but iterators in a loss's closure.

Price: two passes over a few samples; some hundred and thirty where a number moves.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch
from lossmap.data.borrow import STANDARD, ModuleState, temporary_parameters
from lossmap.data.outside_state import at, modules_beside, name_of_place, places_of
from lossmap.data.problem import Problem
from lossmap.seeding import same_random_state

CALLS = 128  # evaluations of one batch among which a schedule is to show
CALLS_OF_LARGE = 16
LARGE = 1_000_000  # parameters from which fewer are made
AHEAD = (1_000, 10_000, 1_000_000)  # how far whole numbers of the model are set ahead
MAX_NUMBERS = 16  # of a tensor that may be a counter
MAX_ENTRIES = 1_000  # of a container that is looked into
MAX_DEPTH = 3


@dataclass(frozen=True)
class Counters:
    """What moves with every call, and what that does to the loss of one batch.

    names      of the numbers, such as `anneal.step`
    is_inside  whether all of them belong to the model, so that they are as before at every point
    low, high  the smallest and the largest loss of the batch among the calls
    calls      how many these were
    changes    whether they differ by more than rounding
    """

    names: tuple[str, ...]
    is_inside: bool
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
        try:
            total()  # the first one may build what stays
            inside, outside = _inside(model), _outside(model)
            values = [total()]
            moved = _moved(inside, _inside(model))
            names = (*moved, *_moved(outside, _outside(model)))
            if not names:
                return None
            size = sum(p.numel() for p in model.parameters())
            calls = CALLS if size <= LARGE else CALLS_OF_LARGE
            values += [total() for _ in range(calls - 1)]
            for ahead in AHEAD:
                if _set_ahead(model, moved, ahead):
                    with suppress(Exception):  # it may be an index, and too large now
                        values.append(total())
        finally:
            state.restore(everything=True)
    finite = [v for v in values if np.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (np.nan, np.nan)
    changes = len(finite) not in (0, len(values)) or high - low > tolerance * max(abs(low), abs(high))
    return Counters(names, len(names) == len(moved), low, high, calls, changes)


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name, value in before.items() if name in after and after[name] != value]


def _inside(model: nn.Module) -> dict[str, Any]:
    """The numbers that the modules of a model hold, by name."""
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        if not type(module).__module__.startswith("torch.nn."):  # batch norm counts, and its evaluation does not ask
            _enter_module(module, prefix, found)
    return found


def _outside(model: nn.Module) -> dict[str, Any]:
    """Those of the modules and functions that take part beside it."""
    found: dict[str, Any] = {}
    for module in modules_beside(model):
        _enter_module(module, type(module).__name__, found)
    for holder, name in places_of(model):
        _enter(at(holder, name), name_of_place(model, holder, name), found, MAX_DEPTH)
    return found


def _enter_module(module: nn.Module, prefix: str, found: dict[str, Any]) -> None:
    for name, value in (*module._buffers.items(), *vars(module).items()):
        if name not in STANDARD:
            _enter(value, f"{prefix}.{name}".lstrip("."), found, MAX_DEPTH)


def _enter(value: Any, name: str, found: dict[str, Any], depth: int) -> None:
    """Note a number, or those in a container or a plain object, under their names; of a list its length too."""
    if isinstance(value, (bool, int, float)):
        found[name] = repr(value)
    elif isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_meta and value.numel() <= MAX_NUMBERS:
            found[name] = repr(value.detach().tolist())
    elif isinstance(value, Iterator):
        found[name] = _place_of(value)
    elif isinstance(value, (dict, list, tuple, deque)):
        if not isinstance(value, dict):
            found[f"the length of {name}"] = len(value)
        if len(value) <= MAX_ENTRIES and depth:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, each in list(entries):
                _enter(each, f"{name}[{key!r}]", found, depth - 1)
    elif depth and isinstance(getattr(value, "__dict__", None), dict) and not _is_code(value):
        for key, each in list(vars(value).items()):
            _enter(each, f"{name}.{key}", found, depth - 1)


def _is_code(value: Any) -> bool:
    return isinstance(value, (type, nn.Module)) or (callable(value) and hasattr(value, "__code__"))


def _place_of(iterator: Iterator[Any]) -> Any:
    """Where an iterator stands: what is left of it, or how it shows itself, as `itertools.count` does."""
    left = operator.length_hint(iterator, -1)
    return repr(iterator) if left < 0 else left


def _set_ahead(model: nn.Module, names: list[str], ahead: int) -> bool:
    """Add so much to the whole numbers of the model that moved; whether there are any."""
    modules, is_set = dict(model.named_modules()), False
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        value = None if module is None else getattr(module, attribute, None)
        if isinstance(value, Tensor) and not value.is_floating_point():
            value.data += ahead
            is_set = True
        elif isinstance(value, int) and not isinstance(value, bool):
            setattr(module, attribute, value + ahead)
            is_set = True
    return is_set
