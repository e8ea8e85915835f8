"""A survey that is half done: its points come coarse to fine, and are drawn as a picture of the whole window."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap import Grid, Problem, losses, random_plane, survey
from lossmap.geometry.grid import halving_steps
from lossmap.landscape.survey_recorder import coarse_to_fine, in_turns
from lossmap.parallel.work_queue import WorkQueue
from lossmap.plotting.coarse_picture import coarse_note, with_coarse_picture


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (101,), (1, 1), (2, 3), (9, 9), (5, 24), (101, 101)])
def test_the_points_up_to_any_step_are_a_grid_with_the_same_ends_and_at_most_doubled(shape):
    steps = halving_steps(shape)
    assert steps.shape == shape and steps.flat[0] == steps.flat[-1] == 0
    before = 0
    for step in range(int(steps.max()) + 1):
        up_to = steps <= step
        ticks = [up_to.any(axis=tuple(j for j in range(up_to.ndim) if j != i)) for i in range(up_to.ndim)]
        grid = ticks[0] if len(ticks) == 1 else np.outer(*ticks)
        np.testing.assert_array_equal(up_to, grid)
        assert not before or up_to.sum() <= 2 * before + max(shape)
        for along in ticks:
            gaps = np.diff(np.flatnonzero(along))
            assert not gaps.size or gaps.max() <= 2 * gaps.min() + 1
        before = up_to.sum()
    assert before == np.prod(shape)


def test_the_order_is_a_permutation_that_begins_with_the_corners():
    grid = Grid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7))
    order = coarse_to_fine(grid, np.arange(len(grid))[::-1])
    assert sorted(order.tolist()) == list(range(63)) and set(order[:4].tolist()) == {0, 8, 54, 62}
    queue = WorkQueue(in_turns(order.tolist(), 3), 3)
    first = [queue.dispatch(worker, 0.0)[0] for worker in range(3)]
    assert set(first) <= {0, 8, 54, 62}


def measured(share, grid, **kinds):
    """A loss surface of which a share of the points is done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    problem = Problem.supervised(model, "crossentropy", (torch.randn(30, 4), torch.arange(30) % 3))
    plane = random_plane(model, axes=grid.axes)
    count = [0]

    def stop():
        count[0] += 1
        return len(done) >= share * len(grid)

    done = []
    measure = losses(problem, plane, plan={"batch_size": 30})
    call = type(measure).__call__
    own = type("Counted", (type(measure),), {"__call__": lambda m, p: done.append(p) or call(m, p)})
    measure.__class__ = own
    return survey(measure, grid, stop=stop, **kinds), measure


