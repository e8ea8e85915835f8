"""What `lossmap spectrum --along run/*.pt` does: the leading eigenpairs at every checkpoint of a run, compared.

No door of its own: the door of the spectrum opens it. Checkpoints are dealt over the ranks of mpirun or srun; the
eigenvectors go to the disk as they come; stopped or killed, the same command goes on.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from lossmap.cli import output
from lossmap.cli.progress import display
from lossmap.cli.settings import Settings, UsageError
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

HEARD = ("parameters", "top", "tol", "along", "whole", "seed", "way")  # of the flags of spectrum


def unheard(told: Any) -> list[str]:
    """Flags of spectrum that were given, and that a run does not hear."""
    given = [f.name for f in fields(told) if f.name not in HEARD and getattr(told, f.name) != f.default]
    return ["--" + name.replace("_", "-") for name in given]


def run_command(settings: Settings, world: World, given: tuple[str, ...], *, top: int, tol: float) -> int:
    """Measure every checkpoint, say what became of the eigenvectors, and draw it; the exit code.

    settings  with the groups model, data, run and draw, and `spectrum` for parameters, seed and density
    given     checkpoints, or folders of them
    """
    from lossmap.cli import device, load_problem
    from lossmap.dynamics.run import find_checkpoints, run_dynamics

    asked, say = settings.run, output.rank_0_printer(world, settings.notes)
    if settings.model.model_file:
        raise UsageError("--along names the checkpoints itself: leave --model-file out")
    if settings.data.split == "both":
        raise UsageError("a run is followed on one split: --split train or --split test")
    if asked.team != 1 or asked.shard:
        raise UsageError("--along deals whole checkpoints to ranks: leave --team and --shard out")
    if flags := unheard(settings.spectrum):
        raise UsageError(f"--along follows the largest eigenvalues of the Hessian: leave {', '.join(flags)} out")
    at = device.machine(asked, world)
    if at.autocast is not None:
        raise UsageError("--precision bfloat16 is for losses; eigenvalues want float32 or float64")
    path = Path(asked.surf_file or "along.h5")
    path = path if path.suffix in (".h5", ".hdf5", ".nc") else path.with_name(path.name + ".h5")
    problem = load_problem.problem_and_files(settings, world, at)[settings.data.split]
    if asked.batch_size:
        problem = problem.rebatched(asked.batch_size)
    if asked.dry_run:
        files = world.together(lambda: find_checkpoints(given))
        names = ", ".join(f.name for f in files.values())
        say(f"would read the {top} largest eigenvalues at {len(files)} checkpoints: {names}")
        say(f"  result  {path}\nnothing was computed, and nothing was written (--dry-run)")
        return 0
    wanted = settings.spectrum
    with Stop(after=asked.stop_after, until=job_end(os.environ)) as stop, display(world, "checkpoints") as progress:
        run = run_dynamics(
            given,
            problem,
            path=path,
            top=top,
            whole=wanted.whole,
            tol=tol,
            parameters=wanted.parameters,
            seed=wanted.seed,
            world=world,
            stop=stop,
            progress=progress,
            overwrite=asked.overwrite,
            retry_failed=asked.retry_failed,
            rank_0=asked.rank_0,
            backend=wanted.way,
            point_timeout=asked.point_timeout,
            unsafe=settings.model.unsafe_load,
            settings=load_problem.measured_with(settings.data, asked, {settings.data.split: problem}),
            attributes=output.provenance(at.describe(), world.size)
            | {"command": "spectrum", "resolved_spectrum": {"settings": settings.resolved(), "folder": os.getcwd()}},
        )
    for failure in run.failures:
        say(f"failed: {failure}")
    if run.summary:
        say(run.summary)
    if run.outcome == "unfinished":
        say("stopped in good order with checkpoints left; the same command goes on")
    elif world.rank == 0 and run.summary and (settings.draw.plot or settings.draw.show):
        from lossmap.plotting.dynamics import draw_evolution
        from lossmap.plotting.style import save

        for ending in (".pdf", ".png"):
            say(f"picture: {save(draw_evolution(path), path.with_suffix(ending))}")
    say(f"result: {path}")
    return output.EXIT[run.outcome]
