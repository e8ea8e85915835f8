"""The second pass of an eigenmap: choose, solve again, count, and keep the better of two answers.

All of it is made anew from what the file holds, so that a survey killed at any moment goes on here: the choice from the
seed, the misses from the two sets of fields, and what the first look had found from the report that is written before
anything is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lossmap.io.memory_store import Store
from lossmap.io.surface import Surface
from lossmap.landscape import audit
from lossmap.landscape.audit import Audit
from lossmap.parallel.world import World

MEASURE, FIRST = "audit", "eigen"


def run_audit(
    store: Store | None,
    world: World,
    walk: Callable[[np.ndarray], Any],
    say: Callable[[str], None],
    *,
    fields: tuple[Any, ...],
    told: Mapping[str, Any],
    tol: float,
    seed: int,
) -> None:
    """Solve points again until the audit is over or stopped; on rank 0 write down what was found. All ranks call it.

    store         rank 0's
    walk          solves points, given by their flat indices, once more
    fields, told  of the measure that does so
    """
    before: np.ndarray | None = None
    while True:
        error: Exception | None = None
        points: np.ndarray | None = None
        try:  # what fails here fails on rank 0 alone; the others must not wait for it
            points = None if store is None else wanted(store, tol, seed)
        except Exception as raised:
            error = raised
        points = world.broadcast(points)
        if error is not None:
            raise error
        if points is None or (before is not None and np.array_equal(points, before)):
            return  # the first look is not complete, or a stop was asked for
        if store is not None:
            store.declare(MEASURE, fields, told, np.union1d(settled(store.surface()), points))
        if points.size == 0:
            break
        walk(points)
        before = points
    if store is not None:
        settle(store, say, tol, seed)


def wanted(store: Store, tol: float, seed: int) -> np.ndarray | None:
    """The flat indices that are to be solved again next; None while the first look has points to do."""
    surface = store.surface()
    if surface.outcome_of(FIRST) == "unfinished":
        return None
    if "audit" in surface.attributes:
        return np.zeros(0, dtype=np.int64)
    return standing(surface, tol, seed).wanted()


def settled(surface: Surface) -> np.ndarray:
    """The flat indices that have been solved again, or have failed."""
    return np.flatnonzero(surface.status[MEASURE].reshape(-1))


def standing(surface: Surface, tol: float, seed: int) -> Audit:
    """The two looks at each point, side by side."""
    points = len(surface.grid)
    cheap = {n: surface[n].reshape(points, -1) for n in surface.measures[FIRST]}
    again = {n: surface[f"audit_{n}"].reshape(points, -1) for n in cheap}
    return Audit(surface.grid, cheap, again, surface.status[MEASURE].reshape(-1), surface.wanted(FIRST), tol, seed)


def settle(store: Store, say: Callable[[str], None], tol: float, seed: int) -> None:
    """Write the report, then replace what the second look found better. Done twice, it changes nothing."""
    surface = store.surface()
    both = standing(surface, tol, seed)
    if "audit" not in surface.attributes:
        found = both.report()
        store.note(
            audit=found,
            audit_points=found["audited"],
            audit_misses=found["misses"],
            audit_miss_bound=found["upper_bound"],
        )
        say(audit.sentence(found))
    seconds, rank = (surface[f"{FIRST}_{what}"].reshape(-1) for what in ("seconds", "rank"))
    for i in np.flatnonzero(both.status == audit.DONE):
        kept = {n: v[i] for n, v in both.cheap.items()}
        better = audit.better(kept, {n: v[i] for n, v in both.audited.items()})
        if any(not np.array_equal(better[n], kept[n], equal_nan=True) for n in kept):
            store.record(FIRST, int(i), better, float(seconds[i]), int(rank[i]))
