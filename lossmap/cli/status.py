"""`lossmap status FILE`: the progress of a result, from the files alone, also while a job writes them.

It needs neither torch nor MPI, so a login node will do. The exit code is what scripts ask for: 0 complete, 3
completed with failed points, 75 unfinished, 2 no result there, or with --verify a damaged one.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import EXIT_CODES, guarded
from lossmap.cli.settings import UsageError, setting
from lossmap.cli.whole_result import ShardState, queue_sentences, read_whole, shard_line
from lossmap.io import attempts
from lossmap.io.methods import method_note
from lossmap.io.printable import printable
from lossmap.io.read import is_being_written, read
from lossmap.io.refined import refinement_note
from lossmap.io.sampled import sampling_note
from lossmap.io.surface import REBUILT, UNPROTECTED, Surface
from lossmap.io.verify import verify
from lossmap.parallel.cost_model import Estimate, decode_cost, is_estimate, measured_cost, side_by_side, stored_estimate
from lossmap.parallel.pace import means_by_rank, rate_of
from lossmap.report.price import span_text
from lossmap.special_files import is_special

MAX_SHOWN = 5  # slowest points and ranks, and failures, that the text names


@dataclass(frozen=True)
class StatusSettings:
    """Status options."""

    file: str = setting(MISSING, "result file", metavar="FILE", positional=True)
    json: bool = setting(False, "machine-readable JSON output")
    watch: bool = setting(False, "repeated output until the result is complete")
    interval: float = setting(
        5.0, "seconds between two outputs of --watch", metavar="SECONDS", former=("--every",), above=0
    )
    fingerprint: bool = setting(
        False, "only a short text that changes whenever the survey makes progress", former=("--mark",)
    )
    job: str | None = setting(None, "of the fingerprint: what this SLURM job got done, and no other", metavar="NUMBER")
    verify: bool = setting(False, "comparison of all that the result holds with its digests (SHA-256)")
    measure: str | None = setting(None, "this measure alone, such as loss or eigen; by default all", metavar="NAME")


COMMAND = Command(
    "status",
    __doc__ or "",
    (StatusSettings,),
    (
        "lossmap status surface.h5 --watch --interval 30",
        "lossmap status surface.h5 --verify --json",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed points, 75 unfinished."""
    options = COMMAND.parse(argv).status
    if options.verify:
        return show_verification(options.file, options.json)
    while True:
        try:
            result = read_whole(options.file)
        except FileNotFoundError as error:
            raise UsageError("; ".join([str(error), *queue_sentences(options.file)])) from None
        surface = result.surface
        if options.fingerprint:
            print(fingerprint(options.file, surface) if options.job is None else job_fingerprint(surface, options))
            return 0
        progress = progress_of(options.file, surface, options.measure)
        progress |= {"running": result.is_running, "shards": [asdict(state) for state in result.shards]}
        if progress["outcome"] == "unfinished":
            progress["queue"] = queue_sentences(options.file)
        if options.watch and not options.json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(json.dumps(progress) if options.json else printable(text(progress)), flush=True)
        if not options.watch or progress["outcome"] != "unfinished":
            return EXIT_CODES[progress["outcome"]]
        try:
            time.sleep(options.interval)
        except KeyboardInterrupt:
            return EXIT_CODES[progress["outcome"]]


def show_verification(file: str, as_json: bool) -> int:
    """Print what of a result fits its digests, and what does not; 2 where something is damaged."""
    verification, outcome = verify(file), "damaged"
    if not verification.damage:
        outcome = progress_of(file, read(file))["outcome"]
    if as_json:
        print(json.dumps({"file": file, "outcome": outcome, **asdict(verification)}))
    else:
        print("\n".join(f"{Path(file).name}: {line}" for line in str(verification).splitlines()))
    return EXIT_CODES.get(outcome, 2)


def job_fingerprint(surface: Surface, options: StatusSettings) -> str:
    """What a SLURM job has got done: the number of its points, and the states that it left of unfinished ones.

    While another job has the result, its own numbers stand still.
    """
    made = attempts.decoded(surface.attributes.get(attempts.ATTRIBUTE))
    points = attempts.points_of_job(made, str(options.job), settled_points(surface))
    parts = [f"{points} points by job {options.job}"]
    if made and made[-1].get("slurm_job_id") == options.job:
        parts += _begun(options.file)
    return ", ".join(parts)


def settled_points(surface: Surface) -> int:
    """The points of all measures that are done or failed."""
    return sum(surface.counts(name)["done"] + surface.counts(name)["failed"] for name in surface.status)


def _begun(file: str) -> list[str]:
    """How many points were left in a state that is saved, and a checksum of these; nothing where there are none."""
    states = sorted(path for path in Path(f"{file}.unfinished").glob("*.npz") if not is_special(path))
    check = 0
    for state in states:
        check = zlib.crc32(state.name.encode() + state.read_bytes(), check)
    return [f"{len(states)} begun ({check:08x})"] if states else []


