"""Trainings that change on the way, or wrap their optimizer, and numbers out of range."""

import math

import pytest
import torch
from torch import nn

import lossmap
from lossmap.callbacks import CurvatureMonitor
from lossmap.diagnostics.step_rule import step_rule

X = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(12, 3).sin()
Y = torch.arange(12) % 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def monitor_of(model, optimizer, **options):
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    return CurvatureMonitor(problem, optimizer, every=1, max_overhead=None, **options)


def hessian(model):
    """Dense, of the parameters that are trained, by a function of the flat vector."""
    moving = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in moving.values()]

    def loss(theta):
        tensors = [t.reshape(p.shape) for t, p in zip(theta.split(sizes), moving.values(), strict=True)]
        outputs = torch.func.functional_call(model, dict(zip(moving, tensors, strict=True)), (X,))
        return nn.functional.cross_entropy(outputs, Y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.reshape(-1) for p in moving.values()]))


def test_layers_that_are_unfrozen_and_frozen_again_are_followed(caplog):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model[0].requires_grad_(False)
    monitor = monitor_of(model, optimizer, tol=1e-6)
    for step in range(3):
        model[0].requires_grad_(step == 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        reading = monitor.step()
        eigenvalues = torch.linalg.eigvalsh(hessian(model))
        assert reading["max_eig"] == pytest.approx(float(eigenvalues[-1]), abs=1e-5)
        assert reading["min_eig"] == pytest.approx(float(eigenvalues[0]), abs=1e-5)
        assert reading["trace"] == pytest.approx(float(eigenvalues.sum()), abs=5 * reading["trace_error"] + 1e-6)
    texts = [r.getMessage() for r in caplog.records]
    assert sum("from here on the Hessian is of 4 tensors, no longer of 2" in text for text in texts) == 1
    assert not any("no curvature was measured" in text for text in texts)


class Lookahead(torch.optim.Optimizer):
    """As people write it: every other step goes half the way back, so that its threshold is not that of the inner."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})


def test_an_optimizer_around_another_has_no_threshold_of_that_one_but_for_the_trainers_wrappers():
    lightning = pytest.importorskip("lightning.pytorch.core.optimizer")
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    named = dict(model.named_parameters())
    rule = step_rule(Lookahead(inner), named)
    assert math.isnan(rule.threshold) and "no stability threshold is known for Lookahead" in rule.reason
    assert step_rule(lightning.LightningOptimizer(inner), named).threshold == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 2.5}, "every must be a whole number >= 1; got 2.5"),
        ({"every": float("nan")}, "every must be a whole number >= 1; got nan"),
        ({"tol": 0.0}, "tol must be between 0 and 1; got 0.0"),
        ({"max_products": 1}, "max_products must be >= 2; got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, text):
    model = net()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with pytest.raises(ValueError, match=text):
        CurvatureMonitor(problem, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize("kind", ["name", "schedule"])
def test_what_is_no_optimizer_is_refused(kind):
    model = net()
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 3)
    with pytest.raises(TypeError, match="optimizer must be one of PyTorch's kind"):
        monitor_of(model, {"name": "sgd", "schedule": schedule}[kind])
