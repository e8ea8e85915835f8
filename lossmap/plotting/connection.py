"""The line between two networks: losses and accuracies along it, and the barrier above the line between both ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isinf
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from lossmap.io.surface import DONE, Surface
from lossmap.plotting import lines
from lossmap.plotting.line_figures import set_log_axis
from lossmap.plotting.panels import FigureOptions, add_legend_and_notes
from lossmap.plotting.quantities import in_brackets, on_scale
from lossmap.plotting.round_ticks import set_round_ticks
from lossmap.plotting.style import BLUE, GREEN, RED, new_figure, page_width, style_context, type_size
from lossmap.plotting.titles import NAME_LETTER, broken_name
from lossmap.report.connection import NO_BARRIER, rounding_of, splits_of, ways_beside
from lossmap.report.stored import StoredReport
from lossmap.report.text import value_with_error

Array = np.ndarray
LINE = "0.45"  # the grey of the straight line between both ends
PANEL = 2.7  # inches across, with its labels, below which the panels of two splits stand one above the other
HEIGHT = 2.2  # of a panel without the lines above and below it, inches
LINE_HEIGHT = 1.25  # of a line of type, of its size
SIDES = 0.4  # of a panel's width, inches, that lines above and below it leave free
MAX_NAMES = 24  # characters of both models' names that stand on one line
AROUND = 9.0  # points across, of a mark that is seen around that of a model
LINE_STEPS = 101  # points of the straight line, which is bent on a logarithmic scale
BLANK = "\N{NO-BREAK SPACE}"  # at which no line ends
WAYS = {"unaligned": "not aligned (dashed)", "curve": "on the curve (dotted)"}  # beside the line


def draw_connection(surface: Surface, width: float | None = None, log: bool | None = None) -> Figure:
    """The picture of the line that a result holds; of several splits one panel each, side by side where they fit.

    width  inches; a page for several splits, a good half of one for one, if left out
    log    whether the losses have a logarithmic axis; by what they span if left out
    """
    group = surface.groups["connection"]
    stored = StoredReport(group.arrays, group.attributes)
    splits = splits_of(stored)
    with style_context():
        width = width or (page_width() if len(splits) > 1 else 0.62 * page_width())
        columns = len(splits) if width >= PANEL * len(splits) else 1
        rows = len(splits) // columns
        figure = new_figure(width, HEIGHT * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        missing: list[Artist] = []
        letters = _letters(width / columns)
        every = [values for split in splits for values in _losses(stored, split)]
        log = FigureOptions(log=log).suits_log(every)  # one scale for all splits: side by side they are compared
        titles = [_wrapped(_title_of(stored, split), letters) for split in splits]
        ends = broken_name("\n".join(_ends_of(stored)), letters)
        for axes, split, title in zip(panels, splits, titles, strict=True):
            missing += _draw_split(axes, surface, stored, split, log)
            axes.set_title(title)
            set_round_ticks(axes, 2 if width / columns < lines.NARROW else 5)
        for axes in panels[-columns:]:
            axes.set_xlabel(ends)
        tall = sum(max(map(_line_count, titles[i : i + columns])) for i in range(0, len(titles), columns))
        figure.set_figheight(HEIGHT * rows + LINE_HEIGHT * type_size(8) * (tall + _line_count(ends)) / 72)
        add_legend_and_notes(figure, missing, [])
    return figure


def _letters(panel: float) -> int:
    """How many letters of a title or a label, which have one size of type, fit a panel of this width, inches."""
    size = FontProperties(size=rcParams["axes.titlesize"]).get_size_in_points()
    return max(8, int(72 * (panel - SIDES) / (NAME_LETTER * size)))


def _wrapped(parts: Sequence[str], letters: int) -> str:
    """Lines of at most so many letters, if no word alone is longer; numbers stay whole."""
    return "\n".join(fill(line, letters, break_long_words=False) for line in parts)


def _line_count(words: str) -> int:
    return words.count("\n") + 1


def _ends_of(stored: StoredReport) -> list[str]:
    """The lines of the label of the line's axis, which names both models."""
    first, other = stored.text("first"), stored.text("end") or stored.text("other")
    words = [f"t, from {first} (0)", f"to {other} (1)"]
    return words if len(first) + len(other) > MAX_NAMES else [" ".join(words)]


def _losses(stored: StoredReport, split: str) -> list[Array]:
    """The losses along the line, and along what is drawn beside it."""
    return [stored.arrays[name] for name in (f"{split}_loss", *(f"{way}_{split}_loss" for way in ways_beside(stored)))]


