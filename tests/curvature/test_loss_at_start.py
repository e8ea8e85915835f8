"""A loss that changes in the midst of a run is found at its end, whatever it counts."""

import itertools
from array import array

import numpy as np
import pytest
import torch
from torch import nn

from lossmap import (
    EigenvalueMap,
    Grid,
    Problem,
    diagnose,
    layer_spectra,
    losses,
    random_plane,
    read,
    sharpness,
    spectrum,
    survey,
)
from lossmap.cli.status import main
from lossmap.curvature.loss_at_start import LossAtStart

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
CHANGE = r"the loss changed during the run: over 12 samples, at the same weights, it was [\d.]+ at its beginning, and "


class Hidden:
    """A counter in an array, which no look at attributes finds."""

    __slots__ = ("last", "ticks")

    def __init__(self):
        self.ticks, self.last = array("q", [0]), 10**9

    def is_over(self):
        self.ticks[0] += 1
        return self.ticks[0] > self.last

    def end_after(self, more):
        self.last = self.ticks[0] + more


class Clock(Hidden):
    """A clock that goes on by itself, as `time.time` does."""

    __slots__ = ("source",)

    def __init__(self):
        super().__init__()
        self.source = map(int, itertools.count())

    def is_over(self):
        self.ticks[0] = next(self.source)
        return self.ticks[0] > self.last


def problem_of(counter):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (0.5 if counter.is_over() else 1.0)

    return Problem.supervised(model, loss, (X, Y))


def linear(model=None):
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.mark.parametrize("kind", [Hidden, Clock])
def test_a_survey_of_a_loss_that_changes_is_not_complete(kind, tmp_path, caplog, capsys):
    counter = kind()
    problem = problem_of(counter)
    measure = losses(problem, random_plane(problem.model, axes=1), plan={"batch_size": 12})
    assert survey(measure, Grid.line(-1, 1, 5)).outcome == "complete"
    counter.end_after(60)
    file = tmp_path / "a.h5"
    surface = survey(measure, Grid.line(-1, 1, 101), path=file)
    assert surface.outcome == "failed" and surface.counts("loss")["failed"] == 0
    assert CHANGE[:30] in caplog.text and surface.change_of("loss") == read(file).change_of("loss")
    assert main([str(file)]) == 3
    assert "101 points, completed\nnot to be used: the loss changed during the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "measured",
    [
        lambda p: spectrum(p, top=1),
        lambda p: layer_spectra(p, "tensor"),
        lambda p: sharpness(p, draws=4),
        lambda p: diagnose(p, examinations=["gradients", "signals"]),
        lambda p: refused(survey(EigenvalueMap(p, random_plane(p.model, axes=1), certify="none"), Grid.line(-1, 1, 5))),
    ],
)
def test_curvature_of_a_loss_that_changes_is_refused(measured):
    counter = Hidden()
    problem = problem_of(counter)
    measured(problem)
    before = counter.ticks[0]
    measured(problem)
    counter.end_after(counter.ticks[0] - before - 2)  # in the same work once more, before its end
    with pytest.raises(ValueError, match=CHANGE):
        measured(problem)


def refused(surface):
    if surface.outcome == "failed":
        raise ValueError(surface.change_of("eigen"))


def test_rounding_other_weights_and_what_fails_at_once_are_no_change():
    problem = problem_of(Hidden())
    at_start = LossAtStart([problem, problem])
    with torch.no_grad():
        problem.model.weight.normal_()  # a run may load others
    assert at_start.change() is None
    broken = problem_of(None)  # its points say why
    assert LossAtStart([broken]).change() is None


def test_a_loss_that_is_not_finite_any_more_or_fails_is_named():
    state = {"factor": 1.0}

    def loss(outputs, targets):
        if state["factor"] is None:
            raise RuntimeError("the end of the tape")
        return nn.functional.cross_entropy(outputs, targets) * state["factor"]

    at_start = LossAtStart([Problem.supervised(linear(), loss, (X, Y))])
    state["factor"] = np.nan
    assert "and nan at its end" in at_start.change()
    state["factor"] = None
    assert "fails at its end with RuntimeError: the end of the tape" in at_start.change()
