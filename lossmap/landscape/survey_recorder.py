"""What rank 0 records of a survey: readings and failures in the store, notes in the log, progress for the display."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmap.geometry.grid import Grid, halving_steps
from lossmap.io.memory_store import Store
from lossmap.io.surface import DONE, FAILED, Failure
from lossmap.parallel.dispatcher import PointFailure
from lossmap.parallel.work_queue import WorkQueue

logger = logging.getLogger("lossmap")

PROGRESS_INTERVAL = 0.2  # seconds between calls of `progress`
MAX_STORED_NOTES = 100  # the newest ones, in the result file


@dataclass(frozen=True)
class Progress:
    """How a survey stands, as reported to `progress` on rank 0."""

    measure: str
    done: int  # points evaluated, those of earlier runs included
    failed: int
    total: int
    rate: float  # points per second, in this run; 0 before the first
    seconds: float  # since this run began
    ranks: int  # that evaluate points
    note: str = ""  # something that happened: a death, a failure, a stuck rank

    @property
    def left(self) -> float:
        """Seconds still to go, infinite before the first point."""
        remaining = self.total - self.done - self.failed
        if remaining == 0:
            return 0.0
        if self.rate == 0:
            return float("inf")
        return remaining / self.rate


def serpentine_order(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """Flat indices in the order of a serpentine over the grid: each next point is a neighbour of the last.

    grid     the ticks
    indices  (p,) flat indices, in any order

    Returns the same (p,) indices, int64: even rows with x rising, odd rows with x falling.
    """
    indices = np.asarray(indices, dtype=np.int64)
    width = grid.x.size
    row, column = np.divmod(indices, width)
    along = np.where(row % 2, width - 1 - column, column)
    return indices[np.argsort(row * width + along)]


def coarse_to_fine(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """Flat indices in an order in which every part from the first one on is a picture of the whole grid.

    Returns the same (p,) indices, int64: step by step of `halving_steps`, within each line after line of those that it
    adds, so that many are complete wherever it ends.
    """
    steps = halving_steps(grid.shape)
    if grid.y is None:
        order = serpentine_order(grid, indices)
        return np.asarray(order[np.argsort(steps[order], kind="stable")])
    indices = np.asarray(indices, dtype=np.int64)
    row, column = np.divmod(indices, grid.x.size)
    step = steps.reshape(-1)[indices]
    is_of_columns = step % 2 == 1
    line = np.where(is_of_columns, column, row)
    return np.asarray(indices[np.lexsort((np.where(is_of_columns, row, column), line, step))])


def in_turns(order: Sequence[int], workers: int) -> list[int]:
    """An order in which the workers, each with a segment of its own (see `WorkQueue`), meet the first points first."""
    total = len(order)
    bounds = [(total * i // workers, total * (i + 1) // workers) for i in range(workers)]
    places = sorted((at - low, at) for low, high in bounds for at in range(low, high))
    arranged = [0] * total
    for index, (_, at) in zip(order, places, strict=True):
        arranged[at] = index
    return arranged


class Recorder:
    """Records what arrives at rank 0: it is the dispatcher's `Recorder`.

    store         where readings, failures and notes are written
    measure       name of the measure
    grid          the ticks
    progress      called every PROGRESS_INTERVAL seconds; None: notes go to the log as warnings
    ranks         how many ranks or teams evaluate points
    points        flat indices to evaluate; None: all that the store is to hold
    retry_failed  whether failed points are evaluated again
    priority      all flat indices, those first whose answers are wanted first; None: neighbours one after the other
    coarse_first  without a priority: from coarse to fine over the grid instead of neighbour by neighbour
    """

    def __init__(
        self,
        store: Store,
        measure: str,
        grid: Grid,
        progress: Callable[[Progress], None] | None,
        ranks: int,
        points: np.ndarray | None,
        retry_failed: bool,
        priority: Sequence[int] | None = None,
        coarse_first: bool = False,
    ) -> None:
        self.store, self.measure, self._progress, self.ranks = store, measure, progress, ranks
        surface = store.surface()
        if points is None:
            points = surface.planned_points(measure)
        status = surface.status[measure].reshape(-1)[points]
        todo = np.intersect1d(store.todo(measure, retry_failed), points, assume_unique=True)
        self.order = serpentine_order(grid, todo)
        if coarse_first:
            self.order = coarse_to_fine(grid, todo)
        self.is_ranked = priority is not None or coarse_first
        if priority is not None:
            left = set(todo.tolist())
            self.order = np.array([i for i in priority if i in left], dtype=np.int64)
        self.total = points.size
        self.done = int((status == DONE).sum())
        self.failed = int((status == FAILED).sum())
        if retry_failed:
            self.failed = 0
        self._states = store.unfinished(measure)
        # by this set alone, since the store's states grow while points are left in this run
        self._interrupted_before = set(self._states)
        self._done_in_this_run = 0
        self._start = time.monotonic()
        self._notes: list[str] = []
        self._last_report = float("-inf")

    def queue(self, workers: int, settled: Collection[int] = ()) -> WorkQueue:
        """The points to do but for those that are settled, for this number of workers."""
        order = [int(i) for i in self.order if int(i) not in settled]
        if self.is_ranked:
            order = in_turns(order, workers)
        return WorkQueue(order, workers)

    def saved_state(self, index: int) -> Any:
        """The state in which an earlier run left a point, or None."""
        return self._states[index] if index in self._interrupted_before else None

    def record(self, index: int, reading: dict[str, Any], seconds: float, rank: int) -> None:
        self.store.record(self.measure, index, reading, seconds, rank)
        self.done += 1
        self._done_in_this_run += 1

    def fail(self, failure: PointFailure, final: bool) -> None:
        stored = Failure(failure.index, failure.rank, failure.host, failure.text, self.measure)
        text = f"point {failure.index} failed on rank {failure.rank} on {failure.host}"
        if final:
            self.failed += 1
            self.store.fail(self.measure, failure.index, stored)
        else:
            text += "; it is tried once more"
        self.announce(f"{text}: {stored.reason}")

    def save_state(self, index: int, state: dict[str, Any]) -> None:
        if state:
            self.store.save_unfinished(self.measure, index, state)

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.store.note(**{f"{self.measure}_notes": "\n".join(self._notes[-MAX_STORED_NOTES:])})
        self.announce(text)

    def announce(self, text: str) -> None:
        """Show a text in the display or, where there is none, in the log as a warning."""
        level = logging.INFO  # a display shows it
        if self._progress is None:
            level = logging.WARNING
        logger.log(level, text)
        self._report(text)

    def progress(self, queue: WorkQueue) -> None:
        self.store.tick()
        if time.monotonic() - self._last_report > PROGRESS_INTERVAL or queue.finished:
            self._report("")

    def _report(self, note: str) -> None:
        self._last_report = time.monotonic()
        if self._progress is None:
            return
        seconds = self._last_report - self._start
        rate = self._done_in_this_run / seconds if seconds > 0 else 0.0
        self._progress(Progress(self.measure, self.done, self.failed, self.total, rate, seconds, self.ranks, note))
