"""Whether a custom autograd Function is right by itself: its calls in a pass are made again, alone.

That a Function stands in the graph of a loss proves nothing: another operation may be the one without a right
derivative. So a call is repeated with its own inputs; its gradient is compared with differences of what it gives, and
its second derivative with differences of its gradient.

Price: a pass of the loss, and some ten calls of each Function. Symbols: f(x) the outputs in a fixed weighted sum, g its
gradient by the inputs x that asked for one, v a random direction, h a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.curvature.differences import FewSamples
from lossmap.curvature.vector_jacobian import vector_jacobian
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import generator
from lossmap.sums import norm

STEPS = (1e-5, 1e-6)
MAX_ERROR = 1e-4  # relative, of a gradient or a second derivative
MAX_CALLS = 4  # of a Function that are made again


@dataclass(frozen=True)
class _Call:
    """One call of a Function: its arguments, and which of them asked for a gradient, by their places."""

    function: Any
    arguments: tuple[Any, ...]
    places: tuple[int, ...]

    def given(self, values: Sequence[Tensor]) -> Tensor:
        """The outputs with these values in those places, weighted, as one vector; empty where it gives no numbers."""
        arguments = [t.clone() if isinstance(t, Tensor) else t for t in self.arguments]
        for place, value in zip(self.places, values, strict=True):
            arguments[place] = value * 1.0  # no leaf: a Function may write into what it is given
        outputs = pytree.tree_leaves(self.function.apply(*arguments))
        numbers = [t.reshape(-1) for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]
        if not numbers:
            return torch.empty(0)
        return torch.cat([t * torch.linspace(0.3, 1.1, len(t), device=t.device).to(t) for t in numbers])


def wrong_functions(few: FewSamples, functions: Sequence[type], order: int) -> list[type]:
    """Those of custom Functions of which a derivative is missing or wrong, or which cannot be called alone.

    order  1: the gradient is looked at; 2: the second derivative
    """
    calls: list[_Call] = []
    try:
        with few.moving(), _recorded(functions, calls):
            few.problem.total(few.batch)
            # within the same borrow: what a Function is given may be the model, or lead to it
            known = {each.function for each in calls}
            wrong = {each.function for each in calls if _is_wrong(each, order)}
    except Exception as error:  # somebody's own code may raise anything
        raise_if_of_device(error)
        return list(functions)
    return [f for f in functions if f in wrong or f not in known]


@contextmanager
def _recorded(functions: Sequence[Any], calls: list[_Call]) -> Iterator[None]:
    """Inside, the first calls of these Functions are added to the list."""
    with ExitStack() as stack:
        for function in functions:
            own = vars(function).get("forward")
            function.forward = staticmethod(_recording(function, function.forward, calls))
            stack.callback(_put_back, function, own)
        yield


def _put_back(function: Any, own: Any) -> None:
    if own is None:
        del function.forward
    else:
        function.forward = own


def _recording(function: Any, forward: Callable[..., Any], calls: list[_Call]) -> Callable[..., Any]:
    base = torch.autograd.Function
    has_context = function.setup_context is base.setup_context  # else `forward` is called without one

    def recorded(*values: Any) -> Any:
        arguments = values[1:] if has_context else values
        places = tuple(
            i for i, t in enumerate(arguments) if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad
        )
        if places and sum(each.function is function for each in calls) < MAX_CALLS:
            kept = tuple(t.detach().clone() if isinstance(t, Tensor) else t for t in arguments)
            calls.append(_Call(function, kept, places))
        return forward(*values)

    return recorded


def _is_wrong(call: _Call, order: int) -> bool:
    base = [call.arguments[i] for i in call.places]
    v = [
        torch.randn(t.shape, generator=generator("function", i), dtype=torch.float64).to(t) for i, t in enumerate(base)
    ]

    def value(h: float) -> tuple[list[Tensor], Tensor]:
        leaves = [(t + h * d).requires_grad_(True) for t, d in zip(base, v, strict=True)]
        return leaves, call.given(leaves)

    def gradient(h: float, create: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        leaves, outputs = value(h)
        if not outputs.requires_grad:
            return leaves, [torch.zeros_like(t) for t in base]
        return leaves, list(torch.autograd.grad(outputs.sum(), leaves, create_graph=create, materialize_grads=True))

    try:
        leaves, slope = gradient(0.0, create=order == 2)
        size = norm(_flat(slope))
        if size == 0.0:  # it follows its arguments by another way, as an adjoint solver its parameters: nothing is seen
            return True
        if order == 1:
            return not _follows(lambda h: value(h)[1].detach(), _dot(slope, v), size)
        return is_product_wrong(leaves, slope, v, lambda h: gradient(h)[1])
    except (RuntimeError, TypeError, ValueError) as error:  # no derivative at all, or none that is seen alone
        raise_if_of_device(error)
        return True


def is_product_wrong(
    leaves: Sequence[Tensor],
    slope: Sequence[Tensor],
    v: Sequence[Tensor],
    gradient: Callable[[float], Sequence[Tensor]],
) -> bool:
    """Whether the derivative of a gradient along v disagrees with differences of the gradient.

    leaves, slope  what the gradient is by, and the gradient there, with its graph
    gradient       h -> the gradient at h v from there

    Raises what PyTorch raises where there is no second derivative.
    """
    moving = [(g, d) for g, d in zip(slope, v, strict=True) if g.requires_grad]
    product = torch.zeros_like(_flat(slope))
    if moving:
        product = _flat(vector_jacobian([g for g, _ in moving], leaves, [d for _, d in moving]))
    errors = []
    for h in STEPS:
        twin = (_flat(gradient(h)) - _flat(gradient(-h))) / (2 * h)
        errors.append(norm(twin - product) / max(norm(twin), norm(product), 1e-8))
    return min(errors) > MAX_ERROR


def _follows(value: Callable[[float], Tensor], slope: float, size: float) -> bool:
    """Whether the slope along a direction is that of the values there."""
    errors = []
    for h in STEPS:
        ahead, behind = value(h), value(-h)
        # what a Function leaves alone may be anything, as memory that nobody has written to
        is_same = (ahead == behind) | (ahead.isnan() & behind.isnan())
        change = float((ahead - behind).masked_fill(is_same, 0.0).sum()) / (2 * h)
        errors.append(abs(change - slope) / max(abs(change), abs(slope), 1e-2 * size, 1e-8))
    return min(errors) <= MAX_ERROR


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(_flat(a) @ _flat(b))


__all__ = ["is_product_wrong", "wrong_functions"]
