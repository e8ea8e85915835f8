"""Successive eigenvalues: ranks, multiplicities and completeness, against planted and dense spectra."""

import numpy as np
import pytest
import torch

from lossmap.linalg.deflation import successive, successive_eigenpairs
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.operator import deflated


class Diagonal:
    """A matrix with these eigenvalues in its eigenbasis; random starts know no direction."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(np.asarray(values), dtype=dtype)
        self.size, self.dtype, self.device = len(values), dtype, torch.device("cpu")

    def __matmul__(self, v):
        return self.values * v


BULK = np.linspace(0.9, -0.1, 300)
COPIES = np.r_[5.0, 4.0, 4.0, 4.0, np.full(6, 3.0), 2.0, BULK]
# as of a trained net: a few large ones, and a crowd near zero within a tolerance of each other
CROWD = np.r_[85.0, 16.0, 14.0, 12.0, 11.0, np.geomspace(9, 1e-3, 150), -np.geomspace(0.7, 1e-3, 100), np.zeros(200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "which", "count"),
    [(COPIES, "top", 5), (COPIES, "top", 12), (-COPIES, "bottom", 5), (CROWD, "top", 20), (CROWD, "bottom", 100)],
)
def test_each_eigenvalue_has_its_rank_also_in_clusters_and_with_copies(values, which, count, dtype):
    order = np.sort(values)
    truth = order[::-1] if which == "top" else order
    scale = np.abs(values).max()
    for seed in range(3):
        found = successive(Diagonal(values, dtype), f"{which}:{count}", seed=seed)
        assert found.converged
        assert np.abs(found.values - truth[:count]).max() <= 1e-3 * scale + 1e-5 * scale
        near = np.abs(found.values[:, None] - values).min(1)
        assert (near <= found.residuals).all()
        sign = 1.0 if which == "top" else -1.0
        assert sign * found.others >= sign * truth[count] - 1e-6 * scale
        assert sign * found.limits[0 if which == "top" else 1] >= sign * truth[0]
        assert found.products < len(values)


def test_the_limit_on_all_others_is_broken_no_more_often_than_stated():
    values = np.r_[10.0, 9.0, 8.0, 7.0, np.linspace(6.0, -1.0, 196)]
    broken = sum(
        successive(Diagonal(values), "top:3", confidence=0.9, tol=1e-2, seed=seed).others < 7.0 for seed in range(60)
    )
    assert broken <= 13  # 10 % of 60 are 6; the chance of 14 or more is below 2 in a thousand


def test_all_eigenvalues_of_a_small_matrix_are_found():
    values = np.array([3.0, 3.0, 1.0, 0.0, 0.0, -2.0, -2.0])
    found = successive(Diagonal(values), "top:7")
    assert found.values == pytest.approx(values, abs=1e-9) and found.converged and np.isnan(found.others)
    found = successive(Diagonal(values), "bottom:3")
    assert found.values == pytest.approx([-2.0, -2.0, 0.0], abs=1e-9)


def test_vectors_are_eigenvectors_of_length_one():
    found = successive(Diagonal(COPIES), "top:6")
    images = torch.as_tensor(COPIES)[:, None] * found.vectors
    assert torch.linalg.vector_norm(images - found.vectors * torch.as_tensor(found.values), dim=0).max() < 5e-3
    assert found.vectors.T @ found.vectors == pytest.approx(np.eye(6), abs=1e-10)


def test_little_memory_restarts_the_search_to_the_same_values():
    found = successive(Diagonal(CROWD), "top:20", memory=60 * 8 * len(CROWD))
    assert found.values == pytest.approx(CROWD[:20], abs=1e-3 * 85)
    assert found.converged


def test_too_few_products_are_said():
    found = successive(Diagonal(COPIES), "top:12", max_products=30)
    assert not found.converged and 30 <= found.products <= 32
    few = successive(Diagonal(COPIES), "top:12", max_products=5)
    assert not few.converged and np.isnan(few.values[5:]).all()


def test_what_remains_is_the_matrix_with_the_directions_taken_out():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    a = a + a.T
    q = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))[0]

    class Held(Diagonal):
        def __matmul__(self, v):
            return a @ v

    out = torch.eye(8, dtype=torch.float64) - q @ q.T
    rest = DenseMatrix.of(deflated(Held(np.zeros(8)), q, -7.0))
    assert rest.entries == pytest.approx((out @ a @ out - 7.0 * q @ q.T).numpy(), abs=1e-12)


def test_solvers_agree_and_eigsh_returns_no_limits():
    values = np.r_[9.0, 7.0, 5.0, BULK]
    ours, theirs = (
        successive_eigenpairs(Diagonal(values), "top:3", solver=solver, tol=1e-6) for solver in ("auto", "eigsh")
    )
    assert ours.values == pytest.approx(theirs.values, abs=1e-4)
    assert np.isnan(theirs.others) and ours.others >= 0.9


@pytest.mark.parametrize(
    ("which", "options", "text"),
    [
        ("ends", {}, "must be top:k or bottom:k; got 'ends'"),
        ("top:9", {}, "top:9 requested of an operator of 5 rows"),
        ("top:2", {"solver": "magic"}, "--solver must be one of auto, lanczos, eigsh; got 'magic'"),
    ],
)
def test_invalid_arguments_are_refused(which, options, text):
    with pytest.raises(ValueError, match=text):
        successive_eigenpairs(Diagonal(np.arange(5.0)), which, **options)
