"""Lines of several files, such as of several seeds, as one: the median at each point, and the band of all.

The band reaches from the smallest to the largest value, which of few seeds says more than a quantile does; each file is
a faint line in it. A point at which a file has no finite value is left to the other files, and counted below the
figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lossmap.io.surface import Surface
from lossmap.plotting import lines
from lossmap.plotting.line_figures import frame_lines, set_loss_axis
from lossmap.plotting.panels import LOSS_NAMES, FigureOptions, add_legend_and_notes, grow_below
from lossmap.plotting.quantities import best_field, common_quantity, in_brackets, on_scale, quantity, values_of
from lossmap.plotting.style import BLUE, RED, column_width, new_figure

TOLERANCE = 1e-9  # of the line's length, by which ticks of two files may differ


def draw_median(surfaces: Sequence[Surface], field: str | None, options: FigureOptions) -> Figure:
    """Losses on the left axis and, unless a field is named, accuracies on the right; training solid, test dashed.

    Raises ValueError for fewer than two files, for files with other ticks, or where one does not hold the field.
    """
    if len(surfaces) < 2:
        raise ValueError("a median is of several files, such as of several seeds; got 1")
    x = surfaces[0].grid.x
    for surface in surfaces[1:]:
        if surface.grid.x.shape != x.shape or np.abs(surface.grid.x - x).max() > TOLERANCE * (np.ptp(x) or 1.0):
            raise ValueError("a median is of files over the same points; these have different ticks: draw them as line")
    losses = [field] if field else [name for name in LOSS_NAMES if all(name in s for s in surfaces)]
    accuracies = [name for name in ("train_acc", "test_acc") if not field and all(name in s for s in surfaces)]
    losses = losses or [best_field(surfaces[0])]
    figure = new_figure(options.width or column_width(), 2.6)
    axes = figure.subplots()
    stacks = [_draw_one(axes, surfaces, name, BLUE) for name in losses]
    quantities = [common_quantity(surfaces, name) for name in losses]
    first = quantities[0]
    label = first.label
    if len(losses) > 1:
        label = f"mean loss{in_brackets(surfaces[0].about[losses[0]].unit)}"
    axes.set_ylabel(label, color=BLUE if accuracies else "black")
    set_loss_axis(axes, stacks, options, first.even or first.signed)
    below = [handle for values in stacks for one in values for handle in lines.mark_below(axes, x, one, BLUE)]
    if accuracies:
        axes.tick_params(axis="y", colors=BLUE)
        right = axes.twinx()
        stacks += [_draw_one(right, surfaces, name, RED, squares=True) for name in accuracies]
        right.set_ylabel(lines.on_right("accuracy (percent)"), color=RED)
        right.tick_params(axis="y", colors=RED)
        right.set_ylim(-3, 103)
    frame_lines(axes, surfaces)
    grow_below(figure, [axes])
    if options.labels is not None:
        axes.set_xlabel(options.labels[0])
        axes.set_ylabel(on_scale(options.labels[1], axes.get_yscale() != "linear"))
    if len(losses) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    add_legend_and_notes(figure, below, _notes(len(surfaces), stacks))
    return figure


def _draw_one(axes: Any, surfaces: Sequence[Surface], name: str, colour: str, squares: bool = False) -> np.ndarray:
    """One field: faint lines, band, median; returns its values, (files, n), NaN where they are not finite."""
    x = surfaces[0].grid.x
    read = np.stack([values_of(surface, quantity(surface, name).name)[0] for surface in surfaces])
    values = np.where(np.isfinite(read), read, np.nan)
    known = np.isfinite(values).any(axis=0)
    middle, low, high = np.full((3, x.size), np.nan)
    middle[known] = np.nanmedian(values[:, known], axis=0)
    low[known], high[known] = np.nanmin(values[:, known], axis=0), np.nanmax(values[:, known], axis=0)
    order = np.argsort(x)
    for one in values:
        axes.plot(x[order], one[order], color=colour, linewidth=0.4, alpha=0.35)
    lines.band(axes, x, low, high, colour)
    lines.curve(axes, x, middle, colour=colour, label=name.split("_")[0], dashed=name.startswith("test"),
                squares=squares)  # fmt: skip
    return values


def _notes(files: int, stacks: Sequence[np.ndarray]) -> list[str]:
    """What line and band are, and at how many points a file has no finite value."""
    partial = int(np.any([np.isnan(values).any(axis=0) for values in stacks], axis=0).sum())
    notes = [f"line: median of {files} files; band: from the smallest to the largest"]
    if partial:
        notes.append(f"at {partial:,} points a file has no finite value: the others are drawn")
    return notes
