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
from lossmap.io.checked import CheckedFile, open_checked
from lossmap.io.disk import PathLike, check_free_space, explained, resolved
from lossmap.io.journal import Journal
from lossmap.io.journal_replay import grid_of, is_whole, journal_of, last_start, replay
from lossmap.io.memory_store import Convert, Measures, MemoryStore
from lossmap.io.netcdf_read import Damaged, NotASurface
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


@dataclass(frozen=True, eq=False)
class TakenUp:
    """What is known of a survey when its writer begins.

    memory    its points
    upgraded  whether it was upgraded from an earlier version's fields
    damage    what was wrong with the file, where the memory was rebuilt from the journal; else empty
    is_fresh  whether nothing was there
    """

    memory: MemoryStore
    upgraded: bool = False
    damage: str = ""
    is_fresh: bool = False


def take_up(path: Path, journal: Journal, survey: Survey) -> TakenUp:
    """What is known of the survey.

    Raises Refused naming each difference, NotASurface, or OSError where the disk has no room.
    """
    upgraded, damage, is_fresh = False, "", False
    if not path.exists() and last_start(journal.contents) is None:
        memory = MemoryStore(survey.grid, survey.measures, only=survey.only)
        is_fresh = True
    else:
        memory, identity, damage = stored(path, journal.contents)
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
    return TakenUp(memory, upgraded, damage, is_fresh)


def _outdated(memory: MemoryStore, survey: Survey) -> Upgrades:
    """The measures that the file keeps in other fields than today's, with what converts their readings."""
    return {
        name: convert
        for name, convert in survey.upgrades.items()
        if name in memory.measures and memory.measures[name].fields != tuple(survey.measures[name][0])
    }


def stored(path: Path, contents: log.Contents) -> tuple[MemoryStore, Mapping[str, Any], str]:
    """What a file and its journal hold, the file's own settings, and what is damaged where the journal alone counts.

    Raises NotASurface where they are not ours to continue, or do not belong together; Damaged where the file is not as
    it was written and the journal does not hold all.
    """
    start = last_start(contents)
    if not path.exists():
        if start is None:
            raise FileNotFoundError(f"there is no file {path}")
        return (*_from_journal(contents, start), "")
    try:
        surface = _continuable(path)
    except Damaged as error:
        if start is None or not is_whole(contents):
            raise
        return (*_from_journal(contents, start), str(error))
    if start is not None and start["id"] != surface.attributes.get("file_id"):
        raise NotASurface(
            f"{journal_of(path)} belongs to another file than {path}: move one of them away, or start anew "
            "with --overwrite"
        )
    memory = MemoryStore.of(surface)
    if "shard_points" in surface.attributes:
        memory.only = surface.planned_points()
    replay(memory, contents)
    return memory, surface.settings.get("file", {}), ""


def _from_journal(contents: log.Contents, start: Mapping[str, Any]) -> tuple[MemoryStore, Mapping[str, Any]]:
    memory = MemoryStore(grid_of(start))
    replay(memory, contents)
    return memory, start["identity"]


def _continuable(path: Path) -> Surface:
    """The surface in a file of ours. Raises NotASurface for one of the original tool."""
    with open_checked(path) as source:
        if not netcdf_read.is_ours(source):
            legacy.surface_of(source)
            raise NotASurface(
                f"{path} is a surface file of the original tool: it can be read and drawn, but not continued; "
                "name another file"
            )
        return netcdf_read.read_surface(source)


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
    memory, settings, _ = stored(path, contents)
    refuse(path, memory, settings, grid, to_plain(dict(identity or {})), measures or {})
    return memory.surface()


def check_overwritable(path: Path) -> None:
    """Raise NotASurface where the file is somebody else's, HDF5 or not; an empty or damaged one may go."""
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with open_checked(path) as source:
            if not _has_our_marks(source):
                _refuse_foreign(source)
    except Damaged:  # HDF5 cannot open it
        return
    except NotASurface:
        raise _foreign(path) from None


def _has_our_marks(source: CheckedFile) -> bool:
    try:
        return netcdf_read.is_ours(source)
    except Damaged:
        return True


def _refuse_foreign(source: CheckedFile) -> None:
    try:
        legacy.surface_of(source)
    except NotASurface:
        raise _foreign(source.path) from None


def _foreign(path: Path) -> NotASurface:
    return NotASurface(f"{path} is not a surface file, so it is not overwritten; name another file")
