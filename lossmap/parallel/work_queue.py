"""The bookkeeping of a survey: which points are to do, in progress, read and broken. Knows neither ranks nor messages.

A *place* is whoever measures points: a team of ranks. Every place owns a run of the points' order, so that its next
point is a neighbour of its last; who has finished takes the back half of the longest run that is left. A place holds
few points at a time: one where points are slow, some more where the way to rank 0 would count, fewer towards the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TODO, READ, BROKEN = 0, 1, 2  # what is known of a point, as in the file's status
DEATHS = 3  # a point during which so many ranks died is not dealt again
MOST = 64  # points that one place may hold
RECENT = 256  # points by whose slowest one the cost of the next is judged
AHEAD = 0.05  # seconds of work that a place should hold, to bridge the way to rank 0


@dataclass
class _Run:
    """The part of the order that a place will measure: from `low` to `high`, its end not included."""

    low: int
    high: int


class WorkQueue:
    """Which points are to do, in progress, read and broken. Knows neither ranks nor messages.

    order    the points to do, such that neighbours in it are neighbours on the grid
    places   how many places there may be
    """

    def __init__(self, order: Sequence[int] | np.ndarray, places: int) -> None:
        self.order = np.asarray(order, dtype=np.int64)
        total = self.order.size
        self.runs = [_Run(total * i // places, total * (i + 1) // places) for i in range(places)]
        self.lengths = np.array([run.high - run.low for run in self.runs])
        self.undealt = total
        self.total = total
        self.state: dict[int, int] = {}  # of the points that are read or broken
        self.again: deque[tuple[int, int | None]] = deque()  # points to deal again, and the place to avoid
        self.held: list[dict[int, float]] = [{} for _ in range(places)]  # in progress: when dealt
        self.heard = [0.0] * places  # when a place last answered
        self.failures: dict[int, int] = {}
        self.deaths: dict[int, int] = {}
        self.alive: set[int] = set()  # places that take points
        self.seconds = 0.0  # of all points measured
        self.measured = 0
        self.slowest = [0.0, 0.0]  # of the last RECENT points or fewer, and of as many before them

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.state) == self.total

    @property
    def left(self) -> int:
        """The points that are neither read nor broken."""
        return self.total - len(self.state)

    def cost(self) -> float:
        """Mean seconds of a point so far; 0 at the start."""
        return self.seconds / self.measured if self.measured else 0.0

    def worst(self) -> float:
        """Seconds of the slowest of the points measured lately."""
        return max(self.slowest)

    def wants(self, place: int) -> int:
        """How many more points the place should be given now."""
        cost = self.cost()
        depth = 2 if not self.measured else 1 if cost > 10 * AHEAD else min(MOST, 2 + int(AHEAD / max(cost, 1e-6)))
        share = (self.undealt + len(self.again)) / max(1, len(self.alive))
        if self.measured:  # slow points must not wait behind slow points while other places run out
            share *= cost / max(self.worst(), 1e-9)
        return min(depth, 1 + int(share / 2)) - len(self.held[place])

    def deal(self, place: int, now: float) -> list[int]:
        """Points for a place that asks, none where there is nothing for it."""
        dealt: list[int] = []
        for _ in range(self.wants(place)):
            index = self._again(place)
            if index is None:
                index = self._next(place)
            if index is None:
                break
            self.held[place][index] = now
            dealt.append(index)
        return dealt

    def _again(self, place: int) -> int | None:
        for _ in range(len(self.again)):
            index, avoid = self.again.popleft()
            if index in self.state:
                continue
            if (avoid == place and self.alive - {place}) or index in self.held[place]:
                self.again.append((index, avoid))
                continue
            return index
        return None

    def _next(self, place: int) -> int | None:
        run = self.runs[place]
        if run.low == run.high:
            longest = int(self.lengths.argmax())
            other = self.runs[longest]
            middle = (other.low + other.high) // 2
            run.low, run.high, other.high = middle, other.high, middle
            self.lengths[longest] = other.high - other.low
            if run.low == run.high:
                return None
        index = int(self.order[run.low])
        run.low += 1
        self.undealt -= 1
        self.lengths[place] = run.high - run.low
        return index

    def done(self, place: int, index: int, seconds: float, now: float) -> bool:
        """A reading has come; whether it counts: not where the point had been settled before."""
        self._answered(place, index, now)
        self.seconds += seconds
        self.measured += 1
        if self.measured % RECENT == 0:
            self.slowest = [0.0, self.slowest[0]]
        self.slowest[0] = max(self.slowest[0], seconds)
        return self._settle(index, READ)

    def failed(self, place: int, index: int, now: float) -> bool:
        """The point raised; whether it is broken for good. The first time it is dealt again, elsewhere."""
        self._answered(place, index, now)
        if index in self.state:
            return False
        self.failures[index] = self.failures.get(index, 0) + 1
        if self.failures[index] > 1:
            return self._settle(index, BROKEN)
        self.again.append((index, place))
        return False

    def lost(self, place: int) -> tuple[list[int], int | None]:
        """A place is gone: the points that are dealt again, and one that is broken since it killed too often."""
        self.alive.discard(place)
        held, self.held[place] = list(self.held[place]), {}
        held = [index for index in held if index not in self.state]
        broken = None
        if held:
            running = held[0]
            self.deaths[running] = self.deaths.get(running, 0) + 1
            if self.deaths[running] >= DEATHS:
                broken = running
                self._settle(running, BROKEN)
        again = [index for index in held if index != broken]
        self.again.extendleft((index, place) for index in reversed(again))
        return again, broken

    def overdue(self, now: float, limit: float) -> list[tuple[int, int]]:
        """Places that have been at one point for longer than the limit, with that point."""
        late = []
        for place in self.alive:
            index = next(iter(self.held[place]), None)
            if index is not None and now - max(self.held[place][index], self.heard[place]) > limit:
                late.append((place, index))
        return late

    def stuck(self, place: int) -> list[int]:
        """Deal again what a stuck place holds; it is given nothing more until it answers."""
        self.alive.discard(place)
        held, self.held[place] = list(self.held[place]), {}
        again = [index for index in held if index not in self.state]
        self.again.extendleft((index, place) for index in reversed(again))
        return again

    def _answered(self, place: int, index: int, now: float) -> None:
        self.held[place].pop(index, None)
        self.heard[place] = now
        self.alive.add(place)

    def _settle(self, index: int, state: int) -> bool:
        if index in self.state:
            return False
        self.state[index] = state
        return True
