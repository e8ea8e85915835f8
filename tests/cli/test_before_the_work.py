"""What is said, or refused, before anything is computed: the samples of a dry run, and weights that changed since."""

import re

import pytest
import torch

from lossmap.cli.__main__ import main
from lossmap.zoo import build

NET = """
import torch
from torch import nn


def net():
    return nn.Linear(3, 2)


def data(split="train"):
    return torch.linspace(-2, 4, 36).reshape(12, 3), torch.arange(12) % 2
"""


PHYSICS = """
import lossmap, torch


def problem():
    batch = torch.linspace(0, 1, 16)[:, None], torch.tensor([[0.0], [1.0]])
    return lossmap.Problem.custom(
        torch.nn.Linear(1, 1), lambda model, batch: sum(model(x).square().mean() for x in batch), [batch]
    )
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        torch.manual_seed(seed)
        torch.save(torch.nn.Linear(3, 2).state_dict(), name)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "spectrum",
        "sharpness",
        "health",
        "connect --model-file a.pt --other b.pt",
        "dynamics a.pt b.pt",
    ],
)
def test_every_dry_run_says_what_samples_were_read(here, capsys, command):
    line = f"{command} --model net.py:net --dataset net.py:data --surf-file r.h5 --dry-run"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert "12 samples" in said and "inputs: float32, 3 each, -2 to 4, mean 1" in said
    assert "targets: int64, 2 classes, 0 to 1, 6 of each" in said and not (here / "r.h5").exists()


@pytest.mark.parametrize(
    "command", ["surface --x=-1:1:31 --y=-1:1:31", "eigenmap --x=-1:1:5", "connect --model-file a.pt --other b.pt"]
)
def test_the_size_of_a_result_that_a_dry_run_says_is_about_that_of_the_file(here, capsys, command):
    line = f"{command} --model net.py:net --dataset net.py:data --device cpu --surf-file r.h5"
    assert main([*line.split(), "--dry-run"]) == 0
    said = re.search(r"some ([\d.]+) kB", capsys.readouterr().out)
    assert main(line.split()) == 0
    assert said and 0.7 < 1000 * float(said[1]) / (here / "r.h5").stat().st_size < 1.3


def test_a_dry_run_names_no_inputs_and_targets_of_a_loss_of_model_and_batch(here, capsys):
    (here / "problem.py").write_text(PHYSICS)
    assert main(["surface", "--problem", "problem.py:problem", "--x=-1:1:3", "--surf-file", "r.h5", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("would compute train_loss at 3 points")
    assert "batch[0]: float32" in said and "inputs" not in said and "1 batch as given" in said


def test_like_refuses_weights_that_changed_since_unless_they_are_named(here, capsys):
    names = "--model net.py:net --dataset net.py:data --x=-1:1:3 --device cpu"
    assert main(f"surface {names} --model-file a.pt --surf-file s.h5".split()) == 0
    (here / "b.pt").replace(here / "a.pt")
    like = "eigenmap --like s.h5 --surf-file e.h5 --dry-run"
    assert main(like.split()) == 2
    assert "a.pt is no longer the checkpoint that s.h5 was made with" in capsys.readouterr().err
    assert main(f"{like} --model-file a.pt".split()) == 0


def test_a_script_that_is_a_command_is_named_before_its_flags_are_read(here, capsys):
    assert main(["legacy", "plot_surface.py", "--x=-1:1:3", "--model", "vgg9"]) == 2
    assert "the command lines of plot_surface.py are those of lossmap surface" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("connect a.pt b.pt --points 100000000", "--points must be <= 1,000,000; got 100,000,000"),
        ("spectrum --density-steps 100000000", "the density's steps must be <= 10,000; got 100,000,000"),
        ("spectrum --density-probes 100000000", "the density's probes must be <= 10,000"),
        ("dynamics a.pt --top 100000", "--top must be 1 to "),
        ("eigenmap --x=-1:1:3 --which top:100000", "which has 3392 eigenvalues; request at most top:3392"),
        ("eigenmap --x=-1:1:3 --which trace,abs:4000 --parameters all", "which has 3466 eigenvalues"),
    ],
)
def test_a_number_too_large_by_mistake_is_refused_by_a_dry_run(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.save(build("mlp", seed=seed).state_dict(), name)
    assert main([*words.split(), "--model", "mlp", "--samples", "20", "--dry-run"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_dry_run_says_that_refine_begins_with_fewer_points(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["surface", "--model", "mlp", "--samples", "20", "--x=-1:1:21", "--y=-1:1:21", "--refine", "0.05"]
    assert main([*words, "--dry-run"]) == 0
    assert "refining: begins with 121 of 441 points" in capsys.readouterr().out
