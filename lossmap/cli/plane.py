"""`lossmap plane`, net_plotter.py: make and inspect planes, project a training path onto one.

With --dir-file a plane is made and stored. With --proj-file it is stored there, with the path on it of the run in
--model-folder, and --dir-file names a plane to take instead of one that is made. With the name of a result or direction
file its plane is described, with two they are compared, and --to-original writes the plane, and the surface where there
is one, as files of the original tool. Data are read only for directions of curvature (gradient, sam:adaptive,
hessian:max:2), and for the losses along a path; what these will take is said first. All else is done in seconds, and
has no price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.grid_window import AUTO, auto_count
from lossmap.cli.setting_groups import DataSettings, ModelSettings, PlaneSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, setting
from lossmap.geometry.grid import Grid
from lossmap.io.directions_text import compared_text, directions_in, directions_text
from lossmap.io.legacy_write import FIELDS, write_directions, write_surface
from lossmap.io.provenance import provenance
from lossmap.io.read import read
from lossmap.io.surface import Group, Surface
from lossmap.parallel.world import World
from lossmap.report.path import origin_on_path, path_report

if TYPE_CHECKING:
    from lossmap.data.problem import Problem

TICKS_AROUND_PATH = 25  # of each axis, unless --x=auto:N says otherwise


@dataclass(frozen=True)
class LookSettings:
    """Inspection options."""

    files: tuple[str, ...] = setting(
        (), "result or direction file to inspect; of two how their planes lie to each other", metavar="FILE",
        positional=True,
    )  # fmt: skip
    to_original: str | None = setting(
        None, "name of files in the format of the original tool: NAME_dir.h5 is its plane, NAME_surf.h5 its surface",
        metavar="NAME",
    )  # fmt: skip


@dataclass(frozen=True)
class PathSettings:
    """Path options."""

    no_losses: bool = setting(False, "path of --proj-file without losses and gradients: no data are read")


COMMAND = Command(
    "plane",
    __doc__ or "",
    (LookSettings, PathSettings, ModelSettings, DataSettings, PlaneSettings, RunSettings),
    (
        "lossmap plane --model resnet20-w8 --model-file net.pt --y=-1:1:51 --dir-file plane.h5",
        "lossmap plane --model mlp --model-folder run --xdir pca:1 --ydir pca:2 --proj-file path.h5",
        "lossmap plane plane.h5 other.h5",
    ),
    without=frozenset({"budget"}),
)


NOTHING_DONE = "nothing was computed, and nothing was written (--dry-run)"


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Make, inspect or project: 0 done, 2 usage error."""
    settings = COMMAND.parse(argv)
    if settings.look.files or settings.look.to_original:
        return look(settings.look)
    world = World.start()
    return world.leave(make(settings, world))


def look(wanted: LookSettings) -> int:
    """Describe the planes of files, compare two, write one for the original tool.

    Raises UsageError for another number of files.
    """
    files = wanted.files
    if len(files) not in (1, 2) or (wanted.to_original and len(files) != 1):
        some = (
            "one file, such as lossmap plane surface.h5 --to-original NAME" if wanted.to_original else "one file or two"
        )
        raise UsageError(f"what is to be inspected is {some}; got {len(files)}")
    if wanted.to_original:
        written = write_for_original(files[0], wanted.to_original)
        print("\n".join(f"result: {path}" for path in written))
        return 0
    print("\n".join(directions_text(file) for file in files))
    if len(files) == 2:
        print(compared_text(*files))
    return 0


def write_for_original(file: str, name: str) -> list[Path]:
    """The plane of a file, and its surface where there is one, as the original tool has them; the files written.

    Raises UsageError where there are no tensors, or a file of that name is there.
    """
    _, groups = directions_in(file)
    axes = {axis: list(groups[axis].arrays.values()) for axis in ("x", "y") if axis in groups}
    if not all(axes.values()):
        raise UsageError(f"{file} holds only the recipes of its directions; make them with lossmap plane --dir-file")
    directions, surface_file = Path(f"{name}_dir.h5"), Path(f"{name}_surf.h5")
    surface: Surface | None = read(file)
    if surface is not None and not set(FIELDS) & set(surface.fields):
        surface = None
    for path in (directions, *([surface_file] if surface else [])):
        if path.exists():
            raise UsageError(f"{path} is there already: give another name")
    write_directions(directions, axes)
    if surface is None:
        return [directions]
    write_surface(surface_file, surface, directions)
    return [directions, surface_file]


