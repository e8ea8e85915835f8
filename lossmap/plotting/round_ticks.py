"""Round ticks along the lower side of a panel, as many as have room for their numbers, however long these are.

Matplotlib counts ticks by the size of type alone: the numbers of a window such as 1000..1001 ran into each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

STEPS = (1, 2, 5, 10)
WIDTHS = {".": 0.32, ",": 0.32, "-": 0.37}  # of a sign, in sizes of type; others are as wide as a digit or minus
DIGIT, MINUS, GAP = 0.64, 0.84, 0.4


def number_few_decades(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of each decade of a logarithmic axis, where those at its decades alone are too few."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


class RoundTicks(MaxNLocator):
    """At most so many intervals of round length, and fewer where the numbers at their ends would touch."""

    def __init__(self, most: int) -> None:
        super().__init__(most, steps=STEPS)
        self.most = most

    def __call__(self) -> Any:
        """The ticks, ascending; asked for whenever the figure is laid out, at the size that the panel then has."""
        for count in range(self.most, 0, -1):
            self.set_params(nbins=count, min_n_ticks=1 + int(count == self.most))
            ticks = np.asarray(super().__call__())
            if self._have_room(ticks):
                break
        return ticks

    def _have_room(self, ticks: np.ndarray) -> bool:
        axis: Any = self.axis
        low, high = sorted(axis.get_view_interval())
        span = high - low
        shown = ticks[(ticks >= low - 1e-9 * span) & (ticks <= high + 1e-9 * span)]
        if shown.size < 2 or span == 0:
            return True
        axes, size = axis.axes, axis.majorTicks[0].label1.get_size()
        points = 72 * axes.bbox.width / axes.figure.dpi
        wide = np.array([_width(text) for text in axis.get_major_formatter().format_ticks(shown)])
        needed = size * (0.5 * (wide[1:] + wide[:-1]) + GAP)
        return bool((np.diff(shown) / span * points >= needed).all())


def _width(text: str) -> float:
    """About how wide a number is, in sizes of its type."""
    return sum(MINUS if sign == "\N{MINUS SIGN}" else WIDTHS.get(sign, DIGIT) for sign in text)


def set_round_ticks(axes: Axes, count: int) -> None:
    """Ticks along the lower side of a panel; count: intervals at most."""
    axes.xaxis.get_major_ticks(1)  # whose size of type is asked for
    axes.xaxis.set_major_locator(RoundTicks(count))
