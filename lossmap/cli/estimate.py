"""`lossmap estimate [flags] -- COMMAND ...`: the cost of a survey or a spectrum, from few points or products.

It measures the middle and the corners of the grid and near neighbours of each, on this machine, and reports seconds
and products of a point with their spread, memory, file size, node-hours, a fitting number of ranks, and the `lossmap
submit` that follows from it. Of a spectrum all tasks are rehearsed over few samples, and one product over all samples
is timed; of a run the first, the middle and the last checkpoint are measured; of an examination a few products are
timed. The result, once it exists, is shown beside the estimate by `lossmap status`.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lossmap import accelerators
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.estimate_whole import estimate_examination, estimate_run
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.cli.wrapped_command import (
    SURVEYS,
    WrappedCommand,
    module_of,
    read_settings,
    split_at_dashes,
    wrapped_command,
)
from lossmap.parallel import cost_model
from lossmap.parallel.cost_model import Estimate
from lossmap.parallel.devices import kind_of
from lossmap.parallel.estimate_text import estimate_text
from lossmap.parallel.process import available_cores, peak_memory
from lossmap.parallel.slurm import minutes_of
from lossmap.parallel.world import World

# An audit solves this share of the points again, at least so many; a cold start with limits costs a third more products
# than a solve that only converges.
AUDIT_SHARE, MIN_AUDIT_POINTS, AUDIT_COST = 0.02, 20, 4 / 3
TRIED_STEPS = 2  # of the training of a curve, the first of which warms up
MEASURING = (*SURVEYS, "spectrum", "sharpness", "connect", "dynamics", "health")
EXAMPLE = "lossmap estimate -- surface --model resnet20-w8 --x=-1:1:51 --y=-1:1:51"


@dataclass(frozen=True)
class EstimateSettings:
    """Estimate options."""

    ranks_per_node: int | None = setting(
        None, "number of ranks on a node; by default one for each core, or GPU", metavar="N", minimum=1
    )
    within: str = setting("1:00:00", "time in which it should be complete: M, H:M:S or D-H:M:S", metavar="TIME")
    json: bool = setting(False, "machine-readable JSON output")


COMMAND = Command(
    "estimate",
    __doc__ or "",
    (EstimateSettings,),
    (
        EXAMPLE,
        "lossmap estimate --within 4:00:00 --ranks-per-node 8 -- eigenmap --model mlp --x=-1:1:25 --y=-1:1:25",
        "lossmap estimate --json -- dynamics run --model resnet20-w8 --full-spectrum",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 estimated, 2 usage error."""
    own, words = split_at_dashes(argv, EXAMPLE)
    options = COMMAND.parse(own).estimate
    goal = minutes_of(options.within) * 60
    work = estimable(words)
    if work.settings is None or work.measure is None:
        raise UsageError(f"{work.command} does not measure; an estimate needs one of {', '.join(MEASURING)}")
    world = World.start()
    if world.size > 1:
        raise UsageError(f"an estimate is made by one process; this one was started with {world.size} ranks")
    estimate = make_estimate(work, work.settings, options.ranks_per_node, world)
    # printed first: what took minutes to measure must not be lost to a folder that cannot be written to
    if options.json:
        # JSON has no NaN, which stands for what is not known
        print(json.dumps({k: None if v != v else v for k, v in asdict(estimate).items()}), flush=True)
    else:
        unit = UNITS.get(work.measure, "point")
        print(estimate_text(estimate, work.result or Path(work.command), work.words, goal, unit), flush=True)
    if work.result is not None:
        path = cost_model.write_estimate(work.result, work.measure, estimate)
        if not options.json:
            print(f"stored in {path}, to be compared with what it takes")
    return 0


def estimable(words: Sequence[str]) -> WrappedCommand:
    """What is to be estimated: a survey, or what is measured task by task, checkpoint by checkpoint, or at once."""
    work = wrapped_command(words)
    if work.command not in ("spectrum", "dynamics", "health"):
        return work
    settings = read_settings(words)
    if work.command == "health":
        file = settings.health.surf_file
        return replace(work, result=Path(file) if file else None, measure="health", settings=settings)
    if work.command == "spectrum" and not settings.spectrum.along:
        return replace(work, result=module_of("spectrum").result_path(settings), measure="spectrum", settings=settings)
    dynamics = module_of("dynamics")
    if work.command == "spectrum":
        settings = dynamics.from_spectrum(settings)
    return replace(work, result=dynamics.result_path(settings), measure="along", settings=settings)


UNITS = {"spectrum": "task", "sharpness": "task", "along": "checkpoint", "health": "network"}


class Estimated(BaseException):
    """Ends the command of a survey once a few points have been measured. No Exception, which commands would report."""

    def __init__(self, estimate: Estimate) -> None:
        super().__init__("a few points were measured")
        self.estimate = estimate