def make(settings: Settings, world: World) -> int:
    """Make the plane of the settings; store it in --dir-file, or with --proj-file the path of a run on it."""
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.cli.load_model import read_checkpoint, run_files
    from lossmap.geometry.training_path import random_walk_shares
    from lossmap.landscape.price import price_of_directions, price_of_path
    from lossmap.landscape.run_on_plane import grid_around, project_run

    say = output.rank_0_printer(world, settings.notes)
    path = _output_path(settings)
    files: list[Path] = []
    if settings.model.model_folder:
        files = world.together(lambda: run_files(settings.model))
    counts = world.together(lambda: _counts_around_path(settings, say))
    settings = _with_origin_and_ticks(settings, files)
    machine = device.prepare_machine(settings.run, world)
    needs_data = _needs_data(settings)
    settings = world.together(lambda: load_problem.with_default_problem(settings, say, needs_data))
    problem: Problem | None = None
    curved: load_plane.Curved | None = None
    if needs_data:
        split = load_problem.splits_of(settings.data)[0]
        problem = load_problem.problem_and_files(settings, world, machine, (split,))[split]
        curved = load_plane.curved_of(settings, problem)
        model = problem.model
        differentiated = settings.plane.parameters_of_directions
        announce(world, "directions", partial(price_of_directions, problem, _kinds(settings), differentiated))
    else:
        model = load_problem.model_and_files(settings, world, machine)
    if settings.run.dry_run and curved is not None and _is_curved(settings):
        say(f"would make a plane of {' and '.join(filter(None, _kinds(settings)))}\n  result  {path}")
        say(NOTHING_DONE)
        return 0
    # of a plane that is to be written nothing is read, also where the file exists
    made = settings if _is_read(settings) else settings.changed("plane", dir_file=None)
    plane = load_plane.plane_and_ranks(made, world, model, curved)
    if world.rank != 0:
        return 0
    say(repr(plane))
    grid, groups, report = load_plane.grid_of(settings.plane), {}, ""
    has_losses = problem is not None and not settings.path.no_losses
    if problem is not None and has_losses and settings.plane.proj_file:
        announce(world, "path", partial(price_of_path, problem, plane, len(files)))
    if settings.run.dry_run:
        say(f"would write {path}\n{NOTHING_DONE}")
        return 0
    if settings.plane.proj_file:
        states = [load_plane.state_of(model, file, settings.model, of_run=True) for file in files]
        rates = [read_checkpoint(settings.model, file, model=model).learning_rate for file in files]
        measured = problem if has_losses else None
        trajectory = project_run(plane, measured, files, states, rates, settings.plane.moving)
        groups["trajectory"] = trajectory
        grid = grid_around(trajectory.arrays, counts)
        walk = random_walk_shares(len(files), origin=origin_on_path(trajectory.arrays))
        other_in_training = "other_in_training" in trajectory.attributes
        report = path_report(trajectory.arrays, walk, settings.plane.moving, other_in_training)
    file_settings = load_problem.identity(settings.model, settings.data, plane)
    result = output.OutputFile("plane", settings, grid, plane, file_settings)
    _store(path, grid, result, groups, provenance(machine.describe(), world.size))
    if report:  # once it is safe: what reads the output may go away in the middle, as `head` does
        say(report)
    say(f"result: {path}")
    if settings.plane.proj_file:
        ticks = (("x", grid.x), ("y", grid.y))
        spans = " ".join(f"--{name}={t[0]:.3g}:{t[-1]:.3g}:{t.size}" for name, t in ticks if t is not None)
        say(f"a surface with the path: lossmap surface ... --dir-file {path} --proj-file {path} {spans}")
    return 0


