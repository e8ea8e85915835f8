"""The benchmarks of a GPU run whole on a CPU, so that nothing in them is untested on the day there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_part_runs_whole_at_its_smallest():
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    for part in ("| ResNet-20 |", "| ours: ", "| ours, its neighbour |", "| 95,040 | 64 |"):
        assert any(row.startswith(part) for row in rows), (part, ran.stdout)
    assert "left out" not in ran.stdout
