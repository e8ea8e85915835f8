"""Evaluate a measure at every pending grid point, in one process or over MPI, and record the results.

    survey(measure, grid) -> Surface           over all ranks that a launcher started, and on each of them

A measure is point -> reading, a dict of numbers or small arrays by field. Rank 0 dispatches the points along a
serpentine over the grid, so that a worker's next point is a neighbour of its last one, or coarse to fine, so that the
points of half a survey are a picture of the whole grid; each reading is recorded as it arrives. A point that raises is
tried once more, elsewhere where there is another worker, and is then a failure with its reason. Price: what a survey
costs beside its measure is in benchmarks/dispatch.py.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from lossmap.geometry.grid import Field, Grid, Point
from lossmap.io.disk import PathLike
from lossmap.io.memory_store import MemoryStore, Store
from lossmap.io.methods import PREFIX
from lossmap.io.read import SurfaceFile
from lossmap.io.surface import CHANGED, Surface
from lossmap.keywords import checked_keywords
from lossmap.landscape import refinement
from lossmap.landscape.audit_loop import run_audit
from lossmap.landscape.progress import progress_display
from lossmap.landscape.survey_file import (
    described_plane,
    measured_problems,
    open_survey_file,
    read_as,
    stored_choice,
)
from lossmap.landscape.survey_recorder import Progress, Recorder
from lossmap.parallel.evaluate import PointEvaluator
from lossmap.parallel.messages import WorkerLost
from lossmap.parallel.pool import lead, leave, work
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.world import World

if TYPE_CHECKING:
    from lossmap.curvature.loss_at_start import LossAtStart

logger = logging.getLogger("lossmap")

TITLES = {"loss": "losses", "eigen": "eigenvalues"}  # by measure, what a progress bar says
WATCHDOG_FACTOR = 3  # times the point timeout, after which the kernel ends a stuck rank where that ends no job


class Measure(Protocol):
    """What is evaluated at each point.

    name      prefix of its status, seconds and rank in the file
    fields    what a reading holds; beside them, or alone, it may hold groups: {group name: {array name: array}}, of
              any shapes, written as they arrive
    settings  what it was made with, and under "chosen" what a probe has chosen

    May have `points_cost_alike = False`, where a slow point says nothing of the others: no rank counts as stuck then
    unless `point_timeout` says when. May have `coarse_first = True`, where a point gains nothing from its neighbour's
    answer: points are taken coarse to fine then. May have `with_choice(chosen)`: the measure with what a probe chose in
    another process. May have `resume(point, state)`, which goes on at a point that it left by raising
    Interrupted(state), and `smaller()`, which makes it need less memory and says how, or returns None where it cannot;
    where memory runs out on one rank of a team, all its ranks call it. May have `remark(point, reading)`, a sentence
    for the log and the file on what was read there, or None. May have `method`, where an earlier version found its
    numbers in a way that could be wrong: see `lossmap.io.methods`.
    """

    @property
    def name(self) -> str: ...
    @property
    def fields(self) -> tuple[Field, ...]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def __call__(self, point: Point) -> Mapping[str, Any]: ...


@checked_keywords
def survey(
    measure: Measure,
    grid: Grid,
    *,
    path: PathLike | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Progress], None] | None = None,
    retry_failed: bool = False,
    points: Iterable[int] | None = None,
    stop: Stop | Callable[[], bool] | None = None,
    audit: bool = True,
    store: Store | None = None,
    world: World | None = None,
    rank_0: str = "auto",
    team: Team | None = None,
    point_timeout: float | None = None,
    share_values: bool = True,
    accept_change: bool = False,
    refine: float | None = None,
) -> Surface:
    """Evaluate a measure at every point of a grid, in one process or over all ranks that a launcher started.

    Every rank calls it alike. A point that raises is tried once more, and is then a failure with its reason.

    Args:
        measure: what is evaluated: `losses(...)`, `EigenvalueMap(...)`, or anything with `name`, `fields`, `settings`
            and a call point -> reading.
        grid: the points.
        path: of a result file, `plane.h5`: written as the points come, so that the process may be killed at any
            moment; the same call, or the same survey on the command line, resumes it. None: in memory alone.
        overwrite: whether a file that is there is begun anew.
        progress: a bar in a terminal or notebook: None where there is one, True always, False never; or a function
            that is called on rank 0 a few times a second.
        retry_failed: whether failed points of the file are evaluated again.
        points: the flat indices to evaluate; None: all.
        stop: a function that returns whether to stop; the survey can be resumed from its file.
        audit: whether a measure that asks for one (`EigenvalueMap(certify="audit")`) has a random part of its points
            solved a second time; what it missed is replaced, and counted in the surface's attributes.
        store: where points are recorded on rank 0, in place of `path`.
        world: the ranks; None: those that a launcher started.
        rank_0: `computes` too, only `deals`, or `auto`: computes with up to 32 ranks.
        team: this rank's team (`world.team`), where several ranks share a point.
        point_timeout: seconds after which a rank that does not answer is reported, and its point dispatched again;
            None: 20 times the slowest point so far, a minute at least, with several ranks; infinity: never. In a
            process alone the point has failed by that, and the program ends with exit code 75.
        share_values: whether ranks other than 0 get the fields and groups too, or only statuses and settings. Price:
            one broadcast of 8 bytes a value, and that memory on every rank.
        accept_change: whether a file is continued although the code measures something else than that which began it;
            its history then says so.
        refine: measure fewer points: a coarse grid first, then rounds of points where what lies between the measured
            ones is known worst, until the error that is estimated for it is at most this share of the loss's range.
            The same points for any number of ranks. The group `refinement` holds the fields between the points. A file
            that was refined and is continued without it, is measured at all its points.

    Returns:
        The `Surface`, on every rank; its `outcome` is complete, failed (complete but for failed points, or the loss of
        a few samples was another one at the end than at the beginning) or unfinished.
        A rank that was given up as stuck, and one that rank 0's surface cannot reach since another has died meanwhile,
        leaves the program with a sentence.

    Raises:
        ValueError: where grid and plane differ in their number of axes, for flat indices beyond the grid, where the
            teams do not fit the ranks, and, naming each difference, where the file holds another survey.
        OSError: on every rank, what the file raises, such as on a full disk.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1)
        >>> problem = lossmap.Problem.supervised(model, "mse", (torch.ones(4, 2), torch.zeros(4, 1)))
        >>> line = lossmap.random_plane(model, axes=1)
        >>> surface = lossmap.survey(lossmap.losses(problem, line), lossmap.Grid.line(-1, 1, 3))
        >>> surface["train_loss"].shape, surface.outcome
        ((3,), 'complete')

    """
    if path is not None and store is not None:
        raise ValueError("a survey goes into one place: give a path or a store, not both")
    _check_axes(measure, grid)
    _check_refinement(refine, points)
    _check_sampling(measure, refine, points)
    world = world or World.start()
    stop = as_stop(stop)
    if path is not None or world.size > 1:
        measure = _with_common_choice(measure, world, path, overwrite)
    measure = _checked_at_corner(measure, grid, world)
    twin = None
    if audit and points is None and _asks_for_audit(measure) and world.once(lambda: store is None):
        twin = measure.audit_twin()  # type: ignore[attr-defined]
    own: SurfaceFile | None = None
    if path is not None:
        own = store = _opened(
            path, grid, (measure, twin), world, refine, overwrite=overwrite, accept_change=accept_change
        )
    elif world.rank == 0:
        store = _prepared(store, grid, (measure, twin), points, refine)

    def evaluate(measure: Measure, points: Iterable[int] | None, title: str, share_values: bool) -> Surface:
        with progress_display(world, title, progress) as show:
            return _evaluate_points(
                measure, grid, store=store, world=world, stop=stop, progress=show, points=points,
                retry_failed=retry_failed, rank_0=rank_0, team=team, point_timeout=point_timeout,
                share_values=share_values,
            )  # fmt: skip

    more = (
        twin is not None or path is not None or refine is not None or _is_sampled(measure)
    )  # the surface is not yet what it will be
    title = TITLES.get(measure.name, measure.name)
    try:
        surface = _first_pass(
            store, world, measure, refine,
            lambda measure, chosen: evaluate(
                measure, points if chosen is None else chosen, title, share_values and not more
            ),
            retry_failed,
        )  # fmt: skip
        if twin is not None:
            settings = twin.settings if own is None else own.settings(twin.name)
            run_audit(
                store, world, lambda points: evaluate(twin, points, "audit", False), logger.info,
                fields=twin.fields, settings=settings, tol=twin.solver_options["tol"], seed=twin.seed,
            )  # fmt: skip
    finally:
        if own is not None:
            own.close()
    if more or surface is None:
        surface = _final_surface(store, world, share_values)
    if path is not None:
        surface = replace(surface, source=os.path.realpath(path))
    return surface


def _opened(
    path: PathLike, grid: Grid, measures: tuple[Any, Any], world: World, refine: float | None, **options: bool
) -> SurfaceFile | None:
    """The file of a survey, opened by rank 0; None on the others. Every rank calls it; all raise as one.

    measures  that of the points, and that of the audit, or None
    options   overwrite, accept_change
    """

    def make() -> SurfaceFile | None:
        if world.rank != 0:
            return None
        file = open_survey_file(path, grid, {m.name: m for m in measures if m is not None}, ranks=world.size, **options)
        if refine is None:
            refinement.measure_all(file, measures[0].name, measures[0].fields)
        return file

    return world.together(make)


def _prepared(
    store: Store | None, grid: Grid, measures: tuple[Any, Any], points: Iterable[int] | None, refine: float | None
) -> Store:
    """Rank 0's store of a survey without a file of its own; it alone calls it: to meet is not to survive a death."""
    if store is None:
        store = MemoryStore(grid)
        attributes, groups = described_plane(measures[0], tensors=False)
        store.note(**attributes)
        for name, group in groups.items():
            store.put(name, group)
        for measure, of_points in zip(measures, (_checked_indices(points, grid), None), strict=True):
            if measure is not None:
                store.declare(measure.name, measure.fields, {**read_as(measure), **measure.settings}, of_points)
                if (method := getattr(measure, "method", None)) is not None:
                    store.note(**{f"{PREFIX}{measure.name}": method.name})
    elif refine is None:
        refinement.measure_all(store, measures[0].name, measures[0].fields)
    return store


