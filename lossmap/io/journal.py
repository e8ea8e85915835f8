"""The journal: an append-only file in which each record carries its checksum. Needs the standard library alone.

A record is

    mark    2 bytes, F5 4C        where a reader can take hold again behind a damaged stretch
    kind    1 byte                b"O" a run began, b"M" a measure, b"A" an array of the next point,
                          b"P" a point, b"F" a failure, b"N" notes
    spare   1 byte, 0
    length  uint32, little-endian  of the payload
    check   uint32, little-endian  CRC-32 of kind, length and payload
    payload

Each record goes to the operating system in one write, so the death of the process tears nothing that was
recorded; the death of the machine can tear what was not yet synchronised. A torn end is cut off when a writer
opens the file; a damaged stretch before sound records is stepped over. Price: see benchmarks/dispatch.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MARK = b"\xf5L"
KINDS = b"OMAPFN"
HEAD = struct.Struct("<2sBBII")
SYNC_EVERY = 0.25  # seconds: a sync takes some 5 ms, so at most 2 % of the time goes into it

# What file systems answer that know no flock; the survey goes on without a lock and says so.
LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class Busy(ValueError):
    """Another process writes this file."""


@dataclass(frozen=True)
class Record:
    """One sound record.

    follows_damage  whether bytes that belong to no sound record lie before it
    """

    kind: bytes
    payload: bytes
    follows_damage: bool = False


@dataclass(frozen=True)
class Contents:
    """The sound records of a journal.

    records  in order
    end      the offset behind the last of them
    damaged  how many bytes before `end` belong to no sound record
    torn     how many bytes lie behind `end`
    """

    records: list[Record]
    end: int
    damaged: int
    torn: int


def packed(kind: bytes, payload: bytes) -> bytes:
    """The bytes of one record."""
    return HEAD.pack(MARK, kind[0], 0, len(payload), _check(kind[0], payload)) + payload


def _check(kind: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<BI", kind, len(payload))))


def parse(data: bytes) -> Contents:
    """The sound records in these bytes, whatever else they hold. Linear in their number."""
    records, at, end, damaged = [], 0, 0, 0
    view = memoryview(data)
    while at < len(data):
        record = _record(data, view, at)
        if record is None:
            behind = data.find(MARK, at + 1)
            at = len(data) if behind < 0 else behind
            continue
        if at > end:
            damaged += at - end
            record = replace(record, follows_damage=True)
        records.append(record)
        at += HEAD.size + len(record.payload)
        end = at
    return Contents(records, end, damaged, len(data) - end)


def _record(data: bytes, view: memoryview, at: int) -> Record | None:
    if at + HEAD.size > len(data):
        return None
    mark, kind, _, length, check = HEAD.unpack_from(data, at)
    begin = at + HEAD.size
    if mark != MARK or kind not in KINDS or begin + length > len(data):
        return None
    payload = view[begin : begin + length]
    if _check(kind, payload) != check:
        return None
    return Record(bytes((kind,)), bytes(payload))


def read(path: str | os.PathLike[str]) -> Contents:
    """The sound records of a journal, also while it is being written; none where there is no file."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a file on a disk; it is a folder, a pipe, a socket or a device")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        data = b""
    return parse(data)


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether some process holds this journal open for writing; False where that cannot be told."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


class Journal:
    """The one writer of a journal: locked, appended to, synchronised in groups.

    Raises Busy where another process holds the lock; OSError where the file cannot be written.
    `unlocked` holds the reason where the file system knows no locks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.unlocked: str | None = None
        self._file = self._locked()
        self.contents = read(self.path)
        self._end = self.contents.end
        self._synced = time.monotonic()
        self._dirty = False
        if self.contents.torn:
            os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)

    def _locked(self) -> int:
        # Five tries: a reader that only asks whether the file is locked holds it for an instant.
        for attempt in range(5):
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                if attempt < 4:
                    time.sleep(0.05)
                continue
            except OSError as error:
                if error.errno not in LOCKLESS:
                    os.close(file)
                    raise
                self.unlocked = error.strerror or str(error)
                return file
            # The former writer may have removed the file between our opening and our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(file)):
                    return file
            os.close(file)
        raise Busy(f"another process is writing {self.path}")

    def append(self, kind: bytes, payload: bytes) -> None:
        """Hand one record to the operating system. On failure (a full disk) the file is as it was before."""
        data = packed(kind, payload)
        try:
            written, view = 0, memoryview(data)
            while written < len(view):
                written += os.write(self._file, view[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        self._end += len(data)
        self._dirty = True

    @property
    def due(self) -> bool:
        """Whether it is time to synchronise again."""
        return self._dirty and time.monotonic() - self._synced >= SYNC_EVERY

    def sync(self) -> None:
        """Bring the records so far to the disk."""
        if not self._dirty:
            return
        getattr(os, "fdatasync", os.fsync)(self._file)
        self._synced = time.monotonic()
        self._dirty = False

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._end = 0
        self._dirty = True

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._end

    def close(self, remove: bool = False) -> None:
        """Let go of the file; with `remove` it disappears, while still locked."""
        if self._file < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):
                self.sync()
        os.close(self._file)
        self._file = -1


def runs(records: list[Record]) -> Iterator[tuple[bytes, list[bytes]]]:
    """Records drawn together: (kind, payloads) for each run of one kind, in order."""
    at = 0
    while at < len(records):
        kind, begin = records[at].kind, at
        while at < len(records) and records[at].kind == kind:
            at += 1
        yield kind, [record.payload for record in records[begin:at]]
