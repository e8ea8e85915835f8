"""Losses put together of several functions: float32 keeps its digits down to a loss of 1e-16, as in one function.

The truth is the same loss in float64, written so that nothing cancels: of margins for two classes.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap import Grid, Problem
from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.stable.forms import stable_forms

ROWS = torch.arange(24)


def sign(t):
    return 2.0 * t - 1.0


def soft(m):
    """log(1 + exp(-m)) of margins."""
    return torch.where(m > 0, (-m.abs()).exp().log1p(), -m.clamp(max=0) + (-m.abs()).exp().log1p())


def miss(m):
    """1 - sigmoid(m) of margins."""
    small = (-m.abs()).exp()
    return torch.where(m > 0, small, 1.0) / (1.0 + small)


def one_margin(o, t):
    return sign(t.to(o)) * o.squeeze(1)


def two_margin(o, t):
    return sign(t.to(o)) * (o[:, 1] - o[:, 0])


def one_hot(o, t):
    return F.one_hot(t, 2).to(o)


def written_out(p, t):
    return -(t * torch.log(p) + (1 - t) * torch.log(1 - p)).mean()


# (outputs of the network, the loss as people write it, the truth)
LOSSES = {
    "sigmoid, BCELoss": (1, lambda o, t: nn.BCELoss()(o.sigmoid().squeeze(1), t.to(o)),
                         lambda o, t: soft(one_margin(o, t)).mean()),
    "sigmoid, BCE written out": (1, lambda o, t: written_out(torch.sigmoid(o)[:, 0], t.to(o)),
                                 lambda o, t: soft(one_margin(o, t)).mean()),
    "sigmoid, MSE": (1, lambda o, t: F.mse_loss(o.sigmoid().view(-1), t.to(o)),
                     lambda o, t: miss(one_margin(o, t)).square().mean()),
    "softmax, log, NLL": (2, lambda o, t: F.nll_loss(F.softmax(o, 1).log(), t),
                          lambda o, t: soft(two_margin(o, t)).mean()),
    "softmax, picked": (2, lambda o, t: -torch.log(o.softmax(-1)[ROWS[: len(o)], t]).mean(),
                        lambda o, t: soft(two_margin(o, t)).mean()),
    "softmax, gathered": (2, lambda o, t: -o.softmax(1).gather(1, t[:, None]).squeeze(1).log().mean(),
                          lambda o, t: soft(two_margin(o, t)).mean()),
    "normalized by logsumexp": (2, lambda o, t: F.nll_loss(o - o.logsumexp(1, keepdim=True), t),
                                lambda o, t: soft(two_margin(o, t)).mean()),
    "logsumexp less the label's": (2, lambda o, t: (o.logsumexp(1) - o[ROWS[: len(o)], t]).mean(),
                                   lambda o, t: soft(two_margin(o, t)).mean()),
    "logsumexp less gathered": (2, lambda o, t: (o.logsumexp(1) - o.gather(1, t[:, None]).squeeze(1)).mean(),
                                lambda o, t: soft(two_margin(o, t)).mean()),
    "softmax, BCELoss": (2, lambda o, t: nn.BCELoss()(o.softmax(1), one_hot(o, t)),
                         lambda o, t: soft(two_margin(o, t)).mean()),
    "softmax, MSE": (2, "mse", lambda o, t: miss(two_margin(o, t)).square().mean()),
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0).long()
    x[:, 0] += sign(y)
    return x, y


def net(outputs, length):
    """A network whose margins are some `length` times the first input's."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, outputs, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4) * torch.tensor([1.0, 0.2, 0.2, 0.2]))
        model[2].weight.mul_(0.3)
        model[2].weight[-1, 0] += length
    return model


def truth(model, loss, x, y):
    """(loss, gradient, Hessian) in float64."""
    model = copy.deepcopy(model).double()
    weights = list(model.parameters())
    value = loss(model(x.double()), y)
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, weights, create_graph=True)])
    rows = [torch.autograd.grad(s, weights, retain_graph=True) for s in slope]
    return float(value.detach()), slope.detach(), torch.stack([torch.cat([h.reshape(-1) for h in r]) for r in rows])


