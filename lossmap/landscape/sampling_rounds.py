"""How many samples are read, round after round: see `loss_sampling`.

A round reads the same samples at all points but the middle and the corners, which are read over all samples at first;
and the next one as many as its errors ask for. What is known of a survey is found in its numbers alone,
`SPLIT_samples_read` at each point, so that it goes on after any kill: points that are behind the others are read first.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isfinite, nan
from typing import Any

import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io.memory_store import Store
from lossmap.io.sampled import READ, SAMPLING, SPREAD, relative_error, sampling_note
from lossmap.io.surface import FAILED, TO_DO, Group, Surface
from lossmap.landscape.loss_sampling import SampledLossMap, Step
from lossmap.parallel.world import World

FIRST_READ = 512  # samples of the first round: of fewer the spread of the differences is not known well enough
GROWTH = 1.25  # at least, from round to round
MARGIN = 0.9  # of the tolerance, at which the next size aims
NEARLY_ALL = 0.8  # of the samples: from there on all are read


def middle_of(grid: Grid) -> int:
    """The flat index of the point nearest the network, which stands at 0; the first of several."""
    nearest = [int(np.abs(axis).argmin()) for axis in (grid.x, grid.y) if axis is not None]
    return nearest[0] if grid.y is None else nearest[1] * grid.x.size + nearest[0]


def corners_of(grid: Grid) -> list[int]:
    """The flat indices of the corners, of a line its ends, without the middle: a sample may be large at one alone."""
    rows = {0} if grid.y is None else {0, grid.y.size - 1}
    corners = {row * grid.x.size + column for row in rows for column in (0, grid.x.size - 1)}
    return sorted(corners - {middle_of(grid)})


def _whole_of(grid: Grid) -> list[int]:
    """The flat indices of the points that are read over all samples: middle and corners."""
    return [middle_of(grid), *corners_of(grid)]


def next_size(count: int, every: int, error: float, tolerance: float) -> int:
    """How many samples are read in the next round.

    count      that were read
    every      that there are
    error      relative, of these
    tolerance  relative
    """
    if not isfinite(error):
        wanted = float(every)
    else:  # the error is proportional to sqrt(1/count - 1/every)
        wanted = 1 / (1 / every + (1 / count - 1 / every) * (MARGIN * tolerance / error) ** 2)
    size = max(ceil(wanted), ceil(GROWTH * count))
    return every if size > NEARLY_ALL * every else size


def next_step(surface: Surface, measure: SampledLossMap, retry_failed: bool = False) -> Step | None:
    """What is read next, from what is known; None at the end. Raises ValueError where the middle has no finite loss."""
    grid, status = surface.grid, surface.status[measure.name].reshape(-1)
    middle, whole = middle_of(grid), _whole_of(grid)
    place = grid.point(middle)
    read_of = {split: surface[f"{split}_{READ}"].reshape(-1) for split in measure.samples}
    partly = {i for split, every in measure.samples.items() for i in whole if read_of[split][i] < every}
    to_do = [i for i in whole if status[i] == TO_DO or i in partly or (retry_failed and status[i] == FAILED)]
    if to_do:
        return Step(tuple(sorted(to_do)), {}, place, {})
    if status[middle] == FAILED:
        reason = next((f.reason for f in surface.failures if f.index == middle), "")
        raise ValueError(
            f"the loss at {place}, from which all others are told apart, failed: {reason}; --retry-failed measures it "
            "again"
        )
    base = {split: _means_at(surface, measure, split, middle) for split in measure.samples}
    if not all(isfinite(means[0]) for means in base.values()):
        raise ValueError(
            f"the loss at {place}, from which all others are told apart, is not finite: leave --loss-error out"
        )
    spreads = tuple((grid.point(i), _spreads_at(surface, measure, i)) for i in whole if status[i] != FAILED)
    others = np.flatnonzero((retry_failed | (status != FAILED)) & ~np.isin(np.arange(status.size), whole))
    read = {split: numbers[others] for split, numbers in read_of.items()}
    known = {split: int(np.nan_to_num(numbers).max(initial=0)) for split, numbers in read.items()}
    if not all(known.values()):
        reads = {split: _first_size(every) for split, every in measure.samples.items()}
        return Step(tuple(others.tolist()), reads, place, base, spreads) if others.size else None
    behind = np.zeros(others.size, dtype=bool)  # whatever the status: a round that was begun says that all are to do
    for split, numbers in read.items():
        behind |= ~(numbers >= known[split])
    if behind.any():  # of an earlier run, or interrupted
        return Step(tuple(others[behind].tolist()), known, place, base, spreads)
    reads = {}
    for split, every in measure.samples.items():
        error = error_of(surface, measure, split)
        enough = error <= measure.tolerance or known[split] == every
        reads[split] = known[split] if enough else next_size(known[split], every, error, measure.tolerance)
    if reads == known:  # where a round was begun, and is not needed any more, its points are to do by their status
        others = others[status[others] == TO_DO]
    return Step(tuple(others.tolist()), reads, place, base, spreads) if others.size else None


def _first_size(every: int) -> int:
    return every if NEARLY_ALL * every < FIRST_READ else FIRST_READ


def _means_at(surface: Surface, measure: SampledLossMap, split: str, index: int) -> tuple[float, ...]:
    names = ("loss", *measure.problems[split].metrics)
    return tuple(float(surface[f"{split}_{name}"].reshape(-1)[index]) for name in names)


def _spreads_at(surface: Surface, measure: SampledLossMap, index: int) -> dict[str, float]:
    return {split: float(surface[f"{split}_{SPREAD}"].reshape(-1)[index]) for split in measure.samples}


def error_of(surface: Surface, measure: SampledLossMap, split: str) -> float:
    """The largest error of a split at any point, relative to the range of its losses."""
    return relative_error(surface[f"{split}_loss"], surface[f"{split}_loss_error"])


def run_sampling(
    store: Store | None,
    world: World,
    measure: SampledLossMap,
    evaluate: Callable[[SampledLossMap, np.ndarray], Any],
    say: Callable[[str], None],
    retry_failed: bool = False,
) -> Any:
    """Read round after round until the errors are small, or the survey is stopped. All ranks call it.

    store     rank 0's, None on the others
    evaluate  evaluates points, given by their flat indices
    retry_failed  whether failed points are read again, once

    Returns what `evaluate` returned last; None where nothing was left to do.

    Raises on every rank what fails on rank 0 there.
    """
    before: Step | None = None
    result: Any = None
    while True:
        error: Exception | None = None
        step: Step | None = None
        try:  # what fails here fails on rank 0 alone; the others must not wait for it
            step = None if store is None else _begun(store, measure, say, retry_failed and before is None)
        except Exception as raised:
            error = raised
        step = world.broadcast(step)
        if error is not None:
            raise error
        if step is None or (before is not None and step.reads == before.reads):  # the latter was stopped
            return result
        result = evaluate(measure.with_step(step), np.array(step.points, dtype=np.int64))
        before = step


def _begun(store: Store, measure: SampledLossMap, say: Callable[[str], None], retry_failed: bool) -> Step | None:
    """The next step, its points to do anew in the store; None at the end."""
    surface = store.surface()
    step = next_step(surface, measure, retry_failed)
    if step is None or step.reads:
        store.put(SAMPLING, _group(surface, measure, step))
    if step is None:
        say(sampling_note(store.surface()) or "all samples were read at every point")
        return None
    store.reopen(measure.name, np.array(step.points, dtype=np.int64))
    return step


def _group(surface: Surface, measure: SampledLossMap, step: Step | None) -> Group:
    attributes: dict[str, Any] = {"tolerance": measure.tolerance, "seed": measure.seed, "error": nan}
    if step is None:
        errors = [error_of(surface, measure, split) for split in measure.samples]
        attributes["error"] = max((e for e in errors if isfinite(e)), default=nan)
    others = ~np.isin(np.arange(len(surface.grid)), _whole_of(surface.grid))
    for split, every in measure.samples.items():
        read = surface[f"{split}_{READ}"].reshape(-1)[others]
        count = step.reads[split] if step is not None else int(np.nanmax(read, initial=0)) or every
        attributes |= {f"{split}_{READ}": count, f"{split}_samples": every}
    return Group({}, attributes)
