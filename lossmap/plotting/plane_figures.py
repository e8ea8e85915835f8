"""Figures of planes: maps side by side with common levels, surfaces in three dimensions, maps of eigenvalues.

Price: a map of 51x51 takes about half a second.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lossmap.io.read import Group, Surface
from lossmap.io.refined import is_refined
from lossmap.plotting import lines, maps
from lossmap.plotting.between_points import measured_of, refinement_notes
from lossmap.plotting.contour_levels import FLAT_SPAN, SMALLEST, Scale, labels, scale_of
from lossmap.plotting.flatness import FLAT_NOTE, noise_in
from lossmap.plotting.interpolation import AUTOMATIC
from lossmap.plotting.notes import accuracy_notes
from lossmap.plotting.own_axes import is_laid_out, room_for_bar, size_beside_bar, size_of, type_of_ticks
from lossmap.plotting.panels import (
    AXIS,
    MAX_LABEL_LINES,
    TITLED,
    UNTITLED,
    FigureOptions,
    add_legend_and_notes,
    common_loss,
    figure_of_maps,
    grow_below,
    have_one_window,
    interpolation_notes,
    layout_of,
    letters_of,
    panel_ratio,
    title_maps,
)
from lossmap.plotting.quantities import (
    Quantity,
    best_field,
    common_quantity,
    eigenvalues,
    is_line,
    models_on_plane,
    on_scale,
    quantity,
    short_unit,
    values_of,
)
from lossmap.plotting.round_ticks import STEPS, set_round_ticks
from lossmap.plotting.sign_hatches import mark_signs
from lossmap.plotting.style import new_figure, page_width, type_size
from lossmap.plotting.surface3d import CAMERA, ENOUGH, draw_surface3d, is_from_above, letters_beyond, place_labels
from lossmap.plotting.titles import NAME_LETTER, broken_name, numbered, set_titles

PATH_LOSS = "train_loss"  # what a path's losses are of
LETTER = 0.52  # of the size of type, how wide a letter is
WIDE = 3.0  # inches, from which on a relief has its whole label at the axis
SMALLEST_RELIEFS = {1: 1.1, 2: 1.5}  # inches across, of the only one, and of one of several, whose heights are labelled
BESIDE = 0.85  # inches across, of the colour bar and its labels
SHRINK, LONG_SHRINK = 0.55, 0.8  # of the height of a relief, its colour bar, and one with a label of many lines
LINES_AT_BAR = 2  # of a label, from which on more are many
SMALLEST_OF_EIGEN = 0.9  # inches across, of a panel beside others with a bar each
ENDS_OF_LABEL, BESIDE_PANEL = 0.4, 0.9  # inches of a panel with its bar that its label below leaves free, and the map
BESIDE_ALL = 1.35  # inches, of what stands beside several panels in a row
FEW_TICKS = 2.6  # inches across, of a map with its bar, below which more than three ticks would touch
BELOW_EIGEN = 1.25  # inches, that titles, bars and their labels of two lines take of a sheet of eigenvalues
BEYOND_PANEL = 0.1  # inches, that the label at its left may reach beyond a map
LABEL_LETTERS, LABEL_LINES = 18, 3  # of a title beside a small panel, at most
NUMBER = 0.15  # inches, that are left for the number behind a title
LABEL_LINE = 0.14  # inches, of a line of a label
SMALLEST_BAR = 0.3  # inches, of a colour bar
SHARE_OF_LABEL = 0.2  # of a panel's width with its labels, that the lines of the label at its left take
MAX_RATIO = 1.0  # |min_eig / max_eig| at which its colours end


def draw_maps(
    surfaces: Sequence[Surface], name: str, kind: str, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    """One quantity of several planes side by side, with one colour bar.

    name  the quantity, as in `quantity`; kind: filled, contour or map; titles: one for each surface

    Raises ValueError where a surface does not hold the quantity.
    """
    what = options.quantity(surfaces, name)
    readings = [values_of(s, quantity(s, name).name) for s in surfaces]
    arrays = [values for values, _ in readings]
    if what.signed and kind != "contour":
        kind = "map"
    noise = noise_in(surfaces, name)
    scale = options.scale(arrays, what, noise)
    notes = []
    if "eig" in name or name == "ratio":
        notes = _notes_of_all(surfaces, titles)
    if scale.above and options.crop is not None and not what.signed:
        notes = [*notes, _note_of_crop(arrays, scale, options.crop)]
    elif scale.above and options.vmax is None and options.levels is None and not what.signed:
        notes = [*notes, _note_of_outliers(arrays, scale)]
    if noise:
        notes = [*notes, FLAT_NOTE]
    notes = [*notes, *refinement_notes(surfaces)]
    if kind != "map":
        notes = [*notes, *interpolation_notes(surfaces, arrays, scale, options.interp)]
    if name == PATH_LOSS and kind != "contour":
        notes = [*notes, *path_notes(surfaces, options)]
    figure, grid, columns = figure_of_maps(surfaces, bool(titles), options.width, options.ax)
    norm = signed_norm(what, arrays, _limit(arrays, options), options.log, noise)
    patches: list[Artist] = []
    mappable: Any = None
    for i, (axes, surface, (values, status)) in enumerate(zip(grid.flat, surfaces, readings, strict=False)):
        mappable = draw_map(axes, surface, values, what, kind, scale, norm, options.interp)
        patches += maps.mark_missing(axes, surface.grid, values, status)
        patches += mark_signs(axes, surface, values, what, kind, noise)
        marked = marked_values(surface, values, options)
        if marked is not None:
            maps.mark_points(axes, surface.grid, marked)
        colours = mappable if name == PATH_LOSS and kind != "contour" else None
        left, bottom = options.labelled_sides(surfaces, i, columns)
        frame_panel(axes, surface, options, kind, left=left, bottom=bottom, colours=colours)
    tall = length_of_bar(grid, surfaces, options, bool(titles))
    title_maps(figure, grid, titles, columns, options.ax)
    add_bar(figure, mappable, list(grid.flat), what, scale, kind, norm, arrays, tall)
    if options.ax is None:
        grow_below(figure, grid)
    add_legend_and_notes(figure, patches, notes, options.ax)
    return figure


def add_bar(
    figure: Figure,
    mappable: Any,
    panels: list[Any],
    what: Quantity,
    scale: Scale,
    kind: str,
    norm: Normalize | None,
    arrays: Sequence[np.ndarray],
    tall: float,
) -> None:
    """A labelled colour bar beside some panels.

    norm    as `draw_map`; arrays: the values, which may lie beyond it
    tall    its length, inches
    """
    extend = beyond(norm, arrays) if what.signed else scale.extend
    beside: Any = panels if len(panels) > 1 else panels[0]  # of one alone the bar keeps its place in any layout
    label = broken_label(label_on_scale(what.label, kind, scale, norm), tall)
    room = room_for_bar(beside, label.count("\n") + 1)
    bar = figure.colorbar(mappable, ax=beside, shrink=1.0, pad=0.02, aspect=24, extend=extend, **room)
    set_bar_ticks(bar, what, scale, kind, tall - LABEL_LINE * label.count("\n"))  # which its lines take of the panel
    bar.set_label(label)


def length_of_bar(panels: np.ndarray, surfaces: Sequence[Surface], options: FigureOptions, titled: bool) -> float:
    """How long a colour bar beside maps is, (rows, columns) with their labels, inches; before titles are set."""
    if options.ax is not None:
        return size_beside_bar(options.ax, panel_ratio(surfaces[0]))[1]
    rows, columns = panels.shape
    taken = max(LABEL_LINE * axes.get_ylabel().count("\n") for axes in panels.flat)  # of a row's width
    tall = panels[0, 0].figure.get_figheight() - AXIS - rows * taken / columns / panel_ratio(surfaces[0])
    tall -= rows * (TITLED - UNTITLED) * titled
    return float(max(tall, SMALLEST_BAR))


def broken_label(label: str, inches: float) -> str:
    """A label of a colour bar of this length, with lines that are longer than it broken, behind a comma if they can."""
    size = FontProperties(size=rcParams["axes.labelsize"]).get_size_in_points()
    most = 72 * inches / (LETTER * size)
    lines = [line.replace(", ", ",\n") if letters_of(line) > most else line for line in label.split("\n")]
    short = []
    for line in "\n".join(lines).split("\n"):
        is_long = letters_of(line) > most and "$" not in line
        short += textwrap.wrap(line, max(8, int(most)), break_long_words=False) if is_long else [line]
    return "\n".join(short)


def _limit(arrays: list[np.ndarray], options: FigureOptions) -> float | None:
    """Where colours that are centred on 0 end on both sides; None where nothing is set."""
    return options.top([np.abs(values) for values in arrays])


def _note_of_crop(arrays: list[np.ndarray], scale: Scale, percentile: float) -> str:
    """Where the colours end by a percentile, and what lies beyond, in words."""
    known = np.concatenate([values[np.isfinite(values)].reshape(-1) for values in arrays])
    beyond = int((known > scale.high).sum())
    points = "1 point lies" if beyond == 1 else f"{beyond:,} points lie"
    return f"colours end at the {percentile:g}th percentile, {scale.high:.3g}; {points} beyond, up to {known.max():.3g}"


def between_notes(surfaces: Sequence[Surface], kind: str, field: str | None, options: FigureOptions) -> list[str]:
    """What the caption of a figure says of what lies between the measured points; nothing of lines and cells."""
    if kind == "eigen":
        field = common_loss(surfaces)
    if kind not in ("filled", "contour", "3d", "eigen") or any(map(is_line, surfaces)):
        return []
    if field is None and kind == "eigen":
        return []
    name = field or best_field(surfaces[0])
    what = options.quantity(surfaces, name)
    if what.signed and kind == "filled":
        return []
    arrays = [values_of(s, name)[0] for s in surfaces]
    scale = options.scale(arrays, what, noise_in(surfaces, name))
    return interpolation_notes(surfaces, arrays, scale, options.interp, ENOUGH if kind == "3d" else AUTOMATIC)


def path_notes(surfaces: Sequence[Surface], options: FigureOptions) -> list[str]:
    """What the points of a path show, in a line; none without a path that holds its losses."""
    paths = [path for path in map(options.training_path, surfaces) if path is not None and "loss" in path]
    if not paths:
        return []
    size = ", larger farther from the plane" if any("residual" in path for path in paths) else ""
    return [f"points of the path have the colours of their own losses{size}"]


def _note_of_outliers(arrays: list[np.ndarray], scale: Scale) -> str:
    """The points beyond the colours that no one has set an end to, in words."""
    known = np.concatenate([values[np.isfinite(values)].reshape(-1) for values in arrays])
    beyond = known[known > scale.high]
    if beyond.size == known.size:
        return f"all points lie beyond the colours, at up to {beyond.max():.3g}"
    points = "1 point lies" if beyond.size == 1 else f"{beyond.size:,} points lie"
    return f"{points} far above all others and beyond the colours, at up to {beyond.max():.3g} (--vmax sets their end)"


def draw_map(
    axes: Any,
    surface: Surface,
    values: np.ndarray,
    what: Quantity,
    kind: str,
    scale: Scale,
    norm: Normalize | None,
    interp: int | None,
) -> Any:
    """Draw one map; norm: colours of a signed quantity, else those of the scale; interp: as `maps.filled`."""
    if kind == "contour":
        return maps.contour(axes, surface.grid, values, scale, what.cmap, norm, interp)
    if kind == "map" or norm is not None:
        return maps.cells(axes, surface.grid, values, norm or maps.norm_of(scale), what.cmap)
    return maps.filled(axes, surface.grid, values, scale, what.cmap, interp)


def label_on_scale(label: str, kind: str, scale: Scale, norm: Normalize | None, gap: str = ", ") -> str:
    """The label of a colour bar and, behind a gap, the word for its scale where that is not linear."""
    if isinstance(norm, SymLogNorm):
        return f"{label}{gap}symlog scale".lstrip(gap)
    if scale.log and (norm is None or kind == "contour"):
        return f"{label}{gap}log scale".lstrip(gap)
    if scale.too_fine:
        return f"{label}{gap}differences below {SMALLEST:g} not shown".lstrip(gap)
    return label


def signed_norm(
    what: Quantity, arrays: list[np.ndarray], limit: float | None = None, log: bool | None = None, noise: float = 0.0
) -> Normalize | None:
    """The colours of a signed quantity, which are white at 0 in all panels; None of any other. As `maps.centred`."""
    if not what.signed:
        return None
    if limit is None and what.name == "ratio":
        limit = MAX_RATIO
    return maps.centred(arrays, limit, log, noise)


def frame_panel(
    axes: Any,
    surface: Surface,
    options: FigureOptions,
    kind: str,
    left: bool = True,
    bottom: bool = True,
    colours: Any = None,
) -> None:
    """Limits, labels at the left and the bottom of the figure alone, few ticks, the training path.

    colours  the map's, where it is one of a loss: the checkpoints then show their own losses
    """
    own = options.ax is not None
    wide = size_beside_bar(axes, panel_ratio(surface))[0] + BESIDE_PANEL if own else lines.inches_across(axes)
    tall = (wide - BESIDE_PANEL) / panel_ratio(surface) + BEYOND_PANEL
    across, up = options.axis_labels(surface)
    most = max(2, int(SHARE_OF_LABEL * wide / LABEL_LINE))
    if own and not is_laid_out(axes):
        most = 1  # the next panel is near
    if len(up) > _letters(tall):  # its lines leave the panel less room, and so themselves
        tall -= LABEL_LINE * (most - 1) / panel_ratio(surface)
    up = broken_name(up, _letters(tall), most)
    taken = LABEL_LINE * up.count("\n")  # by further lines of the label at the left
    room, across_map = wide - (BESIDE_PANEL if own else ENDS_OF_LABEL), wide - BESIDE_PANEL - taken
    if options.ax is None and (columns := axes.get_subplotspec().get_gridspec().ncols) > 1:
        across_map = (axes.figure.get_figwidth() - BESIDE_ALL - taken) / columns
        room = min(room, across_map)  # the labels lie beside each other
    across = broken_name(across, _letters(room), 2 if most == 1 else MAX_LABEL_LINES)
    maps.frame(axes, surface.grid, (across, up), cells=kind == "map")
    maps.models(axes, models_on_plane(surface), (across_map, across_map / panel_ratio(surface)))
    if not left:
        axes.set_ylabel("")
    if bottom:
        axes.tick_params(labelbottom=True)
    else:
        axes.set_xlabel("")
    _set_round_ticks(axes, 5 if wide - taken >= FEW_TICKS * type_of_ticks(axes) else 3)
    path = options.training_path(surface)
    if path is not None and colours is not None and "loss" in path:
        maps.coloured_path(axes, path, colours)
    elif path is not None:
        maps.path(axes, np.asarray(path["x"]), np.asarray(path["y"]))


def _letters(inches: float) -> float:
    """How many letters of an axis' label fit."""
    return 72 * inches / (NAME_LETTER * type_size(8))


