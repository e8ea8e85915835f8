"""The layers of several files side by side, by name: both ends of each block, and the share of its negative curvature.

    left   a bar from the smallest to the largest eigenvalue of the block; blocks of zeros are a dot at 0
    right  the share of negative eigenvalues: a bar over all that their count may be

A block that a file does not have is left out of its row, and named below the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmap.io.surface import Group
from lossmap.plotting.asinh_axis import asinh_ticks
from lossmap.plotting.panels import add_legend_and_notes
from lossmap.plotting.spectra import COLOURS, WIDE_LAYERS, grow_by_label, label_of_layers, names_of_rows, unit_behind
from lossmap.plotting.style import DARK, new_figure, page_width, style_context

MARKERS = "osD^v<"  # of the files, as are their colours
SPREAD = 0.56  # of a row's height, over which the files of a row are spread


def draw_layers_compared(readings: Mapping[str, Group]) -> Figure:
    """A row for each block that any reading has, in it the readings one below the other.

    readings  two or more groups `layers`, by what stands in the legend
    """
    names = list(dict.fromkeys(str(name) for group in readings.values() for name in group["block"]))
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(readings))
    ends = [float(v) for g in readings.values() for k in ("smallest", "largest") for v in g[k]]
    floor = max(float(np.max(group["floor"], initial=0.0)) for group in readings.values())
    linear = max(floor, float(np.max(np.abs(ends), initial=0.0)) * 1e-4, 1e-300)
    with style_context():
        words, tall, panel = names_of_rows(names, page_width(), 0.16 + 0.1 * len(readings))
        figure = new_figure(page_width(), 0.9 + len(names) * tall)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.0, 1))
        for i, (label, group) in enumerate(readings.items()):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            rows = np.array([names.index(str(name)) for name in group["block"]]) + offsets[i]
            _draw_reading(left, right, group, rows, label, look)
        left.axvline(0.0, color=DARK, linewidth=0.6, zorder=0.5)
        left.set_xscale("asinh", linear_width=linear)
        asinh_ticks(left, linear, [min(ends), max(ends)], count=4 if panel > WIDE_LAYERS else 2)
        left.set_yticks(range(len(names)), words)
        left.set_ylim(len(names) - 0.5, -0.5)
        what = f"smallest to largest eigenvalue of the block{unit_behind(list(readings.values()), 60)}"
        left.set_xlabel(label_of_layers(what, linear, panel))
        grow_by_label(figure, left)
        most = max(float(np.max(np.asarray(g["negative"]) / np.asarray(g["size"])[:, None])) for g in readings.values())
        top = min(100.0, max(5.0, 120.0 * most))
        right.set_xlim(-0.02 * top, 1.02 * top)
        right.set_xlabel("share of negative\neigenvalues, %")
        right.tick_params(axis="y", left=False)
        handles, _ = left.get_legend_handles_labels()
        add_legend_and_notes(figure, handles, _absent(readings, names))
    return figure


def _draw_reading(left: Axes, right: Axes, group: Group, rows: np.ndarray, label: str, look: dict[str, Any]) -> None:
    """The blocks of one reading at their rows, (blocks,)."""
    low, high = np.asarray(group["smallest"]), np.asarray(group["largest"])
    left.hlines(rows, low, high, color=look["color"], linewidth=0.9)
    left.plot(low, rows, linestyle="", markersize=3.2, markerfacecolor="white", **look)
    left.plot(high, rows, linestyle="", markersize=3.2, label=label, **look)
    size = np.asarray(group["size"], dtype=np.float64)
    share = 100.0 * np.asarray(group["negative"], dtype=np.float64) / size[:, None]
    right.hlines(rows, share[:, 0], share[:, 1], color=look["color"], linewidth=0.9)
    right.plot(share[:, 1], rows, linestyle="", markersize=3.2, markerfacecolor="white", **look)
    right.plot(share[:, 0], rows, linestyle="", markersize=3.2, **look)  # what is certain on top


def _absent(readings: Mapping[str, Group], names: list[str]) -> list[str]:
    """Which blocks are not in which reading, a line for each reading."""
    notes = []
    for label, group in readings.items():
        there = {str(name) for name in group["block"]}
        missing = [name for name in names if name not in there]
        if missing:
            notes.append(f"not in {label}: {', '.join(missing)}")
    filled = (
        "filled: largest eigenvalue, and the negative that are certain; open: smallest, and all that may be negative"
    )
    return [filled, *notes]
