"""A loss that holds the model itself is not evaluated over copies, which it does not follow."""

import copy
import threading
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.curvature.autotune import prepare
from lossmap.data.held_model import holds
from lossmap.data.problem import Problem
from lossmap.spectra.l2_path import retrained_spectra

DECAY = 0.5


def classifier():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(24, 4)
    return model, x, torch.arange(24) % 3


def regularized(model, outputs, targets):
    return F.cross_entropy(outputs, targets) + DECAY / 2 * sum(p.square().sum() for p in model.parameters())


def step(held, model, batch):
    return F.cross_entropy(held(batch[0]), batch[1])


@pytest.fixture(params=["a regularizer", "all of it"])
def held(request):
    model, x, y = classifier()
    if request.param == "all of it":
        return Problem.custom(model, partial(step, model), (x, y)), 0.0
    return Problem.supervised(model, partial(regularized, model), (x, y)), DECAY


def test_blocks_and_bars_are_those_of_the_whole_loss(held):
    problem, decay = held
    model, x, y = classifier()
    plain = lossmap.layer_spectra(Problem.supervised(model, "crossentropy", (x, y)), probes=0)
    found = lossmap.layer_spectra(problem, probes=0)
    for block in found.blocks:
        assert block.largest == pytest.approx(plain[block.name].largest + decay, abs=1e-5)
        assert block.error < 1e-4
    assert found.whole.residuals.max() < 0.01
    assert "holds the model itself" in found.notes[0]


def test_what_evaluates_copies_refuses_it(held, tmp_path):
    problem, _ = held
    torch.save(problem.model.state_dict(), tmp_path / "step_1.pt")
    with pytest.raises(ValueError, match="the loss holds the model itself"):
        lossmap.run_dynamics([tmp_path], problem, path=tmp_path / "run.h5", top=1)
    with pytest.raises(ValueError, match="the loss holds the model itself"):
        retrained_spectra(problem, [0.1], epochs=1)


def test_a_loss_of_what_it_is_given_holds_nothing():
    model, x, y = classifier()
    twin = classifier()[0]
    for problem in (
        Problem.supervised(twin, lambda f, y: F.cross_entropy(f, y), (x, y)),
        Problem.custom(
            twin, lambda m, b: F.cross_entropy(m(b[0]), b[1]) + sum(p.norm() for p in m.parameters()), (x, y)
        ),
    ):
        assert not holds(problem, model)


def centred(outputs, targets, held=None):
    """Of one sample there is no spread."""
    if len(outputs) < 2:
        raise ValueError("expected more than 1 sample")
    penalty = 0 if held is None else sum(p.square().sum() for p in held.parameters())
    return F.cross_entropy((outputs - outputs.mean(0)) / outputs.std(0), targets) + penalty


def test_a_loss_that_fails_on_one_sample_is_asked_with_a_batch_of_its_own():
    model, x, y = classifier()
    for loss, is_held in ((centred, False), (partial(centred, held=model), True)):
        twin = Problem.supervised(model, loss, (x, y), batch_size=8).over(copy.deepcopy(model))
        assert holds(twin, model) is is_held


class KeepsItsBalance(nn.Module):
    """Leaves a term of its loss in an attribute, as a mixture of experts does."""

    def __init__(self):
        super().__init__()
        self.net, self.balance = nn.Linear(4, 3), 0

    def forward(self, x):
        outputs = self.net(x)
        self.balance = outputs.softmax(1).square().sum(1).mean()
        return outputs


@pytest.mark.parametrize("place", ["closure", "argument"])
def test_a_loss_that_reads_what_the_models_last_pass_left_holds_it(place):
    torch.manual_seed(0)
    model, data = KeepsItsBalance(), (torch.randn(20, 4), torch.arange(20) % 3)
    if place == "closure":
        problem = Problem.supervised(model, lambda o, t: F.cross_entropy(o, t) + model.balance, data)
    else:
        problem = Problem.custom(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]) + m.balance, data)
    twin = replace(problem, model=copy.deepcopy(model).double(), data=problem.data.to(dtype=torch.float64))
    assert holds(twin, model) is (place == "closure")


@dataclass(frozen=True)
class DecayedFrozen:
    """A loss that keeps what it decays, and may not be written to."""

    first: torch.Tensor
    others: list

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets) + squares([self.first], self.others)


