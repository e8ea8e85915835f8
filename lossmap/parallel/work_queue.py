"""The accounts of a survey: which points are to do, in progress, done and failed. Knows neither ranks nor messages.

Every worker owns a segment of the points' order, so that its next point is a neighbour of its last; a worker that has
finished takes the back half of the longest segment that is left (work stealing). A worker holds few points at a time:
one where points are slow, some more where the way to rank 0 would count, fewer towards the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

POINT_DONE, POINT_FAILED = 1, 2  # as in the file's status
MAX_DEATHS_PER_POINT = 3  # a point during which so many ranks died, or got stuck, is not dispatched again
MAX_POINTS_PER_WORKER = 64
RECENT_POINTS = 256  # points by whose slowest one the cost of the next is judged
PREFETCH_SECONDS = 0.05  # work that a worker should hold, to bridge the way to rank 0


@dataclass
class _Segment:
    """The part of the order that a worker will evaluate: from `low` to `high`, its end not included."""

    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low


class WorkQueue:
    """Which points are to do, in progress, done and failed.

    order    flat indices of the points to do, such that neighbours in it are neighbours on the grid
    workers  how many workers there may be; they are numbered from 0

    is_uniform  whether all points cost much the same, as far as anybody knows
    """

    is_uniform = True

    def __init__(self, order: Sequence[int] | np.ndarray, workers: int) -> None:
        self.order = np.asarray(order, dtype=np.int64)
        self.total = self.order.size
        self.segments = [_Segment(self.total * i // workers, self.total * (i + 1) // workers) for i in range(workers)]
        # beside the segments, since the longest of thousands is looked for at every theft
        self.lengths = np.array([len(segment) for segment in self.segments])
        self.unassigned = self.total  # points in the segments
        self.status: dict[int, int] = {}  # of the points that are done or failed
        self.requeued: deque[tuple[int, int]] = deque()  # points to dispatch again, and the worker to avoid
        # the same for points at which a worker is stuck: they come last, since the next worker may get stuck there too
        self.postponed: deque[tuple[int, int]] = deque()
        self.in_progress: list[dict[int, float]] = [{} for _ in range(workers)]  # index -> when dispatched, in order
        self.last_answer = [0.0] * workers
        self.failures: dict[int, int] = {}  # index -> how often it raised
        self.deaths: dict[int, int] = {}  # index -> how many workers died, or got stuck, during it
        self.active: set[int] = set()  # workers that take points
        self.seconds = 0.0  # of all points evaluated
        self.evaluated = 0
        self.max_seconds = 0.0  # of the slowest point evaluated
        # two windows, so that one slow point long ago does not shorten the survey: the last RECENT_POINTS or fewer,
        # and as many before them
        self.slowest = [0.0, 0.0]
        self.grown = False  # set where points were added since the last look: workers without work may have some now

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.status) == self.total

    @property
    def remaining(self) -> int:
        """The number of points that are neither done nor failed."""
        return self.total - len(self.status)

    def mean_seconds(self) -> float:
        """Mean seconds of a point so far; 0 at the start."""
        return self.seconds / self.evaluated if self.evaluated else 0.0

    def recent_max_seconds(self) -> float:
        """Seconds of the slowest of the recent points; 0 at the start."""
        return max(self.slowest)

    def free_slots(self, worker: int) -> int:
        """How many more points the worker should be given now; may be negative."""
        mean = self.mean_seconds()
        if not self.evaluated:
            depth = 2  # nothing is known of the cost yet: one to evaluate, one to bridge the way
        elif mean > 10 * PREFETCH_SECONDS:
            depth = 1
        else:
            depth = min(MAX_POINTS_PER_WORKER, 2 + int(PREFETCH_SECONDS / max(mean, 1e-6)))
        share = (self.unassigned + len(self.requeued)) / max(1, len(self.active))
        if self.evaluated:  # slow points must not wait behind slow points while other workers run out
            share *= mean / max(self.recent_max_seconds(), 1e-9)
        return min(depth, 1 + int(share / 2)) - len(self.in_progress[worker])

    def dispatch(self, worker: int, now: float) -> list[int]:
        """Flat indices of points for a worker to evaluate next; empty where there are none for it.

        now  seconds, on any clock that the other calls use too
        """
        indices: list[int] = []
        for _ in range(self.free_slots(worker)):
            index = self._take_requeued(worker, self.requeued)
            if index is None:
                index = self._take_next(worker)
            if index is None and not self.in_progress[worker]:  # nothing must wait behind such a point
                index = self._take_requeued(worker, self.postponed)
            if index is None:
                break
            self.in_progress[worker][index] = now
            indices.append(index)
        return indices

    def _take_requeued(self, worker: int, waiting: deque[tuple[int, int]]) -> int | None:
        """A point that failed, or was lost with its worker; elsewhere than where that happened, if possible."""
        for _ in range(len(waiting)):
            index, avoid = waiting.popleft()
            if index in self.status:  # a late answer has come meanwhile
                continue
            if (avoid == worker and self.active - {worker}) or index in self.in_progress[worker]:
                waiting.append((index, avoid))
                continue
            return index
        return None

    def _take_next(self, worker: int) -> int | None:
        """The next point of the worker's own segment; with none left there, of half of the longest one."""
        segment = self.segments[worker]
        if not len(segment):
            longest = int(self.lengths.argmax())
            other = self.segments[longest]
            # the back half: the owner goes on at the front, beside its last point
            middle = (other.low + other.high) // 2
            segment.low, segment.high, other.high = middle, other.high, middle
            self.lengths[longest] = len(other)
            if not len(segment):
                return None
        index = int(self.order[segment.low])
        segment.low += 1
        self.unassigned -= 1
        self.lengths[worker] = len(segment)
        return index

    def complete(self, worker: int, index: int, seconds: float, now: float) -> bool:
        """A point was evaluated in so many seconds; whether it counts: not where it was settled before."""
        self._answered(worker, index, now)
        self.seconds += seconds
        self.evaluated += 1
        self.max_seconds = max(self.max_seconds, seconds)
        if self.evaluated % RECENT_POINTS == 0:
            self.slowest = [0.0, self.slowest[0]]
        self.slowest[0] = max(self.slowest[0], seconds)
        return self._settle(index, POINT_DONE)

    def fail(self, worker: int, index: int, now: float) -> bool:
        """A point raised; whether it has failed for good. After the first time it is tried again, elsewhere."""
        self._answered(worker, index, now)
        if index in self.status:
            return False
        self.failures[index] = self.failures.get(index, 0) + 1
        if self.failures[index] > 1:
            return self._settle(index, POINT_FAILED)
        self.requeued.append((index, worker))
        return False

    def remove_worker(self, worker: int, at_point: bool = True) -> tuple[list[int], int | None]:
        """A worker has died: the points that are dispatched again, and one that is not, since it killed too often.

        at_point  whether the point that it was at may be why
        """
        pending = self._withdraw(worker)
        fatal = None
        if pending and at_point:
            current = pending[0]  # a worker evaluates its points in order: this one was running
            if self._is_fatal(current):
                fatal = current
                pending = pending[1:]
        self._requeue(pending, worker)
        return pending, fatal

    def slowest_like(self, index: int) -> float | None:
        """Seconds of the slowest point so far of those that cost what this one does; None where there is none yet."""
        return self.max_seconds if self.evaluated else None

    def where(self, index: int) -> str:
        """At what a worker is, for sentences."""
        return f"at point {index}"

    def overdue(self, now: float, limit: Callable[[int], float | None]) -> list[tuple[int, int, float]]:
        """(worker, index, limit) where a worker has been at a point for longer than its limit, in seconds if any."""
        late = []
        for worker in self.active:
            index = next(iter(self.in_progress[worker]), None)
            if index is None:
                continue
            seconds = limit(index)
            # the point began when it was dispatched or, where others were before it, at the last answer
            began = max(self.in_progress[worker][index], self.last_answer[worker])
            if seconds is not None and now - began > seconds:
                late.append((worker, index, seconds))
        return late

    def suspend_worker(self, worker: int, index: int) -> bool:
        """A worker is stuck at a point: it gets no more until it answers, and its points are dispatched again.

        The point at which it is stuck comes after all others. Returns whether it is not dispatched again, since it has
        cost too many workers.
        """
        pending = self._withdraw(worker)
        self._requeue([i for i in pending if i != index], worker)
        if index not in pending:  # another worker has settled it meanwhile
            return False
        if self._is_fatal(index):
            return True
        self.postponed.append((index, worker))
        return False

    def _is_fatal(self, index: int) -> bool:
        """Count a worker that was lost at a point; whether the point has failed by that."""
        self.deaths[index] = self.deaths.get(index, 0) + 1
        return self.deaths[index] >= MAX_DEATHS_PER_POINT and self._settle(index, POINT_FAILED)

    def _withdraw(self, worker: int) -> list[int]:
        """Take all points from a worker; returns those that are not settled."""
        self.active.discard(worker)
        held, self.in_progress[worker] = self.in_progress[worker], {}
        return [index for index in held if index not in self.status]

    def _requeue(self, indices: Sequence[int], avoid: int) -> None:
        # at the front: whatever waits there is late already
        self.requeued.extendleft((index, avoid) for index in reversed(indices))

    def _answered(self, worker: int, index: int, now: float) -> None:
        self.in_progress[worker].pop(index, None)
        self.last_answer[worker] = now
        self.active.add(worker)

    def _settle(self, index: int, status: int) -> bool:
        if index in self.status:
            return False
        self.status[index] = status
        return True
