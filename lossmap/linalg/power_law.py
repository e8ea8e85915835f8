"""The tail of a spectrum as a power law, with what is uncertain about it.

For eigenvalues x > 0 of W^T W (squared singular values), density ~ x^-alpha above x_min:

    alpha   1 + k / sum log(x_i / x_min) over the k values above x_min (maximum likelihood)
    x_min   where the Kolmogorov-Smirnov distance between the tail and its fit is smallest
    error   standard deviation of alpha over bootstrap samples of all values, so that the choice of x_min is in it
    p       share of samples from the fitted law (below x_min: from the values) that fit worse than the data do; below
            0.1 the power law is rejected, and above it nothing is proven: other laws may fit as well

Fifty values in the tail are the fewest that Clauset et al. would fit; `enough` says so. Price: 2 draws + 1 fits of
60 k operations. Source: Clauset, Shalizi and Newman (2009), doi:10.1137/070710111; for spectra of weights, Martin and
Mahoney (2021), arXiv:1810.01075.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import numpy as np

from lossmap.report.text import value_with_error

Array = np.ndarray
MIN_TAIL_SIZE = 50  # values in a tail that can be fitted
MAX_STARTS = 60  # values of x_min that are tried
MIN_P = 0.1  # below it a power law is rejected


@dataclass(frozen=True)
class PowerLawTail:
    """A fitted power law.

    alpha     the exponent
    error     its standard deviation; NaN where the tail is too short
    start     x_min, in the unit of the values
    count     values from x_min on
    total     positive values in all
    distance  of Kolmogorov and Smirnov between the tail and the fit
    p         of the goodness of fit; NaN where the tail is too short
    """

    alpha: float
    error: float
    start: float
    count: int
    total: int
    distance: float
    p: float

    @property
    def enough(self) -> bool:
        """Whether the tail has enough values to be fitted."""
        return self.count >= MIN_TAIL_SIZE

    @property
    def plausible(self) -> bool:
        """Whether a power law is not rejected."""
        return self.enough and self.p >= MIN_P

    def __repr__(self) -> str:
        if not self.enough:
            return f"no tail to fit: {self.count} of {self.total} values; at least {MIN_TAIL_SIZE} are needed"
        word = "rejected"
        if self.plausible:
            word = "not rejected"
        fit = f"alpha {value_with_error(self.alpha, self.error)} over {self.count} values"
        return f"{fit}; a power law is {word} (p {self.p:.2f})"


def power_law_tail(values: Array, *, draws: int = 100, seed: int = 0) -> PowerLawTail:
    """Fits the tail of the positive ones among values, (m,).

    draws  bootstrap samples for the error, and as many for p
    seed   of the samples

    Raises ValueError where fewer than two values differ.
    """
    x = np.sort(values[values > 0].astype(np.float64))
    if len(x) < 2 or x[0] == x[-1]:
        raise ValueError(f"a tail must have at least two different positive values; got {len(x)} positive")
    fit = _fit(x)
    if fit.count < MIN_TAIL_SIZE:
        return PowerLawTail(fit.alpha, nan, fit.start, fit.count, len(x), fit.distance, nan)
    rng = np.random.default_rng(seed)
    alphas = [_fit(np.sort(rng.choice(x, len(x)))).alpha for _ in range(draws)]
    worse = 0
    for _ in range(draws):
        sample = _sample(rng, x, fit)
        worse += len(sample) > 1 and _fit(sample).distance >= fit.distance
    error = float(np.std(alphas))
    return PowerLawTail(fit.alpha, error, fit.start, fit.count, len(x), fit.distance, worse / draws)


@dataclass(frozen=True)
class _Fit:
    """The best fit: alpha, x_min, the number of values from there on, and their Kolmogorov-Smirnov distance."""

    alpha: float
    start: float
    count: int
    distance: float


def _sample(rng: np.random.Generator, x: Array, fit: _Fit) -> Array:
    """As many values as in x (m,), ascending: from the fitted law above x_min, from the values below it."""
    below = x[x < fit.start]
    above = int(rng.binomial(len(x), fit.count / len(x)))
    tail = fit.start * (1.0 - rng.random(above)) ** (-1.0 / (fit.alpha - 1.0))
    if not len(below):
        return np.sort(tail)
    return np.sort(np.concatenate([rng.choice(below, len(x) - above), tail]))


def _fit(x: Array) -> _Fit:
    """The fit of the smallest distance over starts among sorted values (m,)."""
    logs = np.log(x)
    best = _Fit(inf, float(x[0]), len(x), inf)
    for i in np.unique(np.linspace(0, len(x) - 2, MAX_STARTS).astype(int)):
        k = len(x) - i
        excess = logs[i:] - logs[i]
        total = float(excess.sum())
        if total <= 0:
            continue
        alpha = 1.0 + k / total
        fitted = 1.0 - np.exp(-(alpha - 1.0) * excess)
        steps = np.arange(k + 1) / k
        distance = float(max(np.abs(fitted - steps[:-1]).max(), np.abs(fitted - steps[1:]).max()))
        if distance < best.distance:
            best = _Fit(alpha, float(x[i]), k, distance)
    return best
