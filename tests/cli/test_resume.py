"""`lossmap resume` of other people's files: whose code is run, which folder it starts in, what a complete one runs."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lossmap.cli import resume, trust
from lossmap.cli.submit import main as submit
from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import SurfaceFile

FIELDS = (Field("train_loss", "nats", "mean loss"),)
GRID = Grid(np.linspace(-1, 1, 3))
CODE = "def net():\n    raise RuntimeError('this code must not run here')\n"


def begun(path, folder, points=1, **settings):
    """A result that `lossmap surface` began in a folder, with so many of its points."""
    resolved = {"settings": {"model": "mynet.py:net", "unsafe_load": True, "x": "-1:1:3", **settings}}
    attributes = {"command": "surface", "resolved_surface": {**resolved, "folder": str(folder)}}
    with SurfaceFile.open(path, GRID, measures={"loss": (FIELDS, {})}, attributes=attributes) as store:
        for index in range(points):
            store.record("loss", index, {"train_loss": 1.0}, 0.1)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with code, which is the current one."""
    home = tmp_path / "mine"
    home.mkdir()
    (home / "mynet.py").write_text(CODE)
    monkeypatch.chdir(home)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    # without the folders of other tests, which a program of its own does not have
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if not (Path(entry) / "mynet.py").exists()])
    return home


@pytest.fixture
def runs(monkeypatch):
    """What the command that the result names was called with, in place of running it."""
    calls = []

    def main(words, defaults):
        calls.append((words, defaults, os.getcwd()))
        return 0

    monkeypatch.setattr(resume, "module_of", lambda command: SimpleNamespace(main=main))
    return calls


def test_ones_own_result_is_resumed_unasked_without_its_unsafe_load(here, runs):
    path = begun(here / "s.h5", here)
    assert resume.main([str(path), "--batch-size", "8"]) == 0
    ((words, defaults, folder),) = runs
    assert words == ["--batch-size", "8"] and folder == str(here)
    assert defaults["model"] == "mynet.py:net" and "unsafe_load" not in defaults


@pytest.mark.parametrize(
    "named",
    [
        {"model": "mynet.py:net"},
        {"model": "mlp", "loss": "mynet.py:net"},
        {"model": "mlp", "dataset": "mynet.py:net"},
        {"model": "mlp", "metric": ["mynet.py:net"]},
        {"model": "mlp", "problem": "mynet.py:net"},
        {"model": "mynet:net"},  # a module that is found in the folder
    ],
)
def test_code_of_another_folder_is_named_and_needs_trust(here, runs, capsys, tmp_path, monkeypatch, named):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = begun(elsewhere / "s.h5", here, **named)
    assert resume.main([str(path)]) == 2 and not runs
    error = capsys.readouterr().err
    assert f"{here / 'mynet.py'} (not below the current folder)" in error
    assert f"lossmap resume {path} --trust" in error
    assert resume.main([str(path), "--trust"]) == 0 and len(runs) == 1


def test_models_of_the_zoo_and_installed_packages_need_no_trust(here, tmp_path, monkeypatch):
    names = {"model": "mlp", "dataset": "npz:data.npz", "loss": "crossentropy", "metric": ["json:dumps"]}
    assert trust.code_files(names, here) == []
    assert trust.code_files({"model": "numpy.linalg:norm"}, here) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_code_that_belongs_to_somebody_else_needs_trust(here, runs, capsys):
    path = begun(here / "s.h5", here)
    os.chown(here / "mynet.py", 54321, -1)
    assert resume.main([str(path)]) == 2 and not runs
    assert "mynet.py (belongs to user 54321)" in capsys.readouterr().err


def test_code_that_everybody_may_write_needs_trust(here, runs, capsys):
    path = begun(here / "s.h5", here)
    (here / "mynet.py").chmod(0o666)
    assert resume.main([str(path)]) == 2 and not runs
    assert "may be written by everybody" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("no", 2)])
def test_a_terminal_is_asked(here, runs, monkeypatch, answer, code):
    path = begun(here / "s.h5", here)
    (here / "mynet.py").chmod(0o666)
    questions = []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    assert resume.main([str(path)]) == code and len(runs) == (code == 0)
    assert "mynet.py" in questions[0] and questions[0].endswith("Run it? [y/N] ")


def test_a_complete_result_runs_nothing(here, runs, capsys):
    path = begun(here / "s.h5", "/nowhere", points=3)
    assert resume.main([str(path)]) == 0 and not runs
    assert "nothing is left to do" in capsys.readouterr().out


def test_a_moved_result_is_resumed_in_the_folder_that_is_named(here, runs, capsys):
    path = begun(here / "s.h5", "/nowhere/at all")
    assert resume.main([str(path)]) == 2 and not runs
    error = capsys.readouterr().err
    line = f"lossmap resume {path} --folder {here}"
    assert "/nowhere/at all, which does not exist here" in error and line in error
    assert resume.main(line.split()[2:]) == 0
    assert runs[0][2] == str(here)
    assert resume.main([str(path), "--folder=/nowhere"]) == 2
    assert "--folder /nowhere is not a folder" in capsys.readouterr().err


def test_modules_are_not_looked_for_in_a_folder_that_is_only_entered(here, runs, monkeypatch):
    monkeypatch.setattr("sys.path", ["", "/lib"])
    import sys

    assert resume.main([str(begun(here / "s.h5", here))]) == 0
    assert sys.path == [str(here), "/lib"]


def test_submit_asks_now_and_writes_trust_into_the_script(here, tmp_path, monkeypatch, capsys):
    path = begun(here / "s.h5", here)
    assert submit(["--dry-run", "--", "resume", str(path), "--batch-size", "8"]) == 0
    script = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    assert f"resume {path} --batch-size 8 --trust" in script
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert submit(["--dry-run", "--", "resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert "mynet.py (not below the current folder)" in error and f"-- resume {path} --trust" in error
    assert submit(["--dry-run", "--", "resume", str(path), "--trust"]) == 0
    assert "--trust" in capsys.readouterr().out
