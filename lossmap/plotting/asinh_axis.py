"""Ticks of an axis by the inverse hyperbolic sine, linear near zero and logarithmic beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties

BESIDE_PANEL = 0.75  # inches of a panel's place that numbers, label and gaps take
DIGIT = 0.62  # of the size of type, how wide a digit is


def asinh_ticks(axes: Axes, linear: float, values: list[float], count: int = 3, margin: float = 1.6) -> None:
    """Zero, and powers of ten whose labels do not run into each other, `count` on each side at most.

    linear  within which the axis is linear
    values  the smallest and the largest to be seen; margin: by which factor the axis reaches beyond them
    """
    low, high = min(values), max(values)
    first = int(np.ceil(np.log10(linear) - 1e-9))
    ticks: list[float] = [0.0]
    for sign, end in ((1.0, high), (-1.0, -low)):
        if end > linear:
            last = int(np.floor(np.log10(end)))
            step = max(1, -(-(last - first + 1) // count))
            ticks += [sign * 10.0**p for p in range(last, first - 1, -step)]
    left, right = -linear * 0.5, linear
    if low < 0:
        left = min(low * margin, -linear)
    if high > 0:
        right = max(high * margin, linear)
    ticks = _apart(ticks, lambda tick: float(np.arcsinh(tick / linear)), (left, right), _inches_across(axes))
    axes.set_xticks(ticks, [_power(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(left, right)


def _apart(
    ticks: list[float], place: Callable[[float], float], ends: tuple[float, float], inches: float
) -> list[float]:
    """Ascending ticks of which the labels do not touch on an axis of this length: 0 first, then from the outer ones."""
    size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    per_point = (place(ends[1]) - place(ends[0])) / (72 * inches)
    width = {tick: per_point * size * (DIGIT * len(_power(tick)) + 0.6) for tick in ticks}
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda tick: (tick != 0, -abs(tick))):
        if all(abs(place(tick) - place(other)) >= (width[tick] + width[other]) / 2 for other in kept):
            kept.append(tick)
    return sorted(kept)


def _inches_across(axes: Axes) -> float:
    """About how wide a panel is, without what stands beside it."""
    figure: Any = axes.figure
    spec, width = axes.get_subplotspec(), float(figure.get_figwidth())
    if spec is None:
        return axes.get_position().width * width
    ratios: Any = spec.get_gridspec().get_width_ratios()
    share = float(sum(ratios[spec.colspan.start : spec.colspan.stop]) / sum(ratios))
    return max(0.8, width * share - BESIDE_PANEL)


def _power(tick: float) -> str:
    if tick == 0 or 1e-3 <= abs(tick) < 1e4:
        return f"{tick:g}"
    return f"{tick:.0e}".replace("e-0", "e-")
