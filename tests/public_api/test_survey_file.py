"""Surveys from Python into files: killed, resumed, continued by the command line and the other way round; progress."""

import copy
import io
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.cli.eigenmap import main as eigenmap
from lossmap.cli.resume import main as resume
from lossmap.cli.surface import main as surface
from lossmap.io.journal import is_locked
from lossmap.io.read import journal_of
from lossmap.landscape.progress import progress_display
from lossmap.landscape.survey_recorder import Progress
from lossmap.parallel.world import World

NET = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))\n"
LINE = ["--model", "mynet.py:net", "--model-file", "a.pt", "--dataset", "npz:d.npz", "--x=-1:1:4", "--y=-1:1:3"]
GRID = lossmap.Grid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 3))
X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
Y = np.arange(40) % 3
PLAN = {"batch_size": 40}


@pytest.fixture
def problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(NET)
    namespace: dict = {}
    exec(NET, namespace)
    torch.manual_seed(0)
    model = namespace["net"]()
    torch.save(model.state_dict(), "a.pt")
    np.savez("d.npz", x=X, y=Y)
    return lossmap.Problem.supervised(model, "crossentropy", (X, Y))


def measure(problem, seed=0):
    return lossmap.losses(problem, lossmap.random_plane(problem.model, seed=seed), plan=PLAN)


def test_a_survey_goes_on_from_its_file_and_computes_no_point_again(problem):
    part = lossmap.survey(measure(problem), GRID, path="s.h5", points=range(5))
    assert part.counts("loss") == {"done": 5, "failed": 0, "left": 7}
    points = []
    whole = measure(problem)
    call = type(whole).__call__

    class Counted(type(whole)):
        def __call__(self, point):
            points.append(point)
            return call(self, point)

    whole.__class__ = Counted
    ended = lossmap.survey(whole, GRID, path="s.h5")
    assert len(points) == 7 and ended.outcome == "complete" and not journal_of("s.h5").exists()
    assert ended.equals(lossmap.read("s.h5"))
    alone = lossmap.survey(measure(problem), GRID)
    np.testing.assert_array_equal(ended["train_loss"], alone["train_loss"])


KILLED = """
import os, signal, sys, numpy as np, torch, lossmap
sys.path.insert(0, ".")
from mynet import net
model = net()
model.load_state_dict(torch.load("a.pt"))
data = np.load("d.npz")
problem = lossmap.Problem.supervised(model, "crossentropy", (data["x"], data["y"]))
measure = lossmap.losses(problem, lossmap.random_plane(model, seed=0), plan={"batch_size": 40})
grid = lossmap.Grid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 3))
calls = []
def stop():
    calls.append(1)
    if len(calls) > 9:
        os.kill(os.getpid(), signal.SIGKILL)
lossmap.survey(measure, grid, path="s.h5", stop=stop)
"""


def test_a_process_killed_in_a_survey_loses_no_point_that_it_had(problem):
    root = Path(lossmap.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(root)}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert lossmap.read("s.h5").counts("loss")["done"] >= 8 and not is_locked(journal_of("s.h5"))
    assert lossmap.survey(measure(problem), GRID, path="s.h5").outcome == "complete"


def test_the_command_line_continues_a_survey_from_python_and_resume_then_knows_it(problem, capsys):
    lossmap.survey(measure(problem), GRID, path="s.h5", points=range(5))
    assert resume(["s.h5"]) == 2
    assert "was begun by lossmap.survey in a program" in capsys.readouterr().err
    assert surface([*LINE, "--surf-file", "s.h5"]) == 0
    assert lossmap.read("s.h5").outcome == "complete"
    curved = lossmap.EigenvalueMap(problem, lossmap.random_plane(problem.model), backend="double-backward")
    curved = lossmap.survey(curved, GRID, path="s.h5", points=range(3))
    assert curved.counts("eigen")["done"] == 3
    assert eigenmap([*LINE, "--surf-file", "s.h5"]) == 0
    ended = lossmap.read("s.h5")
    assert ended.outcome == "complete" and ended.attributes["audit_points"] == 12
    assert resume(["s.h5"]) == 0


def test_python_continues_a_survey_of_the_command_line_and_refuses_another(problem):
    assert surface([*LINE, "--surf-file", "s.h5", "--stop-after", "0.001"]) == 75
    ended = lossmap.survey(measure(problem), GRID, path="s.h5")
    assert ended.outcome == "complete" and "resolved_surface" in ended.attributes
    with pytest.raises(ValueError, match="holds another survey: plane"):
        lossmap.survey(measure(problem, seed=1), GRID, path="s.h5")
    other = lossmap.Problem.supervised(problem.model, "crossentropy", (X + 1, Y))
    with pytest.raises(ValueError, match="holds another survey: loss: data"):
        lossmap.survey(measure(other), GRID, path="s.h5")
    with pytest.raises(ValueError, match="holds another survey: x is -1:1:4 in the file"):
        lossmap.survey(measure(problem), lossmap.Grid.square(-1, 1, 2), path="s.h5")
    again = lossmap.survey(measure(problem, seed=1), GRID, path="s.h5", overwrite=True)
    assert again.outcome == "complete"


@pytest.mark.parametrize("begun", ["python", "command line"])
def test_neither_way_continues_a_survey_of_another_architecture(problem, capsys, begun):
    Path("othernet.py").write_text(NET.replace("Tanh", "ReLU"))
    other = [word.replace("mynet.py", "othernet.py") for word in LINE]
    if begun == "python":
        lossmap.survey(measure(problem), GRID, path="s.h5", points=range(2))
        assert surface([*other, "--surf-file", "s.h5"]) == 2
        assert "model (SHA-256) is" in capsys.readouterr().err
        return
    assert surface([*other, "--surf-file", "s.h5", "--stop-after", "0.001"]) == 75
    with pytest.raises(ValueError, match=r"model \(SHA-256\) is"):
        lossmap.survey(measure(problem), GRID, path="s.h5")


