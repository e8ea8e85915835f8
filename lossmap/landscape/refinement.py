"""Fewer points: a coarse grid first, then points where what lies between the measured ones is known worst.

    plan = Refinement(grid, tol).next(values, chosen)        which points are measured in the next round

A round's points are decided from the values of the rounds before it alone, so that the set that is measured is the
same for any number of ranks, and after any kill. Between the points stands a piecewise cubic over their Delaunay
triangulation (Clough and Tocher), on a line a cubic spline: of log10 of the loss where its range suits a log scale, of
the loss elsewhere. What it differs from the piecewise linear one tells where it is bad. How bad is estimated twice:

    d   the largest such difference, times what the interpolation missed of the points that the last rounds measured
        over what had been told for them; too small where it bends sharply between points of a straight part
    c   the largest miss of a measured point by the interpolation through all but it and others that are not its
        neighbours (`left_out`); too large on smooth surfaces, since the gap about such a point is the wider one

The estimate is e = sqrt(c d), which varies less about the true error than either. Of a smooth surface an interpolation
of higher order is so much nearer to the truth that its difference q from the picture is nearly the picture's error, and
the estimate is sqrt(e q): q is somewhat too small, far too small where an undersampled surface looks smooth, and e too
large. A surface counts as smooth where the higher order misses the points left out by clearly less than the picture's
own, which it does not beside kinks. The end is reached where the estimate is at most `tol` of the range of the picture,
at the worst point (`benchmarks/refine.py`).

Letters: (y, x) the grid, on a line (x,). Price: some twenty triangulations and interpolations a round, 0.2 s of
10,000 points and 1,000 measured ones.
Sources: Alfeld (1984), doi:10.1016/0167-8396(84)90029-3; `scipy.interpolate.CloughTocher2DInterpolator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.memory_store import Store
from lossmap.io.refined import GROUP, LOG_FROM, ROUND, is_refined, refinement_note
from lossmap.io.surface import DONE, Group, Surface
from lossmap.landscape.left_out import largest_miss, quintic
from lossmap.parallel.world import World

FIRST_TICKS = 11  # along each axis of the coarse grid
ROUND_SHARE = 0.012  # of all points, in a round
FIRST_SHARE = 0.004  # in the first rounds of a smooth surface of which little is asked: they may be all that it needs
LITTLE = 0.05  # of the range: a tolerance from which on little is asked
MIN_ROUND = 4  # points
LEAST_ROUNDS = 2  # after the coarse grid's: what the coarse grid tells of itself is little
MIN_TESTED = 30  # points of the last rounds, from which what they tell is believed however small
LEAST_SHARE = 0.5  # of the difference that is taken for an error where there are fewer
REMEMBERED = 3  # rounds from which the share of the difference that is an error is taken
WORTH = 0.25  # of the tolerance: where less is told, no point is measured while others are told more
JUMP = 0.25  # of the range: points between neighbours that differ by more are measured before the end
MAX_RATIO = 2.0  # of c to d: of very smooth surfaces c is far too large
SMOOTH = 0.7  # a surface is smooth where the higher order misses less than this part of what the picture's misses
COMPARED = 300  # points, the worst by what is told, at which both orders are compared
FLAT = 1e-9  # width of points over their length, up to which they lie on one line
MIN_TOL, MAX_TOL = 1e-4, 0.5


@dataclass(frozen=True)
class Interpolated:
    """A field between its measured points.

    values  of the grid's shape; measured ones as they are; NaN where there is no telling
    told    how far the cubic and the linear interpolation differ, relative to the range; 0 at measured points
    log     whether it was interpolated in log10
    """

    values: np.ndarray
    told: np.ndarray
    log: bool


def checked_tolerance(tol: float) -> float:
    """The tolerance, relative to the range. Raises ValueError where it is none."""
    if not MIN_TOL <= tol <= MAX_TOL:
        raise ValueError(f"--refine must be >= {MIN_TOL:g} and <= {MAX_TOL:g} of the loss's range; got {tol:g}")
    return tol


def coarse_points(grid: Grid) -> np.ndarray:
    """The flat indices of the coarse grid, both ends of each axis among them, ascending."""
    axes = [np.unique(np.linspace(0, n - 1, min(FIRST_TICKS, n)).round().astype(np.int64)) for n in grid.shape]
    return np.sort(np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), grid.shape).reshape(-1))


def interpolated(grid: Grid, values: np.ndarray, known: np.ndarray, suits_log: bool | None = None) -> Interpolated:
    """A field between its points.

    values     of the grid's shape
    known      where it was measured, of the same shape
    suits_log  whether log10 of it is interpolated; None: by its range
    """
    finite = known & np.isfinite(values)
    filled, told = np.full(grid.shape, np.nan), np.zeros(grid.shape)
    filled[known] = values[known]
    if not _span_the_grid(_places(grid)[finite.reshape(-1)]):
        return Interpolated(filled, told, False)
    low, high = float(values[finite].min()), float(values[finite].max())
    log = low > 0 and high / LOG_FROM > low if suits_log is None else suits_log
    heights = np.log10(values[finite]) if log else values[finite]
    cubic, linear, is_hole = _between(grid, finite, known & ~finite, heights)
    span = float(heights.max() - heights.min()) or 1.0
    told = np.where(known | is_hole, 0.0, np.abs(cubic - linear) / span)
    between = np.power(10.0, cubic) if log else cubic
    filled = np.where(known, values, np.where(is_hole, np.nan, between))
    return Interpolated(filled, np.nan_to_num(told), bool(log))


def _span_the_grid(places: np.ndarray) -> bool:
    """Whether something can be interpolated: three points at least, in a plane not all on one line."""
    if len(places) < 3:
        return False
    extents = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)
    return bool(extents[-1] > FLAT * extents[0])


def _between(
    grid: Grid, finite: np.ndarray, holes: np.ndarray, heights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cubic, linear, whether the point lies beside a measured one without a value), each of the grid's shape."""
    from scipy import interpolate, spatial

    places = _places(grid)
    if places.shape[1] == 1:
        ticks = places[:, 0]
        flat, hole = finite.reshape(-1), holes.reshape(-1)
        order = np.argsort(ticks[flat])
        at, height = ticks[flat][order], heights[order]
        linear = np.interp(ticks, at, height)
        cubic = interpolate.CubicSpline(at, height)(ticks) if at.size > 2 else linear
        measured = np.sort(ticks[flat | hole])
        is_bad = np.isin(measured, ticks[hole]).astype(float)
        beside = np.interp(ticks, measured, is_bad) > 0
        cubic = np.where(np.isfinite(cubic), cubic, linear)
        return cubic.reshape(grid.shape), linear.reshape(grid.shape), beside.reshape(grid.shape)
    flat = finite.reshape(-1)
    triangles = spatial.Delaunay(places[flat])
    cubic = interpolate.CloughTocher2DInterpolator(triangles, heights)(places)
    linear = interpolate.LinearNDInterpolator(triangles, heights)(places)
    beside = np.zeros(len(places), dtype=bool)
    if holes.any():
        measured = flat | holes.reshape(-1)
        is_bad = holes.reshape(-1)[measured].astype(float)
        beside = interpolate.LinearNDInterpolator(spatial.Delaunay(places[measured]), is_bad)(places) > 0
    beside |= ~np.isfinite(cubic)
    return cubic.reshape(grid.shape), linear.reshape(grid.shape), beside.reshape(grid.shape)


