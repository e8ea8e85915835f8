"""Pictures of a line: loss and accuracy on two axes, eigenvalues with their bounds, several files in one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lossmap.io.surface import DONE
from lossmap.plotting.contour_levels import GEOMETRIC_FROM
from lossmap.plotting.style import BLUE, DARK, GREEN, GREY, PURPLE, RED

Array = np.ndarray
COLOURS = (BLUE, RED, GREEN, PURPLE, "#b8860b", "#3b3b3b")
MAX_MARKED_POINTS = 25  # on a curve with more, points have no marks


def curve(axes: Axes, x: Array, values: Array, *, colour: str, label: str, dashed: bool = False) -> None:
    """One field along the line, x and values (n,), broken where a value is missing."""
    order = np.argsort(x)
    style, face = "-", colour
    if dashed:
        style, face = "--", "white"
    axes.plot(
        x[order],
        np.where(np.isfinite(values), values, np.nan)[order],
        linestyle=style,
        marker="o" if x.size <= MAX_MARKED_POINTS else None,
        markersize=2.4,
        markerfacecolor=face,
        color=colour,
        label=label,
    )


def band(axes: Axes, x: Array, low: Array, high: Array, colour: str) -> None:
    """The area between two bounds, (n,) each, shaded lightly."""
    order = np.argsort(x)
    axes.fill_between(x[order], low[order], high[order], color=colour, alpha=0.2, linewidth=0.0)


def mark_missing(axes: Axes, x: Array, values: Array, status: Array) -> list[Patch]:
    """Mark the points without a value along the line; all arrays are (n,). Returns patches for the legend."""
    patches = []
    borders = _borders(x)
    missing, odd = status != DONE, (status == DONE) & ~np.isfinite(values)
    words = {0: "not computed", 2: "failed"}
    both = " or ".join(word for code, word in words.items() if (status == code).any())
    look: list[tuple[str, Array, Any]] = [
        (both, missing, {"facecolor": GREY, "edgecolor": DARK, "hatch": "//////"}),
        ("\N{MULTIPLICATION SIGN} not finite", odd, {"facecolor": "0.94", "edgecolor": "none"}),
    ]
    for word, mask, how in look:
        for i in np.flatnonzero(mask):
            axes.axvspan(*borders[i], linewidth=0.0, zorder=0.2, **how)
        if mask.any():
            patches.append(Patch(linewidth=0.0, label=word, **how))
    if odd.any():
        middle = np.full(int(odd.sum()), 0.5)
        axes.plot(
            x[odd], middle, "x", color=DARK, markersize=4, markeredgewidth=0.7, transform=axes.get_xaxis_transform()
        )
    return patches


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
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for mark in marks:
        if x.min() <= mark <= x.max():
            axes.axvline(mark, color="0.55", linewidth=0.6, linestyle=":", zorder=0.6)


def suits_log_axis(values: Sequence[Array]) -> bool:
    """Whether all values are positive and span so much that a logarithmic axis shows more."""
    known = np.concatenate([a[np.isfinite(a)].reshape(-1) for a in values])
    return bool(known.size and known.min() > 0 and known.max() > GEOMETRIC_FROM * known.min())
