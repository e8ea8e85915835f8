"""Weights beside a loss: those of the batch stay, those that hang on the parameters are refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem

X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def active_triplets(model, batch):
    x, _ = batch
    a, p, n = model(x), model(x.flip(1)), model(-x)
    terms = F.relu((a - p).norm(dim=1) - (a - n).norm(dim=1) + 0.3)
    active = terms > 0
    return terms[active].sum() / active.sum().clamp(min=1), active.sum()


def with_accuracy(model, batch):
    outputs = model(batch[0])
    return F.cross_entropy(outputs, batch[1]), (outputs.argmax(1) == batch[1]).float().mean()


def with_correct(model, batch):
    outputs = model(batch[0])
    return F.cross_entropy(outputs, batch[1]), (outputs.argmax(1) == batch[1]).sum().item()


def with_penalty(model, batch):
    outputs = model(batch[0])
    penalty = outputs.square().mean()
    return F.cross_entropy(outputs, batch[1]) + 0.1 * penalty, penalty.detach()


def sum_of_hard(model, batch):
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    hard = each > 1.0
    return each[hard].sum(), hard.sum()


@pytest.mark.parametrize("data", ["tensors", "batches"])
@pytest.mark.parametrize("loss", [active_triplets, with_accuracy, with_correct, with_penalty, sum_of_hard])
def test_a_weight_that_hangs_on_the_parameters_is_refused(loss, data):
    given = (X, Y) if data == "tensors" else [(X[:25], Y[:25]), (X[25:], Y[25:])]
    model = net()
    before = [p.clone() for p in model.parameters()]
    problem = Problem.custom(model, loss, given, reduction="sum" if loss is sum_of_hard else "mean")
    for measure in (
        lambda: lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, 1)), lossmap.Grid.line(-1, 1, 3)),
        lambda: lossmap.spectrum(problem, top=1),
    ):
        with pytest.raises(ValueError, match="the weight that the loss returns beside its value depends on the param"):
            measure()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def masked(model, batch):
    """A mean over the entries that a random mask leaves, with their number."""
    x, y = batch
    kept = torch.rand(len(x)) < 0.5
    return F.cross_entropy(model(x)[kept], y[kept]), kept.sum()


def labels(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, ignore_index=1), (y != 1).sum()


def shares(model, batch):
    """Weights in floating point, which run over a product that changes with the order of a sum alone."""
    x, y = batch
    weight = torch.tensor([0.1, 0.7, 1.3])[y]
    return (F.cross_entropy(model(x), y, reduction="none") * weight).sum() / weight.sum(), weight.sum()


@pytest.mark.parametrize("loss", [masked, labels, shares])
def test_a_weight_of_the_batch_alone_is_taken(loss):
    problem = check_loss(Problem.custom(net(), loss, [(X[:25], Y[:25]), (X[25:], Y[25:])]))
    assert not any("depends on the parameters" in note for note in problem.notes)
    if loss is masked:
        return
    total = sum(float(loss(problem.model, b)[0].detach()) * float(loss(problem.model, b)[1]) for b in problem.data)
    weight = sum(float(loss(problem.model, b)[1]) for b in problem.data)
    found = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(problem.model, 1)), lossmap.Grid([0.0]))
    assert found["train_loss"].item() == pytest.approx(total / weight, rel=1e-6)


def test_a_loss_that_fails_far_from_its_weights_keeps_its_weight():
    def guarded(model, batch):
        value = F.cross_entropy(model(batch[0]), batch[1])
        if value > 3.0:
            raise ArithmeticError("diverged")
        return value, len(batch[0])

    assert check_loss(Problem.custom(net(), guarded, (X, Y))).samples == 40
