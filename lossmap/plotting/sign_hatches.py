r"""Hatches that tell signs apart where colours do not: in grey, and for readers who see red and blue alike.

    \\\\  below 0; of the smallest eigenvalue, and its ratio to the largest: below 0 by more than its error
    ....  undecided, of these two alone: 0 lies between the reading and its limit, or within its error

Hatches are of measured points, a cell each; print and page have the same ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.patches import Patch

from lossmap.io.curvature_signs import NEGATIVE, POSITIVE, UNDECIDED, signs_of
from lossmap.io.surface import Surface
from lossmap.plotting import maps
from lossmap.plotting.quantities import Quantity
from lossmap.plotting.style import DARK

HATCHES = {NEGATIVE: r"\\\\", UNDECIDED: "...."}
OF_SMALLEST = ("min_eig", "ratio")  # quantities whose sign is that of the smallest eigenvalue, which has an error


def sign_words(surface: Surface) -> dict[str, str]:
    """What the sign of the smallest eigenvalue is called in the legend, by what the file knows of it."""
    beyond = " beyond its error" if "min_eig_error" in surface else ""
    limit = " beyond its limit" if "min_eig_limit" in surface else beyond
    return {
        NEGATIVE: rf"$\lambda_\min < 0${beyond}",
        UNDECIDED: "sign undecided",
        POSITIVE: rf"$\lambda_\min > 0${limit}",
    }


def hatched_signs(surface: Surface, what: Quantity, values: np.ndarray) -> dict[str, np.ndarray]:
    """Masks, (ny, nx), of the cells of a signed quantity that are hatched, by the words of HATCHES.

    Empty where all points are of one sign, which the colour bar says.
    """
    if not what.signed:
        return {}
    if what.name in OF_SMALLEST:
        signs = {word: mask for word, mask in signs_of(surface).items() if mask.any()}
        return {word: mask for word, mask in signs.items() if word in HATCHES} if len(signs) > 1 else {}
    known = np.isfinite(values) & (values != 0)
    below = known & (values < 0)
    return {NEGATIVE: below} if below.any() and not below[known].all() else {}


def mark_signs(
    axes: Any, surface: Surface, values: np.ndarray, what: Quantity, kind: str, noise: float
) -> list[Artist]:
    """Hatch the cells of a signed quantity, as `hatched_signs`; returns what stands in the legend.

    Nothing where differences are but noise, or where lines are drawn (of the kind contour).
    """
    if kind == "contour" or noise:
        return []
    handles: list[Artist] = []
    words = sign_words(surface) if what.name in OF_SMALLEST else {NEGATIVE: f"{what.symbol} $< 0$".replace("$ $", " ")}
    for word, mask in hatched_signs(surface, what, values).items():
        handles.append(hatch(axes, surface, mask, word, words[word]))
    return handles


def hatch(axes: Any, surface: Surface, mask: np.ndarray, word: str, label: str) -> Artist:
    """Hatch the cells of a mask, (ny, nx), if the word has a hatch; returns the legend's patch."""
    look: dict[str, Any] = {"facecolor": "none", "edgecolor": DARK, "hatch": HATCHES.get(word)}
    if word in HATCHES:
        maps.patches(axes, surface.grid, mask, linewidth=0.0, **look)
    return Patch(**look, linewidth=0.4, label=label)
