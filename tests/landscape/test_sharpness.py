"""Sharpness against closed forms of quadratics, dense matrices, brute force, and a network rescaled at its function."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import inf, isfinite, isnan, nan

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lossmap
from lossmap import sharpness
from lossmap.data.problem import Problem
from lossmap.diagnostics.step_rule import preconditioner_of, scale_gradients
from lossmap.landscape.ball import KINDS, Ball
from lossmap.landscape.critical_sharpness import PASSES, _Search, critical_sharpness
from lossmap.landscape.rescaling import rescalable_pairs, rescaled_copy
from lossmap.landscape.rises import average_rise, worst_rise
from lossmap.landscape.shifted_loss import ShiftedLoss
from lossmap.report.render import report_of_group
from lossmap.report.sharpness import SharpnessNumber, sharpness_table, survival_table, survives
from lossmap.report.stored import StoredReport

ROWS = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
H = (ROWS.T @ ROWS / len(ROWS)).numpy()


class Parabola(nn.Module):
    """theta (6,), in float64."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))


def half_square(model, batch):
    return (0.5 * (batch @ model.theta).square()).mean()


def parabola(theta=(1.0, -2.0, 0.5, 3.0, -0.2, 1.5)):
    """1/2 theta^T H theta, away from its minimum, or in it."""
    return Problem.custom(Parabola(theta), half_square, ROWS)


def scale_of(kind, theta):
    """T of a tensor of one dimension, whose filters are its entries."""
    return np.ones(6) if kind == "absolute" else np.abs(theta)


def largest_on_sphere(matrix, slope, radius):
    """The largest 1/2 z^T M z + c^T z on |z| = radius, by the secular equation: z = (mu - M)^-1 c, mu > the largest."""
    values, vectors = np.linalg.eigh(matrix)
    c = vectors.T @ slope
    low, high = values[-1] + 1e-14, values[-1] + np.linalg.norm(c) / radius + 1.0
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(c / (mu - values)) > radius else (low, mu)
    z = c / (high - values)
    return 0.5 * z @ (values * z) + c @ z


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


def classification(model=None):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    return Problem.supervised(model or net(), "crossentropy", (x, torch.arange(30) % 3), batch_size=11)


def around(problem, kind, radius, parameters="all"):
    shifted = ShiftedLoss(problem, parameters)
    return shifted, Ball.around(shifted.origin, kind, radius)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_quadratic_the_average_rise_is_the_trace_and_the_worst_the_secular_equation(kind):
    problem, theta = parabola(), np.array([1.0, -2.0, 0.5, 3.0, -0.2, 1.5])
    shifted, ball = around(problem, kind, 0.7)
    t, gradient = scale_of(kind, theta), H @ theta
    scaled = t[:, None] * H * t
    average = average_rise(shifted, ball, 300, seed=0)
    assert abs(average.value - 0.7**2 * np.trace(scaled) / (2 * (6 + 2))) < 3.5 * average.error
    assert average.error < 0.1 * average.value and average.rounding == 0.0
    worst = worst_rise(shifted, ball, steps=60, starts=2, seed=0)
    assert worst.value == pytest.approx(largest_on_sphere(scaled, t * gradient, 0.7), rel=1e-6)
    step = 0.7 * t * t * gradient / np.linalg.norm(t * gradient)
    assert worst.sam == pytest.approx(gradient @ step + 0.5 * step @ H @ step, rel=1e-12)


@pytest.mark.parametrize("kind", ["absolute"])
def test_at_a_minimum_the_worst_rise_is_the_largest_eigenvalues(kind):
    shifted, ball = around(parabola(np.zeros(6)), kind, 0.3)
    worst = worst_rise(shifted, ball, steps=60, starts=2, seed=0)
    assert worst.sam == 0.0  # there is no gradient to follow
    assert worst.value == pytest.approx(0.5 * 0.3**2 * np.linalg.eigvalsh(H)[-1], rel=1e-6)
    assert worst_rise(shifted, ball, steps=5, starts=1, seed=0).value == 0.0  # the middle alone: nothing to climb
    assert critical_sharpness(shifted).reason.startswith("the gradient is zero")