def make_estimate(work: WrappedCommand, settings: Settings, ranks_per_node: int | None, world: World) -> Estimate:
    """Run the command with a survey that measures a few points, into a result that is thrown away."""
    if work.measure == "health":
        return estimate_examination(settings, world, time.perf_counter)
    kind, gpus = _gpus(kind_of(settings.run.device))
    on_gpu = kind != "cpu"
    cores = available_cores()
    per_node = ranks_per_node or _ranks_that_fit(on_gpu, gpus, cores, settings.run.threads)
    if work.measure == "along":
        if settings.run.threads is None and not on_gpu:
            settings = settings.changed("run", threads=max(1, cores // per_node))
        return estimate_run(settings, world, per_node, time.perf_counter)
    team = settings.run.team
    with tempfile.TemporaryDirectory(prefix="lossmap-estimate-") as folder:
        changes = {
            "surf_file": str(Path(folder) / "estimate.h5"),
            "team": 1,
            "dry_run": False,
            "shard": None,
            "budget": None,
        }
        if settings.run.threads is None and not on_gpu:
            changes["threads"] = max(1, cores // per_node)
        try:
            trial = settings.changed("run", **changes)
            if work.command == "connect":
                trial = trial.changed("connect", curve_steps=TRIED_STEPS)  # a point takes as long on any curve
            run = module_of(work.command).run
            run(trial, world, survey=trial_survey(settings, per_node, kind))
        except Estimated as end:
            estimate = end.estimate
        else:
            raise RuntimeError(f"{work.command} ended before a point was measured")
    if team > 1:  # a team's ranks share a point, and count as one
        shared = {name: getattr(estimate, name) / team for name in ("seconds", "least", "most", "first")}
        estimate = replace(estimate, per_node=max(1, per_node // team), **shared)
    return estimate


def _ranks_that_fit(on_gpu: bool, gpus: int, cores: int, threads: int | None) -> int:
    if on_gpu:
        return max(1, gpus)
    return max(1, cores // (threads or 1))


def trial_survey(settings: Settings, per_node: int, kind: str) -> Callable[..., Any]:
    """A function in place of `survey`: it measures a few points and raises Estimated.

    per_node  ranks on a node
    kind      of the device, whose memory is measured too where it is a GPU
    """

    def survey(measure: Any, grid: Any, *, store: Any, **_: Any) -> None:
        def timed(index: int) -> Any:
            return measure(grid.point(index))

        by_task = TASK_COSTS.get(measure.name)
        samples: list[Any] = []
        if by_task is None:
            samples = cost_model.sample_points(timed, grid.shape, time.perf_counter)
        again = 0
        if settings.resolved().get("certify") == "audit" and measure.name == "eigen":
            again = min(len(grid), max(MIN_AUDIT_POINTS, math.ceil(AUDIT_SHARE * len(grid))))
        chosen = measure.settings.get("chosen", {})
        store.close()
        details = {
            "memory": peak_memory(),
            "gpu_memory": _gpu_memory(kind),
            "file_size": store.path.stat().st_size,
            "again": again,
            "again_cost": AUDIT_COST,
            "per_node": per_node,
            "choice": json.dumps(chosen) if chosen else "",
            "beside": _seconds_beside(measure, settings),
        }
        if by_task is not None:
            raise Estimated(of_tasks(*by_task(measure), details))
        raise Estimated(cost_model.fit_estimate(samples, grid.shape, **details))

    return survey


def _seconds_beside(measure: Any, settings: Settings) -> float:
    """Seconds before and after the points: of a connection, its curve's training and the rounding of its barriers."""
    from lossmap.landscape.barrier_rounding import seconds_of_rounding
    from lossmap.landscape.connection_map import ConnectionMap
    from lossmap.landscape.curves import CurveRecipe, price_of_bend

    if not isinstance(measure, ConnectionMap):
        return 0.0
    seconds = (1 + len(measure.ways)) * seconds_of_rounding(measure)
    if (curve := measure.settings.get("curve")) is not None:
        first, recipe = next(iter(measure.problems.values())), CurveRecipe(**curve)
        recipe = replace(recipe, steps=settings.connect.curve_steps)
        seconds += price_of_bend(first, measure.plane, recipe).seconds
    return seconds


def of_tasks(costs: Sequence[Any], setup: float, details: dict[str, Any]) -> Estimate:
    """The estimate of what is dispatched task by task.

    costs  products and seconds of each task
    setup  seconds that a rank needs before its first product is quick
    """
    seconds = [cost.seconds for cost in costs]
    mean, products = sum(seconds) / len(costs), sum(cost.products for cost in costs) / len(costs)
    spread = {"seconds": mean, "first": mean, "least": min(seconds), "most": max(seconds), "looked_at": len(costs)}
    return Estimate(points=len(costs), setup=setup, products=products, **{**details, **spread})


def _rehearsed_spectrum(measure: Any) -> tuple[Sequence[Any], float]:
    """Cost of each task of a spectrum, from a rehearsal over few samples, and of its start."""
    from lossmap.spectra.cost import rehearse

    return rehearse(measure, time.perf_counter)


def _expected_sharpness(measure: Any) -> tuple[Sequence[Any], float]:
    """Cost of each task of sharpness, from a timed pass, gradient and product, and of its start."""
    from lossmap.landscape.sharpness_cost import expected_costs

    began = time.perf_counter()
    costs = expected_costs(measure)
    return costs, time.perf_counter() - began


# measure -> what costs each of its tasks, and its start
TASK_COSTS: dict[str, Callable[[Any], tuple[Sequence[Any], float]]] = {
    "spectrum": _rehearsed_spectrum,
    "sharpness": _expected_sharpness,
}


def _gpus(kind: str) -> tuple[str, int]:
    """The kind of device that `--device` takes here, and the number of its GPUs."""
    if kind == "auto":
        kind = accelerators.automatic_kind() or "cpu"
    return kind, accelerators.count(kind)


def _gpu_memory(kind: str) -> int:
    """The most bytes that were taken on this process's GPU; 0 without one."""
    import torch

    return accelerators.peak_bytes(torch.device(kind)) or 0
