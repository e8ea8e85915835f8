"""Problems: sums that do not depend on the batches, conventions of the losses, a model that is restored."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lossmap
from lossmap.data.batches import Resident, Streamed
from lossmap.data.checks import tried_on_samples
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import ACCURACY, Metric, Problem, inputs_of, targets_of, temporary_parameters
from lossmap.geometry.directions import move_point, origin_of, random_plane
from lossmap.landscape.loss import losses
from lossmap.training.trainer import readings


class Net(nn.Module):
    """With batch norm and dropout, in training mode, with a gradient: what a borrower could spoil."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(2 * 6 * 6, 4)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x))).flatten(1))


def images(samples=30):
    g = torch.Generator().manual_seed(1)
    return torch.randn(samples, 1, 8, 8, generator=g), torch.randint(0, 4, (samples,), generator=g)


def value(scalar):
    return float(scalar.detach())


def mean(problem):
    with torch.no_grad():
        return float(sum(problem.total(b).double() for b in problem.data)) / problem.samples


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), ranks=st.integers(1, 5), loss=st.sampled_from(["crossentropy", "mse"]))
def test_any_cut_and_any_shares_give_the_same_mean(size, ranks, loss):
    torch.manual_seed(0)
    net = Net().eval().double()
    x, y = images()
    problem = Problem.supervised(net, loss, (x.double(), y), batch_size=30)
    shares = [problem.rebatched(size).share(rank, ranks) for rank in range(ranks)]
    with torch.no_grad():
        total = sum(float(share.total(b)) for share in shares for b in share.data)
    assert sum(share.samples for share in shares) == 30
    assert total / 30 == pytest.approx(mean(problem), rel=1e-12)


def test_unequal_batches_weigh_by_their_samples():
    x = torch.tensor([[1.0], [1.0], [5.0]])
    problem = Problem.supervised(nn.Identity(), "mse", (x, torch.zeros(3, 1)), batch_size=2)
    assert mean(problem) == pytest.approx(9.0)  # the mean of the batch means would be 13


def test_the_loss_is_that_of_pytorch():
    torch.manual_seed(0)
    net, (x, y) = Net().eval(), images()
    for given_loss in ("crossentropy", nn.CrossEntropyLoss(), F.cross_entropy):
        problem = Problem.supervised(net, given_loss, (x, y), batch_size=7)
        assert mean(problem) == pytest.approx(value(F.cross_entropy(net(x), y)), rel=1e-6)
        assert problem.unit == "nats"
    assert Problem.supervised(net, lambda f, y: F.cross_entropy(f, y), (x, y)).unit == "1"  # of what is not known


def test_mse_is_the_mean_over_samples_and_outputs():
    net, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
    assert mean(Problem.supervised(net, "mse", (x, y))) == pytest.approx(value(nn.MSELoss()(net(x), y)), rel=1e-6)


def test_mse_of_whole_number_targets_is_of_the_softmax_against_one_hot():
    net, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 3, 1, 1, 2])
    expected = ((net(x).softmax(1) - torch.eye(4)[y]) ** 2).mean()
    assert mean(Problem.supervised(net, "mse", (x, y))) == pytest.approx(value(expected), rel=1e-6)


def test_the_accuracy_is_in_percent_and_only_where_it_means_something():
    net, (x, y) = Net().eval(), images()
    problem = Problem.supervised(net, "crossentropy", (x, y), batch_size=7)
    total = sum(value(ACCURACY.total(net(b[0]), b)) for b in problem.data)
    assert total / 30 == pytest.approx(100 * value((net(x).argmax(1) == y).double().mean()))
    assert value(ACCURACY.total(torch.eye(3), (None, torch.eye(3)))) == 300  # one-hot targets
    assert set(problem.metrics) == {"acc"}
    assert not Problem.supervised(nn.Linear(1, 1), "mse", (torch.ones(2, 1), torch.ones(2, 1))).metrics
    assert not Problem.supervised(net, nn.MSELoss(), (x, y)).metrics
    own = {"top": Metric(lambda o, b: o.sum(), "1", "a sum")}
    assert Problem.supervised(net, "crossentropy", (x, y), metrics=own).metrics == own


def test_loaders_tuples_and_dicts_of_batches_are_taken():
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    net = nn.Linear(3, 2)
    expected = value(F.cross_entropy(net(x), y))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    assert mean(Problem.supervised(net, "crossentropy", loader)) == pytest.approx(expected, rel=1e-6)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, ids, scale=None):
            return self.net(ids if scale is None else ids * scale)

    held = {"ids": x, "labels": y}
    assert mean(Problem.supervised(Words(), "crossentropy", held)) == pytest.approx(expected, rel=1e-6)
    several = (x / 2, torch.full((6, 1), 2.0), y)
    assert mean(Problem.supervised(Words(), "crossentropy", several)) == pytest.approx(expected, rel=1e-6)
    streamed = Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(6), 4)
    assert mean(Problem.supervised(net, "crossentropy", streamed)) == pytest.approx(expected, rel=1e-6)


