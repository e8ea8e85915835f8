"""Figures for print: contours, filled contours, cells, reliefs, lines and eigenvalue maps, of one surface or several.

    figure = draw("surface.h5")                    the kind that fits what the file holds
    save(figure, "surface.pdf")

Several surfaces stand side by side with common levels. A value is never smoothed; what is missing is shown as
missing. Price: a map of 51x51 takes about half a second.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lossmap.io.read import Group, Surface, read
from lossmap.plotting import dispatch, lines, maps
from lossmap.plotting.contour_levels import Scale, labels, scale_of
from lossmap.plotting.quantities import (
    Quantity,
    as_line,
    axis_labels,
    best_field,
    eigenvalues,
    holds_points,
    is_line,
    other_kinds,
    quantity,
    remarks,
    short_unit,
    values_of,
)
from lossmap.plotting.style import BLUE, COLUMN, PAGE, RED, blank, save, styled
from lossmap.plotting.surface3d import draw_surface3d

__all__ = ["KINDS", "draw", "save"]

KINDS = ("auto", "filled", "contour", "map", "3d", "line", "eigen", *dispatch.KINDS)
What = Surface | str | os.PathLike[str]


@dataclass(frozen=True)
class Wishes:
    """What a person wants of a picture beside its kind."""

    vmin: float | None = None
    vmax: float | None = None
    vlevel: float | None = None
    log: bool | None = None
    loss_max: float | None = None
    trajectory: Group | bool | None = None
    width: float | None = None


def draw(
    what: What | Sequence[What],
    kind: str = "auto",
    field: str | None = None,
    *,
    titles: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    vlevel: float | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    trajectory: Group | Mapping[str, Any] | bool | None = None,
    width: float | None = None,
) -> Figure:
    """A figure of one surface, or of several side by side with common levels; or of what else a file holds.

    what        a surface, the path of a file, or several of them
    kind        filled, contour, map (cells, nothing between), 3d, line, eigen; spectrum, layers, evolution, health,
                path for what else is there; auto takes what fits
    field       what to show; train_loss if there is one. "ratio" is |min_eig / max_eig|; "name:2" a further dimension;
                of spectra and layers the label
    titles      one for each surface
    vmin, vmax, vlevel   ends and step of the levels; log: geometric levels or not, else by what the values span
    loss_max    where the loss axis of a line ends
    trajectory  arrays x and y to draw over a map; that of the file if there is one, False for none
    width       inches; one column (3.3) for one map, a page (6.75) for several

    Raises ValueError where the kind or the field does not go with what is there; and as `read` does.
    """
    if kind not in KINDS:
        raise ValueError(f"a picture is one of {', '.join(KINDS)}; got {kind!r}")
    surfaces = [_surface(w) for w in ([what] if isinstance(what, (Surface, str, os.PathLike)) else what)]
    if not surfaces:
        raise ValueError("there is no surface to draw")
    if titles is not None and len(titles) != len(surfaces):
        raise ValueError(f"{len(surfaces)} surfaces want as many titles; got {len(titles)}")
    if titles is None and len(surfaces) > 1:
        titles = [
            Path(w).stem if isinstance(w, (str, os.PathLike)) else chr(97 + i)
            for i, w in enumerate(what if isinstance(what, Sequence) and not isinstance(what, str) else [what])
        ]
    group = Group(dict(trajectory)) if isinstance(trajectory, Mapping) else trajectory
    wishes = Wishes(vmin, vmax, vlevel, log, loss_max, group, width)
    if kind == "auto":
        kind = _kind(surfaces, field)
    if kind in dispatch.KINDS:
        return dispatch.draw_content(surfaces, kind, field, titles)
    with styled():
        if all(is_line(s) for s in surfaces):
            if kind in ("3d", "contour", "filled", "map"):
                raise ValueError(f"a line has no picture of the kind {kind!r}; take line, or eigen")
            flat = [as_line(s) for s in surfaces]
            if kind == "eigen":
                return _eigen_lines(flat, titles, wishes)
            return _line(flat, field, titles, wishes)
        if kind == "line" or any(is_line(s) for s in surfaces):
            raise ValueError("lines and planes do not go into one picture, nor does a plane as a line")
        if kind == "3d":
            return _reliefs(surfaces, field or best_field(surfaces[0]), titles, wishes)
        if kind == "eigen":
            return _eigen_maps(surfaces, titles, wishes)
        return _row(surfaces, field or best_field(surfaces[0]), kind, titles, wishes)


def _surface(what: What) -> Surface:
    return what if isinstance(what, Surface) else read(what)


def _kind(surfaces: Sequence[Surface], field: str | None) -> str:
    if field is None and not any(holds_points(s) for s in surfaces) and other_kinds(surfaces[0]):
        return other_kinds(surfaces[0])[0]
    eigen = all("max_eig" in s and "min_eig" in s for s in surfaces)
    if all(is_line(s) for s in surfaces):
        return "eigen" if eigen and field is None else "line"
    if field is None:
        return "eigen" if eigen else "filled"
    return "map" if field == "ratio" or field.endswith("min_eig") else "filled"


def _row(surfaces: Sequence[Surface], name: str, kind: str, titles: Sequence[str] | None, wishes: Wishes) -> Figure:
    """One quantity, the surfaces side by side, one colour bar."""
    what = quantity(surfaces[0], name)
    pairs = [values_of(s, quantity(s, name).name) for s in surfaces]
    if what.signed and kind != "contour":
        kind = "map"
    columns = 2 if len(surfaces) == 4 else min(len(surfaces), 3)
    rows = -(-len(surfaces) // columns)
    width = wishes.width or (COLUMN if columns == 1 else PAGE)
    said = remarks(surfaces[0]) if "eig" in name or name == "ratio" else []
    panel = (width - 0.85 - 0.3 * columns) / columns
    height = rows * (panel / _shape(surfaces[0]) + (0.3 if titles else 0.12)) + 0.45 + 0.12 * len(said)
    figure = blank(width, height, compressed=True)
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    scale = _scale([v for v, _ in pairs], what, wishes)
    told: list[Patch] = []
    mappable: Any = None
    for i, axes in enumerate(grid.flat):
        if i >= len(surfaces):
            axes.set_axis_off()
            continue
        values, status = pairs[i]
        mappable = _map(axes, surfaces[i], values, what, kind, scale, [v for v, _ in pairs])
        told += maps.blanks(axes, surfaces[i].grid, values, status)
        _finish(axes, surfaces[i], wishes, kind, left=i % columns == 0, bottom=i + columns >= len(surfaces))
        if titles:
            axes.set_title(titles[i])
    bar = figure.colorbar(mappable, ax=list(grid.flat), shrink=1.0, pad=0.02, aspect=24, extend=_extend(what, scale))
    _ticks(bar, what, scale, kind)
    bar.set_label(what.label)
    _beside(figure, told, said)
    return figure


def _map(
    axes: Any, surface: Surface, values: np.ndarray, what: Quantity, kind: str, scale: Scale, every: list[np.ndarray]
) -> Any:
    if what.signed:
        norm = maps.centred(every, 1.0 if what.name == "ratio" else None)
        return maps.cells(axes, surface.grid, values, norm, what.cmap)
    if kind == "map":
        return maps.cells(axes, surface.grid, values, maps.norm_of(scale), what.cmap)
    painter = maps.contour if kind == "contour" else maps.filled
    return painter(axes, surface.grid, values, scale, what.cmap)


def _finish(axes: Any, surface: Surface, wishes: Wishes, kind: str, left: bool = True, bottom: bool = True) -> None:
    maps.frame(axes, surface.grid, axis_labels(surface), cells=kind == "map")
    if not left:
        axes.set_ylabel("")
    if bottom:
        axes.tick_params(labelbottom=True)
    else:
        axes.set_xlabel("")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    path = wishes.trajectory if isinstance(wishes.trajectory, Group) else surface.groups.get("trajectory")
    if wishes.trajectory is not False and path is not None and "x" in path and "y" in path:
        maps.path(axes, np.asarray(path["x"]), np.asarray(path["y"]))


def _scale(every: list[np.ndarray], what: Quantity, wishes: Wishes) -> Scale:
    log = False if what.even and wishes.log is None else wishes.log
    return scale_of(every, low=wishes.vmin, high=wishes.vmax, step=wishes.vlevel, log=log)


def _extend(what: Quantity, scale: Scale) -> str | None:
    return None if what.signed else scale.extend


def _ticks(bar: Any, what: Quantity, scale: Scale, kind: str) -> None:
    """Ticks at the levels, as many as can be read."""
    bar.outline.set_linewidth(0.5)
    if what.name == "ratio":
        bar.formatter = FuncFormatter(lambda value, _: f"{abs(value):.3g}")
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
        return
    few = 4 if bar.orientation == "horizontal" else 12
    if not scale.flat and (what.signed or (kind == "map" and not scale.log)):
        bar.locator = MaxNLocator(min(few, 6))
        bar.formatter = FuncFormatter(lambda value, _: f"{value:.6g}")
        bar.update_ticks()
        return
    shown = scale.levels[:: max(1, -(-(scale.levels.size - 1) // few))]
    bar.set_ticks(shown, labels=labels(shown))
    bar.ax.minorticks_off()


def _shape(surface: Surface) -> float:
    """Width over height of a panel, as `maps.frame` will make it."""
    y = np.zeros(1) if surface.grid.y is None else surface.grid.y
    ratio = float(np.ptp(maps.edges(surface.grid.x)) / np.ptp(maps.edges(y)))
    return ratio if 0.4 < ratio < 2.5 else 1.2


def _beside(figure: Figure, told: Sequence[Patch], remarked: Sequence[str]) -> None:
    """A legend of the marks below the panels, and under it how sure the numbers are."""
    unique = {str(patch.get_label()): patch for patch in told}
    if unique:
        figure.legend(
            handles=list(unique.values()), loc="outside lower center", ncols=len(unique), fontsize=6.5, handlelength=1.6
        )
    if remarked:
        width = int(23 * figure.get_figwidth())
        figure.supxlabel("\n".join(textwrap.fill(line, width) for line in remarked), fontsize=5.8, color="0.3")


def _reliefs(surfaces: Sequence[Surface], name: str, titles: Sequence[str] | None, wishes: Wishes) -> Figure:
    what = quantity(surfaces[0], name)
    every = [values_of(s, quantity(s, name).name)[0] for s in surfaces]
    scale = _scale(every, what, wishes)
    columns = 2 if len(surfaces) == 4 else min(len(surfaces), 3)
    rows = -(-len(surfaces) // columns)
    width = wishes.width or (COLUMN if columns == 1 else PAGE)
    figure = blank(width, rows * width / columns * 0.86)
    for i, surface in enumerate(surfaces):
        axes = figure.add_subplot(rows, columns, i + 1, projection="3d", computed_zorder=False)
        # Only the leftmost names the height, else there is no room between the reliefs.
        short = ("x", "y", what.label if columns == 1 else what.symbol)
        draw_surface3d(axes, surface.grid, every[i], scale, what.cmap, short)
        if titles:
            axes.set_title(titles[i], y=0.97)
    return figure


def _eigen_maps(surfaces: Sequence[Surface], titles: Sequence[str] | None, wishes: Wishes) -> Figure:
    """A row for each surface: loss if there is one, the two ends, their ratio; a colour bar below each column."""
    for surface in surfaces:
        eigenvalues(surface)
    names = ["max_eig", "min_eig", "ratio"]
    loss = next((n for n in ("train_loss", "test_loss") if all(n in s for s in surfaces)), None)
    if loss is not None:
        names.insert(0, loss)
    width = wishes.width or PAGE
    said = remarks(surfaces[0]) if len(surfaces) == 1 else [
        f"{title}: {line}" for s, title in zip(surfaces, titles or [], strict=False) for line in remarks(s)
    ]  # fmt: skip
    panel = (width - 0.65 - 0.06 * len(names)) / len(names)
    height = len(surfaces) * (panel / _shape(surfaces[0]) + 0.1) + 1.3 + 0.1 * len(said)
    figure = blank(width, height, compressed=True)
    grid = figure.subplots(len(surfaces), len(names), squeeze=False, sharex=True, sharey="row")
    told: list[Patch] = []
    for column, name in enumerate(names):
        what = quantity(surfaces[0], name)
        pairs = [values_of(s, name) for s in surfaces]
        every = [v for v, _ in pairs]
        scale = _scale(every, what, wishes) if name == loss else scale_of(every, count=8)
        kind = "filled" if name == loss else "map"
        mappable: Any = None
        for row, surface in enumerate(surfaces):
            axes = grid[row, column]
            mappable = _map(axes, surface, pairs[row][0], what, kind, scale, every)
            told += maps.blanks(axes, surface.grid, *pairs[row])
            _finish(axes, surface, wishes, "map", left=column == 0, bottom=row == len(surfaces) - 1)
            axes.set_xlabel("x" if row == len(surfaces) - 1 else "")
            axes.set_ylabel("y" if column == 0 else "")
            axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            if row == 0:
                axes.set_title(what.symbol)
            if titles and column == 0:
                axes.set_ylabel(f"{titles[row]}\ny")
        bar = figure.colorbar(
            mappable, ax=list(grid[:, column]), orientation="horizontal", pad=0.03, aspect=16, shrink=0.95,
            extend=_extend(what, scale) if kind == "filled" else None,
        )  # fmt: skip
        _ticks(bar, what, scale, kind)
        bar.ax.tick_params(labelsize=6)
        if name == "ratio":
            bar.set_label(r"blue: $\lambda_\min > 0$, red: $< 0$", fontsize=6)
        else:
            bar.set_label(short_unit(surfaces[0].about[name]), fontsize=6)
    _beside(figure, told, said)
    return figure


def _line(surfaces: Sequence[Surface], field: str | None, titles: Sequence[str] | None, wishes: Wishes) -> Figure:
    """Loss on the left axis, accuracy on the right; one field of several surfaces in several colours."""
    figure = blank(wishes.width or COLUMN, 2.4)
    axes = figure.subplots()
    if len(surfaces) == 1 and (field is None or field.endswith(("_loss", "_acc"))):
        told = _loss_and_accuracy(figure, axes, surfaces[0], field, wishes)
    else:
        name = field or best_field(surfaces[0])
        what = quantity(surfaces[0], name)
        told = []
        for i, surface in enumerate(surfaces):
            values, status = values_of(surface, quantity(surface, name).name)
            title = titles[i] if titles else what.symbol
            lines.curve(axes, surface.grid.x, values, colour=lines.COLOURS[i % 6], label=title, dashed=i >= 6)
            told += lines.blanks(axes, surface.grid.x, values, status)
        axes.set_ylabel(what.label)
        _loss_axis(axes, [values_of(s, name)[0] for s in surfaces], wishes)
        if len(surfaces) > 1:
            axes.legend()
    if titles and len(surfaces) == 1:
        axes.set_title(titles[0])
    lines.frame(axes, np.concatenate([s.grid.x for s in surfaces]), axis_labels(surfaces[0])[0], _marks(surfaces[0]))
    _beside(figure, told, [])
    return figure


def _loss_and_accuracy(figure: Figure, axes: Any, surface: Surface, field: str | None, wishes: Wishes) -> list[Patch]:
    names = [n for n in ("train_loss", "test_loss") if n in surface]
    if field is not None or not names:
        names = [field or best_field(surface)]
    accuracies = [n for n in ("train_acc", "test_acc") if n in surface and field is None]
    x, told, shown = surface.grid.x, [], []
    for name in names:
        values, status = values_of(surface, quantity(surface, name).name)
        shown.append(values)
        lines.curve(axes, x, values, colour=BLUE, label=name.split("_")[0], dashed=name.startswith("test"))
        told += lines.blanks(axes, x, values, status)
    what = quantity(surface, names[0])
    plain = len(names) == 1
    axes.set_ylabel(what.label if plain else f"mean loss ({surface.about[names[0]].unit})")
    _loss_axis(axes, shown, wishes)
    if accuracies:
        axes.yaxis.label.set_color(BLUE)
        axes.tick_params(axis="y", colors=BLUE)
        right = axes.twinx()
        for name in accuracies:
            values = surface[name]
            lines.curve(right, x, values, colour=RED, label=name.split("_")[0], dashed=name.startswith("test"))
        right.set_ylabel("accuracy (percent)" if len(accuracies) > 1 else quantity(surface, accuracies[0]).label)
        right.yaxis.label.set_color(RED)
        right.tick_params(axis="y", colors=RED)
        right.set_ylim(-3, 103)
    if len(names) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return told


def _loss_axis(axes: Any, shown: list[np.ndarray], wishes: Wishes) -> None:
    if wishes.log or (wishes.log is None and lines.wants_log(shown)):
        known = np.concatenate([a[np.isfinite(a)].reshape(-1) for a in shown])
        if (known > 0).any():
            axes.set_yscale("log")
    top = wishes.loss_max if wishes.loss_max is not None else wishes.vmax
    if top is not None or wishes.vmin is not None:
        axes.set_ylim(bottom=wishes.vmin, top=top)


def _marks(surface: Surface) -> tuple[float, ...]:
    """Where models stand on a line: at 0, and of a line between two at 1 as well."""
    group = surface.groups.get("directions/x")
    between = group is not None and str(group.attributes.get("kind", "")).startswith("to:")
    return (0.0, 1.0) if between else (0.0,)


def _eigen_lines(surfaces: Sequence[Surface], titles: Sequence[str] | None, wishes: Wishes) -> Figure:
    """The loss if there is one, the two ends with their bounds, and their ratio, one above the other."""
    for surface in surfaces:
        eigenvalues(surface)
    loss = next((n for n in ("train_loss", "test_loss") if all(n in s for s in surfaces)), None)
    rows = 2 if loss is None else 3
    figure = blank(wishes.width or COLUMN, 1.35 * rows + 0.6)
    grid = figure.subplots(rows, 1, sharex=True)
    told: list[Patch] = []
    for i, surface in enumerate(surfaces):
        x, one = surface.grid.x, len(surfaces) == 1
        title = titles[i] if titles else ""
        if loss is not None:
            colour = BLUE if one else lines.COLOURS[i % 6]
            lines.curve(grid[0], x, surface[loss], colour=colour, label=title)
        for name, dashed, colour in (("max_eig", False, RED), ("min_eig", True, BLUE)):
            colour = colour if one else lines.COLOURS[i % 6]
            values, status = values_of(surface, name)
            symbol = quantity(surface, name).symbol
            lines.curve(grid[-2], x, values, colour=colour, label=f"{title} {symbol}".strip(), dashed=dashed)
            if f"{name}_error" in surface:
                error = surface[f"{name}_error"]
                lines.band(grid[-2], x, values - error, values + error, colour)
            if f"{name}_limit" in surface:
                lines.band(grid[-2], x, values, surface[f"{name}_limit"], colour)
            told += lines.blanks(grid[-2], x, values, status)
        ratio, status = values_of(surface, "ratio")
        lines.curve(grid[-1], x, ratio, colour="0.2" if one else lines.COLOURS[i % 6], label=title)
    if loss is not None:
        grid[0].set_ylabel(f"loss ({surfaces[0].about[loss].unit})")
        _loss_axis(grid[0], [s[loss] for s in surfaces], wishes)
    grid[-2].set_ylabel("eigenvalue")
    grid[-2].axhline(0, color="0.6", linewidth=0.5)
    grid[-2].legend(fontsize=6, ncols=max(1, len(surfaces)))
    grid[-1].axhline(0, color="0.6", linewidth=0.5)
    grid[-1].set_ylabel(r"$|\lambda_\min/\lambda_\max|$" + "\n" + r"($+$: $\lambda_\min<0$)")
    every = np.concatenate([s.grid.x for s in surfaces])
    for axes in grid:
        lines.frame(axes, every, axis_labels(surfaces[0])[0] if axes is grid[-1] else "", _marks(surfaces[0]))
    if titles and len(surfaces) == 1:
        grid[0].set_title(titles[0])
    said = remarks(surfaces[0]) if len(surfaces) == 1 else []
    _beside(figure, told, said)
    return figure
