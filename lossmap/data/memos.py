"""What an earlier pass made of a model's weights and the model keeps: it stays as it is at other weights.

A `functools.cached_property` of a weight, or an attribute that is computed `if self.kept is None`, is right for the
weights of the pass that made it. Such a one is found at weights moved at random, where the loss without it is another,
by either of two signs: what the next pass puts in its place follows the weights, or at the model's own weights nothing
is missing without it and the loss depends on more parameters then. What is made of constants, a table of positions or
random features, is made anew the same; what the model is given, a mask that may be None, is not made anew and is
missing everywhere; with the former weights that a penalty holds the present ones to, the loss depends on all of them.
What is kept by the shape of a batch is made for these samples by a pass at the model's own weights first.

What `functools.lru_cache` keeps is looked at in the same way, by calling the functions behind. What is kept elsewhere
outside of the model is found by a copy of it, for which nothing is kept yet: at the moved weights both must have one
loss.

Price: three passes over a few samples and a copy of the model; of models that keep numbers beside parameters and
buffers three more, and up to six for each of `MAX_MEMOS` names where the model needs some of them; of those that call
functions of `lru_cache` two, and four for each of them.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.attributes import attribute, dictionary_of
from lossmap.data.batches import Batch
from lossmap.data.borrow import copy_of, entries_of, restored, temporary_parameters
from lossmap.data.gradients import each_gradient
from lossmap.data.module_state import CLOSED, CONTAINERS, STANDARD, ModuleState, restore_entries
from lossmap.data.moved_weights import MovedWeights
from lossmap.data.outside_state import (
    NOTHING,
    Place,
    at,
    caches_of,
    goes_on_elsewhere,
    measures,
    modules_beside,
    name_of_place,
    places_of,
    put,
    slots_of,
    without_cache,
)
from lossmap.data.problem import Problem
from lossmap.data.skipped_checks import skip
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import same_random_state
from lossmap.sums import for_float64

MAX_MEMOS = 32
MAX_ENTRIES = 1000  # of a container that is looked into
MAX_DEPTH = 3  # of containers and plain objects within each other
REPEATS = 4  # evaluations that must agree
MAX_COPIED = 50_000_000  # parameters of a model that is copied


@dataclass(frozen=True)
class Memo:
    """Numbers, or a container of some, that may be one: where they are kept, under which key, and what to call them.

    alike  what those of modules of one class under one name have in common: they are looked at together
    """

    holder: Any
    key: str
    name: str
    alike: str = ""

    @property
    def value(self) -> Any:
        """What is kept there now."""
        return at(self.holder, self.key)

    @property
    def ways(self) -> tuple[bool, ...]:
        """Whether to take it away entirely: a container is emptied, an attribute deleted or set to None."""
        return (True,) if type(self.value) in CONTAINERS else (True, False)

    def forget(self, entirely: bool) -> None:
        """Take it away, or put None in its place; of a container what it holds."""
        if type(self.value) in CONTAINERS:
            self.value.clear()
        else:
            put(self.holder, self.key, NOTHING if entirely else None)


@dataclass(frozen=True)
class _Outcome:
    """The loss without something that may be a memo, None where it fails so, and what was made in its place."""

    value: float | None
    made: tuple[Any, ...] = ()


def stale_memo(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The name of what an earlier pass made of the weights, and later ones take as it is; None without any.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    if not memos_of(model):
        return None
    moved = MovedWeights(model)
    with torch.enable_grad(), temporary_parameters(model, {}), restored(model) as state:
        memos = memos_of(model)
        try:
            own = _value(problem, batch)
        except Exception as error:  # user code may raise any exception
            skip("what an earlier pass has left", error, problem, batch)
            return None
        _keep_only(memos, state)
        with moved.borrowed():
            expected = _without(model, problem, batch).value
            together = _without(model, problem, batch, memos).value
        if expected is None or (together is not None and _agree(expected, together, tolerance)):
            return None
        for group in _groups(memos)[:MAX_MEMOS]:
            for entirely in group[0].ways:
                with moved.borrowed():
                    there = _without(model, problem, batch, group, entirely)
                if there.value is None or _agree(expected, there.value, tolerance):
                    continue
                here = _without(model, problem, batch, group, entirely)
                if here.value is None:
                    continue
                kept_same = _agree(own, here.value, tolerance)
                is_made = _differ(here.made, there.made, tolerance)
                if is_made or (kept_same and _stand_for_weights(group, entirely, problem, batch)):
                    more = f" (and {len(group) - 1} more of this name)" if len(group) > 1 else ""
                    return group[0].name + more
    return None


def _groups(memos: Sequence[Memo]) -> list[list[Memo]]:
    """Those of modules of one class under one name together: a deep network has many that are alike."""
    groups: dict[str, list[Memo]] = {}
    for memo in memos:
        groups.setdefault(memo.alike, []).append(memo)
    return list(groups.values())


def _stand_for_weights(group: Sequence[Memo], entirely: bool, problem: Problem, batch: Batch) -> bool:
    """Whether the loss depends on more parameters without these, or one has a graph.

    The former weights that a penalty holds the present ones to are missing nowhere at the weights themselves either,
    and the loss depends on all parameters with them.
    """
    if any(isinstance(t, Tensor) and t.grad_fn is not None for memo in group for t in entries_of(memo.value)):
        return True
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    with MovedWeights(problem.model).borrowed(), restored(problem.model):
        try:
            before = _reached(problem, batch, parameters)
            with _forgotten(group, entirely):
                return bool(_reached(problem, batch, parameters) - before) or not parameters
        except Exception as error:  # user code may raise any exception
            skip("what an earlier pass has left", error, problem, batch)
            return True


def _reached(problem: Problem, batch: Batch, parameters: Sequence[Tensor]) -> set[int]:
    """Which of these parameters the loss depends on."""
    with same_random_state(20):
        loss = problem.total(batch)
    if not loss.requires_grad:
        return set()
    reached: set[int] = set()

    def take(i: int, gradient: Tensor) -> None:
        if bool(gradient.any()):
            reached.add(i)

    each_gradient(loss, parameters, take)
    return reached


def stale_cache(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The name of a function whose `functools.lru_cache` keeps what is made of the weights; None where none does.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    caches = caches_of(model)
    if not caches:
        return None
    moved = MovedWeights(model)
    with torch.enable_grad(), temporary_parameters(model, {}):
        own = _without(model, problem, batch).value  # what is kept is kept of the model's own weights
        with moved.borrowed():
            kept = _without(model, problem, batch).value
        if own is None or kept is None:
            return None
        for place in caches:
            here = _anew(place, problem, batch)
            with moved.borrowed():
                there, repeated = _anew(place, problem, batch), _without(model, problem, batch).value
            if there.value is None or _agree(kept, there.value, tolerance) or not _agree(kept, repeated, tolerance):
                continue
            if _agree(own, here.value, tolerance) or _differ(here.made, there.made, tolerance):
                return name_of_place(model, *place)
    return None


def _anew(place: Place, problem: Problem, batch: Batch) -> _Outcome:
    """The loss where the function in this place is called anew each time, and what that returns."""
    before = at(*place)
    made: list[Any] = []

    def noting(function: Any) -> Any:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            made.extend(_numbers_in(result))
            return result

        return called

    try:
        put(*place, without_cache(before, noting))
        return replace(_without(problem.model, problem, batch), made=tuple(made))
    finally:
        put(*place, before)


def kept_outside(
    problem: Problem, batch: Batch, tolerance: float, fresh_loss: Callable[[], float] | None = None
) -> str | None:
    """What keeps something made of the weights outside of the model, by name where it has one; None where nothing does.

    tolerance   relative difference of two values that is rounding
    fresh_loss  the loss at the moved weights by a copy in another precision, where there is one: it speaks for the
                model where both are the same, and a copy in its own precision is asked where they are not. The model
                has been evaluated over this batch at its own weights then
    """
    model = problem.model
    if sum(p.numel() for p in model.parameters()) > MAX_COPIED:
        return None
    moved = MovedWeights(model)
    with torch.enable_grad():
        if fresh_loss is not None and _agrees_with(fresh_loss, moved, problem, batch, tolerance):
            return None
        with temporary_parameters(model, {}):
            own = _without(model, problem, batch).value  # what is kept is kept of the model's own weights
        try:
            twin = copy_of(model)
        except Exception as error:  # it cannot be copied
            skip("what an earlier pass has left outside of the model", error, problem, batch)
            return None
        # both are moved, since what a function of the twin closes over is the model's
        with moved.borrowed(), MovedWeights(twin).borrowed():
            fresh_problem = replace(problem, model=twin)
            pairs = []
            for _ in range(REPEATS):  # a loss that is not repeatable has other reasons, which others name
                pairs.append((_without(model, problem, batch).value, _without(twin, fresh_problem, batch).value))
                if _agree(*pairs[-1], tolerance):
                    return None
    if own is None or not all(_agree(a, b, tolerance) for each in zip(*pairs, strict=True) for a, b in pairwise(each)):
        return None
    with torch.enable_grad():  # a loss that sets the model's own modules to work is another function of the twin
        twin = copy_of(model)
        with temporary_parameters(model, {}), temporary_parameters(twin, {}):
            if not _agree(own, _without(twin, replace(problem, model=twin), batch).value, tolerance):
                return None
    return ", ".join(_caches(model)) or "something outside of the model"


def _agrees_with(
    fresh_loss: Callable[[], float], moved: MovedWeights, problem: Problem, batch: Batch, tolerance: float
) -> bool:
    """Whether the loss at moved weights is, as a number, that of a copy in another precision; see `kept_outside`."""
    with moved.borrowed():  # both are moved
        own = _without(problem.model, problem, batch).value
        try:
            fresh = fresh_loss()
        except Exception as error:  # user code may raise any exception
            raise_if_of_device(error)
            return False
    return own is not None and isfinite(fresh) and _agree(own, fresh, tolerance)


def _caches(model: nn.Module) -> list[str]:
    """What may keep something: functions of `functools.lru_cache`, and dictionaries that hold something."""
    found = {name_of_place(model, *place): None for place in caches_of(model)}
    for holder, key in places_of(model):
        if isinstance(at(holder, key), dict) and at(holder, key):
            found[name_of_place(model, holder, key)] = None
    return list(found)


def memos_of(model: nn.Module) -> list[Memo]:
    """What may be one: numbers that are neither parameters nor buffers, and containers of them."""
    found: list[Memo] = []
    known = {id(module) for module in model.modules()}
    for prefix, module in model.named_modules():
        _enter_module(module, prefix, found, known)
    for module in modules_beside(model):
        _enter_module(module, type(module).__name__, found, known)
    for holder, key in places_of(model):
        _enter(holder, key, name_of_place(model, holder, key), found, known, MAX_DEPTH)
    return [memo if memo.alike else replace(memo, alike=f"{id(memo.holder)} {memo.key}") for memo in found]


def _enter_module(module: nn.Module, prefix: str, found: list[Memo], known: set[int]) -> None:
    start = len(found)
    for key in list(vars(module)):
        name = f"{prefix}.{key}".lstrip(".")
        if key in STANDARD:
            continue
        is_property = isinstance(getattr(type(module), key, None), functools.cached_property)
        if is_property or (isinstance(vars(module)[key], (float, int)) and key in _stored_by_methods(type(module))):  # type: ignore[arg-type]
            found.append(Memo(vars(module), key, name))
        else:
            _enter(vars(module), key, name, found, known, MAX_DEPTH)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    found[start:] = [replace(memo, alike=memo.alike or kind + memo.name[len(prefix) :]) for memo in found[start:]]


@functools.lru_cache(maxsize=10_000)
def _stored_by_methods(cls: type) -> frozenset[str]:
    """The attributes that methods of a class set, beside its `__init__`: a number may be made by a pass there alone."""
    names: set[str] = set()
    for each in cls.__mro__:
        for name, value in vars(each).items() if not each.__module__.startswith("torch.") else ():
            function = attribute(value, "fget") or attribute(value, "__func__", value)
            code = attribute(function, "__code__")
            if code is not None and name != "__init__":
                names |= {str(i.argval) for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    return frozenset(names)


def _enter(holder: Any, key: str, name: str, found: list[Memo], known: set[int], depth: int) -> None:
    """Note numbers, a container that holds some, or those within a plain object, as far as they can be put back."""
    value = at(holder, key)
    if _are_numbers(value):
        found.append(Memo(holder, key, name))
        return
    if isinstance(value, CLOSED) or id(value) in known or not depth or measures(value) or goes_on_elsewhere(value):
        return
    known.add(id(value))
    if type(value) in CONTAINERS or type(value) is tuple:
        if len(value) > MAX_ENTRIES:
            return
        entries = list(value.items() if isinstance(value, dict) else enumerate(value))
        if any(_are_numbers(each) or (type(each) is tuple and any(map(_are_numbers, each))) for _, each in entries):
            found.append(Memo(holder, key, name))
            return
        for inner, each in entries:  # a container within one is emptied by itself
            _enter({inner: each}, inner, f"{name}[{inner!r}]", found, known, depth - 1)
    elif isinstance(value, nn.Module):  # in a list or an object: none of the model's own
        _enter_module(value, name, found, known)
    elif (own := dictionary_of(value)) is not None:
        for inner in list(own):
            _enter(own, inner, f"{name}.{inner}", found, known, depth - 1)
    else:
        for inner in slots_of(value):
            _enter(value, inner, f"{name}.{inner}", found, known, depth - 1)


def _are_numbers(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fc"
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.is_nested:
        return False
    return value.is_floating_point() or value.is_complex()


def _numbers_in(value: Any, depth: int = MAX_DEPTH) -> list[Any]:
    """Copies of the numbers that a value is or holds."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)]
    if isinstance(value, (float, complex)):
        return [torch.tensor(value)]
    if not isinstance(value, (*CONTAINERS, tuple)) or not depth:
        return []
    return [n for each in entries_of(value) for n in _numbers_in(each, depth - 1)]


