"""Outputs and targets that are broadcast to a table of all pairs: a column of outputs beside a row of targets.

    outputs (N, 1), targets (N,)   ->   outputs - targets is (N, N), whose mean is no loss of N samples

PyTorch warns of it in `F.mse_loss` and says nothing of a minus sign. Found while a loss of a few samples is evaluated:
differences, and losses of elements, of two tensors of one size whose result is larger, of which one depends on the
parameters and the other does not. Tables of pairs that are meant, `x[:, None] - x`, are of one tensor with itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

DIFFERENCES = frozenset(
    (
        "sub",
        "subtract",
        "rsub",
        "__sub__",
        "__rsub__",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "poisson_nll_loss",
        "soft_margin_loss",
        "kl_div",
    )
)


class _Watch(TorchFunctionMode):
    """Keeps the shapes of the first difference that makes a table of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        kwargs = kwargs or {}
        if self.shapes is None and getattr(func, "__name__", "") in DIFFERENCES:
            pair = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)][:2]
            if len(pair) == 2 and _makes_pairs(*pair):
                self.shapes = tuple(pair[0].shape), tuple(pair[1].shape)
        return func(*args, **kwargs)


def _makes_pairs(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one size are broadcast to a larger one, and one of them alone depends on parameters."""
    if a.dim() == b.dim() or a.numel() != b.numel() or a.requires_grad == b.requires_grad:
        return False
    try:
        table = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        return False
    return prod(table) > a.numel()


def broadcast_targets(evaluate: Callable[[], Any]) -> str | None:
    """What is broadcast while the loss is evaluated, as a sentence's part; None where nothing is."""
    watch = _Watch()
    with watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own words on it
        evaluate()
    if watch.shapes is None:
        return None
    a, b = watch.shapes
    table = np.broadcast_shapes(a, b)
    return (
        f"the loss takes the difference of tensors of shapes {a} and {b}, which are broadcast to {table}: every output "
        "beside every target"
    )


__all__ = ["broadcast_targets"]
