"""Levels: where the lines of a map run, at round numbers, geometric where the values span decades. NumPy alone.

Levels lie between SMALLEST and LARGEST in size, well within double precision, so that ratios, products and decimal
roundings of any two of them are finite, also beside the 1e250 at which matplotlib ends an open band: what lies beyond
is drawn as below or above the ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lossmap.io.refined import LOG_FROM

# The colours of a map end before a few values that lie far from all others: fewer than this share of at least so many.
OUTLIER_SHARE, OUTLIER_POINTS = 0.02, 20
OUTLIER_FACTOR = 20.0  # over the other values, or over their span, from which a value lies far
SMALLEST, LARGEST = 1e-50, 1e50  # absolute values that a level, or a span of levels, may have beside 0
FLAT_SPAN = 1e-9  # relative to the larger end: a narrower span is one value
FLAT_MARGIN = 10.0  # a scale of one value reaches so many times its noise to both sides: noise stays unseen
MAX_LEVELS = 1000
FEW_LEVELS = 6  # fewer geometric levels show less than even ones between the same ends
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
    levels     (levels,) ascending, round, between them; at least one
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
        if self.below and self.above:
            return "both"
        if self.below:
            return "min"
        return "max" if self.above else "neither"

    @property
    def flat(self) -> bool:
        """Whether there is but one value."""
        return self.levels.size < 2

    @property
    def too_fine(self) -> bool:
        """Whether the values differ, by less than levels can tell apart, and are shown as one."""
        span = self.high - self.low
        return self.flat and FLAT_SPAN * max(abs(self.low), abs(self.high)) < span <= SMALLEST

    @property
    def ends(self) -> tuple[float, float]:
        """Where colours and heights end: those of one value lie around it, so that they show no differences."""
        if self.flat and self.high - self.low < 1:
            middle = 0.5 * (self.low + self.high)
            reach = max(0.5, FLAT_SPAN * abs(middle))  # that a large value does not swallow
            return middle - reach, middle + reach
        return self.low, self.high


def scale_of(
    values: Sequence[np.ndarray],
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    log: bool | None = None,
    count: int = 12,
    noise: float = 0.0,
) -> Scale:
    """A common scale for several arrays, of any shapes; NaN and infinities are left out of account.

    low, high, step  ends and step of the levels (--vmin --vmax --vlevel), in the values' unit; a step makes even levels
    log              geometric or not; by `suits_log` if left out
    count            approximate number of levels
    noise            differences that rounding or errors alone explain, from `noise_of`; 0: none

    An end that is left out is that of the values without the few that lie far from all others (`usual_ends`); what lies
    beyond an end, and on a geometric scale what is not positive, is `below` or `above`. Where no end is set and noise
    explains all differences, there is one level, amid a span that leaves them unseen.

    Raises ValueError where low is not below high, an end is not finite or beyond LARGEST, or the step is not positive
    or makes more than MAX_LEVELS levels.
    """
    _check_ends(low, high, step)
    known = _finite(values)
    if known.size == 0:
        return Scale(0.0, 1.0, np.zeros(0), False, False, False)
    smallest, largest = float(known.min()), float(known.max())
    if noise > 0 and low is None and high is None:
        middle, reach = 0.5 * (smallest + largest), max(0.5, FLAT_MARGIN * noise)
        return Scale(middle - reach, middle + reach, np.array([middle]), False, False, False)
    usual = usual_ends(known)
    bottom = _within(usual[0]) if low is None else low
    top = _within(usual[1]) if high is None else high
    if log is None:
        log = step is None and suits_log([known], low, top)
    if log:
        bottom = _positive_end(bottom, top, known)
    log = log and 0 < bottom < top
    if top - bottom <= max(FLAT_SPAN * max(abs(top), abs(bottom)), SMALLEST):
        return Scale(bottom, max(bottom, top), np.array([bottom]), False, smallest < bottom, largest > top)
    levels = _round_levels(bottom, top, count, log) if step is None else _stepped(bottom, top, step)
    levels = _ended(levels, low, high)
    first, last = float(levels[0]), float(levels[-1])
    # a value that rounding alone keeps from an end lies at it
    slack = [FLAT_SPAN * (abs(end) if log else last - first) for end in (first, last)]
    return Scale(first, last, levels, bool(log), smallest < first - slack[0], largest > last + slack[1])


def scale_at(values: Sequence[np.ndarray], levels: Sequence[float], log: bool | None = None) -> Scale:
    """The scale with exactly these levels, the first and the last of which end the colours; log as `scale_of`.

    Raises ValueError unless there are 2 to MAX_LEVELS levels, finite and ascending, and above 0 on a log scale.
    """
    given = np.asarray(levels, dtype=np.float64)
    in_range = given.size >= 2 and bool(np.isfinite(given).all() and np.abs(given).max() <= LARGEST)
    if not in_range or given.size > MAX_LEVELS or bool(np.any(np.diff(given) <= 0)):
        shown = " ".join(f"{level:g}" for level in levels)
        raise ValueError(f"--levels must be two or more finite numbers that ascend; got {shown}")
    known = _finite(values)
    if log is None:
        log = suits_log([known], float(given[0]), float(given[-1]))
    if log and given[0] <= 0:
        raise ValueError(f"--levels must be above 0 on a log scale; got {given[0]:g}")
    low, high = float(given[0]), float(given[-1])
    return Scale(low, high, given, bool(log), bool(np.any(known < low)), bool(np.any(known > high)))


def noise_of(values: np.ndarray, errors: np.ndarray) -> float:
    """The largest difference that errors alone explain, where one value lies within the errors of all; else 0.

    values, errors  of any one shape; NaN and infinities are left out of account
    """
    known = np.isfinite(values) & np.isfinite(errors)
    if known.sum() < 2 or np.any(np.isinf(values)):
        return 0.0
    values, errors = values[known], errors[known]
    if np.ptp(values) == 0 or (values - errors).max() > (values + errors).min():
        return 0.0
    return float(2 * errors.max())


def suits_log(values: Sequence[np.ndarray], low: float | None = None, high: float | None = None) -> bool:
    """Whether a geometric scale shows more: no value is negative, and the positive span a factor of LOG_FROM.

    values     arrays of any shapes; NaN and infinities are left out of account, and zeros lie below the scale
    low, high  ends of the scale, in place of those of the values
    """
    known = _finite(values)
    positive = known[known > 0]
    if positive.size == 0 or (low is None and bool(np.any(known < 0))):
        return False
    bottom = float(positive.min()) if low is None else low
    top = usual_ends(known)[1] if high is None else high
    return bottom > 0 and top / LOG_FROM > bottom


def usual_ends(known: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest of finite values, (entries,), but for a few that lie far from all others.

    Of values >= 0 only large ones lie far, by a factor: the small ones are what a map of losses is about.
    """
    ordered = np.sort(known)
    smallest, largest = float(ordered[0]), float(ordered[-1])
    if ordered.size < OUTLIER_POINTS or not np.isfinite(largest - smallest):
        return smallest, largest
    margin = int(np.ceil(OUTLIER_SHARE * ordered.size))
    if smallest >= 0:
        return smallest, _usual_top(ordered[ordered > 0], largest)
    low, high = float(ordered[margin]), float(ordered[-1 - margin])
    reach = OUTLIER_FACTOR * (high - low)
    inside = ordered[(ordered >= low - reach) & (ordered <= high + reach)]
    if high <= low:
        return smallest, largest
    return float(inside[0]), float(inside[-1])


