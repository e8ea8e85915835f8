"""Studies as campaigns: resumed, with failures, from the command line; and the curvature of planes against truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lossmap.cli.study import main
from lossmap.cli.train import main as train_command
from lossmap.geometry.directions import random_plane
from lossmap.parallel.world import World
from lossmap.studies import designs, study
from lossmap.studies.designs import Size
from lossmap.studies.net import NetSpec, PlaneCurvatureOfNet, TrainedNet, axes_as_vectors, member_of, plane_curvature

TINY = Size(seeds=2, epochs=1, samples=16, planes=2)


def test_the_curvature_of_a_plane_is_that_of_its_restricted_matrix():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    matrix, axes = half + half.T, torch.randn(2, 7, generator=generator, dtype=torch.float64)
    lines = [np.array([np.cos(t), np.sin(t)]) for t in np.linspace(0, np.pi, 4001)]
    q, _ = np.linalg.qr(axes.numpy().T)
    rayleigh = [line @ q.T @ matrix.numpy() @ q @ line for line in lines]  # brute force over the plane's directions
    np.testing.assert_allclose(plane_curvature(matrix, axes), [min(rayleigh), max(rayleigh)], atol=1e-4)


def test_gaussian_planes_show_the_mean_of_all_eigenvalues():
    eigenvalues = torch.tensor([10.0, 3.0] + [0.1] * 38, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    seen = [
        plane_curvature(torch.diag(eigenvalues), torch.randn(2, 40, generator=generator, dtype=torch.float64)).mean()
        for _ in range(2000)
    ]
    error = np.std(seen) / np.sqrt(len(seen))
    assert abs(np.mean(seen) - float(eigenvalues.mean())) < 4 * error < 0.1


def test_axes_are_in_the_order_of_the_hessians_rows():
    model = NetSpec().fresh()
    plane = random_plane(model, 2, 0)
    vectors = axes_as_vectors(plane, model)
    weights = [p for p in model.parameters() if p.dim() > 1]
    assert vectors.shape == (2, sum(p.numel() for p in weights))
    assert torch.equal(vectors[0, : weights[0].numel()], plane.axes[0]["1.weight"].flatten())


def test_a_study_that_was_stopped_goes_on_to_the_same_numbers(tmp_path):
    whole = study.run_study("plane-curvature", TINY, tmp_path / "whole", world=World())
    asked = []
    part = study.run_study(
        "plane-curvature", TINY, tmp_path / "part", world=World(), stop=lambda: asked.append(1) or len(asked) > 4
    )
    again = study.run_study("plane-curvature", TINY, tmp_path / "part", world=World())
    assert part.outcome in ("unfinished", "complete") and again.outcome == whole.outcome == "complete"
    assert again.report == whole.report == (tmp_path / "part" / "report.txt").read_text().rstrip("\n")
    assert (tmp_path / "part" / "table.csv").exists()


def test_a_net_whose_training_fails_is_left_out_by_name(tmp_path, monkeypatch):
    good = NetSpec(epochs=1, samples=16)
    members = [
        member_of(name, PlaneCurvatureOfNet(spec, 2), {"seed_of_net": 0})
        for name, spec in (("good", good), ("bad", replace(good, rate=1e20)))
    ]
    monkeypatch.setitem(designs.DESIGNS, "plane-curvature", lambda size: members)
    found = study.run_study("plane-curvature", TINY, tmp_path, world=World())
    assert found.outcome == "failed" and [net["name"] for net in found.nets] == ["good"]
    assert "1 of 2 nets failed and are left out: bad: " in found.report and "not" not in found.nets[0]["outcome"]
    assert "take a smaller one" in found.failures[0] or "loss is" in found.failures[0]


def test_a_trained_net_is_measured_over_part_of_what_it_was_trained_on():
    net = TrainedNet.of(NetSpec(epochs=1, train_samples=40, samples=16))
    trained = {tuple(row) for row in net.trained_on.data.tensors[0].flatten(1).tolist()}
    measured = [tuple(row) for row in net.measured.data.tensors[0].flatten(1).tolist()]
    assert (len(trained), len(measured)) == (40, 16) and set(measured) <= trained


def test_neurons_from_the_command_line(tmp_path, capsys):
    run, folder = str(tmp_path / "run"), str(tmp_path / "neurons")
    assert train_command(["--model", "mlp", "--samples", "64", "--epochs", "2", "--folder", run, "--threads", "1"]) == 0
    assert main(["neurons", "--model-folder", run, "--folder", folder]) == 0
    assert "5.weight: 10 neurons, 3 checkpoints" in capsys.readouterr().out
    assert (tmp_path / "neurons" / "picture.png").stat().st_size > 5000


def test_neurons_of_a_run_of_a_net_of_ones_own(tmp_path, capsys):
    file, run = tmp_path / "mine.py", tmp_path / "run"
    file.write_text("import torch\n\ndef net():\n    return torch.nn.Linear(3, 4)\n")
    run.mkdir()
    for step in (0, 1):
        torch.save(torch.nn.Linear(3, 4).state_dict(), run / f"step{step}.pt")
    words = ["--model-folder", str(run), "--model", f"{file}:net", "--folder", str(tmp_path / "neurons")]
    assert main(["neurons", *words]) == 0
    assert "weight: 4 neurons, 2 checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the study must be one of flatness"),
        (["flatness", "--model", "mine.py:net"], "must be a net of the zoo, such as mlp"),
        (["flat"], "got flat"),
        (["neurons"], "neurons needs --model-folder"),
        (["flatness", "--model-folder", "run"], "the other studies train their own"),
        (["depth", "--depths", "9"], "--depths must be 8, 14, 20"),
        (["flatness", "--model", "mpl"], "no net is named 'mpl'"),
        (["flatness", "--model", "resnet20", "--dry-run"], "--model: this net does not take the digits"),
        (["depth", "--depths", "8", "8"], "--depths must differ from each other; got 8 8"),
        (["depth", "--model", "mlp"], "--model is of flatness, generalisation, plane-curvature, neurons, not of depth"),
        (["flatness", "--ticks", "5"], "--ticks is of depth, not of flatness: leave it out"),
        (["generalisation", "--planes", "3"], "--planes is of plane-curvature, not of generalisation"),
        (["neurons", "--model-folder", "run", "--seeds", "3"], "--seeds is of flatness, depth, generalisation"),
    ],
)
def test_what_makes_no_sense_is_refused(words, text, capsys):
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    assert main(["generalisation", "--dry-run", "--folder", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.count("would train and measure") >= 20 and not (tmp_path / "none").exists()
