"""Loss and gradient norm lie within their bars of rounding, whatever cancels in them, and the bars are narrow."""

import copy

import pytest
import torch
from torch import nn

from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.data.problem import Problem
from lossmap.report.loss_text import told_from_zero
from lossmap.spectra.spectrum import spectrum


def fitted(scale, samples=200, hidden=16):
    """(a regression whose outputs are its targets but for `scale`, inputs, targets), all of order 30."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 2))
    x = torch.randn(samples, 6)
    with torch.no_grad():
        model[2].bias += 30.0
        y = model(x) + scale * torch.randn(samples, 2)
    return model, x, y


@pytest.mark.parametrize("samples", [200, 3000])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_loss_and_gradient_lie_within_their_bars(scale, samples):
    model, x, y = fitted(scale, samples)
    found = measured_gradient(Problem.supervised(model, "mse", (x, y)))
    exact = copy.deepcopy(model).double()
    loss = nn.functional.mse_loss(exact(x.double()), y.double())
    weights = [p for p in exact.parameters() if p.dim() > 1]
    norm = float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).norm())
    error = abs(found.loss - float(loss.detach()))
    assert error <= found.loss_error <= max(100 * error, 1e-5 * found.loss)
    error = abs(float(found.gradient.norm()) - norm)
    assert error <= found.norm_error <= max(100 * error, 1e-4 * norm)


def test_in_float64_the_bar_is_that_of_float64():
    model, x, y = fitted(1e-4)
    wide = copy.deepcopy(model).double()
    found = measured_gradient(Problem.supervised(wide, "mse", (x.double(), y.double())))
    assert 0.0 < found.loss_error < 1e-9 * found.loss


def test_a_gradient_that_is_rounding_alone_is_said_to_be():
    model, x, _ = fitted(1.0)
    with torch.no_grad():
        y = copy.deepcopy(model).double()(x.double()).float()  # right but for the last digit
    result = spectrum(Problem.supervised(model, "mse", (x, y)), density_error=None, trace_products=0)
    assert 0.0 < result.gradient_norm <= result.gradient_norm_error
    assert "not told from zero in this precision" in repr(result)
    assert told_from_zero(2.0, 0.1) == "2 +- 0.1" and told_from_zero(2.0, float("nan")) == "2"


def test_a_model_that_runs_in_one_precision_alone_has_no_bar():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 alone")
            return self.layer(x)

    torch.manual_seed(0)
    problem = Problem.supervised(Narrow(), "crossentropy", (torch.randn(20, 6), torch.arange(20) % 3))
    assert measured_gradient(problem).loss_error != measured_gradient(problem).loss_error  # NaN
    result = spectrum(problem, density_error=None, trace_products=0)
    assert "rounding not measured" in " ".join(repr(result).split())
