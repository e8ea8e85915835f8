"""The line between two networks: closed forms, paired errors against every sample's loss, statistics of batch norm."""

from __future__ import annotations

import copy
import pickle
from array import array
from math import inf, isnan, nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.batches import FixedBatches
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import line_between
from lossmap.landscape.barrier_rounding import seconds_of_rounding, with_rounding
from lossmap.landscape.batchnorm_statistics import norms_with_statistics, recompute_statistics
from lossmap.landscape.connect import line_grid
from lossmap.landscape.connection import Connection, barrier_of
from lossmap.landscape.connection_map import connection_map, fixed_batches, statistics_batch
from lossmap.landscape.loss import ForwardPlan
from lossmap.landscape.sample_losses import sample_losses
from lossmap.report.connection import monotone_text
from lossmap.report.render import report_of_group
from lossmap.report.stored import StoredReport

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
Y = torch.arange(30) % 3


class Point(nn.Module):
    """theta (n,), in float64."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))


def custom(model, function):
    """A problem whose loss is a function of theta alone."""
    return Problem.custom(model, lambda m, batch: function(m.theta) + 0.0 * batch.mean(), torch.ones(4, 1))


def net(seed, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(8))
        layers.insert(3, nn.Dropout(0.5))
    model = nn.Sequential(*layers)
    if norm:
        with torch.no_grad():
            model[1].running_mean.normal_()
            model[1].running_var.uniform_(0.5, 2.0)
    return model


def supervised(model, loss="crossentropy", batch_size=8):
    return Problem.supervised(model, loss, (X, Y), batch_size=batch_size)


def words(line):
    """The report on one line."""
    return " ".join(repr(line).split())


def unknown(losses):
    return np.full(len(losses), nan)


def barrier(t, losses):
    losses = np.asarray(losses, dtype=np.float64)
    return barrier_of(np.asarray(t, dtype=np.float64), losses, unknown(losses), unknown(losses))


def test_of_a_quadratic_there_is_no_barrier_and_the_losses_are_the_closed_form():
    a, b = np.array([1.0, -2.0]), np.array([3.0, 1.0])
    line = lossmap.connect(custom(Point(a), lambda theta: theta.square().sum()), Point(b), points=9)
    closed = np.array([(((1 - t) * a + t * b) ** 2).sum() for t in line.t])
    assert line.losses["train"] == pytest.approx(closed, rel=1e-14)
    found = line.barrier()
    assert found.height == 0.0 and isnan(found.at) and found.middle == pytest.approx(-np.sum((b - a) ** 2) / 4)
    assert line.length == pytest.approx(np.linalg.norm(b - a))
    assert "no point lies above the line" in words(line)


def test_between_the_minima_of_a_double_well_the_barrier_is_the_hill():
    well = 0.5**0.5  # x^4 - x^2 has its minima of -1/4 at +-sqrt(1/2), and 0 between them
    problem = custom(Point([-well]), lambda theta: (theta**4 - theta**2).sum())
    line = lossmap.connect(problem, Point([well]), points=21)
    found = line.barrier()
    assert (found.height, found.at) == (pytest.approx(0.25, abs=1e-14), 0.5)
    assert (found.midpoint, found.midpoint_at, found.middle) == (pytest.approx(0.25, abs=1e-14), 0.5, found.height)
    assert found.error == found.rounding < 1e-14 and "over 4 batches" in words(line)  # no sample has a part in it
    assert not found.is_monotone and found.bump == pytest.approx(0.25, abs=1e-14)


def test_both_conventions_where_the_ends_differ():
    found = barrier([0, 0.25, 0.5, 0.75, 1], [4.0, 3.9, 2.5, 1.5, 0.0])
    assert (found.height, found.at) == (pytest.approx(0.9), 0.25)  # 3.9 - 3
    assert (found.midpoint, found.midpoint_at) == (2.0, 0.0)  # 4 - 2: the end itself
    assert found.middle == 0.5
    assert found.is_monotone and (found.direction, found.turns, found.bump) == ("falls", 0, 0.0)


@pytest.mark.parametrize(
    ("losses", "direction", "turns", "bump", "where"),
    [
        ([4, 1, 2, 3, 0], "falls", 2, 2.0, (0.25, 0.75)),
        ([0, 3, 2, 1, 4], "rises", 2, 2.0, (0.25, 0.75)),
        ([0, 1, 2, 3, 4], "rises", 0, 0.0, (nan, nan)),
        ([1, 1, 1, 1, 1], "stays", 0, 0.0, (nan, nan)),
        ([1, 2, 0, 3, 1], "stays", 2, 3.0, (0.5, 0.75)),
    ],
)
def test_a_loss_that_turns_is_not_monotone(losses, direction, turns, bump, where):
    found = barrier(np.linspace(0, 1, 5), losses)
    assert (found.direction, found.turns, found.steps, found.bump) == (direction, turns, 4, bump)
    assert (found.bump_from, found.bump_to) == pytest.approx(where, nan_ok=True)
    assert found.is_monotone == (turns == 0)


def test_a_failed_point_is_left_out_and_an_infinite_loss_is_an_infinite_barrier():
    assert barrier([0, 0.5, 1], [1.0, nan, 1.0]).height == 0.0
    found = barrier([0, 0.5, 1], [1.0, inf, 1.0])
    assert found.height == inf and found.at == 0.5
    with pytest.raises(ValueError, match="needs the loss at both ends"):
        barrier([0, 0.5, 1], [nan, 1.0, 1.0])


@pytest.mark.parametrize("batch_size", [4, 30])
def test_the_errors_are_those_of_every_samples_paired_difference(batch_size):
    a, b = net(0), net(1)
    line = lossmap.connect(supervised(a, batch_size=batch_size), b, points=5)
    plane = line_between(a, b)

    def losses(t):
        with temporary_parameters(a, plane.at((float(t),))), torch.no_grad():
            return F.cross_entropy(a(X), Y, reduction="none").double().numpy()

    first, last = losses(0.0), losses(1.0)
    for i, t in enumerate(line.t):
        rise = losses(t) - (1 - t) * first - t * last
        above = losses(t) - (first + last) / 2
        assert line.losses["train"][i] == pytest.approx(losses(t).mean(), rel=1e-6)
        assert line.barrier_errors["train"][i] == pytest.approx(rise.std(ddof=1) / 30**0.5, rel=1e-5, abs=1e-7)
        assert line.midpoint_errors["train"][i] == pytest.approx(above.std(ddof=1) / 30**0.5, rel=1e-5)
    assert "standard error over the samples, paired" in words(line)


@pytest.mark.parametrize(
    "loss", ["crossentropy", "mse", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_losses_of_samples_have_the_mean_of_the_batch(loss):
    problem = supervised(net(0), loss)
    batch = next(iter(problem.data))
    with torch.no_grad():
        outputs = problem.forward(problem.model, batch)
        each, total = sample_losses(problem, outputs, batch), problem.loss(outputs, batch)
    assert each.shape == (8,) and float(each.sum()) == pytest.approx(float(total), rel=1e-6)


def ratio_errors(sums, weights, t):
    """Of the rises above the line and above the mean of both ends, by Cochran's formula: each (points,).

    sums (points, terms) of the losses of each term, weights (terms,): the loss is sum of sums / sum of weights
    """
    n, t = (weights > 0).sum(), t[:, None]
    errors = []
    for d in (sums - (1 - t) * sums[:1] - t * sums[-1:], sums - (sums[:1] + sums[-1:]) / 2):
        apart = d - d.sum(1, keepdims=True) / weights.sum() * weights
        errors.append(np.sqrt(n / (n - 1) * (apart**2).sum(1)) / weights.sum())
    return errors


def along(model, other, t, terms):
    """The sums (points, terms) and the weights (terms,) of a function of the model, at points of the line."""
    plane, sums = line_between(model, other), []
    for at in t:
        with temporary_parameters(model, plane.at((float(at),))), torch.no_grad():
            sums.append(np.array([float(loss) for loss, _ in terms(model)]))
            weights = np.array([float(weight) for _, weight in terms(model)])
    return np.array(sums), weights


def check_errors(line, sums, weights):
    np.testing.assert_allclose(line.losses["train"], sums.sum(1) / weights.sum(), rtol=1e-6)
    for errors, truth in zip(
        (line.barrier_errors, line.midpoint_errors), ratio_errors(sums, weights, line.t), strict=True
    ):
        np.testing.assert_allclose(errors["train"], truth, rtol=1e-5, atol=1e-7)


WEIGHTS = torch.tensor([1.0, 2.0, 30.0])
IGNORED = torch.where(torch.arange(30) % 4 == 1, -100, Y)
PIECES = torch.where(torch.rand(30, 5, generator=torch.Generator().manual_seed(1)) < 0.4, -100, Y[:, None])


class Pieces(nn.Module):
    """The network at five shifted inputs: (b, classes, 5)."""

    def __init__(self, seed):
        super().__init__()
        self.net = net(seed)

    def forward(self, x):
        return self.net(x[:, None] + torch.arange(5.0)[:, None] / 5).movedim(-1, 1)


def entropies(targets, weights):
    """Each sample's sum of weighted cross entropies and sum of weights, of a model."""
    own = torch.where(targets >= 0, weights[targets.clamp(0)], 0.0).reshape(30, -1)

    def terms(model):
        each = F.cross_entropy(model(X), targets, reduction="none").reshape(30, -1)
        return list(zip((own * each).sum(1), own.sum(1), strict=True))

    return terms


