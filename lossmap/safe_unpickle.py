"""Reading pickles that hold arrays and tensors, without running code from them.

A pickle names functions that its reader shall call. This reader knows a list of names, with which NumPy arrays, tensors
and what PyTorch keeps beside them (shapes, devices, types) are put together, and refuses all others.
"""

from __future__ import annotations

import argparse
import codecs
import io
import pickle
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

_scalar: Any = np.float64(0).__reduce__()[0]  # NumPy's own function, wherever this version keeps it


def _no_array(*_: object) -> None:
    """Stands for numpy.ndarray, which is named beside `_reconstruct`: called, it takes any memory for objects."""
    raise TypeError("numpy.ndarray is no function of a pickle")


def _empty(*_: object) -> np.ndarray:
    """An array to be filled."""
    return np.empty(0, np.uint8)


def _dtype(name: str | bytes, *_: object) -> np.dtype[Any]:
    """A dtype of its own by its name, such as f4: NumPy's own one would be changed by what a pickle says of it."""
    dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else str(name), False, True)
    if dtype.fields is not None or dtype.subdtype is not None:
        raise Refused(f"it holds an array of {dtype} that is no plain one of numbers or text")
    return dtype


def _over(content: Any, dtype: np.dtype[Any], shape: Any, order: str = "C", axes: Any = None) -> np.ndarray:
    """The array of a buffer; of order K its axes stand in memory in another order, and come back into theirs."""
    array = _filled((1, shape, dtype, order == "F", content))
    return array if axes is None else array.transpose(axes)


def _bytes(content: Any = b"") -> bytes:
    """Bytes of others, and not so many of 0 as somebody asks for."""
    if not isinstance(content, (bytes, bytearray, list, tuple)):
        raise Refused(f"it makes bytes of {type(content).__name__}")
    return bytes(content)


def _bytearray(content: Any = b"", encoding: str = "latin-1") -> bytearray:
    """The same as an array of bytes, of Python 2's text too."""
    return bytearray(content.encode(encoding) if isinstance(content, str) else _bytes(content))


NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("argparse", "Namespace"): argparse.Namespace,
}
_PLAIN = {"complex": complex, "bytes": _bytes, "bytearray": _bytearray, "set": set, "frozenset": frozenset}
for _name, _plain in _PLAIN.items():
    NAMES["builtins", _name] = NAMES["__builtin__", _name] = _plain
for _home in ("numpy.core.numeric", "numpy._core.numeric"):
    NAMES[_home, "_frombuffer"] = _over
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    NAMES[_home, "_reconstruct"] = _empty
    NAMES[_home, "scalar"] = _scalar


def _storage(data: bytes) -> Any:
    """What torch.storage._load_from_bytes does, but for tensors alone."""
    return torch.load(io.BytesIO(data), weights_only=True)


def _parameter(data: Tensor, *beside: object) -> Tensor:  # which are: whether it is trained, hooks, attributes
    return data


def _of_type(function: Callable[..., Tensor], kind: str, data: tuple[Any, ...], *beside: object) -> Tensor:
    return function(*data)  # `beside` are attributes that somebody gave the tensor


TENSORS: dict[tuple[str, str], Any] = {
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Tensor"): "tensor",  # named beside `_of_type`, and never called
    ("torch.nn.parameter", "Parameter"): "tensor",
    ("torch.nn.parameter", "Buffer"): "tensor",
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
for _kind in ("tensor", "tensor_v2", "tensor_v3", "sparse_tensor", "qtensor", "meta_tensor_no_storage"):
    TENSORS["torch._utils", f"_rebuild_{_kind}"] = getattr(torch._utils, f"_rebuild_{_kind}")
STATEFUL = (np.ndarray, np.dtype, OrderedDict, Counter, argparse.Namespace)  # kinds of objects with a state beside
NOTES = {"_metadata"}  # attributes of a dictionary of weights
_CHECKED_SPARSE: Any = torch.sparse.check_sparse_tensor_invariants  # with indices beyond the shape Python may crash
VALUES = (torch.dtype, torch.qscheme)  # of a tensor, by their names in torch


class Refused(ValueError):
    """The pickle asks for something that could run code."""


class Damaged(pickle.UnpicklingError):
    """An array is not what its pickle says."""


def _filled(state: Any) -> np.ndarray:
    """The array of a state, as NumPy's own `__setstate__` makes it, which believes any and may crash by it.

    Raises Damaged.
    """
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], np.dtype):
        raise Damaged("the state of an array is no state")
    _, shape, dtype, is_fortran, content = state
    try:
        if dtype == np.dtype(object):  # listed row by row, whatever the order in memory
            flat, is_fortran = np.empty(len(content), dtype), False
            flat[:] = content
        else:
            content = content.encode("latin-1") if isinstance(content, str) else content
            flat = np.frombuffer(content, dtype) if len(content) else np.empty(0, dtype)
        array = flat.reshape(shape, order="F" if is_fortran else "C").copy("K")
        return array.astype(_native(dtype), order="K", copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"an array is not what it says: {error}") from None


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In this machine's order of bytes, and what PyTorch has no type for in float64."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


