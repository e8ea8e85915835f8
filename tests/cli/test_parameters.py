"""`--parameters`: what moves, and what the Hessian is of, by every command alike, on a fine-tuned low-rank adapter."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import lossmap
from lossmap.cli.__main__ import main
from lossmap.cli.resume import settings_of

# torch warns of its own compiler, with which products are traced
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

ADAPTED = """
import torch
from torch import nn


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 3).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return self.base(x) + 0.5 * x @ self.a.T @ self.b.T


def model(seed=0):
    torch.manual_seed(seed)
    return Adapted()


def data(split):
    g = torch.Generator().manual_seed(5)
    return torch.randn(40, 6, generator=g), torch.randint(3, (40,), generator=g)
"""
COMMON = "--model own.py:model --dataset own.py:data"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(ADAPTED)
    return tmp_path


def own():
    space = {}
    exec(ADAPTED, space)
    return space["model"]().double(), space["data"]("train")


def truth(names):
    """Eigenvalues (n,) of the Hessian by these parameters alone, in float64, by torch.func."""
    model, (x, y) = own()
    state = {k: p.detach() for k, p in model.named_parameters()}

    def loss(chosen):
        return F.cross_entropy(functional_call(model, {**state, **chosen}, (x.double(),)), y)

    blocks = torch.func.hessian(loss)({k: state[k] for k in names})
    rows = [torch.cat([blocks[i][j].reshape(state[i].numel(), -1) for j in names], 1) for i in names]
    return torch.linalg.eigvalsh(torch.cat(rows))


def largest_of(path):
    return float(lossmap.read(path, lossmap.Spectrum).largest[0])


def run(command, words="", expected=0):
    ticks = [] if command == "spectrum" else ["--x=-1:1:3"]
    assert main([command, *COMMON.split(), *ticks, *words.split()]) == expected


@pytest.mark.parametrize(("which", "names"), [("trainable", ["a", "b"]), ("weights", ["base.weight", "a", "b"])])
def test_a_map_is_of_the_named_parameters_and_moves_them_alone(folder, which, names):
    run("eigenmap", f"--parameters {which} --surf-file map.h5")
    surface = lossmap.read("map.h5", lossmap.Surface)
    exact = truth(names)
    for field, value in (("max_eig", exact[-1]), ("min_eig", exact[0])):
        assert abs(surface[field][1] - float(value)) <= surface[f"{field}_error"][1] + 1e-9
    with h5py.File("map.h5") as file:
        moved = {name for name, d in file["directions/x"].items() if d[()].any()}
    assert moved == set(names)


def test_the_other_commands_take_the_same_names(folder):
    run("surface", "--parameters trainable --surf-file s.h5")
    run("plane", "--parameters trainable --dir-file p.h5")
    run("spectrum", "--parameters trainable --surf-file e.h5")
    for file in ("s.h5", "p.h5"):
        with h5py.File(file) as opened:
            assert {name for name, d in opened["directions/x"].items() if d[()].any()} == {"a", "b"}
    assert largest_of("e.h5") == pytest.approx(float(truth(["a", "b"])[-1]), rel=1e-3)


def test_blocks_are_of_the_parameters_that_the_spectrum_is_of(folder):
    flags = "--top 1 --bottom 1 --trace none --no-density --precision float64 --layers tensor --surf-file blocks.h5"
    assert main(f"spectrum {COMMON} {flags} --parameters trainable".split()) == 0
    with h5py.File("blocks.h5") as file:
        blocks = {name: group["eigenvalues"][:] for name, group in file["tasks/train/block"].items()}
        ends = file["tasks/train/block_ends/eigenvalues"][:]
    assert set(blocks) == {"a", "b"}
    for name, values in blocks.items():
        assert values == pytest.approx(truth([name]).numpy(), abs=1e-9)
    assert [ends.min(), ends.max()] == pytest.approx(truth(["a", "b"])[[0, -1]].tolist(), rel=1e-3)


def test_frozen_parameters_are_moved_and_counted_by_default_and_that_is_said(folder, caplog):
    run("surface", "--surf-file s.h5")
    run("eigenmap", "--surf-file e.h5")
    said = [record.message for record in caplog.records]
    assert any("21 of the 39 parameters that move with the plane are frozen" in text for text in said)
    assert any("18 of the 36 parameters that are counted in the Hessian are frozen" in text for text in said)


def test_the_plane_may_move_others_than_the_hessian_is_of(folder):
    run("eigenmap", "--parameters trainable --plane-parameters base --xignore none --surf-file map.h5")
    with h5py.File("map.h5") as file:
        assert {name for name, d in file["directions/x"].items() if d[()].any()} == {"base.weight", "base.bias"}
    exact = truth(["a", "b"])
    assert lossmap.read("map.h5", lossmap.Surface)["max_eig"][1] == pytest.approx(float(exact[-1]), rel=1e-3)


def test_eigenvalues_beside_losses_take_the_plane_of_the_losses(folder):
    run("surface", "--parameters trainable --surf-file s.h5")
    assert main(["eigenmap", "--like", "s.h5"]) == 0
    every = truth(["base.weight", "a", "b"])  # the default of a Hessian
    assert lossmap.read("s.h5", lossmap.Surface)["max_eig"][1] == pytest.approx(float(every[-1]), rel=1e-3)
    assert main(["resume", "s.h5"]) == 0


@pytest.mark.parametrize("flags", ["", "--parameters trainable", "--plane-parameters base --xignore none"])
@pytest.mark.parametrize("command", ["surface", "eigenmap"])
def test_a_result_that_was_killed_before_its_directions_were_written_goes_on_with_the_same_plane(
    folder, command, flags
):
    if command == "surface" and "plane" in flags:
        flags = flags.replace("--plane-parameters", "--parameters")
    run(command, f"{flags} --surf-file map.h5")
    whole = lossmap.read("map.h5", lossmap.Surface)
    begun = replace(whole, groups={})
    values, _ = settings_of(begun, command, Path("map.h5"))
    assert values == settings_of(whole, command, Path("map.h5"))[0]
    assert values["plane_parameters"] == (flags.split()[1] if flags else "all")


def test_a_result_from_before_planes_had_parameters_is_resumed_with_its_own_plane(folder, capsys):
    torch.save({k: 2 * t for k, t in own()[0].float().state_dict().items()}, "other.pt")
    run(
        "eigenmap",
        "--parameters weights --plane-parameters all --xdir to:other.pt --surf-file map.h5 --stop-after 0",
        75,
    )
    with h5py.File("map.h5", "r+") as file:
        stored = json.loads(file.attrs["resolved_eigenmap"])
        del stored["settings"]["plane_parameters"]
        file.attrs["resolved_eigenmap"] = json.dumps(stored)
    capsys.readouterr()
    assert main(["resume", "map.h5"]) == 0


def test_a_grid_that_can_only_be_a_mistake_is_refused_before_anything_is_made(folder, capsys):
    run("surface", "--x=-1:1:4000 --y=-1:1:4000 --surf-file s.h5", 2)
    assert "the grid has 16,000,000 points (4000 x 4000), and each field" in capsys.readouterr().err
    run("surface", f"--x=-1:1:{2**36} --surf-file s.h5", 2)
    assert "add --yes where this is meant" in capsys.readouterr().err
    assert not (folder / "s.h5").exists()
    assert main(["surface", *COMMON.split(), "--x=-1:1:4000", "--y=-1:1:4000", "--yes", "--dry-run"]) == 0


def test_a_direction_to_the_same_weights_is_refused(folder, capsys):
    torch.save(own()[0].float().state_dict(), "same.pt")
    run("surface", "--model-file same.pt --model-file2 same.pt --surf-file s.h5", 2)
    assert "same.pt has the weights of the model at the origin" in capsys.readouterr().err


@pytest.mark.parametrize("kinds", [["random", "random"], ["hessian:max", "gradient"]])
def test_a_dry_run_of_a_plane_writes_nothing_and_makes_no_direction_of_curvature(tmp_path, monkeypatch, capsys, kinds):
    monkeypatch.chdir(tmp_path)

    def computed(*_, **__):
        raise AssertionError("a direction of curvature was made")

    monkeypatch.setattr("lossmap.landscape.curvature_directions.curved_direction", computed)
    flags = ["--model", "mlp", "--samples", "16", "--xdir", kinds[0], "--ydir", kinds[1], "--dir-file", "p.h5"]
    assert main(["plane", *flags, "--dry-run"]) == 0
    assert "nothing was computed, and nothing was written (--dry-run)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_directions_of_all_parameters_by_name_are_resumed_and_taken_by_like(folder, capsys):
    run("surface", "--parameters all --x=-1:1:5 --surf-file s.h5 --stop-after 0", 75)
    assert main(["resume", "s.h5"]) == 0
    assert main(["eigenmap", "--like", "s.h5", "--which", "top:1"]) == 0
    assert main(["resume", "s.h5"]) == 0
    capsys.readouterr()
    run("eigenmap", "--parameters all --x=-1:1:3 --surf-file e.h5 --stop-after 0", 75)
    assert main(["resume", "e.h5", "--stop-after", "0"]) == 75
    assert main(["resume", "e.h5"]) == 0  # settings that a resumed run has stored
    assert lossmap.read("e.h5", lossmap.Surface)["max_eig"].size == 3
