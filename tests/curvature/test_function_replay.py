"""Which custom autograd Function is named for a derivative that is not right: the one that is wrong by itself."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lossmap.curvature.product_check import check_product
from lossmap.data.problem import Problem


class Square(torch.autograd.Function):
    """Right twice; with a context of its own, and a number beside its tensor."""

    @staticmethod
    def forward(x, factor):
        return factor * x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.factor * g * ctx.saved_tensors[0], None


class Written(torch.autograd.Function):
    """Puts a column into memory that nobody has filled, as solvers do: right in its place alone."""

    @staticmethod
    def forward(ctx, table, column, place):
        ctx.place = place
        table.data[:, place] = column
        return table

    @staticmethod
    def backward(ctx, g):
        return g, g[:, ctx.place], None


class NumpyTanh(torch.autograd.Function):
    """Of which the second derivative is wrong: neither a graph nor a trace sees what NumPy does."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = np.tanh(x.detach().numpy())
        return torch.from_numpy(ctx.y)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.from_numpy(ctx.y) ** 2)


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


def problem_of(loss):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    torch.manual_seed(6)
    return Problem.custom(net, loss, (torch.randn(20, 3), torch.randint(0, 2, (20,))))


def refusal(loss):
    with pytest.raises(ValueError) as refused:
        check_product(problem_of(loss))
    return str(refused.value)


def test_of_two_functions_the_one_without_a_right_second_derivative_is_named():
    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(Square.apply(NumpyTanh.apply(model(x)), 0.5), y)

    before = dict(vars(Square)), dict(vars(NumpyTanh))
    text = refusal(loss)
    assert "second derivative of NumpyTanh (a custom autograd Function) is missing or wrong" in text
    assert "Square" not in text
    assert (dict(vars(Square)), dict(vars(NumpyTanh))) == before  # what looked on is gone


def test_of_two_functions_the_one_without_a_right_gradient_is_named():
    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(Square.apply(model(x), 0.5) + Sign.apply(model(x)), y)

    text = refusal(loss)
    assert "the gradient that PyTorch gives through Sign (a custom autograd Function) is not that of the loss" in text


def test_a_right_function_beside_a_stopped_gradient_is_not_named():
    def loss(model, batch):
        x, y = batch
        outputs = Square.apply(model(x), 0.5)
        return F.cross_entropy(outputs + (outputs.round() - outputs).detach(), y)

    assert "the gradient that PyTorch gives is not that of the loss" in refusal(loss)


def test_where_no_function_is_wrong_alone_none_is_named():
    def loss(model, batch):
        """z = tanh(z) / 2 + a, found without a graph; one Newton step whose slope is constant gives its gradient."""
        x, y = batch
        a = model(x)
        with torch.no_grad():
            z = torch.zeros_like(a)
            for _ in range(60):
                z = z.tanh() / 2 + a
            slope = 1 - (1 - z.tanh() ** 2) / 2
        z = z - (z - z.tanh() / 2 - a) / slope
        table = Written.apply(torch.empty_like(z), z[:, 0], 0)
        return F.cross_entropy(Written.apply(table, z[:, 1], 1), y)

    text = refusal(loss)
    assert "PyTorch's second derivative of this model or its loss is missing or wrong" in text
    assert "no module and no custom autograd Function is wrong alone" in text
