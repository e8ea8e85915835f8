"""Cross entropy over many classes, a few rows at a time: values, slopes and products are those of PyTorch's in float64.

Chunks of two rows, and used from one class on, so that small networks, whose matrices can be written out, take it.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossmap
from lossmap.curvature.backends import LinearizedProducts, bytes_of
from lossmap.curvature.hvp_plan import HvpPlan
from lossmap.curvature.linearized_operator import OperatorFactory
from lossmap.curvature.operators import gauss_newton, hessian
from lossmap.curvature.product_check import check_product
from lossmap.stable import chunked_entropy

CLASSES = 7


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows of float32, whatever the number of classes."""
    monkeypatch.setattr(chunked_entropy, "MIN_CLASSES", 1)
    monkeypatch.setattr(chunked_entropy, "CHUNK_BYTES", {"cpu": 2 * 4 * CLASSES})


class Words(nn.Module):
    """Logits for each of several tokens; its ReLU writes into its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(CLASSES, 3), nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) -> (N, T, classes)."""
        return self.head(F.relu(self.hidden(self.table(x)), inplace=True))


def of_tokens(reduce):
    """A loss of (N T, classes) and (N T,) as one of (N, T, classes) and (N, T)."""
    return lambda outputs, targets: reduce(outputs.flatten(0, 1), targets.flatten())


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def weighted_tokens(x: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(x, y, reduction="none", label_smoothing=0.05)
    weights = 0.5 + (torch.arange(len(y), device=y.device) % 3).to(x.dtype)
    return (each * weights).sum() / len(y)


def class_weights(like: Tensor) -> Tensor:
    return (0.25 + torch.arange(CLASSES, device=like.device)).to(like.dtype)


LOSSES = {
    "plain": of_tokens(F.cross_entropy),
    "next token": next_token,
    "ignored": of_tokens(lambda x, y: F.cross_entropy(x, y, ignore_index=2)),
    "class weights": of_tokens(lambda x, y: F.cross_entropy(x, y, class_weights(x), ignore_index=1)),
    "smoothing": of_tokens(lambda x, y: F.cross_entropy(x, y, class_weights(x), ignore_index=1, label_smoothing=0.2)),
    "token weights": of_tokens(weighted_tokens),
    "function of the loss": of_tokens(lambda x, y: F.cross_entropy(x, y).square()),
}


def problem(name: str) -> lossmap.Problem:
    torch.manual_seed(0)
    model, x, y = Words(), torch.randint(CLASSES, (4, 5)), torch.randint(CLASSES, (4, 5))
    return lossmap.Problem.supervised(model, LOSSES[name], (x, y), batch_size=4)


def dense(p: lossmap.Problem, loss, kind: str) -> Tensor:
    """The matrix in float64 by PyTorch's own cross entropy, (n, n), over all parameters."""
    model = copy.deepcopy(p.model).double()
    x, y = next(iter(p.data))
    names = [name for name, _ in model.named_parameters()]
    shapes = [t.shape for t in model.parameters()]
    theta = torch.cat([t.detach().reshape(-1) for t in model.parameters()])

    def outputs(t: Tensor) -> Tensor:
        parts = [part.view(s) for part, s in zip(t.split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,))

    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda t: loss(outputs(t), y), theta)
    j = torch.autograd.functional.jacobian(outputs, theta).flatten(0, 2)
    f = outputs(theta).detach()
    curved = torch.autograd.functional.hessian(lambda g: loss(g.view_as(f), y), f.flatten())
    return j.T @ curved @ j


def operator(p: lossmap.Problem, kind: str, backend: str = "linearized", vectorized: bool = False):
    product = {"hessian": hessian, "gauss-newton": gauss_newton}[kind]
    plan = HvpPlan(backend, 4, vectorized=vectorized)
    return OperatorFactory(p, "all", product, lambda t: t, plan, 1 << 30).at()


@pytest.mark.usefixtures("two_rows")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_both_derivatives_are_pytorchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    for weighted, reduction, ignored, smoothing in itertools.product((0, 1), (0, 1, 2), (-100, 3), (0.0, 0.2)):
        x = (3 * torch.randn(9, CLASSES, dtype=dtype)).requires_grad_()
        y = torch.randint(CLASSES, (9,))
        y[1] = ignored
        weight = torch.rand(CLASSES, dtype=dtype) if weighted else None
        name = ("none", "mean", "sum")[reduction]
        ours = chunked_entropy.cross_entropy(x, y, weight, reduction, ignored, smoothing)
        own = F.cross_entropy(x, y, weight, ignore_index=ignored, reduction=name, label_smoothing=smoothing)
        g, h = torch.randn_like(own.detach()), torch.randn(9, CLASSES, dtype=dtype)
        derivatives = []
        for loss in (ours, own):
            (slope,) = torch.autograd.grad((loss * g).sum(), x, create_graph=True)
            derivatives.append((slope.detach(), torch.autograd.grad((slope * h).sum(), x)[0]))
        torch.testing.assert_close(ours, own, **close)
        for a, b in zip(*derivatives, strict=True):
            torch.testing.assert_close(a, b, **close)


