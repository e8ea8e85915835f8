"""What the modules of a model keep, and what its code and that of its loss keep beside it: remembered and put back.

A pass is to leave nothing: neither the next one nor the training that goes on may see that there was one. So whatever
hangs on the modules, on the loss and on what these use is looked at before, and is put back after: attributes, entries
of containers, slots, the values of tensors and arrays, counters, and the states of random generators.

Objects are looked into breadth first, and what long containers hold comes last; a look that is made at every point ends
at so many objects. What lies beyond is looked at once, in `watch_what_is_far`: what a pass has changed there is
remembered from then on.

Price: a look at the attributes of every module, some microseconds for each tensor beside the model, and a copy of those
that are small; of a large one when it is written to (see `lossmap.copies`).
"""

from __future__ import annotations

import operator
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lossmap.attributes import dictionary_of
from lossmap.copies import MIN_LAZY_BYTES, copy_without_memory, has_own_storage, lazy_copy, same_memory
from lossmap.data.outside_state import (
    at,
    cache_of,
    caches_of,
    goes_on_elsewhere,
    is_installed_class,
    measures,
    modules_beside,
    originals_beside,
    places_of,
    put,
    slots_of,
    watched_beside,
)
from lossmap.module_walks import modules_of, named_tensors
from lossmap.seeding import GENERATORS, is_own_generator, set_state_of, state_of

MAX_KEPT = 1 << 20  # numbers of a buffer beside the model that is put back although it is copied at once
MAX_CONVERTED, MAX_CONVERTED_ENTRIES = 1 << 22, 1000  # numbers of a tensor, and entries, in another precision
MANY = 1000  # entries of a container that are looked into by one look that goes far, and not around every pass
LONG = 16  # entries of a list from which they are looked into last; of attributes and dictionaries six times as many
CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
PLAIN = frozenset((bool, int, float, str, type(None)))
CLOSED = (Tensor, str, bytes, int, float, type(None), type, types.ModuleType, types.FunctionType)
OF_THREADS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Thread)
# every module has these: hooks, parameters, submodules
STANDARD = frozenset(nn.Module().__dict__)
STANDARD_CONTAINERS = tuple(name for name, value in nn.Module().__dict__.items() if type(value) in CONTAINERS)

_MISSING = object()


@dataclass(frozen=True)
class Reach:
    """How far beside the modules is looked: objects with tensors, entries of a container, bytes copied at once."""

    objects: int
    entries: int
    copied: int


INSIDE = Reach(objects=500, entries=100_000, copied=8 << 20)
USUAL = Reach(objects=300, entries=100_000, copied=4 << 20)
FAR = Reach(objects=50_000, entries=10_000_000, copied=1 << 30)


