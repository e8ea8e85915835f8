"""Fewer samples: which are read, what is said of the losses by them, and how well that holds."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lossmap import Grid, Plane, Problem, losses, random_plane, read, survey
from lossmap.cli.status import main as status
from lossmap.cli.surface import main as surface_command
from lossmap.data.batches import Streamed
from lossmap.geometry.grid import Field
from lossmap.io.sampled import relative_error, sampling_note
from lossmap.landscape.loss_sampling import SampledLossMap, sample_order, standard_error
from lossmap.landscape.sampling_rounds import FIRST_READ, corners_of, middle_of, next_size, next_step

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
}
GRID = Grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
SAMPLES, TOL = 6000, 0.04


def made(samples=SAMPLES, seed=0):
    """A net with some losses, data, and a plane through it."""
    torch.manual_seed(seed)
    x = torch.randn(samples, 6)
    y = (x[:, 0] + 0.5 * torch.randn(samples) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, (x, y), random_plane(model, seed=seed)


def by_hand(model, data, plane, point):
    """The loss (n,) and 100 times whether it is right, of each sample."""
    with torch.no_grad():
        outputs = torch.func.functional_call(model, plane.at(point), (data[0],)).double()
    each = nn.functional.cross_entropy(outputs, data[1], reduction="none").numpy()
    return each, 100.0 * (outputs.argmax(1) == data[1]).numpy()


@pytest.fixture(scope="module")
def sampled():
    model, data, plane = made()
    problem = Problem.supervised(model, "crossentropy", data, batch_size=500)
    return model, data, plane, survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL), GRID)


def test_each_loss_is_that_of_the_middle_and_a_mean_difference_of_the_same_samples(sampled):
    model, data, plane, surface = sampled
    middle = middle_of(GRID)
    assert GRID.point(middle) == (0.0, 0.0) and surface.outcome == "complete"
    base = by_hand(model, data, plane, (0.0, 0.0))
    count = int(surface["train_samples_read"].reshape(-1)[1])
    assert FIRST_READ <= count < 0.6 * SAMPLES
    rows = sample_order(SAMPLES, "train", 0)[:count]
    assert len(set(rows.tolist())) == count
    corners = corners_of(GRID)
    assert {GRID.point(i) for i in corners} == {(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)}
    at_whole = [base[0], *(by_hand(model, data, plane, GRID.point(i))[0] for i in corners)]
    width = max(each.std() / each[rows].std() for each in at_whole)
    width = width if width > 1.1 else 1.0
    for i in range(len(GRID)):
        here = by_hand(model, data, plane, GRID.point(i))
        for name, there, mine in zip(("loss", "acc"), base, here, strict=True):
            value, error = (surface[f"train_{name}{e}"].reshape(-1)[i] for e in ("", "_error"))
            if i in (middle, *corners):
                assert value == pytest.approx(mine.mean(), rel=1e-6) and error == 0
                continue
            differences = (mine - there)[rows]
            assert value == pytest.approx(there.mean() + differences.mean(), rel=1e-5)
            expected = differences.std(ddof=1) / np.sqrt(count) * np.sqrt(1 - count / SAMPLES)
            assert error == pytest.approx(expected * (width if name == "loss" else 1.0), rel=1e-3)
        assert surface["train_loss_spread"].reshape(-1)[i] == pytest.approx(
            (here[0] if i in (middle, *corners) else here[0][rows]).std(), rel=1e-3
        )
    reads = surface["train_samples_read"].reshape(-1)
    assert (reads[[middle, *corners]] == SAMPLES).all() and set(np.delete(reads, [middle, *corners])) == {count}


@pytest.mark.parametrize("where", ["middle", "corner"])
def test_a_sample_that_outweighs_all_others_is_seen_though_it_is_not_read(where):
    """One of 5,000, mostly not among those of a round, whose loss is 300 squared at the middle, or large off it."""
    torch.manual_seed(0)
    x = torch.randn(5000, 4)
    y = x @ torch.randn(4, 1) + 0.3 * torch.randn(5000, 1)
    hidden = int(sample_order(5000, "train", 0)[-1])
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    if where == "middle":
        y[hidden] = 300.0
    else:
        x[hidden] *= 300
        y[hidden] = model(x[hidden]).detach()
    problem, plane = Problem.supervised(model, "mse", (x, y)), random_plane(model, seed=1)
    grid = Grid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3))
    surface = survey(losses(problem, plane, plan={"batch_size": 5000}, loss_error=0.05), grid)
    truth = survey(losses(problem, plane, plan={"batch_size": 5000}), grid)["train_loss"]
    assert (np.abs(surface["train_loss"] - truth) <= 4 * surface["train_loss_error"] + 1e-6 * truth).all()


def test_the_middle_is_nearest_the_network_and_the_corners_are_the_others():
    for grid, middle, corners in (
        (Grid.line(-1, 1, 5), (0.0,), [(-1.0,), (1.0,)]),
        (Grid.line(0, 1, 3), (0.0,), [(1.0,)]),
        (Grid.line(-1, 0, 3), (0.0,), [(-1.0,)]),
        (Grid(np.linspace(-1, 2, 4), np.linspace(-90, 30, 5)), (0.0, 0.0), [(-1, -90), (2, -90), (-1, 30), (2, 30)]),
        (Grid(np.linspace(-1, 1, 3), np.zeros(1)), (0.0, 0.0), [(-1.0, 0.0), (1.0, 0.0)]),
    ):
        assert grid.point(middle_of(grid)) == pytest.approx(middle)
        assert [grid.point(i) for i in corners_of(grid)] == [pytest.approx(corner) for corner in corners]
    assert corners_of(Grid.line(0.5, 0.5, 1)) == []


def test_a_sample_that_outweighs_all_others_at_one_corner_alone_is_seen():
    """Far out on one side: its loss is 0.01 at the middle, 30 at one corner and 100,000 at the opposite one."""
    torch.manual_seed(3)
    x = torch.randn(5000, 4)
    w, noise = torch.randn(4, 1), 0.3 * torch.randn(5000, 1)
    hidden = int(sample_order(5000, "train", 0)[-1])
    x[hidden] = 200 * torch.tensor([0.5, -1.0, 0.3, 0.8])
    for seed in (4, 6):  # of which the corner at (1, 1) shows nothing
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        y = torch.tanh(x @ w) + noise
        y[hidden] = model(x[hidden]).detach()
        problem, plane = Problem.supervised(model, "mse", (x, y)), random_plane(model, seed=1)
        grid = Grid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3))
        surface = survey(losses(problem, plane, plan={"batch_size": 5000}, loss_error=0.1), grid)
        truth = survey(losses(problem, plane, plan={"batch_size": 5000}), grid)["train_loss"]
        assert (np.abs(surface["train_loss"] - truth) <= 4 * surface["train_loss_error"] + 1e-6 * truth).all()


def test_the_errors_are_as_small_as_was_asked_for_and_no_more_samples_are_read_than_that_takes(sampled):
    surface = sampled[-1]
    error = relative_error(surface["train_loss"], surface["train_loss_error"])
    assert 0.5 * TOL < error <= TOL
    note = sampling_note(surface)
    assert "of 6,000 training samples" in note and f"{error:.2%}" in note
    whole = int((surface["train_samples_read"] == 6000).sum())
    assert f"but for {whole} points, as the middle and the corners, where all were read" in note and whole >= 5
    truth = np.array([by_hand(*sampled[:3], GRID.point(i))[0].mean() for i in range(len(GRID))])
    off = np.abs(surface["train_loss"].reshape(-1) - truth)
    assert (off <= 4 * surface["train_loss_error"].reshape(-1) + 1e-6).all() and off.max() > 1e-6


def test_a_finer_picture_goes_on_with_the_file_and_a_tiny_tolerance_ends_at_the_full_loss(tmp_path):
    model, data, plane = made()
    problem, file = Problem.supervised(model, "crossentropy", data), tmp_path / "a.h5"
    coarse = survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=0.08), GRID, path=file)
    finer = survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL), GRID, path=file)
    assert coarse["train_samples_read"][0, 1] < finer["train_samples_read"][0, 1] < SAMPLES
    whole = survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=1e-4), GRID, path=file)
    assert (whole["train_samples_read"] == SAMPLES).all() and not whole["train_loss_error"].any()
    every = survey(losses(problem, plane, plan={"batch_size": 500}), GRID)
    np.testing.assert_array_equal(whole["train_loss"], every["train_loss"])
    np.testing.assert_array_equal(whole["train_acc"], every["train_acc"])
    assert sampling_note(whole) is None


CALLS = []


class Counting(SampledLossMap):
    """Counts the points that it is asked for, over all copies of it."""

    def __call__(self, point):
        CALLS.append(point)
        return super().__call__(point)


def test_however_often_it_is_stopped_the_same_samples_are_read_and_no_point_twice(tmp_path):
    model, data, plane = made()
    problem = Problem.supervised(model, "crossentropy", data, batch_size=1000)
    undisturbed = survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL), GRID)
    measure = losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL)
    measure.__class__ = Counting
    CALLS.clear()
    for _ in range(100):
        limit = len(CALLS) + 7
        surface = survey(measure, GRID, path=tmp_path / "a.h5", stop=lambda limit=limit: len(CALLS) >= limit)
        if surface.outcome == "complete":
            break
    calls = len(CALLS)
    stored = read(tmp_path / "a.h5")
    assert "reopened" not in stored.attributes and int(stored.attributes["restarts"]) >= 2
    for name in undisturbed.measures["loss"]:
        np.testing.assert_array_equal(surface[name], undisturbed[name])
    CALLS.clear()
    survey(measure, GRID)
    assert calls == len(CALLS) >= 5 + 2 * (len(GRID) - 5)  # in two rounds at least


@pytest.mark.parametrize("samples", [1, 2, 37, 600, 700])
def test_few_samples_are_all_read(samples):
    model, data, plane = made(samples)
    problem = Problem.supervised(model, "crossentropy", data)
    line = Plane(plane.origin, plane.axes[:1], plane.recipes[:1])
    surface = survey(losses(problem, line, loss_error=1e-3), Grid.line(-1, 1, 4))
    every = survey(losses(problem, line), Grid.line(-1, 1, 4))
    if samples < 640:
        assert (surface["train_samples_read"] == samples).all() and not surface["train_loss_error"].any()
    np.testing.assert_allclose(surface["train_loss"], every["train_loss"], atol=1e-2)


def test_train_and_test_grow_by_their_own_errors():
    model, data, plane = made(8000)
    test = (data[0][:3000], data[1][:3000])
    problems = {"train": Problem.supervised(model, "mse", data), "test": Problem.supervised(model, "mse", test)}
    surface = survey(losses(problems, plane, loss_error=TOL), GRID)
    for split in problems:
        assert relative_error(surface[f"{split}_loss"], surface[f"{split}_loss_error"]) <= TOL
        assert split[:4] in sampling_note(surface)
    reads = [surface[f"{split}_samples_read"][0, 1] for split in problems]
    assert reads[0] != reads[1]


def test_streamed_samples_give_the_same(sampled):
    model, data, plane, surface = sampled
    stream = Streamed(lambda rows: (data[0][list(rows)], data[1][list(rows)]), range(SAMPLES), 500)
    problem = Problem.supervised(model, "crossentropy", stream)
    other = survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL), GRID)
    for name in surface.measures["loss"]:
        np.testing.assert_allclose(other[name], surface[name], rtol=1e-6)


def test_the_ranks_of_a_team_read_the_samples_of_one(sampled):
    """The shares' sums, added by hand, as a team adds them."""
    model, data, plane, surface = sampled
    problem = Problem.supervised(model, "crossentropy", data, batch_size=500)
    reads = {"train": int(surface["train_samples_read"][0, 1])}
    step = next_step(surface, losses(problem, plane, plan={"batch_size": 500}, loss_error=1e-4))
    step = type(step)(step.points, reads, step.middle, step.base)
    for ranks in (2, 3):
        parts = []
        for rank in range(ranks):
            seen = []
            share = problem.share(rank, ranks)
            measure = losses(share, plane, plan={"batch_size": 500}, loss_error=TOL, share=(rank, ranks))
            measure.samples = {"train": SAMPLES}
            measure.total = lambda sums, seen=seen: seen.append(sums.clone()) or sums
            moved = measure.with_step(step)
            moved((-1.0, -1.0))
            parts.append(seen[-1])
        one = losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL).with_step(step)
        summed = torch.stack(parts).sum(0)
        assert summed[0] == reads["train"]
        reading = moved._reading([summed[:-1]])
        for name, value in one((-1.0, -1.0)).items():
            assert reading[name] == pytest.approx(value, rel=1e-6)


