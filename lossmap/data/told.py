"""What is said while data are read (samples that draw, or that a loader leaves out): logged, and kept with the batches.

A result is to say it too: whoever reads the file later has not seen the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def tell(sentence: str) -> None:
    """Log a sentence on data, and let the batches that are made of them keep it."""
    log.warning("%s", sentence)
    heard = _heard.get()
    if heard is not None:
        heard.append(sentence)


@contextmanager
def _listening() -> Iterator[list[str]]:
    heard: list[str] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def keeping_what_is_told(function: Callable[P, T]) -> Callable[P, T]:
    """A function that returns batches, which keep as `told` what is told while they are made."""

    @wraps(function)
    def called(*args: P.args, **keywords: P.kwargs) -> T:
        with _listening() as heard:
            batches: Any = function(*args, **keywords)
        if heard:
            batches = replace(batches, told=tuple(dict.fromkeys([*heard, *batches.told])))
        return batches  # type: ignore[no-any-return]

    return called


def told_of(data: Any) -> tuple[str, ...]:
    """What was told while these batches were made."""
    return getattr(data, "told", ())


__all__ = ["keeping_what_is_told", "tell", "told_of"]
