"""The loss of one batch, and its gradient, as graphs of ATen operations; batch norm folded into its convolution.

The trace is taken with PyTorch's make_fx, with theta, the model's other tensors and the batch as inputs, so that one
trace serves every point that a map visits; shapes and memory format are fixed in it. In evaluation mode

    batch norm(conv(x, w, b)) = conv(x, w s, (b - mean) s + beta),  s = gamma / sqrt(var + eps),

exact, and still a function of w, gamma and beta: so the graph is folded, not the numbers. The price is one trace per
batch shape, some tenths of a second to a few seconds. A trace does not see detach, `.data`, no_grad, custom autograd
functions or random numbers as such, and `linearize` therefore compares before it trusts; what depends on the data's
values (`.item()`, branches) raises here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize, grad_and_value, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from lossmap.curvature.linearize.graph_builder import aten, packet
from lossmap.curvature.linearize.jvp import Pushforward, linearize, note_likes
from lossmap.curvature.operators import outputs_and_loss
from lossmap.data.batches import Batch
from lossmap.data.problem import Problem

NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm)


@dataclass(frozen=True)
class LinearizedProgram:
    """A product in linear steps over one trace; each feeds the next.

    values    (theta and the model's other tensors, the batch's tensors) -> ([kept values of each step], loss)
    product   (kept values, tangents of theta) -> tangents of the gradient, None where zero
    product_for_vmap  the same, writing into no buffer
    forward_mode  operations without a rule, which took PyTorch's own forward mode, and how often
    """

    values: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Any, Tensor]]
    product: Callable[[Any, tuple[Tensor, ...]], Sequence[Tensor | None]]
    product_for_vmap: Callable[[Any, tuple[Tensor, ...]], Sequence[Tensor | None]]
    forward_mode: dict[str, int]


class ModelFunction(nn.Module):
    """A function of a model as a module, so that the model's tensors can be given from outside."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        """What the function returns."""
        return self.function()


@dataclass(frozen=True)
class Inputs:
    """What a trace takes: tensors of theta, the model's others, the tensors of the batch; one after the other.

    moving     names of theta's tensors
    still      names of the model's other tensors
    spec       how the batch is built of its leaves, for `torch.utils._pytree`
    constants  the leaves of the batch; None where a tensor stands
    """

    moving: tuple[str, ...]
    still: tuple[str, ...]
    spec: Any
    constants: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module, moving: Sequence[str], batch: Batch) -> Inputs:
        """What a trace over this batch takes, with the tensors named in `moving` as theta."""
        names = [k for k, _ in model.named_parameters()] + [k for k, _ in model.named_buffers()]
        leaves, spec = pytree.tree_flatten(batch)
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(tuple(moving), tuple(k for k in names if k not in set(moving)), spec, constants)

    def batch(self, tensors: Sequence[Tensor]) -> Batch:
        """The batch with these tensors in it."""
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is None else leaf for leaf in self.constants]
        return pytree.tree_unflatten(leaves, self.spec)

    @property
    def batch_tensors(self) -> int:
        """How many tensors a batch holds."""
        return sum(leaf is None for leaf in self.constants)

    def flat(self, model: nn.Module, function: Callable[[nn.Module, Batch], Any]) -> Callable[..., Any]:
        """The function of (model, batch) as one of the tensors, one after the other."""
        names = [f"model.{k}" for k in (*self.moving, *self.still)]

        def flat_function(*inputs: Tensor) -> Any:
            state = dict(zip(names, inputs, strict=False))
            batch = self.batch(inputs[len(names) :])
            return functional_call(ModelFunction(model, lambda: function(model, batch)), state, ())

        return flat_function


