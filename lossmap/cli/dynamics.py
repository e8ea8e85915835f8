"""`lossmap dynamics`, hess_vec_prod.py dynamics: the leading Hessian eigenpairs along a training run, compared.

Checkpoints are files, or folders of them; their steps are the last whole numbers in their names. You learn whether the
leading eigenspace stands still or rotates, and how sharpness changes. Checkpoints are shared among the ranks of mpirun
or srun; eigenvectors go to the disk as they come. Interrupted or killed, the same command resumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import budget_seconds
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.output_path import with_ending
from lossmap.cli.setting_groups import (
    DataSettings,
    DrawSettings,
    ModelSettings,
    RunSettings,
    hvp_backend_setting,
    parameters_setting,
)
from lossmap.cli.settings import Settings, UsageError, flag_of, setting
from lossmap.data.problem import Problem
from lossmap.io.provenance import provenance
from lossmap.landscape.progress import display
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World
from lossmap.report.price import size_text

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
    from lossmap.report.price import Price

DEFAULT_RESULT = "dynamics.h5"


@dataclass(frozen=True)
class DynamicsSettings:
    """Hessian options."""

    checkpoints: tuple[str, ...] = setting(
        (), "checkpoints of a run, or folders of them", metavar="FILE", positional=True, former=("--along",)
    )
    top: int = setting(5, "number of largest eigenvalues", metavar="K", minimum=1)
    full_spectrum: bool = setting(
        False, "trace, negative share and spectral density at every checkpoint too", names=("--whole",)
    )
    tol: float = setting(1e-3, "accuracy of the ends, relative to max(abs(eigenvalue))", metavar="TOL", above=0)
    parameters: str = parameters_setting()
    seed: int = setting(0, "seed of probes and start vectors", metavar="SEED")
    hvp_backend: str = hvp_backend_setting()
    null: str = setting(
        "halves",
        "what overlaps are compared with beside chance: two disjoint halves of the samples at the first and the last "
        "checkpoint, in three random divisions (the price of six more checkpoints)",
        choices=("halves", "none"),
    )
    other_seed: str | None = setting(
        None, "checkpoint of the same network from another seed, to compare the run with", metavar="FILE"
    )


# A run is followed on one split, whole checkpoints go to single ranks, and its figures are not those of a surface.
INAPPLICABLE = (
    *("model_file", "model_file2", "model_file3", "team", "shard", "probe"),
    *("page", "vtk", "log", "linear", "loss_max", "vmax", "vmin", "vlevel"),
)
COMMAND = Command(
    "dynamics",
    __doc__ or "",
    (DynamicsSettings, ModelSettings, DataSettings, RunSettings, DrawSettings),
    (
        "lossmap dynamics run --model mlp --samples 512 --other-seed other.pt --surf-file run.h5 --plot",
        "lossmap dynamics run/step_000100.pt run/step_000200.pt --model mlp --full-spectrum",
        "mpirun -n 4 lossmap dynamics --model-folder run --model resnet20-w8 --samples 512 --surf-file run.h5",
    ),
    without=frozenset(INAPPLICABLE),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed checkpoints, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv, defaults)
    world = World.start()
    return world.leave(run(settings, world))


def from_spectrum(settings: Settings) -> Settings:
    """The settings of `lossmap dynamics` that `lossmap spectrum --along ...` of version 0.1 stands for.

    Raises UsageError for flags of `spectrum` that have no meaning along a run.
    """
    if settings.model.model_file:
        raise UsageError("--along names the checkpoints itself; leave --model-file out")
    if settings.run.team != 1 or settings.run.shard:
        raise UsageError("--along dispatches whole checkpoints to single ranks; leave --team and --shard out")
    spectrum = settings.spectrum
    meant = {f.name for f in fields(DynamicsSettings)} | {"along"}
    ignored = [f.name for f in fields(spectrum) if f.name not in meant and getattr(spectrum, f.name) != f.default]
    if ignored:
        flags = ", ".join(map(flag_of, ignored))
        raise UsageError(f"--along follows the largest eigenvalues of the Hessian; leave {flags} out")
    values = settings.resolved()
    values |= {"checkpoints": values["along"], "model_folder": None, "surf_file": values["surf_file"] or "along.h5"}
    return COMMAND.parse([], values).noted(*settings.notes, "`spectrum --along` is the command `lossmap dynamics` now")


def checkpoints_of(settings: Settings) -> tuple[str, ...]:
    """The checkpoints or folders that are named. Raises UsageError where there are none, or both forms."""
    files: tuple[str, ...] = settings.dynamics.checkpoints
    folder = settings.model.model_folder
    if files and folder:
        raise UsageError(f"name the checkpoints or --model-folder, not both; got {' '.join(files)} and {folder}")
    if not files and not folder:
        raise UsageError("name the checkpoints of a run, or a folder of them: lossmap dynamics run --model ...")
    return files or (folder,)


def result_path(settings: Settings) -> Path:
    """The file that the result goes to."""
    return with_ending(Path(settings.run.surf_file or DEFAULT_RESULT))


def run(settings: Settings, world: World) -> int:
    """Measure every checkpoint, report how the leading eigenspace changes, and draw it; the exit code."""
    from lossmap.cli import device, load_problem
    from lossmap.cli.load_model import selection_of
    from lossmap.dynamics.run import run_dynamics
    from lossmap.landscape.checkpoint_steps import find_checkpoints

    execution, options = settings.run, settings.dynamics
    say = output.rank_0_printer(world, settings.notes)
    sources = checkpoints_of(settings)
    if settings.data.split == "both":
        raise UsageError("a run is followed on one split; use --split train or --split test")
    machine = device.prepare_machine(execution, world)
    device.refuse_bfloat16(machine)
    path = result_path(settings)
    problem = load_problem.problem_and_files(settings, world, machine)[settings.data.split]
    if execution.batch_size:
        problem = problem.rebatched(execution.batch_size)
    if settings.model.state_key or settings.model.strip_prefix:
        world.once(lambda: _refuse_a_key_of_none(settings.model, find_checkpoints(sources).values(), problem.model))
    if execution.dry_run:
        files = world.once(lambda: find_checkpoints(sources))
        say(dry_run(files, options, path, {settings.data.split: problem}))
        announce(world, "dynamics", lambda: _price(settings, problem, files, world))
        return 0
    resolved = {"settings": settings.resolved(), "folder": os.getcwd()}
    with Stop(after=execution.stop_after, until=job_end(os.environ)) as stop, display(world, "checkpoints") as progress:
        result = run_dynamics(
            sources,
            problem,
            path=path,
            top=options.top,
            whole=options.full_spectrum,
            tol=options.tol,
            parameters=options.parameters,
            seed=options.seed,
            world=world,
            stop=stop,
            progress=progress,
            overwrite=execution.overwrite,
            retry_failed=execution.retry_failed,
            rank_0=execution.rank_0,
            backend=options.hvp_backend,
            point_timeout=execution.point_timeout,
            budget=budget_seconds(execution.budget),
            null=options.null,
            other_seed=options.other_seed,
            unsafe=settings.model.unsafe_load,
            selection=selection_of(settings.model),
            settings=load_problem.measured_with(settings.data, execution, {settings.data.split: problem}),
            attributes=provenance(machine.describe(), world.size)
            | {"command": "dynamics", "resolved_dynamics": resolved},
            command="lossmap dynamics",
            accept_change=execution.accept_change,
        )
    for failure in result.failures:
        say(f"failed: {failure}")
    if result.summary:
        say(result.summary)
    if result.outcome == "unfinished":
        say("interrupted with checkpoints left; run the same command again to resume")
    elif world.rank == 0 and result.summary and (settings.draw.plot or settings.draw.show):
        draw(path, settings, say)
    say(f"result: {path}")
    return output.EXIT_CODES[result.outcome]


def _refuse_a_key_of_none(settings: ModelSettings, files: Iterable[Path], model: nn.Module) -> None:
    """Raise UsageError where no checkpoint of a run has the weights under the key and prefix that are named."""
    from lossmap.cli.load_model import read_checkpoint, selection_of

    errors = []
    for file in files:
        try:
            read_checkpoint(settings, file, model=model).fit(model, selection_of(settings))
        except (ValueError, OSError) as error:  # of a file that is damaged, too: it fails alone
            errors.append(error)
        else:
            return
    if errors:
        raise UsageError(str(errors[0])) from errors[0]


def dry_run(files: Mapping[float, Path], options: DynamicsSettings, path: Path, problems: Mapping[str, Problem]) -> str:
    """What the command would do."""
    from lossmap.dynamics.checkpoint_curvature import check_top
    from lossmap.geometry.parameter_vector import selected
    from lossmap.landscape.checkpoint_steps import short_names

    names = ", ".join(short_names(files.values()))
    moving = selected(next(iter(problems.values())).model, options.parameters)
    n = sum(p.numel() for p in moving.values())
    check_top(options.top, n)
    stored = 4 * len(files) * options.top * n
    return (
        f"would compute the {options.top} largest eigenvalues at {len(files)} checkpoints: {names}\n"
        f"{output.about_data(problems)}\n"
        f"  result  {path}, with eigenvectors of {size_text(stored)}\n"
        "nothing was computed, and nothing was written (--dry-run)"
    )


def measure_of(
    settings: Settings,
    problem: Problem,
    files: Mapping[float, Path],
    memory: int,
    store_vectors: Callable[[float, np.ndarray], None],
) -> CheckpointCurvature:
    """What is measured at each checkpoint, by the flags; with the backend that a probe chooses."""
    from lossmap.cli.load_model import selection_of
    from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature, probed

    options = settings.dynamics
    return CheckpointCurvature(
        problem,
        files,
        store_vectors=store_vectors,
        top=options.top,
        whole=options.full_spectrum,
        tol=options.tol,
        parameters=options.parameters,
        seed=options.seed,
        unsafe=settings.model.unsafe_load,
        selection=selection_of(settings.model),
        plan=probed(problem, options.parameters, options.hvp_backend, memory),
        memory=memory,
    )


def _price(settings: Settings, problem: Problem, files: Mapping[float, Path], world: World) -> Price:
    from lossmap.dynamics.nulls import null_shares
    from lossmap.dynamics.price import price_of_run
    from lossmap.memory import free_memory

    memory = free_memory(next(problem.model.parameters()).device, ranks_sharing=world.node_size) // 3
    measure = measure_of(settings, problem, files, memory, lambda step, vectors: None)
    options = settings.dynamics
    beside = null_shares(problem, len(files), options.null == "halves", options.other_seed is not None)
    return price_of_run(measure, len(files), len(world.team_ranks(rank_0=settings.run.rank_0)) or 1, beside)


def draw(path: Path, settings: Settings, say: output.Printer) -> None:
    """The figure of the run beside the result, and on the screen with --show."""
    from lossmap.plotting.dynamics import draw_evolution
    from lossmap.plotting.save_next_to import show
    from lossmap.plotting.style import save

    pictures = [save(draw_evolution(path), path.with_suffix(ending)) for ending in (".pdf", ".png")]
    for picture in pictures:
        say(f"picture: {picture}")
    if settings.draw.show and not show(pictures[-1]):
        say(f"no viewer was found on this machine to show {pictures[-1]}")
