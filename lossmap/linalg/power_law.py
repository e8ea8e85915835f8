"""The tail of a spectrum as a power law, with what is uncertain about it.

For eigenvalues x > 0 of W^T W (squared singular values), density ~ x^-alpha above x_min:

    alpha   1 + k / sum log(x_i / x_min) over the k values above x_min (maximum likelihood)
    x_min   where the Kolmogorov-Smirnov distance between the tail and its fit is least
    error   standard deviation of alpha over bootstrap draws of all values, so that the choice of x_min is in it
    p       share of draws from the fitted law (below x_min: from the values) that fit worse than the data do; below .1
            the power law is refused, and above it nothing is proven: other laws may fit as well

Fifty values in the tail are the least that Clauset et al. would fit; `enough` says so. Price: 2 draws + 1 fits of
60 k operations. Source: Clauset, Shalizi and Newman (2009), doi:10.1137/070710111; for spectra of weights, Martin and
Mahoney (2021), arXiv:1810.01075.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
MIN_TAIL_SIZE = 50  # values in a tail that can be fitted in earnest
STARTS = 60  # values of x_min that are tried, at most


@dataclass(frozen=True)
class PowerLawTail:
    """A fitted power law."""

    alpha: float
    error: float
    start: float  # x_min
    count: int  # values above it
    total: int
    distance: float  # Kolmogorov-Smirnov
    p: float

    @property
    def enough(self) -> bool:
        """Whether the tail has values enough for the fit to mean anything."""
        return self.count >= MIN_TAIL_SIZE

    @property
    def plausible(self) -> bool:
        """Whether a power law is not refused."""
        return self.enough and self.p >= 0.1

    def __repr__(self) -> str:
        if not self.enough:
            return f"no tail to fit: {self.count} of {self.total} values, {MIN_TAIL_SIZE} wanted"
        word = "not refused" if self.plausible else "refused"
        fit = f"alpha {self.alpha:.2f} +- {self.error:.2f} over {self.count} values"
        return f"{fit}; a power law is {word} (p {self.p:.2f})"


def power_law_tail(values: Array, *, draws: int = 100, seed: int = 0) -> PowerLawTail:
    """Fits the tail of positive values. Raises ValueError where fewer than two differ."""
    x = np.sort(values[values > 0].astype(np.float64))
    if len(x) < 2 or x[0] == x[-1]:
        raise ValueError(f"a tail wants two different positive values at least; got {len(x)} positive")
    alpha, start, count, distance = _fit(x)
    if count < MIN_TAIL_SIZE:
        return PowerLawTail(alpha, float("nan"), start, count, len(x), distance, float("nan"))
    chance = np.random.default_rng(seed)
    again = [_fit(np.sort(chance.choice(x, len(x))))[0] for _ in range(draws)]
    below = x[x < start]
    worse = 0
    for _ in range(draws):
        above = int(chance.binomial(len(x), count / len(x)))
        drawn = start * (1.0 - chance.random(above)) ** (-1.0 / (alpha - 1.0))
        rest = chance.choice(below, len(x) - above) if len(below) else np.empty(0)
        made = np.sort(np.concatenate([rest, drawn]))
        worse += len(made) > 1 and _fit(made)[3] >= distance
    return PowerLawTail(alpha, float(np.std(again)), start, count, len(x), distance, worse / draws)


def _fit(x: Array) -> tuple[float, float, int, float]:
    """alpha, x_min, count and distance of the best start among sorted values."""
    logs = np.log(x)
    best = (float("inf"), float(x[0]), len(x), float("inf"))
    for i in np.unique(np.linspace(0, len(x) - 2, STARTS).astype(int)):
        k = len(x) - i
        spread = float((logs[i:] - logs[i]).sum())
        if spread <= 0:
            continue
        alpha = 1.0 + k / spread
        fitted = 1.0 - np.exp(-(alpha - 1.0) * (logs[i:] - logs[i]))
        steps = np.arange(k + 1) / k
        distance = float(max(np.abs(fitted - steps[:-1]).max(), np.abs(fitted - steps[1:]).max()))
        if distance < best[3]:
            best = (alpha, float(x[i]), k, distance)
    return best
