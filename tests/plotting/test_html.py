"""The page's content: fields, numbers, scales of the print, holes, origin; its size. In a browser: `test_page.py`."""

import base64
import json
import re
import zlib
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import SymLogNorm

from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting import maps
from lossmap.plotting.html import page
from lossmap.plotting.page_data import packed
from lossmap.plotting.quantities import quantity

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


def content(path):
    text = path.read_text()
    begin = text.index('id="data">') + len('id="data">')
    return json.JSONDecoder().raw_decode(text[begin:])[0]


def numbers(array):
    """What the page's script makes of an array."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(array["data"])), np.uint8)
    size = {"u1": 1, "f4": 4, "f8": 8}[array["type"]]
    return raw.reshape(size, -1).T.copy().view("<" + array["type"]).reshape(-1)


def field_of(data, name):
    return next(f for f in data["fields"] if f["name"] == name)


def test_the_page_holds_fields_path_and_holes(tmp_path):
    trail = Group({"x": np.zeros(2), "y": np.ones(2)})
    made_by = {"command_line": "/opt/lossmap/__main__.py surface --model mlp", "torch_version": "2.6"}
    write_surface(tmp_path / "s.h5", surface(groups={"trajectory": trail}, attributes=made_by))
    data = content(page(tmp_path / "s.h5", tmp_path / "s.html"))
    (file,) = data["files"]
    assert (data["first"], file["title"], data["stem"], data["reload"]) == ("train_loss", "s.h5", "s", None)
    assert [f["name"] for f in data["fields"]] == ["train_loss", "max_eig", "min_eig", "ratio"]
    assert field_of(data, "max_eig")["words"] == "largest eigenvalue of the Hessian"
    assert [file["path"][key] for key in ("x", "y", "loss")] == [[0.0, 0.0], [1.0, 1.0], None]
    assert numbers(file["status"]["loss"])[:3].tolist() == [0, 2, 1] and file["statusOf"]["train_loss"] == "loss"
    assert ["command", "lossmap surface --model mlp"] in file["provenance"]
    assert ["torch version", "2.6"] in file["provenance"]


def test_numbers_are_kept_to_float32_and_wider_ones_whole(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 5))
    assert np.array_equal(numbers(packed(values)), values.astype("f4").reshape(-1))
    for extreme in (1e300, 1e-300):
        values[0, 0] = extreme
        assert np.array_equal(numbers(packed(values)), values.reshape(-1))
    values = np.array([np.nan, np.inf, -np.inf, 0.0])
    assert np.array_equal(numbers(packed(values)), values, equal_nan=True)


def test_bars_are_those_of_the_file_or_of_rounding(tmp_path):
    made = surface()
    made = replace(made, fields={**made.fields, "min_eig_error": np.full(GRID.shape, 0.25)}, about={})
    data = content(page(made, tmp_path / "s.html"))
    errors = data["files"][0]["errors"]
    assert errors["min_eig"] == {"field": "min_eig_error"} and field_of(data, "min_eig_error")["more"]
    assert errors["train_loss"]["relative"] == pytest.approx(8 * 2.0**-23)
    exact = 0.25 / (2 + np.meshgrid(GRID.x, GRID.y)[0].reshape(-1))
    assert np.all(numbers(errors["ratio"]) >= exact) and numbers(errors["ratio"]) == pytest.approx(exact, rel=3e-3)


@pytest.mark.parametrize("name", ["min_eig", "ratio", "max_eig"])
def test_the_page_has_the_colours_of_the_print(tmp_path, name):
    made = surface()
    colours = np.array(field_of(content(page(made, tmp_path / "s.html")), name)["colours"])
    shares = np.linspace(0, 1, len(colours))
    printed = 255 * matplotlib.colormaps[quantity(made, name).cmap](shares)[:, :3]
    assert np.abs(colours - printed).max() < 1
    red, _, blue = colours[-4 if name == "ratio" else 3]
    assert name == "max_eig" or red > blue  # of a negative eigenvalue


def test_signed_values_over_decades_have_the_scale_of_the_print(tmp_path):
    values = np.array([-100.0, -1.0, -0.01, 0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 1.0, 0.01, 0.01, 0.02, -0.02, 0.03])
    made = surface()
    made = replace(made, fields={**made.fields, "min_eig": values.reshape(GRID.shape)})
    data = content(page(made, tmp_path / "s.html", field="min_eig"))
    norm, (scale, other) = maps.centred([values]), data["fields"][0]["scales"]
    assert isinstance(norm, SymLogNorm) and (scale["kind"], other["kind"]) == ("symlog", "linear")
    assert (scale["linear"], scale["low"], scale["high"]) == (norm.linthresh, norm.vmin, norm.vmax)
    assert [0.0, "0"] in scale["ticks"]


def test_what_is_about_other_fields_stands_under_more(tmp_path):
    made = surface()
    more = dict.fromkeys(
        ("loss_seconds", "loss_rank", "products", "max_eig_limit", "audit_max_eig"), np.ones(GRID.shape)
    )
    data = content(page(replace(made, fields={**made.fields, **more}, about={}), tmp_path / "s.html"))
    assert {f["name"] for f in data["fields"] if f["more"]} == set(more)
    tops = replace(
        made, fields={**made.fields, "top": np.ones((*GRID.shape, 2))},
        about={**made.about, "top": Field("top", "1", "largest eigenvalues", ("k", 2))},
    )  # fmt: skip
    data = content(page(tops, tmp_path / "t.html"))
    assert [f["words"] for f in data["fields"] if f["more"]] == ["largest eigenvalues, 0", "largest eigenvalues, 1"]


def test_the_page_takes_field_ends_and_path(tmp_path):
    trail = {"x": np.zeros(2), "y": np.ones(2)}
    data = content(page(surface(), tmp_path / "s.html", None, "max_eig", vmax=2.5, trajectory=trail))
    assert data["first"] == "max_eig" and data["fields"][0]["scales"][0]["high"] == 2.5 and data["files"][0]["path"]
    assert data["fields"][1]["scales"][0]["high"] != 2.5  # the ends are of the first field
    line = Surface(Grid(np.arange(3.0)), {"train_loss": np.ones(3), "train_acc": np.ones(3)})
    data = content(page(line, tmp_path / "l.html", field="train_acc", vmax=90))
    assert data["fields"][0]["ends"] == [None, 90] and data["files"][0]["y"] is None
    with pytest.raises(ValueError, match="--loss-max ends the loss axis of a line"):
        page(surface(), tmp_path / "s.html", loss_max=3)


def test_several_files_share_their_scales(tmp_path):
    low, high = surface(), surface()
    high = replace(high, fields={"train_loss": 100 * high["train_loss"]}, about={})
    data = content(page([low, high], tmp_path / "s.html", titles=["a", "b"]))
    assert [f["title"] for f in data["files"]] == ["a", "b"]
    assert field_of(data, "train_loss")["scales"][0]["high"] >= 200
    assert "max_eig" in data["files"][0]["values"] and "max_eig" not in data["files"][1]["values"]
    with pytest.raises(ValueError, match="titles must be one for each of 2 surfaces; got 1"):
        page([low, high], tmp_path / "s.html", titles=["a"])


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0])
def test_a_surface_of_one_value_has_a_page(tmp_path, value):
    data = content(page(Surface(GRID, {"train_loss": np.full(GRID.shape, value)}), tmp_path / "s.html"))
    scale = data["fields"][0]["scales"][0]
    assert scale["low"] < scale["high"]


def test_a_line_of_zeros_beside_one_over_decades_of_the_same_unit_has_a_page(tmp_path):
    fields = {"ratio_of_steps": np.array([1e-4, 1.0, 100.0]), "threshold_error": np.zeros(3), "threshold": np.zeros(3)}
    about = {name: Field(name, "1", name) for name in fields}
    data = content(page(Surface(Grid(np.arange(3.0)), fields, about=about), tmp_path / "line.html"))
    kinds = {name: field_of(data, name)["scales"][0]["kind"] for name in ("ratio_of_steps", "threshold")}
    assert kinds == {"ratio_of_steps": "log", "threshold": "linear"}


def test_what_stands_in_files_is_no_part_of_the_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&lt;"
    made = surface(attributes={evil: evil})
    made = replace(
        made, about={"train_loss": Field("train_loss", evil, evil)}, fields={"train_loss": made["train_loss"]}
    )
    text = page(made, tmp_path / "s.html", evil, titles=[evil]).read_text()
    assert len(re.findall(r"<script", text)) == 2 and "<img" not in text and "alert(1)" in text
    assert content(tmp_path / "s.html")["fields"][0]["words"] == evil
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]", text.replace("http://www.w3.org/2000/svg", ""))  # no host


def test_a_file_with_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this file holds no surface; it holds: nothing"):
        page(Surface(GRID, {}), tmp_path / "s.html")


@pytest.mark.parametrize(("count", "names", "limit"), [(51, 6, 1.5e6), (201, 8, 3e6)])
def test_the_page_stays_small(tmp_path, count, names, limit):
    """With numbers that do not pack at all."""
    grid, draw = Grid.square(-1, 1, count), np.random.default_rng(0)
    fields = {f"metric{i}": draw.standard_normal(grid.shape) for i in range(names)}
    assert page(Surface(grid, fields), tmp_path / "s.html").stat().st_size < limit
