"""A surface on a finer grid, by a cubic spline through its points: for pictures, since nothing was measured between.

Letters: (y, x) the grid. Price: one solve of tridiagonal systems along each axis.
Source: de Boor, A Practical Guide to Splines (1978), tensor products; `scipy.interpolate.RectBivariateSpline`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.interpolate import RectBivariateSpline

from lossmap.geometry.grid import Grid
from lossmap.io.surface import Surface


def refined(surface: Surface, name: str, count: int) -> Surface:
    """One field of a plane at `count` ticks along each axis, between the same ends.

    Raises ValueError for a line, fewer than two ticks, and where points are missing: nothing stands between them.
    """
    grid = surface.grid
    if grid.y is None or min(grid.shape) < 2:
        raise ValueError("only a plane can be interpolated; this file holds a line")
    if count < 2:
        raise ValueError(f"--interp must be >= 2 points along an axis; got {count}")
    values = surface[name]
    if not np.isfinite(values).all():
        missing = int((~np.isfinite(values)).sum())
        raise ValueError(f"of {name} {missing} of {values.size} points are missing or not finite; leave --interp out")
    rows, columns = np.argsort(grid.y), np.argsort(grid.x)
    spline = RectBivariateSpline(
        grid.y[rows],
        grid.x[columns],
        values[np.ix_(rows, columns)],
        kx=min(3, len(rows) - 1),
        ky=min(3, len(columns) - 1),
    )
    x, y = np.linspace(grid.x.min(), grid.x.max(), count), np.linspace(grid.y.min(), grid.y.max(), count)
    fields = {name: spline(y, x)}
    return replace(
        Surface(Grid(x, y), fields, {name: surface.about[name]}), attributes=surface.attributes, groups=surface.groups
    )
