"""The second pass of an eigenmap: choose, solve again, count, and keep the better of two answers.

All of it is made anew from what the file holds, so that a survey killed at any moment goes on here: the choice from the
seed, the misses from the two sets of fields, and the count of misses from the report, which is written before anything
is replaced.
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
    solve: Callable[[np.ndarray], Any],
    say: Callable[[str], None],
    *,
    fields: tuple[Any, ...],
    settings: Mapping[str, Any],
    tol: float,
    seed: int,
) -> None:
    """Solve points again until the audit is over or stopped; on rank 0 record the result. All ranks call it.

    store             rank 0's, None on the others
    solve             solves points, given by their flat indices, once more
    say               prints a line on rank 0
    fields, settings  of the measure that does so
    tol               relative; beyond it an eigenvalue counts as missed
    seed              of the random choice

    Raises on every rank what fails on rank 0 there.
    """
    before: np.ndarray | None = None
    while True:
        error: Exception | None = None
        points: np.ndarray | None = None
        try:  # what fails here fails on rank 0 alone; the others must not wait for it
            points = pending(store, tol, seed)
        except Exception as raised:
            error = raised
        points = world.broadcast(points)
        if error is not None:
            raise error
        if points is None or (before is not None and np.array_equal(points, before)):
            return  # the first solution is not complete, or the survey was interrupted
        if store is not None:
            store.declare(MEASURE, fields, settings, np.union1d(attempted(store.surface()), points))
        if points.size == 0:
            break
        solve(points)
        before = points
    if store is not None:
        conclude(store, say, tol, seed)


def pending(store: Store | None, tol: float, seed: int) -> np.ndarray | None:
    """The flat indices that are to be solved again next; None while the first solution has points to do."""
    if store is None:  # another rank than 0, which is told the answer
        return None
    surface = store.surface()
    if surface.outcome_of(FIRST) == "unfinished":
        return None
    if "audit" in surface.attributes:
        return np.zeros(0, dtype=np.int64)
    return audit_of(surface, tol, seed).pending()


def attempted(surface: Surface) -> np.ndarray:
    """The flat indices that have been solved again, or have failed."""
    return np.flatnonzero(surface.status[MEASURE].reshape(-1))


def audit_of(surface: Surface, tol: float, seed: int) -> Audit:
    """The two solutions of each point, side by side."""
    points = len(surface.grid)
    cheap = {n: surface[n].reshape(points, -1) for n in surface.measures[FIRST]}
    again = {n: surface[f"audit_{n}"].reshape(points, -1) for n in cheap}
    return Audit(
        surface.grid, cheap, again, surface.status[MEASURE].reshape(-1), surface.planned_points(FIRST), tol, seed
    )


def conclude(store: Store, say: Callable[[str], None], tol: float, seed: int) -> None:
    """Write the report, then replace eigenvalues where the second solution is more extreme; idempotent."""
    surface = store.surface()
    both = audit_of(surface, tol, seed)
    if "audit" not in surface.attributes:
        report = both.report()
        store.note(
            audit=report,
            audit_points=report["audited"],
            audit_candidates=report["candidates"],
            audit_misses=report["misses"],
            audit_miss_bound=report["upper_bound"],
        )
        say(audit.sentence(report))
    seconds, rank = (surface[f"{FIRST}_{what}"].reshape(-1) for what in ("seconds", "rank"))
    for i in np.flatnonzero(both.status == audit.DONE):
        cheap = {n: v[i] for n, v in both.cheap.items()}
        better = audit.better(cheap, {n: v[i] for n, v in both.audited.items()})
        if any(not np.array_equal(better[n], cheap[n], equal_nan=True) for n in cheap):
            store.record(FIRST, int(i), better, float(seconds[i]), int(rank[i]))
