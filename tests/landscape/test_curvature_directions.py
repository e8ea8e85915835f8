"""Directions along the Hessian's extreme eigenvectors: against the dense matrix in float64."""

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lossmap
from lossmap.data.preconditioner import Preconditioner
from lossmap.diagnostics.step_rule import preconditioner_of
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


@pytest.mark.parametrize(
    ("kind", "column"), [("hessian:max:1", -1), ("hessian:max:2", -2), ("hessian:max:4", -4), ("hessian:min:2", 1)]
)
def test_inner_eigenvectors_are_counted_from_their_end(kind, column):
    model, x, y = trained(1, nn.Tanh)
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    values, vectors = torch.linalg.eigh(dense(model, x, y))
    v, _, facts = curved_direction(problem, kind)
    cosine = float(v.double() @ vectors[:, column]) / float(v.double().norm())
    assert math.sqrt(max(0.0, 1 - cosine**2)) <= 1.01 * math.sin(facts["max_angle"]) + 1e-3 < 0.06
    assert facts["eigenvalue"] == pytest.approx(float(values[column]), abs=facts["residual"])


@pytest.mark.parametrize(("kind", "column"), [("max", -1), ("max:2", -2), ("min", 0)])
def test_preconditioned_axes_are_those_of_the_dense_matrix_mapped_back(kind, column):
    model, x, y = trained(1, nn.Tanh)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    torch.manual_seed(3)
    diagonal = {name: torch.rand(p.shape, dtype=torch.float64) * 4 + 0.1 for name, p in weights.items()}
    own = Preconditioner.of_diagonal(diagonal, {name: tuple(p.shape) for name, p in weights.items()})
    problem = replace(lossmap.Problem.supervised(model, "crossentropy", (x, y)), preconditioner=own)
    root = torch.cat([t.flatten() for t in diagonal.values()]).rsqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * dense(model, x, y) * root)
    expected = root * vectors[:, column]
    v, _, facts = curved_direction(problem, f"preconditioned:{kind}")
    cosine = float(v.double() @ expected) / float(v.double().norm() * expected.norm())
    assert math.sqrt(max(0.0, 1 - cosine**2)) <= 1.01 * math.sin(facts["max_angle"]) + 1e-5 < 0.06
    assert facts["eigenvalue"] == pytest.approx(float(values[column]), abs=facts["residual"] + 1e-12)
    assert v.dtype == torch.float32 and float(v.norm()) == pytest.approx(1.0, rel=1e-6)


def test_the_preconditioned_gradient_is_the_step_of_rmsprop():
    model, x, y = trained(1, nn.Tanh)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, weight_decay=0.01)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    own = preconditioner_of(optimizer, dict(model.named_parameters()))
    problem = replace(lossmap.Problem.supervised(model, "crossentropy", (x, y)), preconditioner=own)
    v, layout, facts = curved_direction(problem, "preconditioned:gradient")
    before = [p.detach().double().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["alpha"] = 1 - 1e-12  # the mean square stays as it is, and a step is P^-1 (g + W theta)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    moved = torch.cat([(a - p.detach().double()).flatten() for a, p in zip(before, model.parameters(), strict=True)])
    assert float(v.double() @ moved / moved.norm()) > 1 - 1e-4
    assert facts == {} and sum(layout.sizes) == len(v)
    with pytest.raises(ValueError, match="needs a preconditioner"):
        curved_direction(replace(problem, preconditioner=None), "preconditioned:gradient")


@pytest.mark.parametrize("kind", ["absolute", "adaptive", "filter"])
def test_the_ascent_of_sam_is_that_in_which_the_loss_rises_most_within_its_ball(kind):
    model, x, y = trained(2, nn.Tanh)
    twin = copy.deepcopy(model).double()
    gradient = torch.autograd.grad(F.cross_entropy(twin(x.double()), y), list(twin.parameters()))
    parts = []
    for p, g in zip(twin.parameters(), gradient, strict=True):
        rows = p.detach().abs() if p.dim() < 2 else p.detach().square().sum(1, keepdim=True).sqrt()
        scale = {"absolute": torch.ones_like(p), "adaptive": p.detach().abs(), "filter": rows.expand_as(p)}[kind]
        parts.append((scale.square() * g).flatten())
    expected = torch.cat(parts)
    v, _, facts = curved_direction(lossmap.Problem.supervised(model, "crossentropy", (x, y)), f"sam:{kind}")
    assert torch.allclose(v.double(), expected / expected.norm(), atol=2e-5) and facts == {}
    if kind == "absolute":
        plain, _, _ = curved_direction(lossmap.Problem.supervised(model, "crossentropy", (x, y)), "gradient")
        assert torch.equal(v, plain)


@pytest.mark.parametrize("kind", ["hessian", "hessian:mid", "hessian:max:0", "hessian:max:x", "sam", "sam:x"])
def test_other_directions_are_refused_with_those_that_there_are(kind):
    problem = lossmap.Problem.supervised(nn.Linear(2, 2), "mse", (torch.randn(4, 2), torch.randn(4, 2)))
    with pytest.raises(ValueError, match=f"hessian:min:2 and so on; got '{kind}'"):
        curved_direction(problem, kind)
    with pytest.raises(ValueError, match="the direction hessian:max:5: the Hessian has 4 eigenvectors"):
        curved_direction(problem, "hessian:max:5")


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


@pytest.mark.parametrize(("kind", "column"), [("hessian:max:2", -2), ("hessian:max:4", -4), ("hessian:min:5", 4)])
def test_copies_of_an_eigenvalue_are_counted(kind, column, caplog):
    """Of three outputs with squared errors each eigenvalue of the inputs' second moments is there three times."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(80, 4) * torch.tensor([1.0, 1.4, 1.8, 2.2])
    problem = lossmap.Problem.supervised(model, "mse", (x, torch.randn(80, 3)))
    moments = torch.linalg.eigvalsh(2 * x.double().T @ x.double() / 80)
    exact = moments.repeat_interleave(3) / 3  # squared errors are a mean over the outputs
    with caplog.at_level(logging.WARNING, "lossmap"):
        v, _, facts = curved_direction(problem, kind)
    assert facts["eigenvalue"] == pytest.approx(float(exact[column]), rel=1e-3)
    assert float((lossmap.hessian(problem) @ v - facts["eigenvalue"] * v).norm()) <= 1e-3 * float(exact[-1])
    assert "is not told from those next to it" in caplog.text and facts["max_angle"] == math.pi / 2