def squares(model):
    return [(apart.square().sum(), 1.0) for apart in model(X) - F.one_hot(Y, 3)]


@pytest.mark.parametrize(
    ("loss", "targets", "make", "terms"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHTS), Y, net, entropies(Y, WEIGHTS)),
        ("crossentropy", IGNORED, net, entropies(IGNORED, torch.ones(3))),
        (nn.CrossEntropyLoss(weight=WEIGHTS), PIECES, Pieces, entropies(PIECES, WEIGHTS)),
        (nn.MSELoss(reduction="sum"), F.one_hot(Y, 3).float(), net, squares),
    ],
    ids=["class weights", "ignored targets", "tokens", "sums"],
)
@pytest.mark.parametrize("batch_size", [4, 30])
def test_errors_of_losses_that_weigh_samples_are_those_of_a_ratio(loss, targets, make, terms, batch_size):
    a, b = make(0), make(1)
    line = lossmap.connect(Problem.supervised(a, loss, (X, targets), batch_size=batch_size), b, points=5)
    check_errors(line, *along(a, b, line.t, terms))
    assert line.batches == {"train": 0}


def batch_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y), (y >= 0).sum()


def summed_batch_loss(model, batch):
    loss, weight = batch_loss(model, batch)
    return (loss * weight if weight else 0.0), weight


