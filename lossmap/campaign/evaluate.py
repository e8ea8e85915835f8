"""A rank's part of a campaign: prepare members, evaluate their points, finish them; each task becomes one message.

A rank keeps the member that it works at, and the one before, ready to be evaluated (model, data, plane), since most of
its next points are of the same member. Whatever a member's own code raises is a failure of that task alone. Whether a
member's loss is still the same function is looked at after its last points, and before whenever the points since took
`POINTS_PER_LOOK` times as long as a look. Which points are a rank's last ones shows when all are settled: what it had
not looked at by then is a task of its own (LOOK), and when the campaign ends, `changes` says it.

Members share their rank's process. Each is begun as if it were the first one there, and has a state of the process of
its own (`process_state`): a file that sets PyTorch's default type sets it for its own members alone.
"""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lossmap.campaign.member import Member, Prepared, Site, Work
from lossmap.geometry.grid import Grid
from lossmap.interrupt import Interrupted, exits_are_raised, is_error_of_user_code
from lossmap.io.disk import FULL
from lossmap.io.journal import Busy
from lossmap.landscape.run_survey import loss_at_start
from lossmap.landscape.survey_file import open_survey_file, stored_choice
from lossmap.parallel.evaluate import PointEvaluator, watchdog
from lossmap.parallel.messages import DONE, FAILED, INTERRUPTED, Message
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.process_state import ProcessState, begin, forget_cached, renew, visible_modules

logger = logging.getLogger("lossmap")

PREPARE, POINT, FINISH, LOOK = range(4)
MAX_READY = 2  # members that a rank keeps ready: the present one, and one whose lost point it was given
POINTS_PER_LOOK = 50  # seconds of points, in those of a look at the loss, between two such looks


@dataclass(frozen=True)
class Assignment:
    """What rank 0 sends with a task.

    kind     PREPARE, POINT, FINISH or LOOK
    member   the member
    path     its result file
    measure  of a point, and of what is looked at: the name of the measure
    point    its flat index
    state    in which an earlier run left it, or None
    chosen   what a probe chose for the measure when the member was prepared
    last     whether every point of this pass is with some rank
    """

    kind: int
    member: Member
    path: Path
    measure: str = ""
    point: int = 0
    state: Any = None
    chosen: Mapping[str, Any] | None = None
    last: bool = False


@dataclass(frozen=True)
class PointAnswer:
    """The answer to POINT and, without a reading, to LOOK.

    reading  what was measured
    notes    what the measure has to say of it
    changed  how the member's loss is another than when this rank began with it, or None
    looked   whether the loss was looked at after this point
    start    with a rank's first point: the losses of a few samples that it began with, as a fingerprint; else None
    """

    reading: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    changed: str | None = None
    looked: bool = True
    start: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Preparation:
    """The answer to PREPARE: what rank 0 must know to record the member's points.

    measures  (name, fields) of each, in their order; none: the member has no points
    grid      the points
    finish    whether the member is finished by a task of its own
    audit     fields, settings, tolerance and seed of the second measure, which audits the first; None without one
    busy      why it cannot be computed now: another process does
    points_cost_alike  as of the measures, see `landscape.run_survey.Measure`
    """

    measures: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    grid: Grid | None = None
    finish: bool = True
    audit: tuple[tuple[Any, ...], Mapping[str, Any], float, int] | None = None
    busy: str = ""
    points_cost_alike: bool = True


@dataclass(frozen=True)
class NoRoom:
    """The answer to PREPARE or FINISH where a disk is full: no fault of the member's, and the next one meets it too."""

    text: str


@dataclass(frozen=True)
class SurveyWork:
    """The work of a member whose `build` returns (measure, grid)."""

    build: Callable[[], tuple[Any, Grid]]

    def prepare(self, site: Site) -> Prepared:
        """Make measure and grid; create or continue the result file."""
        measure, grid = self.build()
        measures = [measure]
        if getattr(measure, "certify", None) == "audit" and measure.auditable:
            measures.append(measure.audit_twin())
        if site.creates:
            earlier = stored_choice(site.path, measure.name)
            if earlier and hasattr(measure, "with_choice"):
                measure = measure.with_choice(earlier)
                measures[0] = measure
            open_survey_file(site.path, grid, {m.name: m for m in measures}).close()
        return Prepared(tuple(measures), grid)

    def finish(self, site: Site) -> None:
        """Nothing: the points are all there is."""


