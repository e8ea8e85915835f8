"""One surface, one file: read by anybody at any time, written by one process that may die at any moment.

While a survey runs, the truth is the journal `FILE.journal` (lossmap/io/journal.py); `FILE` is a snapshot of it,
written beside and renamed over every half minute or more seldom. Who reads, reads both. Nothing else is needed to
go on after a death: the snapshot, and over it the journal from its beginning.
"""

from __future__ import annotations

from pathlib import Path

from lossmap.io import journal as log
from lossmap.io import legacy, netcdf
from lossmap.io.disk import DiskFull, Path_, explained, place
from lossmap.io.journal import Busy
from lossmap.io.journal_replay import begun_in, grid_of, journal_of, resumed
from lossmap.io.memory_store import MemoryStore
from lossmap.io.netcdf import NotASurface
from lossmap.io.resume_check import Refused
from lossmap.io.surface import Failure, Group, Surface
from lossmap.io.writer import SurfaceFile, inspect_existing

__all__ = [
    "Busy",
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
    begun = begun_in(written)
    if begun is not None and not path.exists():
        return resumed(MemoryStore(grid_of(begun)), written)
    with netcdf.opened(path) as file:
        if not netcdf.is_ours(file):
            return legacy.surface_of(file, path)
        surface = netcdf.read_file(file, path)
    if begun is None or begun["id"] != surface.attributes.get("file_id"):
        return surface
    return resumed(MemoryStore.of(surface), written)


def training_path(path: Path_, directions_file: Path_ | None = None) -> Group:
    """The training path that a result holds, or a file of the original tool. Raises ValueError where there is none."""
    try:
        return legacy.trajectory(path, directions_file)
    except NotASurface:
        groups = read(path).groups
        if "trajectory" not in groups:
            raise ValueError(f"{path} holds no training path") from None
        return groups["trajectory"]


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


def is_being_written(path: Path_) -> bool:
    """Whether some process is writing this surface now; False where the file system cannot tell."""
    return log.is_locked(journal_of(path))


def write_surface(path: Path_, surface: Surface, overwrite: bool = False, tensors_from: Path_ | None = None) -> None:
    """Write a surface that is already there as a value: it appears whole or not at all.

    tensors_from  an earlier file, from which the tensors of the directions are copied; `read` leaves them behind

    Raises FileExistsError where there is a file and `overwrite` is not given; DiskFull; OSError.
    """
    path = place(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file, or say overwrite")
    with explained(path, "nothing was changed"):
        keep = None if tensors_from is None else Path(tensors_from)
        netcdf.write_whole(path, surface, keep)
