"""The density of a matrix's eigenvalues, from few products, with an error band that can be relied on.

    F(t) = the share of the n eigenvalues that are <= t         the cumulative density, from 0 to 1

A Lanczos run of m steps from a random vector g gives the m-point Gauss quadrature of the measure that g sees: nodes
and weights. What is not known of F has two parts, and both are told:

    quadrature  whatever the unseen moments are, g's own cumulative measure at t lies between the weights of the nodes
                below t and that plus the weight of a node put at t (Chebyshev, Markov, Stieltjes): a theorem
    chance      for s normal vectors g_i, weighted by their squared lengths, the measure at t is distributed as
                Beta(s k/2, s (n - k)/2), where k = n F(t) is the number of eigenvalues <= t: exactly, whatever the
                matrix. Read backwards it is an interval for k with the stated confidence, for one probe already

The band is the two together, pointwise in t. Half of its area over the range bounds how far the drawn curve may be from
the truth in Wasserstein distance; steps and probes are added until it is as small as wanted.

Letters: n the dimension, m steps, s probes. Price: m s products; memory n m. Full reorthogonalisation, since a run that
loses orthogonality counts its top eigenvalues several times. Sources: Golub and Meurant (1994); Lin, Saad and Yang
(2016), doi:10.1137/130934283; Ghorbani, Krishnan and Xiao (2019), arXiv:1901.10159.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.stats import beta as beta_distribution

from lossmap import seeding
from lossmap.linalg.krylov_space import ROUNDING, KrylovSpace, SymmetricOperator
from lossmap.report.estimates import density_text, mass_text

LEAST = 48  # steps, where they are chosen: fewer leave the bulk near zero in the dark
TICKS = 180  # places at which the band is computed
NARROW = 1e-3  # of the largest absolute node: the scale of the places that crowd around zero


@dataclass(frozen=True, eq=False)
class LanczosRun:
    """One probe's Lanczos run.

    alpha   (m,) and beta (m,): the tridiagonal matrix, and the length of the vector that would come next
    weight  the squared length of the normal vector that it was started from
    exact   whether the run ended by itself: its quadrature is then the measure itself
    """

    alpha: np.ndarray
    beta: np.ndarray
    weight: float
    exact: bool = False

    @cached_property
    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes ascending (m,) and their weights (m,), which add up to one."""
        nodes, vectors = eigh_tridiagonal(self.alpha, self.beta[:-1])
        return nodes, vectors[0] ** 2

    def bounds(self, t: float) -> tuple[float, float]:
        """Between what the measure of (-inf, t] lies: from the Gauss-Radau rule with a node at t."""
        nodes, weights = self.quadrature
        if self.exact:
            share = float(weights[nodes <= t].sum())
            return share, share
        last = _radau(self.alpha, self.beta, t)
        if not np.isfinite(last):
            return float(weights[nodes < t].sum()), float(weights[nodes <= t].sum())
        nodes, vectors = eigh_tridiagonal(np.append(self.alpha, last), self.beta)
        weights = vectors[0] ** 2
        own = int(np.abs(nodes - t).argmin())
        below = float(weights[:own].sum())
        return min(below, 1.0), min(below + float(weights[own]), 1.0)


def _radau(alpha: np.ndarray, beta: np.ndarray, t: float) -> float:
    """The last diagonal entry that makes t an eigenvalue: t - beta_m^2 / (the last pivot of T - t)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pivot = alpha[0] - t
        for a, b in zip(alpha[1:], beta[:-1], strict=True):
            pivot = a - t - b * b / pivot
        return float(t + beta[-1] ** 2 / pivot)


def lanczos_run(
    matrix: SymmetricOperator, steps: int, *, seed: int | str = 0, probe: int = 0, error: float | None = None
) -> LanczosRun:
    """A Lanczos run from the normal vector of this seed and probe.

    error  goes on only until half the area between the bounds is at most this share of the range, looked at every
           eighth step from `MIN_TAIL_SIZE` on
    """
    g = seeding.normal(matrix.size, "density probe", seed, probe).double()
    space = KrylovSpace(matrix, g[:, None], min(steps + 1, matrix.size))
    weight = float((g * g).sum())
    while True:
        space.step()
        done = space.multiplied == space.filled  # nothing new: an invariant subspace
        looked = error is not None and space.multiplied >= LEAST and space.multiplied % 8 == 0
        if done or looked or space.multiplied >= steps:
            alpha, beta = space.tridiagonal()
            found = LanczosRun(alpha, beta, weight, done)
            if done or space.multiplied >= steps or (error is not None and _gap(found) <= error):
                return found


def _gap(found: LanczosRun) -> float:
    """Half the area between a run's bounds, over its range."""
    nodes, _ = found.quadrature
    if nodes[-1] == nodes[0]:
        return 0.0
    ticks = _ticks(nodes, nodes[0], nodes[-1], 40)
    bounds = np.array([found.bounds(t) for t in ticks])
    return float(np.trapezoid(bounds[:, 1] - bounds[:, 0], ticks)) / 2.0 / float(nodes[-1] - nodes[0])


