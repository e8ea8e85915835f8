"""Curves of low loss between two networks: their bend against a quadrature, their places, their file."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import lossmap
from lossmap.data.batches import FixedBatches, Resident
from lossmap.data.datasets import load
from lossmap.data.problem import Problem
from lossmap.data.random_batches import shuffled_batch
from lossmap.geometry.directions import line_between, line_to
from lossmap.io.read import read_group
from lossmap.landscape.connection_map import Way, connection_map
from lossmap.landscape.curves import (
    BEND,
    CurveRecipe,
    curved_plane,
    length_of,
    place_on,
    price_of_bend,
    stored_bend,
    train_bend,
)
from lossmap.landscape.loss import ForwardPlan
from lossmap.training import Recipe, train

A, B = np.array([1.0, 0.0]), np.array([0.0, 1.0])


class Point(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))


def ring(theta=A):
    """A loss that is 0 on the circle of radius 1."""
    return Problem.custom(
        Point(theta), lambda m, batch: (m.theta.square().sum() - 1).square() + 0 * batch.mean(), torch.ones(4, 1)
    )


def on_curve(kind, t, c):
    t = np.asarray(t)[..., None]
    if kind == "bezier":
        return (1 - t) ** 2 * A + 2 * t * (1 - t) * c + t**2 * B
    return np.where(t < 0.5, A + 2 * t * (c - A), c + (2 * t - 1) * (B - c))


def mean_loss(kind, c):
    t = (np.arange(4000) + 0.5) / 4000
    return float((((on_curve(kind, t, c) ** 2).sum(-1) - 1) ** 2).mean())


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_the_bend_is_where_the_mean_loss_over_the_curve_is_least(kind):
    best = minimize(lambda c: mean_loss(kind, c), (A + B) / 2, tol=1e-12)
    line = lossmap.connect(ring(), Point(B), points=9, curve=kind, curve_steps=3000, curve_rate=0.02)
    t = line.t
    found = line.curve.losses["train"]
    assert found == pytest.approx(((on_curve(kind, t, best.x) ** 2).sum(-1) - 1) ** 2, abs=2e-3)
    assert line.barrier().height == pytest.approx(0.25, abs=1e-12)  # (1/2 - 1)^2, at the middle of the line
    assert line.curve.barrier().height < 0.04 and "on the curve" in repr(line)


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_places_lengths_and_losses_are_those_of_the_formula(kind):
    c = np.array([1.3, 0.9])
    plane = line_between(Point(A), Point(B))
    curved = curved_plane(plane, {"theta": torch.as_tensor(c - A)}, CurveRecipe(kind))
    for t in (0.0, 0.3, 0.5, 0.8, 1.0):
        assert curved.at(place_on(kind, t))["theta"].numpy() == pytest.approx(on_curve(kind, t, c), abs=1e-15)
    steps = np.diff(on_curve(kind, np.linspace(0, 1, 20001), c), axis=0)
    assert length_of(curved, kind) == pytest.approx(np.linalg.norm(steps, axis=1).sum(), rel=1e-6)
    way = Way(curved, kind)
    measure = connection_map({"train": ring()}, plane, ForwardPlan(4), beside={"curve": way})
    read = measure((0.3,))
    assert read["curve_train_loss"] == pytest.approx((np.sum(on_curve(kind, 0.3, c) ** 2) - 1) ** 2, rel=1e-12)
    assert {f.name for f in measure.fields} == set(read)


def net(seed, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)]
    return nn.Sequential(*(layers if norm else layers[::2]))


def supervised(model, batch_size=8):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    return Problem.supervised(model, "crossentropy", (x, torch.arange(30) % 3), batch_size=batch_size)


def test_a_model_comes_back_untouched_and_the_same_seed_bends_alike():
    model, other = net(0).train(), net(1)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    line = line_between(model, other)
    bends = [train_bend(supervised(model), line, CurveRecipe(steps=20, seed=seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(bends[0][n], t) for n, t in bends[1].items())
    assert not all(torch.equal(bends[0][n], t) for n, t in bends[2].items())
    asked = iter([False] * 5 + [True])
    assert train_bend(supervised(model), line, CurveRecipe(steps=20), stop=lambda: next(asked)) is None


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_the_price_of_a_bend_is_of_whole_steps_the_batch_and_the_update_with_them(steps, monkeypatch):
    batch_of, update = shuffled_batch, torch.optim.Adam.step
    monkeypatch.setattr(
        "lossmap.landscape.curves.shuffled_batch", lambda *asked: (time.sleep(0.02), batch_of(*asked))[1]
    )
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (time.sleep(0.03), update(self))[1])
    price = price_of_bend(supervised(net(0)), line_between(net(0), net(1)), CurveRecipe(steps=steps))
    assert price.count == steps and price.seconds >= 0.05 * steps


def test_the_curve_of_a_bfloat16_model_ends_at_its_models_to_the_bit(tmp_path):
    a, b = net(0).bfloat16(), net(1).bfloat16()
    recipe = CurveRecipe(steps=3)
    problem, line = supervised(a), line_between(a, b)
    plane = curved_plane(line, train_bend(problem, line, recipe), recipe)
    for t, model in ((0.0, a), (1.0, b)):
        there = plane.at(place_on("bezier", t))
        assert all(torch.equal(there[name], p) for name, p in model.named_parameters())
    curve = lossmap.connect(problem, b, points=3, curve="bezier", curve_steps=3, path=tmp_path / "curve.h5").curve
    again = lossmap.connect(problem, b, points=3, curve="bezier", curve_steps=3, path=tmp_path / "curve.h5").curve
    assert np.isfinite(curve.losses["train"]).all() and again.equals(curve)


def test_a_file_keeps_the_bend_and_goes_on_with_it(tmp_path, monkeypatch):
    model, other, path = net(0), net(1), tmp_path / "c.h5"
    first = lossmap.connect(supervised(model), other, points=5, curve="polygon", curve_steps=30, path=path)
    line, recipe = line_between(model, other), CurveRecipe("polygon", 30)
    kept = stored_bend(path, line, recipe)
    assert set(kept) == {"0.weight", "0.bias", "4.weight", "4.bias"}  # what both have alike (batch norm's) stands still
    assert stored_bend(path, line, CurveRecipe("polygon", 31)) is None
    about = lossmap.read(path).groups["connection"].attributes
    assert about["curve_train_barrier"] == first.curve.barrier().height
    assert about["curve"].startswith("the two straight pieces through a bend trained in 30 steps")
    # what a file says of one curve is not asked of another
    with pytest.raises(ValueError, match="curve"):
        lossmap.connect(supervised(model), other, points=5, curve="bezier", curve_steps=30, path=path)
    monkeypatch.setattr("lossmap.landscape.connect.train_bend", lambda *args: pytest.fail("trained again"))
    again = lossmap.connect(supervised(model), other, points=5, curve="polygon", curve_steps=30, path=path)
    assert np.array_equal(again.curve.losses["train"], first.curve.losses["train"])
    assert read_group(path, BEND).attributes["steps"] == 30


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"curve": "circle"}, "--curve must be one of none, bezier, polygon; got 'circle'"),
        ({"curve": "bezier", "bn": "interpolate"}, "--bn recompute, or keep"),
        ({"curve": "bezier", "curve_steps": 0}, "at least one step"),
        ({"curve": "bezier", "curve_rate": 0.0}, "--curve-rate must be > 0"),
    ],
)
def test_what_makes_no_curve_is_refused_by_name(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        lossmap.connect(supervised(net(0)), net(1), points=3, **asked)


def test_a_loss_that_leaves_the_numbers_is_named():
    with pytest.raises(FloatingPointError, match="take a smaller --curve-rate than 1e\\+200"):
        lossmap.connect(ring(), Point(B), points=3, curve="bezier", curve_rate=1e200)


def test_the_batches_of_an_epoch_hold_each_sample_once_and_the_users_own_stay_whole():
    data = Resident((torch.arange(11.0),), 4)
    batches = [shuffled_batch(data, 5, step, "test", 0)[0] for step in range(4)]  # 5, and 6 with the last one alone
    assert [len(b) for b in batches] == [5, 6, 5, 6]
    assert sorted(torch.cat(batches[:2]).tolist()) == list(range(11))
    assert torch.cat(batches[:2]).tolist() != torch.cat(batches[2:]).tolist()
    own = FixedBatches(((torch.zeros(2),), (torch.ones(3),)))
    assert sorted(len(shuffled_batch(own, 5, step, "test", 0)[0]) for step in range(2)) == [2, 3]


def test_between_two_trained_nets_the_curve_stays_below_the_barrier_of_the_line():
    data = load("digits", "train", samples=600)
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
        train(Problem.supervised(nets[-1], "crossentropy", data), Recipe(epochs=20, seed=seed))
    line = lossmap.connect(Problem.supervised(nets[0], "crossentropy", data), nets[1], points=11, curve="bezier")
    straight, curved = line.barrier(), line.curve.barrier()
    assert straight.height > 10 * straight.error > 0.0
    assert curved.height < straight.height / 10
    assert line.curve.losses["train"][[0, -1]] == pytest.approx(line.losses["train"][[0, -1]], rel=1e-6)


def test_a_curve_between_the_same_parameters_is_refused_by_name():
    problem = ring()
    with pytest.raises(ValueError, match="both networks have the same parameters, so that there is no curve"):
        train_bend(problem, line_to(problem.model, problem.model.state_dict(), states=False), CurveRecipe("bezier"))
