"""The command `lossmap spectrum`: report, file, figures, and one message for invalid options."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lossmap import zoo
from lossmap.cli.__main__ import main as lossmap
from lossmap.cli.spectrum import COMMAND, main
from lossmap.cli.spectrum_subjects import backend_choices
from lossmap.data.problem import Problem
from lossmap.io.read import read
from lossmap.io.spectrum_layout import layers_in, spectra_in
from lossmap.spectra.request import Subject

QUICK = ["--model", "mlp", "--samples", "64", "--hvp-backend", "double-backward", "--device", "cpu", "--threads", "1"]
LITTLE = ["--top", "2", "--trace-products", "8", "--density-steps", "8", "--density-probes", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_report_is_printed_stored_and_drawn(here, capsys):
    told = [
        *QUICK,
        *LITTLE,
        "--surf-file",
        "s.h5",
        "--layers",
        "module",
        "--singular-values",
        "--l2",
        "0,0.1",
        "--plot",
    ]
    assert main([*told, "--abs", "2", "--tail-mass", "0.001", "--dense-limit", "400"]) == 0
    text = capsys.readouterr().out
    for words in (
        "Spectrum of the Hessian", "+-", "condition", "2/largest", "trace", "below -0.001", "by magnitude",
        "Layer by layer", "definiteness", "Weights: singular values", "L2 path", "picture: s_train.pdf", "result: s.h5",
    ):  # fmt: skip
        assert words in text, words
    group = spectra_in("s.h5")["train"]
    assert group["top"].shape == (2,) and "Spectrum of the Hessian" in group.attributes["report"]
    assert list(layers_in("s.h5")["train"]["block"]) == ["1", "3", "5"]
    assert (here / "s_layers_train.png").stat().st_size > 5000
    assert read("s.h5").outcome_of("spectrum") == "complete"
    before = group["top"]
    assert main([*told, "--abs", "2", "--tail-mass", "0.001", "--dense-limit", "400"]) == 0  # nothing is left to do
    assert np.array_equal(spectra_in("s.h5")["train"]["top"], before)
    assert main([*QUICK, "--surf-file", "s.h5", "--top", "3"]) == 2
    assert "top" in capsys.readouterr().err


def test_checkpoints_and_splits_stand_side_by_side(here, capsys):
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        torch.manual_seed(seed)
        torch.save(zoo.build("mlp").state_dict(), name)
    told = [*QUICK, *LITTLE, "--no-density", "--model-file", "a.pt", "--compare", "second=b.pt", "--split", "both"]
    assert main([*told, "--surf-file", "c.h5", "--matrix", "gauss-newton", "--plot"]) == 0
    text = capsys.readouterr().out
    assert "Side by side" in text and "second train" in text and "a test" in text and "Gauss-Newton" in text
    for label in ("a train", "second test"):  # the sentence on the task is in the file too
        assert f"{label}: {spectra_in('c.h5')[label].attributes['task']}" in text
    assert list(spectra_in("c.h5")) == ["a train", "a test", "second train", "second test"]
    assert (here / "c_compared.pdf").exists()


def test_retraining_along_the_l2_path_is_done_on_request(here, capsys):
    told = [*QUICK, "--top", "1", "--no-density", "--trace", "none", "--l2", "0", "0.01", "--l2-retrain", "1"]
    assert main([*told, "--surf-file", "l.h5"]) == 0
    assert "retrained: loss" in capsys.readouterr().out
    assert read("l.h5").groups["spectrum/l2_path"]["retrained_largest"].shape == (2,)


def test_an_interrupted_spectrum_says_what_it_has_so_far(here, capsys, monkeypatch):
    def interrupted(self, subject, name):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the second task")

    monkeypatch.setattr("lossmap.spectra.tasks.SpectrumTasks._gradient", interrupted)
    assert main([*QUICK, *LITTLE, "--surf-file", "some.h5"]) == 75
    text = capsys.readouterr().out
    assert "so far:" in text and "largest" in text.split("so far:")[1] and "density" not in text.split("so far:")[1]
    from lossmap.cli.draw import main as draw
    from lossmap.cli.resume import main as resume

    assert draw(["some.h5"]) == 0
    assert re.search(r"of train still to come: .*density; lossmap resume some.h5 computes it", capsys.readouterr().out)
    assert Path("some_train.png").stat().st_size > 0
    assert resume(["some.h5", "--stop-after", "0"]) == 75  # as after a kill: nothing of the first process is at hand
    assert "largest" in capsys.readouterr().out.split("so far:")[1]


def test_a_spectrum_of_which_no_task_is_done_has_no_figure_yet(here, capsys):
    from lossmap.cli.draw import main as draw

    assert main([*QUICK, *LITTLE, "--surf-file", "none.h5", "--stop-after", "0"]) == 75
    assert draw(["none.h5"]) == 2
    assert re.search(r"no figure yet: 0 of \d tasks of this spectrum are done", capsys.readouterr().err)


def test_an_interrupted_spectrum_is_resumed_without_flags_to_the_same_numbers(here, capsys):
    from lossmap.cli.resume import main as resume

    told = [*QUICK, *LITTLE, "--no-density", "--top", "2"]
    assert main([*told, "--surf-file", "whole.h5"]) == 0
    assert main([*told, "--surf-file", "parts.h5", "--stop-after", "0.001"]) == 75
    assert "run the same command again to resume" in capsys.readouterr().out
    assert resume(["parts.h5"]) == 0
    one, two = (spectra_in(f"{name}.h5")["train"] for name in ("whole", "parts"))
    assert np.array_equal(one["top"], two["top"]) and one.attributes["trace"] == two.attributes["trace"]


def test_a_dry_run_writes_nothing(here, capsys):
    assert main([*QUICK, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "nothing was written" in text and "density" in text
    assert not list(here.glob("*.h5"))


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (["--top", "101"], "--top must be 0 to 100; got 101"),
        (["--parameters", "5.bias", "--top", "11"], "--top 11: the matrix has 10 rows, and no more eigenvalues"),
        (["--parameters", "fc9"], "no parameter matches 'fc9'"),
        (["--groups", "head=fc9"], "no parameter matches 'fc9'"),
        (["--l2", "much"], "--l2 must be numbers, such as 0.001 0.01; got much"),
        (["--mass-at=-1"], "--tail-mass must be numbers >= 0"),
        (["--compare", "=x"], "--compare must be LABEL=FILE or LABEL=MODEL@FILE; got '=x'"),
        (["--compare", "mlp=x.pt"], "two checkpoints are called 'mlp'"),
        (["--compare", "run/mlp.pt"], "a label of its own: --compare run-mlp=run/mlp.pt"),
        (["--compare", "a b=x.pt", "a b=mlp@1/y.pt"], "a label of its own: --compare '1-a b=mlp@1/y.pt'"),
        (["--compare", "1-a=x.pt", "a=x.pt", "a=1/y.pt"], "a label of its own: --compare a-2=1/y.pt"),
        (["--compare", "a/b=x.pt", "a_b=y.pt"], "--compare: two checkpoints are called 'a/b' and 'a_b', which a file"),
        (["--precision", "bfloat16"], "must be float32 or float64"),
        (["--page"], "--page and --vtk are for surfaces"),
        (["--shard", "1/2"], "--shard is for surveys of a grid"),
        (["--trace-products", "2"], "products must be >= 6 for a standard error; got 2"),
        (["--density-probes", "0"], "the density's probes must be >= 1; got 0"),
        (["--density-error", "0"], "must be a share of the range > 0"),
        (["--l2", "0.1", "--bottom", "0"], "--l2 needs both ends of the spectrum"),
        (["--tol", "0"], "--tol must be > 0"),
    ],
)
def test_invalid_options_give_one_message(here, capsys, told, text):
    code = main([*QUICK, *told, "--surf-file", "e.h5"])
    said = capsys.readouterr()
    assert text in said.err + said.out
    assert code == 2
    assert "Traceback" not in said.err


def test_matrices_of_drawn_targets_and_of_an_optimizers_step(here, capsys):
    few = [*QUICK, "--parameters", "^5.bias$", "--no-density", "--top", "1", "--seed", "3"]
    drawn = [*few, "--matrix", "mc-fisher", "--surf-file", "drawn.h5"]
    assert main([*drawn, "--fisher-draws", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Monte-Carlo Fisher matrix" in text and "2 for each sample, from seed 3" in text
    assert main([*drawn, "--fisher-draws", "2"]) == 0  # nothing is left to do
    assert main([*drawn, "--fisher-draws", "3"]) == 2
    assert "draws of a sample is 2 in the file, 3 asked for" in capsys.readouterr().err

    torch.manual_seed(0)
    model = zoo.build("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, "net.pt")
    torch.save(model.state_dict(), "plain.pt")
    seen = [*few, "--matrix", "preconditioned"]
    assert main([*seen, "--model-file", "net.pt", "--surf-file", "seen.h5"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "P of Adam" in text and "threshold of the optimizer 3,800" in text
    assert (
        main([*seen, "--model-file", "plain.pt", "--optimizer-state", "net.pt:optimizer", "--surf-file", "b.h5"]) == 0
    )
    assert spectra_in("b.h5")["train"]["top"] == pytest.approx(spectra_in("seen.h5")["train"]["top"], rel=1e-12)
    assert spectra_in("seen.h5")["train"].attributes["optimizer_threshold"] == pytest.approx(3800.0)
    capsys.readouterr()
    assert main([*seen, "--model-file", "plain.pt", "--surf-file", "c.h5"]) == 2
    assert "plain.pt holds no state of an optimizer" in capsys.readouterr().err


def test_a_rank_whose_share_has_no_weight_plans_the_products_of_the_others(tmp_path):
    def weighed(model, batch):
        return model(batch["x"]).square().mean(), float(batch["weight"])

    batches = [{"x": torch.randn(n, 3), "weight": torch.tensor(float(w))} for n, w in ((4, 0), (5, 0), (6, 6), (7, 7))]
    whole = Problem.custom(torch.nn.Linear(3, 1), weighed, batches)
    subjects = [Subject("net", whole.share(rank, 2), full=whole) for rank in (0, 1)]
    assert subjects[0].problem.weight == 0
    choices = backend_choices(COMMAND.parse(["--top", "1"]), subjects, tmp_path / "none.h5")
    assert len(choices) == 2 and all(choices)


UNLABELLED = """
import torch
from torch.nn import functional as F

