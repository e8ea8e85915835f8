"""A survey that was left half way, as it is drawn: on the finest grid of which all points are there.

Points of a loss surface are taken coarse to fine (`geometry.grid.halving_steps`): what is measured before the end is a
picture of the whole window. NumPy alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lossmap.geometry.grid import Grid, halving_steps
from lossmap.io.refined import is_refined
from lossmap.io.surface import TO_DO, Surface

DRAWN_OF = "drawn_of"  # attribute of a surface that is drawn at a part of its points
LEAST_TICKS = 5  # along each axis, of a picture


def with_coarse_picture(surface: Surface) -> Surface:
    """The surface at the points of a coarser grid that are all there, where many of its own are still to do.

    As it is, where fewer points are to do than a coarser grid would leave out that are there, and where its points were
    taken in another order.
    """
    if is_refined(surface) or not surface.status or DRAWN_OF in surface.attributes:
        return surface
    begun = [s for s in surface.status.values() if s.any()]
    if not begun or any(s.all() for s in begun) or min(surface.grid.shape) < LEAST_TICKS:
        return surface
    to_do = np.logical_or.reduce([s == TO_DO for s in begun])
    steps = halving_steps(surface.grid.shape)
    first_missing = int(steps[to_do].min())
    kept = steps < first_missing
    axes = [np.flatnonzero(kept.any(axis=tuple(j for j in range(kept.ndim) if j != i))) for i in range(kept.ndim)]
    if min((axis.size for axis in axes), default=0) < LEAST_TICKS or to_do.sum() < (~to_do & ~kept).sum():
        return surface
    return _at(surface, axes, f"{to_do.sum():,} of {to_do.size:,} points are to do")


def _at(surface: Surface, axes: list[np.ndarray], what: str) -> Surface:
    """The surface at these ticks, (y, x) or (x,)."""
    grid, where = surface.grid, np.ix_(*axes)
    shown = Grid(grid.x[axes[-1]], None if grid.y is None else grid.y[axes[0]])
    at = np.full(len(grid), -1)
    at[np.arange(len(grid)).reshape(grid.shape)[where].reshape(-1)] = np.arange(len(shown))
    shape = " x ".join(str(n) for n in reversed(shown.shape))
    attributes = {k: v for k, v in surface.attributes.items() if k != "shard_points"}
    return replace(
        surface,
        grid=shown,
        fields={name: values[where] for name, values in surface.fields.items()},
        status={name: states[where] for name, states in surface.status.items()},
        failures=tuple(replace(f, index=int(at[f.index])) for f in surface.failures if at[f.index] >= 0),
        parts={},
        recent={},
        attributes=attributes | {DRAWN_OF: f"unfinished: {what}; drawn at {shape} of them, which are all there"},
    )


def coarse_note(surface: Surface) -> str | None:
    """What is said of a surface that is drawn at a part of its points; None for any other."""
    note = surface.attributes.get(DRAWN_OF)
    return None if note is None else str(note)


__all__ = ["DRAWN_OF", "coarse_note", "with_coarse_picture"]
