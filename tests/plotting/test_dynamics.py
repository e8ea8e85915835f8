"""Pictures of runs show what the file holds, and are drawn without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from lossmap.dynamics.eigenspaces import compare_eigenspaces
from lossmap.dynamics.run import results
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import summarize
from lossmap.plotting.dynamics import CLASSIC, PANELS, classic, draw_evolution, draw_panel


def group(s=8, r=3, negative=False):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((80, 2 * r)))[0]
    vectors = [np.cos(a) * basis[:, :r] + np.sin(a) * basis[:, r:] for a in np.linspace(0, 1.2, s)]
    values = [np.arange(r, 0, -1.0) + 0.1 * t for t in range(s)]
    run = compare_eigenspaces(Snapshots.of([10 * t for t in range(s)], values, vectors))
    fields = {"loss": np.linspace(1, 0.1, s), "smallest_eigenvalue": np.full(s, -0.2)}
    if negative:
        fields |= {"negative_share": np.full(s, 0.3), "negative_share_low": np.full(s, 0.2),
                   "negative_share_high": np.full(s, 0.4),
                   "quantiles": np.tile(np.linspace(-1, 3, 7), (s, 1))}  # fmt: skip
    return results(run, summarize(run), fields)


@pytest.mark.parametrize("panel", PANELS)
def test_each_picture_is_drawn_with_its_axes_named(panel):
    figure = draw_panel(group(negative=True), panel)
    axes = figure.axes[0]
    assert axes.get_xlabel() and axes.get_ylabel()
    assert all("scale" in a.label.get_text() for a in (axes.xaxis, axes.yaxis) if a.get_scale() != "linear")
    figure.canvas.draw()


def test_eigenvalues_over_decades_name_their_log_axis():
    found = group()
    found.arrays["track_value"] = found["track_value"] * np.array([[1.0], [1e-2], [1e-4]])
    found.arrays["eigenvalue"] = found["eigenvalue"] * np.array([1.0, 1e-2, 1e-4])
    assert draw_panel(found, "tracks").axes[0].get_ylabel().endswith(",\nlog scale")


def test_bars_are_the_explained_variance_and_the_line_is_chance():
    found = group()
    axes = draw_panel(found, "pca_variance").axes[0]
    np.testing.assert_allclose([p.get_height() for p in axes.patches], 100 * found["explained"][:20])
    assert "by chance" in axes.get_legend().get_texts()[0].get_text()


def test_the_heat_map_is_the_absolute_cosine():
    found = group()
    np.testing.assert_allclose(draw_panel(found, "cosine_similarity").axes[0].images[0].get_array(),
                               np.abs(found["cosine"]))  # fmt: skip


def test_eigenvalues_by_step_are_a_heat_map_with_white_at_zero_where_signs_differ():
    found = group()
    found.arrays["eigenvalue"] = found["eigenvalue"][:, [2, 0, 1]] - 2.0
    found.arrays["eigenvalue"][3, 1] = np.nan
    axes = draw_panel(found, "heat_map").axes[0]
    mesh = axes.collections[0]
    drawn = np.ma.filled(mesh.get_array(), np.nan)
    wanted = -np.sort(-found["eigenvalue"], axis=1).T
    np.testing.assert_allclose(drawn, wanted)
    assert np.isnan(drawn[2, 3]) and mesh.norm.vcenter == 0 and mesh.get_cmap().name == "RdBu"
    assert np.allclose(np.unique(mesh.get_coordinates()[..., 0])[[0, 1, -1]], [-5, 5, 75])  # steps are 0, 10, ... 70
    assert axes.get_ylim() == (3.5, 0.5)
    found.arrays["eigenvalue"] = 10.0 ** -np.abs(wanted.T)
    bar = draw_panel(found, "heat_map").axes[0].child_axes[0]
    assert bar.get_ylabel().endswith(",\nlog scale")


def test_the_sheet_of_a_run_holds_all_eigenvalues_where_they_were_measured():
    for whole in (False, True):
        labels = [axes.get_ylabel() for axes in draw_evolution(group(negative=whole)).axes]
        assert "eigenvalue, from the largest" in labels
        assert any(label.startswith("all eigenvalues") for label in labels) == whole


def test_overlaps_with_first_and_before_are_drawn():
    found = group()
    lines = {line.get_label(): line for line in draw_panel(found, "successive").axes[0].lines}
    np.testing.assert_allclose(lines["the first"].get_ydata(), found["overlap"][0])
    np.testing.assert_allclose(lines["the one before"].get_ydata(), np.diag(found["overlap"], 1))


def test_eigenvectors_are_followed_by_their_participation_and_all_eigenvalues_by_quantiles():
    found = group(negative=True)
    drawn = draw_panel(found, "participation").axes[0].lines
    np.testing.assert_allclose(drawn[0].get_ydata(), found["spread"].reshape(8, 3)[:, 0])
    assert drawn[-1].get_ydata()[0] == pytest.approx(82 / 240)  # (n + 2) / 3n
    density = draw_panel(found, "density").axes[0]
    np.testing.assert_allclose(density.lines[0].get_ydata(), 1.0)
    told = [t.get_text() for t in density.get_legend().get_texts()]
    assert told == ["1 to 99 %", "5 to 95 %", "25 to 75 %", "median"]
    assert "--whole" in draw_panel(group(), "density").axes[0].texts[0].get_text()


def test_the_sheet_carries_the_words():
    figure = draw_evolution(group())
    text = " ".join(t.get_text() for t in figure.texts)
    assert isinstance(figure, Figure) and "continuous" in text and len(figure.axes) >= 9


def test_the_four_classic_pictures_have_their_names(tmp_path):
    made = classic(group(s=3), tmp_path / "plots", panels=tuple(CLASSIC))
    assert sorted(f.name for f in made) == [
        "cosine_similarity.png", "pca_cumulative_variance.png", "pca_projection.png", "pca_variance.png"
    ]  # fmt: skip
    assert all(f.stat().st_size > 3000 for f in made)


@pytest.mark.parametrize(("s", "r"), [(1, 1), (1, 3), (2, 1)])
def test_short_runs_are_drawn_too(s, r):
    draw_evolution(group(s=s, r=r)).canvas.draw()


def test_a_picture_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no picture 'pie' of a run; there are pca_variance"):
        draw_panel(group(), "pie")


def test_drawing_does_not_import_torch():
    code = "import sys, lossmap.plotting.dynamics, lossmap.plotting.health; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