def _draw_split(axes: Any, surface: Surface, stored: StoredReport, split: str, log: bool) -> list[Artist]:
    """Loss on the left axis, the straight line between both ends and the barrier; accuracy on the right one.

    Returns the legend's patches of missing points.
    """
    t, losses = stored.arrays["t"], stored.arrays[f"{split}_loss"]
    lines.curve(axes, t, losses, colour=BLUE, label=f"{split} loss", dashed=False)
    for way in ways_beside(stored):
        look: Any = {"colour": GREEN, "style": lines.dashes(2)} if way == "curve" else {"colour": BLUE, "dashed": True}
        lines.curve(axes, t, stored.arrays[f"{way}_{split}_loss"], label=WAYS[way], **look)
    drawn = _losses(stored, split)
    log = log and any((values > 0).any() for values in drawn)
    if log:
        set_log_axis(axes, drawn)
    name = f"{split}_loss"  # a result that no file holds has no statuses
    status = surface.status_of(name) if name in surface else np.full(losses.shape, DONE)
    missing = lines.mark_missing(axes, t, losses, status)
    for values in drawn:
        missing += lines.mark_below(axes, t, values, BLUE if values is losses else LINE, AROUND)
    _mark_barrier(axes, stored, split, losses)
    for at, end in zip((0.0, 1.0), losses[[0, -1]], strict=True):  # both models, named below
        below = log and end <= 0
        place = {"transform": axes.get_xaxis_transform()} if below else {}
        axes.plot([at], [0.0 if below else end], "X", color="black", markersize=5, clip_on=False, zorder=3, **place)
    word = "training" if split == "train" else split
    axes.set_ylabel(on_scale(f"{word} loss{in_brackets(stored.text('unit'))}", log), color=BLUE)
    axes.tick_params(axis="y", colors=BLUE, which="both")
    axes.set_xlim(0.0, 1.0)
    accuracy = stored.arrays.get(f"{split}_acc")
    if accuracy is not None:
        right = axes.twinx()
        lines.curve(right, t, accuracy, colour=RED, label="accuracy", squares=True)
        right.set_ylabel(lines.on_right("accuracy (percent)"), color=RED)
        right.tick_params(axis="y", colors=RED)
        right.set_ylim(-3, 103)
    return missing


def _mark_barrier(axes: Any, stored: StoredReport, split: str, losses: Array) -> None:
    """The straight line between both ends, and an arrow from it to the loss at the barrier, where there is one."""
    if not np.isfinite(losses[[0, -1]]).all():
        return
    t = np.linspace(0.0, 1.0, LINE_STEPS)
    first, last = float(losses[0]), float(losses[-1])
    axes.plot(t, (1.0 - t) * first + t * last, "--", color=LINE, linewidth=0.7)
    height, at = stored.number(f"{split}_barrier"), stored.number(f"{split}_at")
    if not isfinite(height) or not isfinite(at) or height <= rounding_of(stored, split):
        return
    foot = (1.0 - at) * first + at * last
    top = foot + height
    if axes.get_yscale() == "log" and foot <= 0:  # below the axis
        if top <= 0:
            return
        foot = axes.get_ylim()[0]
    arrow = {"arrowstyle": "<->", "color": "black", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (at, foot), (at, top), arrowprops=arrow)


def _title_of(stored: StoredReport, split: str) -> list[str]:
    """The barrier, and in lines of their own those on the ways beside the line."""
    if not np.isfinite(stored.arrays[f"{split}_loss"][[0, -1]]).all():
        title = f"{NO_BARRIER}: the loss at an end is not a finite number"
    elif stored.number(f"{split}_barrier") <= rounding_of(stored, split):
        title = "no barrier" if not stored.number(f"{split}_barrier") else "no barrier beyond rounding"
    else:
        height = _height_text(stored, split)
        title = "infinite barrier" if height == "infinite" else f"barrier {height}"
        title += f" at t{BLANK}={BLANK}{stored.number(f'{split}_at'):.3g}"
    ways = [way for way in ways_beside(stored) if f"{way}_{split}_barrier" in stored.attributes]
    return [title, *(f"{WAYS[way]}: {_height_text(stored, f'{way}_{split}')}" for way in ways)]


def _height_text(stored: StoredReport, split: str) -> str:
    height = stored.number(f"{split}_barrier")
    if isinf(height):
        return "infinite"
    if height <= rounding_of(stored, split):
        return "none beyond rounding" if height else "none"
    text = value_with_error(height, stored.number(f"{split}_error"))
    return text.replace(" +- ", f"{BLANK}±{BLANK}")
