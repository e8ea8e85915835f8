"""`lossmap eigenmap`, plot_hessian_eigen.py: the extreme Hessian eigenvalues over a line or plane, with their bounds.

With --like surface.h5 they go to the same model, plane and grid, and into that file, beside its losses; the files that
it names are found from the folder in which it was made. Afterwards a
random part of the points is solved a second time from a cold start: points where the first solve missed the extreme
eigenvalue are counted, reported and computed again. Interrupted or killed, the same command resumes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import announce_once, within_budget
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.setting_groups import moving_parameters
from lossmap.cli.settings import Settings, UsageError, decode_settings, flag_of
from lossmap.cli.trust import code_files, foreign_code
from lossmap.io.read import NotASurface, read
from lossmap.landscape.audit_loop import run_audit
from lossmap.landscape.progress import display
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World
from lossmap.report.eigenmap import eigenmap_lines

if TYPE_CHECKING:
    from lossmap.curvature.linearized_operator import OperatorFactory
    from lossmap.data.problem import Problem
    from lossmap.geometry.directions import Plane
    from lossmap.geometry.grid import Grid

# What --like takes over from the file as defaults; the rest, such as the samples, belongs to the measure itself.
PATHS = (
    *("model_file", "model_file2", "model_file3", "model_folder", "data_path", "dir_file", "proj_file"),
    *("trainloader", "testloader"),
)
NAMES_OF_FILES = ("model", "dataset", "loss", "metric", "problem", "xdir", "ydir")  # where these name a file in a text
ONCE = (
    "trust",
    "unsafe_load",
    "overwrite",
    "dry_run",
    "stop_after",
    "retry_failed",
    "shard",
    "plot",
    "page",
    "vtk",
    "show",
    "surf_file",
)
PRODUCTS_PER_POINT = 20  # about as many as a search from a neighbour's eigenvectors takes
MIN_MEMORY = 1 << 29  # bytes that search spaces may take, at least


COMMAND = Command(
    "eigenmap",
    __doc__ or "",
    GROUPS["eigenmap"],
    (
        "lossmap eigenmap --like surface.h5 --samples 512 --plot",
        "lossmap eigenmap --model mlp --x=-1:1:21 --which top:3,trace --certify each --surf-file line.h5",
        "lossmap eigenmap --problem vae.py:problem --noise-repeats 8 --x=-1:1:21",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed points, 75 interrupted, resumable."""
    settings, folder = read_settings(argv, defaults), Path.cwd()
    if settings.eigen.like and defaults is None:
        folder = _folder_of(settings.eigen.like)
    if folder != Path.cwd():
        settings = _named_from_here(settings, COMMAND.parse(argv).explicit)
    with _inside(folder):
        world = World.start()
        return world.leave(run(settings, world))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Inside, this is the current folder, and Python looks for modules where it did before."""
    start = Path.cwd()
    if folder == start:
        yield
        return
    sys.path[:] = [entry or str(start) for entry in sys.path]
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(start)


def _folder_of(like: str) -> Path:
    """The folder in which the result of --like was made, where its files are found; the current one if it is gone."""
    surface = read(like)
    stored = surface.attributes.get("resolved_surface") or surface.attributes.get("resolved_eigenmap")
    folder = Path(decode_settings(stored)["folder"]) if stored else Path.cwd()
    return folder if folder.is_dir() else Path.cwd()


def _named_from_here(settings: Settings, explicit: frozenset[str]) -> Settings:
    """The settings with the files that the person named, and the result, as they are found from any folder.

    explicit  the settings that were set by a flag
    """
    for group, name in ((g, n) for g in ("model", "data", "plane", "run", "eigen") for n in (*PATHS, *NAMES_OF_FILES)):
        values = getattr(settings, group)
        value = getattr(values, name, None)
        if name in explicit and value:
            absolute = _absolute if name in PATHS else _absolute_within
            value = tuple(map(absolute, value)) if isinstance(value, tuple) else absolute(value)
            settings = settings.changed(group, **{name: value})
    settings = settings.changed("run", surf_file=_absolute(settings.run.surf_file))
    return settings.changed("eigen", like=_absolute(settings.eigen.like))


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _absolute_within(text: str) -> str:
    """The same for `npz:FILE`, `to:FILE`, `file:FILE:name`, `hf:FOLDER`, `file.py:function`; other texts as given."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("npz", "to", "file", "hf"):
        return f"{kind}:{_absolute(rest)}"
    return _absolute(text) if text.rpartition(":")[0].endswith(".py") else text


