"""The command `lossmap connect`: report, file, resumption, figure, and one message for invalid options."""

from __future__ import annotations

import json
from array import array

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap import zoo
from lossmap.cli.__main__ import main as command_line
from lossmap.cli.connect import main, price_of_line
from lossmap.io.read import read
from lossmap.landscape.connection_map import connection_map, fixed_batches
from lossmap.landscape.curves import train_bend
from lossmap.landscape.loss import ForwardPlan
from lossmap.report.price import Price

QUICK = ["--model", "mlp", "--samples", "64", "--device", "cpu", "--threads", "1", "--no-probe"]
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        torch.manual_seed(seed)
        torch.save(zoo.build("mlp").state_dict(), name)
    return tmp_path


def test_the_line_is_reported_stored_and_drawn(here, capsys):
    assert main(["a.pt", "b.pt", *QUICK, "--split", "both", "--points", "5", "--surf-file", "c.h5", "--plot"]) == 0
    text = capsys.readouterr().out
    for sentence in ("Line from a to b", "train barrier", "test barrier", "monotone", "picture: c.pdf", "result: c.h5"):
        assert sentence in text, sentence
    line = lossmap.read("c.h5", lossmap.Connection)
    assert repr(line) in text and line.labels == ("a", "b") and line.samples == {"train": 64, "test": 64}
    surface = read("c.h5")
    assert np.array_equal(surface["train_loss"], line.losses["train"]) and surface.grid.x.tolist() == line.t.tolist()
    assert surface.groups["directions/x"].attributes["kind"] == "to:b.pt"
    assert (here / "c.png").stat().st_size > 5000
    # the plane's own machinery gives the same losses
    words = ["--x=0:1:5", "--xdir", "to:b.pt", "--model-file", "a.pt", "--split", "both", "--surf-file", "s.h5"]
    assert command_line(["surface", *QUICK, *words]) == 0
    assert np.array_equal(read("s.h5")["test_loss"], surface["test_loss"])
    assert np.array_equal(read("s.h5")["train_acc"], surface["train_acc"])


def test_interrupted_it_is_resumed_and_both_ends_are_named_either_way(here, capsys):
    assert main(["a.pt", "b.pt", *QUICK, "--points", "7", "--surf-file", "whole.h5"]) == 0
    probing = [word for word in QUICK if word != "--no-probe"]  # what it chooses is taken up again
    words = ["--model-file", "a.pt", "--other", "b.pt", *probing, "--points", "7", "--surf-file", "parts.h5"]
    assert main([*words, "--stop-after", "0.001"]) == 75
    assert command_line(["resume", "parts.h5"]) == 0
    whole, parts = (lossmap.read(f, lossmap.Connection) for f in ("whole.h5", "parts.h5"))
    assert parts.losses["train"] == pytest.approx(whole.losses["train"], rel=1e-5) and parts.labels == whole.labels
    again = [*words[:-1], "again.h5"]
    assert main(again) == 0
    plans = [read(f).settings["measures"]["loss"]["chosen"]["way"] for f in ("parts.h5", "again.h5")]
    assert set(plans[0]) == set(plans[1])
    assert main(["b.pt", *words]) == 2
    assert "a line has two ends" in capsys.readouterr().err
    assert main(["a.pt", "b.pt", *QUICK, "--points", "7", "--surf-file", "whole.h5", "--split", "test"]) == 2
    assert "holds another survey" in capsys.readouterr().err


def test_statistics_are_those_of_training_samples_whatever_split_is_measured(here, capsys):
    (here / "net.py").write_text(NET)
    command = [*QUICK, "--model", "net.py:net", "--points", "3", "--split", "test"]
    scope: dict = {}
    exec(NET, scope)
    for name, seed in (("a.pt", 3), ("b.pt", 4)):
        model = scope["net"]()
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        torch.save(model.state_dict(), name)
    for bn in ("recompute", "keep"):
        assert main(["a.pt", "b.pt", *command, "--bn", bn, "--surf-file", f"{bn}.h5"]) == 0
    recomputed, kept = (lossmap.read(f"{bn}.h5", lossmap.Connection) for bn in ("recompute", "keep"))
    assert list(recomputed.losses) == ["test"] and recomputed.bn == "recompute"
    assert abs(recomputed.losses["test"][1] - kept.losses["test"][1]) > 1e-3
    assert main(["a.pt", "b.pt", *command, "--bn", "keep", "--surf-file", "recompute.h5"]) == 2
    assert "batch norm" in capsys.readouterr().err


