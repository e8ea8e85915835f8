"""What torch.compile has made of a model, of a part of it or of a loss: the same bits as without, and left compiled."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.landscape.loss import plain_forward

X, Y = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


class Counting:
    """A backend that runs the graphs as they are, and counts their calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))


def huber(outputs, targets):
    return nn.functional.smooth_l1_loss(outputs, nn.functional.one_hot(targets, 3).float())


def whole(backend):
    net = network()
    return torch.compile(net, backend=backend), "crossentropy", net


def in_place(backend):
    net = network()
    net.compile(backend=backend)
    return net, "crossentropy", net


def a_part(backend):
    net = network()
    net[2] = torch.compile(net[2], backend=backend)
    return net, "crossentropy", net


def the_loss(backend):
    net = network()
    return net, torch.compile(huber, backend=backend), net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [whole, in_place, a_part, the_loss])
def test_losses_are_those_without_to_the_bit_and_what_was_compiled_stays_so(make):
    backend = Counting()
    model, loss, inner = make(backend)
    compiled = lossmap.Problem.supervised(model, loss, (X, Y))
    plain = lossmap.Problem.supervised(network(), huber if callable(loss) else loss, (X, Y))
    found = []
    for problem in (plain, compiled):
        plane = lossmap.random_plane(problem.model, seed=1)
        grid = lossmap.Grid.square(-1, 1, 2)
        surface = lossmap.survey(lossmap.losses(problem, plane, plan=plain_forward(problem)), grid)
        eigen = lossmap.survey(lossmap.EigenvalueMap(problem, plane, certify="none"), grid)
        found.append((surface["train_loss"], eigen["max_eig"], eigen["min_eig"]))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(found[0][1:], found[1][1:], strict=True))  # as probed
    lossmap.spectrum(compiled, top=1)
    lossmap.diagnose(compiled)
    assert backend.calls == 0
    fresh = Counting()
    assert used_by_its_owner(model, loss, backend) == used_by_its_owner(*make(fresh)[:2], fresh)  # compiled again
    assert torch.equal(inner(X), network()(X)) or make is a_part


def used_by_its_owner(model, loss, backend):
    """The calls of compiled graphs that a pass makes."""
    outputs = model(X)
    if callable(loss):
        loss(outputs, Y)
    return backend.calls
