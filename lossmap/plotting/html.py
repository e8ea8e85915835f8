"""An interactive page: a surface in 3-D and a map side by side, linked, in one HTML file that needs no network.

Hovering over either marks the same point in both and shows its coordinates and values. The page holds the drawing
library (4.7 MB) and the data. Needs plotly, the extra `page`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from lossmap.geometry.grid import shown_unit
from lossmap.io.printable import printable
from lossmap.io.read import Surface, read
from lossmap.io.surface import FAILED, TO_DO
from lossmap.plotting.contour_levels import Scale, scale_of
from lossmap.plotting.maps import y_ticks
from lossmap.plotting.quantities import Quantity, as_line, best_field, is_line, quantity, values_of
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
"""


def page(what: Surface | str | os.PathLike[str], path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write the page of a surface, and return its path.

    what   a surface, or the path of a result file
    path   the HTML file to write
    title  of the page; the file's name if left out

    Raises ImportError where plotly is missing, with the command that installs it; as `read` and `draw` otherwise.
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
    if is_line(surface):
        figure, script = _line(graph, as_line(surface)), None
    else:
        figure, script = _plane(graph, surface), LINK
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


def _names(surface: Surface) -> list[str]:
    """The fields that can be chosen on the page, the best first."""
    first = best_field(surface)
    names = [n for n in surface.fields if surface.about[n].extra is None and not n.endswith("_rank")]
    if "max_eig" in surface and "min_eig" in surface:
        names.append("ratio")
    return [first, *(n for n in names if n != first)]


def _view(surface: Surface, name: str) -> dict[str, Any]:
    """What both views show of a field: heights, texts, colours and ticks."""
    what = quantity(surface, name)
    values, status = values_of(surface, name)
    scale = scale_of([values], log=False if what.even else None)
    finite = np.where(np.isfinite(values), values, np.nan)
    levels = scale.levels[:: max(1, scale.levels.size // 8)]
    if scale.log:
        heights, ticks = np.log10(np.where(finite > 0, finite, np.nan)), np.log10(levels)
    else:
        heights, ticks = finite, levels
    low, high, colours = _ends_and_colours(what, scale, finite)
    return {
        "label": _label(surface, name),
        "heights": heights,
        "words": _words(values, status, name),
        "ends": (low, high),
        "colours": colours,
        "tickvals": [float(t) for t in ticks],
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


def _ends_and_colours(what: Quantity, scale: Scale, finite: np.ndarray) -> tuple[float, float, ColourScale]:
    """Where the colours of the heights begin and end, and the colours between."""
    low, high, colours = scale.low, scale.high, colour_scale(what.cmap)
    if what.signed:
        high = float(max(np.abs(finite[np.isfinite(finite)]), default=1.0))
        low = -high
    elif scale.log:
        low, high = float(np.log10(low)), float(np.log10(high))
    if low == high:
        return low - 0.5, high + 0.5, colours
    return low, high, colours


def _words(values: np.ndarray, status: np.ndarray, name: str) -> np.ndarray:
    """What hovering shows at each point: the number, or why there is none; of the shape of the values."""
    numbers = np.abs(values) if name == "ratio" else values
    words = np.array([f"{v:.6g}" for v in numbers.flat], dtype=object)
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


def _plane(graph: Any, surface: Surface) -> Any:
    """The figure of a plane: its surface in 3-D, its map, the marks under the mouse, and a menu of fields."""
    grid = surface.grid
    views = {name: _view(surface, name) for name in _names(surface)}
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
    path = surface.groups.get("trajectory")
    trail = []
    if path is not None and "x" in path and "y" in path:
        trail = [
            graph.Scatter(
                x=path["x"], y=path["y"], mode="lines+markers", name="training path", hoverinfo="skip",
                line={"color": "black", "width": 1.5}, marker={"size": 4},
            )
        ]  # fmt: skip
    figure = graph.Figure([surface_3d, flat, *marks, *trail])
    figure.update_layout(
        scene={
            "domain": {"x": [0.0, 0.52], "y": [0.0, 1.0]},
            "xaxis": {"title": "x"},
            "yaxis": {"title": "y"},
            "zaxis": {
                "title": first["label"],
                "tickvals": first["tickvals"],
                "ticktext": first["ticktext"],
            },
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
        },
        xaxis={"domain": [0.58, 0.98], "title": "x", "showgrid": False, "zeroline": False, "constrain": "domain"},
        yaxis={
            "title": "y",
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
            },
            [0, 1],
        ],
    }


def _line(graph: Any, surface: Surface) -> Any:
    """The figure of a line: every field, by its unit on the left or the right axis."""
    figure = graph.Figure()
    names = [n for n in surface.fields if surface.about[n].extra is None and not n.endswith(("_rank", "_seconds"))]
    axes = list(dict.fromkeys(surface.about[n].unit for n in names))
    for name in names:
        side = "y" if surface.about[name].unit == axes[0] else "y2"
        values = np.where(np.isfinite(surface[name]), surface[name], np.nan)
        figure.add_scatter(x=surface.grid.x, y=values, mode="lines+markers", name=name, yaxis=side)
    units = [", ".join(filter(None, map(shown_unit, part))) for part in (axes[:1], axes[1:])]
    switch = [
        {"label": f"{kind} axis", "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in ("linear", "log")
    ]
    figure.update_layout(
        xaxis={"title": "x"},
        yaxis={"title": units[0], "exponentformat": "power"},
        yaxis2={"title": units[1], "overlaying": "y", "side": "right", "showgrid": False},
        hovermode="x unified",
        legend={"orientation": "h", "y": 1.08},
        updatemenus=[{"buttons": switch, "type": "buttons", "direction": "right", "x": 0.25, "y": 1.14}],
    )
    return figure