def _in_order(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """The dtype with the order of bytes of its state. Raises Refused where it is no plain one of numbers or text."""
    own: Any = dtype.__reduce__()[2]
    # behind the first 8 stand notes, or a unit of time
    if isinstance(state, tuple) and len(state) >= 8 and state[2:8] == own[2:8]:
        order: Any = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">", "|", "="):
            if dtype.kind in "mM" and len(state) > 8:
                unit, number = state[8][1][:2]
                dtype = np.dtype(f"{dtype.kind}8[{int(number)}{unit.decode() if isinstance(unit, bytes) else unit}]")
            return dtype.newbyteorder(order)
    if isinstance(state, tuple) and len(state) >= 8 and state[3] and isinstance(state[4], dict):
        fields = [state[4][name][:2] for name in state[3]]
        if all(isinstance(kind, np.dtype) and not kind.hasobject for kind, _ in fields):  # records of numbers and text
            kinds, offsets = zip(*fields, strict=True)
            return np.dtype({"names": state[3], "formats": kinds, "offsets": offsets, "itemsize": state[5]})
    raise Refused(f"it holds an array of {dtype} that is no plain one of numbers or text")


_InPython: Any = pickle._Unpickler


class Unpickler(_InPython):  # type: ignore[misc]
    """Python's own, by a list of names; written in Python, since that in C asks nobody what a pickle may change."""

    dispatch: ClassVar = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Only the names on the list, whatever the pickle asks for."""
        known = NAMES.get((module, name)) or TENSORS.get((module, name))
        if known is None and module == "torch" and isinstance(getattr(torch, name, None), VALUES):
            return getattr(torch, name)
        if known is None:
            raise Refused(f"it asks for {module}.{name}, which could run code")
        return known

    def load_build(self) -> None:
        """Give an object its state: only one of the pickle's own, no class and no function of this process."""
        changed = self.stack[-2]
        if not isinstance(changed, STATEFUL):
            raise Refused(f"it changes {getattr(changed, '__name__', type(changed).__name__)}, which could run code")
        if isinstance(changed, dict) and not (isinstance(self.stack[-1], dict) and set(self.stack[-1]) <= NOTES):
            raise Refused("it gives a dictionary attributes of its own, which could run code")
        if not isinstance(changed, (np.ndarray, np.dtype)):
            super().load_build()
            return
        state = self.stack.pop()
        made = _filled(state) if isinstance(changed, np.ndarray) else _in_order(changed, state)
        self.stack[-1] = made
        for key in reversed(self.memo):  # where it was kept a moment ago
            if self.memo[key] is changed:
                self.memo[key] = made
                break

    dispatch[pickle.BUILD[0]] = load_build


def load(file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """What a pickle holds; with it and Unpickler this module is a `pickle_module` of torch.load."""
    return Unpickler(file, encoding=encoding).load()


def read(file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """What a pickle of arrays, tensors and plain Python values holds.

    encoding  `bytes` for files written by Python 2

    Raises Refused where it asks for anything else, and pickle's own errors where it is cut off.
    """
    start = file.tell()
    with _sparse_checked():
        try:
            content = load(file, encoding=encoding)
        except UnicodeDecodeError:
            if encoding != "ASCII":
                raise
            file.seek(start)  # written by Python 2, whose text of arrays is bytes
            content = load(file, encoding="latin-1")
        torch._utils._validate_loaded_sparse_tensors()  # type: ignore[no-untyped-call]
    return content


@contextmanager
def _sparse_checked() -> Iterator[None]:
    """Inside, the indices of sparse tensors that are read are looked at; of these alone, in PyTorch's list of all."""
    torch._utils._sparse_tensors_to_validate.clear()
    try:
        with _CHECKED_SPARSE():
            yield
    finally:
        torch._utils._sparse_tensors_to_validate.clear()


def load_tensors(source: Any, *, mmap: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU, without running code from it; of any pickle protocol."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about pickle protocols other than 2
        try:
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
        except pickle.UnpicklingError:
            pass  # of protocols 4 and 5, and of what is beside tensors
        if hasattr(source, "seek"):
            source.seek(0)
        here = sys.modules[__name__]
        with _sparse_checked():
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=False, pickle_module=here)
