"""Shortcuts of PyTorch's that are right for training, and wrong where weights move or are differentiated twice.

torch.nn.utils.parametrize.cached()     keeps the tensors that parametrizations made, at whatever weights
checkpoint(..., use_reentrant=True)     has no gradient by autograd.grad, nor where no input requires one
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shortcuts_off() -> Iterator[None]:
    """Inside, parametrizations are computed anew, and reentrant checkpoints are made without reentering."""
    parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
    checkpoints: Any = sys.modules.get("torch.utils.checkpoint")
    cached = getattr(parametrize, "_cache_enabled", 0)
    reentrant = getattr(checkpoints, "CheckpointFunction", None)
    if cached:
        kept = parametrize._cache
        parametrize._cache_enabled, parametrize._cache = 0, {}
    if reentrant is not None:
        checkpoints.CheckpointFunction = _Checkpoint
    try:
        yield
    finally:
        if cached:
            parametrize._cache_enabled, parametrize._cache = cached, kept
        if reentrant is not None:
            checkpoints.CheckpointFunction = reentrant


class _Checkpoint:
    """Stands for PyTorch's function of that name: it saves as much memory, and can be differentiated in every way."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)
