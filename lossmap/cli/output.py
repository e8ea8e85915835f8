"""What the surveying doors share: the result file they open, its provenance, the last line and the exit code."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lossmap import __version__
from lossmap.cli.output_path import result_path
from lossmap.cli.setting_groups import DrawSettings, RunSettings
from lossmap.cli.settings import EXIT as EXIT
from lossmap.cli.settings import Settings, UsageError
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Grid
from lossmap.io.read import SurfaceFile, inspect_existing, read, training_path
from lossmap.io.surface import Group, Surface
from lossmap.parallel.cost_model import decode_cost, measured_cost, side_by_side, stored_estimate
from lossmap.parallel.launcher import launched
from lossmap.parallel.shards import Shard
from lossmap.parallel.world import World

Say = Callable[[str], None]


def rank_0_printer(world: World, notes: Sequence[str] = ()) -> Say:
    """A function that prints on rank 0 alone; it says the notes first."""

    def say(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    for note in notes:
        say(note)
    return say


def part(grid: Grid, shard: str | None) -> np.ndarray | None:
    """The flat indices of this shard of an array; None for all points."""
    if shard is None:
        return None
    points = Shard.parse(shard).points(grid.shape)
    if points.size == 0:
        raise UsageError(f"--shard {shard} holds no point: the grid has only {len(grid)}")
    return points


class OutputFile:
    """The result of a door: where it goes, what it belongs to, how it ends.

    command   the door's name, from which `resume` starts it again
    path      the file
    points    the flat indices of this shard, or None
    """

    def __init__(
        self, command: str, settings: Settings, grid: Grid, plane: Plane, file_settings: Mapping[str, Any]
    ) -> None:
        self.command, self.settings, self.grid, self.plane = command, settings, grid, plane
        self.file_settings = dict(file_settings)
        timeout = settings.run.point_timeout
        if timeout is not None and timeout <= 0:
            raise UsageError(f"--point-timeout wants seconds, more than 0; got {timeout:g}")
        self.points = part(grid, settings.run.shard)
        drawable(getattr(settings, "draw", DrawSettings()))
        path = result_path(settings)
        if settings.run.shard:
            path = Shard.parse(settings.run.shard).file(path)
        self.path = path
        drawn = settings.plane.proj_file if command != "plane" else None  # `lossmap plane` writes that file
        self.trajectory = training_path(drawn) if drawn and grid.axes == 2 else None
        self.began = time.monotonic()

    def chosen(self, world: World, measure: str, name: str, probe: Callable[[], Any]) -> Any:
        """What an earlier run's probe chose for this file, else what the probe chooses now, on rank 0; told to all."""

        def choose() -> Any:
            if self.path.exists() and not self.settings.run.overwrite:
                told = read(self.path).settings.get("measures", {}).get(measure, {})
                if name in told.get("chosen", {}):
                    return told["chosen"][name]
            found = probe()
            return asdict(found) if is_dataclass(found) and not isinstance(found, type) else found

        return world.once(choose)

    def open(self, measures: Mapping[str, tuple[Any, Any]], device: str, ranks: int) -> SurfaceFile:
        """Open or continue the file, on rank 0. Raises ValueError naming what differs from an earlier run."""
        run: RunSettings = self.settings.run
        return SurfaceFile.open(
            self.path,
            self.grid,
            identity=self.file_settings,
            measures=measures,
            overwrite=run.overwrite,
            groups=self.groups(),
            command=f"lossmap {self.command}",
            attributes={
                **provenance(device, ranks),
                "command": self.command,
                **{
                    f"{name}_estimate": told
                    for name, told in (stored_estimate(self.path) or {}).items()
                    if name in measures
                },
                f"resolved_{self.command}": {"settings": self.settings.resolved(), "folder": os.getcwd()},
                "directions_cosine": self.plane.cosine if self.plane.cosine is not None else float("nan"),
                "directions_digest": self.plane.digest,
            },
            only=self.points,
        )

    def took(self, store: SurfaceFile, measure: str) -> None:
        """Write into the file what the measure took by now, beside what was estimated."""
        surface = store.surface()
        known = decode_cost(surface.attributes.get(f"{measure}_took"))
        products = surface["products"] if "products" in surface.measures[measure] else None
        wall = float(known.get("wall", 0.0)) + time.monotonic() - self.began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        known = {"wall": wall, "memory": memory, "file_size": store.path.stat().st_size}
        known["ranks"] = int(surface.attributes.get("ranks", 1))
        if measure == "eigen" and "audit_seconds" in surface:
            known["audit"] = float(np.nansum(surface["audit_seconds"]))
        store.note(**{f"{measure}_took": measured_cost(surface[f"{measure}_seconds"], products, **known)})

    def groups(self) -> dict[str, Group]:
        """The directions, or, where they are not to be stored, their recipes and digest."""
        made = {} if self.trajectory is None else {"trajectory": self.trajectory}
        for name, axis, recipe, length in zip(
            ("x", "y"), self.plane.axes, self.plane.recipes, self.plane.lengths, strict=False
        ):
            arrays = {}
            if self.settings.plane.store_directions:
                arrays = {k: t.detach().cpu().numpy() for k, t in axis.items()}
            made[f"directions/{name}"] = Group(arrays, {**recipe, "length": length, "digest": self.plane.digest})
        return made

    def describe(self, problems: Mapping[str, Problem], what: str, measures: Mapping[str, Any] | None = None) -> str:
        """What would be done, for --dry-run.

        measures  as of `open`, where they are known before anything is computed: then compared with the file's own

        Raises as `open` does where the run would be refused.
        """
        done, overwrite = "", self.settings.run.overwrite
        there = inspect_existing(
            self.path, self.grid, identity=self.file_settings, measures=measures or {}, overwrite=overwrite
        )
        if there is not None:
            counts = "; ".join(f"{name}: {there.counts(name)['done']:,} points done" for name in there.status)
            done = f"; that file is there already and would be continued ({counts or 'no point done'})"
        elif self.path.exists():
            done = "; that file is there already and would be started anew (--overwrite)"
        splits = ", ".join(f"{p.data.samples:,} {split} samples" for split, p in problems.items())
        n = sum(p.numel() for p in next(iter(problems.values())).model.parameters())
        points = len(self.grid) if self.points is None else self.points.size
        return (
            f"would read {what} at {points:,} points of {self.grid}\n"
            f"  model   {self.file_settings['model']}, {n:,} parameters\n"
            f"  data    {splits}\n"
            f"  plane   {self.plane!r}\n"
            f"  result  {self.path}{done}\n"
            "nothing was computed, and nothing was written (--dry-run)"
        )


