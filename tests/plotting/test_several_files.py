"""Several files in one figure: one scale has one unit, and what differs between them is said of each."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

import lossmap
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import Group, Surface
from lossmap.plotting.figures import draw
from lossmap.plotting.spectra import draw_comparison

GRID = Grid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5))
X, Y = np.meshgrid(GRID.x, GRID.y)
BOWL = 0.1 + X**2 + Y**2


def plane(kind, unit="nats", **fields):
    groups = {f"directions/{axis}": Group({}, {"kind": kind, "norm": "none"}) for axis in "xy"}
    fields = fields or {"train_loss": BOWL}
    about = {name: Field(name, unit, name) for name in fields if not name.endswith("acc")}
    return Surface(GRID, fields, about=about, groups=groups)


def line(unit):
    x = np.linspace(-1, 1, 5)
    return Surface(Grid(x), {"train_loss": x**2 + 0.1}, about={"train_loss": Field("train_loss", unit, "loss")})


def eigen(unit):
    return plane("random", unit, train_loss=BOWL, max_eig=2 + X, min_eig=X)


@pytest.mark.parametrize(
    ("surfaces", "options"),
    [
        ([plane("random"), plane("random", "1")], {}),
        ([plane("random"), plane("random", "1")], {"kind": "3d"}),
        ([plane("random"), plane("random", "1")], {"field": ["train_loss", "train_loss"]}),
        ([eigen("nats"), eigen("1")], {}),
        ([eigen("nats"), eigen("1")], {"kind": "eigen"}),
        ([line("nats"), line("1")], {}),
        ([line("nats"), line("1")], {"kind": "median"}),
    ],
)
def test_files_in_different_units_have_no_common_scale(surfaces, options, tmp_path):
    with pytest.raises(ValueError, match=r"train_loss is in different units in these files \(nats; no unit\)|max_eig"):
        draw(surfaces, **options)
    assert draw([surfaces[1], surfaces[1]], **options).axes
    if not options:
        with pytest.raises(ValueError, match="is in different units"):
            lossmap.page(surfaces, tmp_path / "page.html")


def test_an_accuracy_is_of_the_same_samples_in_all_files():
    train, test = 100 - 10 * BOWL, 50 - 10 * BOWL
    both, one = plane("random", train_acc=train, test_acc=test), plane("random", test_acc=test)
    figure = draw([both, one], field="accuracy")
    shown = [axes.collections[0].get_array() for axes in figure.axes[:2]]
    assert np.array_equal(*(np.ravel(values) for values in shown))
    assert "test accuracy (percent)" in figure.axes[2].get_ylabel()
    with pytest.raises(ValueError, match="accuracies of different samples"):
        draw([plane("random", train_acc=train), one], field="accuracy")


@pytest.mark.parametrize("options", [{}, {"kind": "map"}, {"field": ["train_loss", "train_acc"]}])
def test_planes_along_other_directions_have_their_own_labels(options):
    fields = {"train_loss": BOWL, "train_acc": 90 - BOWL}
    surfaces = [plane(kind, **fields) for kind in ("random", "random", "hessian:max")]
    figure = draw(surfaces, **options)
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["y, random direction"] * 2 + ["y, hessian max"]
    alike = draw(surfaces[:2] * 2, **options)
    assert [bool(axes.get_ylabel()) for axes in alike.axes[:2]] == [True, False]


def test_panels_one_above_the_other_along_other_directions_have_their_own_labels():
    figure = draw([plane(kind) for kind in ("random", "random", "random", "hessian:max")])
    labels = [axes.get_xlabel() for axes in figure.axes[:4]]
    assert labels == ["", "x, random direction", "x, random direction", "x, hessian max"]


def test_how_sure_eigenvalues_are_is_said_of_each_file():
    sure = replace(eigen("nats"), attributes={"audit_points": 20, "audit_misses": 0})
    missed = replace(eigen("nats"), attributes={"audit_points": 20, "audit_misses": 7})
    figure = draw([sure, missed], field="max_eig", titles=["one", "two"])
    words = figure.get_supxlabel()
    assert "one: audit: 0 misses" in words
    assert "two: audit: 7 misses" in words


LONG = [f"resnet110_noshort_bs128_lr0.1_wd0.0005_epoch300_seed{i}_cifar100" for i in range(3)]


def boxes_overlap(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.mark.parametrize("kind", ["line", "eigen"])
def test_a_legend_of_long_names_stands_below_the_curves(kind):
    x = np.linspace(-1, 1, 5)
    surface = Surface(Grid(x), {"train_loss": x**2 + 0.1, "max_eig": 3 + x, "min_eig": x})
    figure = draw([surface] * 3, kind, titles=LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that cannot be applied
        figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert not any(boxes_overlap(box, axes.get_window_extent()) for axes in figure.axes)
    assert not any(axes.get_legend() for axes in figure.axes)
    assert draw([surface] * 2, kind, titles=["a", "b"]).axes[-2 if kind == "eigen" else 0].get_legend()


def spectrum_group(matrix):
    nodes = np.linspace(-1, 2, 7)
    arrays = {
        "top": np.array([2.0]), "top_error": np.array([0.1]), "node": nodes, "weight": np.full(7, 1 / 7),
        "tick": nodes, "cumulative": np.linspace(0, 1, 7), "cumulative_low": np.linspace(0, 1, 7),
        "cumulative_high": np.linspace(0, 1, 7),
    }  # fmt: skip
    return Group(arrays, {"matrix": matrix, "unit": "nats", "size": 7})


def test_spectra_of_long_names_have_room_and_those_of_other_matrices_no_others_label():
    figure = draw_comparison({name: spectrum_group("hessian") for name in LONG})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    names = [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    assert not any(boxes_overlap(a, b) for a, b in pairwise(names))
    assert not any(
        boxes_overlap(figure.legends[0].get_window_extent(), axes.get_window_extent()) for axes in figure.axes
    )
    assert figure.axes[0].get_xlabel().startswith("eigenvalue of the Hessian\n(nats per squared unit of theta)")
    mixed = draw_comparison({"a": spectrum_group("hessian"), "b": spectrum_group("fisher")})
    assert mixed.axes[0].get_xlabel().startswith("eigenvalue of the Hessian or empirical Fisher\n(units differ)")
    assert "(units differ)" in mixed.axes[1].get_xlabel()


def test_losses_over_all_of_floating_point_are_seen():
    x = np.linspace(-1, 1, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(Surface(Grid(x), {"train_loss": 10.0 ** (300 * x)}))
        figure.canvas.draw()
        low, high = figure.axes[0].get_ylim()
        assert low <= 1e-300 and high >= 1e300
        huge = Surface(GRID, {"train_loss": BOWL * 1e300})
        draw(huge, "3d").canvas.draw()


@pytest.mark.parametrize(("kind", "panel"), [("line", 0), ("eigen", 0), ("median", 0)])
def test_a_loss_of_zero_is_marked_at_the_edge_of_a_logarithmic_axis(kind, panel):
    x = np.linspace(-1, 1, 5)
    surface = Surface(Grid(x), {"train_loss": np.where(x == 0, 0, 10 ** (4 * abs(x))), "max_eig": 3 + x, "min_eig": x})
    figure = draw(
        [surface] * 2,
        kind,
        field="train_loss" if kind != "eigen" else None,
        titles=["a", "b"] if kind != "median" else None,
    )
    axes = figure.axes[panel]
    assert axes.get_yscale() == "log"
    marks = [line for line in axes.lines if line.get_marker() == "v"]
    assert len(marks) == 2
    figure.draw_without_rendering()
    for mark in marks:
        np.testing.assert_allclose(mark.get_transform().transform(mark.get_xydata()),
                                   [axes.transAxes.transform((0.5, 0))], atol=0.5)  # fmt: skip
    assert "0: below the log scale" in {text.get_text() for text in figure.legends[0].get_texts()}


@pytest.mark.parametrize("name", ["a", LONG[0]])
def test_files_of_one_name_have_an_entry_and_a_look_each(name):
    x = np.linspace(-1, 1, 5)
    figure = draw([Surface(Grid(x), {"train_loss": x**2 + 0.1})] * 14, titles=[name] * 14)
    assert len(figure.legends[0].get_texts()) == 14
    looks = {(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].lines if len(line.get_xdata()) == 5}
    assert len(looks) == 14
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(("kind", "width"), [("line", 1.4), ("eigen", 1.4), ("3d", 1.9)])
def test_a_width_without_room_is_refused_and_from_there_on_ticks_are_apart(kind, width):
    x = np.linspace(-1, 1, 5)
    grid = GRID if kind == "3d" else Grid(x)
    surface = Surface(grid, dict.fromkeys(("train_loss", "max_eig", "min_eig"), BOWL if kind == "3d" else x**2 + 1))
    with pytest.raises(ValueError, match="--width must be at least"):
        draw(surface, kind, width=width)
    axes = draw(surface, kind, width=width + 0.1).axes[-1 if kind == "eigen" else 0]
    axes.figure.draw_without_rendering()
    if kind != "3d":
        ticks = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(ticks) > 1 and not any(boxes_overlap(a, b) for a, b in pairwise(ticks))


@pytest.mark.parametrize(
    ("camera", "bare"),
    [("0,-90", "y"), ("5,170", "x"), ("75,-58", "z"), ("32,-58", "")],
)
def test_an_axis_of_a_relief_that_is_seen_end_on_has_no_numbers_and_no_label(camera, bare):
    """They lay in a heap over the label of the heights."""
    figure = draw(Surface(GRID, {"train_loss": 1 + BOWL}), "3d", camera=camera)
    figure.canvas.draw()
    axes, bar = figure.axes
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis), ("z", axes.zaxis)):
        numbers = [tick.label1 for tick in axis.majorTicks[: axis.get_majorticklocs().size]]
        assert bool(numbers) == bool(axis.get_label_text()) == (name != bare)
        boxes = [number.get_window_extent() for number in numbers]
        assert not any(boxes_overlap(a, b) for a, b in pairwise(boxes))
    assert ("loss" in bar.get_ylabel()) == (bare == "z")  # which is said once


def test_a_long_name_of_a_quantity_is_not_at_the_heights_of_reliefs_beside_each_other():
    """It reached over the next relief and out of the figure; the bar says what is shown."""
    long, short = "a_quantity_with_a_name_of_many_words_that_is_long", "own"
    about = {name: Field(name, "1", "what is shown") for name in (long, short)}
    surface = Surface(GRID, {long: 1 + BOWL, short: 1 + BOWL}, about=about)
    for name, log, at_heights in ((long, False, ""), (long, True, ""), (short, True, "own, log scale")):
        *reliefs, bar = draw([surface] * 2, "3d", field=name, log=log).axes
        assert [relief.get_zlabel() for relief in reliefs] == [at_heights] * 2
        assert "what is shown" in bar.get_ylabel()


@pytest.mark.parametrize("size", [1.8e-20, 1e5])
def test_wide_heights_of_a_relief_lie_over_nothing(size):
    figure = draw(Surface(GRID, {"train_loss": size * (1 + BOWL / BOWL.max())}), "3d")
    figure.canvas.draw()
    relief, bar = figure.axes
    ticks = [tick.label1.get_window_extent() for tick in relief.zaxis.majorTicks]  # as they were drawn
    edge = relief.zaxis.line.get_window_extent().x0
    assert ticks and not relief.get_zlabel() and bar.get_ylabel()
    assert all(edge <= tick.x0 and tick.x1 < bar.get_window_extent().x0 for tick in ticks)


@pytest.mark.parametrize("titles", [LONG, LONG[:1]])
def test_long_names_of_trainings_lie_over_no_curve(titles):
    step = np.arange(6.0)
    names = ("max_eig", "min_eig", "preconditioned_max_eig", "stability_threshold", "stability_ratio", "trace", "loss")
    errors = dict.fromkeys(("max_eig_error", "preconditioned_max_eig_error"), 0.1 + 0 * step)
    training = Surface(Grid(step), {**dict.fromkeys((*names, "gradient_norm"), 1 + step), **errors})
    figure = draw([training] * len(titles), titles=titles)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    frames = [axes.get_window_extent() for axes in figure.axes]
    named = [text for text in figure.findobj(Text) if "noshort" in text.get_text() and text.get_window_extent().width]
    assert len(named) == len(titles)
    assert not any(boxes_overlap(text.get_window_extent(), frame) for text in named for frame in frames)
    assert min(frame.height for frame in frames) > 0.6 * figure.dpi
    with pytest.raises(ValueError, match="--width must be at least 4 inches"):
        draw(training, width=3.5)
    if len(titles) > 1:  # no legend is left in the panel of both ends
        ends = figure.axes[1]
        assert "smallest thin" in ends.get_ylabel() and ends.get_legend() is None
        widths = [curve.get_linewidth() for curve in ends.lines if len(curve.get_xdata()) == len(step)]
        assert all(low < high for high, low in zip(widths[::2], widths[1::2], strict=True))
