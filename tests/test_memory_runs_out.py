"""Where memory runs out, probes and checkpoints go on in smaller batches, to the same numbers; a lost GPU ends them."""

from array import array

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap import accelerators
from lossmap.curvature.autotune import Probe, prepare
from lossmap.curvature.hvp_plan import ProductCheck
from lossmap.data.batches import FixedBatches, Resident
from lossmap.data.checks import tried_on_samples
from lossmap.data.gradient_mode import with_gradients_recorded
from lossmap.data.loss_check import check_loss
from lossmap.device_errors import gpu_lost_by
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.geometry.directions import line_between, random_plane
from lossmap.geometry.grid import Grid
from lossmap.landscape import loss
from lossmap.landscape.connection_map import Way, connection_map
from lossmap.landscape.eigenvalues import EigenvalueMap
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
    monkeypatch.setattr(accelerators, "release_cache", lambda: calls.append(1))
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


class Breaking(nn.Sequential):
    """A net that loses its GPU over more samples than this: each call of CUDA fails from then on."""

    room = SAMPLES
    is_lost = array("b", [False])  # which is not put back after a pass

    def forward(self, x):
        Breaking.is_lost[0] |= len(x) > self.room
        self.look()
        return super().forward(x)

    @staticmethod
    def look():
        if Breaking.is_lost[0]:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")


@pytest.mark.parametrize("probe", ["losses", "products", "check"])
def test_a_gpu_that_is_lost_in_a_probe_is_no_batch_that_does_not_fit(probe, emptied, monkeypatch):
    monkeypatch.setattr(Breaking, "is_lost", array("b", [False]))
    monkeypatch.setattr("lossmap.device_errors._lost_by", [])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", Breaking.look)
    net = Breaking(*problem().model)
    given = lossmap.Problem.supervised(net, "crossentropy", problem().data.tensors, batch_size=64)
    looked_at = check_loss(given)
    factory = prepare(looked_at, plan={"way": "double", "batch": 64}, check=ProductCheck())
    net.room = {"losses": 64, "products": 64, "check": 32}[probe]
    work = {
        "losses": lambda: probe_forward_plan(looked_at, random_plane(net), seconds=1e6),
        "products": lambda: Probe(factory).best({"double-backward"}),
        "check": lambda: check_loss(given),
    }[probe]
    with pytest.raises(RuntimeError, match="CUDA error: device-side assert"):
        work()
    assert gpu_lost_by() == "CUDA error: device-side assert triggered" and not emptied


@pytest.mark.parametrize("room", [200, 10])
def test_the_probe_of_products_leaves_room_below_the_limit(room, emptied):
    tight = problem(batch_size=8)
    checked = prepare(tight, plan={"way": "double", "batch": 8})  # what is looked at before the probe is small
    tight.model.room = room
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
    trial = loss._Trial(given, random_plane(net), None)
    for room, splits in ((x.nbytes, 1), (x.nbytes - 1, 0), (2 * x.nbytes, 2), (2 * x.nbytes - 1, 1)):
        monkeypatch.setattr(loss.memory, "sample_budget", lambda device, room=room: room)
        for count in (1, 2):
            forms = loss._forms(given, trial, loss.ForwardPlan(8), [given] * count)
            assert any(form.channels_last for form in forms) == (count <= splits)
        assert loss._has_room_for_copy([last])  # nothing to copy


def worst_twenty(outputs, targets):
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return each.topk(min(20, len(each))).values.mean()


def test_a_loss_that_couples_large_batches_is_found_in_what_memory_bears(emptied, caplog):
    tight = problem()
    tight.model.room = 100
    coupled = lossmap.Problem.supervised(tight.model, worst_twenty, tight.data.tensors, batch_size=256)
    checked = check_loss(coupled)
    assert isinstance(checked.data, FixedBatches) and checked.data.batch_size == 256
    assert "looked at over 64" in caplog.text and len(emptied) == 2
    measure = lossmap.losses(checked, random_plane(tight.model, axes=1), plan={"batch_size": 256})
    surface = lossmap.survey(measure, Grid.line(0, 1, 2), progress=False)
    assert surface.outcome == "failed" and "out of memory" in surface.failures[0].reason
    assert "from here on" not in caplog.text  # no half of a batch is another reading of the same loss


