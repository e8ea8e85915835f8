"""Maps of a plane: contours, filled contours and cells, with what is missing shown as missing.

A value belongs to its point; a cell reaches half-way to the neighbours; contours follow the spline of `interpolation`.
Cells of points that are still to do are grey and hatched, of failed ones cross-hatched; NaN is a white cell with a
cross, an infinite result one with a triangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, CenteredNorm, Colormap, LogNorm, Normalize, SymLogNorm
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from lossmap.geometry.grid import Grid
from lossmap.io.refined import LOG_FROM
from lossmap.io.surface import DONE, FAILED, Group
from lossmap.plotting.contour_levels import FLAT_MARGIN, Scale
from lossmap.plotting.contour_levels import labels as labels_of
from lossmap.plotting.interpolation import AUTOMATIC, factor_of, refine, refine_ticks
from lossmap.plotting.style import DARK, GREY, RED, type_size
from lossmap.plotting.titles import NAME_LETTER, broken_name

Array = np.ndarray
# How the cell of a point without a value looks, by the reason, and the mark in it with the sign of the legend.
MISSING_CELLS: dict[str, dict[str, Any]] = {
    "not computed": {"facecolor": GREY, "edgecolor": DARK, "hatch": "//////"},
    "failed": {"facecolor": GREY, "edgecolor": RED, "hatch": "xxxxxx"},
    "NaN": {"facecolor": "white", "edgecolor": DARK, "linewidth": 0.5},
    "infinite": {"facecolor": "white", "edgecolor": DARK, "linewidth": 0.5},
}
BEYOND = 0.25  # of the scale's span, that heights reach beyond its ends
SMALL = 5  # percentile of the sizes from which on their span is counted
SMALLEST_CHECKPOINT, LARGEST_CHECKPOINT = 7.0, 26.0  # areas of a path's points, squared typographic points
MISSING_MARKS = {"NaN": ("x", "\N{MULTIPLICATION SIGN}"), "infinite": ("^", "\N{WHITE UP-POINTING TRIANGLE}")}


def edges(ticks: Array) -> Array:
    """The borders of the cells around ascending or descending ticks, (n,) -> (n + 1,)."""
    if ticks.size == 1:
        half = 0.5 * max(1.0, abs(float(ticks[0]))) * 0.2
        return np.array([ticks[0] - half, ticks[0] + half])
    middle = 0.5 * (ticks[1:] + ticks[:-1])
    return np.concatenate([[2 * ticks[0] - middle[0]], middle, [2 * ticks[-1] - middle[-1]]])


def norm_of(scale: Scale) -> Normalize:
    """Colours that change continuously between the ends of a scale."""
    return LogNorm(*scale.ends) if scale.log else Normalize(*scale.ends)


def centred(
    values: list[Array], limit: float | None = None, log: bool | None = None, noise: float = 0.0, error: float = 0.0
) -> Normalize:
    """Colours that are white at 0 and reach as far to both sides.

    limit  where they end; at the largest of all values if left out
    log    by decades beyond the usual value or not; left out, where no limit is set and most values are far below
    noise  differences that errors alone explain, which stay pale
    error  of the values; where it is known, log is not False, and the sizes span much, colours are linear up to it and
           by decades beyond
    """
    sizes = np.concatenate([np.abs(a[np.isfinite(a)]).reshape(-1) for a in values])
    sizes = sizes[sizes > 0]
    most = float(max(sizes, default=1.0))
    usual = float(np.median(sizes)) if sizes.size else most
    if noise:
        return CenteredNorm(0.0, max(most, FLAT_MARGIN * noise))
    if error > 0 and log is not False and sizes.size:
        log = most > LOG_FROM * max(error, float(np.percentile(sizes, SMALL)))
        usual = error
    if log is None:
        log = limit is None and most > 50 * usual
    if limit is not None:
        most = min(most, abs(limit))
    if log and usual < most:
        return SymLogNorm(usual, vmin=-most, vmax=most)
    return CenteredNorm(0.0, most)


def filled(axes: Axes, grid: Grid, values: Array, scale: Scale, cmap: str, interp: int | None = 1) -> ScalarMappable:
    """Bands between levels, with thin lines; cells below, so that no gap opens beside a missing point.

    interp  points to an interval between the measured ones, as `interpolation.factor_of`
    """
    if scale.flat or min(values.shape) < 2:
        return cells(axes, grid, values, norm_of(scale), cmap)
    colours = matplotlib.colormaps[cmap].with_extremes()
    bands = scale.levels.size - 1 + int(scale.below) + int(scale.above)
    norm = BoundaryNorm(scale.levels, max(colours.N, bands), extend=scale.extend)
    _mesh(axes, grid, np.clip(values, *_finite_ends(scale)), norm, colours)
    x, y, heights = fine_heights(grid, values, scale, interp)
    if heights.mask.all():
        return ScalarMappable(norm, colours)
    levels = contour_heights(scale.levels, scale)
    in_heights = BoundaryNorm(levels, norm.Ncmap, extend=scale.extend)
    bands_drawn = axes.contourf(x, y, heights, levels=levels, norm=in_heights, cmap=colours, extend=scale.extend)
    bands_drawn.set_edgecolor("face")  # else viewers of PDF show hairlines between the bands
    bands_drawn.set_linewidth(0.3)
    _lines(axes, x, y, heights, levels, colors="white", linewidths=0.35, alpha=0.65)
    return ScalarMappable(norm, colours)


def contour(
    axes: Axes,
    grid: Grid,
    values: Array,
    scale: Scale,
    cmap: str,
    norm: Normalize | None = None,
    interp: int | None = 1,
) -> ScalarMappable:
    """Lines at the levels, labelled, in the colours of a norm, or of the scale if left out; interp as `filled`."""
    norm = norm or norm_of(scale)
    if scale.flat or min(values.shape) < 2:
        return cells(axes, grid, values, norm, cmap)
    (x, y, heights), levels = fine_heights(grid, values, scale, interp), contour_heights(scale.levels, scale)
    drawn = None
    if not heights.mask.all():
        colours = matplotlib.colormaps[cmap](norm(scale.levels))
        drawn = _lines(axes, x, y, heights, levels, colors=colours, linewidths=0.8)
    if drawn is not None:
        words = dict(zip(levels.tolist(), labels_of(scale.levels), strict=True))
        for text in axes.clabel(drawn, drawn.levels[::2], fmt=words, fontsize=type_size(5.5), inline_spacing=2):
            text.set_rotation_mode("anchor")
    return ScalarMappable(norm, matplotlib.colormaps[cmap])


def plain_contour(axes: Axes, grid: Grid, values: Array, scale: Scale, color: str, interp: int | None = 1) -> None:
    """Thin labelled lines of one colour at the levels of a scale; interp as `filled`."""
    (x, y, heights), levels = fine_heights(grid, values, scale, interp), contour_heights(scale.levels, scale)
    if heights.mask.all():
        return
    drawn = _lines(axes, x, y, heights, levels, colors=color, linewidths=0.6)
    if drawn is not None:
        words = dict(zip(levels.tolist(), labels_of(scale.levels), strict=True))
        axes.clabel(drawn, drawn.levels[::2], fmt=words, fontsize=type_size(5.0), inline_spacing=2)


def contour_heights(values: Array, scale: Scale) -> Any:
    """What contours are interpolated in, masked where it is not finite: log10 of the values on a log scale.

    A loss changes by factors where its levels are geometric, and a line that is found linearly in the loss lies off its
    place. What lies beyond the ends of the scale is brought to BEYOND of its span: a spline through a spike of a
    million would swing all over the map, and one through 0 on a log scale around it.
    """
    low, high = (float(np.log10(end)) if scale.log else float(end) for end in (scale.low, scale.high))
    margin = BEYOND * ((high - low) or abs(high) or 1.0)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        heights = np.where(values > 0, np.log10(values), -np.inf) if scale.log else values
    return np.ma.masked_array(np.clip(heights, low - margin, high + margin), ~known)


def fine_heights(
    grid: Grid, values: Array, scale: Scale, interp: int | None, enough: int = AUTOMATIC
) -> tuple[Array, Array, Any]:
    """The ticks along x and y and what contours are found in, (ny, nx), with points between the measured ones.

    Where no measured value lies beyond an end of the scale, what the spline reaches there is brought to that end: it
    would be a gap in the bands, and a line around what nobody measured.

    interp, enough  as `interpolation.factor_of`
    """
    x, y, heights = refined(grid, np.ma.filled(contour_heights(values, scale), np.nan), interp, enough)
    low, high = (float(np.log10(end)) if scale.log else end for end in scale.ends)
    low, high = (-np.inf if scale.below else low), (np.inf if scale.above else high)
    return x, y, np.ma.clip(heights, low, high)


def refined(grid: Grid, values: Array, interp: int | None, enough: int = AUTOMATIC) -> tuple[Array, Array, Any]:
    """The ticks along x and y, and the values (ny, nx) at them and between them, masked where there is none.

    interp, enough  as `interpolation.factor_of`
    """
    x, y, factor = grid.x, y_ticks(grid), factor_of(values.shape, interp, enough)
    if factor == 1:
        return x, y, np.ma.masked_invalid(values)
    fine = refine(x, y, values, factor)
    return refine_ticks(x, factor), refine_ticks(y, factor), np.ma.masked_invalid(fine)


def mark_points(axes: Axes, grid: Grid, values: Array) -> None:
    """A dot at each measured point, of values (ny, nx), small enough to leave the map to be seen."""
    across, up = np.meshgrid(grid.x, y_ticks(grid))
    known = np.isfinite(values)
    size = float(np.clip(50 / max(1.0, known.sum() ** 0.5), 0.4, 1.6))
    axes.plot(  # with a pale rim, to be seen on dark colours too
        across[known], up[known], linestyle="", marker="o", color="black", markersize=size,
        markeredgecolor=(1.0, 1.0, 1.0, 0.7), markeredgewidth=0.25 * size, alpha=0.8, zorder=2.4,
        label="measured point",
    )  # fmt: skip


def cells(axes: Axes, grid: Grid, values: Array, norm: Normalize, cmap: str | Colormap) -> ScalarMappable:
    """One cell a point, nothing smoothed; on a log scale what is not positive has the colour of its lower end."""
    if isinstance(norm, LogNorm):
        values = _raised(values, float(norm.vmin or 0.0))
    colours = matplotlib.colormaps.get_cmap(cmap)
    _mesh(axes, grid, values, norm, colours)
    return ScalarMappable(norm, colours)


def _raised(values: Array, low: float) -> Array:
    """The values with those below the lower end of a log scale raised to it; NaN stays NaN."""
    return np.where(values < low, low, values)


def _mesh(axes: Axes, grid: Grid, values: Array, norm: Normalize, colours: Any) -> None:
    shown = np.ma.masked_invalid(values)
    axes.pcolormesh(
        edges(grid.x),
        edges(y_ticks(grid)),
        shown,
        norm=norm,
        cmap=colours,
        rasterized=True,  # as polygons the cells of a PDF show hairlines between them
        linewidth=0.0,
        zorder=0.5,
    )


def _lines(axes: Axes, x: Array, y: Array, heights: Any, levels: Any, colors: Any, **how: Any) -> Any:
    """Lines at the levels that the heights cross, in one colour or in one for each level; None for no line."""
    levels = np.ma.getdata(levels)
    inside = (levels > heights.min()) & (levels < heights.max())
    if not inside.any():  # matplotlib warns of lines that are nowhere
        return None
    if not isinstance(colors, str):
        colors = colors[inside]
    # solid: matplotlib dashes lines of one colour at negative heights, as logarithms of losses below 1 are
    return axes.contour(x, y, heights, levels=levels[inside], colors=colors, linestyles="solid", **how)


def _finite_ends(scale: Scale) -> tuple[float, float]:
    """Bounds that keep infinite results out of the colours but leave the pointed ends of the bar."""
    span = scale.high - scale.low
    return scale.low - span, scale.high + span


def missing_points(values: Array, status: Array) -> dict[str, Array]:
    """Masks of the points without a finite value, of the values' shape, by each reason that there is."""
    done = status == DONE
    masks = {
        "not computed": ~done & (status != FAILED),
        "failed": status == FAILED,
        "NaN": done & np.isnan(values),
        "infinite": done & np.isinf(values),
    }
    return {word: mask for word, mask in masks.items() if mask.any()}


