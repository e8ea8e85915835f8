"""Every loss is asked once whether it is a repeatable mean over samples; truths are own arithmetic over own batches."""

import copy
import random
import re
from dataclasses import replace
from functools import partial
from math import inf

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap
from lossmap import Grid, Problem, diagnose_network_health, losses, random_plane, survey
from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.data.batches import FixedBatches, Resident, Streamed
from lossmap.data.loaders import RowsOf
from lossmap.data.loss_check import check_loss
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.spectra.spectrum import spectrum

N = 90


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(N, 4, generator=generator), torch.randint(0, 3, (N,), generator=generator)


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def centre(problem, batch=32):
    """The stored loss where the model stands, read by a plan with this batch size."""
    return float(
        survey(losses(problem, random_plane(problem.model, axes=1), plan={"batch_size": batch}), Grid.line(-1, 1, 3))[
            "train_loss"
        ][1]
    )


def largest(problem):
    return spectrum(problem, top=1, bottom=1, trace_products=0, density_error=None).largest[0]


def dense_top(net, loss):
    parameters = [p for p in net.parameters() if p.dim() > 1]
    gradient = torch.autograd.grad(loss(net), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.cat([h.reshape(-1) for h in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in flat]
    return float(torch.linalg.eigvalsh(torch.stack(rows).double())[-1])


MEANS = {
    "cross entropy": nn.CrossEntropyLoss(),
    "by name": "crossentropy",
    "a function": lambda o, t: F.cross_entropy(o, t),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "class weights in the module": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 15.0])),
    "margin": nn.MultiMarginLoss(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_samples_stays_as_it_is(net, data, name):
    problem = Problem.supervised(net, MEANS[name], data)
    checked = check_loss(problem)
    assert checked.notes == () and isinstance(checked.data, Resident) and checked.checked
    assert check_loss(checked) is checked


def test_a_sum_is_divided_by_the_samples_whatever_the_batch(net, data):
    x, y = data
    mean = float(F.cross_entropy(net(x), y).detach())
    for size in (1, 7, N):
        problem = Problem.supervised(
            net, lambda o, t: F.cross_entropy(o, t, reduction="sum"), DataLoader(TensorDataset(x, y), size)
        )
        assert [centre(problem, b) for b in (1, 16, 64)] == pytest.approx([mean] * 3, rel=1e-5)
        assert "sum over the batch" in check_loss(problem).notes[0]


COUPLED = {
    "class weights in a function": lambda o, t: F.cross_entropy(
        o, t, weight=torch.tensor([0.2, 1.0, 15.0], dtype=o.dtype)
    ),
    "ignored targets in a function": lambda o, t: F.cross_entropy(o, t, ignore_index=1),
    "a mean over pairs": lambda o, t: (o[:, None] - o[None]).square().mean() + F.cross_entropy(o, t),
    "a square of the mean": lambda o, t: F.cross_entropy(o, t).square(),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("size", [2, 20])
def test_a_loss_that_couples_a_batch_is_read_on_the_loaders_own_batches(net, data, name, size):
    x, y = data
    loss = COUPLED[name]
    problem = Problem.supervised(net, loss, DataLoader(TensorDataset(x, y), size))
    cuts = [slice(i, min(i + size, N)) for i in range(0, N, size)]

    def own(model):
        return sum(loss(model(x[c]), y[c]) * (c.stop - c.start) for c in cuts) / N

    expected = float(own(net).detach())
    if expected == expected:  # a batch whose targets are all ignored has no mean
        assert [centre(problem, b) for b in (1, 16, 64)] == pytest.approx([expected] * 3, rel=1e-5)
        assert largest(problem) == pytest.approx(dense_top(net, own), rel=1e-3)
    note = check_loss(problem).notes[0]
    assert "not a mean over its samples" in note and "uncut" in note


def test_a_sum_with_a_penalty_beside_is_told_to_grow_with_the_batch(net, data):
    def penalised(model, batch):
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum") + 0.01 * penalty

    def of_pairs(model, batch):
        o = model(batch[0])
        return (o[:, None] - o[None]).square().mean()

    batches = DataLoader(TensorDataset(*data), 20)
    grows = "it grows with the batch as a sum does: where it is one, with a penalty beside, say so by reduction='sum'"
    assert grows in check_loss(Problem.custom(net, penalised, batches)).notes[0]
    assert "grows" not in check_loss(Problem.custom(net, of_pairs, batches)).notes[0]
    assert "grows" not in check_loss(Problem.custom(net, penalised, batches, reduction="sum")).notes[0]


def test_a_contrastive_loss_gives_the_same_everywhere(data):
    x = torch.cat([data[0], data[0]])[:80]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    pairs = (x, x + 0.1 * torch.randn(80, 4, generator=torch.Generator().manual_seed(1)))

    def loss(model, batch):
        a, b = (F.normalize(model(t), dim=1) for t in batch)
        return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))

    def own(model):
        return sum(loss(model, (pairs[0][i : i + 20], pairs[1][i : i + 20])) for i in range(0, 80, 20)) / 4

    problem = Problem.custom(net, loss, DataLoader(TensorDataset(*pairs), 20))
    top = dense_top(net, own)
    assert centre(problem, 64) == pytest.approx(float(own(net).detach()), rel=1e-5)
    assert largest(problem) == pytest.approx(top, rel=1e-3)
    reading = EigenvalueMap({"train": prepare(problem)}, random_plane(net, axes=1), certify="none")((0.0,))
    assert reading["max_eig"] == pytest.approx(top, rel=2e-3)


