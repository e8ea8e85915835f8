"""Permutations from the traced graph: functions kept to 1e-12, permuted copies recovered exactly, refusals by name."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap import zoo
from lossmap.data.problem import Problem
from lossmap.landscape.alignment import align
from lossmap.landscape.permutation_groups import permutation_groups
from lossmap.zoo.residual import thin


class Wired(nn.Module):
    """Layers of one width wired at random: sums, products, reductions, and what no unit may pass."""

    def __init__(self, seed):
        super().__init__()
        self.chance = torch.Generator().manual_seed(seed)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        kinds = (
            *[lambda: nn.Conv2d(6, 6, 3, padding=1)] * 4,
            lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
            lambda: nn.Conv2d(6, 6, 1, groups=2),
            lambda: nn.BatchNorm2d(6),
            lambda: nn.GroupNorm(1, 6),
            lambda: nn.GroupNorm(3, 6),
            lambda: nn.PReLU(6),
            nn.Tanh,
        )
        self.layers = nn.ModuleList(kinds[self.pick(len(kinds))]() for _ in range(8))
        self.wires = [(self.pick(i + 1), self.pick(i + 1), self.pick(8)) for i in range(8)]
        self.hidden = nn.Linear(6 * 16, 9)
        self.norm = nn.LayerNorm(9)
        self.last = nn.Linear(9, 3)

    def pick(self, n):
        return int(torch.randint(n, (), generator=self.chance))

    def forward(self, x):
        values = [self.first(x)]
        for layer, (a, b, how) in zip(self.layers, self.wires, strict=True):
            value = layer(values[a])
            if how == 0:
                value = value + values[b]
            elif how == 1:
                value = torch.sigmoid(values[b].mean((2, 3), keepdim=True)) * value
            elif how == 2:
                value = torch.cat([value[:, 3:], values[b][:, :3]], 1)
            values.append(value)
        hidden = self.hidden((values[-1] + values[-2]).flatten(1)).relu()
        return self.last(self.norm(hidden))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Tied(nn.Module):
    """Two layers of one weight: their units would have to move in both at once."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.b(self.a(x).tanh()).tanh())


