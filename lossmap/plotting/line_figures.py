"""Figures of lines: loss and accuracy on two axes, one field of several files, the extreme eigenvalues along a line."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lossmap.io.read import Surface
from lossmap.plotting import lines
from lossmap.plotting.between_points import refinement_notes
from lossmap.plotting.contour_levels import FLAT_MARGIN, scale_of
from lossmap.plotting.flatness import noise_in
from lossmap.plotting.notes import accuracy_notes
from lossmap.plotting.own_axes import is_laid_out, size_of
from lossmap.plotting.panels import (
    LOSS_NAMES,
    MAX_LABEL_LINES,
    FigureOptions,
    add_legend_and_notes,
    common_loss,
    grow_below,
    letters_of,
)
from lossmap.plotting.quantities import (
    axis_labels,
    best_field,
    common_quantity,
    eigenvalues,
    in_brackets,
    line_ends,
    model_positions,
    on_scale,
    quantity,
    values_of,
)
from lossmap.plotting.style import BLUE, RED, column_width, new_figure, type_size
from lossmap.plotting.titles import NAME_LETTER, broken_name, legend_letters, set_titles
from lossmap.report.connection import BESIDE, ways_beside
from lossmap.report.stored import StoredReport

DECADES = 307  # of floating point, on either side of 1
MAX_POWERS = 7  # of ten, at the ticks of such an axis
LABEL, MARGIN_OF_LABEL = 8.0, 0.3  # size of the label along the line, points, and what it leaves of the width, inches
MARGIN = 0.05  # of an axis, beyond its values
AROUND_NOTES = 8.0  # points
SHORT_NAME, MAX_LEGEND_LINES = 16, 4  # letters and lines, up to which a legend stands within its panel


def draw_lines(
    surfaces: Sequence[Surface], field: str | None, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    """Loss on the left axis, accuracy on the right; one field of several surfaces in several colours.

    field  what to draw; losses and accuracies if left out; titles: one for each surface

    Raises ValueError where a surface does not hold the field.
    """
    axes = options.ax
    if axes is None:
        axes = new_figure(options.width or column_width(), 2.4).subplots()
    figure: Figure = axes.figure
    first = surfaces[0]
    if len(surfaces) == 1 and (field is None or field.endswith(("_loss", "_acc"))):
        patches = _draw_loss_and_accuracy(figure, axes, first, field, options)
    else:
        patches = _draw_field(axes, surfaces, field or best_field(first), titles, options)
    if titles and len(surfaces) == 1:
        wide = size_of(axes)[0] if options.ax is not None else axes.figure.get_figwidth() - 0.7
        set_titles([axes], titles, wide, grow=options.ax is None)
    frame_lines(axes, surfaces)
    if options.ax is None:
        grow_below(figure, [axes])
    if options.labels is not None:
        axes.set_xlabel(options.labels[0])
        axes.set_ylabel(on_scale(options.labels[1], axes.get_yscale() != "linear"))
    if options.ax is not None:
        break_upright_labels(options.ax)
    notes = [*refinement_notes(surfaces), *(_left_out(surfaces) if len(surfaces) > 1 else [])]
    add_legend_and_notes(figure, patches, notes, options.ax)
    if notes and options.ax is None:  # what the layout leaves around notes, or the labels at the sides are cut
        figure.set_figheight(figure.get_figheight() + AROUND_NOTES / 72)
    return figure


def break_upright_labels(own: Any) -> None:
    """Break labels at the sides of the caller's axes where these, less what a layout takes, are not as high."""
    high = size_of(own)[1] - (MARGIN_OF_LABEL if is_laid_out(own) else 0.0)
    letters = 72 * high / (NAME_LETTER * type_size(LABEL))
    for axes in own.figure.axes:
        label = axes.get_ylabel()
        if axes.bbox.bounds == own.bbox.bounds and len(label) > letters and "$" not in label and "\n" not in label:
            axes.set_ylabel(fill(label, max(8, int(letters)), break_long_words=False))


