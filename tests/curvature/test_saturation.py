"""Curvature of networks that fit their data: float32 keeps its digits down to a loss of 1e-12, whatever the backend."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap import Problem
from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.stable.forms import stable_forms
from lossmap.stable.losses import LogSoftmax, LogSoftmaxPullback, Softmax, SoftmaxPullback

BACKENDS = ("double-backward", "retained-graph", "linearized")


def reference_cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    """The mean cross entropy relative to the largest logit, written out; soft targets (N, C) as well."""
    k = x.argmax(1, keepdim=True)
    d = torch.stack([x[:, c] - x.gather(1, k)[:, 0] for c in range(x.shape[1])], 1)
    is_largest = F.one_hot(k[:, 0], x.shape[1]).bool()
    d = torch.where(is_largest, 0.0, d)
    others = torch.where(is_largest, 0.0, d.exp()).sum(1)
    targets = y if y.is_floating_point() else F.one_hot(y, x.shape[1]).to(x)
    return (others.log1p() * targets.sum(1) - (targets * d).sum(1)).mean()


def reference_logistic(x: Tensor, y: Tensor) -> Tensor:
    """The mean logistic loss of targets 0 and 1: log(1 + exp(-m)), m the margin."""
    margin = torch.where(y > 0.5, x, -x)
    return torch.where(margin > 0, (-margin.abs()).exp().log1p(), -margin + (-margin.abs()).exp().log1p()).mean()


class Attention(nn.Module):
    """One head over four tokens, whose scores are scaled so that it saturates."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(3, 9), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, 3) -> (N, 3)."""
        q, k, v = self.project(x).split(3, -1)
        return self.out(F.scaled_dot_product_attention(4.0 * q, k, v).mean(1))


def perceptron(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, outputs))


