"""The examples about spectra are run."""

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
        ("custom_loss", ("Spectrum of the Hessian: test", "strength 0.1: largest eigenvalue")),
        ("layer_by_layer", ("units of 2 are dead", "Weights: singular values")),
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