def mark_missing(axes: Axes, grid: Grid, values: Array, status: Array) -> list[Artist]:
    """Mark the points without a value, each reason in its way; values and status are (ny, nx). For the legend."""
    handles: list[Artist] = []
    for word, mask in missing_points(values, status).items():
        look = MISSING_CELLS[word]
        patches(axes, grid, mask, **{**look, "linewidth": 0.0})
        mark = MISSING_MARKS.get(word)
        label = word
        if mark is not None:
            rows, columns = np.nonzero(mask)
            size = np.clip(120 / max(values.shape), 2.0, 6.0)
            axes.plot(
                grid.x[columns], y_ticks(grid)[rows], linestyle="", marker=mark[0], markerfacecolor="none", color=DARK,
                markersize=size, markeredgewidth=0.6, zorder=3,
            )  # fmt: skip
            label = f"{mark[1]} {word}"
        handles.append(Patch(**{"linewidth": 0.0, **look}, label=label))
    return handles


def patches(axes: Axes, grid: Grid, mask: Array, **look: Any) -> None:
    """Rectangles over the cells of a mask, the neighbours in a row drawn as one."""
    across, up = edges(grid.x), edges(y_ticks(grid))
    rectangles = []
    for row in range(mask.shape[0]):
        columns = np.flatnonzero(mask[row])
        if columns.size == 0:
            continue
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            left, right = sorted((across[run[0]], across[run[-1] + 1]))
            low, high = sorted((up[row], up[row + 1]))
            rectangles.append(Rectangle((left, low), right - left, high - low))
    axes.add_collection(PatchCollection(rectangles, zorder=2.5, **look))


