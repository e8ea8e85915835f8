"""Merging: the shards of a survey, each a file of its own over the whole grid, become the one file of one job.

Shards belong together when grid, plane, model and the settings of each measure are equal. Where two of them have
read the same point, the first named counts. What probes chose on different machines may differ, and is noted.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.io import attempts, methods
from lossmap.io.code_identity import ATTRIBUTE as CODE
from lossmap.io.code_identity import changes_between, decoded, described
from lossmap.io.memory_store import bookkeeping
from lossmap.io.read import is_being_written, read, write_surface
from lossmap.io.resume_check import Refused, axis_differences, short
from lossmap.io.surface import AUDIT, DONE, FAILED, TO_DO, Surface, canonical, differences, spans

OF_A_SHARD = ("shard_points", "shard")


def merge(paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], overwrite: bool = False) -> Surface:
    """Merge the shards into one file and return its surface; `missing(surface)` says what it still lacks.

    Raises Refused naming each difference where the shards do not belong together, ValueError where there is none or
    one is still being written, FileExistsError where the output is there; otherwise as `read` and `write_surface`.
    """
    files = [Path(p) for p in paths]
    if not files:
        raise ValueError("there are no shards to merge")
    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; name another file with --output, or say --overwrite")
    for file in files:
        if is_being_written(file):
            raise ValueError(f"{file} is still being written; merge when its job has ended")
    surface = merged([read(f) for f in files], [str(f) for f in files], output.name)
    write_surface(output, surface, overwrite=overwrite, tensors_from=files[0])
    return surface


def merged(shards: Sequence[Surface], names: Sequence[str], result: str = "") -> Surface:
    """The surface that the shards make together. Raises Refused naming each difference between them."""
    first = shards[0]
    for shard, name in zip(shards[1:], names[1:], strict=True):
        unequal = _differences(first, shard)
        if unequal:
            described = "; ".join(f"{what} is {short(a)} there, {short(b)} here" for what, a, b in unequal)
            raise Refused(f"{names[0]} and {name} are not shards of one survey: {described}", unequal)
    code_notes = _code_notes(shards, names)
    shards, method_notes = _of_one_method(shards, names)
    fields, about, status, measures = {}, {}, {}, {}
    for measure in dict.fromkeys(m for shard in shards for m in shard.status):
        having = [shard for shard in shards if measure in shard.status]
        source = _sources([shard.status[measure] for shard in having])
        states = np.stack([shard.status[measure] for shard in having])
        status[measure] = np.take_along_axis(states, source[None], axis=0)[0]
        measures[measure] = having[0].measures[measure]
        for field in (*measures[measure], *(f.name for f in bookkeeping(measure))):
            if all(field in shard for shard in having):
                stacked = np.stack([shard[field] for shard in having])
                index = source.reshape((1, *source.shape) + (1,) * (stacked.ndim - 1 - source.ndim))
                fields[field] = np.take_along_axis(stacked, index, axis=0)[0]
                about[field] = having[0].about[field]
    failures = {
        (f.measure, f.index): f
        for shard in reversed(shards)
        for f in shard.failures
        if f.measure in status and status[f.measure].reshape(-1)[f.index] == FAILED
    }
    return replace(
        first,
        fields=fields,
        about=about,
        status=status,
        measures=measures,
        settings=_settings(shards),
        failures=tuple(failures[key] for key in sorted(failures)),
        attributes=_attributes(shards, names, result, [*code_notes, *method_notes]),
        groups={name: group for shard in reversed(shards) for name, group in shard.groups.items()},
        parts=_parts(shards, status),
        recent={},
    )


def missing(surface: Surface) -> list[str]:
    """One line for each measure that lacks points: how many, and which."""
    lines = []
    for measure in surface.status:
        indices = surface.missing(measure)
        if indices.size:
            first = ", ".join(f"{c:g}" for c in surface.grid.point(int(indices[0])))
            counts = surface.counts(measure)
            which = spans(indices)
            which = which if len(which) <= 200 else f"{which[:200].rpartition(',')[0]},..."
            lines.append(
                f"{measure}: {counts['left']:,} points missing and {counts['failed']:,} failed, of "
                f"{len(surface.grid):,}: by index {which} (the first at ({first}))"
            )
    return lines


def _differences(ours: Surface, theirs: Surface) -> list[tuple[str, Any, Any]]:
    unequal: list[tuple[str, Any, Any]] = list(axis_differences(ours.grid, theirs.grid))
    unequal += differences(ours.settings.get("file", {}), theirs.settings.get("file", {}))
    digests = (ours.attributes.get("directions_digest"), theirs.attributes.get("directions_digest"))
    if digests[0] != digests[1]:
        unequal.append(("directions", *digests))
    mine, other = ours.settings.get("measures", {}), theirs.settings.get("measures", {})
    for measure in mine.keys() & other.keys():
        unequal += [(f"{measure}: {what}", a, b) for what, a, b in differences(mine[measure], other[measure])]
        if measure in ours.measures and measure in theirs.measures:
            names = ours.measures[measure], theirs.measures[measure]
            if names[0] != names[1]:
                unequal.append((f"{measure}: fields", ", ".join(names[0]), ", ".join(names[1])))
    return unequal


def _of_one_method(shards: Sequence[Surface], names: Sequence[str]) -> tuple[list[Surface], list[str]]:
    """The shards, where an earlier version has done some with its points to do again; what was done about it."""
    result, notes = list(shards), []
    for measure in dict.fromkeys(m for shard in shards for m in shard.status):
        having = [i for i, shard in enumerate(shards) if measure in shard.status]
        method = methods.method_of(measure, shards[having[0]].settings.get("measures", {}).get(measure, {}))
        if method is None or not any(methods.measured_by(shards[i], measure, method) for i in having):
            continue
        for i in having:
            done = shards[i].status[measure] == DONE
            if not methods.measured_by(shards[i], measure, method) and done.any():
                status = np.where(done, TO_DO, shards[i].status[measure]).astype(np.uint8)
                result[i] = replace(result[i], status={**result[i].status, measure: status})
                what = methods.described(int(done.sum()), measure, method)
                notes.append(f"{names[i]}: {what}; they are to be measured again")
    return result, notes


def _code_notes(shards: Sequence[Surface], names: Sequence[str]) -> list[str]:
    """What differs in the code that measured the shards, where its numbers agree within rounding.

    Raises Refused where they do not, naming what else differs.
    """
    notes = []
    for measure in dict.fromkeys(m for shard in shards for m in shard.status):
        codes = [(n, decoded(s.attributes.get(f"{CODE}{measure}"))) for s, n in zip(shards, names, strict=True)]
        known = [(name, code) for name, code in codes if code is not None]
        for name, code in known[1:]:
            changes = changes_between(known[0][1], code)
            if changes.values:
                raise Refused(
                    f"{known[0][0]} and {name} were measured by different code: {measure}: "
                    f"{described(changes.values)}; changed: {changes.named()}",
                    changes.values,
                )
            if changes.causes:
                notes.append(f"{known[0][0]} and {name}: {changes.named()}; {measure} is the same within rounding")
    return notes


def _sources(states: Sequence[np.ndarray]) -> np.ndarray:
    """Which shard each point comes from: the first that is done, else that failed, else any."""
    worth = np.array([1, 3, 2])  # of to do, done, failed
    return np.asarray(np.argmax(np.stack([worth[state] for state in states]), axis=0))


def _settings(shards: Sequence[Surface]) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for shard in reversed(shards):
        measures |= shard.settings.get("measures", {})
    return {"file": shards[0].settings.get("file", {}), "measures": measures}


def _parts(shards: Sequence[Surface], status: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An audit's points are those of all shards."""
    made = {}
    for measure in status:
        having = [shard for shard in shards if measure in shard.status]
        if all(measure in shard.parts for shard in having):
            made[measure] = np.unique(np.concatenate([shard.parts[measure] for shard in having]))
    return made


