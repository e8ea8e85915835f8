"""Figures for a paper: styles, levels, colours, crops, cameras, the caller's own axes, and captions in the files."""

import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lossmap.cli import draw as command
from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting.figures import draw, save
from lossmap.plotting.style import STYLES

GRID = Grid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
X, Y = np.meshgrid(GRID.x, GRID.y)
DIRECTION = Group({}, {"kind": "random", "norm": "filter", "ignore": "biasbn", "seed": 3})


def plane(z=None, **more):
    z = 0.01 + X**2 + 3 * Y**2 if z is None else z
    return Surface(
        GRID, {"train_loss": z}, status={"loss": np.isfinite(z)}, measures={"loss": ("train_loss",)},
        groups={"directions/x": DIRECTION, "directions/y": DIRECTION},
        settings={
            "file": {"model": "resnet20"},
            "measures": {"loss": {"dataset": "cifar10", "samples": {"train": 5000}, "precision": "float32"}},
        }, **more,
    )  # fmt: skip


def bands(figure):
    return next(c for c in figure.axes[0].collections if isinstance(c, QuadContourSet))


@pytest.mark.parametrize("name", STYLES)
def test_a_style_sets_width_font_and_sizes_and_leaves_the_users_own(name, tmp_path):
    before = dict(matplotlib.rcParams)
    figure, wide = draw(plane(), style=name), draw([plane(), plane()], style=name)
    assert (figure.get_figwidth(), wide.get_figwidth()) == (STYLES[name].column, STYLES[name].page)
    label = figure.axes[0].xaxis.label
    assert label.get_fontsize() == STYLES[name].settings["axes.labelsize"]
    assert label.get_fontfamily()[0] in STYLES[name].fonts
    data = save(figure, tmp_path / "a.pdf").read_bytes()
    serif = name != "nature"
    assert (b"STIXGeneral" in data or b"Times" in data or b"Nimbus" in data) == serif
    assert dict(matplotlib.rcParams) == before
    assert draw(plane()).get_figwidth() == 3.3


def test_a_style_of_ones_own_and_one_that_is_none(tmp_path):
    own = tmp_path / "own.mplstyle"
    own.write_text("figure.figsize: 4.1, 3\nfont.size: 11\naxes.labelsize: 11\n")
    figure = draw(plane(), style=own)
    assert figure.get_figwidth() == 4.1 and figure.axes[0].xaxis.label.get_fontsize() == 11
    with pytest.raises(ValueError, match=r"--style must be one of neurips, icml, ieee, nature, or a file \.mplstyle"):
        draw(plane(), style="neurps")
    with pytest.raises(ValueError, match=r"the style .*none.mplstyle cannot be read"):
        draw(plane(), style=tmp_path / "none.mplstyle")


def test_levels_colours_and_labels_are_those_that_were_given():
    given = [0.02, 0.1, 0.5, 2]
    figure = draw(plane(), levels=given, cmap="magma", labels=["first", "second", "L"])
    assert np.allclose(10.0 ** bands(figure).levels, given) and bands(figure).get_cmap().name == "magma"
    assert bands(figure).extend == "both"  # from 0.01 to 4.01
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("first", "second", "L, log scale")
    relief = draw(plane(), "3d", cmap="magma", labels=["first", "second", "L"])
    assert relief.axes[0].get_xlabel() == "first" and relief.axes[0].get_zlabel().startswith("L")
    assert np.allclose(bands(draw(plane(), levels=[1, 2, 4], log=False)).levels, [1, 2, 4])


