"""The largest share of some work that fits into a time; what the fits of sharpness and of lines have in common."""

from __future__ import annotations

from collections.abc import Callable

MARGIN = 0.8  # of the time that is planned for
HALVINGS = 20  # of the share that is looked for


def largest_share(fits: Callable[[float], bool]) -> float:
    """The largest share, from 0 to 1, that fits, where smaller ones fit too; 0 where none does."""
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