def test_critical_sharpness_of_a_quadratic_is_the_curvature_along_the_gradient():
    theta = np.array([1.0, -2.0, 0.5, 3.0, -0.2, 1.5])
    g = H @ theta
    critical = critical_sharpness(ShiftedLoss(parabola(), "all"))
    truth = g @ H @ g / (g @ g)
    assert critical.low < truth < critical.high < 1.02 * critical.low
    assert critical.value == pytest.approx(truth, rel=1e-3)
    assert critical.passes <= PASSES


def test_critical_sharpness_lies_between_a_step_that_falls_and_one_that_rises():
    problem = classification()
    shifted = ShiftedLoss(problem, "all")
    base, slope = shifted.gradient_at(shifted.zero)
    critical = critical_sharpness(ShiftedLoss(problem, "all"))
    assert shifted.at(slope * (-2.0 / critical.high)) < base < shifted.at(slope * (-2.0 / critical.low))
    scan = [shifted.at(slope * -eta) for eta in np.linspace(0.02, 1.0, 50) * 2.0 / critical.high]
    assert max(scan) < base  # no shorter step rises
    assert critical.passes <= PASSES and critical.low < critical.value < critical.high


def test_a_loss_that_falls_for_ever_has_no_critical_sharpness():
    def slope(model, batch):
        return (batch @ model.theta).mean()

    critical = critical_sharpness(ShiftedLoss(Problem.custom(Parabola(np.ones(6)), slope, ROWS), "all"))
    assert isnan(critical.value) and critical.passes == PASSES and isfinite(critical.high)
    assert "still falls" in critical.reason


def test_rises_of_a_network_are_those_of_brute_force():
    problem = classification()
    for kind in KINDS:
        shifted, ball = around(problem, kind, 0.5)
        base = shifted.at(shifted.zero)
        with shifted.borrowed():
            draws = [shifted.at(ball.scale * ball.random_point(7, "brute force", i)) - base for i in range(100)]
        worst = worst_rise(shifted, ball, steps=30, starts=2, seed=0)
        assert worst.value >= max(*draws, worst.sam), kind
        average = average_rise(shifted, ball, 40, seed=0)
        error = np.hypot(np.std(draws) / np.sqrt(len(draws)), average.error)
        assert abs(average.value - np.mean(draws)) < 4 * error, kind
        theta = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
        assert torch.equal(shifted.layout.flatten(shifted.origin), theta)  # the model is as it was


def test_points_are_uniform_in_the_ball_and_stay_in_it():
    ball = Ball("absolute", 2.0, torch.ones(3, dtype=torch.float64))
    points = torch.stack([ball.random_point(0, "test", i) for i in range(2000)])
    lengths = points.norm(dim=1)
    assert float(lengths.max()) <= 2.0
    assert abs(float(((lengths / 2.0) ** 3).mean()) - 0.5) < 0.03  # (r / radius)^m is uniform in [0, 1]
    assert float(points.mean(0).abs().max()) < 0.1
    assert torch.equal(ball.random_point(0, "test", 3), points[3])
    assert float(ball.inside(points[0] * 100).norm()) == pytest.approx(2.0)