class Decayed(nn.Module):
    """A criterion that keeps what it decays."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, outputs, targets):
        kept = self.kept.parameters() if isinstance(self.kept, nn.Module) else self.kept
        return F.cross_entropy(outputs, targets) + squares(kept)


def squares(*parts):
    return DECAY / 2 * sum(p.square().sum() for part in parts for p in part)


def decayed_by(place, parameters, model):
    """A loss with a decay of parameters that stand in a place outside of the model."""
    first, *others = parameters
    by_name = {"first": first, "others": others}
    return {
        "list": lambda f, y: F.cross_entropy(f, y) + squares(parameters),
        "dictionary": lambda f, y: F.cross_entropy(f, y) + squares([by_name["first"]], by_name["others"]),
        "variable": lambda f, y: F.cross_entropy(f, y) + squares([first], others),
        "default": lambda f, y, held=parameters: F.cross_entropy(f, y) + squares(held),
        "criterion": Decayed(parameters),
        "frozen": DecayedFrozen(first, others),
        "criterion of modules": Decayed(nn.ModuleList(model)),
    }[place]


PLACES = ["list", "dictionary", "variable", "default", "criterion", "frozen", "criterion of modules"]


@pytest.mark.parametrize("place", PLACES)
def test_parameters_that_a_loss_holds_are_those_of_the_copy(place):
    model, x, y = classifier()
    parameters = list(model.parameters())
    before = [p.clone() for p in parameters]
    problem = Problem.supervised(model, decayed_by(place, parameters, model), (x, y))
    factory = prepare(problem, "all")  # products of the backend that passed the comparison over a copy
    assert factory.plan.rounding  # which was measured over a copy too
    moved = copy.deepcopy(model)
    for p in moved.parameters():
        p.data += 0.1
    for there in (model, moved):
        plain = lossmap.spectrum(
            Problem.supervised(there, "crossentropy", (x, y)), parameters="all", density_error=None
        )
        matrix = factory.at({name: p.detach() for name, p in there.named_parameters()})
        trace = float((matrix @ torch.eye(matrix.size)).trace())
        assert trace == pytest.approx(plain.trace.value + DECAY * matrix.size, rel=1e-4)
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(parameters, model.parameters(), before, strict=True))


class Scaled(nn.Module):
    """With a factor made of its own bias: by its forward, or by code that was made with the model and holds it."""

    def __init__(self, held_by=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Linear(4, 5), nn.Linear(5, 3), nn.Identity()
        self.factor = (lambda: self.a.bias.sum().exp()) if held_by == "lambda" else None
        self.is_scaled = held_by not in ("lambda", "hook")
        if held_by == "hook":
            self.last.register_forward_hook(lambda module, x, y: y * self.a.bias.sum().exp())
        elif held_by == "forward":
            own = self.forward
            self.forward = lambda x: own(x)

    def forward(self, x):
        x = self.last(self.b(torch.tanh(self.a(x))))
        if self.factor is not None:
            return x * self.factor()
        return x * self.a.bias.sum().exp() if self.is_scaled else x


@pytest.mark.parametrize("held_by", ["lambda", "hook", "forward"])
def test_a_model_whose_own_code_holds_it_is_measured_as_one_whose_forward_does(held_by, tmp_path):
    _, x, y = classifier()
    plain, held = (Problem.supervised(Scaled(by), "crossentropy", (x, y)) for by in (None, held_by))
    blocks, found = (lossmap.layer_spectra(p, probes=0) for p in (plain, held))
    for block in found.blocks:
        assert block.largest == pytest.approx(blocks[block.name].largest, abs=1e-5)
    moved = {name: t + 0.1 for name, t in held.model.state_dict().items()}
    torch.save(moved, tmp_path / "step_1.pt")
    runs = [
        lossmap.run_dynamics([tmp_path / "step_1.pt"], p, path=tmp_path / f"{i}.h5")
        for i, p in enumerate((plain, held))
    ]
    np.testing.assert_allclose(*(run["eigenvalue"] for run in runs), rtol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "retained-graph"])
def test_no_graph_is_kept_of_a_loss_that_holds_parameters_where_nothing_compares_it(backend):
    model, x, y = classifier()
    model[0].weight.requires_grad_(False)
    local = threading.local()
    local.weight = model[0].weight
    problem = Problem.supervised(model, lambda f, y: F.cross_entropy(f, y) + squares([local.weight]), (x, y))
    plain = lossmap.hessian(Problem.supervised(model, "crossentropy", (x, y)), backend="double-backward")
    held = lossmap.spectrum(problem, backend=backend, check=False, trace_products=60)
    decayed = DECAY * model[0].weight.numel()
    assert held.trace.value == pytest.approx(float((plain @ torch.eye(plain.size)).trace()) + decayed, rel=1e-4)
    assert not model[0].weight.requires_grad


def test_one_model_and_loss_are_asked_once(monkeypatch):
    model = nn.Linear(4, 3)
    problem = Problem.supervised(model, F.cross_entropy, (torch.randn(12, 4), torch.arange(12) % 3))
    asked, evaluate = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **keywords: asked.append(1) or evaluate(*args, **keywords)
    )
    for _ in range(2):
        assert not holds(problem.over(copy.deepcopy(model)), model)
    assert len(asked) == 1
    other = replace(problem, loss=lambda outputs, batch: problem.loss(outputs, batch) + model.weight.square().sum())
    assert all(holds(other.over(copy.deepcopy(model)), model) for _ in range(2))
    assert not holds(problem.over(copy.deepcopy(model)), model)
