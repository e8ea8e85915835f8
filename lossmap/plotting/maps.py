"""Maps of a plane: contours, filled contours and cells, with what is missing shown as missing.

A value belongs to its point; a cell reaches half-way to the neighbours. Cells of points that are still to do or
failed are grey and hatched; a result that is not finite is a white cell with a cross.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, CenteredNorm, LogNorm, Normalize, SymLogNorm
from matplotlib.patches import Patch, Rectangle

from lossmap.geometry.grid import Grid
from lossmap.io.surface import DONE
from lossmap.plotting.contour_levels import Scale
from lossmap.plotting.style import DARK, GREY

Array = np.ndarray


def edges(ticks: Array) -> Array:
    """The borders of the cells around ascending or descending ticks, (n,) -> (n + 1,)."""
    if ticks.size == 1:
        half = 0.5 * max(1.0, abs(float(ticks[0]))) * 0.2
        return np.array([ticks[0] - half, ticks[0] + half])
    middle = 0.5 * (ticks[1:] + ticks[:-1])
    return np.concatenate([[2 * ticks[0] - middle[0]], middle, [2 * ticks[-1] - middle[-1]]])


def norm_of(scale: Scale) -> Normalize:
    """Colours that change continuously between the ends of a scale."""
    if scale.flat:
        middle = scale.low
        return Normalize(middle - 0.5, middle + 0.5)
    return LogNorm(scale.low, scale.high) if scale.log else Normalize(scale.low, scale.high)


def centred(values: list[Array], limit: float | None = None) -> Normalize:
    """Colours that are white at 0 and reach as far to both sides; by decades where most values are far from the end."""
    sizes = np.concatenate([np.abs(a[np.isfinite(a)]).reshape(-1) for a in values])
    sizes = sizes[sizes > 0]
    most = float(max(sizes, default=1.0))
    if limit is not None:
        return CenteredNorm(0.0, min(most, limit))
    usual = float(np.median(sizes)) if sizes.size else most
    if most > 50 * usual:
        return SymLogNorm(usual, vmin=-most, vmax=most)
    return CenteredNorm(0.0, most)


def filled(axes: Axes, grid: Grid, values: Array, scale: Scale, cmap: str) -> ScalarMappable:
    """Bands between levels, with thin lines; cells below, so that no gap opens beside a missing point."""
    x, y = grid.x, y_ticks(grid)
    if scale.flat or min(values.shape) < 2:
        return cells(axes, grid, values, norm_of(scale), cmap)
    colours = matplotlib.colormaps[cmap].with_extremes()
    bands = scale.levels.size - 1 + int(scale.below) + int(scale.above)
    norm = BoundaryNorm(scale.levels, max(colours.N, bands), extend=scale.extend)
    _mesh(axes, grid, np.clip(values, *_finite_ends(scale)), norm, colours)
    clean = np.ma.masked_invalid(values)
    if clean.mask.all():
        return ScalarMappable(norm, colours)
    bands_drawn = axes.contourf(x, y, clean, levels=scale.levels, norm=norm, cmap=colours, extend=scale.extend)
    bands_drawn.set_edgecolor("face")  # else viewers of PDF show hairlines between the bands
    bands_drawn.set_linewidth(0.3)
    _lines(axes, x, y, clean, scale, colors="white", linewidths=0.35, alpha=0.65)
    return ScalarMappable(norm, colours)


def contour(axes: Axes, grid: Grid, values: Array, scale: Scale, cmap: str) -> ScalarMappable:
    """Lines at the levels, coloured and labelled."""
    norm = norm_of(scale)
    if scale.flat or min(values.shape) < 2:
        return cells(axes, grid, values, norm, cmap)
    clean = np.ma.masked_invalid(values)
    drawn = None
    if not clean.mask.all():
        drawn = _lines(axes, grid.x, y_ticks(grid), clean, scale, cmap=cmap, norm=norm, linewidths=0.8)
    if drawn is not None:
        for text in axes.clabel(drawn, drawn.levels[::2], fmt="%g", fontsize=5.5, inline_spacing=2):
            text.set_rotation_mode("anchor")
    return ScalarMappable(norm, matplotlib.colormaps[cmap])


def cells(axes: Axes, grid: Grid, values: Array, norm: Normalize, cmap: str) -> ScalarMappable:
    """One cell a point, nothing smoothed."""
    colours = matplotlib.colormaps[cmap]
    _mesh(axes, grid, values, norm, colours)
    return ScalarMappable(norm, colours)


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


def _lines(axes: Axes, x: Array, y: Array, clean: Any, scale: Scale, **how: Any) -> Any:
    inside = scale.levels[(scale.levels > clean.min()) & (scale.levels < clean.max())]
    if not inside.size:  # matplotlib warns of lines that are nowhere
        return None
    return axes.contour(x, y, clean, levels=inside, **how)


def _finite_ends(scale: Scale) -> tuple[float, float]:
    """Bounds that keep infinite results out of the colours but leave the pointed ends of the bar."""
    span = scale.high - scale.low
    return scale.low - span, scale.high + span


def mark_missing(axes: Axes, grid: Grid, values: Array, status: Array) -> list[Patch]:
    """Mark the points without a value; values and status are (ny, nx). Returns patches for the legend."""
    patches = []
    missing, odd = status != DONE, (status == DONE) & ~np.isfinite(values)
    if missing.any():
        _patches(axes, grid, missing, facecolor=GREY, edgecolor=DARK, hatch="//////", linewidth=0.0)
        words = {0: "not computed", 2: "failed"}
        both = " or ".join(word for code, word in words.items() if (status == code).any())
        patches.append(Patch(facecolor=GREY, edgecolor=DARK, hatch="//////", linewidth=0.0, label=both))
    if odd.any():
        _patches(axes, grid, odd, facecolor="white", edgecolor="none")
        rows, columns = np.nonzero(odd)
        size = np.clip(120 / max(values.shape), 2.0, 6.0)
        axes.plot(grid.x[columns], y_ticks(grid)[rows], "x", color=DARK, markersize=size, markeredgewidth=0.6, zorder=3)
        patches.append(
            Patch(facecolor="white", edgecolor=DARK, linewidth=0.5, label="\N{MULTIPLICATION SIGN} not finite")
        )
    return patches


def _patches(axes: Axes, grid: Grid, mask: Array, **look: Any) -> None:
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
        for colour, width, size in (("white", 2.0, 7.0), ("black", 0.8, 6.0)):
            axes.plot([0], [0], "+", color=colour, markersize=size, markeredgewidth=width, zorder=4)


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