def streamed(x, y):
    return Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(len(x)), 3)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5])),
        nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5]), ignore_index=0),
        nn.CrossEntropyLoss(),
        "crossentropy",
    ],
    ids=["weights", "ignored", "both", "words left out", "by name"],
)
@pytest.mark.parametrize("kind", [tuple, lambda pair: streamed(*pair)], ids=["resident", "streamed"])
def test_class_weights_and_ignored_targets_count_as_in_one_batch_whatever_the_cut(loss, kind):
    net = nn.Conv1d(2, 3, 1)
    x, y = torch.randn(20, 2, 4), torch.randint(0, 3, (20, 4))
    if loss == "crossentropy" or loss.ignore_index == -100:
        y[3:9, 1:] = -100
    whole = nn.CrossEntropyLoss() if loss == "crossentropy" else loss
    expected = value(whole(net(x), y))
    for size in (1, 3, 20):
        assert mean(Problem.supervised(net, loss, kind((x, y)), batch_size=size)) == pytest.approx(expected, rel=1e-5)
    problem = Problem.supervised(net, loss, kind((x, y)))
    shares = [problem.share(rank, 3) for rank in range(3)]
    assert sum(value(p.total(b)) for p in shares for b in p.data) / 20 == pytest.approx(expected, rel=1e-5)


class Focal(nn.CrossEntropyLoss):
    """With the weights and ignored targets of PyTorch's, and a mean of its own, whatever `reduction` says."""

    def forward(self, outputs, targets):
        each = F.cross_entropy(outputs, targets, self.weight, ignore_index=self.ignore_index, reduction="none")
        return ((1 - (-each).exp()) ** 2 * each).sum() / (targets != self.ignore_index).sum()


class Penalized(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, targets) + 0.1 * (outputs**2).mean()


class ClassesLast(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs.reshape(-1, 3), targets.flatten())


class Called(nn.CrossEntropyLoss):
    def __call__(self, outputs, targets):
        return super().__call__(outputs, targets) + 0.1 * (outputs**2).mean()


def hooked(loss, *, before=None, after=None):
    if before is not None:
        loss.register_forward_pre_hook(before)
    if after is not None:
        loss.register_forward_hook(after)
    return loss


class Mixed(nn.CrossEntropyLoss):
    """Targets (N, 3): two classes and the share of the first."""

    def forward(self, outputs, targets):
        one, two = (F.cross_entropy(outputs, targets[:, i].long(), reduction="none") for i in (0, 1))
        return (targets[:, 2] * one + (1 - targets[:, 2]) * two).mean()


class Masked(nn.CrossEntropyLoss):
    """Targets (N, C) of bool."""

    def forward(self, outputs, targets):
        return -(outputs.log_softmax(1) * targets).sum(1).mean() + 0.1 * (outputs * ~targets).square().sum(1).mean()


class OneHot(nn.BCEWithLogitsLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, F.one_hot(targets, 3).to(outputs.dtype))


class Brier(nn.MSELoss):
    def forward(self, outputs, targets):
        return super().forward(outputs.softmax(1), F.one_hot(targets, 3).to(outputs.dtype))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (Focal(torch.tensor([1.0, 5.0, 0.5])), (14,)),
        (Focal(ignore_index=1), (14,)),
        (Penalized(torch.tensor([1.0, 5.0, 0.5])), (14,)),
        (Penalized(ignore_index=1), (14,)),
        (ClassesLast(), (14, 5)),
        (OneHot(), (14,)),
        (Brier(), (14,)),
    ],
)
def test_a_subclass_of_a_loss_of_pytorch_is_what_its_own_forward_computes(loss, shape):
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(*shape, 4), torch.randint(0, 3, shape)
    checked = check_loss(Problem.supervised(net, loss, (x, y)), report=False)
    assert mean(checked) == pytest.approx(value(loss(net(x), y)), rel=1e-5)


UNEVEN = torch.tensor([1.0, 5.0, 0.5])


@pytest.mark.parametrize(
    "loss",
    [
        Called(UNEVEN),
        Called(ignore_index=1),
        hooked(nn.CrossEntropyLoss(UNEVEN), after=lambda _, given, value: value + 0.1 * (given[0] ** 2).mean()),
        hooked(nn.CrossEntropyLoss(UNEVEN), before=lambda _, given: (2 * given[0], given[1])),
        hooked(nn.MSELoss(), before=lambda _, given: (given[0][:, 0], given[1].float())),
    ],
)
def test_a_loss_of_pytorch_that_is_changed_from_outside_is_what_it_computes(loss):
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(14, 4), torch.randint(0, 3, (14,))
    checked = check_loss(Problem.supervised(net, loss, (x, y)), report=False)
    assert mean(checked) == pytest.approx(value(loss(net(x), y)), rel=1e-5)


def test_a_subclass_of_cross_entropy_may_have_targets_of_its_own_form():
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(14, 4), torch.randint(0, 3, (14,))
    mixed = torch.stack([y.float(), y.roll(1).float(), torch.rand(14)], 1)
    checked = check_loss(Problem.supervised(net, Mixed(), (x, mixed), batch_size=5), report=False)
    assert mean(checked) == pytest.approx(value(Mixed()(net(x), mixed)), rel=1e-5) and not checked.notes
    mask = F.one_hot(y, 3).bool()
    checked = check_loss(Problem.supervised(net, Masked(), (x, mask), batch_size=5), report=False)
    assert mean(checked) == pytest.approx(value(Masked()(net(x), mask)), rel=1e-5) and not checked.notes
    bytes_ = check_loss(Problem.supervised(net, Penalized(), (x, y.to(torch.uint8))), report=False)
    assert mean(bytes_) == pytest.approx(value(Penalized()(net(x), y)), rel=1e-5)