def _set_round_ticks(axes: Any, count: int) -> None:
    set_round_ticks(axes, count)
    axes.yaxis.set_major_locator(MaxNLocator(count, steps=STEPS))


def beyond(norm: Any, arrays: Sequence[np.ndarray]) -> str:
    """Which ends of a colour bar are pointed, for matplotlib, where colours are centred on 0 and values lie beyond."""
    known = np.concatenate([a[np.isfinite(a)].reshape(-1) for a in arrays])
    ends = float(norm.vmax or np.inf) * (1 + FLAT_SPAN)
    below, above = bool(np.any(known < -ends)), bool(np.any(known > ends))
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def decades(linear: float, end: float, most: int = 3) -> list[float]:
    """Zero, and powers of ten between two numbers, of both signs; the rounded end where no power lies between them.

    most  powers on each side; of more, every other one is left out, and so on
    """
    powers = list(range(int(np.ceil(np.log10(linear) - 1e-9)), int(np.floor(np.log10(end) + 1e-9)) + 1))
    powers = powers[:: -max(1, -(-len(powers) // most))][::-1]
    ticks = [10.0**p for p in powers] or [float(f"{end:.1g}") if float(f"{end:.1g}") <= end else end]
    return [-tick for tick in reversed(ticks)] + [0.0, *ticks]


def set_bar_ticks(bar: Any, what: Quantity, scale: Scale, kind: str, inches: float = np.inf) -> None:
    """Ticks at the levels, as many as can be read on an upright bar of this length."""
    bar.outline.set_linewidth(0.5)
    if isinstance(bar.norm, SymLogNorm):
        ticks = decades(float(bar.norm.linthresh), float(bar.norm.vmax or 0.0))
        bar.set_ticks(ticks, labels=[f"{abs(tick) if what.name == 'ratio' else tick:g}" for tick in ticks])
        bar.ax.minorticks_off()
        return
    if what.name == "ratio":
        bar.formatter = FuncFormatter(lambda value, _: f"{abs(value):.3g}")
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
        return
    most = 4
    if bar.orientation == "vertical":
        size = FontProperties(size=rcParams["ytick.labelsize"]).get_size_in_points()
        most = int(max(3, min(12, 72 * inches / (1.4 * size))))
    if what.signed or (kind == "map" and not scale.log and not scale.flat):
        bar.locator = MaxNLocator(min(most, 6))
        bar.formatter = FuncFormatter(lambda value, _: f"{value:.6g}")
        bar.update_ticks()
        return
    shown = scale.levels[:: max(1, -(-(scale.levels.size - 1) // most))]
    bar.set_ticks(shown, labels=labels(shown))
    bar.ax.minorticks_off()


def draw_surfaces_3d(
    surfaces: Sequence[Surface], name: str, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    """One quantity of several planes as surfaces in three dimensions, on a common scale; arguments as `draw_maps`."""
    what = options.quantity(surfaces, name)
    readings = [values_of(s, quantity(s, name).name) for s in surfaces]
    arrays = [values for values, _ in readings]
    noise = noise_in(surfaces, name)
    scale = options.scale(arrays, what, noise)
    norm = signed_norm(what, arrays, _limit(arrays, options), noise=noise)
    rows, columns, width = layout_of(len(surfaces), options.width)
    if options.ax is None and width < (least := SMALLEST_RELIEFS[min(columns, 2)] * columns + BESIDE):
        raise ValueError(f"--width must be at least {least:.3g} inches for {columns} beside each other; got {width:g}")
    figure = new_figure(width, rows * width / columns * 0.86) if options.ax is None else options.ax.figure
    camera = options.camera or CAMERA
    # else there is no room between the surfaces, or beside the bar
    if options.ax is not None:
        width, _ = size_of(options.ax)
    high = figure.get_figheight() if options.ax is None else size_of(options.ax)[1]
    tall = SHRINK * high
    is_short = broken_label(what.label, tall) == what.label  # a longer one has its lines at the bar
    in_full = columns == 1 and width >= WIDE and not is_from_above(camera) and letters_beyond(scale) <= 0 and is_short
    in_full = in_full and not scale.too_fine  # which is said at the bar
    height_label = on_scale(what.label if in_full else what.symbol, scale.log)
    size = FontProperties(size=rcParams["axes.labelsize"]).get_size_in_points()
    is_long = 72 * LONG_SHRINK * width / columns < LETTER * size * letters_of(height_label)
    if not in_full and (columns == 1 or is_long):
        height_label = ""  # it would lie over the bar, which says it, or over the next relief
    handles: list[Artist] = []
    panels: list[Any] = []
    for i, (surface, (values, status)) in enumerate(zip(surfaces, readings, strict=True)):
        axes = options.ax
        if axes is None:
            axes = figure.add_subplot(rows, columns, i + 1, projection="3d", computed_zorder=False)
        across, up = (options.labels or ("x", "y"))[:2]
        labels_3d = (across, up, height_label)
        handles += draw_surface3d(
            axes, surface.grid, values, scale, what.cmap, labels_3d, status, norm, options.interp,
            marked_values(surface, values, options), _path_of(surface, name, options), camera,
            models_on_plane(surface),
        )  # fmt: skip
        panels.append(axes)
    said = "" if in_full else label_on_scale(what.label, "3d", scale, norm)  # else the axis of heights says it
    # fewer lines at a longer bar leave the relief its room
    shrink = LONG_SHRINK if broken_label(said, tall).count("\n") >= LINES_AT_BAR else SHRINK
    beside: Any = panels if len(panels) > 1 else panels[0]
    bar = figure.colorbar(
        ScalarMappable(norm or maps.norm_of(scale), what.cmap), ax=beside, shrink=shrink, pad=0.1,
        aspect=22 * shrink / SHRINK, extend=beyond(norm, arrays) if what.signed else scale.extend,
    )  # fmt: skip
    if titles:
        inches = 0.9 * (figure.get_figwidth() - 0.8) / columns if options.ax is None else width
        set_titles(panels, titles, inches, columns, grow=options.ax is None, y=0.97)
    tall = shrink * (figure.get_figheight() if options.ax is None else size_of(options.ax)[1])
    set_bar_ticks(bar, what, scale, "map" if what.signed else "3d", tall)
    bar.set_label(broken_label(said, tall))
    notes = [FLAT_NOTE] if noise else []
    if scale.above and options.crop is not None:
        notes = [*notes, _note_of_crop(arrays, scale, options.crop)]
    notes += refinement_notes(surfaces)
    notes += interpolation_notes(surfaces, arrays, scale, options.interp, ENOUGH)
    if name == PATH_LOSS:
        notes += path_notes(surfaces, options)
    add_legend_and_notes(figure, handles, notes, options.ax)
    if options.ax is None:
        place_labels(panels)
    return figure


def marked_values(surface: Surface, values: np.ndarray, options: FigureOptions) -> np.ndarray | None:
    """The values at the measured points, which are marked where that is asked for, or where some are not measured."""
    wanted = is_refined(surface) if options.points is None else options.points
    return measured_of(surface, values) if wanted else None


def _path_of(surface: Surface, name: str, options: FigureOptions) -> Group | None:
    """The path over a surface, without its losses where the surface is of another quantity; None for none."""
    path = options.training_path(surface)
    if path is None or name == PATH_LOSS:
        return path
    return Group({n: a for n, a in path.arrays.items() if n != "loss"}, path.attributes)


def draw_eigenvalue_maps(surfaces: Sequence[Surface], titles: Sequence[str] | None, options: FigureOptions) -> Figure:
    """A row for each surface: loss if there is one, the two ends, their ratio; a colour bar below each column.

    Raises ValueError where a surface holds no eigenvalues.
    """
    for surface in surfaces:
        eigenvalues(surface)
    names = ["max_eig", "min_eig", "ratio"]
    loss = common_loss(surfaces)
    if loss is not None:
        names.insert(0, loss)
    width = options.width or page_width()
    notes = _notes_of_all(surfaces, titles)
    panel = (width - 0.65 - 0.06 * len(names)) / len(names)
    if panel < SMALLEST_OF_EIGEN:
        least = 0.65 + (SMALLEST_OF_EIGEN + 0.06) * len(names)
        raise ValueError(f"--width must be at least {least:.3g} inches for the kind eigen; got {width:g}")
    height = len(surfaces) * (panel / panel_ratio(surfaces[0]) + 0.1) + BELOW_EIGEN
    figure = new_figure(width, height, compressed=True)
    shared = have_one_window(surfaces)
    grid = figure.subplots(len(surfaces), len(names), squeeze=False, sharex="all" if shared else "row", sharey="row")
    linear = False if options.log is False else None  # --log is of the loss alone
    patches: list[Artist] = []
    flat: list[str] = []
    most_lines = 0
    for column, name in enumerate(names):
        what = _what_of_column(surfaces, name, options)
        readings = [values_of(s, name) for s in surfaces]
        arrays = [values for values, _ in readings]
        noise = noise_in(surfaces, name)
        cut = options.cut(arrays)
        kind, scale = "map", scale_of(arrays, high=cut, count=8, log=linear, noise=noise)
        if name == loss:
            kind, scale = "filled", options.scale(arrays, what, noise)
            between = interpolation_notes(surfaces, arrays, scale, options.interp)
            notes += [f"{what.symbol}: {note}" for note in between]
        norm = signed_norm(what, arrays, cut, linear, noise)
        if noise:
            flat.append(what.symbol)
        mappable: Any = None
        for row, (surface, (values, status)) in enumerate(zip(surfaces, readings, strict=True)):
            axes = grid[row, column]
            mappable = draw_map(axes, surface, values, what, kind, scale, norm, options.interp)
            patches += maps.mark_missing(axes, surface.grid, values, status)
            patches += mark_signs(axes, surface, values, what, kind, noise)
            last = row == len(surfaces) - 1 or not shared
            marked = marked_values(surface, values, options)
            if marked is not None:
                maps.mark_points(axes, surface.grid, marked)
            _frame_small_panel(axes, surface, options, column == 0, last)
        grid[0, column].set_title(what.symbol)
        extend = beyond(norm, arrays) if what.signed else scale.extend
        bar = _add_bar_below(figure, mappable, list(grid[:, column]), extend)
        set_bar_ticks(bar, what, scale, kind)
        bar.ax.tick_params(labelsize=type_size(6))
        label = label_on_scale(_bar_label(surfaces[0], name), kind, scale, norm, "\n")
        bar.set_label(broken_name(label, 72 * panel / (NAME_LETTER * type_size(6))), fontsize=type_size(6))
        most_lines = max(most_lines, bar.ax.get_xlabel().count("\n") + 1)
    figure.set_figheight(height + 1.25 * type_size(6) * max(0, most_lines - 2) / 72)
    tall = (panel - LABEL_LINE * LABEL_LINES / len(names)) / panel_ratio(surfaces[0])
    room = min(LABEL_LETTERS, _letters(tall - NUMBER))
    beside = numbered([broken_name(title, room, LABEL_LINES) for title in titles or ()])
    for axes, title in zip(grid[:, 0], beside, strict=False):
        axes.set_ylabel(f"{title}\n{axes.get_ylabel()}")
    if options.crop is not None:
        notes = [*notes, f"colours end at the {options.crop:g}th percentile"]
    if flat:
        notes = [*notes, f"{', '.join(flat)}: {FLAT_NOTE}"]
    add_legend_and_notes(figure, patches, notes)
    return figure


def _what_of_column(surfaces: Sequence[Surface], name: str, options: FigureOptions) -> Quantity:
    """How a quantity is drawn; colours that were set are not those of signs, which need white in the middle."""
    what = common_quantity(surfaces, name)
    return what if what.signed else options.quantity(surfaces, name)


def _frame_small_panel(axes: Any, surface: Surface, options: FigureOptions, left: bool, bottom: bool) -> None:
    """As `frame_panel`, with few ticks, and with x and y alone for labels, if no others are set."""
    frame_panel(axes, surface, options, "map", left=left, bottom=bottom)
    _set_round_ticks(axes, 3)
    across, up = (options.labels or ("x", "y"))[:2]
    if bottom:
        axes.set_xlabel(across)
    if left:
        axes.set_ylabel(up)


def _add_bar_below(figure: Figure, mappable: Any, column: list[Any], extend: str) -> Any:
    """A horizontal colour bar below a column of panels; returned, to be labelled."""
    return figure.colorbar(
        mappable, ax=column, orientation="horizontal", pad=0.03, aspect=16, shrink=0.95, extend=extend
    )


def _bar_label(surface: Surface, name: str) -> str:
    if name == "ratio":
        return r"blue: $\lambda_\min > 0$, red: $< 0$"
    return short_unit(surface.about[name])


def _notes_of_all(surfaces: Sequence[Surface], titles: Sequence[str] | None) -> list[str]:
    """How sure the eigenvalues are; of several surfaces each line with its title."""
    if len(surfaces) == 1:
        return accuracy_notes(surfaces[0])
    titled = zip(surfaces, titles or [], strict=False)
    return [f"{title}: {line}" for surface, title in titled for line in accuracy_notes(surface)]
