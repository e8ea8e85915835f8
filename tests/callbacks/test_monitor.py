"""Curvature while a network trains: truth against dense matrices, thresholds, the same weights to the bit, its cost."""

import contextlib
import copy
import csv
import logging
import math
import os
import random
import types
from array import array
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap
from lossmap.callbacks import CurvatureMonitor
from lossmap.callbacks.overhead import Overhead
from lossmap.cli.__main__ import main
from lossmap.diagnostics.step_rule import step_rule

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3


def net(seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def noisy_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def train(model, optimizer, monitor=None, steps=12, x=X, y=Y):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()


def of_batch(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def dense(model, x, y):
    """The Hessian of the mean loss in float64, (n, n), by PyTorch's own differentiation of the whole vector."""
    model = copy.deepcopy(model).double().eval()
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector):
        parts, start = {}, 0
        for name, p in model.named_parameters():
            parts[name] = vector[start : start + p.numel()].view_as(p)
            start += p.numel()
        return nn.functional.cross_entropy(torch.func.functional_call(model, parts, (x.double(),)), y)

    return torch.autograd.functional.hessian(loss, theta)


def quadratic(curvatures, rate, make):
    """A loss sum of c w^2 / 2 with its optimizer: curvatures c are the eigenvalues of the Hessian."""
    model = nn.Linear(len(curvatures), 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    c = torch.as_tensor(curvatures, dtype=torch.float64)  # a tensor can be changed while it is trained on

    def energy(model, batch):
        return (c * model.weight**2).sum() / 2 + 0.0 * batch.sum()

    problem = lossmap.Problem.custom(model, energy, torch.zeros(4, 1, dtype=torch.float64))
    return problem, make(model.parameters(), rate)


OPTIMIZERS = {
    "sgd": lambda p, lr=0.05: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr=0.05: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "nesterov": lambda p, lr=0.05: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr=1e-2: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr=1e-2: torch.optim.AdamW(p, lr=lr, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("kind", ["momentum", "adam", "adamw"])
def test_readings_are_those_of_dense_matrices_all_along_a_training(kind):
    model = net(dtype=torch.float64)
    optimizer = OPTIMIZERS[kind](model.parameters())
    problem = lossmap.Problem.supervised(model, "crossentropy", (X.double(), Y))
    monitor = CurvatureMonitor(problem, optimizer, every=4, tol=1e-6, trace_products=60, max_overhead=None)
    for step in range(1, 13):
        train(model, optimizer, steps=1, x=X.double())
        reading = monitor.step()
        if step % 4:
            assert reading is None
            continue
        hessian = dense(model, X, Y)
        values = torch.linalg.eigvalsh(hessian)
        assert abs(reading["max_eig"] - values[-1]) <= reading["max_eig_error"] < 1e-4 * values[-1]
        assert abs(reading["min_eig"] - values[0]) <= reading["min_eig_error"] < 1e-4 * values[-1]
        assert abs(reading["trace"] - hessian.trace()) <= reading["trace_error"] + 1e-9  # 60 products: all of it
        loss = nn.functional.cross_entropy(model(X.double()), Y)
        slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert reading["loss"] == pytest.approx(float(loss.detach()))
        assert reading["gradient_norm"] == pytest.approx(float(slope.norm()))
        seen = float(values[-1])
        if kind != "momentum":
            seen = float(torch.linalg.eigvalsh(preconditioned(hessian, optimizer, step))[-1])
            shrunk = 1 - 0.5 * 1e-2 * optimizer.param_groups[0]["weight_decay"] if kind == "adamw" else 1
            assert reading["stability_threshold"] == pytest.approx(38 / 1e-2 * shrunk)
        else:
            assert reading["stability_threshold"] == pytest.approx(2 * 1.9 / 0.05)
        assert reading["preconditioned_max_eig"] == pytest.approx(seen, rel=1e-4)
        assert reading["stability_ratio"] == pytest.approx(seen / reading["stability_threshold"], rel=1e-4)


def preconditioned(hessian, optimizer, t):
    """P^-1/2 H P^-1/2 by the formula of Cohen et al. (2022), from the optimizer's state."""
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    states = [optimizer.state[p] for p in group["params"]]
    v = torch.cat([s.get("max_exp_avg_sq", s["exp_avg_sq"]).reshape(-1) for s in states])
    p = (1 - beta1**t) * ((v / (1 - beta2**t)).sqrt() + group["eps"])
    return hessian / (p.sqrt()[:, None] * p.sqrt()[None, :])


def test_in_float32_the_error_bars_hold_the_eigenvalues_of_float64():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = CurvatureMonitor(
        lossmap.Problem.supervised(model, "crossentropy", (X, Y)), optimizer, every=5, max_overhead=None
    )
    train(model, optimizer, steps=4)
    train(model, optimizer, monitor, steps=0)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    reading = monitor.step(5)
    hessian = dense(model, X, Y)
    values = torch.linalg.eigvalsh(hessian)
    assert abs(reading["max_eig"] - values[-1]) <= reading["max_eig_error"]
    assert abs(reading["min_eig"] - values[0]) <= reading["min_eig_error"]
    seen = torch.linalg.eigvalsh(preconditioned(hessian, optimizer, 5).double())
    assert (seen - reading["preconditioned_max_eig"]).abs().min() <= reading["preconditioned_max_eig_error"]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(("value", "name"), [(1.2, "max_eig"), (-0.6, "min_eig")])
def test_an_end_that_the_last_readings_vectors_do_not_hold_is_found(kind, value, name):
    """Between two readings another direction becomes the sharpest: a search from the old ones hardly sees it."""
    curvatures = torch.cat([torch.tensor([1.0, -0.3]), torch.linspace(-0.02, 0.1, 2998)]).double()
    problem, optimizer = quadratic(curvatures, 1e-9, OPTIMIZERS[kind])
    sum(p.sum() for p in problem.model.parameters()).backward()
    optimizer.step()
    with CurvatureMonitor(problem, optimizer, every=1, max_overhead=None, trace_products=0) as monitor:
        first = monitor.step()
        curvatures[7] = value
        second = monitor.step()
    assert first["max_eig"] == pytest.approx(1.0, abs=1e-3) and first["min_eig"] == pytest.approx(-0.3, abs=1e-3)
    assert second[name] == pytest.approx(value, abs=1e-2)
    if kind == "adam":  # P is 0.1 in every direction after one step
        assert second["preconditioned_max_eig"] == pytest.approx(10 * second["max_eig"], rel=1e-2)
    for reading in (first, second):
        assert 0 <= reading["max_eig_limit"] - reading["max_eig"] <= 0.11 * max(1.0, value)
        assert 0 <= reading["min_eig"] - reading["min_eig_limit"] <= 0.11 * max(1.0, value)
    assert monitor.surface.about["min_eig_limit"].long_name == "with probability 0.99 no eigenvalue lies beyond"


@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize(("factor", "grows"), [(0.97, False), (1.03, True)])
def test_a_rate_just_below_the_threshold_converges_and_one_just_above_diverges(kind, factor, grows):
    curvatures, rate = [5.0, 1.0, 0.2], 0.01
    make = {**OPTIMIZERS, "adam": frozen_adam, "adamw": frozen_adamw}[kind]
    problem, optimizer = quadratic(curvatures, rate, make)
    reading = CurvatureMonitor(problem, optimizer, max_overhead=None, tol=1e-8).measure()
    assert reading["max_eig"] == pytest.approx(5.0)
    rate = factor * rate / reading["stability_ratio"]  # a threshold is inverse in the rate
    problem, optimizer = quadratic(curvatures, rate, make)
    ratio = CurvatureMonitor(problem, optimizer, max_overhead=None, tol=1e-8).measure()["stability_ratio"]
    assert ratio == pytest.approx(factor)
    peak = 0.0
    for _ in range(700):
        if peak > 1e4:  # before Adam's mean square notices
            break
        optimizer.zero_grad()
        problem.loss(problem.forward(problem.model, torch.zeros(1, 1)), torch.zeros(1, 1)).backward()
        optimizer.step()
        peak = float(problem.model.weight.detach()[0, 0].abs())
    assert (peak > 1.0) == grows


def frozen_adamw(parameters, rate):
    """The same with a decoupled decay that takes 0.4 of theta at every step."""
    return frozen_adam(parameters, rate, torch.optim.AdamW, weight_decay=0.4 / rate)


def frozen_adam(parameters, rate, kind=torch.optim.Adam, **options):
    """Adam far along, whose mean square stays as it is: what the threshold is a theorem for."""
    optimizer = kind(parameters, lr=rate, betas=(0.9, 1 - 1e-12), **options)
    for p in optimizer.param_groups[0]["params"]:
        mean_square = torch.tensor([[4.0, 0.25, 1.0]], dtype=p.dtype)
        optimizer.state[p] = {
            "step": torch.tensor(1e14),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": mean_square,
        }
    return optimizer


def test_groups_with_rates_and_decays_of_their_own_are_part_of_the_preconditioner():
    model = net(dtype=torch.float64)
    first, second = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": first, "lr": 0.01, "weight_decay": 0.3}, {"params": second, "lr": 0.04, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.5)
    problem = lossmap.Problem.supervised(model, "crossentropy", (X.double(), Y))
    reading = CurvatureMonitor(problem, optimizer, max_overhead=None, tol=1e-8).measure()
    rates = torch.cat([torch.full((p.numel(),), 0.01 if i < 2 else 0.04) for i, p in enumerate(model.parameters())])
    decay = torch.cat([torch.full((p.numel(),), 0.3 if i < 2 else 0.0) for i, p in enumerate(model.parameters())])
    root = (rates.double() / 0.04).sqrt()
    seen = root[:, None] * (dense(model, X, Y) + torch.diag(decay.double())) * root[None, :]
    assert reading["preconditioned_max_eig"] == pytest.approx(float(torch.linalg.eigvalsh(seen)[-1]), rel=1e-6)
    assert reading["stability_threshold"] == pytest.approx(2 * 1.5 / 0.04)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_at_a_rate_of_0_the_matrix_is_that_of_any_rate_and_no_step_diverges(kind):
    readings = []
    for rate in (0.01, 0.0):
        problem, optimizer = quadratic([5.0, 1.0, 0.2], rate, {**OPTIMIZERS, "adam": frozen_adam}[kind])
        readings.append(CurvatureMonitor(problem, optimizer, max_overhead=None, tol=1e-8).measure())
    known, at_0 = readings
    assert at_0["preconditioned_max_eig"] == pytest.approx(known["preconditioned_max_eig"])
    assert at_0["stability_ratio"] == 0.0 and at_0["stability_threshold"] == math.inf


def test_a_parameter_without_gradient_and_an_unknown_optimizer_are_named(caplog):
    model = noisy_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, steps=3)
    rule = step_rule(optimizer, dict(model.named_parameters()))
    assert rule.without_gradient == ("0.bias",)  # in front of batch norm
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with caplog.at_level(logging.WARNING, logger="lossmap"):
        monitor = CurvatureMonitor(problem, optimizer, max_overhead=None)
        monitor.measure()
        monitor.measure()
        other = CurvatureMonitor(problem, torch.optim.Adagrad(model.parameters()), max_overhead=None).measure()
    assert sum("0.bias" in r.getMessage() for r in caplog.records) == 1
    assert sum("no stability threshold is known for Adagrad" in r.getMessage() for r in caplog.records) == 1
    assert np.isnan(other["stability_ratio"]) and other["max_eig"] > 0


class WithFaint(nn.Module):
    """A network with batch norm, and a layer that hardly counts."""

    def __init__(self):
        super().__init__()
        self.net, self.faint = noisy_net(), nn.Linear(X.shape[1], 3)

    def forward(self, x):
        return self.net(x) + 1e-3 * self.faint(x)


def test_a_bias_before_batch_norm_is_told_from_small_gradients_after_training_in_bfloat16():
    readings = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = WithFaint()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
        for _ in range(30):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = nn.functional.cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
        peaks = {n: float(optimizer.state[p]["exp_avg_sq"].max()) ** 0.5 for n, p in model.named_parameters()}
        assert peaks["faint.bias"] < 2**-8 * max(peaks.values())
        rule = step_rule(optimizer, dict(model.named_parameters()), problem=problem)
        assert rule.without_gradient == ("net.0.bias",)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        readings[dtype] = CurvatureMonitor(problem, optimizer, max_overhead=None).measure()["preconditioned_max_eig"]
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and model.training
        options = {"matrix": "preconditioned", "preconditioner": optimizer, "parameters": "all"}
        told = lossmap.spectrum(problem, top=1, bottom=0, density_error=None, **options)
        assert told.values[0] == pytest.approx(readings[dtype], rel=0.01)
    assert readings[torch.bfloat16] == pytest.approx(readings[torch.float32], rel=0.2)


class TwoHeads(nn.Module):
    """Of each sample one head counts, by the sign of its last input; the second one's gradients are small."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        return torch.where(x[:, 3:] > 0, self.one(x), 1e-3 * self.two(x))


@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_small_gradient_that_no_sample_of_a_batch_has_is_no_rounding(batch_size):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    x = x[(-x[:, 3]).argsort()]  # those of the second head come last
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 3.0).square().mean().backward()
        optimizer.step()
    problem = lossmap.Problem.supervised(model, "mse", (x, torch.full((64, 1), 3.0)), batch_size=batch_size)
    peaks = {n: float(optimizer.state[p]["exp_avg_sq"].max()) ** 0.5 for n, p in model.named_parameters()}
    assert peaks["two.weight"] < 2**-8 * peaks["one.weight"]
    assert step_rule(optimizer, dict(model.named_parameters()), problem=problem).without_gradient == ()


def test_what_underflows_in_float16_was_moved_all_the_same():
    p = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = torch.optim.Adam([p], lr=1e-3)
    p.grad = torch.tensor([0.5, 1e-5, 0.0], dtype=torch.float16)
    optimizer.step()
    scale = step_rule(optimizer, {"p": p}).scale
    assert float(optimizer.state[p]["exp_avg_sq"][1]) == 0.0
    assert (scale > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["adam", "nesterov"])
def test_weights_and_random_numbers_come_out_the_same_to_the_bit(kind, tmp_path):
    def trained(watched):
        random.seed(3)
        np.random.seed(3)
        model = noisy_net()
        optimizer = OPTIMIZERS[kind](model.parameters())
        loader = DataLoader(TensorDataset(X, Y), 16, shuffle=True)
        monitor = None
        if watched:
            data = DataLoader(TensorDataset(X, Y), 24, shuffle=True)
            problem = lossmap.Problem.supervised(model, "crossentropy", data)
            if kind == "nesterov":  # whose samples are counted by running the loss
                problem = lossmap.Problem.custom(model, of_batch, data)
            monitor = CurvatureMonitor(problem, optimizer, every=2, max_overhead=None, checkpoints=tmp_path / "run")
        model[4].bias.requires_grad_(False)
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad(set_to_none=False)
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                before = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
                if monitor is not None:
                    monitor.step()
                after = [p.grad for p in model.parameters()]
                assert all(a is b is None or torch.equal(a, b) for a, b in zip(before, after, strict=True))
                assert model.training and not model[4].bias.requires_grad
        return model, optimizer, (torch.rand(1), random.random(), np.random.rand()), monitor

    plain, plain_optimizer, plain_chance, _ = trained(False)
    model, optimizer, chance, monitor = trained(True)
    assert monitor.surface.grid.x.tolist() == [2, 4, 6, 8]
    for name, t in plain.state_dict().items():
        assert torch.equal(t, model.state_dict()[name]), name
    for a, b in zip(plain_optimizer.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    assert chance == plain_chance


def test_the_file_is_read_drawn_and_reported_and_its_checkpoints_feed_dynamics(tmp_path, capsys):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    path = tmp_path / "training.h5"
    with CurvatureMonitor(
        problem, optimizer, every=5, path=path, max_overhead=None, checkpoints=tmp_path / "run"
    ) as monitor:
        train(model, optimizer, monitor, steps=15)
    surface = lossmap.read(path)
    assert {n: v.tolist() for n, v in surface.fields.items()} == {
        n: v.tolist() for n, v in monitor.surface.fields.items()
    }
    assert surface.grid.x.tolist() == [5, 10, 15] and surface.outcome == "complete"
    assert surface.attributes["start"] <= surface.attributes["end"]
    assert surface.about["max_eig"].unit == "nats per squared unit of theta"
    assert main(["status", str(path)]) == 0
    assert main(["draw", str(path)]) == 0
    assert {"training.pdf", "training.png"} <= {p.name for p in tmp_path.iterdir()}
    labels = [axes.get_ylabel() for axes in lossmap.draw(path).axes]
    assert labels[0].startswith("sharpness of the step") and any("norm of the gradient" in label for label in labels)
    for axes in lossmap.draw(path).axes:
        assert axes.get_yscale() == "linear" or not axes.get_ylabel() or axes.get_ylabel().endswith("log scale")
    assert lossmap.draw([path, path]).axes[0].get_ylabel() == "sharpness / threshold"
    with pytest.raises(ValueError, match="no readings of a training"):
        lossmap.draw(lossmap.Surface(lossmap.Grid.line(-1, 1, 3), {"train_loss": np.ones(3)}), "training")
    capsys.readouterr()
    files = sorted((tmp_path / "run").iterdir())
    assert [f.name for f in files] == ["step_000005.pt", "step_000010.pt", "step_000015.pt"]
    run = lossmap.run_dynamics(
        [tmp_path / "run"], problem, path=tmp_path / "run.h5", top=1, tol=1e-3, parameters="all",
        backend="double-backward",
    )  # fmt: skip
    assert run["step"].tolist() == [5, 10, 15]
    assert run["eigenvalue"][:, 0] == pytest.approx(monitor.surface["max_eig"], rel=2e-2)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        CurvatureMonitor(problem, optimizer, path=path)


class Writer:
    """TensorBoard's interface, W&B's and Lightning's, each alone."""

    def __init__(self):
        self.rows = []


class Board(Writer):
    def add_scalar(self, name, value, step):
        self.rows.append((name, value, step))


class Run(Writer):
    def log(self, numbers, step=None):
        self.rows.append((numbers, step))


class Metrics(Writer):
    def log_metrics(self, metrics, step=None):
        self.rows.append((metrics, step))


def test_readings_go_into_every_kind_of_logger(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    board, run, metrics, rows = Board(), Run(), Metrics(), []
    loggers = [board, run, metrics, tmp_path / "readings.csv", lambda numbers, step: rows.append((step, numbers))]
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    monitor = CurvatureMonitor(problem, optimizer, every=2, loggers=loggers, max_overhead=None, trace_products=0)
    train(model, optimizer, monitor, steps=4)
    expected = monitor.surface["max_eig"].tolist()
    assert [v for name, v, step in board.rows if name == "curvature/max_eig"] == expected
    assert [(n["curvature/max_eig"], step) for n, step in run.rows] == list(zip(expected, [2, 4], strict=True))
    assert run.rows == metrics.rows
    assert [step for step, _ in rows] == [2, 4] and "trace" not in rows[0][1]
    with open(tmp_path / "readings.csv", newline="") as file:
        assert [float(row["max_eig"]) for row in csv.DictReader(file)] == expected
    with pytest.raises(TypeError, match="add_scalar, log_metrics or log"):
        CurvatureMonitor(problem, optimizer, loggers=[3])
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        CurvatureMonitor(problem, optimizer, loggers="readings.txt")


@pytest.mark.parametrize("logger", [[].append, logging.getLogger("own"), lambda numbers: None])
def test_a_logger_that_takes_other_arguments_is_refused_before_training_begins(logger):
    problem = lossmap.Problem.supervised(net(), "crossentropy", (X, Y))
    with pytest.raises(TypeError, match=r"is called as .*\(numbers, step.*\), which it does not take"):
        CurvatureMonitor(problem, loggers=[logger])


def test_a_logger_or_a_model_that_fails_later_ends_no_training(caplog):
    class Late(nn.Sequential):
        fails = False

        def forward(self, x):
            if self.fails and not self.training:
                raise RuntimeError("no more")
            return super().forward(x)

    def log(numbers, step):
        raise ConnectionError("no network")

    model = Late(*net())
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    monitor = CurvatureMonitor(problem, every=2, loggers=log, max_overhead=None, trace_products=0)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), monitor, steps=4)
    model.fails = True
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), monitor, steps=2)
    values = monitor.surface["max_eig"]
    assert np.isfinite(values).tolist() == [True, True, False]
    assert caplog.text.count("a logger of curvature fails: ConnectionError: no network") == 1
    assert "step 6: no curvature was measured: RuntimeError: no more" in caplog.text


