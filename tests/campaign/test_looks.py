"""A member of a campaign whose loss changes while it is measured is not complete, and says why."""

import functools
import math

import numpy as np
import torch
from torch import nn

from lossmap import Grid, Member, Problem, losses, random_plane, read, run_campaign
from lossmap.campaign import evaluate
from lossmap.campaign.evaluate import POINT, Assignment, MemberEvaluator
from lossmap.campaign.folder import CampaignFolder
from lossmap.parallel.messages import DONE
from lossmap.parallel.shutdown import Stop

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
PASSES = []  # of the loss, by all members of a test


class Slots:
    """A counter that no look at attributes finds."""

    __slots__ = ("last", "ticks")

    def __init__(self, last):
        self.ticks, self.last = 0, last

    def __call__(self):
        self.ticks += 1
        PASSES.append(self.ticks)
        return self.ticks > self.last


def line(last):
    torch.manual_seed(0)
    model, over = nn.Linear(4, 3), Slots(last)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (0.5 if over() else 1.0)

    problem = Problem.supervised(model, loss, (X, Y))
    return losses(problem, random_plane(model, axes=1), plan={"batch_size": 12}), Grid.line(-1, 1, 101)


def test_a_loss_that_changes_fails_its_member_alone_and_a_retry_begins_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(evaluate, "POINTS_PER_LOOK", math.inf)  # the number of looks in between depends on time
    PASSES.clear()
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
    member = Member("half way", functools.partial(line, 3_000), {"last": 3_000})
    work = MemberEvaluator(Stop())
    path = tmp_path / "a.h5"
    kind, *_ = work(0, Assignment(0, member, path))
    assert kind == DONE
    for i in range(20_000):
        _, _, answer, _ = work(i, Assignment(POINT, member, path, "loss", i % 101))
        if answer.changed:
            break
    assert 1_000 < i < 10_000 and "at its beginning, and" in answer.changed