def _draw_field(
    axes: Any, surfaces: Sequence[Surface], name: str, titles: Sequence[str] | None, options: FigureOptions
) -> list[Artist]:
    """One field of each surface in a colour of its own; returns the legend's patches of missing points."""
    what = common_quantity(surfaces, name)
    patches: list[Artist] = []
    for i, surface in enumerate(surfaces):
        values, status = values_of(surface, quantity(surface, name).name)
        title = what.symbol
        if titles:
            title = broken_name(titles[i], legend_letters(axes.figure.get_figwidth()))
        lines.curve(axes, surface.grid.x, values, colour=_colour(i), label=title, style=lines.dashes(i))
        _draw_noise(axes, surface, name, _colour(i))
        patches += lines.mark_missing(axes, surface.grid.x, values, status)
    axes.set_ylabel(what.label)
    arrays = [values_of(s, name)[0] for s in surfaces]
    set_loss_axis(axes, arrays, options, what.even or what.signed, noise_in(surfaces, name))
    patches += _mark_below(axes, surfaces, arrays)
    if len(surfaces) > 1:
        patches = place_legend(axes) + patches
    return patches


def place_legend(axes: Any) -> list[Artist]:
    """A legend within the panel where its names are short and few; else its handles, to stand below the figure."""
    handles, names = axes.get_legend_handles_labels()
    lines_of_names = [line for name in names for line in name.split("\n")]
    if len(lines_of_names) <= MAX_LEGEND_LINES and max(map(letters_of, lines_of_names)) <= SHORT_NAME:
        axes.legend()
        return []
    return list(handles)


def _mark_below(axes: Any, surfaces: Sequence[Surface], arrays: Sequence[np.ndarray]) -> list[Artist]:
    """Of each surface, in its colour, the points below a logarithmic axis; returns the legend's marks."""
    pairs = enumerate(zip(surfaces, arrays, strict=True))
    return [m for i, (surface, values) in pairs for m in lines.mark_below(axes, surface.grid.x, values, _colour(i))]


def _draw_noise(axes: Any, surface: Surface, name: str, colour: str) -> None:
    """The standard error over the realisations of a random loss, as a band; nothing where there is none."""
    for error in (f"{name}_noise_error", f"{name}_error"):
        if error in surface and surface.about[error].long_name.startswith("standard error"):
            values = surface[name]
            lines.band(axes, surface.grid.x, values - surface[error], values + surface[error], colour)


def _colour(index: int) -> str:
    return lines.COLOURS[index % len(lines.COLOURS)]


def _draw_loss_and_accuracy(
    figure: Figure, axes: Any, surface: Surface, field: str | None, options: FigureOptions
) -> list[Artist]:
    """Losses on the left axis and, unless a field is named, accuracies on the right; returns the legend's patches."""
    names = [n for n in LOSS_NAMES if n in surface]
    accuracies = [n for n in ("train_acc", "test_acc") if n in surface and field is None]
    if field is not None or not names:
        names = [field or best_field(surface)]
    x = surface.grid.x
    patches: list[Artist] = []
    arrays = []
    for name in names:
        values, status = values_of(surface, quantity(surface, name).name)
        arrays.append(values)
        lines.curve(axes, x, values, colour=BLUE, label=name.split("_")[0], dashed=name.startswith("test"))
        _draw_noise(axes, surface, name, BLUE)
        patches += lines.mark_missing(axes, x, values, status)
    axes.set_ylabel(quantity(surface, names[0]).label)
    if len(names) > 1:
        axes.set_ylabel("mean loss" + in_brackets(surface.about[names[0]].unit))
    first = quantity(surface, names[0])
    noise = noise_in([surface], names[0]) if len(names) == 1 else 0.0
    set_loss_axis(axes, arrays, options, first.even or first.signed, noise)
    for values in arrays:
        patches += lines.mark_below(axes, x, values, BLUE)
    if accuracies:
        axes.yaxis.label.set_color(BLUE)
        axes.tick_params(axis="y", colors=BLUE)
        _draw_accuracies(axes.twinx(), surface, accuracies)
    if len(names) > 1:
        place: Any = axes if options.ax is not None else figure
        where = "best" if options.ax is not None else "outside upper center"
        place.legend(*axes.get_legend_handles_labels(), loc=where, ncols=2)
    return patches


def _draw_accuracies(axes: Any, surface: Surface, names: Sequence[str]) -> None:
    """Accuracies, percent, on an axis of their own at the right."""
    for name in names:
        label = name.split("_")[0]
        lines.curve(axes, surface.grid.x, surface[name], colour=RED, label=label, dashed=name.startswith("test"),
                    squares=True)  # fmt: skip
        _draw_noise(axes, surface, name, RED)
    axes.set_ylabel(lines.on_right(quantity(surface, names[0]).label if len(names) == 1 else "accuracy (percent)"))
    axes.yaxis.label.set_color(RED)
    axes.tick_params(axis="y", colors=RED)
    axes.set_ylim(-3, 103)


