"""The command `lossmap sharpness`: report, file, table, resumption, figure, and one message for invalid options."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

import lossmap
from lossmap import zoo
from lossmap.cli.__main__ import main as command_line
from lossmap.cli.sharpness import balls_of, main
from lossmap.io.read import read, read_group
from lossmap.landscape.sharpness_tasks import SharpnessTasks
from lossmap.report.sharpness import SharpnessNumber

SMALL = ["--model-args", '{"widths": [64, 5, 10]}']
QUICK = ["--model", "mlp", *SMALL, "--samples", "64", "--device", "cpu", "--threads", "1"]
LITTLE = ["--draws", "2", "--ascent-steps", "2", "--starts", "1", "--trace-products", "8"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        torch.manual_seed(seed)
        torch.save(zoo.build("mlp", widths=(64, 5, 10)).state_dict(), name)
    return tmp_path


def test_checkpoints_stand_in_one_table_and_what_survives_a_rescaling_in_another(here, capsys):
    words = [*QUICK, *LITTLE, "--model-file", "a.pt", "--compare", "second=b.pt", "--rescale", "4", "--tol", "0.05"]
    words += ["--surf-file", "s.h5"]
    assert main([*words, "--plot"]) == 0
    text = capsys.readouterr().out
    for sentence in (
        "Sharpness: a", "Sharpness: second rescaled 4", "Sharpness, side by side", "lower bound",
        "Under a rescaling of the network: a", "picture: s.pdf", "result: s.h5",
    ):  # fmt: skip
        assert sentence in text, sentence
    survival = text.split("Under a rescaling of the network: second")[1]
    rows = [line.strip().split("  ") for line in survival.splitlines() if "  yes, " in line or "  no, " in line]
    answers = {row[0]: row[-1].strip().split(",")[0] for row in rows}
    assert answers["filter 0.5: worst"] == answers["adaptive 0.5: average"] == answers["adaptive 0.5: SAM"] == "yes"
    assert answers["absolute 0.05: worst"] == answers["largest eigenvalue"] == answers["critical sharpness"] == "no"
    assert (here / "s.png").stat().st_size > 5000
    results = lossmap.read("s.h5")
    assert list(results) == [f"sharpness/{n}" for n in ("a", "a rescaled 4", "second", "second rescaled 4")]
    assert results["sharpness/a rescaled 4"].rescaled == 4.0 and repr(results["sharpness/a"]) in text
    assert main(words) == 0  # nothing is left to do
    assert main([*QUICK, "--model-file", "a.pt", "--draws", "3", "--surf-file", "s.h5"]) == 2
    assert "draws" in capsys.readouterr().err


def test_the_eigenvalue_that_adams_step_sees_stands_in_table_survival_and_picture(here, capsys):
    for name, rate in (("a.pt", 1e-3), ("b.pt", 1e-2)):
        model = zoo.build("mlp", widths=(64, 5, 10))
        model.load_state_dict(torch.load(name))
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for p in model.parameters():
            p.grad = 1e-3 * torch.randn_like(p)
        optimizer.step()
        torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, name)
    few = [*QUICK, "--draws", "0", "--ascent-steps", "0", "--trace-products", "0", "--model-file", "a.pt"]
    words = [*few, "--optimizer-state", "a.pt", "--compare", "second=b.pt", "--rescale", "4", "--surf-file", "p.h5"]
    assert main([*words, "--plot"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    results = lossmap.read("p.h5")
    one, two = results["sharpness/a"].preconditioned, results["sharpness/second"].preconditioned
    assert (one.threshold, two.threshold) == pytest.approx((38000, 3800)) and 0 < one.error < 1e-2 * one.value
    assert "preconditioned eigenvalue" in text and "of P of Adam" in text
    survival = text.split("Under a rescaling of the network: a")[1].split("preconditioned eigenvalue ")[1]
    assert survival.split()[:1] == [str(SharpnessNumber("", one.value, one.error)).split()[0]]
    assert results["sharpness/a rescaled 4"].preconditioned.value != pytest.approx(one.value, rel=0.1)
    left, right = lossmap.draw("p.h5").axes[:2]
    assert "preconditioned eigenvalue" in [t.get_text() for t in left.get_yticklabels()]
    assert not any("preconditioned" in t.get_text() for t in right.get_yticklabels())
    assert main(words) == 0  # nothing is left to do
    capsys.readouterr()
    torch.save(zoo.build("mlp", widths=(64, 5, 10)).state_dict(), "plain.pt")
    for extra in (["--optimizer-state", "plain.pt"], ["--optimizer-state", "a.pt", "--compare", "p=plain.pt"]):
        assert main([*few, *extra, "--surf-file", "q.h5"]) == 2
        told = ", of plain.pt for --compare" if "--compare" in extra else ""
        assert f"--optimizer-state{told}: plain.pt holds no state of an optimizer" in capsys.readouterr().err


def test_interrupted_it_is_resumed_with_the_same_numbers(here, capsys):
    words = [*QUICK, *LITTLE, "--model-file", "a.pt", "--split", "test"]
    assert main([*words, "--surf-file", "whole.h5"]) == 0
    assert main([*words, "--surf-file", "parts.h5", "--stop-after", "0.01"]) == 75
    assert read("parts.h5").outcome_of("sharpness") == "unfinished"
    assert command_line(["resume", "parts.h5"]) == 0
    whole, parts = lossmap.read("whole.h5", lossmap.Sharpness), lossmap.read("parts.h5", lossmap.Sharpness)
    assert whole.label == "test" and whole.equals(parts)
    assert command_line(["status", "parts.h5"]) == 0
    assert "sharpness: 10 of 10 done" in capsys.readouterr().out


def test_of_an_unfinished_file_what_is_there_is_read(here, monkeypatch):
    """Each number that is there is the finished file's; what is not there is named."""
    real = SharpnessTasks.__call__

    def task(self, point):
        if self.tasks[int(point[0])].kind == "average":
            signal.raise_signal(signal.SIGINT)
        return real(self, point)

    words = [*QUICK, *LITTLE, "--model-file", "a.pt", "--surf-file", "s.h5"]
    monkeypatch.setattr(SharpnessTasks, "__call__", task)
    assert main(words) == 75
    part = lossmap.read("s.h5")
    assert isinstance(part, lossmap.Sharpness)
    assert part.critical is None and np.isnan(part.ball("absolute").average)
    assert part.notes[-1].endswith("still to come: average rise, critical sharpness")
    monkeypatch.setattr(SharpnessTasks, "__call__", real)
    assert main(words) == 0
    whole = lossmap.read("s.h5")
    for name in ("label", "size", "samples", "unit", "precision", "loss", "largest", "largest_error", "seed"):
        assert getattr(part, name) == getattr(whole, name)
    assert repr(part.trace) == repr(whole.trace)
    assert part.ball("absolute").worst == whole.ball("absolute").worst and not whole.notes


