"""The density of an operator's eigenvalues by stochastic Lanczos quadrature, with an error band.

    F(t) = the share of the n eigenvalues that are <= t         the cumulative density, from 0 to 1

A Lanczos run of m steps from a random vector g gives the m-point Gauss quadrature of the measure that g sees: nodes
and weights (see `quadrature`). What is not known of F has two parts, and both are reported:

    quadrature  g's own cumulative measure at t lies between two bounds of the Gauss-Radau rule: a theorem
    chance      for s normal vectors g_i, weighted by their squared lengths, the measure at t is distributed as
                Beta(s k/2, s (n - k)/2), where k = n F(t) is the number of eigenvalues <= t: exactly, whatever the
                matrix. Read backwards it is an interval for k with the stated confidence, for one probe already

The band is the two together, pointwise in t. Half of its area over the range bounds how far the drawn curve may be from
the truth in Wasserstein distance; steps and probes are added until it is as small as requested.

Symbols: n the dimension, m steps, s probes; t and eigenvalues in the operator's unit. Price: m s products; memory n m.
Sources: Golub and Meurant (1994); Lin, Saad and Yang (2016), doi:10.1137/130934283; Ghorbani, Krishnan and Xiao (2019),
arXiv:1901.10159.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
from scipy.stats import beta as beta_distribution

from lossmap.linalg.operator import Rounding, SymmetricOperator
from lossmap.linalg.quadrature import LanczosRun, crowded_ticks, lanczos_run
from lossmap.report.estimates import density_text, mass_text

BAND_TICKS = 180  # places at which the band is computed
MAX_ENUMERATED_SIZE = 4096  # up to this dimension every count is tried, above it the counts are bisected
NEGLIGIBLE_SHARE = 1e-14  # a share of rounding, from which no eigenvalue is inferred


@dataclass(frozen=True)
class MassInterval:
    """A share of the n eigenvalues with its interval.

    value       the estimate, from 0 to 1
    low, high   between them the share lies with the stated confidence
    size        the dimension n
    confidence  a probability
    """

    value: float
    low: float
    high: float
    size: int
    confidence: float

    @property
    def count(self) -> tuple[int, int]:
        """The smallest and the largest number of eigenvalues in the interval, inclusive."""
        return round(self.low * self.size), round(self.high * self.size)

    def __repr__(self) -> str:
        return mass_text((self.value, self.low, self.high), self.size, self.confidence)


@dataclass(frozen=True, eq=False)
class Density:
    """The spectrum as a distribution: raw nodes, cumulative with its band, smoothed on request.

    runs         one for each probe
    size         the dimension n
    epsilon      the unit roundoff of the products
    confidence   of the band and of shares, pointwise
    target       the error requested, as a share of the range
    eigenvalues  all n of them, where the operator was small enough to be made dense; there are no runs then
    rounding     the operator's measured rounding, in the unit of its eigenvalues; None where none was measured
    """

    runs: tuple[LanczosRun, ...]
    size: int
    epsilon: float
    confidence: float = 0.95
    target: float = np.inf
    eigenvalues: np.ndarray | None = None
    rounding: float | None = None

    @property
    def products(self) -> int:
        """Operator-vector products spent."""
        if self.eigenvalues is not None:
            return self.size
        return sum(len(r.alpha) for r in self.runs)

    @property
    def probes(self) -> int:
        """The number of random starts s."""
        return len(self.runs)

    @property
    def steps(self) -> int:
        """Steps of the longest run; 0 where all eigenvalues are known."""
        return max((len(r.alpha) for r in self.runs), default=0)

    @cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """All probes' nodes, ascending, and their weights, which add up to one."""
        if self.eigenvalues is not None:
            return np.sort(self.eigenvalues), np.full(self.size, 1.0 / self.size)
        nodes = np.concatenate([r.quadrature[0] for r in self.runs])
        weights = np.concatenate([r.quadrature[1] * r.weight for r in self.runs])
        order = np.argsort(nodes, kind="stable")
        return nodes[order], weights[order] / weights.sum()

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest node."""
        nodes, _ = self.nodes
        return float(nodes[0]), float(nodes[-1])

    @property
    def allowance(self) -> float:
        """How far rounding in the products may have moved a node."""
        scale = max(abs(self.range[0]), abs(self.range[1]))
        return Rounding(self.epsilon, self.rounding).allowance(scale)

    def cumulative(self, t: float) -> MassInterval:
        """F(t): the share of eigenvalues <= t. Ties within the allowance for rounding widen the interval."""
        low, high = self._bounds(t - self.allowance)[0], self._bounds(t + self.allowance)[1]
        middle = self._bounds(t)
        if self.eigenvalues is not None:
            return MassInterval(middle[0], low, high, self.size, self.confidence)
        tail = 0.5 * (1.0 - self.confidence)
        fewest = smallest_count(low, self.size, self.probes, tail)
        most = self.size - smallest_count(1.0 - high, self.size, self.probes, tail)
        value = 0.5 * (middle[0] + middle[1])
        return MassInterval(value, fewest / self.size, most / self.size, self.size, self.confidence)

    def below(self, t: float) -> MassInterval:
        """The share of eigenvalues < t, such as the mass below -t. At a tie it may be more: see `cumulative`."""
        return self.cumulative(float(np.nextafter(t, -np.inf)))

    def above(self, t: float) -> MassInterval:
        """The share of eigenvalues > t."""
        f = self.cumulative(t)
        return MassInterval(1.0 - f.value, 1.0 - f.high, 1.0 - f.low, self.size, self.confidence)

    @cached_property
    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ticks t, and there F(t) with its lower and upper limit, each (ticks,)."""
        low, high = self.range
        margin = max(0.02 * (high - low), 2 * self.allowance)
        ticks = crowded_ticks(self.nodes[0], low - margin, high + margin, BAND_TICKS)
        shares = [self.cumulative(t) for t in ticks]
        value, lower, upper = np.array([(s.value, s.low, s.high) for s in shares]).T
        # F never falls: a limit at one tick holds at all ticks behind it, or before it.
        rising = np.maximum.accumulate
        return ticks, rising(value), rising(lower), np.minimum.accumulate(upper[::-1])[::-1]

    @cached_property
    def error(self) -> float:
        """Half the area of the band, as a share of the range: how far off, in Wasserstein distance, F may be."""
        low, high = self.range
        if high == low or self.eigenvalues is not None:
            return 0.0
        ticks, _, lower, upper = self.band
        return float(np.trapezoid(upper - lower, ticks)) / 2.0 / (high - low)

    @cached_property
    def quadrature_error(self) -> float:
        """The part of it that more steps would take away; the rest is chance, and falls with the root of the probes."""
        low, high = self.range
        if high == low:
            return 0.0
        ticks, *_ = self.band
        bounds = np.array([self._bounds(t) for t in ticks])
        return float(np.trapezoid(bounds[:, 1] - bounds[:, 0], ticks)) / 2.0 / (high - low)

    @property
    def met(self) -> bool:
        """Whether the requested error was reached."""
        return self.error <= self.target

    def smoothed(self, t: np.ndarray, width: float | None = None) -> np.ndarray:
        """The density at t, (ticks,), each node drawn as a Gaussian of this standard deviation, per unit of t.

        width  None: a hundredth of the range, no less than the rounding. Smoothing is for the eye: what it adds to
               the error is of the order of the width, and the cumulative density does without it
        """
        nodes, weights = self.nodes
        low, high = self.range
        sigma = width
        if sigma is None:
            sigma = max(0.01 * (high - low), self.allowance, 1e-30)
        z = (np.asarray(t)[:, None] - nodes) / sigma
        total: np.ndarray = np.exp(-0.5 * z * z) @ weights / (sigma * np.sqrt(2 * np.pi))
        return total

    def wasserstein(self, eigenvalues: np.ndarray) -> float:
        """The Wasserstein distance of the raw nodes to a known spectrum (n,), in the unit of the eigenvalues.

        In one dimension it is the area between the two cumulative densities.
        """
        nodes, weights = self.nodes
        true = np.sort(eigenvalues)
        ticks = np.sort(np.concatenate([nodes, true]))
        estimated = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(nodes, ticks[:-1], side="right")]
        exact = np.searchsorted(true, ticks[:-1], side="right") / len(true)
        return float((np.abs(estimated - exact) * np.diff(ticks)).sum())

    def __repr__(self) -> str:
        effort = (self.probes, self.steps, self.products)
        return f"Density({density_text(self.range, self.size, effort, self.error, self.confidence)})"

    def _bounds(self, t: float) -> tuple[float, float]:
        """The probes' bounds at t, averaged with their weights."""
        if self.eigenvalues is not None:
            share = float((self.eigenvalues <= t).mean())
            return share, share
        total = sum(r.weight for r in self.runs)
        pairs = [(r.weight, *r.bounds(t)) for r in self.runs]
        return sum(w * low for w, low, _ in pairs) / total, sum(w * high for w, _, high in pairs) / total