def _ticks(nodes: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """Ascending places between the ends: a third even, a third where the nodes are, a third crowding around zero."""
    third = count // 3
    between = np.quantile(nodes, np.linspace(0.0, 1.0, count - 2 * third))
    scale = NARROW * max(abs(low), abs(high)) or 1.0
    crowded = scale * np.sinh(np.linspace(np.arcsinh(low / scale), np.arcsinh(high / scale), third))
    return np.unique(np.concatenate([np.linspace(low, high, third), between, np.clip(crowded, low, high)]))


@dataclass(frozen=True)
class MassInterval:
    """A share of the n eigenvalues, as known: value, and from low to high with the stated confidence."""

    value: float
    low: float
    high: float
    size: int
    confidence: float

    @property
    def count(self) -> tuple[int, int]:
        """From how many to how many eigenvalues, inclusive."""
        return round(self.low * self.size), round(self.high * self.size)

    def __repr__(self) -> str:
        return mass_text((self.value, self.low, self.high), self.size, self.confidence)


@dataclass(frozen=True, eq=False)
class Density:
    """The spectrum as a distribution: raw nodes, cumulative with its band, smoothed on request.

    runs        one for each probe
    size        the dimension n
    epsilon     the rounding of the products, relative to the largest absolute eigenvalue
    confidence  of the band and of shares, pointwise
    wanted      the error asked for, as a share of the range
    known       all n eigenvalues, where the matrix was small enough to be had whole; there are no runs then
    """

    runs: tuple[LanczosRun, ...]
    size: int
    epsilon: float
    confidence: float = 0.95
    wanted: float = np.inf
    known: np.ndarray | None = None

    @property
    def products(self) -> int:
        """Matrix-vector products spent."""
        if self.known is not None:
            return self.size
        return sum(len(r.alpha) for r in self.runs)

    @property
    def probes(self) -> int:
        """How many random starts s."""
        return len(self.runs)

    @property
    def steps(self) -> int:
        """Steps of the longest run; 0 where all eigenvalues are known."""
        return max((len(r.alpha) for r in self.runs), default=0)

    @cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """All probes' nodes, ascending, and their weights, which add up to one."""
        if self.known is not None:
            return np.sort(self.known), np.full(self.size, 1.0 / self.size)
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
        """By how much rounding in the products may have moved a node."""
        return ROUNDING * self.epsilon * max(abs(self.range[0]), abs(self.range[1]))

    def cumulative(self, t: float) -> MassInterval:
        """F(t): the share of eigenvalues <= t. Ties within the allowance for rounding widen the interval."""
        low, high = self._bounds(t - self.allowance)[0], self._bounds(t + self.allowance)[1]
        middle = self._bounds(t)
        if self.known is not None:
            return MassInterval(middle[0], low, high, self.size, self.confidence)
        tail = 0.5 * (1.0 - self.confidence)
        least = _least(low, self.size, self.probes, tail)
        most = self.size - _least(1.0 - high, self.size, self.probes, tail)
        return MassInterval(
            0.5 * (middle[0] + middle[1]), least / self.size, most / self.size, self.size, self.confidence
        )

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
        ticks = _ticks(self.nodes[0], low - margin, high + margin, TICKS)
        shares = [self.cumulative(t) for t in ticks]
        value, least, most = (np.array([getattr(s, name) for s in shares]) for name in ("value", "low", "high"))
        accumulate = np.maximum.accumulate
        return ticks, accumulate(value), accumulate(least), np.minimum.accumulate(most[::-1])[::-1]

    @cached_property
    def error(self) -> float:
        """Half the area of the band, as a share of the range: how far off, in Wasserstein distance, F may be."""
        low, high = self.range
        if high == low or self.known is not None:
            return 0.0
        ticks, _, least, most = self.band
        return float(np.trapezoid(most - least, ticks)) / 2.0 / (high - low)

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
        """Whether the wanted error was reached."""
        return self.error <= self.wanted

    def smoothed(self, t: np.ndarray, width: float | None = None) -> np.ndarray:
        """The density at t, (ticks,), each node drawn as a Gaussian of this standard deviation, per unit of t.

        width  None: a hundredth of the range, no less than the rounding. Smoothing is for the eye: what it adds to
               the error is of the order of the width, and the cumulative density does without it
        """
        nodes, weights = self.nodes
        low, high = self.range
        sigma = max(0.01 * (high - low), self.allowance, 1e-30) if width is None else width
        z = (np.asarray(t)[:, None] - nodes) / sigma
        total: np.ndarray = np.exp(-0.5 * z * z) @ weights / (sigma * np.sqrt(2 * np.pi))
        return total

    def wasserstein(self, eigenvalues: np.ndarray) -> float:
        """The Wasserstein distance of the raw nodes to a known spectrum, in the unit of the eigenvalues."""
        nodes, weights = self.nodes
        true = np.sort(eigenvalues)
        places = np.sort(np.concatenate([nodes, true]))
        found = np.concatenate([[0.0], np.cumsum(weights)])[np.searchsorted(nodes, places[:-1], side="right")]
        known = np.searchsorted(true, places[:-1], side="right") / len(true)
        return float((np.abs(found - known) * np.diff(places)).sum())

    def __repr__(self) -> str:
        effort = (self.probes, self.steps, self.products)
        return f"Density({density_text(self.range, self.size, effort, self.error, self.confidence)})"

    def _bounds(self, t: float) -> tuple[float, float]:
        """The probes' bounds at t, averaged with their weights."""
        if self.known is not None:
            share = float((self.known <= t).mean())
            return share, share
        total = sum(r.weight for r in self.runs)
        pairs = [(r.weight, *r.bounds(t)) for r in self.runs]
        return sum(w * low for w, low, _ in pairs) / total, sum(w * high for w, _, high in pairs) / total


def _least(seen: float, n: int, s: int, tail: float) -> int:
    """The smallest k for which s probes see a share of `seen` or more with at least this probability."""
    if seen <= 1e-14:
        return 0
    k = np.arange(1, n)
    if n <= 4096:
        enough = beta_distribution.sf(seen, 0.5 * s * k, 0.5 * s * (n - k)) >= tail
        return int(k[enough][0]) if enough.any() else n
    low, high = 0, n  # the probability grows with k: bisection
    while high - low > 1:
        middle = (low + high) // 2
        if float(beta_distribution.sf(seen, 0.5 * s * middle, 0.5 * s * (n - middle))) >= tail:
            high = middle
        else:
            low = middle
    return high


def check_asked(error: float, steps: int | None, probes: int | None) -> None:
    """Raises ValueError for an error, steps or probes that make no sense."""
    if not error > 0.0:
        raise ValueError(f"the density's error wants a share of the range above 0, such as 0.01; got {error}")
    for name, number in (("steps", steps), ("probes", probes)):
        if number is not None and number < 1:
            raise ValueError(f"the density wants 1 or more {name}; got {number}")


def density(
    matrix: SymmetricOperator,
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

    error         the largest wanted Wasserstein distance to the truth, as a share of the range: steps are added while
                  the quadrature's part of the band is more than half of it, probes until the whole fits
    steps         so many for each probe; None: chosen by the first probe
    probes        so many; None: chosen
    max_products  spends no more than that where it chooses
    runs          runs made already with the same seed, the first probes of it

    Raises ValueError for what makes no sense, FloatingPointError where a product is not finite.
    """
    check_asked(error, steps, probes)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence is a probability between 0 and 1, such as 0.95; got {confidence}")
    made = list(runs)
    if not made:
        most = steps if steps is not None else max(1, max_products // 2 if probes is None else max_products // probes)
        made.append(lanczos_run(matrix, most, seed=seed, probe=0, error=error / 2 if steps is None else None))
    each = steps if steps is not None else len(made[0].alpha)
    epsilon = float(torch.finfo(matrix.dtype).eps)
    wanted = len(made) if probes is None else probes
    while True:
        made += [lanczos_run(matrix, each, seed=seed, probe=i) for i in range(len(made), wanted)]
        found = Density(tuple(made), matrix.size, epsilon, confidence, error)
        if probes is not None or found.error <= error:
            return found
        chance_part = found.error - found.quadrature_error
        left = max(error - found.quadrature_error, 0.1 * error)  # what more probes may still leave
        wanted = max(len(made) + 1, ceil(len(made) * (chance_part / left) ** 2))
        wanted = min(wanted, max_products // max(each, 1))
        if wanted <= len(made):
            return found
