"""The accounts of a pool that works through many members: which tasks are to do, and which a worker does next.

A task is an index that counts on through all members: a point of a survey, or a single task (to prepare a member, to
finish it). A *batch* is the points of one pass over one member. A worker stays with its batch, so that its next point
is a neighbour of its last and it need not build another member; when that is empty it takes, in this order,

    1. a member's end, since it frees a file,    2. a batch that nobody works at,
    3. the preparation of the next member,       4. half of what is left of the batch with the most seconds to go

so that workers meet in one member only when no other work is left, and none idles at a member's end. Costs differ from
member to member: they are counted batch by batch. NumPy alone; knows neither ranks nor messages, as `WorkQueue`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lossmap.parallel.work_queue import MAX_POINTS_PER_WORKER, PREFETCH_SECONDS, WorkQueue


@dataclass(eq=False)
class Batch:
    """The points of one pass over one member.

    offset    the task index of its point 0; point i has the index offset + i
    order     (p,) points in the order in which neighbours follow each other
    prepared_by  the worker that has the member ready
    is_alike     whether its points cost much the same
    """

    offset: int
    order: np.ndarray
    prepared_by: int | None = None
    free: list[tuple[int, int]] = field(default_factory=list)  # spans of `order` that no worker owns
    owned: dict[int, tuple[int, int]] = field(default_factory=dict)  # worker -> its span
    seconds: float = 0.0  # of the points evaluated
    evaluated: int = 0
    slowest: float = 0.0
    is_alike: bool = True

    def __post_init__(self) -> None:
        self.free.append((0, len(self.order)))

    @property
    def unassigned(self) -> int:
        """The number of points that no worker holds."""
        spans = [*self.free, *self.owned.values()]
        return sum(high - low for low, high in spans)

    @property
    def mean(self) -> float:
        """Mean seconds of a point so far; 0 at the start."""
        return self.seconds / self.evaluated if self.evaluated else 0.0

    def take(self, worker: int) -> int | None:
        """The task index of the worker's next point; None where no point is left."""
        low, high = self.owned.pop(worker, (0, 0))
        if low == high:
            span = self._longest_span()
            if span is None:
                return None
            low, high = span
        if low + 1 < high:
            self.owned[worker] = (low + 1, high)
        return self.offset + int(self.order[low])

    def _longest_span(self) -> tuple[int, int] | None:
        """A span that nobody owns, or else the back half of the longest: the owner goes on at the front."""
        if self.free:
            return self.free.pop(0)
        if not self.owned:
            return None
        other = max(self.owned, key=lambda w: self.owned[w][1] - self.owned[w][0])
        low, high = self.owned.pop(other)
        middle = (low + high) // 2
        if low < middle:
            self.owned[other] = (low, middle)
        return middle, high

    def leave(self, worker: int) -> None:
        """Give back the worker's span."""
        span = self.owned.pop(worker, None)
        if span is not None:
            self.free.append(span)


