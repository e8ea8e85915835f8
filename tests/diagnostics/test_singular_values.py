"""Singular values of weights: closed forms, and every kind of layer."""

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.diagnostics.singular_values import singular_values


def of(values, m=7, k=5):
    """A linear layer with these singular values."""
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(m, m, generator=g))[0][:, : len(values)]
    v = torch.linalg.qr(torch.randn(k, k, generator=g))[0][:, : len(values)]
    layer = nn.Linear(k, m, bias=False)
    layer.weight.data = u @ torch.diag(torch.tensor(values)) @ v.T
    return layer


def test_planted_singular_values_are_found_with_all_that_follows_from_them():
    found = singular_values(of([4.0, 2.0, 2.0, 1.0, 1.0]))["weight"]
    assert found.values == pytest.approx([4, 2, 2, 1, 1], rel=1e-5)
    assert found.spectral_norm == pytest.approx(4.0, rel=1e-5)
    assert found.frobenius_norm == pytest.approx(np.sqrt(26), rel=1e-5)
    assert found.condition == pytest.approx(4.0, rel=1e-5)
    assert found.stable_rank == pytest.approx(26 / 16, rel=1e-5)
    p = np.array([4, 2, 2, 1, 1]) / 10
    assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert found.near_zero == 0


def test_the_norm_is_that_of_w_and_not_of_w_times_its_transpose():
    layer = of([3.0, 1.0])
    found = singular_values(layer)["weight"].spectral_norm
    assert found == pytest.approx(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)), rel=1e-6)
    w = layer.weight.detach()
    assert found != pytest.approx(float(torch.linalg.matrix_norm(w @ w.T, 2)), rel=1e-2)


def test_small_singular_values_are_counted_and_zero_ones_make_the_condition_infinite():
    found = singular_values(of([1.0, 1.0, 1e-4]))["weight"]
    assert found.near_zero == 3 and found.condition > 1e4  # two of five are zero but for rounding in float32
    zero = nn.Linear(4, 3)
    nn.init.zeros_(zero.weight)
    held = singular_values(zero)["weight"]
    assert held.condition == np.inf and held.near_zero == 3
    assert np.isnan(held.stable_rank) and np.isnan(held.effective_rank)


def test_convolutions_embeddings_and_attention_are_read_as_matrices():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 5)
            self.up = nn.ConvTranspose2d(4, 6, 3)
            self.table = nn.Embedding(20, 6)
            self.attention = nn.MultiheadAttention(6, 2)
            self.norm = nn.BatchNorm2d(8)

    found = singular_values(Net())
    assert found["conv.weight"].shape == (8, 75)
    assert found["up.weight"].shape == (6, 36)
    assert found["table.weight"].shape == (20, 6) and len(found["table.weight"].values) == 6
    assert found["attention.in_proj_weight"].kind == "MultiheadAttention"
    assert "norm.weight" not in [w.name for w in found]
    text = repr(found)
    assert "conv.weight" in text and "8 x 75" in text and "of W itself" in text
    assert "near zero" in repr(found["conv.weight"])


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="there is no weight 'fc'; there are weight"):
        singular_values(nn.Linear(2, 2))["fc"]


def test_a_model_without_matrices_and_one_that_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="no weight of two or more dimensions"):
        singular_values(nn.BatchNorm1d(3))
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight holds values that are not finite"):
        singular_values(layer)


def block_diagonal(layer):
    """Dense truth by NumPy: the matrix (out, in x kernel), a group's outputs connected to its own inputs alone."""
    w, groups = layer.weight.detach().double().numpy(), layer.groups
    place = int(np.prod(w.shape[2:]))
    matrix = np.zeros((layer.out_channels, layer.in_channels * place))
    outs, ins = layer.out_channels // groups, layer.in_channels // groups
    for o in range(layer.out_channels):
        group = o // outs
        for i in range(ins):
            channel = group * ins + i
            kernel = w[channel, o % outs] if layer.transposed else w[o, i]
            matrix[o, channel * place : (channel + 1) * place] = kernel.ravel()
    return matrix


GROUPED = {
    "plain": lambda: nn.Conv2d(3, 5, 3),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(10, 10, 5, groups=10),
    "multiplier": lambda: nn.Conv2d(6, 12, 3, groups=6),
    "pointwise grouped": lambda: nn.Conv2d(4, 12, 1, groups=2),
    "grouped in 1d": lambda: nn.Conv1d(4, 6, 7, groups=2),
    "grouped in 3d": lambda: nn.Conv3d(6, 4, (1, 2, 3), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(5, 4, 3),
    "transposed grouped in 1d": lambda: nn.ConvTranspose1d(6, 4, 4, groups=2),
    "transposed depthwise": lambda: nn.ConvTranspose2d(7, 7, 3, groups=7),
    "transposed grouped in 3d": lambda: nn.ConvTranspose3d(4, 8, 2, groups=4),
}


@pytest.mark.parametrize("make", GROUPED.values(), ids=GROUPED)
def test_a_convolution_is_block_diagonal_by_its_groups(make):
    torch.manual_seed(9)
    layer = make()
    result = singular_values(layer)["weight"]
    dense = block_diagonal(layer)
    truth = np.linalg.svd(dense, compute_uv=False)
    assert result.shape == dense.shape and len(result.values) == min(dense.shape)
    assert result.values == pytest.approx(truth, abs=1e-12)
    assert result.stable_rank == pytest.approx((truth**2).sum() / truth[0] ** 2)
    assert (f"in {layer.groups} blocks" in repr(result)) == (layer.groups > 1)


def test_the_matrix_maps_what_lies_under_the_kernel_to_the_outputs_of_one_place():
    torch.manual_seed(3)
    layer = nn.Conv2d(6, 4, 3, groups=2, bias=False).double()
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    assert block_diagonal(layer) @ x.flatten().numpy() == pytest.approx(layer(x).flatten().detach().numpy())


@pytest.mark.parametrize(
    "normalize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda layer: nn.utils.weight_norm(layer, "weight"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_normalized_weight_is_read_as_the_layer_applies_it(normalize):
    torch.manual_seed(4)
    layer = normalize(nn.Conv1d(4, 6, 3, groups=2))
    with torch.no_grad():  # magnitudes other than those of the directions
        for name, parameter in layer.named_parameters():
            if name.endswith(("weight_g", "original0")):
                parameter.mul_(torch.linspace(0.5, 2.0, parameter.numel()).view_as(parameter))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    table = singular_values(layer)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items()) and layer.training
    layer.eval()(torch.zeros(1, 4, 5))  # the hooks write the weight
    assert [w.name for w in table] == ["weight"]
    truth = np.linalg.svd(block_diagonal(layer), compute_uv=False)
    assert table["weight"].values == pytest.approx(truth, abs=1e-6)
