"""Products in TF32 and bfloat16, simulated: inputs of every matrix product are rounded, as tensor cores round them.

Bars come from the same measurement as in float32, and hold the dense float64 truth.
Models in half precision are refused.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap import Problem
from lossmap.curvature.autotune import prepare
from lossmap.geometry.directions import random_plane
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.spectra.spectrum import spectrum

BITS = {"tf32": 10, "bfloat16": 7}  # of the mantissa


class Rounded(torch.autograd.Function):
    """A float32 tensor to fewer bits; so is what flows back, as in a backward pass on the same hardware."""

    @staticmethod
    def forward(ctx, x, bits):
        ctx.bits = bits
        if x.dtype != torch.float32:
            return x.clone()
        dropped = 23 - bits
        whole = x.contiguous().view(torch.int32) + (1 << (dropped - 1))
        return (whole & ~((1 << dropped) - 1)).view(torch.float32)

    @staticmethod
    def backward(ctx, g):
        return Rounded.apply(g, ctx.bits), None


class CoarseLinear(nn.Linear):
    """A linear layer whose inputs and weights are rounded."""

    bits = 10

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(Rounded.apply(x, self.bits), Rounded.apply(self.weight, self.bits), self.bias)


def coarse(bits: int, scale: float) -> tuple[Problem, np.ndarray]:
    """A problem whose products are coarse, and the eigenvalues of its Hessian without any rounding, ascending."""
    torch.manual_seed(0)
    net = nn.Sequential(CoarseLinear(6, 8), nn.Tanh(), CoarseLinear(8, 4)).eval()
    for layer in (net[0], net[2]):
        layer.bits = bits
    x = torch.randn(60, 6)
    y = torch.randint(0, 4, (60,))
    with torch.no_grad():
        net[2].weight.mul_(scale)
    double = copy.deepcopy(net).double()
    weights = [p for p in double.parameters() if p.dim() > 1]
    slope = torch.autograd.grad(F.cross_entropy(double(x.double()), y), weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in slope])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in flat]
    hessian = torch.stack([torch.cat([h.reshape(-1) for h in row]) for row in rows])
    return Problem.supervised(net, "crossentropy", (x, y)), torch.linalg.eigvalsh((hessian + hessian.T) / 2).numpy()


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("precision", BITS)
def test_bars_and_limits_hold_the_truth_where_products_are_coarse(precision: str, scale: float) -> None:
    problem, true = coarse(BITS[precision], scale)
    for dense in (300, 1):
        s = spectrum(
            problem, top=3, bottom=1, dense=dense, trace_products=10, density_error=0.2, backend="double-backward"
        )
        for value, error in zip(s.values, s.errors, strict=True):
            assert np.abs(true - value).min() <= error, (dense, value, error)
        assert s.limits[1] <= true[0] and true[-1] <= s.limits[0]
        low, high = s.trace.interval()
        assert low <= true.sum() <= high
        for t, below, above in s.masses:
            assert below.low - 1e-9 <= (true < -t).mean() <= below.high + 1e-9
            assert above.low - 1e-9 <= (true > t).mean() <= above.high + 1e-9
        assert s.largest[1] < 0.1 * true[-1]  # and the bars are of use


@pytest.mark.parametrize("precision", BITS)
def test_a_map_holds_the_truth_where_products_are_coarse(precision: str) -> None:
    problem, true = coarse(BITS[precision], 1.0)
    factory = prepare(problem)
    assert factory.plan.backend == "double-backward"  # a trace takes the rounding for a constant, in float32 alone
    reading = EigenvalueMap({"train": factory}, random_plane(problem.model, axes=1, seed=0))((0.0,))
    for end in ("max", "min"):
        assert np.abs(true - reading[f"{end}_eig"]).min() <= reading[f"{end}_eig_error"] < 0.1 * true[-1]
    assert reading["min_eig_limit"] <= true[0] and true[-1] <= reading["max_eig_limit"]
    assert reading["eigen_rounding_measured"] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_refused_by_name_wherever_curvature_is_computed(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype).eval()
    problem = Problem.supervised(net, "crossentropy", (torch.randn(20, 6).to(dtype), torch.randint(0, 4, (20,))))
    for curvature in (spectrum, prepare):
        with pytest.raises(ValueError, match=f"the weights are {str(dtype).removeprefix('torch.')}"):
            curvature(problem)


class Autocast(nn.Sequential):
    """Layers under autocast in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


def test_a_whole_matrix_of_coarse_products_is_made_in_float64_with_bars_of_that_precision() -> None:
    torch.manual_seed(0)
    net = Autocast(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x, y = torch.randn(50, 4), torch.arange(50) % 3
    found = spectrum(Problem.supervised(net, "crossentropy", (x, y)), top=2)
    plain = copy.deepcopy(nn.Sequential(*net)).double()
    weights = [p for p in plain.parameters() if p.dim() > 1]
    gradient = torch.autograd.grad(F.cross_entropy(plain(x.double()), y), weights, create_graph=True)
    rows = [torch.autograd.grad(g, weights, retain_graph=True) for g in torch.cat([g.flatten() for g in gradient])]
    truth = torch.linalg.eigvalsh(torch.stack([torch.cat([t.flatten() for t in row]) for row in rows])).numpy()
    for value, error, exact in zip(found.values, found.errors, (truth[-1], truth[-2], truth[0]), strict=True):
        assert abs(value - exact) <= error < 1e-7 * truth[-1]
