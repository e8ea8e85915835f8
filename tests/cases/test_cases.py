"""Situations of users: each file here is a program that says what lossmap gives beside a truth made without it.

python tests/cases/CASE.py says it on the screen. Right is the right number within its own bar, or, where a row says
so, a refusal in one sentence that names what is wrong. `truth.py` makes the dense second opinions.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("product", "truth", "test_cases"))

RANKS = "readme_under_mpirun"  # a program of several ranks with a deadline


def test_the_cases_are_there():
    assert len(CASES) >= 28


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.alone) if case == RANKS else case for case in CASES]
)
def test_every_number_of_a_case_is_right_or_refused_by_name(case, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "TMPDIR": str(tmp_path)}
    program = [sys.executable, str(HERE / f"{case}.py")]
    ended = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    right, _, rows, _ = ended.stdout.splitlines()[-1].split()
    assert right == rows and int(rows) > 0
