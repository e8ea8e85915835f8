"""Functions that stand in a copy of a model, hooks or a `forward` put in the place of a method's, see the copy.

    model.head.register_forward_hook(lambda module, inputs, outputs: model.kept.append(outputs))

`copy.deepcopy` leaves functions as they are: such a hook would write into the model itself whenever its copy runs, and
a `forward` that closes over a layer would run that layer. So it is with functions in lists and objects, in
`functools.partial` and behind `lru_cache`; what they see stands in closures, defaults and attributes. What a function
takes from globals stays.
"""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import CellType, FunctionType, MethodType
from typing import Any

MAX_ENTRIES = 1000  # of a container that is looked into
PLAIN = frozenset((bool, int, float, str, type(None)))
CONTAINERS = frozenset((dict, OrderedDict, list, set))
MAX_DEPTH = 5  # of containers and objects within each other


def rebind(modules: Iterable[Any], copies: Mapping[int, Any]) -> None:
    """Give the modules of a model's copy functions of their own.

    copies  what the copy holds in the place of each of the model's objects, by their identity: deepcopy's memo
    """
    own = list(modules)
    entered, made = {id(module) for module in own}, _Copies(copies)
    for module in own:
        _enter(module.__dict__, made, entered, MAX_DEPTH)


class _Copies(dict[int, Any]):
    """What has been made so far of objects that `deepcopy` shares, by their identity; they stay alive."""

    def __init__(self, copies: Mapping[int, Any]) -> None:
        super().__init__()
        self.copies, self.alive = copies, list[Any]()

    def of(self, value: Any) -> Any:
        """The copy of a value; the value itself where there is none."""
        return self.copies.get(id(value), self.get(id(value), value))

    def note(self, value: Any, copy: Any) -> None:
        """Let this be its copy."""
        self.alive.append(value)
        self[id(value)] = copy


def _enter(value: Any, made: _Copies, entered: set[int], depth: int) -> None:
    """Give what a container or an object of the copy holds functions of their own."""
    held = value
    if not isinstance(value, (dict, list)):  # asked for a dictionary that it has not, an object may raise anything
        held = value.__dict__ if type(value).__dictoffset__ else None
    if not isinstance(held, (dict, list)) or isinstance(value, (FunctionType, type)) or not depth:
        return
    if id(held) in entered or len(held) > MAX_ENTRIES:
        return
    entered.add(id(held))
    for key, each in list(held.items() if isinstance(held, dict) else enumerate(held)):
        kind = type(each)
        if kind in PLAIN or (kind in CONTAINERS and not each):  # most attributes of most modules
            continue
        if kind is tuple and PLAIN.issuperset(map(type, each)):  # as a kernel's size
            continue
        if isinstance(each, (FunctionType, functools.partial, tuple)) or hasattr(kind, "cache_info"):
            rebound = _rebound(each, made)
            if rebound is not each:
                held[key] = rebound
        elif id(each) not in entered:
            _enter(each, made, entered, depth - 1)


def _rebound(value: Any, made: _Copies) -> Any:
    """A value as the copy has it: a function over copies where it sees some of the model's objects."""
    known = made.of(value)
    if known is not value or id(value) in made:
        return known
    if isinstance(value, MethodType):
        owner = _rebound(value.__self__, made)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, FunctionType):
        return _rebound_function(value, made)
    if isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
        func, args, keywords = after = [_rebound(part, made) for part in parts]
        return value if _are_same(after, parts) else functools.partial(func, *args, **keywords)
    if hasattr(type(value), "cache_info"):  # of functools.lru_cache
        function = _rebound(value.__wrapped__, made)
        return value if function is value.__wrapped__ else functools.lru_cache(**value.cache_parameters())(function)
    if type(value) in (dict, list, tuple) and len(value) <= MAX_ENTRIES:
        made.note(value, value)  # where it holds itself
        before = list(value.values() if isinstance(value, dict) else value)
        after = [_rebound(each, made) for each in before]
        if not _are_same(after, before):
            made.note(value, dict(zip(value, after, strict=True)) if isinstance(value, dict) else type(value)(after))
    return made.of(value)


def _rebound_function(value: FunctionType, made: _Copies) -> FunctionType:
    made.note(value, value)  # where another function sees it once more
    cells, itself = value.__closure__ or (), CellType()
    parts = value.__defaults__, value.__kwdefaults__, value.__dict__
    defaults, keywords, attributes = (_rebound(part, made) for part in parts)
    own = [itself if _content(c) is value else _rebound_cell(c, made) for c in cells]
    seen = [*zip(own, cells, strict=True), *zip((defaults, keywords, attributes), parts, strict=True)]
    if all(a is b or a is itself for a, b in seen):
        return value
    result = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, tuple(own))
    result.__kwdefaults__ = keywords
    result.__dict__.update(attributes)
    itself.cell_contents = result
    made.note(value, result)
    return result


def _rebound_cell(cell: CellType, made: _Copies) -> CellType:
    before = _content(cell)
    after = _rebound(before, made)
    return cell if after is before else CellType(after)


def _are_same(after: Sequence[Any], before: Sequence[Any]) -> bool:
    return all(map(operator.is_, after, before))


def _content(cell: CellType) -> Any:
    """What a variable of a closure holds; None where nothing stands in it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


__all__ = ["rebind"]
