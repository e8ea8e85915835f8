"""Planes looked at, compared, and written for the original tool and back."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

import lossmap
from lossmap import zoo
from lossmap.cli.__main__ import main as command_line
from lossmap.io.legacy_write import write_surface
from lossmap.io.read import read_group

NET = ["--model", "mlp", "--samples", "40", "--no-probe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A surface that is not square, and one on another plane."""
    folder = tmp_path_factory.mktemp("planes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        grid = ["--x=-1:1:3", "--y=-0.5:0.5:2"]
        assert command_line(["surface", *NET, *grid, "--surf-file", "own.h5"]) == 0
        assert command_line(["plane", *NET, "--y=-1:1:3", "--seed", "1", "--dir-file", "other.h5"]) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_a_surface_goes_to_the_original_format_and_back(here, capsys):
    assert command_line(["plane", "own.h5", "--to-original", "orig"]) == 0
    own, back = lossmap.read("own.h5"), lossmap.read("orig_surf.h5")
    assert back.grid == own.grid and back.attributes["dir_file"] == "orig_dir.h5"
    for name in ("train_loss", "train_acc"):
        assert np.array_equal(back[name], own[name])
    with h5py.File("orig_surf.h5") as file:  # of the tool's shape, though filled in the order of (y, x)
        assert file["train_loss"].shape == (3, 2)
        assert np.array_equal(file["train_loss"][()].ravel(), own["train_loss"].ravel())
    with h5py.File("orig_dir.h5") as file:
        assert list(file) == ["xdirection", "ydirection"] and file["xdirection/0"].shape == (32, 64)
    words = ["surface", *NET, "--x=-1:1:3", "--y=-0.5:0.5:2", "--xdir", "file:orig_dir.h5:x"]
    assert command_line([*words, "--ydir", "file:orig_dir.h5:y", "--surf-file", "again.h5"]) == 0
    assert np.array_equal(lossmap.read("again.h5")["train_loss"], own["train_loss"])
    capsys.readouterr()
    assert command_line(["plane", "own.h5", "--to-original", "orig"]) == 2
    assert "orig_dir.h5 is there already" in capsys.readouterr().err


def test_what_is_not_known_has_the_tools_own_numbers(tmp_path):
    surface = lossmap.Surface(
        lossmap.Grid([0.0, 1.0]), {"train_loss": np.array([2.0, np.nan]), "min_eig": np.array([np.nan, -3.0])}
    )
    write_surface(tmp_path / "s.h5", surface, "d.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["train_loss"][()].tolist() == [2.0, -1.0] and file["min_eig"][()].tolist() == [1.0, -3.0]
    assert np.array_equal(lossmap.read(tmp_path / "s.h5")["min_eig"], surface["min_eig"], equal_nan=True)


def test_two_planes_are_compared(here, capsys):
    assert command_line(["plane", "own.h5", "other.h5"]) == 0
    shown = capsys.readouterr().out
    assert "origin and directions are not the same" in shown and shown.count("|difference| / |") == 4
    assert command_line(["plane", "own.h5", "own.h5"]) == 0
    shown = capsys.readouterr().out
    assert "origin and directions are the same (SHA-256)" in shown
    assert "x of own.h5, x of own.h5: cosine 1.000000, |difference| / |x| 0" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["own.h5", "own.h5", "own.h5"], "one file or two; got 3"),
        (["own.h5", "other.h5", "--to-original", "z"], "one file, such as"),
        (["--to-original", "z"], "got 0"),
        (["none.h5"], "none.h5"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_by_name(here, words, sentence, capsys):
    assert command_line(["plane", *words]) == 2
    assert sentence in capsys.readouterr().err and not list(here.glob("z*"))


def test_axes_as_adams_step_sees_them_take_its_state_from_the_checkpoint_or_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = zoo.build("mlp", widths=(64, 5, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, "net.pt")
    torch.save(model.state_dict(), "plain.pt")
    words = ["--model", "mlp", "--model-args", '{"widths": [64, 5, 10]}', "--samples", "64", "--threads", "1"]
    words += ["--xdir", "preconditioned:max", "--ydir", "preconditioned:gradient", "--x=-1:1:3", "--y=-1:1:3"]
    assert command_line(["plane", *words, "--model-file", "net.pt", "--dir-file", "own.h5"]) == 0
    assert "preconditioned:max, preconditioned:gradient" in capsys.readouterr().out
    of_file = ["--model-file", "plain.pt", "--optimizer-state", "net.pt", "--dir-file", "other.h5"]
    assert command_line(["plane", *words, *of_file]) == 0
    with h5py.File("own.h5") as own, h5py.File("other.h5") as other:
        names: list[str] = []
        own.visit(names.append)
        arrays = [n for n in names if isinstance(own[n], h5py.Dataset)]
        assert arrays
        for name in arrays:
            np.testing.assert_array_equal(own[name][()], other[name][()])
    capsys.readouterr()
    assert command_line(["plane", *words, "--model-file", "plain.pt", "--dir-file", "c.h5"]) == 2
    assert "preconditioned:max: plain.pt holds no state of an optimizer" in capsys.readouterr().err


def test_a_plane_that_is_written_anew_is_that_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ["plane", *NET[:2], "--y=-1:1:3", "--dir-file", "p.h5", "--overwrite"]
    digests = []
    for seed in ("1", "2", "1"):
        assert command_line([*made, "--seed", seed]) == 0
        group = read_group("p.h5", "directions/x")
        assert group.attributes["kind"] == "random" and int(group.attributes["seed"]) == int(seed)
        digests.append(group.attributes["digest"])
    assert digests[0] == digests[2] != digests[1]


def test_the_plane_of_a_path_is_read_or_made_and_never_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for i in range(3):
        torch.save(zoo.build("mlp", seed=i).state_dict(), f"run/{i}.pt")
    path = ["plane", "--model", "mlp", "--model-folder", "run", "--no-losses", "--y=-1:1:3", "--proj-file"]
    pca = ["--xdir", "pca:1", "--ydir", "pca:2"]
    assert command_line([*path, "path.h5", *pca, "--dir-file", "pca.h5"]) == 2
    assert "there is no pca.h5, whose plane --proj-file would take; path.h5 holds" in capsys.readouterr().err
    assert not (tmp_path / "path.h5").exists()
    assert command_line([*path, "path.h5", *pca]) == 0
    without_ticks = [word for word in path if not word.startswith("--y")]  # of a plane that is there both axes count
    assert command_line([*without_ticks, "again.h5", "--dir-file", "path.h5"]) == 0
    first, again = (read_group(file, "directions/x").attributes["digest"] for file in ("path.h5", "again.h5"))
    assert first == again


def test_one_file_may_hold_a_plane_and_its_path_and_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = []
    for run, seed in (("runa", 0), ("runb", 5)):
        (tmp_path / run).mkdir()
        for i in range(3):
            torch.save(zoo.build("mlp", seed=seed + i).state_dict(), f"{run}/{i}.pt")
        made = f"plane --model mlp --model-folder {run} --no-losses --xdir pca:1 --ydir pca:2 --overwrite --y=-1:1:3"
        assert command_line([*made.split(), "--proj-file", "same.h5", "--dir-file", "same.h5"]) == 0
        digests.append(read_group("same.h5", "directions/x").attributes["digest"])
    assert digests[0] != digests[1]


def test_a_path_is_projected_on_a_file_of_one_direction_whatever_second_one_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for i in range(3):
        torch.save(zoo.build("mlp", seed=i).state_dict(), f"run/{i}.pt")
    assert (
        command_line(
            ["plane", "--model", "mlp", "--model-file", "run/2.pt", "--xdir", "random", "--dir-file", "one.h5"]
        )
        == 0
    )
    run = (
        "plane --model mlp --model-folder run --no-losses --xdir pca:1 --ydir pca:2 --dir-file one.h5 --proj-file p.h5"
    )
    assert command_line(run.split()) == 0
    assert [name for name in lossmap.read("p.h5").groups if name.startswith("directions/")] == ["directions/x"]
    capsys.readouterr()
    assert command_line([*run.split(), "--y=-1:1:5", "--overwrite"]) == 2
    assert "one.h5 holds one direction, along x, and none along y: leave --y out" in capsys.readouterr().err


def test_a_path_is_drawn_on_its_plane_though_that_was_made_in_another_precision(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for i in range(4):
        torch.save(zoo.build("mlp", seed=i).state_dict(), f"run/{i}.pt")
    pca = "--model mlp --model-folder run --xdir pca:1 --ydir pca:2 --y=-1:1:2"
    assert command_line([*f"plane {pca} --no-losses --proj-file path.h5".split()]) == 0
    around = lossmap.read("path.h5").grid
    auto = "plane --model mlp --model-folder run --xdir pca:1 --ydir pca:2 --x auto --y auto --no-losses"
    assert command_line([*auto.split(), "--proj-file", "auto.h5"]) == 0
    assert lossmap.read("auto.h5").grid == around
    counted = auto.replace("--x auto --y auto", "--x auto:9 --y auto:7")
    assert command_line([*counted.split(), "--proj-file", "counted.h5"]) == 0
    grid = lossmap.read("counted.h5").grid
    assert grid.shape == (7, 9) and (grid.x[0], grid.y[-1]) == (around.x[0], around.y[-1])
    capsys.readouterr()
    assert command_line([*auto.replace("--x auto", "--x=-1:1:5").split(), "--proj-file", "given.h5"]) == 0
    assert "not used: --x; the ticks of a path lie around it" in capsys.readouterr().out
    assert command_line([*auto.replace("--x auto", "--x auto:1").split(), "--proj-file", "one.h5"]) == 2
    assert "--x=auto:1: a window around a path has 2 ticks or more" in capsys.readouterr().err
    surface = f"surface {pca} --x=-1:1:2 --samples 20 --proj-file path.h5 --surf-file s.h5 --precision float64"
    assert command_line(surface.split()) == 0
    assert "trajectory" in lossmap.read("s.h5").groups
    assert "does not name the plane" not in caplog.text
    for path in ([], ["--proj-file", "path.h5"]):
        assert command_line(["draw", "s.h5", *path]) == 0
        assert "the path is not drawn" not in capsys.readouterr().out
    other = f"surface {pca} --model-file run/1.pt --dir-file path.h5 --x=-1:1:2 --samples 20 --proj-file path.h5"
    other = other.replace(" --xdir pca:1 --ydir pca:2", "")
    assert command_line([*other.split(), "--surf-file", "o.h5"]) == 2  # the same axes from another checkpoint
    assert "another --dir-type or another origin" in capsys.readouterr().err
    random = "surface --model mlp --model-file run/3.pt --samples 20 --x=-1:1:2 --y=-1:1:2 --proj-file path.h5"
    assert command_line([*random.split(), "--surf-file", "t.h5"]) == 2