def test_ignored_targets_of_batches_of_several_widths_count_as_in_one_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(3, 4))
    batches = [(torch.randn(n, 1, width), torch.randint(0, 4, (n,))) for n, width in ((8, 5), (8, 3), (6, 9))]
    batches[0][1][:5] = -100
    checked = check_loss(Problem.supervised(net, "crossentropy", batches), report=False)
    logits, targets = torch.cat([net(x) for x, _ in batches]), torch.cat([y for _, y in batches])
    assert mean(checked) == pytest.approx(value(F.cross_entropy(logits, targets)), rel=1e-5)


@pytest.mark.parametrize("ignored", [0, 3])
def test_targets_of_every_step_count_alike_where_batches_have_several_widths(ignored):
    torch.manual_seed(0)
    net = nn.Linear(4, 5)
    batches = [(torch.randn(n, t, 4), torch.randint(0, 5, (n, t))) for n, t in ((4, 6), (4, 3), (3, 8))]
    batches[1][1][0, :ignored] = -100
    model = nn.Sequential(net, Transposed())
    checked = check_loss(Problem.supervised(model, "crossentropy", batches), report=False)
    logits = torch.cat([net(x).flatten(0, 1) for x, _ in batches])
    truth = F.cross_entropy(logits, torch.cat([y.flatten() for _, y in batches]))
    assert mean(checked) == pytest.approx(value(truth), rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_probabilities_of_every_step_count_alike_where_batches_have_several_widths(weight):
    torch.manual_seed(0)
    net, loss = nn.Linear(4, 3), nn.CrossEntropyLoss(weight)
    batches = [(torch.randn(n, t, 4), torch.rand(n, 3, t).softmax(1)) for n, t in ((4, 6), (4, 3), (3, 8))]
    checked = check_loss(Problem.supervised(nn.Sequential(net, Transposed()), loss, batches), report=False)
    logits = torch.cat([net(x).flatten(0, 1) for x, _ in batches])
    truth = loss(logits, torch.cat([y.movedim(1, -1).flatten(0, 1) for _, y in batches]))
    assert mean(checked) == pytest.approx(value(truth), rel=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_batches_of_probabilities_and_of_labels_count_alike_beside_each_other(order):
    torch.manual_seed(0)
    net, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    batches = [(torch.randn(4, t, 4), torch.rand(4, 3, t).softmax(1)) for t in (5, 7)][::order]
    batches[1] = (batches[1][0], batches[1][1].argmax(1))
    checked = check_loss(Problem.supervised(nn.Sequential(net, Transposed()), loss, batches[::order]), report=False)
    logits = torch.cat([net(x).flatten(0, 1) for x, _ in batches])
    soft, hard = batches[0][1].movedim(1, -1).flatten(0, 1), F.one_hot(batches[1][1].flatten(), 3)
    assert mean(checked) == pytest.approx(value(loss(logits, torch.cat([soft, hard]))), rel=1e-5)


def test_targets_of_every_step_count_alike_where_the_time_stands_first():
    torch.manual_seed(0)
    rows = [(torch.randn(t, 4), torch.randint(0, 3, (t,))) for t in (5, 5, 3, 3, 8, 8)]
    net = nn.Linear(4, 3)

    def collate(rows):
        return torch.stack([x for x, _ in rows], 1), torch.stack([y for _, y in rows], 1)

    loader = DataLoader(rows, 2, collate_fn=collate)
    checked = check_loss(Problem.supervised(nn.Sequential(net, Transposed()), "crossentropy", loader), report=False)
    truth = F.cross_entropy(net(torch.cat([x for x, _ in rows])), torch.cat([y for _, y in rows]))
    assert mean(checked) == pytest.approx(value(truth), rel=1e-5)


class Transposed(nn.Module):
    """(N, T, C) as (N, C, T)."""

    def forward(self, x):
        return x.movedim(-1, 1)


class Declared(nn.Module):
    """A loss of somebody's own whose `reduction` is of its entries, whatever `of` makes of the samples."""

    def __init__(self, of):
        super().__init__()
        self.reduction, self.of = "sum", of

    def forward(self, outputs, targets):
        return self.of(F.mse_loss(outputs, targets, reduction="none").sum(1))


@pytest.mark.parametrize("way", ["custom", "supervised", "several widths"])
@pytest.mark.parametrize("of", [torch.mean, torch.sum])
def test_a_declared_sum_is_taken_for_one_and_where_parts_show_none_the_declaration_is_named(way, of):
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(3, 2))
    sizes = ((8, 5), (8, 3), (6, 9)) if way == "several widths" else ((22, 5),)
    batches = [(torch.randn(n, 1, width), torch.randn(n, 2)) for n, width in sizes]
    data = batches if way == "several widths" else batches[0]
    if way == "custom":
        problem = Problem.custom(net, lambda m, b: Declared(of)(m(b[0]), b[1]), data, reduction="sum")
    else:
        problem = Problem.supervised(net, Declared(of), data)
    checked = check_loss(problem, report=False)
    total = sum(value(Declared(of)(net(x), y)) for x, y in batches)
    assert mean(checked) == pytest.approx(total / 22, rel=1e-5)
    assert any("as reduction='sum' says" in note for note in checked.notes) == (of is torch.mean)


@pytest.mark.parametrize("size", [16, 96])
def test_a_sum_with_a_penalty_is_one_though_the_samples_that_are_looked_at_have_no_loss(size):
    torch.manual_seed(0)
    x, net = torch.randn(96, 10), nn.Linear(10, 1)
    y = net(x).detach().squeeze(1)
    y[45:50] += 50

    def loss(net, batch):
        off = (batch[1] - net(batch[0]).squeeze(1)).abs()
        return (off - 5).clamp(min=0).sum() + 0.5 * net.weight.square().sum()

    checked = check_loss(Problem.custom(net, loss, (x, y), reduction="sum", batch_size=size), report=False)
    each = (5 * 45 + 96 // size * value(0.5 * net.weight.square().sum())) / 96
    assert mean(checked) == pytest.approx(each, rel=1e-5)


def test_a_criterion_that_sums_is_divided_by_the_samples():
    net, x, y = nn.Linear(3, 2), torch.randn(7, 3), torch.randint(0, 2, (7,))
    for size in (2, 7):
        problem = Problem.supervised(net, nn.CrossEntropyLoss(reduction="sum"), (x, y), batch_size=size)
        assert mean(problem) == pytest.approx(value(F.cross_entropy(net(x), y)), rel=1e-6)
    with pytest.raises(ValueError, match="every target is ignored, or has weight 0"):
        Problem.supervised(net, "crossentropy", (x, torch.full((7,), -100)))


def test_data_are_taken_in_the_precision_of_the_model():
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    for net in (nn.Linear(3, 1), nn.Linear(3, 1).double()):
        for data in ((x, y), (x.float(), y.float()), (x.numpy(), y.numpy())):
            problem = Problem.supervised(net, "mse", data)
            assert mean(problem) == pytest.approx(value(F.mse_loss(net.double()(x), y)), rel=1e-5)
            net.to(next(iter(problem.data))[0].dtype)


def test_what_stands_before_the_targets_is_given_to_the_model():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert inputs_of((a, c)) == ((a,), {})
    assert inputs_of((a, b, c)) == ((a, b), {})
    assert inputs_of(((a, b), c)) == ((a, b), {})
    assert inputs_of(({"p": a}, c)) == ((), {"p": a})
    assert inputs_of({"p": a, "target": c}) == ((), {"p": a})
    for name in ("labels", "targets", "target", "label", "y"):
        assert targets_of({"p": a, name: c}) is c


def test_a_loss_of_your_own_may_hold_a_regulariser_and_count_its_samples():
    net, x = nn.Linear(2, 1, bias=False), torch.randn(6, 2)

    def regular(model, batch):
        return (model(batch) ** 2).mean() + 0.1 * model.weight.square().sum()

    problem = Problem.custom(net, regular, x, batch_size=4)
    expected = value((net(x) ** 2).mean() + 0.1 * net.weight.square().sum())
    assert mean(problem) == pytest.approx(expected, rel=1e-6) and not problem.separable
    words = Problem.custom(net, lambda m, b: ((m(b) ** 2).sum(), 3 * len(b)), x, reduction="sum", batch_size=4)
    assert words.samples == 18 and mean(words) == pytest.approx(value((net(x) ** 2).sum()) / 18, rel=1e-6)


def test_a_loss_may_differentiate_by_its_inputs():
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def residual(model, batch):
        x = batch.requires_grad_()
        slope = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
        return ((slope - 1) ** 2).mean(), len(x)

    problem = Problem.custom(net, residual, torch.linspace(0, 1, 7)[:, None], batch_size=3)
    assert problem.samples == 7
    assert all(torch.isfinite(problem.total(b)) for b in problem.data)


def test_the_data_move_and_the_model_stays():
    net = Net()
    problem = Problem.supervised(net, "crossentropy", images()).to("cpu", torch.float64)
    assert next(iter(problem.data))[0].dtype == torch.float64 and net.fc.weight.dtype == torch.float32


def test_the_repr_of_a_problem_describes_it():
    text = repr(Problem.supervised(Net(), "crossentropy", images()))
    assert text == "Problem(Net, 316 parameters, 30 samples, metrics: acc)"


def snapshot(model):
    return (
        {k: (t, t.clone(), t.data_ptr()) for k, t in model.state_dict(keep_vars=True).items()},
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_temporary_parameters_are_restored_bit_for_bit(fails, training):
    net = Net().train(training)
    net.drop.train(not training)
    x, y = images()
    F.cross_entropy(net(x), y).backward()
    tensors, modes, gradients = snapshot(net)
    away = {k: torch.randn_like(t) for k, t in origin_of(net, states=True).items()}
    try:
        with temporary_parameters(net, away) as there:
            assert there is net and not any(m.training for m in net.modules())
            assert all(torch.equal(t, away[k]) for k, t in net.state_dict().items() if k in away)
            net(x)
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    after, modes_after, gradients_after = snapshot(net)
    assert modes_after == modes
    for name, (tensor, values, place) in tensors.items():
        assert after[name][0] is tensor and after[name][2] == place and torch.equal(after[name][1], values)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_after, strict=True))


def test_temporary_parameters_may_be_some_tensors_only():
    net = nn.Linear(2, 2)
    bias = net.bias.detach().clone()
    with temporary_parameters(net, {"weight": torch.eye(2)}):
        torch.testing.assert_close(net(torch.ones(1, 2)), (1 + bias)[None])
    with (
        pytest.raises(KeyError, match="the model has no tensor named 'wieght'"),
        temporary_parameters(net, {"wieght": torch.eye(2)}),
    ):
        pass


def test_an_origin_is_a_copy_in_the_models_order():
    net = Net()
    origin = origin_of(net)
    assert list(origin) == [k for k, _ in net.named_parameters()]
    states = origin_of(net, states=True)
    assert list(states) == [k for k in net.state_dict() if "num_batches" not in k]
    origin["fc.weight"].zero_()
    assert net.fc.weight.abs().sum() > 0 and not origin["fc.weight"].requires_grad


def test_points_are_sums_of_axes_and_zero_adds_nothing():
    origin = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.1])}
    axes = [
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0])},
        {"a": torch.full((2,), torch.inf), "b": origin["b"]},
    ]
    there = move_point(origin, axes, (0.5, 0.0))
    assert there["a"].tolist() == [1.5, 2.0] and there["b"].item() == pytest.approx(1.1)
    assert all(torch.equal(move_point(origin, axes, (0.0, 0.0))[k], origin[k]) for k in origin)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Problem.supervised(Net(), "crossentrpy", images()),
            "unknown loss 'crossentrpy'; there are crossentropy",
        ),
        (
            lambda: Problem.custom(Net(), None, images(), reduction="median"),
            "reduction must be 'mean' or 'sum'; got 'median'",
        ),
        (lambda: targets_of({"a": 1}), "a dict batch must hold its targets under one of"),
        (
            lambda: targets_of(torch.ones(2)),
            r"a batch must hold inputs and targets; got Tensor\. For other batches see",
        ),
    ],
)
def test_what_makes_no_problem_is_reported_in_one_message(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_mse_of_one_output_takes_targets_without_its_dimension():
    net, x, y = nn.Linear(3, 1), torch.randn(7, 3), torch.randn(7)
    assert mean(Problem.supervised(net, "mse", (x, y))) == pytest.approx(value(nn.MSELoss()(net(x)[:, 0], y)), rel=1e-6)


def test_targets_that_would_be_broadcast_and_the_cross_entropy_of_one_output_are_refused():
    net, x, y = nn.Linear(3, 1), torch.randn(7, 3), torch.randn(7)
    for loss in (nn.MSELoss(), nn.L1Loss()):
        with pytest.raises(ValueError, match=r"must have the outputs' shape, \(7, 1\); they have \(7,\)"):
            mean(Problem.supervised(net, loss, (x, y)))
    with pytest.raises(ValueError, match="for regression take the loss 'mse'"):
        mean(Problem.supervised(net, "crossentropy", (x, y[:, None])))


def test_a_loss_that_is_no_mean_is_reported_in_one_message():
    x, y = images()
    problem = Problem.supervised(Net(), nn.CrossEntropyLoss(reduction="none"), Resident((x, y), 5))
    with pytest.raises(ValueError, match=r"the loss must be one number, the mean over the batch; got shape \(5,\)"):
        problem.total(next(iter(problem.data)))
    own = Problem.custom(nn.Linear(1, 1), lambda m, b: m(b), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"the loss must return one number per batch; got .*3, 1"):
        own.total(next(iter(own.data)))


def test_the_data_follow_a_model_to_its_device():
    model = torch.nn.Linear(3, 2, device="meta")
    data = torch.randn(5, 3), torch.randint(2, (5,))
    for problem in (
        Problem.supervised(model, "crossentropy", data),
        Problem.custom(model, lambda m, b: m(b[0]).sum(), data),
    ):
        assert all(t.device.type == "meta" for t in next(iter(problem.data)))
        assert problem.total(next(iter(problem.data))).device.type == "meta"


def weighted(model, batch):
    x, y, w = batch
    return (w * (model(x) - y).square()[:, 0]).sum() / w.sum(), w.sum()


@pytest.mark.parametrize("cut", [None, 4])
def test_weights_that_are_no_whole_numbers_weigh_exactly(cut):
    chance = torch.Generator().manual_seed(2)
    x, y, w = (torch.randn(13, n, generator=chance).double() for n in (3, 1, 1))
    w = 0.3 * w.abs()[:, 0]
    net = nn.Linear(3, 1).double()
    problem = Problem.custom(net, weighted, (x, y, w) if cut else [(x[:5], y[:5], w[:5]), (x[5:], y[5:], w[5:])])
    truth = float((w * (net(x) - y).square()[:, 0]).sum().detach() / w.sum())
    assert value(sum(problem.rebatched(cut or 13).total(b) for b in problem.data)) / problem.samples == pytest.approx(
        truth
    )
    hessian = lossmap.hessian(problem, parameters="all").to_scipy() @ np.eye(4)
    design = torch.cat([x, torch.ones(13, 1).double()], 1)
    np.testing.assert_allclose(hessian, 2 * design.T @ (w[:, None] * design) / w.sum(), rtol=1e-10)
    assert lossmap.spectrum(problem, top=1, parameters="all").samples == 13


def test_batches_without_weight_count_nothing_and_all_of_them_are_refused():
    x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 0, -100, -100, -100, -100])
    net = nn.Linear(3, 2)

    def entropy(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]), (batch[1] >= 0).sum()

    problem = Problem.custom(net, entropy, (x, y), batch_size=4)
    surface = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(net, axes=1)), lossmap.Grid.line(0, 0, 1))
    assert surface["train_loss"][0] == pytest.approx(value(F.cross_entropy(net(x[:4]), y[:4])))
    assert problem.samples == 4
    with pytest.raises(ValueError, match="every batch has weight 0"):
        _ = Problem.custom(net, entropy, (x[4:], y[4:])).samples


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, r"the weight of a batch must be finite and >= 0; got -1"),
        (float("nan"), r"must be finite and >= 0; got nan"),
        (torch.ones(3), r"must be one number; got 3 of them: their sum is the weight"),
        ({"acc": 1.0}, r"beside the loss may stand the batch's weight alone, a number; got a dict: metrics go to"),
        ("acc", r"beside the loss may stand the batch's weight alone, a number; got a str"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight, message):
    problem = Problem.custom(nn.Linear(1, 1), lambda m, b: (m(b).mean(), weight), torch.ones(3, 1))
    with pytest.raises(ValueError, match=message) as refused:
        tried_on_samples(problem, "train")
    assert "does the data set fit" not in str(refused.value)
    with pytest.raises(ValueError, match=message):
        problem.total(next(iter(problem.data)))


