"""Models and losses that cast to float32 within are evaluated in float64 where their model is in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lossmap import Problem, spectrum
from lossmap.curvature.operators import hessian
from lossmap.curvature.product_check import check_product
from lossmap.curvature.rounding import problem_in
from lossmap.data.borrow import temporary_parameters
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


class ByItsEpsilon(nn.Module):
    """Divides by a length and a thousand epsilons of its precision."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h / (h.norm(dim=1, keepdim=True) + 1e6 * torch.finfo(h.dtype).eps))


def by_probabilities(outputs, targets):
    return -torch.distributions.Categorical(probs=(40 * outputs).softmax(1)).log_prob(targets).mean()


@pytest.mark.parametrize("kind", ["model", "loss"])
def test_what_takes_the_epsilon_of_its_precision_is_the_same_function_in_float64(kind):
    torch.manual_seed(0)
    model = ByItsEpsilon() if kind == "model" else nn.Linear(4, 3)
    loss = nn.CrossEntropyLoss() if kind == "model" else by_probabilities
    data = torch.randn(24, 4), torch.randint(3, (24,))
    problem = Problem.supervised(model, loss, data)
    twin = problem_in(problem, torch.float64)
    native = Problem.supervised(copy.deepcopy(model).double(), loss, (data[0].double(), data[1]))
    values = []
    for one in (problem, twin, native):
        with temporary_parameters(one.model, {}), torch.no_grad():
            values.append(float(one.total(next(iter(one.data)))))
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert abs(values[2] - values[0]) > 1e-4 * values[0]  # a model of the user's own in float64 has float64's
    assert torch.finfo(torch.float64).eps < 1e-15
