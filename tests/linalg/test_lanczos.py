"""Solvers against closed forms and dense float64 twins; limits against their promised coverage."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmap.interrupt import Interrupted
from lossmap.linalg import lanczos as eigen
from lossmap.linalg import probabilistic_bounds
from lossmap.linalg.arpack import eigsh
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.eigenpairs import Which
from lossmap.linalg.krylov_space import KrylovSpace
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.solvers import extremes


class Dense:
    """A matrix that counts its products."""

    def __init__(self, entries, dtype=torch.float64):
        self.entries = torch.as_tensor(np.asarray(entries)).to(dtype)
        self.size, self.dtype, self.device = len(self.entries), dtype, torch.device("cpu")
        self.products = 0

    def __matmul__(self, v):
        self.products += 1
        return self.entries @ v


class Diagonal(Dense):
    """Without loss of generality for random starts, and cheap."""

    def __init__(self, values, dtype=torch.float64):
        super().__init__(np.diag(values) if len(values) < 3 else np.zeros((len(values), 1)), dtype)
        self.values = torch.as_tensor(np.asarray(values)).to(dtype)

    def __matmul__(self, v):
        self.products += 1
        return self.values * v


def planted(values, seed=0, dtype=torch.float64):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return Dense((rotation * np.asarray(values)) @ rotation.T, dtype)


def hessian_like(seed, n=150):
    """A bulk at zero and a few outliers at both ends, as Hessians of nets have."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.standard_normal(n) * 0.01, rng.gamma(1.0, 2.0, 6), -rng.gamma(1.0, 0.3, 2)]))


# ---- exact


def test_one_component_of_a_random_vector_in_three_dimensions_is_uniform():
    assert probabilistic_bounds.least_component(3, 0.99) == pytest.approx(0.01, rel=1e-12)
    assert probabilistic_bounds.least_component(2, 0.9) == pytest.approx(np.sin(0.1 * np.pi / 2), rel=1e-12)
    assert probabilistic_bounds.least_component(1, 0.99) == 1.0


def test_after_one_step_the_limit_is_alpha_plus_beta_over_delta():
    assert probabilistic_bounds.upper_limit(np.array([2.0]), np.array([0.5]), 0.01) == pytest.approx(52.0, rel=1e-12)
    assert probabilistic_bounds.lower_limit(np.array([2.0]), np.array([0.5]), 0.01) == pytest.approx(-48.0, rel=1e-12)


def test_after_two_steps_the_limit_solves_the_quadratic():
    alpha, beta, delta = np.array([1.0, 3.0]), np.array([0.7, 0.2]), 0.05
    t = probabilistic_bounds.upper_limit(alpha, beta, delta)
    assert ((t - 3.0) * (t - 1.0) / 0.7 - 0.7) / 0.2 == pytest.approx(1 / delta, rel=1e-9)


def test_without_a_step_or_a_random_part_there_is_no_limit():
    assert probabilistic_bounds.upper_limit(np.zeros(0), np.zeros(0), 0.1) == np.inf
    assert probabilistic_bounds.upper_limit(np.ones(1), np.ones(1), 0.0) == np.inf
    assert probabilistic_bounds.upper_limit(np.zeros(2), np.zeros(2), 0.1) == 0.0


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_the_zero_matrix_has_two_zero_ends_that_are_known_exactly(solver, n):
    found = extremes(Dense(np.zeros((n, n))), solver=solver)
    assert found.values.tolist() == [0.0, 0.0] and found.residuals.tolist() == [0.0, 0.0]
    assert found.converged and found.scale == 0.0


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_of_rank_one_has_its_norm_and_zero(solver, dtype):
    u = np.random.default_rng(1).standard_normal(60)
    found = extremes(Dense(np.outer(u, u), dtype), solver=solver)
    assert found.converged
    assert abs(found.values[0] - u @ u) <= found.residuals[0]
    assert abs(found.values[1]) <= found.residuals[1] < 1e-3 * (u @ u)