def work_of(member: Member) -> Work:
    """The member's work: its `build` where that is one, else a survey of what it returns."""
    if hasattr(member.build, "prepare"):
        return cast(Work, member.build)
    return SurveyWork(cast(Callable[[], tuple[Any, Grid]], member.build))


class _Looks:
    """Looks at a member's loss on this rank, from its first point on: whether it is still the same function."""

    def __init__(self, measure: Any) -> None:
        began = time.perf_counter()
        self._at_start = loss_at_start(measure)
        self._price, self._since = time.perf_counter() - began, 0.0
        self.pending = False  # whether points were evaluated that no look has followed
        self._start: dict[str, Any] | None = None
        if self._at_start is not None:
            self._start = {"values": self._at_start.values, "eps": self._at_start.eps}

    def start(self) -> dict[str, Any] | None:
        """The losses of a few samples that this rank begins with, as a fingerprint; the second time None."""
        start, self._start = self._start, None
        return start

    def after(self, seconds: float, last: bool) -> str | None:
        """How the loss has changed, looked at after a point of so many seconds where that is due, or is the `last`."""
        self._since += seconds
        self.pending = self._at_start is not None
        if last or self._since >= POINTS_PER_LOOK * self._price:
            return self.now()
        return None

    def now(self) -> str | None:
        """How the loss has changed, where points were evaluated since the last look."""
        if self._at_start is None or not self.pending:
            return None
        self._since, self.pending = 0.0, False
        return self._at_start.change()