class Axes(nn.Module):
    """Norms over channels that are moved to the end, as in ConvNeXt, and means by NumPy's words."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.LayerNorm(6)
        self.wide, self.last = nn.Linear(6, 8), nn.Linear(5, 3)
        self.narrow = nn.Linear(8, 6)

    def forward(self, x):
        x = self.first(x)
        y = self.narrow(self.wide(self.norm(x.permute(0, 2, 3, 1))).relu())
        x = self.second(x + torch.permute(y, (0, -1, 1, 2))).tanh()
        return self.last(torch.sum(x.mean(axis=3, keepdims=True), axis=(2, -1)))


def problem_of(model, size=4, shape=None):
    x = torch.randn(shape or (4, 3, size, size), generator=torch.Generator().manual_seed(5))
    dtype = next(model.parameters()).dtype
    return Problem.supervised(model.eval(), "crossentropy", (x.to(dtype), torch.arange(len(x)) % 3), batch_size=4)


def stirred(model, seed=3):
    """Every tensor random, so that no two units are alike."""
    chance = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=chance, dtype=torch.float64) - 0.3)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return model


def shuffled(groups, state, seed=0):
    chance = torch.Generator().manual_seed(seed)
    orders = {g: torch.randperm(n, generator=chance) for g, n in groups.sizes.items()}
    return groups.permuted(state, orders), orders


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 3))


FAMILIES = {
    "mlp with layer norm": (plain, 4),
    "vgg": (lambda: zoo.build("vgg9"), 32),
    "resnet": (lambda: thin(8, 4), 8),
    "resnet without skips": (lambda: thin(8, 4, skip=False), 8),
}


@pytest.mark.parametrize("seed", range(20))
def test_a_permuted_randomly_wired_net_has_the_same_function_to_1e_12(seed):
    torch.manual_seed(seed)
    model = stirred(Wired(seed).double())
    problem = problem_of(model)
    groups = permutation_groups(problem)
    state, orders = shuffled(groups, model.state_dict())
    assert any(not torch.equal(order, torch.arange(len(order))) for order in orders.values())
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    assert float((twin(x) - model(x)).detach().abs().max()) <= 1e-12 * float(model(x).detach().abs().max())


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_permuted_copy_is_recovered_exactly_and_no_barrier_is_left(family, method):
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    model = build()
    problem = problem_of(model, size)
    groups = permutation_groups(problem)
    assert not [name for name in groups.fixed if groups.fixed[name] != "units of the output"]
    state, _ = shuffled(groups, model.state_dict())
    assert any(not torch.equal(state[n], t) for n, t in model.state_dict().items())
    found = align(problem, state, method=method)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())
    assert found.after == 0.0 < found.before and found.units == sum(groups.sizes.values())


class Words(nn.Module):
    """A mixer of words: entries of the embedding are the units of the residual stream."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(12, 6), nn.Embedding(5, 6)
        self.norm, self.wide, self.narrow = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.last_norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.words(x) + self.places(x % 5)
        h = h + self.narrow(torch.nn.functional.gelu(self.wide(self.norm(h))))
        return self.last(self.last_norm(h).mean(1))


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_entries_of_embeddings_move_with_what_is_added_to_them(method):
    torch.manual_seed(0)
    model = stirred(Words())
    data = (torch.randint(0, 12, (30, 4)), torch.arange(30) % 3)
    problem = Problem.supervised(model.eval(), "crossentropy", data)
    groups = permutation_groups(problem)
    assert set(groups.fixed) == {"last"}
    assert groups.sizes == {"words": 6, "wide": 9}
    assert groups.layers["words"] == ("words", "places", "narrow")
    state, orders = shuffled(groups, model.state_dict())
    assert not torch.equal(orders["words"], torch.arange(6))
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    assert torch.allclose(twin(data[0]), model(data[0]), atol=1e-6)
    found = align(problem, state, method=method)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_units_are_followed_where_dimensions_change_places_and_are_named_as_numpy_does(method):
    model = stirred(Axes().double())
    problem = problem_of(model)
    groups = permutation_groups(problem)
    assert dict(groups.sizes) == {"first": 6, "wide": 8, "second": 5}
    assert set(groups.fixed) == {"last"}
    state, _ = shuffled(groups, model.state_dict())
    twin, x = copy.deepcopy(model), torch.randn(5, 3, 7, 4, dtype=torch.float64)
    twin.load_state_dict(state)
    assert float((twin(x) - model(x)).detach().abs().max()) <= 1e-12
    assert align(problem, state, method=method).after == 0.0


def same(net, x):
    return x


class Scaling(nn.Module):
    """A mixer of words with vectors of its own, which `scale` multiplies with the branch, and a norm."""

    def __init__(self, scale, norm):
        super().__init__()
        self.words, self.places = nn.Linear(4, 6), nn.Parameter(torch.randn(1, 5, 6))
        self.gamma, self.buffered = nn.Parameter(torch.randn(6)), nn.BatchNorm1d(6)
        self.rms, self.layer = nn.RMSNorm(6, eps=1e-6), nn.LayerNorm(6)
        self.wide, self.narrow, self.last = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3)
        self.scale, self.norm = scale, norm

    def forward(self, x):
        h = self.words(x) + self.places
        h = h + self.scale(self, self.narrow(self.wide(self.norm(self, h)).relu()))
        return self.last(h.mean(1))


def gamma_times(net, x):
    return x * net.gamma


