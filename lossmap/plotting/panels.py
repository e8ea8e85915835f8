"""What figures of planes and of lines share: the caller's options, how panels stand, the legend and notes below.

Widths and heights are inches.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lossmap.io.group_layout import check_groups
from lossmap.io.read import Group, Surface
from lossmap.io.refined import is_refined
from lossmap.io.surface import TO_DO
from lossmap.plotting import maps
from lossmap.plotting.contour_levels import Scale, scale_at, scale_of, suits_log
from lossmap.plotting.interpolation import AUTOMATIC, factor_of
from lossmap.plotting.own_axes import below_label, is_laid_out, size_of
from lossmap.plotting.quantities import Quantity, axis_labels, common_quantity
from lossmap.plotting.style import column_width, new_figure, page_width, type_size
from lossmap.plotting.titles import set_titles

LOSS_NAMES = ("train_loss", "test_loss")
SMALLEST_PANEL = 0.8  # inches across, below which labels take all the room
AXIS = 0.45  # that ticks and label of the lowest panels take
NOTES, LEGEND = 5.8, 6.5  # points, of type below the panels
MAX_LABEL_LINES = 4  # of the label of an axis
TITLED, UNTITLED = 0.3, 0.12  # inches above a panel with a title, and above one without
HANDLE = 8.7  # letters of a legend, as wide as a handle with the gaps beside it
CHARACTERS_PER_INCH = 21  # of the notes below a figure


@dataclass(frozen=True)
class FigureOptions:
    """The caller's options for a figure, beside its kind; see `draw`."""

    vmin: float | None = None
    vmax: float | None = None
    vlevel: float | None = None
    log: bool | None = None
    loss_max: float | None = None
    trajectory: Group | bool | None = None
    width: float | None = None
    interp: int | None = None
    points: bool | None = None
    cmap: str | None = None
    levels: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    crop: float | None = None
    camera: tuple[float, float] | None = None
    ax: Any = None

    def quantity(self, surfaces: Sequence[Surface], name: str) -> Quantity:
        """How to draw a quantity, with the colours and the label that were set; raises as `common_quantity`."""
        what = common_quantity(surfaces, name)
        if self.cmap is not None:
            what = replace(what, cmap=self.cmap)
        if self.labels is not None and len(self.labels) > 2:
            what = replace(what, label=self.labels[2])
        return what

    def axis_labels(self, surface: Surface) -> tuple[str, str]:
        """What stands at the axes of a plane."""
        if self.labels is not None:
            return self.labels[0], self.labels[1]
        if isinstance(self.trajectory, Group) and "trajectory" not in surface.groups:
            surface = replace(surface, groups={**surface.groups, "trajectory": self.trajectory})  # explained variance
        return axis_labels(surface)

    def labelled_sides(self, surfaces: Sequence[Surface], index: int, columns: int) -> tuple[bool, bool]:
        """Whether a panel of `figure_of_maps` has labels at its left and at its bottom.

        The first of a row and the lowest of a column have them; where the directions differ, all of the row or column.
        """
        row, column = index - index % columns, index % columns
        beside = {self.axis_labels(surface)[1] for surface in surfaces[row : row + columns]}
        below = {self.axis_labels(surface)[0] for surface in surfaces[column::columns]}
        return index == row or len(beside) > 1, index + columns >= len(surfaces) or len(below) > 1

    def top(self, arrays: Sequence[np.ndarray]) -> float | None:
        """Where the colours end: as set, or at the percentile that was set; None where neither is."""
        if self.crop is None or self.vmax is not None:
            return self.vmax
        known = np.concatenate([np.zeros(0), *(a[np.isfinite(a)].reshape(-1) for a in arrays)])
        if known.size == 0:
            return None
        top = float(f"{np.percentile(known, self.crop):.3g}")
        return top if top > known.min() else None

    def cut(self, arrays: Sequence[np.ndarray]) -> float | None:
        """Where colours that are centred on 0 end on both sides by the percentile that was set; None without one."""
        return None if self.crop is None else self.top([np.abs(values) for values in arrays])

    def scale(self, arrays: Sequence[np.ndarray], what: Quantity, noise: float = 0.0) -> Scale:
        """The common scale of these arrays, whose differences may be but noise (`noise_in`)."""
        log = self.log
        if what.even and log is None:
            log = False
        if log:
            log = _has_positive(arrays)
        if self.levels is not None:
            return scale_at(arrays, self.levels, log)
        return scale_of(arrays, low=self.vmin, high=self.top(arrays), step=self.vlevel, log=log, noise=noise)

    def suits_log(self, arrays: Sequence[np.ndarray], even: bool = False) -> bool:
        """Whether an axis of these arrays is logarithmic: as set, else never (even), else by what they span.

        Raises ValueError where it is set and no value is positive.
        """
        if self.log is None:
            top = self.vmax if self.loss_max is None else self.loss_max
            if top is None:  # an axis reaches to the last value, where colours end before those far above all others
                top = max((float(a[np.isfinite(a)].max(initial=-np.inf)) for a in arrays), default=-np.inf)
            return not even and suits_log(arrays, self.vmin, top)
        return self.log and _has_positive(arrays)

    def training_path(self, surface: Surface) -> Group | None:
        """The path to draw over a map, with arrays x and y; None for none."""
        if self.trajectory is False:
            return None
        path = surface.groups.get("trajectory")
        if isinstance(self.trajectory, Group):
            path = self.trajectory
        if path is None or "x" not in path or "y" not in path:
            return None
        if path is surface.groups.get("trajectory"):
            check_groups(surface, "path")
        return path


