"""By what a change of a thing shows that cannot be put back: networks, large arrays, objects of installed packages.

A mark is a checksum of all that is reachable from the thing: attributes, slots, items, the values of arrays and
tensors, and what their classes say of themselves for `pickle`. Functions, classes and modules in it count as
themselves. It is made by a pickler that keeps nothing of what it writes. What has nothing to be read, such as a lock,
counts by its identity; an iterator, where nobody can see where it stands, as changed.

Cost: about a second for each gigabyte of arrays, and for a million objects; of the latter the first MAX_BYTES count.
"""

from __future__ import annotations

import pickle
import random
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType, GeneratorType, MappingProxyType, ModuleType
from typing import Any

import numpy as np

MAX_BYTES = 1 << 26  # written of one thing, without arrays
AS_THEMSELVES = (type, FunctionType, BuiltinFunctionType, ModuleType)
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx")  # their notes change with each call


def mark_of(value: Any) -> Any:
    """The mark of a thing: it is equal to a later one where nothing has changed."""
    if isinstance(value, Iterator) and not isinstance(value, random.Random):
        return object()  # no other is equal to it
    return _Marker().mark(value)


class _Enough(Exception):
    """So much has been written that the rest does not count."""


class _Checksum:
    """A file that keeps a checksum of what is written."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def write(self, data: Any) -> int:
        self.value, self.size = zlib.crc32(data, self.value), self.size + len(data)
        if self.size > MAX_BYTES:
            raise _Enough
        return len(data)


def _thing(*parts: Any) -> Any:
    """Stands for a thing in what is written, with what is known of it."""
    raise NotImplementedError  # pragma: no cover, since nothing is ever read


class _Marker(pickle.Pickler):
    """Writes a thing, in order to be compared, into a checksum."""

    def __init__(self) -> None:
        self._sum = _Checksum()
        self._cannot_be_seen = False
        super().__init__(self._sum, protocol=5)

    def mark(self, value: Any) -> Any:
        """The mark of this thing, as of `mark_of`; called once."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what packages deprecate of their attributes
                self.dump(value)
        except _Enough:
            pass
        except Exception:  # too deep, or what a package's own code raises: nobody knows what is not written
            self._cannot_be_seen = True
        return object() if self._cannot_be_seen else (type(value), self._sum.value, self._sum.size)

    def reducer_override(self, value: Any) -> Any:
        """How a thing is written that is no plain number, text or container."""
        if value is _thing:
            return NotImplemented
        if isinstance(value, AS_THEMSELVES):
            return _thing, (id(value),)
        if type(value).__module__.startswith(COMPILERS):
            return _thing, (id(value), _of_compiled(value))
        if isinstance(value, GeneratorType):
            self._cannot_be_seen = True
        try:
            return _state(value)
        except Exception:  # such as of a lock
            return _thing, (id(value),), _attributes(value)


def _state(value: Any) -> tuple[Any, ...]:
    """What is known of a thing, as `pickle` wants it."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray):
        return _thing, _of_array(value)
    if isinstance(value, random.Random):
        return _thing, ("Random", value.getstate())
    if isinstance(value, ContextVar):
        return _thing, (id(value), value.get(None))
    if isinstance(value, MappingProxyType):
        return _thing, (dict(value),)
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return _thing, _of_tensor(value, torch)
        if isinstance(value, torch.Generator):
            return _thing, (id(value), value.get_state().cpu().numpy().tobytes())
        if isinstance(value, torch.jit.ScriptModule):
            return _thing, (
                id(type(value)),
                dict(value.named_parameters()),
                dict(value.named_buffers()),
                value.training,
            )
    own = type(value)
    if is_plain(own) or (torch is not None and isinstance(value, torch.nn.Module)):
        items: Any = dict(dict.items(value)) if isinstance(value, dict) else None
        items = list(list.__iter__(value)) if isinstance(value, list) else items
        items = tuple(tuple.__iter__(value)) if isinstance(value, tuple) else items
        return _thing, (id(own),), (_attributes(value), items)
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):  # the name by which there is one of it
        return _thing, (id(value),)
    _, arguments, *content = reduced  # its first part is a function, which says no more than the type
    return _thing, (id(own), arguments), [_whole(part) for part in content]


def is_plain(kind: type) -> bool:
    """Whether a class leaves it to Python how its instances are pickled."""
    own: tuple[Any, ...] = (kind.__reduce__, kind.__reduce_ex__)
    return own == (object.__reduce__, object.__reduce_ex__)


def _whole(part: Any) -> Any:
    return list(part) if isinstance(part, Iterator) else part


def _of_compiled(value: Any) -> dict[str, Any]:
    """What a network holds that a compiler has made: not the compiler's notes."""
    names = ("_parameters", "_buffers", "_modules", "training")
    return {name: part for name, part in vars(value).items() if name in names or name.endswith("_hooks")}


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes that an object has of its own, in a dictionary or in slots."""
    names = [name for kind in type(value).__mro__ for name in _slots(kind)]
    found = {name: getattr(value, name) for name in names if hasattr(value, name)}
    own = getattr(value, "__dict__", None)
    return {**found, **own} if isinstance(own, dict) else found


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    private = f"_{kind.__name__.lstrip('_')}"
    names = [f"{private}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _of_array(array: np.ndarray) -> tuple[Any, ...]:
    if isinstance(array, np.memmap) and array.mode == "r":
        return id(array), "cannot change"
    once = array[tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)]  # of what is repeated
    known = str(array.dtype), array.shape, array.flags.writeable
    if array.dtype.hasobject:
        return *known, once.tolist()
    return *known, zlib.crc32(np.ascontiguousarray(once).reshape(-1).view(np.uint8).data)


def _of_tensor(tensor: Any, torch: Any) -> tuple[Any, ...]:
    """Its values where they can be read; else how often it was changed in place."""
    known = str(tensor.dtype), str(tensor.device), tensor.requires_grad, dict(getattr(tensor, "__dict__", None) or {})
    grad = tensor.grad if tensor.requires_grad and tensor.is_leaf else None
    values: list[Any]
    try:
        values = [_checksum(part, torch) for part in _parts(tensor.detach(), torch)]
    except Exception:  # without values, or of a subclass or layout that shows none
        values = [id(tensor), None if tensor.is_inference() else tensor._version]
    return *known, grad, values


def _parts(tensor: Any, torch: Any) -> list[Any]:
    """The dense tensors in which one keeps its values."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.is_quantized:
        return [tensor.int_repr()]
    return [tensor]


def _checksum(tensor: Any, torch: Any) -> tuple[Any, ...]:
    shape = tuple(tensor.shape)
    for dimension, step in enumerate(tensor.stride()):
        if step == 0:  # the same values again and again
            tensor = tensor.narrow(dimension, 0, min(1, tensor.shape[dimension]))
    values = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return shape, zlib.crc32(values.view(torch.uint8).numpy())