def test_a_multiple_of_the_identity_takes_one_product_and_its_limits_close():
    found = extremes(Dense(2.0 * np.eye(40)))
    assert found.values == pytest.approx([2.0, 2.0]) and found.products == 1
    assert found.limits == pytest.approx((2.0, 2.0), rel=1e-9)


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
def test_a_matrix_smaller_than_the_search_is_solved_exactly(solver):
    values = np.array([3.0, 1.0, -2.0])
    found = extremes(planted(values), "abs:3", solver=solver, tol=1e-12)
    assert found.values == pytest.approx([3.0, -2.0, 1.0], abs=1e-12)
    assert found.products == 3


def test_copies_of_an_eigenvalue_are_counted_by_an_identity_and_by_blocks():
    assert extremes(Dense(2.0 * np.eye(10)), "top:3").values == pytest.approx([2.0, 2.0, 2.0])
    twice = planted([5.0, 5.0, 2.0, *np.linspace(-0.1, 0.1, 60)])
    assert lanczos(twice, "top:2", tol=1e-3).values[1] == pytest.approx(2.0, abs=1e-3)
    found = lanczos(twice, "top:3", tol=1e-8, block=2)
    assert found.values == pytest.approx([5.0, 5.0, 2.0], abs=1e-6)
    assert np.isnan(found.limits).all()


SPREAD = np.linspace(-0.2, 0.3, 296)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize(
    ("which", "ends", "truth"),
    [
        ("abs:3", [9.0, 5.00001, 5.0, -4.0], [9.0, 5.0, 5.0]),
        ("abs:5", [9.0, 9.0, -9.0, -9.0, 3.0], [9.0, 9.0, 9.0, 9.0, 3.0]),
        ("top:4", [5.0, 5.0, 4.0, 4.0, 4.0], [5.0, 5.0, 4.0, 4.0]),
        ("top:6", [5.0, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 1.0], [5.0, 5.0, 4.0, 4.0, 4.0, 4.0]),
        ("bottom:2", [-3.0, -3.0, 2.0, -1.0], [-3.0, -3.0]),
    ],
)
def test_every_copy_of_an_eigenvalue_is_counted_from_its_end(which, ends, truth, solver, dtype):
    values = np.r_[ends, SPREAD]
    for seed in range(3):
        found = extremes(Diagonal(values, dtype), which, solver=solver, seed=seed)
        got = np.abs(found.values) if which.startswith("abs") else found.values
        assert found.converged and got == pytest.approx(truth, abs=1e-3 * found.scale)
        assert (np.abs(values[:, None] - found.values).min(0) <= found.residuals).all()
        assert found.vectors.T @ found.vectors == pytest.approx(np.eye(len(truth)), abs=1e-5)
        if solver == "lanczos":
            upper, lower = found.limits
            assert which.startswith("bottom") or values.max() <= upper <= values.max() + 0.1
            assert which.startswith("top") or values.min() >= lower >= min(-abs(values)) - 0.1


def test_vectors_with_all_copies_are_a_start_that_needs_a_check_alone():
    matrix = Diagonal(np.r_[5.0, 5.0, 4.0, 4.0, SPREAD])
    cold = extremes(matrix, "top:3")
    warm = extremes(matrix, "top:3", start=cold.vectors, seed=1)
    assert warm.values == pytest.approx([5.0, 5.0, 4.0], abs=1e-5) and warm.products < 15 < cold.products
    assert 4.0 <= warm.others <= 4.05


def test_copies_are_counted_with_little_memory_and_not_beyond_the_products_allowed():
    matrix = Diagonal(np.r_[5.0, 5.0, 5.0, 4.0, SPREAD])
    tight = extremes(matrix, "top:3", memory=1)
    assert tight.converged and tight.values == pytest.approx([5.0, 5.0, 5.0], abs=5e-3)
    whole = extremes(matrix, "top:3")
    for most in range(1, whole.products):
        matrix.products = 0
        few = extremes(matrix, "top:3", max_products=most)
        assert not few.converged and few.products == matrix.products <= most


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["top:4", "abs:4"])
def test_a_search_for_copies_resumes_to_the_same_bits_from_every_product(which, dtype):
    matrix = Diagonal(np.r_[5.0, 5.0, 4.0, 4.0, -3.0, SPREAD], dtype)
    whole, after = extremes(matrix, which), 0
    while True:
        asked = iter([False] * after + [True] + [False] * 1000)
        try:
            extremes(matrix, which, stop=lambda asked=asked: next(asked))
            break
        except Interrupted as left:
            state = left.state
        resumed = extremes(matrix, which, state=state)
        assert np.array_equal(whole.values, resumed.values) and torch.equal(whole.vectors, resumed.vectors)
        assert whole.limits == resumed.limits and whole.products == resumed.products
        after += 1
    assert after > 10


