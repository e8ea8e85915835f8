"""The result file of a surveying command, from --dry-run to the last line and the exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli.entry_point import EXIT_CODES as EXIT_CODES
from lossmap.cli.output_path import result_path
from lossmap.cli.setting_groups import DrawSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError
from lossmap.cli.trust import code_files
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Grid
from lossmap.io.disk import file_bytes
from lossmap.io.methods import Method, measured_by, method_note
from lossmap.io.printable import printable
from lossmap.io.provenance import provenance
from lossmap.io.read import SurfaceFile, inspect_existing, is_of_another_plane, read, training_path
from lossmap.io.refined import refinement_note
from lossmap.io.sampled import sampling_note
from lossmap.io.surface import DONE, ON_PLANE, Group, Surface
from lossmap.landscape.survey_file import adopted, direction_groups
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.cost_model import decode_cost, measured_cost, side_by_side, stored_estimate
from lossmap.parallel.launcher import launched
from lossmap.parallel.process import peak_memory
from lossmap.parallel.shards import Shard
from lossmap.parallel.world import World
from lossmap.plotting.notes import noise_note
from lossmap.report.price import size_text

Printer = Callable[[str], None]

logger = logging.getLogger("lossmap")


def rank_0_printer(world: World, notes: Sequence[str] = ()) -> Printer:
    """A function that prints on rank 0 alone; the notes are printed at once."""

    def say(text: str) -> None:
        if world.rank == 0:
            print(printable(text), flush=True)

    for note in notes:
        say(note)
    return say


def on_rank_0(world: World, open_file: Callable[[], SurfaceFile]) -> SurfaceFile | None:
    """The file on rank 0 of a world that writes, None on all others; every rank calls it, and all raise as one."""
    return world.together(lambda: open_file() if world.rank == 0 and world.writes else None)


def shard_points(grid: Grid, shard: str | None) -> np.ndarray | None:
    """The flat indices of this shard of an array; None for all points. Raises UsageError where it has none."""
    if shard is None:
        return None
    points = Shard.parse(shard).points(grid.shape)
    if points.size == 0:
        raise UsageError(f"--shard {shard} holds no point: the grid has only {len(grid)}")
    return points


class OutputFile:
    """The result of a surveying command: where it goes, what it belongs to, what its measure took.

    command   its name, by which `resume` runs it again
    path      the file
    points    the flat indices of this shard, or None
    """

    def __init__(
        self, command: str, settings: Settings, grid: Grid, plane: Plane, file_settings: Mapping[str, Any]
    ) -> None:
        self.command, self.settings, self.grid, self.plane = command, settings, grid, plane
        self.file_settings = dict(file_settings)
        self.points = shard_points(grid, settings.run.shard)
        check_drawable(getattr(settings, "draw", DrawSettings()))
        self.path = result_path(settings)
        if settings.run.shard:
            self.path = Shard.parse(settings.run.shard).file(self.path)
        self.trajectory: Group | None = None
        self._about_path: str | None = None
        if settings.plane.proj_file and grid.axes == 2 and command != "plane":  # which writes that file itself
            self.trajectory = self._path_on_plane(settings.plane.proj_file)
        self.started, self.began = time.monotonic(), command_began()

    def _path_on_plane(self, path: str) -> Group | None:
        """The training path in a file; None where it is of another plane, and a result that is there goes on.

        Raises UsageError where it is of another plane and the result is new.
        """
        from lossmap.landscape.plane_in_file import is_plane_of_file

        trajectory = training_path(path)
        is_of_another = is_of_another_plane(path, self.plane.digest)
        if is_of_another and is_plane_of_file(path, self.plane):
            return replace(trajectory, attributes={**trajectory.attributes, ON_PLANE: self.plane.digest})
        if is_of_another is None:
            self._about_path = f"{path} does not name the plane of its path, which is taken to be that of the surface"
        if not is_of_another:
            return trajectory
        self._about_path = f"{path} was projected onto another plane: its path is left out"
        if self.settings.run.overwrite or not self.path.exists():
            raise UsageError(
                f"{path} was projected onto another plane, with other directions, another --dir-type or another "
                f"origin: --dir-file {path} takes those directions, and the origin is the --model-file, or the last "
                "checkpoint of --model-folder"
            )
        return None

    def chosen(self, world: World, measure: str, name: str, probe: Callable[[], Any]) -> Any:
        """What an earlier run's probe chose for this file, else what the probe chooses now on rank 0, for all ranks.

        measure, name  where the choice is stored
        probe          returns a choice that JSON can hold, or a dataclass of such values
        """

        def choose() -> Any:
            if self.path.exists() and not self.settings.run.overwrite:
                stored = read(self.path).settings.get("measures", {}).get(measure, {}).get("chosen", {})
                if name in stored:
                    return stored[name]
            choice = probe()
            if is_dataclass(choice) and not isinstance(choice, type):
                return asdict(choice)
            return choice

        return world.once(choose)

    def open(
        self,
        measures: Mapping[str, tuple[Any, Any]],
        device: str,
        ranks: int,
        upgrades: Mapping[str, Any] | None = None,
        problems: Mapping[str, Problem] | None = None,
        product: bool = False,
        by_method: Mapping[str, Method] | None = None,
    ) -> SurfaceFile:
        """Open or continue the file, on rank 0. Raises ValueError naming what differs from an earlier run.

        upgrades  by measure, what makes today's reading of the fields in which an earlier version kept it
        problems  of the first measure, by split: the fingerprint of its code is compared and stored
        product   whether that measure makes products
        by_method by measure, how its numbers are found, see `SurfaceFile.open`
        """
        run: RunSettings = self.settings.run
        if self._about_path:
            logger.warning("%s", self._about_path)
        estimates = stored_estimate(self.path) or {}
        cosine = self.plane.cosine
        identity: dict[str, Any] = self.file_settings
        if not run.overwrite:
            identity, measures = adopted(self.path, identity, measures, self.plane.digest)
        return SurfaceFile.open(
            self.path,
            self.grid,
            identity=identity,
            measures=measures,
            overwrite=run.overwrite,
            groups=self.groups(),
            command=f"lossmap {self.command}",
            attributes={
                **provenance(device, ranks),
                "command": self.command,
                "team": run.team,
                **{f"{name}_estimate": value for name, value in estimates.items() if name in measures},
                f"resolved_{self.command}": {"settings": self.settings.resolved(), "folder": os.getcwd()},
                "directions_cosine": float("nan") if cosine is None else cosine,
                "directions_digest": self.plane.digest,
            },
            only=self.points,
            upgrades=upgrades,
            codes={} if problems is None else {next(iter(measures)): self._code(problems, product)},
            accept_change=run.accept_change,
            by_method=by_method,
        )

    def points_left(self, measure: str, method: Method | None = None) -> int:
        """How many points are to be computed, but for those that an earlier run has left in the file.

        method  how its numbers are found: with another one in the file all points are, unless it is complete
        """
        planned = np.arange(len(self.grid)) if self.points is None else self.points
        if self.settings.run.overwrite or not self.path.exists():
            return int(planned.size)
        surface = read(self.path)
        status = surface.status.get(measure)
        if status is None or status.size != len(self.grid):
            return int(planned.size)
        left = int((status.reshape(-1)[planned] == 0).sum())
        return int(planned.size) if left and method and not measured_by(surface, measure, method) else left

    def _code(self, problems: Mapping[str, Problem], product: bool) -> dict[str, Any]:
        """The fingerprint of the code that measures on this plane, at its origin and at its farthest point."""
        from lossmap.landscape.fingerprint import code_of

        files = code_files(self.settings.resolved(), Path.cwd())
        return code_of(problems, plane=self.plane, point=self.grid.farthest, product=product, files=files)

    def store_cost(self, store: SurfaceFile, measure: str) -> None:
        """Write into the file what the measure has taken so far, beside what was estimated."""
        surface = store.surface()
        earlier = decode_cost(surface.attributes.get(f"{measure}_took"))
        products = surface["products"] if "products" in surface.measures[measure] else None
        cost = {
            "wall": float(earlier.get("wall", 0.0)) + time.monotonic() - self.started,
            "memory": peak_memory(),
            "file_size": store.path.stat().st_size,
            "ranks": int(surface.attributes.get("ranks", 1)),
        }
        if measure == "eigen" and "audit_seconds" in surface:
            cost["audit"] = float(np.nansum(surface["audit_seconds"]))
        store.note(**{f"{measure}_took": measured_cost(surface[f"{measure}_seconds"], products, **cost)})

    def groups(self) -> dict[str, Group]:
        """The directions, or, where they are not to be stored, their recipes and digest; and the training path."""
        groups = direction_groups(self.plane, self.settings.plane.store_directions)
        if self.trajectory is not None:
            groups = {"trajectory": self.trajectory, **groups}
        return groups

    def describe(
        self,
        problems: Mapping[str, Problem],
        what: str,
        fields: Sequence[Sequence[Field]],
        measures: Mapping[str, Any] | None = None,
    ) -> str:
        """What would be done, for --dry-run.

        what      what would be computed at each point
        fields    of each measure, for the size of the result
        measures  as of `open`, where they are known before anything is computed: compared with the file's own

        Raises as `open` does where the run would be refused.
        """
        n = sum(p.numel() for p in next(iter(problems.values())).model.parameters())
        points = len(self.grid) if self.points is None else self.points.size
        return (
            f"would compute {what} at {points:,} points of {self.grid}, some {self._size(fields)}\n"
            f"  model   {self.file_settings['model']}, {n:,} parameters\n"
            f"{about_data(problems)}\n"
            f"  plane   {self.plane!r}\n"
            f"  result  {self.path}{self._existing(measures or {})}\n"
            "nothing was computed, and nothing was written (--dry-run)"
        )

    def _size(self, fields: Sequence[Sequence[Field]]) -> str:
        """How large the result will be."""
        entries = sum(t.numel() for axis in self.plane.axes for t in axis.values())
        return size_text(file_bytes(len(self.grid), fields) + 4 * entries * self.settings.plane.store_directions)

    def _existing(self, measures: Mapping[str, Any]) -> str:
        overwrite = self.settings.run.overwrite
        identity: dict[str, Any] = self.file_settings
        if not overwrite:
            identity, measures = adopted(self.path, identity, measures, self.plane.digest)
        surface = inspect_existing(self.path, self.grid, identity=identity, measures=measures, overwrite=overwrite)
        if surface is not None:
            counts = "; ".join(f"{name}: {surface.counts(name)['done']:,} points done" for name in surface.status)
            note = method_note(surface)
            told = f"; {note}" if note else ""
            return f"; that file exists and would be continued ({counts or 'no point done'}{told})"
        if self.path.exists():
            return "; that file exists and would be started anew (--overwrite)"
        return ""


def about_data(problems: Mapping[str, Problem]) -> str:
    """What a dry run says of the samples that were read; the same samples under several names are said once."""
    from lossmap.cli.data_description import description_of
    from lossmap.data.criteria import SupervisedLoss

    known: dict[int, str] = {}
    described = {known.setdefault(id(p.data), name): p for name, p in problems.items()}
    lines: list[str] = []
    for name, problem in described.items():
        of_pairs = isinstance(problem.loss, SupervisedLoss)
        lines += _indented(name, description_of(problem.data, of_pairs))
    return "  data    " + "\n          ".join(lines)


def _indented(split: str, lines: Sequence[str]) -> list[str]:
    """The lines about a split, with its name before the first."""
    return [f"{split}: {lines[0]}", *(f"  {line}" for line in lines[1:])]


def report_end(
    path: Path, surface: Surface, measure: str, say: Printer, overwrite: bool = False, why: str | None = None
) -> int:
    """Print the last lines: each failure, how it ended and `why`, where the result is. Returns the exit code."""
    counts = surface.counts(measure)
    outcome = surface.outcome_of(measure)
    for failure in [f for f in surface.failures if f.measure == measure]:
        point = ", ".join(f"{c:g}" for c in surface.grid.point(failure.index))
        say(f"failed: point ({point}) on rank {failure.rank}, {failure.host}: {failure.reason}")
    if outcome == "unfinished":
        reason = f" ({why})" if why else ""
        without = " without --overwrite" if overwrite else ""
        say(
            f"interrupted{reason}: {counts['done']:,} points done, {counts['left']:,} left; run the same command"
            f"{without} again to resume, or lossmap resume {shlex.quote(str(path))}"
        )
    elif counts["failed"]:
        say(f"complete, but {counts['failed']:,} points failed; --retry-failed measures them again")
    if unknown := points_without_loss(surface, measure):
        say(f"the loss is not finite at {unknown:,} of {counts['done']:,} points")
    if surface.change_of(measure):
        say(f"not to be used: {surface.change_of(measure)}")
    noise = noise_note(surface)
    if noise:
        say(noise)
    if (refined := refinement_note(surface)) is not None:
        say(refined)
    if (sampled := sampling_note(surface)) is not None:
        say(sampled)
    estimated, took = (decode_cost(surface.attributes.get(f"{measure}_{what}")) for what in ("estimate", "took"))
    if estimated:
        for line in side_by_side(estimated, took, not counts["left"]):
            say(line)
    say(f"result: {path}")
    code = EXIT_CODES[outcome]
    if code and launched(os.environ) > 1:
        say(f"exit code {code} reports just that to scripts; the launcher calls it an error, which it is not")
    return code


def points_without_loss(surface: Surface, measure: str) -> int:
    """At how many points that are done the loss of a split is NaN or infinite; then no eigenvalue is known."""
    ending = {"loss": "_loss", "eigen": "_eig"}.get(measure)
    names = [name for name in surface.measures.get(measure, ()) if ending and name.endswith(ending)]
    if not names:
        return 0
    is_known = np.ones(len(surface.grid), dtype=bool)
    for of_test in (False, True):
        own = [name for name in names if name.startswith("test_") == of_test]
        known = [np.isfinite(surface[name].reshape(len(surface.grid), -1)).any(axis=1) for name in own]
        if known:  # of several eigenvalues some may not have been found
            is_known &= np.logical_or.reduce(known)
    return int((~is_known & (surface.status[measure].reshape(-1) == DONE)).sum())


def draw_pictures(path: Path, settings: DrawSettings, say: Printer) -> None:
    """Draw the figures that the settings name beside the result."""
    if not (settings.plot or settings.page or settings.vtk or settings.show):
        return
    from lossmap.plotting.save_next_to import draw_next_to

    try:
        for picture in draw_next_to(path, settings):
            say(f"picture: {picture}")
    except (OSError, ValueError) as error:  # the result is safe: only the figure is missing
        print(f"lossmap: no picture was drawn: {error}; lossmap draw {path} tries again", file=sys.stderr)


def check_drawable(settings: DrawSettings) -> None:
    """Raise UsageError before anything is computed where figures could not be made at the end."""
    if settings.log and settings.linear:
        raise UsageError("--log and --linear exclude each other: give one of them")
