"""Surveys in one process: what is evaluated, what fails, what is left to do, what is reported."""

import itertools
import logging
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.device_errors import out_of_memory
from lossmap.geometry.grid import Field, Grid
from lossmap.interrupt import Interrupted
from lossmap.io.memory_store import MemoryStore
from lossmap.io.read import SurfaceFile, read
from lossmap.landscape.run_survey import survey
from lossmap.landscape.survey_recorder import Progress, serpentine_order
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.world import World

GRID = Grid(np.linspace(-1, 1, 5), np.linspace(0, 2, 4))


class Bowl:
    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"), Field("parts", "nats", "parts", extra=("part", 2)))

    def __init__(self, act=lambda point: None):
        self.act, self.settings, self.points = act, {"kind": "bowl"}, []

    def __call__(self, point):
        self.points.append(point)
        self.act(point)
        return {"train_loss": point[0] ** 2 + 10 * point[-1], "parts": [point[0] ** 2, 10 * point[-1]]}


def raising(error, *at):
    def act(point):
        if point in at or not at:
            raise error

    return act


def ledger(measure=None):
    measure = measure or Bowl()
    return MemoryStore(GRID, {"loss": (measure.fields, measure.settings)})


def test_every_point_is_read_once_and_stands_where_it_belongs():
    measure = Bowl()
    surface = survey(measure, GRID)
    x, y = np.meshgrid(GRID.x, GRID.y)
    assert np.array_equal(surface["train_loss"], x**2 + 10 * y)
    assert np.array_equal(surface["parts"], np.stack([x**2, 10 * y], axis=-1))
    assert len(measure.points) == 20 == len(set(measure.points))
    assert surface.outcome == "complete" and (surface["loss_rank"] == 0).all()


def test_a_line_on_a_plane_and_a_plane_on_a_line_are_refused():
    measure = Bowl()
    measure.plane = SimpleNamespace(axes=(1, 2))
    assert survey(measure, GRID).outcome == "complete"
    with pytest.raises(ValueError, match=r"the grid has 1 and the plane 2 axes; a line is Grid\.line"):
        survey(measure, Grid.line(count=3))


def test_each_next_point_is_a_neighbour_of_the_last():
    for grid in (GRID, Grid.line(count=7), Grid(np.array([1.0]), np.arange(3.0))):
        ticks = [divmod(int(i), grid.x.size) for i in serpentine_order(grid, np.arange(len(grid)))]
        assert all(abs(r - s) + abs(c - d) == 1 for (r, c), (s, d) in itertools.pairwise(ticks))
        assert len(ticks) == len(grid)
    assert serpentine_order(GRID, np.array([0, 5, 9])).tolist() == [0, 9, 5]


def test_points_that_the_store_knows_are_not_measured_again(tmp_path):
    def interrupted(point):
        if point == (0.0, 2.0):
            signal.default_int_handler(signal.SIGINT, None)  # a Ctrl-C; `raise` would be an error of the measure

    measure = Bowl(interrupted)
    with (
        SurfaceFile.open(tmp_path / "s.h5", GRID, measures={"loss": (measure.fields, {})}) as store,
        pytest.raises(KeyboardInterrupt),
    ):
        survey(measure, GRID, store=store)
    done = read(tmp_path / "s.h5").counts("loss")["done"]
    assert done == 17
    again = Bowl()
    with SurfaceFile.open(tmp_path / "s.h5", GRID, measures={"loss": (measure.fields, {})}) as store:
        surface = survey(again, GRID, store=store)
    assert len(again.points) == 3 and surface.outcome == "complete"


def test_a_subset_of_the_points_may_be_requested():
    measure, events = Bowl(), []
    surface = survey(measure, GRID, points=[7, 3, 3], progress=events.append)
    assert np.flatnonzero(surface.status["loss"]).tolist() == [3, 7]
    assert (events[-1].done, events[-1].total) == (2, 2)
    assert surface.outcome == "complete"


@pytest.mark.parametrize("points", [[-1], [20, 3]])
def test_points_beyond_the_grid_are_refused(points):
    with pytest.raises(ValueError, match="points must be flat indices from 0 to 19; got"):
        survey(Bowl(), GRID, points=points)


def test_a_time_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="--point-timeout must be > 0 seconds; got 0"):
        survey(Bowl(), GRID, point_timeout=0)


def test_a_point_that_raises_is_tried_twice_and_then_fails(caplog):
    measure = Bowl(raising(ArithmeticError("no loss here"), (0.0, 0.0)))
    surface = survey(measure, GRID)
    (failure,) = surface.failures
    assert measure.points.count((0.0, 0.0)) == 2 and len(measure.points) == 21
    assert (failure.index, failure.rank, failure.reason) == (2, 0, "ArithmeticError: no loss here")
    assert failure.host == World().host and "Traceback" in failure.text
    assert surface.outcome == "failed" and np.isnan(surface["train_loss"][0, 2])
    assert re.search(r"point 2 failed on rank 0 on \S+; it is tried once more: ArithmeticError", caplog.text)


