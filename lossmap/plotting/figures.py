"""Figures for print: contours, filled contours, cells, surfaces in 3-D, lines, eigenvalue maps, of one file or more.

    figure = draw("surface.h5")                    the kind that fits what the file holds
    save(figure, "surface.pdf")

Several surfaces stand side by side with common levels. Contours pass through the measured values, and between them
along a spline that the figure names; what is missing is shown as missing. Planes are drawn by `plane_figures`, lines by
`line_figures`, everything else that a file may hold by `dispatch`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmap.io.printable import printable
from lossmap.io.read import Group, Surface, read
from lossmap.keywords import checked_keywords
from lossmap.plotting import dispatch
from lossmap.plotting.between_points import with_points_between
from lossmap.plotting.caption import caption_of
from lossmap.plotting.checked_options import (
    check_together,
    checked_camera,
    checked_cmap,
    checked_labels,
    checked_levels,
    percentile_of,
)
from lossmap.plotting.coarse_picture import with_coarse_picture
from lossmap.plotting.convexity import draw_convexity, lines_between
from lossmap.plotting.field_rows import draw_field_rows
from lossmap.plotting.interpolation import checked_interp
from lossmap.plotting.line_figures import draw_eigenvalue_lines, draw_lines
from lossmap.plotting.lines import check_ticks, name_unseen
from lossmap.plotting.median_figure import draw_median
from lossmap.plotting.options_taken import refuse_unused
from lossmap.plotting.own_axes import check_axes, kept_in_room, kept_in_sight, whole_figure
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.plane_figures import (
    between_notes,
    draw_eigenvalue_maps,
    draw_maps,
    draw_surfaces_3d,
)
from lossmap.plotting.quantities import as_line, best_field, common_field, holds_points, is_line, other_kinds
from lossmap.plotting.style import save, style_context
from lossmap.plotting.titles import distinct_names, numbered
from lossmap.plotting.training import draw_training, is_training
from lossmap.plotting.unfinished_spectra import with_unfinished

__all__ = ["KINDS", "draw", "save"]

KINDS = ("auto", "filled", "contour", "map", "3d", "line", "median", "eigen", "convexity", "training", *dispatch.KINDS)
LINE_WIDTH, TRAINING_WIDTH = 1.5, 4.0  # inches, the least of a figure of lines, and of a training's four panels
PLANE_KINDS = ("filled", "contour", "map", "3d")


class Drawable(Protocol):
    """A result that a file can hold, and a figure can show."""

    def as_surface(self) -> Surface:
        """The result as a surface that holds it as groups."""


Source = Surface | str | os.PathLike[str] | Drawable


@checked_keywords
def draw(
    what: Source | Sequence[Source],
    kind: str = "auto",
    field: str | Sequence[str] | None = None,
    *,
    titles: Sequence[str] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    vlevel: float | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    trajectory: Group | Mapping[str, Any] | bool | None = None,
    width: float | None = None,
    interp: int | str | None = None,
    points: bool | None = None,
    ax: Axes | None = None,
    style: str | os.PathLike[str] | None = None,
    cmap: str | None = None,
    levels: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    crop: str | None = None,
    camera: str | Sequence[float] | None = None,
) -> Figure:
    """A figure of one result, or of several surfaces side by side with common levels.

    Args:
        what: a `Surface`, another result (a `Spectrum`, a `Diagnosis`, ...), the path of a file, or several of them.
        kind: filled, contour, map (cells, nothing between), 3d, line, median (lines of several files as
            median and band), eigen, convexity (where the smallest eigenvalue
            has which sign, over the loss), training; spectrum, layers, sharpness, connection, topology,
            evolution, health, path for what else is there; auto takes what fits.
        field: what to show; train_loss if there is one. "ratio" is |min_eig / max_eig|; "name:2" a further dimension;
            of spectra and layers the label. "gap" is the test loss minus the training loss, "accuracy" that of the
            samples that there are. Of planes several make a sheet: a row for each, a column for each file.
        titles: one for each surface.
        vmin: lower end of the levels.
        vmax: upper end of the levels.
        vlevel: step of the levels.
        log: geometric levels or not; None: by what the values span.
        loss_max: where the loss axis of a line ends.
        trajectory: arrays x and y to draw over a map; that of the file if there is one, False for none.
        width: inches; one column (3.3) for one map, a page (6.75) for several.
        interp: points to an interval between the measured ones of a plane, along a cubic spline of what the levels are
            even in (the logarithm on a log scale); "none" or 1 for straight lines; by default enough for smooth lines.
        points: whether the measured points are marked.
        ax: axes to draw one surface into, in place of a new figure (3-D ones for the kind 3d); the notes below a figure
            are then left to the caption.
        style: neurips, icml, ieee, nature, or a file .mplstyle: widths, fonts and type sizes.
        cmap: the name of a colour map of matplotlib.
        levels: the levels themselves, ascending.
        labels: of the axes x and y, and if a third is given of the colour bar.
        crop: "p99" ends the colours at that percentile of the values.
        camera: elevation and azimuth of a relief, degrees, as numbers or as "32,-58".

    An option that would change nothing of the kind, or of what is there, is refused.

    Returns:
        A matplotlib figure: `figure.savefig("surface.pdf")` writes it, at the size of a journal's column or page.
        `figure.get_label()` is a caption: what, of which model, on which samples, where, and how sure.

    Raises:
        ValueError: where the kind, the field or an option does not go with what is there; and as `read` does.

    Example:
        >>> import numpy as np, lossmap
        >>> surface = lossmap.Surface(lossmap.Grid.line(-1, 1, 3), {"train_loss": np.array([2.0, 1.0, 2.0])})
        >>> figure = lossmap.draw(surface)
        >>> len(figure.axes) >= 1
        True

    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    sources: list[Source] = list(what) if isinstance(what, (list, tuple)) else [what]  # type: ignore[list-item]
    surfaces = [_surface_of(source) for source in sources]
    if not surfaces:
        raise ValueError("there is no surface to draw")
    if isinstance(trajectory, Mapping):
        trajectory = Group(dict(trajectory))
    rows = () if field is None or isinstance(field, str) else tuple(common_field(surfaces, name) for name in field)
    if len(rows) > 1:
        return _draw_rows(
            sources,
            surfaces,
            rows,
            kind,
            titles,
            FigureOptions(
                log=log,
                trajectory=trajectory,
                width=width,
                interp=checked_interp(interp),
                points=points or None,
                labels=checked_labels(labels),
            ),
            style,
            {
                "vmin": vmin,
                "vmax": vmax,
                "vlevel": vlevel,
                "loss_max": loss_max,
                "ax": ax,
                "cmap": cmap,
                "levels": levels,
                "crop": crop,
                "camera": camera,
            },
        )
    field = rows[0] if rows else _one(field)
    if field is not None:
        field = common_field(surfaces, field)
    if kind == "auto":
        kind = fitting_kind(surfaces, field)
    options = FigureOptions(
        vmin,
        vmax,
        vlevel,
        log,
        loss_max,
        trajectory,
        width,
        checked_interp(interp),
        points or None,
        checked_cmap(cmap),
        checked_levels(levels),
        checked_labels(labels),
        percentile_of(crop),
        checked_camera(camera),
        ax,
    )
    refuse_unused(surfaces, kind, field, {**vars(options), "field": field, "titles": titles, "style": style})
    check_together(options, len(surfaces), kind)
    if ax is not None:
        check_axes(ax, kind, is_plane=not is_line(surfaces[0]))
    titles = _titles_of(sources, titles)
    if kind not in dispatch.KINDS:
        check_ticks([ticks for s in surfaces for ticks in (s.grid.x, s.grid.y) if ticks is not None])
    with kept_in_room(ax), style_context(style), kept_in_sight(ax):
        figure = _draw_kind(surfaces, kind, field, titles, options)
        for axes in figure.axes if ax is None else [ax]:
            name_unseen(axes)
    if ax is None:
        between = between_notes(surfaces, kind, field, options)
        if kind == "convexity" and not any(map(is_line, surfaces)):
            between = lines_between(surfaces, options)
        figure.set_label(caption_of(surfaces, kind, field, titles, between))
    return whole_figure(figure)


