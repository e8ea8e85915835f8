"""A plane as a lit surface in three dimensions, its contours on the floor, with the centre and the training path.

Colours are those of the scale times the light on a facet, between AMBIENT and 1, from the viewer's left. Facets
that are cut are not lit. The path lies on the surface; each checkpoint has the colour of its own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import Normalize, to_rgba
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lossmap.geometry.grid import Grid
from lossmap.io.surface import DONE, Group
from lossmap.plotting.contour_levels import Scale
from lossmap.plotting.contour_levels import labels as texts
from lossmap.plotting.interpolation import value_at
from lossmap.plotting.maps import (
    MODEL_LETTERS,
    MODEL_LINES,
    checkpoint_look,
    contour_heights,
    fine_heights,
    missing_points,
    norm_of,
    y_ticks,
)
from lossmap.plotting.panels import letters_of
from lossmap.plotting.style import RED, type_size
from lossmap.plotting.titles import broken_name

MAX_TICKS = 6
STEPS = (1, 2, 2.5, 5, 10)  # between heights, as between levels
ABOVE, BELOW = "0.6", "0.85"  # facets that are cut at the ends of the scale
HOLES = {"not computed": ("s", "0.6"), "failed": ("X", RED), "NaN": ("x", "black"), "infinite": ("^", "black")}
MAX_FACETS = 150  # facets along each side; finer grids are thinned for the picture
CAMERA = (32.0, -58.0)  # elevation and azimuth: x runs to the right, y to the back, as on the map
BOX = (1.0, 1.0, 0.75)  # of the drawn box
END_ON = 0.25  # of the floor's side, how long an axis is seen at least that has room for numbers
AMBIENT = 0.55  # light where none falls
FLOOR = 0.35  # of the height, by which the floor lies below the surface
SHORT_TICK = 4  # letters of a height that leave the axis' label its place
SIGHT_STEPS = 400  # along a line of sight, at which it is compared with the surface
PATH_STEPS = 16  # of a path's line between two checkpoints
ENOUGH = 100  # facets along the longer side, where the points between the measured ones are not set


def draw_surface3d(
    axes: Any,
    grid: Grid,
    values: np.ndarray,
    scale: Scale,
    cmap: str,
    labels: tuple[str, str, str],
    status: np.ndarray | None = None,
    norm: Normalize | None = None,
    interp: int | None = 1,
    points: np.ndarray | None = None,
    path: Group | None = None,
    camera: tuple[float, float] = CAMERA,
    models: Sequence[tuple[float, float, str]] = (),
) -> list[Artist]:
    """The surface over its grid; heights by decades where the scale is geometric, cut at the ends of the scale.

    Facets that are cut are grey. A point without a finite value leaves a hole, with a mark for the reason on the floor.

    values  (ny, nx)
    labels  of the axes x, y and z
    status  (ny, nx), of the points; all are done if left out
    norm    the colours of a signed quantity, those of the scale if left out
    interp  points to an interval between the measured ones, as `interpolation.factor_of` with ENOUGH
    points  (ny, nx), finite where a measured point is to be marked; None: nowhere
    path    a training path, with arrays x and y, and loss where the surface is one of the same loss
    camera  elevation and azimuth, degrees

    Returns what stands in the legend: the cuts and the reasons of the holes.

    Raises ValueError where the grid has fewer than two points along an axis.
    """
    if min(values.shape) < 2:
        raise ValueError(f"a surface in 3-D needs two points or more along both axes; this grid has {values.shape}")
    x, y, found = fine_heights(grid, values, scale, interp, ENOUGH)
    raw = np.ma.filled(found, np.nan)
    ends = _heights(np.array([scale.low, scale.high]), scale)
    height = np.clip(raw, *ends)
    across, up = np.meshgrid(x, y)
    # A facet has the colour of the mean of its corners; where one is missing there is none.
    facets = 0.25 * (height[1:, 1:] + height[1:, :-1] + height[:-1, 1:] + height[:-1, :-1])
    if scale.log:
        facets = 10.0**facets
    colours = matplotlib.colormaps[cmap]((norm or norm_of(scale))(facets))
    span = float(np.ptp(_heights(np.array(scale.ends), scale))) or 1.0
    colours[..., :3] *= _light(x, y, height / span, camera)[..., None]
    handles = _cut_facets(colours, values, raw, scale)
    step = max(1, -(-max(raw.shape) // MAX_FACETS))
    is_fine = raw.shape != values.shape
    polygons = axes.plot_surface(
        across,
        up,
        height,
        rstride=step,
        cstride=step,
        facecolors=_spread(colours, raw.shape),
        linewidth=0.0 if is_fine else 0.12,
        edgecolor="none" if is_fine else (0, 0, 0, 0.35),  # lines at the measured points alone
        antialiased=not is_fine,  # else the ground shows between small facets
        shade=False,
        zorder=2,
    )
    polygons.set_rasterized(raw.size > 2500)
    if points is not None:
        heights_there = np.clip(np.ma.filled(contour_heights(values, scale), np.nan), *ends)
        _mark_points(axes, grid, np.where(np.isfinite(points), heights_there, np.nan))
    _set_height_axis(axes, scale)
    floor = _add_floor(axes, (across, up, height), scale, cmap, norm)
    _mark_models(axes, (x, y, height), floor, [(0.0, 0.0, ""), *models], camera)
    if path is not None:
        _draw_path(axes, (x, y, height), path, cmap, norm or norm_of(scale))
    axes.set_xlabel(labels[0], labelpad=-7)
    axes.set_ylabel(labels[1], labelpad=-7)
    axes.zaxis.set_rotate_label(False)
    wider = 0.55 * type_size(6) * max(0, letters_beyond(scale))
    axes.set_zlabel(labels[2], labelpad=wider - 4, rotation=90)
    axes.computed_zorder = False  # of a caller's own axes too: the path lies over the surface
    axes.patch.set_visible(False)  # it would cover the label of a relief on its left
    axes.tick_params(pad=-3, labelsize=type_size(6))
    axes.tick_params(axis="z", pad=0.5 * wider - 1)  # their middle is what is placed
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.view_init(elev=camera[0], azim=camera[1])
    for i, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis)):
        if _is_end_on(camera, i):  # its numbers and its label would lie in a heap
            axis.set_ticks([])
            axis.set_label_text("")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor((1, 1, 1, 0))
        axis.pane.set_edgecolor("0.8")
    axes.grid(False)
    axes.set_box_aspect(BOX, zoom=0.95)
    if status is None:
        status = np.full(values.shape, DONE)
    return handles + _mark_holes(axes, np.meshgrid(grid.x, y_ticks(grid)), values, status)


def place_labels(panels: Sequence[Any]) -> None:
    """Give the labels of reliefs their places, of which the layout is made; matplotlib does it itself from 3.11 on."""
    if tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 11):
        for axes in panels:
            axes.draw(axes.figure.canvas.get_renderer())  # what it draws is wiped before the figure is


def is_from_above(camera: tuple[float, float]) -> bool:
    """Whether a camera, elevation and azimuth in degrees, sees a relief as a map, whose heights cannot be read."""
    return _is_end_on(camera, 2)


def _is_end_on(camera: tuple[float, float], axis: int) -> bool:
    """Whether a camera, elevation and azimuth in degrees, sees an axis, 0 to 2 for x to z, as hardly more than a point.

    As seen from afar: the perspective of a relief changes little of it.
    """
    elevation, azimuth = np.radians(camera)
    towards = (
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.sin(elevation),
    )
    return bool(BOX[axis] * np.sqrt(max(0.0, 1 - towards[axis] ** 2)) < END_ON)


def _light(x: np.ndarray, y: np.ndarray, height: np.ndarray, camera: tuple[float, float]) -> np.ndarray:
    """How much light each facet has, (ny - 1, nx - 1), from AMBIENT to 1; heights (ny, nx) in parts of the axis."""
    z = BOX[2] * height
    mean_x, mean_y = 0.5 * (z[1:] + z[:-1]), 0.5 * (z[:, 1:] + z[:, :-1])
    slope_x = np.diff(mean_x, axis=1) / (np.diff(x) / np.ptp(x))
    slope_y = np.diff(mean_y, axis=0) / (np.diff(y) / np.ptp(y))[:, None]
    azimuth, elevation = np.radians(camera[1] - 70.0), np.radians(50.0)
    towards = np.cos(elevation) * np.array([np.cos(azimuth), np.sin(azimuth)])
    along = -slope_x * towards[0] - slope_y * towards[1] + np.sin(elevation)
    lit = np.clip(along / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)
    return np.asarray(AMBIENT + (1 - AMBIENT) * np.nan_to_num(lit))


def _add_floor(
    axes: Any, surface: tuple[np.ndarray, np.ndarray, np.ndarray], scale: Scale, cmap: str, norm: Normalize | None
) -> float:
    """Lower the floor, and draw the contours of the surface, its x, y and heights, on it; returns where it is."""
    low, high = axes.get_zlim()
    floor = float(low - FLOOR * (high - low))
    axes.set_zlim(floor, high)
    levels = np.asarray(_heights(scale.levels, scale))
    height = np.ma.masked_invalid(surface[2])
    if scale.flat or height.mask.all():
        return floor
    inside = (levels > height.min()) & (levels < height.max())
    if inside.any():
        colours = matplotlib.colormaps[cmap]((norm or norm_of(scale))(scale.levels[inside]))
        axes.contour(
            *surface[:2], height, levels=levels[inside], colors=colours, linewidths=0.7, linestyles="solid",
            zdir="z", offset=floor, zorder=1,
        )  # fmt: skip
    return floor


def _mark_models(
    axes: Any,
    surface: tuple[np.ndarray, np.ndarray, np.ndarray],
    floor: float,
    places: Sequence[tuple[float, float, str]],
    camera: tuple[float, float],
) -> None:
    """A cross on the floor below each model in the window, its name, and a thin line from there up to the surface.

    Where the surface covers that cross, it stands on the surface instead.

    camera  elevation and azimuth, degrees: a name reaches inwards from its model, so that it stays over the floor
    """
    x, y, height = surface
    azimuth = np.radians(camera[1])
    towards_right = -np.sin(azimuth), np.cos(azimuth)
    outline = [withStroke(linewidth=1.8, foreground="white")]
    for across, up, name in places:
        if not (x.min() <= across <= x.max() and y.min() <= up <= y.max()):
            continue
        top = float(value_at(x, y, height, np.array([across]), np.array([up]))[0])
        at, order, effects = floor, 1.5, []
        if np.isfinite(top) and _is_covered(axes, surface, (across, up, floor), camera):
            at, order, effects = top, 3.7, outline
        elif np.isfinite(top):
            axes.plot([across, across], [up, up], [floor, top], "-", color="black", linewidth=0.5, zorder=order)
        cross = {"color": "black", "markersize": 5, "markeredgewidth": 0.8, "path_effects": effects}
        axes.plot([across], [up], [at], "+", zorder=order, **cross)
        if name:
            aside = [(place - 0.5 * (t.min() + t.max())) / np.ptp(t) for place, t in ((across, x), (up, y))]
            text = f" {broken_name(name, MODEL_LETTERS, MODEL_LINES)} ".replace("\n", " \n ")
            axes.text(
                across, up, at, text, fontsize="x-small", va="top", zorder=order + 0.1,
                ha="right" if np.dot(aside, towards_right) > 0 else "left", path_effects=outline,
            )  # fmt: skip


def _is_covered(
    axes: Any,
    surface: tuple[np.ndarray, np.ndarray, np.ndarray],
    place: tuple[float, float, float],
    camera: tuple[float, float],
) -> bool:
    """Whether a surface lies between a place below it and the camera, as seen from afar."""
    x, y, height = surface
    elevation, azimuth = np.radians(camera)
    towards = (
        np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        * [np.ptp(x), np.ptp(y), np.ptp(axes.get_zlim())]
        / BOX
    )
    steps = np.linspace(0.0, 2.0 * max(BOX), SIGHT_STEPS)
    across, up, above = (start + steps * step for start, step in zip(place, towards, strict=True))
    inside = (across >= x.min()) & (across <= x.max()) & (up >= y.min()) & (up <= y.max())
    there = value_at(x, y, height, across[inside], up[inside])
    return bool((above[inside] >= there).any())


def _draw_path(
    axes: Any, surface: tuple[np.ndarray, np.ndarray, np.ndarray], path: Group, cmap: str, norm: Normalize
) -> None:
    """The path over the surface as far as the window and its holes leave it, and its checkpoints in their colours."""
    x, y, height = surface
    checkpoints = np.asarray(path["x"], dtype=np.float64), np.asarray(path["y"], dtype=np.float64)
    count = PATH_STEPS * (checkpoints[0].size - 1) + 1
    at = np.arange(0, count, PATH_STEPS)
    across, up = (np.interp(np.arange(count), at, c) for c in checkpoints)
    inside = (across >= x.min()) & (across <= x.max()) & (up >= y.min()) & (up <= y.max())
    z = np.where(inside, value_at(x, y, height, across, up), np.nan)
    window = axes.get_xlim(), axes.get_ylim()  # which the path does not widen
    axes.plot(across, up, z, "-", color="white", linewidth=1.8, zorder=3.4)
    axes.plot(across, up, z, "-", color="black", linewidth=0.8, zorder=3.5)
    shown = at[np.isfinite(z[at])]
    look = checkpoint_look(path, cmap, norm, np.isfinite(z[at]))
    axes.scatter(across[shown], up[shown], z[shown], zorder=3.6, depthshade=False, label="checkpoint", **look)
    axes.set(xlim=window[0], ylim=window[1])


def _cut_facets(colours: np.ndarray, values: np.ndarray, raw: np.ndarray, scale: Scale) -> list[Artist]:
    """Make the facets with a corner beyond the scale grey, in place, of colours (ny - 1, nx - 1, 4). For the legend.

    values  the measured ones; raw: the heights of the corners before they are cut, (ny, nx)
    """
    handles: list[Artist] = []
    finite = values[np.isfinite(values)]
    low, high = _heights(np.array([scale.low, scale.high]), scale)
    margin = 1e-12 * max(abs(low), abs(high))  # a logarithm of an end is not always that of the scale
    for mask, is_cut, colour, words in (
        (raw > high + margin, scale.above & (finite > scale.high), ABOVE, f"above {scale.high:g}, cut: up to {{:.3g}}"),
        (raw < low - margin, scale.below & (finite < scale.low), BELOW, f"below {scale.low:g}, cut: down to {{:.3g}}"),
    ):
        if not is_cut.any():  # between the points alone, by the spline
            continue
        corners = mask[1:, 1:] | mask[1:, :-1] | mask[:-1, 1:] | mask[:-1, :-1]
        colours[corners] = to_rgba(colour)
        end = finite.max() if colour == ABOVE else finite.min()
        handles.append(Patch(facecolor=colour, edgecolor="black", linewidth=0.3, label=words.format(end)))
    return handles


def _mark_points(axes: Any, grid: Grid, heights: np.ndarray) -> None:
    """A dot at each measured point of the surface; heights (ny, nx), NaN where there is none."""
    across, up = np.meshgrid(grid.x, y_ticks(grid))
    known = np.isfinite(heights)
    size = float(np.clip(50 / max(heights.shape), 0.4, 1.6))
    axes.plot(
        across[known], up[known], heights[known], linestyle="", marker="o", color="black", markersize=size,
        markeredgewidth=0.0, alpha=0.7, zorder=3, label="measured point",
    )  # fmt: skip


def _mark_holes(axes: Any, ground: Sequence[np.ndarray], values: np.ndarray, status: np.ndarray) -> list[Artist]:
    """Mark the points without a finite value on the floor; ground: x and y of the points. Returns the marks."""
    floor = axes.get_zlim()[0]
    size = float(np.clip(120 / max(values.shape), 1.5, 5.0))
    marks: list[Artist] = []
    for word, mask in missing_points(values, status).items():
        marker, colour = HOLES[word]
        x, y = (ticks[mask] for ticks in ground)
        look = {"marker": marker, "color": colour, "markersize": size, "markeredgewidth": 0.6}
        (mark,) = axes.plot(x, y, np.full(x.size, floor), linestyle="", label=word, zorder=1, **look)
        marks.append(mark)
    return marks


def _heights(values: np.ndarray, scale: Scale) -> np.ndarray:
    """The values, or their decimal logarithms where the scale is geometric."""
    heights: np.ndarray = np.log10(values) if scale.log else values
    return heights


def _set_height_axis(axes: Any, scale: Scale) -> None:
    """Ends and ticks of the z axis."""
    axes.set_zlim(*(float(end) for end in _heights(np.array(scale.ends), scale)))
    axes.set_zticks(*_height_ticks(scale))


def _height_ticks(scale: Scale) -> tuple[np.ndarray, list[str]]:
    """Where on the axis of heights there are ticks, and their texts.

    Round steps, through 0 where that lies between the ends; of a geometric scale whole decades where there are two or
    more, else some of its levels.
    """
    low, high = (float(end) for end in _heights(np.array(scale.ends), scale))
    if scale.log:
        decades = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
        if decades.size >= 2:
            decades = decades[:: -(-decades.size // MAX_TICKS)]
            return decades, [_power(d) for d in decades]
    elif not scale.flat:
        ticks = np.asarray(MaxNLocator(MAX_TICKS - 1, steps=STEPS).tick_values(low, high))
        slack = 1e-9 * (high - low)
        ticks = ticks[(ticks >= low - slack) & (ticks <= high + slack)]
        if ticks.size >= 2:
            ticks[np.abs(ticks) <= slack] = 0.0  # else rounding is written out
            return ticks, list(texts(ticks))
    levels = scale.levels[:: max(1, -(-scale.levels.size // MAX_TICKS))]
    return _heights(levels, scale), list(texts(levels))


def letters_beyond(scale: Scale) -> int:
    """How many letters the longest tick of the heights has beyond those for which there is room at the axis."""
    return max((letters_of(text) - SHORT_TICK for text in _height_ticks(scale)[1]), default=0)


def _spread(colours: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Facet colours in an array of the grid's shape, as plot_surface takes them."""
    result = np.empty((*shape, 4))
    result[:-1, :-1] = colours
    result[-1, :-1], result[:-1, -1], result[-1, -1] = colours[-1], colours[:, -1], colours[-1, -1]
    return result


def _power(exponent: float) -> str:
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else f"$10^{{{int(exponent)}}}$"
