"""Results that are overwritten in place although their derivative needs them are refused by name; others are not."""

import pytest
import torch
from torch import nn

from lossmap import (
    EigenvalueMap,
    Problem,
    diagnose,
    layer_spectra,
    losses,
    random_plane,
    sharpness,
    spectrum,
)
from lossmap.curvature.overwritten import overwritten_result

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


class Net(nn.Module):
    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.change = nn.Linear(4, 5), nn.Linear(5, 3), change

    def forward(self, x):
        return self.last(self.change(self.first(x)))


def masked(h):
    h = h.exp()
    h[:, 0] = 0
    return h


def added(h):
    h = h.sigmoid()
    h += 1
    return h


CURVATURE = [
    lambda p: EigenvalueMap(p, random_plane(p.model, axes=1))((0.0,)),
    lambda p: spectrum(p, top=1),
    lambda p: spectrum(p, top=1, check=False),
    lambda p: layer_spectra(p, "tensor"),
    sharpness,
]


@pytest.mark.parametrize("measured", CURVATURE)
@pytest.mark.parametrize(
    ("change", "name"), [(lambda h: h.tanh_().mul_(2), "Tanh"), (added, "Sigmoid"), (masked, "Exp")]
)
def test_what_has_no_gradient_is_refused_by_the_operation(measured, change, name):
    problem = Problem.supervised(Net(change), "crossentropy", (X, Y))
    sentence = rf"no gradient: the model or the loss overwrites the result of {name} \(a tensor of shape \[\d+, 5\]\)"
    with pytest.raises(ValueError, match=sentence):
        measured(problem)


def test_its_losses_are_measured_and_its_health_says_why_there_is_no_more():
    problem = Problem.supervised(Net(masked), "crossentropy", (X, Y))
    assert losses(problem, random_plane(problem.model))((0.0, 0.0))["train_loss"] > 0
    report = " ".join(str(diagnose(problem)).split())
    assert report.count("the model or the loss overwrites the result of Exp") >= 2
    assert "inplace operation" not in report


def test_what_is_changed_in_place_and_not_needed_has_its_curvature():
    other = Problem.supervised(Net(lambda h: (2 * h).add_(1).sin().mul_(2)), "crossentropy", (X, Y))
    plain = Problem.supervised(Net(lambda h: 2 * (2 * h + 1).sin()), "crossentropy", (X, Y))
    found, expected = (spectrum(p, top=1).top.values[0] for p in (other, plain))
    assert found == pytest.approx(expected, rel=1e-4)


def test_other_errors_are_none_of_them():
    assert overwritten_result(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert "overwrites a tensor in place, which a derivative needs" in overwritten_result(
        RuntimeError("one of the variables needed for gradient computation has been modified by an inplace operation")
    )
