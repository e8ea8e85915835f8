"""How many of n eigenvalues lie below t, inferred from the share that random probes see of them; with a confidence.

For s probes of independent normal entries, weighted by their squared lengths, the share U_k that they see of the k
smallest eigenvalues is distributed as Beta(s k/2, s (n - k)/2): exactly, whatever the matrix. Read backwards, a share
that was seen leaves those k for which neither as large nor as small a share would be rarer than a tail probability.

    pointwise     tail (1 - confidence)/2: right for one t that was chosen without a look at the shares
    simultaneous  one smaller tail for which, with the stated confidence, no k is left out wrongly at any t. U_1 ..
                  U_(n-1) are the partial sums of a Dirichlet vector, a law without unknowns, so that the tail is a
                  function of n and the confidence alone. It is (1 - confidence) over an effective number of tests, as
                  in bands of equal local levels (Aldor-Noiman et al. 2013): at most 2 (n - 1), and growing with log n;
                  the formula was fitted from above to simulations (`benchmarks/coverage.py` repeats them)

Symbols: n the dimension, k a number of eigenvalues, s probes, shares from 0 to 1. Price: a bisection, for an array of
shares together. Sources: Lin, Saad and Yang (2016), doi:10.1137/130934283; Aldor-Noiman, Brown, Buja, Rolke and Stine
(2013), doi:10.1080/00031305.2013.847865.
"""

from __future__ import annotations

from math import log

import numpy as np
from scipy.special import betainc

NEGLIGIBLE_SHARE = 1e-14  # a share of rounding, from which no eigenvalue is inferred


def pointwise_tail(confidence: float) -> float:
    """The tail probability on each side for one t."""
    return 0.5 * (1.0 - confidence)


def simultaneous_tail(n: int, confidence: float) -> float:
    """The tail probability on each side for which all counts of n eigenvalues hold together."""
    if n < 3:
        return pointwise_tail(confidence)
    # Within 1.0 to 1.7 times the simulated numbers for n from 20 to 1e9 and confidences from 0.5 to 0.99.
    tests = log(n) * (5.3 + 2.0 * log(1.0 / (1.0 - confidence)))
    return (1.0 - confidence) / min(tests, 2.0 * (n - 1))


def smallest_counts(shares: np.ndarray, n: int, s: int, tail: float) -> np.ndarray:
    """For each share, the smallest count k of n for which s probes see that or more with at least probability `tail`.

    shares  (m,). Returns (m,) integers; n where no smaller count will do. The probability grows with k: bisection.
    """
    shares = np.asarray(shares, dtype=float)
    low, high = np.zeros(len(shares), dtype=np.int64), np.full(len(shares), n, dtype=np.int64)
    rest = np.clip(1.0 - shares, 0.0, 1.0)
    while (high - low > 1).any():
        k = (low + high) // 2
        inner = (k > 0) & (k < n)  # where the two ends have met they are their own middle
        seen = betainc(0.5 * s * np.where(inner, n - k, 1), 0.5 * s * np.where(inner, k, 1), rest)
        is_enough = (seen >= tail) & inner
        is_open = high - low > 1
        high = np.where(is_open & is_enough, k, high)
        low = np.where(is_open & ~is_enough, k, low)
    return np.where(shares <= NEGLIGIBLE_SHARE, 0, high)


def count_ranges(low: np.ndarray, high: np.ndarray, n: int, s: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """The fewest and the most eigenvalues, each (m,), where probes see between `low` and `high` of them.

    low, high  (m,) bounds of the share seen; where they meet, the share is known
    """
    fewest = smallest_counts(low, n, s, tail)
    most = n - smallest_counts(1.0 - np.asarray(high), n, s, tail)
    # Of few eigenvalues many probes see shares that fit no count well: the two next to it are left.
    return np.minimum(fewest, most), np.maximum(fewest, most)
