"""Fewer points: which are measured, what lies between them, and how far that is said to be off."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, Delaunay
from torch import nn

import lossmap
from lossmap import Grid, Problem, losses, random_plane, read, survey
from lossmap.cli.status import main as status
from lossmap.cli.surface import main as surface_command
from lossmap.geometry.grid import Field
from lossmap.io.refined import is_refined, refinement_note
from lossmap.landscape.left_out import largest_miss, turns_of
from lossmap.landscape.refinement import interpolated, next_round
from lossmap.plotting.between_points import MEASURED, with_points_between

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
}
AXIS = np.linspace(-1, 1, 61)
GRID = Grid(AXIS, AXIS)
X, Y = np.meshgrid(AXIS, AXIS)
SURFACES = {
    "bowl": 1e-3 + X**2 + 3 * Y**2 + 0.5 * X**3 * Y,
    "rugged": 2 + X**2 + Y**2 + 0.4 * np.sin(7 * X) * np.cos(5 * Y),
    "cliff": 1 + 1 / (1 + np.exp(-15 * (X + Y**2 - 0.2))) + 0.2 * X,
    "kinks": 3 + np.abs(X + 0.3 * Y - 0.2) + np.abs(Y - 0.5 * X + 0.1) + X * Y,
    "exponential": 0.3 + np.exp(2 * X + Y),
    "pole": 0.1 + 1 / (1.02 - 0.6 * X - 0.4 * Y),
    "parabola": 1 + (0.9 * X + 0.2 * Y) ** 2 + (0.3 * Y - 0.1) ** 2 + 0.3 * (X * Y) ** 2,
}


def refined(values, tol, grid=GRID, failed=()):
    """(rounds, the last step), by the law alone."""
    rounds = np.full(grid.shape, -1)
    known = np.ones(grid.shape, bool)
    known.reshape(-1)[list(failed)] = False
    while True:
        step = next_round(grid, [values], rounds, (rounds >= 0) & known, tol)
        if not step.points.size:
            return rounds, step
        assert (rounds.reshape(-1)[step.points] == -1).all()
        rounds.reshape(-1)[step.points] = rounds.max() + 1


@pytest.mark.parametrize("jump", [X > 0.13, X + 0.37 * Y > 0.13, X**2 + Y**2 > 0.5])
@pytest.mark.parametrize("tol", [0.1, 0.05])
def test_beside_a_jump_points_are_measured_until_the_estimate_is_as_asked_for(jump, tol):
    values = jump + 0.1 * X
    rounds, step = refined(values, tol)
    assert step.error <= tol
    off = float(np.abs(interpolated(GRID, values, rounds >= 0).values - values).max() / np.ptp(values))
    assert off <= 2 * tol and np.mean(rounds >= 0) < 0.7


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("tol", [0.05, 0.02])
def test_the_picture_is_as_good_as_it_is_said_to_be_from_a_part_of_the_points(name, tol):
    values = SURFACES[name]
    rounds, step = refined(values, tol)
    drawn = interpolated(GRID, values, rounds >= 0)
    shown, truth = (np.log10(v) if drawn.log else v for v in (drawn.values, values))
    off = float(np.abs(shown - truth).max() / np.ptp(truth))
    assert np.mean(rounds >= 0) < 0.3
    assert step.error <= tol and off <= 2 * tol
    assert off / 2 <= step.error <= 2.1 * off
    np.testing.assert_array_equal(drawn.values[rounds >= 0], values[rounds >= 0])


@pytest.mark.parametrize("height", [0.3, 0.6])
def test_five_percent_of_a_smooth_surface_need_at_most_two_percent_of_its_points(height):
    grid = Grid.square(-1, 1, 101)
    x, y = np.meshgrid(grid.x, grid.x)
    values = x**2 + y**2 + height * np.sin(5 * (x + 0.2 * y) + 0.4)
    rounds, step = refined(values, 0.05, grid)
    off = np.abs(interpolated(grid, values, rounds >= 0).values - values).max() / np.ptp(values)
    assert np.mean(rounds >= 0) <= 0.02
    assert off <= 0.05 and off / 2 <= step.error <= 2 * off


def test_a_spike_between_points_that_are_left_out_is_missed_by_all_of_its_height():
    places = np.stack([a.reshape(-1) for a in np.meshgrid(np.arange(5.0), np.arange(5.0))], axis=1)
    spike = np.where((places == 2).all(axis=1), 7.0, 3.0)
    assert largest_miss(places, spike) == pytest.approx(1.0, rel=1e-12)
    assert largest_miss(places, 1 + places @ [2.0, -3.0]) < 1e-5  # gradients are iterated to 1e-6
    line = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8])[:, None]
    cubic = line[:, 0] ** 3 - 4 * line[:, 0]
    assert largest_miss(line[::-1], cubic[::-1]) < 1e-12 and largest_miss(line[:8], cubic[:8]) is None
    zigzag = np.where(line[:, 0] == 3, 1.0, 0.0)
    assert largest_miss(line, zigzag) == pytest.approx(1.0, rel=1e-12)


def test_points_of_one_turn_are_no_neighbours_and_corners_stay():
    places = np.random.default_rng(0).uniform(size=(60, 2))
    turns = turns_of(places)
    corners = ConvexHull(places).vertices
    assert (turns[corners] == 0).all() and (np.delete(turns, corners) > 0).all()
    for triangle in Delaunay(places).simplices:
        of_triangle = turns[triangle][turns[triangle] > 0]
        assert len(set(of_triangle)) == len(of_triangle)


def test_a_plane_and_a_cone_need_no_more_than_one_round_of_points():
    assert refined(3 + X - 2 * Y, 0.01)[0].max() <= 2
    assert np.mean(refined(1 + 0.1 * np.hypot(X, Y), 0.05)[0] >= 0) < 0.08


def test_points_without_a_value_leave_holes_that_nothing_is_invented_in():
    values = np.where(X + Y > 1.2, np.nan, 1 + X**2 + Y**2)
    failed = [0, 30 * 61 + 30]
    rounds, step = refined(values, 0.02, failed=failed)
    known = (rounds >= 0) & ~np.isin(np.arange(61 * 61).reshape(61, 61), failed)
    drawn = interpolated(GRID, values, known).values
    assert np.isnan(drawn[X + Y > 1.55]).all()
    inside = (X + Y < 0.7) & (np.hypot(X, Y) > 0.4) & (np.hypot(X + 1, Y + 1) > 0.4)
    assert np.abs(drawn - values)[inside].max() < 0.03 and np.isfinite(step.error)


@pytest.mark.parametrize("where", [X == 0, X == Y, X < -0.9, X > 2, (X == 0) & (abs(Y) < 0.3)])
def test_where_the_values_lie_on_one_line_nothing_is_known_between_them(where):
    values = np.where(where, Y**2, np.inf)
    rounds, step = refined(values, 0.02)
    known = rounds >= 0
    between = interpolated(GRID, values, known).values
    assert np.isnan(step.error) and np.isnan(between[~known]).all()
    group = lossmap.io.surface.Group({"round": rounds, "train_loss": between}, {"error": step.error})
    surface = lossmap.Surface(GRID, {"train_loss": values}, groups={"refinement": group})
    assert refinement_note(surface).endswith("so that nothing is known between them")


def test_a_line_is_refined_too_with_uneven_and_descending_ticks():
    ticks = np.sort(np.random.default_rng(0).uniform(-1, 1, 400))[::-1]
    values = 1 + np.exp(-((ticks - 0.3) ** 2) / 0.01) + 0.1 * ticks
    rounds, step = refined(values, 0.02, Grid(ticks))
    drawn = interpolated(Grid(ticks), values, rounds >= 0)
    assert np.mean(rounds >= 0) < 0.2 and step.error <= 0.02
    assert np.abs(drawn.values - values).max() < 0.04 * np.ptp(values)


class Hills:
    """A measure with two losses and something else, known everywhere, that counts its evaluations."""

    name, settings = "loss", {}
    fields = (
        Field("train_loss", "nats", "loss"),
        Field("test_loss", "nats", "loss"),
        Field("train_acc", "percent", "accuracy"),
    )

    def __init__(self):
        self.points = []

    def __call__(self, point):
        self.points.append(point)
        x, y = point
        loss = 2 + x**2 + y**2 + 0.4 * np.sin(7 * x) * np.cos(5 * y)
        return {"train_loss": loss, "test_loss": loss + 0.1 * np.cos(9 * x), "train_acc": 50 + 10 * x}


def test_the_same_points_are_measured_once_each_however_often_the_survey_is_stopped(tmp_path):
    whole = Hills()
    undisturbed = survey(whole, GRID, refine=0.03)
    assert undisturbed.outcome == "complete" and is_refined(undisturbed)
    measured = int((undisturbed.groups["refinement"]["round"] >= 0).sum())
    assert measured == len(whole.points) == undisturbed.counts("loss")["done"] < 0.3 * len(GRID)
    file, pieces = tmp_path / "a.h5", Hills()
    for _ in range(100):
        limit = len(pieces.points) + 37
        surface = survey(pieces, GRID, path=file, refine=0.03, stop=lambda limit=limit: len(pieces.points) >= limit)
        if surface.outcome == "complete":
            break
        filled = with_points_between(surface)
        assert filled[MEASURED].sum() == surface.counts("loss")["done"] == len(pieces.points)
        assert f"measured at {len(pieces.points):,} of " in refinement_note(surface)
    assert len(pieces.points) == len(set(pieces.points)) == measured
    for name in ("round", "train_loss", "test_loss", "train_acc"):
        np.testing.assert_array_equal(read(file).groups["refinement"][name], undisturbed.groups["refinement"][name])
    assert refinement_note(surface) == refinement_note(undisturbed)
    finer = survey(pieces, GRID, path=file, refine=0.01)
    assert finer.outcome == "complete" and len(pieces.points) == len(set(pieces.points)) > measured
    every = survey(pieces, GRID, path=file)
    assert every.outcome == "complete" and len(pieces.points) == len(set(pieces.points)) == len(GRID)
    assert not is_refined(read(file)) and np.isfinite(every["train_loss"]).all()


def test_what_lies_between_is_drawn_and_told_apart():
    surface = survey(Hills(), GRID, refine=0.03)
    filled = with_points_between(surface)
    assert np.isnan(surface["train_loss"]).any() and np.isfinite(filled["train_loss"]).all()
    assert filled[MEASURED].sum() == surface.counts("loss")["done"]
    figure = lossmap.draw(surface)
    dots = [line for line in figure.axes[0].lines if line.get_label() == "measured point"]
    assert len(dots) == 1 and dots[0].get_xdata().size == surface.counts("loss")["done"]
    note = refinement_note(surface)
    assert note in figure.get_label().replace("Measured", "measured")
    assert any(note.split(",")[0] in text.get_text().replace("\n", " ") for text in figure.texts)
    assert "not computed" not in figure.get_label()
    lossmap.draw(surface, "3d"), lossmap.draw(surface, field="measured", kind="map")


@pytest.mark.parametrize("tol", [0.0, -1.0, 0.9, float("nan")])
def test_tolerances_that_are_none_and_points_beside_are_refused(tol):
    with pytest.raises(ValueError, match=r"--refine must be >= 0.0001 and <= 0.5 of the loss's range; got"):
        survey(Hills(), GRID, refine=tol)
    with pytest.raises(ValueError, match="leave points out"):
        survey(Hills(), GRID, refine=0.1, points=[1, 2])


def test_the_command_says_what_was_measured_and_refuses_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--model", "mlp", "--samples", "64", "--x=-1:1:31", "--y=-1:1:31", "--threads", "1", "--refine", "0.05"]
    assert surface_command([*words, "--shard", "1/2"]) == 2
    assert "leave --shard out" in capsys.readouterr().err
    assert surface_command([*words, "--surf-file", "a.h5"]) == 0
    said = capsys.readouterr().out
    assert "refining: begins with 121 of 961 points" in said and "of 961 points, where the picture needed them" in said
    assert status(["a.h5"]) == 0
    assert "of 961 points, where the picture needed them" in capsys.readouterr().out
    from lossmap.cli.submit import main as submit
    from lossmap.cli.topology import main as topology

    assert topology(["a.h5"]) == 2
    assert "of 961 points are measured: run its survey again without --refine" in capsys.readouterr().err
    assert submit(["--array", "4", "--dry-run", "--", "surface", *words, "--surf-file", "b.h5"]) == 2
    assert "leave --array out" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text('[settings]\nmodel = "mlp"\n[surface]\nx = "-1:1:5"\nrefine = 0.1\n')
    from lossmap.cli.campaign import main as campaign

    assert campaign(["c.toml", "plan"]) == 2
    assert "refine is for single surveys" in capsys.readouterr().err


def test_a_survey_of_a_network_is_what_all_its_points_say():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    problem = Problem.supervised(model, "crossentropy", (torch.randn(20, 3), torch.arange(20) % 2))
    measure = losses(problem, random_plane(model, seed=1), plan={"batch_size": 20})
    few, every = survey(measure, Grid.square(-2, 2, 41), refine=0.02), survey(measure, Grid.square(-2, 2, 41))
    drawn = with_points_between(few)["train_loss"]
    assert few.counts("loss")["done"] < 0.4 * every.counts("loss")["done"]
    assert np.abs(drawn - every["train_loss"]).max() <= 0.04 * np.ptp(every["train_loss"])


@pytest.mark.ranks
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")
def test_three_ranks_measure_the_points_of_one(tmp_path):
    words = [
        sys.executable,
        "-m",
        "lossmap",
        "surface",
        "--model",
        "mlp",
        "--samples",
        "64",
        "--x=-1:1:31",
        "--y=-1:1:31",
    ]
    words += ["--threads", "1", "--refine", "0.02", "--no-probe"]
    root = str(Path(__file__).resolve().parents[2])
    for launcher, file in ([], "one.h5"), ([MPIRUN, "-n", "3"], "three.h5"):
        subprocess.run(
            [*launcher, *words, "--surf-file", str(tmp_path / file)],
            env={**os.environ, **OPEN_MPI, "PYTHONPATH": root}, check=True, timeout=200, capture_output=True,
        )  # fmt: skip
    one, three = (read(tmp_path / name) for name in ("one.h5", "three.h5"))
    assert 121 < one.counts("loss")["done"] == three.counts("loss")["done"] < 900
    np.testing.assert_array_equal(one.groups["refinement"]["round"], three.groups["refinement"]["round"])
    np.testing.assert_array_equal(one["train_loss"], three["train_loss"])
    assert len(np.unique(three["loss_rank"][three.status["loss"] == 1])) > 1


def test_the_page_gives_points_between_the_bar_of_the_picture():
    from lossmap.plotting.between_points import errors_between

    surface = with_points_between(survey(Hills(), GRID, refine=0.03))
    values = surface["train_loss"]
    bars = errors_between(surface, "train_loss", values)
    truth = SURFACES["rugged"]
    between = surface[MEASURED] == 0
    assert bars[between] == pytest.approx(surface.groups["refinement"].attributes["error"] * np.ptp(values[~between]))
    assert np.mean(np.abs(values - truth)[between] <= bars[between]) > 0.99
    assert np.nanmax(bars[~between], initial=0.0) < 1e-3 * bars[between].min()
    assert errors_between(surface, "train_acc", surface["train_acc"]) is None


class Waves:
    """2.4 points of the coarse grid to a wave of the second axis, where the estimate may be too small."""

    name, settings, fields = "loss", {}, (Field("train_loss", "nats", "loss"),)

    def __call__(self, point):
        return {"train_loss": 2 + 0.5 * np.sin(13 * point[0] + 5 * point[1]) + 0.3 * point[1] ** 2}


def test_an_estimate_after_many_rounds_is_said_to_be_less_sure():
    axis = np.linspace(-1, 1, 41)
    remark = r"estimate; that took \d+ rounds, as where a surface bends often, and may be several times too small"
    waves, hills = survey(Waves(), Grid(axis, axis), refine=0.1), survey(Hills(), GRID, refine=0.03)
    assert waves.groups["refinement"]["round"].max() >= 8 > hills.groups["refinement"]["round"].max()
    assert re.search(remark, refinement_note(waves)) and not re.search(remark, refinement_note(hills))
