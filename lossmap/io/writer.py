"""The one writer of a surface file: it may die at any moment, and no recorded point is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io import journal as log
from lossmap.io import legacy, netcdf
from lossmap.io.disk import Path_, explained, place, room, sentence
from lossmap.io.journal import Busy, Journal
from lossmap.io.journal_replay import applied, begun_in, declaration, grid_of, journal_of, packed, point
from lossmap.io.memory_store import Measures, MemoryStore, Reading
from lossmap.io.netcdf import NotASurface
from lossmap.io.partial_points import Unfinished, folder_of, save_state
from lossmap.io.resume_check import refuse
from lossmap.io.surface import DONE, Failure, Group, Surface, spans, to_plain

logger = logging.getLogger(__name__)
HISTORY = 20_000  # characters of history that are kept, the newest


class SurfaceFile:
    """Rank 0's writer of one surface file. `open` makes it; use it in a `with`, or call `close`.

    ledger  what is known by now, in memory
    """

    def __init__(self, path: Path, ledger: MemoryStore, journal: Journal, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.ledger = ledger
        self.snapshot_every = 30.0
        self._journal = journal
        self._identity = settings
        self._cost = 0.0  # seconds that the last snapshot took
        self._drawn = time.monotonic()
        self._dirty = False
        self._closed = False
        self._states = folder_of(path).exists()  # whether states of unfinished points may lie there
        self._keep: Path | None = path  # whose groups the next snapshot takes over

    @classmethod
    def open(
        cls,
        path: Path_,
        grid: Grid,
        *,
        identity: Mapping[str, Any] | None = None,
        measures: Measures | None = None,
        overwrite: bool = False,
        groups: Mapping[str, Group] | None = None,
        attributes: Mapping[str, Any] | None = None,
        command: str = "",
        only: np.ndarray | None = None,
    ) -> SurfaceFile:
        """Create the file, or continue the one that is there, and lock it.

        identity    settings of the file: model files, plane; compared with those of the file that is there
        measures    {name: (fields, settings)}; compared, each with its own; entries under "chosen" are not
                    compared but taken up from the file: see `settings`
        groups      arrays to stand beside the fields; `directions/x` one array for each tensor
        attributes  root attributes: versions, digests, devices
        command     one line for the `history`
        only        the flat indices that this file is to hold (a shard); all, if left out

        Raises Refused naming each difference; Busy where another process writes the file; NotASurface where the
        file there is not ours; DiskFull or OSError where nothing can be written. Then nothing is changed.
        """
        path = place(path)
        beside = journal_of(path)
        fresh = not beside.exists()
        with explained(path, "nothing was changed"):
            try:
                journal = Journal(beside)
            except Busy:
                raise Busy(f"another process is writing {path}{_writer(beside)}; wait for it, or end it") from None
        if journal.unlocked:
            logger.warning("the file system of %s knows no locks; see to it that only one job writes it", path)
        try:
            store = cls._opened(path, grid, journal, identity or {}, measures or {}, overwrite, only)
            store._begin(groups or {}, attributes or {}, command)
        except BaseException:
            journal.close(remove=fresh)
            raise
        return store

    @classmethod
    def _opened(
        cls,
        path: Path,
        grid: Grid,
        journal: Journal,
        identity: Mapping[str, Any],
        measures: Measures,
        overwrite: bool,
        only: np.ndarray | None,
    ) -> SurfaceFile:
        identity = to_plain(dict(identity))
        begun = begun_in(journal.contents)
        if overwrite:
            _ours_to_overwrite(path)
            ledger = MemoryStore(grid, measures, only=only)
            with explained(path, "nothing was changed"):
                room(path, ledger)
                journal.clear()
                shutil.rmtree(folder_of(path), ignore_errors=True)
            store = cls(path, ledger, journal, identity)
            store._keep = None
            return store
        if path.exists() or begun is not None:
            ledger, there = _continued(path, journal.contents)
            refuse(path, ledger, there, grid, identity, measures)
            if only is not None:
                ledger.only = np.unique(np.asarray(only, dtype=np.int64))
            for name, (fields, settings) in measures.items():
                if name not in ledger.measures:
                    ledger.declare(name, fields, settings)
            if not ledger.complete():
                ledger.attributes["restarts"] = int(ledger.attributes.get("restarts", 0)) + 1
        else:
            ledger = MemoryStore(grid, measures, only=only)
        with explained(path, "nothing was changed"):
            room(path, ledger)
        return cls(path, ledger, journal, identity)

    def _begin(self, groups: Mapping[str, Group], attributes: Mapping[str, Any], command: str) -> None:
        ledger, kept = self.ledger, self.ledger.attributes
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        history = "\n".join(line for line in (str(kept.get("history", "")), f"{now} {command}".strip()) if line)
        ledger.groups |= groups
        kept |= to_plain(dict(attributes))
        kept |= {"file_id": kept.get("file_id") or secrets.token_hex(8), "history": history[-HISTORY:]}
        kept.setdefault("restarts", 0)
        kept.pop("end", None)
        if ledger.only.size < len(ledger.grid):
            kept["shard_points"] = spans(ledger.only)
        y = None if ledger.grid.y is None else ledger.grid.y.tolist()
        self._append(
            b"O",
            packed(
                id=kept["file_id"],
                x=ledger.grid.x.tolist(),
                y=y,
                identity=self._identity,
                measures={name: declaration(declared) for name, declared in ledger.measures.items()},
                attributes=kept,
                host=socket.gethostname(),
                pid=os.getpid(),
            ),
        )
        self._journal.sync()
        self.snapshot()

    @property
    def only(self) -> np.ndarray:
        """The flat indices that this file is to hold."""
        return self.ledger.only

    def settings(self, measure: str) -> dict[str, Any]:
        """What the measure was told, and under "chosen" what a probe once chose, as the file has it."""
        return self.ledger.settings(measure)

    def settings_of_all(self) -> dict[str, Any]:
        """The settings of the file and of each measure, as they stand in it."""
        return {"file": self._identity, "measures": {n: to_plain(d.settings) for n, d in self.ledger.measures.items()}}

    def declare(
        self, name: str, fields: Sequence[Field], settings: Mapping[str, Any], points: np.ndarray | None = None
    ) -> None:
        """Make room for a further measure, of these points alone where they are given (an audit).

        A measure that is in the file already goes on; its points may change. Raises Refused where its settings differ.
        """
        with self.ledger.lock:
            refuse(self.path, self.ledger, {}, self.ledger.grid, {}, {name: (fields, settings)})
            told = self.ledger.settings(name) if name in self.ledger.measures else settings
            self.ledger.declare(name, fields, told, points)
            self._append(b"M", packed(**{name: declaration(self.ledger.measures[name])}))

    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray:
        """The flat indices that are still to be done, ascending."""
        return self.ledger.todo(measure, retry_failed)

    def record(self, measure: str, index: int, reading: Reading, seconds: float, rank: int = 0) -> None:
        """Keep a point that is done: from here on no death of the process loses it.

        Raises DiskFull where there is no room: everything recorded before is safe.
        """
        with self.ledger.lock:
            row = self.ledger.row(measure, reading)
            self.ledger.check(index)
            self._append(b"P", point(measure, index, seconds, rank, row))
            self.ledger.enter(measure, index, row, seconds, rank)
            self._forget(measure, index)
        self.tick()

    def fail(self, measure: str, index: int, failure: Failure) -> None:
        """Keep a point that failed, with its reason."""
        with self.ledger.lock:
            self.ledger.check(index)
            self._append(
                b"F", packed(measure=measure, index=index, rank=failure.rank, host=failure.host, text=failure.text)
            )
            self.ledger.fail(measure, index, failure)
            self._forget(measure, index)
        self.tick()

    def note(self, **attributes: Any) -> None:
        """Keep root attributes: what an audit found, and the like."""
        with self.ledger.lock:
            self._append(b"N", packed(**attributes))
            self.ledger.note(**attributes)

    def put(self, name: str, group: Group) -> None:
        """Keep a group of arrays beside the fields; written to the file at once."""
        with self.ledger.lock:
            self.ledger.put(name, group)
            self.snapshot()

    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None:
        """Keep the state of a point that was left before its end, in a file of its own, written whole."""
        self._states = True
        with self._kept():
            save_state(self.path, self.ledger.attributes["file_id"], measure, index, state)

    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]:
        """The states of the points that were left before their end, by flat index; each is read when asked for."""
        return Unfinished(folder_of(self.path), measure, self.ledger.attributes["file_id"])

    def _forget(self, measure: str, index: int) -> None:
        if self._states:
            (folder_of(self.path) / f"{measure}-{index}.npz").unlink(missing_ok=True)

    def tick(self) -> None:
        """Synchronise and take a snapshot where it is time again. Cheap: call it whenever there is a moment."""
        with self.ledger.lock:
            if self._closed:
                return
            if self._journal.due:
                with self._kept():
                    self._journal.sync()
            # A large file takes longer to write: no more than a twentieth of the time goes into snapshots.
            if self._dirty and time.monotonic() - self._drawn >= max(self.snapshot_every, 20 * self._cost):
                try:
                    self.snapshot()
                except OSError as error:
                    logger.warning("%s", error)

    def flush(self) -> None:
        """Bring every point to the disk now."""
        with self.ledger.lock, self._kept():
            self._journal.sync()

    def surface(self) -> Surface:
        """What is known by now, as a value."""
        return self.ledger.surface(settings=self.settings_of_all())

    def snapshot(self) -> None:
        """Write the file anew from what is known, beside, and rename it over.

        Raises DiskFull or OSError where that fails; the file in place and the journal stay as they were.
        """
        with self.ledger.lock:
            begin = time.monotonic()
            self._drawn = begin
            try:
                with self._kept():
                    self._journal.sync()
                    netcdf.write_whole(self.path, self.surface(), self._keep)
            finally:
                self._drawn = time.monotonic()
                self._cost = self._drawn - begin
            self._dirty, self._keep = False, self.path
            # Directions may be as large as the model: once in the file they are copied from snapshot to snapshot.
            for name, group in self.ledger.groups.items():
                if name.startswith(netcdf.LARGE):
                    self.ledger.groups[name] = Group({}, group.attributes)

    def close(self) -> None:
        """Write the last snapshot and let go of the file. The journal goes when no point is left to do.

        Raises DiskFull or OSError where the snapshot cannot be written: then the journal stays, and all is in it.
        """
        with self.ledger.lock:
            if self._closed:
                return
            self._closed = True
            complete = self.ledger.complete()
            if complete:
                self.ledger.note(end=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            try:
                self.snapshot()
            except BaseException:
                self._journal.close()
                raise
            with contextlib.suppress(OSError):
                folder_of(self.path).rmdir()  # only if nothing is left in it
            self._journal.close(remove=complete)

    def __enter__(self) -> SurfaceFile:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _append(self, kind: bytes, payload: bytes) -> None:
        try:
            self._journal.append(kind, payload)
        except OSError as error:
            raise self._said(error) from error
        self._dirty = True

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._said(error) from error

    def _said(self, error: OSError) -> OSError:
        """The error for a person, who will want to know how much is safe."""
        known = sum(int((self.ledger.status(name) == DONE).sum()) for name in self.ledger.measures)
        return sentence(error, self.path, f"{known:,} points are safe; mend that and start the same command again")


def inspect_existing(
    path: Path_,
    grid: Grid,
    *,
    identity: Mapping[str, Any] | None = None,
    measures: Measures | None = None,
    overwrite: bool = False,
) -> Surface | None:
    """What is known of a survey that `SurfaceFile.open` would continue; None where it would begin a file. Reads only.

    Raises as `open` does where it would refuse.
    """
    path = place(path)
    if overwrite:
        _ours_to_overwrite(path)
        return None
    written = log.read(journal_of(path))
    if not path.exists() and begun_in(written) is None:
        return None
    ledger, there = _continued(path, written)
    refuse(path, ledger, there, grid, to_plain(dict(identity or {})), measures or {})
    return ledger.surface()


def _writer(path: Path) -> str:
    begun = begun_in(log.read(path))
    return f" (process {begun['pid']} on {begun['host']})" if begun else ""


def _continued(path: Path, written: log.Contents) -> tuple[MemoryStore, Mapping[str, Any]]:
    """The ledger of what is there, and the file's own settings."""
    begun = begun_in(written)
    if not path.exists():
        ledger = MemoryStore(grid_of(begun or {}))
        applied(ledger, written)
        settings: Mapping[str, Any] = (begun or {})["identity"]
        return ledger, settings
    with netcdf.opened(path) as file:
        if not netcdf.is_ours(file):
            legacy.surface_of(file, path)
            raise NotASurface(
                f"{path} is a surface file of the original tool: it can be read and drawn, but not continued; "
                "name another file"
            )
        surface = netcdf.read_file(file, path)
    if begun is not None and begun["id"] != surface.attributes.get("file_id"):
        raise NotASurface(
            f"{journal_of(path)} belongs to another file than {path}: move one of them away, or start anew "
            "with --overwrite"
        )
    ledger = MemoryStore.of(surface)
    if "shard_points" in surface.attributes:
        ledger.only = surface.wanted()
    applied(ledger, written)
    told: Mapping[str, Any] = surface.settings.get("file", {})
    return ledger, told


def _ours_to_overwrite(path: Path) -> None:
    """Raise NotASurface where the file is somebody else's, HDF5 or not; an empty or damaged one may go."""
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with netcdf.opened(path) as file:
            if not netcdf.is_ours(file):
                legacy.surface_of(file, path)
    except netcdf.Damaged:
        return
    except NotASurface:
        raise NotASurface(f"{path} is no surface file, so it is not overwritten; name another file") from None