def test_tensorboard_reads_what_was_logged(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = net()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with tensorboard.SummaryWriter(tmp_path) as writer:
        monitor = CurvatureMonitor(problem, loggers=writer, max_overhead=None, trace_products=0)
        reading = monitor.measure()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("curvature/max_eig")[0].value == pytest.approx(reading["max_eig"])


class Clock:
    """Seconds that pass when they are told to; in an array of Python's, which is not put back after a pass."""

    def __init__(self):
        self.seconds = array("d", [0.0])

    @property
    def now(self):
        return self.seconds[0]

    @now.setter
    def now(self, value):
        self.seconds[0] = value

    def __call__(self):
        return self.now


class Costly:
    """A measurement whose price is a number of seconds by a clock."""

    usual_seconds, usual_products, is_timed = 2.5, 50, True
    rule_reason, without_gradient = "", ()

    def __init__(self, inner, clock, parts=(), reading=2.5):
        self.problem, self.parameters, self.fields = inner.problem, inner.parameters, inner.fields
        self.clock, self.pending, self.reading, self.limits = clock, list(parts), reading, []

    def preparation_seconds(self, step):
        assert step == pytest.approx(0.125)
        return self.pending[0]

    def prepare_next(self):
        self.clock.now += self.pending.pop(0)

    def __call__(self, optimizer, products=None):
        self.clock.now += self.reading
        self.limits.append(products)
        return dict.fromkeys((f.name for f in self.fields), 50.0)


def costly_monitor(parts=(), steps=2000):
    """A monitor by a clock, after a training whose steps take 1/8 s: 2.5 s are 5 % of 50 s, or 400 steps."""
    clock = Clock()
    problem = lossmap.Problem.supervised(net(), "crossentropy", (X, Y))
    monitor = CurvatureMonitor(problem, every=10, max_overhead=0.05, clock=clock)
    assert monitor.overhead.spent == 0  # by this clock nothing has taken any time yet
    monitor.measurement = Costly(monitor.measurement, clock, parts)
    monitor.overhead.estimate = 2.5
    ratios = []
    for _ in range(steps):
        clock.now += 0.125
        monitor.step()
        ratios.append(monitor.overhead.ratio)
    assert max(ratios) <= 0.05 + 1e-9
    return monitor


def test_measurements_that_do_not_fit_are_left_out_and_that_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, logger="lossmap"):
        monitor = costly_monitor()
    assert monitor.surface.grid.x.tolist() == [400, 800, 1200, 1600, 2000]
    assert sum("max_overhead" in r.getMessage() for r in caplog.records) == 1


