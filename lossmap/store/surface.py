"""One surface, one file: read by anybody at any time, written by one process that may die at any moment.

While a survey runs, the truth is the journal `FILE.journal` (lossmap/store/journal.py); `FILE` is a snapshot of it,
written beside and renamed over every half minute or more seldom. Who reads, reads both. Nothing else is needed to
go on after a death: the snapshot, and over it the journal from its beginning.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.space.grid import Field, Grid
from lossmap.store import journal as log
from lossmap.store import legacy, netcdf
from lossmap.store.journal import Busy, Journal
from lossmap.store.ledger import Declared, Ledger, Measures, Reading
from lossmap.store.netcdf import NotASurface
from lossmap.store.values import DONE, Failure, Group, Surface, canonical, differences, indices_of, plain, spans

__all__ = [
    "Busy",
    "DiskFull",
    "Failure",
    "Group",
    "Ledger",
    "NotASurface",
    "Refused",
    "Surface",
    "SurfaceFile",
    "being_written",
    "read",
    "read_group",
    "write_surface",
]

logger = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
HISTORY = 20_000  # characters of history that are kept, the newest
RECENT = 1_000  # points whose time of arrival a reader is told
HEAD = np.dtype([("index", "<u8"), ("seconds", "<f8"), ("time", "<f8"), ("rank", "<i4")])
Path_ = str | os.PathLike[str]


class Refused(ValueError):
    """What was asked for does not belong into the file that is there.

    differences  (name, in the file, asked for)
    """

    def __init__(self, text: str, differences: Sequence[tuple[str, Any, Any]] = ()) -> None:
        super().__init__(text)
        self.differences = tuple(differences)


class DiskFull(OSError):
    """No room on the disk. What was recorded before is safe."""


def journal_of(path: Path_) -> Path:
    """Where the journal of a surface file lies."""
    path = Path(path)
    return path.with_name(path.name + ".journal")


def read(path: Path_) -> Surface:
    """The surface in a file, with whatever its journal knows better. Reads only; may be called while a survey runs.

    Files of the original tool are read too. Raises FileNotFoundError, IsADirectoryError, PermissionError or
    NotASurface, each with one sentence that says what is wrong.
    """
    path = Path(path)
    while True:
        before = _stamp(path)
        written = log.read(journal_of(path))
        surface = _snapshot(path, written)
        # The writer may have renamed a newer snapshot over, and removed its journal, between our two looks.
        if _stamp(path) == before:
            return surface


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _snapshot(path: Path, written: log.Contents) -> Surface:
    begun = _begun(written)
    if begun is not None and not path.exists():
        return _resumed(Ledger(_grid_of(begun)), written)
    with netcdf.opened(path) as file:
        if not netcdf.is_ours(file):
            return legacy.surface_of(file, path)
        surface = netcdf.read_file(file, path)
    if begun is None or begun["id"] != surface.attributes.get("file_id"):
        return surface
    return _resumed(Ledger.of(surface), written)


def read_group(path: Path_, name: str) -> Group:
    """A group of a surface file with all its arrays, such as `directions/x`.

    Raises KeyError naming the groups that there are; otherwise as `read`.
    """
    path = Path(path)
    with netcdf.opened(path) as file:
        if name not in file:
            there = ", ".join(netcdf.group_names(file)) or "none"
            raise KeyError(f"{path} holds no group {name!r}; there are: {there}")
        return netcdf.read_group_of(file, name)


def being_written(path: Path_) -> bool:
    """Whether some process is writing this surface now; False where the file system cannot tell."""
    return log.is_locked(journal_of(path))


def write_surface(path: Path_, surface: Surface, overwrite: bool = False, tensors_from: Path_ | None = None) -> None:
    """Write a surface that is already there as a value: it appears whole or not at all.

    tensors_from  an earlier file, from which the tensors of the directions are copied; `read` leaves them behind

    Raises FileExistsError where there is a file and `overwrite` is not given; DiskFull; OSError.
    """
    path = _place(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file, or say overwrite")
    with _explained(path, "nothing was changed"):
        keep = None if tensors_from is None else Path(tensors_from)
        netcdf.write_whole(path, surface, keep)


class SurfaceFile:
    """Rank 0's writer of one surface file. `open` makes it; use it in a `with`, or call `close`.

    ledger  what is known by now, in memory
    """

    def __init__(self, path: Path, ledger: Ledger, journal: Journal, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.ledger = ledger
        self.snapshot_every = 30.0
        self._journal = journal
        self._identity = settings
        self._cost = 0.0  # seconds that the last snapshot took
        self._drawn = time.monotonic()
        self._dirty = False
        self._closed = False
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
        path = _place(path)
        beside = journal_of(path)
        fresh = not beside.exists()
        with _explained(path, "nothing was changed"):
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
        identity = plain(dict(identity))
        begun = _begun(journal.contents)
        if overwrite:
            _ours_to_overwrite(path)
            ledger = Ledger(grid, measures, only=only)
            with _explained(path, "nothing was changed"):
                _room(path, ledger)
                journal.clear()
                shutil.rmtree(_folder(path), ignore_errors=True)
            store = cls(path, ledger, journal, identity)
            store._keep = None
            return store
        if path.exists() or begun is not None:
            ledger, there = _continued(path, journal.contents)
            _refuse(path, ledger, there, grid, identity, measures)
            if only is not None:
                ledger.only = np.unique(np.asarray(only, dtype=np.int64))
            for name, (fields, settings) in measures.items():
                if name not in ledger.measures:
                    ledger.declare(name, fields, settings)
            if not ledger.complete():
                ledger.attributes["restarts"] = int(ledger.attributes.get("restarts", 0)) + 1
        else:
            ledger = Ledger(grid, measures, only=only)
        with _explained(path, "nothing was changed"):
            _room(path, ledger)
        return cls(path, ledger, journal, identity)

    def _begin(self, groups: Mapping[str, Group], attributes: Mapping[str, Any], command: str) -> None:
        ledger, kept = self.ledger, self.ledger.attributes
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        history = "\n".join(line for line in (str(kept.get("history", "")), f"{now} {command}".strip()) if line)
        ledger.groups |= groups
        kept |= plain(dict(attributes))
        kept |= {"file_id": kept.get("file_id") or secrets.token_hex(8), "history": history[-HISTORY:]}
        kept.setdefault("restarts", 0)
        kept.pop("end", None)
        if ledger.only.size < len(ledger.grid):
            kept["shard_points"] = spans(ledger.only)
        y = None if ledger.grid.y is None else ledger.grid.y.tolist()
        self._append(
            b"O",
            _json(
                id=kept["file_id"],
                x=ledger.grid.x.tolist(),
                y=y,
                identity=self._identity,
                measures={name: _declaration(declared) for name, declared in ledger.measures.items()},
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
        return {"file": self._identity, "measures": {n: plain(d.settings) for n, d in self.ledger.measures.items()}}

    def declare(
        self, name: str, fields: Sequence[Field], settings: Mapping[str, Any], points: np.ndarray | None = None
    ) -> None:
        """Make room for a further measure, of these points alone where they are given (an audit).

        A measure that is in the file already goes on; its points may change. Raises Refused where its settings differ.
        """
        with self.ledger.lock:
            _refuse(self.path, self.ledger, {}, self.ledger.grid, {}, {name: (fields, settings)})
            told = self.ledger.settings(name) if name in self.ledger.measures else settings
            self.ledger.declare(name, fields, told, points)
            self._append(b"M", _json(**{name: _declaration(self.ledger.measures[name])}))

    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray:
        """The flat indices that are still to be done, ascending."""
        return self.ledger.todo(measure, retry_failed)

    def record(self, measure: str, index: int, reading: Reading, seconds: float, rank: int = 0) -> None:
        """Keep a point that is done: from here on no death of the process loses it.

        Raises DiskFull where there is no room: everything recorded before is safe.
        """
        with self.ledger.lock:
            row = self.ledger.row(measure, reading)
            head = np.array([(index, seconds, time.time(), rank)], dtype=HEAD)
            name = measure.encode()
            self.ledger.check(index)
            self._append(b"P", bytes((len(name),)) + name + head.tobytes() + row.astype("<f8").tobytes())
            self.ledger.record(measure, index, reading, seconds, rank)
            self._forget(measure, index)
        self.tick()

    def fail(self, measure: str, index: int, failure: Failure) -> None:
        """Keep a point that failed, with its reason."""
        with self.ledger.lock:
            self.ledger.check(index)
            self._append(
                b"F", _json(measure=measure, index=index, rank=failure.rank, host=failure.host, text=failure.text)
            )
            self.ledger.fail(measure, index, failure)
            self._forget(measure, index)
        self.tick()

    def note(self, **attributes: Any) -> None:
        """Keep root attributes: what an audit found, and the like."""
        with self.ledger.lock:
            self._append(b"N", _json(**attributes))
            self.ledger.note(**attributes)

    def put(self, name: str, group: Group) -> None:
        """Keep a group of arrays beside the fields; written to the file at once."""
        with self.ledger.lock:
            self.ledger.put(name, group)
            self.snapshot()

    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None:
        """Keep the state of a point that was left before its end, in a file of its own, written whole."""
        arrays = {name: np.asarray(v) for name, v in state.items() if _is_array(v)}
        rest = {name: plain(v) for name, v in state.items() if name not in arrays}
        about = {"id": self.ledger.attributes["file_id"], "names": list(arrays), "plain": rest}
        target = _folder(self.path) / f"{measure}-{index}.npz"
        part = target.with_suffix(".part")
        with self._kept():
            target.parent.mkdir(exist_ok=True)
            with open(part, "wb") as file:
                content: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays.values())}
                np.savez(file, about=np.array(json.dumps(about)), **content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)

    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]:
        """The states of the points that were left before their end, by flat index; each is read when asked for."""
        return _Unfinished(_folder(self.path), measure, self.ledger.attributes["file_id"])

    def _forget(self, measure: str, index: int) -> None:
        folder = _folder(self.path)
        if folder.exists():
            (folder / f"{measure}-{index}.npz").unlink(missing_ok=True)

    def tick(self) -> None:
        """Synchronise and take a snapshot where it is time again. Cheap: call it whenever there is a moment."""
        with self.ledger.lock:
            if self._closed:
                return
            with self._kept():
                self._journal.sync(force=False)
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
                _folder(self.path).rmdir()  # only if nothing is left in it
            self._journal.close(remove=complete)

    def __enter__(self) -> SurfaceFile:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _append(self, kind: bytes, payload: bytes) -> None:
        with self._kept():
            self._journal.append(kind, payload)
        self._dirty = True

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            known = sum(int((self.ledger.status(name) == DONE).sum()) for name in self.ledger.measures)
            safe = f"{known:,} points are safe; mend that and start the same command again"
            raise _sentence(error, self.path, safe) from error


class _Unfinished(Mapping[int, dict[str, Any]]):
    """The saved states of a measure, each read from its file when asked for."""

    def __init__(self, folder: Path, measure: str, file_id: str) -> None:
        self._folder, self._measure, self._file_id = folder, measure, file_id

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            with np.load(self._folder / f"{self._measure}-{index}.npz", allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["id"] != self._file_id:
                    raise KeyError(index)
                state: dict[str, Any] = {str(name): file[f"a{i}"] for i, name in enumerate(about["names"])}
                state.update(about["plain"])
                return state
        except (OSError, ValueError, zipfile.BadZipFile):
            raise KeyError(index) from None

    def __iter__(self) -> Iterator[int]:
        pattern = re.compile(re.escape(self._measure) + r"-(\d+)\.npz")
        names = sorted(os.listdir(self._folder)) if self._folder.is_dir() else []
        indices = [int(found[1]) for name in names if (found := pattern.fullmatch(name))]
        return iter([index for index in indices if index in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.get(index) is not None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__array__")


def _folder(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


def _json(**content: Any) -> bytes:
    return json.dumps(plain(content), separators=(",", ":")).encode()


def _begun(written: log.Contents) -> dict[str, Any] | None:
    """The last record of a run's beginning."""
    for record in reversed(written.records):
        if record.kind == b"O":
            return dict(json.loads(record.payload))
    return None