SINGLE = [(X[i : i + 1], IGNORED[i : i + 1]) for i in range(30)]
GIVEN = [(X[i : i + 4], IGNORED[i : i + 4]) for i in range(0, 30, 4)]


@pytest.mark.parametrize(
    ("problem_of", "terms"),
    [
        # cut into as many batches as there are samples, of fewer than a hundred
        (lambda m: Problem.custom(m, batch_loss, (X, IGNORED)), lambda m: [summed_batch_loss(m, b) for b in SINGLE]),
        (
            lambda m: Problem.custom(
                m, lambda m, b: batch_loss(m, (b["x"], b["y"])), [{"x": x, "y": y, "of": str(x)} for x, y in GIVEN]
            ),
            lambda m: [summed_batch_loss(m, b) for b in GIVEN],
        ),
        (
            lambda m: supervised(m, nn.MultiMarginLoss()),
            lambda m: [(F.multi_margin_loss(m(X[i : i + 1]), Y[i : i + 1]), 1.0) for i in range(30)],
        ),
    ],
    ids=["cut", "uncut", "criterion"],
)
def test_errors_of_losses_without_samples_are_those_of_a_ratio_over_batches(problem_of, terms):
    a, b = net(0), net(1)
    line = lossmap.connect(problem_of(a), b, points=5)
    check_errors(line, *along(a, b, line.t, terms))
    assert line.batches == {"train": len(terms(a))}


def hill(model, batch):
    """1 above the line at its middle, more or less by the batch."""
    theta = model.theta[0]
    return 4 * theta * (1 - theta) * (1.0 + batch["x"].mean()), 1.0


@pytest.mark.parametrize(("spread", "is_clear"), [(0.5, False), (0.025, True)])
def test_of_two_batches_a_barrier_of_two_standard_errors_is_not_clear(spread, is_clear):
    batches = [{"x": torch.full((2, 1), value), "of": name} for value, name in ((spread, "a"), (-spread, "b"))]
    line = lossmap.connect(Problem.custom(Point([0.0]), hill, batches), Point([1.0]), points=3)
    assert (line.barrier().height, line.barrier().error) == (pytest.approx(1.0), pytest.approx(spread))
    assert "standard error over 2 batches, paired, at that point" in words(line)
    assert ("cannot be told from none by these batches" in words(line)) != is_clear
    one = [{"x": batches[0]["x"], "edge": torch.ones(3, 1)}]  # uneven: it is not cut
    alone = lossmap.connect(Problem.custom(Point([0.0]), hill, one), Point([1.0]), points=3)
    assert isnan(alone.barrier().error) and "its error is not known: that takes several batches" in words(alone)


