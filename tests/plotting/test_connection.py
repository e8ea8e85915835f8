"""The picture of the line between two networks: what stands where, at any width, with holes and over any span."""

import warnings

import matplotlib.text
import numpy as np
import pytest

import lossmap
from lossmap.io.surface import FAILED, Field, Grid, Group, Surface

NAMES = ("a_very_long_model_name_resnet110_noshort_seed_0001", "another_extremely_long_name_checkpoint_300.pt")
T = np.linspace(0, 1, 11)
BLANK = "\N{NO-BREAK SPACE}"
RISE = 4 * T * (1 - T)


def surface(losses, names=("a", "b"), splits=("train",), beside=False, **about):
    arrays, attributes = {"t": T}, {"unit": "nats", "first": names[0], "other": names[1]}
    for split in splits:
        arrays |= {f"{split}_loss": losses, f"{split}_acc": 99 - RISE}
        attributes |= {f"{split}_barrier": 1.0, f"{split}_error": 0.0123, f"{split}_at": 0.542, **about}
        if beside:
            arrays |= {f"unaligned_{split}_loss": losses + RISE, f"curve_{split}_loss": losses - 0.5 * RISE}
            attributes |= {f"unaligned_{split}_barrier": 2.0, f"unaligned_{split}_error": 0.1}
            attributes |= {f"curve_{split}_barrier": 0.0}
    return Surface(Grid.line(0, 1, 11), {}, groups={"connection": Group(arrays, attributes)})