def test_batch_norm_without_running_statistics_is_read_on_own_batches(data):
    x, y = data
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)).eval()
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y), 30))
    expected = sum(float(F.cross_entropy(net(x[i : i + 30]), y[i : i + 30]).detach()) for i in (0, 30, 60)) / 3
    assert [centre(problem, b) for b in (1, 7)] == pytest.approx([expected] * 2, rel=1e-5)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.second(F.dropout(torch.tanh(self.first(x)), 0.4))


def test_a_random_loss_is_one_fixed_realisation_for_surface_and_curvature(data):
    torch.manual_seed(0)
    problem = Problem.supervised(Dropping().eval(), nn.CrossEntropyLoss(), DataLoader(TensorDataset(*data), 45))
    state = torch.get_rng_state()
    values = [centre(problem, b) for b in (1, 16, 64)]
    assert values[0] == values[1] == values[2]
    assert torch.equal(torch.get_rng_state(), state)
    checked = check_loss(problem)
    assert "draws at random" in checked.notes[0] and checked.noise_seed == 0
    assert centre(check_loss(problem, seed=1)) != values[0]
    top = largest(problem)
    assert largest(problem) == top
    parameters = [p for p in problem.model.parameters() if p.dim() > 1]
    operator = build_operator(problem, "hessian", "weights")
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(2))
    v /= v.norm()

    def gradient(step):
        twin = check_loss(problem)
        start = 0
        for p in parameters:
            p.data += step * v[start : start + p.numel()].view_as(p)
            start += p.numel()
        total = sum(twin.total(batch) for batch in twin.data) / N
        found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters)])
        start = 0
        for p in parameters:
            p.data -= step * v[start : start + p.numel()].view_as(p)
            start += p.numel()
        return found

    difference = (gradient(1e-2) - gradient(-1e-2)) / 2e-2
    assert (operator @ v - difference).norm() < 1e-2 * difference.norm()


def test_a_loss_that_varies_little_from_elsewhere_is_refused_too(net, data):
    draw = random.SystemRandom()
    problem = Problem.supervised(net, lambda o, t: F.cross_entropy(o, t) * (1 + 3e-4 * draw.random()), data)
    for _ in range(5):
        with pytest.raises(
            ValueError, match=r"the loss is not repeatable: one batch gave .*, also from the same state"
        ):
            check_loss(problem)


def test_a_loss_that_draws_from_elsewhere_is_refused(net, data):
    counter = iter(range(10**6))
    problem = Problem.supervised(net, lambda o, t: F.cross_entropy(o, t) * (1 + next(counter) % 3), data)
    with pytest.raises(ValueError, match=r"the loss is not repeatable: one batch gave .*, as it changes with counter"):
        losses(problem, random_plane(net, axes=1))


@pytest.mark.parametrize("period", [5, 7])
def test_a_loss_that_changes_at_every_nth_call_is_refused_as_such(period, net, data):
    counter = iter(range(1, 10**6))
    problem = Problem.supervised(
        net, lambda o, t: F.cross_entropy(o, t) * (1 + 0.1 * (next(counter) % period == 0)), data
    )
    with pytest.raises(ValueError, match="the loss is not repeatable: one batch gave"):
        check_loss(problem)  # not: rounding shows, nor: no mean over its samples


def test_a_model_that_asks_for_its_precision_is_not_said_to_be_rounded(net, data):
    class Branches(nn.Module):
        def forward(self, x):
            return self.net(x) * (3.0 if x.dtype == torch.float64 else 1.0)

    model = Branches()
    model.net = net
    note = "".join(check_loss(Problem.supervised(model, "crossentropy", data)).notes)
    assert "either rounding shows in it" in note and "or the model is another function there, since it asks for" in note


def test_nan_is_a_result_and_says_nothing_of_chance(net, data):
    problem = Problem.supervised(net, lambda o, t: o.sum() * float("nan"), data)
    assert check_loss(problem).notes == ()


def test_gradients_of_samples_are_refused_where_a_sample_has_none(net, data):
    problem = Problem.supervised(net, COUPLED["a mean over pairs"], DataLoader(TensorDataset(*data), 30))
    found = diagnose_network_health(net, DataLoader(TensorDataset(*data), 30), COUPLED["a mean over pairs"])
    assert "not a mean over its samples" in found.measurements.skipped["gradients"]
    assert isinstance(check_loss(problem).data, FixedBatches)


def test_fixed_batches_are_dealt_whole():
    batches = FixedBatches(tuple((torch.ones(n, 1), torch.zeros(n)) for n in (3, 5, 2)))
    assert batches.samples == 10 and batches.rebatched(1) is batches
    assert [len(b[0]) for r in range(2) for b in batches.share(r, 2)] == [3, 5, 2]
    with pytest.raises(ValueError, match="fewer batches than ranks"):
        [batches.share(r, 4) for r in range(4)]


