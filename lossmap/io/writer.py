"""The one writer of a surface file: it may die at any moment, and no recorded point is lost.

A point goes to the journal first (see journal.py) and into memory; the file is a snapshot of the memory, written
anew now and then. A reading's groups (the arrays of a task) go the same way, one record an array, the point last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io import attempts, methods, netcdf_read
from lossmap.io import journal as log
from lossmap.io.attempts import ATTRIBUTE as ATTEMPTS
from lossmap.io.checked import open_checked
from lossmap.io.code_identity import ATTRIBUTE as CODE
from lossmap.io.code_identity import continued
from lossmap.io.continuation import Survey, TakenUp, Upgrades, begin_anew, take_up
from lossmap.io.disk import PathLike, explained, explanation, resolved
from lossmap.io.journal import Busy, Journal
from lossmap.io.journal_replay import (
    REOPENED,
    array_payloads,
    declaration,
    journal_of,
    json_payload,
    last_start,
    point_payload,
)
from lossmap.io.memory_store import GroupArrays, Measures, MemoryStore, Reading, groups_in
from lossmap.io.methods import Method
from lossmap.io.partial_points import Unfinished, folder_of, forget_states, save_state
from lossmap.io.resume_check import Refused, refuse
from lossmap.io.snapshots import Snapshots, without_large
from lossmap.io.surface import AUDIT, DONE, TO_DO, Failure, Group, Surface, spans, to_plain

logger = logging.getLogger(__name__)
MAX_HISTORY = 20_000  # characters, the newest


class SurfaceFile:
    """Rank 0's writer of one surface file. `open` makes it; use it in a `with`, or call `close`.

    path    the file, links followed
    memory  what is known by now; of large groups that are in the file, the attributes alone
    """

    def __init__(self, path: Path, memory: MemoryStore, journal: Journal, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.memory = memory
        self._journal = journal
        self._identity = identity
        self._snapshots = Snapshots(path, earlier=path)
        self._dirty = False  # whether the journal knows more than the file
        self._closed = False
        self._code: dict[str, Any] = {}
        self._code_history: tuple[str, ...] = ()
        self._settled = 0  # points that were done or failed when this attempt began
        self._started = time.monotonic()
        self._is_fresh = False  # whether nothing was known before, so that the journal holds all from the first point
        self._states = folder_of(path).exists()  # whether states of unfinished points may lie there

    @classmethod
    def open(
        cls,
        path: PathLike,
        grid: Grid,
        *,
        identity: Mapping[str, Any] | None = None,
        measures: Measures | None = None,
        overwrite: bool = False,
        groups: Mapping[str, Group] | None = None,
        attributes: Mapping[str, Any] | None = None,
        command: str = "",
        only: np.ndarray | None = None,
        expected_bytes: int = 0,
        upgrades: Upgrades | None = None,
        codes: Mapping[str, Mapping[str, Any]] | None = None,
        accept_change: bool = False,
        by_method: Mapping[str, Method] | None = None,
    ) -> SurfaceFile:
        """Create the file, or continue the one that is there, and lock it.

        identity        settings of the file: model files, plane; compared with those of the file that is there
        measures        {name: (fields, settings)}; compared, each with its own; entries under "chosen" are not
                        compared but taken up from the file: see `settings`
        groups          arrays to stand beside the fields; `directions/x` one array for each tensor
        attributes      root attributes: versions, digests, devices
        command         one line for the `history`
        only            the flat indices that this file is to hold (a shard); all, if left out
        expected_bytes  of the groups that will come with the readings, for a look at the disk
        upgrades        by measure, what makes today's reading of the fields in which an earlier version kept it
        codes           by measure, the fingerprint of the code that measures now: see code_identity.py
        accept_change   whether other code may go on with a measure, which the history then says
        by_method       by measure, how its numbers are found; points that an earlier version found otherwise are to do
                        again, unless the file is complete

        Raises Refused naming each difference; Busy where another process writes the file; NotASurface where the
        file there is not ours; DiskFull or OSError where nothing can be written. Then nothing is changed.
        """
        path = resolved(path)
        survey = Survey(grid, to_plain(dict(identity or {})), measures or {}, only, expected_bytes, upgrades or {})
        fresh = not journal_of(path).exists()
        journal = _locked_journal(path)
        try:
            if overwrite:
                state = TakenUp(begin_anew(path, journal, survey), is_fresh=True)
            else:
                state = take_up(path, journal, survey)
            file = cls(path, state.memory, journal, survey.identity)
            file._is_fresh = state.is_fresh
            file._compare_code(codes or {}, accept_change)
            if overwrite or state.damage:
                file._snapshots.earlier = None
            if state.damage:
                logger.warning("%s; its points were taken from the journal beside it, which is whole", state.damage)
            if state.upgraded:
                # Before the journal says that the measure has no such fields any more, what was made of them is safe.
                file.snapshot()
            file._forget_audit(by_method or {})
            file._begin(groups or {}, attributes or {}, command)
            file._measure_again(by_method or {})
        except BaseException:
            journal.close(remove=fresh)
            raise
        return file

    def _compare_code(self, codes: Mapping[str, Mapping[str, Any]], accept: bool) -> None:
        """Store the fingerprints of the code that goes on. Raises Refused where it measures something else."""
        memory = self.memory
        begun = {name: bool((memory.status(name) == DONE).any()) for name in codes if name in memory.measures}
        decision = continued(self.path, memory.attributes, begun, codes, accept)
        if isinstance(decision, str):
            raise Refused(decision)
        if decision.changed and self._states:
            forget_states(self.path)  # a search that another function began would end nowhere, or at a wrong value
        self._code = {f"{CODE}{name}": dict(code) for name, code in decision.codes.items()}
        self._code_history = decision.history
        for note in decision.notes:
            logger.warning("%s", note)

    def _forget_audit(self, by_method: Mapping[str, Method]) -> None:
        """Leave out what an audit found where points that it judged are to be measured again."""
        if any(self.memory.todo(measure).size for measure in by_method) and any(
            not methods.measured_by(self.memory, measure, method) for measure, method in by_method.items()
        ):
            for name in AUDIT:
                self.memory.attributes.pop(name, None)

    def _measure_again(self, by_method: Mapping[str, Method]) -> None:
        """Let points be to do again that an earlier version did by another method, and say so."""
        new = {m: method for m, method in by_method.items() if not methods.measured_by(self.memory, m, method)}
        if new and self._states:
            forget_states(self.path)  # a search that the other method began
        again = any(self.memory.todo(measure).size for measure in by_method)  # an audit judges all points
        for measure, method in new.items():
            done = np.flatnonzero(self.memory.status(measure) == DONE)
            if done.size:
                what = methods.described(done.size, measure, method)
                left = "all are done and left as they are: with another file they are measured anew"
                logger.warning("%s: %s; %s", self.path, what, "they are measured again" if again else left)
            if done.size and again:
                self.reopen(measure, done)
            if again:  # last: a process that dies before it has the points to open again, no more
                self.note(**{f"{methods.PREFIX}{measure}": method.name})

    def _begin(self, groups: Mapping[str, Group], attributes: Mapping[str, Any], command: str) -> None:
        """Record that a run begins, with all that a reader needs of it, and write the first snapshot."""
        memory, root = self.memory, self.memory.attributes
        memory.groups |= groups
        history = [str(root.get("history", "")), f"{_now()} {command}".strip()]
        history += [f"{_now()} {line}" for line in self._code_history]
        root |= to_plain({**attributes, **self._code})
        settled = sum(int((memory.status(name) != TO_DO).sum()) for name in memory.measures)
        self._settled = settled
        root[ATTEMPTS] = attempts.begun(
            root.get(ATTEMPTS),
            to_plain(dict(attributes)),
            _now(),
            socket.gethostname(),
            settled,
            memory.measured_seconds,
        )
        root["file_id"] = root.get("file_id") or secrets.token_hex(8)
        root["history"] = "\n".join(line for line in history if line)[-MAX_HISTORY:]
        root.setdefault("restarts", 0)
        root.pop("end", None)
        if memory.only.size < len(memory.grid):
            root["shard_points"] = spans(memory.only)
        start = json_payload(
            id=root["file_id"],
            x=memory.grid.x,
            y=memory.grid.y,
            identity=self._identity,
            measures={name: declaration(declared) for name, declared in memory.measures.items()},
            attributes=root,
            is_fresh=self._is_fresh,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._append(b"O", start)
        self._journal.sync()
        self.snapshot()

    @property
    def only(self) -> np.ndarray:
        """The flat indices that this file is to hold."""
        return self.memory.only

    def settings(self, measure: str) -> dict[str, Any]:
        """The measure's settings, and under "chosen" what a probe once chose, as the file has it."""
        return self.memory.settings(measure)

    def all_settings(self) -> dict[str, Any]:
        """The settings of the file and of each measure, as they stand in it."""
        measures = {name: to_plain(declared.settings) for name, declared in self.memory.measures.items()}
        return {"file": self._identity, "measures": measures}

    def declare(
        self, name: str, fields: Sequence[Field], settings: Mapping[str, Any], points: np.ndarray | None = None
    ) -> None:
        """Make room for a further measure, of these points alone where they are given (an audit).

        A measure that is in the file already goes on; its points may change. Raises Refused where its settings differ.
        """
        with self.memory.lock:
            refuse(self.path, self.memory, {}, self.memory.grid, {}, {name: (fields, settings)})
            if name in self.memory.measures:  # with what a probe chose for it
                settings = self.memory.settings(name)
            self.memory.declare(name, fields, settings, points)
            self._append(b"M", json_payload(**{name: declaration(self.memory.measures[name])}))

    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray:
        """The flat indices that are still to be done, ascending."""
        return self.memory.todo(measure, retry_failed)

    def record(self, measure: str, index: int, reading: Reading, seconds: float, rank: int = 0) -> None:
        """Keep a point that is done, the groups of its reading with it: no death of the process loses it from here on.

        Raises DiskFull where there is no room: everything recorded before is safe.
        """
        with self.memory.lock:
            row, groups = self.memory.row(measure, reading), groups_in(reading)
            self.memory.check(index)
            for name, group in groups.items():
                for key, array in group.arrays.items():
                    for payload in array_payloads(measure, index, name, key, array):
                        self._append(b"A", payload)
            # The point's own record comes last: the arrays before it count from then on, or never.
            self._append(b"P", point_payload(measure, index, seconds, rank, row))
            self.memory.insert(measure, index, row, seconds, rank)
            self.memory.groups |= groups
            self._forget(measure, index)
        self.tick()

    def reopen(self, measure: str, indices: np.ndarray) -> None:
        """Let points that are done be to do again; until they are, their numbers stay."""
        with self.memory.lock:
            # what is measured again counts for this attempt anew: below 0 where it has measured the same before
            self._settled -= int((self.memory.status(measure)[indices] == DONE).sum())
            again = {"measure": measure, "points": spans(indices), "before": self._settled}
            self._append(b"N", json_payload(**{REOPENED: again}))
            self.memory.reopen(measure, indices)
            self.memory.attributes |= attempts.with_points_before(self.memory.attributes, self._settled)
            self._dirty = True

    def fail(self, measure: str, index: int, failure: Failure) -> None:
        """Keep a point that failed, with its reason. Raises DiskFull as `record` does."""
        with self.memory.lock:
            self.memory.check(index)
            payload = json_payload(
                measure=measure, index=index, rank=failure.rank, host=failure.host, text=failure.text
            )
            self._append(b"F", payload)
            self.memory.fail(measure, index, failure)
            self._forget(measure, index)
        self.tick()

    def note(self, **attributes: Any) -> None:
        """Keep root attributes: the outcome of an audit, and the like."""
        with self.memory.lock:
            self._append(b"N", json_payload(**attributes))
            self.memory.note(**attributes)

    def put(self, name: str, group: Group) -> None:
        """Keep a group of arrays beside the fields; written to the file at once."""
        self.put_all({name: group})

    def put_all(self, groups: Mapping[str, Group]) -> None:
        """Keep groups of arrays, by name; the file gets them at once, all or none."""
        with self.memory.lock:
            for name, group in groups.items():
                self.memory.put(name, group)
            self.snapshot()

    def group(self, name: str) -> Group:
        """The group of this name with its arrays, read from the file where they are not in memory.

        Raises KeyError where there is none.
        """
        with self.memory.lock:
            group = self.memory.group(name)
            if group.arrays:
                return group
            with open_checked(self.path) as source:
                return netcdf_read.read_group_of(source, name)

    @property
    def arrays(self) -> GroupArrays:
        """The arrays of the groups, by name; each group is read when it is asked for."""
        return GroupArrays(tuple(self.memory.groups), self.group)

    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None:
        """Keep the state of a point that was left before its end, in a file of its own, written whole."""
        self._states = True
        with self._explained():
            save_state(self.path, self.memory.attributes["file_id"], measure, index, state)

    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]:
        """The states of the points that were left before their end, by flat index; each is read when asked for."""
        return Unfinished(folder_of(self.path), measure, self.memory.attributes["file_id"])

    def _forget(self, measure: str, index: int) -> None:
        # Most surveys leave no states: then no point costs a look at the file system.
        if self._states:
            (folder_of(self.path) / f"{measure}-{index}.npz").unlink(missing_ok=True)

    def tick(self) -> None:
        """Synchronise and take a snapshot where it is time again. Cheap: call it whenever there is a moment."""
        with self.memory.lock:
            if self._closed:
                return
            if self._journal.due:
                with self._explained():
                    self._journal.sync()
            if self._dirty and self._snapshots.due:
                try:
                    self.snapshot()
                except OSError as error:
                    # The journal has every point: a survey does not end because a snapshot failed.
                    logger.warning("%s", error)

    def flush(self) -> None:
        """Bring every point to the disk now."""
        with self.memory.lock, self._explained():
            self._journal.sync()

    def _count_attempt(self) -> None:
        """Bring what this attempt took up to date: its points, and its seconds so far."""
        made = attempts.decoded(self.memory.attributes.get(ATTEMPTS))
        if made:
            made[-1] |= {
                "points": self._settled_points() - self._settled,
                "seconds": round(time.monotonic() - self._started, 3),
            }
            self.memory.attributes[ATTEMPTS] = made

    def _settled_points(self) -> int:
        """How many points of all measures are done or failed."""
        return sum(int((self.memory.status(name) != TO_DO).sum()) for name in self.memory.measures)

    def surface(self) -> Surface:
        """What is known by now, as a value."""
        return self.memory.surface(settings=self.all_settings())

    def snapshot(self) -> None:
        """Write the file anew from what is known, beside, and rename it over.

        Raises DiskFull or OSError where that fails; the file in place and the journal stay as they were.
        """
        with self.memory.lock:
            with self._explained():
                # The journal first: a file must never know a point that the journal could still lose.
                self._journal.sync()
                self._count_attempt()
                self._snapshots.write(self.surface())
            self._dirty = False
            self.memory.groups = without_large(self.memory.groups)

    def close(self) -> None:
        """Write the last snapshot and let go of the file. The journal goes when no point is left to do.

        Raises DiskFull or OSError where the snapshot cannot be written: then the journal stays, and all is in it.
        """
        with self.memory.lock:
            if self._closed:
                return
            self._closed = True
            complete = self.memory.complete()
            if complete:
                self.memory.note(end=_now())
            try:
                if complete or self._dirty:  # else the file says all there is to say
                    self.snapshot()
            except BaseException:
                self._journal.close()
                raise
            with contextlib.suppress(OSError):
                folder_of(self.path).rmdir()  # only if nothing is left in it
            # Last of all, and still locked: whoever finds no journal finds the complete file.
            self._journal.close(remove=complete)

    def __enter__(self) -> SurfaceFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, kind: bytes, payload: bytes) -> None:
        with self._explained():
            self._journal.append(kind, payload)
        self._dirty = True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what the operating system says with how much is safe, which a person will want to know."""
        try:
            yield
        except OSError as error:
            done = sum(int((self.memory.status(name) == DONE).sum()) for name in self.memory.measures)
            consequence = f"{done:,} points are safe; mend that and start the same command again"
            raise explanation(error, self.path, consequence) from error


def _locked_journal(path: Path) -> Journal:
    """The journal beside a file, locked for this process. Raises Busy naming the process that writes it."""
    beside = journal_of(path)
    with explained(path, "nothing was changed"):
        try:
            journal = Journal(beside)
        except Busy:
            raise Busy(f"another process is writing {path}{_writer(beside)}; wait for it, or end it") from None
    if journal.unlocked:
        logger.warning("the file system of %s knows no locks; see to it that only one job writes it", path)
    return journal


def _writer(path: Path) -> str:
    start = last_start(log.read(path))
    return "" if start is None else f" (process {start['pid']} on {start['host']})"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