def test_a_weight_of_zero_stands_still_in_an_adaptive_ball():
    ball = Ball.around({"w": torch.tensor([[0.0, 1.0, -2.0]])}, "adaptive", 0.5)
    assert ball.movable == 2 and ball.random_point(0, "test", 0)[0] == 0.0
    filters = Ball.around({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b": torch.tensor([-2.0])}, "filter", 0.5)
    assert filters.scale.tolist() == [5.0, 5.0, 1.0, 1.0, 2.0]


def test_eigenvalue_and_trace_are_those_of_the_dense_hessian():
    result = lossmap.sharpness(classification(), parameters="all", draws=2, ascent_steps=1, starts=1)
    dense = lossmap.hessian(classification(), parameters="all")
    whole = np.stack([(dense @ row).numpy() for row in torch.eye(dense.size, dtype=torch.float64)])
    values = np.linalg.eigvalsh(whole)
    assert abs(result.largest - values[-1]) <= result.largest_error < 0.01 * values[-1]
    assert result.trace.value == pytest.approx(values.sum(), abs=max(4 * result.trace.error, 1e-9))
    assert result.gradient_norm > 0 and result.samples == 30 and result.size == dense.size


@pytest.mark.parametrize("parameters", ["weights", "all"])
def test_relative_balls_survive_a_rescaling_and_absolute_numbers_do_not(parameters):
    model = net()
    twin = rescaled_copy(model, 8.0)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(model(x), twin(x), rtol=1e-12) and not torch.equal(model[0].weight, twin[0].weight)
    before, after = (
        lossmap.sharpness(classification(m), parameters=parameters, draws=3, ascent_steps=8, trace_products=30)
        for m in (model, twin)
    )
    for kind in ("filter", "adaptive"):
        a, b = before.ball(kind), after.ball(kind)
        assert (a.average, a.sam, a.worst) == pytest.approx((b.average, b.sam, b.worst), rel=1e-8)
    a, b = before.ball("absolute"), after.ball("absolute")
    assert b.worst > 1.5 * a.worst and b.sam > 1.5 * a.sam and b.average > 1.5 * a.average
    assert after.largest > 1.5 * before.largest
    assert after.critical.value > 1.5 * before.critical.value


def mean_loss_of(model):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)).double()
    return nn.functional.cross_entropy(model(x), torch.arange(30) % 3)


def optimizer_with_steps(model, kind):
    """An optimizer that has seen the gradient at the model's weights three times, and the model as it was."""
    optimizer = kind(model.parameters(), lr=1e-3, weight_decay=0.1, eps=0.0)
    start = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:  # the decay would be part of the gradients, and is not rescaled as they are
        group["weight_decay"] = 0.0
    for _ in range(3):
        model.load_state_dict(start)
        optimizer.zero_grad()
        mean_loss_of(model).backward()
        optimizer.step()
    model.load_state_dict(start)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_preconditioned_eigenvalue_is_the_dense_matrixs_and_does_not_survive_a_rescaling(kind):
    values = []
    for model in net(), rescaled_copy(net(), 4.0):
        own = preconditioner_of(optimizer_with_steps(model, kind), dict(model.named_parameters()))
        result = lossmap.sharpness(
            replace(classification(model.double()), preconditioner=own), parameters="all", draws=0, ascent_steps=0,
            critical=False, trace_products=0, tol=1e-8,
        )  # fmt: skip
        names, parameters = zip(*model.named_parameters(), strict=True)
        slope = torch.autograd.grad(mean_loss_of(model), parameters, create_graph=True)
        slope = torch.cat([g.reshape(-1) for g in slope])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in slope]
        hessian = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in rows])
        root = torch.cat([own.root[name].reshape(-1) for name in names])
        decay = 0.0 if kind is torch.optim.AdamW else 0.1
        dense = root[:, None] * (hessian + decay * torch.eye(len(root), dtype=torch.float64)) * root
        truth = float(torch.linalg.eigvalsh(dense)[-1])
        found = result.preconditioned
        assert abs(found.value - truth) <= found.error + 1e-9 * truth and found.error < 1e-5 * truth
        assert found.limit >= truth * (1 - 1e-9)
        assert found.optimizer == kind.__name__ and found.threshold > 0
        assert f"P of {kind.__name__}, whose full-batch steps diverge above" in " ".join(repr(result).split())
        values.append(truth)
    assert abs(values[1] / values[0] - 1) > 0.1


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_the_state_of_a_rescaled_copy_is_that_of_its_own_steps(kind):
    model, twin = net(), rescaled_copy(net(), 4.0)
    followed, own = optimizer_with_steps(model, kind), optimizer_with_steps(twin, kind)
    first, second = map(model.get_submodule, rescalable_pairs(model)[0])
    scale_gradients(followed, dict.fromkeys(first.parameters(recurse=False), 1 / 4) | {second.weight: 4.0})
    a = preconditioner_of(followed, dict(model.named_parameters())).root
    b = preconditioner_of(own, dict(twin.named_parameters())).root
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=0)


