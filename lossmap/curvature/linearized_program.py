"""The products of Hessian, Gauss-Newton and Fisher matrix with a batch, as linearized graphs of loss and gradient.

    H v = d/dt grad L(theta + t v)        the tangent of the gradient's trace
    G v = J^T (d2 loss / df2) J v         tangents of the outputs, of the loss's gradient in them, and back
    F v = J^T s (s . J v)                 the same with the loss's gradient s itself, sample by sample

The traces are those of `linearize.trace`, the tangents those of `linearize.jvp`; what is kept from one product to the
next are the values of the graph that the tangents need. Price: one trace per batch shape, see `linearize.trace`; of a
product, see benchmarks/hvp.py. Source: forward over reverse, Pearlmutter, Neural Computation 6 (1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.curvature.linearize.jvp import Pushforward, linearize
from lossmap.curvature.linearize.trace import GraphModule, Inputs, fold_batchnorm_in_graph, pure, traced
from lossmap.curvature.operators import outer, outputs_and_loss, sample_slopes
from lossmap.curvature.vector_jacobian import vector_jacobian
from lossmap.data.batches import Batch
from lossmap.data.problem import Problem


@dataclass(frozen=True)
class LinearizedProgram:
    """A product in linear steps over one trace; each feeds the next.

    values    (theta and the model's other tensors, the batch's tensors) -> ([kept values of each step], loss)
    product   (kept values, tangents of theta) -> tangents of the gradient, None where zero
    product_for_vmap  the same, writing into no buffer
    forward_mode  operations without a rule, which took PyTorch's own forward mode, and how often
    tiled     (channels from which 3x3 convolutions use tiles) -> the same program with these, over the same trace
    """

    values: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Any, Tensor]]
    product: Callable[[Any, tuple[Tensor, ...]], Sequence[Tensor | None]]
    product_for_vmap: Callable[[Any, tuple[Tensor, ...]], Sequence[Tensor | None]]
    forward_mode: dict[str, int]
    tiled: Callable[[int], LinearizedProgram]


def linearize_hessian(
    problem: Problem, inputs: Inputs, tensors: Sequence[Tensor], winograd_channels: int
) -> LinearizedProgram:
    """The Hessian's product: the tangent of the gradient's trace.

    inputs             how `tensors` stand for theta, the model's other tensors and the batch
    tensors            at which the trace is taken
    winograd_channels  3x3 convolutions of at least this many channels use tiles; 0: none
    """
    k = len(inputs.moving)

    def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
        return problem.loss(problem.forward(model, batch), batch)

    # folded before it is differentiated, so that the gradient is that of the folded graph
    loss = fold_batchnorm_in_graph(traced(inputs.flat(problem.model, batch_loss), tensors))

    def gradient(*flat: Tensor) -> tuple[Tensor, ...]:
        # the loss comes with it: one forward pass serves both
        theta = leaves(flat[:k])
        value = loss(*theta, *flat[k:])
        return (*pullback([value], theta), value)

    return _hessian_of(pure(gradient, tensors), k, winograd_channels)


def _hessian_of(trace: GraphModule, k: int, winograd_channels: int) -> LinearizedProgram:
    """The Hessian's product of a traced gradient by the first k inputs, which returns the loss after it."""
    step = linearize(trace, [(range(k), range(k))], [k], winograd_channels)

    def values(state: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Any, Tensor]:
        needed, (value,) = step.values(*state, *batch)
        return needed, value

    return LinearizedProgram(
        values, step.products[0], step.products_for_vmap[0], step.forward_mode, partial(_hessian_of, trace, k)
    )


def linearize_gauss_newton(
    problem: Problem, inputs: Inputs, tensors: Sequence[Tensor], winograd_channels: int
) -> LinearizedProgram:
    """Gauss-Newton's: tangents of the outputs, of the loss's gradient in them, and back by the transposed Jacobian.

    Two traces are linearized: of the net with its pullback, whose tangents by theta give J v and whose tangents by the
    duals give J^T u; and of the loss's gradient by the outputs. Arguments as in `linearize_hessian`.
    """
    net, loss_slope, ends, likes = _through_outputs(problem, inputs, tensors)
    return _gauss_newton_of(net, loss_slope, ends, likes, winograd_channels)


def linearize_fisher(
    problem: Problem, inputs: Inputs, tensors: Sequence[Tensor], winograd_channels: int
) -> LinearizedProgram:
    """The empirical Fisher matrix's: as Gauss-Newton's, with the loss's gradient by the outputs alone.

    Raises ValueError for a loss of which no sample has a gradient of its own.
    """
    net, loss_slope, ends, likes = _through_outputs(problem, inputs, tensors)
    batch = inputs.batch(tensors[len(tensors) - inputs.batch_tensors :])
    sample_slopes(problem, batch, *outputs_and_loss(problem, batch))
    return _fisher_of(net, loss_slope, ends, likes, winograd_channels)


