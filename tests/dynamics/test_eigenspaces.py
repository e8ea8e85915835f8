"""Constructed runs are recovered: a rotation, a jump, a crossing, noise; and small twins of the algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmap.dynamics.eigenspaces import compare_eigenspaces, components, curvature_along
from lossmap.dynamics.snapshots import Snapshots, row_statistics


def frame(n, r, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, r)))[0]


def run(vectors, values=None, steps=None):
    values = values or [np.arange(v.shape[1], 0, -1.0) for v in vectors]
    return Snapshots.of(steps or list(range(len(vectors))), values, vectors)


def rotating(n=60, s=11, angle=np.pi / 2, r=3):
    """Each of r vectors turns towards one of r others, by `angle` over the whole run."""
    basis = frame(n, 2 * r)
    turns = np.linspace(0, angle, s)
    return [np.cos(a) * basis[:, :r] + np.sin(a) * basis[:, r:] for a in turns], turns


def test_the_gram_matrix_is_the_dense_one_whatever_the_blocks():
    vectors = [np.random.default_rng(k).standard_normal((50, 2)) for k in range(3)]
    rows = np.concatenate([v.T / np.linalg.norm(v, axis=0)[:, None] for v in vectors])
    snapshots = Snapshots(
        np.arange(3),
        np.ones((3, 2)),
        50,
        lambda: (np.concatenate([v.T for v in vectors])[:, a : a + 7] for a in range(0, 50, 7)),
    )
    found = row_statistics(snapshots)
    np.testing.assert_allclose(found.gram, rows @ rows.T, atol=1e-12)
    np.testing.assert_allclose(found.participation, 1 / (50 * (rows**4).sum(axis=1)), rtol=1e-12)


def test_participation_is_one_over_n_for_a_single_weight_and_one_for_all_alike():
    vectors = np.stack([np.eye(64)[3], np.full(64, 0.125), np.random.default_rng(0).standard_normal(64)], axis=1)
    found = row_statistics(run([vectors]))
    np.testing.assert_allclose(found.participation[:2], [1 / 64, 1.0], rtol=1e-12)
    assert 0.15 < found.participation[2] < 0.6


@pytest.mark.parametrize("centre", [False, True])
def test_pca_is_that_of_the_stacked_matrix(centre):
    rows = np.random.default_rng(3).standard_normal((12, 30))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    found = components(rows @ rows.T, centre=centre)
    moved = rows - rows.mean(axis=0) if centre else rows
    u, sizes, _ = np.linalg.svd(moved, full_matrices=False)
    np.testing.assert_allclose(found.explained, sizes**2 / (sizes**2).sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs(found.projection[:, :2]), np.abs(u * sizes)[:, :2], atol=1e-9)
    assert found.cumulative[-1] == pytest.approx(1.0)
    assert found.needed(1.0) == (11 if centre else 12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_signs_of_eigenvectors_change_nothing_but_their_projections_sign(seed):
    generator = np.random.default_rng(seed)
    vectors = [np.linalg.qr(generator.standard_normal((20, 3)))[0] for _ in range(4)]
    flipped = [v * generator.choice([-1.0, 1.0], 3) for v in vectors]
    a, b = compare_eigenspaces(run(vectors)), compare_eigenspaces(run(flipped))
    np.testing.assert_allclose(a.pca.explained, b.pca.explained, atol=1e-12)
    np.testing.assert_allclose(a.overlaps, b.overlaps, atol=1e-12)
    np.testing.assert_array_equal(a.tracks.member, b.tracks.member)
    np.testing.assert_allclose(np.abs(a.gram), np.abs(b.gram), atol=1e-12)


def test_a_rotation_of_a_degenerate_space_changes_no_overlap():
    vectors, _ = rotating()
    turned = [v @ np.linalg.qr(np.random.default_rng(k).standard_normal((3, 3)))[0] for k, v in enumerate(vectors)]
    np.testing.assert_allclose(
        compare_eigenspaces(run(vectors)).overlaps, compare_eigenspaces(run(turned)).overlaps, atol=1e-12
    )


def test_a_rotating_planted_subspace_is_measured_exactly():
    vectors, turns = rotating()
    found = compare_eigenspaces(run(vectors))
    np.testing.assert_allclose(found.overlaps, np.cos(turns[:, None] - turns[None, :]) ** 2, atol=1e-12)
    np.testing.assert_allclose(found.cosines, np.cos(turns[1]), atol=1e-12)
    angles = scipy.linalg.subspace_angles(vectors[0], vectors[4])
    np.testing.assert_allclose(found.overlaps[0, 4], np.mean(np.cos(angles) ** 2), atol=1e-12)


def test_eigenvectors_are_followed_through_a_crossing_by_value():
    basis, s = frame(40, 2), 9
    one, other = np.linspace(5, 1, s), np.linspace(2, 4, s)
    order = [np.argsort([-a, -b]) for a, b in zip(one, other, strict=True)]
    values = [np.array([a, b])[k] for a, b, k in zip(one, other, order, strict=True)]
    found = compare_eigenspaces(run([basis[:, k] for k in order], values)).tracks
    np.testing.assert_allclose(found.values, [one, other], atol=1e-12)
    assert found.crossings == ((3.0, 5.0, 0, 1),)  # they meet at 4
    np.testing.assert_allclose(found.cosine[:, 1:], 1.0, atol=1e-12)


def test_a_snapshot_at_which_two_vectors_mix_does_not_lose_the_tracks():
    basis = frame(40, 2)
    mixed = basis @ (np.array([[1, 1], [1, -1.0]]) / np.sqrt(2))
    vectors = [basis, basis, mixed, basis[:, ::-1], basis[:, ::-1]]
    values = [np.array([5.0, 2]), np.array([4.5, 3]), np.array([4.0, 4]), np.array([5.0, 3]), np.array([6.0, 2])]
    found = compare_eigenspaces(run(vectors, values)).tracks
    assert found.member[0, 0] == found.member[3, 1] == found.member[4, 1]
    assert found.member[0, 1] == found.member[3, 0]


def test_a_track_ends_where_its_vector_leaves_and_another_begins():
    basis = frame(1000, 3)
    found = compare_eigenspaces(run([basis[:, :2], basis[:, :2], basis[:, [0, 2]], basis[:, [0, 2]]])).tracks
    np.testing.assert_array_equal(found.member, [[0, 1], [0, 1], [0, 2], [0, 2]])
    assert np.isnan(found.values[1, 2]) and np.isnan(found.values[2, 1]) and np.isnan(found.cosine[2, 2])


def test_signs_are_made_to_agree_along_a_track():
    vectors, _ = rotating(angle=0.5)
    flipped = [v * (-1.0) ** k for k, v in enumerate(vectors)]
    found = compare_eigenspaces(run(flipped), centre=True)
    reference = compare_eigenspaces(run(vectors), centre=True)
    np.testing.assert_allclose(found.pca.explained, reference.pca.explained, atol=1e-12)
    assert (found.gram[found.owner == 0][:, found.owner == 1].diagonal() > 0).all()


def test_snapshots_may_hold_different_numbers_of_pairs():
    basis = frame(30, 4)
    found = compare_eigenspaces(run([basis[:, :2], basis, basis[:, :3]], [np.ones(2), np.arange(4.0), np.ones(3)]))
    np.testing.assert_allclose(found.overlaps, 1.0, atol=1e-12)
    assert np.isnan(found.cosines[0, 2]) and found.owner.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert found.tracks.member[0].tolist() == [0, 1, -1, -1]


def test_float32_vectors_give_overlaps_to_single_precision():
    vectors, turns = rotating(n=5000)
    found = compare_eigenspaces(run([v.astype(np.float32) for v in vectors]))
    np.testing.assert_allclose(found.overlaps[0], np.cos(turns) ** 2, atol=2e-6)


def test_curvature_along_a_run_is_what_its_eigenvalues_say():
    found = curvature_along(np.array([[4.0, 1.0, -1.0], [2.0, 2.0, np.nan], [0.0, np.nan, np.nan]]))
    np.testing.assert_allclose(found["negative_mass"], [1 / 6, 0, 0])
    np.testing.assert_allclose(found["lambda_min"], [-1, 2, 0])
    np.testing.assert_allclose(found["lambda_max"], [4, 2, 0])
    np.testing.assert_allclose(found["log_volume"][:2], [np.log(4.0), np.log(4.0)])
    assert found["log_volume"][2] == -np.inf
    assert found["effective_rank"][1] == pytest.approx(2.0)
    assert found["effective_rank"][2] == pytest.approx(1.0)


def test_what_is_no_run_is_refused():
    v = frame(10, 2)
    with pytest.raises(ValueError, match="the steps of a run must ascend"):
        run([v, v], steps=[3, 1])
    with pytest.raises(ValueError, match="2 steps, 1 sets of eigenvalues"):
        Snapshots.of([0, 1], [np.ones(2)], [v])
    with pytest.raises(ValueError, match=r"step 1: 2 eigenvalues require eigenvectors of shape \(10, 2\)"):
        Snapshots.of([0, 1], [np.ones(2)] * 2, [v, v[:8]])
    with pytest.raises(ValueError, match="each snapshot at least one eigenpair"):
        Snapshots(np.arange(2), np.array([[1.0], [np.nan]]), 5, list)
    with pytest.raises(ValueError, match="require an array of eigenvalues with as many rows"):
        Snapshots(np.arange(3), np.ones((2, 1)), 5, list)
    with pytest.raises(ValueError, match="has 1 rows; the snapshots have 2"):
        row_statistics(Snapshots(np.arange(2), np.ones((2, 1)), 5, lambda: [np.ones((1, 5))]))
    with pytest.raises(ValueError, match="4 columns together; the vectors have 5"):
        row_statistics(Snapshots(np.arange(2), np.ones((2, 1)), 5, lambda: [np.ones((2, 4))]))
    with pytest.raises(ValueError, match="an eigenvector of step 1 is zero or not finite"):
        row_statistics(run([v, v * 0]))
