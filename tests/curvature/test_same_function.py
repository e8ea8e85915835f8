"""Where a model is another function in float64, nothing is read there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import lossmap
from lossmap import Problem
from lossmap.curvature.rounding import problem_in

MARK = -9.9  # as missing values are marked; float32 rounds it


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

    def forward(self, x):
        return self.net(torch.where(x == MARK, torch.zeros_like(x), x))


class Branching(Marked):
    def forward(self, x):
        return self.net(x.sin() if x.dtype == torch.float32 else x)


class Slight(Marked):
    """Another function by a hundredth of its inputs."""

    def forward(self, x):
        return self.net(x if x.dtype == torch.float32 else 1.01 * x)


def data():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    x[::3, 1] = MARK
    return x, torch.arange(24) % 3


def mean_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("kind", ["supervised", "custom"])
@pytest.mark.parametrize("make", [Marked, Branching, Slight])
def test_traces_ends_and_blocks_are_those_of_the_model_in_its_own_precision(make, kind, caplog):
    model, (x, y) = make(), data()
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), (x, y))
    if kind == "custom":
        problem = Problem.custom(model, mean_entropy, (x, y))
    with pytest.raises(ValueError, match="the model is another function in that precision"):
        problem_in(problem, torch.float64)

    def loss(first, last):
        return F.cross_entropy(functional_call(model, {"net.0.weight": first, "net.2.weight": last}, (x,)), y)

    tensors = (model.net[0].weight.detach(), model.net[2].weight.detach())
    blocks = torch.autograd.functional.hessian(loss, tensors)
    matrix = torch.cat(
        [torch.cat([b.reshape(t.numel(), -1) for b in r], 1) for t, r in zip(tensors, blocks, strict=True)]
    )
    truths = [blocks[i][i].reshape(t.numel(), -1) for i, t in enumerate(tensors)]
    plane = lossmap.random_plane(model, axes=1, seed=0)
    reading = lossmap.EigenvalueMap(problem, plane, "ends,trace")((0.0,))
    assert reading["trace"] == pytest.approx(float(matrix.trace()), rel=1e-4, abs=1e-5)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert abs(reading["max_eig"] - top) < min(reading["max_eig_error"], 1e-3 * top)
    assert reading["eigen_rounding_measured"] == 0
    assert "rounding is not measured in another precision" in caplog.text
    layers = lossmap.layer_spectra(problem, parameters="weights", density_error=None, whole=False, probes=0)
    for name, truth in zip(("net.0.weight", "net.2.weight"), truths, strict=True):
        assert layers[name].largest == pytest.approx(float(torch.linalg.eigvalsh(truth)[-1]), rel=1e-4)
    assert "another function" in " ".join(layers.notes)


def test_a_loss_may_be_another_function_too():
    model, (x, _) = Marked(), data()
    targets = torch.randn(24, 3, generator=torch.Generator().manual_seed(2))
    targets[::4, 1] = MARK

    def over_known(outputs, targets):
        return torch.where(targets == MARK, torch.zeros_like(targets), outputs - targets).square().mean()

    problem = Problem.supervised(model, over_known, (x.clamp(min=-3), targets))
    with pytest.raises(ValueError, match="the model is another function in that precision"):
        problem_in(problem, torch.float64)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_loss_that_is_all_rounding_is_the_same_function(scale):
    """1 - p with p -> 1 at the model's own weights: 0 in float32, and not in float64."""
    model, (x, _) = Marked(), data()
    x = x.clamp(min=-3)
    with torch.no_grad():
        model.net[2].weight.mul_(scale)
        model.net[2].bias.mul_(scale)
        y = model(x).argmax(1)

    def loss(model, batch):
        return (1 - model(batch[0]).softmax(1).gather(1, batch[1][:, None])).mean()

    assert problem_in(Problem.custom(model, loss, (x, y)), torch.float64).samples == 24


def test_a_network_that_amplifies_rounding_is_the_same_function():
    """A chaotic map of 20 steps, after which float32 has no digits left: neither has what a unit roundoff does."""

    class Chaotic(Marked):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.linspace(0.1, 0.3, 4))

        def forward(self, x):
            h = torch.sigmoid(x.clamp(min=-3) + self.shift)
            for _ in range(20):
                h = 3.9 * h * (1 - h)
            return self.net(h)

    problem = Problem.supervised(Chaotic(), nn.CrossEntropyLoss(), data())
    twin = problem_in(problem, torch.float64)
    outputs = [one.forward(one.model, next(iter(one.data))).detach().double() for one in (problem, twin)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4  # beyond what rounding does to most models


def test_a_model_that_rounds_alone_is_the_same_function():
    model, (x, y) = Marked(), data()
    x[x == MARK] = 0.0
    with torch.no_grad():
        model.net[2].weight.mul_(1e4)
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), (x, y))
    assert problem_in(problem, torch.float64).separable
