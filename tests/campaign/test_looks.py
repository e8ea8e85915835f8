"""A member of a campaign whose loss changes while it is measured is not complete, and says why."""

import functools
import math
import time
from array import array

import numpy as np
import pytest
import torch
from torch import nn

from lossmap import Grid, Member, Problem, losses, random_plane, read, run_campaign
from lossmap.campaign import evaluate
from lossmap.campaign.evaluate import POINT, Assignment, MemberEvaluator
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.recorder import CampaignRecorder
from lossmap.parallel.messages import DONE
from lossmap.parallel.shutdown import Stop

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
PASSES = array("q")  # of the loss, by all members of a test


class Hidden:
    """A counter in an array, which no look at attributes finds."""

    __slots__ = ("last", "ticks")

    def __init__(self, last):
        self.ticks, self.last = array("q", [0]), last

    def __call__(self):
        self.ticks[0] += 1
        PASSES.append(self.ticks[0])
        return self.ticks[0] > self.last


def line(last):
    torch.manual_seed(0)
    model, over = nn.Linear(4, 3), Hidden(last)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (0.5 if over() else 1.0)

    problem = Problem.supervised(model, loss, (X, Y))
    return losses(problem, random_plane(model, axes=1), plan={"batch_size": 12}), Grid.line(-1, 1, 101)


def test_a_loss_that_changes_fails_its_member_alone_and_a_retry_begins_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(evaluate, "POINTS_PER_LOOK", math.inf)  # the number of looks in between depends on time
    del PASSES[:]
    run_campaign([Member("steady", functools.partial(line, 10**9))], tmp_path / "steady", progress=False)
    late = max(PASSES) - 3  # the last points, and the look behind them; copies of it count for themselves
    members = [Member(f"last {last}", functools.partial(line, last), {"last": last}) for last in (late, 10**9)]
    table = run_campaign(members, tmp_path / "a", progress=False)
    assert table["outcome"] == ["failed", "complete"] and table["done"] == [101, 101]
    assert f"last {late}" in caplog.text
    said = table.rows[0]["reason"]
    assert said.startswith("the loss changed during the run: over 12 samples, at the same weights, it was")
    folder = CampaignFolder(tmp_path / "a")
    assert read(folder.result(members[0].digest)).change_of("loss") == said
    assert run_campaign(members, tmp_path / "a", progress=False)["outcome"] == ["failed", "complete"]

    mended = Member("mended", functools.partial(line, 10**9), {"last": late})  # the same settings, other code
    assert mended.digest == members[0].digest
    table = run_campaign([mended, members[1]], tmp_path / "a", progress=False, retry_failed=True)
    assert table["outcome"] == ["complete", "complete"]
    values = [read(folder.result(member.digest))["train_loss"] for member in members]
    np.testing.assert_array_equal(*values)


def test_the_points_in_between_are_looked_at_too(tmp_path):
    """A rank that does not know its last point says so all the same, long before a survey of many points ends."""
    member = Member("half way", functools.partial(line, 300), {"last": 300})
    work = MemberEvaluator(Stop())
    path = tmp_path / "a.h5"
    kind, *_ = work(0, Assignment(0, member, path))
    assert kind == DONE
    for i in range(5_000):
        _, _, answer, _ = work(i, Assignment(POINT, member, path, "loss", i % 101))
        if answer.changed:
            break
    assert 200 < i < 3_000 and "at its beginning, and" in answer.changed


AT_WORK, TRIPPED = [0], set()  # the rank that evaluates now, and those whose loss has changed


def shared_line():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (0.5 if AT_WORK[0] in TRIPPED else 1.0)

    problem = Problem.supervised(model, loss, (X, Y))
    return losses(problem, random_plane(model, axes=1), plan={"batch_size": 12}), Grid.line(-1, 1, 15)


