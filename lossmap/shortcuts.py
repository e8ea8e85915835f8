"""Shortcuts of PyTorch's that are right for training, and wrong where weights move or are differentiated twice.

torch.nn.utils.parametrize.cached()     keeps the tensors that parametrizations made, at whatever weights
checkpoint(..., use_reentrant=True)     has no gradient by autograd.grad, nor where no input requires one
checkpoint(...)                         computes its part again while gradients are taken, where function modes are off
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import overrides


@contextmanager
def shortcuts_off() -> Iterator[None]:
    """Inside, parametrizations are computed anew, and checkpoints compute the same twice, without reentering."""
    parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
    checkpoints: Any = sys.modules.get("torch.utils.checkpoint")
    cached = getattr(parametrize, "_cache_enabled", 0)
    reentrant = getattr(checkpoints, "CheckpointFunction", None)
    passes = getattr(checkpoints, "_checkpoint_without_reentrant_generator", None)
    if cached:
        kept = parametrize._cache
        parametrize._cache_enabled, parametrize._cache = 0, {}
    if reentrant is not None:
        checkpoints.CheckpointFunction = _Checkpoint
    if passes is not None:
        checkpoints._checkpoint_without_reentrant_generator = _with_modes(passes)
    try:
        yield
    finally:
        if cached:
            parametrize._cache_enabled, parametrize._cache = cached, kept
        if reentrant is not None:
            checkpoints.CheckpointFunction = reentrant
        if passes is not None:
            checkpoints._checkpoint_without_reentrant_generator = passes


def _with_modes(passes: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's two passes of a checkpoint, of which the second runs under the function modes of the first.

    `torch.autograd.grad` is itself a function that modes are asked about, so that they are off while it runs. A part
    that is computed again in it would miss the forms that do not cancel, and save other tensors than the first time.
    """
    function_modes: Callable[[], list[Any]] = overrides._get_current_function_mode_stack

    def generator(function: Callable[..., Any], *settings: Any, **keywords: Any) -> Any:
        modes = function_modes()

        def again(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                present = function_modes()
                for mode in modes:
                    if mode not in present:
                        stack.enter_context(mode)
                return function(*args, **kwargs)

        return passes(again, *settings, **keywords)

    return generator


class _Checkpoint:
    """Stands for PyTorch's function of that name: it saves as much memory, and can be differentiated in every way."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)
