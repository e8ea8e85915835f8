"""`lossmap spectrum --along`: a run followed from the command line, alone and over ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lossmap import zoo
from lossmap.commands.spectrum import main
from lossmap.store.evolution import results_of

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
    return ["--model", "mlp", "--samples", "64", "--device", "cpu", "--top", "3", "--along", *files, "--surf-file",
            str(result)]  # fmt: skip


def test_a_run_is_followed_told_and_drawn(run, tmp_path, capsys):
    assert main([*command(run, tmp_path / "a.h5"), "--plot"]) == 0
    said = capsys.readouterr().out
    assert "stable:" in said and "course:" in said
    assert results_of(tmp_path / "a.h5")["step"].tolist() == [0, 2, 10, 11]
    assert (tmp_path / "a.pdf").exists() and (tmp_path / "a.png").exists()


def test_a_dry_run_writes_nothing(run, tmp_path, capsys):
    assert main([*command(run, tmp_path / "a.h5"), "--dry-run"]) == 0
    assert "4 checkpoints: epoch_0.pkl, epoch_2.pkl, epoch_10.pkl" in capsys.readouterr().out
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model-file", "x.pt"], "names the checkpoints itself"),
        (["--split", "both"], "followed on one split"),
        (["--shard", "1/2"], "deals whole checkpoints to ranks"),
        (["--precision", "bfloat16"], "eigenvalues want float32 or float64"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(run, tmp_path, capsys, more, sentence):
    assert main([*command(run, tmp_path / "a.h5"), *more]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")
def test_ranks_give_what_one_process_gives(run, tmp_path):
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    for name, launch in (("one.h5", []), ("three.h5", [MPIRUN, "-n", "3"])):
        words = [*launch, sys.executable, "-m", "lossmap.commands", "spectrum", *command(run, tmp_path / name)]
        words += ["--way", "double"]
        subprocess.run(words, env=environment, check=True, timeout=200, stdin=subprocess.DEVNULL, capture_output=True)
    one, three = results_of(tmp_path / "one.h5"), results_of(tmp_path / "three.h5")
    np.testing.assert_array_equal(one["eigenvalue"], three["eigenvalue"])
    np.testing.assert_array_equal(one["overlap"], three["overlap"])
