"""The value by which a measure that is asked to stop leaves a point, shared by measures and dispatcher."""

from __future__ import annotations

from typing import Any


class Interrupted(Exception):
    """Raised by a measure that was asked to stop inside a point; `state` lets it go on there later.

    state  a dict of arrays and plain values, small enough to be sent and saved; may be empty
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        super().__init__("the point was left before its end")
        self.state: dict[str, Any] = state or {}