@dataclass(frozen=True, slots=True)
class Record:
    scores: torch.Tensor
    name: str = "record"


class Recorder(nn.Linear):
    def forward(self, x):
        return Record(super().forward(x))


class Several(nn.Module):
    """A model that returns one tensor within something else."""

    def __init__(self, put):
        super().__init__()
        self.layer, self.put = nn.Linear(3, 2), put

    def forward(self, x):
        return self.put(self.layer(x))


@pytest.mark.parametrize(
    ("put", "loss", "message"),
    [
        (lambda f: (f, f), "crossentropy", r"a tuple \(Tensor, Tensor\), .* y: F.cross_entropy\(outputs\[0\], y\)"),
        (lambda f: {"out": f, "aux": f}, "crossentropy", r"a dict of out, aux, .* F.cross_entropy\(outputs\['out'\]"),
        (lambda f: [f], nn.CrossEntropyLoss(), r"a list \(Tensor\), where the loss CrossEntropyLoss takes one tensor"),
        (lambda f: (f, f), "mse", r"the loss mse takes one tensor; .* y: F.mse_loss\(outputs\[0\], y\)"),
        (lambda f: (f, f), F.mse_loss, r"where the loss mse_loss takes one tensor"),
    ],
)
def test_a_model_that_returns_several_tensors_is_named_where_the_loss_takes_one(put, loss, message):
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    problem = Problem.supervised(Several(put), loss, (x, y))
    ways = [check_loss] if loss is F.mse_loss else [check_loss, lambda problem: tried_on_samples(problem, "train")]
    for way in ways:
        with pytest.raises(ValueError, match=message) as refused:
            way(problem)
        assert "does the data set fit" not in str(refused.value)


