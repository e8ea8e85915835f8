"""Tasks: in any order, interrupted or not, they give the results of the direct computation, as named arrays."""

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.autotune import prepare
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Grid
from lossmap.landscape.run_survey import survey
from lossmap.landscape.sharpness_tasks import SharpnessRequest, SharpnessSubject, make_sharpness_tasks
from lossmap.spectra.blocks import layer_spectra
from lossmap.spectra.request import SpectrumRequest, Subject, Task, group_names
from lossmap.spectra.spectrum import spectrum
from lossmap.spectra.tasks import make_tasks


def problem(seed=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    return Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))


def readings_of(tasks, order=None):
    numbers = range(len(tasks.tasks)) if order is None else order
    return {group: arrays for i in numbers for group, arrays in tasks((float(i),)).items()}


def arrays_in(surface):
    return {name: group.arrays for name, group in surface.groups.items()}


def test_each_task_has_a_group_of_its_own_whatever_its_name():
    subjects = [Subject("a/b", problem()), Subject("a_b", problem()), Subject("", problem())]
    tasks = [Task(0, "leak", "x/y"), Task(1, "leak", "x_y"), Task(2, "ends")]
    assert group_names(subjects, tasks) == ("tasks/a_b/leak/x_y", "tasks/a_b/leak/x_y~2", "tasks/whole/ends")


def test_a_reading_is_named_arrays_with_shapes_and_types_of_their_own():
    tasks = make_tasks(
        [Subject("net", problem())], SpectrumRequest(top=3, bottom=0, dense=0, vectors=True, by="tensor")
    )
    readings = readings_of(tasks)
    assert set(readings) == set(tasks.groups)
    ends = readings["tasks/net/ends"]
    assert ends["top_vectors"].shape == (270, 3) and ends["top_vectors"].dtype == np.float32
    assert ends["top"].shape == (3,) and ends["top_limits"].shape == (2,) and "bottom" not in ends
    assert str(readings["tasks/net/trace"]["method"]) == "xtrace"
    assert readings["tasks/net/leak/0.weight"]["inside"].shape == (4,)
    assert readings["tasks/net/density"]["steps"].sum() == readings["tasks/net/density"]["alpha"].size


def test_tasks_give_the_spectrum_of_the_direct_way():
    direct = spectrum(problem(), top=3, bottom=2, dense=0, density_error=0.1, backend="double-backward")
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(top=3, bottom=2, dense=0, density_error=0.1))
    dealt = tasks.spectra(readings_of(tasks))["net"]
    assert dealt.top.values == pytest.approx(direct.top.values) and dealt.top.limits == direct.top.limits
    assert dealt.trace.value == direct.trace.value and dealt.trace.products == direct.trace.products
    assert np.array_equal(dealt.density.nodes[0], direct.density.nodes[0])
    assert dealt.masses[0][1] == direct.masses[0][1]
    assert dealt.shares["top 1"] == pytest.approx(direct.shares["top 1"])
    assert (dealt.loss, dealt.gradient_norm) == (direct.loss, direct.gradient_norm)
    assert dealt.products == direct.products and dealt.converged == direct.converged


def test_a_small_matrix_is_one_task_and_exact():
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(parameters="2\\.", vectors=True))
    assert sorted(t.kind for t in tasks.tasks) == ["gradient", "whole"]
    found = tasks.spectra(readings_of(tasks))["net"]
    assert found.trace.exact and found.density.eigenvalues is not None and found.keep_vectors
    assert "top_vectors" in found.stored()[0]


def test_any_order_gives_the_same_bits():
    tasks = make_tasks(
        [Subject("net", problem())], SpectrumRequest(dense=20, density_steps=8, density_probes=3, by="tensor")
    )
    assert [t.name for t in tasks.tasks if t.kind == "density"] == ["0", "1", "2"]
    order = list(range(len(tasks.tasks)))
    there, back = readings_of(tasks), readings_of(tasks, order[::-1])
    assert there.keys() == back.keys()
    for group, arrays in there.items():
        assert {n: a.tobytes() for n, a in arrays.items()} == {n: a.tobytes() for n, a in back[group].items()}, group


