"""Keep the passes of a measurement out of what Lightning logs, and away from its optimizers.

A `training_step` that is evaluated says `self.log("loss", ...)` as in training: the mean of the epoch would be of our
passes too, and with it what a scheduler or a stop on it does; without a Trainer it warns or raises. Meanwhile `log`,
`log_dict` and `print` do nothing, writers of `self.logger` neither, and a step that moves its own weights (manual
optimization) is refused. Lightning is not imported: a module of its is known by its class.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

PACKAGES = ("lightning", "pytorch_lightning")
SILENT = ("log", "log_dict", "print")
MOVES = ("optimizers", "manual_backward", "lr_schedulers")  # what a step with manual optimization trains with

_MISSING = object()


class _SilentLogger:
    """Takes every call, as `logger.experiment.add_scalar(...)`, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _is_of_lightning(module: nn.Module) -> bool:
    """Whether a module is a LightningModule, of the package under either of its names."""
    kind: Any = type(module)
    return _is_lightning_class(kind)


@functools.cache
def _is_lightning_class(cls: type) -> bool:
    return any(c.__name__ == "LightningModule" and c.__module__.partition(".")[0] in PACKAGES for c in cls.__mro__)


@contextmanager
def silent_logging(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the LightningModules among these log nothing; what they and their Trainer had is put back."""
    before: list[tuple[dict[str, Any], str, Any]] = []

    def replace(own: dict[str, Any], name: str, value: Any) -> None:
        before.append((own, name, own.get(name, _MISSING)))
        own[name] = value

    for module in filter(_is_of_lightning, modules):
        own = vars(module)
        for name in SILENT:
            replace(own, name, _nothing)
        if not getattr(module, "automatic_optimization", True):
            for name in MOVES:
                replace(own, name, _refuse_to_move)
        for holder in (own.get("_trainer"), own.get("_fabric")):
            loggers = getattr(holder, "__dict__", {}).get("_loggers")
            if isinstance(loggers, list):
                replace(vars(holder), "_loggers", [_SilentLogger() for _ in loggers])
    try:
        yield
    finally:
        for own, name, value in reversed(before):
            if value is _MISSING:
                own.pop(name, None)
            else:
                own[name] = value


def _nothing(*values: Any, **named: Any) -> None:
    """What is called in the place of a method that logs."""


def _refuse_to_move(*values: Any, **named: Any) -> None:
    raise ValueError(
        "the step takes steps of the optimizers itself (automatic_optimization is False), so that evaluating it would "
        "train the network; give as the loss a method that only computes it"
    )