def test_failed_points_are_measured_again_only_on_request():
    store = ledger()
    survey(Bowl(raising(OSError("once"), (0.0, 0.0))), GRID, store=store)
    measure = Bowl()
    assert survey(measure, GRID, store=store).outcome == "failed" and measure.points == []
    assert survey(measure, GRID, store=store, retry_failed=True).outcome == "complete"
    assert measure.points == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("reading", "text"),
    [
        ({"train_loss": 1.0}, "declared the fields parts, train_loss and returned train_loss"),
        ({}, "returned none"),
        ({"train_loss": 1.0, "parts": [1.0]}, "the field 'parts' takes 2 numbers a point; the measure returned 1"),
        ({"train_loss": "much", "parts": [1, 2]}, "could not convert string to float"),
    ],
)
def test_a_reading_that_is_not_what_was_declared_is_a_failure(reading, text):
    class Wrong(Bowl):
        def __call__(self, point):
            return reading

    surface = survey(Wrong(), Grid.line(count=1))
    assert surface.outcome == "failed" and text in surface.failures[0].reason


class Steps(Bowl):
    """A point of four steps, left after two of them the first time."""

    def __init__(self):
        super().__init__()
        self.resumed = []

    def __call__(self, point):
        if point == (0.0, 0.0):
            raise Interrupted({"step": 2, "vector": np.arange(3.0)})
        return super().__call__(point)

    def resume(self, point, state):
        self.resumed.append((point, state["step"], state["vector"].tolist()))
        return super().__call__(point)


def test_a_point_that_was_left_is_taken_up_with_its_state(tmp_path):
    first, second = Steps(), Steps()
    measures = {"loss": (first.fields, {})}
    with SurfaceFile.open(tmp_path / "s.h5", GRID, measures=measures) as store:
        assert survey(first, GRID, store=store).outcome == "unfinished"
    assert len(first.points) == 2
    with SurfaceFile.open(tmp_path / "s.h5", GRID, measures=measures) as store:
        assert survey(second, GRID, store=store).outcome == "complete"
    assert second.resumed == [((0.0, 0.0), 2, [0.0, 1.0, 2.0])]


def test_a_point_left_without_a_state_is_begun_anew():
    class Once(Bowl):
        left = False

        def __call__(self, point):
            if not self.left:
                self.left = True
                raise Interrupted
            return super().__call__(point)

    measure, store = Once(), ledger()
    assert survey(measure, GRID, store=store).outcome == "unfinished"
    assert survey(measure, GRID, store=store).outcome == "complete"


class Hungry(Bowl):
    batch = 8

    def __call__(self, point):
        if self.batch > 2:
            raise MemoryError("too much")
        return super().__call__(point)

    def smaller(self):
        self.batch //= 2
        return f"batches of {self.batch}" if self.batch else None


def test_where_memory_runs_out_the_batch_is_halved_until_it_fits(caplog):
    measure = Hungry()
    surface = survey(measure, GRID)
    assert surface.outcome == "complete" and measure.batch == 2
    notes = surface.attributes["loss_notes"].splitlines()
    assert [note.partition(": ")[2] for note in notes] == [
        f"memory ran out (MemoryError: too much); batches of {size}" for size in (4, 2)
    ]


def test_where_nothing_is_small_enough_the_point_fails():
    class Insatiable(Hungry):
        def __call__(self, point):
            raise MemoryError("too much")

    assert survey(Insatiable(), Grid.line(count=1)).failures[0].reason == "MemoryError: too much"


def test_without_a_way_to_be_smaller_lack_of_memory_is_a_failure():
    assert survey(Bowl(raising(MemoryError())), Grid.line(count=2)).outcome == "failed"


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_known_by_name_or_words(error, answer):
    assert out_of_memory(error) is answer


@pytest.fixture
def breakable(monkeypatch):
    """A pretended CUDA; once `breaks()` was called every call of it fails."""
    monkeypatch.setattr("lossmap.device_errors._lost_by", [])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def fails():
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")

    def breaks():
        monkeypatch.setattr(torch.cuda, "synchronize", fails)

    return SimpleNamespace(breaks=breaks, call=lambda: torch.cuda.synchronize())


def test_where_the_gpu_is_lost_the_points_are_left_and_not_failed(breakable, caplog):
    def act(point):
        if point == (0.0, 2.0):
            breakable.breaks()
        breakable.call()

    surface = survey(Bowl(act), GRID)
    assert surface.outcome == "unfinished" and not surface.failures
    assert surface.counts("loss")["done"] == 17
    told = "rank 0 has lost its GPU: CUDA error: device-side assert triggered; points dispatched again: "
    assert told in caplog.text


def test_an_error_after_which_the_gpu_answers_is_a_failure_as_any(breakable):
    surface = survey(Bowl(raising(RuntimeError("CUDA error: invalid configuration argument"), (0.0, 2.0))), GRID)
    assert surface.outcome == "failed" and surface.counts("loss")["done"] == 19


def test_a_stop_leaves_the_rest_to_do():
    stop = Stop()
    measure = Bowl(lambda point: stop.request("somebody") if len(measure.points) == 5 else None)
    surface = survey(measure, GRID, stop=stop)
    assert surface.outcome == "unfinished" and surface.counts("loss") == {"done": 5, "failed": 0, "left": 15}


