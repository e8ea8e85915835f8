"""Rates, dead units and gains of networks in which they are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.problem import Problem
from lossmap.diagnostics.activations import activation_statistics, gradient_norms
from lossmap.diagnostics.layer_signals import signals


def problem(model, x=None, batch=16, outputs=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator) if x is None else x
    return Problem.supervised(model, "crossentropy", (x, torch.arange(len(x)) % outputs), batch_size=batch)


def test_rates_and_dead_units_are_counted_one_by_one():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[2], model[0].bias[5] = -1e3, -1e3
    given = problem(model)
    (found,) = activation_statistics(given).activations
    hidden = torch.relu(model[0](given.data.tensors[0]))
    assert (found.name, found.kind, found.units, found.dead, found.dormant) == ("1", "relu", 6, 2, 2)
    assert found.rate == pytest.approx(float((hidden > 0).double().mean()))
    assert found.silence == pytest.approx(0.03) and np.isnan(found.saturated)


class Functional(nn.Module):
    """Calls its activations as functions, one of them twice, one in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 5, 3), nn.Linear(20, 3)

    def forward(self, x):
        out = F.relu(self.a(x))
        out = torch.relu(out - 0.1)
        return self.b(F.relu(out, inplace=True).tanh().flatten(1))


def test_activations_called_as_functions_are_seen_too_and_channels_are_units():
    model = Functional()
    with torch.no_grad():
        model.a.weight[3] = 0.0
        model.a.bias[3] = -1.0
    found = activation_statistics(problem(model, torch.randn(20, 1, 4, 4))).activations
    assert [a.name for a in found] == ["", "#2", "#3", "#4"]
    assert [a.kind for a in found] == ["relu", "relu", "relu", "tanh"]
    assert all(a.units == 5 for a in found) and found[0].dead == 1


def test_tanh_saturates_where_it_was_driven():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Tanh(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e4, 0, 0, 0], [0, 1e-4, 0, 0.0]]))
    (found,) = activation_statistics(problem(model)).activations
    assert found.saturated == pytest.approx(0.5) and found.dead == 0 and np.isnan(found.rate)


def test_features_of_a_sequence_stand_last():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(30, 3))
    (found,) = activation_statistics(problem(model, torch.randn(9, 5, 4))).activations
    assert found.units == 6 and found.kind == "gelu"


def test_the_gain_of_a_scaled_rotation_is_its_scale():
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(7.0 * turn)
        model[1].weight.copy_(0.2 * turn)
    found = activation_statistics(problem(model)).gains
    assert [g.gain for g in found[:2]] == pytest.approx([7.0, 0.2], rel=1e-5)
    assert found[0].error == pytest.approx(0.0, abs=1e-5)
    assert found[0].first and found[2].last and not found[1].first and not found[1].last


def test_a_normalisation_right_behind_a_layer_is_taken_into_account():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(400, 4)
    with torch.no_grad():
        model[0].weight.mul_(1000.0)
    for _ in range(100):
        model(x)  # running statistics
    model.eval()
    found = activation_statistics(problem(model, x)).gains[0]
    assert found.norm == "1" and found.alone > 300
    assert found.gain == pytest.approx(1.0 / found.entering, rel=0.05)


def test_a_normalisation_elsewhere_is_not():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    found = activation_statistics(problem(model)).gains[0]
    assert found.norm is None and found.gain == found.alone


def test_the_error_of_a_gain_is_its_spread_over_draws():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.1, 0]]))
    draws = [activation_statistics(problem(model, torch.randn(50, 4))).gains[0] for _ in range(60)]
    spread = np.std([g.gain for g in draws])
    assert 0.6 * spread < np.mean([g.error for g in draws]) < 1.6 * spread


def test_cutting_into_batches_changes_nothing_and_the_model_comes_back():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).train()
    one, many = activation_statistics(problem(model, batch=100)), activation_statistics(problem(model, batch=7))
    assert repr(one.activations) == repr(many.activations)
    assert [g.gain for g in one.gains] == pytest.approx([g.gain for g in many.gains])
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_signal_of_zeros_has_no_gain():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    assert np.isnan(activation_statistics(problem(model, torch.zeros(5, 4))).gains[0].gain)


def test_gradient_norms_are_those_of_the_mean_loss():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    given = problem(model)
    found = gradient_norms(given)
    exact = copy.deepcopy(model).double()
    F.cross_entropy(exact(given.data.tensors[0].double()), given.data.tensors[1]).backward()
    assert list(found) == ["0.weight", "2.weight"]
    for name, (norm, error) in found.items():
        assert abs(norm - float(exact.get_parameter(name).grad.norm())) <= error < 1e-5 * norm