class ModuleState:
    """What the modules of a model keep, beside the values of their tensors; `restore` puts it back.

    Attributes are compared by identity; lists, dictionaries, sets and plain objects below a module are looked into.
    """

    def __init__(self, model: nn.Module, reach: Reach = USUAL) -> None:
        self.attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.contents: list[tuple[Any, Any]] = []
        self.slots: list[tuple[Any, str, Any]] = []  # objects without a dictionary, a name and what stands there
        self.empty: list[Any] = []  # dictionaries of the modules' own that hold nothing, as those of hooks mostly
        self.is_cut = False  # whether there is more than the reach allows
        self._beside: list[tuple[Tensor, Tensor]] = []  # tensors that are none of the model's, and their values
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._generators: list[tuple[Any, Any]] = []
        modules = modules_of(model)
        self._known = {id(module) for module in modules}
        self._holders: dict[int, Any] = {}  # by identity: in what each was found, the object of a `__dict__`
        self._reach = INSIDE
        self._entered = self._copied = 0
        self._model = model
        self._own_storages: set[int] | None = None
        self.attributes.extend((module.__dict__, module.__dict__.copy()) for module in modules)
        self._modes = [
            (m, m.training) for m in modules if "training" not in m.__dict__
        ]  # TorchScript keeps it elsewhere
        self._walk([held for module in modules for held in self._enter_module(module)])
        self._inside = len(self.attributes), len(self.contents), len(self.slots)
        self._enter_outside(model, reach)
        caches = [cache_of(at(holder, name)) for holder, name in caches_of(model)]
        self._empty = [c for c in caches if hasattr(c, "cache_info") and not c.cache_info().currsize]

    def _enter_outside(self, model: nn.Module, reach: Reach) -> None:
        """Remember what is kept beside the model: in modules that its loss uses, and in places that code leads to."""
        self._reach, within = FAR, list[Any]()
        for value in watched_beside(model):
            inner = self._enter(value)
            within.extend(inner)
            if _container_of(value) is not None:  # others beside a tensor that a pass has filled, as of each class one
                for each in inner:
                    if isinstance(each, (Tensor, np.ndarray)):
                        self._enter(each)
        self._reach, self._entered, self._copied, self.is_cut = reach, 0, 0, False
        held = self._enter_beside(modules_beside(model))
        buffers = [b for module in originals_beside(model) for b in module._buffers.values() if b is not None]
        self._beside.extend((b, lazy_copy(b)) for b in buffers if _is_put_back(b))
        self.places = [(holder, name, at(holder, name)) for holder, name in places_of(model)]
        self._walk([*held, *(value for _, _, value in self.places), *within])

    def _enter_beside(self, modules: Iterable[nn.Module]) -> list[Any]:
        """Remember modules that are none of the model's, and their tensors; returns what they hold besides.

        Also parameters: an average of the model's own, as of a teacher, may be moved by a pass.
        """
        held: list[Any] = []
        for module in modules:
            if id(module) not in self._known:
                self._known.add(id(module))
                self.attributes.append((module.__dict__, module.__dict__.copy()))
                tensors = [t for t in (*module._buffers.values(), *module._parameters.values()) if t is not None]
                self._beside.extend((t, lazy_copy(t)) for t in tensors if _is_put_back(t))
                held.extend(self._enter_module(module))
        return held

    def _enter_module(self, module: nn.Module) -> list[Any]:
        """Remember what is in the containers of every module's own; returns what else there is to be looked into."""
        own = module.__dict__
        held = [value for name, value in own.items() if name not in STANDARD and type(value) not in PLAIN]
        for container in map(own.get, STANDARD_CONTAINERS):
            if type(container) in CONTAINERS:
                if not container:
                    self.empty.append(container)
                    continue
                self.contents.append((container, container.copy()))
                if type(container) is OrderedDict:  # hooks, which may be methods of what keeps something
                    held.extend(container.values())
        return held

    def _walk(self, values: Iterable[Any]) -> None:
        """Look into values and what they hold, the near ones first, so that the reach is not spent in a long list."""
        near, far = deque(values), deque[Any]()
        while (near or far) and self._entered < self._reach.objects:
            value = near.popleft() if near else far.popleft()
            if type(value) in PLAIN:
                continue
            inner = self._enter(value)
            if len(inner) > MANY and self._reach is not FAR:  # a data set, of which one look is enough
                self.is_cut = True
                continue
            is_long = len(inner) > (LONG if isinstance(value, (list, tuple, set, deque)) else 6 * LONG)
            (far if is_long else near).extend(inner)
            if self._reach is FAR:
                self._holders.update((id(each), value) for each in inner)
        self.is_cut |= bool(near or far)

    def _enter(self, value: Any) -> Collection[Any]:
        """Remember one value, as it is now; returns what it holds."""
        try:
            if isinstance(value, CLOSED) or id(value) in self._known or is_plain(value):
                if type(value) is Tensor:
                    self._enter_tensor(value)
                return ()
            return self._enter_beside(value.modules()) if isinstance(value, nn.Module) else self._enter_object(value)
        except ReferenceError:  # a weak proxy of what is no more
            return ()

    def _enter_object(self, value: Any) -> Collection[Any]:
        if measures(value) or goes_on_elsewhere(value):
            return ()
        self._known.add(id(value))
        self._entered += 1
        if isinstance(value, np.ndarray):
            self._enter_array(value)
            return ()
        if isinstance(value, GENERATORS):
            self._generators.extend([(value, state_of(value))] if is_own_generator(value) else ())
            return ()
        if isinstance(value, types.MethodType):
            return (value.__self__,)
        inner = [value.func, *value.args, *value.keywords.values()] if isinstance(value, partial) else []
        if isinstance(value, tuple):
            return value
        kind = _container_of(value)
        if kind is not None:
            if len(value) > self._reach.entries:
                self.is_cut = True
                return ()
            entries = kind(value) if kind is not dict else dict(dict.items(value))
            self.contents.append((value, entries))
            inner.extend(entries.values() if isinstance(entries, dict) else entries)
        return [*inner, *self._enter_attributes(value)]

    def _enter_attributes(self, value: Any) -> Collection[Any]:
        """What an object holds in its dictionary, or in slots; nothing of an installed class's that threads share."""
        own = dictionary_of(value)
        slots = [(value, name, at(value, name)) for name in slots_of(value)]
        held = [*(own or {}).values(), *(each for _, _, each in slots)]
        if any(isinstance(each, OF_THREADS) for each in held) and is_installed_class(type(value)):
            return ()
        if own is not None:
            self.attributes.append((own, dict(own)))
            self._holders[id(own)] = value
        self.slots.extend(slots)
        return held

    def _enter_tensor(self, t: Tensor) -> None:
        """Remember the values of a tensor that is no module's own: a queue, or a table that a pass fills in place."""
        if t.is_inference() or not _is_put_back(t):
            return
        if self._own_storages is None:
            self._own_storages = {_storage(own) for own in named_tensors(self._model).values() if _is_put_back(own)}
        if _storage(t) in self._own_storages:  # a view of a parameter, which the one who moves it puts back
            return
        copied = copy_without_memory(t) if t.nbytes >= MIN_LAZY_BYTES else None
        if copied is None and self._has_room(t.nbytes):
            copied = lazy_copy(t) if torch.is_inference_mode_enabled() else t.data.clone()
        if copied is not None:
            self._entered += 1
            self._known.add(id(t))
            self._beside.append((t, copied))

    def _enter_array(self, array: np.ndarray) -> None:
        if array.flags.writeable and self._has_room(array.nbytes):
            self._arrays.append((array, array.copy()))

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may be copied, which are counted then."""
        if self._copied + size > self._reach.copied:
            self.is_cut = True
            return False
        self._copied += size
        return True

    def restore(self) -> None:
        """Put every attribute, entry, tensor and array back; what has been added is removed."""
        for cache in self._empty:
            if cache.cache_info().currsize:
                cache.cache_clear()
        put_back(self.places)
        for own, kept in self.attributes:
            if not _is_same(own, kept):
                own.clear()
                own.update(kept)
        for container, entries in self.contents:
            restore_entries(container, entries)
        for container in filter(None, self.empty):  # a hook that a first pass has registered, once for each of them
            container.clear()
        put_back(self.slots)
        for module, mode in self._modes:
            module.training = mode
        self._restore_values()

    def _restore_values(self) -> None:
        for tensor, value in self._beside:
            if _is_moved(tensor, value):
                tensor.data.copy_(value)
        for array, kept_array in self._arrays:
            if _is_other(array, kept_array):
                array[...] = kept_array
        for each, state in self._generators:
            set_state_of(each, state)

    def held_inside(self) -> list[Any]:
        """The dictionaries and containers that the model itself leads to."""
        attributes, contents, _ = self._inside
        return [own for own, _ in (*self.attributes[:attributes], *self.contents[:contents])]

    def moved_beside(self) -> list[Any]:
        """What outside of the model is otherwise than it was, and what holds it: objects, containers, tensors."""
        attributes, contents, slots = self._inside
        changed = [own for own, kept in self.attributes[attributes:] if not _is_same(own, kept)]
        found = [self._holders.get(id(own), own) for own in changed]
        found += [each for each, entries in self.contents[contents:] if not has_entries(each, entries)]
        named = [*self.places, *self.slots[slots:]]
        found += [holder for holder, name, before in named if at(holder, name) is not before]
        filled: list[Any] = [t for t, value in self._beside if _is_moved(t, value)]
        filled += [a for a, before in self._arrays if _is_other(a, before)]
        found += [each for each, state in self._generators if not _is_same_state(state_of(each), state)]
        holders = [self._holders[id(each)] for each in filled if id(each) in self._holders]
        return list({id(each): each for each in (*found, *filled, *holders)}.values())

    def convert_outside(self, dtype: torch.dtype, counterparts: Callable[[], Mapping[int, Tensor]]) -> None:
        """Put floating-point tables outside of the model in another precision, until `restore`.

        Not the largest, and not thousands of them, as of a data set: where they meet the model's, `one_precision` has
        both in the wider of their precisions.

        counterparts  the model's own tensors by the identity of those of which they are copies, whose place they take
        """
        own: Mapping[int, Tensor] | None = None

        def converted(value: Tensor) -> Tensor:
            nonlocal own
            own = counterparts() if own is None else own
            return own[id(value)] if id(value) in own else _converted(value, dtype)

        attributes, contents, slots = self._inside
        for holder, name, value in [*self.places, *self.slots[slots:]]:
            if _is_of_other_precision(value, dtype):
                put(holder, name, converted(value))
        for container, _ in [*self.attributes[attributes:], *self.contents[contents:]]:
            if isinstance(container, set) or len(container) > MAX_CONVERTED_ENTRIES:
                continue
            for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
                if _is_of_other_precision(value, dtype):
                    container[key] = converted(value)


def _container_of(value: Any) -> Any:
    """The built-in container that a value is, or that its class is made of; None of others."""
    return next((each for each in (OrderedDict, dict, list, set, deque) if isinstance(value, each)), None)


def _storage(t: Tensor) -> int:
    """What is the same of two tensors that share their memory."""
    return int(t.untyped_storage()._cdata)


def _is_put_back(t: Tensor) -> bool:
    """Whether the values of a tensor beside the model are remembered: dense ones; of buffers not the largest views."""
    if t.is_meta or t.layout != torch.strided or t.is_nested or t.is_quantized or is_lazy(t):
        return False
    return isinstance(t, nn.Parameter) or t.numel() <= MAX_KEPT or has_own_storage(t)


def _is_moved(t: Tensor, before: Tensor) -> bool:
    is_shared = t.nbytes >= MIN_LAZY_BYTES and same_memory(t.data, before)
    return not is_shared and not torch.equal(t.data, before)


def _is_other(array: np.ndarray, before: np.ndarray) -> bool:
    """Whether an array holds another thing, to the last bit."""
    if array.shape != before.shape:
        return False  # resized in place: nothing of it can be written back
    if array.dtype.hasobject:
        return not all(map(operator.is_, array.flat, before.flat))
    if not (array.flags.c_contiguous and before.flags.c_contiguous):
        now: bytes = array.tobytes()
        return now != before.tobytes()
    # without another copy of them
    return bool(array.reshape(-1).view(np.uint8).data != before.reshape(-1).view(np.uint8).data)


def _is_same_state(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else repr(a) == repr(b)


def _is_of_other_precision(value: Any, dtype: torch.dtype) -> bool:
    is_other = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype
    return is_other and value.numel() <= MAX_CONVERTED


def _converted(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another precision; a parameter stays one, and a leaf that a loss differentiates by, as points of a PINN."""
    result = value.detach().to(dtype)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(result, value.requires_grad)
    return result.requires_grad_(value.requires_grad and value.is_leaf)


