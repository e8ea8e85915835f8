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


def data():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    x[::3, 1] = MARK
    return x, torch.arange(24) % 3


@pytest.mark.parametrize("make", [Marked, Branching])
def test_traces_and_blocks_are_those_of_the_model_in_its_own_precision(make):
    model, (x, y) = make(), data()
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), (x, y))
    with pytest.raises(ValueError, match="the model is another function in that precision"):
        problem_in(problem, torch.float64)

    def loss(first, last):
        return F.cross_entropy(functional_call(model, {"net.0.weight": first, "net.2.weight": last}, (x,)), y)

    tensors = (model.net[0].weight.detach(), model.net[2].weight.detach())
    blocks = torch.autograd.functional.hessian(loss, tensors)
    truths = [blocks[i][i].reshape(t.numel(), -1) for i, t in enumerate(tensors)]
    plane = lossmap.random_plane(model, axes=1, seed=0)
    reading = lossmap.EigenvalueMap(problem, plane, "trace")((0.0,))
    assert reading["trace"] == pytest.approx(sum(float(t.trace()) for t in truths), rel=1e-4, abs=1e-5)
    layers = lossmap.layer_spectra(problem, parameters="weights", density_error=None, whole=False, probes=0)
    for name, truth in zip(("net.0.weight", "net.2.weight"), truths, strict=True):
        assert layers[name].largest == pytest.approx(float(torch.linalg.eigvalsh(truth)[-1]), rel=1e-4)
    assert "another function" in " ".join(layers.notes)


def test_a_model_that_rounds_alone_is_the_same_function():
    model, (x, y) = Marked(), data()
    x[x == MARK] = 0.0
    with torch.no_grad():
        model.net[2].weight.mul_(1e4)
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), (x, y))
    assert problem_in(problem, torch.float64).separable
