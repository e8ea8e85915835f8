"""One surface, one file: read by anybody at any time, written by one process that may die at any moment.

While a survey runs, the truth is the journal `FILE.journal` (lossmap/io/journal.py); `FILE` is a snapshot of it,
written beside and renamed over every half minute or more seldom. Who reads, reads both. Nothing else is needed to
go on after a death: the snapshot, and over it the journal from its beginning.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lossmap.io import journal as log
from lossmap.io import legacy, netcdf_read
from lossmap.io.checked import open_checked
from lossmap.io.continuation import inspect_existing
from lossmap.io.disk import DiskFull, PathLike, explained, resolved
from lossmap.io.journal import Busy
from lossmap.io.journal_replay import grid_of, is_whole, journal_of, last_start, surface_after
from lossmap.io.memory_store import MemoryStore
from lossmap.io.netcdf_read import Damaged, NotASurface
from lossmap.io.netcdf_write import write_result
from lossmap.io.resume_check import Refused
from lossmap.io.surface import REBUILT, Failure, Group, Surface
from lossmap.io.writer import SurfaceFile

__all__ = [
    "Busy",
    "Damaged",
    "DiskFull",
    "Failure",
    "Group",
    "MemoryStore",
    "NotASurface",
    "Refused",
    "Surface",
    "SurfaceFile",
    "inspect_existing",
    "is_being_written",
    "journal_of",
    "read",
    "read_group",
    "training_path",
    "write_surface",
]


def read(path: PathLike) -> Surface:
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
            return replace(surface, source=str(path.absolute()))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _snapshot(path: Path, written: log.Contents) -> Surface:
    start = last_start(written)
    if start is not None and not path.exists():
        return surface_after(MemoryStore(grid_of(start)), written)
    try:
        with open_checked(path) as source:
            if not netcdf_read.is_ours(source):
                return legacy.surface_of(source)
            surface = netcdf_read.read_surface(source)
    except Damaged as error:
        if start is None or not is_whole(written):
            raise
        surface = surface_after(MemoryStore(grid_of(start)), written)
        return replace(surface, integrity=f"{REBUILT} ({error})")
    if start is None or start["id"] != surface.attributes.get("file_id"):
        return surface
    return replace(surface_after(MemoryStore.of(surface), written), integrity=surface.integrity)


def training_path(path: PathLike, directions_file: PathLike | None = None) -> Group:
    """The training path that a result holds, or a file of the original tool. Raises ValueError where there is none."""
    try:
        return legacy.trajectory(path, directions_file)
    except NotASurface:
        groups = read(path).groups
        if "trajectory" not in groups:
            raise ValueError(f"{path} holds no training path") from None
        return groups["trajectory"]


def is_of_another_plane(path: PathLike, digest: str | None) -> bool | None:
    """Whether the training path in a file belongs to another plane than that of this digest; None: not known."""
    try:
        axis = read(path).groups.get("directions/x")
    except NotASurface:  # a path of the original tool does not name its plane
        return None
    own = None if axis is None else axis.attributes.get("digest")
    return None if own is None or digest is None else own != digest


def read_group(path: PathLike, name: str) -> Group:
    """A group of a surface file with all its arrays, such as `directions/x`.

    Raises KeyError naming the groups that there are; otherwise as `read`.
    """
    path = Path(path)
    with open_checked(path) as source:
        if name not in source or not source.is_group(name):
            there = ", ".join(source.leaf_groups()) or "none"
            raise KeyError(f"{path} holds no group {name!r}; there are: {there}")
        return netcdf_read.read_group_of(source, name)


def is_being_written(path: PathLike) -> bool:
    """Whether some process is writing this surface now; False where the file system cannot tell."""
    return log.is_locked(journal_of(path))


def write_surface(
    path: PathLike, surface: Surface, overwrite: bool = False, tensors_from: PathLike | None = None
) -> None:
    """Write a surface that is already there as a value: it appears whole or not at all.

    tensors_from  an earlier file, from which the tensors of the directions are copied; `read` leaves them behind

    Raises FileExistsError where there is a file and `overwrite` is not given; DiskFull; OSError.
    """
    path = resolved(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file, or say overwrite")
    with explained(path, "nothing was changed"):
        earlier = None if tensors_from is None else Path(tensors_from)
        write_result(path, surface, earlier)
