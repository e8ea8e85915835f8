"""Batch sharpness: dense truth on a small net, coverage of its error, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.data.batches import FixedBatches
from lossmap.data.problem import Problem
from lossmap.landscape.batch_sharpness import _batches, batch_sharpness
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.report.text import behind


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2
    return Problem.supervised(model, "crossentropy", (x, y))


def quotient(problem, x, y, criterion=nn.functional.cross_entropy):
    """g^T H g / g^T g of a batch, from a dense Hessian by torch.autograd.functional."""
    names, parameters = zip(*problem.model.named_parameters(), strict=True)

    def loss(theta):
        parts = torch.split(theta, [p.numel() for p in parameters])
        own = {n: t.view(p.shape) for n, t, p in zip(names, parts, parameters, strict=True)}
        return criterion(torch.func.functional_call(problem.model, own, (x,)), y)

    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    g = torch.autograd.functional.jacobian(loss, theta)
    return float(g @ torch.autograd.functional.hessian(loss, theta) @ g / (g @ g))


def test_it_is_the_mean_of_the_batches_own_quotients():
    problem = small()
    found = batch_sharpness(problem, 5, 6, parameters="all", seed=2)
    own = [quotient(problem, *b.tensors) for b in _batches(problem, 5, 6, 2)]
    assert found.value == pytest.approx(np.mean(own), rel=1e-9)
    assert found.error == pytest.approx(np.std(own, ddof=1) / 6**0.5, rel=1e-7)
    assert (found.batches, found.size) == (6, 5)
    everything = batch_sharpness(problem, 12, 2, parameters="all")  # each batch holds all samples
    assert everything.value == pytest.approx(quotient(problem, *problem.data.tensors), rel=1e-9)
    assert everything.error < 1e-9


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_error_holds_what_rounding_in_the_models_own_precision_does(offset):
    torch.manual_seed(0)
    x, y = 3.0 * torch.randn(40, 6), torch.randn(40, 2) + offset
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        model[2].bias += offset
    found = batch_sharpness(Problem.supervised(model, "mse", (x, y)), 40, 2, parameters="all")  # twice the same batch
    truth = quotient(
        Problem.supervised(model.double(), nn.MSELoss(), (x.double(), y.double())), x.double(), y.double(), nn.MSELoss()
    )
    assert 0.0 < abs(found.value - truth) <= found.error < 0.01 * truth


IGNORED = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 9.0], dtype=torch.float64), ignore_index=0)


@pytest.mark.parametrize(
    ("problem_of", "criterion"),
    [
        (lambda m, data, loss: Problem.supervised(m, loss, data), IGNORED),
        (lambda m, data, loss: Problem.supervised(m, loss, data), nn.CrossEntropyLoss(weight=IGNORED.weight)),
        (
            lambda m, data, loss: Problem.custom(m, lambda m, b: (loss(m(b[0]), b[1]), (b[1] > 0).sum()), data),
            nn.CrossEntropyLoss(ignore_index=0),
        ),
    ],
    ids=["ignored", "class weights", "weight of its own"],
)
def test_the_loss_of_a_batch_is_the_mean_over_its_own_weights(problem_of, criterion):
    plain = small()
    problem = problem_of(plain.model, plain.data.tensors, criterion)
    batches = [b.tensors for b in _batches(problem, 2, 12, 0)]
    counted = [(x, y) for x, y in batches if criterion.ignore_index != 0 or (y > 0).any()]
    if criterion.ignore_index == 0:
        assert len(counted) < 12  # of some nothing counts
    own = [quotient(problem, x, y, criterion) for x, y in counted]
    found = batch_sharpness(problem, 2, 12, parameters="all")
    assert (found.value, found.batches) == (pytest.approx(np.mean(own), rel=1e-9), len(counted))


def test_the_error_covers_the_mean_over_all_batches():
    problem = small()
    x, y = problem.data.tensors
    pairs = [(i, j) for i in range(12) for j in range(i)]
    truth = np.mean([quotient(problem, x[list(p)], y[list(p)]) for p in pairs])
    found = [batch_sharpness(problem, 2, 12, parameters="all", seed=s) for s in range(12)]
    assert abs(np.mean([f.value for f in found]) - truth) < 4 * np.mean([f.error for f in found]) / 12**0.5
    assert sum(abs(f.value - truth) < 3.1 * f.error for f in found) >= 10  # 99 % each by Student's t


def test_batches_as_given_stay_and_what_cannot_be_is_refused():
    problem = small()
    x, y = problem.data.tensors
    fixed = problem.with_data(FixedBatches(((x[:7], y[:7]), (x[7:], y[7:]))))
    own = [quotient(problem, x[:7], y[:7]), quotient(problem, x[7:], y[7:])]
    assert batch_sharpness(fixed, 6, parameters="all").value == pytest.approx(np.mean(own), rel=1e-9)
    with pytest.raises(ValueError, match="a batch of 13 samples is more than the 12"):
        batch_sharpness(problem, 13)
    with pytest.raises(ValueError, match=">= 2 batches of >= 1 samples; got 1 of 4"):
        batch_sharpness(problem, 4, 1)


def test_sharpness_reports_it_and_a_file_keeps_it(tmp_path):
    problem = small()
    few = {"draws": 0, "ascent_steps": 0, "critical": False, "trace_products": 0, "parameters": "all"}
    found = lossmap.sharpness(problem, batch=5, batches=6, seed=2, **few)
    assert found.batch == batch_sharpness(problem, 5, 6, parameters="all", seed=2)
    text = " ".join(repr(found).split())
    assert f"sharpness {found.batch.value:.1f}"[:12] in text and "6 batches of 5 samples" in text
    assert lossmap.read(found.save(tmp_path / "s.h5")).equals(found)
    without = lossmap.sharpness(problem, **few)
    assert without.batch is None and "batch's loss" not in repr(without)
    assert "batch" not in SharpnessRequest().stored()  # files of earlier versions resume


def test_a_number_of_a_loss_without_a_unit_has_none_behind_it():
    assert [behind(unit) for unit in ("nats per token", "1", "")] == [" nats per token", "", ""]


def test_a_loss_without_a_unit_is_named_by_none():
    problem = small()
    x, y = problem.data.tensors
    own = Problem.custom(problem.model, lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1]), (x, y))
    found = lossmap.sharpness(own, draws=2, ascent_steps=1, starts=1, critical=False, trace_products=0)
    text = repr(found)
    assert found.unit == "1" and "Rise of the loss:" in text and " 1," not in text.split("gradient norm")[0]
    labels = [axes.get_xlabel() for axes in lossmap.draw(found).axes]
    assert labels[0].startswith("curvature\n(per squared unit of theta)") and labels[1].startswith("rise of the loss;")
