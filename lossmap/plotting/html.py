"""An interactive page: a surface in 3-D and a map side by side, linked, in one HTML file that needs no network.

Hovering over either marks the same point in both and shows its coordinates and values. The page holds the drawing
library (4.7 MB) and the data. Needs plotly, the extra `page`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.scale import SymmetricalLogTransform

from lossmap.geometry.grid import shown_unit
from lossmap.io.printable import printable
from lossmap.io.read import Group, Surface, read
from lossmap.io.surface import FAILED, TO_DO
from lossmap.plotting.contour_levels import Scale
from lossmap.plotting.flatness import noise_in
from lossmap.plotting.maps import centred, edges, missing_points, y_ticks
from lossmap.plotting.options_taken import refuse_unused
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.plane_figures import MAX_RATIO
from lossmap.plotting.quantities import (
    Quantity,
    as_line,
    axis_labels,
    best_field,
    is_line,
    on_scale,
    quantity,
    values_of,
)
from lossmap.plotting.style import appears_whole

COLOURS = 33  # of a scale; an odd number has the middle, which is white of signed ones

# Marks the hovered point in both views. Trace 0 is the surface in 3-D, 1 the map, 2 and 3 the marks.
LINK = """
var page = document.getElementById('{plot_id}'), busy = false;
page.on('plotly_hover', function (event) {
  var point = event.points[0];
  if (busy || point.curveNumber > 1) { return; }
  var at = point.pointNumber, z = page._fullData[0].z[at[0]][at[1]];
  busy = true;
  setTimeout(function () {
    Plotly.restyle(page, {x: [[point.x], [point.x]], y: [[point.y], [point.y]], z: [[z], null]}, [2, 3]);
    busy = false;
  }, 15);
});
// The marks of points without a value belong to one field each, by its label.
page.on('plotly_buttonclicked', function (event) {
  page.data.forEach(function (trace, i) {
    if (trace.meta) { Plotly.restyle(page, {visible: trace.meta === event.button.label}, [i]); }
  });
});
"""
HOLES = {"not computed": "square-open", "failed": "x", "NaN": "cross", "infinite": "diamond"}  # symbols in both views


def page(
    what: Surface | str | os.PathLike[str],
    path: str | os.PathLike[str],
    title: str | None = None,
    field: str | None = None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    trajectory: Group | Mapping[str, Any] | bool | None = None,
) -> Path:
    """Write the page of a surface, and return its path.

    what        a surface, or the path of a result file
    path        the HTML file to write
    title       of the page; the file's name if left out
    field       what it shows first; the losses if left out
    vmin, vmax  ends of the colours of that field; of a line, of its axis
    log         geometric colours and heights of losses or not; by what the values span if left out
    loss_max    where the loss axis of a line ends
    trajectory  arrays x and y to draw over the map; that of the file if there is one, False for none

    Raises ValueError for an option that would change nothing; ImportError where plotly is missing, with the command
    that installs it; as `read` and `draw` otherwise.
    """
    try:
        import plotly.graph_objects as graph
        from plotly.io import to_html
    except ImportError:
        raise ImportError("the page needs plotly, which is not installed: pip install 'lossmap[page]'") from None
    if isinstance(what, Surface):
        surface, name = what, "loss surface"
    else:
        surface, name = read(what), Path(what).name
    title = printable(title or name)
    best_field(surface)  # raises where there is none
    if isinstance(trajectory, Mapping):
        trajectory = Group(dict(trajectory))
    options = FigureOptions(vmin, vmax, None, log, loss_max, trajectory)
    refuse_unused([surface], "page", field, {**vars(options), "field": field})
    if is_line(surface):
        figure, script = _line(graph, as_line(surface), field, options), None
    else:
        figure, script = _plane(graph, surface, field, options), LINK
    figure.update_layout(
        title={"text": _escaped(title), "x": 0.01}, template="plotly_white", autosize=True, font={"size": 13}
    )
    text = to_html(
        figure,
        include_plotlyjs=True,
        full_html=True,
        div_id="lossmap",
        default_height="94vh",
        post_script=script,
        config={"displaylogo": False, "responsive": True},
    )
    text = text.replace("<head>", f"<head><title>{_escaped(title)}</title>", 1)
    path = Path(path)
    with appears_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _names(surface: Surface, field: str | None) -> list[str]:
    """The fields that can be chosen on the page, the one that is named or else the best first."""
    first = quantity(surface, field or best_field(surface)).name
    names = [n for n in surface.fields if surface.about[n].extra is None and not n.endswith("_rank")]
    if "max_eig" in surface and "min_eig" in surface:
        names.append("ratio")
    return [first, *(n for n in names if n != first)]


def _view(surface: Surface, name: str, options: FigureOptions) -> dict[str, Any]:
    """What both views show of a field: heights, texts, colours and ticks."""
    what = quantity(surface, name)
    values, status = values_of(surface, name)
    noise = noise_in([surface], name)
    scale = options.scale([values], what, noise)
    finite = np.where(np.isfinite(values), values, np.nan)
    levels = scale.levels[:: max(1, scale.levels.size // 8)]
    label = _label(surface, name)
    if noise:
        label += ", equal within its errors"
    limit = options.vmax
    if limit is None and name == "ratio":
        limit = MAX_RATIO
    by_decades = centred([finite], limit, options.log, noise) if what.signed else None
    view = {"label": on_scale(label, scale.log), "words": _words(values, status, name)}
    view["missing"] = missing_points(values, status)
    if isinstance(by_decades, SymLogNorm):
        return view | {"label": f"{label}, symlog scale"} | _heights_by_decades(what, finite, by_decades)
    if scale.log:
        heights, ticks = np.log10(np.where(finite < scale.low, scale.low, finite)), np.log10(levels)
    else:
        heights, ticks = finite, levels
    low, high, colours = _ends_and_colours(what, scale, finite, limit)
    return view | {
        "heights": heights,
        "ends": (low, high),
        "colours": colours,
        "tickvals": [float(t) for t in ticks],
        "ticktext": [f"{t:.3g}" for t in levels],
    }


def _heights_by_decades(what: Quantity, finite: np.ndarray, norm: SymLogNorm) -> dict[str, Any]:
    """Heights, ends, colours and ticks of a signed field on the scale that print gives it: linear around 0."""
    linear, most = float(norm.linthresh), float(norm.vmax or 1.0)
    scale = SymmetricalLogTransform(10, linear, 1)
    decades = 10.0 ** np.arange(np.ceil(np.log10(linear)), np.log10(most) + 1e-9)
    decades = decades[:: max(1, -(-decades.size // 4))]
    levels = np.concatenate([-decades[::-1], [0.0], decades])

    def height(values: Any) -> np.ndarray:
        return np.asarray(scale.transform_non_affine(np.asarray(values)))

    high = float(height([most])[0])
    return {
        "heights": height(finite),
        "ends": (-high, high),
        "colours": colour_scale(what.cmap),
        "tickvals": height(levels).tolist(),
        "ticktext": [f"{t:.3g}" for t in levels],
    }


ColourScale = list[list[Any]]  # [[share, "rgb(r, g, b)"], ...], as plotly takes it


def colour_scale(name: str) -> ColourScale:
    """A colour map of matplotlib's in plotly's form, so that page and print show a value in the same colour.

    By its colours and not by its name: of some names the two libraries, and plotly's two halves, mean opposite things.
    """
    shares = np.linspace(0.0, 1.0, COLOURS)
    return [
        [float(share), f"rgb({', '.join(str(round(255 * part)) for part in colour[:3])})"]
        for share, colour in zip(shares, matplotlib.colormaps[name](shares), strict=True)
    ]


def _ends_and_colours(
    what: Quantity, scale: Scale, finite: np.ndarray, limit: float | None
) -> tuple[float, float, ColourScale]:
    """Where the colours of the heights begin and end, and the colours between."""
    (low, high), colours = scale.ends, colour_scale(what.cmap)
    if what.signed and not scale.flat:
        high = float(max(np.abs(finite[np.isfinite(finite)]), default=1.0))
        if limit is not None:
            high = min(high, abs(limit))
        low = -high
    elif scale.log:
        low, high = float(np.log10(low)), float(np.log10(high))
    return low, high, colours


def _words(values: np.ndarray, status: np.ndarray, name: str) -> np.ndarray:
    """What hovering shows at each point: the number, or why there is none; of the shape of the values."""
    numbers = np.abs(values) if name == "ratio" else values
    words = np.array([f"{v:.6g}" for v in numbers.flat], dtype=object)
    words[np.isnan(values).reshape(-1)] = "NaN"
    words[status.reshape(-1) == TO_DO] = "not computed"
    words[status.reshape(-1) == FAILED] = "failed"
    return words.reshape(values.shape)


def _label(surface: Surface, name: str) -> str:
    """A field's name with its unit; nothing in it is a tag, such as a link."""
    if name == "ratio":
        return "|min_eig / max_eig|, red: min_eig < 0"
    about = surface.about.get(name)
    unit = "" if about is None else shown_unit(about.unit)
    return _escaped(f"{name} ({unit})" if unit else name)


