"""The trace: exact cases, unbiasedness, errors as the papers state them, and standard errors that cover the truth."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import binom
from scipy.stats import t as student

from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.trace import METHODS, Sketch, degrees_of_freedom, trace, xtrace


@dataclass(frozen=True)
class Dense:
    """A dense matrix that offers its products alone."""

    entries: torch.Tensor

    @property
    def size(self):
        return len(self.entries)

    @property
    def dtype(self):
        return self.entries.dtype

    @property
    def device(self):
        return self.entries.device

    def __matmul__(self, v):
        return self.entries @ v


def planted(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return Dense(((q * values) @ q.T).to(dtype))


n = 200
SPECTRA = {
    "flat": np.linspace(3, 1, n),
    "poly": np.arange(1, n + 1) ** -2.0,
    "exp": 0.7 ** np.arange(n),
    "step": np.r_[np.ones(20), 1e-3 * np.ones(n - 20)],
    "indefinite": np.linspace(-1, 2, n),
}


@pytest.mark.parametrize("method", METHODS)
def test_with_n_products_the_trace_is_exact(method):
    found = trace(planted([3.0, -1.0, 0.5, 0.0, 2.0, 1.0, 1.0]), method, products=60)
    assert found.exact and found.products == 7
    assert found.value == pytest.approx(6.5, abs=1e-12)
    assert found.error < 1e-12
    assert "exact" in repr(found)


@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
def test_a_multiple_of_the_identity_is_known_from_one_probe_up(method):
    found = trace(Dense(2.0 * torch.eye(100, dtype=torch.float64)), method, products=12)
    assert found.value == pytest.approx(200.0, rel=1e-9)
    assert found.error < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_trace_zero_with_no_error(method):
    found = trace(Dense(torch.zeros(100, 100)), method, products=12)
    assert found.value == 0.0 and found.error == 0.0 and found.interval() == (0.0, 0.0)


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_a_matrix_of_low_rank_is_known_to_rounding(method):
    found = trace(planted(np.r_[np.arange(1.0, 9.0), np.zeros(192)]), method, products=60)
    assert found.value == pytest.approx(36.0, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["flat", "step", "indefinite"])
def test_the_estimates_are_unbiased_over_seeds(method, kind):
    matrix, truth = planted(SPECTRA[kind]), SPECTRA[kind].sum()
    values = np.array([trace(matrix, method, products=24, seed=seed).value for seed in range(60)])
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(60)


def mean_error(kind, method, products, seeds=20):
    matrix, truth = planted(SPECTRA[kind]), SPECTRA[kind].sum()
    errors = [abs(trace(matrix, method, products=products, seed=s).value - truth) / truth for s in range(seeds)]
    return float(np.mean(errors))


def test_xtrace_falls_exponentially_where_the_eigenvalues_do():
    """Epperly, Tropp and Webber (2024), theorem 1.1: the error is governed by the tail beyond half of the products."""
    assert mean_error("exp", "xtrace", 20) < 2e-2
    assert mean_error("exp", "xtrace", 60) < 2e-5
    assert mean_error("exp", "xtrace", 100) < 2e-8


def test_hutch_plus_plus_falls_with_the_inverse_of_products_where_hutchinson_falls_with_its_root():
    """Meyer et al. (2021), theorem 1: relative error O(1/m) for any positive semidefinite matrix."""
    for kind in ("poly", "step", "flat"):
        assert mean_error(kind, "hutch++", 60) < 2.0 / 60
    assert mean_error("poly", "hutch++", 60) < 0.1 * mean_error("poly", "hutchinson", 60)


def test_xtrace_beats_hutch_plus_plus_where_eigenvalues_decay():
    assert mean_error("exp", "xtrace", 60) < 0.1 * mean_error("exp", "hutch++", 60)
    assert mean_error("poly", "xtrace", 60) < mean_error("poly", "hutch++", 60)


def coverage(kind, method, products, confidence):
    """How many of 200 seeds' intervals hold the truth."""
    matrix, truth = planted(SPECTRA[kind]), SPECTRA[kind].sum()
    held = (trace(matrix, method, products=products, seed=seed).interval(confidence) for seed in range(200))
    return sum(low <= truth <= high for low, high in held)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_t_intervals_cover_the_truth_at_their_stated_rate_over_200_seeds(method):
    assert coverage("indefinite", method, 30, 0.5) >= binom.ppf(0.0005, 200, 0.5)
    assert coverage("indefinite", method, 30, 0.95) >= binom.ppf(0.0005, 200, 0.95)
    for kind in SPECTRA:
        assert coverage(kind, method, 60, 0.95) >= binom.ppf(0.0005, 200, 0.95), kind


@pytest.mark.parametrize("method", METHODS)
def test_few_products_cover_the_truth_where_some_eigenvalues_outweigh_all_others(method):
    """Terms are chi-squared numbers there: Student's t with one degree of freedom fewer holds 174 to 180 of 200."""
    spikes = planted(np.r_[1e-7 * np.random.default_rng(7).standard_normal(190), np.geomspace(0.1, 20, 10)])
    truth = float(spikes.entries.trace())
    held = [trace(spikes, method, products=10, seed=seed).interval() for seed in range(200)]
    assert sum(low <= truth <= high for low, high in held) >= binom.ppf(0.01, 200, 0.95)


