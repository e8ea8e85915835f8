"""`lossmap estimate [flags] -- COMMAND ...`: what a survey or a spectrum will cost, from few points or products.

It measures the middle and the corners of the grid and near neighbours of each, on this machine, and says seconds and
products of a point with their spread, memory, file size, node-hours, a fitting number of ranks, and the `lossmap
submit` that follows from it. Of a spectrum all parts are rehearsed over few samples, and one product over all samples
is timed. The result, once it is there, is shown beside the estimate by `lossmap status`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lossmap.cli.settings import Settings, UsageError, guarded, parse, setting
from lossmap.cli.wrapped_command import MEASURES, Asked, asked, room_of, split
from lossmap.parallel import cost_model
from lossmap.parallel.cost_model import Estimate, size_text, span_text
from lossmap.parallel.slurm import minutes_of, time_text
from lossmap.parallel.world import World

# An audit solves this part of the points again, so many at least; a cold start with limits takes a third more
# products than one that only converges.
AUDITED, AUDIT_LEAST, AUDIT_COST = 0.02, 20, 4 / 3


@dataclass(frozen=True)
class EstimateSettings:
    """What the estimate is for."""

    ranks_per_node: int | None = setting(None, "ranks on a node; by default one for each core, or GPU", metavar="N")
    within: str = setting("1:00:00", "time in which it should be done: M, H:M:S or D-H:M:S", metavar="TIME")
    json: bool = setting(False, "tell it to a machine")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door: 0 estimated."""
    own, words = split(argv, "lossmap estimate -- surface --model resnet20-w8 ...")
    told = parse((EstimateSettings,), own, prog="lossmap estimate", about=__doc__ or "").estimate
    goal = minutes_of(told.within) * 60
    work = meant(words)
    if work.settings is None or work.result is None or work.measure is None:
        raise UsageError(f"{work.command} is no survey; there is an estimate for {', '.join(MEASURES)} and spectrum")
    if told.ranks_per_node is not None and told.ranks_per_node < 1:
        raise UsageError(f"--ranks-per-node must be >= 1; got {told.ranks_per_node}")
    world = World.start()
    if world.size > 1:
        raise UsageError(f"an estimate is made by one process; this one was started with {world.size} ranks")
    found = looked_at(work, work.settings, told.ranks_per_node, world)
    kept = cost_model.write_estimate(work.result, work.measure, found)
    if told.json:
        print(json.dumps({k: None if v != v else v for k, v in asdict(found).items()}))
    else:
        print(text(found, work, goal))
        print(f"kept in {kept}, to be compared with what it takes")
    return 0


def meant(words: Sequence[str]) -> Asked:
    """What is to be estimated: a survey, or the parts of a spectrum, which are dealt as points are."""
    work = asked(words)
    if work.command != "spectrum":
        return work
    room = room_of("spectrum")
    settings = parse(room.GROUPS, list(words[1:]), prog="lossmap spectrum", about=room.__doc__ or "")
    if settings.spectrum.along:
        raise UsageError("--along reads one checkpoint after the other: estimate one of them, with --model-file")
    return replace(work, result=room.result_of(settings), measure="spectrum", settings=settings)


class Looked(BaseException):
    """Ends the door of a survey once a few points have been looked at."""

    def __init__(self, estimate: Estimate) -> None:
        super().__init__("a few points were looked at")
        self.estimate = estimate


