"""What a Lanczos run from one random vector knows of the spectrum: Gauss quadrature, with bounds that are a theorem.

A run of m steps from a vector g gives the m-point Gauss quadrature of the measure that g sees,

    mu_g(t) = sum over eigenvalues <= t of (g.x_i)^2 / ||g||^2

with the eigenvalues of the tridiagonal matrix as nodes and the squared first components of its eigenvectors as weights.
Whatever the moments that the run has not seen, mu_g(t) lies between the weights of the nodes below t and that plus the
weight of a node put at t by the Gauss-Radau rule (Chebyshev, Markov, Stieltjes).

Symbols: n the dimension, m steps; nodes in the operator's unit, weights add up to one. Price: m products; memory n m.
Source: Golub and Meurant (1994), Matrices, moments and quadrature; Golub (1973), doi:10.1137/1015032, for Radau nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import eigh_tridiagonal

from lossmap import seeding
from lossmap.linalg.krylov_space import KrylovSpace
from lossmap.linalg.operator import SymmetricOperator

MIN_CHOSEN_STEPS = 48  # where the steps are chosen: fewer leave the bulk near zero in the dark
STEPS_BETWEEN_CHECKS = 8  # of the gap between the bounds, which costs some 40 eigenvalue problems
GAP_TICKS = 40  # places at which the gap is computed
CENTRE_WIDTH = 1e-3  # of the largest absolute end: the scale of the ticks that crowd around zero


@dataclass(frozen=True, eq=False)
class LanczosRun:
    """One probe's Lanczos run.

    alpha   (m,) the diagonal of the tridiagonal matrix
    beta    (m,) its subdiagonal; the last one is the length of the vector that would come next
    weight  the squared length of the normal vector that it was started from
    exact   whether the run ended in an invariant subspace: its quadrature is then the measure itself
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
        """(low, high) between which the measure of (-inf, t] lies: from the Gauss-Radau rule with a node at t."""
        nodes, weights = self.quadrature
        if self.exact:
            share = float(weights[nodes <= t].sum())
            return share, share
        last = radau_entry(self.alpha, self.beta, t)
        if not np.isfinite(last):  # t is a node already: its weight is the doubt
            return float(weights[nodes < t].sum()), float(weights[nodes <= t].sum())
        nodes, vectors = eigh_tridiagonal(np.append(self.alpha, last), self.beta)
        weights = vectors[0] ** 2
        at = int(np.abs(nodes - t).argmin())
        below = float(weights[:at].sum())
        return min(below, 1.0), min(below + float(weights[at]), 1.0)


def radau_entry(alpha: np.ndarray, beta: np.ndarray, t: float) -> float:
    """The last diagonal entry that makes t an eigenvalue: t + beta_m^2 / (the last pivot of T - t); may be infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pivot = alpha[0] - t
        for a, b in zip(alpha[1:], beta[:-1], strict=True):
            pivot = a - t - b * b / pivot
        return float(t + beta[-1] ** 2 / pivot)


def lanczos_run(
    operator: SymmetricOperator, steps: int, *, seed: int | str = 0, probe: int = 0, error: float | None = None
) -> LanczosRun:
    """A Lanczos run of at most so many steps from the normal vector of this seed and probe.

    error  ends the run where half the area between the bounds is at most this share of the range, computed at every
           eighth step from the 48th on; None: at the last step

    Fully reorthogonalised: a run that loses orthogonality counts its outermost eigenvalues several times.
    Raises FloatingPointError where a product is not finite.
    """
    start = seeding.normal(operator.size, "density probe", seed, probe).double()
    space = KrylovSpace(operator, start[:, None], min(steps + 1, operator.size))
    weight = float((start * start).sum())
    while True:
        space.step()
        m = space.multiplied
        is_last = space.is_invariant or m >= steps
        is_checked = error is not None and m >= MIN_CHOSEN_STEPS and m % STEPS_BETWEEN_CHECKS == 0
        if is_last or is_checked:
            alpha, beta = space.tridiagonal()
            run = LanczosRun(alpha, beta, weight, space.is_invariant)
            if is_last or (error is not None and relative_gap(run) <= error):
                return run


def relative_gap(run: LanczosRun) -> float:
    """Half the area between a run's bounds, over its range."""
    nodes, _ = run.quadrature
    if nodes[-1] == nodes[0]:
        return 0.0
    ticks = crowded_ticks(nodes, nodes[0], nodes[-1], GAP_TICKS)
    bounds = np.array([run.bounds(t) for t in ticks])
    width = bounds[:, 1] - bounds[:, 0]
    area = float(np.diff(ticks) @ (width[1:] + width[:-1])) / 2.0
    return area / 2.0 / float(nodes[-1] - nodes[0])


def crowded_ticks(nodes: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """At most `count` ascending ticks from low to high: a third even, a third at the nodes, a third around zero."""
    third = count // 3
    between = np.quantile(nodes, np.linspace(0.0, 1.0, count - 2 * third))
    scale = CENTRE_WIDTH * max(abs(low), abs(high)) or 1.0
    crowded = scale * np.sinh(np.linspace(np.arcsinh(low / scale), np.arcsinh(high / scale), third))
    return np.unique(np.concatenate([np.linspace(low, high, third), between, np.clip(crowded, low, high)]))
