"""Between the measured points of a map: a cubic spline through them, for the picture alone.

The spline is the product of two not-a-knot cubic splines along the axes (de Boor, A Practical Guide to Splines, 1978,
chapter 4), of whatever a contour is a level of: log10 of the loss on a log scale, the loss itself on a linear one. It
passes through every measured value. Three things keep it from inventing what nobody measured:

    holes      a cell with a corner that has no value is left out, and the cells around it turn to bilinear, so that no
               value is taken from a hole
    overshoot  a cell reaches beyond its corners only as far as the bends at both ends of it agree on: a spike, a step
               or a kink makes no valley beside it
    nothing    is stored: files, reports and readouts hold the measured values

Price: two products of matrices, some milliseconds for 51x51 points with 4 to an interval. NumPy alone: importing SciPy
takes longer than the whole picture.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
AUTOMATIC = 200  # intervals along an axis that a picture has at least, where nothing is set
MAX_AUTOMATIC = 8  # points to an interval, where nothing is set
MAX_INTERP = 64  # points to an interval
OVERSHOOT = 2.0  # times what a parabola with the smaller bend of both ends reaches beyond its ends
NONE = "none"  # in place of the number of points to an interval: straight between the points


def checked_interp(interp: int | str | None) -> int | None:
    """Points to an interval, 1 for none, or None for what fits; from what a caller gave.

    Raises ValueError for anything but a whole number from 1 to MAX_INTERP, `none` and None.
    """
    if interp is None:
        return None
    text = str(interp).strip().lower()
    if text == NONE:
        return 1
    if not text.isdecimal() or not 1 <= int(text) <= MAX_INTERP:
        raise ValueError(f"--interp must be a whole number from 1 to {MAX_INTERP}, or none; got {interp}")
    return int(text)


def factor_of(shape: tuple[int, ...], interp: int | None, enough: int = AUTOMATIC) -> int:
    """Points to an interval of a grid of this shape, (ny, nx); 1 where one axis has a single tick.

    interp  as set; None: as many as make `enough` intervals along the longer axis
    """
    if min(shape) < 2:
        return 1
    if interp is not None:
        return interp
    return int(np.clip(-(-enough // (max(shape) - 1)), 1, MAX_AUTOMATIC))


def refine_ticks(ticks: Array, factor: int) -> Array:
    """The ticks, (n,), with `factor` equal steps in place of each interval, (factor (n - 1) + 1,)."""
    at = np.arange(factor * (ticks.size - 1) + 1)
    return np.asarray(np.interp(at, factor * np.arange(ticks.size), ticks))


def spline_matrix(ticks: Array, factor: int) -> Array:
    """The matrix from values at the ticks, (n,), to their not-a-knot spline at the refined ticks, (m, n).

    Three values are joined by a parabola, two by a straight line.
    """
    linear, interval, share = _linear(ticks, factor)
    h = np.diff(ticks)
    bends = _second_derivatives(ticks)
    left, right = (1 - share) ** 3 - (1 - share), share**3 - share
    scale = h[interval] ** 2 / 6
    return np.asarray(
        linear + (scale * left)[:, None] * bends[interval] + (scale * right)[:, None] * bends[interval + 1]
    )


def refine(x: Array, y: Array, values: Array, factor: int) -> Array:
    """The values, (ny, nx), NaN where there is none, between the points: (factor (ny - 1) + 1, factor (nx - 1) + 1).

    x, y    the ticks, (nx,) and (ny,), ascending or descending, two or more
    factor  steps to an interval

    A refined point is NaN where each cell that it touches has a corner without a value.
    """
    known = np.isfinite(values)
    if factor == 1:
        return np.where(known, values, np.nan)
    if not known.any():
        return np.full((factor * (y.size - 1) + 1, factor * (x.size - 1) + 1), np.nan)
    filled = _filled(values)
    (along_x, cell_x, _), (along_y, cell_y, _) = _linear(x, factor), _linear(y, factor)
    straight = along_y @ filled @ along_x.T
    smooth = spline_matrix(y, factor) @ filled @ spline_matrix(x, factor).T
    low, high = _limits(x, y, filled)
    cell = np.ix_(cell_y, cell_x)
    smooth = np.clip(smooth, low[cell], high[cell])
    weight = along_y @ (~_dilated(~known)).astype(float) @ along_x.T
    fine = weight * smooth + (1 - weight) * straight
    fine[~_touches_whole_cell(known, factor)] = np.nan
    fine[::factor, ::factor] = np.where(known, values, np.nan)
    return np.asarray(fine)


def value_at(x: Array, y: Array, values: Array, at_x: Array, at_y: Array) -> Array:
    """The values, (ny, nx), at points (k,), linearly between the nearest ones; NaN beside a hole.

    A point beyond the ticks has the value of the nearest one on the border.
    """
    (column, share_x), (row, share_y) = _place(x, at_x), _place(y, at_y)
    low = values[row, column] * (1 - share_x) + values[row, column + 1] * share_x
    high = values[row + 1, column] * (1 - share_x) + values[row + 1, column + 1] * share_x
    return np.asarray(low * (1 - share_y) + high * share_y)


def _place(ticks: Array, at: Array) -> tuple[Array, Array]:
    """The interval of each entry of `at`, (k,), and the share of it that lies before the entry."""
    index = np.arange(ticks.size, dtype=np.float64)
    order = np.argsort(ticks)
    position = np.interp(at, ticks[order], index[order])
    interval = np.clip(position.astype(int), 0, ticks.size - 2)
    return interval, position - interval


def _linear(ticks: Array, factor: int) -> tuple[Array, Array, Array]:
    """The matrix of linear interpolation, (m, n); for each refined tick its interval, (m,), and the share of it."""
    n = ticks.size
    at = np.arange(factor * (n - 1) + 1)
    interval = np.minimum(at // factor, n - 2)
    share = at / factor - interval
    matrix = np.zeros((at.size, n))
    matrix[at, interval] = 1 - share
    matrix[at, interval + 1] = share
    return matrix, interval, share


def _second_derivatives(ticks: Array) -> Array:
    """The matrix from values at the ticks to the second derivatives of their not-a-knot spline there, (n, n)."""
    n, h = ticks.size, np.diff(ticks)
    if n == 2:
        return np.zeros((2, 2))
    left, right = np.zeros((n, n)), np.zeros((n, n))
    for i in range(1, n - 1):
        left[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i, i - 1 : i + 2] = 6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]
    if n == 3:  # a parabola: the second derivative is constant
        left[0, :2] = left[2, 1:] = 1, -1
    else:  # the third derivative goes on through the first and the last inner tick
        left[0, :3] = h[1], -(h[0] + h[1]), h[0]
        left[-1, -3:] = h[-1], -(h[-2] + h[-1]), h[-2]
    return np.asarray(np.linalg.solve(left, right))


def _limits(x: Array, y: Array, values: Array) -> tuple[Array, Array]:
    """How low and how high each cell may reach, (ny - 1, nx - 1) both, of values without holes."""
    corners = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]])
    valley_x, hill_x = _reach(x, values)
    valley_y, hill_y = _reach(y, values.T)
    valley = np.maximum(valley_x[:-1], valley_x[1:]) + np.maximum(valley_y[:-1], valley_y[1:]).T
    hill = np.maximum(hill_x[:-1], hill_x[1:]) + np.maximum(hill_y[:-1], hill_y[1:]).T
    return corners.min(0) - OVERSHOOT * valley, corners.max(0) + OVERSHOOT * hill


def _reach(ticks: Array, values: Array) -> tuple[Array, Array]:
    """How far a parabola with the smaller bend of both ends reaches below and above each interval, (rows, n - 1)."""
    h = np.diff(ticks)
    if ticks.size == 2:
        return np.zeros((len(values), 1)), np.zeros((len(values), 1))
    slopes = np.diff(values, axis=1) / h
    bends = 2 * np.diff(slopes, axis=1) / (h[:-1] + h[1:])
    bends = np.concatenate([bends[:, :1], bends, bends[:, -1:]], axis=1)
    first, second = bends[:, :-1] * h**2 / 8, bends[:, 1:] * h**2 / 8
    return np.clip(np.minimum(first, second), 0, None), np.clip(-np.maximum(first, second), 0, None)


def _filled(values: Array) -> Array:
    """The values with holes continued from around them, by parabolas where three points lie in a row."""
    filled = np.where(np.isfinite(values), values, np.nan)
    low, high = np.nanmin(filled), np.nanmax(filled)
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    while np.isnan(filled).any():
        total, count = np.zeros(filled.shape), np.zeros(filled.shape)
        for step in steps:
            near, far, beyond = (_shifted(filled, (k * step[0], k * step[1])) for k in (1, 2, 3))
            guess = np.where(np.isnan(far), near, 2 * near - far)
            guess = np.where(np.isnan(beyond), guess, 3 * (near - far) + beyond)
            total += np.nan_to_num(guess)
            count += ~np.isnan(guess)
        ring = np.isnan(filled) & (count > 0)
        filled[ring] = np.clip(total[ring] / count[ring], low, high)
    return filled


def _shifted(values: Array, step: tuple[int, int]) -> Array:
    """What stands at a step from each entry, NaN beyond the border."""
    i, j = step
    padded = np.pad(values, 3, constant_values=np.nan)
    return padded[3 + i : 3 + i + values.shape[0], 3 + j : 3 + j + values.shape[1]]


def _dilated(mask: Array) -> Array:
    """The entries of a mask and all that touch them."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.asarray(np.logical_or.reduce([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]))


def _touches_whole_cell(known: Array, factor: int) -> Array:
    """Which refined points touch a cell whose four corners are known."""
    whole = known[:-1, :-1] & known[:-1, 1:] & known[1:, :-1] & known[1:, 1:]
    fine = np.pad(np.kron(whole, np.ones((factor, factor), dtype=bool)), 1)
    return np.asarray(fine[:-1, :-1] | fine[:-1, 1:] | fine[1:, :-1] | fine[1:, 1:])