def test_what_was_not_measured_after_a_rescaling_is_not_said_to_have_changed():
    before = StoredReport({}, {"largest": 2.0, "trace": 3.0, "loss": 1.0})
    after = StoredReport({}, {"largest": nan, "trace": 6.0, "loss": 1.0, "rescaled": 2.0})
    lines = survival_table(before, after).splitlines()
    rows = {line.split()[0]: line.split("  ")[-1].strip() for line in lines if line.startswith("  ")}
    assert rows["largest"] == "-" and rows["trace"] == "no, 2"


def test_layers_are_rescaled_only_where_that_leaves_the_function_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert rescalable_pairs(model) == [("3", "5")]
    relu, shared = nn.ReLU(), nn.Linear(3, 3, bias=False)
    twice = nn.Sequential(nn.Linear(4, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2))
    assert rescalable_pairs(twice) == [("0", "2"), ("2", "4")]
    assert rescalable_pairs(nn.Sequential(nn.Linear(4, 3), relu, shared, relu, shared)) == [("0", "2")]
    for unfit in (
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3)),
        nn.Linear(2, 2),
    ):
        with pytest.raises(ValueError, match="--rescale needs two layers"):
            rescalable_pairs(unfit)
    for factor in (-1.0, 1.0, 1.05, np.nan):
        with pytest.raises(ValueError, match=f"must be > 0, finite, and not within 0.1 of 1, .*; got {factor:g}"):
            rescaled_copy(net(), factor)


class Residual(nn.Sequential):
    """Not what it calls in turn alone."""

    def forward(self, x):
        return x + super().forward(x)


def test_layers_of_a_sequential_inside_another_stand_in_its_row():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), nn.Dropout(), nn.LeakyReLU())
    model = nn.Sequential(first, second, Residual(nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 2)).double().eval()
    assert rescalable_pairs(model) == [("0.0", "1.0.1")]  # what Residual adds to stands in front of its ReLU
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    twin = rescaled_copy(model, 5.0)
    assert torch.allclose(twin(x), model(x), rtol=1e-12) and torch.equal(twin[0][0].weight, 5 * model[0][0].weight)
    assert torch.equal(twin[1][0][1].weight, model[1][0][1].weight / 5)


def test_layers_whose_weight_is_made_of_others_are_not_taken_and_are_named():
    def made(change):
        layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)]
        changed = [change(layer) or layer for layer in layers[:2]]
        return nn.Sequential(changed[0], nn.ReLU(), changed[1], nn.ReLU(), layers[2], nn.ReLU(), nn.Linear(4, 2))

    def adapted(layer):
        layer.register_parameter("lora_a", nn.Parameter(torch.ones(1, 4)))

    def shifted(layer):
        nn.utils.parametrize.register_parametrization(layer, "bias", nn.Softplus())

    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3) and None,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        adapted,
        shifted,
    ):
        model = made(change)
        assert rescalable_pairs(model) == [("4", "6")]
        with pytest.raises(ValueError, match=r"weight is made of other tensors \(.*\) are not rescaled: 0, 2$"):
            rescalable_pairs(model[:5])