def looked_at(work: Asked, settings: Settings, ranks_per_node: int | None, world: World) -> Estimate:
    """Open the door of the survey with a walk that looks at a few points, and a result that is thrown away."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cuda = settings.run.device.startswith("cuda") or (settings.run.device == "auto" and _gpus() > 0)
    per_node = ranks_per_node or (_gpus() or 1 if cuda else max(1, cores // (settings.run.threads or 1)))
    team = settings.run.team
    with tempfile.TemporaryDirectory(prefix="lossmap-estimate-") as folder:
        here = {"surf_file": str(Path(folder) / "looked.h5"), "team": 1, "dry_run": False, "shard": None}
        if settings.run.threads is None and not cuda:
            here["threads"] = max(1, cores // per_node)
        changed = settings.changed("run", **here)
        try:
            room_of(work.command).run(changed, world, walk=walk(settings, per_node, cuda))
        except Looked as looked:
            found = looked.estimate
        else:
            raise RuntimeError(f"{work.command} ended before a point was looked at")
    if team > 1:
        shared = {name: getattr(found, name) / team for name in ("seconds", "least", "most", "first")}
        found = replace(found, per_node=max(1, per_node // team), **shared)
    return found


def walk(settings: Settings, per_node: int, cuda: bool) -> Callable[..., Any]:
    """What stands in for `survey`: it looks at a few points and raises Looked with the estimate."""

    def look(measure: Any, grid: Any, *, store: Any, **_: Any) -> None:
        def measured(index: int) -> Any:
            return measure(grid.point(index))

        parts = measure.name == "spectrum"
        samples = [] if parts else cost_model.sample_points(measured, grid.shape, time.perf_counter)
        audited = settings.resolved().get("certify") == "audit" and measure.name == "eigen"
        again = min(len(grid), max(AUDIT_LEAST, math.ceil(AUDITED * len(grid)))) if audited else 0
        chosen = measure.settings.get("chosen", {})
        store.close()
        known = {
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "gpu_memory": _gpu_memory() if cuda else 0,
            "file_size": store.path.stat().st_size,
            "again": again,
            "again_cost": AUDIT_COST,
            "per_node": per_node,
            "choice": json.dumps(chosen) if chosen else "",
        }
        raise Looked(of_parts(measure, known) if parts else cost_model.fit_estimate(samples, grid.shape, **known))

    return look


def of_parts(measure: Any, known: dict[str, Any]) -> Estimate:
    """The estimate of a spectrum, from a rehearsal of its parts."""
    from lossmap.spectra.cost import rehearse

    costs, setup = rehearse(measure, time.perf_counter)
    seconds = [cost.seconds for cost in costs]
    mean, products = sum(seconds) / len(costs), sum(cost.products for cost in costs) / len(costs)
    told = {"seconds": mean, "first": mean, "least": min(seconds), "most": max(seconds), "looked_at": len(costs)}
    return Estimate(points=len(costs), setup=setup, products=products, **{**known, **told})


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _gpu_memory() -> int:
    import torch

    return torch.cuda.max_memory_allocated()


def text(found: Estimate, work: Asked, goal: float) -> str:
    """The estimate for a person."""
    ranks = found.ranks_for(goal)
    counts = sorted({1, 2, found.per_node, ranks, *(4**k for k in range(1, 6) if 4**k < 4 * ranks)})
    point = "part" if work.measure == "spectrum" else "point"
    seen = "all rehearsed over few samples" if point == "part" else f"of which {found.looked_at} were looked at"
    lines = [
        f"{work.result}: {found.points:,} {point}s, {seen}",
        f"{f'a {point}':16}{found.seconds:.3g} s ({found.least:.3g} to {found.most:.3g})"
        + (f", met from afar {found.first:.3g} s" if found.first > 1.1 * found.seconds else "")
        + (f"; a rank's set-up {found.setup:.2g} s" if found.setup > found.seconds else ""),
    ]
    if not math.isnan(found.products):
        lines.append(f"products        {found.products:.3g} a {point}")
    if found.again:
        lines.append(f"audit           {found.again:,} points are solved again")
    memory = f"memory          {size_text(found.memory)} a rank"
    lines.append(memory + (f", {size_text(found.gpu_memory)} on its GPU" if found.gpu_memory else ""))
    lines.append(f"file            {size_text(found.file_size)}")
    whole = f"{f'all {point}s':16}{span_text(found.rank_seconds)} on one rank"
    lines.append(f"{whole}; {found.per_node} ranks fit on a node")
    lines.append("   ranks   nodes        time   node-hours")
    for n in counts:
        nodes = math.ceil(n / found.per_node)
        mark = "   fits" if n == ranks else ""
        lines.append(f"{n:8,}{nodes:8,}{span_text(found.wall(n)):>12}{found.node_hours(n):13.3g}{mark}")
    nodes, each = math.ceil(ranks / found.per_node), min(ranks, found.per_node)
    flags = f"--nodes {nodes} --ranks-per-node {each} --time {time_text(found.limit(ranks))}"
    lines.append(f"to run it:  lossmap submit {flags} -- {shlex.join(work.words)}")
    return "\n".join(lines)
