"""Results held in memory: the points of a survey so far, one array a field. NumPy alone.

A survey without a file keeps its points here alone; the writer of a file keeps them here and in its journal.
Memory: 8 bytes a point for each field and two more, seconds and rank, of each measure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.surface import DONE, FAILED, TO_DO, Failure, Group, Surface, to_plain

# field name -> number, or array where the field has a further dimension; group name -> {array name: array}
Reading = Mapping[str, Any]
Measures = Mapping[str, tuple[Sequence[Field], Mapping[str, Any]]]  # name -> (fields, settings)


# (flat index, {field of an earlier version: numbers}) -> the reading of today
Convert = Callable[[int, Mapping[str, Any]], Reading]


@dataclass(frozen=True)
class Declared:
    """A measure as the store sees it: its fields, its settings, and its points where they are not all."""

    fields: tuple[Field, ...]
    settings: Mapping[str, Any]
    points: np.ndarray | None = None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers per point of each field, in order."""
        return {field.name: field.size for field in self.fields}

    @cached_property
    def width(self) -> int:
        """Numbers per point of all fields."""
        return sum(self.sizes.values())


def groups_in(reading: Reading) -> dict[str, Group]:
    """The groups of a reading: its values that are dicts of named arrays, of any shapes and precisions."""
    return {
        name: Group({key: np.asarray(array) for key, array in value.items()})
        for name, value in reading.items()
        if isinstance(value, dict)
    }


class GroupArrays(Mapping[str, Mapping[str, np.ndarray]]):
    """The arrays of a store's groups by the group's name, each group read when it is asked for."""

    def __init__(self, names: Collection[str], group: Callable[[str], Group]) -> None:
        self._names, self._group = names, group

    def __getitem__(self, name: str) -> Mapping[str, np.ndarray]:
        return self._group(name).arrays

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Store(Protocol):
    """Where a survey records its points: memory, or the writer of a file."""

    @property
    def only(self) -> np.ndarray: ...
    def settings(self, measure: str) -> dict[str, Any]: ...
    def declare(
        self, name: str, fields: Sequence[Field], settings: Mapping[str, Any], points: np.ndarray | None = None
    ) -> None: ...
    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray: ...
    def record(self, measure: str, index: int, reading: Reading, seconds: float, rank: int = 0) -> None: ...
    def fail(self, measure: str, index: int, failure: Failure) -> None: ...
    def reopen(self, measure: str, indices: np.ndarray) -> None: ...
    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None: ...
    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]: ...
    def note(self, **attributes: Any) -> None: ...
    def put(self, name: str, group: Group) -> None: ...
    def tick(self) -> None: ...
    def surface(self) -> Surface: ...
    def close(self) -> None: ...


