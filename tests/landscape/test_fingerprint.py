"""Code is part of a result's identity: what measures is fingerprinted by value, compared, refused, accepted, noted."""

import hashlib
import importlib
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

import lossmap
from lossmap.cli.__main__ import main
from lossmap.io import attempts, code_identity
from lossmap.io.code_identity import changes_between, decoded
from lossmap.io.merge import merge
from lossmap.io.read import Refused, SurfaceFile, read
from lossmap.landscape.fingerprint import code_of, source_digests, source_files

NET = """
import torch
from helper import SCALE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(64, 6), torch.nn.Linear(6, 10)

    def forward(self, x):
        return SCALE * self.second(torch.tanh(self.first(x.flatten(1))))

def net():
    return Net()

def loss(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets)
"""
QUICK = "--samples 32 --device cpu --threads 1 --batch-size 32 --no-probe"
SURFACE = f"surface --model mynet.py:net --loss mynet.py:loss {QUICK} --x=-1:1:4 --surf-file s.h5"


def forget_modules():
    """As in a new process: the user's modules are imported anew."""
    for name in [name for name in sys.modules if name.startswith("mynet") or name == "helper"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a user's net and loss, and a module that they import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mynet.py").write_text(NET)
    Path("helper.py").write_text("SCALE = 1.0\n")
    forget_modules()
    yield tmp_path
    forget_modules()


def run(line):
    """A command, as in a process of its own."""
    forget_modules()
    return main(line.split())


def half_done(line, points=2, monkeypatch=None):
    """Run a command whose process dies after so many points."""
    record, count = SurfaceFile.record, iter(range(1, 1000))

    def dying(self, *words, **named):
        record(self, *words, **named)
        if next(count) == points:
            self._closed = True
            self._journal.close()
            signal.default_int_handler(signal.SIGINT, None)  # a Ctrl-C; `raise` would be an error of this file

    with monkeypatch.context() as patch:
        patch.setattr(SurfaceFile, "record", dying)
        with pytest.raises(KeyboardInterrupt):
            run(line)


def test_an_edited_helper_is_refused_by_value_and_by_name_and_can_be_accepted(here, monkeypatch, capsys):
    half_done(SURFACE, monkeypatch=monkeypatch)
    before = read("s.h5")
    assert before.counts("loss")["done"] == 2
    code = decoded(before.attributes["code_loss"])
    assert {Path(path).name for path in code["sources"]} == {"mynet.py", "helper.py"}
    assert set(code["values"]) == {"loss at the origin", "loss at a grid point"}
    Path("helper.py").write_text("SCALE = 1.01\n")
    assert run(SURFACE) == 2
    error = capsys.readouterr().err
    assert "the loss at the origin was" in error and f"{here / 'helper.py'} was changed" in error
    assert "mynet.py was changed" not in error and "--accept-change" in error
    assert run("resume s.h5") == 2
    assert read("s.h5").counts("loss")["done"] == 2
    assert run(f"{SURFACE} --accept-change") == 0
    after = read("s.h5")
    assert after.outcome == "complete"
    assert "accepted other code for loss: the loss at" in after.attributes["history"]
    assert decoded(after.attributes["code_loss"])["values"] != code["values"]


def test_an_edit_that_changes_no_number_goes_on_with_one_line(here, monkeypatch, capsys, caplog):
    half_done(SURFACE, monkeypatch=monkeypatch)
    Path("helper.py").write_text("SCALE = 1.0  # as ever\n")
    capsys.readouterr()
    assert run(SURFACE) == 0
    assert "helper.py was changed; what loss measures is the same within rounding" in caplog.text
    assert "helper.py was changed" in read("s.h5").attributes["history"]


def test_a_file_that_has_no_fingerprint_goes_on_with_one_line(here, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(SurfaceFile, "_compare_code", lambda *_: None)
        half_done(SURFACE, monkeypatch=monkeypatch)
    assert "code_loss" not in read("s.h5").attributes
    assert run(SURFACE) == 0
    assert "does not say by which code its points of loss were measured" in caplog.text
    assert "code_loss" in read("s.h5").attributes


def test_a_product_that_changed_alone_is_noticed(here):
    data = (torch.randn(20, 3), torch.arange(20) % 2)

    class Backward(torch.autograd.Function):
        factor = 1.0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return Backward.factor * g

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.b(Backward.apply(torch.tanh(self.a(x))))

    problem = lossmap.Problem.supervised(Net(), "crossentropy", data)
    before = code_of({"train": problem}, product=True)
    assert changes_between(before, code_of({"train": problem}, product=True)).values == ()
    Backward.factor = 1.1
    changes = changes_between(before, code_of({"train": problem}, product=True))
    assert [name for name, _, _ in changes.values] == ["product at the origin"]


def test_the_model_is_given_back_untouched():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).train()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 3), torch.arange(20) % 2))
    plane = lossmap.random_plane(model, axes=1)
    state = torch.random.get_rng_state()
    values = code_of({"train": problem}, plane=plane, point=(1.0,), product=True)["values"]
    assert all(isinstance(value, float) for value in values.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and not model[0].weight.requires_grad and model[0].weight.grad is None
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "here_value", "is_change"),
    [
        ("loss at the origin", 2.30001, False),
        ("loss at the origin", 2.3012, True),
        ("product at the origin", 2.304, False),
        ("product at the origin", 2.32, True),
        ("loss at the origin", float("nan"), True),
        ("loss at the origin", "fails with RuntimeError", True),
    ],
)
def test_rounding_is_no_change_and_more_is(name, here_value, is_change):
    eps = 1.19e-7
    there, now = ({"values": {name: value}, "eps": eps} for value in (2.3, here_value))
    assert bool(changes_between(there, now).values) == is_change
    assert not changes_between(now, now).values


