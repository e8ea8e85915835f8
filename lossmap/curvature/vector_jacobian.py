"""Products of vectors with a Jacobian, by one backward pass from a scalar that stands for all of them.

Given vectors, `torch.autograd.grad` compares their shapes through PyTorch's symbolic ones, whose first use loads SymPy.
That takes more than a second, as long as many a small job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Along(torch.autograd.Function):
    """0, as a function of tensors whose gradients by it are given."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Tensor:
        """The first `count` tensors are what it depends on; the others, of their shapes, its gradients."""
        ctx.save_for_backward(*tensors[count:])
        ctx.count = count
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """The gradients that were given; of this scalar itself PyTorch's is one."""
        return None, *ctx.saved_tensors, *[None] * ctx.count


def vector_jacobian(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """The sum over outputs f of v_f^T df/dx for each of the inputs x; zeros where none depends on it.

    outputs       at least one, each with a gradient
    vectors       of the outputs' shapes
    retain_graph  whether there may be another product with the same Jacobian
    create_graph  whether the products have a graph of their own, also as functions of the vectors

    Bit for bit what `torch.autograd.grad(outputs, inputs, vectors)` gives.
    """
    with torch.inference_mode(False), torch.enable_grad():  # PyTorch gives products also where it records nothing
        along = _Along.apply(len(outputs), *outputs, *vectors)  # type: ignore[no-untyped-call]
    keep = retain_graph or create_graph
    products = torch.autograd.grad(along, inputs, retain_graph=keep, create_graph=create_graph, materialize_grads=True)
    # zeros of PyTorch 2.6 ask for a gradient of their own
    return products if create_graph else tuple(product.detach() for product in products)


__all__ = ["vector_jacobian"]
