"""A report of a live result and the one rendered from its file are the same text, for every kind, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.diagnostics.singular_values import singular_values
from lossmap.geometry.grid import Grid
from lossmap.health.diagnose import diagnose
from lossmap.io.eigenvector_store import put_group
from lossmap.io.read import read, write_surface
from lossmap.io.spectrum_layout import group_of
from lossmap.io.surface import Group, Surface
from lossmap.report import health
from lossmap.report.definiteness import definiteness_of_ends
from lossmap.report.estimates import energy_text
from lossmap.report.render import report_of_group
from lossmap.report.text import value_with_limit
from lossmap.spectra.blocks import layer_spectra, verdicts_of
from lossmap.spectra.spectrum import spectrum


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def problem(model=None):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(model or net(), "crossentropy", (x, torch.arange(40) % 3), batch_size=16)


def dead():
    model = net()
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    return model


def linear():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(nn.Linear(6, 2, bias=False).eval(), "mse", (x, torch.zeros(40, 2)))


SPECTRA = {
    "in full": lambda: spectrum(problem(), top=3, bottom=2, label="train"),
    "by products": lambda: spectrum(problem(), top=3, dense=0, density_probes=2, density_steps=8, mass_at=(0.1,)),
    "not converged": lambda: spectrum(problem(), dense=0, max_products=4, trace_products=6, density_error=None),
    "of one end": lambda: spectrum(problem(), bottom=0, trace_products=0, density_error=None),
    "of one tensor": lambda: spectrum(problem(), matrix="gauss-newton", parameters="0.weight", density_error=0.5),
    "with a condition": lambda: spectrum(linear(), top=2),
}
LAYERS = {
    "in full": lambda: layer_spectra(problem(), label="train"),
    "by products": lambda: layer_spectra(problem(), "module", dense=4, density_error=0.3),
    "dead": lambda: layer_spectra(problem(dead()), second=("inputs", "weights"), dense=20),
    "alone": lambda: layer_spectra(problem(), "module", whole=False, probes=0, matrix="gauss-newton"),
    "stated": lambda: verdicts_of({"a": [0.0, 0.0], "b/c": [-1.0, 0.0], "d": [-1.0, -2.0], "e": [-1.0, 3.0]}),
}


def read_again(folder, name, group):
    """The group as it comes out of a file."""
    write_surface(folder / "a.h5", Surface(Grid(np.zeros(1)), {}, groups={name: group}))
    return read(folder / "a.h5").groups[name]


def rendered(name, group):
    """The report of a group without the text that was stored with it."""
    attributes = {key: value for key, value in group.attributes.items() if key != "report"}
    return report_of_group(name, group.arrays, attributes)


@pytest.mark.parametrize("case", SPECTRA)
def test_a_spectrum_is_reported_from_its_file_as_it_was_live(tmp_path, case):
    live = SPECTRA[case]()
    group = read_again(tmp_path, "spectrum/train", group_of(live))
    assert rendered("spectrum/train", group) == repr(live)
    assert max(map(len, repr(live).splitlines())) <= 80
    assert ("definiteness" in repr(live)) == (live.bottom is not None)


@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_reported_from_their_file_as_they_were_live(tmp_path, case):
    live = LAYERS[case]()
    group = read_again(tmp_path, "layers/train", group_of(live))
    assert rendered("layers/train", group) == repr(live)
    assert max(map(len, repr(live).splitlines())) <= 80
    assert ("Per-layer output Hessian" in repr(live)) == (case == "dead")
    assert ("Signals through the layers" in repr(live)) == (case == "dead")


def test_singular_values_are_reported_from_their_file_as_they_were_live(tmp_path):
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    live = singular_values(model)
    group = read_again(tmp_path, "weights/singular_values", group_of(live))
    assert rendered("weights/singular_values", group) == repr(live) and "infinite" in repr(live)
    assert max(map(len, repr(live).splitlines())) <= 80
    assert set(group.arrays) == {"0.weight", "2.weight", "4.weight"}  # a figure draws each


@pytest.mark.parametrize("examinations", [("weights", "signals", "gradients", "hessian", "collapse"), ("signals",)])
def test_health_is_reported_from_its_file_as_it_was_live(tmp_path, examinations):
    live = diagnose(problem(dead()), held_out=problem(), examinations=examinations, rate=0.1)
    assert live.findings
    put_group(tmp_path / "h.h5", "health", Group(*live.stored()), lambda: Surface(Grid(np.zeros(1)), {}))
    group = read(tmp_path / "h.h5").groups["health"]
    assert report_of_group("health", group.arrays, group.attributes) == repr(live)
    assert max(map(len, repr(live).splitlines())) <= 80
    json.loads(group.attributes["report"])


def test_a_file_of_an_earlier_version_gives_the_text_that_it_holds():
    group = Group({"top": np.ones(2), "top_error": np.zeros(2)}, {"label": "train", "report": "as it was printed"})
    for name in ("spectrum/train", "layers/train", "weights/singular_values", "spectrum/l2_path", "other"):
        assert report_of_group(name, group.arrays, group.attributes) == "as it was printed"
    assert report_of_group("spectrum/train", {}, {}) == ""


def test_reports_need_no_torch():
    code = "import sys, lossmap.report.render; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_extreme_eigenvalue_is_printed_down_to_its_limit_where_that_is_far():
    assert value_with_limit(-0.0083, 0.0043, -0.0151) == "-0.0083 +- 0.0043 (may lie as low as -0.0151)"
    assert value_with_limit(12.0, 0.5, 14.0) == "12 +- 0.5 (may lie as high as 14)"
    for limit in (np.nan, -np.inf, -0.0126, -0.008299):  # none, none, within the error
        assert value_with_limit(-0.0083, 0.0043, limit) == "-0.0083 +- 0.0043"
    assert "lie" not in value_with_limit(12.0, 1e-6, 12.1)  # further than the error, and yet near


def test_what_rests_on_an_eigenvalue_far_from_its_limit_says_so():
    text = definiteness_of_ends((1.0, 0.01), (-0.0083, 0.0043), -0.0151, 1.01)
    assert text.startswith("indefinite") and "as low as -0.0151" in text and "as high" not in text
    assert "as low as -0.5" in definiteness_of_ends((1.0, 0.01), (-1e-4, 2e-4), -0.5)


def test_the_interval_of_what_lies_outside_the_blocks_is_printed_the_right_way_up():
    assert energy_text(0.123, (0.08, 0.17)) == (
        "12.3% (95 % interval 8 to 17%) of the squared entries lie outside the blocks"
    )
    for nothing in ((0.123, 0.123), (np.nan, np.nan)):  # exact, or of a file without an interval
        assert "interval" not in energy_text(0.123, nothing)


def test_no_title_of_a_number_touches_it():
    assert max(len(title) for title, _ in health.NUMBERS.values()) < health.COLUMN


def test_a_ritz_value_of_the_density_below_zero_is_negative_curvature_though_the_end_is_not_resolved():
    ends = ((0.88, 4e-7), (-0.0004, 0.0007), -0.005, 0.89, 4e-7)
    assert definiteness_of_ends(*ends).startswith("positive semidefinite as far as is known")
    assert definiteness_of_ends(*ends, seen=-0.0006).startswith("positive semidefinite as far as is known")
    text = definiteness_of_ends(*ends, seen=-0.000875)
    assert text.startswith("indefinite: negative curvature, for the smallest eigenvalue is at most -0.000875")
    missed = definiteness_of_ends((0.88, 4e-7), (0.004, 1e-6), -0.005, 0.89, 4e-7, seen=-0.000875)
    assert missed.startswith("indefinite: negative curvature")
    rounded = definiteness_of_ends((0.88, 4e-7), (0.004, 1e-6), -0.005, 0.89, 1e-4, seen=-0.000875)
    assert rounded.startswith("positive definite as far as is known")
