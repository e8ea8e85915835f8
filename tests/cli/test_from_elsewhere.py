"""`eigenmap --like` from another folder finds the files that the result names; `plane` reads data where it must."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.cli import eigenmap, plane, surface

FILE = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def data(split):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(len(split)))
    return x, x.argmax(1) % 2


def own(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


def no_data(split):
    raise ValueError("data were read")
"""
QUICK = "--certify none --no-probe --hvp-backend double-backward"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with a model, its checkpoint and a surface made there; the current folder is its parent."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "net.py").write_text(FILE)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.save(net.state_dict(), home / "net.pt")
    x = np.random.default_rng(0).standard_normal((20, 3), np.float32)
    np.savez(home / "data.npz", x=x, y=x.argmax(1) % 2)
    monkeypatch.chdir(home)
    line = "--model net.py:net --model-file net.pt --dataset npz:data.npz --loss net.py:own --x=-1:1:3 --no-probe"
    assert surface.main([*line.split(), "--surf-file", "s.h5"]) == 0
    assert eigenmap.main(f"--like s.h5 {QUICK} --surf-file here.h5".split()) == 0
    monkeypatch.chdir(tmp_path)
    return home


def same(one, other):
    a, b = lossmap.read(one), lossmap.read(other)
    return all(np.array_equal(a[name], b[name]) for name in ("max_eig", "min_eig"))


def test_it_finds_its_files_and_writes_where_one_stands(made):
    before = Path.cwd()
    assert eigenmap.main(f"--like home/s.h5 {QUICK} --surf-file there.h5".split()) == 0
    assert Path.cwd() == before and same("there.h5", made / "here.h5")


def test_it_goes_into_the_result_itself_without_another_name(made):
    assert eigenmap.main(f"--like home/s.h5 {QUICK}".split()) == 0
    assert np.isfinite(lossmap.read("home/s.h5")["max_eig"]).all() and same("home/s.h5", made / "here.h5")


def test_files_that_one_names_oneself_are_those_of_the_current_folder(made):
    os.rename("home/data.npz", "moved.npz")
    os.rename("home/net.pt", "moved.pt")
    own = "--dataset npz:moved.npz --model-file moved.pt --surf-file there.h5"
    assert eigenmap.main(f"--like home/s.h5 {QUICK} {own}".split()) == 0
    assert same("there.h5", made / "here.h5")


def test_a_folder_that_is_gone_leaves_the_current_one(made, monkeypatch):
    os.rename("home", "moved")
    monkeypatch.chdir("moved")
    assert eigenmap.main(f"--like s.h5 {QUICK} --surf-file there.h5".split()) == 0
    assert same("there.h5", "here.h5")


def test_code_from_beside_is_run_with_a_flag_alone(made, monkeypatch, capsys):
    Path("beside").mkdir()
    monkeypatch.chdir("beside")
    line = f"--like ../home/s.h5 {QUICK} --surf-file there.h5"
    assert eigenmap.main(line.split()) == 2
    error = capsys.readouterr().err
    assert "would run code that is not known to be yours" in error and "then add --trust" in error
    assert "net.py (not below the current folder)" in error and not Path("there.h5").exists()
    assert eigenmap.main(f"{line} --trust".split()) == 0
    assert same("there.h5", made / "here.h5")


def test_a_plane_reads_data_only_where_it_must(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    own = "--model net.py:net --model-file net.pt --dataset net.py:no_data --x=-1:1:3 --y=-1:1:3"
    assert plane.main(f"{own} --dir-file random.h5".split()) == 0
    torch.save({k: t + 1 for k, t in torch.load("net.pt").items()}, "other.pt")
    assert plane.main(f"{own} --xdir to:other.pt --dir-file to.h5".split()) == 0
    assert plane.main(["--model", "net.py:net", "--model-file", "net.pt", "--dir-file", "default.h5"]) == 0  # no digits
    assert plane.main(f"{own} --xdir gradient --dir-file gradient.h5".split()) == 2
    assert "data were read" in capsys.readouterr().err
    with h5py.File("random.h5") as one, h5py.File("default.h5") as other:
        mine, theirs = (file["directions/x/0.weight"][()] for file in (one, other))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net.load_state_dict(torch.load("net.pt"))
    axis = lossmap.random_plane(net, seed=0).axes[0]["0.weight"].numpy()
    assert np.array_equal(mine, theirs) and np.array_equal(mine, axis)


def test_a_plane_takes_the_weights_and_the_split_that_are_meant(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert plane.main(["--model", "net.py:net", "--dir-file", "initial.h5"]) == 0
    assert "no --model-file: the weights are as net.py:net initializes them" in capsys.readouterr().out
    own = "--model net.py:net --model-file net.pt --dataset net.py:data --xdir gradient"
    for split in ("train", "test"):
        assert plane.main(f"{own} --split {split} --dir-file {split}.h5".split()) == 0
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net.load_state_dict(torch.load("net.pt"))
    for split in ("train", "test"):
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(len(split)))
        y = x.argmax(1) % 2
        gradient = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net[0].weight)[0]
        with h5py.File(f"{split}.h5") as file:
            axis = torch.from_numpy(file["directions/x/0.weight"][()])
        assert float(nn.functional.cosine_similarity(axis.flatten(), gradient.flatten(), 0)) == pytest.approx(1, 1e-5)