def _differ(here: Sequence[Tensor], there: Sequence[Tensor], tolerance: float) -> bool:
    """Whether what was made at two places differs by more than rounding; False where it cannot be compared."""
    if len(here) != len(there):
        return False
    for a, b in zip(here, there, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return True
        if a.layout == torch.strided and a.numel():
            wide = torch.complex128 if a.is_complex() else torch.float64
            a, b = (for_float64(t.detach()).to(wide) for t in (a, b))
            gap, size = float((a - b).abs().max()), float(torch.maximum(a.abs(), b.abs()).max())
            if np.isfinite(gap) and gap > tolerance * size:
                return True
    return False


def _without(
    model: nn.Module, problem: Problem, batch: Batch, memos: Sequence[Memo] = (), entirely: bool = True
) -> _Outcome:
    """The loss without some of them, which fails without a constant, and what is kept in their place then."""
    with restored(model):
        try:
            with _forgotten(memos, entirely):
                value = _value(problem, batch)
                are_alike = len({memo.alike for memo in memos}) == 1  # not of all there are, of which nothing is asked
                return _Outcome(value, tuple(n for m in memos for n in _numbers_in(m.value)) if are_alike else ())
        except Exception as error:  # user code may raise any exception
            skip("what an earlier pass has left", error, problem, batch)
            return _Outcome(None)


@contextmanager
def _forgotten(memos: Sequence[Memo], entirely: bool) -> Iterator[None]:
    """Without these, which are put back by themselves: `ModuleState` knows of so many objects and no more."""
    kept = [(memo, memo.value) for memo in memos]
    contents = [(value, value.copy()) for _, value in kept if type(value) in CONTAINERS]
    try:
        for memo in memos:
            memo.forget(entirely)
        yield
    finally:
        for memo, value in kept:
            if memo.value is not value:
                put(memo.holder, memo.key, value)
        for container, entries in contents:
            restore_entries(container, entries)


def _value(problem: Problem, batch: Batch) -> float:
    with same_random_state(20):
        return float(problem.total(batch).detach())


def _keep_only(memos: Sequence[Memo], state: ModuleState) -> None:
    """Let all be as before a pass, but for what it added to these memos: the rest is taken away after every pass."""
    containers = [memo.value for memo in memos if type(memo.value) in CONTAINERS]
    added = [(container, container.copy()) for container in containers]
    state.restore()
    for container, entries in added:
        restore_entries(container, entries)


def _agree(a: float | None, b: float | None, tolerance: float) -> bool:
    """Whether two values differ by rounding alone, or one of them says nothing."""
    if a is None or b is None:
        return True
    gap = abs(a - b)
    return not np.isfinite(gap) or gap <= tolerance * max(abs(a), abs(b))
