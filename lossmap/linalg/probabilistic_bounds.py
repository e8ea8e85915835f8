"""Beyond which number no eigenvalue lies, with a stated probability: read off a Lanczos run, no further products.

A Lanczos run on a symmetric (n, n) matrix, started from a unit vector v, writes the vector after its j steps as
p_j(A) v, with a polynomial p_j that its own numbers alpha (j,) and beta (j,) make by the recurrence

    beta_i p_i(t) = (t - alpha_i) p_{i-1}(t) - beta_{i-1} p_{i-2}(t),    p_0 = 1.

That vector has length one, so |g p_j(lambda)| <= 1 for every eigenvalue lambda, g being the component of v along its
eigenvector. Where v is uniformly random on the sphere, |g| > delta but with a chance that is known; beyond the largest
Ritz value p_j grows without bound, so an eigenvalue beyond the t with p_j(t) = 1/delta would contradict it. A warm
start (w + c r) / ||w + c r||, r random and w anything chosen before r, has |g| > c delta / ||w + c r|| with at least
the same probability, since the density of r's component is highest at zero.

The event |g| > delta is one and the same for all steps of a run: the tightest limit of all its steps holds as well.
Source: van Dorsselaer, Hochstenbach and van der Vorst (2000), doi:10.1137/S0895479899357930, section 3.
"""

from __future__ import annotations

from math import inf, log, nan, sqrt

import numpy as np
from scipy.special import betaincinv


def least_component(n: int, confidence: float) -> float:
    """The delta that one component of a random unit vector in n dimensions exceeds with this probability.

    Raises ValueError where confidence is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"--confidence wants a probability between 0 and 1, such as 0.99; got {confidence}")
    if n == 1:
        return 1.0
    return sqrt(float(betaincinv(0.5, 0.5 * (n - 1), 1.0 - confidence)))  # a component's square is Beta(1/2, (n-1)/2)


def upper_limit(alpha: np.ndarray, beta: np.ndarray, delta: float) -> float:
    """The t above all Ritz values with p_j(t) = 1/delta.

    alpha  (j,) the diagonal of the run's tridiagonal matrix
    beta   (j,) what stands below it; the last one is the length of the vector that would come next
    """
    steps = len(alpha)
    if steps == 0 or delta <= 0.0:
        return inf
    matrix = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    values = np.linalg.eigvalsh(matrix)
    low, wanted = float(values[-1]), -log(delta)
    if wanted <= 0.0:
        return low
    width = max(float(values[-1] - values[0]), float(beta.max()), abs(low) * 1e-15)
    if width == 0.0:
        return low
    high = low + width
    while _log_polynomial(alpha, beta, high) < wanted:
        width *= 2.0
        high = low + width
    while high - low > 1e-13 * max(abs(low), abs(high)):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if _log_polynomial(alpha, beta, middle) < wanted else (low, middle)
    return high


def lower_limit(alpha: np.ndarray, beta: np.ndarray, delta: float) -> float:
    """The t below all Ritz values with |p_j(t)| = 1/delta."""
    return -upper_limit(-np.asarray(alpha), beta, delta)


def _log_polynomial(alpha: np.ndarray, beta: np.ndarray, t: float) -> float:
    """log p_j(t) for t above the zeros of p_j; -inf below. By ratios, which do not overflow."""
    total, ratio, before = 0.0, inf, 0.0
    for a, b in zip(alpha.tolist(), beta.tolist(), strict=True):
        ratio = (t - a - before / ratio) / b if b > 0.0 else inf
        if not ratio > 0.0:
            return -inf
        if ratio == inf:
            return inf
        total += log(ratio)
        before = b
    return total


NONE = (nan, nan)  # upper and lower limit where none was computed
