"""Pictures of spectra: from values, without torch, whatever is missing."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.integrate import trapezoid

from lossmap.geometry.grid import Grid
from lossmap.io.surface import Group, Surface
from lossmap.plotting.asinh_axis import asinh_ticks
from lossmap.plotting.figures import draw
from lossmap.plotting.layer_comparison import draw_layers_compared
from lossmap.plotting.spectra import (
    STEM,
    draw_comparison,
    draw_layers,
    draw_spectrum,
    draw_train_against_test,
    multiplicities,
    smoothed_density,
)
from lossmap.plotting.style import new_figure, save


def spectrum(label="net", shift=0.0, probes=2, density=True):
    node = np.sort(np.r_[np.linspace(-0.01, 0.02, 30), [0.5, 1.0, 3.0]]) + shift
    arrays = {"top": np.array([3.0, 1.0]) + shift, "top_error": np.array([1e-3, 1e-3])}
    arrays |= {"bottom": np.array([-0.01]) + shift, "bottom_error": np.array([1e-3])}
    if density:
        tick = np.linspace(-0.02, 3.1, 50)
        value = np.searchsorted(node, tick) / len(node)
        arrays |= {"node": node, "weight": np.full(len(node), 1 / len(node)), "tick": tick, "cumulative": value}
        arrays |= {"cumulative_low": np.clip(value - 0.1, 0, 1), "cumulative_high": np.clip(value + 0.1, 0, 1)}
    about = {"label": label, "size": 1000, "unit": "nats", "matrix": "hessian"}
    return Group(arrays, about | ({"density_confidence": 0.95, "density_probes": probes} if density else {}))


def blocks(kinds=("indefinite", "zero", "positive semidefinite")):
    arrays = {
        "block": np.array(["fc1", "fc2/x", "fc3"], dtype=object),
        "size": np.array([60, 4, 100]),
        "largest": np.array([2.0, 0.0, 0.5]),
        "smallest": np.array([-0.1, 0.0, 0.0]),
        "floor": np.array([1e-6, 1e-6, 1e-6]),
        "positive": np.array([[30, 30], [0, 0], [20, 60]]),
        "negative": np.array([[30, 30], [0, 0], [0, 10]]),
        "zero": np.array([[0, 0], [4, 4], [30, 80]]),
        "kind": np.array(kinds, dtype=object),
        "eigenvalues:fc1": np.linspace(-0.1, 2.0, 60),
        "eigenvalues:fc2_x": np.zeros(4),
        "eigenvalues:fc3": np.array([0.0, 0.5]),
        "nodes:fc3": np.array([0.0, 0.1, 0.2, 0.5]),
        "weights:fc3": np.array([0.7, 0.1, 0.1, 0.1]),
    }
    return Group(arrays, {"label": "net"})


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def unnamed_scales(figure):
    """Labelled axes that are not linear and do not say so."""
    axes = [axis for a in figure.axes for axis in (a.xaxis, a.yaxis) if axis.label.get_text()]
    return [a.label.get_text() for a in axes if a.get_scale() != "linear" and "scale" not in a.label.get_text()]


def test_layers_name_the_unit_of_their_eigenvalues():
    import torch

    import lossmap

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 2))
    read = lossmap.layer_spectra(problem, "module", probes=0, whole=False)
    assert "nats per squared unit of" in lossmap.draw(read).axes[0].get_xlabel()
    arrays, attributes = read.stored()
    without = Group(arrays, {name: value for name, value in attributes.items() if name != "unit"})
    label = draw_layers_compared({"a": Group(arrays, attributes), "b": without}).axes[0].get_xlabel()
    assert "units differ" in label
    assert "nats" not in draw_layers({"a": without}).axes[0].get_xlabel()  # of a file of an earlier version


def test_every_scale_that_is_not_linear_is_named():
    path = Group({"strength": np.array([0.0, 1e-3, 1.0]), "largest": np.ones(3), "smallest": np.ones(3)},
                 {"unit": "nats"})  # fmt: skip
    sheets = [
        draw_spectrum({"net": spectrum()}),
        draw_spectrum({"net": spectrum(density=False)}),
        draw_spectrum({"net": spectrum(), "l2_path": path}, "l2_path"),
        draw_comparison({"a": spectrum(), "b": spectrum()}),
        draw_train_against_test(spectrum(), spectrum(shift=0.5)),
    ]
    assert [unnamed_scales(sheet) for sheet in sheets] == [[]] * 5
    assert all("asinh scale" in texts(sheet) or "log scale" in texts(sheet) for sheet in sheets)
    assert "nats per squared unit of theta" in sheets[2].axes[0].get_ylabel().replace("\n", " ")


def test_a_spectrum_shows_density_band_and_ends(tmp_path):
    figure = draw_spectrum({"net": spectrum()})
    assert len(figure.axes) == 2
    said = texts(figure)
    assert "net: 1,000 parameters" in said and "band: 95 %, pointwise" in said and "eigenvalue of the Hessian" in said
    assert save(figure, tmp_path / "s.pdf").stat().st_size > 1000


def test_a_band_that_holds_at_all_t_together_says_so():
    group = spectrum()
    now = Group(group.arrays, {**group.attributes, "density_band": "simultaneous"})
    assert "band: 95 %, simultaneous" in texts(draw_spectrum({"net": now}))


def estimated(shares=(0.8, 0.2), at=(0.0, 1.0)):
    """A density of which F is known to a tenth at all t together, with limits of the spectrum at its two values."""
    tick = np.linspace(at[0], at[1], 41)
    value = np.where(tick < at[1], shares[0], 1.0)
    arrays = {"node": np.array(at), "weight": np.array(shares), "tick": tick, "cumulative": value}
    arrays |= {"cumulative_low": value - 0.1 * (tick < at[1]), "cumulative_high": np.minimum(value + 0.1, 1.0)}
    about = {"size": 10, "density_probes": 1, "density_confidence": 0.95, "density_band": "simultaneous"}
    return Group(arrays, about | {"lower_limit": at[0], "upper_limit": at[1], "top_confidence": 0.99})


def test_the_density_ends_where_no_eigenvalue_lies_beyond_and_loses_no_share():
    for group in (estimated(), estimated(at=(-2.0, 3.0)), spectrum()):
        u, curve, _, _ = smoothed_density(group, 1e-3)
        assert trapezoid(curve, u) == pytest.approx(1.0, abs=2e-3)
    figure = draw_spectrum({"net": estimated()})
    upper = figure.axes[0]
    filled = [c.get_paths()[0].vertices[:, 0] for c in upper.collections]
    for drawn in (upper.lines[0].get_xdata(), *filled):
        assert len(drawn) > 2 and np.min(drawn) >= -1e-12 and np.max(drawn) <= 1 + 1e-9
    limits = [line.get_xdata()[0] for line in upper.lines if line.get_linestyle() == ":"]
    assert sorted(limits) == [0.0, 1.0] and "dotted: none beyond, 99 %" in texts(figure)


def test_the_density_has_the_band_that_its_cumulative_has():
    group = estimated()
    _, curve, low, high = smoothed_density(group, 1e-3)
    assert (low <= curve + 1e-9).all() and (curve <= high + 1e-9).all() and (high - low > 0).any()
    # every distribution between the limits of the cumulative must lie within: here those that move a tenth
    for shares, at in (((0.75, 0.25), (0.0, 1.0)), ((0.85, 0.15), (0.0, 1.0)), ((0.8, 0.2), (0.0, 1.0))):
        _, other, _, _ = smoothed_density(estimated(shares, at), 1e-3)
        assert (low <= other + 1e-6).all() and (other <= high + 1e-6).all()
    _, _, no_band, _ = smoothed_density(spectrum(), 1e-3)  # that of version 0.1 holds at each t alone
    assert np.isnan(no_band).all()


def test_an_exact_density_says_so():
    assert "exact" in texts(draw_spectrum({"net": spectrum(probes=0)}))


def test_a_spectrum_without_density_is_drawn_by_its_ends_in_one_panel():
    figure = draw_spectrum({"net": spectrum(density=False)})
    assert "no density was computed" in texts(figure).replace("\n", " ") and len(figure.axes) == 1
    drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in figure.axes[0].containers}
    assert drawn == {"largest": [3.0, 1.0], "smallest": [-0.01]}


def test_a_spectrum_of_nothing_is_refused_and_says_why():
    with pytest.raises(ValueError, match="holds neither eigenvalues nor a density"):
        draw_spectrum({"net": Group({}, {"size": 3})})
    with pytest.raises(ValueError, match="nothing to compare"):
        draw_comparison({"a": Group({}), "b": Group({})})


def test_an_l2_path_is_drawn_against_its_strength():
    strength = np.array([0.0, 1e-3, 1.0])
    path = Group({"strength": strength, "largest": 3 + strength, "smallest": strength - 0.1,
                  "retrained_largest": 2 + strength, "retrained_smallest": strength})  # fmt: skip
    figure = draw_spectrum({"net": spectrum(), "l2_path": path}, "l2_path")
    upper, lower = figure.axes
    assert [line.get_ydata().tolist() for line in upper.lines] == [(3 + strength).tolist(), (2 + strength).tolist()]
    assert lower.lines[0].get_ydata().tolist() == (strength - 0.1).tolist() and "strength" in lower.get_xlabel()
    compared = draw_comparison({"net": spectrum(), "other": spectrum(), "l2_path": path})
    assert "l2_path" not in texts(compared)


def test_a_comparison_has_no_empty_panel():
    alone = draw_comparison({"a": spectrum(density=False), "b": spectrum(density=False)})
    assert len(alone.axes) == 1 and "extreme eigenvalues" in texts(alone)
    mixed = draw_comparison({"a": spectrum(), "b": spectrum(density=False)})
    assert len(mixed.axes) == 2 and "no density of b" in texts(mixed)
    ends = ("top", "top_error", "bottom", "bottom_error")
    density = Group({k: v for k, v in spectrum().arrays.items() if k not in ends}, spectrum().attributes)
    assert len(draw_comparison({"a": density, "b": density}).axes) == 1


def test_test_samples_are_drawn_against_training_samples():
    figure = draw_train_against_test(spectrum(), spectrum(shift=0.5))
    left, right = figure.axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["training samples", "test samples"]
    pairs = {c.get_label(): np.array(c.lines[0].get_data()).T.tolist() for c in right.containers}
    assert pairs == {"largest": [[3.0, 3.5], [1.0, 1.5]], "smallest": [[-0.01, 0.49]]}
    assert right.get_xlim() == right.get_ylim()
    assert len(draw_train_against_test(spectrum(density=False), spectrum(density=False)).axes) == 1


def test_a_spectrum_of_zeros_is_drawn():
    group = spectrum()
    nothing = {k: np.zeros_like(v) for k, v in group.arrays.items() if k in ("top", "bottom", "node")}
    draw_spectrum({"net": Group({**group.arrays, **nothing}, group.attributes)})


def test_several_spectra_stand_on_one_axis_with_their_values(tmp_path):
    figure = draw_comparison({"with": spectrum(), "without": spectrum(shift=2.0)})
    said = texts(figure)
    assert "with" in said and "without" in said and "5" in said and "extreme eigenvalues" in said
    save(figure, tmp_path / "c.png", dpi=60)


def test_layers_share_an_axis_and_zero_blocks_are_named(tmp_path):
    figure = draw_layers({"net": blocks()})
    said = texts(figure)
    assert "fc1 (60)" in said and "zero" in said and "negative" in said
    save(figure, tmp_path / "l.png", dpi=60)


def test_counts_that_are_not_known_are_not_drawn_as_known():
    group = blocks()
    n = len(group["block"])
    size = np.asarray(group["size"], dtype=float)
    low, high = np.zeros(n), size / 2
    counts = {
        "negative": np.stack([low, high], 1),
        "zero": np.stack([low, low], 1),
        "positive": np.stack([high, size], 1),
    }
    figure = draw_layers({"net": Group({**group.arrays, **counts}, group.attributes)})
    bars = {c.get_label(): c for axes in figure.axes for c in axes.containers}
    assert [bar.get_width() for bar in bars["negative"]] == [0.0] * n
    assert np.allclose([bar.get_width() for bar in bars["positive"]], 50.0)
    hatched = [bars["undecided"][i].get_width() + bars["_undecided"][i].get_width() for i in range(n)]
    assert np.allclose(hatched, 50.0) and all(bar.get_hatch() for bar in bars["undecided"])


def test_layers_of_several_files_stand_side_by_side_by_name():
    own, other = blocks(), blocks()
    other.arrays["block"] = np.array(["fc3", "fc1", "head"], dtype=object)  # in another order, one under another name
    figure = draw_layers_compared({"a": own, "b": other})
    left, right = figure.axes
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names == ["fc1", "fc2/x", "fc3", "head"]
    ends = {line.get_label(): line.get_xydata() for line in left.lines if len(line.get_xdata()) == 3}
    for label, group in (("a", own), ("b", other)):
        rows = {names[round(y)]: x for x, y in ends[label]}
        assert rows == dict(zip(map(str, group["block"]), group["largest"].tolist(), strict=True))
    certain = {tuple(np.round(line.get_xdata(), 6)) for line in right.lines}
    assert (50.0, 0.0, 0.0) in certain and (
        50.0,
        0.0,
        10.0,
    ) in certain  # at least, and at most: 30 of 60, 0 to 10 of 100
    said = texts(figure)
    assert "not in a: head" in said and "not in b: fc2/x" in said


def test_layers_of_several_files_are_drawn_by_draw():
    files = [Surface(Grid(np.zeros(1)), {}, groups={"layers/net": blocks()}) for _ in range(2)]
    assert len(draw(files, titles=["one", "two"]).axes) == 2
    with pytest.raises(ValueError, match="no layers 'x' here; there are: net"):
        draw(files, "layers", "x")


def test_stems_stand_at_the_ends_with_the_number_of_those_that_are_equal_within_their_errors():
    found = multiplicities(np.array([3.0, 1.0, 1.001, 0.5]), np.full(4, 1e-3))
    assert found == [(0.5, 1), (pytest.approx(1.0005), 2), (3.0, 1)]
    group = spectrum()
    group.arrays["top"] = np.array([3.0, 1.001, 1.0])
    group.arrays["top_error"] = np.full(3, 1e-3)
    upper = draw_spectrum({"net": group}).axes[0]
    stems = sorted(line.get_xdata()[0] for line in upper.lines if list(line.get_ydata()) == [0.0, STEM])
    assert stems == pytest.approx([-0.01, 1.0005, 3.0])
    assert [t.get_text() for t in upper.texts] == ["\N{MULTIPLICATION SIGN}2"]


def test_a_label_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no spectrum 'b'; there are a"):
        draw_spectrum({"a": spectrum()}, "b")
    with pytest.raises(ValueError, match="there are no layers 'b'; there are a"):
        draw_layers({"a": blocks()}, "b")


@pytest.mark.parametrize("reach", [1.0, 0.84, 3e-5])
def test_labels_of_an_axis_of_eigenvalues_do_not_touch(reach):
    for values in ([-0.3 * reach, reach], [-reach, reach], [0.0, reach]):
        for width, columns in ((3.3, 1), (6.75, 2), (6.75, 3)):
            figure = new_figure(width, 2.0)
            axes = figure.subplots(1, columns, squeeze=False)[0, 0]
            axes.set_xscale("asinh", linear_width=1e-3 * reach)
            axes.set_ylabel("eigenvalues\nin lines")
            asinh_ticks(axes, 1e-3 * reach, values)
            figure.canvas.draw()
            boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert len(boxes) > 1 and all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_files_of_equal_titles_are_all_compared():
    groups = {"spectrum/train": spectrum()}
    surface = Surface(Grid(np.zeros(1)), {}, groups=groups)
    figure = draw([surface, surface], titles=["a", "a"])
    assert [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()] == [
        "a", "a (2)",
    ]  # fmt: skip