def test_recomputed_statistics_are_those_of_a_forward_in_training_mode_over_the_same_batches():
    model = net(0, norm=True)
    problem = supervised(model, batch_size=10)
    twin = copy.deepcopy(model).train()
    twin[1].momentum = None
    twin[1].reset_running_stats()
    for start in range(0, 30, 10):
        twin(X[start : start + 10])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with temporary_parameters(model, {}):
        recompute_statistics(model, problem.data, problem.forward)
        mean, var = model[1].running_mean.clone(), model[1].running_var.clone()
        assert model[1].momentum == 0.1 and not model[1].training
    assert torch.allclose(mean, twin[1].running_mean, rtol=1e-6) and torch.allclose(var, twin[1].running_var, rtol=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and not torch.allclose(mean, before["1.running_mean"])


@pytest.mark.parametrize("plan", [ForwardPlan(7), ForwardPlan(30, fold=True)])
def test_the_statistics_at_a_point_are_those_of_the_interpolated_network(plan):
    a, b = net(0, norm=True), net(1, norm=True)
    problem, plane = supervised(a), line_between(a, b)
    measure = connection_map({"train": problem}, plane, plan, statistics=fixed_batches(problem.data))
    between = copy.deepcopy(a)
    between.load_state_dict({**a.state_dict(), **plane.at((0.3,))})
    between[1].momentum = None
    between[1].reset_running_stats()
    between[1].train()
    with torch.no_grad():
        between(X)
        expected = float(F.cross_entropy(between.eval()(X), Y))
    before = {name: t.clone() for name, t in a.state_dict().items()}
    assert measure((0.3,))["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in a.state_dict().items())
    again = pickle.loads(pickle.dumps(measure))
    assert again((0.3,)) == measure((0.3,))


def test_what_is_done_with_statistics_is_chosen_and_said():
    a, b = net(0, norm=True), net(1, norm=True)
    problem = supervised(a)
    lines = {bn: lossmap.connect(problem, b, points=3, bn=bn) for bn in ("recompute", "interpolate", "keep")}
    with torch.no_grad():
        own, other = (float(F.cross_entropy(m.eval()(X), Y)) for m in (copy.deepcopy(a), copy.deepcopy(b)))
    ends = {bn: line.losses["train"][[0, -1]] for bn, line in lines.items()}
    assert ends["interpolate"] == pytest.approx([own, other], rel=1e-6)
    assert ends["keep"][0] == pytest.approx(own, rel=1e-6) and abs(ends["keep"][1] - other) > 1e-3
    assert abs(ends["recompute"][0] - own) > 1e-3
    assert len({line.losses["train"][1] for line in lines.values()}) == 3
    for bn, said in (("recompute", "the ends too"), ("interpolate", "interpolated"), ("keep", "of the first network")):
        assert said in words(lines[bn])
    assert len(norms_with_statistics(a)) == 1
    assert lossmap.connect(supervised(net(0)), net(1), points=3).bn == "none"


def test_a_file_resumes_is_saved_read_reported_and_drawn(tmp_path):
    problem, other = {"train": supervised(net(0)), "test": supervised(net(0))}, net(1)
    problem["test"] = problem["test"].over(problem["train"].model)
    line = lossmap.connect(problem, other, points=5, path=tmp_path / "line.h5", labels=("first", "second"))
    again = lossmap.connect(problem, other, points=5, path=tmp_path / "line.h5", labels=("first", "second"))
    assert again.equals(line)
    surface = lossmap.read(tmp_path / "line.h5")
    group = surface.groups["connection"]
    assert report_of_group("connection", group.arrays, group.attributes) == repr(line)
    for source in (tmp_path / "line.h5", line):
        panels = [axes for axes in lossmap.draw(source).axes if axes.get_xlabel()]
        assert [axes.get_xlabel() for axes in panels] == ["t, from first (0) to second (1)"] * 2
        assert panels[0].get_title() == "no barrier" or "barrier" in panels[0].get_title()
    assert lossmap.read(line.save(tmp_path / "saved.h5"), lossmap.Connection).equals(line)
    with pytest.raises(ValueError, match="another survey"):
        lossmap.connect(problem, net(2), points=5, path=tmp_path / "line.h5")
    with pytest.raises(KeyError, match="there are: train, test"):
        line.barrier("valid")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lossmap.connect(supervised(net(0)), net(1), bn="best"), "--bn must be one of recompute"),
        (lambda: lossmap.connect(supervised(net(0)), net(1), points=2), "--points must be >= 3"),
        (lambda: lossmap.connect(supervised(net(0)), nn.Linear(4, 3)), "no tensor named"),
        (lambda: line_grid(1), "--points must be >= 3"),
    ],
)
def test_what_makes_no_line_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