@pytest.mark.parametrize("grid", [Grid.square(-1, 1, 17), Grid.line(-1, 1, 65)])
def test_half_a_survey_is_drawn_as_a_whole_coarse_picture_and_its_values_are_those_of_the_whole(grid):
    half, measure = measured(0.55, grid)
    assert half.outcome == "unfinished" and 0.5 < half.counts("loss")["done"] / len(grid) < 0.7
    shown = with_coarse_picture(half)
    assert np.isfinite(shown["train_loss"]).all() and shown.status["loss"].all()
    for ours, theirs in ((shown.grid.x, grid.x), (shown.grid.y, grid.y)):
        assert theirs is None or (ours[0] == theirs[0] and ours[-1] == theirs[-1])
    assert len(shown.grid) >= 0.5 * half.counts("loss")["done"]
    for i in (0, len(shown.grid) // 2, len(shown.grid) - 1):
        assert shown["train_loss"].reshape(-1)[i] == measure(shown.grid.point(i))["train_loss"]
    assert f"of {len(grid):,} points are to do" in coarse_note(shown)
    figure = lossmap.draw(half)
    written = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "all there" in written or f"drawn at the {len(shown.grid)} that are there" in written
    assert "not computed" not in figure.get_label()


@pytest.mark.parametrize("order", ["coarse", "neighbours"])
@pytest.mark.parametrize("shape", [(17, 17), (13, 22), (9, 65), (40,)])
def test_wherever_a_survey_ends_what_is_drawn_are_measured_points_of_the_whole_window(shape, order):
    """Of all numbers of points: none is drawn that is to do, and never fewer than the last whole step had."""
    x, y = np.linspace(-1, 1, shape[-1]), np.linspace(-1, 1, shape[0])
    grid = Grid(x, y if len(shape) == 2 else None)
    indices = coarse_to_fine(grid, np.arange(len(grid))) if order == "coarse" else np.arange(len(grid))
    steps = halving_steps(grid.shape).reshape(-1)
    values = np.random.default_rng(0).normal(size=len(grid))
    for done in range(1, len(grid), 7):
        status = np.zeros(len(grid), np.uint8)
        status[indices[:done]] = 1
        seen = np.where(status, values, np.nan)
        surface = lossmap.Surface(
            grid, {"train_loss": seen.reshape(grid.shape)}, status={"loss": status.reshape(grid.shape)},
            measures={"loss": ("train_loss",)},
        )  # fmt: skip
        shown = with_coarse_picture(surface)
        if shown is surface:
            continue
        assert order == "coarse" and np.isfinite(shown["train_loss"]).all()
        assert all(s.grid.x[[0, -1]].tolist() == [-1, 1] for s in (shown, surface))
        whole = steps < steps[status == 0].min()
        assert len(shown.grid) >= whole.sum() and (len(shape) == 2 or len(shown.grid) == done)
        if done > len(grid) / 2:
            assert len(shown.grid) >= 0.9 * (done - max(shape)), "lines that are complete are drawn"


def test_the_note_names_a_spline_only_where_one_is_drawn():
    grid = Grid.square(-1, 1, 9)
    whole = grid.x[:, None] ** 2 + grid.x
    lone, row = np.full((9, 9), np.nan), np.full((9, 9), np.nan)
    lone[1::2, 1::2], row[:2] = whole[1::2, 1::2], whole[:2]
    notes = {}
    for name, values in {"whole": whole, "lone": lone, "row": row}.items():
        for kind in ("filled", "3d"):
            notes[name, kind] = lossmap.draw(lossmap.Surface(grid, {"train_loss": values}), kind).get_label()
    assert "cubic spline of the values." in notes["whole", "filled"]
    for kind in ("filled", "3d"):
        assert "spline" not in notes["lone", kind] and "except beside gaps" in notes["row", kind]


@pytest.mark.parametrize("count", [9, 65])
def test_a_point_of_a_line_without_neighbours_is_seen(count):
    values = np.full(count, np.nan)
    values[[0, count // 2]] = 1.0, 2.0
    values[-2:] = 1.5
    figure = lossmap.draw(lossmap.Surface(Grid.line(-1, 1, count), {"train_loss": values}))
    (axes,) = figure.axes
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    seen = np.concatenate([line.get_xdata()[np.isfinite(line.get_ydata())] for line in marked])
    assert {-1.0, 0.0} <= set(np.round(seen, 12))


def test_a_survey_with_few_points_to_do_is_drawn_with_gaps_and_a_complete_one_as_it_is():
    grid = Grid.square(-1, 1, 9)
    nearly, _ = measured(0.95, grid)
    assert with_coarse_picture(nearly) is nearly
    whole, _ = measured(2, grid)
    assert whole.outcome == "complete" and with_coarse_picture(whole) is whole
    rows = np.zeros(grid.shape)
    rows[:5] = 1.0  # neighbour by neighbour, as earlier versions did it
    surface = lossmap.Surface(grid, {"train_loss": np.where(rows > 0, rows, np.nan)})
    assert with_coarse_picture(surface) is surface


def test_the_labels_of_a_line_with_a_note_are_whole():
    half, _ = measured(0.55, Grid.line(-1, 1, 65))
    figure = lossmap.draw(half)
    figure.canvas.draw()
    for axes in figure.axes:
        label = axes.yaxis.label.get_window_extent()
        assert label.y0 >= 0 and label.y1 <= figure.bbox.height, axes.get_ylabel()
