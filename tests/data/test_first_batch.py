"""What a model sets from the first batch that it is given is refused by name, and read once it stands."""

import pytest
import torch
from torch import nn

import lossmap
from lossmap.data.loss_check import check_loss

X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3


class ActNorm(nn.Module):
    """Parameters, set so that the first batch comes out with mean 0 and variance 1; a buffer says whether they are."""

    def __init__(self):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.ones(6))
        self.register_buffer("initialized", torch.tensor(0))

    def forward(self, x):
        if not self.initialized:
            with torch.no_grad():
                self.loc.data.copy_(-x.mean(0))
                self.scale.data.copy_(1 / (x.std(0) + 1e-6))
                self.initialized.fill_(1)
        return (x + self.loc) * self.scale


class InBuffers(nn.Module):
    """Mean and deviation of the first batch in buffers."""

    def __init__(self):
        super().__init__()
        self.ready = False
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if not self.ready:
            self.mean, self.ready = x.detach().mean(0), True
        return x - self.mean


class InAttributes(nn.Module):
    """The largest size of the first batch in an attribute."""

    def __init__(self):
        super().__init__()
        self.largest = None

    def forward(self, x):
        if self.largest is None:
            self.largest = x.detach().abs().max()
        return x / self.largest


class WithTable(nn.Module):
    """A table of places made in the first pass, and a count of passes: the loss depends on neither."""

    def __init__(self):
        super().__init__()
        self.table, self.passes = None, 0

    def forward(self, x):
        self.passes += 1
        if self.table is None:
            self.table = torch.arange(6.0)
        return x + 0.1 * self.table


def problem_of(layer):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), layer, nn.Tanh(), nn.Linear(6, 3))
    return lossmap.Problem.supervised(net, "crossentropy", (X, Y), batch_size=10)


@pytest.mark.parametrize(
    "layer, names",
    [(ActNorm, "1.loc, 1.scale, 1.initialized"), (InBuffers, "1.mean, 1.ready"), (InAttributes, "1.largest")],
)
def test_what_the_first_batch_sets_is_refused_by_name(layer, names):
    with pytest.raises(ValueError, match=f"the model sets {names} from the first batch that it is given"):
        check_loss(problem_of(layer()))


@pytest.mark.parametrize("layer", [ActNorm, InBuffers])
def test_once_it_stands_it_is_read(layer):
    problem = problem_of(layer())
    problem.model(X)
    assert check_loss(problem).notes == ()


def test_what_a_first_pass_makes_and_the_loss_does_not_depend_on_is_no_reason():
    assert not any("sets" in note for note in check_loss(problem_of(WithTable())).notes)
