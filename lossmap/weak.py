"""References that do not keep what they refer to alive, for what is remembered of a model and its functions."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def reference(function: Any) -> Callable[[], Any]:
    """A weak reference where there can be one that lasts: a bound method is made anew at every look."""
    try:
        return weakref.ref(function) if not hasattr(function, "__self__") else weakref.WeakMethod(function)
    except TypeError:
        return lambda: function