def interpolation_notes(
    surfaces: Sequence[Surface],
    arrays: Sequence[np.ndarray],
    scale: Scale,
    interp: int | None,
    enough: int = AUTOMATIC,
) -> list[str]:
    """What stands between the measured points of these planes, in a line; none where nothing does.

    arrays          the values that are drawn, (ny, nx) for each plane: between four of them alone there is a spline
    interp, enough  as `interpolation.factor_of`
    """
    shown = [(s, values) for s, values in zip(surfaces, arrays, strict=True) if not is_refined(s)]
    shares = [_share_of_whole_cells(values) for _, values in shown]
    if not any(shares):
        return []
    surfaces = [surface for surface, _ in shown]
    factors = sorted({factor_of(surface.grid.shape, interp, enough) for surface in surfaces})
    if not factors or factors[-1] == 1 or scale.flat:
        return []
    measured = ", ".join(sorted({_measured_points(surface) for surface in surfaces}, key=len))
    of_what = "the logarithm" if scale.log else "the values"
    where = "" if min(shares) == 1 else ", except beside gaps"
    return [f"measured at {measured} points; between them a cubic spline of {of_what}{where}"]


def _share_of_whole_cells(values: np.ndarray) -> float:
    """The share of a plane's cells, between four neighbouring points, of which all four have a finite value."""
    known = np.isfinite(values)
    whole = known[:-1, :-1] & known[:-1, 1:] & known[1:, :-1] & known[1:, 1:]
    return float(whole.mean()) if whole.size else 0.0


def _measured_points(surface: Surface) -> str:
    """Of a grid its size in points, and how many of them were measured where no measure of it is complete."""
    ny, nx = surface.grid.shape
    size = f"{nx}\N{MULTIPLICATION SIGN}{ny}"
    to_do = min((int(np.sum(status == TO_DO)) for status in surface.status.values()), default=0)
    return f"{nx * ny - to_do:,} of {size}" if to_do else size


def _has_positive(arrays: Sequence[np.ndarray]) -> bool:
    """Whether a value is positive; False where no value is known yet. Raises ValueError where none of them is."""
    known = np.concatenate([np.zeros(0), *(a[np.isfinite(a)].reshape(-1) for a in arrays)])
    if known.size and not (known > 0).any():
        raise ValueError(f"--log needs positive values; the largest here is {known.max():g}: leave it out")
    return bool(known.size)