# ---- twins


@pytest.mark.parametrize("which", ["ends", "top:4", "bottom:3", "abs:5"])
@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_those_of_the_dense_matrix_within_their_errors(which, solver, dtype):
    for seed in range(6):
        matrix = planted(hessian_like(seed), seed, dtype)
        truth = np.linalg.eigvalsh(matrix.entries.double().numpy())
        found = extremes(matrix, which, solver=solver, tol=2e-5, seed=seed)
        expected = truth[Which.parse(which).pick(truth)]
        assert found.converged and found.products == matrix.products
        assert (np.abs(truth[:, None] - found.values).min(0) <= found.residuals).all()
        assert np.abs(found.values - expected).max() <= 4e-5 * np.abs(truth).max()
        lengths = torch.linalg.vector_norm(
            matrix.entries @ found.vectors - found.vectors * torch.tensor(found.values).to(dtype), dim=0
        )
        assert (lengths.double().numpy() <= found.residuals).all()
        assert (found.vectors.T @ found.vectors - torch.eye(len(expected))).abs().max() < 1e-5


def test_no_ghosts_come_in_a_long_search():
    values = np.concatenate([10.0 ** -np.arange(0, 6, 0.5), np.zeros(100)])
    for dtype, tol in ((torch.float64, 1e-13), (torch.float32, 1e-7)):
        found = lanczos(planted(values, 3, dtype), "top:6", tol=tol, max_products=60)
        assert np.abs(found.values - values[:6]).max() < (1e-12 if dtype == torch.float64 else 3e-7)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_nearly_equal_ends_lie_between_value_and_limit(seed):
    rng = np.random.default_rng(seed)
    close = 10.0 ** -rng.uniform(2, 6, 2)
    values = np.concatenate([[1.0, 1.0 - close[0], -1.0 + close[1], -1.0], rng.uniform(-0.5, 0.5, 80)])
    found = lanczos(planted(values, seed), tol=1e-3, seed=seed, certify=True, confidence=1 - 1e-9)
    assert (np.abs(values[:, None] - found.values).min(0) <= found.residuals).all()
    assert found.values[0] - found.residuals[0] <= 1.0 <= found.limits[0] <= found.values[0] + 1e-2
    assert found.values[1] + found.residuals[1] >= -1.0 >= found.limits[1] >= found.values[1] - 1e-2


def test_a_search_with_next_to_no_memory_holds_five_vectors_and_finds_the_same(monkeypatch):
    spaces = []

    class Watched(KrylovSpace):
        def __init__(self, *args):
            super().__init__(*args)
            spaces.append(self)

    monkeypatch.setattr(eigen, "KrylovSpace", Watched)
    values = hessian_like(5)
    pairs = lanczos(planted(values), "top:1", tol=1e-6, memory=1, max_products=3000)
    assert pairs.converged and pairs.values[0] == pytest.approx(values[-1], rel=1e-6)
    assert len(spaces) == 1 and len(spaces[0].basis) == 5


def test_a_search_that_is_short_of_memory_restarts_and_finds_the_same():
    values = np.concatenate([np.linspace(0.0, 1.0, 300), [1.05, -0.04]])
    matrix = planted(values)
    for which in ("ends", "top:3", "abs:2"):
        free = lanczos(matrix, which, tol=1e-6)
        tight = lanczos(matrix, which, tol=1e-6, memory=20 * 302 * 8)
        assert free.converged and tight.converged and tight.products > free.products
        assert tight.values == pytest.approx(free.values, abs=2e-6)
        assert (tight.residuals <= 1e-6 * 1.06).all()
    assert np.isfinite(tight.limits).all()


def test_a_warm_start_costs_less_and_finds_the_same():
    matrix = planted(hessian_like(7), 7)
    cold = lanczos(matrix, tol=1e-3)
    warm = lanczos(matrix, tol=1e-3, start=cold.vectors)
    assert warm.values == pytest.approx(cold.values, abs=1e-3 * cold.scale)
    assert warm.products < cold.products