class CampaignQueue(WorkQueue):
    """The tasks of a campaign, to which more may be added at any time.

    workers  how many workers there may be; they are numbered from 0
    poll     called at each step: adds what has become ready, and returns how much is still to come that no task
             stands for, such as a file that is being opened
    """

    is_uniform = False

    def __init__(self, workers: int, poll: Callable[[], int] = lambda: 0) -> None:
        self._poll = poll
        super().__init__([], workers)
        self.to_prepare: deque[int] = deque()
        self.to_finish: deque[int] = deque()
        self.singles: set[int] = set()  # task indices that are no points
        self.batches: dict[int, Batch] = {}  # by offset, those with points that no worker holds
        self._all_batches: list[Batch] = []
        self._offsets: list[int] = []
        self._next = 0
        self._batch_of: dict[int, Batch] = {}  # worker -> the batch that it works at
        self._preparers: dict[int, int] = {}  # task index of a preparation -> the worker that made it
        self._to_look: dict[int, deque[int]] = {}  # worker -> tasks that it alone can do, as long as it is there
        self.answered_by = 0  # the worker whose task was completed last

    @property
    def grown(self) -> bool:
        """Whether tasks were added since the last look."""
        self._poll()
        return self._grown

    @grown.setter
    def grown(self, value: bool) -> None:
        self._grown = value

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, and nothing is still to come."""
        return not self._poll() and super().finished

    # ---- tasks are added

    def add_single(self, finish: bool = False) -> int:
        """Add the preparation or, with `finish`, the end of a member; returns its task index."""
        index = self._extend(1)
        self.singles.add(index)
        (self.to_finish if finish else self.to_prepare).append(index)
        return index

    def add_look(self, worker: int) -> int:
        """Add a look at what a worker has ready; returns its task index."""
        index = self._extend(1)
        self.singles.add(index)
        self._to_look.setdefault(worker, deque()).append(index)
        return index

    def add_batch(
        self,
        points: int,
        order: Sequence[int] | np.ndarray,
        preparation: int | None = None,
        is_alike: bool = True,
    ) -> int:
        """Add points of a member. Returns the task index of its point 0.

        points       how many points the member has
        order        flat indices of the points to do, such that neighbours in it are neighbours on the grid
        preparation  the task index of the member's preparation, whose worker has it ready
        is_alike     whether the points cost much the same
        """
        order = np.asarray(order, dtype=np.int64)
        offset = self._extend(points, len(order))
        prepared_by = None if preparation is None else self._preparers.get(preparation)
        batch = Batch(offset, order, prepared_by, is_alike=is_alike)
        self.batches[offset] = batch
        self._all_batches.append(batch)
        self._offsets.append(offset)
        return offset

    def _extend(self, indices: int, tasks: int | None = None) -> int:
        offset = self._next
        self._next += indices
        self.total += indices if tasks is None else tasks
        self.grown = True
        return offset

    def batch_at(self, index: int) -> Batch | None:
        """The batch that a task index belongs to; None for a single task."""
        if index in self.singles:
            return None
        return self._all_batches[bisect_right(self._offsets, index) - 1]

    def slowest_like(self, index: int) -> float | None:
        """Seconds of the slowest point of the same member so far; None of what is no point, since members differ."""
        batch = self.batch_at(index)
        return None if batch is None or not batch.is_alike or not batch.evaluated else batch.slowest

    def where(self, index: int) -> str:
        """At what a worker is, for sentences: a point by its number in its member."""
        batch = self.batch_at(index)
        return "in a member's preparation or end" if batch is None else f"at point {index - batch.offset}"

    # ---- tasks are given out

    def free_slots(self, worker: int) -> int:
        """How many more tasks the worker should be given now; may be negative."""
        held = self.in_progress[worker]
        if any(index in self.singles for index in held):
            return 0  # nothing waits behind a preparation, whose cost is not known
        batch = self._batch_of.get(worker)
        if batch is None or not held:
            return 1
        if not batch.evaluated:
            depth = 2
        elif batch.mean > 10 * PREFETCH_SECONDS:
            depth = 1
        else:
            depth = min(MAX_POINTS_PER_WORKER, 2 + int(PREFETCH_SECONDS / max(batch.mean, 1e-6)))
        if self.to_prepare:
            return depth - len(held)
        # towards the end, slow points must not wait behind slow points while other workers run out
        left = sum(b.unassigned * b.mean for b in self.batches.values())
        share = left / max(1, len(self.active)) / max(batch.slowest, 1e-9)
        return min(depth, 1 + int(share / 2)) - len(held)

    def dispatch(self, worker: int, now: float) -> list[int]:
        """Task indices for a worker to do next; empty where there are none for it. See `WorkQueue.dispatch`."""
        indices = super().dispatch(worker, now)
        if indices and len(self.in_progress[worker]) == len(indices) and not self._is_single(indices):
            # it held nothing: now that its batch is known, what bridges the way to rank 0
            indices += super().dispatch(worker, now)
        return indices

    def _is_single(self, indices: Sequence[int]) -> bool:
        return any(index in self.singles for index in indices)

    def _take_next(self, worker: int) -> int | None:
        look = self._take_look(worker)
        if look is not None:
            return look
        batch = self._batch_of.get(worker)
        if batch is not None:
            index = batch.take(worker)
            if index is not None:
                return index
            self._leave(worker)
        if self.in_progress[worker]:  # another member is begun when this one's points are answered
            return None
        return self._take_elsewhere(worker)

    def _take_look(self, worker: int) -> int | None:
        """A look that is for this worker or, so that nobody waits for it, for one that is gone."""
        for owner in (worker, *(other for other in self._to_look if other not in self.active)):
            if self._to_look.get(owner):
                return self._to_look[owner].popleft()
        return None

    def _take_elsewhere(self, worker: int) -> int | None:
        if self.to_finish:
            return self.to_finish.popleft()
        self.batches = {offset: batch for offset, batch in self.batches.items() if batch.unassigned}
        taken = set(map(id, self._batch_of.values()))
        waiting = [b for b in self.batches.values() if id(b) not in taken]
        # its own first; else one that has waited longest
        batch = min(waiting, key=lambda b: b.prepared_by != worker, default=None)
        if batch is None and self.to_prepare:
            return self.to_prepare.popleft()
        if batch is None and self.batches:
            batch = max(self.batches.values(), key=lambda b: b.unassigned * max(b.mean, 1e-9))
        if batch is None:
            return None
        self._batch_of[worker] = batch
        return batch.take(worker)

    def _leave(self, worker: int) -> None:
        batch = self._batch_of.pop(worker, None)
        if batch is not None:
            batch.leave(worker)

    def _withdraw(self, worker: int) -> list[int]:
        self._leave(worker)
        return super()._withdraw(worker)

    # ---- answers

    def complete(self, worker: int, index: int, seconds: float, now: float) -> bool:
        """A task was done in so many seconds; whether it counts: not where it was settled before."""
        batch = self.batch_at(index)
        self.answered_by = worker
        if batch is None:
            self._preparers[index] = worker
        else:
            batch.seconds += seconds
            batch.evaluated += 1
            batch.slowest = max(batch.slowest, seconds)
        return super().complete(worker, index, seconds, now)