def with_unknown_fields(fields: Sequence[Field], kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A reading of these fields from what an earlier version kept of it, arrays by name: what it had not is NaN."""
    values = {f.name: np.full(f.size, np.nan) for f in fields} | dict(kept)
    return {f.name: values[f.name] if f.extra else float(values[f.name][0]) for f in fields}


def bookkeeping(measure: str) -> tuple[Field, Field]:
    """The two fields that say where the time went."""
    return (
        Field(f"{measure}_seconds", "s", f"time spent on the point by the measure {measure}"),
        Field(f"{measure}_rank", "1", f"rank that computed the point for the measure {measure}"),
    )


class MemoryStore:
    """The points of a survey, done, failed and left. One writer; its methods may be called from any thread.

    grid      the ticks
    measures  {name: (fields, settings)}
    only      the flat indices that are to be done here; all, if left out
    """

    def __init__(self, grid: Grid, measures: Measures | None = None, *, only: np.ndarray | None = None) -> None:
        self.grid = grid
        self._only = np.arange(len(grid)) if only is None else np.unique(np.asarray(only, dtype=np.int64))
        self.measures: dict[str, Declared] = {}
        self.attributes: dict[str, Any] = {"start": _now()}
        self.groups: dict[str, Group] = {}
        self.lock = threading.RLock()
        self._values: dict[str, np.ndarray] = {}  # by measure, (points, width): one row a point
        self._seconds: dict[str, np.ndarray] = {}
        self._rank: dict[str, np.ndarray] = {}
        self._status: dict[str, np.ndarray] = {}
        self._failures: dict[tuple[str, int], Failure] = {}
        self._unfinished: dict[str, dict[int, dict[str, Any]]] = {}
        for name, (fields, settings) in (measures or {}).items():
            self.declare(name, fields, settings)

    @property
    def only(self) -> np.ndarray:
        """The flat indices that are to be done here."""
        return self._only

    @only.setter
    def only(self, indices: np.ndarray) -> None:
        self._only = np.unique(np.asarray(indices, dtype=np.int64))

    def declare(
        self, name: str, fields: Sequence[Field], settings: Mapping[str, Any], points: np.ndarray | None = None
    ) -> None:
        """Make room for a measure, of these points alone where they are given (an audit).

        A measure that is here already keeps its points; its numbers too, unless it now has other fields.

        Raises ValueError where another measure has a field of the same name.
        """
        for other, declared in self.measures.items():
            shared = {f.name for f in fields} & {f.name for f in declared.fields}
            if shared and other != name:
                raise ValueError(f"the measures {other!r} and {name!r} both read {', '.join(sorted(shared))}")
        self.measures[name] = Declared(
            tuple(fields), to_plain(dict(settings)), None if points is None else np.unique(np.asarray(points, np.int64))
        )
        n, width = len(self.grid), self.measures[name].width
        if name not in self._values or self._values[name].shape[1] != width:
            self._values[name] = np.full((n, width), np.nan)
        if name not in self._status:
            self._seconds[name] = np.full(n, np.nan)
            self._rank[name] = np.full(n, np.nan)
            self._status[name] = np.full(n, TO_DO, dtype=np.uint8)

    def settings(self, measure: str) -> dict[str, Any]:
        """The measure's settings, and under "chosen" what its probe chose."""
        return dict(self.measures[measure].settings)

    def todo(self, measure: str, retry_failed: bool = False) -> np.ndarray:
        """The flat indices that are still to be done, ascending."""
        points = self.measures[measure].points
        here = self.only if points is None else np.intersect1d(self.only, points)
        status = self._status[measure][here]
        is_due = status == TO_DO
        if retry_failed:
            is_due |= status == FAILED
        result: np.ndarray = here[is_due]
        return result

    def status(self, measure: str) -> np.ndarray:
        """The statuses by flat index, as they stand; not to be written to."""
        return self._status[measure]

    def row(self, measure: str, reading: Reading) -> np.ndarray:
        """The fields of a reading as one row of numbers, (width,); its groups are left out.

        Raises ValueError naming what is missing or too much.
        """
        declared = self.measures[measure]
        reading = {name: value for name, value in reading.items() if not isinstance(value, dict)}
        if reading.keys() != declared.sizes.keys():
            missing, more = sorted(declared.sizes.keys() - reading), sorted(reading.keys() - declared.sizes.keys())
            raise ValueError(
                f"a reading of {measure!r} must have the fields {', '.join(declared.sizes)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(more) or 'none'}"
            )
        row = np.empty(declared.width)
        at = 0
        for name, size in declared.sizes.items():
            number = reading[name]
            if size == 1 and isinstance(number, float):  # by far the most are, and rank 0 meets every one
                row[at] = number
                at += 1
                continue
            value = np.asarray(number, dtype=np.float64).reshape(-1)
            if value.size != size:
                raise ValueError(f"the field {name!r} takes {size} numbers a point; got {value.size}")
            row[at : at + size] = value
            at += size
        return row

    @property
    def measured_seconds(self) -> float:
        """The seconds that all points took."""
        return float(sum(np.nansum(seconds) for seconds in self._seconds.values()))

    def insert(self, measure: str, index: Any, rows: np.ndarray, seconds: Any, rank: Any) -> None:
        """Enter one point, or many at once (index (p,), rows (p, width)); a later entry replaces an earlier one."""
        self._values[measure][index] = rows
        self._seconds[measure][index] = seconds
        self._rank[measure][index] = rank
        self._status[measure][index] = DONE
        if self._failures:
            for i in np.atleast_1d(index):
                self._failures.pop((measure, int(i)), None)

    def record(self, measure: str, index: int, reading: Reading, seconds: float, rank: int = 0) -> None:
        """Enter a point that is done."""
        with self.lock:
            self.check(index)
            self.insert(measure, index, self.row(measure, reading), seconds, rank)
            self.groups |= groups_in(reading)
            self._unfinished.get(measure, {}).pop(index, None)

    def reopen(self, measure: str, indices: np.ndarray) -> None:
        """Let points that are done be to do again; until they are, their numbers stay."""
        with self.lock:
            status = self._status[measure]
            status[indices] = np.where(status[indices] == DONE, TO_DO, status[indices])

    def fail(self, measure: str, index: int, failure: Failure) -> None:
        """Enter a point that failed; its fields become NaN."""
        with self.lock:
            self.check(index)
            self._values[measure][index] = np.nan
            self._seconds[measure][index] = np.nan
            self._rank[measure][index] = failure.rank
            self._status[measure][index] = FAILED
            self._failures[measure, index] = replace(failure, measure=measure, index=index)
            self._unfinished.get(measure, {}).pop(index, None)

    def check(self, index: int) -> None:
        """Raises IndexError where the grid has no such point."""
        if not 0 <= index < len(self.grid):
            raise IndexError(f"point {index} of a grid of {len(self.grid)}")

    def save_unfinished(self, measure: str, index: int, state: Mapping[str, Any]) -> None:
        """Keep the state of a point that was left before its end."""
        self._unfinished.setdefault(measure, {})[index] = dict(state)

    def unfinished(self, measure: str) -> Mapping[int, dict[str, Any]]:
        """The states of the points that were left before their end, by flat index."""
        return self._unfinished.get(measure, {})

    def note(self, **attributes: Any) -> None:
        """Keep root attributes: the outcome of an audit, what a probe chose."""
        with self.lock:
            self.attributes |= to_plain(attributes)

    def put(self, name: str, group: Group) -> None:
        """Keep a group of arrays beside the fields."""
        with self.lock:
            self.groups[name] = group

    def tick(self) -> None:
        """Nothing to synchronise in memory; for the same use as a file."""

    def close(self) -> None:
        """Nothing to close in memory; for the same use as a file."""
        self.note(end=_now())

    def upgrade(self, measure: str, fields: Sequence[Field], convert: Convert) -> None:
        """Take the points that an earlier version kept in other fields over into these fields, and groups.

        convert  each field has its numbers, (extra,) or (1,)
        """
        declared, rows = self.measures[measure], self._values[measure]
        ends = np.cumsum(list(declared.sizes.values()))[:-1]
        done = [int(index) for index in np.flatnonzero(self._status[measure] == DONE)]
        readings = {i: convert(i, dict(zip(declared.sizes, np.split(rows[i], ends), strict=True))) for i in done}
        self.declare(measure, fields, declared.settings, declared.points)
        for index, reading in readings.items():
            self._values[measure][index] = self.row(measure, reading)
            self.groups |= groups_in(reading)

    def group(self, name: str) -> Group:
        """The group of this name with its arrays. Raises KeyError where there is none."""
        return self.groups[name]

    @property
    def arrays(self) -> GroupArrays:
        """The arrays of the groups, by name."""
        return GroupArrays(tuple(self.groups), self.group)

    def complete(self) -> bool:
        """Whether no point of any measure is left to do."""
        return all(self.todo(name).size == 0 for name in self.measures)

    def surface(
        self, settings: Mapping[str, Any] | None = None, recent: Mapping[str, np.ndarray] | None = None
    ) -> Surface:
        """What is known by now, as a value of its own."""
        with self.lock:
            fields, about = {}, {}
            shape = self.grid.shape
            for name, declared in self.measures.items():
                at = 0
                for field in declared.fields:
                    size = field.size
                    block = self._values[name][:, at : at + size]
                    fields[field.name] = block.reshape((*shape, size) if field.extra else shape).copy()
                    about[field.name] = field
                    at += size
            for name in self.measures:
                seconds, rank = bookkeeping(name)
                fields[seconds.name] = self._seconds[name].reshape(shape).copy()
                fields[rank.name] = self._rank[name].reshape(shape).copy()
                about |= {seconds.name: seconds, rank.name: rank}
            return Surface(
                self.grid,
                fields,
                about,
                {name: status.reshape(shape).copy() for name, status in self._status.items()},
                {name: tuple(f.name for f in declared.fields) for name, declared in self.measures.items()},
                settings or {"measures": {n: to_plain(d.settings) for n, d in self.measures.items()}},
                tuple(self._failures[key] for key in sorted(self._failures)),
                dict(self.attributes),
                dict(self.groups),
                {name: d.points for name, d in self.measures.items() if d.points is not None},
                recent or {},
            )

    @classmethod
    def of(cls, surface: Surface) -> MemoryStore:
        """A memory that goes on from this surface."""
        memory = cls(surface.grid)
        settings = surface.settings.get("measures", {})
        for name, names in surface.measures.items():
            fields = [surface.about[n] for n in names]
            memory.declare(name, fields, settings.get(name, {}), surface.parts.get(name))
            if fields:
                columns = [surface.fields[n].reshape(len(surface.grid), -1) for n in names]
                memory._values[name][:] = np.concatenate(columns, axis=1)
            memory._status[name][:] = surface.status[name].reshape(-1)
            for target, field in zip((memory._seconds, memory._rank), bookkeeping(name), strict=True):
                if field.name in surface.fields:
                    target[name][:] = surface.fields[field.name].reshape(-1)
        memory._failures = {(f.measure, f.index): f for f in surface.failures}
        memory.attributes = dict(surface.attributes)
        memory.groups = dict(surface.groups)
        return memory


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