def test_unequal_batches_keep_the_loaders_sizes(net, data):
    x, y = data
    cuts = [slice(0, 50), slice(50, 60), slice(60, N)]
    loss = COUPLED["a square of the mean"]
    problem = Problem.supervised(net, loss, [(x[c], y[c]) for c in cuts])
    expected = sum(float(loss(net(x[c]), y[c]).detach()) * (c.stop - c.start) for c in cuts) / N
    assert centre(problem) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("leaf", [lambda i: f"task {i}", lambda i: i, lambda i: object()])
def test_batches_with_something_of_their_own_that_is_no_tensor_are_kept_as_given(net, leaf):
    batches = [(torch.ones(4, 4), leaf(i), torch.zeros(4, dtype=torch.long)) for i in range(3)]
    problem = Problem.custom(net, lambda m, b: F.cross_entropy(m(b[0]), b[2]), batches)
    assert [batch[1] for batch in problem.data] == [batch[1] for batch in batches]


@pytest.mark.parametrize("kind", [torch.float32, torch.int32, torch.uint8, torch.int16, torch.float64])
def test_whole_labels_of_any_type_are_labels(net, data, kind):
    x, y = data
    assert centre(Problem.supervised(net, "crossentropy", (x, y.to(kind)))) == pytest.approx(
        float(F.cross_entropy(net(x), y).detach()), rel=1e-5
    )


def test_regression_targets_are_refused_and_probabilities_taken(net, data):
    x, y = data
    with pytest.raises(ValueError, match=r"neither class labels .* nor class probabilities"):
        Problem.supervised(net, nn.CrossEntropyLoss(), (x, torch.randn(N, 3)))
    soft = torch.rand(N, 3).softmax(1)
    assert centre(Problem.supervised(net, "crossentropy", (x, soft))) == pytest.approx(
        float(F.cross_entropy(net(x), soft).detach()), rel=1e-5
    )
    with pytest.raises(ValueError, match="class labels must be whole numbers from 0 to 2"):
        losses(Problem.supervised(net, "crossentropy", (x, y + 1)), random_plane(net, axes=1))


def test_an_accuracy_is_one_only_for_classes(data):
    x, y = data
    one = nn.Linear(4, 1).eval()
    loss = lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], (t > 0).to(o.dtype))
    assert losses(Problem.supervised(one, loss, data), random_plane(one, axes=1))((0.0,)).keys() == {"train_loss"}
    sure = lambda o, t: ((o[:, 0] > 0) == (t > 0)).float().mean()
    measured = losses(Problem.supervised(one, loss, data, metrics={"right": sure}), random_plane(one, axes=1))((0.0,))
    assert measured["train_right"] == pytest.approx(float(((one(x)[:, 0] > 0) == (y > 0)).float().mean()))


def test_an_unchecked_problem_can_be_read_as_it_is(net, data):
    problem = Problem.supervised(net, COUPLED["a square of the mean"], data)
    assert centre(replace(problem, checked=True), N) == pytest.approx(
        float(F.cross_entropy(net(data[0]), data[1]).detach()) ** 2, rel=1e-5
    )


def test_an_ignored_label_of_the_losss_own_is_no_label(net, data):
    x, y = data
    y = torch.where(y == 2, -1, y)
    problem = Problem.supervised(net, nn.CrossEntropyLoss(ignore_index=-1), (x, y))
    assert centre(problem) == pytest.approx(float(F.cross_entropy(net(x), y, ignore_index=-1).detach()), rel=1e-5)


def test_what_is_unusual_of_a_loss_is_logged(net, data, caplog):
    check_loss(Problem.supervised(net, COUPLED["a square of the mean"], data))
    assert "is not a mean over its samples" in caplog.text


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, weight=torch.tensor([1.0, 4.0, 0.5])),
        partial(F.cross_entropy, ignore_index=2, label_smoothing=0.1),
        partial(F.nll_loss, weight=torch.tensor([1.0, 4.0, 0.5])),
        F.cross_entropy,
    ],
    ids=["weights", "ignored", "nll", "plain"],
)
def test_pytorchs_functions_with_constant_keywords_are_cut_as_their_modules_are(net, data, loss):
    x, y = data
    model = nn.Sequential(net, nn.LogSoftmax(1)) if "nll" in str(loss) else net
    problem = check_loss(Problem.supervised(model, loss, (x, y), batch_size=5))
    assert not problem.notes
    assert centre(problem) == pytest.approx(float(loss(model(x), y).detach()), rel=1e-5)
    assert centre(problem.rebatched(3)) == pytest.approx(centre(problem), rel=1e-6)


def test_a_function_of_ones_own_that_couples_a_batch_is_advised_the_module(net, data):
    x, y = data

    def weighted(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 4.0, 0.5]))

    (note,) = check_loss(Problem.supervised(net, weighted, (x, y), batch_size=5)).notes
    assert note.endswith("class weights and ignored targets may be cut where they are given by nn.CrossEntropyLoss")


def test_a_last_batch_too_small_for_the_model_is_refused_with_advice():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    data = TensorDataset(torch.randn(21, 5), torch.arange(21) % 3)
    problem = Problem.supervised(model, "crossentropy", DataLoader(data, batch_size=5))
    with pytest.raises(ValueError, match=r"fails on the smallest of them, of 1 of 21 samples: .*take drop_last=True"):
        check_loss(problem)
    whole = Problem.supervised(model, "crossentropy", DataLoader(data, batch_size=5, drop_last=True))
    assert isinstance(check_loss(whole).data, FixedBatches)


