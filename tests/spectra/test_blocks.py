"""Layer by layer: blocks against dense sub-blocks, verdicts in words, zero blocks explained, the shortfall measured."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import nn

from lossmap.data.problem import Problem
from lossmap.diagnostics.layer_signals import signals
from lossmap.diagnostics.singular_values import singular_values
from lossmap.geometry.parameter_vector import Layout
from lossmap.io.spectrum_layout import layers_in
from lossmap.linalg.block_norms import energy_from_leakage, off_diagonal_energy
from lossmap.spectra.block_groups import groups_of, indices_of
from lossmap.spectra.blocks import block_matrix, exact_problem, layer_spectra, verdicts_of
from lossmap.spectra.layer_hessian import _layers_as_called, layer_hessians


@dataclass(frozen=True)
class Held:
    entries: torch.Tensor

    @property
    def size(self):
        return len(self.entries)

    @property
    def dtype(self):
        return self.entries.dtype

    @property
    def device(self):
        return self.entries.device

    def __matmul__(self, v):
        return self.entries @ v


def data(samples=40):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 6, generator=g)
    return x, x[:, :3].argmax(1)


def net(*stack, seed=0):
    torch.manual_seed(seed)
    made = stack or (nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return nn.Sequential(*made).eval()


def problem_of(model):
    return Problem.supervised(model, "crossentropy", data(), batch_size=16)


def dense(model):
    """The whole Hessian over all parameters, float64, by reverse over reverse."""
    own = {k: p.detach().double() for k, p in model.named_parameters()}
    layout, (x, y) = Layout.of(own), data()

    def of(flat):
        parts = torch.split(flat, list(layout.sizes))
        given = {k: p.view(s) for k, s, p in zip(layout.names, layout.shapes, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, given, (x.double(),)), y)

    return torch.func.jacrev(torch.func.grad(of))(layout.flatten(own)), layout


SIX = {
    "layer1": [0.0, 0.0],
    "layer2": [0.0, 0.0, 0.0],
    "layer3": [-0.057, 0.0],
    "layer4": [1.9e-9, 0.0709],
    "layer5": [0.01, 0.02, 0.03],
    "layer6": [-0.002, 0.0, 0.04],
}


def test_six_layers_get_the_verdicts_that_their_numbers_allow():
    found = verdicts_of(SIX)
    kinds = [b.kind for b in found.blocks]
    assert kinds == [
        "zero", "zero", "negative semidefinite", "positive semidefinite", "positive definite", "indefinite"
    ]  # fmt: skip
    assert "1 eigenvalue negative (smallest -0.057)" in found["layer3"].verdict
    assert "no saddle" in found["layer3"].verdict
    assert found["layer4"].zero == (1, 1) and found["layer4"].positive == (1, 1)
    assert 1.9e-9 < found["layer4"].floor < 1e-5, "1.9e-9 beside 0.07 is zero, and the floor is stated"
    assert found["layer4"].condition == np.inf
    assert found["layer5"].condition == pytest.approx(3.0) and found["layer5"].spread == pytest.approx(0.02)
    assert "a saddle" in found["layer6"].verdict and "5% of the largest" in found["layer6"].verdict


def test_the_network_of_six_layers_gets_one_verdict_with_its_numbers():
    verdict = verdicts_of(SIX).verdict
    assert verdict.startswith("2 of 6 blocks are zero (layer1, layer2)")
    assert "Block layer3 has negative curvature (-0.057" in verdict
    assert "80.4% of the largest eigenvalue, 0.0709 in layer4" in verdict
    assert "interlacing" in verdict and "not a minimum" in verdict
    assert "2/0.0709 = 28.21" in verdict


def test_the_report_of_six_layers_can_be_read():
    text = repr(verdicts_of(SIX, label="my net"))
    assert "Hessian: my net" in text and "noise floor" in text
    assert "negative semidefinite" in text and "infinite" in text


def test_a_network_whose_blocks_are_all_zero_is_said_to_be_so():
    assert "Every block is zero (a, b)" in verdicts_of({"a": [0.0], "b": [0.0, 0.0]}).verdict


def test_other_shapes_have_their_words():
    found = verdicts_of({"down": [-1.0, -2.0], "up": [1.0, 2.0]})
    assert "a maximum in these parameters" in found["down"].verdict
    assert "positive definite" in repr(found["up"])
    assert "No block has negative curvature" in verdicts_of({"up": [1.0, 2.0], "flat": [0.0, 3.0]}).verdict
    with pytest.raises(KeyError, match="there is no block 'x'; there are down, up"):
        found["x"]


def test_given_eigenvalues_must_be_numbers():
    with pytest.raises(ValueError, match="a: eigenvalues must be a row of finite numbers"):
        verdicts_of({"a": [float("nan")]})


@pytest.mark.parametrize("by", ["tensor", "module"])
def test_every_block_equals_its_part_of_the_dense_matrix(by):
    model = net()
    whole, layout = dense(model)
    found = layer_spectra(problem_of(model), by)
    assert [b.name for b in found.blocks] == (
        ["0.weight", "0.bias", "2.weight", "2.bias"] if by == "tensor" else ["0", "2"]
    )
    for block in found.blocks:
        at = indices_of(layout, block.tensors)
        part = whole[at][:, at].numpy()
        assert block.entries == pytest.approx(part, abs=1e-12)
        assert block.values == pytest.approx(np.linalg.eigvalsh(part), abs=1e-12)
        assert block.whole and block.error < 1e-10


def test_an_iterative_block_agrees_with_the_dense_one_within_its_error():
    model = net()
    small, large = (
        layer_spectra(problem_of(model), "module"),
        layer_spectra(problem_of(model), "module", dense=0, tol=1e-6),
    )
    for a, b in zip(small.blocks, large.blocks, strict=True):
        assert not b.whole and abs(b.largest - a.largest) <= b.error and abs(b.smallest - a.smallest) <= b.error
        assert b.positive[0] <= a.positive[0] <= b.positive[1]
        assert b.negative[0] <= a.negative[0] <= b.negative[1]
        assert b.zero[0] <= a.zero[0] <= b.zero[1]
    assert "iterative" not in repr(small) and "-" in repr(large)


def test_the_whole_matrix_and_the_shortfall_stand_beside_the_blocks():
    model = net()
    whole, layout = dense(model)
    found = layer_spectra(problem_of(model), probes=60, tol=1e-6)
    values = torch.linalg.eigvalsh(whole).numpy()
    assert found.whole.values == pytest.approx([values[-1], values[0]], abs=1e-5)
    inside = sum(float((whole[at][:, at] ** 2).sum()) for at in (indices_of(layout, [n]) for n in layout.names))
    truth = 1 - inside / float((whole**2).sum())
    assert abs(found.off_diagonal_energy.share - truth) < 4 * found.off_diagonal_energy.error
    assert found.off_diagonal_energy.error < 0.03
    assert "outside the blocks" in found.verdict
    assert "from" in found.verdict and found.products > 0


def test_negative_curvature_that_no_single_block_has_is_noticed():
    """f = a b: each block is zero or up, the whole is a saddle."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    problem = Problem.custom(Product().eval(), lambda m, x: (m.a * m.b).sum() + 0 * x.sum(), torch.ones(4, 1))
    found = layer_spectra(problem)
    assert [b.kind for b in found.blocks] == ["zero", "zero"]
    assert found.whole.values == pytest.approx([1.0, -1.0])
    assert found.off_diagonal_energy.share == 1.0
    uneven = replace(found, blocks=(replace(found.blocks[0], values=np.array([2.0])), found.blocks[1]))
    assert "blocks have negative curvature together, which none of them shows" in uneven.verdict