def test_the_degrees_of_freedom_are_those_of_chi_squared_terms():
    r = np.random.default_rng(0)
    for terms in (3, 10, 60):
        x = r.standard_normal((50_000, terms)) ** 2
        deviations = np.abs(x.mean(1) - 1.0) / (x.std(1, ddof=1) / np.sqrt(terms))
        assert 0.99 < student.ppf(0.975, degrees_of_freedom(terms)) / np.quantile(deviations, 0.95) < 1.6
    assert student.ppf(0.975, degrees_of_freedom(60)) < 1.2 * student.ppf(0.975, 59)  # and of use


@pytest.mark.parametrize("products", [6, 40])
def test_xtrace_covers_the_truth_at_least_at_the_stated_rate_over_200_seeds(products):
    """Its error is the jackknife's, which Efron and Stein bound from below: too wide rather than too narrow.

    `step` at 40 products is where the spread of its terms alone would hold the truth in 40 % of seeds.
    """
    for kind in SPECTRA:
        assert coverage(kind, "xtrace", products, 0.95) >= binom.ppf(0.0005, 200, 0.95), kind


def test_xtrace_equals_its_definition_probe_by_probe():
    """The twin: leave each probe out, make the subspace anew, and estimate what lies outside of it."""
    matrix, s = planted(SPECTRA["poly"]), 5
    sketch = Sketch(matrix, 3)
    found = xtrace(matrix, 2 * s, sketch=sketch)
    a, w = matrix.entries, sketch.probes

    def mean(probes):
        terms = []
        for i in probes:
            others = [j for j in probes if j != i]
            q = torch.linalg.qr(a @ w[:, others])[0]
            rest = w[:, i] - q @ (q.T @ w[:, i])
            rest *= np.sqrt(n - len(probes) + 1) / rest.norm()
            terms.append(float(torch.trace(q.T @ a @ q) + rest @ a @ rest))
        return np.mean(terms)

    every = list(range(s))
    assert found.value == pytest.approx(mean(every), rel=1e-9)
    without = np.array([mean([j for j in every if j != i]) for i in every])
    assert found.error == pytest.approx(np.sqrt(((without - without.mean()) ** 2).sum()), rel=1e-9)


def test_products_are_spent_until_the_target_error_is_met_and_none_is_wasted():
    matrix = planted(SPECTRA["poly"])
    found = trace(matrix, products=8, error=1e-3)
    assert found.met and found.error <= 1e-3 * abs(found.value)
    straight = trace(matrix, products=found.products)
    assert found.value == pytest.approx(straight.value, rel=1e-6)


def test_what_is_not_reached_is_said():
    found = trace(planted(SPECTRA["indefinite"]), "hutchinson", products=8, error=1e-9, max_products=16)
    assert not found.met and found.products == 16


def test_single_precision_is_as_good_as_it_can_be():
    truth = SPECTRA["poly"].sum()
    found = trace(planted(SPECTRA["poly"], dtype=torch.float32), products=60)
    assert abs(found.value - truth) < 5 * found.error + 1e-5


def test_one_term_alone_has_no_spread():
    found = trace(planted(np.ones(7)), "hutch++", products=6)
    assert found.terms == 2
    assert np.isfinite(found.interval()).all()


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"xtrace, hutch\+\+, hutchinson; got 'magic'"):
        trace(planted(np.ones(9)), "magic")


def test_too_few_products_are_refused():
    with pytest.raises(ValueError, match="products must be >= 6 for a standard error; got 3"):
        trace(planted(np.ones(9)), products=3)


@pytest.mark.parametrize("products", [6, 100])
def test_a_product_that_is_not_finite_is_an_error(products):
    entries = torch.eye(50)
    entries[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite: look at the loss here first"):
        trace(Dense(entries), products=products)


@dataclass(frozen=True)
class Measured(Dense):
    """The same with a rounding that was measured of its products."""

    rounding: float = 0.0
    relative_rounding: float = 0.0


def test_the_errors_of_a_diagonal_add_up_in_an_exact_trace():
    n, size = 49, 1e-3
    plain = planted(np.linspace(0.0, 1.0, n))
    systematic = plain.entries + size * torch.eye(n, dtype=torch.float64) / 7  # in every product the same
    exact = trace(Measured(systematic, size), products=n)
    assert exact.exact and abs(exact.value - plain.entries.trace()) <= exact.error == pytest.approx(7 * size)


class RoundsUnitVectors:
    """diag(1, ..., n) in float32, whose products lose a part of what they are where all terms of a sum are alike."""

    size, dtype, device, rounding = 12, torch.float32, torch.device("cpu"), 1e-6
    lost = 1e-4

    def __matmul__(self, v):
        image = torch.arange(1.0, self.size + 1) * v
        return image * (1 - self.lost) if int((v != 0).sum()) == 1 else image


def test_rounding_of_products_with_unit_vectors_alone_is_in_the_errors():
    operator = RoundsUnitVectors()
    true = operator.size * (operator.size + 1) / 2
    found = trace(operator, products=20)
    assert found.exact and found.products == operator.size
    assert 1e-6 * true < abs(found.value - true) <= found.error < 1e-2 * true
    whole = DenseMatrix.of(operator)
    pairs = whole.pairs("top:1")
    assert 1e-5 < abs(pairs.values[0] - operator.size) <= pairs.residuals[0] < 1e-2
    assert abs(whole.trace().value - true) <= whole.trace().error
    operator.lost = 0.0
    assert trace(operator, products=20).error < 1e-5
    assert DenseMatrix.of(operator).error < 1e-5
