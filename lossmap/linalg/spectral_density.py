"""The density of an operator's eigenvalues by stochastic Lanczos quadrature, with an error band.

    F(t) = the share of the n eigenvalues that are <= t         the cumulative density, from 0 to 1

A Lanczos run of m steps from a random vector g gives the m-point Gauss quadrature of the measure that g sees: nodes
and weights (see `quadrature`). What is not known of F has two parts, and both are reported:

    quadrature  g's own cumulative measure at t lies between two bounds of the Gauss-Radau rule: a theorem
    chance      for s normal vectors g_i, weighted by their squared lengths, the measure at t is distributed as
                Beta(s k/2, s (n - k)/2), where k = n F(t) is the number of eigenvalues <= t: exactly, whatever the
                matrix. Read backwards it is an interval for k with the stated confidence, for one probe already
                (see `eigenvalue_counts`)

The interval of a share at one t, such as the mass below -t, is pointwise. The band is simultaneous: with the stated
confidence F lies within it at all t together, beyond the outermost nodes too. So the largest distance of the nodes'
own curve to the edges of the band, integrated over t, bounds their Wasserstein distance to the truth with that
confidence: this is the error that is reported, and steps and probes are added until it is as small as requested.

Symbols: n the dimension, m steps, s probes; t and eigenvalues in the operator's unit. Price: m s products; memory n m.
Sources: Golub and Meurant (1994); Lin, Saad and Yang (2016), doi:10.1137/130934283; Ghorbani, Krishnan and Xiao (2019),
arXiv:1901.10159.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np

from lossmap.keywords import checked_keywords
from lossmap.linalg.eigenvalue_counts import count_ranges, pointwise_tail, simultaneous_tail
from lossmap.linalg.foreign import as_operator
from lossmap.linalg.operator import Rounding, SymmetricOperator
from lossmap.linalg.quadrature import LanczosRun, crowded_ticks, lanczos_run
from lossmap.report.estimates import density_text, mass_text
from lossmap.values import DrawnResult

BAND_TICKS = 150  # places at which the band is computed at first
REFINED_CELLS = 40  # of these, cells in which the band changes most are halved
QUADRATURE_SHARE = 0.4  # of the error, for half the area of a run's bounds: its nodes are off by up to 1.5 of that

MAX_STEPS = 10_000  # of a probe, whose Ritz values take the square of them in memory; and probes at most
MAX_MARGIN_DOUBLINGS = 30  # beyond the outermost nodes, until no eigenvalue can lie further out


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
class Density(DrawnResult):
    """The spectrum as a distribution: raw nodes, cumulative with its band, smoothed on request.

    runs         one for each probe
    size         the dimension n
    epsilon      the unit roundoff of the products
    confidence   of the band, simultaneously in t, and of each share by itself
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
        tail = pointwise_tail(self.confidence)
        fewest, most = count_ranges(np.array([low]), np.array([high]), self.size, self.probes, tail)
        least, largest = float(fewest[0]) / self.size, float(most[0]) / self.size
        value = min(max(0.5 * (middle[0] + middle[1]), least), largest)  # which no whole number of eigenvalues is
        return MassInterval(value, least, largest, self.size, self.confidence)

    def below(self, t: float) -> MassInterval:
        """The share of eigenvalues < t, such as the mass below -t. At a tie it may be more: see `cumulative`."""
        return self.cumulative(float(np.nextafter(t, -np.inf)))

    def above(self, t: float) -> MassInterval:
        """The share of eigenvalues > t."""
        f = self.cumulative(t)
        return MassInterval(1.0 - f.value, 1.0 - f.high, 1.0 - f.low, self.size, self.confidence)

    @cached_property
    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ticks t, and there F(t) with its lower and upper limit, each (ticks,); the limits hold at all t together."""
        ticks, low, high = self._seen
        if self.eigenvalues is not None:
            return ticks, 0.5 * (low + high), low, high
        least, largest = self._limits(low, high)
        return ticks, np.clip(0.5 * (low + high), least, largest), least, largest

    @cached_property
    def error(self) -> float:
        """How far off, in Wasserstein distance, the nodes may be from the truth, as a share of the range.

        Infinite where one step, or none, shows no range.
        """
        ticks, _, lower, upper = self.band
        return self._largest_distance(ticks, lower, upper)

    @cached_property
    def quadrature_error(self) -> float:
        """The part of it that more steps would take away; the rest is chance, and falls with the root of the probes."""
        return self._largest_distance(*self._seen)

    def _largest_distance(self, ticks: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
        """The largest Wasserstein distance of the nodes to a distribution within these limits, over the range."""
        low, high = self.range
        if self.eigenvalues is not None or (high == low and all(r.exact for r in self.runs)):
            return 0.0
        if high == low:
            return np.inf
        nodes, weights = self.nodes
        t = np.union1d(ticks, nodes)
        lower, upper = np.interp(t, ticks, lower), np.interp(t, ticks, upper)
        # The nodes' own curve is a step function; between its steps it is farthest from one limit or the other.
        curve = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(nodes, t[:-1], side="right")]
        at_left = np.maximum(upper[:-1] - curve, curve - lower[:-1])
        at_right = np.maximum(upper[1:] - curve, curve - lower[1:])
        return float((0.5 * (at_left + at_right) * np.diff(t)).sum()) / (high - low)

    @cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ticks, and between which bounds the share lies that the probes see up to there, each (ticks,).

        The ticks reach as far out as an eigenvalue may lie, and are closer where the bounds change.
        """
        low, high = self.range
        margin = max(0.02 * (high - low), 2 * self.allowance)
        nodes = self.nodes[0]
        ticks = crowded_ticks(nodes, low - margin, high + margin, BAND_TICKS)
        if self.eigenvalues is None:
            ticks = np.concatenate([self._margin(-1.0, margin)[::-1], ticks, self._margin(1.0, margin)])
        below, above = self._seen_at(ticks)
        if self.eigenvalues is None:
            change = np.diff(ticks) * (np.diff(below) + np.diff(above))
            worst = np.argsort(-change, kind="stable")[:REFINED_CELLS]
            halves = 0.5 * (ticks[worst] + ticks[worst + 1])
            more = self._seen_at(halves)
            ticks, below, above = (np.concatenate(p) for p in ((ticks, halves), (below, more[0]), (above, more[1])))
        order = np.argsort(ticks, kind="stable")
        # F never falls: a limit at one tick holds at all ticks behind it, or before it.
        below = np.maximum.accumulate(below[order])
        return ticks[order], below, np.minimum.accumulate(above[order][::-1])[::-1]

    def _margin(self, side: float, first: float) -> np.ndarray:
        """Ticks ever further beyond the last node, up to where no eigenvalue lies any more; side -1 below, 1 above."""
        end = self.range[int(side > 0)]
        distances: list[float] = []
        while len(distances) < MAX_MARGIN_DOUBLINGS:
            before, after = self._seen_at(np.array([end + side * first]))
            lower, upper = self._limits(before, after)
            if (side < 0 and upper[0] == 0.0) or (side > 0 and lower[0] == 1.0):
                break
            first *= 2.0
            distances.append(first)
        return end + side * np.array(distances)

    def _seen_at(self, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of the share seen at each tick, each (ticks,), widened by the allowance for rounding."""
        below = np.array([self._bounds(t - self.allowance)[0] for t in ticks])
        return below, np.array([self._bounds(t + self.allowance)[1] for t in ticks])

    def _limits(self, below: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The limits of F for bounds of the share seen, each (ticks,), simultaneously in t."""
        tail = simultaneous_tail(self.size, self.confidence)
        fewest, most = count_ranges(below, above, self.size, self.probes, tail)
        return fewest / self.size, most / self.size

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

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: nodes and weights, the band, and the effort, by name."""
        (nodes, weights), (ticks, value, low, high) = self.nodes, self.band
        arrays = {"node": nodes, "weight": weights, "tick": ticks, "cumulative": value}
        arrays |= {"cumulative_low": low, "cumulative_high": high}
        return arrays, {"size": self.size, **self.attributes()}

    def attributes(self) -> dict[str, object]:
        """Its error and effort, by the names that files have for them."""
        return {
            "density_error": self.error,
            "density_confidence": self.confidence,
            "density_probes": self.probes,
            "density_products": self.products,
            "density_band": "simultaneous",
            "density_steps": self.steps,
            "density_met": self.met,
        }

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


def check_density_request(error: float, steps: int | None, probes: int | None, confidence: float = 0.95) -> None:
    """Raises ValueError where the error, steps, probes or confidence are out of range."""
    if not error > 0.0:
        raise ValueError(f"the density's error must be a share of the range > 0, e.g. 0.01; got {error}")
    for name, number in (("steps", steps), ("probes", probes)):
        if number is not None and number < 1:
            raise ValueError(f"the density's {name} must be >= 1; got {number}")
        if number is not None and number > MAX_STEPS:
            raise ValueError(f"the density's {name} must be <= {MAX_STEPS:,}; got {number:,}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"the density's confidence must be a probability between 0 and 1, e.g. 0.95; got {confidence}")


@checked_keywords
def spectral_density(
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
    """The density of an operator's eigenvalues by stochastic Lanczos quadrature, with an error band.

    Args:
        operator: (n, n), symmetric, known by its products; also anybody's, as of `spectrum`.
        error: the largest Wasserstein distance to the truth, as a share of the range: steps are added while the
            quadrature's part of it is more than about half of that, probes until the whole fits.
        steps: for each probe; None: chosen by the first probe.
        probes: number of random starts; None: chosen.
        confidence: of the error and of the band, simultaneously in t.
        max_products: spends no more than that where it chooses.
        seed: of the probes.
        runs: made already with the same seed: its first probes.

    Returns:
        A `Density`: `nodes` (values and weights), `cumulative(t)` with its interval, `band`, `error` and `met`.

    Raises:
        ValueError: for arguments out of range.
        FloatingPointError: where a product is not finite.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> density = lossmap.spectral_density(lossmap.hessian(problem), steps=5, probes=2)
        >>> round(float(density.nodes[1].sum()), 6)
        1.0

    """
    check_density_request(error, steps, probes, confidence)
    operator, runs = as_operator(operator), list(runs)
    if not runs:
        runs.append(first_run(operator, error, steps, probes, max_products, seed))
    each = steps if steps is not None else len(runs[0].alpha)
    rounding = Rounding.of(operator)
    count = len(runs) if probes is None else probes
    while True:
        runs += [lanczos_run(operator, each, seed=seed, probe=i) for i in range(len(runs), count)]
        estimate = Density(tuple(runs), operator.size, rounding.epsilon, confidence, error)
        estimate = replace(estimate, rounding=rounding.stored(max(map(abs, estimate.range))))
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
    """The first probe's run, of the steps given, or of those that its share of the error takes."""
    if steps is not None:
        return lanczos_run(operator, steps, seed=seed, probe=0)
    # Where the probes are chosen too, half of the products are left for a second one.
    most = max(1, max_products // (probes or 2))
    return lanczos_run(operator, most, seed=seed, probe=0, error=QUADRATURE_SHARE * error)


def probes_for(estimate: Density) -> int:
    """The number of probes that should bring the band to its target: chance falls with their root."""
    chance = estimate.error - estimate.quadrature_error
    left = max(estimate.target - estimate.quadrature_error, 0.1 * estimate.target)
    return max(estimate.probes + 1, ceil(estimate.probes * (chance / left) ** 2))