def smallest_count(share: float, n: int, s: int, tail: float) -> int:
    """The smallest count k of n eigenvalues for which s probes see `share` or more with at least probability `tail`.

    The share that s normal probes see of k eigenvalues is distributed as Beta(s k / 2, s (n - k) / 2); the probability
    of a share or more grows with k. Returns n where no smaller count will do.
    """
    if share <= NEGLIGIBLE_SHARE:
        return 0
    k = np.arange(1, n)
    if n <= MAX_ENUMERATED_SIZE:
        is_enough = beta_distribution.sf(share, 0.5 * s * k, 0.5 * s * (n - k)) >= tail
        return int(k[is_enough][0]) if is_enough.any() else n
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if float(beta_distribution.sf(share, 0.5 * s * middle, 0.5 * s * (n - middle))) >= tail:
            high = middle
        else:
            low = middle
    return high


def check_density_request(error: float, steps: int | None, probes: int | None, confidence: float = 0.95) -> None:
    """Raises ValueError where the error, steps, probes or confidence are out of range."""
    if not error > 0.0:
        raise ValueError(f"the density's error must be a share of the range > 0, e.g. 0.01; got {error}")
    for name, number in (("steps", steps), ("probes", probes)):
        if number is not None and number < 1:
            raise ValueError(f"the density's {name} must be >= 1; got {number}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"the density's confidence must be a probability between 0 and 1, e.g. 0.95; got {confidence}")


def density(
    operator: SymmetricOperator,
    *,
    error: float = 0.01,
    steps: int | None = None,
    probes: int | None = None,
    confidence: float = 0.95,
    max_products: int = 400,
    seed: int | str = 0,
    runs: Sequence[LanczosRun] = (),
) -> Density:
    """The density by stochastic Lanczos quadrature.

    operator      A (n, n), symmetric
    error         the largest Wasserstein distance to the truth, as a share of the range: steps are added while the
                  quadrature's part of the band is more than half of it, probes until the whole fits
    steps         for each probe; None: chosen by the first probe
    probes        number of random starts; None: chosen
    confidence    of the band, pointwise
    max_products  spends no more than that where it chooses
    seed          of the probes
    runs          made already with the same seed: its first probes

    Raises ValueError for arguments out of range, FloatingPointError where a product is not finite.
    """
    check_density_request(error, steps, probes, confidence)
    runs = list(runs)
    if not runs:
        runs.append(first_run(operator, error, steps, probes, max_products, seed))
    each = steps if steps is not None else len(runs[0].alpha)
    rounding = Rounding.of(operator)
    count = len(runs) if probes is None else probes
    while True:
        runs += [lanczos_run(operator, each, seed=seed, probe=i) for i in range(len(runs), count)]
        estimate = Density(tuple(runs), operator.size, rounding.epsilon, confidence, error, rounding=rounding.measured)
        if probes is not None or estimate.error <= error:
            return estimate
        count = min(probes_for(estimate), max_products // max(each, 1))
        if count <= len(runs):
            return estimate


def first_run(
    operator: SymmetricOperator,
    error: float,
    steps: int | None,
    probes: int | None,
    max_products: int,
    seed: int | str,
) -> LanczosRun:
    """The first probe's run, of the steps given, or of those that bring its own band to half of the error."""
    if steps is not None:
        return lanczos_run(operator, steps, seed=seed, probe=0)
    # Where the probes are chosen too, half of the products are left for a second one.
    most = max(1, max_products // (probes or 2))
    return lanczos_run(operator, most, seed=seed, probe=0, error=error / 2)


def probes_for(estimate: Density) -> int:
    """The number of probes that should bring the band to its target: chance falls with their root."""
    chance = estimate.error - estimate.quadrature_error
    left = max(estimate.target - estimate.quadrature_error, 0.1 * estimate.target)
    return max(estimate.probes + 1, ceil(estimate.probes * (chance / left) ** 2))
