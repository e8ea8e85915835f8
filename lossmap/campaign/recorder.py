"""What rank 0 records of a campaign: each member's points in its own file, and what is to be done next of it.

    new  --prepare-->  open: its points are dispatched  --[audit]-->  [finish]  -->  at its end

A member is prepared by a worker, which creates its file and says what its points are; rank 0 then opens the file and
writes it until the last point. Every file has its journal, so that a death at any moment costs the points in flight.
Files are opened and closed in a thread of their own: each waits for the disk, which the dispatcher must not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossmap.campaign.evaluate import FINISH, LOOK, POINT, PREPARE, Assignment, NoRoom, PointAnswer, Preparation
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.member import Member
from lossmap.campaign.queue import CampaignQueue
from lossmap.io.code_identity import changes_between, described
from lossmap.io.disk import DiskFull
from lossmap.io.read import Busy, NotASurface, Refused, SurfaceFile, read
from lossmap.io.surface import CHANGED
from lossmap.landscape import audit_loop
from lossmap.landscape.survey_recorder import MAX_STORED_NOTES, Progress, Recorder
from lossmap.parallel.dispatcher import PointFailure
from lossmap.parallel.work_queue import WorkQueue
from lossmap.report.text import raised_error

logger = logging.getLogger("lossmap")

PROGRESS_INTERVAL = 0.2  # seconds between calls of `progress`
REFRESH_INTERVAL = 10.0  # seconds between looks for members that were added
FILE_PATIENCE = 30.0  # seconds in which a file that another node has made appears on this one


@dataclass(eq=False)
class _Open:
    """A member whose file rank 0 has open."""

    member: Member
    preparation: Preparation
    store: SurfaceFile
    recorder: Recorder | None = None  # of the present pass
    measure: str = ""
    offset: int = 0
    task: int = 0  # of its preparation
    left: int = 0  # points of the present pass that are not settled
    before: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # points of the audit so far
    notes: list[str] = field(default_factory=list)  # on the present pass
    changed: set[str] = field(default_factory=set)  # measures whose loss is another one by now
    starts: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by measure, what the first rank began with
    unlooked: set[int] = field(default_factory=set)  # workers with points that no look at the loss has followed
    looks: set[int] = field(default_factory=set)  # tasks of the looks that the end of the pass waits for


class CampaignRecorder:
    """Records what arrives at rank 0, and adds to the queue what follows from it: it is the pool's `PoolRecorder`.

    members       those to compute, each digest once
    folder        where the results lie
    progress      called every PROGRESS_INTERVAL seconds; None: notes go to the log as warnings
    ranks         how many ranks evaluate
    retry_failed  whether failed points are evaluated again
    refresh       returns members that were added since; None: never any
    """

    def __init__(
        self,
        members: Sequence[Member],
        folder: CampaignFolder,
        progress: Callable[[Progress], None] | None,
        ranks: int,
        retry_failed: bool = False,
        refresh: Callable[[], Sequence[Member]] | None = None,
    ) -> None:
        self.folder, self._progress, self.ranks = folder, progress, ranks
        self.retry_failed, self._refresh = retry_failed, refresh
        self.members = {member.digest: member for member in members}
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.left_out: set[str] = set()  # at their end for this run, since another process computes them
        self._tasks: dict[int, tuple[int, Member]] = {}  # task index -> PREPARE or FINISH, and of whom
        self._open: dict[int, _Open] = {}  # by the offset of the present pass
        self._queue = CampaignQueue(0)
        self._files = ThreadPoolExecutor(1, "lossmap-files")
        self._waiting: list[tuple[Future[Any], Callable[[Any], None]]] = []  # for the disk, and what follows
        self._start = self._last_report = self._last_refresh = time.monotonic()

    # ---- what is to be done

    def queue(self, workers: int, settled: Collection[int] = ()) -> WorkQueue:
        """The tasks of all members that are not at their end, for this number of workers."""
        opened = list(self._open.values())
        self._queue, self._tasks, self._open = CampaignQueue(workers, self._poll), {}, {}
        for one in opened:  # after the death of all workers: what rank 0 has open goes on
            self._begin_pass(one, one.measure, None)
        busy = {one.member.digest for one in opened}
        for digest, member in self.members.items():
            if digest not in self.ended | busy:
                self._add_task(PREPARE, member)
        return self._queue

    def saved_state(self, index: int) -> Assignment:
        """What a worker is sent with a task."""
        if index in self._tasks:
            kind, member = self._tasks[index]
            measure = next((one.measure for one in self._open.values() if index in one.looks), "")
            return Assignment(kind, member, self.folder.result(member.digest), measure)
        one = self._pass_of(index)
        if one is None or one.recorder is None:
            raise RuntimeError(f"task {index} belongs to no open member")
        point, batch = index - one.offset, self._queue.batch_at(index)
        return Assignment(
            POINT, one.member, one.store.path, one.measure, point, one.recorder.saved_state(point),
            one.store.settings(one.measure).get("chosen"), last=batch is None or not batch.unassigned,
        )  # fmt: skip

    def _add_task(self, kind: int, member: Member) -> None:
        self._tasks[self._queue.add_single(finish=kind == FINISH)] = (kind, member)

    def _pass_of(self, index: int) -> _Open | None:
        batch = self._queue.batch_at(index)
        return None if batch is None else self._open.get(batch.offset)

    # ---- what arrives

    def record(self, index: int, reading: Any, seconds: float, rank: int) -> None:
        if index not in self._tasks:
            one = self._pass_of(index)
            if one is not None and one.recorder is not None:
                self._record_point(one, index - one.offset, reading, seconds, rank)
                self._settled(one)
            return
        kind, member = self._tasks[index]
        if isinstance(reading, NoRoom):  # the next member would meet it too, and be kept as failed
            raise DiskFull(reading.text)
        if kind == LOOK:
            self._looked(index, reading, rank)
        elif kind == FINISH:
            self._end(member)
        else:
            self._begin(member, reading, index)

    def _record_point(self, one: _Open, point: int, answer: PointAnswer, seconds: float, rank: int) -> None:
        if one.recorder is None:  # pragma: no cover
            raise RuntimeError("a point of no pass")
        one.recorder.record(point, dict(answer.reading), seconds, rank)
        for text in answer.notes:
            self._note(one, text)
            self.announce(f"{one.member.name}: {text}")
        if answer.looked:
            one.unlooked.discard(self._queue.answered_by)
        else:
            one.unlooked.add(self._queue.answered_by)
        self._note_change(one, one.measure, answer.changed or self._differs(one, answer.start), rank)

    def _differs(self, one: _Open, start: Mapping[str, Any] | None) -> str | None:
        """How a rank that begins with a member measures another function than the first one that did, or None."""
        if start is None:
            return None
        values = changes_between(one.starts.setdefault(one.measure, start), start).values
        if not values:
            return None
        return (
            f"its ranks measure different functions: {described(values)} on another rank, or at another time, at the "
            "same weights; what was measured is not to be used: draw no unseeded random numbers where model, data or "
            "loss are made, count no calls and ask no clock in them, and begin anew"
        )

    def _note_change(self, one: _Open, measure: str, changed: str | None, rank: int) -> None:
        """Keep that a member's loss is another one by now, so that it counts as failed."""
        if changed is not None and measure not in one.changed:
            one.changed.add(measure)
            one.store.note(**{f"{measure}{CHANGED}": changed})
            self.announce(f"{one.member.name}, on rank {rank}: {changed}")

    def note_changes(self, changes: Sequence[Mapping[tuple[str, str], str] | None]) -> None:
        """Keep what the ranks say of losses at the campaign's end, by digest and measure: of members still open."""
        opened = {one.member.digest: one for one in self._open.values()}
        for rank, own in enumerate(changes):
            for (digest, measure), changed in (own or {}).items():
                if digest in opened:
                    self._note_change(opened[digest], measure, changed, rank)

    def _note(self, one: _Open, text: str) -> None:
        """Keep a text among the notes of the measure that is evaluated."""
        one.notes = [*one.notes, text][-MAX_STORED_NOTES:]
        one.store.note(**{f"{one.measure}_notes": "\n".join(one.notes)})

    def fail(self, failure: PointFailure, final: bool) -> None:
        if failure.index not in self._tasks:
            one = self._pass_of(failure.index)
            if one is not None and one.recorder is not None:
                one.recorder.fail(replace(failure, index=failure.index - one.offset), final)
                if final:
                    self._settled(one)
            return
        kind, member = self._tasks[failure.index]
        if kind == LOOK:
            if final:  # such as a worker that died: what it had evaluated is as it is after any death
                self._looked(failure.index, None, failure.rank)
            return
        what = ("prepared", "measured", "finished")[kind]
        self.announce(
            f"{member.name} could not be {what} on rank {failure.rank} on {failure.host}: {raised_error(failure.text)}"
        )
        if final:
            self._lose(member, failure.text, rank=failure.rank, host=failure.host, task=what)

    def save_state(self, index: int, state: dict[str, Any]) -> None:
        one = self._pass_of(index)
        if one is not None and one.recorder is not None:
            one.recorder.save_state(index - one.offset, state)

    def note(self, text: str) -> None:
        for one in self._open.values():
            if one.recorder is not None:
                self._note(one, text)
        self.announce(text)

    def announce(self, text: str) -> None:
        """Show a text in the display or, where there is none, in the log as a warning."""
        logger.log(logging.WARNING if self._progress is None else logging.INFO, text)
        self._report(text)

    def progress(self, queue: WorkQueue) -> None:
        now = time.monotonic()
        for one in self._open.values():
            one.store.tick()
        if self._refresh is not None and now - self._last_refresh > REFRESH_INTERVAL:
            self._last_refresh = now
            self._add_members(self._refresh())
        if now - self._last_report > PROGRESS_INTERVAL or queue.finished:
            self._report("")

    def close(self) -> None:
        """Close all files; what is not at its end is continued by the next run."""
        self._files.shutdown(wait=True)
        for future, _ in self._waiting:  # of files that came after the last point was dispatched
            if future.exception() is None and isinstance(future.result(), SurfaceFile):
                future.result().close()
        for one in self._open.values():
            one.store.close()
        self._waiting, self._open = [], {}

    # ---- a member's way

    def _add_members(self, members: Sequence[Member]) -> None:
        added = [member for member in members if member.digest not in self.members]
        for member in added:
            self.members[member.digest] = member
            self._add_task(PREPARE, member)
        if added:
            self.announce(f"{len(added)} members were added")

    def _begin(self, member: Member, preparation: Preparation, task: int) -> None:
        if preparation.busy:
            self.announce(f"{member.name} is left out: {preparation.busy}")
            self.ended.add(member.digest)
            self.left_out.add(member.digest)
        elif not preparation.measures:
            self._add_task(FINISH, member)
        else:
            self._after(
                lambda: self._opened(member, preparation),
                lambda store: self._dispatch_member(member, preparation, store, task),
            )

    def _dispatch_member(
        self, member: Member, preparation: Preparation, store: SurfaceFile | Exception, task: int
    ) -> None:
        if isinstance(store, Exception):
            self._lose(member, str(store))
        else:
            self._begin_pass(_Open(member, preparation, store, task=task), preparation.measures[0][0], None)

    def _after(self, wait: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Call `wait` in the thread of the files and, at a later step, `then` with what it returned."""
        self._waiting.append((self._files.submit(wait), then))

    def _poll(self) -> int:
        """Do what follows from files that are open or closed by now; returns how many are awaited still."""
        ready = [entry for entry in self._waiting if entry[0].done()]
        self._waiting = [entry for entry in self._waiting if entry not in ready]
        for future, then in ready:
            then(future.result())
        return len(self._waiting)

    def _lose(self, member: Member, text: str, **where: Any) -> None:
        """A member cannot be computed: keep why, and go on with the others."""
        self.folder.fail(member.digest, text, **where)
        self._files.submit(self.folder.remember, member.digest)
        self.failed.add(member.digest)
        self.ended.add(member.digest)

    def _opened(self, member: Member, preparation: Preparation) -> SurfaceFile | Exception:
        """The file that a worker has made, open for rank 0; or what is wrong with this one."""
        try:
            return self._reopened(member, preparation)
        except (Busy, NotASurface, Refused) as error:  # of this member alone; a full disk is of all
            return error

    def _reopened(self, member: Member, preparation: Preparation) -> SurfaceFile:
        path = self.folder.result(member.digest)
        deadline = time.monotonic() + FILE_PATIENCE
        while not path.exists() and time.monotonic() < deadline:  # on a network file system it may come late
            time.sleep(0.05)
        surface = read(path)
        stored = surface.settings.get("measures", {})
        return SurfaceFile.open(
            path,
            surface.grid,
            identity=surface.settings.get("file", {}),
            measures={name: (fields, stored.get(name, {})) for name, fields in preparation.measures},
            attributes={"restarts": int(surface.attributes.get("restarts", 0))},
            command="lossmap campaign",
        )

    def _begin_pass(self, one: _Open, measure: str, points: np.ndarray | None) -> None:
        """Dispatch the points of a measure that are not yet done; where there are none, go on at once."""
        grid = one.store.surface().grid
        one.measure, one.notes, one.unlooked, one.looks = measure, [], set(), set()
        one.recorder = Recorder(one.store, measure, grid, None, self.ranks, points, self.retry_failed)
        order = one.recorder.order
        one.left = len(order)
        if one.left:
            one.offset = self._queue.add_batch(len(grid), order, one.task, one.preparation.points_cost_alike)
            self._open[one.offset] = one
        else:
            self._next_pass(one)

    def _settled(self, one: _Open) -> None:
        one.left -= 1
        if one.left == 0:
            for worker in sorted(one.unlooked):
                task = self._queue.add_look(worker)
                self._tasks[task] = (LOOK, one.member)
                one.looks.add(task)
            self._end_pass(one)

    def _looked(self, task: int, answer: PointAnswer | None, rank: int) -> None:
        """A rank has looked once more at a loss, after the last of its points; after the last look the pass ends."""
        one = next((one for one in self._open.values() if task in one.looks), None)
        if one is not None:
            one.looks.discard(task)
            self._note_change(one, one.measure, None if answer is None else answer.changed, rank)
            self._end_pass(one)

    def _end_pass(self, one: _Open) -> None:
        if not one.looks:
            del self._open[one.offset]
            self._next_pass(one)

    def _next_pass(self, one: _Open) -> None:
        """What follows when the points of a pass are settled: an audit, the end."""
        points = self._audit_points(one)
        if points.size:
            self._begin_pass(one, one.preparation.measures[1][0], points)
            return
        self._after(one.store.close, lambda _: self._closed(one))

    def _closed(self, one: _Open) -> None:
        if one.preparation.finish:
            self._add_task(FINISH, one.member)
        else:
            self._end(one.member)

    def _audit_points(self, one: _Open) -> np.ndarray:
        """The points to be solved again next; at the end of an audit its result is recorded."""
        nothing: np.ndarray = np.zeros(0, dtype=np.int64)
        if one.preparation.audit is None:
            return nothing
        fields, settings, tol, seed = one.preparation.audit
        points = audit_loop.pending(one.store, tol, seed)
        if points is None or np.array_equal(points, one.before):
            return nothing  # points were left out, such as failed ones
        settings = one.store.settings(audit_loop.MEASURE) or settings
        known = np.union1d(audit_loop.attempted(one.store.surface()), points)
        one.store.declare(audit_loop.MEASURE, fields, settings, known)
        if points.size:
            one.before = points
            return points
        audit_loop.conclude(one.store, logger.info, tol, seed)
        return nothing

    def _end(self, member: Member) -> None:
        self.folder.finish(member.digest)
        self._files.submit(self.folder.remember, member.digest)
        self.ended.add(member.digest)

    def _report(self, note: str) -> None:
        self._last_report = time.monotonic()
        if self._progress is None:
            return
        seconds = self._last_report - self._start
        done = len(self.ended - self.failed - self.left_out)
        rate = done / seconds if seconds > 0 else 0.0
        failed, total = len(self.failed), len(self.members)
        self._progress(Progress("campaign", done, failed, total, rate, seconds, self.ranks, note))