def test_another_processor_version_and_commit_are_named():
    there = {"environment": {"torch": "2.4", "processor": "A"}, "git": {"git_commit": "abc", "git_dirty": 0}}
    here = {"environment": {"torch": "2.5", "processor": "B"}, "git": {"git_commit": "abc", "git_dirty": 1}}
    assert changes_between(there, here).causes == (
        "git_dirty was 0, and is 1", "processor was A, and is B", "torch was 2.4, and is 2.5",
    )  # fmt: skip
    moved = changes_between({"sources": {"/a/net.py": "1"}}, {"sources": {"/b/net.py": "1"}})
    assert moved.causes == ()


def test_shards_of_different_code_are_not_merged(here):
    line = SURFACE.replace("s.h5", "m.h5")
    assert run(f"{line} --shard 1/2") == 0
    Path("helper.py").write_text("SCALE = 1.01\n")
    assert run(f"{line} --shard 2/2") == 0
    shards = ["m.shard-1-of-2.h5", "m.shard-2-of-2.h5"]
    with pytest.raises(Refused, match=r"were measured by different code: loss: the loss at .*helper\.py was changed"):
        merge(shards, "m.h5")
    Path("helper.py").write_text("SCALE = 1.0  # as before\n")
    assert run(f"{line} --shard 2/2 --overwrite") == 0
    merged = merge(shards, "m.h5")
    assert "helper.py was changed; loss is the same within rounding" in merged.attributes["merge_note"]
    assert len(attempts.decoded(read("m.h5").attributes["attempts"])) == 2


FACTOR = {"now": 1.0}  # stands for code that is edited: nothing of it is seen from outside


def scaled_loss(outputs, targets):
    return FACTOR["now"] * torch.nn.functional.cross_entropy(outputs, targets)


def python_survey(path, factor, **more):
    """A survey from Python whose loss is multiplied by a factor."""
    torch.manual_seed(0)
    FACTOR["now"] = factor
    model, loss = torch.nn.Linear(3, 2), scaled_loss
    data = (torch.ones(12, 3) * torch.arange(12)[:, None], torch.arange(12) % 2)
    problem = lossmap.Problem.supervised(model, loss, data)
    measure = lossmap.losses(problem, lossmap.random_plane(model, axes=1))
    return lossmap.survey(measure, lossmap.Grid.line(-1, 1, 4), path=path, **more)


