"""Several quantities of several planes on one sheet: a row for each quantity, a column for each file.

A row has common levels and one colour bar, so that the files can be compared; the rows share nothing but the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lossmap.io.surface import Surface
from lossmap.plotting import maps
from lossmap.plotting.between_points import refinement_notes
from lossmap.plotting.flatness import FLAT_NOTE, noise_in
from lossmap.plotting.panels import (
    FigureOptions,
    add_legend_and_notes,
    grow_below,
    have_one_window,
    interpolation_notes,
    panel_ratio,
)
from lossmap.plotting.plane_figures import LABEL_LINE, add_bar, draw_map, frame_panel, marked_values, signed_norm
from lossmap.plotting.quantities import common_quantity, quantity, values_of
from lossmap.plotting.sign_hatches import mark_signs
from lossmap.plotting.style import column_width, new_figure, page_width
from lossmap.plotting.titles import set_titles

MAX_PANEL, TICKS = 2.2, 0.3  # inches: of a panel, and of the numbers beside it
SHARE_OF_BAR = 0.9  # of a bar's length, that its label takes: others stand above and below it
SMALLEST_PANEL = 1.1  # inches across, below which the labels of the bars reach into each other


def draw_field_rows(
    surfaces: Sequence[Surface],
    names: Sequence[str],
    titles: Sequence[str] | None,
    options: FigureOptions,
    kind: str = "filled",
) -> Figure:
    """A sheet of maps; arguments as `plane_figures.draw_maps`, names: the quantities from the top down.

    Raises ValueError where a surface does not hold a quantity, or a width leaves the maps less than SMALLEST_PANEL.
    """
    columns = len(surfaces)
    width = options.width or (column_width() if columns == 1 else page_width())
    shared = have_one_window(surfaces)
    beside = 1.35 if shared else 1.35 + TICKS * (columns - 1)  # bars, labels, and ticks of each panel's own
    panel = min(MAX_PANEL, (width - beside) / columns)
    if options.width is None:
        width = min(width, panel * columns + beside)
    elif panel < SMALLEST_PANEL:
        least = beside + SMALLEST_PANEL * columns
        raise ValueError(f"--width must be at least {least:.3g} inches for {columns} beside each other; got {width:g}")
    figure = new_figure(width, len(names) * (panel / panel_ratio(surfaces[0]) + 0.1) + 0.7, compressed=True)
    common: Any = "all" if shared else "col"
    grid = figure.subplots(len(names), columns, squeeze=False, sharex=common, sharey=common)
    handles: list[Artist] = []
    notes: dict[str, list[str]] = {}
    for number, (row, name) in enumerate(zip(grid, names, strict=True)):
        what = common_quantity(surfaces, name)
        readings = [values_of(surface, quantity(surface, name).name) for surface in surfaces]
        arrays = [values for values, _ in readings]
        noise = noise_in(surfaces, name)
        scale = options.scale(arrays, what, noise)
        norm = signed_norm(what, arrays, noise=noise)
        drawn = "map" if what.signed and kind != "contour" else kind
        mappable: Any = None
        for column, (axes, surface, (values, status)) in enumerate(zip(row, surfaces, readings, strict=True)):
            mappable = draw_map(axes, surface, values, what, drawn, scale, norm, options.interp)
            handles += maps.mark_missing(axes, surface.grid, values, status)
            handles += mark_signs(axes, surface, values, what, drawn, noise)
            marked = marked_values(surface, values, options)
            if marked is not None:
                maps.mark_points(axes, surface.grid, marked)
            left, _ = options.labelled_sides(surfaces, column, columns)
            frame_panel(axes, surface, options, drawn, left=left, bottom=number == len(names) - 1)
        taken = LABEL_LINE * row[0].get_ylabel().count("\n") / columns  # of each panel, by further lines of its label
        tall = SHARE_OF_BAR * (panel - taken) / panel_ratio(surfaces[0])
        add_bar(figure, mappable, list(row), what, scale, drawn, norm, arrays, tall)
        said = [*([FLAT_NOTE] if noise else []), *refinement_notes(surfaces)]
        if drawn != "map":
            said += interpolation_notes(surfaces, arrays, scale, options.interp)
        for note in said:
            notes.setdefault(note, []).append(what.label.split(" (")[0])
    grow_below(figure, grid[-1])
    if titles:
        set_titles(list(grid[0]), titles, panel, columns)
    add_legend_and_notes(figure, handles, [f"{', '.join(whose)}: {note}" for note, whose in notes.items()])
    return figure
