"""`lossmap topology` as typed: text, JSON, files, pictures, refusals; files of the original tool too."""

import json
from pathlib import Path

import numpy as np
import pytest

import lossmap
from lossmap.cli.__main__ import main as command_line
from lossmap.cli.topology import main

X = np.linspace(-2, 2, 21)
ORIGINAL = Path(__file__).resolve().parents[3] / "shared" / "reference" / "original_tool"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, tilt in (("a.h5", 0.1), ("b.h5", 3.0)):
        values = np.add.outer(X**2, (X**2 - 1) ** 2 + tilt * X + 4)
        lossmap.Surface(lossmap.Grid(X, X), {"train_loss": values, "test_loss": values + 1}).save(tmp_path / name)
    return tmp_path


def test_several_files_are_counted_side_by_side_and_drawn(here, capsys):
    assert command_line(["topology", "a.h5", "b.h5", "--plot"]) == 0
    out = capsys.readouterr().out
    assert "Minima of training loss: a\n  2 minima" in out and "Minima of training loss: b\n  1 minimum" in out
    assert "median" in out and "written: b_topology.pdf" in out
    assert {p.name for p in here.glob("*_topology.*")} == {f"{f}_topology.{e}" for f in "ab" for e in ("pdf", "png")}
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_the_numbers(here, capsys):
    assert main(["a.h5", "--json", "--field", "test_loss"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["count"] == 2 and found["field"] == "test_loss" and found["every_second_tick"] == [2, 2]
    assert found["error_kind"] == "rounding" and found["precision"] == "float32"
    first, second = found["minima"]
    assert first["at"] == pytest.approx([-1.0, 0.0]) and first["persistence"] is None and first["merges_at"] is None
    assert second["persistence"] == pytest.approx(0.9) and second["into"] == 0 and second["counts"]


def test_what_was_found_is_a_file_that_draws_and_reads(here, capsys):
    assert main(["a.h5", "-o", "minima.h5", "minima.svg"]) == 0
    assert (here / "minima.svg").stat().st_size > 1000
    assert lossmap.read("minima.h5").count == 2
    assert command_line(["draw", "minima.h5", "-o", "again.png"]) == 0
    assert main(["a.h5", "-o", "minima.h5"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["a.h5", "-o", "minima.h5", "--overwrite", "--least", "1"]) == 0
    assert lossmap.read("minima.h5").count == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "topology needs a surface"),
        (["a.h5", "--neighbours", "6"], "--neighbours must be 4 or 8; got 6"),
        (["none.h5"], "none.h5"),
        (["a.h5", "--field", "max_eig"], "a.h5: no field 'max_eig' here"),
        (["a.h5", "b.h5", "-o", "x.h5"], "--output is of one surface"),
        (["a.h5", "-o", "x.txt"], "--output must end in one of h5"),
        (["a.h5", "-o", "a.h5", "--overwrite"], "a.h5 is the surface itself"),
        (["a.h5", "--least", "-1"], "--least must be >= 0"),
    ],
)
def test_invalid_options_give_one_sentence(here, capsys, words, sentence):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} == {"a.h5", "b.h5"}


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the original tool's files are not here")
def test_surfaces_of_the_original_tool_are_read(capsys):
    files = [f for f in sorted(ORIGINAL.rglob("*.h5")) if "surface" in f.name.lower()] or sorted(ORIGINAL.rglob("*.h5"))
    codes = [main([str(f)]) for f in files]
    assert 0 in codes
    assert "Minima of training loss" in capsys.readouterr().out
