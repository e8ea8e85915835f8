"""Planted power laws are detected, and others rejected."""

from __future__ import annotations

import numpy as np
import pytest

from lossmap.linalg.power_law import PowerLawTail, power_law_tail


def pareto(alpha, count, seed=0):
    return (1.0 - np.random.default_rng(seed).random(count)) ** (-1.0 / (alpha - 1.0))


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_a_planted_exponent_is_found_within_its_error(alpha):
    found = power_law_tail(pareto(alpha, 800))
    assert abs(found.alpha - alpha) < 4 * found.error and found.error < 0.15 * alpha
    assert found.plausible and "not rejected" in repr(found)


def test_a_tail_behind_a_body_is_found_where_it_begins():
    values = np.concatenate([np.random.default_rng(1).uniform(0.1, 1.0, 600), pareto(3.0, 400)])
    found = power_law_tail(values)
    assert 0.7 < found.start < 1.6 and abs(found.alpha - 3.0) < 4 * found.error


def test_the_spectrum_of_a_random_matrix_is_refused_as_a_power_law():
    w = np.random.default_rng(2).standard_normal((600, 400))
    found = power_law_tail(np.linalg.svd(w, compute_uv=False) ** 2)
    assert not found.plausible


def test_the_error_is_the_spread_over_draws():
    draws = [power_law_tail(pareto(2.5, 200, seed=k), draws=25) for k in range(16)]
    spread = np.std([t.alpha for t in draws])
    assert 0.4 * spread < np.mean([t.error for t in draws]) < 2.5 * spread


def test_the_exponent_has_the_digits_of_its_error():
    assert "alpha 2.5012 +- 0.0031 over" in repr(PowerLawTail(2.501234, 0.0031, 1.0, 900, 900, 0.01, 0.5))


def test_a_few_values_are_reported_as_too_few():
    found = power_law_tail(pareto(2.0, 30))
    assert not found.enough and not found.plausible and np.isnan(found.error)
    assert "at least 50 are needed" in repr(found)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="two different positive values"):
        power_law_tail(np.array([0.0, 1.0, 1.0]))