def finished(
    path: Path, surface: Surface, measure: str, say: Say, overwrite: bool = False, why: str | None = None
) -> int:
    """The last lines: how it ended, `why` where too early, each failure, where the result is. Returns the exit code."""
    counts = surface.counts(measure)
    outcome = surface.outcome_of(measure)
    for failure in [f for f in surface.failures if f.measure == measure]:
        place = ", ".join(f"{c:g}" for c in surface.grid.point(failure.index))
        say(f"failed: point ({place}) on rank {failure.rank}, {failure.host}: {failure.reason}")
    if outcome == "unfinished":
        without = " without --overwrite" if overwrite else ""
        left = f"{counts['done']:,} points done, {counts['left']:,} left"
        stopped = f"stopped in good order{f' ({why})' if why else ''}"
        say(f"{stopped}: {left}; the same command{without} goes on, or lossmap resume {shlex.quote(str(path))}")
    elif outcome == "failed":
        say(f"complete, but {counts['failed']:,} points failed; --retry-failed measures them again")
    estimated, took = (decode_cost(surface.attributes.get(f"{measure}_{what}")) for what in ("estimate", "took"))
    for line in side_by_side(estimated, took, not counts["left"]) if estimated else ():
        say(line)
    say(f"result: {path}")
    code = EXIT[outcome]
    if code and launched(os.environ) > 1:
        say(f"exit code {code}, which says just that to scripts: the launcher calls it an error, and it is none")
    return code


def pictures(path: Path, settings: DrawSettings, say: Say) -> None:
    """Draw what was asked for, beside the result."""
    if not (settings.plot or settings.page or settings.vtk or settings.show):
        return
    from lossmap.plotting.save_next_to import draw_next_to

    try:
        for picture in draw_next_to(path, settings):
            say(f"picture: {picture}")
    except (OSError, ValueError) as error:  # the points are safe, and are told of
        print(f"lossmap: no picture was drawn: {error}; lossmap draw {path} tries again", file=sys.stderr)


def drawable(settings: DrawSettings) -> None:
    """Raises Usage where a picture that is wanted later cannot be made."""
    if settings.page and importlib.util.find_spec("plotly") is None:
        raise UsageError("--page wants plotly, which is not installed: pip install 'lossmap[page]'")


def provenance(device: str, ranks: int) -> dict[str, Any]:
    """Versions, machine and job, for the file's root attributes."""
    found: dict[str, Any] = {
        "lossmap_version": __version__,
        "python_version": platform.python_version(),
        "device": device,
        "ranks": ranks,
        "command_line": " ".join(sys.argv),
    }
    for name in ("torch", "numpy", "h5py", "mpi4py"):
        try:
            found[f"{name}_version"] = version(name)
        except PackageNotFoundError:
            found[f"{name}_version"] = "none"
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        found["cuda_version"] = str(torch.version.cuda)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None:
        found["mpi_library"] = mpi.Get_library_version().split("\n")[0].strip("\0 ")
    found |= {k.lower(): v for k, v in os.environ.items() if k in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID")}
    here = Path(__file__).resolve().parent.parent
    if (here / ".git").exists():
        found |= _checkout(here)
    return found


def _checkout(folder: Path) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": int(bool(git("status", "--porcelain", "-uno")))}
    except (OSError, subprocess.SubprocessError):
        return {}
