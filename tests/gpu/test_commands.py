"""The commands on a GPU against the same on the CPU, ranks that share a card, and a card that is nearly full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lossmap
from lossmap.cli.__main__ import main
from tests.gpu.networks import resnet

LINE = "--model resnet20-w8 --samples 256 --x=-1:1:3 --y=-1:1:3"


def run(line, code=0):
    assert main(line.split()) == code, line


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_surface_is_the_cpus_and_the_file_says_where_it_was_computed(gpu, capsys):
    run(f"surface {LINE} --device cuda --split both --surf-file gpu.h5")
    assert torch.cuda.get_device_name(gpu) in capsys.readouterr().out
    run(f"surface {LINE} --device cpu --split both --surf-file cpu.h5")
    ours, theirs = lossmap.read("gpu.h5"), lossmap.read("cpu.h5")
    for field in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ours[field], theirs[field], rtol=2e-5)
    run(f"surface {LINE} --device cuda --split both --surf-file gpu.h5")  # complete: nothing to do


def test_an_eigenmap_agrees_with_the_cpus_within_both_bars(gpu):
    for device in ("cuda", "cpu"):
        run(f"eigenmap {LINE} --device {device} --surf-file {device}.h5 --tol 1e-3")
    ours, theirs = lossmap.read("cuda.h5"), lossmap.read("cpu.h5")
    for end in ("max_eig", "min_eig"):
        bars = ours[f"{end}_error"] + theirs[f"{end}_error"]
        scale = np.maximum(np.abs(ours["max_eig"]), np.abs(ours["min_eig"]))
        assert np.all(np.abs(ours[end] - theirs[end]) <= bars + 2e-3 * scale)


def test_tf32_maps_have_bars_that_hold_the_float32_values(gpu):
    run(f"eigenmap {LINE} --device cuda --precision tf32 --surf-file tf32.h5")
    run(f"eigenmap {LINE} --device cuda --precision float64 --surf-file exact.h5")
    ours, exact = lossmap.read("tf32.h5"), lossmap.read("exact.h5")
    scale = np.maximum(np.abs(exact["max_eig"]), np.abs(exact["min_eig"]))
    for end in ("max_eig", "min_eig"):
        bars = ours[f"{end}_error"] + exact[f"{end}_error"]
        assert np.all(np.abs(ours[end] - exact[end]) <= bars + 2e-3 * scale)


def test_spectrum_layers_dynamics_health_and_training_run_there(gpu):
    run("train --model cnn --dataset digits --epochs 1 --save-every 20 --samples 400 --folder run --device cuda")
    files = sorted(Path("run").glob("*.pt"))
    assert files
    last = f"--model cnn --model-file {files[-1]} --samples 128 --device cuda"
    run(f"spectrum {last} --layers tensor --surf-file s.h5")
    run("dynamics run --model cnn --device cuda --samples 128 --surf-file d.h5 --top 2")
    run(f"health {last} --json h.json")
    run("draw s.h5")


def mpirun(ranks, line, code=0):
    from lossmap.cli.demo import environment

    program = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("mpirun is not installed")
    command = [program, "-n", str(ranks), sys.executable, "-m", "lossmap.cli", *line.split()]
    done = subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_and_four_ranks_on_one_card_give_the_bits_of_one(gpu):
    run(f"surface {LINE} --device cuda --no-probe --surf-file one.h5")
    said = mpirun(2, f"surface {LINE} --device cuda --no-probe --surf-file refused.h5", code=2)
    assert "--ranks-per-gpu 2" in said
    for ranks in (2, 4):
        mpirun(ranks, f"surface {LINE} --device cuda --no-probe --ranks-per-gpu 4 --surf-file {ranks}.h5")
        assert np.array_equal(lossmap.read("one.h5")["train_loss"], lossmap.read(f"{ranks}.h5")["train_loss"])
    mpirun(2, f"eigenmap {LINE} --device cuda --ranks-per-gpu 2 --surf-file two_eig.h5")
    assert np.isfinite(lossmap.read("two_eig.h5")["max_eig"]).all()


def test_a_card_that_is_nearly_full_gives_the_same_losses(gpu):
    problem = resnet(gpu, 4096)
    plane = lossmap.random_plane(problem.model, seed=0)
    free = lossmap.losses(problem, plane)((0.5, 0.5))
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(gpu) + (60 << 20)) / total)
    try:
        tight = lossmap.losses(problem, plane)((0.5, 0.5))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tight["train_loss"] == pytest.approx(free["train_loss"], rel=1e-5)
