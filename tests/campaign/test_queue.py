"""The accounts of a pool over many members: each task once, neighbours together, nobody idle while work is left."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.campaign.queue import CampaignQueue


class Pool:
    """Workers that do what a queue gives them, on a clock of their own; members are prepared, measured and finished.

    costs  per member the seconds of each of its points
    """

    def __init__(self, costs, workers, deaths=()):
        self.costs, self.deaths = costs, dict(deaths)
        self.queue = CampaignQueue(workers)
        self.queue.active |= set(range(workers))
        self.member_of = {self.queue.add_single(): number for number in range(len(costs))}
        self.offsets, self.left, self.done, self.busy = {}, {}, [], [0.0] * workers
        self.members_of_worker = [[] for _ in range(workers)]
        self.free = [0.0] * workers
        self.alive = set(range(workers))

    def cost(self, index):
        batch = self.queue.batch_at(index)
        return 0.01 if batch is None else self.costs[self.offsets[batch.offset]]

    def run(self):
        held = {worker: [] for worker in self.alive}
        now = 0.0
        while not self.queue.finished:
            for worker in sorted(self.alive):
                was_empty = not held[worker]
                held[worker] += self.queue.dispatch(worker, now)
                if was_empty and held[worker]:
                    self.free[worker] = now + self.cost(held[worker][0])
            working = [w for w in self.alive if held[w]]
            assert working, "nobody works, and the queue is not finished"
            worker = min(working, key=lambda w: self.free[w])
            now = self.free[worker]
            if len(self.done) in self.deaths and len(self.alive) > 1:
                del self.deaths[len(self.done)]
                self.alive.discard(worker)
                self.queue.remove_worker(worker)
                continue
            index = held[worker].pop(0)
            self._answer(worker, index, now)
            if held[worker]:
                self.free[worker] = now + self.cost(held[worker][0])
        return now

    def _answer(self, worker, index, now):
        seconds = self.cost(index)
        self.busy[worker] += seconds
        if not self.queue.complete(worker, index, seconds, now):
            return
        self.done.append(index)
        batch = self.queue.batch_at(index)
        if batch is not None:
            member = self.offsets[batch.offset]
            self.members_of_worker[worker].append(member)
            self.left[member] -= 1
            if self.left[member] == 0:
                self.member_of[self.queue.add_single(finish=True)] = None
        elif self.member_of[index] is not None:
            member = self.member_of[index]
            self.left[member] = 25
            self.offsets[self.queue.add_batch(25, np.arange(25), index)] = member


@given(
    st.lists(st.floats(0.001, 2.0), min_size=1, max_size=12),
    st.integers(1, 6),
    st.lists(st.integers(0, 200), max_size=3),
)
def test_every_task_is_done_once_whatever_the_costs_and_the_deaths(costs, workers, deaths):
    pool = Pool(costs, workers, [(at, None) for at in deaths])
    pool.run()
    assert len(pool.done) == len(set(pool.done)) == 27 * len(costs)


def test_with_costs_that_spread_twentyfold_no_worker_idles():
    costs = np.linspace(1, 20, 60)[np.random.default_rng(0).permutation(60)]
    pool = Pool(list(costs), 4)
    wall = pool.run()
    assert sum(pool.busy) >= 0.99 * 4 * wall


def test_a_worker_stays_with_a_member_and_members_are_shared_at_the_end_alone():
    pool = Pool([1.0] * 20, 4)
    pool.run()
    changes = sum(a != b for members in pool.members_of_worker for a, b in itertools.pairwise(members))
    assert changes <= 20 + 3 * 4
    first = [members[:25] for members in pool.members_of_worker]
    assert all(len(set(members)) == 1 for members in first)


def test_whoever_prepared_a_member_measures_it():
    queue = CampaignQueue(2)
    queue.active |= {0, 1}
    tasks = [queue.add_single(), queue.add_single()]
    assert queue.dispatch(0, 0.0) == tasks[:1]
    assert queue.dispatch(1, 0.0) == tasks[1:]
    for worker in (0, 1):
        queue.complete(worker, tasks[worker], 0.1, 0.1)
    offsets = [queue.add_batch(4, range(4), task) for task in tasks]
    assert queue.dispatch(1, 0.2)[0] == offsets[1]
    assert queue.dispatch(0, 0.2)[0] == offsets[0]


def test_what_a_point_may_cost_is_known_from_its_own_member_alone():
    queue = CampaignQueue(1)
    queue.active.add(0)
    task = queue.add_single()
    queue.complete(0, task, 500.0, 500.0)
    cheap, dear, mixed = (queue.add_batch(4, range(4), is_alike=alike) for alike in (True, True, False))
    assert [queue.slowest_like(index) for index in (task, cheap, dear, mixed)] == [None] * 4
    for index, seconds in ((cheap, 1.0), (cheap + 1, 3.0), (dear + 1, 90.0), (mixed, 2.0)):
        queue.complete(0, index, seconds, 0.0)
    assert [queue.slowest_like(index) for index in (task, cheap + 3, dear, mixed + 1)] == [None, 3.0, 90.0, None]


def test_nothing_waits_behind_a_preparation():
    queue = CampaignQueue(1)
    queue.active.add(0)
    queue.add_single(), queue.add_single()
    assert len(queue.dispatch(0, 0.0)) == 1
    assert queue.dispatch(0, 0.0) == []


@pytest.mark.parametrize("awaited", [0, 1])
def test_a_queue_is_not_finished_while_a_file_is_being_opened(awaited):
    queue = CampaignQueue(1, lambda: awaited)
    assert queue.finished == (awaited == 0)


def test_a_task_is_named_by_its_point_in_its_member_or_as_no_point():
    queue = CampaignQueue(1)
    first = queue.add_single()
    offset = queue.add_batch(9, range(9), first)
    assert offset > 0
    assert [queue.where(index) for index in (first, offset, offset + 5)] == [
        "in a member's preparation or end",
        "at point 0",
        "at point 5",
    ]
