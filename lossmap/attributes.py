"""Attributes of any object: one that stands for a package which is not there raises anything when it is asked."""

from __future__ import annotations

from typing import Any


def dictionary_of(value: Any) -> dict[str, Any] | None:
    """The dictionary of an object's attributes; None where it has none, or does not show it."""
    own = attribute(value, "__dict__")
    return own if isinstance(own, dict) else None


def attribute(value: Any, name: str, default: Any = None) -> Any:
    """An object's attribute; the default where it has none, or raises something."""
    try:
        return getattr(value, name, default)
    except Exception:  # of a class that somebody else wrote
        return default


__all__ = ["attribute", "dictionary_of"]
