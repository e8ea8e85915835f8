"""Misspelt keywords of public functions: a TypeError that names the nearest one.

    spectrum(problem, prob=3)      TypeError: spectrum() got an unexpected keyword 'prob'; did you mean 'probes'?

`help()`, `inspect.signature` and type checkers see the function's own signature.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def checked_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with a TypeError that suggests the nearest keyword where a call has one that it does not know.

    function  with real keywords: one that takes `**keywords` is returned as it is
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = tuple(parameter.name for parameter in parameters if parameter.kind in named)
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{called}() got an unexpected keyword {name!r}; {_suggestion(name, known)}")
        return function(*args, **kwargs)

    return checked


def checked_init(cls: type[T]) -> type[T]:
    """The class, its constructor with the same TypeError for a keyword that it does not know."""
    cls.__init__ = checked_keywords(cls.__init__)  # type: ignore[method-assign]
    return cls


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    keywords = [k for k in known if k not in ("self", "cls")]
    return f"it takes {', '.join(keywords)}"
