"""Directions along the Hessian's extreme eigenvectors: against the dense matrix in float64."""

import copy
import logging
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lossmap
from lossmap.landscape.curvature_directions import curved_direction


def trained(seed, activation):
    torch.manual_seed(seed)
    x = torch.randn(128, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 12), activation(), nn.Linear(12, 12), activation(), nn.Linear(12, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def dense(model, x, y):
    """The Hessian by the weights, (n, n), in float64: rows are gradients of the gradient's entries."""
    twin = copy.deepcopy(model).double()
    weights = [p for p in twin.parameters() if p.dim() > 1]
    loss = F.cross_entropy(twin(x.double()), y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("seed", range(3))
def test_both_ends_lie_along_their_eigenvectors(seed, activation):
    model, x, y = trained(seed, activation)
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    values, vectors = torch.linalg.eigh(dense(model, x, y))
    assert -values[0] < 0.03 * values[-1]  # so small that a tolerance of the largest one tells nothing of it
    for kind, column in (("hessian:max", -1), ("hessian:min", 0)):
        v, _, facts = curved_direction(problem, kind)
        v = v.double() / v.double().norm()
        cosine = float(v @ vectors[:, column])
        assert abs(cosine) > 0.998, kind
        assert facts["eigenvalue"] == pytest.approx(float(values[column]), abs=facts["residual"])
        beside = float((v - cosine * vectors[:, column]).norm())  # the sine of the angle
        assert beside <= 1.01 * facts["max_angle"] + 1e-5 < 0.051  # and rounding of the vector


def test_a_direction_that_cannot_be_told_from_others_is_named(caplog):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x = torch.cat([torch.randn(40, 3), torch.zeros(40, 3)], dim=1)  # nine weights without any curvature
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, torch.arange(40) % 3))
    with caplog.at_level(logging.WARNING, "lossmap"):
        v, _, facts = curved_direction(problem, "hessian:min")
    assert float(v.norm()) == pytest.approx(1.0)
    assert facts["max_angle"] == math.pi / 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("the axis hessian:min is not told from those next to it: its eigenvalue is ")
    caplog.clear()
    curved_direction(problem, "hessian:max")
    assert not caplog.records