@pytest.mark.parametrize("targets", [2 * torch.eye(3), torch.eye(3).long(), torch.eye(3, dtype=torch.uint8)])
def test_rows_that_are_no_class_probabilities_are_refused(targets):
    y = targets[torch.arange(12) % 3]
    for loss in ("crossentropy", nn.CrossEntropyLoss(), F.cross_entropy):
        with pytest.raises(ValueError, match=r"class probabilities, whose rows must be >= 0 and sum to 1"):
            problem = Problem.supervised(nn.Linear(5, 3), loss, (torch.randn(12, 5), y))
            check_loss(problem)


def error_rate(outputs, targets):
    """1 - p, which cancels in float32 where p rounds to 1."""
    return (1 - outputs.softmax(1).gather(1, targets[:, None])).mean()


def test_a_loss_that_cancels_in_the_models_precision_is_noted():
    y = torch.arange(12) % 3
    x = torch.eye(3)[y]
    net = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(21 * torch.eye(3))
    true = 2 * np.exp(-21) / (1 + 2 * np.exp(-21))
    (note,) = check_loss(Problem.supervised(net, error_rate, (x, y))).notes
    assert f"{true:.6g} in float64" in note and "--precision float64" in note
    assert check_loss(Problem.supervised(net, "crossentropy", (x, y))).notes == ()
    net.weight.data /= 20
    assert check_loss(Problem.supervised(net, error_rate, (x, y))).notes == ()


@pytest.mark.parametrize(
    "loss", [F.mse_loss, F.smooth_l1_loss, lambda o, t: ((o - t) ** 2).mean(), lambda o, t: (t - o).abs().mean()]
)
@pytest.mark.parametrize("shape", [(), (3, 4)])
def test_a_loss_of_all_pairs_of_outputs_and_targets_is_refused(loss, shape):
    net = nn.Conv2d(2, 1, 1) if shape else nn.Linear(4, 1)
    x, y = torch.randn(12, *((2, *shape) if shape else (4,))), torch.randn(12, *shape)
    with pytest.raises(ValueError, match=r"broadcast to \(12, 12.*: every output beside every target; reshape the tar"):
        check_loss(Problem.supervised(net, loss, (x, y)))
    assert check_loss(Problem.supervised(net, loss, (x, y[:, None]))).notes == ()


def test_a_table_of_pairs_in_an_own_loss_is_noted_and_one_that_is_meant_is_not():
    net, x, y = nn.Linear(4, 1), torch.randn(12, 4), torch.randn(12)
    first, *_ = check_loss(Problem.custom(net, lambda m, b: (m(b[0]) - b[1]).square().mean(), (x, y))).notes
    assert first.startswith("the loss takes the difference of tensors of shapes (12, 1) and (12,), which are broadcast")

    def pairwise(model, batch):
        scores = model(batch[0])[:, 0]
        return F.softplus((scores[:, None] - scores) * (batch[1][None] - batch[1][:, None]).sign()).mean()

    (note,) = check_loss(Problem.custom(net, pairwise, (x, y))).notes
    assert note.startswith("the loss of a batch is not a mean over its samples")


def test_samples_of_nan_are_reported_where_they_make_the_loss_nan(net, data):
    x, y = data[0].clone(), data[1]
    x[40, 1] = x[41, 2] = float("nan")
    (note,) = check_loss(Problem.supervised(net, "crossentropy", (x, y))).notes
    assert note == "NaN stands in 2 of the 90 samples, the first of them sample 40, and makes the loss NaN"
    batches = FixedBatches(((x[:41], y[:41]), (x[41:], y[41:])))
    (note,) = check_loss(Problem.supervised(net, "crossentropy", batches)).notes
    assert note == "NaN stands in 2 of the 2 batches, and makes the loss NaN"

    class Filled(nn.Sequential):
        def forward(self, x):
            return super().forward(x.nan_to_num())

    assert check_loss(Problem.supervised(Filled(*net), "crossentropy", (x, y))).notes == ()


class Remembers(nn.Module):
    """Its hidden state goes on from batch to batch."""

    def __init__(self, buffer):
        super().__init__()
        self.into, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        if buffer:
            self.register_buffer("state", torch.zeros(1, 5))
        else:
            self.state = None

    def forward(self, x):
        h = torch.tanh(self.into(x) + (0 if self.state is None else self.state))
        self.state = h.mean(0, keepdim=True).detach()
        return self.out(h)


@pytest.mark.parametrize("buffer", [True, False])
def test_a_model_that_carries_a_state_is_read_on_one_batch_or_refused(data, buffer):
    x, y = data
    model = Remembers(buffer).eval()
    checked = check_loss(Problem.supervised(model, "crossentropy", (x, y)))
    assert checked.notes == (
        "the model, or what its loss uses, carries a state from batch to batch (state): it is evaluated on the one "
        "batch given, uncut",
    )
    before = copy.deepcopy(model.state)
    truth = float(F.cross_entropy(model(x), y).detach())
    model.state = before
    assert centre(checked, 7) == pytest.approx(truth, rel=1e-6)
    with pytest.raises(ValueError, match=r"carries a state from batch to batch \(state\): over 3 batches its loss"):
        check_loss(Problem.supervised(model, "crossentropy", (x, y), batch_size=30))


