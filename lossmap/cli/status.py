"""`lossmap status FILE`: how far a result is, from the files alone, also while a job writes them.

It needs neither torch nor MPI, so a login node will do. The exit code is what scripts ask for: 0 complete, 3
complete but for failed points, 75 more to do, 2 no result there.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli.settings import EXIT, UsageError, guarded, parse, setting
from lossmap.io.read import is_being_written, read
from lossmap.io.surface import Surface
from lossmap.parallel.cost_model import decode_cost, measured_cost, side_by_side, span_text, stored_estimate

SHOWN = 5  # slowest points and ranks, and failures, that the text names


@dataclass(frozen=True)
class StatusSettings:
    """What to tell."""

    file: str = setting(MISSING, "the result", metavar="FILE", positional=True)
    json: bool = setting(False, "tell it to a machine")
    watch: bool = setting(False, "tell it again and again until all is done")
    every: float = setting(5.0, "seconds between two looks of --watch", metavar="SECONDS")
    mark: bool = setting(False, "tell only a mark that changes whenever anything gets done")
    measure: str | None = setting(None, "look at this measure alone: loss or eigen", metavar="NAME")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door."""
    told = parse((StatusSettings,), argv, prog="lossmap status", about=__doc__ or "").status
    if not told.every > 0:
        raise UsageError(f"--every wants more than 0 seconds; got {told.every:g}")
    while True:
        surface = read(told.file)
        if told.mark:
            print(mark(told.file, surface))
            return 0
        now = standing(told.file, surface, told.measure)
        if told.watch and not told.json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(json.dumps(now) if told.json else text(now), flush=True)
        if not told.watch or now["outcome"] != "unfinished":
            return EXIT[now["outcome"]]
        try:
            time.sleep(told.every)
        except KeyboardInterrupt:
            return EXIT[now["outcome"]]


def mark(file: str, surface: Surface) -> str:
    """A text that changes whenever a point is settled, or the state of an unfinished point is saved."""
    counts = {name: surface.counts(name) for name in surface.status}
    parts = [f"{name} {c['done']}+{c['failed']}" for name, c in counts.items() if c["done"] + c["failed"]]
    folder = Path(f"{file}.unfinished")
    states = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if states:
        check = 0
        for state in states:
            check = zlib.crc32(state.name.encode() + state.read_bytes(), check)
        parts.append(f"{len(states)} begun ({check:08x})")
    return ", ".join(parts) or "nothing"


def standing(file: str, surface: Surface, measure: str | None = None) -> dict[str, Any]:
    """All that is told of a result, as plain values."""
    names = list(surface.status) if measure is None else [measure]
    outcomes = {surface.outcome_of(name) for name in names}
    outcomes = outcomes or {"complete" if surface.groups else "unfinished"}  # a plane, a path, a report of health
    known = surface.attributes
    return {
        "file": str(file),
        "outcome": next(word for word in ("unfinished", "failed", "complete") if word in outcomes),
        "shape": list(surface.grid.shape),
        "groups": sorted(surface.groups),
        "running": is_being_written(file),
        "start": known.get("start"),
        "end": known.get("end"),
        "restarts": int(known.get("restarts", 0)),
        "measures": {name: one_measure(surface, name) for name in names if name in surface.status},
        "estimate": estimates_of(file, surface),
    }


def estimates_of(file: str, surface: Surface) -> dict[str, Any]:
    """The estimates that were made before, by measure: those in the result, else those that lie beside it."""
    within = {name: decode_cost(surface.attributes.get(f"{name}_estimate")) for name in surface.status}
    return (stored_estimate(file) or {}) | {name: told for name, told in within.items() if told}


