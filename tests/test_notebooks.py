"""The example notebooks run: one in a kernel, all of them cell by cell; they import nothing of ours but `lossmap`."""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def run_cell(source, namespace):
    """Run a cell; the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


def assert_same_but_rounding(text, stored):
    """The same words, and the same numbers but for what another processor rounds otherwise."""
    number = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")
    assert number.sub("#", text) == number.sub("#", stored)
    assert [float(n) for n in number.findall(text)] == pytest.approx([float(n) for n in number.findall(stored)], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs_and_its_value_shows_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "notebook"}
    for cell in cells(path):
        value = run_cell("".join(cell["source"]), namespace)
        stored = [output["data"] for output in cell["outputs"] if output["output_type"] == "execute_result"]
        assert bool(stored) == (value is not None)
        for data in stored:
            assert ("image/png" in data) == (getattr(value, "_repr_png_", lambda: None)() is not None)
            if "image/png" not in data and len("".join(data["text/plain"])) < 60:
                assert_same_but_rounding(repr(value), "".join(data["text/plain"]))
    plt.close("all")
    torch.set_num_threads(1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_uses_public_names_alone_and_has_its_outputs(path):
    code = "\n".join("".join(cell["source"]) for cell in cells(path))
    assert not re.search(r"lossmap(\.\w+)+ import|import lossmap\.|from lossmap", code)
    assert set(re.findall(r"\blossmap\.(\w+)", code)) <= set(__import__("lossmap").__all__)
    assert sum(bool(cell["outputs"]) for cell in cells(path)) >= 5
    assert any("image/png" in output.get("data", {}) for cell in cells(path) for output in cell["outputs"])
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_a_notebook_runs_in_a_kernel(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOKS[-1], as_version=4)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "image/png" in str(notebook.cells)
