"""From the journal back to what is known: runs, measures, points, failures and notes, entered in their order."""

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
from lossmap.io import journal as log
from lossmap.io.memory_store import Declared, MemoryStore
from lossmap.io.surface import Failure, Surface, indices_of, spans, to_plain

RECENT = 1_000  # points whose time of arrival a reader is told
HEAD = np.dtype([("index", "<u8"), ("seconds", "<f8"), ("time", "<f8"), ("rank", "<i4")])
_HEAD = struct.Struct("<Qddi")  # the same for one point, written much faster


def journal_of(path: str | os.PathLike[str]) -> Path:
    """Where the journal of a surface file lies."""
    path = Path(path)
    return path.with_name(path.name + ".journal")


def packed(**content: Any) -> bytes:
    """Plain values as the payload of a record."""
    return json.dumps(to_plain(content), separators=(",", ":")).encode()


def point(measure: str, index: int, seconds: float, rank: int, row: np.ndarray) -> bytes:
    """The payload of the record of a point: its measure, when and where it was read, and what, (width,)."""
    name = measure.encode()
    return bytes((len(name),)) + name + _HEAD.pack(index, seconds, time.time(), rank) + row.astype("<f8").tobytes()


def begun_in(written: log.Contents) -> dict[str, Any] | None:
    """The last record of a run's beginning."""
    for record in reversed(written.records):
        if record.kind == b"O":
            return dict(json.loads(record.payload))
    return None


def grid_of(begun: Mapping[str, Any]) -> Grid:
    """The grid that a run's beginning tells of."""
    return Grid(np.array(begun["x"]), None if begun["y"] is None else np.array(begun["y"]))


def applied(ledger: MemoryStore, written: log.Contents) -> dict[str, list[np.ndarray]]:
    """Enter what the journal holds, in its order; the times at which points came in the last run, by measure."""
    came: dict[str, list[np.ndarray]] = {}
    for kind, payloads in log.runs(written.records):
        if kind == b"O":
            came = {}
            for payload in payloads:
                begun = json.loads(payload)
                _declare(ledger, begun["measures"])
                ledger.attributes = dict(begun["attributes"])
                if "shard_points" in ledger.attributes:
                    ledger.only = indices_of(ledger.attributes["shard_points"])
        elif kind == b"P":
            for name, rows in _by_measure(payloads):
                dtype = np.dtype([*HEAD.descr, ("values", "<f8", (ledger.measures[name].width,))])
                block = np.frombuffer(b"".join(rows), dtype=dtype)
                ledger.enter(name, block["index"].astype(np.int64), block["values"], block["seconds"], block["rank"])
                came.setdefault(name, []).append(block["time"][-RECENT:].copy())
        elif kind == b"M":
            for payload in payloads:
                _declare(ledger, json.loads(payload))
        elif kind == b"F":
            for payload in payloads:
                f = json.loads(payload)
                ledger.fail(f["measure"], f["index"], Failure(f["index"], f["rank"], f["host"], f["text"]))
        else:
            for payload in payloads:
                ledger.note(**json.loads(payload))
    return came


def declaration(declared: Declared) -> dict[str, Any]:
    """A measure as the journal tells of it."""
    return {
        "fields": [[f.name, f.unit, f.long_name, f.extra] for f in declared.fields],
        "settings": declared.settings,
        "points": None if declared.points is None else spans(declared.points),
    }


def _declare(ledger: MemoryStore, measures: Mapping[str, Any]) -> None:
    for name, told in measures.items():
        fields = [Field(f[0], f[1], f[2], tuple(f[3]) if f[3] else None) for f in told["fields"]]
        ledger.declare(name, fields, told["settings"], None if told["points"] is None else indices_of(told["points"]))


def _by_measure(payloads: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    rows: dict[bytes, list[bytes]] = {}
    for payload in payloads:
        behind = 1 + payload[0]
        rows.setdefault(payload[1:behind], []).append(payload[behind:])
    for name, content in rows.items():
        yield name.decode(), content


def resumed(ledger: MemoryStore, written: log.Contents) -> Surface:
    """The surface of a ledger after what the journal knows better."""
    came = applied(ledger, written)
    begun = begun_in(written)
    recent = {name: np.concatenate(parts)[-RECENT:] for name, parts in came.items()}
    told = {name: declared.settings for name, declared in ledger.measures.items()}
    return ledger.surface({"file": begun["identity"] if begun else {}, "measures": told}, recent)
