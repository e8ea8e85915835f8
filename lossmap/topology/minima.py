"""The minima of a surface that is in a file, their basins, saddles and persistence: `find_minima`. NumPy alone.

A minimum counts where its persistence is beyond the error of the two values that it is the difference of: the bounds of
eigenvalues, twice the standard error of losses with chance in them, or spacings of numbers at other losses. These are a
lower bound of rounding: what is rounded within a loss is in no file, and the report says so. What lies between the
points of the grid is not seen: so minima are counted again on every second tick, and where the numbers differ the grid
is said to be too coarse.
"""

from __future__ import annotations

import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io.curvature_signs import NEGATIVE, POSITIVE, UNDECIDED, signs_of
from lossmap.io.field_errors import NOISE, ROUNDED, field_errors, precision_of
from lossmap.io.refined import is_measured, is_refined
from lossmap.io.surface import DONE, Surface
from lossmap.keywords import checked_keywords
from lossmap.topology.merge_tree import NONE, MergeTree, counted_tree, merge_tree
from lossmap.topology.result import Topology, real_minima

MIN_TICKS = 5  # of an axis with more than one tick, for minima on every second one to say something


@checked_keywords
def find_minima(
    surface: Surface, *, field: str | None = None, diagonal: bool = True, least: float = 0.0, label: str = ""
) -> Topology:
    """The minima of a surveyed line or plane, with basins, saddles, persistence and merge tree.

    Args:
        surface: of `survey`, of a command, or `read` from a file, one of the original tool too.
        field: which of its fields; the training loss, or the first loss that there is, if left out.
        diagonal: whether points that touch in a corner are neighbours: 8 rather than 4 in a plane. With 4, a narrow
            valley that runs aslant falls apart into minima.
        least: in the field's unit: minima of a smaller persistence are not counted, as those that errors explain.
        label: what the report calls the surface.

    Returns:
        A `Topology`; print it for the report.

    Raises:
        ValueError: for a field that is not there or has several numbers at a point, where no point has a finite value,
            and for `least` < 0.

    Example:
        >>> import numpy as np, lossmap
        >>> ticks = np.linspace(-1, 1, 21)
        >>> bowl = lossmap.Surface(lossmap.Grid(ticks, ticks), {"train_loss": np.add.outer(ticks**2, ticks**2)})
        >>> lossmap.find_minima(bowl).count
        1

    """
    if not least >= 0.0:
        raise ValueError(f"least must be >= 0; got {least!r}")
    name = field or _default_field(surface)
    if is_refined(surface):
        measured, points = int(is_measured(surface).sum()), len(surface.grid)
        raise ValueError(
            f"minima are counted on whole grids, and of this refined surface {measured:,} of {points:,} points are "
            "measured: run its survey again without --refine"
        )
    values = surface[name]
    if values.shape != surface.grid.shape:
        raise ValueError(f"the field {name!r} has several numbers at a point; name one that has a single one")
    values = np.where((surface.status_of(name) == DONE) & np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        raise ValueError(f"no point of the field {name!r} has a finite value: there is nothing to look for minima in")
    errors, kind = field_errors(surface, name, values)
    whole = merge_tree(values, diagonal=diagonal)
    persistence = _above(values, whole.minimum, whole.saddle)
    error = _errors_of_differences(values, errors, kind, whole)
    tree = counted_tree(whole, values, real_minima(persistence, error, kind, least))
    error = np.where(np.isinf(persistence), _errors_of_differences(values, errors, kind, tree), error)
    sign, saddle_sign, index, saddle_index = _curvature(surface, tree)
    grid = surface.grid
    return Topology(
        field=name,
        unit=surface.about[name].unit,
        x=grid.x,
        y=np.empty(0) if grid.y is None else grid.y,
        values=values,
        basin=tree.basin,
        minimum=tree.minimum,
        saddle=tree.saddle,
        into=tree.into,
        exit=tree.exit,
        persistence=persistence,
        depth=_above(values, tree.minimum, tree.exit),
        error=error,
        error_kind=kind,
        precision=precision_of(surface, name) if kind == ROUNDED else "",
        area=_areas(grid, tree.basin, len(tree.minimum)),
        at_edge=_beside_nothing(values).reshape(-1)[tree.minimum],
        sign=sign,
        saddle_sign=saddle_sign,
        index=index,
        saddle_index=saddle_index,
        diagonal=diagonal,
        least=float(least),
        missing=int(np.isnan(values).sum()),
        coarse=_coarse_counts(values, errors, kind, diagonal, least),
        label=label,
    )


def _default_field(surface: Surface) -> str:
    losses = [name for name in surface.fields if name.endswith("_loss")]
    if "train_loss" in losses:
        return "train_loss"
    if not losses:
        names = ", ".join(n for n in surface.fields if not n.endswith(("_seconds", "_rank"))) or "none"
        raise ValueError(f"this surface holds no loss; name a field. There are: {names}")
    return losses[0]


def _above(values: np.ndarray, minimum: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How far each end, a point, lies above its minimum; infinite where there is no end."""
    flat = values.reshape(-1)
    rises: np.ndarray = np.where(ends == NONE, np.inf, flat[ends] - flat[minimum])
    return rises


def _errors_of_differences(values: np.ndarray, errors: np.ndarray, kind: str, tree: MergeTree) -> np.ndarray:
    """(minima,) the error of saddle minus minimum; of a minimum that ends at none, of the pass out of its basin."""
    flat = errors.reshape(-1)
    ends = np.where(tree.saddle == NONE, tree.exit, tree.saddle)
    ends = np.where(ends == NONE, int(np.nanargmax(values)), ends)
    both = np.stack([flat[tree.minimum], flat[ends]])
    error: np.ndarray = np.sqrt((both**2).sum(axis=0)) if kind == NOISE else both.sum(axis=0)
    return error


def _areas(grid: Grid, basin: np.ndarray, count: int) -> np.ndarray:
    """(count,) the share of each basin in the part of the window that was measured."""
    weights = _widths(grid.x)
    if grid.y is not None:
        weights = _widths(grid.y)[:, None] * weights
    known = basin != NONE
    sums = np.bincount(basin[known], weights=np.broadcast_to(weights, basin.shape)[known], minlength=count)
    shares: np.ndarray = sums / sums.sum()
    return shares


def _widths(ticks: np.ndarray) -> np.ndarray:
    """The part of an axis that is nearest to each tick."""
    if ticks.size == 1:
        return np.ones(1)
    steps = np.abs(np.diff(ticks))
    widths: np.ndarray = (np.append(steps, 0.0) + np.append(0.0, steps)) / 2.0
    return widths


def _beside_nothing(values: np.ndarray) -> np.ndarray:
    """Of the grid's shape: whether a point lies on the edge of the window, or touches a missing one."""
    thick = [n > 1 for n in values.shape]
    missing = np.pad(np.isnan(values), [(int(t), int(t)) for t in thick], constant_values=True)
    found = np.zeros(values.shape, dtype=bool)
    for shift in np.ndindex(*(3 if t else 1 for t in thick)):
        found |= missing[tuple(slice(s, s + n) for s, n in zip(shift, values.shape, strict=True))]
    return found


def _curvature(surface: Surface, tree: MergeTree) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, np.ndarray]:
    """Sign of the smallest Hessian eigenvalue and least number of negative ones, at the minima and at the saddles."""
    if "min_eig" not in surface:
        none = np.empty(0, dtype=np.int64)
        return (), (), none, none
    signs = signs_of(surface)
    words = np.full(len(surface.grid), "", dtype=object)
    index = np.full(len(surface.grid), NONE)
    for word in (NEGATIVE, UNDECIDED, POSITIVE):
        words[signs[word].reshape(-1)] = word
    index[words != ""] = 0
    index[words == NEGATIVE] = 1
    if "bottom_eig" in surface and "bottom_eig_error" in surface:
        negative = surface["bottom_eig"] + surface["bottom_eig_error"] < 0.0
        index = np.where(index == NONE, NONE, np.maximum(index, negative.sum(axis=-1).reshape(-1)))
    has_saddle = tree.saddle != NONE
    at_saddles = np.where(has_saddle, words[tree.saddle], "")
    return (
        tuple(map(str, words[tree.minimum])),
        tuple(map(str, at_saddles)),
        index[tree.minimum],
        np.where(has_saddle, index[tree.saddle], NONE),
    )


def _coarse_counts(values: np.ndarray, errors: np.ndarray, kind: str, diagonal: bool, least: float) -> tuple[int, ...]:
    """The number of real minima on every second tick, from the first and from the second one on; () if too small."""
    if any(1 < n < MIN_TICKS for n in values.shape) or max(values.shape) == 1:
        return ()
    counts = []
    for first in (0, 1):
        part = tuple(slice(first if n > 1 else 0, None, 2) for n in values.shape)
        own, own_errors = values[part], errors[part]
        if np.isnan(own).all():
            return ()
        tree = merge_tree(own, diagonal=diagonal)
        error = _errors_of_differences(own, own_errors, kind, tree)
        counts.append(int(real_minima(_above(own, tree.minimum, tree.saddle), error, kind, least).sum()))
    return tuple(counts)
