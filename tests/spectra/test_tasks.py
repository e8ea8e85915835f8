"""Tasks: in any order, interrupted or not, they give the results of the direct computation."""

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.autotune import prepare
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Grid
from lossmap.landscape.run_survey import survey
from lossmap.spectra.blocks import layers
from lossmap.spectra.spectrum import spectrum
from lossmap.spectra.tasks import ROW, SpectrumRequest, Subject, make_tasks, packed, unpacked


def problem(seed=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    return Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))


def rows_of(jobs, order=None):
    rows = np.full((len(jobs.jobs), jobs.length), np.nan)
    for i in range(len(jobs.jobs)) if order is None else order:
        rows[i] = jobs((float(i),))[ROW]
    return rows


def test_arrays_of_any_shape_survive_packing():
    arrays = [np.float64(3.0), np.zeros((0, 4)), np.arange(6.0).reshape(2, 3), np.array([np.nan, np.inf])]
    back = unpacked(np.append(packed(arrays), [np.nan] * 5))
    assert [a.shape for a in back] == [np.shape(a) for a in arrays]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, back, strict=True))


def test_jobs_give_the_spectrum_of_the_direct_way():
    direct = spectrum(problem(), top=3, bottom=2, dense=0, density_error=0.1, backend="double-backward")
    jobs = make_tasks([Subject("net", problem())], SpectrumRequest(top=3, bottom=2, dense=0, density_error=0.1))
    dealt = jobs.spectra(rows_of(jobs))["net"]
    assert dealt.top.values == pytest.approx(direct.top.values) and dealt.top.limits == direct.top.limits
    assert dealt.trace.value == direct.trace.value and dealt.trace.products == direct.trace.products
    assert np.array_equal(dealt.density.nodes[0], direct.density.nodes[0])
    assert dealt.masses[0][1] == direct.masses[0][1]
    assert dealt.shares["top 1"] == pytest.approx(direct.shares["top 1"])
    assert (dealt.loss, dealt.gradient_norm) == (direct.loss, direct.gradient_norm)
    assert dealt.products == direct.products and dealt.converged == direct.converged


def test_a_small_matrix_is_one_job_and_exact():
    jobs = make_tasks([Subject("net", problem())], SpectrumRequest(parameters="2\\.", vectors=True))
    assert sorted(j.kind for j in jobs.jobs) == ["gradient", "whole"]
    found = jobs.spectra(rows_of(jobs))["net"]
    assert found.trace.exact and found.density.eigenvalues is not None and found.keep_vectors
    assert "top_vectors" in found.stored()[0]


def test_any_order_gives_the_same_bits():
    jobs = make_tasks(
        [Subject("net", problem())], SpectrumRequest(dense=20, density_steps=8, density_probes=3, by="tensor")
    )
    assert [j.name for j in jobs.jobs if j.kind == "density"] == ["0", "1", "2"]
    order = list(range(len(jobs.jobs)))
    assert np.array_equal(rows_of(jobs), rows_of(jobs, order[::-1]), equal_nan=True)


def test_layers_are_those_of_the_direct_way_and_several_subjects_share_a_scale():
    subjects = [Subject("train", problem()), Subject("test", problem(2))]
    jobs = make_tasks(subjects, SpectrumRequest(by="module", dense=200, second=("inputs",)))
    rows = rows_of(jobs)
    found, direct = jobs.layers(rows)["train"], layers(problem(), "module", dense=200)
    for a, b in zip(found.blocks, direct.blocks, strict=True):
        assert a.kind == b.kind
        assert a.values == pytest.approx(b.values, abs=2 * b.error)
    assert found["2"].entries == pytest.approx(direct["2"].entries)
    assert found.off_diagonal_energy.share == pytest.approx(direct.off_diagonal_energy.share)
    assert found.whole.values == pytest.approx(direct.whole.values)
    assert found.layer_hessians and "Per-layer output Hessian" in repr(found)
    spectra = jobs.spectra(rows)
    assert [t for t, _, _ in spectra["train"].masses] == [t for t, _, _ in spectra["test"].masses]


def test_a_survey_deals_them():
    jobs = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0, density=False, trace_products=0, top=1))
    surface = survey(jobs, Grid(np.arange(len(jobs.jobs))))
    assert surface.outcome_of("spectrum") == "complete"
    assert np.isfinite(jobs.spectra(surface.fields[ROW])["net"].largest[0])


def test_what_failed_is_missing_and_the_rest_stands():
    jobs = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0, density=False, by="tensor"))
    rows = rows_of(jobs)
    rows[[i for i, j in enumerate(jobs.jobs) if j.kind == "trace"]] = np.nan
    found = jobs.spectra(rows)["net"]
    assert found.trace is None and found.top is not None
    rows[[i for i, j in enumerate(jobs.jobs) if j.kind == "block"]] = np.nan
    with pytest.raises(ValueError, match="no block of net could be read"):
        jobs.layers(rows)


def test_no_layers_are_computed_where_none_are_requested():
    jobs = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0))
    assert jobs.layers(rows_of(make_tasks([Subject("net", problem())], SpectrumRequest(dense=0)))) == {}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (SpectrumRequest(top=101), "--top wants 0 to 100 eigenvalues; got 101"),
        (SpectrumRequest(top=1, bottom=50, parameters="2\\.bias"), "--bottom 50: the matrix has 3 rows"),
        (SpectrumRequest(patterns=("fc9",)), "no parameter matches 'fc9'"),
    ],
)
def test_invalid_requests_are_refused_before_anything_long_begins(asked, text):
    with pytest.raises(ValueError, match=text):
        make_tasks([Subject("net", problem())], asked)


def test_two_subjects_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two subjects are called 'net'"):
        make_tasks([Subject("net", problem()), Subject("net", problem())], SpectrumRequest())


def test_a_row_longer_than_foreseen_is_an_error():
    from dataclasses import replace

    jobs = replace(make_tasks([Subject("net", problem())], SpectrumRequest(dense=0)), length=4)
    with pytest.raises(ValueError, match="numbers; 4 were foreseen"):
        jobs((0.0,))


class Scarce(nn.Sequential):
    """A net on a machine whose memory bears ten samples at a time."""

    full = False

    def forward(self, x):
        if len(x) > 10 and self.full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


@pytest.mark.parametrize("backend", ["double-backward", "linearized"])
def test_where_memory_runs_out_the_batches_are_halved_and_the_spectrum_stays(backend):
    ample = problem()
    net = Scarce(*ample.model).eval()
    tight = Problem.supervised(net, "crossentropy", ample.data.tensors, batch_size=40)
    asked = SpectrumRequest(top=2, dense=0, trace_products=20, density_error=0.1, by="tensor", probes=2)
    choices = [prepare(tight, backend=backend).plan.stored() | {"batch": 40}]
    jobs = make_tasks([Subject("net", tight)], asked, choices=choices)
    net.full = True
    surface = survey(jobs, Grid(x=np.arange(float(len(jobs.jobs)))))
    assert surface.outcome == "complete" and jobs.limits == [20, 10]
    notes = surface.attributes["spectrum_notes"].splitlines()
    assert [note.rpartition("; ")[2] for note in notes] == [
        f"batches of {size} samples at most from here on" for size in (20, 10)
    ]
    found = jobs.spectra(surface[ROW])["net"]
    twin = spectrum(ample, top=2, dense=0, trace_products=20, density_error=0.1, backend="double-backward")
    assert found.top.values == pytest.approx(twin.top.values, rel=1e-3)
    assert found.loss == pytest.approx(twin.loss, rel=1e-6)
    jobs.limits.append(1)
    assert jobs.smaller() is None