def test_classes_along_the_last_dimension_are_refused_by_name_or_said_where_both_may_be():
    tokens = torch.arange(20).reshape(4, 5) % 4
    problem = Problem.supervised(nn.Embedding(5, 6), "crossentropy", (tokens, tokens))
    for way in (check_loss, lambda problem: tried_on_samples(problem, "train")):
        with pytest.raises(ValueError, match=r"shape \(4, 5, 6\) have their classes along the last .*movedim\(-1, 1\)"):
            way(problem)
    checked = check_loss(Problem.supervised(nn.Embedding(5, 5), "crossentropy", (tokens, tokens)), report=False)
    assert "shape (4, 5, 5) are taken along dimension 1" in checked.notes[0]
    plain = check_loss(Problem.supervised(nn.Linear(3, 4), "crossentropy", (torch.ones(4, 3), torch.arange(4))))
    assert not plain.notes


def test_outputs_and_batches_of_any_class_are_taken_apart():
    torch.manual_seed(0)
    x, y = torch.randn(9, 3), torch.arange(9) % 2
    net, plain = Recorder(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(net.state_dict())
    own = Problem.supervised(net, lambda o, t: F.cross_entropy(o.scores, t), (x, y))
    truth = lossmap.hessian(Problem.supervised(plain, "crossentropy", (x, y))).to_scipy() @ np.eye(6)
    for matrix in (lossmap.hessian, lossmap.gauss_newton):
        np.testing.assert_allclose(matrix(own).to_scipy() @ np.eye(6), truth, atol=1e-6)
    data = Problem.custom(plain, lambda m, b: m(b.scores).square().mean(), [Record(x[:4]), Record(x[4:])])
    assert data.samples == 9 and data.to(dtype=torch.float64).total
    assert next(iter(data.to(dtype=torch.float64).data)).scores.dtype == torch.float64


@pytest.mark.parametrize("result", [{"loss": 1}, (torch.ones(()), {}), 0.5])
def test_what_a_supervised_loss_returns_is_named_where_it_is_no_number(result):
    problem = Problem.supervised(nn.Linear(1, 1), lambda o, t: result, (torch.ones(3, 1), torch.ones(3, 1)))
    with pytest.raises(ValueError, match=f"the loss must return one number, .*; got a {type(result).__name__}"):
        problem.total(next(iter(problem.data)))


def test_a_problem_over_another_model_counts_its_samples_by_that_model():
    asked = []

    def loss(model, batch):
        asked.append(model)
        return (model(batch) ** 2).mean(), len(batch)

    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    problem = Problem.custom(first, loss, torch.ones(6, 2)).over(second)
    assert problem.samples == 6 and problem.model is second
    problem.total(next(iter(problem.data)))
    assert asked and all(model is second for model in asked)


def test_a_batch_that_the_model_does_not_take_is_named_with_the_way_to_say_which():
    batch = torch.ones(3, 2), torch.zeros(3), torch.arange(3)
    problem = Problem.supervised(nn.Linear(2, 1), lambda o, t: o.mean(), [batch])
    text = r"3 were given: .* \(2 of its entries by position\).*Problem.custom\(model, loss, data\)"
    with pytest.raises(TypeError, match=text):
        problem.total(next(iter(problem.data)))


def test_a_stream_of_single_samples_or_of_batches_is_read_to_its_end_also_where_it_can_be_passed_over_once():
    x, y = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 3

    class Stream(IterableDataset):
        def __init__(self, entries):
            self.entries = iter(entries)

        def __iter__(self):
            return self.entries

    model = nn.Linear(2, 3)
    for stream in (Stream(zip(x, y, strict=True)), Stream([(x[:4], y[:4]), (x[4:], y[4:])])):
        read = Problem.supervised(model, "crossentropy", stream).data
        assert torch.equal(read.tensors[0], x)
        assert torch.equal(read.tensors[1], y)
    assert Problem.supervised(model, "crossentropy", DataLoader(Stream(zip(x, y, strict=True)), 2)).samples == 7
    with pytest.raises(ValueError, match="got none"):
        Problem.supervised(model, "crossentropy", Stream([]))


def test_images_of_whole_numbers_are_named_where_the_model_does_not_take_them():
    images = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    problem = Problem.supervised(nn.Conv2d(1, 1, 3), lambda o, t: o.mean(), (images, torch.zeros(4)))
    with pytest.raises(RuntimeError, match=r"the inputs are whole numbers \(torch.uint8\): .* give x.float\(\) / 255"):
        problem.total(next(iter(problem.data)))


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        ("crossentropy", -100),
        (nn.CrossEntropyLoss(ignore_index=255), 255),
        (nn.CrossEntropyLoss(ignore_index=1), 1),
        (lambda f, y: F.cross_entropy(f, y, ignore_index=-1), -1),
    ],
)
def test_the_accuracy_is_over_the_samples_that_have_a_class(loss, ignored):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3), torch.randn(31, 5)
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3
    hidden = torch.arange(31) % 3 == 0
    y[hidden] = ignored
    counts = y != ignored
    true = 100 * (model(x).argmax(1) == y)[counts].double().mean().item()
    problem = Problem.supervised(model, loss, (x, y), batch_size=7)
    measure = losses(problem, random_plane(model, axes=1))
    assert measure((0.0,))["train_acc"] == pytest.approx(true)
    assert "without a class left out" in measure.fields[1].long_name