def hardest(outputs, targets):
    """The mean over the 20 worst samples, or over all of fewer."""
    each = F.cross_entropy(outputs, targets, reduction="none")
    return each.topk(min(20, len(each))).values.mean()


def test_a_loss_that_couples_large_batches_alone_is_read_on_own_batches(net, data):
    checked = check_loss(Problem.supervised(net, hardest, data, batch_size=45))
    (note,) = checked.notes
    assert "45 samples together" in note and isinstance(checked.data, FixedBatches)
    x, y = data
    truth = sum(float(hardest(net(x[rows]), y[rows]).detach()) for rows in (slice(45), slice(45, 90))) / 2
    assert [centre(checked, size) for size in (7, 90)] == pytest.approx([truth, truth], rel=1e-6)
    assert check_loss(Problem.supervised(net, lambda o, t: F.cross_entropy(o, t), data, batch_size=45)).notes == ()


def test_a_sum_that_couples_large_batches_alone_is_read_on_own_batches(net, data):
    def summed(outputs, targets):
        return 20 * hardest(outputs, targets) if len(targets) > 20 else len(targets) * hardest(outputs, targets)

    x, y = data
    checked = check_loss(Problem.supervised(net, summed, data, batch_size=45))
    (note,) = checked.notes
    assert "45 samples together" in note and isinstance(checked.data, FixedBatches)
    truth = sum(float(summed(net(x[rows]), y[rows]).detach()) for rows in (slice(45), slice(45, 90))) / 2
    assert [centre(checked, size) for size in (7, 90)] == pytest.approx([truth, truth], rel=1e-6)
    few = check_loss(Problem.supervised(net, summed, data, batch_size=15), report=False)
    (note,) = few.notes
    assert "returns the sum over the batch" in note


