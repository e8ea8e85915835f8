"""`lossmap plane`, net_plotter.py: make and inspect planes, project a training path onto one.

lossmap plane --model NET --model-file FILE --y=-1:1:51 --dir-file plane.h5      make a plane and keep it
lossmap plane plane.h5                                                           say what a file's plane is
lossmap plane --model NET --model-folder RUN --xdir pca:1 --ydir pca:2 --proj-file path.h5
the run's principal axes, and its path on them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossmap.cli import output
from lossmap.cli.setting_groups import DataSettings, ModelSettings, PlaneSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, guarded, parse, setting
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Grid
from lossmap.io.surface import Group
from lossmap.parallel.world import World


@dataclass(frozen=True)
class LookSettings:
    """A plane that is there already."""

    file: str | None = setting(None, "a result or direction file to inspect", metavar="FILE", positional=True)


GROUPS = (LookSettings, ModelSettings, DataSettings, PlaneSettings, RunSettings)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Make, inspect or project; returns 0, or 2 where it makes no sense."""
    settings = parse(GROUPS, argv, prog="lossmap plane", about=__doc__ or "")
    if settings.look.file:
        print(inspected(settings.look.file))
        return 0
    world = World.start()
    return world.leave(make(settings, world))


def inspected(path: str) -> str:
    """What a file's plane is, in words."""
    from lossmap.io import legacy
    from lossmap.io.read import read, read_group

    try:
        groups = {name: read_group(path, f"directions/{name}") for name in _axes_in(path)}
        lines = [f"{path}: {read(path).grid}"]
    except ValueError:
        theirs = legacy.directions(path)
        groups = {n: Group({str(i): np.asarray(a) for i, a in enumerate(arrays)}) for n, arrays in theirs.items()}
        lines = [f"{path}: directions of the original tool"]
    flat = {}
    for name, group in groups.items():
        how = ", ".join(f"{k} {v}" for k, v in group.attributes.items() if k not in ("digest", "length"))
        arrays = [np.asarray(a, np.float64).ravel() for a in group.arrays.values()]
        flat[name] = np.concatenate(arrays) if arrays else np.zeros(0)
        length = np.linalg.norm(flat[name]) if arrays else float(group.attributes.get("length", np.nan))
        lines.append(f"  {name}: {len(arrays)} tensors, {flat[name].size:,} entries, length {length:.6g}; {how}")
    if len(flat) == 2 and flat["x"].size == flat["y"].size > 0:
        scale = np.linalg.norm(flat["x"]) * np.linalg.norm(flat["y"])
        cosine = float(flat["x"] @ flat["y"] / scale) if scale > 0 else float("nan")
        lines.append(f"  cosine between them: {cosine:.6f}")
    return "\n".join(lines)


def _axes_in(path: str) -> list[str]:
    from lossmap.io.read import read

    found = [name.removeprefix("directions/") for name in read(path).groups if name.startswith("directions/")]
    if not found:
        raise ValueError(f"{path} holds no directions")
    return found


def make(settings: Settings, world: World) -> int:
    """Make the plane of the settings; keep it in --dir-file, or with --proj-file the path of a run on it."""
    from lossmap.cli import device, load_plane, load_problem
    from lossmap.io.read import SurfaceFile
    from lossmap.landscape.curvature_directions import curved_direction

    say = output.rank_0_printer(world, settings.notes)
    asked = settings.plane
    out = asked.proj_file or asked.dir_file
    if not out:
        raise UsageError("name a file to keep the plane in (--dir-file), or the path on it (--proj-file)")
    if Path(out).exists() and not settings.run.overwrite:
        raise UsageError(f"{out} exists; --overwrite makes it anew")
    files = world.together(lambda: load_problem.run_files(settings.model)) if settings.model.model_folder else []
    if asked.proj_file and not files:
        raise UsageError("a path to project wants --model-folder, the folder with the run's checkpoints")
    if files and not settings.model.model_file:  # the run's last checkpoint is the origin
        settings = settings.changed("model", model_file=str(files[-1]))
    if asked.ydir and not asked.y:
        settings = settings.changed("plane", y=asked.x)
    at = device.machine(settings.run, world)
    first = load_problem.problem_and_files(settings, world, at, ("train",))["train"]
    plane = load_plane.plane_and_ranks(settings, world, first.model, lambda kind: curved_direction(first, kind))
    if world.rank != 0:
        return 0
    say(repr(plane))
    grid, groups = load_plane.grid_of(settings.plane), {}
    if asked.proj_file:
        groups["trajectory"] = path_on(plane, first, files, settings.model.unsafe_load)
        grid = around(groups["trajectory"].arrays)
        for i, share in enumerate(groups["trajectory"]["explained_variance_ratio"]):
            chance = 61 if i == 0 else 15
            say(f"axis {i + 1} explains {100 * share:.1f} % of the path (of a long random walk: {chance} %)")
        farthest = groups["trajectory"]["residual"].max()
        say(f"{len(files)} checkpoints projected; the farthest lies {farthest:.4g} outside the plane")
    kept = output.OutputFile(
        "plane", settings, grid, plane, load_problem.identity(settings.model, settings.data, plane)
    )
    store = SurfaceFile.open(
        out,
        grid,
        identity=kept.file_settings,
        groups={**kept.groups(), **groups},
        attributes=output.provenance(at.describe(), world.size),
        overwrite=True,
        command="lossmap plane",
    )
    store.close()
    say(f"result: {out}")
    if asked.proj_file:
        ticks = {"x": grid.x, **({} if grid.y is None else {"y": grid.y})}
        spans = " ".join(f"--{name}={t[0]:.3g}:{t[-1]:.3g}:{t.size}" for name, t in ticks.items())
        say(f"a surface with the path: lossmap surface ... --dir-file {out} --proj-file {out} {spans}")
    return 0


def path_on(plane: Plane, problem: Problem, files: Sequence[Path], unsafe: bool = False) -> Group:
    """The checkpoints of a run on the plane, with the true loss at each, as the file keeps them."""
    from lossmap.data import checkpoints
    from lossmap.geometry.directions import difference
    from lossmap.geometry.training_path import trajectory
    from lossmap.landscape.loss import losses, plain_forward

    states = [checkpoints.load_state(f, unsafe=unsafe) for f in files]
    arrays = dict(trajectory(plane, states, [_step(f, i) for i, f in enumerate(files)]))
    plan = plain_forward(problem)
    lines = [Plane(plane.origin, (difference(plane.origin, state),), ({},)) for state in states]
    arrays["loss"] = np.array([losses(problem, line, plan=plan)((1.0,))["train_loss"] for line in lines])
    shares = [r["explained_variance_ratio"] for r in plane.recipes if "explained_variance_ratio" in r]
    return Group({**arrays, "explained_variance_ratio": np.array(shares)})


def _step(file: Path, position: int) -> float:
    """The number in a checkpoint's name, or its place in the run."""
    numbers = re.findall(r"\d+", file.stem)
    return float(numbers[-1]) if numbers else float(position)


def around(arrays: Mapping[str, np.ndarray]) -> Grid:
    """Ticks that hold the whole path with a margin."""

    def ticks(values: np.ndarray) -> np.ndarray:
        low, high = float(values.min()), float(values.max())
        margin = 0.1 * (high - low or 1.0)
        return np.linspace(low - margin, high + margin, 25)

    return Grid(ticks(arrays["x"]), ticks(arrays["y"]) if "y" in arrays else None)
