"""Where the gradient alone is stated it is that of the loss: padding rows count, and another function's is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap.callbacks.measurement import Measurement
from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.data.problem import Problem
from lossmap.health.diagnose import diagnose
from lossmap.landscape.curvature_directions import curved_direction

LOOKED_UP = {
    "F.embedding": lambda w, i: F.embedding(i, w, padding_idx=0),
    "torch.embedding": lambda w, i: torch.embedding(w, i, 0),
    "aten.embedding": lambda w, i: torch.ops.aten.embedding(w, i, 0),
    "aten.embedding.default": lambda w, i: torch.ops.aten.embedding.default(w, i, 0),
}


class Reader(nn.Module):
    """Averages the rows of a text, those of its padding too."""

    def __init__(self, look_up):
        super().__init__()
        self.look_up, self.weight, self.head = look_up, nn.Parameter(torch.randn(7, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.look_up(self.weight, x).mean(1).tanh())


class Rounded(nn.Module):
    """A straight-through estimator."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        w = self.layer.weight
        return self.head(F.linear(x, w + (torch.round(4 * w) / 4 - w).detach() ** 2, self.layer.bias).tanh())


def of(model, inputs):
    return Problem.supervised(model, "crossentropy", (inputs, torch.arange(len(inputs)) % 3))


@pytest.mark.parametrize("name", LOOKED_UP)
def test_the_row_of_a_padding_counts_however_it_is_looked_up(name):
    torch.manual_seed(0)
    texts = torch.randint(0, 7, (24, 5))
    texts[:, -2:] = 0
    model = Reader(LOOKED_UP[name])
    gradient = loss_and_gradient(of(model, texts)).gradient
    model.look_up = lambda w, i: w[i]
    torch.testing.assert_close(gradient, loss_and_gradient(of(model, texts)).gradient, rtol=1e-5, atol=1e-8)
    assert float(gradient[:4].norm()) > 1e-3


def test_a_gradient_that_is_not_that_of_the_loss_is_refused_wherever_it_stands_alone():
    torch.manual_seed(0)
    problem = of(Rounded(), torch.randn(24, 4))
    cause = "is not that of the loss .*straight-through"
    with pytest.raises(ValueError, match=cause):
        check_gradient(problem)
    with pytest.raises(ValueError, match=cause):
        curved_direction(problem, "gradient")
    with pytest.raises(ValueError, match=cause):
        Measurement(problem).prepare_all()
    found = diagnose(problem, examinations=("gradients", "signals"))
    assert found.measurements.gradients is None and not found.measurements.gradient_norms
    assert "straight-through" in found.measurements.skipped["gradients"]


@pytest.mark.parametrize(
    "model, loss, targets",
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), "crossentropy", None),
        (nn.Linear(4, 1), nn.L1Loss(), "exact"),  # a kink of every sample at once
    ],
)
def test_kinks_and_fits_are_not_refused(model, loss, targets):
    torch.manual_seed(0)
    x = torch.randn(24, 4)
    y = torch.arange(24) % 3
    if targets == "exact":
        y = model(x).detach()
    else:
        model[0].weight.data.zero_()
        model[0].bias.data.zero_()
    check_gradient(Problem.supervised(model, loss, (x, y)))


class Zigzag(nn.Module):
    """w^2 with straight pieces of slope +-0.01 put on: of 5e-6 each, with a kink 3e-9 behind the point and all like it.

    A further multiple of w may be cut off the gradient, which then is not that of the loss on any side.
    """

    def __init__(self, cut=0.0):
        super().__init__()
        self.weight, self.cut = nn.Parameter(torch.ones(1, 1)), cut

    def forward(self, x):
        along = (self.weight - 1 + 3e-9) / 5e-6
        place = along.detach().floor()
        wave = torch.where(place % 2 == 0, along - place, 1 - (along - place))
        return x * (self.weight**2 + 0.01 * 5e-6 * wave + self.cut * self.weight.detach())


def test_a_gradient_with_kinks_beside_each_point_is_that_of_one_side():
    def zigzag(cut=0.0):
        return Problem.supervised(
            Zigzag(cut), lambda outputs, _: outputs.mean(), (torch.ones(24, 1), torch.zeros(24, 1))
        )

    check_gradient(zigzag())
    product = build_operator(zigzag(), "hessian", "weights") @ torch.ones(1)
    torch.testing.assert_close(float(product), 2.0, rtol=1e-6, atol=0.0)
    for cut in (0.005, 0.03):  # smaller than the jump of the gradient, and larger
        with pytest.raises(ValueError, match="is not that of the loss"):
            check_gradient(zigzag(cut))
