"""`lossmap surface`, plot_surface.py: losses and accuracies over a line or plane, into one HDF5 file, drawn.

Under mpirun or srun the ranks share the points. Killed or stopped, the same command goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lossmap.cli import output
from lossmap.cli.progress import display
from lossmap.cli.setting_groups import DataSettings, DrawSettings, ModelSettings, PlaneSettings, RunSettings
from lossmap.cli.settings import Settings, guarded, parse
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

GROUPS = (ModelSettings, DataSettings, PlaneSettings, RunSettings, DrawSettings)


@guarded
def main(argv: Sequence[str] | None = None, given: dict[str, Any] | None = None) -> int:
    """Open this door: 0 complete, 2 makes no sense, 3 complete but for failed points, 75 more to do."""
    settings = parse(GROUPS, argv, prog="lossmap surface", about=__doc__ or "", given=given)
    world = World.start()
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, walk: Callable[..., Any] = survey) -> int:
    """Make the problem and the plane, walk the grid, keep and draw the result.

    walk  `survey`; `lossmap estimate` looks at a few points instead
    """
    # from the start: a signal may come, and the clock goes, while all is made ready
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return surveyed(settings, world, walk, stop)


def surveyed(settings: Settings, world: World, walk: Callable[..., Any], stop: Stop) -> int:
    """The same, until one is asked to stop."""
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.landscape.curvature_directions import curved_direction
    from lossmap.landscape.loss import ForwardPlan, losses, probe_forward_plan

    asked, say = settings.run, output.rank_0_printer(world, settings.notes)
    settings = world.together(lambda: load_problem.at_checkpoint(settings, say))
    grid = world.together(lambda: load_plane.grid_of(settings.plane))
    team = world.together(lambda: world.team(asked.team, asked.rank_0))
    at = device.machine(asked, world)
    problems = load_problem.problem_and_files(settings, world, at)
    first = next(iter(problems.values()))
    plane = load_plane.plane_and_ranks(settings, world, first.model, lambda kind: curved_direction(first, kind))
    file_settings = world.once(lambda: load_problem.identity(settings.model, settings.data, plane))
    kept = world.together(lambda: output.OutputFile("surface", settings, grid, plane, file_settings))
    told = world.once(lambda: load_problem.measured_with(settings.data, asked, problems))
    if asked.dry_run:
        measure = losses(problems, plane, plan=ForwardPlan(first.data.batch_size), settings=told)
        say(kept.describe(problems, "losses and accuracies", {measure.name: (measure.fields, measure.settings)}))
        return 0

    def probed() -> ForwardPlan:
        if not asked.probe:
            return ForwardPlan(asked.batch_size or first.data.batch_size)
        return probe_forward_plan(first, plane, autocast=at.autocast, batch_size=asked.batch_size)

    chosen = kept.chosen(world, "loss", "way", probed)
    shared = {split: p.share(team.rank, team.size) if team.size > 1 else p for split, p in problems.items()}
    measure = losses(shared, plane, plan=chosen, total=team.sum, autocast=at.autocast, settings=told)
    measures = {measure.name: (measure.fields, measure.settings)}
    store = world.together(lambda: kept.open(measures, at.describe(), world.size) if world.rank == 0 else None)
    say(at.sentence())
    if plane.cosine is not None:
        say(f"the cosine between the directions is {plane.cosine:.4f}")
    with display(world, "losses") as progress:
        surface = walk(
            measure,
            grid,
            store=store,
            world=world,
            stop=stop,
            progress=progress,
            points=kept.points,
            retry_failed=asked.retry_failed,
            rank_0=asked.rank_0,
            team=team,
            point_timeout=asked.point_timeout,
            share_values=False,
        )
    if store is None:
        return output.EXIT[surface.outcome_of(measure.name)]
    kept.took(store, measure.name)
    store.close()
    output.pictures(kept.path, settings.draw, say)
    return output.finished(kept.path, store.surface(), measure.name, say, asked.overwrite, stop.reason)
