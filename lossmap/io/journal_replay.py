"""What the records of a journal hold, and from the journal back to what is known, entered in the order of the records.

The first record of a run (kind O) names grid, settings and measures; points (P) and failures (F) follow. The arrays of
a point that has groups (A) come before its own record, and count once that has come.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io import attempts
from lossmap.io import journal as log
from lossmap.io.memory_store import Declared, MemoryStore
from lossmap.io.printable import printable_value
from lossmap.io.surface import Failure, Group, Surface, indices_of, spans, to_plain

RECENT = 1_000  # points of each measure whose time of arrival a reader learns
REOPENED = "reopened"  # in a note: the points of a measure that are to be done again
PIECE = 1 << 28  # bytes of an array in one record
_POINT = np.dtype([("index", "<u8"), ("seconds", "<f8"), ("time", "<f8"), ("rank", "<i4")])
_POINT_HEAD = struct.Struct("<Qddi")  # the same for one point, written much faster
_LENGTH = struct.Struct("<I")


def journal_of(path: str | os.PathLike[str]) -> Path:
    """Where the journal of a surface file lies. Raises IsADirectoryError for a path without a name, such as `.`."""
    path = Path(path)
    if not path.name:
        raise IsADirectoryError(f"{path} is a folder; a surface is a file, such as surface.h5")
    return path.with_name(path.name + ".journal")


def json_payload(**content: Any) -> bytes:
    """Plain values as the payload of a record."""
    return json.dumps(to_plain(content), separators=(",", ":")).encode()


def _decoded(payload: bytes) -> dict[str, Any]:
    """The plain values in a payload, their texts printable."""
    values: dict[str, Any] = printable_value(json.loads(payload))
    return values


def point_payload(measure: str, index: int, seconds: float, rank: int, row: np.ndarray) -> bytes:
    """The payload of the record of a point: its measure, when and where it was read, and its fields, (width,)."""
    name = measure.encode()
    head = _POINT_HEAD.pack(index, seconds, time.time(), rank)
    return bytes((len(name),)) + name + head + row.astype("<f8").tobytes()


def array_payloads(measure: str, index: int, group: str, name: str, array: np.ndarray) -> Iterator[bytes]:
    """The payloads of the records of one array in a group of a point's reading.

    Each is the length of a head (uint32), the head as JSON, and up to `PIECE` bytes of numbers in C order: the length
    of a record is a uint32 too, and eigenvectors may take more bytes than that.
    """
    numbers = memoryview(array.tobytes())
    about = {"measure": measure, "index": index, "group": group, "name": name}
    for start in range(0, max(1, len(numbers)), PIECE):
        head = json_payload(**about, dtype=array.dtype.str, shape=array.shape, start=start)
        yield _LENGTH.pack(len(head)) + head + numbers[start : start + PIECE]


class _Arriving:
    """Arrays whose point has not come yet. Those that a killed run left never count: the point is computed again."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, int], dict[str, dict[str, np.ndarray]]] = {}

    def add(self, payload: bytes) -> None:
        """Take one piece of an array."""
        (length,) = _LENGTH.unpack_from(payload)
        begin = _LENGTH.size + length
        head = json.loads(payload[_LENGTH.size : begin])
        groups = self._points.setdefault((head["measure"], head["index"]), {})
        arrays = groups.setdefault(head["group"], {})
        if head["start"] == 0:
            arrays[head["name"]] = np.empty(head["shape"], dtype=np.dtype(head["dtype"]))
        piece = np.frombuffer(payload, dtype=np.uint8, offset=begin)
        # as bytes, since a piece may end within a number
        flat = arrays[head["name"]].reshape(-1).view(np.uint8)
        flat[head["start"] : head["start"] + piece.size] = piece

    def of(self, measure: str, indices: np.ndarray) -> dict[str, Group]:
        """The groups of points whose own record has come now."""
        groups: dict[str, Group] = {}
        for index in indices.tolist():
            arrived = self._points.pop((measure, index), {})
            groups |= {name: Group(arrays) for name, arrays in arrived.items()}
        return groups


def last_start(contents: log.Contents) -> dict[str, Any] | None:
    """The newest record of a run's start; None where there is none."""
    for record in reversed(contents.records):
        if record.kind == b"O":
            return _decoded(record.payload)
    return None


def is_whole(contents: log.Contents) -> bool:
    """Whether the journal alone holds all that was recorded: it begins with the survey, and nothing in it is damaged.

    A journal of version 0.1 does not say whether it does.
    """
    first = contents.records[0] if contents.records else None
    if first is None or first.kind != b"O" or contents.damaged:
        return False
    return bool(_decoded(first.payload).get("is_fresh", False))


def grid_of(start: Mapping[str, Any]) -> Grid:
    """The grid in the record of a run's start."""
    return Grid(np.array(start["x"]), None if start["y"] is None else np.array(start["y"]))


