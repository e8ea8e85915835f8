"""Titles and characters: files told apart, long names in lines within their panels, no boxes without a word."""

import warnings
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np
import pytest

import lossmap
from lossmap.cli.draw import main
from lossmap.geometry.grid import Field, Grid
from lossmap.io.printable import MissingCharacters
from lossmap.io.surface import Surface
from lossmap.plotting.figures import draw, save
from lossmap.plotting.style import new_figure
from lossmap.plotting.titles import broken_name, distinct_names, entitle

GRID = Grid.square(-1, 1, 7)
X, Y = np.meshgrid(GRID.x, GRID.y)
LOSS = Surface(GRID, {"train_loss": 1 + X**2 + Y**2})
LONG = "a_very_long_name_of_resnet110-no-short-cifar100_epoch300_seed12345_lr0.1.h5"


def test_files_of_one_name_are_told_apart_by_their_folders():
    paths = [PurePath(p) for p in ("a/run1/net.h5", "a/run2/net.h5", "other.h5", "net.h5", "/net.h5")]
    assert distinct_names(paths) == ["run1/net", "run2/net", "other", "net", "/net"]
    assert distinct_names(paths[:2], ending=True) == ["run1/net.h5", "run2/net.h5"]
    assert distinct_names([PurePath("b/n.h5"), PurePath("b/n.h5")]) == ["n", "n (2)"]


def test_the_titles_of_files_of_one_name_differ_in_print_and_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        LOSS.save(f"{folder}/net.h5")
    figure = draw(["one/net.h5", "two/net.h5"])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["one/net", "two/net"]
    lossmap.page(["one/net.h5", "two/net.h5"], "pair.html")
    assert main(["one/net.h5", "two/net.h5", "--output", "other.html"]) == 0
    for page in ("pair.html", "other.html"):
        assert "one/net.h5" in Path(page).read_text() and "two/net.h5" in Path(page).read_text()


def test_names_are_broken_behind_signs_and_lose_nothing():
    assert broken_name(LONG, 29).split("\n")[0] == "a_very_long_name_of_"
    for letters in (5, 17, 30, 200):
        lines = broken_name(LONG, letters).split("\n")
        assert "".join(lines) == LONG and max(map(len, lines)) <= max(letters, 5)
    assert broken_name("nats per unit\nlog scale", 14) == "nats per unit\nlog scale"
    assert broken_name("b" * 25, 10) == "b" * 10 + "\n" + "b" * 10 + "\n" + "b" * 5
    assert broken_name(r"$\alpha_{" + "x" * 40 + "}$", 10).count("\n") == 0
    assert broken_name(r"the loss $L = \frac{a b}{c}$ of a net", 20).split("\n") == [
        "the loss", r"$L = \frac{a b}{c}$", "of a net"
    ]  # fmt: skip
    assert broken_name("cost_in_$_of_" + "a" * 20, 15).count("\n") > 1  # one sign alone is no formula


@pytest.mark.parametrize("kind", ["filled", "3d", "convexity", "rows"])
def test_long_titles_lie_beside_each_other_and_within_the_figure(kind):
    surface = Surface(GRID, {"train_loss": 1 + X**2, "max_eig": 3 + X, "min_eig": X})
    how = {"field": ["train_loss", "max_eig"]} if kind == "rows" else {"kind": kind}
    figure = draw([surface] * 3, titles=[LONG, "b" * 50, "c"], **how)
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert len(boxes) == 3
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= figure.bbox.y1


def test_labels_of_the_bars_of_a_sheet_do_not_overlap():
    other = Grid(np.linspace(-1, 1, 7), np.linspace(-0.8, 0.8, 7))
    fields = {"max_eig": 3 + X, "min_eig": X}
    about = {name: Field(name, "nats", name) for name in fields}
    surfaces = [
        Surface(GRID, fields, about=about),
        Surface(GRID, fields, about=about),
        Surface(other, fields, about=about),
    ]
    figure = draw(surfaces, field=["min_eig", "max_eig", "ratio"])
    figure.canvas.draw()
    bars = [axes for axes in figure.axes if not axes.get_xlabel() and axes.yaxis.get_label_position() == "right"]
    boxes = sorted((axes.yaxis.label.get_window_extent() for axes in bars), key=lambda box: -box.y0)
    assert len(boxes) == 3 and all(a.y0 > b.y1 for a, b in pairwise(boxes))


def test_a_bar_of_signs_is_pointed_where_values_lie_beyond_it():
    fields = {"max_eig": 1 + 0 * X, "min_eig": -3.0 + 0.1 * X}
    for surface, how, expected in (
        (Surface(GRID, fields), {"field": "ratio"}, "max"),
        (Surface(GRID, fields), {"kind": "convexity"}, "max"),
        (Surface(GRID, {"min_eig": X}), {"field": "min_eig"}, "neither"),
        (Surface(GRID, {"min_eig": X}), {"field": "min_eig", "vmax": 0.5}, "both"),
    ):
        (bar,) = [c.colorbar for axes in draw(surface, **how).axes for c in axes.collections if c.colorbar] or [
            axes._colorbar for axes in draw(surface, **how).axes if hasattr(axes, "_colorbar")
        ]
        assert bar.extend == expected


def test_characters_that_no_font_has_are_named_in_one_line(tmp_path, capsys):
    surface = Surface(GRID, {"train_loss": 1 + X**2})
    with pytest.warns(MissingCharacters, match="has the characters \U0010fff0\U0010fffd of this figure") as said:
        save(draw(surface, labels=("x", "y", "loss \U0010fff0\U0010fffd")), tmp_path / "a.png")
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(draw(surface, labels=("x", "ширина", "Verlust größer β λ")), tmp_path / "a.png")
    surface.save(tmp_path / "s.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([str(tmp_path / "s.h5"), "--titles", "loss \U0010fffd", "--output", str(tmp_path / "s.png")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("lossmap: no font of this machine has the characters \U0010fffd") and said.count("\n") == 1


def test_characters_are_taken_from_another_font_that_has_them(tmp_path):
    style = tmp_path / "s.mplstyle"
    style.write_text("font.family: cmr10\naxes.unicode_minus: False\naxes.formatter.use_mathtext: True\n")
    surface = Surface(GRID, {"train_loss": 1 + X**2})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as that of a missing glyph
        figure = draw(surface, labels=("ж", "y", "loss"), style=style)
        save(figure, tmp_path / "a.png")
    label = next(axes.xaxis.label for axes in figure.axes if axes.get_xlabel() == "ж")
    assert len(label.get_fontfamily()) > 1


def test_a_long_title_stands_above_the_words_of_a_sheet():
    figure = new_figure(4.0, 3.0)
    layout = figure.get_layout_engine()
    layout.set(rect=(0, 0, 1, 0.8))
    words = figure.text(0.01, 0.995, "words\nof the sheet", va="top")
    words.set_in_layout(False)
    axes = figure.subplots()
    axes.set_title("panel")
    entitle(figure, [LONG])
    figure.draw_without_rendering()
    title, below = figure._suptitle.get_window_extent(), words.get_window_extent()
    assert title.y1 <= figure.bbox.y1 and title.y0 >= below.y1 and below.y0 >= axes.title.get_window_extent().y1
    assert figure.get_figheight() > 3.0