def root_mean_square(net, x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * net.layer.weight


def batch_normed(net, x):
    b = net.buffered
    return F.batch_norm(x.transpose(1, 2), b.running_mean, b.running_var, b.weight, b.bias).transpose(1, 2)


SCALED = {
    "as it is": (gamma_times, same),
    "from the left, in place": (lambda net, x: (x * 1.0).mul_(net.gamma), same),
    "viewed": (lambda net, x: (x.transpose(1, 2) * net.gamma.view(1, -1, 1)).transpose(1, 2), same),
    "indexed by None": (lambda net, x: (x.transpose(1, 2) * net.gamma[:, None]).transpose(1, 2), same),
    "unsqueezed and cast": (lambda net, x: x * net.gamma.unsqueeze(0).to(x.dtype), same),
    "a part that is all": (lambda net, x: x + net.gamma[:6], same),
    "RMSNorm": (gamma_times, lambda net, x: net.rms(x)),
    "RMSNorm by hand": (gamma_times, root_mean_square),
    "a function rms_norm": (gamma_times, lambda net, x: F.rms_norm(x, (6,), net.rms.weight, 1e-6)),
    "a function layer_norm": (gamma_times, lambda net, x: F.layer_norm(x, [6], net.layer.weight, bias=net.layer.bias)),
    "a function batch_norm": (gamma_times, batch_normed),
    "a norm over places": (gamma_times, lambda net, x: F.layer_norm(x.transpose(1, 2), (5,)).transpose(1, 2)),
}


@pytest.mark.parametrize("form", SCALED)
def test_vectors_that_a_model_reads_itself_move_with_its_units(form):
    torch.manual_seed(0)
    model = stirred(Scaling(*SCALED[form]).double())
    problem = problem_of(model, shape=(9, 5, 4))
    groups = permutation_groups(problem)
    assert dict(groups.sizes) == {"words": 6, "wide": 9}
    assert [why for name, why in groups.fixed.items()] == ["units of the output"]
    assert {"places", "gamma"} <= {use.name for use in groups.uses["words"]}
    state, orders = shuffled(groups, model.state_dict())
    twin, x = copy.deepcopy(model), torch.randn(7, 5, 4, dtype=torch.float64)
    twin.load_state_dict(state)
    assert not torch.equal(orders["words"], torch.arange(6))
    assert float((twin(x) - model(x)).detach().abs().max()) <= 1e-12
    found = align(problem, state)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())


HELD = {
    "read twice": (lambda net, x: x * net.gamma + net.gamma, same),
    "in another order": (lambda net, x: x * net.gamma[[1, 0, 3, 2, 5, 4]], same),
    "flipped": (lambda net, x: x * net.gamma.flip(0), same),
    "a function of it": (lambda net, x: x * net.gamma.cumsum(0), same),
    "also by a module": (lambda net, x: net.layer(x) * net.layer.weight, same),
    "of two groups": (gamma_times, lambda net, x: F.layer_norm(x, (6,), net.gamma)),
}


@pytest.mark.parametrize("form", HELD)
def test_what_is_more_than_a_vector_of_the_units_holds_them(form):
    torch.manual_seed(0)
    model = stirred(Scaling(*HELD[form]).double())
    groups = permutation_groups(problem_of(model, shape=(9, 5, 4)))
    assert "wide" in groups.sizes and "words" not in groups.sizes and groups.fixed["narrow"] != "units of the output"


def test_channels_that_are_added_share_a_group():
    groups = permutation_groups(problem_of(thin(8, 4), 8))
    # the stem and the second convolution of the first block; its first one has units of its own
    (stem,) = (uses for uses in groups.uses.values() if any(u.name == "conv1.weight" for u in uses))
    names = {(u.name, u.dim) for u in stem}
    assert {("conv1.weight", 0), ("layer1.0.conv2.weight", 0), ("layer1.0.conv1.weight", 1)} <= names
    assert {("bn1.running_var", 0), ("layer2.0.shortcut.0.weight", 1)} <= names
    assert ("layer1.0.conv1.weight", 0) not in names


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Branching(), "torch.fx cannot trace Branching"),
        (nn.Sequential(nn.Linear(4, 3)), "no unit of Sequential may change its place"),
        (Tied(), "no unit of Tied may change its place .*a.weight is used in several places"),
    ],
)
def test_what_cannot_be_aligned_is_refused_by_name(model, sentence):
    problem = problem_of(model, shape=(6, 4))
    with pytest.raises(ValueError, match=sentence):
        align(problem, {name: t + 1.0 for name, t in model.state_dict().items()})