def layout_of(panels: int, width: float | None) -> tuple[int, int, float]:
    """Rows, columns and width of a figure of so many panels; a width that is given stays."""
    columns = min(panels, 3)
    if panels == 4:
        columns = 2
    default = column_width() if columns == 1 else page_width()
    return -(-panels // columns), columns, width or default


def panel_ratio(surface: Surface) -> float:
    """Width over height of a map's panel, as `maps.frame` will make it."""
    across, up = _borders(surface)
    ratio = float(np.ptp(across) / np.ptp(up))
    return ratio if 0.4 < ratio < 2.5 else 1.2


def figure_of_maps(
    surfaces: Sequence[Surface], titled: bool, width: float | None, axes: Any = None
) -> tuple[Figure, np.ndarray, int]:
    """A figure with a panel for each plane, and room for one colour bar beside them.

    titled  whether a title stands over each panel
    width   of the figure, or its default
    axes    the caller's own, in place of a new figure, for one plane

    Returns the figure, its panels (rows, columns), of which the last may be empty, and the number of columns.

    Raises ValueError for a width that leaves the maps less than SMALLEST_PANEL.
    """
    if axes is not None:
        return axes.figure, np.array([[axes]]), 1
    rows, columns, width = layout_of(len(surfaces), width)
    panel = _panel_width(width, columns)
    if panel < SMALLEST_PANEL:
        least = width + (SMALLEST_PANEL - panel) * columns
        raise ValueError(f"--width must be at least {least:.3g} inches for {columns} beside each other; got {width:g}")
    height = rows * (panel / panel_ratio(surfaces[0]) + (TITLED if titled else UNTITLED)) + AXIS
    figure = new_figure(width, height, compressed=True)
    shared = have_one_window(surfaces)
    panels = figure.subplots(
        rows, columns, squeeze=False, sharex="col" if shared else "none", sharey="row" if shared else "none"
    )
    for axes in panels.flat[len(surfaces) :]:
        axes.set_axis_off()
    return figure, panels, columns


def _panel_width(width: float, columns: int) -> float:
    """Of one of so many panels beside each other in a figure of this width with a colour bar."""
    return (width - 0.85 - 0.3 * columns) / columns


def title_maps(figure: Figure, panels: np.ndarray, titles: Sequence[str] | None, columns: int, own: Any = None) -> None:
    """Titles over the panels of `figure_of_maps`, if there are any; own: the caller's axes, if any."""
    if titles:
        inches = _panel_width(figure.get_figwidth(), columns) if own is None else size_of(own)[0]
        set_titles(list(panels.flat), titles, inches, columns, grow=own is None)


def grow_below(figure: Figure, panels: Sequence[Any] | np.ndarray) -> None:
    """Make a figure taller by the further lines of the labels below its panels, (rows, columns) or one row."""
    rows = np.atleast_2d(np.asarray(panels, dtype=object))
    more = sum(max(axes.get_xlabel().count("\n") for axes in row) for row in rows)
    figure.set_figheight(figure.get_figheight() + 1.25 * type_size(8) * more / 72)


def have_one_window(surfaces: Sequence[Surface]) -> bool:
    """Whether all maps reach over the same ranges, so that their panels may share their axes."""
    ends = np.array([[f(e) for e in _borders(s) for f in (np.min, np.max)] for s in surfaces])
    spans = ends[0, 1::2] - ends[0, ::2]
    return bool(np.all(np.abs(ends - ends[0]) <= 1e-6 * np.repeat(spans, 2)))


def _borders(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    return maps.edges(surface.grid.x), maps.edges(maps.y_ticks(surface.grid))


def common_loss(surfaces: Sequence[Surface]) -> str | None:
    """The first loss that all surfaces hold; None where there is none."""
    return next((name for name in LOSS_NAMES if all(name in surface for surface in surfaces)), None)


def letters_of(label: str) -> int:
    r"""About how many letters wide a label is: a command of its formulas, such as \lambda, is as wide as one."""
    return len(re.sub(r"\\[a-z]+", "x", label).replace("$", ""))


def add_legend_and_notes(figure: Figure, handles: Sequence[Artist], notes: Sequence[str], axes: Any = None) -> None:
    """How sure the numbers are, below the panels, and under it a legend of the marks; the figure grows by their height.

    axes  the caller's own, if any, which then have the legend inside; the notes are left to the caption
    """
    legend_size, notes_size = type_size(LEGEND), type_size(NOTES)
    unique = {str(handle.get_label()): handle for handle in handles}
    if axes is not None:
        if handles:
            _legend_of_own(axes, list(unique.values()), legend_size)
        return
    width = CHARACTERS_PER_INCH * figure.get_figwidth() * NOTES / notes_size
    words = "\n".join(textwrap.fill(line, int(width)) for line in notes)
    tall = 1.2 * notes_size * (words.count("\n") + 1) if words else 0.0
    if unique:
        columns = _legend_columns(list(unique), width)
        rows = -(-len(unique) // columns)  # of which the names fill the columns one after the other
        longest = [max(name.count("\n") for name in list(unique)[i::rows]) for i in range(rows)]
        tall += sum(1.5 + 1.2 * more for more in longest) * legend_size + 4
        # the notes are its title: both below the panels, the layout would lay one over the other
        legend = figure.legend(
            handles=list(unique.values()), loc="outside lower center", ncols=columns, fontsize=legend_size,
            handlelength=2.4, title=words or None, title_fontsize=notes_size,
        )  # fmt: skip
        legend.get_title().set(color="0.3", multialignment="center")
    elif words:
        figure.supxlabel(words, fontsize=notes_size, color="0.3")
    figure.set_figheight(figure.get_figheight() + tall / 72)


def _legend_of_own(axes: Any, handles: list[Artist], size: float) -> None:
    """The legend of axes of the caller's own: below a plane, or where a layout makes room; else within them."""
    if hasattr(axes, "get_zlim") or (axes.get_aspect() == "auto" and not is_laid_out(axes)):
        axes.legend(handles=handles, fontsize=size, frameon=True)  # it lies over the picture
        return
    letters = CHARACTERS_PER_INCH * size_of(axes)[0] * NOTES / size
    axes.legend(
        handles=handles, fontsize=size, handlelength=1.6, loc="upper center", bbox_to_anchor=(0.5, 0.0),
        bbox_transform=below_label(axes), borderaxespad=0.0,
        ncols=_legend_columns([str(handle.get_label()) for handle in handles], letters),
    )  # fmt: skip


def _legend_columns(labels: Sequence[str], letters: float) -> int:
    """Columns of a legend of these labels, in a figure as wide as so many letters."""
    lengths = [max(letters_of(line) for line in label.split("\n")) for label in labels]
    if max(lengths) > 0.36 * letters:  # names are wider than words
        return 1
    if len(labels) < 5:
        # a handle and the gaps take as much as 6 letters
        return len(labels) if 6 * len(labels) + sum(lengths) < letters / 1.2 else 2
    for columns in range(len(labels), 2, -1):  # of which matplotlib makes the first ones the longer ones
        widest = [max(part) for part in np.array_split(lengths, columns)]
        if HANDLE * columns - 2 + sum(widest) < letters / 1.14:  # no gap at its end, and larger type
            return columns
    return 2