class Hidden(nn.Module):
    """What stands before a layer that is 0, as at the beginning of a training."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return self.last(self.function(torch.tanh(self.first(x))))


def at_distance(problem, size):
    """The loss of the model with another last layer, by a plan with this batch size."""
    plane = random_plane(problem.model, axes=1, norm="none")
    plane = replace(plane, axes=({k: torch.ones_like(t) * (k == "last.weight") for k, t in plane.axes[0].items()},))
    return losses(problem, plane, plan={"batch_size": size})((0.7,))["train_loss"]


@pytest.mark.parametrize(
    "function, note",
    [
        (lambda h: F.dropout(h), "draws at random"),
        (lambda h: (h @ h.T).softmax(1) @ h * h[:, :1], "one by one .*, at weights moved at random"),
        (lambda h: h, None),
    ],
)
def test_what_a_layer_of_zeros_hides_is_seen(data, function, note):
    problem = Problem.supervised(Hidden(function), "crossentropy", data, batch_size=30)
    checked = check_loss(problem, report=False)
    assert [bool(re.search(note, text)) for text in checked.notes] == [True] * (note is not None)
    values = [at_distance(checked, size) for size in (7, 7, 30)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random, lambda: np.random.rand()])
def test_a_loss_that_hardly_ever_differs_is_random_where_it_draws(net, data, draw):
    problem = Problem.supervised(net, lambda o, t: F.cross_entropy(o, t) * (2 if draw() < 1e-3 else 1), data)
    assert "draws at random" in check_loss(problem, report=False).notes[0]


class Every(nn.Module):
    """Twice its layer at every 50th call."""

    def __init__(self, buffer=False, factor=2.0):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), factor
        if buffer:
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        else:
            self.calls = 0

    def forward(self, x):
        self.calls = self.calls + 1
        return self.layer(x) * (self.factor if int(self.calls) % 50 == 0 else 1.0)


class Annealed:
    """A loss whose weight changes at the 60th call."""

    def __init__(self):
        self.step = 0

    def __call__(self, outputs, targets):
        self.step += 1
        return F.cross_entropy(outputs, targets) * (1 if self.step < 60 else 2)


beta = 0.0


def warmed_up(outputs, targets):
    global beta
    beta = min(1.0, beta + 0.01)
    return F.cross_entropy(outputs, targets) * (1 + (beta > 0.5))


@pytest.mark.parametrize("buffer", [True, False])
def test_a_model_that_changes_at_every_fiftieth_call_is_read_on_one_batch_or_refused(data, buffer):
    model = Every(buffer)
    checked = check_loss(Problem.supervised(model, "crossentropy", data))
    assert checked.notes[0].startswith("the model, or what its loss uses, carries a state from batch to batch (calls)")
    assert int(model.calls) == 0
    with pytest.raises(ValueError, match=r"carries a state from batch to batch \(calls\): over 3 batches its loss"):
        check_loss(Problem.supervised(model, "crossentropy", data, batch_size=30))


class Held:
    """Counts of calls, wherever people keep them."""

    calls, epochs, seen, tensor = [0], 0.0, {"samples": 0}, torch.zeros((), dtype=torch.long)


def by_a_list(outputs, targets):
    Held.calls[0] += 1
    return F.cross_entropy(outputs, targets) * (1.1 if 500 < Held.calls[0] < 900 else 1.0)


def by_a_float(outputs, targets):
    Held.epochs += 0.01
    return F.cross_entropy(outputs, targets) * (1.1 if 5 < Held.epochs < 9 else 1.0)


def by_samples(outputs, targets):
    Held.seen["samples"] += len(targets)
    return F.cross_entropy(outputs, targets) * (1.1 if 6_000 < Held.seen["samples"] < 8_000 else 1.0)


def by_a_tensor(outputs, targets):
    Held.tensor.add_(1)
    return F.cross_entropy(outputs, targets) * (1.1 if 500 < Held.tensor < 900 else 1.0)


def by_an_index(outputs, targets):
    Held.calls[0] = (Held.calls[0] + 1) % 10
    return F.cross_entropy(outputs, targets) * (1.1 if Held.calls[0] >= 10 else 1.0)


@pytest.mark.parametrize(
    ("loss", "name"),
    [(by_a_list, "calls[0]"), (by_a_float, "epochs"), (by_samples, "seen['samples']"), (by_a_tensor, "tensor")],
)
def test_a_schedule_that_passes_after_some_hundred_calls_is_read_as_it_stands_on_one_batch(net, data, loss, name):
    carried = f"carries a state from batch to batch (Held.{name})"
    assert carried in check_loss(Problem.supervised(net, loss, data)).notes[0]
    with pytest.raises(ValueError, match=rf"{re.escape(carried)}: over 3 batches"):
        check_loss(Problem.supervised(net, loss, data, batch_size=30))
    assert (Held.calls[0], Held.epochs, Held.seen["samples"], int(Held.tensor)) == (0, 0.0, 0, 0)


def test_an_index_that_starts_anew_is_not_set_where_it_never_comes(net, data):
    Held.calls[0] = 0
    (note,) = check_loss(Problem.supervised(net, by_an_index, data)).notes
    assert note.startswith("every call changes Held.calls[0]")
    assert Held.calls[0] < 10


def test_a_counter_that_changes_nothing_is_named(data):
    checked = check_loss(Problem.supervised(Every(factor=1.0), "crossentropy", data, batch_size=30))
    assert checked.notes == (
        "every call changes calls; the loss of a few samples was the same 128 times and is taken for one that does not "
        "depend on it",
    )
    assert not isinstance(checked.data, FixedBatches)


def test_a_schedule_in_a_loss_is_read_as_it_stands_and_refused_where_it_cannot_be_put_back(net, data):
    calls = iter(range(1, 10**6))
    annealed = Annealed()
    schedules = {
        "step": annealed,
        "beta": warmed_up,
        "calls": lambda o, t: F.cross_entropy(o, t) * (1 + (next(calls) % 50 == 0)),
    }
    for name, loss in schedules.items():
        problem = Problem.supervised(net, loss, data)
        if name == "calls":
            with pytest.raises(
                ValueError, match=r"the loss is not repeatable: .* as it changes with calls.*every call"
            ):
                check_loss(problem)
        else:
            assert f"from batch to batch ({name})" in check_loss(problem).notes[0]
    assert annealed.step == 0 and beta == 0.0  # as it was


class Weighing:
    """Losses weighed by the last ones, as of multi-task training: the first value that each ever had sets the scale."""

    def __init__(self):
        self.last, self.mean, self.history, self.number = None, None, [], None

    def by_change(self, model, batch):  # SoftAdapt
        parts = self.parts(model, batch)
        weights = torch.ones(2) if self.last is None else 2 * ((parts.detach() - self.last) / 0.1).softmax(0)
        self.last = parts.detach()
        return (weights * parts).sum()

    def by_mean(self, model, batch):
        loss = self.parts(model, batch)[0]
        self.mean = loss.detach() if self.mean is None else 0.9 * self.mean + 0.1 * loss.detach()
        return loss / self.mean

    def by_ratio(self, model, batch):  # dynamic weight average
        parts = self.parts(model, batch)
        ratio = torch.ones(2) if len(self.history) < 2 else self.history[-1] / self.history[-2]
        self.history.append(parts.detach())
        return (2 * (ratio / 2).softmax(0) * parts).sum()

    def by_number(self, model, batch):
        first, second = self.parts(model, batch)
        weight = 1.0 if self.number is None else float(first.detach()) / self.number
        self.number = float(first.detach())
        return first + weight * second

    def parts(self, model, batch):
        outputs = model(batch[0])
        return torch.stack([F.cross_entropy(outputs, batch[1]), outputs.square().mean()])


@pytest.mark.parametrize(
    ("kind", "name"), [("by_change", "last"), ("by_mean", "mean"), ("by_ratio", "history"), ("by_number", "number")]
)
def test_a_weight_that_begins_with_the_first_loss_ever_is_no_mean_over_batches(net, data, kind, name):
    weighing = Weighing()
    x, y = data
    x[len(x) // 2 :] *= 3
    carried = f"carries a state from batch to batch ({name})"
    with pytest.raises(ValueError, match=rf"{re.escape(carried)}: over 3 batches"):
        check_loss(Problem.custom(net, getattr(weighing, kind), (x, y), batch_size=30))
    checked = check_loss(Problem.custom(net, getattr(weighing, kind), [(x, y)]))
    assert any(carried in note for note in checked.notes)
    truth = float(getattr(Weighing(), kind)(net, (x, y)).detach())
    line = lossmap.survey(losses(checked, random_plane(net, axes=1)), lossmap.Grid.line(0, 0, 1))
    assert line["train_loss"][0] == pytest.approx(truth, rel=1e-6)
    assert (weighing.last, weighing.mean, weighing.history, weighing.number) == (None, None, [], None)


class Scales(nn.Sequential):
    def forward(self, x):
        x /= 3
        return super().forward(x)


def ignores(outputs, targets):
    targets[targets == 2] = -100
    return F.cross_entropy(outputs, targets, reduction="sum")


def of_batch(model, batch):
    batch[0].mul_(0.5)
    return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])


def test_what_writes_into_its_batch_is_given_a_copy(net, data):
    x, y = (t.clone() for t in data)
    scaled = check_loss(Problem.supervised(Scales(*net), "crossentropy", (x, y)))
    assert scaled.notes == () and centre(scaled) == centre(scaled)
    assert centre(scaled) == pytest.approx(float(F.cross_entropy(net(x / 3), y).detach()), rel=1e-6)
    own = check_loss(Problem.custom(net, of_batch, (x, y)))
    assert centre(own) == pytest.approx(float(F.cross_entropy(net(x / 2), y).detach()), rel=1e-6)
    masked = check_loss(Problem.supervised(net, ignores, (x, y)))
    assert centre(masked) == pytest.approx(float(ignores(net(x), y.clone()).detach()) / N, rel=1e-6)
    assert torch.equal(x, data[0]) and torch.equal(y, data[1])
    assert largest(scaled) == pytest.approx(dense_top(net, lambda m: F.cross_entropy(m(x / 3), y)), rel=1e-3)


def test_indices_beyond_the_outputs_and_outputs_of_three_dimensions_have_no_accuracy(net, data):
    views, numbers = torch.stack([data[0], -data[0]], 1), torch.arange(N)
    for x, y in ((views, data[1]), (data[0], numbers)):
        own = check_loss(Problem.supervised(net, lambda o, t: o.square().mean(), (x, y)))
        assert not own.metrics
    assert check_loss(Problem.supervised(net, lambda o, t: F.cross_entropy(o, t), data)).metrics


@pytest.mark.parametrize(
    "scale, note", [(2000.0, "where exp underflows, below the smallest number of float64"), (1.0, None)]
)
def test_a_loss_that_underflows_is_noted_and_one_that_is_truly_zero_is_not(scale, note):
    net, x = nn.Linear(3, 1), torch.randn(12, 3)
    notes = check_loss(Problem.custom(net, lambda m, b: torch.exp(-scale * (1 + m(b) ** 2)).mean(), x)).notes
    assert [note in text for text in notes] == [True] * (note is not None)
    for true_zero in (
        lambda m, b: F.relu(m(b) - 100).mean(),
        lambda m, b: 0 * m(b).mean(),
        lambda m, b: m(b).mean() / inf,
    ):
        assert check_loss(Problem.custom(net, true_zero, x)).notes == ()


def test_ignored_targets_in_the_middle_of_the_data_are_seen(net, data):
    x, y = data[0], data[1].clone()
    y[30:40:3] = -100
    truth = float(F.cross_entropy(net(x), y).detach())
    own = check_loss(Problem.supervised(net, lambda o, t: F.cross_entropy(o, t), (x, y), batch_size=30))
    assert isinstance(own.data, FixedBatches) and "class weights and ignored targets" in own.notes[0]
    assert centre(Problem.supervised(net, "crossentropy", (x, y)), 7) == pytest.approx(truth, rel=1e-6)

    streamed = Streamed(RowsOf((x, y)), range(N), 16)
    with pytest.raises(ValueError, match="targets of -100, which cross entropy ignores, stand in data that are str"):
        list(Problem.supervised(net, "crossentropy", streamed).data)
    counted = Problem.supervised(net, nn.CrossEntropyLoss(weight=torch.ones(3)), streamed)
    assert centre(counted, 7) == pytest.approx(truth, rel=1e-6)


def test_a_mean_over_the_values_that_are_not_missing_is_seen(net, data):
    x, y = data[0], torch.randn(N, 3)
    y[44, 1] = y[50] = float("nan")

    def masked(outputs, targets):
        return (outputs - targets)[~targets.isnan()].square().mean()

    checked = check_loss(Problem.supervised(net, masked, (x, y), batch_size=N))
    assert isinstance(checked.data, FixedBatches)
    assert centre(checked) == pytest.approx(float(masked(net(x), y).detach()), rel=1e-6)


def test_a_model_without_values_is_refused_as_such(data):
    with torch.device("meta"):
        model = nn.Linear(4, 3)
    problem = Problem.supervised(nn.Linear(4, 3), "crossentropy", data)
    with pytest.raises(ValueError, match=r"weight holds no values \(its device is meta\); make the model on the CPU"):
        check_loss(replace(problem, model=model))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("rare", [[30], [20, 31, 40]])
def test_classes_that_are_weighed_show_where_most_samples_have_one_class(streamed, rare):
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.ones(64, dtype=torch.long)
    y[rare] = 0
    data = Streamed(lambda rows: (x[list(rows)], y[list(rows)]), range(64), 2)
    weight = torch.tensor([5.0, 0.5])
    net = nn.Linear(5, 2)
    problem = Problem.supervised(net, lambda o, t: F.cross_entropy(o, t, weight.to(o)), (x, y), batch_size=2)
    problem = problem.with_data(data) if streamed else problem
    checked = check_loss(problem)
    assert isinstance(checked.data, FixedBatches) and checked.notes
    batches = [(x[i : i + 2], y[i : i + 2]) for i in range(0, 64, 2)]
    with torch.no_grad():
        truth = np.mean([float(F.cross_entropy(net(a), b, weight)) for a, b in batches])
    assert losses(problem, random_plane(net, axes=1))((0.0,))["train_loss"] == pytest.approx(truth, rel=1e-5)


def test_weights_beside_the_samples_show_where_the_first_ones_are_alike():
    torch.manual_seed(0)
    x, w, y = torch.randn(60, 5), torch.ones(60), torch.randn(60, 1)
    w[25:35] = 4.0

    def weighted(model, batch):
        return (batch[1] * (model(batch[0]) - batch[2])[:, 0] ** 2).sum() / batch[1].sum()

    problem = Problem.custom(nn.Linear(5, 1), weighted, (x, w, y), batch_size=4)
    assert isinstance(check_loss(problem).data, FixedBatches)


class ReadsGradientMode(nn.Module):
    """Another function where gradients are recorded, in the model or in the loss."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.net(x) * (self.factor if torch.is_grad_enabled() else 1.0)