def test_python_compares_too(tmp_path):
    path = tmp_path / "s.h5"
    assert python_survey(path, 1.0, points=[0, 1]).outcome == "unfinished"
    with pytest.raises(ValueError, match=r"measures something else: loss: the loss at .* with accept_change=True"):
        python_survey(path, 1.5)
    assert python_survey(path, 1.5, accept_change=True).outcome == "complete"


@pytest.mark.parametrize(
    "line",
    [
        f"spectrum --model mynet.py:net {QUICK} --hvp-backend double-backward --top 1 --bottom 0 --no-density "
        "--trace none --surf-file s.h5",
        f"eigenmap --model mynet.py:net {QUICK} --hvp-backend double-backward --x=-1:1:2 --certify none --tol 0.1 "
        "--surf-file s.h5",
    ],
)
def test_spectra_and_maps_store_a_product_and_are_compared(here, capsys, line):
    assert run(line) == 0
    measure = next(iter(read("s.h5").status))
    assert "product at the origin" in decoded(read("s.h5").attributes[f"code_{measure}"])["values"]
    Path("helper.py").write_text("SCALE = 1.2\n")
    assert run(line) == 2
    assert "the product at the origin was" in capsys.readouterr().err


def test_a_run_is_compared(here, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    for step in range(2):
        torch.save({k: t * (1 + step) for k, t in model.state_dict().items()}, f"step{step}.pt")
    data = (torch.randn(20, 4), torch.arange(20) % 2)

    def measured(factor, **more):
        FACTOR["now"] = factor
        problem = lossmap.Problem.supervised(model, scaled_loss, data)
        files = ["step0.pt", "step1.pt"]
        return lossmap.run_dynamics(files, problem, path="run.h5", top=1, backend="double-backward", **more)

    assert measured(1.0).outcome == "complete"
    with pytest.raises(ValueError, match="along: the loss at the origin was"):
        measured(2.0)
    assert measured(2.0, accept_change=True).outcome == "complete"


def test_attempts_are_counted_with_their_points_and_time(here, monkeypatch, capsys):
    half_done(SURFACE, monkeypatch=monkeypatch)
    assert run(SURFACE) == 0
    made = attempts.decoded(read("s.h5").attributes["attempts"])
    assert [attempt["points"] for attempt in made] == [2, 2]
    assert all(attempt["ranks"] == 1 and attempt["host"] and attempt["device"] for attempt in made)
    totals = attempts.totals(made)
    assert totals["attempts"] == 2 and totals["rank_seconds"] == pytest.approx(totals["node_hours"] * 3600)
    capsys.readouterr()
    assert main(["status", "s.h5"]) == 0
    out = capsys.readouterr().out
    assert "node-hours" in out and out.count("attempt of") == 2
    assert main(["status", "s.h5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["attempts"]) == 2


def test_old_attempts_are_added_up():
    made = []
    for index in range(attempts.MAX_ATTEMPTS + 5):
        made = attempts.begun(made, {"ranks": 2, "nodes": 1}, f"t{index}", "host", index, float(index))
        made[-1] |= {"points": 1, "seconds": 1.0}
    assert len(made) == attempts.MAX_ATTEMPTS
    assert attempts.totals(made)["seconds"] == attempts.MAX_ATTEMPTS + 5
    assert sum(attempt["points"] for attempt in made) == attempts.MAX_ATTEMPTS + 5


def test_a_file_that_is_edited_after_its_import_is_known_as_it_was_imported(here):
    Path("scale.py").write_text("SCALE = 1.0\n")
    scale = importlib.import_module("scale")
    file = Path("scale.py").resolve()
    before = source_digests([file])
    Path("scale.py").write_text("SCALE = 1.5  # edited\n")
    assert source_digests([file]) == before == {str(file): hashlib.sha256(b"SCALE = 1.0\n").hexdigest()}
    importlib.reload(scale)
    assert source_digests([file]) != before
    del sys.modules["scale"]


def test_installed_packages_and_lossmap_are_no_sources(here):
    problem = lossmap.Problem.supervised(
        torch.nn.Linear(3, 2), "crossentropy", (torch.randn(4, 3), torch.arange(4) % 2)
    )
    assert source_files({"train": problem}) == []
    assert code_identity.decoded("{") is None