def _writer(path: Path) -> str:
    begun = _begun(log.read(path))
    return f" (process {begun['pid']} on {begun['host']})" if begun else ""


def _grid_of(begun: Mapping[str, Any]) -> Grid:
    return Grid(np.array(begun["x"]), None if begun["y"] is None else np.array(begun["y"]))


def _applied(ledger: Ledger, written: log.Contents) -> dict[str, list[np.ndarray]]:
    """Enter what the journal holds, in its order; the times at which points came in the last run, by measure."""
    came: dict[str, list[np.ndarray]] = {}
    for kind, payloads in log.runs(written.records):
        if kind == b"O":
            came = {}
            for payload in payloads:
                begun = json.loads(payload)
                _declare(ledger, begun["measures"])
                ledger.attributes = dict(begun["attributes"])
                if "shard_points" in ledger.attributes:
                    ledger.only = indices_of(ledger.attributes["shard_points"])
        elif kind == b"P":
            for name, rows in _by_measure(payloads):
                dtype = np.dtype([*HEAD.descr, ("values", "<f8", (ledger.measures[name].width,))])
                block = np.frombuffer(b"".join(rows), dtype=dtype)
                ledger.enter(name, block["index"].astype(np.int64), block["values"], block["seconds"], block["rank"])
                came.setdefault(name, []).append(block["time"][-RECENT:].copy())
        elif kind == b"M":
            for payload in payloads:
                _declare(ledger, json.loads(payload))
        elif kind == b"F":
            for payload in payloads:
                f = json.loads(payload)
                ledger.fail(f["measure"], f["index"], Failure(f["index"], f["rank"], f["host"], f["text"]))
        else:
            for payload in payloads:
                ledger.note(**json.loads(payload))
    return came


