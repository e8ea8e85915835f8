"""The minima of a surface: the map with its basins, the persistence diagram, and the merge tree.

map          the field; numbers: minima, by ascending value; crosses: saddles at which they merge; white lines:
between basins; hollow: minima that errors explain, which do not count
persistence  saddle against minimum; the distance from the diagonal is the persistence; grey: within the error; where
             several points lie at one place their number stands beside it
merge tree   a vertical line from each minimum up to the saddle where it merges, and across to the lower minimum
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lossmap.geometry.grid import Grid
from lossmap.io.surface import Group
from lossmap.plotting import lines, maps
from lossmap.plotting.contour_levels import scale_of, suits_log
from lossmap.plotting.quantities import in_brackets
from lossmap.plotting.style import BLUE, DARK, LOSS, RED, new_figure, page_width, style_context, type_size
from lossmap.report.stored import StoredReport
from lossmap.report.text import field_in_words

MARKS = 50  # of the persistence diagram, side by side along an axis
MAX_NUMBERED = 20  # minima that bear their number in the picture, and stand in the tree; the most persistent ones


def draw_topology(group: Group) -> Figure:
    """The picture of one surface's minima, of the arrays that `topology.result` names."""
    stored = StoredReport(group.arrays, group.attributes)
    with style_context():
        figure = new_figure(page_width(), 2.5)
        first, second, third = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.0))
        if "y" in stored:
            _draw_map(figure, first, stored)
        else:
            _draw_line(first, stored)
        log = suits_log([stored.arrays["values"]])
        _draw_diagram(second, stored, log)
        _draw_tree(third, stored, log)
    return figure


def _label(stored: StoredReport) -> str:
    return f"{field_in_words(stored.text('field'))}{in_brackets(stored.text('unit'))}"


def _numbered(stored: StoredReport) -> np.ndarray:
    """The rows of the real minima that bear numbers, ascending."""
    real = np.flatnonzero(stored.arrays["is_real"])
    order = np.argsort(-stored.arrays["persistence"][real], kind="stable")
    return np.sort(real[order[:MAX_NUMBERED]])


def _draw_map(figure: Figure, axes: Any, stored: StoredReport) -> None:
    """The field as cells, with basins, minima and saddles."""
    arrays = stored.arrays
    grid, values, basin = Grid(arrays["x"], arrays["y"]), arrays["values"], arrays["basin"]
    mappable = maps.cells(axes, grid, values, maps.norm_of(scale_of([values])), LOSS)
    maps.patches(axes, grid, np.isnan(values), facecolor="0.86", linewidth=0.0)
    if min(values.shape) > 1:
        for row in np.unique(basin[basin >= 0]):
            axes.contour(grid.x, grid.y, basin == row, levels=[0.5], colors="white", linewidths=0.5)
    rows, columns = np.unravel_index(arrays["minimum"], values.shape)
    real = arrays["is_real"].astype(bool)
    axes.plot(grid.x[columns[~real]], arrays["y"][rows[~real]], "o", mfc="none", mec="white", ms=2.5, mew=0.5)
    _mark_saddles(axes, stored, values.shape)
    for i in _numbered(stored):
        axes.text(
            grid.x[columns[i]], arrays["y"][rows[i]], str(i + 1), color="white", ha="center", va="center",
            fontsize=type_size(6),
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": RED, "edgecolor": "white", "linewidth": 0.4},
        )  # fmt: skip
    maps.frame(axes, grid, ("x", "y"))
    figure.colorbar(mappable, ax=axes, label=_label(stored))
    axes.set_title(_counted(stored))


def _mark_saddles(axes: Any, stored: StoredReport, shape: tuple[int, ...]) -> None:
    arrays = stored.arrays
    saddles = arrays["saddle"][arrays["is_real"].astype(bool) & (arrays["saddle"] >= 0)]
    rows, columns = np.unravel_index(saddles, shape)
    for colour, width in (("black", 1.6), ("white", 0.8)):
        axes.plot(arrays["x"][columns], arrays["y"][rows], "x", color=colour, ms=4, mew=width)


def _draw_line(axes: Any, stored: StoredReport) -> None:
    """The field along a line, with minima and saddles."""
    arrays = stored.arrays
    x, values = arrays["x"], arrays["values"]
    lines.curve(axes, x, values, colour=BLUE, label=_label(stored), dashed=False)
    real = arrays["is_real"].astype(bool)
    saddles = arrays["saddle"][real & (arrays["saddle"] >= 0)]
    axes.plot(x[saddles], values[saddles], "x", color="black", ms=4)
    for i in _numbered(stored):
        point = arrays["minimum"][i]
        axes.plot(x[point], values[point], "o", color=RED, ms=3.5)
        axes.annotate(str(i + 1), (x[point], values[point]), (0, -8), textcoords="offset points", ha="center", size=6)
    axes.margins(y=0.12)
    axes.set_xlabel("x")
    axes.set_ylabel(_label(stored))
    axes.set_title(_counted(stored))


