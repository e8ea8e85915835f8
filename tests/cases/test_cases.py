"""Situations of users: each file here is a program that says what lossmap gives beside a truth made without it.

python tests/cases/CASE.py says it on the screen. Right is the right number within its own bar, or, where a row says
so, a refusal in one sentence that names what is wrong. `truth.py` makes the dense second opinions.
"""

import importlib.util
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("product", "truth", "warm", "test_cases"))

RANKS = "readme_under_mpirun"  # a program of several ranks with a deadline


def test_the_cases_are_there():
    assert len(CASES) >= 28


@pytest.fixture(scope="module")
def warm():
    """What runs the cases, in a process of its own."""
    spec = importlib.util.spec_from_file_location("warm", HERE / "warm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Warm() as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.ranks) if case == RANKS else case for case in CASES]
)
def test_every_number_of_a_case_is_right_or_refused_by_name(case, warm, tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "TMPDIR": str(tmp_path)}
    ended = warm.run([HERE / f"{case}.py"], cwd=tmp_path, output=tmp_path / "output.txt", environ=environ)
    assert ended.returncode == 0, ended.stdout
    right, _, rows, _ = ended.stdout.splitlines()[-1].split()
    assert right == rows and int(rows) > 0