class Drawing(nn.Module):
    """A loss of theta that draws: |theta - z|^2, z normal around 1 for each batch, in float64."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))

    def forward(self, batch):
        return ((self.theta - 1.0 - torch.randn(4, dtype=torch.float64)) ** 2 * torch.sin(3 * self.theta)).sum()


def test_errors_of_a_random_loss_are_over_realisations_paired_at_both_ends(tmp_path):
    from lossmap.data.loss_check import check_loss
    from lossmap.data.noise import realizations

    torch.manual_seed(0)
    a, b = Drawing([-1.0, 0.5, 2.0, 0.0]), Drawing([1.5, 1.0, -0.5, 1.0])
    problem = Problem.custom(a, lambda m, batch: m(batch), [torch.ones(3, 1), torch.zeros(3, 1)])
    repeats, t = 5, np.linspace(0, 1, 7)
    line = lossmap.connect(problem, b, points=7, noise_repeats=repeats, path=tmp_path / "line.h5")
    plane = line_between(a, b)
    losses = []
    for one in realizations(check_loss(problem), repeats):  # each by itself, batch by batch
        losses.append([])
        for at in t:
            with temporary_parameters(a, plane.at((at,))), torch.no_grad():
                losses[-1].append(sum(float(one.total(batch)) for batch in one.data) / one.samples)
    losses = np.array(losses)  # (R, t)
    np.testing.assert_allclose(line.losses["train"], losses.mean(0), rtol=1e-12)
    rises = losses - (1 - t) * losses[:, :1] - t * losses[:, -1:]
    above = losses - (losses[:, :1] + losses[:, -1:]) / 2
    for mine, truth in ((line.barrier_errors, rises), (line.midpoint_errors, above)):
        np.testing.assert_allclose(mine["train"], truth.std(0, ddof=1) / np.sqrt(repeats), rtol=1e-9, atol=1e-12)
    # paired: smaller than that of the losses, whose noise is common to all points
    stored = lossmap.read(tmp_path / "line.h5")
    assert stored["train_loss_error"].shape == (7,) and line.noise_repeats == repeats
    assert "5 realisations of the noise, paired" in repr(line) and "train_loss_error" not in line.metrics
    assert pickle.loads(pickle.dumps(line)).noise_repeats == repeats
    alone = lossmap.connect(problem, b, points=7)
    assert np.isnan(alone.barrier_errors["train"]).all() and "not known" in repr(alone)


@pytest.mark.parametrize(("error", "is_clear"), [(0.02, True), (0.03, False), (np.nan, True)])
def test_a_turn_within_the_errors_is_said_to_be_no_clear_one(error, is_clear):
    t, middle = np.linspace(0, 1, 5), np.array([False, True, True, True, False])
    errors = np.where(middle, error, 0.0)
    values = {"direction": "rises", "steps": 4, "turns": 1, "bump": 0.1, "bump_from": 0.5, "bump_to": 0.75}
    arrays = {"t": t, "train_loss": np.array([1.0, 1.2, 1.3, 1.2, 1.5]), "train_barrier_error": errors}
    attributes = {f"train_{name}": value for name, value in values.items()} | {"train_is_monotone": 0, "unit": "nats"}
    text = monotone_text(StoredReport(arrays, attributes), "train")
    assert text.startswith("no: rises from 1 to 1.5, but falls at 1 of 4 steps, by 0.1 in all")
    assert text.endswith("that cannot be told from none by these samples") != is_clear
    attributes["noise_repeats"] = 4
    assert monotone_text(StoredReport(arrays, attributes), "train").endswith("by these realisations") != is_clear


def test_a_loss_that_draws_nothing_has_no_realisations():
    with pytest.raises(ValueError, match="draws at random"):
        lossmap.connect(supervised(net(0)), net(1), points=3, noise_repeats=3)


@pytest.mark.parametrize("samples", [129, 130, 257])
def test_no_batch_of_which_statistics_are_made_is_of_few_samples(samples):
    torch.manual_seed(0)
    data = (torch.randn(samples, 4), torch.arange(samples) % 3)

    def normed():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()

    problem = lossmap.Problem.supervised(normed(), "crossentropy", data)
    sizes = [len(batch[0]) for batch in fixed_batches(problem.data)]
    assert sum(sizes) == samples and 2 * min(sizes) >= max(sizes) > 64
    line = lossmap.connect(problem, normed(), points=3)  # of 129 the last batch was one sample, which the norm refuses
    assert np.isfinite(line.losses["train"]).all()


def test_batches_of_statistics_are_as_large_as_may_be():
    for samples in (1, 100, 128, 256, 50_000, 51_201, 1_281_167):
        size = statistics_batch(samples)
        assert samples <= 128 or samples % size == 0 or 2 * (samples % size) >= size
        assert 86 <= size <= 128
    assert [statistics_batch(n) for n in (100, 256, 50_000)] == [128] * 3


def test_instance_norms_that_keep_statistics_are_treated_as_batch_norms_are():
    x = torch.randn(100, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = (x, torch.arange(100) % 3)

    class Net(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
            self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
            self.train()(x[:30] + seed)
            self.eval()

        def forward(self, images):
            return self.out(torch.relu(self.norm(self.conv(images))).mean((2, 3)))

    def loss_of(model):
        return torch.nn.functional.cross_entropy(model(x), data[1]).item()

    a, b = Net(0), Net(1)
    problem = lossmap.Problem.supervised(a, "crossentropy", data)
    hooks = len(a.norm._forward_pre_hooks)
    kept, interpolated = (
        lossmap.connect(problem, b, points=3, bn=bn).losses["train"] for bn in ("keep", "interpolate")
    )
    assert interpolated[-1] == pytest.approx(loss_of(b), rel=1e-5) and abs(kept[-1] - loss_of(b)) > 1e-3
    recomputed = copy.deepcopy(b)
    maps = b.conv(x).flatten(2)
    recomputed.norm.running_mean.copy_(maps.mean(2).mean(0).detach())
    recomputed.norm.running_var.copy_(maps.var(2).mean(0).detach())
    line = lossmap.connect(problem, b, points=3)
    assert line.losses["train"][-1] == pytest.approx(loss_of(recomputed), rel=1e-5)
    two = copy.deepcopy(a)  # of two batches the average, also of uneven momenta
    with temporary_parameters(two, {}):
        recompute_statistics(two, [(x[:50],), (x[50:],)], lambda model, batch: model(batch[0]))
        own = a.conv(x).flatten(2)
        assert torch.allclose(two.norm.running_mean, own.mean(2).mean(0), atol=1e-6)
        assert torch.allclose(two.norm.running_var, own.var(2).mean(0), rtol=1e-5)
    assert len(a.norm._forward_pre_hooks) == hooks and two.norm.momentum == a.norm.momentum == 0.1
    assert not len(two.norm._forward_pre_hooks)


@pytest.mark.parametrize(
    ("asked", "sizes"), [(64, [64]), (128, [128]), (200, [100] * 2), (129, [64] * 2), (300, [100] * 3)]
)
def test_statistics_are_made_of_as_many_samples_as_were_asked_for(asked, sizes):
    data = (torch.arange(1200.0).reshape(400, 3), torch.zeros(400, dtype=torch.int64))
    problem = lossmap.Problem.supervised(nn.Linear(3, 2), "crossentropy", data)
    batches = list(fixed_batches(problem.data, asked))
    assert [len(x) for x, _ in batches] == sizes
    assert torch.equal(torch.cat([x for x, _ in batches]), data[0][: sum(sizes)])


def test_a_line_between_the_same_weights_is_refused_by_name():
    model = net(0)
    for align in ("none", "weights"):
        with pytest.raises(ValueError, match="both networks have the same weights: there is no line between them"):
            lossmap.connect(supervised(model), copy.deepcopy(model), points=3, align=align)


def nearby(model, distance):
    """The model with every parameter a little elsewhere."""
    torch.manual_seed(5)
    return {name: p + distance * torch.randn_like(p) if p.dim() else p for name, p in model.state_dict().items()}


class OnlySingle(nn.Linear):
    """A layer that runs in float32 alone."""

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("float32 alone")
        return super().forward(x)


@pytest.mark.parametrize("kind", ["plain", "norm", "curve", "float64", "single"])
def test_a_barrier_of_rounding_alone_is_called_that(kind):
    model = net(0, norm=kind == "norm")
    if kind == "single":
        model[0] = OnlySingle(4, 8)
    if kind == "float64":
        model.double()
    data = (X.to(next(model.parameters()).dtype), Y)
    problem = Problem.supervised(model, "crossentropy", data, batch_size=8)
    how = {"curve": "bezier", "curve_steps": 5} if kind == "curve" else {}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    distance = 3e-15 if kind == "float64" else 1e-7
    line = lossmap.connect(problem, nearby(model, distance), points=33, **how)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    found = line.barrier()
    assert 0.0 < found.height <= found.rounding <= found.error  # rises of float64 are a thousandth of it
    assert "none beyond rounding" in words(line) and "cannot be told" not in words(line)
    assert "monotone the same at both ends and between" in words(line) or "equal but for rounding" in words(line)
    assert f"{lossmap.draw(line).axes[0].get_title()}".startswith("no barrier beyond rounding")
    if kind == "curve":
        assert line.curve.barrier().rounding > 0.0


@pytest.mark.parametrize("are_cut", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_that_the_first_samples_do_not_feel_is_in_the_bar(dtype, are_cut):
    x = torch.eye(2, dtype=dtype).repeat_interleave(200, 0)  # sorted: the first half does not see the second weight
    targets = torch.zeros(400, 1, dtype=dtype)
    data = (x, targets) if are_cut else [(a, b, torch.zeros(i + 1)) for i, (a, b) in enumerate(halves(x, targets))]

    def net(weight):
        made = nn.Linear(2, 1, bias=False, dtype=dtype)
        made.weight.data = torch.tensor([[0.0, weight]], dtype=dtype)
        return made

    def loss(model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    first, second = net(1.0), net(1.0 + 3 * torch.finfo(dtype).eps)
    line = lossmap.connect(Problem.custom(first, loss, data), second, points=11, progress=False)
    assert line.barrier().height <= line.barrier().error  # w^2 / 2 is convex: there is none
    assert "none beyond rounding" in words(line)


def halves(*tensors):
    return zip(*(t.split(200) for t in tensors), strict=True)


def test_a_barrier_beyond_rounding_is_within_its_rounding_of_that_in_float64():
    for seed in range(3):
        a, b = net(seed), net(seed + 7)
        line = lossmap.connect(supervised(a), b, points=9)
        twin = Problem.supervised(copy.deepcopy(a).double(), "crossentropy", (X.double(), Y))
        truth = lossmap.connect(twin, copy.deepcopy(b).double(), points=9)
        for t in range(9):
            apart = line.losses["train"][t] - truth.losses["train"][t]
            assert abs(apart) < 3 * line.roundings["train"] < 1e-5
        assert abs(line.barrier().height - truth.barrier().height) <= line.roundings["train"]
        assert "rounding" not in words(line)


@pytest.mark.parametrize("seed", [14, 23, 25, 31, 39])
def test_a_difference_that_is_small_by_chance_at_one_place_is_no_small_rounding(seed):
    """In bfloat16, where each weight on the way is rounded: rises differ by as much as weights happen to."""
    torch.manual_seed(seed)
    a = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    b = copy.deepcopy(a)
    with torch.no_grad():
        for p in b.parameters():
            p.add_(0.05 * torch.randn_like(p))
    a, b, x = a.bfloat16(), b.bfloat16(), X.bfloat16()
    line = lossmap.connect(Problem.supervised(a, "crossentropy", (x, Y)), b, points=5)
    twin = Problem.supervised(copy.deepcopy(a).double(), "crossentropy", (x.double(), Y))
    truth = lossmap.connect(twin, copy.deepcopy(b).double(), points=5)
    apart = line.losses["train"] - truth.losses["train"]
    t = np.linspace(0.0, 1.0, 5)
    rises = apart - (1.0 - t) * apart[0] - t * apart[-1]
    assert abs(rises).max() <= line.roundings["train"]


def test_the_measure_in_float64_holds_no_second_model_beside_the_point():
    a, b = (nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 3)) for _ in "ab")
    measure = connection_map({"train": supervised(a), "test": supervised(a)}, line_between(a, b), ForwardPlan(8))
    twin = measure.of_few(in_double=True)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in twin.model.parameters()}
    assert sum(held.values()) <= 8 * len(held)
    assert twin.plane.origin["0.weight"] is not twin.plane.origin["0.weight"]  # made when it is read
    double = {name: t.double() for name, t in line_between(a, b).at((0.5,)).items()}
    with temporary_parameters(twin.model, double):
        rows = torch.linspace(0, len(X) - 1, 16).round().long()
        batch = (X[rows].double(), Y[rows])
        expected = F.cross_entropy(twin.model(batch[0]), batch[1]).item()
    assert twin.alone(0.5)["test_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_price_of_the_rounding_is_known_from_one_place_in_each_precision(monkeypatch):
    now = array("d", [0.0])  # which is not put back after a pass

    class Clock(nn.Linear):
        def forward(self, x):
            now[0] += len(x) * (3.0 if x.dtype == torch.float64 else 1.0)
            return super().forward(x)

    monkeypatch.setattr("lossmap.landscape.barrier_rounding.time.perf_counter", lambda: now[0])
    a, b = Clock(4, 3), Clock(4, 3)
    batches = FixedBatches(((X[:20], Y[:20]), (X[20:], Y[20:])))  # not to be cut
    for data, few in (((X, Y), 16), (batches, 30)):
        problem = Problem.supervised(a, "crossentropy", data)
        measure = connection_map({"train": problem}, line_between(a, b), ForwardPlan(64))
        line = Connection(np.linspace(0.0, 1.0, 3), {"train": np.array([1.0, 2.0, 1.0])})
        expected = seconds_of_rounding(measure)
        began = now[0]
        with_rounding(line, measure)  # the barrier is in the middle, at 1/2, which is read anyway
        assert now[0] - began == expected - 4.0 * few
    a, b = a.double(), b.double()
    problem = Problem.supervised(a, "crossentropy", (X.double(), Y))
    measure = connection_map({"train": problem}, line_between(a, b), ForwardPlan(64))
    assert seconds_of_rounding(measure) == 0.0


def test_numbers_that_differ_are_written_with_digits_that_differ():
    def stored(losses, rounding=0.0):
        t = np.linspace(0, 1, len(losses))
        found = barrier_of(t, np.array(losses), unknown(losses), unknown(losses), rounding)
        return StoredReport({"t": t, "train_loss": np.array(losses)}, {f"train_{k}": v for k, v in vars(found).items()})

    falling = [1.31632, 1.31631, 1.31630]
    assert monotone_text(stored(falling), "train").startswith("yes: falls from 1.31632 to 1.3163,")
    assert monotone_text(stored(falling, 1e-3), "train") == (
        "the same at both ends and between them, 1.316, but for rounding"
    )
    hill = [1.31632, 2.0, 1.31631]
    assert monotone_text(stored(hill, 1e-3), "train") == (
        "the ends are equal but for rounding, 1.316; between them the loss is 1.316 to 2"
    )
    small = [3.0, 2.0, 2.0 + 1e-9, 1.0]
    assert monotone_text(stored(small, 1e-8), "train").endswith("; rounding of the losses may make as much")
    assert not monotone_text(stored(small, 1e-10), "train").endswith("may make as much")
    many = [2.0, *np.linspace(3.0, 4.0, 20001)]
    many[10001] -= 0.5
    assert "between t = 0.49998 and 0.5000" in monotone_text(stored(many), "train").replace("0.499975", "0.49998")


def between_ends(low, value):
    """theta^2 but for one value where theta is in (low, 0.7)."""
    return lambda theta: torch.where((theta > low) & (theta < 0.7), value, theta.square()).sum()


def test_a_loss_that_is_infinite_on_the_way_falls_from_there_infinitely():
    line = lossmap.connect(custom(Point([0.0]), between_ends(0.3, inf)), Point([1.0]), points=9)
    found = line.barrier()
    assert (found.height, found.bump, found.bump_from, found.bump_to) == (inf, inf, 0.375, 0.75)
    assert "no: rises from 0 to 1, but falls at 1 of 8 steps, infinitely between t = 0.375 and 0.75" in words(line)


@pytest.mark.parametrize("low, middle", [(0.3, nan), (0.6, -0.25)])
def test_points_whose_loss_is_no_number_are_reported_and_stand_for_no_middle(low, middle):
    line = lossmap.connect(custom(Point([0.0]), between_ends(low, nan)), Point([1.0]), points=9)
    assert line.barrier().middle == pytest.approx(middle, nan_ok=True)
    where = "3 points at t = 0.375 to 0.625" if isnan(middle) else "1 point at t = 0.625"
    assert f"without a loss {where}: not a number, or failed; left out below" in words(line)
    assert ("the middle has no loss" in words(line)) == isnan(middle)


def test_a_line_that_ends_beside_the_other_network_says_so(tmp_path):
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in "ab")
    b[1].running_mean += 1.0
    for net in (a, b):
        net.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    masked = copy.deepcopy(b)
    masked.mask[0] = False
    problem = Problem.supervised(a.eval(), "crossentropy", (torch.randn(30, 6), torch.arange(30) % 3))
    for other, how, words in (
        (b, {"parameters": "weights"}, "B in its weights alone"),
        (b, {"parameters": "^2"}, "B in its parameters '^2' alone"),
        (b, {"bn": "keep"}, "the weights of B"),
        (b, {"bn": "interpolate"}, "B"),
        (b, {}, "B"),
        (masked, {}, "the weights of B"),  # statistics are recomputed, but the mask is that of A
    ):
        line = lossmap.connect(problem, other, points=3, path=tmp_path / "line.h5", overwrite=True, **how)
        assert repr(line).startswith(f"Line from A to {words}\n")
        stored = lossmap.read(tmp_path / "line.h5")
        for figure in (lossmap.draw(stored), lossmap.draw(stored, kind="line")):
            assert figure.axes[0].get_xlabel().replace("\n", " ") == f"t, from A (0) to {words} (1)"