def test_what_prepares_a_reading_waits_until_it_fits_and_counts(caplog):
    """Of 2000 steps: 1 s is 5 % of 160, 4 s more of 800, the first reading then of 1200."""
    with caplog.at_level(logging.WARNING, logger="lossmap"):
        monitor = costly_monitor(parts=(1.0, 4.0))
    assert monitor.surface.grid.x.tolist() == [1200, 1600, 2000]
    assert monitor.overhead.prepared == 5.0 and monitor.overhead.spent == 12.5
    assert "the check before the first measurement of curvature takes about 1 s" in caplog.text
    # as many products as the time that is left is worth, by the price of a guess, and then of the last reading
    assert monitor.measurement.limits[0] == 50 and set(monitor.measurement.limits[1:]) == {62}


def test_where_what_prepares_a_reading_never_fits_none_is_taken_and_the_end_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="lossmap"):
        monitor = costly_monitor(parts=(1.0, 30.0))
        monitor.close()
    assert not monitor.history.steps and monitor.overhead.spent == 1.0
    assert "none of 200 readings of curvature fitted into max_overhead=0.05 of the training time" in caplog.text


def test_no_gradient_is_timed_before_training_has_earned_it():
    """A step of 1/64 s, 30 of which a guess allows for two timed gradients: 5 % of 600 steps."""

    passes = array("i", [0])  # which nothing puts back

    class Counted(nn.Sequential):
        def forward(self, x):
            passes[0] += 1
            return super().forward(x)

    clock, model = Clock(), Counted(*net())
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    before = passes[0]
    monitor = CurvatureMonitor(problem, every=10, max_overhead=0.05, clock=clock)
    for step in range(1000, 1595):  # of a training that was resumed
        clock.now += 1 / 64
        monitor.step(step)
    assert passes[0] == before and monitor.overhead.skipped == 60
    for step in range(1595, 1610):
        clock.now += 1 / 64
        monitor.step(step)
    assert passes[0] > before