@pytest.mark.parametrize("name", list(LOSSES))
def test_float32_keeps_its_digits_however_small_the_loss(name, data):
    outputs, loss, exact = LOSSES[name]
    (x, y), smallest = data, 1.0
    for length in (15.0, 45.0):
        model = net(outputs, length)
        value, slope, hessian = truth(model, exact, x, y)
        smallest = min(smallest, value)
        problem = Problem.supervised(model, loss, (x, y))
        plane = lossmap.random_plane(model, axes=1)
        surface = lossmap.survey(lossmap.losses(problem, plane), Grid.line(0, 0, 1))
        assert abs(float(surface["train_loss"][0]) / value - 1) < 2e-4
        found = loss_and_gradient(problem, "all").gradient.double()
        assert (found - slope).norm() < 2e-4 * slope.norm()
        v = torch.randn(len(slope), generator=torch.Generator().manual_seed(1))
        for backend in ("double-backward", "linearized"):
            product = (prepare(problem, "all", backend=backend).at() @ v).double()
            error = (product - hessian @ v.double()).norm() / hessian.norm() / v.norm().double()
            assert error < 2e-4, (length, backend, float(error))
    assert smallest < 1e-12


def test_the_values_are_pytorchs():
    torch.manual_seed(0)
    x, t = 2 * torch.randn(24, 3, dtype=torch.float64), torch.randint(0, 3, (24,))
    shares, w = torch.rand(24, 3, dtype=torch.float64), torch.rand(24, 3, dtype=torch.float64)
    functions = [
        lambda: x.sigmoid().log(),
        lambda: (1 - x.sigmoid()).log(),
        lambda: (1 - (1 - x.sigmoid())).flatten(),
        lambda: torch.log(torch.softmax(x, 0)),
        lambda: x.softmax(1)[2:, 1].log(),
        lambda: x.softmax(0).transpose(0, 1).reshape(2, -1).log(),
        lambda: x - torch.logsumexp(x, dim=1, keepdim=True),
        lambda: x - torch.logsumexp(x, 0),
        lambda: x.logsumexp(1) - x[ROWS, t],
        lambda: x.logsumexp(1) - x[ROWS.flip(0), t],
        lambda: x.logsumexp(1) - x[:, 0],
        lambda: x.logsumexp((0, 1)) - x[0],
    ]
    for r in ("none", "mean", "sum"):
        functions += [
            lambda r=r: F.binary_cross_entropy(x.sigmoid(), shares, w, reduction=r),
            lambda r=r: F.binary_cross_entropy(x.softmax(1), shares, reduction=r),
            lambda r=r: F.mse_loss(x.sigmoid(), shares.round(), reduction=r),
            lambda r=r: F.mse_loss(x.softmax(1), shares.round(), reduction=r),
        ]
    for i, function in enumerate(functions):
        plain = function()
        with stable_forms():
            torch.testing.assert_close(function(), plain, rtol=1e-9, atol=1e-12, msg=lambda m, i=i: f"{i}: {m}")


def test_nothing_is_taken_from_a_tensor_that_was_changed_or_cut_off():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with stable_forms():
        p = x.softmax(1) * 1.0
        q = x.detach().softmax(1)
        q.mul_(0.5)
        assert torch.equal(q.log(), (x.detach().softmax(1) * 0.5).log())
        with torch.no_grad():
            constant = x.softmax(1)
        assert not constant.log().requires_grad and p.log().requires_grad
        leaf = x.detach().sigmoid().requires_grad_(True)
        assert float(torch.autograd.grad(leaf.log().sum(), leaf)[0].sum()) > 0
        z = x.detach().clone()
        s = z.sigmoid()
        z.zero_()
        assert torch.equal(s.log(), s.clone().log())


def test_binary_cross_entropy_keeps_its_bound():
    x = torch.tensor([[150.0], [-150.0]])
    with stable_forms():
        assert float(F.binary_cross_entropy(x.sigmoid(), torch.tensor([[0.0], [1.0]]))) == 100.0