def _trusted(records: list[log.Record]) -> list[log.Record]:
    """The records without the points of which an array may be missing: the first after each damaged stretch.

    Such a point is computed again, and a failure that is lost too.
    """
    if not any(record.follows_damage for record in records):
        return records
    trusted, doubtful = [], False
    for record in records:
        doubtful = doubtful or record.follows_damage
        if doubtful and record.kind in b"AP":
            doubtful = record.kind != b"P"
            continue
        trusted.append(record)
    return trusted


def replay(memory: MemoryStore, contents: log.Contents) -> dict[str, list[np.ndarray]]:
    """Enter what the journal holds, in its order; the times at which points came in the last run, by measure."""
    times: dict[str, list[np.ndarray]] = {}
    arriving = _Arriving()
    for kind, payloads in log.runs(_trusted(contents.records)):
        if kind == b"O":
            times, arriving = {}, _Arriving()
            for payload in payloads:
                _start(memory, _decoded(payload))
        elif kind == b"A":
            for payload in payloads:
                arriving.add(payload)
        elif kind == b"P":
            # Points come in long runs of records, and are entered together: thousands take milliseconds.
            for name, points in _points_by_measure(memory, payloads):
                indices = points["index"].astype(np.int64)
                memory.insert(name, indices, points["values"], points["seconds"], points["rank"])
                memory.groups |= arriving.of(name, indices)
                times.setdefault(name, []).append(points["time"][-RECENT:].copy())
        else:
            for payload in payloads:
                _REPLAYED[kind](memory, _decoded(payload))
    return times


def _fail(memory: MemoryStore, failure: Mapping[str, Any]) -> None:
    index = failure["index"]
    if failure["measure"] not in memory.measures:  # as with points
        return
    memory.fail(failure["measure"], index, Failure(index, failure["rank"], failure["host"], failure["text"]))


def _note(memory: MemoryStore, attributes: Mapping[str, Any]) -> None:
    again = attributes.get(REOPENED)
    if again is None:
        memory.note(**attributes)
    elif again["measure"] in memory.measures:
        memory.reopen(again["measure"], indices_of(again["points"]))
        if "before" in again:  # journals of earlier versions do not say it
            memory.attributes |= attempts.with_points_before(memory.attributes, again["before"])


def _start(memory: MemoryStore, start: Mapping[str, Any]) -> None:
    _declare(memory, start["measures"])
    snapshot = attempts.decoded(memory.attributes.get(attempts.ATTRIBUTE))
    memory.attributes = dict(start["attributes"])
    if len(snapshot) == len(attempts.decoded(memory.attributes.get(attempts.ATTRIBUTE))) > 0:
        memory.attributes[attempts.ATTRIBUTE] = snapshot  # which has counted points and time of this attempt since
    if "shard_points" in memory.attributes:
        memory.only = indices_of(memory.attributes["shard_points"])


def declaration(declared: Declared) -> dict[str, Any]:
    """A measure as the journal describes it."""
    return {
        "fields": [[f.name, f.unit, f.long_name, f.extra] for f in declared.fields],
        "settings": declared.settings,
        "points": None if declared.points is None else spans(declared.points),
    }


def _declare(memory: MemoryStore, measures: Mapping[str, Any]) -> None:
    for name, described in measures.items():
        fields = [Field(f[0], f[1], f[2], tuple(f[3]) if f[3] else None) for f in described["fields"]]
        points = None if described["points"] is None else indices_of(described["points"])
        memory.declare(name, fields, described["settings"], points)


_REPLAYED = {b"M": _declare, b"F": _fail, b"N": _note}


def _points_by_measure(memory: MemoryStore, payloads: list[bytes]) -> Iterator[tuple[str, np.ndarray]]:
    """The points of each measure, as `_POINT` with their `values` (width,) behind."""
    rows: dict[bytes, list[bytes]] = {}
    for payload in payloads:
        begin = 1 + payload[0]  # behind the name of the measure
        rows.setdefault(payload[1:begin], []).append(payload[begin:])
    for name, content in rows.items():
        measure = name.decode()
        if measure not in memory.measures:  # its declaration was lost in a damaged stretch: they are computed again
            continue
        dtype = np.dtype([*_POINT.descr, ("values", "<f8", (memory.measures[measure].width,))])
        yield measure, np.frombuffer(b"".join(content), dtype=dtype)


def surface_after(memory: MemoryStore, contents: log.Contents) -> Surface:
    """The surface of what a snapshot holds and of what the journal knows better."""
    times = replay(memory, contents)
    start = last_start(contents)
    recent = {name: np.concatenate(parts)[-RECENT:] for name, parts in times.items()}
    measures = {name: declared.settings for name, declared in memory.measures.items()}
    identity = {} if start is None else start["identity"]
    return memory.surface({"file": identity, "measures": measures}, recent)
