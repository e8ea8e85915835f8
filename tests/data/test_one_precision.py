"""Models and losses that cast to float32 within are evaluated in float64 where their model is in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lossmap import Problem, spectrum
from lossmap.curvature.operators import hessian
from lossmap.curvature.product_check import check_product
from lossmap.data.one_precision import in_one_precision

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
TABLE = torch.linspace(0.5, 1.5, 5)


class CastingNet(nn.Module):
    """A norm in float32, a softmax in float32 and a table of its own in float32; or all in one precision."""

    def __init__(self, narrow: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.narrow = nn.Linear(6, 5), nn.Linear(5, 3), narrow

    def forward(self, x):
        h = self.a(x)
        wide = h.float() if self.narrow == torch.float32 else h
        h = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(h)
        table = TABLE if self.narrow == torch.float32 else TABLE.double()
        return self.b(torch.softmax(h.type(self.narrow) * table, -1, dtype=self.narrow).to(x.dtype))


@pytest.mark.parametrize(
    "make",
    [
        lambda net: Problem.supervised(net, nn.CrossEntropyLoss(), (X, Y)),
        lambda net: Problem.supervised(net, lambda o, t: F.cross_entropy(o.float(), t), (X, Y)),
        lambda net: Problem.custom(net, lambda m, b: F.cross_entropy(m(b[0]).to(torch.float32), b[1]), [(X, Y)]),
    ],
    ids=["module", "loss that casts", "own loss that casts"],
)
def test_products_are_checked_without_the_rounding_of_float32(make):
    problem = make(CastingNet().eval())
    check = check_product(problem, "weights", hessian)
    assert (dict(check.rejected), check.disagreement, check.unchecked) == ({}, 0.0, "")

    twin = CastingNet(torch.float64).double()
    names, weights = ("a.weight", "b.weight"), (twin.a.weight.detach(), twin.b.weight.detach())

    def loss(*w):
        return F.cross_entropy(functional_call(twin, dict(zip(names, w, strict=True)), X.double()), Y)

    rows = torch.autograd.functional.hessian(loss, weights)
    blocks = [[block.reshape(w.numel(), -1) for block in row] for w, row in zip(weights, rows, strict=True)]
    truth = float(torch.linalg.eigvalsh(torch.cat([torch.cat(row, 1) for row in blocks]))[-1])
    largest, error = spectrum(problem, top=1, bottom=1, trace_products=0, density_error=None, dense=4).largest
    assert error < 0.01 * truth
    assert abs(largest - truth) <= error + 1e-4 * truth


def test_a_function_that_fails_in_float64_runs_as_it_is():
    def in_float32_only(x):
        y = x.float()
        if y.dtype == torch.float64:
            raise RuntimeError("no float64 here")
        return y

    x = torch.ones(3, dtype=torch.float64)
    assert in_one_precision(in_float32_only, True, x).dtype == torch.float32
    assert in_one_precision(lambda t: t.float(), False, x).dtype == torch.float32
    assert in_one_precision(lambda t: t.float(), True, x).dtype == torch.float64
