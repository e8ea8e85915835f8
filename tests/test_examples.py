"""The examples are run, in short."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

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
    import lossmap

    if path.stem == "finetune_corruptions":  # an experiment with the trainer, the zoo and the data sets
        pytest.skip("it uses lossmap.training, lossmap.zoo and lossmap.data as well")
    code = path.read_text()
    assert not re.search(r"^\s*(from lossmap|import lossmap\.)", code, re.MULTILINE)
    used = set(re.findall(r"\blossmap\.(\w+)", code.split('"""', 2)[2]))
    assert used and used <= set(lossmap.__all__)
