"""One set of stopping rules: what is near, settled, certified and complete, by hand and against dense matrices."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch

from lossmap.interrupt import Interrupted
from lossmap.linalg.deflation import successive
from lossmap.linalg.eigenpairs import Which
from lossmap.linalg.krylov_space import KrylovSpace, RitzPairs
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.operator import Rounding
from lossmap.linalg.stopping import (
    Criteria,
    Search,
    decide,
    is_settled,
    limits_are_near,
    not_contradicted,
    tightened,
)

KINDS = ("ends", "top", "bottom", "abs")


class Dense:
    """An operator by its entries, which need not be symmetric."""

    def __init__(self, entries, dtype=torch.float64):
        self.entries = torch.as_tensor(np.asarray(entries)).to(dtype)
        self.size, self.dtype, self.device = len(self.entries), dtype, torch.device("cpu")

    def __matmul__(self, v):
        return self.entries @ v


def symmetric(n, seed=0):
    a = np.random.default_rng(seed).standard_normal((n, n))
    return (a + a.T) / 2


def criteria(which="top:2", tolerance=1e-3, **options):
    return Criteria(
        Which.parse(which), tolerance, Rounding(2.0**-52), **{"max_products": 1000, "component": 1e-3, **options}
    )


def requests(n):
    return ["ends"] + [f"{kind}:{k}" for kind in KINDS[1:] for k in {1, (n + 1) // 2, n}]


# ---- the whole space


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", range(1, 13))
def test_a_search_through_the_whole_space_ends_at_the_dense_eigenvalues(n, dtype, certify):
    for seed in range(3):
        operator = Dense(symmetric(n, seed), dtype)
        truth = np.linalg.eigvalsh(operator.entries.double().numpy())
        epsilon = torch.finfo(dtype).eps
        for which in requests(n):
            # no residual with its allowance meets this tolerance: only the whole space does
            pairs = lanczos(operator, which, tol=1e-30, certify=certify, seed=seed)
            assert pairs.products <= n and pairs.converged == (pairs.products == n), which
            assert pairs.values == pytest.approx(truth[Which.parse(which).pick(truth)], abs=64 * epsilon * pairs.scale)
            assert (pairs.residuals <= 128 * epsilon * pairs.scale).all()


@pytest.mark.parametrize("n", range(2, 13))
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_successive_eigenvalues_through_the_whole_space_are_the_dense_ones(n, which):
    operator = Dense(symmetric(n, n))
    truth = np.linalg.eigvalsh(operator.entries.numpy())
    for count in range(1, n + 1):
        pairs = successive(operator, f"{which}:{count}", tol=1e-30)
        assert pairs.converged
        assert pairs.values == pytest.approx(truth[Which(which, count).pick(truth)], abs=1e-13)


@pytest.mark.parametrize("n", [2, 3, 5, 12, 40])
def test_products_that_are_not_symmetric_are_refused_with_the_measured_asymmetry(n):
    a = symmetric(n, n)
    a[0, 1] += 0.25  # u.Av - v.Au is 1/4 for the first two unit vectors, the spectral norm of A - A^T
    for solve in (lambda: lanczos(Dense(a), tol=1e-9, certify=True), lambda: successive(Dense(a), "top:2", tol=1e-9)):
        with pytest.raises(FloatingPointError, match=r"not symmetric: u\.Av and v\.Au differ by up to 0\.25 "):
            solve()


def test_an_asymmetry_within_the_tolerance_is_part_of_the_bar():
    a = symmetric(6)
    truth = np.linalg.eigvalsh(a)
    a[0, 1] += 1e-6
    pairs = lanczos(Dense(a), tol=1e-3, certify=True)
    assert pairs.converged
    assert (np.abs(pairs.values - truth[[-1, 0]]) <= pairs.residuals).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_starts_ends_with_the_space_though_it_has_no_limits(kind):
    which = kind if kind == "ends" else f"{kind}:3"
    operator = Dense(symmetric(7))
    truth = np.linalg.eigvalsh(operator.entries.numpy())
    pairs = lanczos(operator, which, tol=1e-30, block=3, certify=True)
    assert pairs.products == 7
    assert pairs.values == pytest.approx(truth[Which.parse(which).pick(truth)], abs=1e-13)
    assert pairs.converged and np.isnan(pairs.limits).all()


# ---- rounding comes from one place


class Measured(Dense):
    """An operator that knows how far rounding moves its eigenvalues."""

    def __init__(self, entries, rounding):
        super().__init__(entries)
        self.rounding = rounding


@pytest.mark.parametrize("which", ["ends", "top:3"])
def test_a_measured_rounding_replaces_the_assumed_one_in_bars_limits_and_tolerance(which):
    a = np.diag(np.r_[3.0, 2.0, np.linspace(1.0, -1.0, 60)])
    assumed, measured = lanczos(Dense(a), which, tol=1e-6), lanczos(Measured(a, 0.01), which, tol=1e-6)
    assert (assumed.residuals < 1e-5).all() and assumed.converged
    assert (measured.residuals >= 0.01).all() and not measured.converged  # 1e-6 cannot be met where 0.01 is rounding
    assert measured.products < assumed.products
    assert measured.limits[0] >= 3.01
    found = successive(Measured(a, 0.01), "top:3", tol=1e-6)
    assert (found.residuals >= 0.01).all() and found.others >= 1.0


def test_an_asymmetry_within_the_measured_rounding_is_no_fault():
    a = symmetric(5)
    a[0, 1] += 0.25
    pairs = lanczos(Measured(a, 0.2), tol=1e-9)
    truth = np.linalg.eigvalsh((a + a.T) / 2)
    assert pairs.converged and pairs.values == pytest.approx(truth[[-1, 0]], abs=1e-12)


# ---- the rules by themselves


def test_values_have_settled_where_none_moved_in_the_last_quarter_of_the_products():
    one, two = np.array([2.0, 1.0]), np.array([2.0, 1.1])
    assert not is_settled(((8, one),), 0.05)  # nothing to compare with
    assert is_settled(((6, one), (8, one)), 0.05)
    assert not is_settled(((7, one), (8, one)), 0.05)  # seven is within the last quarter of eight
    assert not is_settled(((6, one), (7, two), (8, two)), 0.05)
    assert is_settled(((6, one), (7, two), (8, two)), 0.2)
    assert not is_settled(((6, one[:1]), (8, one)), 0.05)  # one value fewer was there


@pytest.mark.parametrize(
    ("which", "limits", "expected"),
    [
        ("ends", (1.1, -1.1), True),
        ("ends", (1.1, -1.3), False),
        ("ends", (1.3, -1.1), False),
        ("top:1", (1.1, -inf), True),
        ("bottom:1", (inf, -1.1), True),
        ("bottom:1", (1.1, -inf), False),
        ("abs:1", (1.1, -1.3), False),
    ],
)
def test_limits_are_near_at_the_requested_ends(which, limits, expected):
    assert limits_are_near(Which.parse(which), limits, np.array([-1.0, 0.0, 1.0]), 0.2) is expected


def space_of(entries, steps, start=None):
    operator = Dense(entries)
    vector = np.ones(len(entries)) if start is None else start
    space = KrylovSpace(operator, torch.as_tensor(vector)[:, None], operator.size)
    for _ in range(steps):
        space.step()
    return space


def test_limits_only_tighten_and_a_joined_space_gives_none():
    space = space_of(np.diag(np.linspace(-1.0, 1.0, 30)), 6)
    limits = tightened((inf, -inf), space, 1e-3, 0.0)
    assert limits[0] > 1.0 and limits[1] < -1.0
    assert tightened((1.0, -1.0), space, 1e-3, 0.0) == (1.0, -1.0)
    assert tightened((inf, -inf), space, 0.0, 0.0) == (inf, -inf)
    space.join(torch.eye(30, dtype=torch.float64)[0])
    assert not space.is_single_run and tightened((inf, -inf), space, 1e-3, 0.0) == (inf, -inf)


def test_a_search_whose_products_are_spent_is_finished_and_not_near():
    space = space_of(np.diag(np.linspace(-1.0, 1.0, 30)), 3)
    rules = criteria("ends", 1e-9, max_products=3)
    search = decide(rules, Search(), space, space.ritz(), products=3, progress=3)
    assert search.is_finished and not search.is_near and not search.is_met
    search = decide(rules, Search(), space, space.ritz(), products=2, progress=2)
    assert not search.is_finished


def test_an_invariant_subspace_ends_the_search_but_where_copies_are_sought():
    space = space_of(np.diag([2.0, 2.0, 2.0, 1.0]), 2)
    assert space.is_invariant and not space.is_complete
    ends = criteria("top:2", component=0.0)
    assert decide(ends, Search(), space, space.ritz(), products=2, progress=2).is_finished
    copies = criteria("top:2", component=0.0, seek_copies=True)
    search = decide(copies, Search(), space, space.ritz(), products=2, progress=2)
    assert search.is_near and not search.is_finished  # nothing shows yet that the values have settled


def test_a_search_saved_and_restored_is_the_same():
    search = Search((2.0, -inf), 3, ((4, np.array([1.0])), (5, np.array([2.0, 1.0]))))
    restored = Search.restored(search.saved(2))
    assert restored.limits == search.limits and restored.repeats == 3
    assert [m for m, _ in restored.history] == [4, 5]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(search.history, restored.history, strict=True))
    assert Search.restored(Search().saved(2)) == Search()


def test_a_search_left_after_every_product_takes_each_decision_once():
    operator = Dense(symmetric(30, 4))
    whole = lanczos(operator, "top:3", tol=1e-8)
    state, leaves = None, 0
    while True:
        answers = iter([False, True])
        try:
            pairs = lanczos(operator, "top:3", tol=1e-8, state=state, stop=lambda a=answers: next(a))
            break
        except Interrupted as left:
            state, leaves = left.state, leaves + 1
    assert leaves > 5 and pairs.products == whole.products
    assert np.array_equal(pairs.values, whole.values) and np.array_equal(pairs.residuals, whole.residuals)


def test_a_limit_never_lies_inside_of_the_values_that_were_found():
    ritz = RitzPairs(np.array([-2.0, 1.0, 3.0]), np.eye(3), np.array([0.1, 0.2, 0.25]))
    assert not_contradicted((3.5, -2.5), ritz, 0.01) == (3.5, -2.5)
    assert not_contradicted((inf, -inf), ritz, 0.01) == (inf, -inf)
    assert not_contradicted((2.9, -1.9), ritz, 0.01) == pytest.approx((3.26, -2.11))


def test_the_limits_of_a_start_that_hardly_sees_the_end_hold_what_was_found_from_others(monkeypatch):
    values = np.linspace(0.0, 1.0, 60)
    values[0] = -0.3
    # Bounds of a run that takes its start's component along the smallest for large: wrong, as one in a hundred is.
    monkeypatch.setattr("lossmap.linalg.stopping.lower_limit", lambda alpha, beta, component: -0.25)
    pairs = successive(Dense(np.diag(values)), "bottom:2")
    assert pairs.values[0] == pytest.approx(-0.3, abs=1e-3)
    assert pairs.limits[1] <= pairs.values[0]