def _places(grid: Grid) -> np.ndarray:
    """The places of all points, from 0 to 1 along each axis, (points, 2); (points, 1) on a line or a single row."""
    if grid.y is None or min(grid.shape) < 2:
        ticks = grid.x if grid.y is None or grid.shape[1] > 1 else grid.y
        return _unit(ticks)[:, None]
    axes = np.meshgrid(_unit(grid.y), _unit(grid.x), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], axis=1)


def _unit(ticks: np.ndarray) -> np.ndarray:
    """Ticks as places from 0 to 1."""
    span = float(ticks.max() - ticks.min()) or 1.0
    result: np.ndarray = (ticks - ticks.min()) / span
    return result


@dataclass(frozen=True)
class Round:
    """What comes next.

    points  flat indices to be measured, ascending; none: the end
    error   estimated, of the interpolation at the worst point, relative to the range; NaN before the second round, and
            where nothing could be interpolated
    """

    points: np.ndarray
    error: float


def next_round(grid: Grid, fields: Sequence[np.ndarray], rounds: np.ndarray, known: np.ndarray, tol: float) -> Round:
    """The points of the next round.

    fields  each of the grid's shape: losses, of which the worst counts
    rounds  of the grid's shape: in which round a point was measured, from 0 on; -1: not
    known   where a point has values
    tol     relative to the range
    """
    last = int(rounds.max())
    if last < 0:
        return Round(coarse_points(grid), nan)
    now = [interpolated(grid, values, known) for values in fields]
    for field in now:
        field.told[rounds >= 0] = 0.0
    told = np.max([field.told for field in now], axis=0)
    estimates = [_estimate(grid, values, field, rounds, known) for values, field in zip(fields, now, strict=True)]
    error = max((e for e, _ in estimates if e == e), default=nan)
    if last >= LEAST_ROUNDS and error <= tol:
        within = np.max(
            [_within_jumps(values, field, known) for values, field in zip(fields, now, strict=True)], axis=0
        )
        within[rounds >= 0] = 0.0
        return Round(
            _worst(grid, within, rounds >= 0, max(JUMP, tol), max(MIN_ROUND, round(ROUND_SHARE * told.size))), error
        )
    may_end_soon = tol >= LITTLE and last < LEAST_ROUNDS and all(is_smooth for _, is_smooth in estimates)
    count = max(MIN_ROUND, round((FIRST_SHARE if may_end_soon else ROUND_SHARE) * told.size))
    points = _worst(grid, told, rounds >= 0, WORTH * tol, count)
    if not points.size and error > tol:  # beside a jump little is told of points that are far off
        points = _worst(grid, told, rounds >= 0, -1.0, count)
    return Round(points, error)


