"""What modules of the user's hold, and how it is put back: their globals, and what stands inside of these.

Kept are the bindings of globals and of attributes of classes; of functions their attributes, defaults and closures;
the contents of lists, dictionaries, sets and of instances of the user's classes, however deep; the next numbers of
generators; and the values of small arrays and tensors that are changed in place. Each is put back in place, so that
whoever holds it sees it. What can change and is not kept (networks, arrays of more than MAX_ELEMENTS elements,
iterators and files, containers of more than MAX_ITEMS items, objects of installed packages) is noted with a mark by
which a change shows (`marks.py`).

Cost: some 30 microseconds a module of 50 globals. No torch is imported here.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lossmap.process_state.marks import AS_THEMSELVES, is_plain, mark_of

PLAIN = (bool, int, float, complex, str, bytes, type(None))
MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
MAX_ITEMS = 10_000  # of one container
MAX_ELEMENTS = 1 << 14  # of one array
MAX_KEPT = 20_000  # things of one module


class Kind(NamedTuple):
    """How a kind of thing is kept.

    read    its contents, as a copy
    write   puts them back
    within  what stands in the contents
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    within: Callable[[Any], Collection[Any]]


def _nothing(contents: Any) -> tuple[Any, ...]:
    return ()


def _bindings(holder: ModuleType | type) -> dict[str, Any]:
    """Names and values, without modules and what Python itself sets."""
    return {
        name: value
        for name, value in list(vars(holder).items())
        if not isinstance(value, ModuleType) and (not name.startswith("__") or isinstance(value, FunctionType))
    }


def _bind(holder: ModuleType | type, wanted: dict[str, Any]) -> None:
    now = _bindings(holder)
    for name, value in wanted.items():
        if name not in now or not _same(now[name], value):
            setattr(holder, name, value)
    for name in now.keys() - wanted.keys():
        if isinstance(now[name], PLAIN):  # code that was still being executed when this was read stays whole
            delattr(holder, name)


def _of_function(function: FunctionType) -> tuple[Any, ...]:
    return dict(vars(function)), function.__defaults__, function.__kwdefaults__, function.__closure__


def _put_function(function: FunctionType, contents: tuple[Any, ...]) -> None:
    attributes, function.__defaults__, function.__kwdefaults__, _ = contents
    _refill(vars(function), attributes)


def _in_function(contents: tuple[Any, ...]) -> list[Any]:
    attributes, defaults, keywords, cells = contents
    return [*attributes.values(), *(defaults or ()), *(keywords or {}).values(), *(cells or ())]


def _of_cell(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not bound yet
        return ()


def _put_cell(cell: CellType, contents: tuple[Any, ...]) -> None:
    if contents:
        cell.cell_contents = contents[0]


def _refill(mapping: dict[Any, Any], contents: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(contents)


def _replace(container: Any, contents: Any) -> None:
    container.clear()
    (container.extend if hasattr(container, "extend") else container.update)(contents)


def _of_array(array: np.ndarray) -> bytes:
    return array.tobytes()


def _put_array(array: np.ndarray, contents: bytes) -> None:
    if array.flags.writeable:
        array[...] = np.frombuffer(contents, array.dtype).reshape(array.shape)


MODULE = Kind(_bindings, _bind, dict.values)
CLASS = Kind(_bindings, _bind, dict.values)
FUNCTION = Kind(_of_function, _put_function, _in_function)
CELL = Kind(_of_cell, _put_cell, tuple)
MAPPING = Kind(dict, _refill, dict.values)
LIST = Kind(list, _replace, list)
SET = Kind(set, _replace, _nothing)
ATTRIBUTES = Kind(lambda thing: dict(vars(thing)), lambda thing, contents: _refill(vars(thing), contents), dict.values)
ARRAY = Kind(_of_array, _put_array, _nothing)
TUPLE = Kind(tuple, lambda thing, contents: None, tuple)
RANDOM = Kind(random.Random.getstate, random.Random.setstate, _nothing)
NUMPYS = Kind(
    lambda generator: generator.bit_generator.state,
    lambda generator, state: setattr(generator.bit_generator, "state", state),
    _nothing,
)
NUMPYS_OLD = Kind(
    lambda generator: generator.get_state(), lambda generator, state: generator.set_state(state), _nothing
)
PYTORCHS = Kind(
    lambda generator: generator.get_state().numpy().tobytes(),
    lambda generator, state: generator.set_state(_pytorchs_bytes(state)),
    _nothing,
)
TENSOR = Kind(
    lambda tensor: tensor.numpy().tobytes(),
    lambda tensor, contents: _put_array(tensor.numpy(), contents),
    _nothing,
)
BY_TYPE: dict[type, Kind] = {
    **dict.fromkeys(MAPPINGS, MAPPING),
    list: LIST,
    deque: LIST,
    set: SET,
    tuple: TUPLE,
    CellType: CELL,
    SimpleNamespace: ATTRIBUTES,
    random.Random: RANDOM,
    np.random.Generator: NUMPYS,
    np.random.RandomState: NUMPYS_OLD,
}


def _pytorchs_bytes(state: bytes) -> Any:
    return sys.modules["torch"].frombuffer(bytearray(state), dtype=sys.modules["torch"].uint8)


def _kind_of(value: Any, is_users: Callable[[str], bool]) -> Kind | None:
    """How a thing is kept; None: not at all, or as it is."""
    known = BY_TYPE.get(type(value))
    if known is not None:
        return known if known is CELL or not hasattr(value, "__len__") or len(value) <= MAX_ITEMS else None
    if isinstance(value, FunctionType):
        return FUNCTION if is_users(value.__module__) else None
    if isinstance(value, type):
        return CLASS if is_users(value.__module__) else None
    if type(value) is np.ndarray:
        return ARRAY if value.size <= MAX_ELEMENTS and not value.dtype.hasobject else None
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return TENSOR if _is_small_tensor(value, torch) else None
        if isinstance(value, torch.Generator):
            return PYTORCHS if value.device.type == "cpu" else None
        if isinstance(value, torch.nn.Module):
            return None
    if is_users(type(value).__module__) or type(value).__module__ == "argparse":
        with suppress(AttributeError):
            return ATTRIBUTES if type(object.__getattribute__(value, "__dict__")) is dict else None
    return None


def _has_more(value: Any) -> bool:
    """Whether an object holds more than the attributes in its dictionary: items, or slots."""
    kind = type(value)
    has_items = isinstance(value, (dict, list, tuple)) or not is_plain(kind)
    return has_items or any("__slots__" in vars(parent) for parent in kind.__mro__)


def _is_small_tensor(tensor: Any, torch: Any) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_inference()
        and not tensor.is_nested
        and tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool)
        and tensor.numel() <= MAX_ELEMENTS
    )


