"""The words fit the run: each kind of run is constructed, and called what it is."""

from __future__ import annotations

import numpy as np
import pytest

from lossmap.dynamics.eigenspaces import compare_eigenspaces
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import Thresholds, jumps_of, picture_share, summarize


def frame(n, r, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, r)))[0]


def judged(vectors, **options):
    return summarize(run(vectors), **options)


def run(vectors):
    r = vectors[0].shape[1]
    return compare_eigenspaces(Snapshots.of(list(range(len(vectors))), [np.arange(r, 0, -1.0)] * len(vectors), vectors))


def noisy(v, size, seed):
    extra = np.random.default_rng(seed).standard_normal(v.shape) * size / np.sqrt(len(v))
    return np.linalg.qr(v + extra)[0]


def words(found):
    return {a.question: a.answer for a in found.answers}


def test_a_subspace_that_stays_is_called_stable_low_dimensional_and_still():
    basis = frame(300, 4)
    found = judged([noisy(basis, 0.05, k) for k in range(20)])
    assert words(found) == {"related": "yes", "stable": "yes", "dimension": "low", "clustered": "no", "course": "still"}
    assert found["stable"].numbers["overlap"] > 0.98
    assert "one stable subspace" in str(found)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80 and all(line[:10].rstrip(": ") == "" or line[11] == " " for line in lines)
    assert [line.partition(":")[0] for line in lines if line[0] != " "] == [a.question for a in found.answers]


def test_eigenpairs_less_exact_than_was_asked_for_are_said():
    vectors = [noisy(frame(300, 4), 0.05, k) for k in range(6)]
    values, residuals = [np.arange(4, 0, -1.0)] * 6, [np.full(4, 4e-3)] * 6
    residuals[2] = np.array([4e-3, 4e-3, 4e-3, 0.5])
    measured = compare_eigenspaces(Snapshots.of(list(range(6)), values, vectors, residuals=residuals))
    found = summarize(measured, tolerance=1e-3)["converged"]
    assert found.answer == "no" and found.numbers == {"snapshots": 1.0, "most": 0.125}
    assert "at 1 of 6 snapshots eigenvalues are off by up to 12 % of the largest, where 0.1 % was" in found.sentence
    assert "converged" not in words(summarize(measured, tolerance=0.1))


def test_a_steady_rotation_is_called_continuous_and_low_dimensional_but_not_stable():
    basis = frame(300, 6)
    turns = np.linspace(0, np.pi / 2, 21)
    found = judged([np.cos(a) * basis[:, :3] + np.sin(a) * basis[:, 3:] for a in turns])
    assert words(found) == {
        "related": "yes",
        "stable": "in part",
        "dimension": "low",
        "clustered": "no",
        "course": "continuous",
    }
    assert found["stable"].numbers["first_to_last"] == pytest.approx(0.0, abs=1e-12)
    assert found["dimension"].numbers["participation"] <= 6.0


def test_a_rotation_that_never_returns_is_neither_stable_nor_low_dimensional():
    basis, s = frame(400, 80), 77
    found = judged([basis[:, t : t + 3] @ np.eye(3) for t in range(s)])
    assert found["stable"].answer == "no" and found["dimension"].answer in ("medium", "high")
    assert found["course"].answer == "cannot say" and found["related"].answer == "yes"


def test_a_jump_is_called_a_jump_with_its_step_and_the_run_clustered():
    old, new = frame(300, 3, 1), frame(300, 3, 2)
    found = judged([noisy(old if t < 7 else new, 0.1, t) for t in range(15)])
    assert found["course"].answer == "jumping" and found["course"].numbers["first_jump"] == 6
    assert "from 6 to 7" in found["course"].sentence and "3 of 3 directions left" in found["course"].sentence
    assert found["clustered"].answer == "yes" and found["clustered"].numbers["phases"] == 2
    assert found["clustered"].numbers["picture_probability"] < 0.05


def test_one_direction_that_leaves_is_distinguished_from_a_whole_subspace_that_turns():
    basis = frame(300, 4)
    found = judged([basis[:, [0, 1, 2 if t < 5 else 3]] for t in range(12)])
    assert "1 of 3 directions left" in found["course"].sentence


def test_a_single_bad_snapshot_is_reported_as_there_and_back():
    basis = frame(300, 3)
    found = judged([basis if t != 6 else frame(300, 3, 9) for t in range(12)])
    assert found["course"].answer == "jumping" and "back again" in found["course"].sentence


def test_a_random_run_is_called_random():
    for seed in range(5):
        found = judged([frame(200, 4, 100 * seed + t) for t in range(15)])
        assert words(found) == {
            "related": "no",
            "stable": "no",
            "dimension": "high",
            "clustered": "no",
            "course": "random",
        }


def test_snapshots_too_far_apart_leave_the_course_open():
    basis = frame(300, 40)
    turn = np.deg2rad(50.0)
    chain = [basis[:, :1]]
    for t in range(1, 15):
        chain.append(np.cos(turn) * chain[-1] + np.sin(turn) * basis[:, t : t + 1])
    assert judged(chain)["course"].answer == "cannot say"


def test_few_snapshots_are_reported_to_be_too_few():
    basis = frame(100, 2)
    assert words(judged([basis])) == {"related": "cannot say"}
    found = judged([basis, noisy(basis, 0.1, 0), noisy(basis, 0.1, 1)])
    assert found["course"].answer == found["clustered"].answer == found["dimension"].answer == "cannot say"
    assert found["stable"].answer == "yes"


def test_subspaces_that_fill_their_space_say_nothing():
    found = judged([frame(3, 3, k) for k in range(6)])
    assert found["related"].answer == "cannot say"


def test_crossing_eigenvalues_are_no_jump_of_the_subspace():
    basis = frame(100, 2)
    order = [[0, 1] if t < 5 else [1, 0] for t in range(10)]
    found = judged([basis[:, k] for k in order])
    assert found["course"].answer == "still" and not jumps_of(run([basis[:, k] for k in order]))


def test_thresholds_move_the_words():
    basis = frame(300, 6)
    turns = np.linspace(0, np.pi / 4, 11)
    vectors = [np.cos(a) * basis[:, :3] + np.sin(a) * basis[:, 3:] for a in turns]
    assert judged(vectors)["stable"].answer == "yes"
    assert judged(vectors, thresholds=Thresholds(stable=0.95))["stable"].answer == "in part"


def test_one_vector_a_step_has_no_share_of_the_picture_to_explain():
    assert np.isnan(picture_share(run([frame(50, 1, k) for k in range(6)]))[0])


def test_an_unanswered_question_is_named():
    found = judged([frame(100, 2)] * 6)
    with pytest.raises(KeyError, match="there are related, stable"):
        found["colour"]
    assert found.to_dict()["stable"]["answer"] == "yes"
