"""Principal angles against SciPy, and the levels of chance against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from lossmap.linalg import subspaces


def uniform(generator, n, r):
    return np.linalg.qr(generator.standard_normal((n, r)))[0].T


def test_principal_cosines_are_scipys_for_rows_that_are_not_orthonormal():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((3, 40)), generator.standard_normal((5, 40))
    found = subspaces.principal_cosines(a @ a.T, a @ b.T, b @ b.T)
    expected = np.sort(np.cos(scipy.linalg.subspace_angles(a.T, b.T)))[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_subspace_within_another_overlaps_it_wholly():
    generator = np.random.default_rng(1)
    b = generator.standard_normal((4, 30))
    a = generator.standard_normal((2, 4)) @ b
    found = subspaces.principal_cosines(a @ a.T, a @ b.T, b @ b.T)
    assert subspaces.overlap_of(found) == pytest.approx(1.0, abs=1e-12)


def test_rows_that_depend_on_each_other_span_what_they_span():
    a = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    b = np.array([[1.0, 1.0, 0.0]])
    found = subspaces.principal_cosines(a @ a.T, a @ b.T, b @ b.T)
    np.testing.assert_allclose(found, [np.sqrt(0.5)], atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_chance_cosine_is_that_of_simulated_lines(n):
    generator = np.random.default_rng(n)
    lines = generator.standard_normal((100_000, n))
    cosines = np.abs(lines[:, 0]) / np.linalg.norm(lines, axis=1)
    error = cosines.std() / np.sqrt(len(cosines))
    assert abs(cosines.mean() - subspaces.chance_cosine(n)) < 4 * error


def test_the_chance_cosine_of_a_million_weights_is_near_its_limit():
    assert subspaces.chance_cosine(10**6) == pytest.approx(np.sqrt(2 / (np.pi * 1e6)), rel=1e-6)


@pytest.mark.parametrize(("n", "tries"), [(3, 1), (30, 1), (30, 25)])
def test_chance_exceeds_its_limit_as_often_as_promised(n, tries):
    generator = np.random.default_rng(n + tries)
    lines = generator.standard_normal((20_000 * tries, n))
    cosines = (np.abs(lines[:, 0]) / np.linalg.norm(lines, axis=1)).reshape(20_000, tries).max(axis=1)
    share = float((cosines > subspaces.chance_cosine_limit(n, tries, confidence=0.95)).mean())
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20_000)


def test_on_a_line_every_cosine_is_one():
    assert subspaces.chance_cosine_limit(1) == 1.0


@pytest.mark.parametrize(("n", "p", "q"), [(20, 1, 1), (20, 3, 3), (20, 3, 7), (12, 6, 8)])
def test_the_chance_overlap_and_its_spread_are_those_of_simulated_subspaces(n, p, q):
    generator = np.random.default_rng(100 * p + q)
    found = np.array(
        [np.square(uniform(generator, n, p) @ uniform(generator, n, q).T).sum() / min(p, q) for _ in range(4000)]
    )
    mean, deviation = subspaces.chance_overlap(n, p, q)
    assert abs(found.mean() - mean) < 4 * found.std() / np.sqrt(len(found))
    assert found.std() == pytest.approx(deviation, rel=0.06)


def test_the_whole_space_overlaps_everything():
    assert subspaces.chance_overlap(5, 5, 2) == (1.0, 0.0)


@pytest.mark.parametrize(("n", "s", "r"), [(600, 2, 60), (600, 5, 30), (600, 30, 10), (600, 3, 100)])
def test_the_largest_eigenvalue_and_participation_by_chance_are_the_simulated_ones(n, s, r):
    generator = np.random.default_rng(s)
    rows = np.concatenate([uniform(generator, n, r) for _ in range(s)])
    values = np.linalg.eigvalsh(rows @ rows.T)
    assert values[-1] == pytest.approx(subspaces.chance_largest(n, s, r), rel=0.04)
    assert subspaces.participation(values) == pytest.approx(subspaces.chance_participation(n, s, r), rel=0.03)


def test_subspaces_too_large_for_their_space_share_a_direction():
    generator = np.random.default_rng(0)
    rows = np.concatenate([uniform(generator, 10, 8) for _ in range(3)])
    assert np.linalg.eigvalsh(rows @ rows.T)[-1] == pytest.approx(subspaces.chance_largest(10, 3, 8), rel=1e-10)


def test_one_subspace_alone_has_orthonormal_rows():
    assert subspaces.chance_largest(10, 1, 3) == 1.0


def test_the_participation_of_equal_weights_is_their_number_and_of_none_unknown():
    assert subspaces.participation(np.full(7, 0.3)) == pytest.approx(7.0)
    assert subspaces.participation(np.array([2.0, 0.0])) == 1.0
    assert np.isnan(subspaces.participation(np.zeros(3)))
