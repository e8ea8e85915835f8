"""The command `lossmap eigenmap`: into the file of a surface, audited, interrupted, over ranks, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lossmap
from lossmap.cli import eigenmap, surface, wrapped_command
from lossmap.cli.eigenmap import COMMAND, main
from lossmap.geometry.directions import random_plane
from lossmap.io.read import write_surface
from lossmap.landscape import audit
from lossmap.landscape import eigenvalues as extremes
from lossmap.landscape.run_survey import survey
from lossmap.parallel.world import World

NET = """
import torch
from torch import nn


def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 4))


def data(split):
    torch.manual_seed(len(split))
    return torch.randn(30, 1, 5), torch.randint(4, (30,))


def no_number(outputs, targets):
    loss = nn.functional.cross_entropy(outputs, targets)
    return loss / (outputs.abs().max() < 20)
"""
ASKED = "--model net.py:flat --dataset net.py:data --x=-1:1:6 --y=-1:1:5"
ROOT = Path(lossmap.__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(line):
    return main(line.split())


def softmax_regression(grid, split="train"):
    """The largest and the smallest at every point, (y, x)."""
    return np.moveaxis(all_of_softmax_regression(grid, split)[..., [-1, 0]], -1, 0)


def all_of_softmax_regression(grid, split="train"):
    """The closed form, 1/N sum_i (diag p - p p^T) kron x x^T: its eigenvalues at every point, ascending, (y, x, n)."""
    namespace: dict = {}
    exec(NET, namespace)
    net = namespace["flat"]()
    x, _ = namespace["data"](split)
    plane = random_plane(net, seed=0)
    values = []
    for i in range(len(grid)):
        at = plane.at(grid.point(i))
        rows = x.flatten(1).double().numpy()
        p = torch.softmax(x.flatten(1) @ at["1.weight"].T + at["1.bias"], 1).double().numpy()
        h = sum(np.kron(np.diag(q) - np.outer(q, q), np.outer(r, r)) for q, r in zip(p, rows, strict=True)) / len(x)
        values.append(np.linalg.eigvalsh(h))
    return np.array(values).reshape(*grid.shape, -1)


def test_eigenvalues_go_into_the_file_of_a_surface_and_are_those_of_softmax_regression(here, capsys):
    assert surface.main(f"{ASKED} --surf-file s.h5 --samples 20".split()) == 0
    assert run("--like s.h5 --samples 30") == 0
    found = lossmap.read("s.h5")
    assert found["train_loss"].shape == found["max_eig"].shape == (5, 6)
    top, bottom = softmax_regression(found.grid)
    assert np.abs(found["max_eig"] - top).max() <= 1e-3 * top.max()
    assert (np.abs(found["min_eig"] - bottom) <= 1e-3 * top).all()
    assert (found["max_eig_error"] <= 1e-3 * top * 1.01).all()
    assert (found["max_eig_limit"] >= top).all() and (found["min_eig_limit"] <= bottom).all()
    assert found.attributes["split"] == "train" and found.outcome == "complete"
    assert found.attributes["audit_points"] == 20 and found.attributes["audit_misses"] == 0
    assert found.attributes["audit_miss_bound"] == pytest.approx(audit.upper_bound(0, 20, 30))
    assert np.isfinite(found["audit_max_eig"]).sum() == 20
    told = found.settings["measures"]
    assert told["eigen"]["chosen"]["way"]["way"] in ("linear", "graph", "double")
    assert told["eigen"]["tol"] == 1e-3 and told["eigen"]["samples"] == {"train": 30}
    assert "audit: 0 of 20 points missed" in capsys.readouterr().out


def test_a_finished_map_stays_as_it_is_and_other_settings_are_refused(here, capsys):
    line = f"{ASKED} --hvp-backend double-backward --surf-file e.h5"
    assert run(line) == 0
    before = lossmap.read("e.h5")
    assert run(line) == 0
    after = lossmap.read("e.h5")
    for name in before.fields:
        np.testing.assert_array_equal(before[name], after[name])
    assert run(f"{line} --tol 1e-2") == 2
    error = capsys.readouterr().err
    assert "tol" in error and "0.01" in error and "Traceback" not in error
    assert run(f"{line} --certify none") == 0  # what is there was computed in the same way


def test_without_an_audit_there_is_none_and_it_can_be_made_later(here):
    line = f"{ASKED} --hvp-backend double-backward --surf-file e.h5"
    assert run(f"{line} --certify none") == 0
    assert "audit" not in lossmap.read("e.h5").status
    assert run(line) == 0
    found = lossmap.read("e.h5")
    assert found.attributes["audit_points"] == 20 and found.outcome == "complete"


def test_a_missed_point_and_its_neighbourhood_are_computed_again(here, monkeypatch, capsys):
    honest, wrong = extremes.extremes, {}

    def spoiled(matrix, *args, **told):
        pairs = honest(matrix, *args, **told)
        point = told["seed"].partition("ends ")[2]
        if not told["certify"] and point in wrong:
            pairs.values[0] *= 0.5
        return pairs

    monkeypatch.setattr(extremes, "extremes", spoiled)
    line = (
        "--model net.py:flat --dataset net.py:data --x=-1:1:9 --y=-1:1:9 --hvp-backend double-backward --surf-file e.h5"
    )
    grid = lossmap.Grid.parse("-1:1:9", "-1:1:9")
    chosen = int(audit.sample(np.arange(81), 81, 0)[7])
    outside = next(i for i in audit.neighbours(grid, [chosen]) if i not in audit.sample(np.arange(81), 81, 0))
    wrong |= {str(grid.point(chosen)): 1, str(grid.point(int(outside))): 1}
    assert run(line) == 0
    found = lossmap.read("e.h5")
    top, _ = softmax_regression(grid)
    assert np.abs(found["max_eig"] - top).max() <= 1e-3 * top.max()
    report = json.loads(found.attributes["audit"])
    assert report["points"] == sorted([chosen, int(outside)]) and report["misses"] == 1
    assert report["missed_beside"] == 1 and found.attributes["audit_misses"] == 1
    assert found.outcome == "complete"
    assert "1 of 20 points missed an end" in capsys.readouterr().out


DIES = """
import os, sys
from lossmap.cli import eigenmap
from lossmap.parallel.world import World
from lossmap.landscape.run_survey import survey

