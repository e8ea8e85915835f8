"""The dispatcher: rank 0 hands out points, takes answers, notices deaths and stuck workers, and stops the survey.

It knows the ranks only through a `Channel` (see `messages`) and keeps its accounts in a `WorkQueue`. No step waits, so
that one thread serves thousands of workers. Cost: tens of microseconds of rank 0 per point (benchmarks/dispatch.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lossmap.parallel.messages import (
    DONE,
    FAILED,
    HALT,
    HALTED,
    HELLO,
    INTERRUPTED,
    LOST,
    NOTE,
    POINTS,
    STOP_REQUEST,
    Channel,
    Message,
)
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.work_queue import MAX_DEATHS_PER_POINT, WorkQueue

MAX_MESSAGES_PER_STEP = 256  # then deaths, stuck workers and the stop are looked at, whatever else has arrived
CHECK_INTERVAL = 2e-3  # seconds between looks at deaths and the stop while no message arrives
REPORT_INTERVAL = 0.1  # seconds between calls of Recorder.progress
RUNNING, NO_NEW_POINTS, LEAVE_POINTS = range(3)  # how far the survey is halted
NEVER = float("inf")
# where nobody says when, a worker counts as stuck after this multiple of the slowest point so far, a minute at least
TIMEOUT_FACTOR, MIN_TIMEOUT = 20.0, 60.0


@dataclass(frozen=True)
class PointFailure:
    """A point that failed: its flat index, the rank and host that tried it, and the traceback."""

    index: int
    rank: int
    host: str
    text: str


class Recorder(Protocol):
    """Where rank 0 records what arrives. Called by one thread at a time."""

    def record(self, index: int, reading: dict[str, Any], seconds: float, rank: int) -> None:
        """A point was evaluated."""

    def fail(self, failure: PointFailure, final: bool) -> None:
        """A point failed; `final` where it is not tried again."""

    def save_state(self, index: int, state: dict[str, Any]) -> None:
        """A point was left before its end, in this state."""

    def note(self, text: str) -> None:
        """Something that a person will want to know: a death, a stuck rank, smaller batches."""

    def progress(self, queue: WorkQueue) -> None:
        """Called every REPORT_INTERVAL seconds, and at the end."""


@dataclass
class WorkerState:
    """What the dispatcher knows of a worker."""

    ranks: tuple[int, ...]  # its team, leader first
    host: str = ""
    present: bool = False  # has said HELLO, and is neither lost nor stuck
    halted: bool = False
    lost: bool = False  # for good: it has died, or its team can evaluate no more
    stuck_since: float = NEVER

    @property
    def leader(self) -> int:
        """The rank that speaks for the team."""
        return self.ranks[0]


class Dispatcher:
    """Rank 0's side of a survey, one short `step` at a time.

    channel        to the workers
    queue          which points are to do, in progress, done and failed
    teams          the ranks of each worker, leader first
    recorder       where answers are written
    stop           consulted before points are dispatched
    survey_id      number of this survey within the program; answers to an earlier one are ignored
    saved_state    index -> the state in which an earlier run left the point, or None
    point_timeout  seconds after which a worker that does not answer counts as stuck; None: by the pace, or no limit
    gone           ranks that answer no more, as was reported in an earlier survey
    by_pace        whether that limit follows from the slowest point so far, of those that the queue takes for alike
    """

    def __init__(
        self,
        channel: Channel,
        queue: WorkQueue,
        teams: Iterable[Sequence[int]],
        recorder: Recorder,
        *,
        stop: Stop,
        survey_id: int = 0,
        saved_state: Callable[[int], Any] = lambda index: None,
        point_timeout: float | None = None,
        by_pace: bool = False,
        gone: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel, self.queue, self.recorder, self.stop = channel, queue, recorder, stop
        self.workers = [WorkerState(tuple(ranks)) for ranks in teams]
        self.worker_of_rank = {rank: number for number, worker in enumerate(self.workers) for rank in worker.ranks}
        self.survey_id, self.saved_state, self.clock = survey_id, saved_state, clock
        self.point_timeout = point_timeout
        self.by_pace = by_pace and len(self.workers) > 1  # alone there is nobody to take over a point
        self.dead_ranks = set(gone)
        self.idle: set[int] = set()  # workers that may have room for further points
        self.halt_level = RUNNING
        self.is_over = False
        self._last_check = self._last_report = self._last_timeout_check = float("-inf")
        self._handlers: dict[int, Callable[..., None]] = {
            HELLO: self._on_hello,
            DONE: self._on_done,
            FAILED: self._on_failed,
            INTERRUPTED: self._on_interrupted,
            HALTED: self._on_halted,
            NOTE: self._on_note,
            LOST: self._on_lost,
        }

    def step(self) -> bool:
        """Do all that can be done now without waiting; whether a message had arrived."""
        now = self.clock()
        received = self._receive_all(now)
        # MPI is queried for deaths at most every CHECK_INTERVAL: the call costs as much as a message
        if received or now - self._last_check > CHECK_INTERVAL:
            self._last_check = now
            self._check_deaths()
            self._check_timeouts(now)
            self._check_stop()
        if self.halt_level == RUNNING:
            self._dispatch(now)
        if now - self._last_report > REPORT_INTERVAL or self.queue.finished:
            self._last_report = now
            self.recorder.progress(self.queue)
        self.is_over = self._ended()
        return received

    def timeout(self) -> float | None:
        """Seconds after which a worker that does not answer counts as stuck; None: no limit, or not known yet.

        Where points do not all cost the same, the longest time that any of them may take.
        """
        return self._limit(self.queue.max_seconds if self.queue.evaluated else None)

    def timeout_at(self, index: int) -> float | None:
        """The same of one point."""
        return self._limit(self.queue.slowest_like(index))

    def _limit(self, slowest: float | None) -> float | None:
        if self.point_timeout is not None or not self.by_pace or slowest is None:
            return self.point_timeout
        return max(MIN_TIMEOUT, TIMEOUT_FACTOR * slowest)

    @property
    def stuck_ranks(self) -> list[int]:
        """The ranks of workers that were reported stuck and have not answered since: of a team, all wait for one."""
        return [rank for worker in self.workers if worker.stuck_since < NEVER for rank in worker.ranks]

    def _ended(self) -> bool:
        if self.queue.finished:
            return True
        if self.halt_level > RUNNING:  # a worker that is lost or stuck will never say HALTED
            return all(worker.halted or not worker.present for worker in self.workers)
        return not self._worker_expected()

    def _worker_expected(self) -> bool:
        """Whether a worker is present, or may still come: a stuck one gets twice the timeout to answer after all."""
        oldest, limit = float("-inf"), self.timeout()
        if limit is not None:
            oldest = self.clock() - 2 * limit
        return any(
            worker.present
            or (worker.stuck_since > oldest and not worker.lost and self.dead_ranks.isdisjoint(worker.ranks))
            for worker in self.workers
        )

    # ---- messages

    def _receive_all(self, now: float) -> bool:
        for count in range(MAX_MESSAGES_PER_STEP):
            arrived = self.channel.receive()
            if arrived is None:
                return count > 0
            rank, (survey_id, *message) = arrived
            if survey_id == self.survey_id:  # else an answer to an earlier survey, from a rank that was stuck in it
                self._receive(rank, message, now)
        return True

    def _receive(self, rank: int, message: list[Any], now: float) -> None:
        kind, *content = message
        if kind == STOP_REQUEST:  # any rank may send it, not leaders alone: signals reach them all
            reason, urgent = content
            self.stop.request(f"{reason} on rank {rank}", urgent=urgent)
            return
        number = self.worker_of_rank.get(rank)
        if number is None or rank in self.dead_ranks:  # its points are with others by now
            return
        self._handlers[kind](number, rank, now, *content)
        worker = self.workers[number]
        if kind in (DONE, FAILED) and worker.stuck_since < NEVER:
            worker.stuck_since, worker.present = NEVER, True
            self.recorder.note(f"rank {rank} on {worker.host} answers again")
        if worker.present:
            self.idle.add(number)

    def _on_hello(self, number: int, rank: int, now: float, host: str) -> None:
        worker = self.workers[number]
        worker.host, worker.present = host, True
        self.queue.active.add(number)
        self.queue.last_answer[number] = now
        if self.halt_level > RUNNING:  # it came after HALT had gone out to the others
            self._send(number, HALT, self.halt_level == LEAVE_POINTS)

    def _on_done(self, number: int, rank: int, now: float, index: int, reading: Any, seconds: float) -> None:
        # of a point that was dispatched twice, after a timeout, the first answer counts
        if self.queue.complete(number, index, seconds, now):
            self.recorder.record(index, reading, seconds, rank)

    def _on_failed(self, number: int, rank: int, now: float, index: int, text: str) -> None:
        already_known = index in self.queue.status
        final = self.queue.fail(number, index, now)
        if not already_known:
            self.recorder.fail(PointFailure(index, rank, self.workers[number].host, text), final)
            self.idle.update(self.queue.active)  # the point is to be tried by any of them

    def _on_interrupted(self, number: int, rank: int, now: float, index: int, state: dict[str, Any]) -> None:
        self.queue.in_progress[number].pop(index, None)
        if index not in self.queue.status:
            self.recorder.save_state(index, state)
        if self.halt_level == RUNNING:  # the measure had a reason of its own, such as a memory that runs full
            self.stop.request(f"a point was left on rank {rank}")

    def _on_halted(self, number: int, rank: int, now: float) -> None:
        self.workers[number].halted = True

    def _on_note(self, number: int, rank: int, now: float, text: str) -> None:
        self.recorder.note(f"rank {rank} on {self.workers[number].host}: {text}")

    def _on_lost(self, number: int, rank: int, now: float, text: str, at_point: bool) -> None:
        self._lose(number, text, at_point)

    # ---- sending

    def _send(self, number: int, *message: Any) -> None:
        packet: Message = (self.survey_id, *message)
        self.channel.send(packet, self.workers[number].leader)

    def _dispatch(self, now: float) -> None:
        # no point is begun that cannot end in time, by the slowest of the recent ones
        if not self.stop.allows(self.queue.recent_max_seconds()):
            return
        if self.queue.grown:
            self.queue.grown = False
            self.idle.update(self.queue.active)
        while self.idle:
            number = self.idle.pop()
            if not self.workers[number].present:
                continue
            indices = self.queue.dispatch(number, now)
            if indices:
                self._send(number, POINTS, [(index, self.saved_state(index)) for index in indices])

    # ---- what goes wrong

    def _check_deaths(self) -> None:
        for rank in sorted(self.channel.dead() - self.dead_ranks):
            self.dead_ranks.add(rank)
            number = self.worker_of_rank.get(rank)
            worker = None if number is None else self.workers[number]
            name = f"rank {rank}"
            if worker is not None and worker.host:
                name += f" on {worker.host}"
            if number is None or worker is None or not worker.present:  # it held no points
                self.recorder.note(f"{name} has died")
            else:
                self._lose(number, f"{name} has died")

    def _lose(self, number: int, reason: str, at_point: bool = True) -> None:
        """A worker is gone: its points go to others, except one that has killed too many.

        at_point  whether the point that it was at may be why
        """
        worker = self.workers[number]
        if not worker.present:  # lost before: a team of several may lose its ranks one after another
            return
        worker.present, worker.lost = False, True
        requeued, fatal = self.queue.remove_worker(number, at_point)
        self.recorder.note(f"{reason}; points dispatched again: {', '.join(map(str, requeued)) or 'none'}")
        if fatal is not None:
            text = f"{MAX_DEATHS_PER_POINT} ranks were lost while they measured this point, the last one: {reason}"
            self.recorder.fail(PointFailure(fatal, worker.leader, worker.host, text), True)
        self.idle.update(self.queue.active)

    def _check_timeouts(self, now: float) -> None:
        longest = self.timeout()
        # looks at every worker, so not at every step
        if longest is None or now - self._last_timeout_check <= min(longest, MIN_TIMEOUT) / 20:
            return
        self._last_timeout_check = now
        for number, index, limit in self.queue.overdue(now, self.timeout_at):
            worker = self.workers[number]
            worker.stuck_since, worker.present = now, False
            reason = (
                f"rank {worker.leader} on {worker.host} has not answered for {limit:.3g} s {self.queue.where(index)}"
            )
            if self.queue.suspend_worker(number, index):
                self.recorder.note(f"{reason}; the point is given up")
                text = f"{MAX_DEATHS_PER_POINT} ranks were lost at this point, the last one: {reason}"
                self.recorder.fail(PointFailure(index, worker.leader, worker.host, text), True)
            else:
                self.recorder.note(f"{reason}; the point is dispatched again")
            self.idle.update(self.queue.active)

    def _check_stop(self) -> None:
        urgent = self.stop()  # calls its listeners too
        self.stop.allows(self.queue.recent_max_seconds())  # for the clock: it requests the stop where time is short
        if self.stop.reason is None:
            return
        level = LEAVE_POINTS if urgent else NO_NEW_POINTS
        if level > self.halt_level:
            self.halt_level = level
            for number, worker in enumerate(self.workers):
                if worker.present:
                    self._send(number, HALT, level == LEAVE_POINTS)
