"""Writing to disks: what the operating system says about it, as one sentence each, before anything is computed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lossmap.geometry.grid import Field
from lossmap.io.memory_store import MemoryStore

FULL = (errno.ENOSPC, errno.EDQUOT)
SMALLEST = 50_000  # bytes of a file that holds hardly anything
FRAME = 17_000  # bytes of a survey's file beside its arrays: attributes, digests, settings, HDF5's own
FRAME_OF_MEASURE = 13_000  # and for each measure
PathLike = str | os.PathLike[str]


class DiskFull(OSError):
    """No room on the disk. What was recorded before is safe."""


def resolved(path: PathLike) -> Path:
    """The file behind the name, links followed.

    Raises IsADirectoryError where it is a folder, FileNotFoundError where its own folder does not exist.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a surface is a file, such as {path / 'surface.h5'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or name another file")
    return path


def check_free_space(path: Path, memory: MemoryStore, arriving: int = 0) -> None:
    """Raise OSError (no space) where the disk can hardly take the file, its successor and the journal.

    arriving  bytes of the groups that will come with the readings
    """
    widths = sum(declared.width + 2 for declared in memory.measures.values())
    arrays = sum(a.nbytes for group in memory.groups.values() for a in group.arrays.values())
    # Fields and arriving groups lie in the file, in its successor while that is written, and in the journal.
    needed = len(memory.grid) * (3 * 8 * widths + 40 * len(memory.measures)) + 3 * arriving + 2 * arrays + SMALLEST
    disk = os.statvfs(path.parent)
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, f"the survey needs about {max(1, needed // 1_000_000):,} MB")


def file_bytes(points: int, measures: Sequence[Sequence[Field]]) -> int:
    """About what a survey's file takes, without directions: each reading, its seconds, rank and status.

    measures  the fields of each
    """
    widths = [sum(field.size for field in fields) for fields in measures]
    return FRAME + sum(FRAME_OF_MEASURE + points * (8 * width + 17) for width in widths)


@contextlib.contextmanager
def explained(path: Path, consequence: str) -> Iterator[None]:
    """Turn what the operating system says about writing into one sentence."""
    try:
        yield
    except OSError as error:
        raise explanation(error, path, consequence) from error


def explanation(error: OSError, path: Path, consequence: str) -> OSError:
    """The error with its sentence: which file, why, and what follows."""
    if isinstance(error, DiskFull):
        return error
    if error.errno in FULL:
        needs = f" ({error.strerror})" if "MB" in str(error.strerror) else ""
        explained_error: OSError = DiskFull(f"the disk that holds {path} is full{needs}: {consequence}")
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        explained_error = PermissionError(f"{path} cannot be written: no permission in {path.parent}; {consequence}")
    else:
        explained_error = type(error)(f"{path} cannot be written ({error.strerror or error}): {consequence}")
    explained_error.errno = error.errno
    return explained_error