def _within_jumps(values: np.ndarray, now: Interpolated, known: np.ndarray) -> np.ndarray:
    """How far the measured neighbours of a point differ, relative to the range; 0 of a point without two.

    Between the two sides of a jump nothing tells of which a point is: midway all interpolations agree.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    finite = known & np.isfinite(values)
    heights = np.where(finite, np.log10(np.where(finite, values, 1.0)) if now.log else values, np.nan)
    high = maximum_filter(np.where(finite, heights, -np.inf), 3, mode="nearest")
    low = minimum_filter(np.where(finite, heights, np.inf), 3, mode="nearest")
    span = float(np.ptp(heights[finite])) if finite.any() else 0.0
    apart: np.ndarray = np.nan_to_num(np.maximum(high - low, 0.0), nan=0.0, posinf=0.0) / (span or 1.0)
    return apart


def _estimate(
    grid: Grid, values: np.ndarray, now: Interpolated, rounds: np.ndarray, known: np.ndarray
) -> tuple[float, bool]:
    """(error of a field's interpolation at the worst point, relative to the range, NaN without any; is it smooth)."""
    is_between = rounds < 0
    if is_between.any() and not np.isfinite(now.values[is_between]).any():
        return nan, False
    last = int(rounds.max())
    first = max(1, last - REMEMBERED + 1)
    shares = [_missed(grid, values, now, rounds, known, r) for r in range(first, last + 1)]
    share = max((s for s in shares if s is not None), default=1.0)
    if int((rounds >= first).sum()) < MIN_TESTED:
        share = max(share, LEAST_SHARE)
    told = float(now.told.max()) * share
    finite = known & np.isfinite(values)
    heights = np.log10(values[finite]) if now.log else values[finite]
    places, known_flat = _places(grid), finite.reshape(-1)
    miss = largest_miss(places[known_flat], heights)
    if miss is None:
        return told, False
    estimate = sqrt(told * min(miss, MAX_RATIO * told))
    better = _of_higher_order(now, rounds, places, known_flat, heights, miss)
    return (estimate, False) if better is None else (sqrt(estimate * better), True)


def _of_higher_order(
    now: Interpolated, rounds: np.ndarray, places: np.ndarray, known: np.ndarray, heights: np.ndarray, miss: float
) -> float | None:
    """How far a smooth surface's interpolation is from one of higher order; None where it is not smooth.

    places   of all points; known: which have values, flat; heights: these
    miss     the largest of the picture's own interpolation at points left out
    """
    order = np.argsort(places[known][:, 0], kind="stable")
    at, heights = places[known][order], heights[order]
    span = float(np.ptp(heights)) or 1.0
    worst = np.argsort(-now.told.reshape(-1), kind="stable")[:COMPARED]
    worst = worst[(rounds.reshape(-1)[worst] < 0) & np.isfinite(now.values.reshape(-1)[worst])]
    shown = now.values.reshape(-1)[worst]
    try:
        smoother = largest_miss(at, heights, quintic)
        if smoother is None or smoother >= SMOOTH * miss:
            return None
        off = quintic(at, heights)(places[worst]) - (np.log10(shown) if now.log else shown)
    except (np.linalg.LinAlgError, ValueError):  # points on two lines, or too few, have no surface of that order
        return None
    return float(np.abs(off).max(initial=0.0)) / span


def _missed(
    grid: Grid, values: np.ndarray, now: Interpolated, rounds: np.ndarray, known: np.ndarray, r: int
) -> float | None:
    """By how much the largest error at the points of round r exceeded what was told for them; None for no telling."""
    before, here = known & (rounds < r) & (rounds >= 0), known & (rounds == r)
    then = interpolated(grid, values, before, now.log)
    heights = [np.log10(v) if now.log else v for v in (then.values[here], values[here])]
    off = np.abs(heights[0] - heights[1])
    finite = np.isfinite(off)
    measured = values[known & np.isfinite(values)]
    span = np.ptp(np.log10(measured) if now.log else measured) or 1.0
    told = float(then.told[here][finite].max(initial=0.0))
    return float(off[finite].max()) / float(span) / told if finite.any() and told > 0 else None


def _worst(grid: Grid, told: np.ndarray, taken: np.ndarray, least: float, count: int) -> np.ndarray:
    """The points of a round, at most `count`: those of which the worst is told, not beside each other, ascending."""
    from scipy.ndimage import distance_transform_cdt

    apart = distance_transform_cdt(~taken, metric="chessboard")
    blocked = taken.copy()
    chosen: list[int] = []
    for index in np.argsort(-told.reshape(-1), kind="stable"):
        place = np.unravel_index(int(index), grid.shape)
        if told[place] <= least or len(chosen) == count:
            break
        if blocked[place]:
            continue
        chosen.append(int(index))
        reach = max(1, int(apart[place]) // 2)
        blocked[tuple(slice(max(0, int(i) - reach), int(i) + reach + 1) for i in place)] = True
    return np.sort(np.array(chosen, dtype=np.int64))


def driving(fields: Sequence[Field]) -> list[str]:
    """The fields whose interpolation decides: losses, or else the first."""
    names = [field.name for field in fields if field.name.endswith("loss") and field.size == 1]
    return names or [fields[0].name]


def rounds_of(surface: Surface) -> np.ndarray:
    """In which round each point was chosen, of the grid's shape; -1: in none."""
    if not is_refined(surface):
        return np.full(surface.grid.shape, -1, dtype=np.int16)
    return np.array(surface.groups[GROUP][ROUND])


def measure_all(store: Store, measure: str, fields: Sequence[Field]) -> None:
    """Let a survey that was refined go on with all its points: what lay between them goes with its group's arrays."""
    if GROUP in store.surface().groups:
        store.declare(measure, fields, store.settings(measure))
        store.put(GROUP, Group())


def run_refinement(
    store: Store | None,
    world: World,
    measure: str,
    fields: Sequence[Field],
    tol: float,
    evaluate: Callable[[np.ndarray], Any],
    say: Callable[[str], None],
) -> Any:
    """Measure round after round until the error is small, or the survey is stopped. All ranks call it.

    store     rank 0's, None on the others
    evaluate  evaluates points, given by their flat indices; all that were chosen so far, of which most are done

    Returns what `evaluate` returned last; None where nothing was left to do.

    Raises on every rank what fails on rank 0 there.
    """
    before: np.ndarray | None = None
    result: Any = None
    while True:
        error: Exception | None = None
        points: np.ndarray | None = None
        try:  # what fails here fails on rank 0 alone; the others must not wait for it
            points = None if store is None else _chosen(store, measure, fields, tol, say)
        except Exception as raised:
            error = raised
        points = world.broadcast(points)
        if error is not None:
            raise error
        if points is None or (before is not None and np.array_equal(points, before)):
            return result
        result = evaluate(points)
        before = points


def _chosen(
    store: Store, measure: str, fields: Sequence[Field], tol: float, say: Callable[[str], None]
) -> np.ndarray | None:
    """All flat indices chosen so far, with the next round's; None at the end. What is chosen is in the store then."""
    surface = store.surface()
    rounds = rounds_of(surface)
    chosen = np.flatnonzero(rounds.reshape(-1) >= 0)
    status = surface.status[measure].reshape(-1)
    if chosen.size and (status[chosen] == 0).any():  # of an earlier run, or interrupted
        store.declare(measure, fields, store.settings(measure), chosen)
        return chosen
    known = surface.status[measure] == DONE
    losses = [surface[name] for name in driving(fields)]
    step = next_round(surface.grid, losses, rounds, known, tol)
    rounds.reshape(-1)[step.points] = rounds.max() + 1
    chosen = np.flatnonzero(rounds.reshape(-1) >= 0)
    store.declare(measure, fields, store.settings(measure), chosen)
    store.put(GROUP, _group(surface, fields, rounds, known, tol, step.error))
    if not step.points.size:
        say(refinement_note(store.surface()) or "")
        return None
    return chosen


def _group(
    surface: Surface, fields: Sequence[Field], rounds: np.ndarray, known: np.ndarray, tol: float, error: float
) -> Group:
    arrays: dict[str, np.ndarray] = {ROUND: rounds.astype(np.int16)}
    drivers = driving(fields)
    for field in fields:
        if field.size == 1 and known.any():
            arrays[field.name] = interpolated(
                surface.grid, surface[field.name], known, None if field.name in drivers else False
            ).values
    return Group(arrays, {"tolerance": tol, "error": error})
