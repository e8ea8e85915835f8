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
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

_array: Any = np.zeros(0).__reduce__()[0]  # NumPy's own functions, wherever this version keeps them
_buffer: Any = np.zeros(1).__reduce_ex__(5)[0]
_scalar: Any = np.float64(0).__reduce__()[0]


def _dtype(name: str | bytes, *_: object) -> np.dtype[Any]:
    """A dtype of its own by its name, such as f4: NumPy's own one would be changed by what a pickle says of it."""
    return np.dtype(name.decode("ascii") if isinstance(name, bytes) else str(name), False, True)


NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("argparse", "Namespace"): argparse.Namespace,
}
for _plain in (complex, bytearray, set, frozenset):
    NAMES["builtins", _plain.__name__] = NAMES["__builtin__", _plain.__name__] = _plain
for _home in ("numpy.core.numeric", "numpy._core.numeric"):
    NAMES[_home, "_frombuffer"] = _buffer
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    NAMES[_home, "_reconstruct"] = _array
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
        if dtype == np.dtype(object):
            flat = np.empty(len(content), dtype)
            flat[:] = content
        else:
            content = content.encode("latin-1") if isinstance(content, str) else content
            flat = np.frombuffer(content, dtype) if len(content) else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C").copy("K")
    except (TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"an array is not what it says: {error}") from None


def _in_order(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """The dtype with the order of bytes of its state. Raises Refused where it is no plain one of numbers or text."""
    own: Any = dtype.__reduce__()
    if isinstance(state, tuple) and len(state) > 1 and state[:1] + state[2:] == own[2][:1] + own[2][2:]:
        order: Any = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">", "|", "="):
            return dtype.newbyteorder(order)
    raise Refused(f"it holds an array of {dtype} that is no plain one of numbers or text, or is damaged")


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
        if not isinstance(changed, (np.ndarray, np.dtype)):
            super().load_build()
            return
        state = self.stack.pop()
        made = _filled(state) if isinstance(changed, np.ndarray) else _in_order(changed, state)
        self.stack[-1] = made
        self.memo.update({key: made for key, known in self.memo.items() if known is changed})

    dispatch[pickle.BUILD[0]] = load_build


def read(file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """What a pickle of arrays, tensors and plain Python values holds.

    encoding  `bytes` for files written by Python 2

    Raises Refused where it asks for anything else, and pickle's own errors where it is cut off.
    """
    return Unpickler(file, encoding=encoding).load()


load = read  # with it and Unpickler this module is a `pickle_module` of torch.load


def load_tensors(source: Any, *, mmap: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU, without running code from it; of any pickle protocol."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about pickle protocols other than 2
        try:
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported operand" not in str(error):  # as of protocols 4 and 5
                raise
        if hasattr(source, "seek"):
            source.seek(0)
        here = sys.modules[__name__]
        return torch.load(source, map_location="cpu", mmap=mmap, weights_only=False, pickle_module=here)