def test_batches_that_must_stay_uncut_are_never_halved(emptied):
    given = problem()
    coupled = lossmap.Problem.supervised(given.model, worst_twenty, given.data.tensors, batch_size=256)
    checked = check_loss(coupled)
    plane = random_plane(checked.model, axes=1)
    assert lossmap.losses(checked, plane, plan={"batch_size": 256}).smaller() is None
    line = line_between(checked.model, {k: -v for k, v in checked.model.state_dict().items()})
    assert connection_map({"train": checked}, line, loss.ForwardPlan(256)).smaller() is None
    factory = prepare(checked, plan={"way": "double", "batch": 256}, memory=8, check=ProductCheck())
    eigenmap = EigenvalueMap({"train": factory}, plane, "ends", tol=1e-3)
    assert eigenmap.smaller() == "no values of products are kept from here on" and eigenmap.smaller() is None
    assert factory.smaller().memory == 0 and factory.smaller().smaller() is None and factory.smaller().batch == 256


def test_the_ways_of_a_connection_become_smaller_together():
    given = problem(40, 40)
    ends = [{k: f * v for k, v in given.model.state_dict().items()} for f in (-1.0, 0.5)]
    lines = [line_between(given.model, end) for end in ends]
    plan = loss.ForwardPlan(40)
    measure = connection_map({"train": given}, lines[0], plan, beside={"unaligned": Way(lines[1])})
    before = measure((0.5,))
    for size in (20, 10, 5, 2, 1):
        assert measure.smaller() == f"batches of {size} samples from here on"
        assert measure.plan.batch_size == measure._beside["unaligned"].plan.batch_size == size
    assert measure.smaller() is None
    assert measure((0.5,)) == pytest.approx(before, rel=1e-5)  # errors of the rises too: the ends are read anew


def test_a_loss_is_checked_over_fewer_samples_where_memory_bears_no_more(emptied, caplog):
    tight = problem(40)
    tight.model.room = 7
    checked = check_loss(tight)
    assert not isinstance(checked.data, FixedBatches) and checked.checked
    assert "the loss is checked over 4 samples" in caplog.text and emptied
    tight.model.room = 1
    with pytest.raises(torch.OutOfMemoryError):
        check_loss(tight)


def test_a_check_that_needs_more_memory_than_the_loss_takes_fewer_samples_or_is_left_out_aloud(emptied, caplog):
    def of_gradients(model, batch):
        x, y = batch
        if torch.is_grad_enabled() and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return nn.functional.cross_entropy(model(x), y)

    given = problem(40)
    given = lossmap.Problem.custom(given.model, of_gradients, given.data.tensors)
    with pytest.raises(torch.OutOfMemoryError):
        with_gradients_recorded(given, given.data.tensors, 1e-5)
    uncut = given.with_data(FixedBatches((given.data.tensors,)))
    assert with_gradients_recorded(uncut, given.data.tensors, 1e-5) is uncut
    assert "memory ran out while it was looked at whether the loss follows the recording of gradients" in caplog.text


def test_a_metric_that_runs_out_of_memory_is_read_in_smaller_batches():
    def accuracy(outputs, targets):
        if len(outputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (outputs.argmax(1) == targets).double().mean()

    given = problem(40, 40)
    tight = lossmap.Problem.supervised(
        given.model, "crossentropy", given.data.tensors, batch_size=40, metrics={"own": accuracy}
    )
    plane = random_plane(tight.model, axes=1)
    surface, ample = (
        lossmap.survey(lossmap.losses(p, plane), Grid.line(0, 1, 2), progress=False) for p in (tight, given)
    )
    assert surface.outcome == "complete", surface.failures
    np.testing.assert_allclose(surface["train_own"], ample["train_acc"] / 100)


def test_memory_that_runs_out_on_a_part_says_nothing_of_parts(emptied):
    tight = problem(8, batch_size=1)
    tight.model.room = 1
    with pytest.raises(ValueError, match=r"OutOfMemoryError.*; memory ran out$"):
        tried_on_samples(tight, "train")


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