def drawn(what, **options):
    """The figure, laid out; no warning may come up."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = lossmap.draw(what, **options)
        figure.draw_without_rendering()
        figure.draw_without_rendering()  # constrained layout settles with the second
    return figure


def words(figure):
    """The texts that are seen, with the boxes they take; no ticks beyond the ends of their axes."""
    found = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip() and text.get_visible()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond = {tick.label1 for tick in axis.majorTicks if not low <= tick.get_loc() <= high}
            beyond |= {tick.label2 for tick in axis.majorTicks if not low <= tick.get_loc() <= high}
            found = [text for text in found if text not in beyond]
    return [(text.get_text(), text.get_window_extent()) for text in found]


@pytest.mark.parametrize("style", [None, "neurips"])
@pytest.mark.parametrize("width", [2.0, 3.0, 6.75])
def test_no_title_or_label_is_cut_or_lies_over_another(width, style):
    figure = drawn(surface(0.1 + RISE, NAMES, ("train", "test"), beside=True), width=width, style=style)
    frame, every = figure.bbox, words(figure)
    own = [(text, box) for text, box in every if "barrier" in text or "model" in text]
    assert len(own) in (3, 4)  # a title each, and the label of the lowest panels
    for text, box in own:
        assert box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1, text
        assert not any(other is not box and box.overlaps(other) for _, other in every), text
    assert figure.get_figwidth() == width
    heights = [axes.get_window_extent().height / figure.dpi for axes in figure.axes]
    assert min(heights) > 1.2  # the lines above and below take none of the panel


def test_a_number_is_never_broken_at_its_point():
    title = drawn(surface(0.1 + RISE), width=1.5).axes[0].get_title()
    assert "\n" in title
    assert {f"1{BLANK}±{BLANK}0.012", f"t{BLANK}={BLANK}0.542"} <= set(title.replace("\n", " ").split(" "))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_end_without_a_number_is_said_and_marked(bad):
    losses = 0.1 + RISE
    losses[-1] = bad
    figure = drawn(surface(losses))
    axes = figure.axes[0]
    assert axes.get_title().replace("\n", " ").startswith("no barrier can be stated: the loss at an end is not")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["\N{MULTIPLICATION SIGN} NaN" if np.isnan(bad) else "△ infinite"]
    assert not any(line.get_linestyle() == "--" for line in axes.lines)  # no straight line to nowhere


def test_failed_points_are_told_from_numbers_that_are_none():
    losses = 0.1 + RISE
    losses[3] = losses[5] = np.nan
    status = np.ones(11, dtype=np.uint8)
    status[3] = FAILED
    plain = surface(losses)
    about = {"train_loss": Field("train_loss", "nats", "mean training loss")}
    measured = Surface(plain.grid, {"train_loss": losses}, about,
                       measures={"loss": ("train_loss",)}, status={"loss": status}, groups=plain.groups)  # fmt: skip
    labels = {text.get_text() for text in drawn(measured, kind="connection").legends[0].get_texts()}
    assert labels == {"failed", "\N{MULTIPLICATION SIGN} NaN"}


def test_a_wide_span_has_a_logarithmic_axis_with_the_straight_line_bent():
    figure = drawn(surface(10 ** (-6 + 9 * RISE) * np.linspace(1, 50, 11)))
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and "log scale" in axes.get_ylabel()
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    t, values = line.get_data()
    np.testing.assert_allclose(values, 1e-6 * ((1 - t) + 50 * t), rtol=1e-9)
    assert drawn(surface(0.1 + RISE)).axes[0].get_yscale() == "linear"


def test_both_splits_have_one_scale():
    both = surface(1 + RISE, splits=("train", "test"))
    both.groups["connection"].arrays["train_loss"] = 10 ** (-6 + 7 * RISE)
    assert [axes.get_yscale() for axes in drawn(both).axes if "loss" in axes.get_ylabel()] == ["log", "log"]
    both.groups["connection"].arrays["test_loss"] = -1 - RISE  # has no place on such an axis
    assert [axes.get_yscale() for axes in drawn(both, log=True).axes if "loss" in axes.get_ylabel()] == [
        "log",
        "linear",
    ]


def test_the_scale_can_be_set():
    assert drawn(surface(10 ** (-6 + 9 * RISE)), log=False).axes[0].get_yscale() == "linear"
    assert drawn(surface(0.1 + RISE), log=True).axes[0].get_yscale() == "log"


def test_an_infinite_end_has_no_barrier():
    from lossmap.landscape.connection import barrier_of

    losses = 0.1 + RISE
    losses[0] = np.inf
    with pytest.raises(ValueError, match="both ends"):
        barrier_of(T, losses, 0 * T, 0 * T)


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_a_model_below_a_logarithmic_axis_is_marked_at_its_edge(first):
    losses = np.where(RISE > 0, 10 ** (-3 + 4 * RISE), first)
    figure = drawn(surface(losses), log=None if first == 0 else True)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    edge = axes.get_window_extent().y0
    for mark in ("X", "v"):
        places = [place for line in axes.lines if line.get_marker() == mark
                  for place in line.get_transform().transform(line.get_xydata())]  # fmt: skip
        np.testing.assert_allclose(sorted(places, key=tuple), [(x, edge) for x in axes.bbox.intervalx], atol=0.5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{'0' if first == 0 else '0 or less'}: below the log scale"
    ]
    assert not any(box.y0 < 0 or box.x1 > figure.bbox.x1 for _, box in words(figure))


def test_a_logarithmic_axis_of_no_positive_loss_is_refused():
    with pytest.raises(ValueError, match="--log needs positive values"):
        lossmap.draw(surface(-3 + RISE), log=True)


def test_losses_up_to_the_end_of_floating_point_are_seen():
    assert drawn(surface(1 + 1e306 * RISE)).axes[0].get_ylim()[1] > 1e306


def test_several_lines_in_one_figure_name_both_ends_and_say_what_is_left_out():
    def measured(names, beside):
        plain = surface(0.1 + RISE, names, beside=beside)
        return Surface(plain.grid, {"train_loss": 0.1 + RISE}, groups=plain.groups)

    same = drawn([measured(("a", "b"), True), measured(("a", "b"), False)])
    assert same.axes[0].get_xlabel() == "t, from a (0) to b (1)"
    assert (
        same.get_supxlabel().replace("\n", " ")
        == "not shown of several files: the loss before alignment and on the curve"
    )
    other = drawn([measured(("a", "b"), False), measured(("a", "c"), False)])
    assert other.axes[0].get_xlabel().replace("\n", " ") == "t, from each line's first network (0) to its other (1)"
    assert not other.get_supxlabel()
    for width in (1.5, None):
        long = drawn([measured(NAMES, False)] * 2, width=width)
        assert all(box.x0 >= 0 and box.x1 <= long.bbox.x1 for text, box in words(long) if text.startswith("t, "))
        assert long.axes[0].get_window_extent().height > 1.4 * long.dpi
