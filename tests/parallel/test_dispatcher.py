"""The dealing, without MPI: the bookkeeping, and dealer and places on a wire of lists, with a clock of our own."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmap.parallel.dispatcher import (
    DONE,
    END,
    FAILED,
    NOTE,
    UNFINISHED,
    Dispatcher,
    LocalChannel,
    PollBackoff,
    TeamBroken,
    Worker,
)
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.work_queue import WorkQueue


def dealing_of(count, places, present=None):
    dealing = WorkQueue(range(count), places)
    dealing.alive.update(range(places) if present is None else present)
    return dealing


def test_each_place_gets_a_run_of_neighbours():
    dealing = dealing_of(100, 4)
    first = [dealing.deal(place, 0.0) for place in range(4)]
    assert first == [[0, 1], [25, 26], [50, 51], [75, 76]]
    assert dealing.done(2, 50, 1.0, 1.0) and dealing.deal(2, 1.0) == []
    assert dealing.done(2, 51, 1.0, 2.0) and dealing.deal(2, 2.0) == [52]


def test_who_has_finished_takes_the_back_half_of_the_longest_run():
    dealing = dealing_of(40, 2)
    mine = []
    while len(mine) < 20:
        for index in dealing.deal(0, 0.0):
            mine.append(index)
            dealing.done(0, index, 1.0, 0.0)
    assert mine[:20] == list(range(20))
    assert dealing.deal(0, 0.0) == [30]


def test_places_hold_more_where_points_are_quick_and_fewer_towards_the_end():
    dealing = dealing_of(10_000, 2)
    assert len(dealing.deal(0, 0.0)) == 2
    dealing.done(0, 0, 0.001, 0.0)
    assert len(dealing.held[0]) + len(dealing.deal(0, 0.0)) == 52
    dealing.undealt = 8
    assert dealing.wants(1) == 3
    dealing.undealt = 0
    assert dealing.wants(1) == 1
    dealing.undealt = 60
    assert dealing.wants(1) == 16
    dealing.slowest = [0.01, 0.0]
    assert dealing.wants(1) == 2
    slow = dealing_of(10_000, 2)
    slow.done(0, 0, 3.0, 3.0)
    assert slow.wants(0) == 1


def test_a_failed_point_goes_elsewhere_and_the_second_failure_counts():
    dealing = dealing_of(2, 2)
    assert (dealing.deal(0, 0.0), dealing.deal(1, 0.0)) == ([0], [1])
    assert not dealing.failed(0, 0, 1.0)
    assert dealing.deal(0, 1.0) == []
    dealing.done(1, 1, 1.0, 1.0)
    assert dealing.deal(1, 1.0) == [0]
    assert dealing.failed(1, 0, 2.0)
    assert dealing.finished and dealing.left == 0


def test_a_failed_point_is_tried_again_by_the_same_place_where_there_is_no_other():
    dealing = dealing_of(1, 2, present=[0])
    dealing.deal(0, 0.0)
    dealing.failed(0, 0, 1.0)
    assert dealing.deal(0, 1.0) == [0]


def test_what_a_lost_place_held_is_dealt_again_first():
    dealing = dealing_of(100, 2)
    held = dealing.deal(0, 0.0)
    assert dealing.lost(0) == (held, None)
    dealing.measured, dealing.seconds = 1, 0.01
    assert dealing.deal(1, 0.0)[:2] == held


def test_a_point_that_killed_three_times_is_broken():
    dealing = dealing_of(1, 4)
    for place in range(3):
        assert dealing.deal(place, 0.0) == [0]
        again, broken = dealing.lost(place)
    assert (again, broken) == ([], 0) and dealing.finished


def test_a_late_answer_counts_once():
    dealing = dealing_of(2, 2)
    dealing.deal(0, 0.0)
    dealing.deal(1, 0.0)
    assert dealing.overdue(4.0, 5.0) == []
    dealing.done(1, 1, 1.0, 3.0)
    assert dealing.overdue(6.0, 5.0) == [(0, 0)]
    assert dealing.stuck(0) == [0] and dealing.deal(1, 6.0) == [0]
    assert dealing.done(0, 0, 7.0, 7.0)
    assert not dealing.done(1, 0, 1.0, 8.0)
    assert not dealing.failed(1, 0, 9.0)


class Wire:
    """Ranks, each with a box of messages; dead ranks neither send nor receive."""

    def __init__(self, ranks):
        self.boxes = [deque() for _ in range(ranks)]
        self.gone = set()

    def end(self, rank):
        wire = self

        class Link:
            def send(self, message, to):
                if rank not in wire.gone:
                    wire.boxes[to].append((rank, message))

            def receive(self):
                return wire.boxes[rank].popleft() if wire.boxes[rank] else None

            def dead(self):
                return frozenset(wire.gone)

        return Link()


class Book:
    def __init__(self):
        self.values, self.failures, self.states, self.notes = {}, {}, {}, []

    def read(self, index, reading, seconds, rank):
        assert index not in self.values, "read twice"
        self.values[index] = reading

    def broke(self, lost, final):
        if final:
            assert lost.index not in self.values
            self.failures[lost.index] = lost

    def left(self, index, state):
        self.states[index] = state

    def note(self, text):
        self.notes.append(text)

    def moved(self, dealing):
        pass


class Farm:
    """A dealer at rank 0 and places at the others, stepped in an order that chance chooses."""

    def __init__(self, count, ranks, attempt, patience=None, stop=None):
        self.now = 0.0
        self.wire, self.book, self.stop = Wire(ranks + 1), Book(), stop or Stop()
        self.dealing = WorkQueue(range(count), ranks)
        self.dealer = Dispatcher(
            self.wire.end(0),
            self.dealing,
            [(rank,) for rank in range(1, ranks + 1)],
            self.book,
            stop=self.stop,
            patience=patience,
            clock=lambda: self.now,
        )
        self.places = {
            rank: Worker(
                self.wire.end(rank), lambda i, s, rank=rank: attempt(rank, i, s), stop=Stop(), host=f"node{rank}"
            )
            for rank in range(1, ranks + 1)
        }

    def run(self, chance, happens=lambda farm: None, limit=100_000):
        for _ in range(limit):
            self.now += 0.01
            happens(self)
            who = chance.choice([0, *sorted(set(self.places) - self.wire.gone)])
            if who == 0:
                self.dealer.step()
                if self.dealer.over:
                    return self
            else:
                self.places[who].step()
        raise AssertionError(f"hangs with {self.dealing.left} points left")


def squared(rank, index, state):
    return DONE, index, {"value": index * index}, 0.01


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 60),
    ranks=st.integers(1, 6),
    faults=st.dictionaries(st.integers(0, 59), st.sampled_from(["always", "odd", "kills once"]), max_size=8),
    chance=st.randoms(use_true_random=False),
)
def test_every_point_ends_read_or_failed_whatever_happens(count, ranks, faults, chance):
    killed = set()

    def attempt(rank, index, state):
        fault = faults.get(index)
        if fault == "always" or (fault == "odd" and rank % 2 and ranks > 1):
            return FAILED, index, "no"
        if fault == "kills once" and index not in killed and len(farm.wire.gone) < ranks - 1:
            killed.add(index)
            farm.wire.gone.add(rank)
        return squared(rank, index, state)

    farm = Farm(count, ranks, attempt)
    farm.run(chance)
    book = farm.book
    assert sorted([*book.values, *book.failures]) == list(range(count))
    assert all(reading == {"value": index * index} for index, reading in book.values.items())
    assert {i for i, fault in faults.items() if fault == "always" and i < count} <= set(book.failures)
    assert all(farm.dealing.failures.get(i, 0) > 1 for i in book.failures)


def test_a_stuck_place_is_reported_once_and_works_again_when_it_answers(rng):
    sleeping = {}

    def attempt(rank, index, state):
        return squared(rank, index, state)

    def happens(farm):
        if farm.now < 20 and 1 in farm.places:
            sleeping[1] = farm.places.pop(1)
        elif farm.now >= 20 and sleeping:
            farm.places[1] = sleeping.pop(1)

    farm = Farm(3000, 2, attempt, patience=5.0)
    farm.places[1].listen()
    farm.dealer.step()
    farm.run(rng, happens)
    stuck = [note for note in farm.book.notes if "has not answered for 5 s" in note]
    assert len(stuck) == 1 and "rank 1 on node1" in stuck[0]
    assert "rank 1 on node1 answers again" in farm.book.notes
    assert farm.dealer.stuck == [] and len(farm.book.values) == 3000


def test_when_all_places_are_stuck_the_dealer_gives_up_after_a_while(rng):
    farm = Farm(10, 2, squared, patience=5.0)
    farm.places[1].listen()
    farm.dealer.step()
    farm.places.clear()
    farm.run(rng)
    assert farm.dealer.stuck == [1, 2] and 15 < farm.now < 30


def test_a_stop_ends_with_the_points_in_progress(rng):
    stop = Stop()
    farm = Farm(1000, 3, squared, stop=stop)
    farm.run(rng, lambda farm: stop.ask("somebody") if farm.now > 3 else None)
    assert 10 < len(farm.book.values) < 1000
    assert all(place.halted and not place.queue for place in farm.places.values())


def test_a_place_that_is_asked_to_stop_asks_the_dealer(rng):
    farm = Farm(1000, 3, squared)
    farm.run(rng, lambda farm: farm.places[2].stop.ask("SIGUSR1") if farm.now > 2 else None)
    assert farm.stop.asked == "SIGUSR1 on rank 2" and len(farm.book.values) < 1000


def test_the_state_of_a_point_that_is_left_is_kept_and_stops_the_survey(rng):
    def attempt(rank, index, state):
        return (UNFINISHED, index, {"step": 3}) if index == 5 else squared(rank, index, state)

    farm = Farm(20, 2, attempt).run(rng)
    assert farm.book.states == {5: {"step": 3}} and farm.stop.asked == "a point was left on rank 1"


def test_no_point_is_begun_that_cannot_end_in_time(rng):
    class Clocked(Stop):
        def left(self):
            return 10.0 - farm.now

    def attempt(rank, index, state):
        begun.append(farm.now)
        return DONE, index, {}, 2.0

    begun = []
    farm = Farm(5000, 2, attempt, stop=Clocked())
    farm.run(rng)
    assert max(begun) < 8.2 and farm.stop.asked == "the time limit"


def test_a_broken_team_says_so_and_its_points_go_elsewhere(rng):
    def attempt(rank, index, state):
        if rank == 2:
            raise TeamBroken("rank 7 has died")
        return squared(rank, index, state)

    farm = Farm(30, 2, attempt).run(rng)
    assert len(farm.book.values) == 30 and farm.places[2].broken
    assert any(note.startswith("rank 7 has died; points dealt again: ") for note in farm.book.notes)


def test_answers_to_another_survey_are_not_taken_for_answers_to_this_one(rng):
    farm = Farm(4, 1, squared)
    farm.wire.boxes[0].append((1, (7, DONE, 0, {"value": "of another survey"}, 1.0)))
    farm.wire.boxes[1].append((0, (7, END, "complete")))
    farm.run(rng)
    assert farm.book.values[0] == {"value": 0} and farm.places[1].end is None


def test_notes_name_their_rank_and_host(rng):
    farm = Farm(1, 1, squared)
    farm.places[1].tell(NOTE, "batches of 2 from here on")
    farm.run(rng)
    assert "rank 1 on node1: batches of 2 from here on" in farm.book.notes


def test_rank_0_speaks_with_its_own_place_within_the_process():
    wire = Wire(2)
    loop = LocalChannel(wire.end(0))
    end = loop.end()
    loop.send(("to myself",), 0)
    loop.send(("to rank 1",), 1)
    assert end.receive() == (0, ("to myself",)) and end.receive() is None
    assert wire.boxes[1] == deque([(0, ("to rank 1",))])
    end.send(("back",), 0)
    wire.boxes[0].append((1, ("hello",)))
    assert [loop.receive(), loop.receive(), loop.receive()] == [(0, ("back",)), (1, ("hello",)), None]
    wire.gone.add(1)
    assert loop.dead() == {1} and end.dead() == frozenset()
    assert LocalChannel().receive() is None and LocalChannel().dead() == frozenset()


def test_naps_grow_while_nothing_comes_and_shrink_when_something_does():
    nap = PollBackoff(1e-6, 8e-6)
    lengths = []
    for moved in (False, False, False, False, False, True, False):
        lengths.append(nap.length)
        nap.after(moved)
    assert lengths == [1e-6, 2e-6, 4e-6, 8e-6, 8e-6, 8e-6, 1e-6]


def test_a_million_points_are_dealt_without_growing():
    dealing = dealing_of(1_000_000, 1000)
    dealing.measured, dealing.seconds = 1, 1.0
    counts = np.zeros(1000, dtype=int)
    for round_ in range(3):
        for place in range(1000):
            for index in dealing.deal(place, 0.0):
                counts[place] += 1
                dealing.done(place, index, 1.0, float(round_))
    assert (counts == 3).all() and dealing.left == 997_000


@pytest.fixture
def rng():
    import random

    return random.Random(1)