def test_activation_matching_is_the_nearest_of_all_permutations_of_the_outputs():
    torch.manual_seed(1)
    a, b = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in "ab")
    x = torch.randn(40, 4, dtype=torch.float64)
    problem = Problem.supervised(a, "crossentropy", (x, torch.arange(40) % 3), batch_size=7)
    found = align(problem, b, method="activations")

    def distance(order):
        return float((a[0](x) - b[0](x)[:, list(order)]).detach().square().sum())

    assert tuple(found.permutations["0"].tolist()) == min(permutations(range(5)), key=distance)
    assert found.method == "activations" and "by activation matching" in found.describe()
    with pytest.raises(ValueError, match="one of weights, activations; got 'best'"):
        align(problem, b, method="best")
    with pytest.raises(ValueError, match="outputs of 0 are not finite"):
        align(problem, {n: t / 0.0 for n, t in b.state_dict().items()}, method="activations")


def test_a_line_to_a_permuted_net_shows_what_is_left_of_its_barrier():
    torch.manual_seed(0)
    model = stirred(plain())
    problem = problem_of(model)
    other, _ = shuffled(permutation_groups(problem), model.state_dict())
    other = {name: t + 1e-3 for name, t in other.items()}
    before, after = (lossmap.connect(problem, other, points=5, align=align) for align in ("none", "weights"))
    assert before.length > 10 * after.length
    assert np.ptp(after.losses["train"]) < 1e-3 < 0.05 < np.ptp(before.losses["train"])
    assert np.allclose(before.losses["train"][[0, -1]], after.losses["train"][[0, -1]], rtol=1e-5)
    assert "B aligned by weight matching" in " ".join(repr(after).split()) and not before.alignment
    # the line to the other as it stood is read beside, by the same numbers
    assert before.unaligned is None and after.unaligned.length == before.length
    for name in ("losses", "metrics", "barrier_errors", "midpoint_errors"):
        for key, values in getattr(before, name).items():
            assert np.array_equal(getattr(after.unaligned, name)[key], values)
    assert repr(after).count("not aligned") == 3 and "not aligned" not in repr(before)  # loss, accuracy, barrier
    copied = pickle.loads(pickle.dumps(after))
    assert copied.unaligned.barrier() == before.barrier()
    with pytest.raises(ValueError, match="--align must be one of none, weights, activations"):
        lossmap.connect(problem, other, align="best")


