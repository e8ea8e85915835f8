"""Losses that are exactly 0 because their terms are below the smallest number, as exp(-2000) is.

A true 0 is a result, as that of a margin that every sample keeps. Where a loss is 0, its operations are looked at: one
whose result is 0 while its arguments are finite and not 0 has lost what it was. Price: one pass over a few samples, of
such losses alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.sums import sums_in

# of finite arguments these are never 0; products and powers only of an argument that is 0
NEVER_ZERO = frozenset(("exp", "exp2", "sigmoid", "softplus", "erfc"))
PRODUCTS = frozenset(("mul", "div", "square", "pow"))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the name of the first operation that underflows, and its result's precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: tuple[str, torch.dtype] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped is to import PyTorch's compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_new = self.found is None and isinstance(result, Tensor) and result.is_floating_point()
        if is_new and not func._schema.is_mutable and _underflows(name, args[:2], result):
            self.found = name, result.dtype
        return result


def _underflows(name: str, args: Sequence[Any], result: Tensor) -> bool:
    if name not in NEVER_ZERO and name not in PRODUCTS:
        return False
    lost = result == 0
    for t in args:
        if isinstance(t, (int, float)):  # such as the 0 of `0 * x`, which loses nothing
            t = torch.tensor(float(t), dtype=sums_in(result.device), device=result.device)
        if isinstance(t, Tensor):
            lost = lost & t.isfinite()
            if name in PRODUCTS:
                lost = lost & (t != 0)
    return bool(lost.any())


def underflow(evaluate: Callable[[], float]) -> str | None:
    """A sentence on a loss that is 0 by underflow, evaluated once; None for any other loss."""
    watch = _Watch()
    with watch:
        value = evaluate()
    if value != 0 or watch.found is None:
        return None
    name, dtype = watch.found
    smallest = torch.finfo(dtype).smallest_normal
    return (
        f"the loss of a few samples is exactly 0 where {name} underflows, below the smallest number of "
        f"{str(dtype).removeprefix('torch.')}, {smallest:.0e}: a loss or an eigenvalue of 0 here is below the "
        "precision; take the logarithm of such a loss"
    )