def _one(field: str | Sequence[str] | None) -> str | None:
    return field if isinstance(field, str) else None


def _titles_of(sources: Sequence[Source], titles: Sequence[str] | None) -> list[str] | None:
    """The titles as they are printed, those that were given or the default. Raises ValueError for a wrong number."""
    if titles is None:
        titles = _default_titles(sources)
    elif len(titles) != len(sources):
        raise ValueError(f"titles must be one for each of {len(sources)} surfaces; got {len(titles)}")
    return None if titles is None else [printable(str(title)) for title in titles]


def _draw_rows(
    sources: Sequence[Source],
    surfaces: Sequence[Surface],
    fields: Sequence[str],
    kind: str,
    titles: Sequence[str] | None,
    options: FigureOptions,
    style: str | os.PathLike[str] | None,
    others: Mapping[str, Any],
) -> Figure:
    """A sheet of several quantities; others: options that no single quantity is meant by, and that are refused."""
    if kind not in ("auto", "filled", "contour", "map"):
        raise ValueError(f"several fields make a sheet of maps, filled, contour or map; got the kind {kind!r}")
    if any(is_line(surface) for surface in surfaces):
        raise ValueError("several fields make a sheet of planes; of a line draw one field, or losses and accuracies")
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of one field: give one --field with it; got {len(fields)}")
    kind = "filled" if kind == "auto" else kind
    titles = _titles_of(sources, titles)
    with style_context(style):
        figure = draw_field_rows(surfaces, fields, titles, options, kind)
    notes = {name: between_notes(surfaces, kind, name, options) for name in fields}
    figure.set_label(" ".join(caption_of(surfaces, kind, name, titles, notes[name]) for name in fields))
    return figure