@pytest.mark.parametrize(
    "parametrized",
    [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_layers_with_parametrized_weights_are_refused_for_that_reason(parametrized):
    model = nn.Sequential(parametrized(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    problem = Problem.supervised(model, "crossentropy", (torch.randn(6, 4), torch.arange(6) % 3))
    with pytest.raises(ValueError, match=r"may change its place \(0: has parametrized weights"):
        permutation_groups(problem)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize(("first", "second"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_networks_in_two_precisions_are_aligned(method, first, second):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    problem = Problem.supervised(model.to(first), "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
    order = torch.randperm(8)
    other = {name: t.to(second) for name, t in model.state_dict().items()}
    other |= {"0.weight": other["0.weight"][order], "0.bias": other["0.bias"][order]}
    other["2.weight"] = other["2.weight"][:, order]
    found = align(problem, other, method=method)
    assert found.after < 1e-6 < found.before
    assert all(t.dtype == second for t in found.state.values())


def test_distances_are_those_of_the_models_precision_as_the_line_is_long():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    problem = Problem.supervised(model, "crossentropy", (torch.randn(9, 4), torch.arange(9) % 3))
    order = torch.randperm(6)
    tensors = {k: v.double() * (1.0 + 1e-9) for k, v in model.state_dict().items()}  # the same numbers in float32
    tensors |= {"0.weight": tensors["0.weight"][order], "0.bias": tensors["0.bias"][order]}
    tensors["2.weight"] = tensors["2.weight"][:, order]
    line = lossmap.connect(problem, tensors, points=3, align="weights")
    assert (line.length, align(problem, tensors).after) == (0.0, 0.0) and "distance" in line.alignment
    assert align(problem, tensors).before == pytest.approx(line.unaligned.length, rel=1e-6)


def patched_networks(dtype, patched):
    """Two networks of which a layer's forward, patched on the instance, gives each output a factor of its own."""
    torch.manual_seed(5)
    factors = (1.0 + 0.01 * torch.randn(16)).to(dtype)
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
        former = model[patched].forward
        model[patched].forward = lambda x, former=former: former(x) * factors
        networks.append(model)
    return networks


@pytest.mark.parametrize("patched", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_layer_with_a_forward_of_its_own_stays(dtype, patched):
    a, b = patched_networks(dtype, patched)
    problem = problem_of(a, shape=(9, 6))
    with pytest.raises(ValueError, match=r"no unit of Sequential .*\(0: (has|1 has) a forward of its own"):
        align(problem, b)
    a.forward = lambda x: a[2](a[1](a[0](x))) + 1.0
    with pytest.raises(ValueError, match="Sequential has a forward of its own, set on the instance, which torch"):
        align(problem, b)


def test_a_layer_whose_bias_is_a_buffer_stays():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    bias = model[0].bias.detach()
    del model[0].bias
    model[0].register_buffer("bias", bias)
    found = align(problem_of(model, shape=(9, 6)), copy.deepcopy(model))
    assert found.fixed["0"] == "has a weight or bias that is no parameter" and set(found.permutations) == {"2"}


@pytest.mark.parametrize("runs_in_float64", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_network_that_does_more_than_its_trace_says_is_refused_in_every_precision(dtype, runs_in_float64):
    """A hook for all modules, which neither a trace nor a look at the layers shows."""
    torch.manual_seed(5)
    gain = {torch.bfloat16: 0.5, torch.float16: 0.2}.get(dtype, 1e-3) if not runs_in_float64 else 1e-9
    factors, layers = 1.0 + gain * torch.randn(16, dtype=torch.float64), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layers.append(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype))
    problem = problem_of(layers[0], shape=(9, 6))
    forward = problem.forward
    if not runs_in_float64:
        problem = replace(problem, forward=lambda model, batch: in_its_own_precision(forward, model, batch, dtype))
    assert align(problem, layers[1]).moved > 0

    def hook(module, inputs, output):
        return output * factors.to(output.dtype) if output.shape[-1] == 16 else None

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        with pytest.raises(ValueError, match=r"does not compute what its trace says: .*of which rounding may be"):
            align(problem, layers[1])
    finally:
        handle.remove()


def in_its_own_precision(forward, model, batch, dtype):
    assert next(model.parameters()).dtype == dtype, "made for one precision"
    return forward(model, batch)


def in_float32(t):
    """A cast that the modes do not see which keep a model in float64."""
    return torch.empty(t.shape, dtype=torch.float32).copy_(t)


def test_float32_within_a_network_in_float64_counts_as_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    problem = problem_of(model, shape=(9, 6))
    state, _ = shuffled(permutation_groups(problem), model.state_dict())

    def hook(module, inputs, output):
        if isinstance(module, nn.Linear) and output.shape[-1] == 3:
            return (in_float32(inputs[0]) @ in_float32(module.weight).T + in_float32(module.bias)).double()

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        assert align(problem, state).after == 0.0
    finally:
        handle.remove()


def test_networks_that_are_or_give_no_numbers_are_refused_as_such():
    model = plain()
    bad = {n: t * torch.nan for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1.weight of the network that is to be aligned is not finite"):
        align(problem_of(model), bad)
    problem = problem_of(plain())
    with pytest.raises(ValueError, match="outputs of the network that is to be aligned are not finite"):
        align(replace(problem, forward=lambda m, b: problem.forward(m, b).log()), model)
    model.load_state_dict(bad)
    with pytest.raises(ValueError, match=r"1.weight of the network to come near to is not finite"):
        align(problem_of(model), plain())


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_networks_that_write_into_their_activations_are_aligned_as_their_twins_that_do_not(dtype, method):
    def network(seed, inplace):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.ReLU(inplace), nn.Linear(8, 8), nn.ReLU(inplace), nn.Linear(8, 3)]
        return nn.Sequential(*layers).to(dtype)

    found = [
        align(problem_of(network(1, inplace), shape=(40, 6)), network(2, inplace), method=method).permutations
        for inplace in (False, True)
    ]
    assert {k: v.tolist() for k, v in found[0].items()} == {k: v.tolist() for k, v in found[1].items()}


class Turned(nn.Module):
    def __init__(self, turn):
        super().__init__()
        self.a, self.b, self.last, self.turn = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3), turn

    def forward(self, x):
        return self.last(self.turn(self.b(self.a(x).relu()).relu()))


TURNS = {
    "permute(0) of one dimension": lambda x: x.sum(0).permute(0).expand(9, 7),
    "permute([0]) of one dimension": lambda x: x.sum(0).permute([0]).expand(9, 7),
    "permute(dims=)": lambda x: x.permute(dims=(1, 0)).permute(1, 0),
    "permute(-1, 0)": lambda x: x.permute(-1, 0).permute((-1, 0)),
    "torch.permute": lambda x: torch.permute(torch.permute(x, (1, 0)), dims=[1, 0]),
    "transpose of one dimension": lambda x: x.sum(0).transpose(0, -1).expand(9, 7),
    "transpose by names": lambda x: x.transpose(dim1=0, dim0=1).transpose(1, dim1=0),
    "swapaxes": lambda x: x.swapaxes(0, 1).swapaxes(axis0=0, axis1=1),
    "movedim": lambda x: x.movedim(0, 1).movedim((0, 1), (1, 0)),
    "moveaxis by names": lambda x: torch.moveaxis(torch.moveaxis(x, 0, 1), source=0, destination=1),
    "mean over no named dimension": lambda x: x * x.mean(()),
    "mean over a list of one": lambda x: x * x.mean([-1], True),
    "amax by name": lambda x: x * x.amax(dim=1, keepdim=True),
    "T": lambda x: x.T.t(),
}


@pytest.mark.parametrize("turn", TURNS)
def test_every_form_of_a_call_that_turns_dimensions_is_read(turn):
    torch.manual_seed(0)
    model = stirred(Turned(TURNS[turn]).double())
    groups = permutation_groups(problem_of(model, shape=(9, 6)))
    state, _ = shuffled(groups, model.state_dict())
    twin, x = copy.deepcopy(model), torch.randn(9, 6, dtype=torch.float64)
    twin.load_state_dict(state)
    assert "a" in groups.sizes
    assert float((twin(x) - model(x)).detach().abs().max()) <= 1e-12


class Asking(nn.Module):
    """Asks its own parameters for their dtype, device or sizes: before its layers and between them."""

    def __init__(self, before, between):
        super().__init__()
        self.a, self.norm, self.b, self.last = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.before, self.between = before, between

    def forward(self, x):
        x = self.norm(self.a(self.before(self, x)).relu())
        return self.last(self.between(self, self.b(self.between(self, x)).relu()))


ASKED = {
    "dtype before": (lambda net, x: x.to(net.a.weight.dtype), same),
    "device before": (lambda net, x: x.to(net.a.weight.device), same),
    "sizes before": (lambda net, x: x.reshape(-1, net.a.weight.shape[1]) / net.a.weight.size(0), same),
    "dtype between": (same, lambda net, x: x.to(net.b.weight.dtype)),
    "both": (same, lambda net, x: x.to(net.b.weight.device, net.b.weight.dtype)),
    "by name": (same, lambda net, x: x.to(device=net.b.weight.device, dtype=net.b.bias.dtype)),
    "a tensor": (same, lambda net, x: x.to(net.b.weight)),
    "a tensor by name": (same, lambda net, x: x.to(tensor=net.b.weight)),
    "a buffer": (same, lambda net, x: x.to(net.norm.running_mean)),
    "type_as": (same, lambda net, x: x.type_as(net.a.weight)),
    "type": (same, lambda net, x: x.type(net.a.weight.type()).type(net.a.weight.dtype)),
    "sizes between": (same, lambda net, x: x / (net.b.weight.numel() * net.b.weight.dim() * net.a.weight.ndim)),
    "another activation": (same, lambda net, x: x.to(net.a.weight.dtype).type_as(x)),
    "float64 and back": (same, lambda net, x: x.double().to(torch.float64).type_as(x)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_parameter_that_is_asked_for_its_kind_alone_moves(asked):
    model = stirred(Asking(*ASKED[asked]).double())
    problem = problem_of(model, shape=(9, 6))
    groups = permutation_groups(problem)
    assert dict(groups.sizes) == {"a": 7, "b": 7} and dict(groups.fixed) == {"last": "units of the output"}
    state, _ = shuffled(groups, model.state_dict())
    twin, x = copy.deepcopy(model), torch.randn(9, 6, dtype=torch.float64)
    twin.load_state_dict(state)
    assert float((twin(x) - model(x)).detach().abs().max()) <= 1e-12
    found = align(problem, state)
    assert found.after == 0.0 < found.before
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())


READ = {
    "a function": lambda net, x: x * F.normalize(net.b.weight)[0, 0],
    "a cast of it": lambda net, x: x * net.b.weight.to(x)[0, 0],
    "its data": lambda net, x: x * net.b.weight.data[0, 0],
    "its kind and an entry": lambda net, x: x.to(net.b.weight.dtype) * net.b.weight[0, 0],
    "a number": lambda net, x: x * net.b.weight.clone().min(),
}


@pytest.mark.parametrize("read", READ)
def test_a_parameter_whose_values_are_read_elsewhere_stays(read):
    groups = permutation_groups(problem_of(stirred(Reading(READ[read]).double()), shape=(9, 6)))
    assert groups.fixed["b"] == "b.weight is used in several places" and set(groups.sizes) == {"free"}


def test_a_weight_that_two_layers_share_by_a_function_stays():
    model = stirred(Reading(lambda net, x: F.linear(x, net.b.weight.to(x.dtype))).double())
    groups = permutation_groups(problem_of(model, shape=(9, 6)))
    assert set(groups.fixed) == {"a", "b", "last"} and set(groups.sizes) == {"free"}


class Reading(nn.Module):
    """A layer whose weight is read a second time, behind another whose units are free."""

    def __init__(self, read):
        super().__init__()
        self.free, self.a = nn.Linear(6, 5), nn.Linear(5, 7)
        self.b, self.last, self.read = nn.Linear(7, 7), nn.Linear(7, 3), read

    def forward(self, x):
        x = self.a(self.free(x).relu()).relu()
        return self.last(self.read(self, self.b(x).relu()))


class Unfollowed(nn.Module):
    """Layers whose units are not followed, each fed by what has no units or stands behind another of them."""

    def __init__(self):
        super().__init__()
        self.transposed, self.grouped = nn.ConvTranspose2d(3, 5, 2, 2), nn.Conv2d(5, 10, 1, groups=5)
        self.lstm, self.attention = nn.LSTM(10, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)
        self.matrix, self.idle = nn.Parameter(torch.randn(6, 6)), nn.Linear(2, 2)
        self.twice, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.hidden, self.last = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.grouped(self.transposed(x)).flatten(2).transpose(1, 2)
        x = self.lstm(x)[0]
        x = self.attention(x, x, x, need_weights=False)[0] @ self.matrix
        return self.last(self.hidden(self.norm(self.twice(self.twice(x)))).relu().mean(1))


def test_every_layer_whose_units_stay_is_counted():
    torch.manual_seed(0)
    model, other = Unfollowed(), Unfollowed()
    found = align(problem_of(model), other)
    assert set(found.permutations) == {"hidden"}
    assert found.fixed == {
        "last": "units of the output",
        "transposed": "ConvTranspose2d is not followed",
        "grouped": "a convolution in 5 groups",
        "lstm": "LSTM is not followed",
        "attention": "MultiheadAttention is not followed",
        "matrix": "used as a tensor",
        "twice": "called 2 times",
        "idle": "not called",
    }
    assert "7 units in 1 group moved" in found.describe() and "the units of 7 layers stay" in found.describe()