def problem():
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3), torch.randn(12, 4), torch.randint(3, (12,))
    y[4:8] = -100  # all labels of one batch are ignored, of which the mean is 0 / 0
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]
    return model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1])
"""


@pytest.mark.parametrize(
    "command", ["spectrum", "spectrum --layers tensor", "sharpness --radius absolute:0.1", "surface --xdir hessian:max"]
)
def test_a_loss_that_is_no_number_is_refused_by_every_command_of_curvature(here, command, capsys):
    (here / "own.py").write_text(UNLABELLED)
    assert lossmap([*command.split(), "--problem", "own.py:problem", "--surf-file", "s.h5"]) == 2
    assert "the loss is nan at these weights: there is no curvature to read here" in capsys.readouterr().err
    assert not (here / "s.h5").exists()


@pytest.mark.parametrize("command", ["surface", "eigenmap"])
def test_a_survey_of_a_loss_that_is_no_number_says_so(here, command, capsys):
    (here / "own.py").write_text(UNLABELLED)
    assert lossmap([command, "--problem", "own.py:problem", "--x=0:1:2", "--surf-file", "s.h5"]) == 0
    assert "the loss is not finite at 2 of 2 points" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_loss_is_told_beside_one_that_has_it(here, split, capsys):
    (here / "own.py").write_text(
        "import torch\n"
        "def problem(split):\n"
        "    torch.manual_seed(0)\n"
        "    net, x = torch.nn.Linear(3, 2), torch.randn(8, 3)\n"
        f"    x = x * float('nan') if split == {split!r} else x\n"
        "    return net, [x], lambda m, b: m(torch.nan_to_num(b)).square().mean() + 0 * b.sum()\n"
    )
    for command in ("surface", "eigenmap"):
        words = ["--problem", "own.py:problem", "--split", "both", "--x=0:1:2", "--surf-file", f"{command}.h5"]
        assert lossmap([command, *words]) == 0
        assert "the loss is not finite at 2 of 2 points" in capsys.readouterr().out
