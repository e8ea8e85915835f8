"""`--model-file` and its flags: which weights are meant, and modules that somebody pickled whole."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lossmap
from lossmap.cli.__main__ import main

OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


def net():
    return Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/own_nets_of_a_test.py").write_text(OWN)
    x = np.random.default_rng(0).standard_normal((30, 4)).astype("float32")
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(30) % 3)
    return tmp_path


def trained(seed):
    """A module of the user's class, as the user's own program has it, and its loss."""
    spec = importlib.util.spec_from_file_location("own_nets_of_a_test", "sub/own_nets_of_a_test.py")
    home = importlib.util.module_from_spec(spec)
    sys.modules["own_nets_of_a_test"] = home
    spec.loader.exec_module(home)
    torch.manual_seed(seed)
    model = home.net()
    data = np.load("d.npz")
    with torch.no_grad():
        return model, float(F.cross_entropy(model(torch.tensor(data["x"])), torch.tensor(data["y"])))


def surface(file, *words):
    line = f"surface --model sub/own_nets_of_a_test.py:net --model-file {file} --dataset npz:d.npz --x=-1:1:3"
    return main([*line.split(), "--surf-file", "s.h5", "--overwrite", *words])


def loss():
    return lossmap.read("s.h5", lossmap.Surface)["train_loss"][1]


def test_the_key_is_chosen_stored_and_taken_up_by_resume(folder, capsys):
    (a, of_a), (b, of_b) = trained(1), trained(2)
    torch.save({"model": a.state_dict(), "model_ema": b.state_dict()}, "c.pt")
    assert surface("c.pt") == 0
    assert loss() == pytest.approx(of_a, rel=1e-6)
    assert "note: c.pt: read are the tensors under 'model'; --state-key takes model_ema" in capsys.readouterr().out
    assert surface("c.pt", "--state-key", "model_ema") == 0
    assert loss() == pytest.approx(of_b, rel=1e-6)
    assert main(["resume", "s.h5"]) == 0
    line = "surface --model sub/own_nets_of_a_test.py:net --model-file c.pt --dataset npz:d.npz --x=-1:1:3"
    assert main([*line.split(), "--surf-file", "s.h5"]) == 2  # the same file and grid, but other weights
    assert "state_key" in capsys.readouterr().err


def test_a_line_between_two_checkpoints_of_any_form_goes_from_one_to_the_other(folder):
    (a, of_a), (b, of_b) = trained(1), trained(2)
    torch.save({f"module.{k}": v for k, v in a.state_dict().items()}, "a.pt")
    torch.save({"state_dict": {f"net.{k}": v for k, v in b.state_dict().items()}}, "b.pt")
    assert surface("a.pt", "--model-file2", "b.pt", "--x=0:1:2") == 0
    assert lossmap.read("s.h5", lossmap.Surface)["train_loss"] == pytest.approx([of_a, of_b], rel=1e-5)


def test_the_key_of_one_file_leaves_another_without_it_to_the_tensors_that_fit(folder, capsys, caplog):
    (a, of_a), (b, of_b) = trained(1), trained(2)
    torch.save({"model": b.state_dict(), "model_ema": a.state_dict()}, "a.pt")
    torch.save(b.state_dict(), "b.pt")
    torch.save({"net": b.state_dict()}, "c.pt")
    torch.save({"net": b.state_dict(), "twin": a.state_dict()}, "two.pt")
    named = ["--model", "sub/own_nets_of_a_test.py:net", "--dataset", "npz:d.npz", "--state-key", "model_ema"]
    for other, said in (
        ("b.pt", "b.pt holds no tensors under 'model_ema'; its tensors stand under no key: read are"),
        ("c.pt", "c.pt holds no tensors under 'model_ema'; it has net: read are 'net', the only"),
    ):
        caplog.clear()
        assert main(["connect", "a.pt", other, *named, "--points", "3", "--surf-file", "l.h5", "--overwrite"]) == 0
        line = lossmap.read("l.h5", lossmap.Surface)["train_loss"]
        assert line[[0, -1]] == pytest.approx([of_a, of_b], rel=1e-5) and caplog.text.count(said) == 1
    for words in (("--model-file2", "b.pt"), ("--xdir", "to:b.pt")):
        assert surface("a.pt", "--state-key", "model_ema", *words, "--x=0:1:2") == 0
        assert lossmap.read("s.h5", lossmap.Surface)["train_loss"] == pytest.approx([of_a, of_b], rel=1e-5)
    capsys.readouterr()
    assert main(["connect", "a.pt", "two.pt", *named, "--surf-file", "n.h5"]) == 2
    assert "two.pt holds no tensors under 'model_ema'; it has net, twin" in capsys.readouterr().err
    assert main(["connect", "b.pt", "c.pt", *named, "--surf-file", "n.h5"]) == 2  # neither has it
    assert "b.pt holds no tensors under 'model_ema'" in capsys.readouterr().err


def test_the_prefix_of_one_file_leaves_another_without_it_to_the_tensors_that_fit(folder, capsys, caplog):
    (a, of_a), (b, of_b) = trained(1), trained(2)
    torch.save(
        {f"{who}.{k}": v for who, net in (("student", a), ("teacher", b)) for k, v in net.state_dict().items()}, "a.pt"
    )
    torch.save(b.state_dict(), "b.pt")
    torch.save({"G": a.state_dict(), "D": b.state_dict()}, "two.pt")
    assert surface("a.pt", "--strip-prefix", "student.", "--model-file2", "b.pt", "--x=0:1:2") == 0
    assert lossmap.read("s.h5", lossmap.Surface)["train_loss"] == pytest.approx([of_a, of_b], rel=1e-5)
    assert caplog.text.count("b.pt has no tensor whose name begins with 'student.'; they begin with ") == 1
    capsys.readouterr()
    assert surface("a.pt", "--strip-prefix", "student.", "--model-file2", "two.pt", "--x=0:1:2") == 2
    assert "two.pt holds several sets of tensors that fit the model: G, D" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "named"), [("--state-key", "teacher"), ("--strip-prefix", "teacher.")])
def test_what_only_the_second_file_has_is_asked_of_the_first_and_that_is_said(folder, capsys, flag, named):
    (a, _), (b, _) = trained(1), trained(2)
    torch.save(a.state_dict(), "a.pt")
    torch.save(
        {"teacher": b.state_dict()}
        if flag == "--state-key"
        else {f"teacher.{k}": v for k, v in b.state_dict().items()},
        "b.pt",
    )
    assert surface("a.pt", "--model-file2", "b.pt", flag, named, "--x=0:1:2") == 2
    said = capsys.readouterr().err
    assert "a.pt h" in said and "; only the file of a second model may lack it" in said


def test_what_is_chosen_in_the_second_checkpoint_and_in_a_runs_is_said_once(folder, caplog):
    (a, _), (b, _) = trained(1), trained(2)
    for name in ("a.pt", "b.pt"):
        torch.save({"model": a.state_dict(), "model_ema": b.state_dict()}, name)
    torch.save(b.state_dict(), "plain.pt")
    assert surface("plain.pt", "--model-file2", "a.pt", "--x=0:1:2") == 0
    assert "a.pt: read are the tensors under 'model'; --state-key takes model_ema" in caplog.text
    caplog.clear()
    line = "dynamics a.pt b.pt --model sub/own_nets_of_a_test.py:net --dataset npz:d.npz --top 1 --surf-file run.h5"
    assert main(line.split()) == 0
    assert caplog.text.count("the run's checkpoints: read are the tensors under 'model'") == 1


@pytest.mark.parametrize("module", ["own_nets_of_a_test", "__main__"])
def test_a_whole_module_is_read_on_request_with_its_class_from_where_the_model_is(folder, capsys, module):
    model, truth = trained(1)
    type(model).__module__ = module
    if module == "__main__":
        sys.modules["__main__"].Net = type(model)
    try:
        torch.save({"model": model, "epoch": 2}, "whole.pt")
    finally:
        if module == "__main__":
            del sys.modules["__main__"].Net
        sys.modules.pop("own_nets_of_a_test")
    assert surface("whole.pt") == 2
    assert "--unsafe-load" in capsys.readouterr().err
    assert surface("whole.pt", "--unsafe-load") == 0
    assert loss() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("by", ["--model", "--problem"])
def test_a_run_of_whole_modules_of_a_script_is_read_by_every_command(folder, by):
    (folder / "sub/problem_of_a_test.py").write_text(
        "import numpy as np, torch\nimport torch.nn.functional as F\nfrom own_nets_of_a_test import net\n\n\n"
        "def problem():\n    d = np.load('d.npz')\n    batch = torch.tensor(d['x']), torch.tensor(d['y'])\n"
        "    return net(), [batch], lambda model, b: F.cross_entropy(model(b[0]), b[1])\n"
    )
    truths = []
    (folder / "run").mkdir()
    for step in (1, 2):
        model, truth = trained(step)
        truths.append(truth)
        type(model).__module__ = "__main__"
        sys.modules["__main__"].Net = type(model)
        try:
            torch.save(model, f"run/step{step}.pt")
        finally:
            del sys.modules["__main__"].Net
            sys.modules.pop("own_nets_of_a_test")
    made = "--problem sub/problem_of_a_test.py:problem"
    if by == "--model":
        made = "--model sub/own_nets_of_a_test.py:net --dataset npz:d.npz"
    line = f"{made} --unsafe-load --surf-file r.h5"
    assert main(f"dynamics run {line} --top 1 --parameters all".split()) == 0
    assert np.asarray(lossmap.read("r.h5")["loss"]) == pytest.approx(truths, rel=1e-5)
    line = f"{made} --unsafe-load --surf-file s.h5 --model-file run/step1.pt --xdir to:run/step2.pt --x=0:1:2"
    assert main(f"surface {line} --dir-type states".split()) == 0
    assert lossmap.read("s.h5")["train_loss"] == pytest.approx(truths, rel=1e-5)
