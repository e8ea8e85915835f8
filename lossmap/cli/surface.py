"""`lossmap surface`, plot_surface.py: losses and accuracies over a line or plane, into one HDF5 file, drawn.

Under mpirun or srun the ranks share the points. Interrupted or killed, the same command resumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import announce_once, within_budget
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.settings import Settings, UsageError
from lossmap.io.sampled import checked_loss_error
from lossmap.landscape.progress import display
from lossmap.landscape.refinement import checked_tolerance, coarse_points
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

COMMAND = Command(
    "surface",
    __doc__ or "",
    GROUPS["surface"],
    (
        "lossmap surface --model resnet20-w8 --model-file net.pt --x=-1:1:25 --y=-1:1:25 --plot",
        "lossmap surface --model vgg9 --dataset cifar10 --data-path cifar10 --x=-1:1:51 --y=-1:1:51 --loss-error 0.02",
        "mpirun -n 4 lossmap surface --model resnet56 --model-file net.t7 --x=-1:1:101 --y=-1:1:101 --refine 0.01",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed points, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv, defaults)
    world = World.start()
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, survey: Callable[..., Any] = survey, stop: Stop | None = None) -> int:
    """Make the problem and the plane, survey the grid, store and draw the result. Every rank calls it.

    survey  `lossmap estimate` passes a function that measures a few points instead
    stop    of the program that runs this as a part of it; None: one of its own
    """
    if stop is not None:
        return _run(settings, world, survey, stop)
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return _run(settings, world, survey, stop)


def _run(settings: Settings, world: World, survey: Callable[..., Any], stop: Stop) -> int:
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.landscape.loss import ForwardPlan, losses, probe_forward_plan
    from lossmap.landscape.price import price_of_losses
    from lossmap.landscape.survey_file import MODEL, structure_digest

    execution, say = settings.run, output.rank_0_printer(world, settings.notes)
    repeats: int | None = settings.noise.noise_repeats
    refine: float | None = settings.refine.refine
    if refine is not None:
        checked_tolerance(refine)
        if execution.shard:
            raise UsageError("--refine chooses its points from all values so far: leave --shard out")
    loss_error = _loss_error_of(settings)
    settings = world.together(lambda: load_problem.with_default_problem(settings, say))
    grid = world.together(lambda: load_plane.grid_of(settings.plane))
    team = world.together(lambda: world.team(execution.team, execution.rank_0))
    machine = device.prepare_machine(execution, world)
    problems = load_problem.problem_and_files(settings, world, machine)
    shares = load_problem.team_shares(problems, team, world)
    first = next(iter(problems.values()))
    curved = load_plane.curved_of(settings, first)
    plane = load_plane.plane_and_ranks(settings, world, first.model, curved)
    file_settings = world.once(lambda: load_problem.identity(settings.model, settings.data, plane))
    result = world.together(lambda: output.OutputFile("surface", settings, grid, plane, file_settings))
    identity = world.once(
        lambda: {**load_problem.measured_with(settings.data, execution, problems), MODEL: structure_digest(first.model)}
    )
    if refine is not None:
        say(f"refining: begins with {coarse_points(grid).size:,} of {len(grid):,} points")
    if execution.dry_run:
        measure = losses(
            problems,
            plane,
            plan=ForwardPlan(first.data.batch_size),
            settings=identity,
            noise_repeats=repeats,
            loss_error=loss_error,
            sample_seed=settings.data.data_seed,
        )
        measures = {measure.name: (measure.fields, measure.settings)}
        names = ", ".join(field.name for field in measure.fields)
        say(result.describe(problems, names, [measure.fields], measures))
        announce(world, "losses", lambda: price_of_losses(problems, plane, measure.plan, len(grid), repeats=repeats))
        return 0

    def probe() -> ForwardPlan:
        if not execution.probe:
            return ForwardPlan(execution.batch_size or first.data.batch_size)
        others = list(problems.values())[1:]
        return probe_forward_plan(
            first, plane, autocast=machine.autocast, batch_size=execution.batch_size, beside=others
        )

    plan = result.chosen(world, "loss", "way", probe)
    measure = world.together(
        lambda: losses(
            shares, plane, plan=plan, total=team.sum, autocast=machine.autocast, settings=identity,
            noise_repeats=repeats, loss_error=loss_error, sample_seed=settings.data.data_seed,
            share=(team.rank, team.size),
        )
    )  # fmt: skip
    measures = {measure.name: (measure.fields, measure.settings)}
    left = result.points_left(measure.name)
    if refine is not None:  # at least: how many more there are depends on what they show
        left = min(left, coarse_points(grid).size)
    price = partial(
        price_of_losses, shares, plane, measure.plan, left,
        workers=len(team.all_teams) or 1, autocast=machine.autocast, repeats=repeats,
    )  # fmt: skip
    within_budget(world, "losses", price, execution.budget, left, result.began, settings.plane.yes)
    store = output.on_rank_0(world, lambda: result.open(measures, machine.describe(), world.size, problems=problems))
    announce_once(world, "losses", price, execution.budget)
    say(machine.sentence())
    if loss_error is not None:
        say("fewer samples: read in rounds until the errors are small; a round of all of them takes what is said above")
    if plane.cosine is not None:
        say(f"the cosine between the directions is {plane.cosine:.4f}")
    with display(world, "losses") as progress:
        surface = survey(
            measure,
            grid,
            store=store,
            world=world,
            stop=stop,
            progress=progress,
            points=result.points,
            retry_failed=execution.retry_failed,
            rank_0=execution.rank_0,
            team=team,
            point_timeout=execution.point_timeout,
            share_values=False,
            refine=refine,
        )
    if store is None:
        return output.EXIT_CODES[surface.outcome_of(measure.name)]
    result.store_cost(store, measure.name)
    store.close()
    output.draw_pictures(result.path, settings.draw, say)
    return output.report_end(result.path, store.surface(), measure.name, say, execution.overwrite, stop.reason)


def _loss_error_of(settings: Settings) -> float | None:
    """The tolerance of the losses' errors. Raises UsageError where it goes with other flags that judge the picture."""
    tolerance: float | None = settings.refine.loss_error
    if tolerance is None:
        return None
    checked_loss_error(tolerance)
    for flag, value in (("--shard", settings.run.shard), ("--refine", settings.refine.refine)):
        if value is not None:
            raise UsageError(f"--loss-error judges the picture of all points: leave {flag} out")
    if settings.noise.noise_repeats is not None:
        raise UsageError("--loss-error reads fewer samples, --noise-repeats each several times: leave one of them out")
    return tolerance