@pytest.mark.parametrize("ignored", [None, -1])
def test_the_accuracy_of_streamed_data_leaves_samples_without_a_class_out(ignored):
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3), torch.randn(60, 5), torch.arange(60) % 3
    y[::4] = -1
    loss = F.multi_margin_loss if ignored is None else nn.CrossEntropyLoss(ignore_index=ignored)
    if ignored is None:  # the loss itself leaves them out

        def loss(f, y):
            return (f.square().mean(1) * (y >= 0)).mean()

    data = Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(60), 7)
    problem = Problem.supervised(model, loss, data)
    true = 100 * float((model(x).argmax(1) == y)[y >= 0].double().mean())
    read = losses(problem, random_plane(model, axes=1), plan={"batch_size": 8})((0.0,))
    assert read["train_acc"] == pytest.approx(true) and readings(problem)["acc"] == pytest.approx(true)


def test_a_label_of_streamed_data_that_is_no_class_is_named():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3), torch.randn(60, 5), torch.arange(60) % 3
    y[30] = -1
    problem = check_loss(
        Problem.supervised(model, "crossentropy", Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(60), 7))
    )
    with pytest.raises(ValueError, match="the targets run from -1 to 2; the model has 3 outputs"):
        list(problem.data)


def test_without_any_class_there_is_no_accuracy():
    targets = torch.full((8,), -1)
    assert Problem.supervised(nn.Linear(5, 3), F.multi_margin_loss, (torch.randn(8, 5), targets)).metrics == {}


