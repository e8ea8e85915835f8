"""The attempts that made a result: of each its host, devices, job, ranks, points and time, as plain values.

    [{"start", "host", "device", "slurm_job_id", "ranks", "nodes", "before", "measured_before",
      "points", "seconds"}, ...]

in the attribute `attempts`; `before` are the points that were settled when it began, `points` those that it added;
`measured_before` are the seconds that all points had taken when it began.

Seconds are wall-clock time with the file open; rank-seconds and node-hours are that times ranks and nodes. Of an
attempt that was killed the points are counted when the next one begins, and its time is that of its last snapshot, or
that which its points took at least, whichever is longer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lossmap.io.surface import Surface

ATTRIBUTE = "attempts"
MAX_ATTEMPTS = 200  # the newest; those before are added up in the first of them
FROM_PROVENANCE = ("device", "slurm_job_id", "slurm_array_task_id", "ranks", "nodes", "team")
RESTARTED = "LOSSMAP_RESTARTED"  # set by the batch script where SLURM itself has started the job again, and why


def decoded(value: Any) -> list[dict[str, Any]]:
    """The attempts as an attribute holds them; none where there are none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, Sequence):
        return []
    return [dict(attempt) for attempt in value if isinstance(attempt, Mapping)]


def begun(
    earlier: Any, attributes: Mapping[str, Any], start: str, host: str, settled: int, measured: float
) -> list[dict[str, Any]]:
    """The attempts with a new one.

    attributes  the provenance of this attempt
    settled     the points that are done or failed by now
    measured    the seconds that they took
    """
    attempts = decoded(earlier)
    if attempts:  # which may have been killed before its last points were counted
        before = attempts[-1].get("before", sum(_number(a, "points") for a in attempts[:-1]))
        attempts[-1]["points"] = max(0, settled - before)
        attempts[-1]["seconds"] = _seconds_of(attempts[-1], measured)
    if len(attempts) >= MAX_ATTEMPTS:
        first, second = attempts[:2]
        second["points"] = _number(first, "points") + _number(second, "points")
        second["seconds"] = _number(first, "seconds") + _number(second, "seconds")
        attempts = attempts[1:]
    about = {name: attributes[name] for name in FROM_PROVENANCE if name in attributes}
    if os.environ.get(RESTARTED):
        about["restarted"] = os.environ[RESTARTED]
    since = {"before": settled, "measured_before": round(measured, 3)}
    return [*attempts, {"start": start, "host": host, **about, **since, "points": 0, "seconds": 0.0}]


def with_points_before(attributes: Mapping[str, Any], settled: int) -> dict[str, Any]:
    """The attribute, with the points from which those of the last attempt are counted; empty where there is none."""
    made = decoded(attributes.get(ATTRIBUTE))
    if not made:
        return {}
    made[-1]["before"] = settled
    return {ATTRIBUTE: made}


def counted(attempts: Sequence[Mapping[str, Any]], settled: int, measured: float) -> list[dict[str, Any]]:
    """The attempts with the points that the last one has brought by now, also where it runs or was killed.

    settled   the points that are done or failed by now
    measured  the seconds that they took
    """
    made = [dict(attempt) for attempt in attempts]
    if made and "before" in made[-1]:
        made[-1]["points"] = max(0, settled - _number(made[-1], "before"))
        made[-1]["seconds"] = _seconds_of(made[-1], measured)
    return made


def measured_seconds(surface: Surface) -> float:
    """The seconds that all points of a result took."""
    names = [name for measure in surface.status if (name := f"{measure}_seconds") in surface]
    return float(sum(np.nansum(surface[name]) for name in names))


def _seconds_of(attempt: Mapping[str, Any], measured: float) -> float:
    """The time of the last attempt: of its last snapshot, or at least that which its points took on all its teams."""
    seconds: float = _number(attempt, "seconds")
    if "measured_before" not in attempt:  # of an earlier version
        return seconds
    teams = max(1, _number(attempt, "ranks") // max(1, _number(attempt, "team")))
    least = float(measured - _number(attempt, "measured_before")) / float(teams)
    return max(seconds, round(least, 3))


def mixed_teams(attempts: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence where the attempts had teams of different sizes, whose sums differ in the last bits; None elsewhere.

    Attempts of versions that did not record it, and those that brought no point, do not count.
    """
    sizes = sorted({int(_number(a, "team")) for a in attempts if _number(a, "team") and _number(a, "points")})
    if len(sizes) < 2:
        return None
    names = [f"{size} ranks" if size > 1 else "1 rank" for size in sizes]
    return f"its points were measured by teams of {' and of '.join(names)}: last bits may differ between them"


def points_of_job(attempts: Sequence[Mapping[str, Any]], job: str, settled: int) -> int:
    """The points that the attempts of a SLURM job have settled.

    settled  the points that are done or failed by now: those of the last attempt are known by it
    """
    own = [a for a in attempts if a.get("slurm_job_id") == job]
    if own and own[-1] is attempts[-1]:
        before = own[-1].get("before", settled - _number(own[-1], "points"))
        return int(sum(_number(a, "points") for a in own[:-1]) + max(0, settled - before))
    return int(sum(_number(a, "points") for a in own))


def totals(attempts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What all attempts took: their number, seconds, rank-seconds and node-hours."""
    return {
        "attempts": len(attempts),
        "seconds": sum(_number(a, "seconds") for a in attempts),
        "rank_seconds": sum(_number(a, "seconds") * max(1, _number(a, "ranks")) for a in attempts),
        "node_hours": sum(_number(a, "seconds") * max(1, _number(a, "nodes")) for a in attempts) / 3600,
    }


def _number(attempt: Mapping[str, Any], name: str) -> Any:
    value = attempt.get(name, 0)
    return value if isinstance(value, (int, float)) else 0