def traced(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a function of tensors, without mutations, its shapes noted."""
    # twice: autograd inside the function (a PINN's) is traced as it runs, which functionalize would not let it
    graph = make_fx(function)(*inputs)
    refuse_shapes_of_values(graph)
    for node in list(graph.graph.nodes):  # autograd detaches what it saves; `linearize` finds out about other ones
        if packet(node) is aten.detach:
            node.replace_all_uses_with(node.args[0])
    graph.recompile()
    return pure(graph, inputs)


def refuse_shapes_of_values(graph: fx.GraphModule) -> None:
    """Raises ValueError where the shape of a result depends on values: a trace fits the point it was taken at alone."""
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if packet(node) is aten.index:
            indices = [i for i in node.args[1] if isinstance(i, fx.Node)]
            if not any(i.meta["tensor_meta"].dtype in (torch.bool, torch.uint8) for i in indices):
                continue
        raise ValueError(f"shapes depend on values through {node.target}, so that one trace does not fit all points")


def pure(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a traceable function without mutations, its shapes noted."""
    graph = make_fx(functionalize(function, remove="mutations"))(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    note_likes(graph, inputs)
    return graph


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
        slope, value = grad_and_value(lambda theta: loss(*theta, *flat[k:]))(flat[:k])
        return (*slope, value)

    step = linearize(pure(gradient, tensors), [(range(k), range(k))], [k], winograd_channels)

    def values(state: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Any, Tensor]:
        needed, (value,) = step.values(*state, *batch)
        return needed, value

    return LinearizedProgram(values, step.products[0], step.products_for_vmap[0], step.forward_mode)


def linearize_gauss_newton(
    problem: Problem, inputs: Inputs, tensors: Sequence[Tensor], winograd_channels: int
) -> LinearizedProgram:
    """Gauss-Newton's: tangents of the outputs, of the loss's gradient in them, and back by the transposed Jacobian.

    Two traces are linearized: of the net with its pullback, whose tangents by theta give J v and whose tangents by the
    duals give J^T u; and of the loss's gradient by the outputs. Arguments as in `linearize_hessian`.
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
        values, pull = vjp(lambda *theta: net(*theta, *flat[k:end]), *flat[:k])[:2]
        return (*values, *pull(tuple(flat[end:])))

    def loss_slope(*flat: Tensor) -> tuple[Tensor, ...]:
        slope, value = grad_and_value(lambda f: loss_graph(*f, *flat[count:]))(flat[:count])
        return (*slope, value)

    duals = range(end, end + count)
    jacobian = linearize(
        pure(net_and_pullback, [*tensors, *(torch.zeros_like(f) for f in outputs)]),
        [(range(k), range(count)), (duals, range(count, count + k))],
        range(count),
        winograd_channels,
    )
    curvature = linearize(pure(loss_slope, [*outputs, *batch]), [(range(count), range(count))], [count])

    def values(state: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Any, Tensor]:
        of_net, predictions = jacobian.values(*state, *batch, *outputs)  # the duals: shapes alone are read
        of_loss, (loss,) = curvature.values(*predictions, *batch)
        return (of_net, of_loss), loss

    def chained(ahead: Pushforward, curved: Pushforward, back: Pushforward) -> Pushforward:
        def product(values: Any, tangents: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
            of_net, of_loss = values
            # J v, then the loss's Hessian at the outputs, then J^T
            moved = _dense(ahead(of_net, tangents), outputs)
            return back(of_net, _dense(curved(of_loss, moved), outputs))

        return product

    return LinearizedProgram(
        values,
        chained(jacobian.products[0], curvature.products[0], jacobian.products[1]),
        chained(jacobian.products_for_vmap[0], curvature.products_for_vmap[0], jacobian.products_for_vmap[1]),
        jacobian.forward_mode | curvature.forward_mode,
    )


def _dense(tangents: Sequence[Tensor | None], likes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tangents with zeros written out."""
    return tuple(torch.zeros_like(f) if t is None else t for t, f in zip(tangents, likes, strict=True))


def fold_batchnorm_in_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Batch norm in evaluation mode folded into its convolution, or written as one affine map where it has none.

    Raises ValueError for batch norm in training mode.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if packet(node) is aten.convolution:
            _subsample_before(graph, node)
        if packet(node) not in NORMS:
            continue
        x, gamma, beta, mean, var = list(node.args)[:5]
        if packet(node) is not aten._native_batch_norm_legit_no_training and node.args[5]:
            if mean is not None:
                raise ValueError("batch norm in training mode: call model.eval() first")
            continue  # instance norm: the sample's own statistics
        users = [u for u in node.users if u.users]
        # only the first result is replaced; the saved mean and variance would be read by a backward pass
        if any(u.target is not operator.getitem or u.args[1] != 0 for u in users):
            continue
        with graph.inserting_before(node):
            result = _affine(graph, x, gamma, beta, mean, var, node.args[-1])
        for user in users:
            user.replace_all_uses_with(result)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _subsample_before(graph: fx.Graph, node: fx.Node) -> None:
    """A 1x1 convolution with a stride reads few of its inputs: they alone are taken, and it has no stride any more.

    Libraries run the strided one, and above all its transposes, at a fraction of their speed.
    """
    args: Any = node.args
    x, w, b, stride, padding, dilation, transposed, *rest = args
    if transposed or set(w.meta["like"][0][2:]) != {1} or set(stride) == {1} or set(padding) != {0}:
        return
    size = x.meta["like"][0]
    with graph.inserting_before(node):
        for dim, step in enumerate(stride, 2):
            x = graph.call_function(aten.slice.Tensor, (x, dim, 0, size[dim], step))
    node.args = (x, w, b, [1] * len(stride), padding, dilation, transposed, *rest)


def _affine(graph: fx.Graph, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: Any) -> fx.Node:
    call = graph.call_function
    # in the graph, not in numbers: gamma and beta stay inputs that may have tangents
    scale = call(aten.rsqrt.default, (call(aten.add.Tensor, (var, eps)),))
    if gamma is not None:
        scale = call(aten.mul.Tensor, (gamma, scale))
    shift = call(aten.neg.default, (call(aten.mul.Tensor, (mean, scale)),))
    if beta is not None:
        shift = call(aten.add.Tensor, (beta, shift))
    # another reader needs the convolution as it is; a transposed one has its output channels elsewhere
    if packet(x) is aten.convolution and len(x.users) == 1 and not x.args[6]:
        inner, w, b, *rest = x.args
        scale_w = call(aten.view.default, (scale, [-1] + [1] * (len(w.meta["like"][0]) - 1)))
        if b is not None:
            shift = call(aten.add.Tensor, (shift, call(aten.mul.Tensor, (b, scale))))
        return call(aten.convolution.default, (inner, call(aten.mul.Tensor, (w, scale_w)), shift, *rest))
    # no convolution before it: one multiplication and one addition
    row = [1, -1] + [1] * (len(x.meta["like"][0]) - 2)
    stretched = call(aten.mul.Tensor, (x, call(aten.view.default, (scale, row))))
    return call(aten.add.Tensor, (stretched, call(aten.view.default, (shift, row))))


__all__ = ["Inputs", "LinearizedProgram", "fold_batchnorm_in_graph", "linearize_gauss_newton", "linearize_hessian"]
