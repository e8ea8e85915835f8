"""The ready experiment through the whole chain: trained, fine-tuned, measured, compared, drawn; and taken up again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lossmap.store.evolution import results_of

PLACE = Path(__file__).resolve().parents[1] / "examples" / "finetune_corruptions.py"


def experiment():
    spec = importlib.util.spec_from_file_location("finetune_corruptions", PLACE)
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    return room


@pytest.mark.slow
def test_the_experiment_leaves_the_classic_folders_and_goes_on_where_it_was(tmp_path):
    room = experiment()
    folder = tmp_path / "ft"
    words = ["--save-dir", str(folder), "--threads", "1", "--hessian-batch-size", "32", "--r", "4"]
    words += ["--batch-size", "128", "--epochs", "1", "--save-interval", "6", "--corruption-level", "5"]
    run = room.main(words)
    assert run.outcome == "complete" and "course:" in run.words
    steps = [0, 6, 12]
    assert results_of(folder / "hessian_analysis.h5")["step"].tolist() == steps
    for step in steps:
        vectors = np.load(folder / "eigen_vectors" / f"step_{step:06d}.npy")
        values = np.load(folder / "hessian_matrices" / f"step_{step:06d}.npz")["eigenvalues"]
        assert vectors.shape == (4, 67_848) and vectors.dtype == np.float32 and values.shape == (4,)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-3)
        assert (folder / "models" / f"step_{step:06d}.pt").exists()
    for name in ("pca_variance", "pca_cumulative_variance", "pca_projection", "cosine_similarity", "evolution"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 5000
    assert np.load(folder / "pca_results" / "pca.npz")["cumulative"][-1] == pytest.approx(1.0)
    log = (folder / "hessian_analysis.log").read_text()
    assert "gaussian_noise:5" in log and "after: loss" in log and "course:" in log
    again = room.main([*words, "--resume"])
    assert again.words == run.words
    with pytest.raises(ValueError):
        room.main(words)


def test_cifar_files_want_a_trained_net(tmp_path):
    with pytest.raises(SystemExit, match="wants --model-file"):
        experiment().main(["--cifar10c-path", str(tmp_path), "--save-dir", str(tmp_path / "ft")])
