"""Two passes that show whether one leaves anything for another: what does is seen, what does not is left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap import Problem
from lossmap.data.left_behind import loss_that_leaves_nothing


class Of(nn.Module):
    """A layer, what a pass does beside it, and what it adds to the outputs."""

    def __init__(self, beside):
        super().__init__()
        self.layer, self.beside, self.calls, self.hidden = nn.Linear(4, 3), beside, 0, torch.zeros(3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        return self.layer(x) + self.beside(self)


def counts(model):
    model.calls += 1
    return 0.0


def carries(model):
    model.hidden = model.hidden + 1e-6
    return model.hidden


def sets_a_buffer(model):
    model.scale.data.mul_(1.5)
    return 0.0


def sets_a_parameter(model):
    model.layer.weight.data[0, 0] = 2.0
    return 0.0


def keeps_with_its_graph(model):
    if not hasattr(model, "kernel"):
        model.kernel = model.layer.weight.exp().sum()
    return 0.0 * model.kernel


def fails_the_second_time(model):
    model.calls += 1
    if model.calls > 1:
        raise RuntimeError("once is enough")
    return 0.0


def does_nothing(model):
    return model.scale


LEAVING = [counts, carries, sets_a_buffer, sets_a_parameter, keeps_with_its_graph, fails_the_second_time]


def problem_of(beside):
    torch.manual_seed(0)
    return Problem.supervised(Of(beside), F.cross_entropy, (torch.randn(12, 4), torch.arange(12) % 3))


@pytest.mark.parametrize("beside", LEAVING)
def test_what_a_pass_leaves_is_seen(beside):
    problem = problem_of(beside)
    assert loss_that_leaves_nothing(problem, next(iter(problem.data))) is None
    assert problem.model.calls == 0 and not hasattr(problem.model, "kernel")


def test_a_schedule_of_the_loss_is_seen():
    steps = iter(range(1000))

    def loss(outputs, targets):
        next(steps)
        return F.cross_entropy(outputs, targets)

    problem = Problem.supervised(nn.Linear(4, 3), loss, (torch.randn(12, 4), torch.arange(12) % 3))
    assert loss_that_leaves_nothing(problem, next(iter(problem.data))) is None


@pytest.mark.parametrize(
    "make", [lambda: problem_of(does_nothing).model, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))]
)
def test_of_most_models_nothing_is_left(make):
    problem = Problem.supervised(make().eval(), "crossentropy", (torch.randn(12, 4), torch.arange(12) % 3))
    batch = next(iter(problem.data))
    assert loss_that_leaves_nothing(problem, batch) == pytest.approx(float(problem.total(batch).detach()))
