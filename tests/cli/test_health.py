"""The command `lossmap health`: printed, drawn, as JSON, in the file; one message for invalid options."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lossmap import zoo
from lossmap.cli.__main__ import main as command_line
from lossmap.cli.health import COMMAND, label_of, main
from lossmap.io.read import read
from lossmap.plotting.health import draw_health, report_in

FEW = ["--model", "mlp", "--samples", "200", "--hessian-samples", "40", "--density-error", "0.2", "--device", "cpu"]


def ill(folder):
    model = zoo.build("mlp", seed=0)
    with torch.no_grad():
        model[3].bias.fill_(-1e3)
    torch.save(model.state_dict(), folder / "ill.pt")
    return str(folder / "ill.pt")


def test_only_a_net_that_nothing_was_read_into_is_called_untrained():
    for words, label in (
        (["--model", "mlp"], "mlp, untrained"),
        (["--model", "mlp", "--model-file", "a/b.pt"], "b.pt"),
        (["--model", "hf:bert"], "hf:bert"),
        (["--model", "mynet.py:net"], "mynet.py:net"),
        (["--problem", "mine.py:problem"], "mine.py:problem"),
    ):
        assert label_of(COMMAND.parse(words)) == label


def test_the_report_is_printed_drawn_written_and_kept(tmp_path, capsys):
    places = {name: str(tmp_path / name) for name in ("h.json", "h.png", "h.h5")}
    told = ["--json", places["h.json"], "--figure", places["h.png"], "--surf-file", places["h.h5"]]
    assert main([*FEW, "--model-file", ill(tmp_path), *told]) == 0
    said = capsys.readouterr().out
    assert "Health of ill.pt" in said and "200 samples, 200 held out" in said
    assert "dead layer, 4  [serious]" in said and "may mean" in said
    written = json.loads((tmp_path / "h.json").read_text())
    assert written["findings"][0]["level"] == "serious"
    assert (tmp_path / "h.png").stat().st_size > 10_000
    assert report_in(places["h.h5"]) == written
    assert read(places["h.h5"]).groups["health"]["nc1"].shape == (2,)
    draw_health(places["h.h5"])


def test_json_alone_can_be_read_by_a_program_and_serious_findings_can_fail(tmp_path, capsys):
    some = ["--examinations", "weights", "signals", "--json", "-", "--fail-on-serious", "--no-held-out"]
    assert main([*FEW, "--model-file", ill(tmp_path), *some]) == 3
    read = json.loads(capsys.readouterr().out)
    assert read["samples"] == 200 and read["held_out_samples"] == 0
    assert main([*FEW, "--model-file", ill(tmp_path), *some[:-2], "--split", "test"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out_samples"] == 0


RANDOM = """import torch, lossmap

def loss(outputs, targets):
    return (outputs + torch.randn_like(outputs)).square().mean()

def problem():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.zeros(12, 2))
    return lossmap.Problem.supervised(torch.nn.Linear(3, 2), loss, torch.utils.data.DataLoader(data, batch_size=4))
"""


def test_what_is_said_beside_json_is_kept_out_of_it(tmp_path, capsys):
    words = ["--examinations", "weights", "--momentum", "0.9", "--json", "-", "--surf-file", str(tmp_path / "h.h5")]
    assert main([*FEW, *words]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == 200
    assert "--momentum has no effect: it needs --lr" in err and "stored in" in err


def test_what_was_made_of_the_loss_is_said_and_kept_out_of_json(tmp_path, capsys):
    Path(tmp_path, "noisy.py").write_text(RANDOM)
    command = ["--problem", f"{tmp_path / 'noisy.py'}:problem", "--examinations", "hessian"]
    assert main(command) == 0
    assert "note: the loss draws at random" in capsys.readouterr().out
    assert main([*command, "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert "note: the loss draws at random" in shown.err and json.loads(shown.out)["samples"] == 12


def test_invalid_options_give_one_message(capsys):
    assert main([*FEW, "--split", "both"]) == 2
    assert "examined on one split" in capsys.readouterr().err
    assert main([*FEW, "--examinations", "pulse"]) == 2
    assert "no examination 'pulse'" in capsys.readouterr().err


def test_a_factory_that_does_not_look_at_its_split_holds_nothing_out(tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "same.py").write_text(
        "import torch\n\n\ndef net():\n    return torch.nn.Linear(3, 2)\n\n\n"
        "def data(split='train'):\n    x = torch.arange(36.0).view(12, 3).sin()\n    return x, x.argmax(1) % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--model", "same.py:net", "--dataset", "same.py:data"]
    assert main([*words, "--examinations", "signals", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out_samples"] == 0
    assert "the train and the test split are the same samples" in caplog.text
    assert command_line(["surface", *words, "--split", "both", "--x=0:0:1", "--surf-file", "s.h5"]) == 0
    assert "note: the train and the test split are the same samples" in capsys.readouterr().out
