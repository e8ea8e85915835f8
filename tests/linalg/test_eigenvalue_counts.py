"""Counts of eigenvalues inferred from the shares that probes see: coverage at one count, and at all together."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from lossmap.linalg.eigenvalue_counts import count_ranges, pointwise_tail, simultaneous_tail, smallest_counts

SEEDS = 200


def shares(n, s, seed):
    """What s probes see of the 1, ..., n - 1 smallest of n eigenvalues: partial sums of a Dirichlet vector."""
    lengths = np.random.default_rng(seed).chisquare(s, size=n)
    return np.cumsum(lengths)[:-1] / lengths.sum()


def covered(n, s, tail, seed):
    """At which counts the range inferred from the share holds the count itself, (n - 1,)."""
    seen = shares(n, s, seed)
    fewest, most = count_ranges(seen, seen, n, s, tail)
    assert (fewest <= most).all()
    k = np.arange(1, n)
    return (fewest <= k) & (k <= most)


@pytest.mark.parametrize("n", [2, 5, 30, 200, 600])
@pytest.mark.parametrize("s", [1, 4, 10])
def test_all_counts_are_covered_together_at_the_stated_rate(n, s):
    tail = simultaneous_tail(n, 0.95)
    hits = sum(covered(n, s, tail, seed).all() for seed in range(SEEDS))
    assert hits >= binom.ppf(0.0005, SEEDS, 0.95)


@pytest.mark.parametrize("n", [30, 600])
def test_the_pointwise_tail_covers_one_count_and_not_all_of_them(n):
    tail = pointwise_tail(0.95)
    rows = np.array([covered(n, 4, tail, seed) for seed in range(SEEDS)])
    assert rows[:, n // 2].sum() >= binom.ppf(0.0005, SEEDS, 0.95)
    assert rows.all(1).sum() < binom.ppf(0.0005, SEEDS, 0.95)  # the other test can fail


def test_counts_are_those_of_the_beta_law():
    for n, s, share in ((50, 1, 0.2), (50, 8, 0.2), (7, 3, 0.9)):
        k = np.arange(1, n)
        enough = beta.sf(share, 0.5 * s * k, 0.5 * s * (n - k)) >= 0.01
        assert smallest_counts(np.array([share]), n, s, 0.01)[0] == (k[enough][0] if enough.any() else n)
    assert smallest_counts(np.array([0.0, 1e-20, 1.0]), 9, 2, 0.01).tolist() == [0, 0, 9]


def test_a_range_is_never_upside_down_where_many_probes_see_few_eigenvalues():
    fewest, most = count_ranges(np.array([0.3, 0.5, 0.71]), np.array([0.3, 0.5, 0.71]), 2, 5000, 0.025)
    assert fewest.tolist() == [0, 1, 1] and most.tolist() == [1, 1, 2]