class Drawing(nn.Linear):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_a_file_of_a_random_loss_is_not_continued_with_another_loss(tmp_path):
    torch.manual_seed(0)
    model = Drawing(4, 3)
    line, grid = lossmap.random_plane(model, axes=1), lossmap.Grid.line(-1, 1, 2)

    def run(loss, repeats):
        problem = lossmap.Problem.supervised(model, loss, (X, Y))
        losses = lossmap.losses(problem, line, plan=PLAN, noise_repeats=repeats)
        return lossmap.survey(losses, grid, path=tmp_path / f"{repeats}.h5")

    for repeats in (None, 2):
        run("crossentropy", repeats)
        with pytest.raises(ValueError, match="loss is"):
            run(nn.CrossEntropyLoss(label_smoothing=0.4), repeats)


def test_what_a_probe_chose_is_taken_up_again(problem):
    plane = lossmap.random_plane(problem.model)
    lossmap.survey(lossmap.losses(problem, plane, plan={"batch_size": 7}), GRID, path="s.h5", points=range(2))
    other = lossmap.losses(problem, plane, plan={"batch_size": 40})
    ended = lossmap.survey(other, GRID, path="s.h5")
    assert ended.settings["measures"]["loss"]["chosen"]["way"]["batch_size"] == 7
    cut = lossmap.survey(lossmap.losses(problem, plane, plan={"batch_size": 7}), GRID)
    np.testing.assert_array_equal(ended["train_loss"], cut["train_loss"])
    assert other.plan.batch_size == 40  # the caller's own measure stays as it is


def test_a_map_of_eigenvalues_from_python_is_audited(problem):
    plane = lossmap.random_plane(problem.model, axes=1)
    curved = lossmap.EigenvalueMap(problem, plane, backend="double-backward")
    line = lossmap.survey(curved, lossmap.Grid.line(-1, 1, 3))
    assert line.attributes["audit_points"] == 3 and "audit_max_eig" in line
    bare = lossmap.survey(curved, lossmap.Grid.line(-1, 1, 3), audit=False)
    assert "audit" not in bare.status


def test_a_path_and_a_store_are_one_too_many(problem):
    from lossmap.io.memory_store import MemoryStore

    with pytest.raises(ValueError, match="give a path or a store, not both"):
        lossmap.survey(measure(problem), GRID, path="s.h5", store=MemoryStore(GRID))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("progress", "file", "shown"),
    [
        (None, io.StringIO, False),
        (None, Terminal, True),
        (True, io.StringIO, True),
        (False, Terminal, False),
    ],
)
def test_a_bar_is_shown_in_a_terminal_or_where_it_is_asked_for(progress, file, shown):
    out = file()
    with progress_display(World.start(mpi=False), "losses", progress, out) as show:
        assert (show is not None) == shown
        if show is not None:
            show(Progress("loss", 30, 0, 30, 2.0, 8.0, 1, ""))
    assert ("30 of 30 points" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())) == shown


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs * self.scale, targets)


def enclosing(scale):
    return lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) * scale


class Scale:
    def __init__(self, scale):
        self.scale, self.names, self.itself = scale, np.array(["a"]), []
        self.itself.append(self.itself)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * self.scale


class Smoothed(nn.CrossEntropyLoss):
    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, input, target):
        return (1 - self.share) * super().forward(input, target)


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.2)),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0]))),
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss()),
        (Scaled(1.0), Scaled(2.0)),
        (enclosing(1.0), enclosing(2.0)),
        (partial(nn.functional.cross_entropy, label_smoothing=0.1), partial(nn.functional.cross_entropy)),
        (Scale(1.0).loss, Scale(2.0).loss),
        (Smoothed(0.0), Smoothed(0.5)),
        (partial(lambda f, o, t: f(o, t), enclosing(1.0)), partial(lambda f, o, t: f(o, t), enclosing(2.0))),
    ],
    ids=["smoothing", "weights", "default", "own class", "closure", "partial", "method", "subclass", "nested"],
)
def test_a_file_is_not_continued_with_the_same_loss_set_otherwise(tmp_path, loss, other):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    line, grid = lossmap.random_plane(model, axes=1), lossmap.Grid.line(-1, 1, 2)

    def run(loss):
        problem = lossmap.Problem.supervised(model, loss, (X, Y))
        return lossmap.survey(lossmap.losses(problem, line, plan=PLAN), grid, path=tmp_path / "s.h5")

    assert np.array_equal(run(loss)["train_loss"], run(loss)["train_loss"])
    with pytest.raises(ValueError, match=r"holds another survey: loss: loss is .* start anew with overwrite=True"):
        run(other)


def test_a_file_is_not_continued_with_a_model_of_another_structure(tmp_path):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    same = nn.Sequential(*copy.deepcopy(list(first)))
    other = nn.Sequential(first[0], nn.ReLU(), first[2])
    grid = lossmap.Grid.line(-1, 1, 2)

    def run(model):
        problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
        line = lossmap.random_plane(model, axes=1)
        return lossmap.survey(lossmap.losses(problem, line, plan=PLAN), grid, path=tmp_path / "s.h5")

    assert np.array_equal(run(first)["train_loss"], run(same)["train_loss"])
    with pytest.raises(ValueError, match=r"model \(SHA-256\) is .* start anew with overwrite=True"):
        run(other)
