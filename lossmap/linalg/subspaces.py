"""Subspaces known by scalar products alone, and how near they lie to each other by chance.

Two subspaces of R^n are given by rows, p and q of them, known only by their Gram matrices: with these small matrices
nothing below costs more with a larger n. Rows need not be quite orthonormal.

    cosines    of the principal angles, descending: singular values of Q_a Q_b^T, Q with orthonormal rows
    overlap    sum of cosines^2 / min(p, q), in [0, 1]: 1 where one contains the other

What chance gives, for subspaces drawn uniformly (Haar) in R^n; real, independent:

    |cosine| of two lines      mean Gamma(n/2) / (sqrt(pi) Gamma((n+1)/2)); cosine^2 ~ Beta(1/2, (n-1)/2)
    overlap                    mean p q / (n min(p, q)); variance of sum cosines^2:
                               2 p (n-p) q (n-q) / (n^2 (n-1) (n+2))
    s subspaces of dim r       largest eigenvalue of their s r rows' Gram matrix, for large n, a = r/n:
                               1 + (s-2) a + 2 sqrt((s-1) a (1-a))  (the free sum of s projections)
                               their participation ratio: (s r)^2 / (s r + s (s-1) r^2 / n)

Sources: Bjorck and Golub (1973), doi:10.1090/S0025-5718-1973-0348991-3, for the angles; Collins and Sniady
(2006), doi:10.1007/s00220-006-1554-3, for moments over the orthogonal group; Kesten (1959),
doi:10.1090/S0002-9947-1959-0109367-6, and Voiculescu, Dykema and Nica, Free Random Variables (1992), for the
edge. Angles below some 4e-4 cannot be distinguished from 0 where the vectors are float32. Price: (p + q)^3.
"""

from __future__ import annotations

from math import exp, lgamma, nan, pi, sqrt

import numpy as np
from scipy import special

Array = np.ndarray
MIN_RELATIVE_EIGENVALUE = 1e-10  # of a Gram matrix, to its largest: below it rows depend on each other


def inverse_root(gram: Array) -> Array:
    """A matrix W, (rank, p), that makes rows with this Gram matrix (p, p) orthonormal: W gram W^T = 1.

    Rows that depend on others are dropped with their direction.
    """
    values, vectors = np.linalg.eigh(gram)
    independent = values > values[-1] * MIN_RELATIVE_EIGENVALUE
    root: Array = (vectors[:, independent] / np.sqrt(values[independent])).T
    return root


def principal_cosines(own: Array, cross: Array, other: Array) -> Array:
    """Cosines of the principal angles, (min(p, q),), descending.

    own (p, p) and other (q, q) are the two Gram matrices, cross (p, q) the products between them.
    """
    between = inverse_root(own) @ cross @ inverse_root(other).T
    cosines: Array = np.clip(np.linalg.svd(between, compute_uv=False), 0.0, 1.0)
    return cosines


def overlap_of(cosines: Array) -> float:
    """The mean of the squared cosines (m,): 1 where the smaller subspace lies in the larger, 0 at right angles."""
    return float(np.mean(np.square(cosines)))


def chance_cosine(n: int) -> float:
    """The mean |cosine| of two independent uniform lines in R^n: near sqrt(2 / (pi n))."""
    return exp(lgamma(n / 2) - lgamma((n + 1) / 2)) / sqrt(pi)


def chance_cosine_limit(n: int, tries: int = 1, confidence: float = 0.99) -> float:
    """The |cosine| in R^n which, with probability `confidence`, none of `tries` independent ones exceeds."""
    if n < 2:
        return 1.0
    tail = -np.expm1(np.log(confidence) / max(tries, 1))  # of each try: 1 - confidence^(1/tries)
    return float(np.sqrt(special.betainccinv(0.5, (n - 1) / 2, tail)))


def chance_overlap(n: int, p: int, q: int) -> tuple[float, float]:
    """Mean and standard deviation of the overlap of two uniform subspaces of dimensions p and q in R^n."""
    smaller = min(p, q)
    if max(p, q) >= n:
        return 1.0, 0.0
    variance = 2.0 * p * (n - p) * q * (n - q) / (n**2 * (n - 1.0) * (n + 2.0))
    return p * q / (n * smaller), sqrt(variance) / smaller


def chance_largest(n: int, s: int, r: int) -> float:
    """The largest eigenvalue of the (s r, s r) Gram matrix of s uniform subspaces of dimension r, for large n."""
    a = r / n
    if s < 2:
        return 1.0
    if a >= 1 - 1 / s:  # then they all share a direction
        return float(s)
    return 1 + (s - 2) * a + 2 * sqrt((s - 1) * a * (1 - a))


def chance_participation(n: int, s: int, r: int) -> float:
    """The participation ratio (sum l)^2 / E sum l^2 of the eigenvalues l of `chance_largest`'s matrix."""
    m = s * r
    return m**2 / (m + s * (s - 1) * r**2 / n)


def participation(weights: Array) -> float:
    """(sum w)^2 / sum w^2 of weights (m,) >= 0: the effective number of them; NaN where all are zero."""
    total = float(np.sum(weights))
    if not total > 0:
        return nan
    return total**2 / float(np.sum(np.square(weights)))