def _usual_top(positive: np.ndarray, largest: float) -> float:
    """The largest of ascending positive values but for those beyond, by a factor larger than all others span."""
    margin = int(np.ceil(OUTLIER_SHARE * positive.size))
    if positive.size < OUTLIER_POINTS:
        return largest
    low, high = float(positive[margin]), float(positive[-1 - margin])
    limit = high * max(OUTLIER_FACTOR, high / low)
    if high <= low * (1 + FLAT_SPAN):  # the others are one value: there is nothing else to see
        return largest
    return float(positive[positive <= limit][-1])


def _check_ends(low: float | None, high: float | None, step: float | None) -> None:
    for flag, end in (("--vmin", low), ("--vmax", high)):
        if end is not None and not abs(end) <= LARGEST:
            raise ValueError(f"{flag} must lie between {-LARGEST:g} and {LARGEST:g}; got {end:g}")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"--vmin must be below --vmax; got {low:g} and {high:g}")
    if step is not None and not 0 < step < math.inf:
        raise ValueError(f"--vlevel must be > 0; got {step:g}")


def _finite(values: Sequence[np.ndarray]) -> np.ndarray:
    """All finite entries of all arrays, (entries,)."""
    return np.concatenate([np.zeros(0), *(a[np.isfinite(a)].reshape(-1) for a in values)])


