"""The page: one file without a network, both views linked, numbers and missing points shown."""

import base64
import json
import re
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import SymLogNorm

from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting import maps
from lossmap.plotting.html import page
from lossmap.plotting.quantities import quantity

pytest.importorskip("plotly")
GRID = Grid(np.linspace(-1, 1, 5), np.linspace(0, 1, 3))


def surface(**more):
    x, y = np.meshgrid(GRID.x, GRID.y)
    loss = 0.001 + x**2 + y
    status = np.ones(GRID.shape, "u1")
    status[0, 0], status[0, 1] = 0, 2
    loss = np.where(status == 1, loss, np.nan)
    return Surface(
        GRID, {"train_loss": loss, "max_eig": 2 + x, "min_eig": -y}, status={"loss": status},
        measures={"loss": ("train_loss",)}, **more,
    )  # fmt: skip


def traces(path):
    text = path.read_text()
    found = re.search(r'Plotly\.newPlot\(\s*"lossmap",\s*', text)
    data, end = json.JSONDecoder().raw_decode(text[found.end() :])
    rest = text[found.end() + end :].lstrip(", \n")
    layout, _ = json.JSONDecoder().raw_decode(rest)
    return data, layout, text


def test_the_page_holds_both_views_and_the_link_between_them(tmp_path):
    write_surface(tmp_path / "s.h5", surface(groups={"trajectory": Group({"x": np.zeros(2), "y": np.ones(2)})}))
    made = page(tmp_path / "s.h5", tmp_path / "s.html")
    data, layout, text = traces(made)
    assert [t["type"] for t in data] == [
        "surface",
        "heatmap",
        "scatter3d",
        "scatter",
        "scatter",
        *["scatter", "scatter3d"] * 2,
    ]
    assert "plotly_hover" in text and "getElementById('lossmap')" in text and "<title>s.h5</title>" in text
    assert not re.search(r'<script[^>]+src="http', text)
    assert data[0]["customdata"][0][:3] == ["not computed", "failed", "0.001"]
    labels = [b["label"] for b in layout["updatemenus"][0]["buttons"]]
    assert labels[0] == "train_loss (nats), log scale" and labels[-1] == "|min_eig / max_eig|, red: min_eig < 0"
    assert layout["scene"]["zaxis"]["ticktext"][0] == "0.001"  # heights by decades, labelled with the losses


def colour_at(scale, share):
    shares = [s for s, _ in scale]
    parts = np.array([[float(v) for v in re.findall(r"[0-9]+", colour)] for _, colour in scale])
    return np.array([np.interp(share, shares, parts[:, i]) for i in range(3)])


@pytest.mark.parametrize("name", ["min_eig", "ratio", "max_eig"])
def test_the_page_shows_a_value_in_the_colour_of_the_print(tmp_path, name):
    made = surface()
    what = quantity(made, name)
    data, layout, _ = traces(page(made, tmp_path / "s.html"))
    button = next(b for b in layout["updatemenus"][0]["buttons"] if name.removesuffix("_eig") in b["label"] or
                  (name == "ratio" and b["label"].startswith("|")))  # fmt: skip
    for scale in button["args"][0]["colorscale"]:
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            printed = 255 * np.array(matplotlib.colormaps[what.cmap](share)[:3])
            assert np.abs(colour_at(scale, share) - printed).max() < 4
    red, _, blue = colour_at(button["args"][0]["colorscale"][0], 0.9 if name == "ratio" else 0.1)
    assert name == "max_eig" or red > blue  # of a negative eigenvalue
    assert isinstance(data[0]["colorscale"], list)  # the first view too, by its colours


