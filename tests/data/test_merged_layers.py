"""Low-rank adapters of several habits: surface and Hessian by the adapters, against the same layer written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap import Grid, Problem
from lossmap.data.borrow import copy_of, evaluated_in_training, to_precision


class Adapter(nn.Linear):
    """Never merges."""

    def __init__(self):
        super().__init__(4, 5)
        self.A, self.B = nn.Parameter(torch.randn(2, 4) * 0.5), nn.Parameter(torch.randn(5, 2) * 0.5)
        self.weight.requires_grad_(False)
        self.merged, self.kept = False, None

    def product(self):
        return self.B @ self.A

    def forward(self, x):
        return F.linear(x, self.weight + self.product(), self.bias)


class MergesInForward(Adapter):
    def forward(self, x):
        if self.training:
            if self.merged:
                self.weight.data -= self.product().data
                self.merged = False
            return super().forward(x)
        if not self.merged:
            self.weight.data += self.product().data
            self.merged = True
        return F.linear(x, self.weight, self.bias)


class KeepsInForward(Adapter):
    def forward(self, x):
        if self.training:
            self.kept = None
            return super().forward(x)
        if self.kept is None:
            self.kept = (self.weight + self.product()).detach()
        return F.linear(x, self.kept, self.bias)


class KeepsInEval(Adapter):
    """Keeps the sum as an attribute: no parameter changes."""

    def train(self, mode=True):
        super().train(mode)
        self.kept = None if mode else (self.weight + self.product()).detach()
        return self

    def forward(self, x):
        return super().forward(x) if self.kept is None else F.linear(x, self.kept, self.bias)


class ReplacesInEval(Adapter):
    """A new parameter in the place of the old one."""

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            sign = -1 if mode else 1
            self.weight = nn.Parameter(self.weight.data + sign * self.product().data, requires_grad=False)
            self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) if self.merged else super().forward(x)


def net(kind):
    torch.manual_seed(2)
    return nn.Sequential(kind(), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3))


def data():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", [MergesInForward, KeepsInForward, KeepsInEval, ReplacesInEval])
def test_the_adapters_move_the_loss_and_have_a_hessian(kind, mode):
    model, plain = net(kind), net(Adapter).eval()
    if kind in (KeepsInEval, ReplacesInEval) and not mode:
        with pytest.raises(ValueError, match=r"eval\(\) changes parameters of this model.*call model.train\(\) first"):
            _readings(model.eval())
        return
    model.train(mode)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found, right = _readings(model), _readings(plain)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training == mode and model[0].training == mode and not model[0].merged and model[0].kept is None


def _readings(model):
    problem = Problem.supervised(model, "crossentropy", data())
    plane = lossmap.random_plane(model, axes=1, seed=1)
    surface = lossmap.survey(lossmap.losses(problem, plane), Grid.line(0, 1, 2))
    operator = lossmap.hessian(problem, parameters="0.[AB]")
    v = torch.linspace(-1, 1, operator.size)
    return torch.cat([torch.as_tensor(surface["train_loss"], dtype=torch.float32), operator @ v])


def test_a_table_made_in_eval_that_depends_on_no_parameter_is_left_alone():
    class Static(KeepsInEval):
        def train(self, mode=True):
            nn.Linear.train(self, mode)
            self.table = None if mode else torch.linspace(0.5, 1.5, 5)
            return self

        def forward(self, x):
            assert not self.training
            return Adapter.forward(self, x) * self.table

    model = net(Static).eval()
    assert bool(torch.isfinite(_readings(model)).all())


def test_an_auxiliary_head_in_training_mode_is_not_taken_for_a_merging_layer():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.other = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            h = torch.tanh(self.body(x))
            return (self.head(h), self.other(h)) if self.training else self.head(h)

    model = Auxiliary().train()
    problem = Problem.supervised(model, "crossentropy", data())
    lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))
    assert evaluated_in_training(model) == ()


def test_making_a_layer_in_eval_leaves_the_random_numbers_alone():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.fused = nn.Linear(4, 3), nn.Linear(4, 3), None

        def train(self, mode=True):
            super().train(mode)
            self.fused = None
            if not mode:
                self.fused = nn.Linear(4, 3)
                self.fused.load_state_dict({"weight": self.one.weight + self.other.weight,
                                            "bias": self.one.bias + self.other.bias})  # fmt: skip
            return self

        def forward(self, x):
            return self.one(x) + self.other(x) if self.fused is None else self.fused(x)

    torch.manual_seed(0)
    model = Fused()
    before = torch.get_rng_state()
    operator = lossmap.hessian(Problem.supervised(model, "crossentropy", data()))
    assert operator.size == 24 and float((operator @ torch.arange(24.0)).norm()) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_complex_tensors_stay_complex_in_another_precision():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.3, 0.7])))

        def forward(self, x):
            z = torch.view_as_complex(x.reshape(-1, 2, 2).contiguous()) * self.turn
            return self.last(torch.view_as_real(z).flatten(1))

    torch.manual_seed(0)
    model, (x, y) = Rotated(), data()
    turn = model.turn.clone()
    twin = copy_of(model, torch.float64)
    assert twin.turn.dtype == torch.complex128
    torch.testing.assert_close(twin(x.double()).float(), model(x))
    problem = Problem.supervised(model, "crossentropy", (x, y))
    lossmap.hessian(problem) @ torch.ones(12)
    assert torch.equal(model.turn, turn)
    assert torch.equal(to_precision(model, torch.float32).turn, turn)
