"""Pictures of spectra: from values, without torch, whatever is missing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lossmap.io.surface import Group
from lossmap.plotting.spectra import draw_comparison, draw_layers, draw_spectrum
from lossmap.plotting.style import save


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


def test_an_exact_density_says_so():
    assert "exact" in texts(draw_spectrum({"net": spectrum(probes=0)}))


def test_a_spectrum_without_density_is_drawn_by_its_ends():
    assert "no density was asked for" in texts(draw_spectrum({"net": spectrum(density=False)}))


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


def test_a_label_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no spectrum 'b'; there are a"):
        draw_spectrum({"a": spectrum()}, "b")
    with pytest.raises(ValueError, match="there are no layers 'b'; there are a"):
        draw_layers({"a": blocks()}, "b")