def test_a_warm_start_that_lacks_the_new_extreme_finds_it_by_its_random_part():
    values = np.array([*np.linspace(-0.01, 0.01, 200), 1.0, 3.0])
    found = lanczos(Diagonal(values), start=torch.eye(202, dtype=torch.float64)[:, [200, 0]])
    assert found.values[0] == pytest.approx(3.0, abs=3e-3)


@pytest.mark.parametrize("start", [torch.zeros(152, 2), torch.full((158, 2), torch.nan)])
def test_a_start_of_no_use_is_a_cold_one(start):
    matrix = planted(hessian_like(0))
    if start.shape[0] != matrix.size:
        start = torch.zeros(matrix.size, 2)
    cold, warm = lanczos(matrix), lanczos(matrix, start=start)
    assert np.array_equal(cold.values, warm.values) and cold.limits == warm.limits


def test_the_same_seed_gives_the_same_bits_and_another_one_agrees_within_the_errors():
    matrix = planted(hessian_like(2))
    for solver in ("lanczos", "eigsh"):
        one, two, other = (extremes(matrix, solver=solver, seed=s) for s in (4, 4, 5))
        assert np.array_equal(one.values, two.values) and torch.equal(one.vectors, two.vectors)
        assert np.abs(one.values - other.values).max() <= 1e-3 * one.scale


# ---- limits


@pytest.mark.parametrize("confidence", [0.99, 0.7])
def test_limits_of_cold_starts_are_broken_no_more_often_than_promised(confidence):
    runs, broken = 400, np.zeros(2)
    for seed in range(runs):
        values = hessian_like(seed % 7, 120)
        found = lanczos(Diagonal(values), tol=0.05, extra_steps=0, seed=seed, confidence=confidence)
        broken += [values[-1] > found.limits[0], values[0] < found.limits[1]]
    allowed = runs * (1 - confidence) + 3 * np.sqrt(runs * (1 - confidence) * confidence)
    assert (broken <= allowed).all()


@pytest.mark.parametrize(("confidence", "teeth"), [(0.99, 0), (0.5, 1)])
def test_limits_of_warm_starts_hold_though_the_start_is_orthogonal_to_the_extremes(confidence, teeth):
    runs, broken, missed = 300, np.zeros(2), 0
    values = np.array([-1.5, -1.0, *np.linspace(-0.3, 0.3, 80), 1.0, 1.5])
    start = torch.eye(len(values), dtype=torch.float64)[:, [-2, 1]]
    for seed in range(runs):
        found = lanczos(Diagonal(values), tol=0.01, extra_steps=0, start=start, seed=seed, confidence=confidence)
        broken += [values[-1] > found.limits[0], values[0] < found.limits[1]]
        missed += found.values[0] < 1.4
    assert missed > 5  # a residual alone does not know
    assert (broken <= runs * (1 - confidence) + 3 * np.sqrt(runs * (1 - confidence) * confidence)).all()
    assert (broken >= teeth).all()


def test_a_certified_search_continues_until_its_limits_are_close():
    for seed in range(20):
        values = hessian_like(seed)
        plain, sure = (lanczos(Diagonal(values), seed=seed, certify=c) for c in (False, True))
        assert sure.products >= plain.products - 1
        assert sure.limits[0] - sure.values[0] <= 1e-2 * sure.scale
        assert sure.values[1] - sure.limits[1] <= 1e-2 * sure.scale


@pytest.mark.parametrize("kind", ["top", "bottom", "abs"])
def test_several_eigenvalues_have_their_ranks(kind):
    values = np.concatenate([-0.02 * 0.7 ** np.arange(60), 3.0 * 0.8 ** np.arange(60), np.zeros(80)])
    order = {"top": -values, "bottom": values, "abs": -np.abs(values)}[kind]
    for seed in range(10):
        for count in (2, 5, 15):
            found = lanczos(Diagonal(values), f"{kind}:{count}", tol=1e-3, seed=seed)
            checked = extremes(Diagonal(values), f"{kind}:{count}", tol=1e-3, seed=seed)
            truth = values[np.argsort(order, kind="stable")][:count]
            assert found.values == pytest.approx(truth, abs=1e-3 * found.scale), (seed, count)
            assert checked.values == pytest.approx(truth, abs=1e-3 * found.scale), (seed, count)


