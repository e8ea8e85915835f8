"""The density: quadrature bounds that are theorems, counts that are covered, distances to known spectra."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import binom

from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.spectral_density import Density, lanczos_run, spectral_density


@dataclass(frozen=True)
class Diagonal:
    """A diagonal matrix: as good as any other, since probes are rotationally invariant."""

    values: torch.Tensor

    @property
    def size(self):
        return len(self.values)

    @property
    def dtype(self):
        return self.values.dtype

    @property
    def device(self):
        return self.values.device

    def __matmul__(self, v):
        return self.values * v


def of(values, dtype=torch.float64):
    return Diagonal(torch.as_tensor(np.asarray(values, dtype=float)).to(dtype))


chance = np.random.default_rng(0)
BULK = np.sort(np.r_[chance.normal(0, 0.02, 370), np.geomspace(0.1, 5, 30)])
n = len(BULK)


def semicircle(count=400):
    a = chance.normal(size=(count, count))
    return np.linalg.eigvalsh((a + a.T) / np.sqrt(2 * count))


def share(values, t):
    return float((np.asarray(values) <= t).mean())


def test_the_quadrature_integrates_polynomials_of_the_probes_measure_exactly():
    matrix, m = of(BULK), 7
    made = lanczos_run(matrix, m, seed=1)
    from lossmap.seeding import normal

    g = normal(n, "density probe", 1, 0).double().numpy()
    measure = g**2 / (g**2).sum()
    nodes, weights = made.quadrature
    for degree in range(2 * m):
        assert (weights * nodes**degree).sum() == pytest.approx((measure * BULK**degree).sum(), rel=1e-9, abs=1e-12)
    assert made.weight == pytest.approx((g**2).sum())


@pytest.mark.parametrize("steps", [3, 10, 25])
def test_the_bounds_hold_the_probes_own_measure_everywhere(steps):
    from lossmap.seeding import normal

    made = lanczos_run(of(BULK), steps, seed=5)
    g = normal(n, "density probe", 5, 0).double().numpy()
    measure = g**2 / (g**2).sum()
    for t in np.r_[np.linspace(-0.1, 5.2, 80), made.quadrature[0][1:-1] + 1e-7]:
        low, high = made.bounds(t)
        truth = measure[t >= BULK].sum()
        assert low - 1e-9 <= truth <= high + 1e-9


def test_a_run_that_ends_by_itself_knows_its_measure():
    made = lanczos_run(of(np.r_[np.zeros(30), np.ones(20), 3 * np.ones(10)]), 50)
    assert made.exact and len(made.alpha) == 3
    assert made.bounds(0.5)[0] == made.bounds(0.5)[1]


def test_counts_are_covered_at_least_at_their_stated_rate_over_200_seeds():
    """Each of 200 seeds gives an interval for how many eigenvalues lie below t; 95 % hold the truth, or more."""
    matrix = of(BULK)
    for t in (-0.01, 0.2):
        truth, hits = (t >= BULK).sum(), 0
        for seed in range(200):
            low, high = spectral_density(matrix, steps=12, probes=2, seed=seed).cumulative(t).count
            hits += low <= truth <= high
        assert hits >= binom.ppf(0.0005, 200, 0.95)


def test_without_quadrature_error_the_intervals_are_neither_too_wide_nor_too_narrow():
    values = np.r_[np.zeros(60), np.ones(40)]
    hits = 0
    for seed in range(200):
        low, high = spectral_density(of(values), steps=5, probes=3, seed=seed).cumulative(0.5).count
        hits += low <= 60 <= high
    assert binom.ppf(0.0005, 200, 0.95) <= hits <= binom.ppf(0.9995, 200, 0.97)


@pytest.mark.parametrize("values", [BULK, semicircle(), np.linspace(0, 1, 300)], ids=["bulk", "semicircle", "even"])
def test_the_wasserstein_distance_is_within_the_error_that_is_stated(values):
    spread = np.ptp(values)
    for seed in range(2):
        found = spectral_density(of(values), error=0.06, seed=seed)
        assert found.met
        assert found.wasserstein(values) / spread < found.error


def test_the_band_holds_the_true_cumulative_density():
    found = spectral_density(of(BULK), steps=30, probes=4)
    ticks, value, low, high = found.band
    truth = np.array([share(BULK, t) for t in ticks])
    assert np.mean((low <= truth + 1e-9) & (truth <= high + 1e-9)) > 0.95
    assert (np.diff(value) >= 0).all() and (low <= high).all()


def test_one_probe_of_100_steps_comes_as_near_as_the_quadrature_can():
    distances = [Density((lanczos_run(of(BULK), 100, seed=s),), n, 2e-16).wasserstein(BULK) for s in range(3)]
    assert max(distances) / np.ptp(BULK) < 8e-3


def test_the_mass_below_and_above_has_its_interval():
    found = spectral_density(of(BULK), steps=60, probes=8)
    below, above = found.below(-0.01), found.above(0.01)
    assert below.low <= (BULK < -0.01).mean() <= below.high
    assert above.low <= (BULK > 0.01).mean() <= above.high
    assert "95 % interval" in repr(below)


@pytest.mark.parametrize("size", [350, 500])
def test_a_share_lies_within_its_own_interval_where_a_single_eigenvalue_is_beyond(size):
    values = np.arange(float(size))
    for seed in range(6):
        found = spectral_density(of(values), seed=seed)
        for share in (found.above(size / 1000), found.below(size / 1000), found.below(size - 1.0)):
            assert share.low <= share.value <= share.high
        _, value, low, high = found.band
        assert ((low <= value) & (value <= high)).all() and (np.diff(value) >= 0).all()


def test_an_atom_at_zero_is_not_taken_for_negative_mass():
    values = np.r_[np.zeros(100), np.ones(50)]
    found = spectral_density(of(values, torch.float32), steps=20, probes=2)
    assert found.below(-1e-3).high == 0.0
    assert found.above(1e-3).low <= 1 / 3 <= found.above(1e-3).high


def test_a_zero_matrix_has_one_node():
    found = spectral_density(of(np.zeros(50)))
    assert found.range == (0.0, 0.0) and found.error == 0.0 and found.products == 1
    assert found.smoothed(np.array([0.0, 1.0]))[0] > 0


def test_no_ghosts_appear_after_many_steps():
    """Full reorthogonalisation: the largest eigenvalue counts once, however long the run."""
    values = np.r_[np.linspace(0, 1, 120), 50.0]
    nodes, weights = lanczos_run(of(values), 100).quadrature
    assert (nodes > 40).sum() == 1
    assert weights[nodes > 40].sum() < 0.1


def test_the_smoothed_density_integrates_to_one():
    found = spectral_density(of(BULK), steps=30, probes=2)
    t = np.linspace(-2, 8, 20001)
    assert trapezoid(found.smoothed(t), t) == pytest.approx(1.0, abs=1e-3)
    assert trapezoid(found.smoothed(t, width=0.3), t) == pytest.approx(1.0, abs=1e-3)


def test_a_dense_matrix_has_no_error():
    whole = DenseMatrix.of(of(BULK))
    found = whole.density()
    assert found.error == 0.0 and found.products == n and "exact" in repr(found)
    assert found.wasserstein(BULK) < 1e-12
    assert found.below(0.0).value == (BULK < 0).mean() == found.below(0.0).low
    assert found.nodes[0] == pytest.approx(BULK)


def test_large_dimensions_are_searched_by_halves():
    from lossmap.linalg.eigenvalue_counts import smallest_counts

    for n_, seen in ((5000, 0.3), (4096, 0.001), (100_000, 0.999)):
        (k,) = smallest_counts(np.array([seen]), n_, 2, 0.025)
        assert 0 < k <= n_
    near = [smallest_counts(np.array([0.3]), n_, 1, 0.025)[0] for n_ in (4096, 4097)]
    assert abs(near[0] - near[1]) <= 1


def test_probes_are_added_only_as_far_as_they_help():
    found = spectral_density(of(np.r_[np.zeros(300), np.ones(200)]), error=0.01)
    assert found.met and found.probes > 5
    assert repr(found).startswith("Density(from")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"error": 0.0}, "must be a share of the range > 0"),
        ({"steps": 0}, "steps must be >= 1; got 0"),
        ({"probes": 0}, "probes must be >= 1; got 0"),
        ({"confidence": 1.0}, "the density's confidence must be a probability between 0 and 1"),
    ],
)
def test_invalid_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        spectral_density(of(BULK), **options)


def test_a_whole_matrix_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite: look at the loss here first"):
        DenseMatrix.of(of([1.0, np.inf, 2.0]))


def test_the_request_is_stored():
    assert isinstance(spectral_density(of(BULK), error=0.5), Density)


def outliers(count):
    r = np.random.default_rng(7)
    bulk = count // 2 - 5
    return np.r_[12, 7, 4, 2, -1, 0.03 * r.standard_normal(bulk), 1e-6 * r.standard_normal(count - 5 - bulk)]


NETWORK_LIKE = {
    "outliers": (outliers(200), {"steps": 30, "probes": 1}),
    "outliers of more": (outliers(900), {"steps": 20, "probes": 2}),
    "outliers, probes chosen": (outliers(60), {"error": 0.2}),
    "two clusters": (np.r_[np.linspace(0.9, 1, 90), np.linspace(-0.3, -0.2, 90)], {"steps": 30, "probes": 1}),
    "rank-deficient": (np.r_[np.zeros(150), np.geomspace(1e-3, 10, 40)], {"steps": 30, "probes": 1}),
    "few": (np.r_[np.zeros(8), 0.1, 0.5, 3.0], {"steps": 11, "probes": 1}),
    "few steps": (BULK, {"steps": 4, "probes": 3}),
}


@pytest.mark.parametrize(("values", "settings"), NETWORK_LIKE.values(), ids=NETWORK_LIKE)
def test_the_stated_error_covers_the_wasserstein_distance_at_its_rate(values, settings):
    trials, hits, inside = 24, 0, 0
    for seed in range(trials):
        result = spectral_density(of(values), seed=1000 + seed, **settings)
        hits += result.wasserstein(values) <= result.error * np.ptp(result.range)
        ticks, _, low, high = result.band
        truth = np.array([share(values, t) for t in ticks])
        inside += bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())
    assert min(hits, inside) >= binom.ppf(0.0005, trials, 0.95)


def test_one_step_shows_no_range_and_no_error():
    assert spectral_density(of(BULK), steps=1, probes=1).error == np.inf


def test_what_may_lie_beyond_the_outermost_nodes_is_in_the_error():
    """One eigenvalue in forty lies far out, and three steps do not find it."""
    values = np.r_[np.linspace(0, 1, 39), 6.0]
    for seed in range(10):
        result = spectral_density(of(values), steps=2, probes=1, seed=seed)
        assert result.band[0][-1] > result.range[1] + 1.0
        assert result.wasserstein(values) <= result.error * np.ptp(result.range)


def test_shares_of_few_eigenvalues_are_printed_the_right_way_up():
    """60 probes of three eigenvalues leave shares that fit no count well in one seed of twenty."""
    values = np.r_[-1.0, 1.0, 2.0]
    for seed in range(20):
        result = spectral_density(of(values), steps=3, probes=60, seed=seed)
        for mass in (result.below(-0.5), result.above(0.5), result.cumulative(1.5)):
            assert mass.low <= mass.high and mass.count[0] <= mass.count[1]
            lower, _, upper = repr(mass).partition("interval ")[2].removesuffix(" %)").partition(" to ")
            assert float(lower or 0.0) <= float(upper or 100.0)