def test_rounding_is_measured_and_a_loss_that_is_not_finite_is_an_infinite_rise():
    problem = classification(net(torch.float32))
    shifted, ball = around(problem, "absolute", 1e-3)
    average = average_rise(shifted, ball, 2, seed=0)
    assert 0.0 < average.rounding < 1e-5

    def steep(model, batch):
        loss = (0.5 * (batch @ model.theta).square()).mean()
        return torch.where(model.theta.abs().max() > 1.0, inf, loss)

    shifted, ball = around(Problem.custom(Parabola(np.ones(6) * 0.5), steep, ROWS), "absolute", 50.0)
    assert isfinite(shifted.at(shifted.zero))
    average = average_rise(shifted, ball, 2, seed=0)
    assert average.value == inf and isnan(average.error)
    assert worst_rise(shifted, ball, steps=3, starts=1, seed=0).value == inf


def test_where_the_loss_is_not_finite_there_is_no_rise_to_measure():
    def broken(model, batch):
        return (batch @ model.theta).mean() * inf

    problem = Problem.custom(Parabola(np.ones(6)), broken, ROWS)
    shifted, ball = around(problem, "absolute", 0.1)
    for measure in (
        lambda: average_rise(shifted, ball, 2, seed=0),
        lambda: worst_rise(shifted, ball, 2, 1, seed=0),
        lambda: critical_sharpness(shifted),
    ):
        with pytest.raises(FloatingPointError, match="no rise to measure"):
            measure()


def test_a_rise_within_its_rounding_is_neither_a_rise_nor_a_fall():
    search = _Search(4.0)
    search.enter(1.0, -2.0, 0.1)
    search.enter(3.0, 5.0, 0.1)
    search.enter(1.5, 0.05, 0.1)
    search.enter(2.0, -0.05, 0.1)
    assert (search.low, search.high) == (1.0, 3.0)
    search.enter(2.0, nan, 0.1)  # not a number: the loss rises without bound
    assert search.high == 2.0 and search.root == 1.5


def test_a_result_is_saved_read_drawn_and_reported_without_the_model(tmp_path):
    result = lossmap.sharpness(classification(), draws=2, ascent_steps=2, starts=1, label="one")
    again = lossmap.read(result.save(tmp_path / "s.h5"), lossmap.Sharpness)
    assert again.equals(result) and repr(again) == repr(result)
    group = lossmap.read(tmp_path / "s.h5", lossmap.Surface).groups["sharpness/one"]
    assert report_of_group("sharpness/one", group.arrays, group.attributes) == repr(result)
    for words in ("Sharpness: one", "lower bound", "2 pairs", "seed 0", "2 / step"):
        assert words in repr(result), words
    figure = lossmap.draw(again)
    assert [a.get_xlabel()[:9] for a in figure.axes] == ["curvature", "rise of t"]
    table = sharpness_table({"a": StoredReport(group.arrays, group.attributes)})
    assert "filter 0.5: worst" in table and "lower bound" in table
    with pytest.raises(KeyError, match=r"there are: filter 0\.5"):
        result.ball("round")


def test_what_is_left_out_is_not_known():
    result = lossmap.sharpness(classification(), draws=0, ascent_steps=0, critical=False, trace_products=0)
    ball = result.ball("filter")
    assert isnan(ball.average) and isnan(ball.worst) and result.critical is None and result.trace is None
    assert "not measured" in repr(result)


def test_a_table_leaves_an_error_below_the_sixth_digit_out():
    for value, error, text in (
        (0.136238709, 2.6e-8, "0.136239"),
        (0.136238709, 1.1e-6, "0.1362387 +- 1.1e-06"),
        (9.9999996, 9e-5, "10"),
        (9.9999996, 2e-4, "10 +- 0.0002"),
        (5.0, 0.0, "5"),
        (float("nan"), 1.0, "-"),
        (-123456.7, 0.9, "-123457"),
    ):
        assert SharpnessNumber("a", value, error).short == text