# ---- interruption


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("after", [0, 1, 3, 9])
@pytest.mark.parametrize("which", ["ends", "top:4"])
def test_an_interrupted_search_resumes_to_the_same_bits(which, dtype, after):
    matrix = planted(hessian_like(3), 3, dtype)
    whole = lanczos(matrix, which, tol=1e-6)
    asked = iter([False] * after + [True])
    with pytest.raises(Interrupted) as left:
        lanczos(matrix, which, tol=1e-6, stop=lambda: next(asked))
    state = left.value.state
    assert state["products"] == after + 1
    resumed = lanczos(matrix, which, tol=1e-6, state=state)
    assert np.array_equal(whole.values, resumed.values) and np.array_equal(whole.residuals, resumed.residuals)
    assert whole.products == resumed.products and torch.equal(whole.vectors, resumed.vectors)
    assert resumed.limits == pytest.approx(whole.limits, rel=1e-12)


def test_a_search_space_too_large_to_save_keeps_its_best_vectors(monkeypatch):
    monkeypatch.setattr(eigen, "MAX_SAVED_BYTES", 6 * 158 * 8)
    matrix = planted(hessian_like(3), 3)
    asked = iter([False] * 12 + [True])
    with pytest.raises(Interrupted) as left:
        lanczos(matrix, tol=1e-10, stop=lambda: next(asked))
    assert len(left.value.state["basis"]) <= 8
    resumed = lanczos(matrix, tol=1e-10, state=left.value.state)
    assert resumed.values == pytest.approx(np.linalg.eigvalsh(matrix.entries.numpy())[[-1, 0]], abs=1e-8)


def test_a_saved_space_of_another_matrix_is_refused():
    with pytest.raises(Interrupted) as left:
        lanczos(planted(hessian_like(3)), stop=lambda: True)
    with pytest.raises(ValueError, match="vectors of 158 numbers; this operator takes 5"):
        lanczos(Dense(np.eye(5)), state=left.value.state)


def test_eigsh_can_be_left_and_begins_again():
    with pytest.raises(Interrupted) as left:
        eigsh(planted(hessian_like(3)), stop=lambda: True)
    assert left.value.state == {}


# ---- what goes wrong


def test_a_search_that_may_not_spend_enough_says_so():
    matrix = planted(hessian_like(1))
    found = lanczos(matrix, tol=1e-8, max_products=4)
    assert not found.converged and found.products == 4 and (found.residuals > 1e-8).all()
    few = lanczos(matrix, "top:5", max_products=3)
    assert np.isnan(few.values).tolist() == [False, False, False, True, True] and not few.converged
    assert torch.isnan(few.vectors[:, 3:]).all()


def test_arpack_without_convergence_is_a_result_that_says_so():
    hard = planted(np.linspace(0.0, 1.0, 300))
    for which in ("ends", "top:4"):
        found = eigsh(hard, which, tol=1e-12, max_products=25)
        assert not found.converged and np.isnan(found.values).any()
        assert found.products == 0 or found.products < 60


def test_a_product_that_is_not_finite_is_an_error():
    class Broken(Diagonal):
        def __matmul__(self, v):
            return super().__matmul__(v) * (torch.nan if self.products == 3 else 1.0)

    for solver in ("lanczos", "eigsh"):
        with pytest.raises(FloatingPointError, match="product 3 is not finite: look at the loss here first"):
            extremes(Broken(np.linspace(0, 1, 50)), solver=solver)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"which": "middle"}, "--which must be ends, top:k, bottom:k or abs:k, e.g. top:5; got 'middle'"),
        ({"which": "top:0"}, "--which must be .* got 'top:0'"),
        (
            {"which": "top:9"},
            "top:9 requested of an operator of 3 rows, which has 3 eigenvalues",
        ),
        ({"solver": "magic"}, "--solver must be one of auto, lanczos, eigsh; got 'magic'"),
        ({"tol": 0.0}, "--tol must be > 0, e.g. 1e-3; got 0.0"),
        ({"max_products": 0}, "--max-products must be >= 1; got 0"),
        ({"confidence": 1.0}, "--confidence must be a probability between 0 and 1, e.g. 0.99; got 1.0"),
        ({"start": torch.zeros(2, 2)}, r"the start vectors must have shape \(3, q\); got \(2, 2\)"),
    ],
)
def test_invalid_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        extremes(Dense(np.eye(3)), **options)