def test_what_it_takes_is_estimated_and_a_dry_run_writes_nothing(here, capsys):
    assert main(["a.pt", "b.pt", *QUICK, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "25 points between a and b" in shown.out and "about 25 points of" in shown.err
    assert not list(here.glob("*.h5"))
    assert command_line(["estimate", "--json", "--", "connect", "a.pt", "b.pt", *QUICK]) == 0
    assert '"points": 25' in capsys.readouterr().out


def test_an_estimate_counts_the_training_of_the_curve_and_the_rounding_of_barriers(here, capsys, monkeypatch):
    trained, train = [], train_bend

    def price_of_bend(problem, line, recipe):
        return Price(recipe.steps, 0.4 * recipe.steps, 0, "step")

    def counted(problem, line, recipe, **how):
        trained.append(recipe.steps)
        return train(problem, line, recipe, **how)

    monkeypatch.setattr("lossmap.landscape.curves.price_of_bend", price_of_bend)
    monkeypatch.setattr("lossmap.landscape.curves.train_bend", counted)
    monkeypatch.setattr("lossmap.landscape.barrier_rounding.seconds_of_rounding", lambda _: 30.0)
    words = ["connect", "a.pt", "b.pt", *QUICK, "--align", "weights"]
    for further, beside in (([], 60.0), (["--curve", "polygon"], 490.0)):
        assert command_line(["estimate", "--json", "--", *words, *further]) == 0
        assert json.loads(capsys.readouterr().out)["beside"] == beside
    assert trained == [2]
    assert command_line(["estimate", "--", *words]) == 0
    assert "; beside the points" in capsys.readouterr().out


@pytest.mark.parametrize("samples", [None, 100])
def test_the_price_of_a_point_holds_the_statistics_of_the_training_samples(monkeypatch, samples):
    """Not of the measured split's samples, and not a pass of the same speed."""

    now = array("d", [0.0])  # which is not put back after a pass

    class Clock(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            now[0] += len(x) * (3.0 if self.norm.training else 1.0)
            return self.norm(self.linear(x))

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    torch.manual_seed(0)
    a, b = Clock().double(), Clock().double()
    x, y = torch.randn(256, 4).double(), torch.arange(256) % 3
    train, test = (lossmap.Problem.supervised(a, "crossentropy", (x[:n], y[:n])) for n in (256, 20))
    plane, plan = lossmap.line_between(a, b), ForwardPlan(64)
    statistics = fixed_batches(train.data, samples)
    price = price_of_line(
        {"test": test}, plane, plan, 7, statistics=statistics, ways=1, workers=1, autocast=None, repeats=None
    )  # fmt: skip
    measure = connection_map({"test": test}, plane, plan, statistics=statistics)
    measure((0.5,))  # and both ends
    began = now[0]
    measure((0.5,))
    assert price.longest == now[0] - began == 20 + 3 * (256 if samples is None else samples)
    assert (price.seconds, price.fixed) == (7 * price.longest, 2 * price.longest)


def test_b_is_aligned_reported_and_saved_and_the_file_resumes_as_such_alone(here, capsys):
    words = ["a.pt", "b.pt", *QUICK, "--points", "3", "--surf-file", "c.h5"]
    assert main([*words, "--align", "weights", "--save-aligned", "aligned.pt"]) == 0
    assert "b aligned by weight matching" in " ".join(capsys.readouterr().out.split())
    line, saved = lossmap.read("c.h5", lossmap.Connection), torch.load("aligned.pt")
    net = zoo.build("mlp").eval()
    x, outputs = torch.rand(5, 1, 8, 8), []
    for state in (torch.load("b.pt"), saved):
        net.load_state_dict(state)
        outputs.append(net(x).detach())
    assert torch.allclose(*outputs, atol=1e-5) and any(
        not torch.equal(saved[n], t) for n, t in torch.load("b.pt").items()
    )
    a = torch.load("a.pt")
    assert line.length == pytest.approx(
        sum((a[n] - t).square().sum().item() for n, t in saved.items()) ** 0.5, rel=1e-5
    )
    assert main(["a.pt", "aligned.pt", *QUICK, "--points", "3", "--surf-file", "d.h5"]) == 0
    assert np.array_equal(read("d.h5")["train_loss"], read("c.h5")["train_loss"])
    assert main([*words, "--overwrite", "--surf-file", "e.h5"]) == 0  # the line to b as it stands is in the first file
    for name, values in read("e.h5").fields.items():
        if not name.startswith(("loss_", "unaligned_")):
            assert np.array_equal(read("c.h5")[f"unaligned_{name}"], values)
    assert line.unaligned.barrier("train") == lossmap.read("e.h5", lossmap.Connection).barrier("train")
    assert command_line(["status", "--verify", "c.h5"]) == 0
    assert command_line(["resume", "c.h5"]) == 0
    assert main([*words, "--align", "weights"]) == 0
    assert main(words) == 2
    assert "holds another survey" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.pt", "b.pt", "--save-aligned", "c.pt"], "needs --align weights or activations"),
        (["a.pt", "b.pt", "--align", "weights", "--save-aligned", "b.pt"], "would write over an end of the line"),
        (["a.pt", "b.pt", "--save-bend", "c.pt"], "it needs --curve bezier or polygon"),
        (["a.pt", "b.pt", "--curve", "bezier", "--save-bend", "a.pt"], "would write over an end of the line"),
        (["a.pt"], "a line has two ends: lossmap connect A B --model ...; got 1 (a.pt)"),
        ([], "a line has two ends"),
        (["a.pt", "b.pt", "a.pt"], "got 3"),
        (["a.pt", "a.pt"], "a.pt has the weights of a.pt"),
        (["a.pt", "none.pt"], "none.pt"),
        (["a.pt", "b.pt", "--points", "2"], "--points must be >= 3"),
        (["a.pt", "b.pt", "--bn", "best"], "bn"),
        (["a.pt", "b.pt", "--shard", "1/2"], "--shard"),
    ],
)
def test_invalid_options_give_one_message(here, capsys, words, sentence):
    assert main([*words, *QUICK]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(here.glob("*.h5"))


def test_a_curve_is_trained_once_kept_and_measured_beside_the_line(here, capsys, monkeypatch):
    words = ["a.pt", "b.pt", *QUICK, "--points", "5", "--surf-file", "c.h5", "--curve", "bezier", "--curve-steps", "40"]
    assert main([*words, "--dry-run"]) == 0
    assert "curve: about 40 steps of" in capsys.readouterr().err and not list(here.glob("*.h5"))
    assert main([*words, "--save-bend", "bend.pt", "--plot"]) == 0
    assert "on the curve" in capsys.readouterr().out and (here / "c.png").exists()
    line = lossmap.read("c.h5", lossmap.Connection)
    assert line.curve.losses["train"][2] < line.losses["train"][2]
    # the saved bend is where the curve says: the mean of both halves of a Bezier curve at t = 1/2
    a, b, bend = (torch.load(file) for file in ("a.pt", "b.pt", "bend.pt"))
    middle = {n: 0.25 * a[n] + 0.5 * bend[n] + 0.25 * b[n] for n in a}
    torch.save(middle, "middle.pt")
    assert main(["middle.pt", "b.pt", *QUICK, "--points", "3", "--surf-file", "d.h5"]) == 0
    assert read("d.h5")["train_loss"][0] == pytest.approx(line.curve.losses["train"][2], rel=1e-4)
    assert command_line(["status", "--verify", "c.h5"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("lossmap.landscape.curves.train_bend", lambda *args, **options: pytest.fail("trained again"))
        assert command_line(["resume", "c.h5"]) == 0
        assert main(words) == 0
    assert main([*words[:-1], "41"]) == 2
    assert "curve.steps" in capsys.readouterr().err


def test_a_stop_while_the_bend_is_trained_leaves_nothing_and_the_command_can_be_run_again(here, capsys):
    words = ["a.pt", "b.pt", *QUICK, "--points", "3", "--surf-file", "c.h5", "--curve", "polygon"]
    assert main([*words, "--curve-steps", "100000000", "--stop-after", "3"]) == 75
    assert "while the curve's bend was trained; run the same command again" in " ".join(capsys.readouterr())
    assert not list(here.glob("*.h5*"))


def test_a_curve_to_a_permuted_copy_is_refused_once(here, capsys):
    state = torch.load("a.pt")
    names = list(state)
    order = torch.randperm(len(state[names[1]]))
    state[names[0]], state[names[1]] = state[names[0]][order], state[names[1]][order]
    state[names[2]] = state[names[2]][:, order]
    torch.save(state, "p.pt")
    for more in ([], ["--dry-run"]):
        assert main(["a.pt", "p.pt", *QUICK, "--align", "weights", "--curve", "bezier", "--points", "3", *more]) == 2
        assert capsys.readouterr().err.count("there is no curve between them") == 1