def test_a_number_survives_within_a_hundredth_and_does_not_beyond_its_bars():
    assert survives(SharpnessNumber("a", 1.0, 0.5), SharpnessNumber("a", 1.009, 0.5)) is True
    assert survives(SharpnessNumber("a", 1.0), SharpnessNumber("a", 1.02)) is False
    assert survives(SharpnessNumber("a", 1.0, 0.01), SharpnessNumber("a", 1.15, 0.05)) is False
    for after in (1.15, 1.39):  # wide bars are no evidence
        assert survives(SharpnessNumber("a", 1.0, 0.1), SharpnessNumber("a", after, 0.1)) is None
    assert not survives(SharpnessNumber("a", 1.0), SharpnessNumber("a", float("nan")))


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"radius": {"round": 1.0}}, "must be one of filter, adaptive, absolute"),
        ({"radius": {"filter": 0.0}}, "radius of a ball must be > 0"),
        ({"draws": 1}, "--draws must be >= 2"),
        ({"starts": -1}, "must be >= 0"),
        ({"tol": 0.0}, "--tol must be > 0"),
        ({"trace_products": 2}, "trace"),
        ({"parameters": "nothing"}, "no parameter matches"),
    ],
)
def test_what_cannot_be_measured_is_refused(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        lossmap.sharpness(classification(), **keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_bars_of_rises_hold_what_rounding_does_to_a_saturated_network(kind):
    """SAM's step follows a gradient that rounding has turned; its rise in float64 lies within the bar."""
    model = net(torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6.0)
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3

    def squares(outputs, targets):  # a form whose terms cancel
        p = outputs.exp() / outputs.exp().sum(1, keepdim=True)
        return ((1.0 - p[torch.arange(len(p)), targets]) ** 2).mean()

    shifted, ball = around(Problem.supervised(model, squares, (x, y)), kind, 0.05)
    found = worst_rise(shifted, ball, steps=5, starts=1, seed=0)
    exact_model = copy.deepcopy(model).double()
    exact, ball = around(Problem.supervised(exact_model, squares, (x.double(), y)), kind, 0.05)
    truth = worst_rise(exact, ball, steps=5, starts=1, seed=0)
    assert 0.0 < abs(found.sam - truth.sam) <= 1.001 * found.sam_error < 0.1 * found.sam
    assert 0.0 < found.rounding < 0.1 * found.value
    assert (truth.rounding, truth.sam_error) == (0.0, 0.0)


def test_a_loss_whose_gradient_is_stopped_is_refused_by_name():
    def stopped(outputs, targets):
        p = outputs.softmax(1).detach()
        return (1.0 - p[torch.arange(len(p)), targets]).mean() + 0.0 * outputs.sum()

    problem = classification()
    with pytest.raises(ValueError, match=r"is not that of the loss .* a stopped gradient"):
        sharpness(Problem.supervised(problem.model, stopped, problem.data), draws=2, ascent_steps=1)


def test_radii_without_the_kinds_of_their_balls_are_named():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
    with pytest.raises(ValueError, match=r"radius must give one for each kind of ball, such as .* got \[0\.1\]"):
        lossmap.sharpness(problem, radius=[0.1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_balls_that_move_no_weight_are_said_to(dtype):
    model = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.zero_()
    problem = Problem.supervised(model, "mse", (torch.eye(2, dtype=dtype), torch.zeros(2, 1, dtype=dtype)))
    found = lossmap.sharpness(problem, radius={"filter": 0.5, "adaptive": 0.5, "absolute": 0.1}, draws=4)
    assert [ball.movable for ball in found.balls] == [0, 0, 2]
    text = " ".join(repr(found).split())
    assert "these balls do not move, so that the rises are exactly 0: filter, adaptive." in text
    assert "told from zero" not in text
    one = lossmap.sharpness(classification(), draws=2, ascent_steps=1, starts=1)
    assert "do not move" not in repr(one) and {ball.movable for ball in one.balls} == {42}
