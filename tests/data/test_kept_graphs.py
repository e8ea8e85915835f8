"""What a model makes of its weights once and keeps with its graph: refused by name, or made anew in every pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.loss_check import check_loss

BATCHES = 6  # samples of each


class Net(nn.Module):
    """tanh(x exp(W)^T), read out; exp(W) is kept as `keep` says."""

    def __init__(self, keep):
        super().__init__()
        self.weight, self.out, self.keep = nn.Parameter(0.3 * torch.randn(5, 4)), nn.Linear(5, 3), keep
        self.kernel = self.weight.exp() if keep == "in __init__" else None
        if keep == "in a buffer":
            del self.kernel
            self.register_buffer("kernel", None)
        kept = []

        def made():
            if not kept:
                kept.append(self.weight.exp())
            return kept[0]

        self.made = made

    def exponential(self):
        if self.keep == "nowhere":
            return self.weight.exp()
        if self.keep == "in a closure of its own":
            return self.made()
        if self.kernel is None and self.keep != "in __init__":
            self.kernel = self.weight.exp()
        return self.kernel

    def forward(self, x):
        return self.out(torch.tanh(x @ self.exponential().T))


def net_and_data(keep):
    torch.manual_seed(0)
    return Net(keep), (torch.randn(24, 4), torch.arange(24) % 3)


def supervised(keep):
    net, data = net_and_data(keep)
    return lossmap.Problem.supervised(net, "crossentropy", data, batch_size=BATCHES)


def custom(keep):
    net, data = net_and_data(keep)
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    return lossmap.Problem.custom(net, loss, data, batch_size=BATCHES)


@pytest.mark.parametrize("problem_of", [supervised, custom])
@pytest.mark.parametrize(
    "keep, name",
    [("in __init__", "kernel"), ("in a closure of its own", "something made of weight"), ("in a buffer", "kernel")],
)
def test_what_was_made_before_is_refused_by_name(problem_of, keep, name):
    problem = problem_of(keep)
    problem.model(torch.ones(2, 4))
    with pytest.raises(ValueError, match=f"the model keeps {name}, which was made of its weights before, with its gra"):
        check_loss(problem)


@pytest.mark.parametrize("problem_of", [supervised, custom])
@pytest.mark.parametrize("keep", ["in the first pass", "in a buffer"])
def test_what_the_first_pass_makes_is_made_anew_in_every_pass(problem_of, keep):
    problem, right = problem_of(keep), problem_of("nowhere")
    seen, expected = (lossmap.trace(lossmap.hessian(p), products=12).value for p in (problem, right))
    assert seen == pytest.approx(expected, rel=1e-4)
    short = {"radius": {"absolute": 0.05}, "draws": 0, "starts": 1, "ascent_steps": 1}
    sharp = [lossmap.sharpness(p, **short).ball("absolute").worst for p in (problem, right)]
    assert sharp[0] == pytest.approx(sharp[1], rel=1e-3)
    assert problem.model.kernel is None


class WithFeatures(nn.Module):
    """Keeps its last features, and reads a table made of another network's weights."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(4, 5), nn.utils.weight_norm(nn.Linear(5, 3))
        self.table = nn.Linear(4, 5).weight.exp()
        self.features = None

    def forward(self, x):
        self.features = torch.tanh(self.body(x) + x @ self.table.T)
        return self.norm(self.features)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_a_pass_does_not_read_again_or_was_made_of_other_weights_is_no_reason():
    torch.manual_seed(0)
    net, x = WithFeatures(), nn.Linear(4, 4)(torch.randn(24, 4))
    net(x)
    problem = lossmap.Problem.supervised(net, "crossentropy", (x, torch.arange(24) % 3))
    assert check_loss(problem).forward == problem.forward