def set_loss_axis(
    axes: Any, arrays: list[np.ndarray], options: FigureOptions, even: bool = False, noise: float = 0.0
) -> None:
    """The scale, which the label names, and the ends; even: never logarithmic unless that is set.

    noise  differences that errors alone explain: the axis reaches far beyond them, and its label says so
    """
    if noise and options.vmin is None and options.vmax is None and options.loss_max is None:
        axes.set_ylim(scale_of(arrays, noise=noise).ends)
        axes.set_ylabel(f"{axes.get_ylabel()},\nequal within its errors")
        return
    if options.suits_log(arrays, even):
        set_log_axis(axes, arrays)
    if axes.get_yscale() != "linear":  # as set here, or before by the caller, whose axes they are
        axes.set_ylabel(on_scale(axes.get_ylabel(), True))
    top = options.vmax if options.loss_max is None else options.loss_max
    if top is not None or options.vmin is not None:
        axes.set_ylim(bottom=options.vmin, top=top)


def set_log_axis(axes: Any, arrays: Sequence[np.ndarray]) -> None:
    """Make an axis logarithmic; it ends within floating point, which the margin beyond the values may leave."""
    known = np.concatenate([np.log10(a[np.isfinite(a) & (a > 0)]).reshape(-1) for a in arrays])
    low, high = float(known.min(initial=DECADES)), float(known.max(initial=-DECADES))
    margin = MARGIN * (high - low)
    if low - margin >= -DECADES and high + margin <= DECADES:
        axes.set_yscale("log")
        return
    low, high = max(low - margin, -DECADES), min(high + margin, DECADES)
    axes.set_ylim(10.0**low, 10.0**high)  # before matplotlib looks for ends itself, and overflows
    axes.set_yscale("log")
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    powers = powers[:: max(1, -(-powers.size // MAX_POWERS))]
    axes.set_yticks(10.0**powers, [f"$10^{{{int(power)}}}$" for power in powers])
    axes.minorticks_off()


def frame_lines(axes: Any, surfaces: Sequence[Surface], with_label: bool = True) -> None:
    """The axis along the line: its label and the marks of models, as far as all files have the same."""
    texts = dict.fromkeys(_label_along(surface, _letters_of_label(axes)) for surface in surfaces)
    label = next(iter(texts))
    if len(texts) > 1 and all("connection" in surface.groups for surface in surfaces):
        label = broken_name("t, from each line's first network (0) to its other (1)", _letters_of_label(axes))
    elif len(texts) > 1:
        label = " or ".join(dict.fromkeys(text[0] for text in texts))
    marks = [mark for mark in model_positions(surfaces[0]) if all(mark in model_positions(s) for s in surfaces)]
    lines.frame(axes, np.concatenate([s.grid.x for s in surfaces]), label if with_label else "", marks)


def _letters_of_label(axes: Any) -> float:
    """How many letters of a name a line of the label along the line has room for, below the panel's own width."""
    return 72 * (size_of(axes)[0] - MARGIN_OF_LABEL) / (NAME_LETTER * type_size(LABEL))


def _label_along(surface: Surface, letters: float) -> str:
    """What a line's axis is, in lines of so many letters: it may bear names of files."""
    label = axis_labels(surface)[0]
    if "connection" not in surface.groups or len(label) <= letters:
        return broken_name(label, letters, MAX_LABEL_LINES)
    first, other = line_ends(surface)
    words = f"t, from {first} (0)", f"to {other} (1)"
    return "\n".join(broken_name(word, letters, MAX_LABEL_LINES // 2) for word in words)


def _left_out(surfaces: Sequence[Surface]) -> list[str]:
    """Of lines between networks, the ways beside them, which are drawn of one file alone."""
    groups = [surface.groups["connection"] for surface in surfaces if "connection" in surface.groups]
    ways = [BESIDE[way] for group in groups for way in ways_beside(StoredReport(group.arrays, group.attributes))]
    return [f"not shown of several files: the loss {' and '.join(dict.fromkeys(ways))}"] if ways else []


def draw_eigenvalue_lines(surfaces: Sequence[Surface], titles: Sequence[str] | None, options: FigureOptions) -> Figure:
    """The loss if there is one, the two ends with their bounds, and their ratio, one above the other.

    Raises ValueError where a surface holds no eigenvalues.
    """
    loss = common_loss(surfaces)
    for surface in surfaces:
        eigenvalues(surface)
    for name in ("max_eig", *([loss] if loss else [])):
        common_quantity(surfaces, name)  # raises where one axis cannot bear all
    rows = 2 + (loss is not None)
    figure = new_figure(options.width or column_width(), 1.35 * rows + 0.4)
    grid = figure.subplots(rows, 1, sharex=True)
    upper, lower = grid[-2], grid[-1]
    alone = len(surfaces) == 1
    names = _names_in_legend(figure, surfaces, titles)
    patches: list[Artist] = []
    for i, surface in enumerate(surfaces):
        colours = dict.fromkeys(("loss", "max_eig", "min_eig", "ratio"), _colour(i))
        if alone:
            colours = {"loss": BLUE, "max_eig": RED, "min_eig": BLUE, "ratio": "0.2"}
        title = names[i]
        if loss is not None:
            lines.curve(
                grid[0], surface.grid.x, surface[loss], colour=colours["loss"], label=title, style=lines.dashes(i)
            )
            _draw_noise(grid[0], surface, loss, colours["loss"])
        for name in ("max_eig", "min_eig"):
            style = lines.dashes(int(name == "min_eig") if alone else i)
            patches += _draw_end(upper, surface, name, title, colours[name], style)
        ratio, _ = values_of(surface, "ratio")
        lines.curve(lower, surface.grid.x, ratio, colour=colours["ratio"], label=title, style=lines.dashes(i))
    if loss is not None:
        grid[0].set_ylabel("loss" + in_brackets(surfaces[0].about[loss].unit))
        set_loss_axis(grid[0], [s[loss] for s in surfaces], options, noise=noise_in(surfaces, loss))
        patches += _mark_below(grid[0], surfaces, [surface[loss] for surface in surfaces])
    upper.set_ylabel("eigenvalue" + in_brackets(surfaces[0].about["max_eig"].unit, 20))
    upper.axhline(0, color="0.6", linewidth=0.5)
    patches = _place_legend_of_ends(upper, len(surfaces)) + patches
    if noise := noise_in(surfaces, "ratio"):
        lower.set_ylim(-FLAT_MARGIN * noise, FLAT_MARGIN * noise)
    lower.axhline(0, color="0.6", linewidth=0.5)
    lower.set_ylabel(r"$|\lambda_\min/\lambda_\max|$" + "\n" + r"($+$: $\lambda_\min<0$)")
    for axes in grid:
        frame_lines(axes, surfaces, with_label=axes is lower)
    grow_below(figure, [lower])
    notes = refinement_notes(surfaces)
    if alone:
        notes += accuracy_notes(surfaces[0])
        if titles:
            set_titles([grid[0]], titles, figure.get_figwidth() - 0.7)
    add_legend_and_notes(figure, patches, notes)
    return figure


def _names_in_legend(figure: Figure, surfaces: Sequence[Surface], titles: Sequence[str] | None) -> list[str]:
    """The titles of several files as they stand in a legend; that of one alone stands above."""
    if not titles or len(surfaces) == 1:
        return [""] * len(surfaces)
    return [broken_name(title, legend_letters(figure.get_figwidth())) for title in titles]


def _place_legend_of_ends(axes: Any, files: int) -> list[Artist]:
    """As `place_legend`, with a column for each file."""
    handles, names = axes.get_legend_handles_labels()
    if files > 1 and sum(map(letters_of, names)) > 2 * SHORT_NAME:
        return list(handles)
    axes.legend(fontsize=type_size(6), ncols=files)
    return []


def _draw_end(axes: Any, surface: Surface, name: str, title: str, colour: str, style: Any) -> list[Artist]:
    """One end of the spectrum along the line, with its errors and its limit; returns the legend's patches."""
    x = surface.grid.x
    values, status = values_of(surface, name)
    label = f"{title} {quantity(surface, name).symbol}".strip()
    lines.curve(axes, x, values, colour=colour, label=label, style=style)
    if f"{name}_error" in surface:
        error = surface[f"{name}_error"]
        lines.band(axes, x, values - error, values + error, colour)
    _draw_noise(axes, surface, name, colour)
    if f"{name}_limit" in surface:
        lines.band(axes, x, values, surface[f"{name}_limit"], colour)
    return lines.mark_missing(axes, x, values, status)
