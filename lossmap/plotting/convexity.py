r"""Where a plane is convex to second order: the smallest Hessian eigenvalue against the loss, in one picture per file.

    colours    |lambda_min / lambda_max|, red where lambda_min < 0, blue where > 0; where it spans much, linear up to
               its usual error and by decades beyond (symlog), so that what is white is not told from 0
    bold line  lambda_min = 0
    \\\\ hatch lambda_min < 0 beyond its error: some direction in parameter space curves downwards
    ....       undecided: 0 lies between the reading and its limit, or within its error
    no hatch   lambda_min > 0 beyond its limit: the Hessian is positive definite there
    thin lines levels of the loss

Hatches are of measured points, a cell each. The bold line follows the same spline as the lines of the loss, of the
values of lambda_min, and so passes between points of different sign. The signs are those of the whole parameter space,
not of the plane. Hatches and line do not rest on colours, which are pale, so that the picture can be read in grey.
Source: the ratio of the extreme eigenvalues in Li et al. (2018), arXiv:1712.09913.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lossmap.io.curvature_signs import NEGATIVE, POSITIVE, UNDECIDED, signs_of
from lossmap.io.surface import Surface
from lossmap.plotting import maps
from lossmap.plotting.interpolation import factor_of
from lossmap.plotting.notes import accuracy_notes
from lossmap.plotting.own_axes import room_for_bar
from lossmap.plotting.panels import (
    FigureOptions,
    add_legend_and_notes,
    common_loss,
    figure_of_maps,
    grow_below,
    interpolation_notes,
    title_maps,
)
from lossmap.plotting.plane_figures import (
    MAX_RATIO,
    beyond,
    broken_label,
    frame_panel,
    label_on_scale,
    length_of_bar,
    set_bar_ticks,
)
from lossmap.plotting.quantities import changes_sign, common_quantity, eigenvalues, quantity, values_of
from lossmap.plotting.sign_hatches import hatch, sign_words

STRENGTH = 0.55  # of the colours behind lines and hatches
ABOVE_HATCHES = 2.6  # zorder of the zero line, which dots of undecided points would break
NEARLY_ALL, FAR = 0.95, 2.0  # share of the eigenvalues, and times the largest of these, that the zero line follows
LAMBDA_MIN = "\N{GREEK SMALL LETTER LAMDA}_min"


def draw_convexity(surfaces: Sequence[Surface], titles: Sequence[str] | None, options: FigureOptions) -> Figure:
    """A panel for each surface, with one colour bar.

    Raises ValueError where a surface holds no eigenvalues.
    """
    for surface in surfaces:
        eigenvalues(surface)
    what = options.quantity(surfaces, "ratio")
    loss = common_loss(surfaces)
    ratios = [values_of(s, "ratio")[0] for s in surfaces]
    cut = options.cut(ratios)
    log = False if options.log is False else None  # --log is of the loss alone
    norm = maps.centred(ratios, MAX_RATIO if cut is None else cut, log, error=_error_of_ratio(surfaces))
    colours = what.cmap if options.cmap else _pale(what.cmap)
    options = replace(options, crop=None)  # of the colours alone: those of the lines are the levels of the loss
    notes = [line for i, s in enumerate(surfaces) for line in _notes(s, titles[i] if titles else "")]
    if cut is not None:
        notes.append(f"colours end at {norm.vmax:.3g}; the largest ratio is {_largest(ratios):.3g}")
    notes += lines_between(surfaces, options)
    figure, grid, columns = figure_of_maps(surfaces, bool(titles), options.width, options.ax)
    handles: list[Artist] = []
    mappable: Any = None
    for i, (axes, surface) in enumerate(zip(grid.flat, surfaces, strict=False)):
        ratio, status = values_of(surface, "ratio")
        mappable = maps.cells(axes, surface.grid, ratio, norm, colours)
        handles += maps.mark_missing(axes, surface.grid, ratio, status)
        handles += _mark_signs(axes, surface)
        if loss is not None:
            handles += _loss_lines(axes, surface, loss, surfaces, options)
        handles += _zero_line(axes, surface, options)
        if options.points:
            maps.mark_points(axes, surface.grid, ratio)
        left, bottom = options.labelled_sides(surfaces, i, columns)
        frame_panel(axes, surface, options, "map", left=left, bottom=bottom)
    tall = length_of_bar(grid, surfaces, options, bool(titles))
    title_maps(figure, grid, titles, columns, options.ax)
    extend = beyond(norm, ratios)
    beside: Any = list(grid.flat) if grid.size > 1 else grid[0, 0]
    label = label_on_scale(what.label, "map", options.scale([np.zeros(1)], what), norm, ",\n")
    label = broken_label(label, tall)
    room = room_for_bar(beside, label.count("\n") + 1)
    bar = figure.colorbar(mappable, ax=beside, shrink=1.0, pad=0.02, aspect=24, extend=extend, **room)
    set_bar_ticks(bar, what, options.scale([np.zeros(1)], what), "map")
    bar.set_label(label)
    if options.ax is None:
        grow_below(figure, grid)
    add_legend_and_notes(figure, handles, notes, options.ax)
    return figure


def _pale(cmap: str) -> Colormap:
    """A colour map mixed with white, before which lines and hatches can be seen, in grey too."""
    shades = matplotlib.colormaps[cmap](np.linspace(0, 1, 256))
    shades[:, :3] = 1 - STRENGTH * (1 - shades[:, :3])
    return ListedColormap(shades, name=cmap)


def _mark_signs(axes: Any, surface: Surface) -> list[Artist]:
    """Hatch the points by their sign, all of one sign too; returns what stands in the legend."""
    words = sign_words(surface)
    return [hatch(axes, surface, mask, word, words[word]) for word, mask in signs_of(surface).items() if mask.any()]


def _loss_lines(
    axes: Any, surface: Surface, loss: str, surfaces: Sequence[Surface], options: FigureOptions
) -> list[Artist]:
    """Thin lines at the levels of the loss, labelled, common to all panels; the legend's line."""
    what = common_quantity(surfaces, loss)
    scale = options.scale([s[loss] for s in surfaces], what)
    if scale.flat or min(surface.grid.shape) < 2:
        return []
    maps.plain_contour(axes, surface.grid, surface[loss], scale, "0.35", options.interp)
    return [Line2D([], [], color="0.35", linewidth=0.6, label=what.label.replace("\n", " "))]


