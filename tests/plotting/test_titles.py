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
from lossmap.io.surface import Group, Surface
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


def test_a_name_without_room_keeps_both_its_ends_and_what_stands_before_it():
    for letters, most in ((20, 2), (13, 2), (9, 4), (30, 1)):
        lines = broken_name(LONG, letters, most).split("\n")
        start, _, end = "".join(lines).partition("…")
        assert len(lines) <= most and max(map(len, lines)) <= letters
        assert LONG.startswith(start) and LONG.endswith(end) and min(len(start), len(end)) >= 5
        assert abs(len(start) - len(end)) <= 1
    assert broken_name(LONG, 20, 9) == broken_name(LONG, 20)
    assert broken_name(f"y, 0: model, 1: {LONG}", 20, 2) == "y, 0: model, 1: a_\nvery_long…5_lr0.1.h5"
    assert broken_name(f"t, from {LONG} (0)", 20, 2).split("\n")[0].startswith("t, from a_very")
    formula = r"$\alpha$ " * 9
    assert "…" not in broken_name(formula, 5, 1)


def _ends_with_long_names():
    groups = {f"directions/{a}": Group({}, {"kind": f"to:runs/a/{a}{LONG}", "norm": "none"}) for a in "xy"}
    return Surface(GRID, {"train_loss": 1 + X**2, "max_eig": 3 + X, "min_eig": X}, groups=groups)


@pytest.mark.parametrize("width", [2.0, 2.7])
@pytest.mark.parametrize("kind", ["filled", "convexity", "3d"])
def test_long_names_of_models_leave_room_at_narrow_widths(kind, width):
    """At 2 inches the layout gave up; in 3-D a name ran over the bar and beyond the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(_ends_with_long_names(), kind, width=width)
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    axes = figure.axes[0]
    panel = axes.get_window_extent()
    assert panel.width > 0.19 * figure.bbox.width
    labels = [axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()]
    assert not labels[0].overlaps(labels[1].padded(-0.05 * figure.dpi))
    frame = figure.bbox.padded(2)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in labels)
    bars = [label.get_window_extent() for label in figure.axes[1].get_yticklabels() if label.get_text()]
    assert not any(one.overlaps(other) for one, other in pairwise(bars))
    names = [text for text in axes.texts if "…" in text.get_text()]
    assert len(names) == 2
    for name in names:
        assert max(map(len, name.get_text().split("\n"))) <= 20
    if kind == "3d":  # a name at the right reaches to the left, and the other way round
        assert {name.get_ha() for name in names} == {"right"}
        turned = draw(_ends_with_long_names(), kind, width=width, camera=(32, 122)).axes[0]
        assert {text.get_ha() for text in turned.texts if "…" in text.get_text()} == {"left"}


def test_a_sheet_without_room_is_refused_and_the_labels_of_one_do_not_overlap():
    surfaces = [_ends_with_long_names(), _ends_with_long_names()]
    with pytest.raises(ValueError, match=r"--width must be at least 3.55 inches for 2 beside each other; got 2.7"):
        draw(surfaces, field=["train_loss", "min_eig"], width=2.7)
    figure = draw(surfaces, field=["train_loss", "min_eig"], width=3.6, titles=[LONG, LONG[::-1]])
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    for labels in ([a.xaxis.label for a in figure.axes[2:4]], [a.yaxis.label for a in figure.axes[4:6]]):
        one, other = (label.get_window_extent() for label in labels)
        assert all(label.get_text() for label in labels) and not one.overlaps(other.padded(-3))


def test_titles_beside_the_rows_of_eigenvalue_maps_stay_beside_them_and_differ():
    titles = ["n" * 40 + "1" + "n" * 40, "n" * 40 + "2" + "n" * 40]
    figure = draw([_ends_with_long_names()] * 2, "eigen", width=5.0, titles=titles)
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    one, other = (figure.axes[i].yaxis.label for i in (0, 4))  # of both rows
    assert one.get_text() != other.get_text()
    assert not one.get_window_extent().overlaps(other.get_window_extent())


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


def test_the_long_label_of_a_spectrum_and_of_layers_is_neither_cut_nor_takes_the_room():
    ends = {"top": np.array([3.0, 1.0]), "top_error": np.full(2, 1e-2)}
    layers = {"block": np.array(["a", "b"], dtype=object), "size": np.array([4, 4]), "floor": np.full(2, 1e-6),
              "largest": np.array([2.0, 1.0]), "smallest": np.zeros(2), "kind": np.array(["zero"] * 2, dtype=object),
              **{name: np.array([[1, 1], [1, 1]]) for name in ("positive", "negative", "zero")},
              "eigenvalues:a": np.array([0.0, 2.0]), "eigenvalues:b": np.array([0.0, 1.0])}  # fmt: skip
    groups = {f"spectrum/{LONG}": Group(ends, {"label": LONG, "size": 33, "unit": "nats", "matrix": "hessian"}),
              f"layers/{LONG}": Group(layers, {"label": LONG, "unit": "nats"})}  # fmt: skip
    holds = Surface(Grid(np.zeros(1)), {}, groups=groups)
    for kind, width in (("spectrum", 2.7), ("layers", 5.0)):
        figure = draw(holds, kind, width=width)
        figure.draw_without_rendering()
        figure.draw_without_rendering()
        axes = figure.axes[0]
        (title,) = [text for text in (axes._left_title, axes.title) if text.get_text()]
        assert title.get_text().replace("\n", "").replace(" ", "").count(LONG) == 1
        assert title.get_window_extent().x1 <= figure.bbox.x1
        assert axes.get_window_extent().width > 0.4 * figure.bbox.width


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
