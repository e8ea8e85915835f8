"""The result file, read: see netcdf_write.py for its layout. Whatever is wrong with a file is one sentence."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from lossmap.geometry.grid import MAX_POINTS, Field, Grid
from lossmap.io import digests
from lossmap.io.checked import CheckedFile, plain
from lossmap.io.hdf5_open import Damaged, NotASurface, open_hdf5
from lossmap.io.netcdf_write import FORMAT, LARGE, OWN, VERSION, X, Y, digest
from lossmap.io.printable import printable_value
from lossmap.io.surface import FAILED, UNPROTECTED, VERIFIED, Failure, Group, Surface, indices_of

__all__ = ["Damaged", "NotASurface", "is_ours", "open_hdf5", "read_group_of", "read_surface"]

ATTEMPT_COUNTS = ("points", "seconds", "ranks", "nodes", "team", "measured_before")
# Attributes and groups that no other program writes: with one of them a file is ours, however damaged.
MARKS = ("format_version", "Conventions", "settings", "settings_digest", "history", digests.CONTENT)


def is_ours(source: CheckedFile) -> bool:
    """Whether this file is of our format (not of the original tool, nor of anybody else).

    Raises Damaged where it is ours by other marks, and its format is not readable as such.
    """
    attributes = source.raw_attributes()
    form = plain(attributes.get("format", ""))
    if isinstance(form, str) and form == FORMAT:
        return True
    marks = [name for name in MARKS if name in attributes]
    with source.explained(""):
        names = list(source.file)  # links of somebody else's file are none of our business
    statuses = [name for name in names if name.endswith("_status")]
    if digests.GROUP in names or statuses or len(marks) > 1:
        raise source.damaged(f"its format must be {FORMAT!r}; got {short_repr(form)}")
    return False


def short_repr(value: Any) -> str:
    """A value for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_surface(source: CheckedFile) -> Surface:
    """The surface in an open file of ours; of large groups (directions, tasks) only the attributes.

    Raises NotASurface where the file was written by a newer version, Damaged naming what is not as it was written.
    """
    attributes = source.attributes()
    with source.explained("format_version"):
        version = int(attributes.get("format_version", 0))
    if version > VERSION:
        raise NotASurface(
            f"{source.path} has format version {version}, and this lossmap reads up to {VERSION}: install a newer "
            "lossmap"
        )
    _check_attributes(source, attributes)
    integrity = VERIFIED if source.is_protected else UNPROTECTED
    source.check_names()
    settings = _settings(source, attributes)
    for name in OWN:
        attributes.pop(name, None)
    grid = read_grid(source)
    fields, about = _read_fields(source, grid)
    status, measures, parts = _read_statuses(source, grid, fields)
    groups = _read_groups(source)
    failures = _read_failures(source, grid)
    if "shard_points" in attributes:
        _indices(source, "shard_points", attributes["shard_points"], grid)
    return Surface(
        grid, fields, about, status, measures, settings, failures, attributes, groups, parts, integrity=integrity
    )


def _check_attributes(source: CheckedFile, attributes: dict[str, Any]) -> None:
    """Raise Damaged where a root attribute is no single value, or is none with which `lossmap status` can calculate."""
    for name, value in attributes.items():
        if np.ndim(value):
            raise source.damaged(f"its attribute {name} must be one value; got {short_repr(value)}")
        if name == "restarts" and not _is_count(value):
            raise source.damaged(f"its attribute restarts must be a number of times; got {short_repr(value)}")
        if name.endswith(("_took", "_estimate")) and not _is_cost(_parsed(value)):
            raise source.damaged(f"its attribute {name} must be a table of costs; got {short_repr(value)}")
        if name == "attempts" and not _are_attempts(_parsed(value)):
            raise source.damaged(f"its attribute attempts must be a list of runs; got {short_repr(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _parsed(text: Any) -> Any:
    """What a text of JSON says; None where it is none."""
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):
        return None


def _is_cost(table: Any) -> bool:
    """Whether it is the cost of a measure, see cost_model.py: numbers by name, and the one word for a backend."""
    if not isinstance(table, dict):
        return False
    known = (value for name, value in table.items() if name != "choice" and value is not None)
    is_whole = not table or None not in (table.get("seconds"), table.get("most"))
    return is_whole and all(isinstance(value, (int, float)) for value in known)


def _are_attempts(table: Any) -> bool:
    """Whether it is a list of the runs of a survey, whose numbers are numbers, see attempts.py."""
    if not isinstance(table, list) or not all(isinstance(run, dict) for run in table):
        return False
    if not all(_is_number(run.get("before", 0)) for run in table):  # below 0 where points were measured twice
        return False
    return all(_is_count(run.get(name, 0)) for run in table for name in ATTEMPT_COUNTS)


def read_grid(source: CheckedFile) -> Grid:
    """The ticks of a file as a grid. Raises Damaged where they are none."""
    ticks: list[np.ndarray] = []
    for name in (X, Y):
        if name not in source:
            continue
        values = source.array(name)
        if values.dtype.kind not in "fiu" or values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise source.damaged(f"{name} must be a row of finite numbers; got {short_repr(values)}")
        ticks.append(values)
    if X not in source:
        raise source.damaged(f"{X}, the ticks, are missing")
    points = math.prod(t.size for t in ticks)
    if points > MAX_POINTS:
        raise source.damaged(f"a grid must have <= {MAX_POINTS:,} points; got {points:,}")
    return Grid(*ticks)