def test_what_has_no_samples_of_its_own_is_refused_by_name():
    model, data, plane = made(100)
    custom = Problem.custom(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [data])
    weighted = Problem.supervised(model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])), data)

    def coupled(outputs, targets):
        return nn.functional.cross_entropy(outputs - outputs.mean(0), targets)

    for problem, words in (
        (custom, "the loss of each sample"),
        (weighted, "the loss of each sample"),
        (Problem.supervised(model, coupled, data), "kept as given"),
    ):
        with pytest.raises(ValueError, match=words):
            losses(problem, plane, plan={"batch_size": 500}, loss_error=TOL)
    problem = Problem.supervised(model, "crossentropy", data)
    with pytest.raises(ValueError, match="loss-error must be"):
        losses(problem, plane, plan={"batch_size": 500}, loss_error=0.0)
    with pytest.raises(ValueError, match="noise-repeats"):
        losses(problem, plane, plan={"batch_size": 500}, loss_error=0.1, noise_repeats=2)
    with pytest.raises(ValueError, match="picture of all points"):
        survey(losses(problem, plane, plan={"batch_size": 500}, loss_error=0.1), GRID, refine=0.1)


def test_the_next_size_is_what_the_error_asks_for():
    every, count, spread = 50_000, 512, 3.0
    error = spread * np.sqrt(1 / count - 1 / every)
    size = next_size(count, every, error, error / 4)
    assert spread * np.sqrt(1 / size - 1 / every) == pytest.approx(0.9 * error / 4, rel=1e-3)
    assert next_size(count, every, error, error / 1.001) == 640  # at least a quarter more
    assert next_size(count, every, np.inf, 0.01) == every
    assert next_size(count, 600, error, error / 4) == 600  # nearly all