def frame(axes: Axes, grid: Grid, labels: tuple[str, str], cells: bool = True) -> None:
    """Limits, labels and the mark at the centre, where the model itself stands.

    cells  reach out to the borders of the outer cells; else to the outer points, as far as lines go
    """
    x, y = edges(grid.x), edges(y_ticks(grid))
    if not cells and min(x.size, y.size) > 2:
        x, y = grid.x, y_ticks(grid)
    axes.set_xlim(x.min(), x.max())
    axes.set_ylim(y.min(), y.max())
    wide, high = np.ptp(x), np.ptp(y)
    axes.set_aspect("equal" if 0.4 < wide / high < 2.5 else "auto", adjustable="box")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
        _cross(axes, 0.0, 0.0)


MODEL_LETTERS, MODEL_LINES = 18, 3  # of a model's name on the map, at most
MODEL_SHARES = 0.6, 0.18  # of a map's width and height, that a model's name takes at most


def _cross(axes: Axes, x: float, y: float) -> None:
    """The mark of a model: black, with a white border."""
    for colour, width, size in (("white", 2.0, 7.0), ("black", 0.8, 6.0)):
        axes.plot([x], [y], "+", color=colour, markersize=size, markeredgewidth=width, zorder=4)


def models(axes: Axes, places: Sequence[tuple[float, float, str]], size: tuple[float, float]) -> None:
    """Marks where models stand beside the one at the centre, each with its name at its side; none out of the window.

    size  of the map, about, inches
    """
    points = FontProperties(size="x-small").get_size_in_points()
    letters = 72 * MODEL_SHARES[0] * size[0] / (NAME_LETTER * points)
    most = max(1, int(72 * MODEL_SHARES[1] * size[1] / (1.2 * points)))
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for x, y, name in places:
        if not (left <= x <= right and low <= y <= high):
            continue
        _cross(axes, x, y)
        outer, upper = x > left + 0.7 * (right - left), y > low + 0.7 * (high - low)
        text = axes.annotate(
            broken_name(name, min(letters, MODEL_LETTERS), min(most, MODEL_LINES)), (x, y),
            (-5 if outer else 5, -4 if upper else 4),
            textcoords="offset points", ha="right" if outer else "left", va="top" if upper else "bottom",
            fontsize="x-small", zorder=4.1, annotation_clip=True,
            path_effects=[withStroke(linewidth=1.8, foreground="white")],
        )  # fmt: skip
        text.set_in_layout(False)  # the map keeps its size, however long a name is
        text.set_clip_box(axes.bbox)


