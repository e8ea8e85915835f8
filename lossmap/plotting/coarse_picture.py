"""A survey that was left half way, as it is drawn: on the largest grid of which all points are there.

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
LEAST_TICKS = 3  # along each axis, of a picture


def with_coarse_picture(surface: Surface) -> Surface:
    """The surface at the points of the largest grid within its own that are all there, where some are still to do.

    As it is, where fewer points are to do than that grid would leave out that are there, and where its points were
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
    coarse = steps < first_missing
    others = [tuple(j for j in range(coarse.ndim) if j != i) for i in range(coarse.ndim)]
    ticks = [np.asarray(coarse.any(axis=axes)) for axes in others]
    if not coarse.any():
        return surface
    drawn = _complete_ticks(to_do, ticks)
    left_out = (~to_do).sum() - np.prod([axis.size for axis in drawn])
    if min(axis.size for axis in drawn) < LEAST_TICKS or to_do.sum() < left_out:
        return surface
    return _at(surface, drawn, f"{to_do.sum():,} of {to_do.size:,} points are to do")


def _complete_ticks(to_do: np.ndarray, coarse: list[np.ndarray]) -> list[np.ndarray]:
    """The ticks of the largest grid around a coarse one of which no point is to do: indices along y and x, or x.

    to_do   (y, x) or (x,); coarse: which ticks a grid has that is all there, along each axis

    A finer step adds line after line: those that are complete are drawn, between lines of the coarser grid.
    """
    if to_do.ndim == 1:
        return [np.flatnonzero(~to_do)]
    rows = ~to_do[:, coarse[1]].any(axis=1)
    columns = ~to_do[coarse[0]].any(axis=0)
    rows_first = (rows, ~to_do[rows].any(axis=0))
    columns_first = (~to_do[:, columns].any(axis=1), columns)
    largest = max(rows_first, columns_first, key=lambda ticks: int(ticks[0].sum()) * int(ticks[1].sum()))
    return [np.flatnonzero(axis) for axis in largest]


def _at(surface: Surface, axes: list[np.ndarray], what: str) -> Surface:
    """The surface at these ticks, (y, x) or (x,)."""
    grid, where = surface.grid, np.ix_(*axes)
    shown = Grid(grid.x[axes[-1]], None if grid.y is None else grid.y[axes[0]])
    at = np.full(len(grid), -1)
    at[np.arange(len(grid)).reshape(grid.shape)[where].reshape(-1)] = np.arange(len(shown))
    drawn = f"the {len(shown):,} that are there"
    if grid.y is not None:
        drawn = f"{shown.shape[1]}\N{MULTIPLICATION SIGN}{shown.shape[0]} of them, which are all there"
    attributes = {k: v for k, v in surface.attributes.items() if k != "shard_points"}
    return replace(
        surface,
        grid=shown,
        fields={name: values[where] for name, values in surface.fields.items()},
        status={name: states[where] for name, states in surface.status.items()},
        failures=tuple(replace(f, index=int(at[f.index])) for f in surface.failures if at[f.index] >= 0),
        parts={},
        recent={},
        attributes=attributes | {DRAWN_OF: f"unfinished: {what}; drawn at {drawn}"},
    )


def coarse_note(surface: Surface) -> str | None:
    """What is said of a surface that is drawn at a part of its points; None for any other."""
    note = surface.attributes.get(DRAWN_OF)
    return None if note is None else str(note)


__all__ = ["DRAWN_OF", "coarse_note", "with_coarse_picture"]
