"""`lossmap eigenmap`, plot_hessian_eigen.py: the extreme Hessian eigenvalues over a line or plane, with their bounds.

With --like surface.h5 they go to the same model, plane and grid, and into that file, beside its losses. Afterwards a
random part of the points is solved a second time from a cold start: what a cheap point missed is counted, told and
computed again. Killed or stopped, the same command goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.progress import display
from lossmap.cli.setting_groups import DataSettings, DrawSettings, ModelSettings, PlaneSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, guarded, parse, setting
from lossmap.io.read import NotASurface, read
from lossmap.landscape.audit_loop import run_audit
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

# what --like takes over from the file, if nothing else is said; the rest, such as the samples, is the measure's own
PATHS = ("model_file", "model_file2", "model_file3", "model_folder", "data_path", "dir_file", "proj_file")
ONCE = ("overwrite", "dry_run", "stop_after", "retry_failed", "shard", "plot", "page", "vtk", "show", "surf_file")


@dataclass(frozen=True)
class EigenSettings:
    """The eigenvalues."""

    like: str | None = setting(
        None, "take model, plane, grid and data of this result, and write into it", metavar="FILE"
    )
    which: str = setting("ends", "ends, top:k, bottom:k, abs:k, trace, or several with commas", metavar="WHICH")
    parameters: str = setting("weights", "weights (dimension > 1), all, or a regular expression", metavar="WHICH")
    tol: float = setting(1e-3, "accuracy asked of each end, relative to max(abs(eigenvalue))", metavar="TOL")
    solver: str = setting("auto", "how they are found", choices=("auto", "lanczos", "eigsh"))
    max_products: int | None = setting(None, "spend no more Hessian-vector products on a point", metavar="COUNT")
    certify: str = setting("audit", "solve again, cold and with limits", choices=("audit", "each", "none"))
    confidence: float = setting(0.99, "probability with which no eigenvalue lies beyond the limits", metavar="P")
    way: str = setting("auto", "how products are made", choices=("auto", "linear", "graph", "double"))


GROUPS = (ModelSettings, DataSettings, PlaneSettings, EigenSettings, RunSettings, DrawSettings)


@guarded
def main(argv: Sequence[str] | None = None, given: dict[str, Any] | None = None) -> int:
    """Open this door: 0 complete, 2 makes no sense, 3 complete but for failed points, 75 more to do."""
    settings = parsed(argv, given)
    world = World.start()
    return world.leave(run(settings, world))


def parsed(argv: Sequence[str] | None = None, given: dict[str, Any] | None = None) -> Settings:
    """The settings; where --like names a result, its own stand in for the defaults. Raises Usage."""
    told: dict[str, Any] = {"prog": "lossmap eigenmap", "about": __doc__ or ""}
    settings = parse(GROUPS, argv, given=given, **told)
    if settings.eigen.like and given is None:
        settings = parse(GROUPS, argv, given=taken_over(settings.eigen.like), **told)
    return settings


def taken_over(path: str) -> dict[str, Any]:
    """The settings of the result that --like names; of one without any, such as the original tool's, its grid."""
    surface = read(path)
    told = surface.attributes.get("resolved_surface") or surface.attributes.get("resolved_eigenmap")
    if told is None:
        axes = {"x": surface.grid.x} | ({} if surface.grid.y is None else {"y": surface.grid.y})
        if any(t.size > 1 and not np.allclose(t, np.linspace(t[0], t[-1], t.size)) for t in axes.values()):
            raise UsageError(f"--like {path}: its ticks are not evenly spaced, and it does not say how it was made")
        return {name: f"{float(t[0])!r}:{float(t[-1])!r}:{t.size}" for name, t in axes.items()}
    told = json.loads(told) if isinstance(told, str) else told
    given = {k: v for k, v in told["settings"].items() if k not in ONCE}
    given |= {k: str(Path(told["folder"], given[k])) for k in PATHS if given.get(k)}
    return given | {"surf_file": str(path)}


def _spared(path: Path, overwrite: bool) -> None:
    """Raise Usage where --overwrite would delete more than eigenvalues."""
    try:
        held = read(path).status if overwrite and path.exists() else {}
    except NotASurface:
        return
    if "loss" in held:
        raise UsageError(f"--overwrite would delete the losses of {path} too; name another file with --surf-file")


def run(settings: Settings, world: World, walk: Callable[..., Any] = survey) -> int:
    """Make the problem and the plane, walk the grid, audit it, keep and draw the result.

    walk  `survey`; `lossmap estimate` looks at a few points instead
    """
    # from the start: a signal may come, and the clock goes, while all is made ready
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return surveyed(settings, world, walk, stop)


