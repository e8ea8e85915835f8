"""Neural collapse is 0 at a constructed simplex frame, and what it was made to be off it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.diagnostics.neural_collapse import neural_collapse


def simplex(classes, d):
    """Unit vectors, (C, d), with cosines -1/(C-1)."""
    frame = np.eye(classes) - 1 / classes
    frame /= np.linalg.norm(frame, axis=1)[:, None]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    return frame @ turn[:classes]


def measured(features, targets, weight, batch=64, **told):
    net = nn.Sequential(nn.Identity(), nn.Linear(weight.shape[1], weight.shape[0])).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.as_tensor(weight))
        net[1].bias.zero_()
    data = (torch.as_tensor(features), torch.as_tensor(targets))
    return neural_collapse(Problem.supervised(net, "crossentropy", data, batch_size=batch), **told)


def labelled(classes, each):
    return np.arange(classes * each) % classes


def test_a_simplex_frame_without_spread_is_collapsed_wholly():
    frame, y = simplex(5, 8), labelled(5, 30)
    found = measured(3.0 * frame[y] + 0.7, y, 2.0 * frame)
    assert found.layer == "1" and (found.classes, found.features, found.samples) == (5, 8, 150)
    for name in ("nc1", "nc2", "nc2_norms", "nc3", "nc4"):
        assert getattr(found, name) == pytest.approx(0.0, abs=1e-12), name
    assert found.errors["nc1"] == pytest.approx(0.0, abs=1e-12)


def test_isotropic_spread_gives_the_nc1_of_its_formula():
    classes, d, sigma = 4, 6, 0.2
    frame, y = simplex(classes, d), labelled(classes, 20_000)
    noise = sigma * np.random.default_rng(1).standard_normal((len(y), d))
    found = measured(frame[y] + noise, y, frame, batch=4096)
    # S_B of unit vectors in a simplex: 1/(C-1) on its C - 1 dimensions
    expected = sigma**2 * (classes - 1) * (classes - 1) / classes
    assert abs(found.nc1 - expected) < 4 * found.errors["nc1"]
    assert 0 < found.errors["nc1"] < 0.05 * expected


def test_nc1_is_the_dense_trace_with_the_pseudoinverse():
    generator = np.random.default_rng(2)
    y = generator.integers(0, 3, 90)
    h = generator.standard_normal((90, 7)) + generator.standard_normal((3, 7))[y]
    found = measured(h, y, generator.standard_normal((3, 7)))
    means = np.stack([h[y == c].mean(0) for c in range(3)])
    within = sum(np.outer(a - means[c], a - means[c]) for a, c in zip(h, y, strict=True)) / 90
    out = means - means.mean(0)
    assert found.nc1 == pytest.approx(np.trace(within @ np.linalg.pinv(out.T @ out / 3)) / 3, rel=1e-9)


def test_orthogonal_means_are_off_the_simplex_by_what_their_angles_are():
    y = labelled(3, 10)
    out = np.eye(3)[:, :] * np.array([1.0, 1.0, 1.0])
    found = measured(out[y], y, out)  # centred, orthonormal means are a simplex
    assert found.nc2 == pytest.approx(0.0, abs=1e-12)
    line = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) + np.array([0.0, 1.0])
    found = measured(line[y], y, line)
    # cosines of the centred means: two with the middle one, which is zero, count 0; the ends -1; a simplex has -1/2
    assert found.nc2 == pytest.approx(0.5, abs=1e-12)
    assert found.nc2_norms == pytest.approx(np.std([1, 0, 1]) / np.mean([1, 0, 1]))


def test_a_weight_at_right_angles_to_the_means_has_self_duality_two():
    frame, y = simplex(3, 6), labelled(3, 10)
    other = np.linalg.svd(frame)[2][3:6]
    assert measured(frame[y], y, other).nc3 == pytest.approx(2.0)
    assert measured(frame[y], y, -frame).nc3 == pytest.approx(4.0)


def test_the_nearest_centre_disagrees_where_the_weight_names_another_class():
    frame, y = simplex(4, 5), labelled(4, 25)
    swapped = frame[[1, 0, 2, 3]]
    found = measured(frame[y], y, swapped)
    assert found.nc4 == pytest.approx(0.5)
    assert found.errors["nc4"] == pytest.approx(0.05)


def test_cutting_into_batches_changes_nothing():
    generator = np.random.default_rng(4)
    y = generator.integers(0, 3, 50)
    h, w = generator.standard_normal((50, 4)), generator.standard_normal((3, 4))
    one, many = measured(h, y, w, batch=50), measured(h, y, w, batch=7)
    for name in ("nc1", "nc2", "nc2_norms", "nc3", "nc4"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-10)
    assert one.errors == pytest.approx(many.errors, rel=1e-8)


def test_the_jackknife_error_is_near_the_spread_over_repeated_draws():
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        y = labelled(3, 100)
        frame = simplex(3, 4)
        found.append(measured(frame[y] + 0.5 * generator.standard_normal((300, 4)), y, frame))
    spread = np.std([f.nc1 for f in found])
    assert 0.5 * spread < np.mean([f.errors["nc1"] for f in found]) < 2 * spread


def test_classes_without_samples_are_left_out():
    frame = simplex(3, 6)
    weight = np.concatenate([frame, np.ones((1, 6))])
    y = labelled(3, 20)
    found = measured(frame[y], y, weight)
    assert found.classes == 3 and found.nc3 == pytest.approx(0.0, abs=1e-12)


def test_features_that_are_the_same_for_all_have_no_simplex():
    y = labelled(3, 20)
    found = measured(np.full((60, 4), 0.3), y, np.eye(3, 4))
    assert found.nc1 == np.inf and np.isnan([found.nc2, found.nc2_norms, found.nc3, found.nc4]).all()
    assert np.isnan(found.errors["nc1"])


def test_the_layer_may_be_named_and_the_model_comes_back_as_it_was():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).train()
    data = (torch.randn(30, 4), torch.arange(30) % 3)
    found = neural_collapse(Problem.supervised(net, "crossentropy", data), layer="2")
    assert found.layer == "2" and found.features == 6 and net.training
    assert not net[2]._forward_pre_hooks and all(p.grad is None for p in net.parameters())


def test_what_is_no_classifier_is_refused():
    data = (torch.randn(12, 4), torch.arange(12) % 3)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="no layer named 'head'"):
        neural_collapse(Problem.supervised(net, "crossentropy", data), layer="head")
    with pytest.raises(ValueError, match="calls no linear layer"):
        neural_collapse(Problem.supervised(nn.Conv1d(4, 3, 1), "mse", (torch.randn(3, 4, 1), torch.randn(3, 3, 1))))
    with pytest.raises(ValueError, match="collapse requires a classifier"):
        neural_collapse(Problem.supervised(net, "mse", (torch.randn(12, 4), torch.randn(12, 3))))
    with pytest.raises(ValueError, match="samples of two classes"):
        neural_collapse(Problem.supervised(net, "crossentropy", (torch.randn(5, 4), torch.zeros(5, dtype=torch.long))))
    with pytest.raises(ValueError, match=r"must have a weight \(C, 6\)"):
        neural_collapse(
            Problem.supervised(nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)), "crossentropy", data),
            layer="1",
        )
    wide = (torch.randn(12, 4), torch.arange(12) % 3)
    with pytest.raises(ValueError, match="the layer has 2 outputs"):
        neural_collapse(Problem.supervised(nn.Sequential(nn.Linear(4, 2)), "crossentropy", wide), layer="0")


class Mixture(nn.Module):
    """Its gate is called behind the layer that gives the classes."""

    def __init__(self):
        super().__init__()
        self.body, self.last, self.gate = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.body(x))) * self.gate(x).softmax(1)[:, :1]


def test_a_gate_is_not_taken_for_the_last_layer():
    torch.manual_seed(0)
    found = neural_collapse(Problem.supervised(Mixture(), "crossentropy", (torch.randn(40, 5), torch.arange(40) % 3)))
    assert (found.layer, found.features) == ("last", 6)


def test_samples_that_the_loss_ignores_are_left_out():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3), torch.randn(60, 5), torch.arange(60) % 3
    alone = neural_collapse(Problem.supervised(model, "crossentropy", (x[10:], y[10:])))
    y[:10] = -100
    found = neural_collapse(Problem.supervised(model, "crossentropy", (x, y)))
    assert found.nc1 == pytest.approx(alone.nc1) and found.samples == alone.samples == 50


def test_features_that_are_not_those_of_the_samples_are_refused():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return torch.cat([self.layer(x[::2]), x[1::2, :3]])

    batch = (torch.randn(20, 5), torch.arange(20) % 3)
    with pytest.raises(ValueError, match="no row for each sample"):
        neural_collapse(Problem.supervised(Part(), "crossentropy", [batch]))
    x = torch.randn(20, 5)
    x[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        neural_collapse(Problem.supervised(nn.Linear(5, 3), "crossentropy", (x, batch[1])))


class Adapted(nn.Module):
    """A linear layer with an adapter of low rank beside it, as PEFT makes it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base_layer, self.out_features = layer, layer.out_features
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, h):
        return self.base_layer(h) + self.up(self.down(h))