def _output_path(settings: Settings) -> str:
    """The file to write. Raises UsageError where none is named, it exists, or there is no path to project."""
    directions: str | None = settings.plane.dir_file
    path: str | None = settings.plane.proj_file or directions
    if path == directions:  # one file for both, which is made
        directions = None
    if not path:
        raise UsageError("name a file for the plane (--dir-file), or for the path on it (--proj-file)")
    if directions and path != directions and not Path(directions).exists():
        raise UsageError(
            f"there is no {directions}, whose plane --proj-file would take; {path} holds a plane that is made as well: "
            f"leave --dir-file out, and give --dir-file {path} to lossmap surface"
        )
    if Path(path).exists() and not settings.run.overwrite:
        raise UsageError(f"{path} exists; --overwrite replaces it")
    if settings.plane.proj_file and not settings.model.model_folder:
        raise UsageError("a path to project needs --model-folder, the folder with the run's checkpoints")
    return path


def _needs_data(settings: Settings) -> bool:
    """Whether data are read: for a direction of curvature, for the losses along a path, and with a whole problem."""
    plane = settings.plane
    has_losses = plane.proj_file and not settings.path.no_losses
    return bool(settings.data.problem or has_losses) or _is_curved(settings)


def _is_curved(settings: Settings) -> bool:
    """Whether a direction is one of curvature, which takes products or a gradient."""
    from lossmap.cli.load_plane import CURVED

    return any(kind.partition(":")[0] in CURVED for kind in _kinds(settings))


def _kinds(settings: Settings) -> tuple[str, str]:
    """The kinds of the directions."""
    return settings.plane.xdir or "", settings.plane.ydir or ""


def _with_origin_and_ticks(settings: Settings, files: Sequence[Path]) -> Settings:
    """The settings with the run's last checkpoint as origin, and with ticks along y, where these are not set."""
    if files and not settings.model.model_file:
        settings = settings.changed("model", model_file=str(files[-1]))
    if settings.plane.proj_file:  # whose ticks are around its path, as auto says, which would read the file to be made
        ticks = {axis: getattr(settings.plane, axis) for axis in ("x", "y")}
        auto = {axis: PlaneSettings().x for axis, text in ticks.items() if text and AUTO.fullmatch(text)}
        settings = settings.changed("plane", **auto)
    has_second = bool(settings.plane.ydir)
    if _is_read(settings):  # of a plane that is there the path is on both directions
        has_second = "y" in directions_in(settings.plane.dir_file)[1]
    if has_second and not settings.plane.y:
        settings = settings.changed("plane", y=settings.plane.x)
    return settings


def _counts_around_path(settings: Settings, say: output.Printer) -> dict[str, int]:
    """How many ticks each axis gets around a path: --x=auto:N says it, and of y too where --y does not.

    Raises UsageError as `auto_count` does.
    """
    plane = settings.plane
    texts = {"x": plane.x, "y": plane.y or plane.x}
    counts = {axis: auto_count(axis, text, TICKS_AROUND_PATH) for axis, text in texts.items()}
    idle = [f"--{axis}" for axis in texts if axis in settings.explicit and not AUTO.fullmatch(texts[axis])]
    if plane.proj_file and idle:
        say(f"not used: {' and '.join(idle)}; the ticks of a path lie around it, auto:COUNT says how many")
    return counts


def _is_read(settings: Settings) -> bool:
    """Whether the plane is that of a file, on which a path is projected, and no new one."""
    path, directions = settings.plane.proj_file, settings.plane.dir_file
    return bool(path and directions and path != directions)


def _store(
    path: str, grid: Grid, result: output.OutputFile, groups: Mapping[str, Group], attributes: Mapping[str, Any]
) -> None:
    from lossmap.io.read import SurfaceFile

    store = SurfaceFile.open(
        path,
        grid,
        identity=result.file_settings,
        groups={**result.groups(), **groups},
        attributes=dict(attributes),
        overwrite=True,
        command="lossmap plane",
    )
    store.close()
