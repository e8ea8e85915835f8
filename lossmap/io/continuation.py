"""What is there before a writer begins: found in the file and its journal, compared with the request, taken up."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io import journal as log
from lossmap.io import legacy, netcdf_read
from lossmap.io.disk import PathLike, check_free_space, explained, resolved
from lossmap.io.journal import Journal
from lossmap.io.journal_replay import grid_of, journal_of, last_start, replay
from lossmap.io.memory_store import Convert, Measures, MemoryStore
from lossmap.io.netcdf_read import NotASurface
from lossmap.io.partial_points import folder_of
from lossmap.io.resume_check import refuse
from lossmap.io.surface import Surface, to_plain

Upgrades = Mapping[str, Convert]  # by measure


@dataclass(frozen=True, eq=False)
class Survey:
    """What a file is opened for; the words are those of `SurfaceFile.open`."""

    grid: Grid
    identity: Mapping[str, Any] = field(default_factory=dict)
    measures: Measures = field(default_factory=dict)
    only: np.ndarray | None = None
    expected_bytes: int = 0
    upgrades: Upgrades = field(default_factory=dict)


def begin_anew(path: Path, journal: Journal, survey: Survey) -> MemoryStore:
    """An empty memory for the survey; what lay there is given up, its journal and unfinished points at once.

    Raises NotASurface where the file is somebody else's; OSError where the disk has no room. Nothing is changed then.
    """
    check_overwritable(path)
    memory = MemoryStore(survey.grid, survey.measures, only=survey.only)
    with explained(path, "nothing was changed"):
        check_free_space(path, memory, survey.expected_bytes)
        journal.clear()
        shutil.rmtree(folder_of(path), ignore_errors=True)
    return memory


def take_up(path: Path, journal: Journal, survey: Survey) -> tuple[MemoryStore, bool]:
    """What is known of the survey, and whether it was upgraded from an earlier version's fields.

    Raises Refused naming each difference, NotASurface, or OSError where the disk has no room.
    """
    upgraded = False
    if not path.exists() and last_start(journal.contents) is None:
        memory = MemoryStore(survey.grid, survey.measures, only=survey.only)
    else:
        memory, identity = stored(path, journal.contents)
        outdated = _outdated(memory, survey)
        # The fields of an earlier version are no difference; all else of the measure is compared as always.
        former = {name: (memory.measures[name].fields, survey.measures[name][1]) for name in outdated}
        refuse(path, memory, identity, survey.grid, survey.identity, {**survey.measures, **former})
        for name, convert in outdated.items():
            memory.upgrade(name, survey.measures[name][0], convert)
            upgraded = True
        if survey.only is not None:
            memory.only = survey.only
        for name, (fields, settings) in survey.measures.items():
            if name not in memory.measures:
                memory.declare(name, fields, settings)
        if not memory.complete():
            memory.attributes["restarts"] = int(memory.attributes.get("restarts", 0)) + 1
    with explained(path, "nothing was changed"):
        check_free_space(path, memory, survey.expected_bytes)
    return memory, upgraded


def _outdated(memory: MemoryStore, survey: Survey) -> Upgrades:
    """The measures that the file keeps in other fields than today's, with what converts their readings."""
    return {
        name: convert
        for name, convert in survey.upgrades.items()
        if name in memory.measures and memory.measures[name].fields != tuple(survey.measures[name][0])
    }


def stored(path: Path, contents: log.Contents) -> tuple[MemoryStore, Mapping[str, Any]]:
    """What a file and its journal hold, and the file's own settings.

    Raises NotASurface where they are not ours to continue, or do not belong together.
    """
    start = last_start(contents)
    if not path.exists():
        if start is None:
            raise FileNotFoundError(f"there is no file {path}")
        memory = MemoryStore(grid_of(start))
        replay(memory, contents)
        return memory, start["identity"]
    with netcdf_read.open_hdf5(path) as file:
        if not netcdf_read.is_ours(file):
            legacy.surface_of(file, path)
            raise NotASurface(
                f"{path} is a surface file of the original tool: it can be read and drawn, but not continued; "
                "name another file"
            )
        surface = netcdf_read.read_surface(file, path)
    if start is not None and start["id"] != surface.attributes.get("file_id"):
        raise NotASurface(
            f"{journal_of(path)} belongs to another file than {path}: move one of them away, or start anew "
            "with --overwrite"
        )
    memory = MemoryStore.of(surface)
    if "shard_points" in surface.attributes:
        memory.only = surface.planned_points()
    replay(memory, contents)
    return memory, surface.settings.get("file", {})


def inspect_existing(
    path: PathLike,
    grid: Grid,
    *,
    identity: Mapping[str, Any] | None = None,
    measures: Measures | None = None,
    overwrite: bool = False,
) -> Surface | None:
    """What is known of a survey that `SurfaceFile.open` would continue; None where it would begin a file. Reads only.

    Raises as `open` does where it would refuse.
    """
    path = resolved(path)
    if overwrite:
        check_overwritable(path)
        return None
    contents = log.read(journal_of(path))
    if not path.exists() and last_start(contents) is None:
        return None
    memory, settings = stored(path, contents)
    refuse(path, memory, settings, grid, to_plain(dict(identity or {})), measures or {})
    return memory.surface()


def check_overwritable(path: Path) -> None:
    """Raise NotASurface where the file is somebody else's, HDF5 or not; an empty or damaged one may go."""
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with netcdf_read.open_hdf5(path) as file:
            if not netcdf_read.is_ours(file):
                legacy.surface_of(file, path)
    except netcdf_read.Damaged:
        return
    except NotASurface:
        raise NotASurface(f"{path} is not a surface file, so it is not overwritten; name another file") from None