def fingerprint(file: str, surface: Surface) -> str:
    """A text that changes whenever a point is settled, or the state of an unfinished point is saved."""
    counts = {name: surface.counts(name) for name in surface.status}
    parts = [f"{name} {c['done']}+{c['failed']}" for name, c in counts.items() if c["done"] + c["failed"]]
    return ", ".join(parts + _begun(file)) or "nothing"


def progress_of(file: str, surface: Surface, measure: str | None = None) -> dict[str, Any]:
    """All that is reported of a result, as values that JSON can hold.

    measure  this one alone
    """
    names = [measure] if measure is not None else list(surface.status)
    outcomes = {surface.outcome_of(name) for name in names}
    if not outcomes:  # no survey; a plane, a path or a report of health is complete as it is
        outcomes = {"complete"}
        if not surface.groups:
            outcomes = {"unfinished"}
    attributes = surface.attributes
    return {
        "file": str(file),
        "outcome": next(word for word in ("unfinished", "failed", "complete") if word in outcomes),
        "shape": list(surface.grid.shape),
        "groups": sorted(surface.groups),
        "running": is_being_written(file),
        "start": attributes.get("start"),
        "end": attributes.get("end"),
        "restarts": int(attributes.get("restarts", 0)),
        "integrity": surface.integrity,
        "measures": {name: progress_of_measure(surface, name) for name in names if name in surface.status},
        "estimate": estimates_of(file, surface),
        "attempts": attempts.counted(
            attempts.decoded(attributes.get(attempts.ATTRIBUTE)),
            settled_points(surface),
            attempts.measured_seconds(surface),
        ),
        "refined": refinement_note(surface),
        "sampled": sampling_note(surface),
        "method": method_note(surface),
        "queue": [],
        "shards": [],
    }


def estimates_of(file: str, surface: Surface) -> dict[str, Any]:
    """The estimates that were made before, by measure: those in the result, else those in the file beside it."""
    stored = {name: decode_cost(surface.attributes.get(f"{name}_estimate")) for name in surface.status}
    stored = {name: estimate for name, estimate in stored.items() if is_estimate(estimate)}
    return (stored_estimate(file) or {}) | {name: estimate for name, estimate in stored.items() if estimate}


def progress_of_measure(surface: Surface, name: str) -> dict[str, Any]:
    """The progress of one measure: counts, rate, time left, the slowest points and ranks, failures."""
    counts, grid = surface.counts(name), surface.grid
    unknown = np.full(grid.shape, np.nan)
    every = surface.fields.get(f"{name}_seconds", unknown).reshape(-1)
    ranks = surface.fields.get(f"{name}_rank", unknown).reshape(-1)
    products = surface["products"] if "products" in surface.measures.get(name, ()) else None
    timed = np.flatnonzero(np.isfinite(every))
    slowest = timed[np.argsort(-every[timed], kind="stable")[:MAX_SHOWN]]
    means = means_by_rank(every[timed], ranks[timed])
    rate = rate_of(surface.recent.get(name, np.zeros(0)), every[timed], len(means))
    seconds_left = None
    if not counts["left"]:
        seconds_left = 0.0
    elif rate:
        seconds_left = counts["left"] / rate
    return {
        **counts,
        "changed": surface.change_of(name),
        "rate": rate,
        "seconds_left": seconds_left,
        "took": measured_cost(every, products) | decode_cost(surface.attributes.get(f"{name}_took")),
        "ranks": len(means),
        "slowest_points": [{"index": int(i), "point": grid.point(int(i)), "seconds": float(every[i])} for i in slowest],
        "slowest_ranks": [{"rank": r, "seconds": mean, "points": n} for mean, r, n in means[:MAX_SHOWN]],
        "failures": [
            {"index": f.index, "point": grid.point(f.index), "rank": f.rank, "host": f.host, "reason": f.reason}
            for f in surface.failures
            if f.measure in (name, "")
        ],
    }


WRITING = {True: "a process is writing it", False: "no process is writing it: lossmap resume continues it"}
OUTCOMES = {"complete": "complete", "failed": "completed with failed points", "unfinished": "unfinished"}


