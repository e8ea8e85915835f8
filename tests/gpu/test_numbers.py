"""Numbers of a GPU against float64 on the CPU: losses, products, bars, and the same bits at every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lossmap
from lossmap.curvature.autotune import prepare
from lossmap.data.batches import Resident, Streamed
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.numerics import use_tf32
from tests.gpu.networks import NETWORKS, problem_on, resnet, true_eigenvalues

POINTS = ((0.0, 0.0), (0.5, -0.5), (-1.0, 1.0))


@pytest.fixture
def _users_tf32():
    """A user who lets everything be computed in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32  # they are the user's again
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def within(truth, values, bars):
    """How far the nearest true eigenvalue lies beyond each bar, at most; the truth's own error is 1e-7 of the scale."""
    allowed = np.asarray(bars) + 1e-7 * np.abs(truth).max()
    return max(np.abs(truth - v).min() - b for v, b in zip(values, allowed, strict=True)) <= 0


@pytest.mark.usefixtures("_users_tf32")
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_those_of_float64_and_have_the_same_bits_five_times(gpu, name):
    problem, double = problem_on(gpu, name), problem_on("cpu", name, torch.float64)
    plane = lossmap.random_plane(double.model, seed=1)
    exact = lossmap.losses(double, plane, plan={"batch_size": 32})
    wide = [exact(p)["train_loss"] for p in POINTS]
    runs = []
    for _ in range(5):
        measure = lossmap.losses(problem, plane.to(gpu, torch.float32), plan={"batch_size": 32})
        runs.append([measure(p)["train_loss"] for p in POINTS])
    np.testing.assert_allclose(runs[0], wide, rtol=3e-6)
    assert all(run == runs[0] for run in runs)


@pytest.mark.usefixtures("_users_tf32")
@pytest.mark.parametrize("name", NETWORKS)
def test_bars_and_limits_hold_the_dense_truth(gpu, name):
    truth = true_eigenvalues(name)
    problem = problem_on(gpu, name)
    for dense in (10_000, 1):
        s = lossmap.spectrum(problem, top=5, bottom=3, density_error=None, dense=dense)
        assert within(truth, s.top.values, s.top.residuals), (dense, s.top.values, truth[-5:])
        assert within(truth, s.bottom.values, s.bottom.residuals), (dense, s.bottom.values, truth[:3])
        assert s.top.limits[0] >= truth[-1] * (1 - 1e-6)
        low, high = s.trace.interval()
        assert low - 1e-5 <= truth.sum() <= high + 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_holds_its_bars_away_from_the_centre_and_repeats_its_bits(gpu, name):
    factory = prepare(problem_on(gpu, name), "weights")
    plane = lossmap.random_plane(factory.problem.model, seed=1)
    again = [EigenvalueMap({"train": factory}, plane, "ends", tol=1e-3) for _ in range(2)]
    for point in POINTS[1:]:
        one, two = (measure(point) for measure in again)
        if name == "words":  # the gradient of an EmbeddingBag is added up in any order
            assert two == pytest.approx(one, rel=1e-5)
        else:
            assert one == two
        state = {k: t.cpu() for k, t in plane.at(point).items()}
        truth = true_eigenvalues(name, state)
        assert within(truth, [one["max_eig"], one["min_eig"]], [one["max_eig_error"], one["min_eig_error"]])


def test_streamed_samples_give_the_bits_of_those_on_the_card(gpu):
    x, y = torch.randn(4096, 64), torch.arange(4096) % 3
    model = torch.nn.Linear(64, 3).to(gpu)
    plane = lossmap.random_plane(model, seed=1)
    streamed = Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(4096), 128, device=gpu)
    found = []
    for data in (Resident((x.to(gpu), y.to(gpu)), 128), streamed, streamed):
        measure = lossmap.losses(
            lossmap.Problem.supervised(model, "crossentropy", data), plane, plan={"batch_size": 128}
        )
        found.append([measure(p)["train_loss"] for p in POINTS])
    assert found[1] == found[2] == found[0]


def test_products_have_the_same_bits_at_every_run(gpu):
    for name in NETWORKS:
        operator = prepare(problem_on(gpu, name), "weights").at()
        v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0)).to(gpu)
        first = operator @ v
        assert all(torch.equal(operator @ v, first) for _ in range(4)), name


@pytest.mark.parametrize("name", ["dense", "conv", "lstm"])
def test_tf32_where_it_was_asked_for_has_bars_that_hold(gpu, name):
    truth = true_eigenvalues(name)
    use_tf32(True)
    try:
        s = lossmap.spectrum(problem_on(gpu, name), top=3, bottom=2, density_error=None, dense=1)
    finally:
        use_tf32(False)
    assert within(truth, s.top.values, s.top.residuals), (s.top.values, s.top.residuals, truth[-3:])
    assert within(truth, s.bottom.values, s.bottom.residuals), (s.bottom.values, s.bottom.residuals, truth[:2])


def test_a_net_of_67_848_weights_has_the_cpus_eigenvalues_within_both_bars(gpu):
    ours, theirs = (lossmap.spectrum(resnet(d), top=3, bottom=1, density_error=None, trace_products=6)
                    for d in (gpu, "cpu"))  # fmt: skip
    for a, b, e, f in zip(ours.values, theirs.values, ours.errors, theirs.errors, strict=True):
        assert abs(a - b) <= e + f


@pytest.mark.parametrize("name", ["conv", "lstm", "attention"])
def test_layers_health_and_gradients_work_there(gpu, name):
    found = {}
    for device in (gpu, "cpu"):
        problem = problem_on(device, name)
        layers = lossmap.layer_spectra(problem, density_error=0.2)
        found[str(device)] = (layers, lossmap.diagnose(problem, samples=64, density_error=0.2))
    ours, theirs = found[str(gpu)], found["cpu"]
    assert str(ours[0]).splitlines()[:3] == str(theirs[0]).splitlines()[:3]
    assert len(ours[1].findings) == len(theirs[1].findings)


def test_a_language_model_is_read_there(gpu):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=12)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(40, (12, 10))
    batches = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids.split(4)]
    on_cpu = lossmap.huggingface(model, batches)
    cpu = lossmap.spectrum(on_cpu, top=2, bottom=1, density_error=None, trace_products=6)
    there = lossmap.huggingface(model.to(gpu), batches)
    s = lossmap.spectrum(there, top=2, bottom=1, density_error=None, trace_products=6)
    assert s.loss == pytest.approx(cpu.loss, rel=1e-5)
    for a, b, e, f in zip(s.values, cpu.values, s.errors, cpu.errors, strict=True):
        assert abs(a - b) <= e + f