def _plane(graph: Any, surface: Surface, field: str | None, options: FigureOptions) -> Any:
    """The figure of a plane: its surface in 3-D, its map, the marks under the mouse, and a menu of fields."""
    grid = surface.grid
    names = _names(surface, field)
    # The ends that are set are of the first field; the other fields have units of their own.
    own = replace(options, vmin=None, vmax=None, log=None)
    views = {name: _view(surface, name, own if i else options) for i, name in enumerate(names)}
    first = next(iter(views.values()))
    y = y_ticks(grid)
    hover = "x %{x:.4g}<br>y %{y:.4g}<br>%{customdata}<extra></extra>"
    bar = {"tickvals": first["tickvals"], "ticktext": first["ticktext"], "title": {"text": first["label"]}, "x": 1.0}
    shared = {"colorscale": first["colours"], "cmin": first["ends"][0], "cmax": first["ends"][1]}
    surface_3d = graph.Surface(
        x=grid.x, y=y, z=first["heights"], customdata=first["words"], hovertemplate=hover, showscale=False,
        contours={"z": {"show": True, "usecolormap": False, "color": "rgba(0,0,0,.25)", "width": 1}}, **shared,
    )  # fmt: skip
    flat = graph.Heatmap(
        x=grid.x, y=y, z=first["heights"], customdata=first["words"], hovertemplate=hover, colorbar=bar,
        colorscale=first["colours"], zmin=first["ends"][0], zmax=first["ends"][1], hoverongaps=True,
    )  # fmt: skip
    middle = ([0.0], [0.0])
    if not (grid.x.min() <= 0 <= grid.x.max() and y.min() <= 0 <= y.max()):
        middle = ([float(grid.x[0])], [float(y[0])])
    marks = [
        graph.Scatter3d(
            x=middle[0], y=middle[1], z=[None], mode="markers", hoverinfo="skip", showlegend=False,
            marker={"size": 5, "color": "crimson"},
        ),
        graph.Scatter(
            x=middle[0], y=middle[1], mode="markers", hoverinfo="skip", showlegend=False,
            marker={"size": 11, "symbol": "cross-thin", "line": {"width": 2, "color": "crimson"}},
        ),
    ]  # fmt: skip
    path = options.training_path(surface)
    trail = []
    if path is not None:
        trail = [
            graph.Scatter(
                x=path["x"], y=path["y"], mode="lines+markers", name="training path", hoverinfo="skip",
                line={"color": "black", "width": 1.5}, marker={"size": 4},
            )
        ]  # fmt: skip
    holes = [mark for view in views.values() for mark in _hole_marks(graph, grid.x, y, view, view is first)]
    figure = graph.Figure([surface_3d, flat, *marks, *trail, *holes])
    figure.update_layout(
        scene={
            "domain": {"x": [0.0, 0.52], "y": [0.0, 1.0]},
            "xaxis": {"title": "x"},
            "yaxis": {"title": "y"},
            "zaxis": {
                "title": first["label"],
                "tickvals": first["tickvals"],
                "ticktext": first["ticktext"],
                "range": first["ends"],  # what lies beyond is cut, as in print
            },
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
        },
        xaxis={
            "domain": [0.58, 0.98],
            "title": "x",
            "range": _ends(grid.x),
            "showgrid": False,
            "zeroline": False,
            "constrain": "domain",
        },
        yaxis={
            "title": "y",
            "range": _ends(y),
            "anchor": "x",
            "showgrid": False,
            "zeroline": False,
            "scaleanchor": "x",
            "constrain": "domain",
        },
        legend={"x": 0.58, "y": 1.04, "orientation": "h"},
        margin={"l": 10, "r": 10, "t": 70, "b": 50},
        plot_bgcolor="#cccccc",  # cells without a value show it
    )
    if len(views) > 1:
        figure.update_layout(updatemenus=[{"buttons": [_button(v) for v in views.values()], "x": 0.3, "y": 1.07}])
    return figure


