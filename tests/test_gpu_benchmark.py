"""The benchmarks of a GPU run whole on a CPU, so that nothing in them is untested on the day there is one."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lossmap

ROOT = Path(__file__).parents[1]


def test_finished_parts_are_printed_again_and_one_that_failed_is_measured_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    calls = []

    def part(bench, speed):
        calls.append(speed)
        print("| a row |")
        if len(calls) == 1:
            raise RuntimeError("the card was taken away")

    monkeypatch.setitem(gpu.PARTS, "surface", part)
    bench = gpu.Bench(torch.device("cpu"), True, tmp_path)
    with pytest.raises(RuntimeError):
        gpu.run_part("surface", bench, 1.0, "H100")
    gpu.run_part("surface", bench, 2.0, "H100")
    capsys.readouterr()
    gpu.run_part("surface", bench, 3.0, "H100")
    printed = capsys.readouterr().out
    assert calls == [1.0, 2.0] and "| a row |" in printed and "kept" in printed
    gpu.run_part("surface", bench, 4.0, "H200")
    assert calls == [1.0, 2.0, 4.0]


def test_a_part_is_broken_off_when_the_time_is_over(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    net = torch.nn.Linear(2, 2)
    problem = lossmap.Problem.supervised(net, "mse", (torch.eye(2), torch.eye(2)))
    measure = lossmap.losses(problem, lossmap.random_plane(net, axes=1))
    grid = lossmap.Grid.line(-1, 1, 1_000_001)
    assert not gpu.within(
        1.0, lambda: lossmap.survey(measure, grid, progress=False)
    )  # no point counts as failed for it
    assert gpu.within(60.0, lambda: None) and signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.slow
def test_every_part_runs_whole_at_its_smallest():
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    for part in ("| ResNet-20 |", "| ours: ", "| ours, its neighbour |", "| 4 |", "| 95,040 | 64 |"):
        assert any(row.startswith(part) for row in rows), (part, ran.stdout)
    assert "left out" not in ran.stdout