def _declaration(declared: Declared) -> dict[str, Any]:
    return {
        "fields": [[f.name, f.unit, f.long_name, f.extra] for f in declared.fields],
        "settings": declared.settings,
        "points": None if declared.points is None else spans(declared.points),
    }


def _declare(ledger: Ledger, measures: Mapping[str, Any]) -> None:
    for name, told in measures.items():
        fields = [Field(f[0], f[1], f[2], tuple(f[3]) if f[3] else None) for f in told["fields"]]
        ledger.declare(name, fields, told["settings"], None if told["points"] is None else indices_of(told["points"]))


def _by_measure(payloads: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    rows: dict[bytes, list[bytes]] = {}
    for payload in payloads:
        behind = 1 + payload[0]
        rows.setdefault(payload[1:behind], []).append(payload[behind:])
    for name, content in rows.items():
        yield name.decode(), content


def _resumed(ledger: Ledger, written: log.Contents) -> Surface:
    came = _applied(ledger, written)
    begun = _begun(written)
    recent = {name: np.concatenate(parts)[-RECENT:] for name, parts in came.items()}
    told = {name: declared.settings for name, declared in ledger.measures.items()}
    return ledger.surface({"file": begun["identity"] if begun else {}, "measures": told}, recent)


def _continued(path: Path, written: log.Contents) -> tuple[Ledger, Mapping[str, Any]]:
    """The ledger of what is there, and the file's own settings."""
    begun = _begun(written)
    if not path.exists():
        ledger = Ledger(_grid_of(begun or {}))
        _applied(ledger, written)
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
    ledger = Ledger.of(surface)
    if "shard_points" in surface.attributes:
        ledger.only = surface.wanted()
    _applied(ledger, written)
    told: Mapping[str, Any] = surface.settings.get("file", {})
    return ledger, told


def _refuse(
    path: Path,
    ledger: Ledger,
    there: Mapping[str, Any],
    grid: Grid,
    identity: Mapping[str, Any],
    measures: Measures,
) -> None:
    found = list(axis_differences(ledger.grid, grid))
    found += differences(there, identity)
    for name, (fields, settings) in measures.items():
        if name in ledger.measures:
            known = ledger.measures[name]
            found += [(f"{name}: {what}", a, b) for what, a, b in differences(known.settings, settings)]
            if [f.name for f in known.fields] != [f.name for f in fields] or known.width != _width(fields):
                found.append((f"{name}: fields", _names(known.fields), _names(fields)))
    if found:
        told = "; ".join(f"{name} is {short(a)} in the file, {short(b)} asked for" for name, a, b in found)
        raise Refused(
            f"{path} holds another survey: {told}. Ask for the same, name another file, or start anew with --overwrite",
            found,
        )


def axis_differences(ours: Grid, theirs: Grid) -> Iterator[tuple[str, str, str]]:
    """(axis, here, there) for each axis that differs."""
    for name in ("x", "y"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            here, there = _span(a), _span(b)
            yield name, here, there if here != there else f"{there}, with other ticks between"


def _span(ticks: np.ndarray | None) -> str:
    return "(none)" if ticks is None else f"{ticks[0]:g}:{ticks[-1]:g}:{ticks.size}"


def _width(fields: Sequence[Field]) -> int:
    return sum(field.extra[1] if field.extra else 1 for field in fields)


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(f.name + (f"[{f.extra[1]}]" if f.extra else "") for f in fields)


def short(value: Any) -> str:
    """A value as text of no more than 60 characters."""
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


def _place(path: Path_) -> Path:
    """The file behind the name, links followed. Raises where its folder is not there or it is a folder itself."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a surface is a file, such as {path / 'surface.h5'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or name another file")
    return path


def _ours_to_overwrite(path: Path) -> None:
    if not path.exists():
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(8) in (b"", netcdf.SIGNATURE):
            return
    raise NotASurface(f"{path} is no surface file, so it is not overwritten; name another file")


def _room(path: Path, ledger: Ledger) -> None:
    """Raise OSError (no space) where the disk can hardly take the file, its successor and the journal."""
    widths = sum(declared.width + 2 for declared in ledger.measures.values())
    arrays = sum(a.nbytes for group in ledger.groups.values() for a in group.arrays.values())
    needed = len(ledger.grid) * (3 * 8 * widths + 40 * len(ledger.measures)) + 2 * arrays + 50_000
    disk = os.statvfs(path.parent)
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, f"the survey needs about {max(1, needed // 1_000_000):,} MB")


@contextlib.contextmanager
def _explained(path: Path, consequence: str) -> Iterator[None]:
    """Turn what the operating system says about writing into one sentence."""
    try:
        yield
    except OSError as error:
        raise _sentence(error, path, consequence) from error


def _sentence(error: OSError, path: Path, consequence: str) -> OSError:
    if isinstance(error, DiskFull):
        return error
    if error.errno in FULL:
        needs = f" ({error.strerror})" if "MB" in str(error.strerror) else ""
        told: OSError = DiskFull(f"the disk that holds {path} is full{needs}: {consequence}")
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        told = PermissionError(f"{path} cannot be written: no permission in {path.parent}; {consequence}")
    else:
        told = type(error)(f"{path} cannot be written ({error.strerror or error}): {consequence}")
    told.errno = error.errno
    return told
