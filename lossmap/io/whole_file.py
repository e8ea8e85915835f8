"""HDF5 files that appear whole or not at all: written beside their place, brought to the disk, renamed over it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from lossmap.io.digests import seal


class _Sink:
    """A file for HDF5 to write into, which keeps a failed write to itself until HDF5 has closed.

    HDF5 does not survive a full disk: its handles stay open, and it fails again at exit. So every write
    seems to succeed, and the first error is raised when the file is closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                # an unbuffered file may take less than it is given
                written, view = 0, memoryview(data).cast("B")
                while written < len(view):
                    written += self.file.write(view[written:])
            except OSError as error:
                self.error = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                return self.file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass


def write_hdf5(path: Path, content: Callable[[h5py.File], Mapping[str, str]]) -> None:
    """Write an HDF5 file by `content`, which fills it while it lies beside its place; its digests come last.

    content  returns the digests that are known already, by object

    Raises OSError where that fails; the file in place is then as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w+b", buffering=0) as raw:
            _fill(_Sink(raw), content)
            # The bytes before the name: after a crash of the machine the name must not lead to an empty file.
            os.fsync(raw.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _fill(sink: _Sink, content: Callable[[h5py.File], Mapping[str, str]]) -> None:
    try:
        # From 1.8 on attributes may be larger than 64 kB: long settings, long histories.
        with h5py.File(sink, "w", track_order=True, libver=("v108", "v110")) as file:
            known = content(file)
            file.flush()
            # What a full disk did not take must not be read back: HDF5 does not survive that.
            if sink.error is None:
                seal(file, known)
    except Exception:
        # where a write failed before, HDF5's own complaint is only what follows from it
        if sink.error is None:
            raise
    if sink.error is not None:
        raise sink.error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can. Raises OSError where it should and cannot."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(handle)