def test_signed_values_over_decades_have_the_heights_and_colours_of_the_print(tmp_path):
    values = np.array([-100.0, -1.0, -0.01, 0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 1.0, 0.01, 0.01, 0.02, -0.02, 0.03])
    made = surface()
    made = replace(made, fields={**made.fields, "min_eig": values.reshape(GRID.shape)})
    data, layout, _ = traces(page(made, tmp_path / "s.html", field="min_eig"))
    norm = maps.centred([values])
    assert isinstance(norm, SymLogNorm) and layout["scene"]["zaxis"]["title"]["text"].endswith("symlog scale")
    packed, low, high = data[1]["z"], data[1]["zmin"], data[1]["zmax"]
    heights = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"]).reshape(GRID.shape)
    assert (heights - low) / (high - low) == pytest.approx(np.asarray(norm(values.reshape(GRID.shape))), abs=1e-6)
    ticks = dict(zip(layout["scene"]["zaxis"]["ticktext"], layout["scene"]["zaxis"]["tickvals"], strict=True))
    assert ticks["0"] == 0 and ticks["100"] == pytest.approx(high) and ticks["-100"] == pytest.approx(low)


def test_a_line_has_an_axis_for_each_unit(tmp_path):
    line = Surface(Grid(np.arange(3.0)), {"train_loss": np.ones(3), "train_acc": np.array([1, np.nan, 3.0])})
    data, layout, _ = traces(page(line, tmp_path / "l.html", title="a < b & c"))
    assert [t["yaxis"] for t in data] == ["y", "y2"]
    assert layout["yaxis2"]["title"]["text"] == "percent"
    assert "<title>a &lt; b &amp; c</title>" in (tmp_path / "l.html").read_text()


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0])
def test_a_surface_of_one_value_has_a_page(tmp_path, value):
    page(Surface(GRID, {"train_loss": np.full(GRID.shape, value)}), tmp_path / "s.html")


def test_without_plotly_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"needs plotly, which is not installed: pip install 'lossmap\[page\]'"):
        page(surface(), tmp_path / "s.html")


def test_the_page_takes_field_ends_and_path(tmp_path):
    trail = {"x": np.zeros(2), "y": np.ones(2)}
    data, layout, _ = traces(page(surface(), tmp_path / "s.html", None, "max_eig", vmax=2.5, trajectory=trail))
    assert data[1]["colorbar"]["title"]["text"].startswith("max_eig") and data[1]["zmax"] == 2.5
    assert "training path" in [t.get("name") for t in data]
    assert layout["updatemenus"][0]["buttons"][1]["args"][0]["zmax"][1] != 2.5  # the ends are of the first field
    line = Surface(Grid(np.arange(3.0)), {"train_loss": np.ones(3), "train_acc": np.ones(3)})
    data, layout, _ = traces(page(line, tmp_path / "l.html", field="train_acc", vmax=90))
    assert [t["name"] for t in data] == ["train_acc"] and layout["yaxis"]["range"] == [None, 90]
    with pytest.raises(ValueError, match="--loss-max ends the loss axis of a line"):
        page(surface(), tmp_path / "s.html", loss_max=3)


def test_the_page_marks_points_without_a_value_by_the_reason(tmp_path):
    made = surface()
    loss = made["train_loss"].copy()
    loss[1, 1], loss[1, 2] = np.nan, np.inf
    data, layout, text = traces(page(replace(made, fields={**made.fields, "train_loss": loss}), tmp_path / "s.html"))
    assert layout["xaxis"]["range"] == [-1.25, 1.25] and layout["yaxis"]["range"] == [-0.25, 1.25]
    marks = {t["name"]: t for t in data if "meta" in t and t["type"] == "scatter" and t["visible"]}
    assert list(marks) == ["not computed", "failed", "NaN", "infinite"]
    assert len({t["marker"]["symbol"] for t in marks.values()}) == 4
    reliefs = [t for t in data if "meta" in t and t["type"] == "scatter3d" and t["visible"]]
    assert [t["name"] for t in reliefs] == list(marks)
    assert all(t["meta"] == "train_loss (nats), log scale" for t in marks.values()) and "trace.meta" in text
    assert data[0]["customdata"][1][1:3] == ["NaN", "inf"]