def one_measure(surface: Surface, name: str) -> dict[str, Any]:
    """How one measure stands: counts, rate, time left, the slowest points and ranks, failures."""
    counts, grid = surface.counts(name), surface.grid
    every = surface.fields.get(f"{name}_seconds", np.full(grid.shape, np.nan)).reshape(-1)
    ranks = surface.fields.get(f"{name}_rank", np.full(grid.shape, np.nan)).reshape(-1)
    products = surface["products"] if "products" in surface.measures.get(name, ()) else None
    timed = np.flatnonzero(np.isfinite(every))
    seconds, who = every[timed], ranks[timed]
    slowest = timed[np.argsort(-seconds, kind="stable")[:SHOWN]]
    means = sorted(
        ((float(seconds[who == r].mean()), int(r), int((who == r).sum())) for r in np.unique(who)), reverse=True
    )
    rate = rate_of(surface.recent.get(name, np.zeros(0)), seconds, len(means))
    return {
        **counts,
        "rate": rate,
        "seconds_left": counts["left"] / rate if rate else (0.0 if not counts["left"] else None),
        "took": measured_cost(every, products) | decode_cost(surface.attributes.get(f"{name}_took")),
        "ranks": len(means),
        "slowest_points": [{"index": int(i), "point": grid.point(int(i)), "seconds": float(every[i])} for i in slowest],
        "slowest_ranks": [{"rank": r, "seconds": mean, "points": n} for mean, r, n in means[:SHOWN]],
        "failures": [
            {"index": f.index, "point": grid.point(f.index), "rank": f.rank, "host": f.host, "reason": f.reason}
            for f in surface.failures
            if f.measure in (name, "")
        ],
    }


def rate_of(times: np.ndarray, seconds: np.ndarray, ranks: int) -> float | None:
    """Points a second: from when the newest ones came, pauses between attempts left out; else by what points cost."""
    gaps = np.diff(np.sort(times))
    if seconds.size:
        gaps = gaps[gaps <= 10 * seconds.max() + 1.0]
    if gaps.size >= 3 and gaps.sum() > 0:
        return float(gaps.size / gaps.sum())
    return float(ranks / seconds.mean()) if seconds.size and seconds.mean() > 0 else None


def text(now: dict[str, Any]) -> str:
    """The same for a person."""
    words = {"complete": "complete", "failed": "complete but for failed points", "unfinished": "more to do"}
    if not now["measures"] and now["outcome"] == "complete":
        return f"{Path(now['file']).name}: no survey, so there is nothing to do; it holds {', '.join(now['groups'])}"
    lines = [f"{Path(now['file']).name}: {' x '.join(map(str, now['shape'][::-1]))} points, {words[now['outcome']]}"]
    for name, m in now["measures"].items():
        total = m["done"] + m["failed"] + m["left"]
        line = f"{name}: {m['done']:,} of {total:,} done, {m['failed']:,} failed, {m['left']:,} left"
        if m["left"] and m["rate"]:
            line += f"; {m['rate']:.3g} points a second, {span_text(m['seconds_left'])} to go"
        lines.append(line)
        if m["took"]:
            lines.append(f"  a point takes {m['took']['seconds']:.3g} s, the slowest {m['took']['most']:.3g} s")
            points = "; ".join(f"{place(p['point'])} {p['seconds']:.3g} s" for p in m["slowest_points"])
            lines.append(f"  slowest points: {points}")
        if m["ranks"] > 1:
            rows = "; ".join(f"rank {r['rank']} {r['seconds']:.3g} s" for r in m["slowest_ranks"])
            lines.append(f"  slowest of {m['ranks']} ranks, seconds a point: {rows}")
        for f in m["failures"][:SHOWN]:
            lines.append(f"  failed: {place(f['point'])} on rank {f['rank']}, {f['host']}: {f['reason']}")
        if len(m["failures"]) > SHOWN:
            lines.append(f"  and {len(m['failures']) - SHOWN} more failed; --json tells all")
    for name, m in now["measures"].items():
        if m["took"] and name in now["estimate"]:
            lines += [f"  {line}" for line in side_by_side(now["estimate"][name], m["took"], not m["left"])]
    lines.append(f"started {now['start'] or 'at an unknown time'}, restarts: {now['restarts']}")
    if now["outcome"] == "unfinished":
        lines.append(
            "a process is writing it" if now["running"] else "no process is writing it: lossmap resume goes on"
        )
    return "\n".join(lines)


def place(point: Sequence[float]) -> str:
    """A point's coordinates."""
    return "(" + ", ".join(f"{c:g}" for c in point) + ")"
