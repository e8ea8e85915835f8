"""`lossmap connect A B`: the straight line between two checkpoints of one network, and the barrier on it.

Loss and accuracy at points from A (t = 0) to B (t = 1); how far the loss rises above the line between both ends and
above their mean, where, and with which sampling error; whether it is monotone. Batch-norm statistics are recomputed at
every point from fixed batches of the training samples (--bn recompute), interpolated, or kept. With --align the units
of B are permuted before, so that its weights or its activations lie near those of A, and the line to B as it stood is
measured too: the barrier before and after. With --curve a curve of low loss between both is trained, and measured
beside the line. Under mpirun or srun the ranks share the points. Interrupted or killed, the same command resumes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import budget_entry, budget_seconds, left_of, report_cuts, stored_settings
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.output_path import with_ending
from lossmap.cli.settings import Settings, UsageError
from lossmap.cli.trust import code_files
from lossmap.geometry.grid import Grid
from lossmap.io.disk import file_bytes
from lossmap.io.provenance import provenance
from lossmap.io.read import SurfaceFile, read
from lossmap.io.spectrum_layout import group_of
from lossmap.landscape.progress import display
from lossmap.landscape.run_survey import survey
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World
from lossmap.report.price import size_text
from lossmap.results import value_groups

if TYPE_CHECKING:
    import torch

    from lossmap.data.problem import Problem
    from lossmap.geometry.directions import Plane
    from lossmap.landscape.alignment import Alignment
    from lossmap.landscape.connection_map import ConnectionMap, Way
    from lossmap.landscape.curves import CurveRecipe
    from lossmap.landscape.loss import ForwardPlan
    from lossmap.report.price import Price

MAX_POINTS = 1_000_000  # of a line
MAX_LABEL_LENGTH = 60  # characters of both names in a file name


COMMAND = Command(
    "connect",
    __doc__ or "",
    GROUPS["connect"],
    (
        "lossmap connect a.pt b.pt --model resnet20-w8 --align weights --save-aligned b-aligned.pt",
        "lossmap connect a.pt b.pt --model resnet20-w8 --split both --curve bezier --save-bend bend.pt --plot",
        "mpirun -n 4 lossmap connect a.pt b.pt --model resnet56 --dataset cifar10 --data-path cifar10 --bn interpolate",
    ),
    without=frozenset({"model_file2", "model_file3", "model_folder", "shard"}),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed points, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv, defaults)
    world = World.start()
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, survey: Callable[..., Any] = survey, stop: Stop | None = None) -> int:
    """Make the problem and the line, survey it, print, store and draw the result. Every rank calls it.

    survey  `lossmap estimate` passes a function that measures a few points instead
    stop    of the program that runs this as a part of it; None: one of its own
    """
    if stop is not None:
        return _run(settings, world, survey, stop)
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return _run(settings, world, survey, stop)


def _run(settings: Settings, world: World, survey: Callable[..., Any], stop: Stop) -> int:
    from lossmap.cli import device, load_problem
    from lossmap.landscape.connect import line_grid
    from lossmap.landscape.connection_map import (
        RECOMPUTE,
        Way,
        connection_map,
        fixed_batches,
        statistics_of,
    )
    from lossmap.landscape.curves import curved_plane, moved_by_bend, price_of_bend, stored_bend, train_bend
    from lossmap.landscape.loss import ForwardPlan, probe_forward_plan

    execution, say = settings.run, output.rank_0_printer(world, settings.notes)
    began = command_began()
    budget_seconds(execution.budget)
    settings = world.together(lambda: with_both_ends(settings))
    output.check_drawable(settings.draw)
    path = result_path(settings)
    team = world.together(lambda: world.team(execution.team, execution.rank_0))
    machine = device.prepare_machine(execution, world)
    splits = load_problem.splits_of(settings.data)
    read_splits = tuple(dict.fromkeys(("train", *splits))) if settings.connect.bn == RECOMPUTE else splits
    every = load_problem.problem_and_files(settings, world, machine, read_splits)
    problems = {split: every[split] for split in splits}
    shares = load_problem.team_shares(problems, team, world)
    first = next(iter(problems.values()))
    done = statistics_of(first.model, settings.connect.bn)
    recipe = world.together(lambda: recipe_of(settings, done))
    workers = len(team.all_teams) or 1
    lines, alignment = lines_and_ranks(settings, world, first, done)
    plane, beside = lines[0], {}
    plain = ForwardPlan(execution.batch_size or first.data.batch_size)
    statistics = fixed_batches(every["train"].data, settings.connect.bn_samples) if done == RECOMPUTE else None
    repeats = settings.noise.noise_repeats
    price = partial(
        price_of_line, shares, plane, statistics=statistics, ways=len(lines) + (recipe is not None), workers=workers,
        autocast=machine.autocast, repeats=repeats,
    )  # fmt: skip
    training = partial(price_of_bend, first, plane)
    settings = world.once(
        lambda: fitted(settings, path, partial(price, plain, 1), recipe, training, began, workers, say)
    )
    recipe, grid = world.together(lambda: recipe_of(settings, done)), line_grid(settings.connect.points)
    if len(lines) > 1:
        beside["unaligned"] = Way(lines[1])
    if recipe is not None:
        bend = None if execution.overwrite else world.once(lambda: stored_bend(path, plane, recipe))
        if bend is None:
            world.together(lambda: moved_by_bend(first, plane))  # else refused by its price, and again by its training
            announce(world, "curve", lambda: price_of_bend(first, plane, recipe))
        if bend is None and not execution.dry_run:
            bend = world.once(lambda: train_bend(first, plane, recipe, stop=lambda: not stop.allows(0.0)))
            if bend is None:
                say(f"{stop.reason} while the curve's bend was trained; run the same command again")
                return output.EXIT_CODES["unfinished"]
        beside["curve"] = Way(curved_plane(plane, bend or {}, recipe), recipe.kind)
    identity = world.once(partial(identity_of, settings, problems, done)) | budget_entry(execution.budget)
    if recipe is not None:
        identity["curve"] = recipe.as_settings()
    plan = plain
    if execution.probe and not execution.dry_run:
        # each way has samples of its own in the plan's memory format
        probe = partial(
            probe_forward_plan, first, plane, autocast=machine.autocast, batch_size=execution.batch_size,
            beside=[*list(problems.values())[1:], *list(problems.values()) * len(beside)],
        )  # fmt: skip
        plan = world.once(lambda: stored_plan(path, execution.overwrite) or probe())
    measure = world.together(
        lambda: connection_map(
            shares, plane, plan, statistics=statistics, beside=beside, total=team.sum, autocast=machine.autocast,
            settings=identity, noise_repeats=repeats,
        )
    )  # fmt: skip
    if execution.dry_run:
        size = size_text(file_bytes(len(grid), [measure.fields]))
        say(f"would compute losses at {len(grid)} points between {' and '.join(labels_of(settings))}, some {size}")
        say(output.about_data(problems))
        say(f"  result  {path}\nnothing was computed, and nothing was written (--dry-run)")
        announce(world, "line", lambda: price(measure.plan, len(grid)))
        return 0
    store = output.on_rank_0(
        world, lambda: _file(path, grid, plane, measure, settings, problems, machine.describe(), world.size)
    )
    if store is not None:
        left = len(store.todo(measure.name, execution.retry_failed))
        announce(world, "line", lambda: price(measure.plan, left))
    with display(world, "line") as progress:
        surface = survey(
            measure, grid, store=store, world=world, stop=stop, progress=progress, retry_failed=execution.retry_failed,
            rank_0=execution.rank_0, team=team, point_timeout=execution.point_timeout, share_values=False,
        )  # fmt: skip
    if store is None:
        return output.EXIT_CODES[surface.outcome_of(measure.name)]
    if surface.outcome != "unfinished":
        report(store, settings, done, problems, plane, beside, say, alignment, measure)
    store.close()
    output.draw_pictures(path, settings.draw, say)
    return output.report_end(path, store.surface(), measure.name, say, execution.overwrite, stop.reason)


def price_of_line(
    problems: Mapping[str, Problem], plane: Plane, plan: ForwardPlan, points: int, *, statistics: Any, ways: int,
    workers: int, autocast: torch.dtype | None, repeats: int | None,
) -> Price:  # fmt: skip
    """The price of so many points of each of the ways, of both ends, and of the rounding of barriers."""
    from lossmap.landscape.barrier_rounding import seconds_of_rounding
    from lossmap.landscape.connection_map import ConnectionMap
    from lossmap.landscape.price import price_of_losses

    passes = (repeats or 1) * ways
    losses = price_of_losses(problems, plane, plan, points, workers=workers, autocast=autocast, repeats=passes)
    if not points:
        return losses
    measure = ConnectionMap(problems, plane, plan, statistics=statistics, autocast=autocast)
    each = losses.longest + ways * measure.seconds_of_statistics()
    # each rank, or team of ranks, reads both ends first
    fixed = 2.0 * each + ways * seconds_of_rounding(measure)
    return replace(losses, seconds=points * each, longest=each, fixed=fixed)


def fitted(
    settings: Settings,
    path: Path,
    price: Callable[[], Price],
    recipe: CurveRecipe | None,
    training: Callable[[CurveRecipe], Price],
    began: float,
    workers: int,
    say: output.Printer,
) -> Settings:
    """The settings with as many points and steps as --budget holds, or as an earlier run fitted. For rank 0.

    price     of one point, and of what is read beside all; training: that of a curve's bend
    recipe    of the curve; None for none
    began     when the command began, by time.monotonic
    """
    from lossmap.landscape.connect_budget import fit_connection

    own = settings.connect
    if settings.run.budget is None:
        return settings
    stored = stored_settings(path, "loss", settings.run)
    if stored:
        steps = stored.get("curve", {}).get("steps", own.curve_steps)
        return settings.changed("connect", points=len(read(path).grid.x), curve_steps=steps)
    steps, step_seconds = 0, 0.0
    if recipe is not None:
        steps, step_seconds = recipe.steps, training(recipe).seconds / recipe.steps
    one = price()
    left = left_of(settings.run.budget, began) or 0.0  # after what was timed
    fit = fit_connection(
        own.points, steps, point_seconds=one.longest, step_seconds=step_seconds, seconds=left,
        beside=one.fixed, workers=workers,
    )  # fmt: skip
    report_cuts(fit.cuts, settings.run.budget, left, say)
    return settings.changed("connect", points=fit.points, curve_steps=fit.steps or own.curve_steps)


def recipe_of(settings: Settings, done: str) -> CurveRecipe | None:
    """How the bend of the curve is trained; None for no curve. done: with the statistics of batch norm."""
    from lossmap.landscape.connection_map import curve_recipe

    own = settings.connect
    return curve_recipe(own.curve, own.curve_steps, own.curve_rate, own.seed, done)


def with_both_ends(settings: Settings) -> Settings:
    """The settings with A as the model's checkpoint and B as `other`, however they were named.

    Raises UsageError where one of the two is not named, or named twice; and for more than MAX_POINTS points.
    """
    if settings.connect.points > MAX_POINTS:
        raise UsageError(f"--points must be <= {MAX_POINTS:,}; got {settings.connect.points:,}")
    ends, own, other = settings.connect.ends, settings.model.model_file, settings.connect.other
    named = [*([own] if own else []), *ends, *([other] if other else [])]
    if len(named) != 2 or (own and len(ends) == 2):
        raise UsageError(
            f"a line has two ends: lossmap connect A B --model ...; got {len(named)}"
            + (f" ({' '.join(map(str, named))})" if named else "")
        )
    if settings.connect.save_aligned is not None and settings.connect.align == "none":
        raise UsageError("--save-aligned writes the permuted checkpoint: it needs --align weights or activations")
    if settings.connect.save_bend is not None and settings.connect.curve == "none":
        raise UsageError(
            "--save-bend writes the checkpoint in the middle of a curve: it needs --curve bezier or polygon"
        )
    for flag, file in (("--save-aligned", settings.connect.save_aligned), ("--save-bend", settings.connect.save_bend)):
        if file in map(str, named):
            raise UsageError(f"{flag} {file} would write over an end of the line")
    return settings.changed("model", model_file=str(named[0])).changed("connect", ends=(), other=str(named[1]))


def labels_of(settings: Settings) -> tuple[str, str]:
    """The names of both ends: their stems, with their folders where these alone differ."""
    a, b = Path(settings.model.model_file), Path(settings.connect.other)
    if a.stem != b.stem:
        return a.stem, b.stem
    return str(a), str(b)


def result_path(settings: Settings) -> Path:
    """The file that the result goes to."""
    if settings.run.surf_file is not None:
        return with_ending(Path(settings.run.surf_file))
    settings = with_both_ends(settings)
    stems = [Path(file).stem for file in (settings.model.model_file, settings.connect.other)]
    name = re.sub(r"[^\w.+-]+", "-", "-to-".join(stems)[:MAX_LABEL_LENGTH]).lstrip("-")
    return Path(f"{name}_connect.h5")


def lines_and_ranks(
    settings: Settings, world: World, problem: Problem, done: str
) -> tuple[tuple[Plane, ...], Alignment | None]:
    """The lines on every rank, made by rank 0, and what was aligned (there). Every rank calls it; all raise as one."""

    def make() -> tuple[tuple[Plane, ...], Alignment | None]:
        return lines_of(settings, problem, done) if world.rank == 0 else ((), None)

    lines, alignment = world.together(make)
    if world.size > 1:
        device = next(problem.model.parameters()).device
        lines = tuple(line.to(device) for line in world.broadcast(tuple(line.to("cpu") for line in lines)))
    for line in lines:
        world.check_same(line.digest)
    return lines, alignment


def lines_of(settings: Settings, problem: Problem, done: str) -> tuple[tuple[Plane, ...], Alignment | None]:
    """The line from the model to the other checkpoint; where that was aligned also the line to it as it stood, and how.

    Raises UsageError where both are the same.
    """
    from lossmap.cli.load_plane import state_of
    from lossmap.data import checkpoints
    from lossmap.geometry.directions import line_to
    from lossmap.landscape.alignment import NONE, align
    from lossmap.landscape.connection_map import INTERPOLATE

    other = settings.connect.other
    states = done == INTERPOLATE
    model, state = problem.model, state_of(problem.model, other, settings.model)
    recipe = {"kind": f"to:{other}", "sha256": checkpoints.file_sha256(other)}

    def line(tensors: Mapping[str, Any], **how: str) -> Plane:
        plane = line_to(model, tensors, states=states)
        return replace(plane, recipes=({**plane.recipes[0], **recipe, **how},))

    unaligned = line(state)
    if not unaligned.lengths[0]:
        raise UsageError(f"{other} has the weights of {settings.model.model_file}: there is no line between them")
    method = settings.connect.align
    if method == NONE:
        return (unaligned,), None
    alignment = align(problem, state, method=method)
    return (line(alignment.state, align=method), unaligned), alignment


def identity_of(settings: Settings, problems: dict[str, Problem], done: str) -> dict[str, Any]:
    """What the losses depend on, beside the line: stored with them, and compared when a run resumes."""
    from lossmap.cli import load_problem
    from lossmap.landscape.survey_file import MODEL, structure_digest

    measured = load_problem.measured_with(settings.data, settings.run, problems)
    model = next(iter(problems.values())).model
    own = {"batch norm": done}
    if done == "recompute":
        own["samples of batch norm"] = settings.connect.bn_samples
    return {**measured, MODEL: structure_digest(model), **own}


def stored_plan(path: Path, overwrite: bool) -> ForwardPlan | None:
    """The plan of passes that an earlier run has left in the file; None where there is none."""
    from lossmap.landscape.loss import ForwardPlan

    if overwrite or not path.exists():
        return None
    way = read(path).settings.get("measures", {}).get("loss", {}).get("chosen", {}).get("way")
    return None if way is None else ForwardPlan(**way)


def _file(
    path: Path, grid: Grid, plane: Plane, measure: Any, settings: Settings, problems: dict[str, Problem], device: str,
    ranks: int,
) -> SurfaceFile:  # fmt: skip
    from lossmap.cli import load_problem
    from lossmap.landscape.fingerprint import code_of
    from lossmap.landscape.survey_file import direction_groups

    files = code_files(settings.resolved(), Path.cwd())
    return SurfaceFile.open(
        path,
        grid,
        identity={**load_problem.identity(settings.model, settings.data, plane), "kind": "connect"},
        measures={measure.name: (measure.fields, measure.settings)},
        overwrite=settings.run.overwrite,
        groups={**direction_groups(plane, tensors=False), **measure.groups},
        command="lossmap connect",
        attributes={
            **provenance(device, ranks),
            "command": "connect",
            "team": settings.run.team,
            "resolved_connect": {"settings": settings.resolved(), "folder": os.getcwd()},
            "directions_digest": plane.digest,
        },
        codes={measure.name: code_of(problems, plane=plane, point=grid.farthest, files=files)},
        accept_change=settings.run.accept_change,
    )


def report(
    store: SurfaceFile, settings: Settings, done: str, problems: dict[str, Problem], plane: Plane,
    beside: Mapping[str, Way], say: output.Printer, alignment: Alignment | None, measure: ConnectionMap,
) -> None:  # fmt: skip
    """Print the report, and put it into the file. For rank 0."""
    from lossmap.landscape.barrier_rounding import with_rounding
    from lossmap.landscape.connection import GROUP, connection_in
    from lossmap.landscape.curves import CurveRecipe, described
    from lossmap.training.run_folder import save

    samples = {split: problem.sample_count for split, problem in problems.items()}
    curve = settings.connect
    result = connection_in(
        store.surface(),
        {name: way.length for name, way in beside.items()},
        bn=done,
        samples=samples,
        length=plane.lengths[0],
        labels=labels_of(settings),
        alignment="" if alignment is None else alignment.describe(),
        batches=measure.batches,
        curve_recipe=described(CurveRecipe(curve.curve, curve.curve_steps, curve.curve_rate))
        if "curve" in beside
        else "",
    )
    result = with_rounding(result, measure)
    say(f"\n{result!r}\n")
    store.put_all({GROUP: group_of(result), **value_groups(result, GROUP)})
    if alignment is not None and curve.save_aligned is not None:
        save(dict(alignment.state), curve.save_aligned)
        say(f"aligned checkpoint: {curve.save_aligned}")
    if "curve" in beside and curve.save_bend is not None:
        buffers = next(iter(problems.values())).model.state_dict()  # those of A
        save({**buffers, **beside["curve"].plane.at((0.0, 1.0))}, curve.save_bend)
        say(f"checkpoint of the bend: {curve.save_bend}")
