"""Where memory runs out, probes and checkpoints go on with smaller batches, to the same numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.curvature.autotune import prepare
from lossmap.data.batches import Resident
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.geometry.directions import random_plane
from lossmap.geometry.grid import Grid
from lossmap.landscape import loss
from lossmap.landscape.loss import probe_forward_plan

SAMPLES = 512


class Scarce(nn.Sequential):
    """A net on a machine whose memory bears so many samples at a time."""

    room = SAMPLES

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def problem(samples=SAMPLES, batch_size=32):
    torch.manual_seed(0)
    net = Scarce(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    x = torch.randn(samples, 5)
    return lossmap.Problem.supervised(net, "crossentropy", (x, torch.arange(samples) % 3), batch_size=batch_size)


@pytest.fixture
def emptied(monkeypatch):
    """How often the allocator of a GPU was emptied."""
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize("room", [SAMPLES, 300, 100, 20])
def test_the_probe_of_losses_leaves_room_below_the_limit(room, emptied, monkeypatch):
    ample, tight = problem(), problem()
    tight.model.room = room
    plane = random_plane(tight.model)
    monkeypatch.setattr(loss.time, "perf_counter", iter(range(10_000)).__next__)  # every pass takes as long
    if room == SAMPLES:
        assert probe_forward_plan(tight, plane, seconds=1e6).batch_size == SAMPLES and not emptied
        return
    checked = lossmap.Problem.supervised(tight.model, "crossentropy", ample.data.tensors, batch_size=1)
    plan = probe_forward_plan(checked, plane, seconds=1e6)
    assert plan.batch_size <= room // 2 and len(emptied) == {300: 1, 100: 1, 20: 2}[room]
    assert plan.batch_size == {300: 128, 100: 32, 20: 8}[room]


def test_another_error_of_a_pass_is_no_lack_of_memory(emptied):
    broken = problem()
    broken.model.forward = lambda x: nn.functional.linear(x, torch.ones(3, 6))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe_forward_plan(broken, random_plane(broken.model))
    assert not emptied


@pytest.mark.parametrize("room", [200, 10])
def test_the_probe_of_products_leaves_room_below_the_limit(room, emptied):
    tight = problem(batch_size=8)
    checked = prepare(tight, plan={"way": "double", "batch": 8})  # what is looked at before the probe is small
    tight.model.room = room
    from lossmap.curvature.autotune import Probe

    for backends in ({"double-backward"}, {"double-backward", "linearized", "retained-graph"}):
        probe = Probe(checked)
        chosen = probe.best(set(backends))
        assert chosen.plan.batch_size <= room and probe.full_at is not None and emptied
        if probe.full_at > 64:
            assert chosen.plan.batch_size <= room // 2


def test_a_copy_of_the_images_in_another_format_is_made_only_where_there_is_room(monkeypatch):
    x = torch.randn(8, 3, 4, 4)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    given = lossmap.Problem.supervised(net, "crossentropy", (x, torch.arange(8) % 3))
    assert isinstance(given.data, Resident)
    last = given.with_data(Resident((x.contiguous(memory_format=torch.channels_last), torch.arange(8) % 3), 8))
    for room, fits in ((x.nbytes, True), (x.nbytes - 1, False)):
        monkeypatch.setattr(loss.memory, "sample_budget", lambda device, room=room: room)
        forms = loss._forms(given, loss._Trial(given, random_plane(net), None), loss.ForwardPlan(8))
        assert any(form.channels_last for form in forms) == fits
        assert loss._has_room_for_copy(last)  # nothing to copy


def test_checkpoints_are_measured_in_smaller_batches(tmp_path):
    readings = {}
    for room in (40, 10):
        given = problem(samples=40, batch_size=40)
        file = tmp_path / "step1.pt"
        torch.save(given.model.state_dict(), file)
        kept = {}
        measure = CheckpointCurvature(
            given, {1.0: file}, store_vectors=lambda step, v, kept=kept: kept.update({step: v}), top=2,
            plan={"way": "double", "batch": 40},
        )  # fmt: skip
        measure.problem.model.room = room
        surface = lossmap.survey(measure, Grid(x=np.array([1.0])), progress=False)
        assert surface.outcome == "complete", surface.failures
        notes = [n.rpartition("; ")[2] for n in surface.attributes.get("along_notes", "").splitlines()]
        assert notes == [f"batches of {n} samples at most from here on" for n in (20, 10) if room == 10]
        readings[room] = np.r_[surface["eigenvalues"].ravel(), surface["loss"].ravel()]
    np.testing.assert_allclose(readings[10], readings[40], rtol=1e-5)
    measure.limit = 1
    while measure.smaller():
        assert measure.limit == 1
