"""The line between two networks: losses and accuracies along it, and the barrier above the line between both ends."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lossmap.io.surface import Group
from lossmap.plotting import lines
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.style import BLUE, GREEN, RED, new_figure, page_width, style_context
from lossmap.report.connection import splits_of, ways_beside
from lossmap.report.stored import StoredReport
from lossmap.report.text import value_with_error

LINE = "0.45"  # the grey of the straight line between both ends
ROOM = 0.08  # above the highest loss, of the axis, for the barrier's label


def draw_connection(group: Group) -> Figure:
    """The picture of one line; of several splits one panel each."""
    stored = StoredReport(group.arrays, group.attributes)
    splits = splits_of(stored)
    with style_context():
        figure = new_figure(page_width() if len(splits) > 1 else 0.62 * page_width(), 2.6)
        panels = figure.subplots(1, len(splits), squeeze=False)[0]
        for axes, split in zip(panels, splits, strict=True):
            _draw_split(axes, stored, split)
    return figure


def _draw_split(axes: Any, stored: StoredReport, split: str) -> None:
    """Loss on the left axis, the straight line between both ends and the barrier; accuracy on the right one."""
    t, losses = stored.arrays["t"], stored.arrays[f"{split}_loss"]
    lines.curve(axes, t, losses, colour=BLUE, label=f"{split} loss", dashed=False)
    beside = ways_beside(stored)
    if "unaligned" in beside:
        lines.curve(axes, t, stored.arrays[f"unaligned_{split}_loss"], colour=BLUE, label="not aligned", dashed=True)
    if "curve" in beside:
        curved = stored.arrays[f"curve_{split}_loss"]
        lines.curve(axes, t, curved, colour=GREEN, label="on the curve", style=lines.dashes(2))
    if np.isfinite(losses[[0, -1]]).all():
        axes.plot([0.0, 1.0], losses[[0, -1]], "--", color=LINE, linewidth=0.8)
        _mark_barrier(axes, stored, split, losses)
    ends = losses[[0, -1]]  # both models, named below
    axes.plot([0.0, 1.0], ends, "X", color="black", markersize=5, clip_on=False, zorder=3)
    name = "training" if split == "train" else split
    axes.set_ylabel(f"{name} loss{in_brackets(stored.text('unit'))}", color=BLUE)
    axes.tick_params(axis="y", colors=BLUE)
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel(f"t, from {stored.text('first')} (0) to {stored.text('other')} (1)")
    accuracy = stored.arrays.get(f"{split}_acc")
    if accuracy is not None:
        right = axes.twinx()
        lines.curve(right, t, accuracy, colour=RED, label="accuracy", squares=True)
        right.set_ylabel(lines.on_right("accuracy (percent)"), color=RED)
        right.tick_params(axis="y", colors=RED)
        right.set_ylim(-3, 103)


def _mark_barrier(axes: Any, stored: StoredReport, split: str, losses: np.ndarray) -> None:
    """An arrow from the straight line to the loss at the barrier, with its height; `no barrier` where there is none."""
    height, at = stored.number(f"{split}_barrier"), stored.number(f"{split}_at")
    if not isfinite(height) or not isfinite(at):
        what = "no barrier" if height == 0.0 else "an infinite barrier"
        axes.set_title(f"{what}{_beside_text(stored, split)}")
        return
    foot = (1.0 - at) * float(losses[0]) + at * float(losses[-1])
    arrow = {"arrowstyle": "<->", "color": "black", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (at, foot), (at, foot + height), arrowprops=arrow)
    axes.set_title(f"barrier {_height_text(stored, split)} at t = {at:.3g}{_beside_text(stored, split)}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + ROOM * (high - low))


def _height_text(stored: StoredReport, split: str) -> str:
    height = stored.number(f"{split}_barrier")
    error = stored.number(f"{split}_error")
    return value_with_error(height, error).replace("+-", "±") if height else "none"


def _beside_text(stored: StoredReport, split: str) -> str:
    """The barriers on the ways beside the line, each in a line of its own."""
    words = {"unaligned": "not aligned (dashed)", "curve": "on the curve (dotted)"}
    ways = [way for way in ways_beside(stored) if f"{way}_{split}_barrier" in stored.attributes]
    return "".join(f"\n{words[way]}: {_height_text(stored, f'{way}_{split}')}" for way in ways)