def _ends(ticks: np.ndarray) -> list[float]:
    """The borders of the outer cells; left to itself, plotly makes room beyond them for marks of missing points."""
    borders = edges(ticks)
    return [float(borders.min()), float(borders.max())]


def _hole_marks(graph: Any, x: np.ndarray, y: np.ndarray, view: dict[str, Any], visible: bool) -> list[Any]:
    """Marks of a field's points without a value on the map, and on the floor of the relief, by the reason."""
    traces: list[Any] = []
    for word, mask in view["missing"].items():
        rows, columns = np.nonzero(mask)
        shared = {
            "x": x[columns], "y": y[rows], "mode": "markers", "name": word, "hoverinfo": "skip", "visible": visible,
            "meta": view["label"],
        }  # fmt: skip
        marker = {"symbol": HOLES[word], "color": "#444444", "size": 6}
        traces.append(graph.Scatter(**shared, marker=marker))
        floor = np.full(rows.size, view["ends"][0])
        traces.append(graph.Scatter3d(**shared, z=floor, showlegend=False, marker={**marker, "size": 3}))
    return traces


def _button(view: dict[str, Any]) -> dict[str, Any]:
    """What changes on the page when this field is chosen."""
    low, high = view["ends"]
    return {
        "label": view["label"],
        "method": "update",
        "args": [
            {
                "z": [view["heights"], view["heights"]],
                "customdata": [view["words"], view["words"]],
                "colorscale": [view["colours"], view["colours"]],
                "cmin": [low, None],
                "cmax": [high, None],
                "zmin": [None, low],
                "zmax": [None, high],
                "colorbar.tickvals": [None, view["tickvals"]],
                "colorbar.ticktext": [None, view["ticktext"]],
                "colorbar.title.text": [None, view["label"]],
            },
            {
                "scene.zaxis.title.text": view["label"],
                "scene.zaxis.tickvals": view["tickvals"],
                "scene.zaxis.ticktext": view["ticktext"],
                "scene.zaxis.range": [low, high],
            },
            [0, 1],
        ],
    }