def test_what_is_no_number_is_none_here_either() -> None:
    x = torch.randn(4, CLASSES)
    x[0, 0], x[1, 2], x[2, 1] = torch.inf, torch.nan, -torch.inf
    y = torch.tensor([1, 1, 1, 3])
    for smoothing in (0.0, 0.1):
        ours = chunked_entropy.cross_entropy(x, y, None, 0, -100, smoothing)
        torch.testing.assert_close(
            ours, F.cross_entropy(x, y, reduction="none", label_smoothing=smoothing), equal_nan=True
        )
    none = torch.full((4,), -100)
    assert chunked_entropy.cross_entropy(x, none).isnan() and chunked_entropy.cross_entropy(x, none, None, 2) == 0


@pytest.mark.usefixtures("two_rows")
@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("name", LOSSES)
def test_products_are_those_of_the_dense_matrix(name: str, kind: str) -> None:
    p = problem(name)
    truth = dense(p, LOSSES[name], kind)
    v = torch.randn(len(truth), 3, generator=torch.Generator().manual_seed(1))
    before = v.clone()
    for backend, vectorized in (("linearized", False), ("linearized", True), ("double-backward", False)):
        matrix = operator(p, kind, backend, vectorized)
        found = matrix @ v
        assert torch.equal(v, before) and torch.equal(matrix @ v, found), "a product wrote into what it read"
        error = (found.double() - truth @ v.double()).norm() / (truth.norm() * v.norm())
        assert error < 1e-6, (backend, vectorized, float(error))


@pytest.mark.usefixtures("two_rows")
@pytest.mark.parametrize("lead", [0.0, 8.0, 16.0, 32.0])
def test_digits_are_kept_however_small_the_loss(lead: float) -> None:
    """Where each row's class leads by far, in float32 against the same numbers in float64 from differences."""
    torch.manual_seed(1)
    y, h = torch.arange(6), torch.randn(6, CLASSES)
    x = torch.randn(6, CLASSES).scatter_add(1, y[:, None], torch.full((6, 1), lead)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    d = exact - exact.gather(1, y[:, None])
    truth = (torch.where(d == 0, 0.0, d.exp())).sum(1).log1p().mean()  # no term of it cancels
    results = []
    for loss, at in ((chunked_entropy.cross_entropy(x, y), x), (truth, exact)):
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        (curved,) = torch.autograd.grad((slope * h.to(at.dtype)).sum(), at)
        results.append([t.detach().double() for t in (loss, slope, curved)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(("name", "kind", "copies"), [
    ("plain", "hessian", 1), ("plain", "gauss-newton", 1), ("class weights", "hessian", 1),
    ("smoothing", "hessian", 2), ("smoothing", "gauss-newton", 1), ("token weights", "hessian", 2),
])  # fmt: skip
def test_a_product_keeps_one_array_of_the_logits_size_or_two(
    name: str, kind: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_entropy, "MIN_CLASSES", 500)
    model = nn.Sequential(nn.Embedding(CLASSES, 2), nn.Linear(2, 500))
    x = torch.randint(CLASSES, (4, 32))
    monkeypatch.setattr("tests.stable.test_chunked_entropy.CLASSES", 500)  # of the weights
    p = lossmap.Problem.supervised(model, LOSSES[name], (x, x), batch_size=4)
    products = operator(p, kind).products
    assert isinstance(products, LinearizedProducts)
    products.local_loss()
    kept = bytes_of([values for _, values in products._batches], products._own_storages)
    logits = x.numel() * 500 * 4
    assert copies * logits <= kept < (copies + 0.5) * logits


class Halved(torch.autograd.Function):
    """x, with half of the derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / 2


@pytest.mark.usefixtures("two_rows")
def test_it_is_never_called_the_culprit() -> None:
    class Wrong(Words):
        def forward(self, x: Tensor) -> Tensor:
            return Halved.apply(super().forward(x))

    p = problem("plain")
    with pytest.raises(ValueError, match=r"gives through Halved \(a custom autograd Function\)"):
        check_product(lossmap.Problem.supervised(Wrong(), LOSSES["plain"], next(iter(p.data)), batch_size=4))
