"""Losses that hold tensors of their own, such as class weights, in another precision than that of the model.

    with OnePrecision():
        F.cross_entropy(outputs, targets, weight)      float64 outputs, float32 weight: computed in float64

Checks and error bars compare the model with a copy of it in float64. What a loss has in a closure, or a criterion in
its buffers, stays in the model's own precision there, and some of PyTorch's functions refuse a mixture of the two. A
loss that failed on float64 outputs is run again inside `OnePrecision`: a call that fails is made once more, with its
floating-point tensors in the widest of their precisions. Price: none for a loss that does not fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

T = TypeVar("T")


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
        widest = max(precisions, key=lambda dtype: torch.finfo(dtype).bits)
        args, kwargs = pytree.tree_map(lambda leaf: _converted(leaf, widest), (args, kwargs))
        return func(*args, **kwargs)


def floating_dtypes(values: Any) -> set[torch.dtype]:
    """The precisions of the floating-point tensors in a nested value."""
    leaves = pytree.tree_leaves(values)
    return {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}


def _converted(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.to(dtype)
    return leaf


def in_one_precision(function: Callable[..., T], double: bool, *args: Any) -> T:
    """The function's value; where it fails, and `double` says that its model is in float64, once more in one precision.

    Raises what the function raised first where that is no cure.
    """
    try:
        return function(*args)
    except RuntimeError as error:
        if not double:
            raise
        try:
            with OnePrecision():
                return function(*args)
        except RuntimeError:
            raise error from None
