"""Levels: where the lines of a map run, at round numbers, geometric where the values span decades. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

WIDE = 20.0  # largest over smallest positive value from which levels are geometric
# Round steps within a decade, coarse to fine.
SERIES: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
)


@dataclass(frozen=True, eq=False)
class Scale:
    """How values become colours and lines.

    low, high  the ends of the colours
    levels     ascending, round, between them; at least one
    log        geometric
    below      some values lie under `low`, and above: over `high`
    """

    low: float
    high: float
    levels: np.ndarray
    log: bool
    below: bool
    above: bool

    @property
    def extend(self) -> Literal["neither", "min", "max", "both"]:
        """For matplotlib: which ends of the colour bar are pointed."""
        if self.below:
            return "both" if self.above else "min"
        return "max" if self.above else "neither"

    @property
    def flat(self) -> bool:
        """Whether there is but one value."""
        return self.levels.size < 2


def scale_of(
    values: Sequence[np.ndarray],
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    log: bool | None = None,
    count: int = 12,
) -> Scale:
    """A common scale for several arrays; NaN and infinities have no say in it.

    low, high, step  as a person wants them (--vmin --vmax --vlevel); a step makes even levels
    log              geometric or not; left out, whether the values are positive and span a factor of WIDE
    count            about so many levels

    Raises ValueError where low is not below high, or the step is not positive.
    """
    known = np.concatenate([a[np.isfinite(a)].reshape(-1) for a in values]) if values else np.zeros(0)
    if known.size == 0:
        return Scale(0.0, 1.0, np.zeros(0), False, False, False)
    least, most = float(known.min()), float(known.max())
    if low is not None and high is not None and not low < high:
        raise ValueError(f"--vmin wants to be below --vmax; got {low:g} and {high:g}")
    if step is not None and step <= 0:
        raise ValueError(f"--vlevel wants a step above 0; got {step:g}")
    bottom, top = least if low is None else low, most if high is None else high
    if log is None:
        log = step is None and bottom > 0 and top > WIDE * bottom
    positive = known[known > 0]
    if log and bottom <= 0:
        bottom = float(positive.min()) if positive.size else 0.0
    log = log and bottom > 0 and top > bottom
    if not top - bottom > 1e-9 * max(abs(top), abs(bottom)):
        return Scale(bottom, top, np.array([bottom]), False, least < bottom, most > top)
    if step is not None:
        if (top - bottom) / step > 1000:
            raise ValueError(f"--vlevel {step:g} makes more than 1,000 levels between {bottom:g} and {top:g}")
        levels = bottom + step * np.arange(int(np.floor((top - bottom) / step * (1 + 1e-12))) + 1)
        if levels.size == 1:
            levels = np.array([bottom, top])
    elif log:
        levels = geometric(bottom, top, count)
    else:
        levels = even(bottom, top, count)
    # The colours begin and end at a level, so that each band of the colour bar is whole.
    low_end = levels[0] if low is None else bottom
    high_end = levels[-1] if high is None else top
    levels = levels[(levels >= low_end) & (levels <= high_end)]
    if levels.size == 0 or levels[0] > low_end:
        levels = np.concatenate([[low_end], levels])
    if levels[-1] < high_end:
        levels = np.concatenate([levels, [high_end]])
    return Scale(float(levels[0]), float(levels[-1]), levels, bool(log), least < levels[0], most > levels[-1])


def geometric(low: float, high: float, count: int = 12) -> np.ndarray:
    """Round levels, each a nearly constant factor above the last, that enclose low and high."""
    decades = np.log10(high / low)
    series = min(SERIES, key=lambda s: abs(decades * len(s) - count))
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    skip = max(1, round(decades / count)) if len(series) == 1 else 1
    ladder = np.array([m * 10.0**e for e in range(first, last + skip, skip) for m in series])
    return _enclosing(ladder, low, high)


def even(low: float, high: float, count: int = 12) -> np.ndarray:
    """Round levels at even steps that enclose low and high."""
    rough = (high - low) / count
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * min((1, 2, 2.5, 5, 10), key=lambda m: abs(np.log(m * unit / rough)))
    first, last = np.floor(low / step), np.ceil(high / step)
    ladder = np.arange(first, last + 1) * step
    return _enclosing(np.round(ladder, int(max(0, 2 - np.floor(np.log10(step))))), low, high)


def _enclosing(ladder: np.ndarray, low: float, high: float) -> np.ndarray:
    below, above = np.flatnonzero(ladder <= low * (1 + 1e-12)), np.flatnonzero(ladder >= high * (1 - 1e-12))
    begin = below[-1] if below.size else 0
    end = above[0] if above.size else ladder.size - 1
    return ladder[begin : end + 1]


def labels(levels: np.ndarray) -> list[str]:
    """The levels as texts, with as few digits as tell them apart."""
    texts: list[str] = []
    for digits in range(3, 17):
        texts = [f"{level:.{digits}g}" for level in levels]
        texts = [f"{float(t):.0f}" if "e+" in t and abs(float(t)) < 1e6 else t for t in texts]
        if len(set(texts)) == len(set(levels.tolist())):
            break
    return texts