def _draw_kind(
    surfaces: Sequence[Surface], kind: str, field: str | None, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    if kind in dispatch.KINDS:
        return dispatch.draw_content(surfaces, kind, field, titles, options.width, options.log)
    if all(is_line(surface) for surface in surfaces):
        return _draw_all_lines(surfaces, kind, field, titles, options)
    return _draw_all_planes(surfaces, kind, field, titles, options)


def _surface_of(source: Source) -> Surface:
    """The surface behind a path, a surface, or another result."""
    if isinstance(source, Surface):
        return with_coarse_picture(with_points_between(with_unfinished(source)))
    if isinstance(source, (str, os.PathLike)):
        return with_coarse_picture(with_points_between(with_unfinished(read(source))))
    return source.as_surface()


def _draw_all_lines(
    surfaces: Sequence[Surface], kind: str, field: str | None, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    if kind in PLANE_KINDS:
        raise ValueError(f"a line has no picture of the kind {kind!r}; take line, or eigen")
    least = TRAINING_WIDTH if kind == "training" else LINE_WIDTH
    if options.width is not None and options.width < least:
        raise ValueError(f"--width must be at least {least:g} inches for the kind {kind}; got {options.width:g}")
    flat = [as_line(surface) for surface in surfaces]
    titles = None if titles is None else numbered(titles)  # legends have one entry for each name
    if kind in ("eigen", "convexity"):
        return draw_eigenvalue_lines(flat, titles, options)
    if kind == "median":
        return draw_median(flat, field, options)
    if kind == "training":
        return draw_training(flat, titles, options)
    return draw_lines(flat, field, titles, options)


def _draw_all_planes(
    surfaces: Sequence[Surface], kind: str, field: str | None, titles: Sequence[str] | None, options: FigureOptions
) -> Figure:
    if kind in ("line", "median", "training") or any(is_line(surface) for surface in surfaces):
        raise ValueError("lines and planes do not go into one picture, nor does a plane as a line")
    if kind == "convexity":
        return draw_convexity(surfaces, titles, options)
    if kind == "eigen":
        return draw_eigenvalue_maps(surfaces, titles, options)
    name = field or best_field(surfaces[0])
    if kind == "3d":
        return draw_surfaces_3d(surfaces, name, titles, options)
    return draw_maps(surfaces, name, kind, titles, options)


def _default_titles(sources: Sequence[Source]) -> list[str] | None:
    """The names of the files without endings, and a, b, ... for surfaces in memory; none for one surface alone."""
    if len(sources) < 2:
        return None
    titles = [chr(ord("a") + i) for i in range(len(sources))]
    paths = {i: Path(source) for i, source in enumerate(sources) if isinstance(source, (str, os.PathLike))}
    for i, name in zip(paths, distinct_names(list(paths.values())), strict=True):
        titles[i] = name
    return titles


def fitting_kind(surfaces: Sequence[Surface], field: str | None) -> str:
    """The kind that fits what the files hold, and the field if one is named."""
    if field is None and not any(holds_points(surface) for surface in surfaces) and other_kinds(surfaces[0]):
        return other_kinds(surfaces[0])[0]
    if field is None and len(surfaces) == 1 and "connection" in surfaces[0].groups:
        return "connection"
    if field is None and all(is_training(surface) for surface in surfaces):
        return "training"
    if field is None and all("max_eig" in surface and "min_eig" in surface for surface in surfaces):
        return "eigen" if all(is_line(surface) for surface in surfaces) else "convexity"
    if all(is_line(surface) for surface in surfaces):
        return "line"
    if field is not None and (field == "ratio" or field.endswith("min_eig")):
        return "map"
    return "filled"