def checkpoint_sizes(path: Group) -> Array:
    """Areas of a path's points, (k,), squared typographic points: larger farther from the plane."""
    sizes = np.full(np.asarray(path["x"]).size, SMALLEST_CHECKPOINT)
    if "residual" in path:
        residual = np.nan_to_num(np.abs(np.asarray(path["residual"], dtype=np.float64)))
        sizes = sizes + (LARGEST_CHECKPOINT - SMALLEST_CHECKPOINT) * residual / (residual.max() or 1.0)
    return sizes


def checkpoint_look(path: Group, cmap: str | None, norm: Any, shown: Array | None = None) -> dict[str, Any]:
    """How the checkpoints of a path are scattered: coloured by their own loss, larger farther from the plane.

    cmap, norm  the colours of the map, for a loss of the path's own kind; without them, or without losses, black
    shown       which checkpoints, (k,); all if left out
    """
    sizes = checkpoint_sizes(path)
    chosen = np.ones(sizes.size, dtype=bool) if shown is None else shown
    colours: Any = "black"
    if cmap is not None and norm is not None and "loss" in path:
        losses = np.asarray(path["loss"], dtype=np.float64)[chosen]
        colours = np.where(
            np.isfinite(losses)[:, None], matplotlib.colormaps[cmap](norm(np.nan_to_num(losses, nan=1.0))), 1.0
        )
    return {"s": sizes[chosen], "c": colours, "edgecolors": "black", "linewidths": 0.5}


