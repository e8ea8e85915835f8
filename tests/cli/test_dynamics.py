"""`lossmap dynamics`: a run followed from the command line, alone and over ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lossmap import zoo
from lossmap.cli.dynamics import main
from lossmap.cli.health import main as health
from lossmap.cli.resume import main as resume
from lossmap.cli.spectrum import main as spectrum
from lossmap.cli.train import main as train
from lossmap.io.eigenvector_store import VectorFolder, results_of
from lossmap.io.read import read

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    model = zoo.build("mlp", seed=0)
    away = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    for step in (0, 2, 10, 11):
        torch.save({k: v + 0.002 * step * away[k] for k, v in model.state_dict().items()}, folder / f"epoch_{step}.pkl")
    return folder


def command(run, result):
    files = [str(f) for f in sorted(run.iterdir())]
    return [*files, "--model", "mlp", "--samples", "64", "--device", "cpu", "--top", "3", "--surf-file", str(result)]


def test_a_run_is_evaluated_reported_and_drawn(run, tmp_path, capsys):
    assert main([*command(run, tmp_path / "a.h5"), "--plot"]) == 0
    said = capsys.readouterr().out
    assert "stable:" in said and "course:" in said
    assert results_of(tmp_path / "a.h5")["step"].tolist() == [0, 2, 10, 11]
    assert (tmp_path / "a.pdf").exists() and (tmp_path / "a.png").exists()


def test_a_run_that_was_stopped_is_resumed_without_flags(run, tmp_path, capsys, monkeypatch):
    assert main([*command(run, tmp_path / "a.h5"), "--stop-after", "0"]) == 75
    assert "run the same command again to resume" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert resume([str(tmp_path / "a.h5")]) == 0
    assert "course:" in capsys.readouterr().out
    assert results_of(tmp_path / "a.h5")["step"].tolist() == [0, 2, 10, 11]


def test_a_loss_with_derivatives_by_its_inputs_is_trained_followed_and_examined(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pinn.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def residual(model, t):\n"
        "    t = t.clone().requires_grad_(True)\n"
        "    u = model(t)\n"
        "    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)\n"
        "    return (slope + u).square().mean()\n\n"
        "def problem():\n"
        "    torch.manual_seed(0)\n"
        "    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))\n"
        "    return model, torch.linspace(0, 2, 16)[:, None], residual\n"
    )
    own = ["--problem", "pinn.py:problem", "--device", "cpu"]
    assert train([*own, "--epochs", "2", "--save-every", "1", "--lr", "0.001"]) == 0
    said = capsys.readouterr().out
    assert "train: loss" in said and "test: loss" not in said
    assert main(["run", *own, "--top", "2"]) == 0
    assert spectrum([*own, "--top", "2"]) == 0
    assert health([*own, "--examinations", "hessian", "signals"]) == 0
    assert "Health of pinn.py:problem" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(run, tmp_path, capsys):
    assert main([*command(run, tmp_path / "a.h5"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "4 checkpoints: epoch_0.pkl, epoch_2.pkl, epoch_10.pkl" in said.out
    assert re.search(r"a\.h5, with eigenvectors of [\d.]+ [kM]B$", said.out, re.MULTILINE), said.out
    assert re.search(r"^dynamics: about [\d,]+ products of .* s", said.err, re.MULTILINE), said.err
    assert not (tmp_path / "a.h5").exists()


def test_a_dry_run_says_how_the_steps_were_found(run, tmp_path, caplog):
    for name in ("early.pkl", "late.pkl"):
        shutil.copy(run / "epoch_0.pkl", tmp_path / name)
    assert main([str(tmp_path), "--model", "mlp", "--samples", "64", "--dry-run"]) == 0
    assert "numbered from 0 in the order early.pkl, late.pkl" in caplog.text


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model-file", "x.pt"], "unknown flag --model-file"),
        (["--split", "both"], "followed on one split"),
        (["--shard", "1/2"], "unknown flag --shard"),
        (["--precision", "bfloat16"], "eigenvalues must be float32 or float64"),
        (["--matrix", "both"], "unknown flag --matrix"),
        (["--model-folder", "run"], "name the checkpoints or --model-folder, not both"),
        (["--top", "0"], "--top must be >= 1; got 0"),
        (["--state-key", "ema"], "holds no tensors under 'ema'"),
        (["--state-key", "ema", "--dry-run"], "holds no tensors under 'ema'"),
    ],
)
def test_invalid_options_give_one_message(run, tmp_path, capsys, more, sentence):
    assert main([*command(run, tmp_path / "a.h5"), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_no_checkpoints_are_a_usage_error(capsys):
    assert main(["--model", "mlp"]) == 2
    assert "name the checkpoints of a run" in capsys.readouterr().err


def test_checkpoints_may_follow_the_flags_or_be_a_folder(run, tmp_path, capsys):
    few = ["--model", "mlp", "--samples", "64", "--dry-run"]
    for words in ([*few, str(run)], [str(run), *few], [*few, "--model-folder", str(run)]):
        assert main(words) == 0
        assert "4 checkpoints: epoch_0.pkl" in capsys.readouterr().out


def along(run, result):
    files = command(run, result)
    return ["--along", *files[:4], *files[4:]]


def test_spectrum_along_is_the_same_command_and_says_so(run, tmp_path, capsys):
    assert spectrum([*along(run, tmp_path / "a.h5"), "--way", "double"]) == 0
    assert "`spectrum --along` is the command `lossmap dynamics` now" in capsys.readouterr().out
    assert main([*command(run, tmp_path / "b.h5"), "--hvp-backend", "double-backward"]) == 0
    assert main([*command(run, tmp_path / "a.h5"), "--hvp-backend", "double-backward"]) == 0  # one and the same file
    a, b = results_of(tmp_path / "a.h5"), results_of(tmp_path / "b.h5")
    np.testing.assert_array_equal(a["eigenvalue"], b["eigenvalue"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model-file", "x.pt"], "names the checkpoints itself"),
        (["--team", "2"], "dispatches whole checkpoints"),
        (["--matrix", "both", "--weights"], "leave --matrix, --singular-values out"),
    ],
)
def test_spectrum_along_refuses_what_has_no_meaning_along_a_run(run, tmp_path, capsys, more, sentence):
    assert spectrum([*along(run, tmp_path / "a.h5"), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_that_version_0_1_began_is_resumed(run, tmp_path, capsys, monkeypatch):
    """Its file names the command `spectrum`, and its settings are those of that command, under their names then."""
    import h5py

    path = tmp_path / "old.h5"
    assert main([*command(run, path), "--stop-after", "0", "--whole", "--hvp-backend", "double-backward"]) == 75
    settings = {"model": "mlp", "samples": 64, "device": "cpu", "top": 3, "bottom": 1, "whole": True, "way": "double"}
    settings |= {"along": [str(f) for f in run.iterdir()], "surf_file": "elsewhere.h5", "density": True, "dense": 256}
    with h5py.File(path, "r+") as file:
        del file.attrs["resolved_dynamics"]
        file.attrs["command"] = "spectrum"
        file.attrs["resolved_spectrum"] = json.dumps({"settings": settings, "folder": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    assert resume([str(path)]) == 0
    assert "course:" in capsys.readouterr().out
    assert "trace" in results_of(path).arrays


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")
def test_killed_in_one_process_or_interrupted_over_ranks_a_run_resumes_to_the_same_bits(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    model = zoo.build("mlp", seed=0)
    for step in range(5):
        torch.save({k: (1 + 0.05 * step) * v for k, v in model.state_dict().items()}, folder / f"epoch_{step}.pkl")
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    told = {"env": environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def words(name, ranks):
        launch = [MPIRUN, "-n", str(ranks)] if ranks > 1 else []
        program = [sys.executable, "-m", "lossmap", "dynamics", *command(folder, tmp_path / name)]
        return [*launch, *program, "--hvp-backend", "double-backward"]

    subprocess.run(words("whole.h5", 1), check=True, timeout=200, **told)
    for name, ranks, number in (("alone.h5", 1, signal.SIGKILL), ("ranks.h5", 3, signal.SIGUSR1)):
        begun = subprocess.Popen(words(name, ranks), **told)
        vectors = VectorFolder.beside(tmp_path / name).path
        ends = time.monotonic() + 200
        while not list(vectors.glob("*.npy")) and begun.poll() is None and time.monotonic() < ends:
            time.sleep(0.01)
        begun.send_signal(number)
        assert begun.wait(timeout=200) != 0
        done = int((read(tmp_path / name).status["along"] == 1).sum())
        assert done < 5 and vectors.exists()
        subprocess.run(words(name, ranks), check=True, timeout=200, **told)
        whole, part = results_of(tmp_path / "whole.h5"), results_of(tmp_path / name)
        for field in ("eigenvalue", "residual", "overlap", "cosine", "loss", "smallest_eigenvalue"):
            np.testing.assert_array_equal(whole[field], part[field])
        assert not vectors.exists()
