"""Modules that report what they compute: Lightning's `self.log` is silent wherever a model is evaluated.

A pass of ours is none of the training. Logged, it would be part of an epoch's mean, of what a scheduler follows and of
what is taken for the best; and outside of a training Lightning refuses to log at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

REPORTS = ("log", "log_dict")


def quieten(modules: Iterable[nn.Module]) -> None:
    """Let those of Lightning report nothing, until their attributes are put back."""
    for module in modules:
        kind: Any = type(module)
        if _is_of_lightning(kind):
            module.__dict__.update(dict.fromkeys(REPORTS, _nothing))


@functools.cache
def _is_of_lightning(cls: type) -> bool:
    packages = ("lightning", "pytorch_lightning")
    return any(c.__name__ == "LightningModule" and c.__module__.partition(".")[0] in packages for c in cls.__mro__)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What is logged goes nowhere."""