def test_a_packed_sequence_is_one_argument():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 4)

        def forward(self, packed):
            return self.layer(packed)[1][0][-1]

    torch.manual_seed(0)
    model, texts, y = Last(), [torch.randn(n, 3) for n in (2, 5, 3, 4)], torch.tensor([0, 1, 2, 3])
    batches = [(pack_sequence(texts[i : i + 2], enforce_sorted=False), y[i : i + 2]) for i in (0, 2)]
    problem = Problem.supervised(model, "crossentropy", batches)
    outputs = torch.stack([model(pack_sequence([text]))[0] for text in texts])
    total = sum(problem.total(batch) for batch in problem.data)
    assert total.item() == pytest.approx(F.cross_entropy(outputs, y, reduction="sum").item(), rel=1e-5)


def test_float64_for_a_model_in_float32_is_named_with_what_to_do():
    data = np.ones((4, 2)), np.ones((4, 1))
    problem = Problem.custom(nn.Linear(2, 1), lambda model, batch: (model(batch[0]) - batch[1]).mean(), data)
    with pytest.raises(RuntimeError, match=r"the batches hold float64 .* give x.float\(\)"):
        problem.total(next(iter(problem.data)))


def mean_loss(problem):
    return sum(problem.total(batch) for batch in problem.data).item() / problem.samples


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.uint8])
def test_binary_targets_of_whole_numbers_are_floating_point_ones(kind):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(20, 3)
    y = torch.randn(20, 2) > 0
    truth = F.binary_cross_entropy_with_logits(model(x), y.float()).item()
    assert mean_loss(Problem.supervised(model, nn.BCEWithLogitsLoss(), (x, y.to(kind)))) == pytest.approx(truth)


def test_a_column_of_booleans_beside_the_samples_is_no_hindrance():
    torch.manual_seed(0)
    model, x, seen = nn.Linear(3, 1), torch.randn(20, 3), torch.arange(20) % 5 > 0
    problem = Problem.custom(model, lambda m, b: (m(b[0])[:, 0] * b[1]).square().mean(), (x, seen))
    truth = (model(x)[:, 0] * seen).square().mean().item()
    assert float(losses(problem, random_plane(model, axes=1))((0.0,))["train_loss"]) == pytest.approx(truth, rel=1e-5)