def test_the_slope_of_a_layer_is_that_of_the_loss_also_where_the_loss_differentiates_on_its_way():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), torch.rand(7, 2)

    def slope_loss(net, batch):
        points = batch.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
        return (slope - 1).square().mean()

    measured = signals(lossmap.Problem.custom(model, slope_loss, x))["0"]
    seen = []  # the loss by the layer's output, by hand: by a shift of the output

    def shifted(module, inputs, output):
        seen.append(torch.zeros_like(output, requires_grad=True))
        return output + seen[-1]

    handle = model[0].register_forward_hook(shifted)
    by_output = torch.autograd.grad(7 * slope_loss(model, x), seen)[0]
    handle.remove()
    assert measured.gradient == pytest.approx(float(by_output.square().mean().sqrt()), rel=1e-5)


class Gated(nn.Module):
    """A gate of one number, one of a row, a matrix of gates, layers without samples or called by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.made = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(3, 8)
        self.gate, self.row = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(8))
        self.table, self.code = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        h = torch.relu(self.first(input=x)) * torch.sigmoid(self.gate) * torch.tanh(self.row)
        h = h @ torch.sigmoid(self.table) + torch.relu(self.made(self.code))
        return torch.tanh(self.last(h).squeeze(-1))


def test_functions_of_parameters_and_of_one_row_are_no_signals_of_samples():
    torch.manual_seed(0)
    model, x = Gated(), torch.randn(30, 6)
    problem = Problem.supervised(model, lambda f, y: F.softplus(-f * y).mean(), (x, x[:, 0].sign()), batch_size=8)
    read = activation_statistics(problem)
    assert [(a.kind, a.units, a.samples) for a in read.activations] == [("relu", 8, 30), ("tanh", 1, 30)]
    assert [g.name for g in read.gains] == ["first", "last"]
    assert read.gains[0].entering == pytest.approx(float(x.square().mean().sqrt()))
    assert lossmap.layer_spectra(problem, probes=0).signals["first"].input == pytest.approx(read.gains[0].entering)


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.layer(x))
        return torch.relu(h @ h.transpose(1, 2)).mean((1, 2))


def test_units_that_are_others_in_every_batch_are_left_out():
    batches = [(torch.randn(3, width, 4), torch.randn(3)) for width in (5, 7, 5)]
    read = activation_statistics(Problem.supervised(Scores(), F.mse_loss, batches))
    assert [(a.units, a.samples) for a in read.activations] == [(4, 9)]


class Transformed(nn.Module):
    """The slope of an energy by its inputs, and an ensemble of two, by transforms of torch.func."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
        self.weights, self.last = nn.Parameter(torch.randn(2, 6, 4)), nn.Linear(4, 3)

    def forward(self, x):
        slope = torch.func.vmap(torch.func.grad(lambda z: self.energy(z)[0]))(x)
        hidden = torch.func.vmap(lambda w: torch.relu(x @ w.T))(self.weights)
        return self.last(x + slope + hidden.mean((0, 2))[:, None])


def test_what_passes_inside_transforms_of_torch_func_is_not_seen_and_stops_nothing():
    given = problem(Transformed())
    assert [gain.name for gain in activation_statistics(given).gains] == ["last"]
    found = signals(given)
    assert np.isnan(found["energy.0"].input) and found["energy.0"].calls and found["last"].gradient > 0
    assert "inside a transform of torch.func" in repr(found["energy.0"]) and "transform" not in repr(found["last"])
    assert lossmap.layer_spectra(given, "module", probes=0)["energy.0"].size == 25


class Written(nn.Module):
    """In place or not: a rectifier between a layer and its norm, tanh before a rectifier, and an offset."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.a, self.norm, self.offset, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), Offset(inplace), nn.Linear(6, 6)
        self.rectifier, self.last, self.layer_norm = nn.ReLU(inplace), nn.Linear(6, 3), nn.LayerNorm(6)

    def forward(self, x):
        x = self.norm(self.rectifier(self.a(x)))
        x = self.b(self.offset(x))
        x = F.relu(torch.tanh_(x) if self.inplace else torch.tanh(x))
        x = self.layer_norm(F.relu(self.b(x), inplace=self.inplace))
        x = self.a(x[:, :4])
        if self.inplace:
            x *= 0.5
        else:
            x = x * 0.5
        return self.last(self.layer_norm(x))


class Offset(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.by = inplace, nn.Parameter(torch.full((6,), 0.3))

    def forward(self, x):
        return x.add_(self.by) if self.inplace else x + self.by


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_that_writes_into_its_activations_is_measured_as_its_twin_that_does_not(dtype):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    one, two = (problem(Written(inplace).to(dtype), x) for inplace in (False, True))
    assert repr(activation_statistics(one)) == repr(activation_statistics(two))
    assert repr(signals(one)) == repr(signals(two))
    gains = {gain.name: gain.norm for gain in activation_statistics(two).gains}
    assert gains == {"a": None, "b": None, "last": None}
    behind = [(a.kind, a.behind) for a in activation_statistics(two).activations]
    assert ("relu", "a") in behind and ("tanh", "b") in behind and ("relu", None) in behind
