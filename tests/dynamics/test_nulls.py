"""Informed nulls of a run: against dense eigenvectors, and what is said and stored of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.operators import CurvatureOperator
from lossmap.data.checkpoints import load_into
from lossmap.data.problem import Problem
from lossmap.dynamics.eigenspaces import compare_eigenspaces
from lossmap.dynamics.nulls import InformedNull, halves_of, null_shares
from lossmap.dynamics.run import run_dynamics
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import summarize
from lossmap.io.eigenvector_store import results_of
from lossmap.plotting.dynamics import draw_panel
from lossmap.report.text import value_with_error


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def problem():
    x = torch.randn(41, 5, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(net(0), "crossentropy", (x, torch.arange(41) % 3))


def checkpoints(folder, steps=(0, 1, 2)):
    folder.mkdir()
    one, other = net(0).state_dict(), net(5).state_dict()
    for step in steps:
        torch.save({k: v + 0.02 * step * other[k] for k, v in one.items()}, folder / f"epoch_{step}.pt")
    torch.save(other, folder.parent / "other.pt")
    return folder


def dense(given, path, top):
    given = given.over(net(0))
    load_into(given.model, path)
    matrix = CurvatureOperator(given)
    whole = np.stack([(matrix @ torch.eye(matrix.size)[i]).double().numpy() for i in range(matrix.size)])
    return np.linalg.eigh((whole + whole.T) / 2)[1][:, ::-1][:, :top]


def overlap(a, b):
    return float(np.square(np.linalg.svd(a.T @ b, compute_uv=False)).mean())


def test_halves_are_disjoint_and_all_samples():
    given = problem()
    first, second = halves_of(given, 3)
    rows = [tuple(map(tuple, part.data.tensors[0].tolist())) for part in (first, second)]
    assert (len(rows[0]), len(rows[1])) == (21, 20) and not set(rows[0]) & set(rows[1])
    assert set(rows[0]) | set(rows[1]) == set(map(tuple, given.data.tensors[0].tolist()))


def test_the_loss_of_a_half_is_the_mean_over_its_own_weights():
    plain = problem()
    weight = torch.arange(1.0, 4.0) ** 3
    given = Problem.supervised(plain.model, nn.CrossEntropyLoss(weight=weight), plain.data.tensors)
    for half in halves_of(given, 3):
        x, y = half.data.tensors
        with torch.no_grad():
            truth = nn.functional.cross_entropy(half.model(x), y, weight=weight)
            assert float(half.total((x, y))) / half.samples == pytest.approx(float(truth), rel=1e-6)


def test_the_nulls_are_those_of_dense_eigenvectors_and_stay_in_the_file(tmp_path):
    given, folder = problem(), checkpoints(tmp_path / "run")
    options = {"path": tmp_path / "a.h5", "top": 2, "tol": 1e-6, "backend": "double-backward", "null": "halves"}
    run = run_dynamics([folder], given, other_seed=tmp_path / "other.pt", **options)
    group = results_of(tmp_path / "a.h5")
    halves = [
        [overlap(*(dense(part, folder / f"epoch_{step}.pt", 2) for part in halves_of(given, 0, d))) for d in range(3)]
        for step in (0, 2)
    ]
    np.testing.assert_allclose(group["null_divisions"], halves, atol=1e-4)
    np.testing.assert_allclose(group["null_halves"], np.mean(halves, axis=1), atol=1e-4)
    bar = 4.302653 * np.std(halves[0], ddof=1) / np.sqrt(3)
    assert f"{value_with_error(np.mean(halves[0]), bar)} at step 0" in " ".join(run.summary.split())
    assert group["null_step"].tolist() == [0, 2]
    other = dense(given, tmp_path / "other.pt", 2)
    seed = [overlap(dense(given, folder / f"epoch_{step}.pt", 2), other) for step in (0, 1, 2)]
    np.testing.assert_allclose(group["null_seed"], seed, atol=1e-4)
    assert "null:" in run.summary and "another seed" in run.summary
    assert not (tmp_path / "a.h5.null.vectors").exists()
    again = run_dynamics([folder], given, other_seed=tmp_path / "other.pt", **options)
    assert again.summary == run.summary
    draw_panel(tmp_path / "a.h5", "successive").savefig(tmp_path / "a.png")


def test_a_net_of_another_seed_is_added_to_a_finished_run(tmp_path):
    given, folder = problem(), checkpoints(tmp_path / "run")
    options = {"path": tmp_path / "a.h5", "top": 2, "backend": "double-backward"}
    assert "null" not in run_dynamics([folder], given, **options).summary
    run = run_dynamics([folder], given, other_seed=tmp_path / "other.pt", **options)
    assert "another seed" in run.summary and len(results_of(tmp_path / "a.h5")["null_seed"]) == 3
    answers = json.loads(str(results_of(tmp_path / "a.h5").attributes["answers"]))
    assert answers["null"]["answer"] == "cannot say"  # of the samples nothing was measured


def test_what_cannot_be_a_null_is_refused(tmp_path):
    given, folder = problem(), checkpoints(tmp_path / "run")
    for other, text in ((folder / "epoch_1.pt", "epoch_1.pt of the run itself"), (tmp_path / "no.pt", "no checkpoint")):
        with pytest.raises(ValueError, match=text):
            run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, other_seed=other)
    with pytest.raises(ValueError, match="null must be halves or none; got 'all'"):
        run_dynamics([folder], given, path=tmp_path / "a.h5", top=2, null="all")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("halves", "answer"),
    [
        (([0.1], [0.2]), "less"),
        (([1.0], [0.2]), "alike"),
        (([1.0], [1.0]), "more"),
        (([0.1, 0.11, 0.12], [0.2, 0.21, 0.22]), "less"),
        (([0.1, 0.11, 0.12], [0.6, 0.7, 0.8]), "alike"),  # 0.7 +- 0.25, and the overlap is 0.85
        (([0.95, 0.96, 0.97], [1.0, 1.0, 1.0]), "more"),
    ],
)
def test_the_word_follows_from_the_order_of_the_numbers_and_their_bars(halves, answer):
    angle = 0.4
    vectors = [np.array([[np.cos(t * angle)], [np.sin(t * angle)], [0.0]]) for t in range(3)]
    run = compare_eigenspaces(Snapshots.of([0, 1, 2], [np.ones(1)] * 3, vectors))
    null = InformedNull(np.array([0.0, 2.0]), np.array(halves), np.array([0.3, 0.4, 0.5]))
    found = summarize(run, null=null)["null"]
    assert ("(one division: no error bar)" in found.sentence) == (len(halves[0]) == 1)
    assert ("3 random divisions with their 95 % intervals" in found.sentence) == (len(halves[0]) == 3)
    assert found.answer == answer and found.numbers["overlap"] == pytest.approx(np.cos(angle) ** 2)
    assert "nearer to each other" in found.sentence
    assert (found.numbers["least"] > found.numbers["seed_most"]) == ("any two snapshots" in found.sentence)


def test_the_bar_of_the_halves_is_students():
    null = InformedNull(np.array([0.0]), np.array([[0.1, 0.2, 0.6]]), np.zeros(0))
    assert null.mean[0] == pytest.approx(0.3) and null.half_width[0] == pytest.approx(0.6572411, rel=1e-6)
    assert np.isinf(InformedNull(np.array([0.0]), np.array([[0.1]]), np.zeros(0)).half_width[0])


def test_the_price_of_a_run_counts_the_searches_of_its_null(tmp_path):
    given, noted = problem(), []
    run_dynamics(
        [checkpoints(tmp_path / "run")], given, path=tmp_path / "d.h5", top=2, null="halves",
        other_seed=tmp_path / "other.pt", progress=lambda p: noted.append(p.note),
    )  # fmt: skip
    assert (
        null_shares(given, 3, True, True) == (0.5,) * 12 + (1.0,) and null_shares(given, 1, True, False) == (0.5,) * 6
    )
    assert null_shares(given, 3, False, False) == ()
    alone = tmp_path / "alone.h5"
    run_dynamics([tmp_path / "run"], given, path=alone, top=2, null="none", progress=lambda p: noted.append(p.note))
    counts = [int(note.split()[1].replace(",", "")) for note in noted if note.startswith("about")]
    assert len(counts) == 2 and counts[0] >= 4 * counts[1]  # 16 searches in the place of 3
