"""The gradient of the mean loss: against torch.func, its laws, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad

from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data.batches import Resident
from lossmap.data.problem import Problem


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3))


def problem(batch_size=3, dtype=torch.float64):
    model = net().to(dtype)
    data = torch.randn(7, 5, dtype=dtype), torch.arange(7) % 3
    return Problem.supervised(model.eval(), "crossentropy", Resident(data, batch_size))


@pytest.mark.parametrize("parameters", ["weights", "all", r"^0\."])
def test_it_is_the_gradient_of_the_mean_over_samples(parameters):
    given = problem()
    loss, gradient, layout = loss_and_gradient(given, parameters)
    x, y = given.data.tensors
    named = {name: p.detach() for name, p in given.model.named_parameters()}
    slopes = grad(lambda p: F.cross_entropy(functional_call(given.model, p, (x,)), y))(named)
    truth = torch.cat([slopes[name].reshape(-1) for name in layout.names])
    torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-14)
    assert loss == pytest.approx(F.cross_entropy(given.model(x), y).item(), rel=1e-13)


def test_sums_are_in_float64_and_any_cut_gives_the_same():
    given = problem(dtype=torch.float32)
    whole = loss_and_gradient(given.rebatched(7), "all")
    parts = loss_and_gradient(given.rebatched(2), "all")
    assert whole.gradient.dtype == torch.float64
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-5, atol=1e-7)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_shares_of_unequal_size_add_up_to_the_whole():
    given, sent = problem(), []
    whole = loss_and_gradient(given, "all")
    for rank in range(3):
        loss_and_gradient(given.share(rank, 3), "all", lambda t: sent.append(t.clone()) or t)
    joined = loss_and_gradient(given.share(0, 3), "all", lambda t: sum(sent))
    torch.testing.assert_close(joined.gradient, whole.gradient, rtol=1e-12, atol=1e-14)
    assert joined.loss == pytest.approx(whole.loss, rel=1e-13)


def test_it_is_that_of_evaluation_mode_and_the_model_is_restored():
    given = problem()
    truth = loss_and_gradient(given, "all").gradient
    given.model.train()
    given.model[0].weight.requires_grad_(False)
    before = {name: t.clone() for name, t in given.model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(loss_and_gradient(given, "all").gradient, truth)
    assert given.model.training and not given.model[0].weight.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in given.model.state_dict().items())
    assert all(p.grad is None for p in given.model.parameters())


def test_a_loss_that_is_not_finite_is_a_result_and_a_gradient_alone_is_not():
    given = problem()
    with torch.no_grad():
        given.model[0].weight.fill_(float("nan"))
    assert loss_and_gradient(given).loss != loss_and_gradient(given).loss
    root = Problem.custom(nn.Linear(2, 1), lambda m, b: (m.weight * 0).abs().sqrt().mean(), (torch.zeros(3, 2),))
    with pytest.raises(FloatingPointError, match="its gradient is not finite"):
        loss_and_gradient(root)


def test_what_only_one_rank_notices_is_raised_by_all():
    def broken(model, batch):
        raise ZeroDivisionError("no loss here")

    sent = []
    with pytest.raises(ZeroDivisionError, match="no loss here"):
        loss_and_gradient(Problem.custom(net(), broken, (torch.zeros(3, 5),)), total=lambda t: sent.append(t) or t)
    (message,) = sent
    with pytest.raises(RuntimeError, match=r"failed on 1 other rank\(s\)"):
        loss_and_gradient(problem(), total=lambda t: t + message[-1])


def test_parameters_that_do_not_reach_the_loss_have_gradient_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 2)})
    given = Problem.custom(model, lambda m, b: m["used"](b[0]).square().mean(), (torch.ones(3, 2),))
    assert loss_and_gradient(given, "idle").gradient.abs().sum() == 0
    assert loss_and_gradient(given, "used").gradient.abs().sum() > 0
