"""Collectives of the ranks that a death has left, where one more dies in the middle."""

from collections import deque

import pytest

from lossmap.landscape.run_survey import gather_at_end
from lossmap.parallel import survivors
from lossmap.parallel.messages import WorkerLost
from lossmap.parallel.world import World


class Ranks:
    """Channels of some ranks in one process: a message is there as soon as it is sent."""

    def __init__(self, count):
        self.boxes = [deque() for _ in range(count)]
        self.gone = set()
        self.channels = [Channel(self, rank) for rank in range(count)]


class Channel:
    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size, self.collectives = ranks, rank, len(ranks.boxes), 0

    def send(self, message, rank):
        self.ranks.boxes[rank].append((self.rank, message))

    def receive(self):
        return self.ranks.boxes[self.rank].popleft() if self.ranks.boxes[self.rank] else None

    def dead(self):
        return frozenset(self.ranks.gone)

    def flush(self):
        """Nothing is kept back here."""


class WaitingChannel(Channel):
    """A rank of which only the sending half of a gather is wanted: it finds nothing."""

    def receive(self):
        raise StopIteration


def send_to_gather(ranks, rank, value):
    channel = WaitingChannel(ranks, rank)
    with pytest.raises(StopIteration):
        survivors.gather(channel, {2, 3}, value)


def test_what_follows_a_gather_that_was_given_up_is_not_taken_for_its_result():
    ranks = Ranks(4)  # 1 has died before, and all know it
    send_to_gather(ranks, 3, "three")
    ranks.gone = {2}
    with pytest.raises(WorkerLost, match="rank 2 has died"):
        survivors.gather(ranks.channels[0], {2, 3}, "zero")
    survivors.broadcast(ranks.channels[0], {2, 3}, {"the": "surface"})
    ranks.channels[3].collectives = 1  # it waits for the gathered values
    with pytest.raises(WorkerLost, match="another rank has died"):
        survivors._spread(ranks.channels[3], {2, 3}, None)


def test_a_late_part_of_a_gather_that_was_given_up_is_dropped():
    ranks = Ranks(4)
    ranks.gone = {2}
    with pytest.raises(WorkerLost):
        survivors.gather(ranks.channels[0], {2, 3}, "zero")
    send_to_gather(ranks, 3, "late")
    ranks.gone = set()
    following = WaitingChannel(ranks, 3)
    following.collectives = 1
    with pytest.raises(StopIteration):
        survivors.gather(following, {3}, "three")
    assert survivors.gather(ranks.channels[0], {3}, "zero") == ["zero", None, None, "three"]
    assert ranks.boxes[3][-1] == (0, (-1, (2, ["zero", None, None, "three"])))


def test_rank_0_awaits_nobody_after_a_gather_that_was_given_up(monkeypatch):
    world, ranks = World(), Ranks(4)
    world.size, world.channel, world.dead_ranks = 4, ranks.channels[0], frozenset({1})
    send_to_gather(ranks, 3, "three")  # which leaves as soon as rank 0 goes on
    ranks.gone = {1, 2}
    assert gather_at_end(world, "zero") == ["zero"]
    assert (world.dead_ranks, world.stuck_ranks) == ({1, 2}, {3})
    assert gather_at_end(world, "zero") == ["zero", None, None, None]
