"""Weights beside a loss: those of the batch stay, those that hang on the parameters are refused by name."""

import copy
from array import array

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


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.of_classes = net(), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)

    def forward(self, x):
        return self.net(x)


def by_frozen_weights(model, batch):
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    weight = model.of_classes[batch[1]]
    return (each * weight).sum() / weight.sum(), weight.sum()


def test_a_weight_of_frozen_parameters_is_taken_where_these_stay(caplog):
    model = Frozen()
    problem = Problem.custom(model, by_frozen_weights, [(X[:25], Y[:25]), (X[25:], Y[25:])])
    truth = F.cross_entropy(model(X), Y, weight=model.of_classes.detach()).item()
    line = lossmap.random_plane(model, 1, parameters="trainable")
    found = lossmap.survey(lossmap.losses(problem, line), lossmap.Grid([0.0]))
    assert found["train_loss"].item() == pytest.approx(truth, rel=1e-6)
    assert "depends on frozen parameters; these stay at the model's own" in caplog.text
    top = lossmap.spectrum(problem, parameters="trainable", top=1).top
    exact = lossmap.spectrum(
        Problem.supervised(model, nn.CrossEntropyLoss(weight=model.of_classes.detach()), (X, Y)),
        parameters="trainable", top=1,
    ).top  # fmt: skip
    assert abs(top.values[0] - exact.values[0]) <= top.residuals[0] + exact.residuals[0]
    moving, other = lossmap.random_plane(model, 1, ignore="none"), Frozen()
    with torch.no_grad():
        other.of_classes += 1.0
    named = "depends on frozen parameters, which move here.*--parameters trainable"
    for measure in (
        lambda: lossmap.losses(problem, moving),
        lambda: lossmap.EigenvalueMap(problem, moving, parameters="trainable"),
        lambda: lossmap.spectrum(problem, parameters="all", top=1),
        lambda: lossmap.hessian(problem, parameters="all"),
        lambda: lossmap.connect(problem, other, points=3),
    ):
        with pytest.raises(ValueError, match=named):
            measure()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [40, 10])
def test_a_count_of_right_answers_is_found_where_all_are_right(size, bias):
    torch.manual_seed(0)
    centres = 3.0 * torch.randn(3, 4)
    x = centres[Y] + 0.1 * torch.randn(40, 4)
    model = nn.Linear(4, 3, bias=bias)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), Y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == Y).all()
    with pytest.raises(ValueError, match="depends on the parameters: of one batch it is"):
        check_loss(Problem.custom(model, with_correct, (x, Y), batch_size=size))


@pytest.mark.parametrize("error", [AssertionError, IndexError, KeyError, TypeError, ValueError])
def test_whatever_a_loss_raises_far_from_its_weights_is_no_error(error):
    largest = array("i")  # which nothing puts back

    def guarded(model, batch):
        outputs = model(batch[0])
        if outputs.abs().max() > 3.0:
            raise error("far away")
        largest.append(len(batch[0]))
        return F.cross_entropy(outputs, batch[1]), len(batch[0])

    check_loss(Problem.custom(net(), guarded, (X, Y), batch_size=4))
    assert max(largest) <= 16


def test_a_mask_that_is_read_from_an_embedding_of_zero_is_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 3))
    tokens, labels = torch.arange(60).reshape(10, 6) % 6, torch.arange(60).reshape(10, 6) % 3

    def padded(model, batch):
        kept = model[0](batch[0]).abs().sum(-1) > 0
        return F.cross_entropy(model(batch[0])[kept], batch[1][kept]), kept.sum()

    assert check_loss(Problem.custom(model, padded, (tokens, labels))).samples == 50


class Teacher(nn.Module):
    """A network whose loss counts the samples of which its frozen teacher, with batch norm, is sure."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.teacher = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).requires_grad_(False).eval()

    def forward(self, x):
        return self.net(x)


def where_the_teacher_is_sure(model, batch):
    sure, labels = model.teacher(batch[0]).softmax(1).max(1)
    kept = sure > 0.5
    return F.cross_entropy(model(batch[0])[kept], labels[kept]), kept.sum()


def by_running_mean(model, batch):
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    weight = (batch[0] - model.teacher[0].running_mean).square().sum(1)
    return (each * weight).sum() / weight.sum(), weight.sum()


@pytest.mark.parametrize("loss", [where_the_teacher_is_sure, by_running_mean])
def test_a_weight_that_hangs_on_buffers_is_refused_where_these_move(loss):
    torch.manual_seed(0)
    model = Teacher()
    other = copy.deepcopy(model)
    other.teacher[0].running_mean += 2.0
    with torch.no_grad():
        other.net[0].weight += 0.1
    problem = Problem.custom(model, loss, [(X[:25], Y[:25]), (X[25:], Y[25:])])
    line = lossmap.line_between(model, other, parameters="^net")
    lossmap.losses(problem, line)
    for measure in (
        lambda: lossmap.losses(problem, lossmap.line_between(model, other, states=True)),
        lambda: lossmap.connect(problem, other, points=3, bn="interpolate"),
    ):
        with pytest.raises(ValueError, match=r"depends on buffers, which move here.*without --dir-type states"):
            measure()