@dataclass(frozen=True)
class Kept:
    """One thing: itself, how it is kept, and its contents."""

    thing: Any
    kind: Kind
    contents: Any

    def is_as_kept(self) -> bool:
        """Whether its contents are still these."""
        return _same_contents(self.kind.read(self.thing), self.contents)


@dataclass(frozen=True)
class Held:
    """What one module holds at one time.

    things  what is kept, by its identity
    others  what can change and is not kept
    """

    things: dict[int, Kept]
    others: tuple[Any, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, module: ModuleType, is_users: Callable[[str], bool], besides: Collection[int] = ()) -> Held:
        """What a module holds now.

        is_users  whether a module of this name is the user's
        besides   identities of things that are not kept with this module
        """
        things: dict[int, Kept] = {}
        others: dict[int, Any] = {}
        waiting: list[tuple[Any, Kind]] = [(module, MODULE)]
        while waiting and len(things) < MAX_KEPT:
            thing, kind = waiting.pop()
            contents = kind.read(thing)
            things[id(thing)] = Kept(thing, kind, contents)
            for value in kind.within(contents):
                if isinstance(value, PLAIN) or id(value) in things or id(value) in besides:
                    continue
                of_value = _kind_of(value, is_users)
                if of_value is not None:
                    waiting.append((value, of_value))
                is_whole = of_value is not None and not (of_value is ATTRIBUTES and _has_more(value))
                if not is_whole and not isinstance(value, AS_THEMSELVES):
                    others[id(value)] = value
        return cls(things, tuple(others.values()))

    def marks(self) -> list[tuple[Any, Any]]:
        """What can change and is not kept, each with a mark: another one at another time shows a change."""
        return [(thing, mark_of(thing)) for thing in self.others]

    def put(self) -> None:
        """Put back what has changed."""
        for kept in self.things.values():
            if not kept.is_as_kept():
                kept.kind.write(kept.thing, kept.contents)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Held)
            and self.things.keys() == other.things.keys()
            and all(_same_contents(kept.contents, other.things[key].contents) for key, kept in self.things.items())
        )

    __hash__ = None  # type: ignore[assignment]


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, PLAIN) and bool(a == b))


def _same_contents(a: Any, b: Any) -> bool:
    """Whether two copies of a thing's contents are the same, by the identity of all that is no plain number or text."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(x == y and _same_value(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same_value(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _same_value(a: Any, b: Any) -> bool:
    if type(a) is dict and type(b) is dict:  # a copy that was made with the contents, or one that is kept by itself
        return a is b or _same_contents(a, b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or bool(a.tobytes() == b.tobytes())
    return _same(a, b)