def _attributes(
    shards: Sequence[Surface], names: Sequence[str], result: str, own_notes: Sequence[str]
) -> dict[str, Any]:
    attributes = {k: v for k, v in shards[0].attributes.items() if k not in OF_A_SHARD}
    for shard in shards:  # points of another method are to do again
        attributes |= {k: v for k, v in shard.attributes.items() if k.startswith(methods.PREFIX)}
    for name, value in attributes.items():
        if name.startswith("resolved_"):  # from which a survey is resumed: not as a shard any more
            resolved = json.loads(value) if isinstance(value, str) else dict(value)
            resolved["settings"] = {**resolved.get("settings", {}), "shard": None, "surf_file": result or None}
            attributes[name] = resolved
    starts = [str(s.attributes["start"]) for s in shards if "start" in s.attributes]
    ends = [str(s.attributes["end"]) for s in shards if "end" in s.attributes]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    attributes |= {
        "file_id": secrets.token_hex(8),
        "restarts": sum(int(s.attributes.get("restarts", 0)) for s in shards),
        "history": f"{attributes.get('history', '')}\n{now} merged {len(shards)} shards: {', '.join(names)}".strip(),
        **({"start": min(starts)} if starts else {}),
        **({"end": max(ends)} if len(ends) == len(shards) else {}),
    }
    chosen = {canonical({m: own.get("chosen") for m, own in s.settings.get("measures", {}).items()}) for s in shards}
    notes = list(own_notes)
    if len(chosen) > 1:
        notes.append("probes chose differently in the shards, so last bits may differ: " + "; ".join(sorted(chosen)))
    audited = [name for shard, name in zip(shards, names, strict=True) if AUDIT[0] in shard.attributes]
    if audited:  # each judged its own points
        attributes = {name: value for name, value in attributes.items() if name not in AUDIT}
        rest = [name for name in names if name not in audited]
        without = f"; not audited: {', '.join(rest)}" if rest else ""
        notes.append(f"before the merge audited by themselves, as their own files say: {', '.join(audited)}{without}")
    if notes:
        attributes["merge_note"] = "; ".join(notes)
    made = [attempt for shard in shards for attempt in _attempts_of(shard)]
    if made:
        attributes[attempts.ATTRIBUTE] = made
    return attributes


def _attempts_of(shard: Surface) -> list[dict[str, Any]]:
    """The attempts that made a shard, with their points; what was there before each is of the shard alone."""
    settled = sum(shard.counts(name)["done"] + shard.counts(name)["failed"] for name in shard.status)
    made = attempts.counted(
        attempts.decoded(shard.attributes.get(attempts.ATTRIBUTE)), settled, attempts.measured_seconds(shard)
    )
    own = ("before", "measured_before")
    return [{name: value for name, value in attempt.items() if name not in own} for attempt in made]