def _zero_line(axes: Any, surface: Surface, options: FigureOptions) -> list[Artist]:
    """The line on which the smallest eigenvalue vanishes, bold; nothing where its sign does not change."""
    if not changes_sign(surface):
        return []
    x, y, heights = maps.refined(surface.grid, tamed_around_zero(surface["min_eig"]), options.interp)
    if heights.mask.all() or heights.min() >= 0 or heights.max() <= 0:  # where every cell has a hole at a corner
        return []
    axes.contour(x, y, heights, levels=[0.0], colors="black", linewidths=1.8, zorder=ABOVE_HATCHES)
    return [Line2D([], [], color="black", linewidth=1.8, label=r"$\lambda_\min = 0$")]


def tamed_around_zero(values: np.ndarray) -> np.ndarray:
    """The values, with those whose size is far beyond nearly all others nearer to 0, of the same sign.

    For the line on which they vanish: a spline through one spike of a million would make it swing all over the map. The
    page tames them by the same rule.
    """
    sizes = np.sort(np.abs(values[np.isfinite(values)]))
    if sizes.size == 0:
        return values
    most = FAR * float(sizes[int(NEARLY_ALL * (sizes.size - 1))])
    return np.clip(values, -most, most) if most > 0 else values


def lines_between(surfaces: Sequence[Surface], options: FigureOptions) -> list[str]:
    """What the lines of the loss and the zero line follow between the measured points, in words."""
    notes = []
    loss = common_loss(surfaces)
    if loss is not None:
        arrays = [s[loss] for s in surfaces]
        scale = options.scale(arrays, quantity(surfaces[0], loss))
        notes += [f"loss: {note}" for note in interpolation_notes(surfaces, arrays, scale, options.interp)]
    signed = [surface for surface in surfaces if changes_sign(surface)]
    if any(factor_of(surface.grid.shape, options.interp) > 1 for surface in signed):
        notes.append(f"{LAMBDA_MIN} = 0: along a cubic spline of the values")
    return notes


def _error_of_ratio(surfaces: Sequence[Surface]) -> float:
    """The usual error of the smallest eigenvalue over the size of the largest; 0 where no error is known."""
    shares = []
    for surface in surfaces:
        if "min_eig_error" in surface:
            with np.errstate(divide="ignore", invalid="ignore"):
                share = surface["min_eig_error"] / np.abs(surface["max_eig"])
            shares.append(share[np.isfinite(share) & (share > 0)])
    known = np.concatenate([np.zeros(0), *shares])
    return float(np.median(known)) if known.size else 0.0


def _largest(arrays: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in arrays)


def _notes(surface: Surface, title: str) -> list[str]:
    """How many points have which sign, and how sure the eigenvalues are; lines with the title, if there is one."""
    counts = {word: int(mask.sum()) for word, mask in signs_of(surface).items()}
    total = sum(counts.values())
    lines = [
        f"of {total:,} points: {counts[NEGATIVE]:,} with a negative eigenvalue, {counts[POSITIVE]:,} without, "
        f"{counts[UNDECIDED]:,} undecided",
        *accuracy_notes(surface),
    ]
    return [f"{title}: {line}" if title else line for line in lines]