def _within(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


def _positive_end(bottom: float, top: float, known: np.ndarray) -> float:
    """The lower end of geometric levels; it stays as it is where no value is positive."""
    positive = known[known > 0]
    if bottom <= 0 and positive.size:
        bottom = float(positive.min())
    return min(SMALLEST, top) if 0 < bottom < SMALLEST else bottom


def _stepped(bottom: float, top: float, step: float) -> np.ndarray:
    """Levels from the bottom upwards at a step that was asked for; the two ends where it is wider than the span."""
    if (top - bottom) / step > MAX_LEVELS:
        raise ValueError(
            f"--vlevel {step:g} makes more than {MAX_LEVELS:,} levels between {bottom:g} and {top:g}: take a larger one"
        )
    levels = bottom + step * np.arange(int(np.floor((top - bottom) / step * (1 + 1e-12))) + 1)
    if levels.size == 1:
        return np.array([bottom, top])
    return levels


def _round_levels(bottom: float, top: float, count: int, log: bool) -> np.ndarray:
    """Geometric levels on a logarithmic scale, unless it spans so little that they are few; else even ones."""
    if log:
        levels = geometric(bottom, top, count)
        if levels.size >= FEW_LEVELS:
            return levels
        levels_even = even(bottom, top, count)
        return levels_even if levels_even[0] > 0 else levels
    return even(bottom, top, count)


def _ended(levels: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """The levels between the ends that were asked for, which become levels themselves.

    The colours begin and end at a level, so that each band of the colour bar is whole.
    """
    first, last = float(levels[0]), float(levels[-1])
    if low is not None:
        first = low
    if high is not None:
        last = high
    levels = levels[(levels >= first) & (levels <= last)]
    if levels.size == 0 or levels[0] > first:
        levels = np.concatenate([[first], levels])
    if levels[-1] < last:
        levels = np.concatenate([levels, [last]])
    return levels


def geometric(low: float, high: float, count: int = 12) -> np.ndarray:
    """Round levels, (levels,), each a nearly constant factor above the last, that enclose low and high.

    SMALLEST <= low < high <= LARGEST; count is approximate.
    """
    decades = np.log10(high / low)
    series = min(SERIES, key=lambda s: abs(decades * len(s) - count))
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    stride = max(1, round(decades / count)) if len(series) == 1 else 1
    ladder = np.array([m * 10.0**e for e in range(first, last + stride, stride) for m in series])
    return _enclosing(ladder, low, high)


def even(low: float, high: float, count: int = 12) -> np.ndarray:
    """Round levels, (levels,), at even steps, that enclose low and high.

    high - low > SMALLEST, and both at most LARGEST in size; count is approximate.
    """
    rough = (high - low) / count
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * min((1, 2, 2.5, 5, 10), key=lambda m: abs(np.log(m * unit / rough)))
    first, last = np.floor(low / step), np.ceil(high / step)
    ladder = np.arange(first, last + 1) * step
    return _enclosing(np.round(ladder, int(max(0, 2 - np.floor(np.log10(step))))), low, high)


def _enclosing(ladder: np.ndarray, low: float, high: float) -> np.ndarray:
    """The part of an ascending ladder from the last step at or below low to the first at or above high."""
    below, above = np.flatnonzero(ladder <= low * (1 + 1e-12)), np.flatnonzero(ladder >= high * (1 - 1e-12))
    begin = max(below, default=0)
    end = min(above, default=ladder.size - 1)
    return ladder[begin : end + 1]


def labels(levels: np.ndarray) -> list[str]:
    """The levels, (levels,), as texts, with as few digits as keep them apart.

    Up to two more where these write the levels as they are: 2.125, 2.175, 2.225 look uneven as 2.12, 2.17, 2.23.
    """
    known, texts, apart = (levels + 0.0).tolist(), [""], 17  # 0 for -0
    for digits in range(3, 18):
        written = [_plain(f"{level:.{digits}g}") for level in known]
        if apart == 17 and len(set(written)) == len(set(known)):
            texts, apart = written, digits
        exact = all(abs(float(text) - level) <= 1e-9 * abs(level) for text, level in zip(written, known, strict=True))
        if digits >= apart and exact:
            return written
        if digits >= apart + 2:
            break
    return texts


def _plain(text: str) -> str:
    """A number without an exponent below a million: 1.25e+05 -> 125000."""
    if "e+" in text and abs(float(text)) < 1e6:
        return f"{float(text):.0f}"
    return text
