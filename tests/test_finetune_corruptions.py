"""The experiment end to end: trained, fine-tuned, evaluated, compared, drawn, resumed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lossmap import zoo
from lossmap.cli.train import main as train
from lossmap.io.eigenvector_store import results_of

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "finetune_corruptions.py"


def experiment():
    spec = importlib.util.spec_from_file_location("finetune_corruptions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_experiment_writes_the_classic_folders_and_resumes(tmp_path, capsys):
    module = experiment()
    folder = tmp_path / "ft"
    words = ["--save-dir", str(folder), "--threads", "1", "--hessian-batch-size", "16", "--r", "4"]
    words += ["--batch-size", "128", "--epochs", "1", "--save-interval", "6"]
    run = module.main(words)
    assert run.outcome == "complete" and "course:" in run.summary
    steps = [0, 6, 12]
    found = results_of(folder / "hessian_analysis.h5")
    assert found["step"].tolist() == steps
    # beside chance, halves of the samples at the first and the last checkpoint
    assert found["null_step"].tolist() == [0, 12] and found["null_divisions"].shape == (2, 3)
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    chance = re.search(r"related: .*successive snapshots overlap ([\d.]+) on average; chance gives ([\d.e-]+)", printed)
    assert float(chance.group(2)) == pytest.approx(4 / 67_848, rel=0.02)
    halves = re.search(
        r"null: two disjoint halves of the samples at the same weights overlap ([\d.]+) \+- [\d.]+ at step 0 and "
        r"([\d.]+) \+- [\d.]+ at step 12 .*successive snapshots ([\d.]+)",
        printed,
    )
    means = found["null_divisions"].mean(1)
    assert [float(halves.group(i)) for i in (1, 2)] == pytest.approx(means, abs=0.006)
    assert all(10 * float(chance.group(2)) < mean < 1 for mean in means)  # chance is the lower bar by far
    assert halves.group(3) == chance.group(1)
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
    assert "course:" in log and "null:" in log
    noisy = re.escape("on digits+gaussian_noise:5:imagenet-c, held out")
    before, after = (
        float(re.search(rf"{when}, {noisy}: loss ([\d.]+) nats", log).group(1)) for when in ("before", "after")
    )
    clean = float(re.search(r"before, on digits, held out, without it: loss ([\d.]+) nats", log).group(1))
    assert before > 3 * clean and after < 0.8 * before  # the noise hurts, and there is something to adapt to
    again = module.main([*words, "--resume"])
    assert again.summary == run.summary
    assert module.main([*words, "--resume", str(folder / "trained.pt")]).summary == run.summary
    torch.save(zoo.build("resnet20-w8", seed=1).state_dict(), tmp_path / "other.pt")
    with pytest.raises(SystemExit, match="did not begin from"):
        module.main([*words, "--resume", str(tmp_path / "other.pt")])
    with pytest.raises(ValueError):
        module.main(words)


def published(folder):
    """CIFAR-10's binary batches and CIFAR-10-C as they are published, but for their length: 40 and 5 x 30 images."""
    rng = np.random.default_rng(0)
    batches, corrupted = folder / "cifar-10-batches-bin", folder / "CIFAR-10-C"
    batches.mkdir()
    corrupted.mkdir()
    colours = rng.integers(0, 200, (10, 1, 1, 3))

    def images(y):
        return (colours[y] + rng.integers(0, 56, (len(y), 32, 32, 3))).astype(np.uint8)

    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        y = rng.integers(0, 10, 8)
        planes = images(y).transpose(0, 3, 1, 2).reshape(len(y), -1)
        np.concatenate([y[:, None].astype(np.uint8), planes], axis=1).tofile(batches / name)
    y = rng.integers(0, 10, 30).astype(np.uint8)
    clean = images(y).astype(float)
    levels = [np.clip(clean + rng.normal(0, 20 * level, clean.shape), 0, 255) for level in range(1, 6)]
    np.save(corrupted / "gaussian_noise.npy", np.concatenate(levels).astype(np.uint8))
    np.save(corrupted / "labels.npy", np.tile(y, 5))
    return np.stack(levels).astype(np.uint8), y


@pytest.mark.slow
def test_a_net_trained_on_cifar_files_is_fine_tuned_on_those_of_cifar_10_c(tmp_path):
    levels, labels = published(tmp_path)
    cifar = ["--model", "resnet20", "--dataset", "cifar10", "--data-path", str(tmp_path), "--epochs", "1"]
    assert train([*cifar, "--batch-size", "20", "--threads", "1", "--final", str(tmp_path / "clean.pt")]) == 0
    folder = tmp_path / "ft"
    words = ["--cifar10c-path", str(tmp_path), "--resume", str(tmp_path / "clean.pt"), "--corruption-level", "4"]
    words += ["--save-dir", str(folder), "--threads", "1", "--batch-size", "15", "--epochs", "1"]
    run = experiment().main([*words, "--save-interval", "2", "--hessian-batch-size", "4", "--r", "1", "--null", "none"])
    assert run.outcome == "complete"
    assert results_of(folder / "hessian_analysis.h5")["step"].tolist() == [0, 2]
    assert np.load(folder / "eigen_vectors" / "step_000002.npy").shape == (1, 270_896)
    first = torch.load(folder / "models" / "step_000000.pt", weights_only=True)["state_dict"]
    clean = torch.load(tmp_path / "clean.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, clean[k]) for k, v in first.items())
    model = zoo.build("resnet20")
    model.load_state_dict(clean)
    mean, deviation = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    x = torch.from_numpy((levels[3] - mean) / deviation).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(x), torch.from_numpy(labels.astype(np.int64)))
    assert f"before, on cifar10c:gaussian_noise:4: loss {loss:.4f}" in (folder / "hessian_analysis.log").read_text()


def test_cifar_files_need_a_trained_model_and_a_folder(tmp_path):
    with pytest.raises(SystemExit, match="needs --cifar10c-path"):
        experiment().main(["--download", "--save-dir", str(tmp_path / "ft")])
    with pytest.raises(SystemExit, match="needs --resume FILE"):
        experiment().main(["--cifar10c-path", str(tmp_path), "--save-dir", str(tmp_path / "ft")])


def test_the_defaults_are_those_published(tmp_path):
    module = experiment()
    args = module.options([])
    assert (args.noise_type, args.corruption_level, args.resume) == ("gaussian_noise", 5, False)
    assert args.null == "halves"
    assert module.corrupted_digits(args) == "digits+gaussian_noise:5:imagenet-c"
    assert module.corrupted_digits(module.options(["--noise-type", "fog"])) == "digits+fog:5:cifar-10-c"
    assert module.corrupted_digits(module.options(["--strengths", "cifar-10-c"])).endswith(":cifar-10-c")
    assert module.options(["--resume", "net.pt"]).model_file == "net.pt"
    for wrong in (["--resume", "a.pt", "--model-file", "b.pt"], ["--cifar10c-path", "x", "--strengths", "imagenet-c"]):
        with pytest.raises(SystemExit):
            module.options(wrong)