def _check_axes(measure: Any, grid: Grid) -> None:
    plane = getattr(measure, "plane", None)
    if plane is not None and len(plane.axes) != grid.axes:
        raise ValueError(
            f"the grid has {grid.axes} and the plane {len(plane.axes)} axes; a line is Grid.line with axes=1, "
            "a plane Grid.square with axes=2"
        )


def _check_refinement(refine: float | None, points: Iterable[int] | None) -> None:
    if refine is None:
        return
    refinement.checked_tolerance(refine)
    if points is not None:
        raise ValueError("refine chooses the points itself: leave points out")


def _check_sampling(measure: Any, refine: float | None, points: Iterable[int] | None) -> None:
    """Raises ValueError where a measure of a part of the samples is to be read at a part of the points."""
    if _is_sampled(measure) and (refine is not None or points is not None):
        raise ValueError(
            "--loss-error judges the picture of all points: leave --refine, --shard or points out, or take fewer points"
        )


def _first_pass(
    store: Store | None,
    world: World,
    measure: Measure,
    refine: float | None,
    evaluate: Callable[[Measure, np.ndarray | None], Surface],
    retry_failed: bool,
) -> Surface | None:
    """All points, or round after round those that a refinement chooses, or of more samples; words as of `survey`."""
    last: Surface | None
    if _is_sampled(measure):
        from lossmap.landscape.sampling_rounds import run_sampling  # torch, which other measures do without

        last = run_sampling(store, world, cast(Any, measure), evaluate, logger.info, retry_failed)
        return last
    if refine is None:
        return evaluate(measure, None)
    last = refinement.run_refinement(
        store, world, measure.name, measure.fields, refine, lambda points: evaluate(measure, points), logger.info
    )
    return last


