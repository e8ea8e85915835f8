"""The sharpness of one checkpoint, or of several side by side: curvature on the left, rises in balls on the right.

Bars are the error of an eigenvalue, one standard error of a trace or an average, and the interval of critical
sharpness. The worst rise is a lower bound, and its marker points up.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmap.geometry.grid import curvature_unit
from lossmap.io.surface import Group
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.round_ticks import number_few_decades
from lossmap.plotting.style import BLUE, GREEN, PURPLE, RED, name_scales, new_figure, page_width, style_context
from lossmap.report.sharpness import SharpnessNumber, sharpness_rows
from lossmap.report.stored import StoredReport

COLOURS = (BLUE, RED, GREEN, PURPLE, "#8a6d1d", "#3b8ea5")
FILLS = ("full", "none", "left", "top", "right", "bottom")  # of the checkpoints' markers, which grey leaves as they are
MAX_PLAIN = 100.0  # largest over smallest number of a log axis whose ticks are plain numbers
MARKERS = {"average": "o", "SAM": "s", "worst": "^"}
SPREAD = 0.5  # of a row's height, over which the checkpoints of a row are spread


def draw_sharpness(checkpoints: Mapping[str, Group]) -> Figure:
    """The picture of these checkpoints, by label. Raises ValueError where there is none."""
    if not checkpoints:
        raise ValueError("there is no sharpness to draw")
    numbers = sharpness_rows({label: StoredReport(g.arrays, g.attributes) for label, g in checkpoints.items()})
    unit = str(next(iter(checkpoints.values())).attributes.get("unit", "1"))
    rows = max(len(n) for n in numbers.values())
    with style_context():
        figure = new_figure(page_width(), max(2.2, 0.28 * rows + 0.2 * len(checkpoints) + 0.6))
        left, right = figure.subplots(1, 2)
        _draw_rows(left, {label: [n for n in row if not n.is_rise] for label, row in numbers.items()})
        _draw_rows(right, {label: [n for n in row if n.is_rise] for label, row in numbers.items()})
        left.set_xlabel(f"curvature\n({curvature_unit(unit)})")
        right.set_xlabel(f"rise of the loss{in_brackets(unit)};\nworst: at least")
        name_scales(figure)
        if len(checkpoints) > 1:
            figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(checkpoints)))
    return figure


def _draw_rows(axes: Axes, numbers: Mapping[str, list[SharpnessNumber]]) -> None:
    """One row a number, in it the checkpoints one below the other."""
    names = [number.name for number in next(iter(numbers.values()))]
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(numbers)) if len(numbers) > 1 else np.zeros(1)
    ends: list[float] = []
    for i, (label, row) in enumerate(numbers.items()):
        colour = COLOURS[i % len(COLOURS)]
        for k, number in enumerate(row):
            if not isfinite(number.value):
                continue
            error = number.error if isfinite(number.error) else 0.0
            ends.append(number.value - error)
            options: dict[str, Any] = {"label": label} if k == 0 else {}
            marker = MARKERS.get(number.name.rpartition(": ")[2], "D")
            options |= {"fillstyle": FILLS[i % len(FILLS)], "markerfacecoloralt": "white"}
            axes.errorbar(
                number.value, k + offsets[i], xerr=error or None, fmt=marker, color=colour, capsize=2, **options
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.3)
    if ends and min(ends) > 0.0:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < MAX_PLAIN * low:  # matplotlib writes 4 x 10^0 beside 6 x 10^0, one over the other
            number_few_decades(axes.xaxis)
    else:
        axes.axvline(0.0, color="0.5", linewidth=0.6)
