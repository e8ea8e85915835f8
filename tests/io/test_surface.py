"""Surfaces as values, and the small texts that files carry."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.geometry.grid import Grid
from lossmap.io.surface import Failure, Group, Surface, canonical, differences, indices_of, spans, to_plain

GRID = Grid(np.array([-1.0, 0.0, 1.0]), np.array([0.0, 2.0]))


def surface(**more):
    z = np.array([[3.0, 1.0, np.nan], [2.0, 5.0, np.inf]])
    status = {"loss": np.array([[1, 1, 1], [1, 1, 0]])}
    return Surface(GRID, {"train_loss": z}, status=status, measures={"loss": ("train_loss",)}, **more)


def test_the_repr_has_coordinates_counts_and_minima():
    text = repr(surface(groups={"spectrum": Group()}))
    assert text.splitlines() == [
        "Surface of 3 x 2 points, x -1 to 1, y 0 to 2; unfinished",
        "  loss: 5 done, 0 failed, 1 left",
        "  train_loss: 1 at (0, 0) to 5 nats",
        "  groups: spectrum",
    ]
    empty = Surface(Grid(np.array([0.0])), {"mine": np.array([np.nan])})
    assert "mine: no finite value" in repr(empty)
    assert repr(empty).startswith("Surface of 1 points, x 0 to 0; unfinished")


def test_a_surface_made_by_hand_knows_its_units_and_what_is_done():
    made = Surface(GRID, {"train_loss": [[1, 2, 3], [4, 5, np.nan]], "mine": np.zeros((2, 3))})
    assert made.about["train_loss"].unit == "nats" and made.about["mine"].unit == "1"
    assert made.outcome == "complete" and made.counts("loss")["done"] == 6
    assert "mine" in made and "other" not in made
    with pytest.raises(KeyError, match="no field 'other' here; there are: mine, train_loss"):
        made["other"]


def test_a_field_without_a_measure_is_done_where_it_is_not_nan():
    made = surface()
    extra = Surface(GRID, {**made.fields, "own": made["train_loss"]}, status=made.status, measures=made.measures)
    assert extra.status_of("own").tolist() == [[1, 1, 0], [1, 1, 1]]  # infinite is a result
    assert extra.status_of("train_loss").tolist() == [[1, 1, 1], [1, 1, 0]]


def test_shapes_that_are_not_y_x_are_refused():
    with pytest.raises(ValueError, match=r"'train_loss' has shape \(3, 2\); of this grid it must be \(2, 3\) \(y, x\)"):
        Surface(GRID, {"train_loss": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"status of 'loss' has shape \(6,\); of this grid it must be \(2, 3\)"):
        Surface(GRID, {}, status={"loss": np.zeros(6)})


def test_missing_points_are_those_to_do_and_failed():
    made = Surface(GRID, {}, status={"loss": np.array([[1, 2, 1], [0, 1, 1]])})
    assert list(made.missing("loss")) == [1, 3] and made.outcome == "unfinished"
    failed = Surface(GRID, {}, status={"loss": np.array([[1, 2, 1], [1, 1, 1]])})
    assert failed.outcome == "failed" and failed.outcome_of("loss") == "failed"
    assert Surface(GRID, {}).outcome == "unfinished"


def test_the_reason_of_a_failure_is_what_was_raised():
    assert Failure(0, 0, "h", "Traceback\n  at\nKeyError: 'x'\n\n").reason == "KeyError: 'x'"


@given(st.sets(st.integers(0, 500)))
def test_indices_survive_as_text(indices):
    assert set(indices_of(spans(np.array(sorted(indices), dtype=int)))) == indices


def test_runs_are_drawn_together():
    assert spans(np.array([9, 0, 1, 2, 7])) == "0-2,7,9"


def test_plain_is_what_json_gives_back():
    told = {"a": (1, 2), "b": np.float64(0.5), "c": Path("x"), "d": np.arange(2), "e": {3, 1}}
    assert to_plain(told)["a"] == [1, 2] and to_plain(told)["b"] == 0.5 and to_plain(told)["c"] == "x"
    assert to_plain(told)["d"] == [0, 1] and to_plain(told)["e"] == [1, 3]
    assert canonical({"b": 1, "a": (2,)}) == '{"a":[2],"b":1}'


def test_differences_are_named_through_nested_settings_but_not_what_was_chosen():
    here = {"a": {"b": 1, "c": [1, 2]}, "chosen": {"x": 1}, "only": None, "empty": {}}
    there = {"a": {"b": 2, "c": (1, 2)}, "chosen": {"x": 2}, "empty": {}}
    assert list(differences(here, there)) == [("a.b", 1, 2), ("only", None, "(not set)")]