def _through_outputs(
    problem: Problem, inputs: Inputs, tensors: Sequence[Tensor]
) -> tuple[GraphModule, GraphModule, tuple[int, int], list[Tensor]]:
    """The net traced with its pullback, the loss's gradient by the outputs, where theta and duals lie, and likes.

    A like has shape, dtype and device of an output, and takes one number of memory.
    """
    k, end = len(inputs.moving), len(tensors)
    batch = tensors[end - inputs.batch_tensors :]
    count = len(outputs_and_loss(problem, inputs.batch(batch))[0])  # tensors among the outputs

    def forward(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(outputs_and_loss(problem, batch)[0])

    def loss_of(*flat: Tensor) -> Tensor:
        return outputs_and_loss(problem, inputs.batch(flat[count:]))[1](flat[:count])

    net = fold_batchnorm_in_graph(traced(inputs.flat(problem.model, forward), tensors))
    outputs = [f.detach() for f in net(*tensors)]
    loss_graph = traced(loss_of, [*outputs, *batch])

    def net_and_pullback(*flat: Tensor) -> tuple[Tensor, ...]:
        # as one trace, so that forward and backward share the activations
        theta = leaves(flat[:k])
        values = net(*theta, *flat[k:end])
        return (*values, *pullback(values, theta, flat[end:]))

    def loss_slope(*flat: Tensor) -> tuple[Tensor, ...]:
        predictions = leaves(flat[:count])
        value = loss_graph(*predictions, *flat[count:])
        return (*pullback([value], predictions), value)

    slope = pure(loss_slope, [*outputs, *batch])
    duals = [torch.zeros_like(f) for f in outputs]
    outputs.clear()  # of a language model they are what takes the memory
    likes = [f.new_zeros(()).expand(f.shape) for f in duals]
    return pure(net_and_pullback, [*tensors, *duals]), slope, (k, end), likes


def _gauss_newton_of(
    net: GraphModule,
    loss_slope: GraphModule,
    ends: tuple[int, int],
    likes: Sequence[Tensor],
    winograd_channels: int,
) -> LinearizedProgram:
    """Gauss-Newton's product of the net traced with its pullback, and of the loss's gradient by the outputs.

    ends  where theta ends among the inputs, and where the duals begin
    """
    (k, end), count = ends, len(likes)
    maps = [(range(k), range(count)), (range(end, end + count), range(count, count + k))]
    jacobian = linearize(net, maps, range(count), winograd_channels)
    curvature = linearize(loss_slope, [(range(count), range(count))], [count], own=jacobian.own[0])

    def values(state: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Any, Tensor]:
        of_net, predictions = jacobian.values(*state, *batch, *likes)  # the duals: shapes alone are read
        of_loss, (loss,) = curvature.values(*predictions, *batch)
        return (of_net, of_loss), loss

    def chained(ahead: Pushforward, curved: Pushforward, back: Pushforward) -> Pushforward:
        return _chain(ahead, lambda of_loss, moved: _dense(curved(of_loss, tuple(moved)), likes), back, likes)

    return LinearizedProgram(
        values,
        chained(jacobian.products[0], curvature.products[0], jacobian.products[1]),
        chained(jacobian.products_for_vmap[0], curvature.products_for_vmap[0], jacobian.products_for_vmap[1]),
        jacobian.forward_mode | curvature.forward_mode,
        partial(_gauss_newton_of, net, loss_slope, ends, likes),
    )


def _fisher_of(
    net: GraphModule,
    loss_slope: GraphModule,
    ends: tuple[int, int],
    likes: Sequence[Tensor],
    winograd_channels: int,
) -> LinearizedProgram:
    """The empirical Fisher matrix's product; arguments as of `_gauss_newton_of`."""
    (k, end), count = ends, len(likes)
    maps = [(range(k), range(count)), (range(end, end + count), range(count, count + k))]
    jacobian = linearize(net, maps, range(count), winograd_channels)

    def values(state: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Any, Tensor]:
        of_net, predictions = jacobian.values(*state, *batch, *likes)
        *slopes, loss = loss_slope(*predictions, *batch)
        return (of_net, slopes), loss

    return LinearizedProgram(
        values,
        _chain(jacobian.products[0], outer, jacobian.products[1], likes),
        _chain(jacobian.products_for_vmap[0], outer, jacobian.products_for_vmap[1], likes),
        jacobian.forward_mode,
        partial(_fisher_of, net, loss_slope, ends, likes),
    )


def _chain(
    ahead: Pushforward, curved: Callable[[Any, Sequence[Tensor]], Sequence[Tensor]], back: Pushforward,
    likes: Sequence[Tensor],
) -> Pushforward:  # fmt: skip
    """J v, then what the loss makes of it at the outputs, then J^T."""

    def product(values: Any, tangents: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        of_net, of_loss = values
        moved = _dense(ahead(of_net, tangents), likes)
        return back(of_net, tuple(curved(of_loss, moved)))

    return product


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as leaves of an autograd graph of their own."""
    return [t.detach().requires_grad_(True) for t in tensors]


def pullback(
    values: Sequence[Tensor], inputs: Sequence[Tensor], duals: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """J^T duals, for the Jacobian J of values by inputs; of one number without duals the gradient.

    What torch.func's vjp and grad give, whose first call imports PyTorch's compiler for a second.
    """
    reached = [i for i, value in enumerate(values) if value.requires_grad]
    if not reached:
        return tuple(torch.zeros_like(t) for t in inputs)
    # with its graph: then sums of gradients are not made in place
    moving = [values[i] for i in reached]
    if duals is None:
        return torch.autograd.grad(moving, inputs, create_graph=True, materialize_grads=True)
    return vector_jacobian(moving, inputs, [duals[i] for i in reached], create_graph=True)


def _dense(tangents: Sequence[Tensor | None], likes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tangents with zeros written out."""
    return tuple(torch.zeros_like(f) if t is None else t for t, f in zip(tangents, likes, strict=True))
