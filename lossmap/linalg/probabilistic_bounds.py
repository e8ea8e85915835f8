"""Beyond which number no eigenvalue lies, with a stated probability: read off a Lanczos run, for no further product.

A Lanczos run on a symmetric (n, n) matrix, started from a unit vector v, writes the vector after its j steps as
p_j(A) v, with a polynomial p_j that its own diagonal alpha (j,) and subdiagonal beta (j,) make by the recurrence

    beta_i p_i(t) = (t - alpha_i) p_{i-1}(t) - beta_{i-1} p_{i-2}(t),    p_0 = 1.

That vector has length one, so |g p_j(lambda)| <= 1 for every eigenvalue lambda, g being the component of v along its
eigenvector. Where v is uniformly random on the sphere, |g| > delta but with a chance that is known; beyond the largest
Ritz value p_j grows without bound, so an eigenvalue beyond the t with p_j(t) = 1/delta would contradict it. A warm
start (w + c r) / ||w + c r||, r random and w anything chosen before r, has |g| > c delta / ||w + c r|| with at least
the same probability, since the density of r's component is highest at zero.

The event |g| > delta is one and the same for all steps of a run: the tightest limit of all its steps holds as well.
Symbols: n the dimension, j the steps; alpha, beta and limits are in the operator's unit. Price: one tridiagonal
eigenvalue problem of dimension j and some 50 evaluations of the recurrence.
Source: van Dorsselaer, Hochstenbach and van der Vorst (2000), doi:10.1137/S0895479899357930, section 3.
"""

from __future__ import annotations

from math import inf, log, nan, sqrt

import numpy as np
from scipy.special import betaincinv

NO_LIMITS = (nan, nan)  # upper and lower limit where none was computed
BISECTION_TOLERANCE = 1e-13  # relative width at which the bisection for a limit ends


def least_component(n: int, confidence: float) -> float:
    """The delta that one component of a random unit vector in n dimensions exceeds with this probability.

    A component's square is distributed as Beta(1/2, (n - 1)/2). Raises ValueError where the confidence is not between
    0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"--confidence must be a probability between 0 and 1, e.g. 0.99; got {confidence}")
    if n == 1:
        return 1.0
    return sqrt(float(betaincinv(0.5, 0.5 * (n - 1), 1.0 - confidence)))


def upper_limit(alpha: np.ndarray, beta: np.ndarray, delta: float) -> float:
    """The t above all Ritz values with p_j(t) = 1/delta.

    alpha  (j,) the diagonal of the run's tridiagonal matrix
    beta   (j,) its subdiagonal; the last one is the length of the vector that would come next
    delta  what the start's component exceeds; 0: no limit

    Returns infinity without a step or a component.
    """
    steps = len(alpha)
    if steps == 0 or delta <= 0.0:
        return inf
    tridiagonal = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    values = np.linalg.eigvalsh(tridiagonal)
    low, target = float(values[-1]), -log(delta)
    if target <= 0.0:
        return low
    width = max(float(values[-1] - values[0]), float(beta.max()), abs(low) * 1e-15)
    if width == 0.0:
        return low
    # Above its zeros p_j grows with t: doubling encloses the limit, bisection finds it. The upper end is returned.
    high = low + width
    while _log_polynomial(alpha, beta, high) < target:
        width *= 2.0
        high = low + width
    while high - low > BISECTION_TOLERANCE * max(abs(low), abs(high)):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if _log_polynomial(alpha, beta, middle) < target:
            low = middle
        else:
            high = middle
    return high


def lower_limit(alpha: np.ndarray, beta: np.ndarray, delta: float) -> float:
    """The t below all Ritz values with |p_j(t)| = 1/delta: minus the upper limit of -A. Arguments as there."""
    return -upper_limit(-np.asarray(alpha), beta, delta)


def _log_polynomial(alpha: np.ndarray, beta: np.ndarray, t: float) -> float:
    """log p_j(t) for t above the zeros of p_j; -inf below.

    By the ratios p_i / p_{i-1} = (t - alpha_i - beta_{i-1} / (p_{i-1} / p_{i-2})) / beta_i, which do not overflow; one
    that is not positive tells of a zero above t.
    """
    total, ratio, previous = 0.0, inf, 0.0
    for a, b in zip(alpha.tolist(), beta.tolist(), strict=True):
        if b <= 0.0:  # an exact invariant subspace: p_j is infinite
            return inf
        ratio = (t - a - previous / ratio) / b
        if ratio == inf:
            return inf
        if not ratio > 0.0:
            return -inf
        total += log(ratio)
        previous = b
    return total