def _counted(stored: StoredReport) -> str:
    real = int(stored.arrays["is_real"].sum())
    left_out = len(stored.arrays["is_real"]) - real
    text = f"{real} minimum" if real == 1 else f"{real} minima"
    return f"{text}, {left_out} within error" if left_out else text


def _draw_diagram(axes: Any, stored: StoredReport, log: bool) -> None:
    """Births and deaths; the lowest minimum, which never ends, stands at the highest value of the surface."""
    arrays = stored.arrays
    births, _ = _ends(stored)
    persistence, error = arrays["persistence"], np.nan_to_num(arrays["error"])
    finite = np.isfinite(persistence)
    real = arrays["is_real"].astype(bool)
    top = float(np.nanmax(arrays["values"]))
    deaths = np.where(finite, births + np.where(finite, persistence, 0.0), top)
    low = float(np.nanmin(arrays["values"]))
    axes.plot([low, top], [low, top], color=DARK, linewidth=0.6)
    for mask, look in ((real & finite, RED), (~real, DARK)):
        if mask.any():
            axes.errorbar(births[mask], deaths[mask], yerr=error[mask], fmt="o", color=look, ms=3, elinewidth=0.6)
    axes.plot(births[~finite], deaths[~finite], "^", color=RED, ms=4, clip_on=False)
    _number_coincident(axes, births[real], deaths[real], np.geomspace if log else np.linspace)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(f"minimum: {_label(stored)}")
    axes.set_ylabel("saddle where it merges")
    axes.set_title("persistence\n(triangle: never merges)", fontsize=7)


def _number_coincident(axes: Any, births: np.ndarray, deaths: np.ndarray, spaced: Any) -> None:
    """Beside points that lie at one place, within the size of a mark, how many there are."""
    low, high = births.min(initial=np.inf), deaths.max(initial=-np.inf)
    if not low < high:
        return
    edges = spaced(low, high, MARKS + 1)
    cells = np.column_stack([np.searchsorted(edges, births), np.searchsorted(edges, deaths)])
    _, cell, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    for i in np.flatnonzero(counts > 1):
        first = np.flatnonzero(cell.reshape(-1) == i)[0]
        axes.annotate(
            f"\N{MULTIPLICATION SIGN}{counts[i]}", (births[first], deaths[first]), (4, 2),
            textcoords="offset points", fontsize=type_size(6), annotation_clip=False,
        )  # fmt: skip


def _ends(stored: StoredReport) -> tuple[np.ndarray, np.ndarray]:
    """(minima,) the values at the minima, and where each merges; the highest of all values where it merges nowhere."""
    arrays = stored.arrays
    flat = arrays["values"].reshape(-1)
    return flat[arrays["minimum"]], np.where(arrays["saddle"] >= 0, flat[arrays["saddle"]], np.nanmax(flat))


def _draw_tree(axes: Any, stored: StoredReport, log: bool) -> None:
    """The real minima side by side, in an order in which no line crosses another."""
    births, deaths = _ends(stored)
    shown = _numbered(stored)
    parents: dict[int, int | None] = {}
    for i in shown:
        parents[int(i)], deaths[i] = _shown_parent(stored, int(i), set(shown.tolist()), deaths)
    place = {row: k for k, row in enumerate(_order_of(parents, deaths))}
    for i, k in place.items():
        parent = parents[i]
        axes.plot([k, k], [births[i], deaths[i]], color=BLUE)
        axes.plot(k, births[i], "o", color=RED, ms=3)
        if parent is not None:
            axes.plot([k, place[parent]], [deaths[i]] * 2, color=BLUE)
        axes.annotate(str(i + 1), (k, births[i]), (0, -8), textcoords="offset points", ha="center", size=6)
    if log:
        axes.set_yscale("log")
    axes.set_xticks([])
    axes.margins(y=0.12)
    axes.set_ylabel(_label(stored))
    hidden = int(stored.arrays["is_real"].sum()) - len(shown)
    axes.set_title("merge tree" + (f" (without {hidden} smaller ones)" if hidden else ""))


def _shown_parent(stored: StoredReport, row: int, shown: set[int], deaths: np.ndarray) -> tuple[int | None, float]:
    """The nearest shown minimum that it merges into, over those that are not shown, and where; None: there is none."""
    parent, level = int(stored.arrays["into"][row]), float(deaths[row])
    while parent >= 0 and parent not in shown:
        parent, level = int(stored.arrays["into"][parent]), max(level, float(deaths[parent]))
    return (parent if parent >= 0 else None), level


def _order_of(parents: dict[int, int | None], deaths: np.ndarray) -> list[int]:
    """Rows so that those that merge early stand near the minimum that they merge into: a parent, then its children."""
    children: dict[int | None, list[int]] = {}
    for row, parent in parents.items():
        children.setdefault(parent, []).append(row)
    order: list[int] = []
    stack = sorted(children.get(None, []), reverse=True)
    while stack:
        row = stack.pop()
        order.append(row)
        # the one that merges first stands nearest: its line across lies below those of the others
        stack += sorted(children.get(row, []), key=lambda child: -deaths[child])
    return order