def read_settings(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> Settings:
    """The settings; where --like names a result, its own stand in for the defaults. Raises UsageError."""
    own = COMMAND.parse(argv, defaults)
    if not own.eigen.like or defaults is not None:
        return own
    values, folder = settings_like(own.eigen.like), _folder_of(own.eigen.like)
    if not own.eigen.trust:
        named = {name: value for name, value in values.items() if name not in own.explicit}
        foreign = foreign_code(Path(own.eigen.like), code_files(named, folder), Path.cwd())
        if foreign:
            raise UsageError(f"{foreign}. Look at it; then add --trust")
    settings = COMMAND.parse(argv, values)
    _refuse_other_weights(settings, own.explicit)
    return settings


def _refuse_other_weights(settings: Settings, explicit: frozenset[str]) -> None:
    """Raise UsageError where a checkpoint of the file of --like has other contents by now, and was not named anew.

    explicit  the settings that were set by a flag
    """
    from lossmap.data.checkpoints import file_sha256

    stored = read(settings.eigen.like or "").settings.get("file", {})
    for name in ("model_file", "model_file2", "model_file3"):
        path, digest = getattr(settings.model, name), stored.get(f"{name} (SHA-256)")
        if path and digest and name not in explicit and Path(path).exists() and file_sha256(path) != digest:
            flag = flag_of(name)
            raise UsageError(
                f"{path} is no longer the checkpoint that {settings.eigen.like} was made with (another SHA-256); "
                f"{flag} {path} takes it all the same"
            )


def settings_like(path: str) -> dict[str, Any]:
    """The settings of the result that --like names; of one without any, such as the original tool's, its grid."""
    surface = read(path)
    stored = surface.attributes.get("resolved_surface") or surface.attributes.get("resolved_eigenmap")
    if stored is None:
        axes = {name: ticks for name, ticks in (("x", surface.grid.x), ("y", surface.grid.y)) if ticks is not None}
        if any(t.size > 1 and not np.allclose(t, np.linspace(t[0], t[-1], t.size)) for t in axes.values()):
            raise UsageError(f"--like {path}: its ticks are not evenly spaced, and it does not say how it was made")
        return {name: f"{float(t[0])!r}:{float(t[-1])!r}:{t.size}" for name, t in axes.items()}
    stored = decode_settings(stored)
    values = {k: v for k, v in stored["settings"].items() if k not in ONCE}
    values["plane_parameters"] = moving_parameters(values, surface)
    values["parameters"] = None  # those that the Hessian is of belong to the eigenvalues
    values |= {k: str(Path(_folder_of(path), values[k])) for k in PATHS if values.get(k)}
    return values | {"surf_file": str(path)}


def _refuse_loss_of_losses(path: Path, overwrite: bool) -> None:
    """Raise UsageError where --overwrite would delete more than eigenvalues."""
    if not overwrite or not path.exists():
        return
    try:
        measures = read(path).status
    except NotASurface:
        return
    if "loss" in measures:
        raise UsageError(f"--overwrite would delete the losses of {path} too; name another file with --surf-file")


def _corner(plane: Plane, grid: Grid) -> Mapping[str, Any] | bool:
    """The tensors at the survey's farthest point; False where that is the origin, and there is no other."""
    return plane.at(grid.farthest) if any(grid.farthest) else False


def _realizations(problems: Mapping[str, Problem], repeats: int | None) -> dict[str, tuple[Problem, ...]]:
    """By split the problem in each realisation of its noise; empty where one alone is read."""
    from lossmap.data.noise import realizations

    if repeats is None:
        return {}
    return {split: realizations(problem, repeats) for split, problem in problems.items()}


def _averaged(realized: Mapping[str, Sequence[Problem]]) -> dict[str, Problem]:
    """By split the problem whose loss is the mean over its realisations."""
    from lossmap.data.noise import mean_over

    return {split: mean_over(problems) for split, problems in realized.items()}


def _factories(operators: Mapping[str, Any], realized: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """By split what makes the Hessian of each realisation at a point."""
    from lossmap.curvature.autotune import realization_factories

    return {split: realization_factories(operators[split], problems) for split, problems in realized.items()}


def run(settings: Settings, world: World, survey: Callable[..., Any] = survey, stop: Stop | None = None) -> int:
    """Make the problem and the plane, survey the grid, audit it, store and draw the result. Every rank calls it.

    survey  `lossmap estimate` passes a function that measures a few points instead
    stop    of the program that runs this as a part of it; None: one of its own
    """
    if stop is not None:
        return _run(settings, world, survey, stop)
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return _run(settings, world, survey, stop)


def say_all(lines: Sequence[str], say: Callable[[str], None]) -> None:
    """Print the lines."""
    for line in lines:
        say(line)


def _run(settings: Settings, world: World, survey: Callable[..., Any], stop: Stop) -> int:
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.curvature.autotune import prepare
    from lossmap.geometry.parameter_vector import warn_of_frozen
    from lossmap.landscape.eigenvalues import EigenvalueMap, check_which, expected_fields
    from lossmap.landscape.price import plain_factory, price_of_eigenvalues
    from lossmap.landscape.survey_file import MODEL, structure_digest
    from lossmap.memory import free_memory

    repeats: int | None = settings.noise.noise_repeats
    execution, options, say = settings.run, settings.eigen, output.rank_0_printer(world, settings.notes)
    parameters = settings.plane.hessian_parameters
    settings = world.together(lambda: load_problem.with_default_problem(settings, say))
    grid = world.together(lambda: load_plane.grid_of(settings.plane))
    team = world.together(lambda: world.team(execution.team, execution.rank_0))
    machine = device.prepare_machine(execution, world)
    device.refuse_bfloat16(machine)
    problems = load_problem.problem_and_files(settings, world, machine)
    shares = load_problem.team_shares(problems, team, world)
    first = next(iter(problems.values()))
    curved = load_plane.curved_of(settings, first)
    plane = load_plane.plane_and_ranks(settings, world, first.model, curved)
    file_settings = world.once(lambda: load_problem.identity(settings.model, settings.data, plane))
    result = world.together(lambda: output.OutputFile("eigenmap", settings, grid, plane, file_settings))
    world.once(lambda: _refuse_loss_of_losses(result.path, execution.overwrite))
    if execution.dry_run:
        plain = {split: plain_factory(p, parameters) for split, p in problems.items()}
        size = plain[next(iter(plain))].size
        check_which(options.which, size, options.tol, options.max_products, options.confidence)
        fields = expected_fields(problems, options.which, first.unit, certify=options.certify, noise_repeats=repeats)
        say(result.describe(problems, "eigenvalues", fields))
        announce(world, "eigenvalues", lambda: price_of_eigenvalues(plain, options.which, options.certify, len(grid)))
        return 0
    identity = world.once(
        lambda: (
            load_problem.measured_with(settings.data, execution, problems)
            | {"parameters": parameters, MODEL: structure_digest(first.model)}
            | ({"noise_repeats": repeats} if repeats else {})
        )
    )
    world.once(lambda: warn_of_frozen(first.model, parameters, "are counted in the Hessian"))
    memory = free_memory(machine.device, machine.ranks_sharing) // 3
    realized = world.together(lambda: _realizations(shares, repeats))
    shares |= _averaged(realized)
    first = _averaged(_realizations({"first": first}, repeats)).get("first", first)
    corner = _corner(plane, grid)
    probed: list[OperatorFactory] = []  # by this process, now

    def probe() -> dict[str, Any]:
        backend = options.hvp_backend
        if backend == "auto" and not execution.probe:
            backend = "double-backward"
        probed[:] = [
            prepare(
                first, parameters, backend=backend, memory=memory, distant=corner,
                products=len(grid) * PRODUCTS_PER_POINT,
            )
        ]  # fmt: skip
        plan = probed[0].plan.stored()
        if execution.batch_size:
            plan["batch"] = execution.batch_size
        return plan

    choice = result.chosen(world, "eigen", "way", probe)
    # rank 0 alone looks, and all follow: a rank's own share could lead it to another decision
    check = world.once(lambda: prepare(first, parameters, plan=choice, memory=memory, distant=corner).check)
    like = probed[0] if probed else None
    operators = {
        split: prepare(p, parameters, total=team.sum, plan=choice, memory=memory, check=check, like=like)
        for split, p in shares.items()
    }

    def measure() -> EigenvalueMap:
        return EigenvalueMap(
            operators,
            plane,
            options.which,
            tol=options.tol,
            solver=options.solver,
            max_products=options.max_products,
            certify=options.certify,
            confidence=options.confidence,
            seed=settings.plane.seed,
            memory=max(memory // 2, MIN_MEMORY),
            stop=lambda: team.any(stop()),
            unit=first.unit,
            settings=identity | {"chosen": {"way": choice}},
            realizations=_factories(operators, realized),
        )

    warm = world.together(measure)
    cold: EigenvalueMap | None = None
    if options.certify == "audit" and warm.auditable:
        cold = warm.audit_twin()
    measures = {m.name: (m.fields, m.settings) for m in (warm, cold) if m is not None}
    upgrades = {m.name: m.upgraded for m in (warm, cold) if m is not None}
    by_method = {m.name: m.method for m in (warm, cold) if m is not None and m.method is not None}
    left, workers = result.points_left(warm.name, warm.method), len(team.all_teams) or 1
    price = partial(price_of_eigenvalues, operators, options.which, options.certify, left, workers=workers)
    within_budget(world, "eigenvalues", price, execution.budget, left, result.began, settings.plane.yes)
    store = output.on_rank_0(
        world,
        lambda: result.open(
            measures, machine.describe(), world.size, upgrades, problems, product=True, by_method=by_method
        ),
    )
    announce_once(world, "eigenvalues", price, execution.budget)
    say(machine.sentence())
    if store is not None:
        store.note(split=next(iter(problems)))

    def evaluate(measure: EigenvalueMap, points: np.ndarray | None, title: str) -> Any:
        with display(world, title) as progress:
            return survey(
                measure,
                grid,
                points=points,
                progress=progress,
                store=store,
                world=world,
                stop=stop,
                retry_failed=execution.retry_failed,
                rank_0=execution.rank_0,
                team=team,
                point_timeout=execution.point_timeout,
                share_values=False,
                audit=False,
            )

    surface = evaluate(warm, result.points, "eigenvalues")
    if cold is not None:
        audited = cold.settings if store is None else store.settings(cold.name)
        run_audit(
            store, world, lambda points: evaluate(cold, points, "audit"), say,
            fields=cold.fields, settings=audited, tol=options.tol, seed=cold.seed,
        )  # fmt: skip
    if store is None:
        return output.EXIT_CODES[surface.outcome_of("eigen")]
    result.store_cost(store, "eigen")
    store.close()
    output.draw_pictures(result.path, settings.draw, say)
    final = store.surface()
    say_all(eigenmap_lines(final.fields), say)
    code = output.report_end(result.path, final, "eigen", say, execution.overwrite, stop.reason)
    if cold is not None and final.outcome_of("audit") != "complete" and code != 75:
        say("the audit is not complete:")
        code = max(code, output.report_end(result.path, final, "audit", say, execution.overwrite, stop.reason))
    return code