def text(progress: dict[str, Any]) -> str:
    """The progress for a person."""
    name = Path(progress["file"]).name
    if not progress["measures"] and progress["outcome"] == "complete":
        lines = [f"{name}: not a survey, so there is nothing to do; it holds {', '.join(progress['groups'])}"]
        return "\n".join(lines + _integrity_lines(progress["integrity"]))
    shape = " x ".join(map(str, progress["shape"][::-1]))
    changes = [m["changed"] for m in progress["measures"].values() if m["changed"]]
    outcome = OUTCOMES[progress["outcome"]]
    if progress["outcome"] == "failed" and not any(m["failed"] for m in progress["measures"].values()):
        outcome = "completed"
    lines = [f"{name}: {shape} points, {outcome}", *(f"not to be used: {change}" for change in changes)]
    if progress["shards"]:
        lines.append(shard_line(tuple(ShardState(**state) for state in progress["shards"])))
    for measure, m in progress["measures"].items():
        lines += _measure_lines(measure, m)
    if progress["refined"]:
        lines.append(progress["refined"])
    if progress["sampled"]:
        lines.append(progress["sampled"])
    if progress["method"]:
        lines.append(progress["method"])
    for measure, m in progress["measures"].items():
        if m["took"] and measure in progress["estimate"]:
            comparison = side_by_side(progress["estimate"][measure], m["took"], not m["left"])
            lines += [f"  {line}" for line in comparison]
    lines.append(f"started {progress['start'] or 'at an unknown time'}, restarts: {progress['restarts']}")
    lines += _attempt_lines(progress)
    lines += _integrity_lines(progress["integrity"])
    lines += [f"in the queue: {sentence}" for sentence in progress["queue"]]
    is_shown = progress["running"] or not progress["queue"]
    if progress["outcome"] == "unfinished" and is_shown and not progress["shards"]:
        lines.append(WRITING[progress["running"]])
    if progress["shards"] and not progress["running"] and not progress["queue"]:
        lines.append(f"lossmap merge {shlex.quote(progress['file'])} joins the shards")
    return "\n".join(lines)


def _attempt_lines(progress: dict[str, Any]) -> list[str]:
    """What all attempts used, beside what was estimated, and each of them where there are several."""
    made = progress["attempts"]
    if not made:
        return []
    used, lines = attempts.totals(made), []
    ranks = int(made[-1].get("ranks", 1))
    estimated = [
        Estimate(**{"products": float("nan"), **e}).node_hours(ranks) for e in progress["estimate"].values() if e
    ]
    beside = f", estimated {sum(estimated):.3g}" if estimated else ""
    lines.append(f"used: {used['node_hours']:.3g} node-hours{beside}; {span_text(used['rank_seconds'])} of ranks")
    mixed = attempts.mixed_teams(made)
    if mixed:
        lines.append(mixed)
    for attempt in made[-MAX_SHOWN:] if len(made) > 1 else ():
        job = f", job {attempt['slurm_job_id']}" if "slurm_job_id" in attempt else ""
        again = f"; started again {attempt['restarted']}" if "restarted" in attempt else ""
        by = int(attempt.get("ranks", 1))
        lines.append(
            f"  attempt of {attempt.get('start')}: {attempt.get('points', 0):,} points in "
            f"{span_text(float(attempt.get('seconds', 0.0)))} by {by} rank{'s' * (by != 1)} on "
            f"{attempt.get('host')}{job}, {attempt.get('device', 'device unknown')}{again}"
        )
    return lines


def _integrity_lines(integrity: str) -> list[str]:
    """What a person must know of how far the numbers can be trusted; nothing where they fit their digests."""
    if integrity == UNPROTECTED:
        return ["unprotected: the file has no digests, so that a changed number would not be noticed"]
    if integrity.startswith(REBUILT):
        return [f"{integrity}; lossmap resume writes the file anew"]
    return []


def _measure_lines(name: str, m: dict[str, Any]) -> list[str]:
    total = m["done"] + m["failed"] + m["left"]
    line = f"{name}: {m['done']:,} of {total:,} done, {m['failed']:,} failed, {m['left']:,} left"
    if m["left"] and m["rate"]:
        line += f"; {m['rate']:.3g} points a second, {span_text(m['seconds_left'])} to go"
    lines = [line]
    if m["took"]:
        lines.append(f"  a point takes {m['took']['seconds']:.3g} s, the slowest {m['took']['most']:.3g} s")
        points = "; ".join(f"{point_text(p['point'])} {p['seconds']:.3g} s" for p in m["slowest_points"])
        lines.append(f"  slowest points: {points}")
    if m["ranks"] > 1:
        rows = "; ".join(f"rank {r['rank']} {r['seconds']:.3g} s" for r in m["slowest_ranks"])
        lines.append(f"  slowest of {m['ranks']} ranks, seconds a point: {rows}")
    for f in m["failures"][:MAX_SHOWN]:
        lines.append(f"  failed: {point_text(f['point'])} on rank {f['rank']}, {f['host']}: {f['reason']}")
    if len(m["failures"]) > MAX_SHOWN:
        lines.append(f"  and {len(m['failures']) - MAX_SHOWN} more failed; --json lists all")
    return lines


def point_text(point: Sequence[float]) -> str:
    """A point's coordinates."""
    return "(" + ", ".join(f"{c:g}" for c in point) + ")"
