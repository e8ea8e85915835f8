"""A result in a few numbers: whatever part of it was asked for, and none of what does not fit."""

import numpy as np
import pytest

from lossmap import Grid, Surface
from lossmap.campaign.folder import _state_of
from lossmap.campaign.summary import numbers_of
from lossmap.io.read import Damaged
from lossmap.io.surface import Group


def surface(**spectra):
    return Surface(Grid.line(0, 0, 1), {}, groups={f"spectrum/{label}": group for label, group in spectra.items()})


def end(name, *values):
    return {name: np.array(values), f"{name}_error": np.full(len(values), 0.1)}


@pytest.mark.parametrize("names", [("top",), ("bottom",), (), ("top", "bottom")])
def test_spectra_of_one_end_or_none_are_collected(names):
    """`lossmap spectrum --bottom 0` made a file of which the table of a campaign ended in a KeyError."""
    arrays = {key: value for name in names for key, value in end(name, 2.0, 1.0).items()}
    numbers = numbers_of(surface(train=Group(arrays, {"trace": 3.0})))
    words = {"top": "largest", "bottom": "smallest"}
    assert numbers == {"trace": 3.0} | {k: v for n in names for k, v in ((words[n], 2.0), (f"{words[n]}_error", 0.1))}


def test_spectra_of_any_parts_are_told_apart_by_their_labels_and_a_path_is_none():
    path = Group({name: np.ones(2) for name in ("strength", "largest", "smallest")})
    made = surface(train=Group(end("top", 2.0)), test=Group({}, {"trace": 3.0}), path=path)
    assert numbers_of(made) == {"train_largest": 2.0, "train_largest_error": 0.1, "test_trace": 3.0}
    assert numbers_of(surface(train=Group(end("top", 2.0)), path=path)) == {"largest": 2.0, "largest_error": 0.1}


def test_a_group_that_does_not_fit_fails_its_member_alone():
    made = surface(train=Group({"top": np.ones(2)}))
    with pytest.raises(Damaged, match="spectrum/train has 'top' and no array 'top_error'"):
        numbers_of(made)
    state = _state_of(made, "", is_done=True)
    assert state.outcome == "failed" and "no array 'top_error'" in state.reason and state.numbers == {}