def test_the_relative_error_is_of_what_the_picture_shows():
    values, errors = np.array([1.0, 3.0, np.nan, np.inf]), np.array([0.1, 0.2, 9.0, 9.0])
    assert relative_error(values, errors) == pytest.approx(0.1)
    values, errors = np.array([0.01, 10.0]), np.array([0.001, 0.02])
    assert relative_error(values, errors) == pytest.approx((np.log10(0.01) - np.log10(0.01 - 1e-3)) / 3, rel=0.06)
    assert relative_error(np.ones(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.ones(3)) == np.inf
    assert relative_error(np.arange(3.0), np.array([0.0, np.inf, 0.0])) == np.inf
    assert np.isnan(standard_error(1, 10, 1.0, 1.0))


def test_bars_hold_the_truth_as_often_as_they_say():
    """Of one round, on differences with heavy tails; 95 % within the 99 % binomial interval of 2,000 repeats."""
    from scipy.stats import binom

    generator = np.random.default_rng(0)
    pool = generator.exponential(size=4000) ** 1.5
    hits = 0
    for _ in range(2000):
        drawn = generator.choice(pool, FIRST_READ, replace=False)
        error = standard_error(FIRST_READ, pool.size, drawn.sum(), np.square(drawn).sum())
        hits += abs(drawn.mean() - pool.mean()) <= 1.96 * error
    low, high = binom.interval(0.99, 2000, 0.95)
    assert low <= hits <= high


@pytest.mark.skipif(MPIRUN is None, reason="no mpirun")
@pytest.mark.parametrize(("ranks", "team"), [(3, 1), (2, 2)])
def test_any_ranks_and_teams_read_the_same_samples(tmp_path, ranks, team):
    command = partial(command_line, tmp_path)
    assert surface_command(command("one.h5")) == 0
    mpi = [MPIRUN, "-n", str(ranks), sys.executable, "-m", "lossmap", "surface"]
    flags = ["--rank-0", "computes", "--team", str(team)]
    done = subprocess.run(
        [*mpi, *command("many.h5"), *flags], env=os.environ | OPEN_MPI, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, many = read(tmp_path / "one.h5"), read(tmp_path / "many.h5")
    assert 1 < one["train_samples_read"].min() < one["train_samples_read"].max()
    for name in one.measures["loss"]:  # a team cuts its batches elsewhere
        np.testing.assert_allclose(many[name], one[name], rtol=0 if team == 1 else 1e-5, atol=0 if team == 1 else 1e-6)


def command_line(folder, name):
    flags = "--model mlp --dataset digits --x=-1:1:4 --y=-1:1:3 --loss-error 0.2 --no-probe --batch-size 64"
    return [*flags.split(), "--surf-file", str(folder / name)]


def test_the_command_says_what_was_read_and_refuses_what_does_not_go_with_it(tmp_path, capsys):
    assert surface_command([*command_line(tmp_path, "a.h5"), "--plot", "--page"]) == 0
    said = capsys.readouterr().out
    assert "training samples" in said and "standard errors are at most" in said
    assert status([str(tmp_path / "a.h5")]) == 0
    assert "standard errors are at most" in capsys.readouterr().out
    for flags, words in (
        (["--refine", "0.1"], "leave --refine out"),
        (["--shard", "1/2"], "leave --shard out"),
        (["--noise-repeats", "3"], "leave one of them out"),
        (["--loss-error", "2"], "--loss-error must be"),
    ):
        assert surface_command([*command_line(tmp_path, "b.h5"), *flags]) == 2
        assert words in capsys.readouterr().err


def test_a_journal_says_which_points_are_to_do_again(tmp_path):
    """As after a kill: the last snapshot is older, and the journal holds the rest."""
    from lossmap.cli.status import settled_points
    from lossmap.io import attempts
    from lossmap.io.read import SurfaceFile
    from lossmap.io.surface import TO_DO

    fields = [Field("train_loss", "nats", "loss")]
    file = SurfaceFile.open(tmp_path / "a.h5", GRID, identity={}, measures={"loss": (fields, {})})
    for i in range(len(GRID)):
        file.record("loss", i, {"train_loss": float(i)}, 0.1)
    file.reopen("loss", np.arange(1, 7))
    file.record("loss", 3, {"train_loss": 33.0}, 0.1)
    file.flush()
    shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
    shutil.copy(tmp_path / "a.h5.journal", tmp_path / "b.h5.journal")
    file.close()
    after = read(tmp_path / "b.h5")
    assert np.flatnonzero(after.status["loss"].reshape(-1) == TO_DO).tolist() == [1, 2, 4, 5, 6]
    np.testing.assert_array_equal(after["train_loss"].reshape(-1)[[1, 3]], [1.0, 33.0])
    assert after.outcome == "unfinished"
    # what was measured twice counts twice, also where the next attempt begins in the middle of the second time
    made = attempts.decoded(after.attributes["attempts"])
    (first,) = attempts.counted(made, settled_points(after), attempts.measured_seconds(after))
    assert first["points"] == len(GRID) + 1
    file = SurfaceFile.open(tmp_path / "b.h5", GRID, identity={}, measures={"loss": (fields, {})})
    for i in (1, 2):
        file.record("loss", i, {"train_loss": 0.0}, 0.1)
    file.reopen("loss", np.arange(1, 3))
    file.record("loss", 1, {"train_loss": 0.0}, 0.1)
    file.close()
    again = read(tmp_path / "b.h5")
    made = attempts.decoded(again.attributes["attempts"])
    numbers = attempts.counted(made, settled_points(again), attempts.measured_seconds(again))
    assert [attempt["points"] for attempt in numbers] == [len(GRID) + 1, 3]
