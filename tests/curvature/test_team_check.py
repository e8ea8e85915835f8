"""Ranks of a team that see different samples come to one decision on products and losses, or raise as one."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from lossmap import Problem, layer_spectra, losses, random_plane
from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.hvp_plan import ProductCheck
from lossmap.curvature.linearized_operator import LinearizedOperator
from lossmap.curvature.operators import CurvatureOperator
from lossmap.curvature.team_check import check_by_all
from lossmap.data.loss_check import check_loss

X = torch.cat([torch.rand(8, 3), -torch.rand(8, 3)])  # the second rank's are negative
Y = torch.randn(16, 2)


@pytest.fixture(autouse=True)
def one_rank_does_not_wait_for_another_inside_a_property(monkeypatch):
    """Up to Python 3.11 a cached property has a lock that all threads share; ranks are processes, which do not."""
    monkeypatch.setattr(LinearizedOperator.__dict__["measured"], "lock", nullcontext(), raising=False)


def by_ranks(work, count=2):
    """What work(rank, total) returns or raises on each of some ranks, threads whose total adds up over them.

    One works at a time, since PyTorch's tracer bears no two.
    """
    barrier, working = threading.Barrier(count), threading.Lock()
    messages, outcomes = {}, [None] * count

    def run(rank):
        def total(message):
            messages[rank] = message.clone()
            working.release()
            try:
                barrier.wait(60)
                result = sum(messages[r] for r in range(count))
                barrier.wait(60)
            finally:
                working.acquire()
            return result

        with working:
            try:
                outcomes[rank] = work(rank, total)
            except Exception as error:
                outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


class Forgetful(torch.autograd.Function):
    """Half the square of x, whose gradient forgets that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = x * 1.0
        return 0.5 * x**2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class Straight(torch.autograd.Function):
    """Rounded, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Net(nn.Module):
    """A layer and a function."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, x):
        return self.function(self.layer(x))


def half_square(x):
    """What the functions above should be."""
    return 0.5 * x**2


def share(function, rank):
    """A rank's samples; those of rank 1 alone meet the function."""
    torch.manual_seed(0)
    net = Net(function if rank == 1 else half_square).double()
    problem = Problem.supervised(net, "mse", (X.double(), Y.double()), batch_size=8)
    return replace(problem, checked=True).share(rank, 2)


@pytest.mark.parametrize("make", [prepare, lambda p, total: build_operator(p, "hessian", "weights", total)])
def test_a_backend_that_one_rank_rejects_is_rejected_by_all(make):
    def work(rank, total):
        made = make(share(Forgetful.apply, rank), total=total)
        operator = made.at() if hasattr(made, "at") else made
        return operator @ torch.ones(6, dtype=torch.float64)

    first, second = by_ranks(work)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    plain = Problem.supervised(share(half_square, 0).model, "mse", (X.double(), Y.double()))
    torch.testing.assert_close(first, CurvatureOperator(plain) @ torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda p, total: prepare(p, total=total),
        lambda p, total: build_operator(p, "hessian", "weights", total),
        lambda p, total: layer_spectra(p, total=total, probes=0),
    ],
)
def test_where_one_rank_refuses_all_raise(make):
    outcomes = by_ranks(lambda rank, total: make(share(Straight.apply, rank), total=total))
    assert isinstance(outcomes[1], ValueError) and "straight-through" in str(outcomes[1])
    assert isinstance(outcomes[0], RuntimeError) and "on 1 other rank(s) of the team" in str(outcomes[0])


def test_the_largest_disagreement_holds_for_all():
    checks = [ProductCheck({}, 0.125), ProductCheck({"linearized": "no"}, 0.5, "the loss is not finite")]
    first, second = by_ranks(lambda rank, total: check_by_all(total, torch.device("cpu"), lambda: checks[rank]))
    assert first.disagreement == second.disagreement == pytest.approx(0.5, rel=1e-6)
    assert set(first.rejected) == set(second.rejected) == {"linearized"}
    assert second.rejected["linearized"] == "no" and first.unchecked and second.unchecked


def coupled_where_negative(outputs, targets):
    """A mean over samples, but where the inputs, and so the targets, are negative: there the batch is one."""
    value = ((outputs - targets) ** 2).mean()
    return value + outputs.mean() ** 2 if bool((targets < 0).all()) else value


def noisy_where_negative(outputs, targets):
    """Random where the targets are negative."""
    scale = torch.rand(()) if bool((targets < 0).all()) else 1.0
    return scale * ((outputs - targets) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "note"), [(coupled_where_negative, "not a mean over"), (noisy_where_negative, "draws at random")]
)
def test_a_loss_is_evaluated_alike_by_all_ranks(loss, note):
    targets = X[:, :2].contiguous()

    def work(rank, total):
        torch.manual_seed(0)
        problem = Problem.supervised(nn.Linear(3, 2), loss, (X, targets), batch_size=4).share(rank, 2)
        checked = check_loss(problem, total=total)
        reading = losses(copy.copy(problem), random_plane(problem.model, axes=1), total=total)((0.5,))
        return checked, reading["train_loss"]

    (first, loss_of_first), (second, loss_of_second) = by_ranks(work)
    assert note in first.notes[-1] and note in second.notes[-1]
    assert type(first.data) is type(second.data) and first.noise_seed == second.noise_seed
    assert loss_of_first == loss_of_second


def test_targets_out_of_range_on_one_rank_are_raised_by_all():
    labels = torch.zeros(16, dtype=torch.long)
    labels[-1] = 7

    def work(rank, total):
        problem = Problem.supervised(nn.Linear(3, 2), "crossentropy", (X, labels)).share(rank, 2)
        return check_loss(problem, total=total)

    first, second = by_ranks(work)
    assert isinstance(second, ValueError) and isinstance(first, RuntimeError)
    assert "on 1 other rank(s)" in str(first)
