"""The examples are run, in short."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lossmap

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "settings", "picture"),
    [
        ("surface_in_python", {"count": 5}, "surface.png"),
        ("line_between_models", {"count": 5, "epochs": 1}, "line.png"),
        ("own_problem", {"count": 5}, "own_problem.png"),
        ("training_path", {"count": 5, "epochs": 3}, "path.png"),
    ],
)
def test_an_example_gives_a_complete_surface_and_a_picture(tmp_path, name, settings, picture):
    surface = load(name).main(folder=str(tmp_path), **settings)
    assert surface.outcome == "complete"
    assert np.isfinite(surface["train_loss"]).all()
    assert (tmp_path / picture).stat().st_size > 5000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_uses_public_names_alone(path):
    code = path.read_text()
    assert not re.search(r"^\s*(from lossmap|import lossmap\.)", code, re.MULTILINE)
    used = set(re.findall(r"\blossmap\.(\w+)", code.split('"""', 2)[2]))
    assert used and used <= set(lossmap.__all__)


EVERYTHING = {
    "spectrum", "layers", "weights", "pairs", "trace", "density", "health", "line", "path", "surface", "eigenmap",
    "between", "run",
}  # fmt: skip


def test_one_script_does_everything_with_public_names_alone(tmp_path):
    results = load("everything").main(folder=str(tmp_path), count=3)
    assert set(results) == EVERYTHING
    assert all(results[name].outcome == "complete" for name in ("surface", "eigenmap", "between", "run"))
    pictures = [tmp_path / "rank0" / f"{name}.png" for name in ("planes", "eigenvalues", "spectrum")]
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_that_script_gives_the_same_on_every_rank(tmp_path):
    pytest.importorskip("mpi4py")
    from lossmap.cli.demo import environment

    environ = {**environment(), "TMPDIR": "/tmp", "PYTHONPATH": str(EXAMPLES.parent)}
    environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); from everything import main; main({str(tmp_path)!r}, 3)"
    )
    command = ["mpirun", "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    both = [lossmap.read(tmp_path / rank / "surface.h5", lossmap.Surface) for rank in ("rank0", "rank1")]
    assert both[0].equals(both[1]) and both[0].outcome == "complete"
    assert all((tmp_path / rank / "spectrum.png").exists() for rank in ("rank0", "rank1"))