def test_dead_units_are_the_reason_given_for_zero_blocks():
    model = net(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = layer_spectra(problem_of(model))
    assert found["0.weight"].kind == found["2.weight"].kind == "zero"
    assert "no gradient comes back" in found["0.weight"].why
    assert "all 4 units of 0 are dead" in found["0.weight"].why
    assert "no signal comes in" in found["2.weight"].why and "before it" in found["2.weight"].why
    assert found["4.bias"].kind != "zero"
    text = " ".join(repr(found).split())
    assert "Signals through the layers" in text and "4 of 4 units dead" in text
    assert "do not train at this point" in found.verdict


def test_a_loss_that_is_linear_in_a_layer_is_not_called_dead():
    model = net(nn.Linear(6, 1))
    problem = Problem.custom(model, lambda m, b: m(b).mean(), data()[0])
    found = layer_spectra(problem)
    assert "the loss is linear in it here" in found["0.weight"].why
    assert "The gradient still moves 0.weight, 0.bias" in found.verdict
    assert "Every block is zero" in found.verdict


def test_a_module_that_is_never_called_is_said_to_be_so():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    found = layer_spectra(problem_of(Idle().eval()))
    assert "its module is never called" in found["idle.weight"].why


def test_signals_are_the_numbers_that_they_say():
    model = net(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, _ = data()
    found = signals(problem_of(model))
    z = model[0](x).detach()
    assert found["0"].input == pytest.approx(float((x**2).mean().sqrt()), rel=1e-5)
    assert found["0"].output == pytest.approx(float((z**2).mean().sqrt()), rel=1e-5)
    assert found["0"].active == pytest.approx(float((z > 0).float().mean()), rel=1e-6)
    assert found["0"].behind.dead == int((z.max(0).values <= 0).sum()) and found["0"].behind.kind == "relu"
    assert found["2"].behind is None and found["0"].calls == 3
    p = F.one_hot(data()[1], 3) - model(x).softmax(1).detach()
    assert found["2"].gradient == pytest.approx(float((p**2).mean().sqrt()), rel=1e-4)
    assert list(found) == ["0", "2"] and "active" in repr(found["0"])


class Called(nn.Module):
    """A net that calls its ReLUs as functions, one layer twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(F.relu(self.a(x))))))
        return self.out(x)


def test_a_dead_layer_before_a_relu_that_is_called_as_a_function_is_named():
    torch.manual_seed(0)
    model = Called().eval()
    with torch.no_grad():
        model.b.bias.fill_(-1e3)
    found = signals(problem_of(model))
    assert found["b"].all_dead and not found["a"].all_dead and found["out"].behind is None
    x, _ = data()
    first = torch.relu(model.a(x))
    silent = ((first == 0) & (torch.relu(model.a(first)) == 0)).all(0)
    assert found["a"].behind.dead == int(silent.sum()) and found["a"].behind.units == 6
    assert "b are dead" in {b.name: b for b in layer_spectra(problem_of(model)).blocks}["out.weight"].why


def test_groups_are_made_of_tensors_modules_and_regular_expressions():
    names = ["a.weight", "a.bias", "b.weight", "w"]
    assert groups_of(names) == {n: (n,) for n in names}
    assert groups_of(names, "module") == {"a": ("a.weight", "a.bias"), "b": ("b.weight",), "the model itself": ("w",)}
    assert groups_of(names, patterns=["first=^a", "^b"]) == {"first": ("a.weight", "a.bias"), "^b": ("b.weight",)}


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (["fc9"], "no parameter matches 'fc9'; there are a.weight, a.bias"),
        (["a", "weight"], "a.weight is matched by 'a' and by 'weight'; a tensor belongs to one block"),
        (["("], r"'\(' is not a regular expression"),
    ],
)
def test_invalid_patterns_are_refused(patterns, text):
    with pytest.raises(ValueError, match=text):
        groups_of(["a.weight", "a.bias"], patterns=patterns)


def test_an_unknown_way_of_cutting_is_named():
    with pytest.raises(ValueError, match="layers are taken by tensor or module, or by regular expressions; got 'head'"):
        groups_of(["a"], "head")


def test_a_block_diagonal_matrix_leaves_nothing_out():
    a = torch.block_diag(torch.ones(3, 3), 2 * torch.ones(2, 2)).double()
    found = off_diagonal_energy(Held(a), {"a": torch.arange(3), "b": torch.arange(3, 5)})
    assert found.share == 0.0 and found.error == 0.0 and found.by_block == {"a": 0.0, "b": 0.0}
    assert found.interval() == (0.0, 0.0)
    assert off_diagonal_energy(Held(0 * a), {"a": torch.arange(3), "b": torch.arange(3, 5)}).share == 0.0
    with pytest.raises(ValueError, match="probes must be >= 2 for a standard error; got 1"):
        off_diagonal_energy(Held(a), {"a": torch.arange(3)}, probes=1)


@pytest.mark.parametrize("outliers", [1, 10])
@pytest.mark.parametrize("rows", [(100, 100), (60, 20, 100, 10, 10)])
def test_the_interval_of_the_off_diagonal_energy_holds_the_truth_at_its_rate(outliers, rows):
    """Four products a block, and few eigenvectors that outweigh all others: the squared lengths are skewed."""
    r = np.random.default_rng(outliers)
    v = np.linalg.qr(r.standard_normal((200, outliers)) * np.repeat(r.lognormal(size=len(rows)), rows)[:, None])[0]
    noise = 1e-3 * r.standard_normal((200, 200))
    a = (v * 10.0 / np.arange(1, outliers + 1)) @ v.T + noise + noise.T
    blocks = dict(enumerate(torch.arange(200).split(rows)))
    inside = sum((a[np.ix_(at, at)] ** 2).sum() for at in blocks.values())
    truth, hits = 1 - inside / (a**2).sum(), 0
    for seed in range(200):
        energy = off_diagonal_energy(Held(torch.tensor(a)), {str(b): at for b, at in blocks.items()}, seed=seed)
        low, high = energy.interval()
        assert 0.0 <= low <= energy.share <= high <= 1.0
        hits += low <= truth <= high
    assert hits >= binom.ppf(0.0005, 200, 0.95)
    assert "95 % interval" in repr(energy)


def test_energy_that_one_product_alone_has_seen_is_hardly_known():
    energy = energy_from_leakage({"a": (np.ones(4), np.array([0.0, 0.0, 0.0, 1.0])), "b": (np.ones(4), np.zeros(4))})
    low, high = energy.interval()
    assert energy.share == pytest.approx(1 / 9) and low < 0.01 and high > 0.9
    everything = energy_from_leakage({"a": (np.zeros(4), np.ones(4))})
    assert everything.share == 1.0 and everything.interval() == (1.0, 1.0)


def test_a_block_of_the_problem_is_the_matrix_of_its_parameters_alone():
    problem = problem_of(net())
    assert block_matrix(problem, "hessian", ["0.bias", "2.weight"]).size == 20


def test_a_model_that_does_not_run_in_float64_is_computed_as_it_is_and_says_so():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("not in float64, please")
            return self.fc(x)

    problem = problem_of(Stubborn().eval())
    same, notes = exact_problem(problem)
    assert same is problem and "not in float64, please" in notes[0]
    assert "not in float64, please" in " ".join(repr(layer_spectra(problem)).split())


def test_what_a_file_keeps_has_one_row_a_block():
    arrays, attributes = layer_spectra(problem_of(net()), "module").stored()
    assert list(arrays["block"]) == ["0", "2"] and arrays["positive"].shape == (2, 2)
    assert arrays["matrix:0"].shape == (35, 35) and len(arrays["eigenvalues:2"]) == 18
    assert {"outside", "whole_largest", "verdict", "report"} <= set(attributes)
    large, _ = layer_spectra(problem_of(net()), "module", dense=0).stored()
    assert "nodes:0" in large and "matrix:0" not in large


def test_second_reading_by_inputs_is_the_mean_second_derivative_of_the_summed_output():
    model = net(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Sigmoid())
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    problem = Problem.custom(model, lambda m, b: m(b).mean(), x)
    first, second = layer_hessians(problem, "inputs")
    w, b = model[0].weight.detach().double(), model[0].bias.detach().double()
    z = x.double() @ w.T + b
    curvature = -2 * torch.tanh(z) * (1 - torch.tanh(z) ** 2)  # tanh''
    expected = torch.einsum("no,oi,oj->ij", curvature, w, w) / 7
    assert first.entries == pytest.approx(expected.numpy(), abs=1e-12)
    assert first.activation == "Tanh" and first.outputs == 2
    assert second.outputs == 1 and second.ranks == 1
    assert "rank at most 1, having 1 output" in second.verdict


def test_second_reading_by_weights_is_block_diagonal_over_outputs():
    model = net(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    first = layer_hessians(Problem.custom(model, lambda m, b: m(b).mean(), x), "weights")[0]
    assert first.entries.shape == (6, 6) and first.entries[:3, 3:] == pytest.approx(np.zeros((3, 3)))
    z = (x.double() @ model[0].weight.detach().double().T + model[0].bias.detach().double())[:, 0]
    curvature = -2 * torch.tanh(z) * (1 - torch.tanh(z) ** 2)
    expected = torch.einsum("n,ni,nj->ij", curvature, x.double(), x.double()) / 7
    assert first.entries[:3, :3] == pytest.approx(expected.numpy(), abs=1e-12)


def test_a_piecewise_linear_piece_is_zero_by_construction_and_not_dead():
    model = net(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    found = layer_spectra(problem_of(model), second=("inputs", "weights"))
    first = found.layer_hessians[0]
    assert first.flat and first.kind_of == "zero" and "says nothing about dead units" in first.verdict
    assert "no activation module behind it" in found.layer_hessians[1].verdict
    text = " ".join(repr(found).split())
    assert "Per-layer output Hessian" in text and "not of the loss" in text


def test_convolutions_are_read_a_second_time_too_and_large_pieces_are_named():
    model = net(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(4, 3))
    conv, fc = layer_hessians(problem_of(model), "inputs")
    assert conv.size == 6 and conv.values[0] > -1e-12 and conv.values[-1] > 0
    assert "positive" in conv.kind_of and "LayerHessian(1, with respect to its inputs" in repr(conv)
    skipped = layer_hessians(problem_of(model), "weights", dense=4)[0]
    assert "not computed: 8 numbers, more than the 4" in skipped.verdict
    assert fc.flat


def test_a_curved_layer_at_inputs_where_it_is_linear_is_distinguished_from_a_linear_one():
    model = net(nn.Linear(2, 1, bias=False), nn.Tanh())
    with torch.no_grad():
        model[0].weight.zero_()
    piece = layer_hessians(Problem.custom(model, lambda m, b: m(b).mean(), torch.ones(4, 2)), "weights")[0]
    assert "though Tanh is curved" in piece.verdict


def test_another_second_reading_is_refused():
    with pytest.raises(ValueError, match="taken by inputs or weights; got 'outputs'"):
        layer_hessians(problem_of(net()), "outputs")


def test_a_layer_is_read_without_an_activation_that_takes_more_than_its_output():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()

        def forward(self, x):
            return self.act(x + self.two(self.act(self.one(x))))

    problem = Problem.supervised(Residual(), "mse", (torch.randn(9, 3), torch.randn(9, 3)))
    assert [layer.activation for layer in layer_hessians(problem)] == ["Tanh", "none seen"]


def test_a_softmax_over_other_samples_is_no_part_of_a_layer():
    x = torch.randn(6, 4, 3)
    for dim, seen in ((1, "none seen"), (2, "Softmax"), (-1, "Softmax")):
        model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=dim))
        (layer,) = layer_hessians(Problem.supervised(model, "mse", (x, torch.randn(6, 4, 2))))
        assert layer.activation == seen


def test_layers_are_read_a_second_time_where_the_loss_differentiates_by_its_inputs_or_weights_are_pruned():
    def loss(model, batch):
        x = batch[0].requires_grad_(True)
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().mean()

    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    assert len(layer_hessians(Problem.custom(model, loss, (torch.randn(12, 2),)))) == 2
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    problem = Problem.supervised(model, "mse", (torch.randn(12, 2), torch.randn(12, 1)))
    assert layer_hessians(problem, "weights")[0].skipped == "" and layer_hessians(problem)[0].size == 2


class ZeroInit(nn.Module):
    """A residual branch that begins with zeros: a kink along its own bias, and along nothing else."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.two.weight)
        nn.init.zeros_(self.two.bias)

    def forward(self, x):
        h = torch.relu(self.one(x))
        return self.last(torch.relu(h + self.two(h)))


def test_blocks_beside_a_kink_have_the_bars_of_their_own_and_none_at_it_is_called_zero():
    torch.manual_seed(0)
    model, x, y = ZeroInit(), torch.randn(12, 5), torch.arange(12) % 3
    problem, names = Problem.supervised(model, "crossentropy", (x, y)), ("last.bias", "one.weight", "two.bias")
    found = layer_spectra(problem, patterns=[f"{n}=^{n}$" for n in names], whole=False, probes=0, dense=16)
    p = model(x).detach().double().softmax(1)
    mean = torch.diag(p.mean(0)) - p.T @ p / len(x)  # the Hessian by the last bias
    block = found["last.bias"]
    np.testing.assert_allclose(block.values, torch.linalg.eigvalsh(mean).numpy(), atol=1e-6)
    assert block.error < 1e-6 and block.kind == "positive semidefinite" and block.kinks == 0.0
    assert found["one.weight"].error < 1e-2 * found["one.weight"].scale  # by Lanczos
    at_kink = found["two.bias"]
    assert at_kink.kinks > 0.1 and at_kink.kind == "not known" and at_kink.why == ""


def test_a_parameter_without_entries_has_no_block():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3))
    data = (torch.randn(12, 4), torch.arange(12) % 3)
    blocks = layer_spectra(Problem.supervised(net, "crossentropy", data), probes=0)
    net.register_parameter("unused", nn.Parameter(torch.zeros(0, 4)))
    again = layer_spectra(Problem.supervised(net, "crossentropy", data), probes=0)
    assert [b.name for b in again.blocks] == [b.name for b in blocks.blocks] == ["0.weight", "0.bias"]
    assert again["0.weight"].values == pytest.approx(blocks["0.weight"].values)


