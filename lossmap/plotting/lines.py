"""Pictures of a line: loss and accuracy on two axes, eigenvalues with their bounds, several files in one frame.

What colours tell apart, dashes or marks tell apart as well, so that a picture can be read in grey: each file has its
own dashes, and what is measured on the right axis has squares, as the label of that axis has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lossmap.plotting.contour_levels import suits_log
from lossmap.plotting.maps import MISSING_CELLS, MISSING_MARKS, missing_points
from lossmap.plotting.own_axes import type_of_ticks, whole_figure
from lossmap.plotting.round_ticks import set_round_ticks
from lossmap.plotting.style import BLUE, DARK, GREEN, PURPLE, RED

Array = np.ndarray
COLOURS = (BLUE, RED, GREEN, PURPLE, "#b8860b", "#3b3b3b")
# Of several files one after the other: solid, dashed, dotted, dash and dot, long dashes, dash and two dots.
DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 2)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
)
UNSEEN = 2.3e-287  # absolute, below which matplotlib's linear axes show all values as 0, between -0.05 and 0.05
FARTHEST = 1e307  # absolute, beyond which ends and margins of axes leave double precision
NARROW = 2.4  # inches across, of a panel with its labels, below which more than a few ticks would touch
MAX_SQUARES = 12  # on a curve
MAX_MARKED_POINTS = 25  # on a curve with more, points have no marks


def dashes(index: int) -> Any:
    """The dashes of the file of this number, as matplotlib's linestyle: others with each round of the colours."""
    return DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def on_right(label: str) -> str:
    """The label of a right axis, which names the marks of its curves; as a sign it looked like a missing letter."""
    return f"{label}, squares"