def _is_sampled(measure: Any) -> bool:
    """Whether the measure reads a part of the samples, that grows."""
    return hasattr(measure, "with_step")


def _with_common_choice(measure: Any, world: World, path: PathLike | None, overwrite: bool) -> Any:
    """The measure with what a probe chose once: for the file at an earlier run, else on rank 0 for all ranks."""
    if not hasattr(measure, "with_choice"):
        return measure

    def chosen() -> Mapping[str, Any]:
        earlier = None
        if path is not None and not overwrite:
            earlier = stored_choice(path, measure.name)
        return earlier or dict(measure.settings.get("chosen", {}))

    return measure.with_choice(world.once(chosen))


def _checked_at_corner(measure: Any, grid: Grid, world: World) -> Any:
    """The measure, its products checked at the grid's farthest corner too; rank 0 looks, and all ranks follow."""
    if not hasattr(measure, "distant_check") or len(measure.plane.axes) != grid.axes or not any(grid.farthest):
        return measure
    return measure.with_check(world.once(lambda: measure.distant_check(grid.farthest)))


def _asks_for_audit(measure: Any) -> bool:
    """Whether a random part of the points is to be solved a second time."""
    return getattr(measure, "certify", None) == "audit" and bool(measure.auditable)


def _final_surface(store: Store | None, world: World, share_values: bool) -> Surface:
    """What the store holds after all passes, on every rank."""
    if store is not None:
        surface = store.surface()
        _send_surface(world, surface if share_values else without_values(surface))
        return surface
    return _receive_surface(world)


def without_values(surface: Surface) -> Surface:
    """The surface with its statuses and settings alone."""
    return replace(surface, fields={}, about={}, groups={})