def test_a_mistake_that_is_found_while_training_is_said_once_and_ends_only_the_readings(caplog):
    class Straight(torch.autograd.Function):
        """A rounding whose gradient is that of the identity."""

        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, slope):
            return slope

    class Rounded(nn.Module):
        def forward(self, x):
            return Straight.apply(x)

    model = net()
    model[1] = Rounded()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with pytest.raises(ValueError, match="the gradient"):
        CurvatureMonitor(problem, max_overhead=None)
    with caplog.at_level(logging.WARNING, logger="lossmap"):
        monitor = CurvatureMonitor(problem, every=2, max_overhead=1e9)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), monitor, steps=6)
        monitor.close()
    assert not monitor.history.steps
    assert caplog.text.count("no curvature is measured of this training: the gradient") == 1
    with pytest.raises(ValueError, match="the gradient"):
        monitor.measure()


def test_a_search_ends_with_the_products_that_fit():
    """Of a spectrum without gaps: fewer products, and limits that say how little they exclude."""
    problem, _ = quadratic(torch.linspace(-1, 1, 3000).double(), 1e-9, OPTIMIZERS["sgd"])
    few, many = (
        CurvatureMonitor(problem, max_overhead=None, trace_products=0, tol=1e-6).measurement(None, products)
        for products in (40, None)
    )
    assert few["products"] < 40 < many["products"]
    assert few["max_eig"] <= 1.0 <= few["max_eig_limit"] and few["max_eig_limit"] > many["max_eig_limit"]