def fitted(model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module) -> nn.Module:
    """The model after some hundred steps, so that all samples are right."""
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def dense(model: nn.Module, loss: object, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian in float64 by double backward, (n, n), over the weights."""
    model = copy.deepcopy(model).double()
    y = y.double() if y.is_floating_point() else y
    weights = [p for p in model.parameters() if p.dim() > 1]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        slope = torch.autograd.grad(loss(model(x.double()), y), weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in slope])
    rows = [torch.autograd.grad(flat[i], weights, retain_graph=True) for i in range(len(flat))]
    return torch.stack([torch.cat([h.reshape(-1) for h in row]) for row in rows])


def scaled(model: nn.Module, factor: float) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in list(model.parameters())[-2:]:
            p.mul_(factor)
    return model


def case(kind: str) -> tuple[nn.Module, nn.Module, object, Tensor, Tensor]:
    """(fitted model, PyTorch's criterion, the reference loss, inputs, targets)."""
    torch.manual_seed(len(kind))
    x, y = torch.randn(24, 5), torch.randint(0, 3, (24,))
    cross_entropy = nn.CrossEntropyLoss()
    if kind == "logistic":
        y = (x[:, :1] > 0).float()
        return fitted(perceptron(1), x, y, nn.BCEWithLogitsLoss()), nn.BCEWithLogitsLoss(), reference_logistic, x, y
    if kind == "attention":
        x = torch.randn(24, 4, 3)
        return fitted(Attention(), x, y, cross_entropy), cross_entropy, reference_cross_entropy, x, y
    model = fitted(perceptron(), x, y, cross_entropy)
    if kind == "wrong":
        y = torch.where(torch.arange(24) < 3, (y + 1) % 3, y)
    if kind == "soft":
        y = F.one_hot(y, 3).float()
    return model, cross_entropy, reference_cross_entropy, x, y


@pytest.mark.parametrize("kind", ["labels", "wrong", "soft", "logistic", "attention"])
def test_float32_products_and_gradients_keep_their_digits_however_small_the_loss(kind: str) -> None:
    model, criterion, reference, x, y = case(kind)
    smallest = math.inf
    for factor in (1.0, 3.0, 6.0):
        net = scaled(model, factor)
        truth = dense(net, reference, x, y)
        problem = Problem.supervised(net, criterion, (x, y))
        smallest = min(smallest, float(reference(net(x).detach(), y)))
        v = torch.randn(len(truth), generator=torch.Generator().manual_seed(1))
        for backend in BACKENDS:
            product = prepare(problem, "weights", backend=backend).at() @ v
            error = (product.double() - truth @ v.double()).norm() / truth.norm() / v.norm()
            assert error < 2e-4, (kind, factor, backend, float(error))
    assert smallest < 1e-8 or kind in ("wrong", "attention")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_logistic_regression_is_convex_at_every_length_of_its_weights(backend: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    y = (x[:, 0] > 0).long()
    x[:, 0] += x[:, 0].sign()
    net = nn.Linear(3, 2)
    for length in (1.0, 4.0, 8.0, 16.0):
        with torch.no_grad():
            net.weight.copy_(length * torch.tensor([[-1.0, 0.1, 0.0], [1.0, 0.0, 0.1]]))
            net.bias.zero_()
        operator = prepare(Problem.supervised(net, "crossentropy", (x, y)), "all", backend=backend).at()
        matrix = torch.stack([operator @ row for row in torch.eye(operator.size)]).double()
        z = net(x).double().detach()
        p = torch.sigmoid(-(z[:, 1] - z[:, 0]).abs())
        rows = torch.cat([x, torch.ones(60, 1)], 1).double()
        block = rows.T @ ((p * (1 - p))[:, None] * rows) / 60  # the Hessian is [[1, -1], [-1, 1]] times it
        top = 2.0 * torch.linalg.eigvalsh(block)[-1]
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        assert abs(values[-1] - top) < 2e-5 * top
        assert values[0] > -2e-6 * top
        assert abs(operator.loss() / float(torch.log1p(p / (1 - p)).mean()) - 1) < 1e-4


def test_the_gradient_keeps_its_digits_too() -> None:
    model, criterion, reference, x, y = case("labels")
    net = scaled(model, 4.0)
    double = copy.deepcopy(net).double()
    weights = [p for p in double.parameters() if p.dim() > 1]
    truth = torch.cat([g.reshape(-1) for g in torch.autograd.grad(reference(double(x.double()), y), weights)])
    slope = loss_and_gradient(Problem.supervised(net, criterion, (x, y)), "weights").gradient
    assert (slope.double() - truth).norm() < 1e-4 * truth.norm()


def test_the_stable_forms_are_those_functions_to_rounding_and_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    x, q = 4 * torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 4, 5, 3, dtype=torch.float64)
    x[0, 0] = x[0, 1] = x[0].max()
    x[1, 2] = -math.inf
    x[2] = -math.inf
    x[3, 0], x[4, 1] = math.inf, math.nan
    y, w = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(4, dtype=torch.float64)
    soft, z, many = torch.rand(6, 4).double(), torch.randn(3, 4, 2, dtype=torch.float64), torch.randint(0, 4, (3, 2))
    mask = torch.rand(5, 5) > 0.5
    mask[1] = False
    functions = [
        *(lambda d=d, f=f: f(x, d) for d in (0, -1) for f in (torch.softmax, F.log_softmax, torch.log_softmax)),
        lambda: nn.LogSoftmax(1)(x),
        lambda: F.softplus(x, 2.0, 5.0),
        lambda: F.logsigmoid(x),
        lambda: torch.tanh(x),
        lambda: x.sigmoid(),
        lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3),
        lambda: F.scaled_dot_product_attention(q, q, q, mask),
        lambda: F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True),
    ]
    for r in ("none", "mean", "sum"):
        for s in (0.0, 0.1):
            functions += [
                lambda r=r, s=s: F.cross_entropy(x, y, w, reduction=r, label_smoothing=s, ignore_index=3),
                lambda r=r, s=s: F.cross_entropy(x[[0, 5]], y[[0, 5]], reduction=r, label_smoothing=s),
                lambda r=r, s=s: F.cross_entropy(x[[0, 5]], soft[[0, 5]], w, reduction=r, label_smoothing=s),
                lambda r=r, s=s: F.cross_entropy(z, many, w, reduction=r, label_smoothing=s, ignore_index=2),
            ]
        functions += [lambda r=r: F.binary_cross_entropy_with_logits(x[[0, 5]], soft[[0, 5]], reduction=r)]
        functions += [
            lambda r=r: F.binary_cross_entropy_with_logits(z, z.abs(), w[:, None], reduction=r, pos_weight=w[:2])
        ]
    for function in functions:
        plain = function()
        with stable_forms():
            stable = function()
        torch.testing.assert_close(stable, plain, rtol=1e-9, atol=1e-12, equal_nan=True)
        assert torch.equal(function().nan_to_num(), plain.nan_to_num())


def test_half_precision_and_autocast_keep_their_types() -> None:
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.randint(0, 4, (6,))
    with stable_forms():
        assert F.cross_entropy(x, y).dtype == F.softmax(x, 1).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert F.cross_entropy(x, y).dtype == torch.float32
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    tokens, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    plain = model(tokens, src_key_padding_mask=padding)
    with stable_forms():
        torch.testing.assert_close(model(tokens, src_key_padding_mask=padding), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [LogSoftmax, Softmax])
def test_softmax_has_derivatives_of_any_order(function: type[torch.autograd.Function]) -> None:
    x = (3 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    pullback = {LogSoftmax: LogSoftmaxPullback, Softmax: SoftmaxPullback}[function]
    for dim in (0, 1):
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: function.apply(x, dim), x)
        g = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

        def curved(x: Tensor, g: Tensor, dim: int = dim) -> Tensor:
            return pullback.apply(g, function.apply(x, dim), dim)

        assert torch.autograd.gradgradcheck(curved, (x, g))


def test_transforms_of_a_model_see_the_stable_forms_too() -> None:
    x = 4 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    functions = (lambda x: torch.softmax(x, -1)[0], lambda x: F.log_softmax(x, -1)[1], lambda x: torch.tanh(x).prod())
    for function in functions:
        plain = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(function)))(x)
        with stable_forms():
            torch.testing.assert_close(
                torch.func.vmap(torch.func.jacrev(torch.func.jacrev(function)))(x), plain, rtol=1e-4, atol=1e-5
            )