def test_a_crop_ends_the_colours_at_a_percentile_and_says_what_lies_beyond():
    z = 1 + X**2 + Y**2
    figure = draw(plane(z), "map", crop="p90", log=False)
    mesh = next(c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    top = float(f"{np.percentile(z, 90):.3g}")
    assert mesh.norm.vmax == top
    beyond = (z > top).sum()
    said = figure.get_supxlabel().replace("\n", " ")
    assert said == f"colours end at the 90th percentile, {top:g}; {beyond} points lie beyond, up to 3"
    relief = draw(plane(z), "3d", crop="p90", log=False)
    assert any(f"above {top:g}, cut" in t.get_text() for t in relief.legends[0].get_texts())


def eigenvalues():
    return Surface(GRID, {"train_loss": 1 + X**2, "max_eig": 2 + X**2, "min_eig": 0.1 - X**2 + 0 * Y})


def meshes(figure):
    return [c for axes in figure.axes for c in axes.collections if isinstance(c, QuadMesh) and c.get_array().size == 81]


def test_figures_of_eigenvalues_take_crops_colours_labels_and_the_callers_axes():
    surface = eigenvalues()
    ratio = np.abs(surface["min_eig"] / surface["max_eig"])
    figure = draw(surface, crop="p60", cmap="PuOr", labels=["u", "v", "R"])
    (mesh,) = meshes(figure)
    assert mesh.norm.vmax == float(f"{np.percentile(ratio, 60):.3g}") and mesh.get_cmap().name == "PuOr"
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("u", "v", "R")
    assert meshes(draw(surface, vmax=1.1))[0].norm.vmax == ratio.max()  # ends the levels of the loss alone
    mine = Figure().subplots()
    assert draw(surface, ax=mine) is mine.figure and mine.get_legend() is not None and len(mine.figure.axes) == 2
    sheet = draw(surface, "eigen", crop="p60", cmap="magma", labels=["u", "v"], interp="none")
    panels = sheet.axes[:4]
    assert [axes.get_xlabel() for axes in panels] == ["u"] * 4 and panels[0].get_ylabel() == "v"
    maps = [next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in panels]
    assert [m.get_cmap().name for m in maps] == ["magma", "magma", "RdBu", "RdBu_r"]
    assert maps[2].norm.vmax == float(f"{np.percentile(np.abs(surface['min_eig']), 60):.3g}")
    line = Surface(Grid(GRID.x), {"max_eig": GRID.x**2 + 1, "min_eig": GRID.x})
    for options, words in (
        ({"crop": "p90"}, "--crop changes nothing of a line"),
        ({"cmap": "magma"}, "--cmap changes nothing of a line"),
        ({"labels": ["u", "v"]}, "--labels changes nothing of eigenvalues along a line"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(line, **options)
    with pytest.raises(ValueError, match="--labels of the kind eigen are two"):
        draw(surface, "eigen", labels=["u", "v", "w"])


def test_a_camera_turns_the_relief():
    axes = draw(plane(), "3d", camera="50,-20").axes[0]
    assert (axes.elev, axes.azim) == (50, -20)


def test_a_figure_is_drawn_into_the_callers_axes():
    mine = Figure()
    left, right = mine.subplots(1, 2)
    for axes, kind in ((left, "filled"), (right, "map")):
        assert draw(plane(), kind, ax=axes) is mine and axes.get_xlabel() == "x, random direction"
    assert mine.get_label() == "" and not mine.legends and len(mine.axes) == 4
    relief = mine.add_subplot(projection="3d")
    assert draw(plane(), "3d", ax=relief) is mine and relief.collections
    line = Surface(Grid(GRID.x), {"train_loss": GRID.x**2, "test_loss": GRID.x**2})
    alone = Figure().subplots()
    draw(line, ax=alone, labels=["t", "loss"])
    assert len(alone.lines) >= 2 and (alone.get_xlabel(), alone.get_ylabel()) == ("t", "loss")
    for wrong, words in (
        ({"ax": alone, "kind": "3d"}, 'needs axes with projection="3d"'),
        ({"ax": alone, "width": 3}, "ax is part of a figure that has a width"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(plane(), **wrong)
    with pytest.raises(ValueError, match="ax takes one surface; got 2"):
        draw([plane(), plane()], ax=alone)


def test_what_makes_no_sense_is_refused():
    for options, words in (
        ({"levels": [2, 1]}, "--levels must be two or more finite numbers that ascend; got 2 1"),
        ({"levels": 5}, "--levels must be the levels themselves, such as [0.1, 1, 10]; got 5"),
        ({"levels": [1, 2], "vmax": 3}, "--levels and --vmax exclude each other"),
        ({"levels": [0, 2], "log": True}, "--levels must be above 0 on a log scale; got 0"),
        ({"crop": "99"}, "--crop must be a percentile between p0 and p100, such as p99; got '99'"),
        ({"crop": "p99", "vmax": 3}, "--crop and --vmax end the same colours"),
        ({"cmap": "virids"}, "--cmap must be a colour map of matplotlib, such as viridis"),
        ({"labels": ["x"]}, "--labels must be two or three"),
        ({"camera": "30", "kind": "3d"}, "--camera must be an elevation from -90 to 90 and an azimuth"),
        ({"camera": "30,40"}, "--camera changes nothing of a figure of the kind filled"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            draw(plane(), **options)


CAPTION = (
    "Mean loss over the training samples (nats) of resnet20 over a plane along two directions, each random "
    "(filter-normalized, without biases and batch norm, seed 3), 9\N{MULTIPLICATION SIGN}9 points in [-1, 1]"
    "\N{SUPERSCRIPT TWO}, on 5,000 training samples of cifar10, in float32. Of 81 points: 1 not computed. "
    "Measured at 80 of 9\N{MULTIPLICATION SIGN}9 points; between them a cubic spline of the logarithm, except beside "
    "gaps."
)


def test_the_caption_says_what_where_and_on_which_samples_and_is_in_the_files(tmp_path, capsys):
    z = 0.01 + X**2 + 3 * Y**2
    z[2, 3] = np.nan
    assert draw(plane(z)).get_label() == CAPTION
    write_surface(tmp_path / "s.h5", plane(z))
    outputs = [str(tmp_path / f"s.{end}") for end in ("pdf", "png", "svg")]
    assert command.main([str(tmp_path / "s.h5"), "--caption", "--output", *outputs]) == 0
    assert f"caption: {CAPTION}" in capsys.readouterr().out
    assert Image.open(outputs[1]).text["Description"] == CAPTION
    with open(outputs[2], encoding="utf8") as file:
        assert CAPTION in file.read()
    with open(outputs[0], "rb") as file:
        data = file.read()
    assert b"/Subject" in data and "5,000 training samples of cifar10".encode("utf-16-be") in data


def test_a_caption_of_eigenvalues_carries_their_accuracy_and_the_audit():
    fields = {"train_loss": X**2, "max_eig": 2 + X**2, "min_eig": 0.1 - X**2, "max_eig_error": 0.01 + 0 * X}
    surface = Surface(
        GRID, fields, measures={"loss": ("train_loss",), "eigen": tuple(fields)[1:]},
        status={"loss": np.ones(GRID.shape), "eigen": np.ones(GRID.shape)},
        settings={"measures": {"eigen": {"samples": {"train": 512}, "dataset": "digits"}}},
        attributes={"audit_points": 20, "audit_misses": 1, "audit_miss_bound": 0.2},
    )  # fmt: skip
    said = draw(surface).get_label()
    assert said.startswith("Sign of the smallest Hessian eigenvalue") and "on 512 training samples of digits" in said
    assert "An eigenvalue lies within" in said and "Audit: 1 miss at 20 points solved again" in said
    two = draw([surface, replace(surface, settings={})], titles=["A", "B"]).get_label()
    assert two.startswith("A: Sign of") and " B: Sign of" in two


def test_hostile_names_stay_text(tmp_path):
    odd = plane(attributes={"resolved_surface": '{"settings": {"model_file": "/a/</desc><script>.pt"}}'})
    text = save(draw(odd), tmp_path / "a.svg").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert draw(replace(odd, settings={})).get_label().startswith("Mean loss over the training samples (nats) over")
    assert (
        draw(replace(odd, settings={}, groups={})).get_label().split(". ")[0].endswith("in [-1, 1]\N{SUPERSCRIPT TWO}")
    )
    draw(plane(attributes={"resolved_surface": "[]"}))
    draw(plane(attributes={"resolved_surface": "{"}))


@pytest.mark.parametrize("kind", ["convexity", "filled", "3d", "eigen"])
def test_a_narrow_column_holds_its_words_and_leaves_the_map_its_width(kind, tmp_path):
    sizes = "axes.labelsize: 6\nxtick.labelsize: 5\nytick.labelsize: 5\nlegend.fontsize: 5\nfigure.figsize: 2.2, 1.6\n"
    (tmp_path / "narrow.mplstyle").write_text(f"font.family: serif\nfont.size: 6\n{sizes}")
    x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
    low = 0.1 - x**2
    fields = {"train_loss": 0.05 + x**2 + y**2, "max_eig": 2 + x, "min_eig": low, "min_eig_error": 0 * x + 0.01}
    made = Surface(Grid.square(-1, 1, 9), {**fields, "min_eig_limit": low - 0.2})
    figure = draw(made, kind, style=tmp_path / "narrow.mplstyle")
    figure.canvas.draw()
    assert figure.get_figwidth() == (6.75 if kind == "eigen" else pytest.approx(2.2))
    if kind in ("convexity", "filled"):
        assert figure.axes[0].get_position().width > 0.45
    axes = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis, getattr(axes, "zaxis", axes.xaxis))]
    below = [text for legend in figure.legends for text in legend.findobj(Text)]
    drawn = [text for text in (*axes, *below, *figure.texts) if text.get_visible() and text.get_text().strip()]
    assert len(drawn) > 3
    outside = [t.get_text() for t in drawn if not _within(t.get_window_extent(), figure.bbox)]
    assert not outside
    small = [text.get_fontsize() for legend in figure.legends for text in legend.get_texts()]
    assert all(size == 5.0 for size in small)  # 6.5 in the default look


def _within(box, whole):
    return box.x0 >= whole.x0 - 1 and box.y0 >= whole.y0 - 1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1


def test_in_axes_of_ones_own_a_path_lies_over_the_relief_and_the_legend_can_be_read():
    figure = Figure()
    axes = figure.add_subplot(projection="3d")
    z = 1 + X**2 + Y**2
    z[0, 0] = np.nan
    draw(plane(z), "3d", ax=axes)
    assert not axes.computed_zorder and axes.get_legend().get_frame_on()
