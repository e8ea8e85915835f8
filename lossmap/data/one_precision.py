"""Models and losses that mix precisions, evaluated in float64 throughout.

    with OnePrecision():
        F.cross_entropy(outputs, targets, weight)      float64 outputs, float32 weight: computed in float64
    with KeepFloat64():
        F.cross_entropy(outputs.float(), targets)      in float64 too

Checks and error bars compare the model with a copy of it in float64. What a loss has in a closure, or a criterion in
its buffers, stays in the model's own precision there, and some of PyTorch's functions refuse a mixture of the two: a
call that fails is made once more, with its floating-point tensors in the widest of their precisions. Many models and
losses cast to float32 within, before a softmax or a norm; differences over small steps would drown in its rounding, so
that a model in float64 stays in float64. What they ask of the precision, `torch.finfo(x.dtype).eps` in a norm or in the
probabilities of `torch.distributions`, is answered as for the model that was copied. Price: a few microseconds for
every operation of such a model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, finfo
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

HALF = frozenset((torch.bfloat16, torch.float16))
T = TypeVar("T")
origin: ContextVar[torch.dtype | None] = ContextVar("origin", default=None)  # of which the model in use is a copy
CASTS = ("to", "type", "type_as")  # of a tensor, to a precision or like another tensor


class OnePrecision(TorchFunctionMode):
    """Calls that PyTorch refuses are made once more, with their tensors in the widest of their precisions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            precisions = floating_dtypes((args, kwargs))
            if len(precisions) < 2:
                raise
        widest = max(precisions, key=lambda dtype: finfo(dtype).bits)
        args, kwargs = pytree.tree_map(lambda leaf: _converted(leaf, widest), (args, kwargs))
        return func(*args, **kwargs)


# makes a tensor for memory that is there, as of what a loader's worker or a file gives, of the type that it has
UNPICKLES = "torch._utils"


class KeepFloat64(OnePrecision):
    """What a model or its loss casts to float32 within is cast to float64: for models in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        name = getattr(func, "__name__", "")
        if not kwargs and name != "float" and name not in CASTS:  # most calls
            return super().__torch_function__(func, types, args)
        kwargs = dict(kwargs or {})
        if name == "float" and args:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32 and sys._getframe(1).f_globals.get("__name__") != UNPICKLES:
            kwargs["dtype"] = torch.float64
        if name in CASTS:
            args = (args[0], *(_in_float64(a) for a in args[1:]))
            kwargs = {key: _in_float64(value) for key, value in kwargs.items()}
        return super().__torch_function__(func, types, args, kwargs)


def _in_float64(target: Any) -> Any:
    """What a tensor is cast to, or like, float64 in the place of float32."""
    if isinstance(target, Tensor) and target.dtype == torch.float32:
        return target.detach().double()
    return torch.float64 if target is torch.float32 else target


def floating_dtypes(values: Any) -> set[torch.dtype]:
    """The precisions of the floating-point tensors in a nested value."""
    leaves = pytree.tree_leaves(values)
    return {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}


def _at_least_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF else leaf


def _converted(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.to(dtype)
    return leaf


@contextmanager
def limits_of(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, `torch.finfo` of float64 is that of another precision; None: as it is."""
    before = torch.finfo
    if dtype is None or before is not finfo:  # inside another one it is done already
        yield
        return

    def shown(asked: torch.dtype | None = None) -> torch.finfo:
        asked = torch.get_default_dtype() if asked is None else asked
        return finfo(dtype if asked is torch.float64 else asked)

    torch.finfo = shown  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.finfo = before  # type: ignore[misc]


def in_one_precision(function: Callable[..., T], double: bool, *args: Any) -> T:
    """The function's value; where `double` says that its model is in float64, computed in float64 throughout.

    Of arguments in half precision, whose sum would be rounded to two or three digits, it is computed in float32.

    Raises what the function itself raises where it fails both so and as it is; ValueError for an iterator that is used
    up.
    """
    try:
        return _in_one_precision(function, double, *args)
    except StopIteration as error:
        raise ValueError(
            "the model or its loss asked an iterator for more than it holds (StopIteration), and it cannot be begun "
            "anew for every pass; give the batches of both as one, such as list(zip(loader, other))"
        ) from error


def _in_one_precision(function: Callable[..., T], double: bool, *args: Any) -> T:
    if not double:
        if not floating_dtypes(args) & HALF:
            return function(*args)
        try:
            return function(*pytree.tree_map(_at_least_float32, args))
        except RuntimeError:  # a loss with weights of its own in half precision
            return function(*args)
    try:
        with KeepFloat64(), limits_of(origin.get()):
            return function(*args)
    except RuntimeError:
        return function(*args)
