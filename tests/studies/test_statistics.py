"""Intervals of studies: against SciPy's own, and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lossmap.studies import statistics
from lossmap.studies.statistics import log_ratio, mean_interval, rank_correlation


def test_the_mean_has_students_interval():
    values = np.array([1.0, 2.5, 0.3, 4.0, np.nan])
    found = mean_interval(values)
    truth = stats.ttest_1samp(values[:4], 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high)) and found.count == 4
    assert found.value == pytest.approx(1.95)


def test_too_few_have_no_interval_and_no_sign():
    for values in ([], [2.0], [np.nan, 3.0]):
        found = mean_interval(np.array(values))
        assert found.sign == 0 and np.isinf(found.low) and np.isinf(found.high)
    assert rank_correlation(np.arange(3), np.arange(3)).sign == 0
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9)).value)


def test_a_ratio_is_paired_and_leaves_out_what_has_no_logarithm():
    below = np.array([1.0, 10.0, 100.0, 1.0, np.nan, 0.0])
    found = log_ratio(2 * below, below)
    assert (found.value, found.low, found.high) == pytest.approx((np.log(2),) * 3) and found.count == 4


def test_the_rank_correlation_is_spearmans_with_ties():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 6, 30).astype(float)
    y = x + generator.normal(0, 2, 30)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high and found.sign == 1
    assert rank_correlation(x, -y).sign == -1
    assert rank_correlation(np.exp(x), y) == found  # ranks alone count


@pytest.mark.parametrize("size", [1, 3])  # nets of a recipe that are all alike
def test_intervals_of_independent_numbers_hold_zero(monkeypatch, size):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(16), size)
    held = 0
    for _ in range(30):
        x, y = np.repeat(generator.normal(size=(2, 16)), size, axis=1) + 0.01 * generator.normal(size=(2, 16 * size))
        held += rank_correlation(x, y, groups).sign == 0
    assert held >= stats.binom.ppf(0.001, 30, 0.92)  # percentile intervals of 16 are somewhat narrow


def test_intervals_of_eight_recipes_hold_the_truth(monkeypatch):
    """As in the study: three seeds each, which scatter about their recipe. Plain percentiles miss 0 in 28 of 400."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    generator = np.random.default_rng(0)
    groups, missed = np.repeat(np.arange(8), 3), 0
    for _ in range(400):
        x, y = np.repeat(generator.normal(size=(2, 8)), 3, axis=1) + 0.3 * generator.normal(size=(2, 24))
        missed += rank_correlation(x, y, groups).sign != 0
    assert missed <= 20


@pytest.mark.parametrize("recipes", [3, 6])
def test_nets_of_few_recipes_have_no_interval(recipes):
    nets = np.arange(3.0 * recipes)
    found = rank_correlation(nets, nets**2, np.repeat(np.arange(recipes), 3))
    assert found.value == pytest.approx(1.0) and found.sign == 0
