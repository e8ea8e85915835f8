"""Dispatcher, workers and work queue without MPI: on a network of lists, with a simulated clock."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmap.parallel.dispatcher import Dispatcher
from lossmap.parallel.messages import (
    DONE,
    END,
    FAILED,
    INTERRUPTED,
    NOTE,
    LocalChannel,
    PollBackoff,
    WorkerLost,
)
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.work_queue import POINT_FAILED, WorkQueue
from lossmap.parallel.worker import Worker


def queue_of(count, workers, present=None):
    queue = WorkQueue(range(count), workers)
    queue.active.update(range(workers) if present is None else present)
    return queue


def test_each_worker_gets_a_segment_of_neighbors():
    queue = queue_of(100, 4)
    first = [queue.dispatch(worker, 0.0) for worker in range(4)]
    assert first == [[0, 1], [25, 26], [50, 51], [75, 76]]
    assert queue.complete(2, 50, 1.0, 1.0) and queue.dispatch(2, 1.0) == []
    assert queue.complete(2, 51, 1.0, 2.0) and queue.dispatch(2, 2.0) == [52]


def test_a_finished_worker_steals_the_back_half_of_the_longest_segment():
    queue = queue_of(40, 2)
    mine = []
    while len(mine) < 20:
        for index in queue.dispatch(0, 0.0):
            mine.append(index)
            queue.complete(0, index, 1.0, 0.0)
    assert mine[:20] == list(range(20))
    assert queue.dispatch(0, 0.0) == [30]


def test_workers_hold_more_where_points_are_quick_and_fewer_towards_the_end():
    queue = queue_of(10_000, 2)
    assert len(queue.dispatch(0, 0.0)) == 2
    queue.complete(0, 0, 0.001, 0.0)
    assert len(queue.in_progress[0]) + len(queue.dispatch(0, 0.0)) == 52
    queue.unassigned = 8
    assert queue.free_slots(1) == 3
    queue.unassigned = 0
    assert queue.free_slots(1) == 1
    queue.unassigned = 60
    assert queue.free_slots(1) == 16
    queue.slowest = [0.01, 0.0]
    assert queue.free_slots(1) == 2
    slow = queue_of(10_000, 2)
    slow.complete(0, 0, 3.0, 3.0)
    assert slow.free_slots(0) == 1


def test_a_failed_point_goes_elsewhere_and_the_second_failure_counts():
    queue = queue_of(2, 2)
    assert (queue.dispatch(0, 0.0), queue.dispatch(1, 0.0)) == ([0], [1])
    assert not queue.fail(0, 0, 1.0)
    assert queue.dispatch(0, 1.0) == []
    queue.complete(1, 1, 1.0, 1.0)
    assert queue.dispatch(1, 1.0) == [0]
    assert queue.fail(1, 0, 2.0)
    assert queue.finished and queue.remaining == 0


def test_a_failed_point_is_tried_again_by_the_same_worker_where_there_is_no_other():
    queue = queue_of(1, 2, present=[0])
    queue.dispatch(0, 0.0)
    queue.fail(0, 0, 1.0)
    assert queue.dispatch(0, 1.0) == [0]


def test_points_of_a_lost_worker_are_dispatched_again_first():
    queue = queue_of(100, 2)
    pending = queue.dispatch(0, 0.0)
    assert queue.remove_worker(0) == (pending, None)
    queue.evaluated, queue.seconds = 1, 0.01
    assert queue.dispatch(1, 0.0)[:2] == pending


def test_a_point_that_killed_three_times_has_failed():
    queue = queue_of(1, 4)
    for worker in range(3):
        assert queue.dispatch(worker, 0.0) == [0]
        requeued, fatal = queue.remove_worker(worker)
    assert (requeued, fatal) == ([], 0) and queue.finished


def test_a_late_answer_counts_once():
    queue = queue_of(2, 2)
    queue.dispatch(0, 0.0)
    queue.dispatch(1, 0.0)
    assert queue.overdue(4.0, lambda index: 5.0) == []
    queue.complete(1, 1, 1.0, 3.0)
    assert queue.overdue(6.0, lambda index: 5.0) == [(0, 0, 5.0)]
    assert not queue.suspend_worker(0, 0) and queue.dispatch(1, 6.0) == [0]
    assert queue.complete(0, 0, 7.0, 7.0)
    assert not queue.complete(1, 0, 1.0, 8.0)
    assert not queue.fail(1, 0, 9.0)


class Network:
    """Ranks, each with a box of messages; dead ranks neither send nor receive."""

    def __init__(self, ranks):
        self.boxes = [deque() for _ in range(ranks)]
        self.dead_ranks = set()

    def end(self, rank):
        network = self

        class End:
            def send(self, message, to):
                if rank not in network.dead_ranks:
                    network.boxes[to].append((rank, message))

            def receive(self):
                return network.boxes[rank].popleft() if network.boxes[rank] else None

            def dead(self):
                return frozenset(network.dead_ranks)

        return End()


class FakeRecorder:
    def __init__(self):
        self.values, self.failures, self.states, self.notes = {}, {}, {}, []

    def record(self, index, reading, seconds, rank):
        assert index not in self.values, "recorded twice"
        self.values[index] = reading

    def fail(self, failure, final):
        if final:
            assert failure.index not in self.values
            self.failures[failure.index] = failure

    def save_state(self, index, state):
        self.states[index] = state

    def note(self, text):
        self.notes.append(text)

    def progress(self, queue):
        pass


class Survey:
    """A dispatcher at rank 0 and workers at the others, stepped in an order that chance chooses."""

    def __init__(self, count, ranks, evaluate, point_timeout=None, stop=None, by_pace=False):
        self.now = 0.0
        self.network, self.recorder, self.stop = Network(ranks + 1), FakeRecorder(), stop or Stop()
        self.queue = WorkQueue(range(count), ranks)
        self.dispatcher = Dispatcher(
            self.network.end(0),
            self.queue,
            [(rank,) for rank in range(1, ranks + 1)],
            self.recorder,
            stop=self.stop,
            point_timeout=point_timeout,
            by_pace=by_pace,
            clock=lambda: self.now,
        )
        self.workers = {
            rank: Worker(
                self.network.end(rank), lambda i, s, rank=rank: evaluate(rank, i, s), stop=Stop(), host=f"node{rank}"
            )
            for rank in range(1, ranks + 1)
        }

    def run(self, chance, happens=lambda survey: None, limit=100_000):
        for _ in range(limit):
            self.now += 0.01
            happens(self)
            who = chance.choice([0, *sorted(set(self.workers) - self.network.dead_ranks)])
            if who == 0:
                self.dispatcher.step()
                if self.dispatcher.is_over:
                    return self
            else:
                self.workers[who].step()
        raise AssertionError(f"hangs with {self.queue.remaining} points left")


def squared(rank, index, state):
    return DONE, index, {"value": index * index}, 0.01


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 60),
    ranks=st.integers(1, 6),
    faults=st.dictionaries(st.integers(0, 59), st.sampled_from(["always", "odd", "kills once"]), max_size=8),
    chance=st.randoms(use_true_random=False),
)
def test_every_point_ends_done_or_failed_whatever_happens(count, ranks, faults, chance):
    killed = set()

    def evaluate(rank, index, state):
        fault = faults.get(index)
        if fault == "always" or (fault == "odd" and rank % 2 and ranks > 1):
            return FAILED, index, "no"
        if fault == "kills once" and index not in killed and len(survey.network.dead_ranks) < ranks - 1:
            killed.add(index)
            survey.network.dead_ranks.add(rank)
        return squared(rank, index, state)

    survey = Survey(count, ranks, evaluate)
    survey.run(chance)
    recorder = survey.recorder
    assert sorted([*recorder.values, *recorder.failures]) == list(range(count))
    assert all(reading == {"value": index * index} for index, reading in recorder.values.items())
    assert {i for i, fault in faults.items() if fault == "always" and i < count} <= set(recorder.failures)
    assert all(survey.queue.failures.get(i, 0) > 1 for i in recorder.failures)


def test_a_stuck_worker_is_reported_once_and_works_again_when_it_answers(rng):
    sleeping = {}

    def evaluate(rank, index, state):
        return squared(rank, index, state)

    def happens(survey):
        if survey.now < 20 and 1 in survey.workers:
            sleeping[1] = survey.workers.pop(1)
        elif survey.now >= 20 and sleeping:
            survey.workers[1] = sleeping.pop(1)

    survey = Survey(3000, 2, evaluate, point_timeout=5.0)
    survey.workers[1].listen()
    survey.dispatcher.step()
    survey.run(rng, happens)
    stuck = [note for note in survey.recorder.notes if "has not answered for 5 s" in note]
    assert len(stuck) == 1 and "rank 1 on node1" in stuck[0]
    assert "rank 1 on node1 answers again" in survey.recorder.notes
    assert survey.dispatcher.stuck_ranks == [] and len(survey.recorder.values) == 3000


def test_without_a_timeout_a_worker_is_stuck_after_20_times_the_slowest_point_and_a_minute(rng):
    def evaluate(rank, index, state):
        return DONE, index, {"value": index * index}, 4.0  # seconds, of which 80 follow

    survey = Survey(30, 2, evaluate, by_pace=True)
    assert survey.dispatcher.timeout() is None  # nothing is known of the cost yet
    survey.workers[1].listen()
    survey.dispatcher.step()
    survey.workers.pop(1)  # which never answers
    survey.run(rng)
    assert survey.dispatcher.timeout() == 80.0 < survey.now < 100
    assert [n for n in survey.recorder.notes if "rank 1 on node1 has not answered for 80 s" in n]
    assert len(survey.recorder.values) == 30
    quick = Survey(30, 2, squared, by_pace=True)
    quick.run(rng)
    assert quick.dispatcher.timeout() == 60.0
    alone = Survey(3, 1, squared, by_pace=True)
    alone.run(rng)
    assert alone.dispatcher.timeout() is None  # nobody else could take the point over


def test_each_point_has_the_time_that_those_like_it_have_taken(rng):
    class Queue(WorkQueue):
        def slowest_like(self, index):
            return None if index < 2 else 4.0

    survey = Survey(6, 3, squared, by_pace=True)
    survey.queue = survey.dispatcher.queue = Queue(range(6), 3)
    for rank in (1, 2):
        survey.workers[rank].listen()
        survey.dispatcher.step()
        del survey.workers[rank]  # which never answers: rank 1 at point 0, and rank 2 at point 2

    def happens(survey):
        if survey.now > 200 and "rank 1 on" not in str(survey.recorder.notes):
            survey.network.dead_ranks.add(1)

    survey.run(rng, happens)
    assert [note.partition(";")[0] for note in survey.recorder.notes] == [
        "rank 2 on node2 has not answered for 80 s at point 2",
        "rank 1 on node1 has died",
    ]


def test_when_all_workers_are_stuck_the_dispatcher_gives_up_after_a_while(rng):
    survey = Survey(10, 2, squared, point_timeout=5.0)
    survey.workers[1].listen()
    survey.dispatcher.step()
    survey.workers.clear()
    survey.run(rng)
    assert survey.dispatcher.stuck_ranks == [1, 2] and 15 < survey.now < 30


def test_ranks_that_are_gone_since_an_earlier_survey_are_not_waited_for():
    recorder = FakeRecorder()
    dispatcher = Dispatcher(
        Network(3).end(0), WorkQueue(range(9), 2), [(1,), (2,)], recorder, stop=Stop(), by_pace=True, gone={1, 2}
    )
    dispatcher.step()
    assert dispatcher.is_over and not recorder.notes


def test_a_point_at_which_every_worker_gets_stuck_comes_last_and_is_given_up_after_three(rng):
    def happens(survey):
        for rank, worker in list(survey.workers.items()):
            worker.listen()
            if worker.pending and worker.pending[0][0] == 7:
                del survey.workers[rank]  # never answers again
                lost.append((rank, len(survey.recorder.values)))

    lost = []
    survey = Survey(40, 5, squared, point_timeout=5.0)
    survey.run(rng, happens)
    assert len({rank for rank, _ in lost}) == 3 and [done for _, done in lost[1:]] == [39, 39]
    assert sorted(survey.recorder.values) == [i for i in range(40) if i != 7]
    failure = survey.recorder.failures[7]
    assert survey.dispatcher.stuck_ranks == sorted(rank for rank, _ in lost)
    assert "3 ranks were lost at this point, the last one: rank " in failure.text
    assert survey.queue.status[7] == POINT_FAILED


def test_all_ranks_of_a_team_count_as_stuck_where_its_leader_does_not_answer():
    recorder, network = FakeRecorder(), Network(4)
    dispatcher = Dispatcher(
        network.end(0), WorkQueue(range(9), 2), [(0, 1), (2, 3)], recorder, stop=Stop(), point_timeout=5.0,
        clock=lambda: now,
    )  # fmt: skip
    now = 1.0
    Worker(network.end(2), squared, stop=Stop(), host="node1")
    dispatcher.step()
    now = 7.0
    dispatcher.step()
    assert dispatcher.stuck_ranks == [2, 3]


def test_a_stop_ends_with_the_points_in_progress(rng):
    stop = Stop()
    survey = Survey(1000, 3, squared, stop=stop)
    survey.run(rng, lambda survey: stop.request("somebody") if survey.now > 3 else None)
    assert 10 < len(survey.recorder.values) < 1000
    assert all(worker.halted and not worker.pending for worker in survey.workers.values())


def test_a_worker_that_is_requested_to_stop_reports_it_to_the_dispatcher(rng):
    survey = Survey(1000, 3, squared)
    survey.run(rng, lambda survey: survey.workers[2].stop.request("SIGUSR1") if survey.now > 2 else None)
    assert survey.stop.reason == "SIGUSR1 on rank 2" and len(survey.recorder.values) < 1000


def test_the_state_of_an_interrupted_point_is_saved_and_stops_the_survey(rng):
    def evaluate(rank, index, state):
        return (INTERRUPTED, index, {"step": 3}) if index == 5 else squared(rank, index, state)

    survey = Survey(20, 2, evaluate).run(rng)
    assert survey.recorder.states == {5: {"step": 3}} and survey.stop.reason == "a point was left on rank 1"


def test_no_point_is_begun_that_cannot_end_in_time(rng):
    class Clocked(Stop):
        def seconds_left(self):
            return 10.0 - survey.now

    def evaluate(rank, index, state):
        begun.append(survey.now)
        return DONE, index, {}, 2.0

    begun = []
    survey = Survey(5000, 2, evaluate, stop=Clocked())
    survey.run(rng)
    assert max(begun) < 8.2 and survey.stop.reason == "the time limit"


def test_a_broken_team_says_so_and_its_points_go_elsewhere(rng):
    def evaluate(rank, index, state):
        if rank == 2:
            raise WorkerLost("rank 7 has died")
        return squared(rank, index, state)

    survey = Survey(30, 2, evaluate).run(rng)
    assert len(survey.recorder.values) == 30 and survey.workers[2].broken
    assert any(note.startswith("rank 7 has died; points dispatched again: ") for note in survey.recorder.notes)


def test_where_no_worker_can_evaluate_any_more_the_survey_ends_with_the_rest_to_do(rng):
    def evaluate(rank, index, state):
        if len(survey.recorder.values) >= 5:
            raise WorkerLost(f"rank {rank} has lost its GPU")
        return squared(rank, index, state)

    survey = Survey(30, 2, evaluate)
    survey.run(rng)
    assert 5 <= len(survey.recorder.values) < 30 and not survey.recorder.failures
    assert survey.dispatcher.is_over and all(survey.workers[rank].broken for rank in (1, 2))


def test_a_point_is_not_to_blame_for_what_was_broken_before(rng):
    def evaluate(rank, index, state):
        if rank < 4:
            raise WorkerLost(f"rank {rank} has lost its GPU", at_point=False)
        return squared(rank, index, state)

    survey = Survey(1, 4, evaluate).run(rng)
    assert survey.recorder.values == {0: {"value": 0}} and not survey.recorder.failures


def test_answers_to_another_survey_are_not_taken_for_answers_to_this_one(rng):
    survey = Survey(4, 1, squared)
    survey.network.boxes[0].append((1, (7, DONE, 0, {"value": "of another survey"}, 1.0)))
    survey.network.boxes[1].append((0, (7, END, "complete")))
    survey.run(rng)
    assert survey.recorder.values[0] == {"value": 0} and survey.workers[1].end is None


def test_notes_name_their_rank_and_host(rng):
    survey = Survey(1, 1, squared)
    survey.workers[1].send(NOTE, "batches of 2 from here on")
    survey.run(rng)
    assert "rank 1 on node1: batches of 2 from here on" in survey.recorder.notes


def test_rank_0_exchanges_messages_with_its_own_worker_within_the_process():
    network = Network(2)
    channel = LocalChannel(network.end(0))
    end = channel.worker_end()
    channel.send(("to myself",), 0)
    channel.send(("to rank 1",), 1)
    assert end.receive() == (0, ("to myself",)) and end.receive() is None
    assert network.boxes[1] == deque([(0, ("to rank 1",))])
    end.send(("back",), 0)
    network.boxes[0].append((1, ("hello",)))
    assert [channel.receive(), channel.receive(), channel.receive()] == [(0, ("back",)), (1, ("hello",)), None]
    network.dead_ranks.add(1)
    assert channel.dead() == {1} and end.dead() == frozenset()
    assert LocalChannel().receive() is None and LocalChannel().dead() == frozenset()


def test_pauses_grow_while_nothing_arrives_and_shrink_when_something_does():
    backoff = PollBackoff(1e-6, 8e-6)
    lengths = []
    for moved in (False, False, False, False, False, True, False):
        lengths.append(backoff.length)
        backoff.after(moved)
    assert lengths == [1e-6, 2e-6, 4e-6, 8e-6, 8e-6, 8e-6, 1e-6]


def test_a_million_points_are_dispatched_without_growing():
    queue = queue_of(1_000_000, 1000)
    queue.evaluated, queue.seconds = 1, 1.0
    counts = np.zeros(1000, dtype=int)
    for round_ in range(3):
        for worker in range(1000):
            for index in queue.dispatch(worker, 0.0):
                counts[worker] += 1
                queue.complete(worker, index, 1.0, float(round_))
    assert (counts == 3).all() and queue.remaining == 997_000


@pytest.fixture
def rng():
    import random

    return random.Random(1)