def _settings(source: CheckedFile, attributes: dict[str, Any]) -> dict[str, Any]:
    """The settings, compared with their own digest, which version 0.1 wrote too."""
    attributes.pop("settings", None)
    with source.explained("its settings"):
        settings = json.loads(source.raw_attributes().get("settings", "{}"))
        stored, own = attributes.get("settings_digest"), digest(settings)
    if not isinstance(settings, dict) or (stored is not None and stored != own):
        raise source.damaged("its settings do not fit their digest: they were changed since they were written")
    for key in ("file", "measures"):
        if not isinstance(settings.get(key, {}), dict):
            raise source.damaged(f"its settings must hold a table {key!r}; got {short_repr(settings[key])}")
    return {name: printable_value(value) for name, value in settings.items()}


def _at_root(source: CheckedFile) -> list[str]:
    """The datasets at the root that are no ticks."""
    names = [name for name in source.names() if source.is_dataset(name)]
    return [name for name in names if not source.dataset(name).is_scale]


def _read_fields(source: CheckedFile, grid: Grid) -> tuple[dict[str, np.ndarray], dict[str, Field]]:
    fields, about = {}, {}
    for name in _at_root(source):
        item, attributes = source.dataset(name), source.attributes(name)
        if item.shape[: grid.axes] != grid.shape:
            raise source.damaged(f"{name} has the shape {item.shape}; of this grid it must be {grid.shape}")
        if "flag_values" in attributes:
            continue
        if item.dtype.kind not in "fiu":
            raise source.damaged(f"{name} must hold numbers; its type is {item.dtype}")
        fields[name] = source.array(name).astype(np.float64)
        extra = None
        if item.ndim > grid.axes:
            with source.explained(f"the dimensions of {name}"):
                scales = list(item.dims[grid.axes].keys())
            extra = (scales[0] if scales else f"{name}_index", int(item.shape[-1]))
        about[name] = Field(name, str(attributes.get("units", "1")), str(attributes.get("long_name", name)), extra)
    return fields, about


def _read_statuses(
    source: CheckedFile, grid: Grid, fields: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]], dict[str, np.ndarray]]:
    """By measure: its status, the names of its fields, and its points where they are not all."""
    status, measures, parts = {}, {}, {}
    for name in _at_root(source):
        attributes = source.attributes(name)
        if "flag_values" not in attributes:
            if name.endswith("_status"):
                raise source.damaged(f"{name} has no flag_values")
            continue
        measure = str(attributes.get("measure", name.removesuffix("_status")))
        states = source.array(name)
        if states.dtype.kind not in "iu" or states.shape != grid.shape:
            raise source.damaged(f"{name} must be whole numbers, {grid.shape}; got {states.dtype}, {states.shape}")
        if ((states < 0) | (states > FAILED)).any():
            raise source.damaged(f"{name} must be 0, 1 or 2; got {int(states[(states < 0) | (states > FAILED)][0])}")
        with source.explained(f"the list of fields of {name}"):
            names = tuple(str(field) for field in json.loads(attributes.get("fields", "[]")))
        for field in names:
            if field not in fields:
                raise source.damaged(f"{field}, a field of the measure {measure}, is missing")
        status[measure], measures[measure] = states, names
        if "points" in attributes:
            parts[measure] = _indices(source, f"the points of {name}", attributes["points"], grid)
    return status, measures, parts


def _indices(source: CheckedFile, name: str, text: Any, grid: Grid) -> np.ndarray:
    """Flat indices from their text. Raises Damaged where they are none of this grid."""
    with source.explained(name):
        for run in str(text).split(","):
            if run and not all(0 <= int(end) < len(grid) for end in run.split("-")):
                raise ValueError(run)
        return indices_of(str(text))


def _read_groups(source: CheckedFile) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for name in source.leaf_groups():
        parent = name.rpartition("/")[0]
        if parent and parent not in groups and source.raw_attributes(parent):
            groups[parent] = read_group_of(source, parent, arrays=False)
        if name != "failures":
            groups[name] = read_group_of(source, name, arrays=not name.startswith(LARGE))
    return groups


def _read_failures(source: CheckedFile, grid: Grid) -> tuple[Failure, ...]:
    if "failures" not in source:
        return ()
    group = read_group_of(source, "failures")
    if "point" not in group:
        return ()
    with source.explained("the list of failures"):
        columns = [group[name] for name in ("point", "rank", "host", "text", "measure")]
        failures = tuple(
            Failure(int(point), int(rank), str(host), str(text), str(measure))
            for point, rank, host, text, measure in zip(*columns, strict=True)
        )
    for failure in failures:
        if not 0 <= failure.index < len(grid):
            raise source.damaged(f"the list of failures names point {failure.index} of a grid of {len(grid)}")
    return failures


def read_group_of(source: CheckedFile, name: str, arrays: bool = True) -> Group:
    """A group of an open file; text arrays as str. Without `arrays`, its attributes alone.

    Raises Damaged naming what is not as it was written.
    """
    content: dict[str, np.ndarray] = {}
    attributes = source.attributes(name)
    if arrays:
        source.check_names(name)
        for key in source.names(name):
            if source.is_dataset(f"{name}/{key}"):
                content[key] = source.array(f"{name}/{key}")
    return Group(content, attributes)
