"""A reduced form of benchmarks/trust.py: random networks against dense truth, and what the benchmark itself counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SEEDS = [0, 2, 4, 5, 6, 7, 9, 16]  # of all kinds of layers and losses
FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "trust.py"


@pytest.fixture(scope="module")
def trust():
    spec = importlib.util.spec_from_file_location("trust", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def linear_case(trust, loss):
    """Logits x W^T of two classes, W of shape (2, 3), all samples of class 0."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2, bias=False).double(), torch.randn(20, 3, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, 0] = 12.0
        x[:, 0] = x[:, 0].abs() + 1.0
    return trust.Case(0, ["linear"], model, lambda: None, lambda m: loss(m(x))), model, x


def test_the_truth_is_the_closed_form_down_to_saturation(trust):
    y = torch.zeros(20, dtype=torch.long)
    case, model, x = linear_case(trust, lambda o: trust.weighted(trust.logs_of(o), y))
    truth = trust.truth_at(case)
    out = model(x).detach()
    gap = out[:, 0] - out[:, 1]
    pq = torch.exp(-gap) / (1 + torch.exp(-gap)) ** 2  # p (1 - p), not cancelling
    block = (x * pq[:, None]).T @ x / 20
    exact = np.linalg.eigvalsh(np.kron([[1, -1], [-1, 1]], block.numpy()))
    assert truth.loss < 1e-4
    assert truth.known and np.abs(truth.values - exact).max() <= truth.error <= 1e-4 * exact[-1]


def test_wrong_values_bars_limits_and_claims_are_counted(trust):
    case, _, _ = linear_case(trust, lambda o: (o**2).sum())
    truth = trust.Truth(np.array([0.5, 1.0, 2.0]), 3.5, 1e-9, 1e-9, 1.0)
    tally = trust.Tally()
    tally.value(case, "", 2.001, 1e-2, truth, 2)
    assert (tally.broken, tally.wide, tally.failures) == (0, 0, [])
    tally.value(case, "", 2.1, 1e-2, truth, 2)
    tally.limit(case, "", 1.9, float("nan"), truth)
    tally.trace(case, "", 3.4, 3.45, True, truth)
    tally.words(case, "", "indefinite: negative curvature (smallest ...)", truth)
    assert (tally.broken, tally.limits_broken, tally.limits, tally.claims) == (2, 1, 1, 1)
    tally.value(case, "", 2.0, 0.1, truth, 2)
    assert (tally.wide, tally.useless) == (1, 1)


def test_the_truth_in_float64_is_the_same_function_with_the_right_gradient(trust):
    x = torch.linspace(-4, 4, 12).view(4, 3)
    net = nn.Sequential(nn.Linear(3, 3), nn.RMSNorm(3), nn.Hardsigmoid())
    twin = trust.in_float64(net)
    with torch.no_grad():
        net[0].weight.mul_(1e-3)  # an input of the norm near the unit roundoff of float32
        net[0].bias.zero_()
        twin[0].load_state_dict(net[0].double().state_dict())
        net[0].float()
    torch.testing.assert_close(twin(x.double()), net(x).double(), rtol=1e-6, atol=1e-6)
    inputs = torch.tensor([0.3, -3.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(twin[2](inputs).sum(), inputs)
    assert slope.tolist() == pytest.approx([1 / 6, 0.0], rel=1e-15)  # in PyTorch's 1/6 is that of float32


def test_networks_are_made_by_their_seeds(trust):
    first, second = trust.case_of(4), trust.case_of(4)
    assert first.words == second.words != trust.case_of(5).words
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_no_bar_breaks_on_random_networks(trust):
    tally = trust.run(SEEDS, quiet=True)
    assert tally.nets == len(SEEDS) and tally.values > 8 * len(SEEDS)
    assert (tally.broken, tally.claims, tally.crashed) == (0, 0, 0), tally.failures
    assert tally.limits_broken <= 1, tally.failures
    assert tally.unknown <= 4