def test_blocks_whose_names_are_alike_but_for_a_slash_keep_their_own_arrays(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.d = nn.ModuleDict({"a/b": nn.Linear(6, 2), "a_b": nn.Linear(2, 3)})

        def forward(self, x):
            return self.d["a_b"](torch.tanh(self.d["a/b"](x)))

    model = Named().double()
    x, y = data()
    problem = Problem.supervised(model, "crossentropy", (x.double(), y))
    whole, _ = dense(model)
    spectra = layer_spectra(problem, "module", whole=False)
    spectra.save(tmp_path / "a.h5")
    (group,) = layers_in(tmp_path / "a.h5").values()
    wanted = {"a_b": torch.linalg.eigvalsh(whole[:14, :14]), "a_b~2": torch.linalg.eigvalsh(whole[14:, 14:])}
    for name, values in wanted.items():
        np.testing.assert_allclose(np.sort(group[f"eigenvalues:d.{name}"]), values, atol=1e-12)
    values = singular_values(model).stored()[0]
    for own, name in (("a_b", "a/b"), ("a_b~2", "a_b")):
        (key,) = (key for key in values if key.startswith("d.a_b") and key.endswith("~2") == own.endswith("~2"))
        np.testing.assert_allclose(values[key], torch.linalg.svdvals(model.d[name].weight.detach()), rtol=1e-12)


class Written(nn.Module):
    """In place or not: what a layer is given, and what stands between a layer and its activation."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.a, self.b, self.last, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Tanh()

    def forward(self, x):
        x = self.act(self.a(x))
        step = self.b(x)
        if self.inplace:
            x += step
            step *= 2.0
        else:
            x, step = x + step, step * 2.0
        return self.last(self.act(step) + x)


@pytest.mark.parametrize("at", ["inputs", "weights"])
def test_layers_whose_inputs_are_written_into_are_read_as_those_of_their_twins(at):
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one, two = (
        layer_hessians(Problem.custom(Written(inplace).double(), lambda m, b: m(b).mean(), x), at)
        for inplace in (False, True)
    )
    assert [found.activation for found in two] == ["Tanh", "none seen", "none seen"]
    for first, second in zip(one, two, strict=True):
        assert first.activation == second.activation
        np.testing.assert_allclose(first.entries, second.entries, atol=1e-15)
    called = _layers_as_called(Problem.custom(Written(True).double(), lambda m, b: m(b).mean(), x), 100)
    with torch.no_grad():
        model = Written(False).double()
        assert torch.equal(called[1].inputs, torch.tanh(model.a(x)))
