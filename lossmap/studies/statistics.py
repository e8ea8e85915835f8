"""What few nets allow to be said: paired ratios and rank correlations with their 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
from scipy import stats

Array = np.ndarray
CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_GROUPS = 7  # of independent nets, for an interval: of fewer, resamples are too often in one order


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval, over `count` nets or pairs of nets; infinite ends where these are too few."""

    value: float
    low: float
    high: float
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(values: Array) -> Interval:
    """The mean of independent values (k,) with Student's interval; values that are not finite are left out."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else nan, -inf, inf, len(values))
    mean = float(values.mean())
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * float(values.std(ddof=1)) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def log_ratio(above: Array, below: Array) -> Interval:
    """The mean of log(above / below) over pairs, natural logarithm; pairs without two positive numbers are left out."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    good = np.isfinite(above) & np.isfinite(below) & (above > 0) & (below > 0)
    return mean_interval(np.log(above[good] / below[good]))


def rank_correlation(x: Array, y: Array, groups: Array | None = None, seed: int = 0) -> Interval:
    """Spearman's correlation of finite pairs, with a percentile interval of resampled groups (Efron 1979), expanded for
    their small number (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).

    groups  (k,) whole numbers: nets of one recipe are not independent and are drawn together; by default each alone

    NaN with an infinite interval where one side does not vary; an infinite interval for fewer than seven groups.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    groups = np.arange(len(x)) if groups is None else np.asarray(groups)
    good = np.isfinite(x) & np.isfinite(y)
    x, y, groups = x[good], y[good], groups[good]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(nan, -inf, inf, len(x))
    members = [np.nonzero(groups == group)[0] for group in np.unique(groups)]
    value = float(_spearman(x, y))
    if len(members) < MIN_GROUPS:
        return Interval(value, -inf, inf, len(x))
    generator = np.random.default_rng([seed, len(x)])
    samples: dict[int, list[Array]] = {}  # rows by their number, since groups may differ in size
    for chosen in generator.integers(0, len(members), (RESAMPLES, len(members))):
        rows = np.concatenate([members[i] for i in chosen])
        samples.setdefault(len(rows), []).append(rows)
    drawn = np.concatenate([_spearman(x[rows], y[rows]) for rows in map(np.stack, samples.values())])
    # quantiles further out, since resamples of few groups vary less than new ones would, and Student's t is wider
    few = len(members)
    outside = stats.norm.sf(sqrt(few / (few - 1)) * stats.t.ppf(0.5 + CONFIDENCE / 2, few - 1))
    low, high = np.nanquantile(drawn, [outside, 1.0 - outside])
    return Interval(value, float(low), float(high), len(x))


def _spearman(x: Array, y: Array) -> Array:
    """The correlation of the ranks along the last axis, ties at their mean rank; NaN where one side does not vary."""
    a, b = (stats.rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    product: Array = (a * b).sum(-1)
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), nan)