def coloured_path(axes: Axes, path: Group, mappable: ScalarMappable) -> None:
    """A training path whose checkpoints have the colours that a map gives to their own losses, `checkpoint_look`."""
    x, y = np.asarray(path["x"]), np.asarray(path["y"])
    axes.plot(x, y, "-", color="white", linewidth=1.8, zorder=3.4, scalex=False, scaley=False)
    axes.plot(x, y, "-", color="black", linewidth=0.8, zorder=3.5, scalex=False, scaley=False)
    look = checkpoint_look(path, mappable.get_cmap().name, mappable.norm)
    window = axes.get_xlim(), axes.get_ylim()
    axes.scatter(x, y, zorder=3.6, label="checkpoint", **look)
    axes.set(xlim=window[0], ylim=window[1])


def path(axes: Axes, x: Array, y: Array) -> None:
    """A training path: a line with its checkpoints, the start open, the end filled."""
    axes.plot(x, y, "-", color="white", linewidth=1.8, zorder=3.4, scalex=False, scaley=False)
    axes.plot(x, y, ".-", color="black", linewidth=0.8, markersize=2.5, zorder=3.5, scalex=False, scaley=False)
    for i, face in ((0, "white"), (-1, "black")):
        axes.plot(
            x[i], y[i], "o", color=face, markeredgecolor="black", markeredgewidth=0.7, markersize=3.6, zorder=3.6,
            scalex=False, scaley=False,
        )  # fmt: skip


def y_ticks(grid: Grid) -> Array:
    """The ticks along y, (ny,); of a line a single 0."""
    if grid.y is None:
        return np.zeros(1)
    return grid.y