def curve(
    axes: Axes,
    x: Array,
    values: Array,
    *,
    colour: str,
    label: str,
    dashed: bool = False,
    style: Any = "-",
    squares: bool = False,
    thin: bool = False,
) -> None:
    """One field along the line, x and values (n,), broken where a value is missing.

    dashed   as what stands beside another field of the same colour
    style    the dashes where it is not, as `dashes`
    squares  whether it is measured on the right axis
    thin     as the second field of a file, in its look
    """
    order = np.argsort(x)
    face = colour
    if dashed:
        style, face = "--", "white"
    if squares:
        every = max(1, -(-x.size // MAX_SQUARES))
        look: dict[str, Any] = {
            "marker": "s",
            "markersize": 2.8,
            "markevery": (every // 2, every),
            "markeredgewidth": 0.7,
        }
        face = "white"
    else:
        look = {"marker": "o" if x.size <= MAX_MARKED_POINTS else None, "markersize": 2.4}
    if thin:
        look |= {"linewidth": 0.5, "markersize": 1.4}
    known = np.where(np.isfinite(values), values, np.nan)[order]
    axes.plot(x[order], known, linestyle=style, markerfacecolor=face, color=colour, label=label, **look)
    alone = _without_neighbours(known)
    if alone.any() and (squares or look["marker"] is None):
        look |= {"marker": look["marker"] or "o", "markevery": None}
        axes.plot(x[order][alone], known[alone], linestyle="", markerfacecolor=face, color=colour, **look)


def _without_neighbours(values: Array) -> Array:
    """Which values, (n,), stand between two that are missing, so that a curve does not show them; NaN is missing."""
    missing = np.pad(np.isnan(values), 1, constant_values=True)
    return np.asarray(~missing[1:-1] & missing[:-2] & missing[2:])


def band(axes: Axes, x: Array, low: Array, high: Array, colour: str) -> None:
    """The area between two bounds, (n,) each, shaded lightly."""
    order = np.argsort(x)
    axes.fill_between(x[order], low[order], high[order], color=colour, alpha=0.2, linewidth=0.0)


def mark_missing(axes: Axes, x: Array, values: Array, status: Array) -> list[Artist]:
    """Mark the points without a value along the line, each reason in its way; all arrays are (n,). For the legend."""
    handles: list[Artist] = []
    borders = _borders(x)
    for word, mask in missing_points(values, status).items():
        look = MISSING_CELLS[word]
        mark = MISSING_MARKS.get(word)
        label = word
        if mark is not None:
            look = {"facecolor": "0.94", "edgecolor": "none"}  # white bands could not be seen on a white line's frame
            label = f"{mark[1]} {word}"
            middle = np.full(int(mask.sum()), 0.5)
            axes.plot(
                x[mask], middle, mark[0], color=DARK, markerfacecolor="none", markersize=4, markeredgewidth=0.7,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        for i in np.flatnonzero(mask):
            axes.axvspan(*borders[i], zorder=0.2, **{**look, "linewidth": 0.0})
        handles.append(Patch(**{**look, "linewidth": 0.0}, label=label))
    return handles


def mark_below(axes: Axes, x: Array, values: Array, colour: str, size: float = 4.5) -> list[Artist]:
    """Mark, at the lower edge of a logarithmic axis, the points that it cannot show, x and values (n,). For the legend.

    A loss of 0 is the best there is: without a mark the curve would leave the panel, and nothing tell where to.
    """
    mask = np.isfinite(values) & (values <= 0)
    if axes.get_yscale() != "log" or not mask.any():
        return []
    look: dict[str, Any] = {"marker": "v", "markerfacecolor": "none", "linestyle": ""}
    edge = axes.get_xaxis_transform()
    axes.plot(
        x[mask],
        np.zeros(int(mask.sum())),
        color=colour,
        markersize=size,
        transform=edge,
        clip_on=False,
        zorder=3,
        **look,
    )
    what = "0" if (values[mask] == 0).all() else "0 or less"
    return [Line2D([], [], color=DARK, markersize=4.5, label=f"{what}: below the log scale", **look)]


def _borders(x: Array) -> Array:
    """The cell around each tick, (n, 2)."""
    if x.size == 1:
        return np.array([[x[0] - 0.5, x[0] + 0.5]])
    order = np.argsort(x)
    t = x[order]
    middle = 0.5 * (t[1:] + t[:-1])
    low = np.concatenate([[2 * t[0] - middle[0]], middle])
    high = np.concatenate([middle, [2 * t[-1] - middle[-1]]])
    result = np.empty((x.size, 2))
    result[order] = np.stack([low, high], axis=1)
    return result


def frame(axes: Axes, x: Array, label: str, marks: Sequence[float] = (0.0,)) -> None:
    """Limits and label of the line's axis, and thin lines where models stand."""
    if x.size > 1:
        axes.set_xlim(float(x.min()), float(x.max()))
    axes.set_xlabel(label)
    few = inches_across(axes) < NARROW * type_of_ticks(axes)
    set_round_ticks(axes, 2 if few else 5)
    for mark in marks:
        if x.min() <= mark <= x.max():
            axes.axvline(mark, color="0.55", linewidth=0.6, linestyle=":", zorder=0.6)


def name_unseen(axes: Axes) -> None:
    """Say at a linear axis of values that its curves are too near to 0 for it, where they are, and how near.

    Raises ValueError where they reach farther than it can.
    """
    if axes.get_yscale() != "linear":
        return
    curves = [line for line in axes.lines if line.get_transform().contains_branch_seperately(axes.transData)[1]]
    sizes = np.concatenate([np.zeros(0), *(np.abs(np.asarray(line.get_ydata(), np.float64)) for line in curves)])
    largest = float(sizes[np.isfinite(sizes)].max(initial=0.0))
    with np.errstate(all="ignore"):
        ends = np.abs(axes.get_ylim()) if largest > FARTHEST else np.zeros(1)
    if not (ends <= FARTHEST).all():
        raise ValueError(f"the values reach to {largest:.2g} in size; a linear axis shows those up to {FARTHEST:g}")
    if 0 < largest < UNSEEN:
        axes.set_ylabel(f"{axes.get_ylabel()},\nwithin {largest:.2g} of 0: not told apart")


def check_ticks(ticks: Sequence[Array]) -> None:
    """Raise ValueError where the ticks of an axis are so near to 0 that it would show them as one point, or too far."""
    for t in ticks:
        if np.abs(t).max() > FARTHEST:
            raise ValueError(
                f"the ticks of an axis reach to {np.abs(t).max():.2g}, where a figure has no room beside them: "
                "scale the direction, so that its window is smaller"
            )
        if 0 < np.abs(t).max() < UNSEEN:
            raise ValueError(
                f"the ticks of an axis lie within {np.abs(t).max():.2g} of 0, where a figure cannot tell them apart: "
                "scale the direction, so that its window is wider"
            )


def inches_across(axes: Axes) -> float:
    """About how wide a panel is with its labels, before the layout."""
    place, figure = axes.get_subplotspec(), whole_figure(axes.figure)
    return float(figure.get_figwidth()) / (place.get_gridspec().ncols if place is not None else 1)


def suits_log_axis(values: Sequence[Array]) -> bool:
    """Whether the values span so much that a logarithmic axis shows more, by the rule of maps and pages."""
    return suits_log(values)