def test_where_no_measurement_fits_the_end_says_so(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    caplog.set_level(logging.WARNING, logger="lossmap")
    with CurvatureMonitor(problem, optimizer, every=2, max_overhead=1e-9) as monitor:
        train(model, optimizer, monitor, steps=4)
    assert "none of 2 readings of curvature fitted into max_overhead=1e-09" in caplog.text
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        _ = monitor.surface


def test_a_training_too_short_to_make_up_for_what_was_asked_for_before_it_says_what_it_took(caplog):
    class Slow(nn.Sequential):
        """A model of which a pass takes half a second once."""

        def forward(self, x):
            passes[0] += 1
            clock.now += 0.5 * (passes[0] == 1)
            return super().forward(x)

    caplog.set_level(logging.WARNING, logger="lossmap")
    for seconds, is_said in ((2.0, True), (10.5, False)):
        caplog.clear()
        clock, passes = Clock(), array("i", [0])  # which nothing puts back
        problem = lossmap.Problem.supervised(Slow(*net()), "crossentropy", (X, Y))
        monitor = CurvatureMonitor(problem, every=10, max_overhead=0.05, clock=clock, check=True)
        clock.now += seconds
        monitor.close()
        sentence = "curvature took 0.5 s, 25 % of the training's 2 s: more than max_overhead=0.05; 0.5 s of it prepared"
        assert (sentence in caplog.text) == is_said, caplog.text


def test_seconds_inside_and_outside_are_counted_apart():
    clock = Clock()
    overhead = Overhead(0.1, clock)
    clock.now = 10.0
    with overhead.measuring():
        clock.now += 1.0
    assert (overhead.training, overhead.spent, overhead.estimate) == (10.0, 1.0, 1.0)
    assert not overhead.fits()
    clock.now += 10.0
    assert overhead.fits() and overhead.ratio == pytest.approx(0.05)


def test_a_loss_that_is_no_number_has_no_gradient_norm_and_that_is_said_once(caplog):
    """One batch without labels: PyTorch's gradient of its mean is 0, and the batch counts all the same."""
    model, y = net(), Y.clone()
    y[:64] = -100
    batches = [(X[i : i + 64], y[i : i + 64]) for i in range(0, len(X), 64)]
    problem = lossmap.Problem.custom(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batches)
    monitor = CurvatureMonitor(problem, max_overhead=None, every=1)
    readings = [monitor.step() for _ in range(2)]
    assert all(np.isnan(r[name]) for r in readings for name in ("loss", "gradient_norm", "max_eig"))
    assert sum("the loss over the fixed samples is no number" in r.getMessage() for r in caplog.records) == 1


def test_a_training_that_diverges_goes_on_and_the_readings_say_so(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    monitor = CurvatureMonitor(
        problem, optimizer, path=tmp_path / "t.h5", checkpoints=tmp_path / "run", max_overhead=None, every=1
    )
    monitor.step()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    reading = monitor.step()
    assert np.isnan(reading["loss"]) and np.isnan(reading["max_eig"]) and reading["stability_threshold"] == 20
    assert lossmap.read(tmp_path / "t.h5").outcome == "complete"  # NaN is what there is
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["step_000001.pt"]
    lossmap.draw(tmp_path / "t.h5")


def test_what_cannot_be_measured_is_refused_before_training_begins():
    model = net()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with pytest.raises(ValueError, match="every must be a whole number >= 1; got 0"):
        CurvatureMonitor(problem, every=0)
    with pytest.raises(ValueError, match=r"path is that of an HDF5 file.*loggers='readings.csv'"):
        CurvatureMonitor(problem, path="readings.csv")
    with pytest.raises(ValueError, match="max_overhead must be > 0"):
        CurvatureMonitor(problem, max_overhead=0)
    with pytest.raises(ValueError, match="trace_products must be 0"):
        CurvatureMonitor(problem, trace_products=2)
    with pytest.raises(ValueError, match="second derivatives drown"):
        CurvatureMonitor(replace(problem, model=net().bfloat16()))
    model[0].weight.ds_id = 1
    with pytest.raises(ValueError, match="sharded over processes"):
        CurvatureMonitor(problem)


def test_a_file_names_the_process_that_trains_until_the_monitor_is_closed(tmp_path):
    model, path = net(), tmp_path / "training.h5"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = CurvatureMonitor(
        lossmap.Problem.supervised(model, "crossentropy", (X, Y)), optimizer, every=4, path=path, max_overhead=None
    )
    train(model, optimizer, monitor, steps=4)
    assert str(lossmap.read(path).attributes["training_process"]).endswith(f" {os.getpid()}")
    monitor.close()
    assert "training_process" not in lossmap.read(path).attributes


class KeepsAnIntermediate(torch.autograd.Function):
    """x sigmoid(x), with an intermediate on ctx that its second derivative does not know of."""

    @staticmethod
    def forward(ctx, x):
        ctx.gate = x.sigmoid()
        ctx.save_for_backward(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (ctx.gate + x * ctx.gate * (1 - ctx.gate))


class DifferentiableOnce(torch.autograd.Function):
    """x sigmoid(x), whose backward is not differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return slope * (gate + x * gate * (1 - gate))


@pytest.mark.parametrize("function", [KeepsAnIntermediate, DifferentiableOnce])
def test_a_function_with_a_wrong_second_derivative_does_not_reach_the_readings(function):
    class Activation(nn.Module):
        def forward(self, x):
            return function.apply(x)

    model = net()
    truth = dense(nn.Sequential(model[0], nn.SiLU(), model[2]), X, Y)
    model[1] = Activation()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    reading = CurvatureMonitor(problem, every=1, max_overhead=None, trace_products=0).step()
    values = torch.linalg.eigvalsh(truth)
    for name, place in (("max_eig", -1), ("min_eig", 0)):
        assert abs(reading[name] - float(values[place])) <= reading[f"{name}_error"] + 1e-6


def test_a_model_that_leads_to_its_monitor_as_lightnings_do_is_measured():
    class Trainer:
        """What holds callbacks, and is held by the model."""

    class Activation(nn.Module):
        def forward(self, x):
            return KeepsAnIntermediate.apply(x)

    model = net()
    values = torch.linalg.eigvalsh(dense(nn.Sequential(model[0], nn.SiLU(), model[2]), X, Y))
    model[1], model.trainer = Activation(), Trainer()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    model.trainer.callbacks = [CurvatureMonitor(problem, max_overhead=None)]
    reading = model.trainer.callbacks[0].measure()
    assert reading["max_eig"] == pytest.approx(float(values[-1]), abs=reading["max_eig_error"] + 1e-6)


class Trainer:
    """What a user keeps around a training whose loss is a method of it."""

    def __init__(self, model):
        self.teacher = copy.deepcopy(model)
        self.samples = [types.SimpleNamespace(name=str(i)) for i in range(400)]
        self.steps, self.log, self.lines, self.last = 0, [], [""] * 20_000, deque(maxlen=4)
        self.rate, self.seen, self.generator = np.ones(()), Counter(), torch.Generator().manual_seed(3)
        self.numpy, self.mean, self.baseline = np.random.default_rng(5), torch.zeros(5), None

    def counted(self, outputs, batch):
        self.steps += 1
        self.log.append(outputs.mean().item())
        self.lines.append("another")
        self.last.append(outputs.detach())
        self.seen[len(batch[0])] += 1
        if self.steps % 500 == 0:
            self.teacher.load_state_dict({k: v + 1 for k, v in self.teacher.state_dict().items()})
        return (outputs - self.teacher(batch[0]).detach()).square().mean()

    def annealed(self, outputs, batch):
        self.steps += 1
        return F.cross_entropy(outputs, batch[1]) + min(1.0, self.steps / 100) * outputs.square().mean()

    def scaled(self, outputs, batch):
        self.rate *= 0.99
        return F.cross_entropy(outputs, batch[1]) * float(self.rate)

    def smoothed(self, outputs, batch):
        value = F.cross_entropy(outputs, batch[1], reduction="none")
        self.baseline = (
            value.mean().item() if self.baseline is None else 0.9 * self.baseline + 0.1 * value.mean().item()
        )
        return (value * self.baseline).mean()

    def centred(self, outputs, batch):
        self.mean.mul_(0.9).add_(0.1 * batch[0].mean(0))
        return F.cross_entropy(outputs, batch[1]) + (outputs.mean() - self.mean.sum()).square()

    def drawn(self, outputs, batch):
        noise = torch.randn(outputs.shape, generator=self.generator) * self.numpy.random()
        return F.cross_entropy(outputs + noise, batch[1])


@pytest.mark.parametrize("name", ["counted", "annealed", "scaled", "smoothed", "centred", "drawn"])
def test_a_training_whose_loss_keeps_something_is_the_same_to_the_last_bit(name):
    """Whatever its passes leave is put back, also where the measurement itself is refused."""

    def trained(with_monitor):
        torch.manual_seed(0)
        model = nn.Sequential(*net())
        keeper = Trainer(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def loss(model, batch):
            return getattr(keeper, name)(model(batch[0]), batch)

        monitor = None
        if with_monitor:
            problem = lossmap.Problem.custom(model, loss, [(X, Y)])
            with contextlib.suppress(ValueError):  # refused by name: of `smoothed`, whose gradient is not the loss's
                monitor = CurvatureMonitor(problem, optimizer, every=4, max_overhead=None)
            assert (monitor is None) == (name == "smoothed")
        for _ in range(12):
            optimizer.zero_grad()
            loss(model, (X, Y)).backward()
            optimizer.step()
            if monitor is not None:
                monitor.step()
        kept = (keeper.steps, keeper.log, len(keeper.lines), keeper.seen, float(keeper.rate), keeper.baseline)
        return kept, [*(p.tolist() for p in model.parameters()), keeper.mean.tolist(), keeper.numpy.random()]

    assert trained(True) == trained(False)