def _evaluate_points(
    measure: Measure,
    grid: Grid,
    *,
    store: Store | None,
    world: World,
    stop: Stop,
    progress: Callable[[Progress], None] | None,
    points: Iterable[int] | None,
    retry_failed: bool,
    rank_0: str,
    team: Team | None,
    point_timeout: float | None,
    share_values: bool,
) -> Surface:
    """One pass over the points that the store does not know yet; the words are those of `survey`."""
    if point_timeout is not None and point_timeout <= 0:
        raise ValueError(f"--point-timeout must be > 0 seconds; got {point_timeout:g}")
    team = team or Team.alone()
    all_teams = team.all_teams or world.team_ranks(rank_0=rank_0)
    world.surveys += 1  # on every rank alike: a late message of an earlier survey is known by it
    sizes = {field.name: field.extra[1] if field.extra else 1 for field in measure.fields}
    evaluate = PointEvaluator(measure, grid.point, sizes, team, kernel_limit(world, point_timeout))
    at_start = loss_at_start(measure)
    if world.rank != 0:
        work(world, evaluate, stop)
        _gather_changes(world, at_start)
        return _receive_surface(world)
    if store is None:  # pragma: no cover
        raise RuntimeError("rank 0 has no store")
    recorder = Recorder(
        store, measure.name, grid, progress, len(all_teams), _checked_indices(points, grid), retry_failed,
        getattr(measure, "priority", None), getattr(measure, "coarse_first", False),
    )  # fmt: skip
    by_pace = getattr(measure, "points_cost_alike", True)
    lead(world, list(all_teams), recorder, evaluate, stop, point_timeout, by_pace)
    changed = _gather_changes(world, at_start)
    if changed is not None:
        logger.warning("%s", changed)
        store.note(**{f"{measure.name}{CHANGED}": changed})
    surface = store.surface()
    _send_surface(world, surface if share_values else without_values(surface))
    return surface


def kernel_limit(world: World, point_timeout: float | None) -> float | None:
    """Seconds of a point after which the kernel ends this rank; None: never.

    Where a death ends the job, a stuck rank is left alone until rank 0 has closed its file.
    """
    if point_timeout is None or not math.isfinite(point_timeout) or not world.tolerant or world.rank == 0:
        return None
    return WATCHDOG_FACTOR * point_timeout


def _checked_indices(points: Iterable[int] | None, grid: Grid) -> np.ndarray | None:
    if points is None:
        return None
    indices = np.unique(np.fromiter(points, dtype=np.int64))
    if indices.size and not 0 <= indices[0] <= indices[-1] < len(grid):
        raise ValueError(f"points must be flat indices from 0 to {len(grid) - 1}; got {indices[0]} to {indices[-1]}")
    return indices


def loss_at_start(measure: Any) -> LossAtStart | None:
    """The losses that the measure reads as they are now on this rank; None of one that reads none."""
    problems = measured_problems(measure)
    if not problems:
        return None
    from lossmap.curvature.loss_at_start import LossAtStart  # torch, which a survey of something else does without

    return LossAtStart(problems)


def _gather_changes(world: World, at_start: LossAtStart | None) -> str | None:
    """What the first rank says whose loss is another than at its beginning; every rank calls it at the end."""
    changes = gather_at_end(world, None if at_start is None else at_start.change())
    return next((change for change in changes if change is not None), None)


def gather_at_end(world: World, own: Any) -> Sequence[Any]:
    """What every rank says of its losses at the end; every rank calls it then.

    Where a rank has died meanwhile, rank 0 has what it says itself, and the others leave.
    """
    try:
        return world.gather(own)
    except WorkerLost as error:
        if world.rank != 0:
            leave(world, f"{error} while the losses at the end were compared")
        world.go_on_alone()
        return [own]


def _send_surface(world: World, surface: Surface) -> None:
    with suppress(WorkerLost):  # rank 0 has what it needs; the others leave: see _receive_surface
        world.broadcast(surface)


def _receive_surface(world: World) -> Surface:
    try:
        return cast(Surface, world.broadcast())
    except WorkerLost as error:
        leave(world, f"{error} while the surface was sent")


def as_stop(stop: Stop | Callable[[], bool] | None) -> Stop:
    """A `Stop` that calls the function, where there is one: so that a measure asks it within a point too.

    stop  a `Stop`, which is returned as it is; a function that returns whether to stop; or None: never
    """
    if isinstance(stop, Stop):
        return stop
    wrapped = Stop()
    if stop is not None:
        requested = stop

        def listener() -> None:
            if requested():
                wrapped.request("the program requested it", urgent=True)

        # as a listener: the dispatcher asks between points and a measure within one, and both get its answer
        wrapped.add_listener(listener)
    return wrapped