def _line(graph: Any, surface: Surface, field: str | None, options: FigureOptions) -> Any:
    """The figure of a line: every field, or the one that is named, by its unit on the left or the right axis."""
    figure = graph.Figure()
    names = [n for n in surface.fields if surface.about[n].extra is None and not n.endswith(("_rank", "_seconds"))]
    if field is not None:
        names = [quantity(surface, field).name]
    units = {n: surface.about[n.partition(":")[0]].unit if n != "ratio" else "ratio" for n in names}
    axes = list(dict.fromkeys(units.values()))
    for name in names:
        side = "y" if units[name] == axes[0] else "y2"
        values, _ = values_of(surface, name)
        values = np.where(np.isfinite(values), values, np.nan)
        figure.add_scatter(x=surface.grid.x, y=values, mode="lines+markers", name=name, yaxis=side)
    titles = [", ".join(filter(None, map(shown_unit, part))) for part in (axes[:1], axes[1:])]
    switch = [
        {"label": f"{kind} axis", "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in ("linear", "log")
    ]
    figure.update_layout(
        xaxis={"title": _escaped(axis_labels(surface)[0])},
        yaxis={"title": titles[0], "exponentformat": "power"},
        yaxis2={"title": titles[1], "overlaying": "y", "side": "right", "showgrid": False},
        hovermode="x unified",
        legend={"orientation": "h", "y": 1.08},
        updatemenus=[{"buttons": switch, "type": "buttons", "direction": "right", "x": 0.25, "y": 1.14}],
    )
    left = [name for name in names if units[name] == axes[0]]
    even = any(quantity(surface, n).even or quantity(surface, n).signed for n in left)
    log = options.suits_log([values_of(surface, n)[0] for n in left], even)
    figure.update_layout(updatemenus=[{"active": int(log)}])
    _set_line_axis(figure, options, log)
    return figure


def _set_line_axis(figure: Any, options: FigureOptions, log: bool) -> None:
    """The scale and the ends of the left axis; plotly writes those of a log axis as exponents."""
    if log:
        figure.update_layout(yaxis={"type": "log"})
    top = options.vmax if options.loss_max is None else options.loss_max
    ends = [options.vmin, top]
    if log:
        ends = [None if end is None or end <= 0 else float(np.log10(end)) for end in ends]
    if ends != [None, None]:
        figure.update_layout(yaxis={"range": ends})