def test_it_is_the_python_functions_number(here):
    assert main([*QUICK, *LITTLE, "--model-file", "a.pt", "--surf-file", "s.h5", "--no-critical"]) == 0
    stored = lossmap.read("s.h5", lossmap.Sharpness)
    assert stored.critical is None and stored.ball("filter").steps == 2
    group = read_group("s.h5", "tasks/train/average/adaptive 0.5")
    assert group["rises"].shape == (2,)
    assert stored.ball("adaptive").average == np.mean(group["rises"])


def test_what_it_takes_is_estimated_and_a_dry_run_writes_nothing(here, capsys):
    words = [*QUICK, *LITTLE, "--model-file", "a.pt"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "would compute 10 tasks for train" in shown.out and "passes of" in shown.err
    assert not list(here.glob("*.h5"))
    assert command_line(["estimate", "--json", "--", "sharpness", *words]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["points"] == 10 and estimate["most"] >= estimate["least"] > 0


def test_a_radius_is_a_kind_and_a_number_or_a_number_for_each_kind():
    assert balls_of(["filter:0.5", "absolute:1e-2"]) == (("filter", 0.5), ("absolute", 0.01))
    assert balls_of(["0.1,adaptive:2"]) == (("filter", 0.1), ("adaptive", 0.1), ("absolute", 0.1), ("adaptive", 2.0))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--radius", "round:1"], "--radius must be KIND:R"),
        (["--radius", "filter:-1"], "--radius must be KIND:R"),
        (["--draws", "1"], "--draws must be >= 2"),
        (["--page"], "sharpness is drawn by --plot"),
        (["--budget", "soon"], "--budget must be a time > 0"),
        (["--shard", "1/2"], "--shard is for surveys"),
        (["--model", "resnet20-w8", "--model-args", "{}", "--rescale", "2"], "--rescale needs two layers"),
        (["--rescale", "1"], "--rescale must be > 0, finite, and not within 0.1 of 1, which rescales nothing"),
        (["--precision", "bfloat16"], "bfloat16"),
    ],
)
def test_invalid_options_give_one_message(here, capsys, words, sentence):
    assert main([*QUICK, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(here.glob("*.h5"))


def test_a_copy_whose_loss_is_no_number_is_not_a_rescaled_one(here, capsys):
    assert main([*QUICK, *LITTLE, "--model-file", "a.pt", "--rescale", "1e39"]) == 2
    assert "--rescale 1e+39: no two layers can be rescaled so that it shows: rescaling " in capsys.readouterr().err


def test_layers_that_no_number_would_show_are_not_rescaled(here, capsys):
    (here / "headed.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Headed(nn.Module):\n    def __init__(self, activation=nn.ReLU):\n        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.head = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation(), nn.Linear(8, 10))\n\n"
        "    def forward(self, x):\n        return self.net(x)\n\n\n"
        "def smooth():\n    return Headed(nn.Tanh)\n"
    )
    words = [*LITTLE, "--samples", "20", "--rescale", "4", "--tol", "0.05", "--surf-file", "h.h5"]
    assert main(["--model", "headed.py:Headed", *words]) == 0
    text = capsys.readouterr().out
    assert "Of the copy, layer net.1 was multiplied by 4 and layer net.3 divided by it" in " ".join(text.split())
    rows = text.split("Under a rescaling")[1].split("survives\n")[1].splitlines()
    answers = {row.strip().split("  ")[0]: row.rpartition("  ")[2].split(",")[0] for row in rows if "," in row}
    assert answers["critical sharpness"] == "no" and answers["largest eigenvalue"] == "unclear"  # at so wide a bar
    copy = lossmap.read("h.h5")["sharpness/train rescaled 4"]
    assert copy.rescaled_layers == "net.1 and net.3"
    for more, sentence in (
        (
            ["--model", "headed.py:smooth"],
            "no two layers can be rescaled so that it shows: the loss does not follow head.0",
        ),
        (
            ["--model", "headed.py:Headed", "--parameters", "net.3"],
            "--parameters net.3 does not move both of head.0 and",
        ),
    ):
        assert main([*more, *words, "--overwrite"]) == 2
        assert sentence in capsys.readouterr().err


def test_layers_in_front_of_a_normalised_output_are_followed_though_no_scale_of_theirs_is(here):
    (here / "unit.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Unit(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.ReLU(), "
        "nn.Linear(16, 10, bias=False))\n\n"
        "    def forward(self, x):\n        z = self.net(x)\n        return 5 * z / z.norm(dim=1, keepdim=True)\n\n\n"
        "class Zero(Unit):\n    def __init__(self):\n        super().__init__()\n"
        "        nn.init.zeros_(self.net[3].weight)\n\n    def forward(self, x):\n        return self.net(x)\n"
    )
    words = [*LITTLE, "--samples", "20", "--rescale", "4", "--tol", "0.05", "--surf-file", "u.h5", "--overwrite"]
    for model in ("Unit", "Zero"):  # a head of zeros hands the first layer no gradient, and has one
        assert main(["--model", f"unit.py:{model}", *words]) == 0
        both = lossmap.read("u.h5")
        before, after = (both[f"sharpness/train{which}"] for which in ("", " rescaled 4"))
        assert after.rescaled_layers == "net.1 and net.3" and after.loss == pytest.approx(before.loss, rel=1e-6)
        assert after.largest > 1.5 * before.largest


def test_weights_that_are_used_twice_are_not_rescaled(here, capsys):
    (here / "tied.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net():\n    torch.manual_seed(0)\n    a, b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    b.weight = a.weight\n"
        "    return nn.Sequential(nn.Flatten(), a, nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), b, nn.Tanh(), "
        "nn.Linear(64, 10))\n"
    )
    assert main([*QUICK, *LITTLE, "--model", "tied.py:net", "--model-args", "{}", "--rescale", "2"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rescaling 1 and 3 changed the loss from" in said and "as where their weights are used elsewhere too" in said


def test_a_loss_that_is_all_but_rounding_is_said_to_change_by_that(here, capsys):
    """Of a network that fits its targets to 1e-6: weights times 3 round, times 4 do not."""
    (here / "fits.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))\n\n"
        "def data(split):\n    torch.manual_seed(1)\n    x = torch.randn(64, 8)\n"
        "    return x, (net().double()(x.double()) + 1e-6 * torch.randn(64, 1)).detach().float()\n"
    )
    words = ["--model", "fits.py:net", "--dataset", "fits.py:data", "--loss", "mse", "--device", "cpu", *LITTLE]
    assert main([*words, "--rescale", "3"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "by rounding of their weights alone: a power of two has none, nor has --precision float64" in said
    assert main([*words, "--rescale", "4", "--tol", "0.05", "--surf-file", "f.h5"]) == 0
    assert main([*words, "--rescale", "3", "--precision", "float64", "--tol", "0.05", "--surf-file", "d.h5"]) == 0


def test_checkpoints_of_one_name_are_refused_with_the_flag_that_tells_them_apart(here, capsys):
    words = [*QUICK, *LITTLE, "--model-file", "a.pt", "--compare"]
    assert main([*words, "run/a.pt"]) == 2
    said = capsys.readouterr().err
    assert "two checkpoints are called 'a'; give it a label of its own: --compare run-a=run/a.pt" in said