class TwoRanks:
    """A pool of two ranks in one process, step by step."""

    def __init__(self, member, folder):
        self.folder = CampaignFolder(folder)
        self.folder.create()
        self.recorder = CampaignRecorder([member], self.folder, None, 2)
        self.queue = self.recorder.queue(2)
        self.queue.active |= {0, 1}
        self.ranks = [MemberEvaluator(Stop()), MemberEvaluator(Stop())]

    def given(self, rank):
        """What a rank is given now; waits for files that are being opened."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.queue.grown  # noqa: B018  # as the dispatcher does: asks for files that are open or closed by now
            if tasks := [(index, self.recorder.saved_state(index)) for index in self.queue.dispatch(rank, 0.0)]:
                return tasks
            time.sleep(0.01)
        raise AssertionError("nothing is dispatched")

    def evaluate(self, rank, tasks):
        AT_WORK[0] = rank
        for task in tasks:
            kind, index, reading, seconds = self.ranks[rank](*task)
            assert kind == DONE, reading
            assert self.queue.complete(rank, index, seconds, 0.0)
            self.recorder.record(index, reading, seconds, rank)


@pytest.mark.parametrize("then", ["asked", "another member first", "stopped", "died"])
def test_a_rank_whose_last_points_were_not_known_as_such_looks_when_all_are_settled(tmp_path, monkeypatch, then):
    monkeypatch.setattr(evaluate, "POINTS_PER_LOOK", math.inf)
    TRIPPED.clear()
    member = Member("shared", shared_line)
    pool = TwoRanks(member, tmp_path)
    pool.evaluate(0, pool.given(0))
    first = pool.given(0)
    pool.evaluate(1, pool.given(1))
    held = pool.given(1)  # before the last ones are with some rank
    assert not any(task.last for _, task in held)
    TRIPPED.add(1)
    pool.evaluate(0, first)
    while pool.queue.remaining > len(held):
        pool.evaluate(0, pool.given(0))
    pool.evaluate(1, held)
    assert not pool.queue.finished  # the member is not at its end: its loss is to be looked at
    if then == "another member first":
        for seed in (1, 2):
            assert pool.ranks[1](0, Assignment(0, Member("b", shared_line, {"seed": seed}), tmp_path / f"{seed}.h5"))
    if then == "stopped":
        pool.recorder.note_changes([pool.ranks[0].changes(), pool.ranks[1].changes()])
        pool.recorder.close()
    else:
        if then == "died":
            pool.queue.remove_worker(1)
        pool.evaluate(0 if then == "died" else 1, pool.given(0 if then == "died" else 1))
        while not pool.queue.finished:
            time.sleep(0.01)
        pool.recorder.close()
    said = read(pool.folder.result(member.digest)).change_of("loss")
    assert ("at its beginning, and" in said) == (then != "died")
    state = pool.folder.states([member])[member.digest]
    assert (state.outcome, state.done) == ({"died": "complete", "stopped": "unfinished"}.get(then, "failed"), 15)


def test_ranks_that_begin_with_different_functions_fail_their_member(tmp_path):
    """Such as data that are drawn without a seed: each rank makes the member for itself."""
    TRIPPED.clear()
    member = Member("shared", shared_line)
    pool = TwoRanks(member, tmp_path)
    pool.evaluate(0, pool.given(0))
    first = pool.given(0)
    TRIPPED.add(1)  # before rank 1 begins
    pool.evaluate(1, pool.given(1))
    pool.evaluate(0, first)
    while not pool.queue.finished:
        if tasks := pool.queue.dispatch(0, 0.0):
            pool.evaluate(0, [(index, pool.recorder.saved_state(index)) for index in tasks])
        if tasks := pool.queue.dispatch(1, 0.0):
            pool.evaluate(1, [(index, pool.recorder.saved_state(index)) for index in tasks])
    pool.recorder.close()
    state = pool.folder.states([member])[member.digest]
    assert state.outcome == "failed" and state.done == 15
    assert state.reason.startswith("its ranks measure different functions: the loss 1 of a few samples was ")
