"""The examples about spectra are run, and the notebook is executed again."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_model", ("Spectrum of the Hessian", "trace between")),
        ("custom_loss", ("Side by side", "exact shift")),
        ("layer_by_layer", ("units of 2 are dead", "no saddle", "Weights: singular values")),
    ],
)
def test_an_example_prints_its_results(name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load(name).main()
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text, word


def test_monitoring_shows_the_curvature_change_while_the_loss_falls(capsys):
    history = load("monitor_training").main(steps=20, every=10)
    assert [step for step, *_ in history] == [0, 10, 20]
    assert history[-1][1] < history[0][1] and history[0][3] < history[-1][3] < 0


@pytest.mark.slow
def test_the_notebook_runs_and_its_stored_outputs_are_there(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "spectrum.ipynb", as_version=4)
    stored = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(stored) >= 8
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = " ".join(str(output.get("data", output)) for cell in notebook.cells for output in cell.get("outputs", []))
    assert "Spectrum of the Hessian" in text and "Layer by layer" in text and "image/png" in text
