"""The command `lossmap train`."""

import pytest
import torch

from lossmap import zoo
from lossmap.cli.train import main
from lossmap.data.checkpoints import checkpoints_in, load_into, load_state


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


QUICK = ["--model", "mlp", "--epochs", "2", "--samples", "200"]


def test_a_net_is_trained_and_said_how_well(capsys, tmp_path):
    assert main([*QUICK, "--final", "net.pt"]) == 0
    out = capsys.readouterr().out
    assert "200 samples" in out and "epoch 2/2  loss" in out and "the trained net is in net.pt" in out
    assert "train: loss" in out and "test: loss" in out and " nats, accuracy " in out
    load_into(zoo.build("mlp"), "net.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_the_same_command_resumes_to_the_same_bits(capsys, tmp_path):
    assert main([*QUICK, "--folder", "a", "--seed", "3"]) == 0
    assert main([*QUICK, "--folder", "b", "--seed", "3", "--stop-after", "0"]) == 75
    assert "interrupted after step 1; run the same command again to resume" in capsys.readouterr().out
    assert main([*QUICK, "--folder", "b", "--seed", "3"]) == 0
    a, b = (load_state(checkpoints_in(tmp_path / f)[-1]) for f in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    c = zoo.build("mlp", seed=3)
    load_into(c, tmp_path / "a" / "step_000000.pt")
    assert torch.equal(c[1].weight, zoo.build("mlp", seed=3)[1].weight)


def test_a_model_and_data_of_your_own_are_trained(capsys, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Linear(3, 2)\n"
        "def data(split): return torch.ones(8, 3), torch.zeros(8, dtype=torch.int64)\n"
    )
    assert main(["--model", "own.py:net", "--dataset", "own.py:data", "--epochs", "1", "--save-every", "1"]) == 0
    assert [p.name for p in checkpoints_in("run")] == ["step_000000.pt", "step_000001.pt"]
    assert "run/step_000001.pt" in capsys.readouterr().out


def test_a_data_set_without_a_test_split_is_trained_all_the_same(capsys, tmp_path):
    import numpy as np

    np.savez("a.npz", x=np.ones((8, 64), np.float32), y=np.zeros(8, np.int64))
    assert main(["--model", "mlp", "--dataset", "npz:a.npz", "--epochs", "1", "--final", "f.pt"]) == 0
    out = capsys.readouterr().out
    assert "train: loss" in out and "test: loss" not in out


def test_flags_of_what_a_problem_makes_itself_are_said_to_be_unused(capsys, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def problem(): return torch.nn.Linear(4, 1), [torch.ones(5, 4)], lambda model, x: model(x).square().mean()\n"
    )
    words = ["--problem", f"{tmp_path / 'own.py'}:problem", "--final", str(tmp_path / "net.pt"), "--epochs", "1"]
    assert main([*words, "--loss", "mse", "--dataset", "digits"]) == 0
    assert "makes model, data and loss itself; not used: --dataset, --loss" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    assert main([*QUICK, "--dry-run"]) == 0
    assert "2 epochs of batches of 128, checkpoints in run" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "mpl"], "no net is named 'mpl'; nearest: mlp"),
        (["--split", "both"], "a network is trained on one split"),
        (["--optimizer", "lbfgs"], "--optimizer must be one of "),
        (["--lr", "0"], "rate must be > 0"),
        (["--device", "cuda:7"], "this rank sees no GPU"),
        (["--dataset", "digits32"], "does the data set fit the model?"),
        (["--model", "mlp", "--model-args", '{"widths": [64, 7]}'], "the targets run from 0 to 9; the model has 7"),
        (["--epoch", "3"], "unknown flag --epoch; did you mean --epochs"),
    ],
)
def test_invalid_options_end_with_2_and_one_message(capsys, tmp_path, flags, text):
    if torch.cuda.is_available() and "cuda:7" in flags:
        pytest.skip("there is a GPU here")
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
