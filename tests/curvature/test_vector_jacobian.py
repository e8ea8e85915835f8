"""Vectors times a Jacobian are bit for bit what PyTorch gives for them."""

from contextlib import nullcontext

import pytest
import torch

from lossmap.curvature.vector_jacobian import vector_jacobian


def outputs_of(x, y):
    return [x.sin() @ y, (x * x).sum(), torch.complex(x, x.exp())]


@pytest.fixture
def given():
    torch.manual_seed(0)
    inputs = [
        torch.randn(3, 4, requires_grad=True),
        torch.randn(4, 2, requires_grad=True),
        torch.ones(2, requires_grad=True),
    ]
    outputs = outputs_of(*inputs[:2])
    vectors = [torch.randn_like(f, requires_grad=True) for f in outputs]
    return outputs, inputs, vectors


def test_products_are_those_of_pytorch(given):
    outputs, inputs, vectors = given
    expected = torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, materialize_grads=True)
    for mode in (nullcontext, torch.no_grad, torch.inference_mode):
        with mode():
            products = vector_jacobian(outputs, inputs, vectors, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(products, expected, strict=True))
        assert not any(p.requires_grad for p in products)
    vector_jacobian(outputs, inputs, vectors)
    with pytest.raises(RuntimeError, match="second time"):
        vector_jacobian(outputs, inputs, vectors)


def test_products_may_be_differentiated_by_inputs_and_by_vectors(given):
    outputs, inputs, vectors = given
    leaves = [*inputs[:2], *vectors]

    def seconds(products):
        total = sum((p * p).sum() for p in products[:2])
        return torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)

    ours = seconds(vector_jacobian(outputs, inputs, vectors, create_graph=True))
    theirs = seconds(torch.autograd.grad(outputs, inputs, vectors, create_graph=True, materialize_grads=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert float(ours[-1].abs().max()) > 0
