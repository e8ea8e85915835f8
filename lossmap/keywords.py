"""Errors of public functions, as people meet them: a misspelt keyword, and what a notebook shows of a refusal.

    spectrum(problem, prob=3)      TypeError: spectrum() got an unexpected keyword 'prob'; did you mean 'probes'?
    hessian(model)                 TypeError: hessian() takes a Problem, and got a model: ...

In a notebook an error that lossmap raises with a sentence of its own comes without the frames within lossmap;
LOSSMAP_DEBUG=1 shows them, and what other code raises is shown in full everywhere.

`help()`, `inspect.signature` and type checkers see the function's own signature.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def checked_keywords(function: Callable[P, R], instead: str = "") -> Callable[P, R]:
    """The function, with a TypeError that suggests the nearest keyword where a call has one that it does not know.

    function  with real keywords: one that takes `**keywords` is returned as it is
    instead   what to call in its place, said where it is called with too few arguments or too many
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = tuple(parameter.name for parameter in parameters if parameter.kind in named)
    called = function.__qualname__.removesuffix(".__init__")
    place = known.index("problem") if "problem" in known else None

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True  # IPython leaves this frame out
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{called}() got an unexpected keyword {name!r}; {_suggestion(name, known)}")
        if place is not None and _is_model(args[place] if place < len(args) else kwargs.get("problem")):
            raise TypeError(
                f"{called}() takes a Problem, and got a model: Problem.supervised(model, loss, data) makes one, as do "
                "Problem.custom(model, loss, data) and, with a model's own loss, lossmap.huggingface(model, data)"
            )
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            if not (in_notebook() and _is_our_sentence(error)):
                raise
            raise error.with_traceback(None) from None
        except TypeError as error:
            began = error.__traceback__ is not None and error.__traceback__.tb_next is not None
            if began or not instead:  # it is an error of what the function does
                raise
            raise TypeError(f"{error}; {instead}") from None

    return checked


def checked_init(cls: type[T], instead: str = "") -> type[T]:
    """The class, its constructor with the same TypeErrors."""
    cls.__init__ = checked_keywords(cls.__init__, instead)  # type: ignore[method-assign]
    return cls


def _is_model(value: object) -> bool:
    """Whether a value is a network of PyTorch, without importing that, and no matrix made as one."""
    torch = sys.modules.get("torch")
    has_products = any(hasattr(value, name) for name in ("__matmul__", "matvec", "to_scipy"))
    return torch is not None and isinstance(value, torch.nn.Module) and not has_products


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose front end shows what IPython displays."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _is_our_sentence(error: BaseException) -> bool:
    """Whether lossmap itself raised the error, and nobody wants to see where."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return module.partition(".")[0] == "lossmap" and not os.environ.get("LOSSMAP_DEBUG")


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    keywords = [k for k in known if k not in ("self", "cls")]
    return f"it takes {', '.join(keywords)}"