surveys = []


def dying_survey(measure, grid, **options):
    surveys.append(measure.name)
    if len(surveys) == int(sys.argv[1]):
        points = range(30) if options["points"] is None else options["points"]
        survey(measure, grid, **(options | {"points": list(points)[:7]}))
        os._exit(9)
    return survey(measure, grid, **options)


eigenmap.run(eigenmap.COMMAND.parse(sys.argv[2:]), World(), dying_survey)
"""


@pytest.mark.parametrize(("dies", "measure"), [("1", "eigen"), ("2", "audit")])
def test_a_map_killed_in_its_first_pass_or_in_its_audit_is_resumed(here, dies, measure):
    line = f"{ASKED} --hvp-backend double-backward --surf-file e.h5"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DIES, dies, *line.split()], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 9, done.stderr
    left = lossmap.read("e.h5")
    assert left.outcome == "unfinished" and left.counts(measure)["done"] == 7
    assert run(line) == 0
    found = lossmap.read("e.h5")
    top, _ = softmax_regression(found.grid)
    assert found.outcome == "complete" and found.attributes["audit_points"] == 20
    assert np.abs(found["max_eig"] - top).max() <= 1e-3 * top.max()


def test_an_interrupted_map_is_unfinished(here, capsys):
    assert run(f"{ASKED} --hvp-backend double-backward --surf-file e.h5 --stop-after 0") == 75
    assert "run the same command again to resume" in capsys.readouterr().out
    assert run(f"{ASKED} --hvp-backend double-backward --surf-file e.h5") == 0


def test_an_interrupted_point_resumes_to_the_same_bits(here):
    line = f"{ASKED} --hvp-backend double-backward --certify each"
    assert run(f"{line} --surf-file whole.h5") == 0
    settings = COMMAND.parse(f"{line} --surf-file left.h5".split())

    def walk(measure, grid, **told):
        products = iter(range(10_000))
        measure.stop = lambda: next(products) == 50
        return survey(measure, grid, **told)

    assert eigenmap.run(settings, World(), walk) == 75
    assert any(Path("left.h5.unfinished").parent.glob("left.h5*/eigen-*.npz"))
    assert run(f"{line} --surf-file left.h5") == 0
    whole, left = lossmap.read("whole.h5"), lossmap.read("left.h5")
    for name in ("max_eig", "min_eig", "max_eig_error", "max_eig_limit", "min_eig_limit", "products"):
        np.testing.assert_array_equal(whole[name], left[name])


def test_both_splits_more_eigenvalues_and_the_trace_have_fields_of_their_own(here):
    assert run(f"{ASKED} --hvp-backend double-backward --split both --which top:3,trace --surf-file e.h5") == 0
    found = lossmap.read("e.h5")
    assert found["top_eig"].shape == (5, 6, 3) and found["test_trace_error"].shape == (5, 6)
    for split, prefix in (("train", ""), ("test", "test_")):
        truth = all_of_softmax_regression(found.grid, split)[..., :-4:-1]
        assert (np.abs(found[f"{prefix}top_eig"] - truth) <= 1e-3 * truth[..., :1]).all()
        np.testing.assert_allclose(found[f"{prefix}max_eig"], truth[..., 0], rtol=1e-3)
    assert (found["trace"] > found["top_eig"].sum(-1)).all()
    assert found.attributes["audit_points"] >= 20


def test_points_whose_loss_is_not_finite_are_done(here):
    line = "--model net.py:flat --dataset net.py:data --loss net.py:no_number --x=0:40:4 --surf-file e.h5"
    assert run(f"{line} --hvp-backend double-backward") == 0
    found = lossmap.read("e.h5")
    assert found.status["eigen"].tolist() == [1, 1, 1, 1]
    assert np.isfinite(found["max_eig"][0]) and np.isnan(found["max_eig"][-1]) and found["products"][-1] == 0
    assert found.attributes["audit_points"] == np.isfinite(found["max_eig"]).sum()


def test_the_figure_states_the_audit(here):
    assert run(f"{ASKED} --hvp-backend double-backward --surf-file e.h5 --plot") == 0
    assert list(here.glob("e*.pdf")) and list(here.glob("e*.png"))


def test_a_file_of_the_original_tool_lends_its_grid(here, reference):
    theirs = reference / "original_tool" / "line_surf.h5"
    line = f"--like {theirs} --model net.py:flat --dataset net.py:data --certify none --surf-file e.h5"
    assert run(f"{line} --hvp-backend double-backward") == 0
    np.testing.assert_allclose(lossmap.read("e.h5").grid.x, lossmap.read(theirs).grid.x)


def test_what_is_submitted_like_a_surface_goes_into_its_file(here):
    assert surface.main(f"{ASKED} --surf-file s.h5 --samples 20".split()) == 0
    work = wrapped_command.wrapped_command(["eigenmap", "--like", "s.h5", "--tol", "1e-2"])
    assert work.result == Path("s.h5") and work.measure == "eigen"
    assert work.settings.plane.x == "-1:1:6" and work.settings.data.samples == 20 and work.settings.eigen.tol == 1e-2


def test_nothing_is_done_in_a_dry_run(here, capsys):
    assert run(f"{ASKED} --surf-file e.h5 --dry-run") == 0
    assert "would compute eigenvalues at 30 points" in capsys.readouterr().out and not Path("e.h5").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--precision bfloat16", "the precision of eigenvalues must be float32 or float64"),
        ("--tol 0", "--tol must be > 0"),
        ("--which most", "--which must be ends, top:k, bottom:k or abs:k"),
        ("--confidence 2", "--confidence must be a probability between 0 and 1"),
        ("--certify each --max-products 0", "--max-products must be >= 1"),
        ("--parameters nothing", "no parameter matches 'nothing'"),
        ("--which top:99", "top:99 requested of an operator of 20 rows"),
        ("--like missing.h5", "missing.h5"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(here, capsys, flags, text):
    assert run(f"{ASKED} --surf-file e.h5 {flags}") == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert not list(here.glob("*.h5*"))


def test_overwriting_does_not_delete_the_losses_of_a_surface(here, capsys):
    assert surface.main(f"{ASKED} --surf-file s.h5 --samples 20".split()) == 0
    before = Path("s.h5").read_bytes()
    assert run("--like s.h5 --x=-1:1:2 --overwrite") == 2
    assert "--overwrite would delete the losses of" in capsys.readouterr().err
    assert Path("s.h5").read_bytes() == before


def test_uneven_ticks_without_a_recipe_are_refused(here, capsys):
    write_surface("odd.h5", lossmap.Surface(lossmap.Grid(np.array([0.0, 1.0, 3.0])), {"train_loss": np.ones(3)}))
    assert run("--like odd.h5 --model net.py:flat --dataset net.py:data") == 2
    assert "its ticks are not evenly spaced, and it does not say how it was made" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_give_the_same_bits_and_teams_the_same_numbers(here):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    from lossmap.cli.demo import environment

    line = f"{ASKED} --hvp-backend double-backward --certify each --batch-size 30"
    assert run(f"{line} --surf-file one.h5") == 0
    for name, more in (("ranks", ""), ("team", "--team 2")):
        words = [*line.split(), *more.split(), "--surf-file", f"{name}.h5"]
        command = [mpirun, "-n", "2", sys.executable, "-m", "lossmap.cli", "eigenmap", *words]
        environ = {**environment(), "TMPDIR": "/tmp", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=here, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    one, ranks, team = (lossmap.read(f"{name}.h5") for name in ("one", "ranks", "team"))
    for field in ("max_eig", "min_eig", "max_eig_limit", "products"):
        np.testing.assert_array_equal(one[field], ranks[field])
    np.testing.assert_allclose(team["max_eig"], one["max_eig"], rtol=1e-4)


@pytest.mark.slow
def test_a_team_counts_the_copies_that_one_process_counts(here):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    from lossmap.cli.demo import environment

    Path("copies.py").write_text(
        "import torch, lossmap\n"
        "def problem():\n"
        "    torch.manual_seed(0)\n"
        "    x = torch.randn(300, 40) * torch.linspace(0.2, 3.0, 40)\n"
        "    net = torch.nn.Linear(40, 2)\n"
        "    return lossmap.Problem.supervised(net, 'mse', (x, torch.randn(300, 2)), batch_size=30)\n"
    )
    line = "--problem copies.py:problem --x=-0.5:0.5:3 --which top:4,abs:3 --hvp-backend double-backward"
    assert run(f"{line} --surf-file one.h5") == 0
    command = [mpirun, "-n", "2", sys.executable, "-m", "lossmap.cli", "eigenmap", *line.split(), "--team", "2"]
    environ = {**environment(), "TMPDIR": "/tmp", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--surf-file", "team.h5"],
        cwd=here,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    torch.manual_seed(0)
    x = (torch.randn(300, 40) * torch.linspace(0.2, 3.0, 40)).double()
    truth = torch.linalg.eigvalsh(x.T @ x / 300).numpy()[::-1].repeat(2)
    for found in (lossmap.read("one.h5"), lossmap.read("team.h5")):
        np.testing.assert_allclose(found["top_eig"], np.tile(truth[:4], (3, 1)), atol=1e-3 * truth[0])
        np.testing.assert_allclose(found["abs_eig"], np.tile(truth[:3], (3, 1)), atol=1e-3 * truth[0])