def put_back(places: Iterable[tuple[Any, str, Any]]) -> None:
    """Let there be in each place what stood there."""
    for holder, name, before in places:
        if at(holder, name) is not before:
            put(holder, name, before)


def restore_entries(container: Any, before: Any) -> None:
    """Let a container hold what its copy does, by the methods of the built-in one that it is made of."""
    if has_entries(container, before):
        return
    kind = _container_of(container)
    kind.clear(container)
    (kind.extend if kind in (list, deque) else kind.update)(container, before)


def has_entries(container: Any, before: Any) -> bool:
    """Whether a container holds the same objects as its copy."""
    if isinstance(container, dict):
        return _is_same(container, before)
    if isinstance(container, set):
        return bool(container == before)
    return len(container) == len(before) and all(map(operator.is_, container, before))


def _is_same(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether two dictionaries hold the same objects under the same names."""
    if len(now) != len(before):
        return False
    if all(map(operator.is_, dict.values(before), dict.values(now))) and now.keys() == before.keys():  # in their order
        return True
    return all(map(operator.is_, before.values(), map(partial(dict.get, now), before, repeat(_MISSING))))


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word or a tuple of such, as a kernel's size: most attributes of most modules."""
    kind = type(value)
    return kind in PLAIN or (kind is tuple and PLAIN.issuperset(map(type, value)))


__all__ = ["CLOSED", "CONTAINERS", "FAR", "STANDARD", "ModuleState", "is_plain", "restore_entries"]