class Noise(Dense):
    """In float32 noise that is not symmetric and larger than all entries; in float64 the entries' products."""

    def __init__(self, entries, noise):
        super().__init__(entries, torch.float32)
        self.exact = entries
        self.noise = torch.as_tensor(np.random.default_rng(5).standard_normal(entries.shape)).float() * noise

    def __matmul__(self, v):
        return super().__matmul__(v) + self.noise @ v

    def in_float64(self):
        return Dense(self.exact)


def test_where_products_in_float32_are_noise_the_search_is_made_in_float64():
    entries = planted(np.linspace(-1e-9, 3e-9, 12)).entries
    pairs = extremes(Noise(entries, 1e-6), "ends", tol=1e-3, certify=True)
    truth = np.linalg.eigvalsh(entries.numpy())
    assert pairs.converged and pairs.vectors.dtype == torch.float32 and pairs.products > 12
    assert pairs.values == pytest.approx([truth[-1], truth[0]], abs=float(pairs.residuals.max()))
    assert float(pairs.residuals.max()) < 1e-11


def test_successive_eigenvalues_too_are_searched_in_float64_where_products_in_float32_are_noise():
    entries = planted(np.linspace(-1e-9, 3e-9, 12)).entries
    pairs = successive_eigenpairs(Noise(entries, 1e-6), "top:3")
    truth = np.linalg.eigvalsh(entries.numpy())[::-1][:3]
    assert pairs.converged and pairs.vectors.dtype == torch.float32
    assert pairs.values == pytest.approx(truth, abs=1e-11) and float(pairs.residuals.max()) < 1e-11


def test_what_is_not_symmetric_in_float64_either_is_refused():
    entries = planted(np.linspace(-1.0, 3.0, 12)).entries
    entries[0, 1] += 0.25
    with pytest.raises(FloatingPointError, match="the products are not symmetric"):
        extremes(Noise(entries, 1.0), "ends", tol=1e-3, certify=True)
    with pytest.raises(FloatingPointError, match="the products are not symmetric"):
        successive_eigenpairs(Noise(entries, 1.0), "top:3")


class ZeroButForRounding(Noise):
    """A matrix whose entries are noise in both precisions, in float64 as much smaller as that is finer."""

    def __init__(self, entries, noise, finer):
        super().__init__(entries, noise)
        self.finer = finer

    def in_float64(self):
        return Dense(self.exact + (self.noise.double() * self.finer).flip(0))


@pytest.mark.parametrize("search", [partial(extremes, which="ends"), partial(successive_eigenpairs, which="top:2")])
def test_a_matrix_that_is_noise_in_float64_too_is_zero_within_a_bar_that_holds_it(search):
    zero = torch.zeros(12, 12, dtype=torch.float64)
    pairs = search(ZeroButForRounding(zero, 1e-9, 1e-9), tol=1e-3)
    assert pairs.products > 24
    assert (np.abs(pairs.values) <= pairs.residuals).all() and float(pairs.residuals.max()) < 1e-15
    with pytest.raises(FloatingPointError, match="the products are not symmetric"):
        search(ZeroButForRounding(zero, 1e-9, 1e-5), tol=1e-3)  # it does not shrink as rounding does


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize("which", ["abs:2", "abs:3"])
def test_the_largest_in_absolute_value_are_found_with_little_memory_where_the_other_end_is_small(memory, which):
    draw = torch.Generator().manual_seed(0)
    bulk = torch.rand(2000, generator=draw, dtype=torch.float64) * 0.38 - 0.18
    values = torch.cat([torch.tensor([1.0, 0.25], dtype=torch.float64), bulk])
    pairs = extremes(planted(values), which, memory=memory, max_products=600)
    truth = values[values.abs().argsort(descending=True)][: int(which[-1])]
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, truth, atol=1e-3)