def entropy_by_gradient_mode(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets) * (1.5 if torch.is_grad_enabled() else 1.0)


class AdaptsItsHead(nn.Module):
    """Takes a step of its own on its head in every pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 4), nn.Linear(4, 3)

    def forward(self, x):
        h, weight = torch.tanh(self.body(x)), self.head.weight
        (step,) = torch.autograd.grad((self.head.bias + weight.sum(1)).square().sum(), weight, create_graph=True)
        return nn.functional.linear(h, weight - 0.1 * step, self.head.bias)


class Adapted(AdaptsItsHead):
    """The same, its step written out."""

    def forward(self, x):
        h, weight = torch.tanh(self.body(x)), self.head.weight
        step = 2 * (self.head.bias + weight.sum(1))[:, None].expand_as(weight)
        return nn.functional.linear(h, weight - 0.1 * step, self.head.bias)


def test_a_model_that_differentiates_in_its_forward_pass_is_read_with_gradients_recorded():
    torch.manual_seed(0)
    model, known, data = AdaptsItsHead(), Adapted(), (torch.randn(20, 12), torch.arange(20) % 3)
    known.load_state_dict(model.state_dict())
    found, true = (Problem.supervised(m, "crossentropy", data) for m in (model, known))
    a, b = (spectrum(p, parameters="all", density_error=None) for p in (found, true))
    assert abs(a.largest[0] - b.largest[0]) <= a.largest[1] + b.largest[1]
    assert any("a pass without gradients recorded fails" in note for note in a.notes)
    a, b = (losses(p, random_plane(model, axes=1, seed=0))((0.5,)) for p in (found, true))
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


@pytest.mark.parametrize("place", ["model", "loss"])
def test_a_loss_that_differs_where_gradients_are_recorded_is_one_function_everywhere(net, data, place):
    model = ReadsGradientMode(net, 1.5 if place == "model" else 1.0)
    loss = nn.functional.cross_entropy if place == "model" else entropy_by_gradient_mode
    problem = Problem.supervised(model, loss, data)
    truth = float(loss(model(data[0]), data[1]).detach())
    whole = spectrum(problem, top=1, bottom=0, density_error=None)
    assert whole.loss == pytest.approx(truth, rel=1e-5)
    surface = losses(problem, random_plane(model, axes=1, seed=0))((0.0,))
    assert surface["train_loss"] == pytest.approx(truth, rel=1e-5)
    assert any("torch.is_grad_enabled()" in note for note in whole.notes)


def test_a_loss_that_couples_more_samples_than_are_looked_at_stays_in_its_own_batches():
    torch.manual_seed(0)
    net, x = nn.Linear(10, 1), torch.randn(40, 10)

    def loss(model, batch):
        return model(batch).square().topk(min(20, len(batch)), dim=0).values.mean()

    checked = check_loss(Problem.custom(net, loss, x, batch_size=40), report=False)
    assert any("not a mean over its samples" in note for note in checked.notes)
    surface = survey(losses(checked, random_plane(net, axes=1)), Grid.line(0.0, 1.0, 2), progress=False)
    assert surface["train_loss"][0] == pytest.approx(loss(net, x).item(), rel=1e-5)


def test_what_is_said_of_data_is_in_the_result(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, i):
            return torch.full((3,), float(i)) + torch.randn(3), i % 2

    torch.manual_seed(0)
    net, rows = nn.Linear(3, 2), torch.randn(24, 3)
    dropped = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, torch.arange(24) % 2), 7, drop_last=True)
    drawn = torch.utils.data.DataLoader(Noisy(), 8)
    for i, (data, said) in enumerate(
        [
            (dropped, "the loader left out 3 of 24 samples, its last batch (drop_last)"),
            (drawn, "Noisy draws at random (augmentation, masking): each sample is drawn once"),
        ]
    ):

        def loss(model, batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        problem = lossmap.Problem.custom(net, loss, data)
        found = lossmap.spectrum(problem, top=1, density_error=None)
        assert found.notes[0].startswith(said) and len(set(found.notes)) == len(found.notes)
        line, path = lossmap.random_plane(net, axes=1), tmp_path / f"{i}.h5"
        lossmap.survey(lossmap.losses(problem, line), lossmap.Grid.line(0, 1, 2), path=path)
        assert said in str(lossmap.read(path).settings)