def test_any_function_may_ask_for_the_stop():
    measure = Bowl()
    assert survey(measure, GRID, stop=lambda: len(measure.points) >= 4).outcome == "unfinished"
    assert 4 <= len(measure.points) < 8


def test_no_point_is_begun_that_cannot_end_in_time():
    import time

    measure = Bowl(lambda point: time.sleep(0.1))
    assert survey(measure, GRID, stop=Stop(after=0.45)).outcome == "unfinished"
    assert 1 <= len(measure.points) <= 4  # a fifth begun at 0.4 s would end after it


def test_progress_says_how_far_and_how_fast():
    events = []
    survey(Bowl(raising(OSError("no"), (0.0, 0.0))), GRID, progress=events.append)
    last = events[-1]
    assert (last.measure, last.done, last.failed, last.total, last.ranks) == ("loss", 19, 1, 20, 1)
    assert last.rate > 0 and last.left == 0
    assert [event.note[:14] for event in events if event.note] == ["point 2 failed"] * 2


@pytest.mark.parametrize(
    ("done", "rate", "left"), [(0, 0.0, float("inf")), (10, 2.0, 5.0), (20, 0.0, 0.0), (20, 4.0, 0.0)]
)
def test_the_time_left_follows_from_the_rate(done, rate, left):
    assert Progress("loss", done, 0, 20, rate, 1.0, 1).left == left


def test_without_a_display_what_happens_goes_to_the_log_as_a_warning(caplog):
    caplog.set_level(logging.INFO)
    act = raising(OSError("no"), (0.0, 0.0))
    survey(Bowl(act), GRID)
    survey(Bowl(act), GRID, progress=lambda event: None)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2 + ["INFO"] * 2


def test_what_the_store_raises_ends_the_survey():
    class Full(MemoryStore):
        def record(self, *what, **more):
            raise OSError("the disk is full")

    store = Full(GRID, {"loss": (Bowl.fields, {})})
    with pytest.raises(OSError, match="the disk is full"):
        survey(Bowl(), GRID, store=store)


def test_teams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="teams of 2 do not divide 1 computing ranks"):
        World().team(2)
    with pytest.raises(ValueError, match="--rank-0 deals needs a second rank"):
        survey(Bowl(), GRID, rank_0="deals")
    assert survey(Bowl(), GRID, team=Team.alone()).outcome == "complete"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_of_rounding_of_a_survey_in_memory_are_those_of_its_precision(dtype):
    model = nn.Linear(3, 2).to(dtype)
    data = (torch.randn(8, 3, dtype=dtype), torch.arange(8) % 2)
    problem = lossmap.Problem.supervised(model, "crossentropy", data)
    plane, grid = lossmap.random_plane(model, axes=1), lossmap.Grid(np.linspace(-1, 1, 5))
    surface = lossmap.survey(lossmap.losses(problem, plane), grid)
    found = lossmap.find_minima(surface)
    assert found.error_kind == "rounding"
    assert 0 < found.error[0] <= 16 * torch.finfo(dtype).eps * found.values.max()


def test_a_survey_in_memory_knows_its_plane_as_a_file_does(tmp_path):
    a, b, c = (nn.Linear(3, 2) for _ in "abc")
    problem = lossmap.Problem.supervised(a, "mse", (torch.ones(4, 3), torch.zeros(4, 2)))
    for plane in (lossmap.plane_through(a, b, c), lossmap.random_plane(a)):
        measure, grid = lossmap.losses(problem, plane), Grid.square(0, 1, 3)
        surfaces = [survey(measure, grid), survey(measure, grid, path=tmp_path / "p.h5", overwrite=True)]
        axes = [{n: dict(s.groups[f"directions/{n}"].attributes) for n in "xy"} for s in surfaces]
        assert axes[0] == axes[1] and axes[0]["x"]["kind"] == plane.recipes[0]["kind"]
        for name in ("directions_digest", "directions_cosine"):
            assert surfaces[0].attributes[name] == surfaces[1].attributes[name]
        drawn = [{t.get_text() for axes in lossmap.draw(s).axes for t in axes.texts} for s in surfaces]
        assert drawn[0] == drawn[1]
        assert ("model 3" in drawn[0]) == (plane.recipes[0]["kind"] == "to")


def test_how_a_loss_is_evaluated_is_told_without_a_file_too(tmp_path):
    model = nn.Linear(3, 1)
    problem = lossmap.Problem.custom(
        model, lambda m, b: (m(b[0]) - b[1]).square().mean().sqrt(), [(torch.randn(4, 3), torch.randn(4, 1))] * 2
    )
    measure = lossmap.losses(problem, lossmap.random_plane(model, axes=1))
    surface = survey(measure, Grid.line(0, 1, 2))
    assert "is not a mean over its samples" in surface.evaluation[0]
    surface.save(tmp_path / "s.h5")
    assert read(tmp_path / "s.h5").evaluation == surface.evaluation
    assert survey(measure, Grid.line(0, 1, 2), path=tmp_path / "f.h5").evaluation == surface.evaluation