def test_a_layer_with_an_adapter_counts_as_one_with_the_weight_of_both():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), Adapted(nn.Linear(5, 3)))
    data = (torch.randn(30, 5), torch.arange(30) % 3)
    found = neural_collapse(Problem.supervised(net, "crossentropy", data))
    layer = net[1]
    twin = nn.Sequential(nn.Identity(), nn.Linear(5, 3))
    with torch.no_grad():
        twin[1].weight.copy_(layer.weight + layer.up.weight @ layer.down.weight)
        twin[1].bias.copy_(layer.base_layer.bias)
    expected = neural_collapse(Problem.supervised(twin, "crossentropy", data))
    assert (found.layer, found.features) == ("1", 5)
    for name in ("nc1", "nc2", "nc2_norms", "nc3", "nc4"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.a(x) + self.b(x.square())


@pytest.mark.parametrize(
    ("model", "is_one"),
    [
        (TwoHeads(), False),
        (nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1)), True),
        (nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()), True),
    ],
)
def test_outputs_that_are_not_those_of_one_layer_are_refused_until_it_is_named(model, is_one):
    data = (torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3)
    problem = Problem.supervised(model, nn.CrossEntropyLoss(), data)
    if is_one:
        assert neural_collapse(problem).layer == "0"
        return
    with pytest.raises(ValueError, match="outputs are not those of its last linear layer, 'b', alone; name the layer"):
        neural_collapse(problem)
    assert neural_collapse(problem, layer="a").layer == "a"


class Rectified(nn.Module):
    """Two heads that are added, or a head whose input is written into: in place or not."""

    def __init__(self, inplace, heads):
        super().__init__()
        torch.manual_seed(0)
        self.inplace, self.heads = inplace, heads
        self.body, self.rectifier = nn.Linear(4, 6), nn.ReLU(inplace)
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x)
        other = self.first(x)
        x = self.rectifier(x)
        scores = self.second(x)
        if self.inplace:
            x.mul_(0.5)
            return scores.add_(other) if self.heads == 2 else scores
        return scores + other if self.heads == 2 else scores


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_that_writes_into_its_activations_is_measured_as_its_twin_that_does_not(dtype):
    data = (torch.randn(60, 4).to(dtype), torch.arange(60) % 3)
    for layer in (None, "second"):
        found = [
            neural_collapse(Problem.supervised(Rectified(inplace, 1).to(dtype), "crossentropy", data), layer=layer)
            for inplace in (False, True)
        ]
        assert repr(found[0]) == repr(found[1])
    for inplace in (False, True):
        with pytest.raises(ValueError, match="outputs are not those of its last linear layer, 'second', alone"):
            neural_collapse(Problem.supervised(Rectified(inplace, 2).to(dtype), "crossentropy", data))
