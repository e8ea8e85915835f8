"""The sharpness of a checkpoint from the numbers that its tasks have left: all done, or some, as in an unfinished file.

`lossmap.read` gives what an unfinished file holds of each checkpoint: eigenvalue, trace and rises, as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import nan
from typing import Any

from lossmap.landscape.batch_sharpness import BatchSharpness
from lossmap.landscape.critical_sharpness import CriticalSharpness
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_result import BallRise, PreconditionedSharpness, Sharpness
from lossmap.linalg.trace import Trace

ABOUT = "checkpoints"  # the attribute of a file with what is known of each checkpoint before any task is done
KINDS = {  # of tasks, in words
    "gradient": "loss and gradient",
    "largest": "largest eigenvalue",
    "preconditioned": "preconditioned eigenvalue",
    "trace": "trace",
    "average": "average rise",
    "worst": "worst rise",
    "critical": "critical sharpness",
    "batch": "batch sharpness",
}
Arrays = Mapping[str, Any]
BallOf = tuple[str, float] | None  # kind and radius of a task's ball
Done = Mapping[tuple[str, BallOf], Arrays]  # kind and ball of the tasks that are done -> their numbers


@dataclass(frozen=True)
class AboutCheckpoint:
    """What is known of a checkpoint before any task is done; the attributes are those of `Sharpness`."""

    label: str
    size: int
    precision: str
    samples: int
    unit: str
    rescaled: float = 1.0
    rescaled_layers: str = ""
    notes: tuple[str, ...] = ()

    def stored(self) -> dict[str, Any]:
        """As a file holds it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "label"}


def group_of_task(label: str, kind: str, ball: BallOf) -> str:
    """The group of a task in the file."""
    parts = ("tasks", label or "whole", kind, "" if ball is None else f"{ball[0]} {ball[1]:g}")
    return "/".join(part.replace("/", "_") for part in parts if part)


def sharpness_of(about: AboutCheckpoint, request: SharpnessRequest, done: Done) -> Sharpness:
    """The sharpness, from the numbers of its tasks; what failed or is not done is missing in it."""
    slope, largest = done.get(("gradient", None), {}), done.get(("largest", None), {})
    return Sharpness(
        label=about.label,
        size=about.size,
        parameters=request.parameters,
        precision=about.precision,
        samples=about.samples,
        unit=about.unit,
        loss=float(slope.get("loss", nan)),
        loss_error=float(slope.get("loss_error", nan)),
        gradient_norm=float(slope.get("gradient_norm", nan)),
        gradient_norm_error=float(slope.get("gradient_norm_error", nan)),
        largest=float(largest.get("value", nan)),
        largest_error=float(largest.get("error", nan)),
        largest_limit=float(largest.get("limit", nan)),
        trace=_to_trace(done.get(("trace", None))),
        balls=tuple(_to_ball(ball, done, request) for ball in request.balls),
        critical=_to_critical(done.get(("critical", None))),
        batch=_to_batch(done.get(("batch", None))),
        preconditioned=_to_preconditioned(done.get(("preconditioned", None))),
        seed=request.seed,
        rescaled=about.rescaled,
        rescaled_layers=about.rescaled_layers,
        notes=about.notes,
    )


def results_so_far(
    about: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], groups: Mapping[str, Arrays], note: str
) -> dict[tuple[str, str], Sharpness]:
    """By kind (sharpness) and label what the tasks that are done say; what none is done of is missing.

    about     by label, as `AboutCheckpoint.stored` gave it
    settings  of the measure, as its file holds them
    groups    the group of each task that is done -> its numbers
    note      of each checkpoint, before what is still to come
    """
    request = SharpnessRequest.of(settings)
    found: dict[tuple[str, str], Sharpness] = {}
    for label, facts in about.items():
        wanted = {(kind, ball): group_of_task(label, kind, ball) for kind, ball in kinds_of(request)}
        done = {task: groups[group] for task, group in wanted.items() if group in groups}
        if done:
            missing = dict.fromkeys(KINDS[kind] for kind, ball in wanted if (kind, ball) not in done)
            rest = f"; still to come: {', '.join(missing)}" if missing else ""
            notes = (*facts.get("notes", ()), note + rest)
            found["sharpness", label] = sharpness_of(
                AboutCheckpoint(label=label, **{**facts, "notes": notes}), request, done
            )
    return found


def kinds_of(request: SharpnessRequest) -> list[tuple[str, BallOf]]:
    """Kind and ball of the tasks of a checkpoint, the ones that take longest first."""
    kinds: list[tuple[str, BallOf]] = [("gradient", None)]
    if request.steps and request.starts:
        kinds += [("worst", ball) for ball in request.balls]
    if request.trace_products:
        kinds.append(("trace", None))
    kinds.append(("largest", None))
    if request.preconditioned:
        kinds.append(("preconditioned", None))
    if request.draws:
        kinds += [("average", ball) for ball in request.balls]
    if request.critical:
        kinds.append(("critical", None))
    if request.batch:
        kinds.append(("batch", None))
    return kinds


def _to_trace(arrays: Arrays | None) -> Trace | None:
    if arrays is None:
        return None
    terms, products, size = (int(arrays[name]) for name in ("terms", "products", "size"))
    value, error, target = (float(arrays[name]) for name in ("value", "error", "error_target"))
    return Trace(value, error, terms, products, str(arrays["method"]), size, target)


def _to_batch(arrays: Arrays | None) -> BatchSharpness | None:
    if arrays is None:
        return None
    return BatchSharpness(float(arrays["value"]), float(arrays["error"]), int(arrays["batches"]), int(arrays["size"]))


def _to_preconditioned(arrays: Arrays | None) -> PreconditionedSharpness | None:
    if arrays is None:
        return None
    value, error, limit, threshold = (float(arrays[name]) for name in ("value", "error", "limit", "threshold"))
    return PreconditionedSharpness(value, error, limit, threshold, str(arrays["optimizer"]))


def _to_critical(arrays: Arrays | None) -> CriticalSharpness | None:
    if arrays is None:
        return None
    value, low, high, rounding = (float(arrays[name]) for name in ("value", "low", "high", "rounding"))
    return CriticalSharpness(value, low, high, int(arrays["passes"]), rounding, str(arrays["reason"]))


def _to_ball(ball: tuple[str, float], done: Done, request: SharpnessRequest) -> BallRise:
    """The rises in one ball, of the tasks that are done."""
    average, worst = done.get(("average", ball)), done.get(("worst", ball))
    movable = next((float(task["movable"]) for task in (average, worst) if task and "movable" in task), nan)
    rise = BallRise(*ball, movable=movable)
    if average is not None:
        value, error, rounding = (float(average[name]) for name in ("value", "error", "rounding"))
        rise = replace(rise, average=value, average_error=error, rounding=rounding, draws=request.draws)
    if worst is not None:
        rise = replace(
            rise,
            sam=float(worst["sam"]),
            sam_error=float(worst.get("sam_error", nan)),  # of files of earlier versions
            worst=float(worst["value"]),
            worst_error=float(worst.get("rounding", nan)),
            starts=request.starts,
            steps=request.steps,
        )
    return rise