class MemberEvaluator:
    """Does the tasks that rank 0 dispatches: it is the pool's `Evaluator`.

    stop           of this rank
    machine        what the campaign has chosen for this rank; for the members' work
    point_timeout  seconds after which the kernel ends this rank, since it answers no more; None: never
    """

    def __init__(self, stop: Stop, machine: Any = None, point_timeout: float | None = None) -> None:
        self.team = Team()
        self.stop, self.machine, self.point_timeout = stop, machine, point_timeout
        self.note: Callable[[str], None] = logger.warning
        self._ready: OrderedDict[str, Prepared] = OrderedDict()
        self._evaluators: dict[tuple[str, str], tuple[PointEvaluator, _Looks]] = {}
        self._changes: dict[tuple[str, str], str] = {}  # of members that are no longer ready, until they are asked for
        self._base = ProcessState.now()  # before any member
        self._states: dict[str, ProcessState] = {}  # of members that are ready, by digest

    def __call__(self, index: int, state: Assignment) -> Message:
        """Do a task: (DONE, index, reading, seconds), (FAILED, index, text) or (INTERRUPTED, index, state)."""
        began = time.perf_counter()
        try:
            if state.kind == POINT:
                return self._point(index, state)
            reading: Preparation | PointAnswer | None = None
            if state.kind == PREPARE:
                reading = self._prepare(state)
            elif state.kind == LOOK:
                reading = PointAnswer({}, changed=self._change((state.member.digest, state.measure)))
            else:
                self._finish(state)
        except Interrupted:
            return INTERRUPTED, index, {}
        except OSError as error:
            if error.errno in FULL and state.kind in (PREPARE, FINISH):
                return DONE, index, NoRoom(str(error)), time.perf_counter() - began
            return FAILED, index, traceback.format_exc()
        except BaseException as error:
            if not is_error_of_user_code(error):
                raise
            return FAILED, index, traceback.format_exc()
        return DONE, index, reading, time.perf_counter() - began

    def follow(self) -> Message:
        """Never called: each team is one rank."""
        raise RuntimeError("the teams of a campaign are single ranks")

    def release(self, end: Message) -> None:
        """Nothing: there are no members of a team to be released."""

    def _site(self, assignment: Assignment, creates: bool) -> Site:
        return Site(assignment.path, self.stop, creates, self.machine)

    def _prepare(self, assignment: Assignment) -> Preparation:
        try:
            prepared = self._prepared(assignment, creates=True)
        except Busy as error:
            return Preparation(busy=str(error))
        if prepared is None:
            return Preparation()
        self._keep(assignment.member.digest, prepared)
        audit = None
        if len(prepared.measures) > 1:
            twin = prepared.measures[1]
            audit = (tuple(twin.fields), dict(twin.settings), float(twin.solver_options["tol"]), int(twin.seed))
        measures = tuple((m.name, tuple(m.fields)) for m in prepared.measures)
        alike = all(getattr(m, "points_cost_alike", True) for m in prepared.measures)
        return Preparation(measures, prepared.grid, prepared.finish, audit, points_cost_alike=alike)

    def _finish(self, assignment: Assignment) -> None:
        with self._own_state(None), watchdog(self.point_timeout):
            work_of(assignment.member).finish(self._site(assignment, creates=True))

    def _prepared(self, assignment: Assignment, creates: bool) -> Prepared | None:
        with self._own_state(None), watchdog(self.point_timeout):
            renew(self._base, self._states.values())
            forget_cached()
            prepared = work_of(assignment.member).prepare(self._site(assignment, creates))
            self._states[assignment.member.digest] = ProcessState.now()
        return prepared

    @contextmanager
    def _own_state(self, digest: str | None) -> Iterator[None]:
        """Inside, the process is as this member has left it; None: as a member finds it that is begun."""
        self._base = replace(self._base, modules=visible_modules())  # as of members that were unpickled since
        if digest in self._states:
            self._states[digest].put()
        else:
            begin(self._base)
        try:
            with warnings.catch_warnings(), np.errstate(), exits_are_raised():
                yield
        finally:
            looked = digest in self._states
            if digest is not None and looked:
                self._states[digest] = ProcessState.now()
            begin(self._base, looked)

    def _point(self, index: int, assignment: Assignment) -> Message:
        if assignment.member.digest not in self._ready:
            self._join(assignment)
        with self._own_state(assignment.member.digest):
            return self._evaluated(index, assignment)

    def _evaluated(self, index: int, assignment: Assignment) -> Message:
        evaluate, looks = self._evaluator(assignment)
        notes: list[str] = []
        evaluate.note = notes.append
        kind, _, *content = evaluate.evaluate(assignment.point, assignment.state)
        if kind != DONE:
            for text in notes:
                self.note(f"{assignment.member.name}: {text}")
            return kind, index, *content
        reading, seconds = content
        changed = looks.after(seconds, assignment.last)
        return DONE, index, PointAnswer(reading, tuple(notes), changed, not looks.pending, looks.start()), seconds

    def _join(self, assignment: Assignment) -> None:
        """Prepare a member that another rank has begun."""
        prepared = self._prepared(assignment, creates=False)
        if prepared is None:
            raise ValueError(f"{assignment.member.name} had points when it was prepared, and has none now")
        self._keep(assignment.member.digest, prepared)

    def _evaluator(self, assignment: Assignment) -> tuple[PointEvaluator, _Looks]:
        key = (assignment.member.digest, assignment.measure)
        prepared = self._ready[assignment.member.digest]
        self._ready.move_to_end(assignment.member.digest)
        if key not in self._evaluators:
            measure = next(m for m in prepared.measures if m.name == assignment.measure)
            if assignment.chosen and hasattr(measure, "with_choice"):
                measure = measure.with_choice(assignment.chosen)
            sizes = {field.name: field.extra[1] if field.extra else 1 for field in measure.fields}
            evaluate = PointEvaluator(measure, prepared.grid.point, sizes, self.team, self.point_timeout)
            self._evaluators[key] = evaluate, _Looks(measure)
        return self._evaluators[key]

    def _change(self, key: tuple[str, str]) -> str | None:
        """How a member's loss has changed since this rank began with it, as far as that was not said before."""
        if key in self._evaluators:
            with self._own_state(key[0]):
                return self._evaluators[key][1].now()
        return self._changes.pop(key, None)

    def changes(self) -> dict[tuple[str, str], str]:
        """By digest and measure, how losses have changed on this rank, as far as that was not said before."""
        now = {key: self._change(key) for key in [*self._evaluators, *self._changes]}
        return {key: change for key, change in now.items() if change is not None}

    def _keep(self, digest: str, prepared: Prepared) -> None:
        self._forget(digest)
        self._ready[digest] = replace(prepared)
        while len(self._ready) > MAX_READY:
            oldest = next(iter(self._ready))
            self._forget(oldest)
            self._states.pop(oldest, None)

    def _forget(self, digest: str) -> None:
        """Keep a member ready no longer, after a look at its loss where points were evaluated since the last one."""
        self._ready.pop(digest, None)
        for key in [key for key in self._evaluators if key[0] == digest]:
            change = self._change(key)
            del self._evaluators[key]
            if change is not None:
                self._changes[key] = change