def test_whole_numbers_are_targets_of_a_regression_where_there_is_one_output():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1), torch.randn(20, 3), torch.arange(20)
    truth = (model(x)[:, 0] - y).square().mean().item()
    assert mean_loss(Problem.supervised(model, "mse", (x, y))) == pytest.approx(truth)


@pytest.mark.parametrize(
    ("loss", "targets", "text"),
    [
        ("crossentropy", torch.zeros(6, 1, dtype=torch.int64), r"one dimension less .* y.squeeze\(1\)"),
        (nn.PoissonNLLLoss(), torch.ones(6), "would be broadcast: reshape them"),
        (lambda o, t: F.poisson_nll_loss(o, t), torch.ones(6), "broadcast to"),
    ],
)
def test_targets_of_another_shape_are_named_with_what_to_do(loss, targets, text):
    model = nn.Linear(2, 3 if loss == "crossentropy" else 1)
    problem = Problem.supervised(model, loss, (torch.randn(6, 2), targets))
    with pytest.raises(ValueError, match=text):
        losses(problem, random_plane(model, axes=1))((0.0,))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_inputs_of_whole_numbers_are_named_with_what_to_do(kind):
    problem = Problem.supervised(nn.Linear(2, 3), "crossentropy", (torch.ones(6, 2, dtype=kind), torch.arange(6) % 3))
    with pytest.raises(RuntimeError, match=rf"whole numbers \({kind}\): give x.float\(\)"):
        problem.total(next(iter(problem.data)))


X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.mark.parametrize(
    "data",
    [[X, Y], [X.numpy(), Y.numpy()], [X.numpy().astype(">f4"), Y.numpy().astype(">u4")], ([X, Y],), ((X, Y),)],
)
def test_inputs_and_targets_in_a_list_are_one_batch(data):
    model = nn.Linear(4, 3)
    problem = Problem.supervised(model, "crossentropy", data)
    loss = sum(float(problem.total(batch).detach()) for batch in problem.data) / problem.samples
    assert problem.samples == 12 and loss == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)


def test_tensors_in_a_list_that_are_no_batches_are_refused(caplog):
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"holds 3 tensors, of shapes \(12, 4\), .*: one batch is the tuple"):
        Problem.supervised(model, "crossentropy", [X, X, Y])
    with pytest.raises(ValueError, match=r"none of one kind \(torch.float32 \(12, 4\), torch.int64 \(12,\)\)"):
        Problem.custom(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), [X, Y])
    problem = Problem.custom(model, lambda model, batch: model(batch).square().mean(), [X, 2 * X])
    assert (
        problem.samples == 24 and "is read as two batches; one batch of inputs and targets is the tuple" in caplog.text
    )


def test_single_samples_whose_targets_are_rows_are_put_together_or_named():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(7, 4, generator=g), torch.randn(7, 2, generator=g)
    model, samples = nn.Linear(4, 2), list(zip(x, y, strict=True))
    problem = Problem.supervised(model, "mse", samples)
    assert problem.samples == 7
    assert mean_loss(problem) == pytest.approx(value(F.mse_loss(model(x), y)), rel=1e-6)
    with pytest.raises(ValueError, match=r"single samples become batches by torch\.utils\.data\.DataLoader"):
        Problem.supervised(model, "mse", iter(samples))


@pytest.mark.parametrize("loss", ["crossentropy", torch.nn.CrossEntropyLoss(), "mse"])
def test_targets_in_lists_of_numbers_are_those_of_tensors(loss):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3), torch.randn(12, 4)
    labels = torch.arange(12) % 3 if loss != "mse" else torch.randn(12, 3)
    known = lossmap.Problem.supervised(model, loss, (x, labels))
    batches = [(x[:7], labels[:7].tolist()), (x[7:], labels[7:].tolist())]
    found = lossmap.Problem.supervised(model, loss, batches)
    line = lossmap.random_plane(model, axes=1)
    a, b = (lossmap.survey(lossmap.losses(p, line), lossmap.Grid.line(-1, 1, 3)) for p in (found, known))
    assert a["train_loss"].tolist() == pytest.approx(b["train_loss"].tolist(), rel=1e-6)
    assert a.fields.keys() == b.fields.keys()


def test_targets_in_lists_that_make_no_tensor_are_named():
    batches = [(torch.randn(2, 4), [[0, 1], [2]])]
    with pytest.raises(ValueError, match="lists of numbers that make no tensor"):
        lossmap.Problem.supervised(torch.nn.Linear(4, 3), "crossentropy", batches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["tensors", "batches", "dict"])
def test_targets_keep_their_digits_beside_a_model_in_half_precision(dtype, form):
    model, x, y = nn.Linear(2, 1).to(dtype), torch.randn(20, 2), 1000 + torch.linspace(-1, 1, 20)[:, None]
    given = {"tensors": (x, y), "batches": [(x[:9], y[:9]), (x[9:], y[9:])], "dict": {"input": x, "labels": y}}[form]
    problem = Problem.supervised(model, lambda outputs, targets: (0 * outputs + targets - 1000).square().mean(), given)
    value = sum(float(problem.total(batch).detach()) for batch in problem.data) / problem.samples
    assert value == pytest.approx(float((y - 1000).square().mean()), rel=1e-3)