def test_layers_are_those_of_the_direct_way_and_several_subjects_share_a_scale():
    subjects = [Subject("train", problem()), Subject("test", problem(2))]
    tasks = make_tasks(subjects, SpectrumRequest(by="module", dense=200, second=("inputs",)))
    readings = readings_of(tasks)
    found, direct = tasks.layers(readings)["train"], layer_spectra(problem(), "module", dense=200)
    for a, b in zip(found.blocks, direct.blocks, strict=True):
        assert a.kind == b.kind
        assert a.values == pytest.approx(b.values, abs=2 * b.error)
    assert found["2"].entries == pytest.approx(direct["2"].entries)
    assert found.off_diagonal_energy.share == pytest.approx(direct.off_diagonal_energy.share)
    assert found.whole.values == pytest.approx(direct.whole.values)
    assert found.layer_hessians and "Per-layer output Hessian" in repr(found)
    spectra = tasks.spectra(readings)
    assert [t for t, _, _ in spectra["train"].masses] == [t for t, _, _ in spectra["test"].masses]


def test_parameters_that_are_whole_numbers_or_truth_values_are_in_no_block():
    plain, counted = problem(), problem()
    counted.model.register_parameter("steps", nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False))
    counted.model.register_parameter("mask", nn.Parameter(torch.ones(2, 3, dtype=torch.bool), requires_grad=False))
    request = SpectrumRequest(by="tensor", probes=0)
    plain_tasks, counted_tasks = (make_tasks([Subject("", p)], request) for p in (plain, counted))
    assert counted_tasks.priority == plain_tasks.priority
    assert counted_tasks.tasks == plain_tasks.tasks
    names = [block.name for block in layer_spectra(counted, whole=False, probes=0).blocks]
    assert names == [name for name, p in counted.model.named_parameters() if p.is_floating_point()]


def test_a_survey_dispatches_them():
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0, density=False, trace_products=0, top=1))
    surface = survey(tasks, Grid(np.arange(len(tasks.tasks))))
    assert surface.outcome_of("spectrum") == "complete"
    assert np.isfinite(tasks.spectra(arrays_in(surface))["net"].largest[0])


def test_what_failed_is_missing_and_the_rest_stands():
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0, density=False, by="tensor"))
    readings = readings_of(tasks)
    del readings["tasks/net/trace"]
    found = tasks.spectra(readings)["net"]
    assert found.trace is None and found.top is not None
    readings = {group: arrays for group, arrays in readings.items() if "/block/" not in group}
    with pytest.raises(ValueError, match="no block of net could be read"):
        tasks.layers(readings)


def test_no_layers_are_computed_where_none_are_requested():
    tasks = make_tasks([Subject("net", problem())], SpectrumRequest(dense=0))
    assert tasks.layers(readings_of(make_tasks([Subject("net", problem())], SpectrumRequest(dense=0)))) == {}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (SpectrumRequest(top=101), "--top must be 0 to 100; got 101"),
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
    alike = "two subjects are called 'a/b' and 'a_b', which a file does not tell apart"  # one's were the other's
    with pytest.raises(ValueError, match=alike):
        make_tasks([Subject("a/b", problem()), Subject("a_b", problem())], SpectrumRequest())
    with pytest.raises(ValueError, match=alike):
        make_sharpness_tasks([SharpnessSubject(n, problem()) for n in ("a/b", "a_b")], SharpnessRequest())


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
    tasks = make_tasks([Subject("net", tight)], asked, choices=choices)
    net.full = True
    surface = survey(tasks, Grid(x=np.arange(float(len(tasks.tasks)))))
    assert surface.outcome == "complete" and tasks.limits == [20, 10]
    notes = surface.attributes["spectrum_notes"].splitlines()
    assert [note.rpartition("; ")[2] for note in notes] == [
        f"batches of {size} samples at most from here on" for size in (20, 10)
    ]
    found = tasks.spectra(arrays_in(surface))["net"]
    twin = spectrum(ample, top=2, dense=0, trace_products=20, density_error=0.1, backend="double-backward")
    assert found.top.values == pytest.approx(twin.top.values, rel=1e-3)
    assert found.loss == pytest.approx(twin.loss, rel=1e-6)
    tasks.limits.append(1)
    assert tasks.smaller() is None