def surveyed(settings: Settings, world: World, walk: Callable[..., Any], stop: Stop) -> int:
    """The same, until one is asked to stop."""
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.curvature.autotune import prepare
    from lossmap.landscape.curvature_directions import curved_direction
    from lossmap.landscape.eigenvalues import EigenvalueMap
    from lossmap.memory import free_memory

    asked, wanted, say = settings.run, settings.eigen, output.rank_0_printer(world, settings.notes)
    settings = world.together(lambda: load_problem.at_checkpoint(settings, say))
    grid = world.together(lambda: load_plane.grid_of(settings.plane))
    team = world.together(lambda: world.team(asked.team, asked.rank_0))
    at = device.machine(asked, world)
    if at.autocast is not None:
        raise UsageError("--precision bfloat16 is for losses; eigenvalues want float32 or float64")
    problems = load_problem.problem_and_files(settings, world, at)
    first = next(iter(problems.values()))
    plane = load_plane.plane_and_ranks(settings, world, first.model, lambda kind: curved_direction(first, kind))
    file_settings = world.once(lambda: load_problem.identity(settings.model, settings.data, plane))
    kept = world.together(lambda: output.OutputFile("eigenmap", settings, grid, plane, file_settings))
    world.once(lambda: _spared(kept.path, asked.overwrite))
    if asked.dry_run:
        say(kept.describe(problems, "eigenvalues"))
        return 0
    told = world.once(
        lambda: load_problem.measured_with(settings.data, asked, problems) | {"parameters": wanted.parameters}
    )
    room = free_memory(at.device, world.node_size) // 3

    def choice() -> dict[str, Any]:
        way = wanted.way if asked.probe or wanted.way != "auto" else "double"
        cut = {"batch": asked.batch_size} if asked.batch_size else {}
        return prepare(first, wanted.parameters, backend=way, memory=room).plan.stored() | cut

    chosen = kept.chosen(world, "eigen", "way", choice)

    def measure(audit: bool = False) -> EigenvalueMap:
        return EigenvalueMap(
            prepared,
            plane,
            wanted.which,
            tol=wanted.tol,
            solver=wanted.solver,
            max_products=None if audit else wanted.max_products,
            certify=wanted.certify,
            confidence=wanted.confidence,
            seed=settings.plane.seed,
            memory=max(room // 2, 1 << 29),
            stop=lambda: team.any(stop()),
            unit=first.unit,
            settings=told | {"chosen": {"way": chosen}},
            audit=audit,
        )

    shared = {split: p.share(team.rank, team.size) if team.size > 1 else p for split, p in problems.items()}
    prepared = {
        split: prepare(p, wanted.parameters, total=team.sum, plan=chosen, memory=room) for split, p in shared.items()
    }
    cheap = world.together(measure)
    cold = measure(audit=True) if wanted.certify == "audit" and cheap.auditable else None
    measures = {m.name: (m.fields, m.settings) for m in (cheap, cold) if m is not None}
    store = world.together(lambda: kept.open(measures, at.describe(), world.size) if world.rank == 0 else None)
    say(at.sentence())
    if store is not None:
        store.note(split=next(iter(problems)))
    told_walk: dict[str, Any] = {
        "store": store,
        "world": world,
        "stop": stop,
        "retry_failed": asked.retry_failed,
        "rank_0": asked.rank_0,
        "team": team,
        "point_timeout": asked.point_timeout,
        "share_values": False,
    }
    with display(world, "eigenvalues") as progress:
        surface = walk(cheap, grid, points=kept.points, progress=progress, **told_walk)
    if cold is not None:
        with display(world, "audit") as progress:

            def again(points: np.ndarray) -> None:
                walk(cold, grid, points=points, progress=progress, **told_walk)

            run_audit(
                store, world, again, say, fields=cold.fields, settings=cold.settings, tol=wanted.tol, seed=cold.seed
            )
    if store is None:
        return output.EXIT[surface.outcome_of("eigen")]
    kept.took(store, "eigen")
    store.close()
    output.pictures(kept.path, settings.draw, say)
    code = output.finished(kept.path, store.surface(), "eigen", say, asked.overwrite, stop.reason)
    if cold is not None and store.surface().outcome_of("audit") != "complete" and code != 75:
        say("the audit is not complete:")
        code = max(code, output.finished(kept.path, store.surface(), "audit", say, asked.overwrite, stop.reason))
    return code
