"""Functions of a model and a batch as graphs of ATen operations; batch norm folded into its convolution.

The trace is taken as the function runs (`record`), with theta, the model's other tensors and the batch as inputs, so
that one trace serves every point that a map visits; shapes and memory format are fixed in it. In evaluation mode

    batch norm(conv(x, w, b)) = conv(x, w s, (b - mean) s + beta),  s = gamma / sqrt(var + eps),

exact, and still a function of w, gamma and beta: so the graph is folded, not the numbers. The price is one trace per
batch shape, hundredths of a second to a second. A trace does not see detach, `.data`, no_grad, custom autograd
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
from torch.utils import _pytree as pytree

from lossmap.curvature.linearize.graph_builder import aten, packet
from lossmap.curvature.linearize.mutations import without_mutations
from lossmap.curvature.linearize.record import recorded
from lossmap.curvature.linearize.stateless import call_with
from lossmap.trees import first_places, rebuilt

GraphModule = fx.GraphModule  # under the name by which it is imported elsewhere
NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm)


class ModelFunction(nn.Module):
    """A function of a model as a module, so that the model's tensors can be given from outside."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        """What the function returns."""
        return self.function()


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor: its number among those of a batch."""

    number: int


@dataclass(frozen=True)
class Inputs:
    """What a trace takes: tensors of theta, the model's others, the tensors of the batch; one after the other.

    moving     names of theta's tensors
    still      names of the model's other tensors
    template   the batch, with its tensors' places among them in their stead
    """

    moving: tuple[str, ...]
    still: tuple[str, ...]
    template: Any

    @classmethod
    def of(cls, model: nn.Module, moving: Sequence[str], batch: Any) -> Inputs:
        """What a trace over this batch takes, with the tensors named in `moving` as theta."""
        names = [k for k, _ in model.named_parameters()] + [k for k, _ in model.named_buffers()]
        tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        places = {id(t): _Place(i) for i, t in reversed(list(enumerate(tensors)))}  # the first of one that stands twice
        template = rebuilt(lambda leaf: places.get(id(leaf), leaf), batch)
        return cls(tuple(moving), tuple(k for k in names if k not in set(moving)), template)

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The batch with these tensors in it."""
        return rebuilt(lambda leaf: tensors[leaf.number] if isinstance(leaf, _Place) else leaf, self.template)

    @property
    def batch_tensors(self) -> int:
        """How many tensors a batch holds."""
        return sum(isinstance(leaf, _Place) for leaf in pytree.tree_leaves(self.template))

    @property
    def structure(self) -> tuple[Any, ...]:
        """What batches of one trace have in common: how they are built, and what stands there beside tensors."""
        leaves, spec = pytree.tree_flatten(self.template)
        return str(spec), tuple(map(repr, leaves)), first_places(self.template)

    def flat(self, model: nn.Module, function: Callable[[nn.Module, Any], Any]) -> Callable[..., Any]:
        """The function of (model, batch) as one of the tensors, one after the other."""
        names = [f"model.{k}" for k in (*self.moving, *self.still)]

        def flat_function(*inputs: Tensor) -> Any:
            # shorter than the inputs, which go on with the batch
            state = dict(zip(names, inputs, strict=False))
            batch = self.batch(inputs[len(names) :])
            return call_with(ModelFunction(model, lambda: function(model, batch)), state)

        return flat_function


def traced(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a function of tensors, without mutations, its shapes noted."""
    # first as it runs: autograd inside the function (a PINN's) is not let by functionalize
    graph = recorded(function, inputs)
    refuse_shapes_of_values(graph)
    for node in list(graph.graph.nodes):  # autograd detaches what it saves; `linearize` finds out about other ones
        if packet(node) is aten.detach:
            node.replace_all_uses_with(node.args[0])
    graph.recompile()
    return without_mutations(graph, inputs)


def refuse_shapes_of_values(graph: fx.GraphModule) -> None:
    """Raises ValueError where the shape of a result depends on values: a trace fits the point it was taken at alone."""
    for node in graph.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if packet(node) is aten.index:
            # tagged as dynamic for masks alone; by whole numbers the result has the shape of the indices
            indices = [i for i in node.args[1] if isinstance(i, fx.Node)]
            if not any(i.meta["like"][1] in (torch.bool, torch.uint8) for i in indices):
                continue
        raise ValueError(f"shapes depend on values through {node.target}, so that one trace does not fit all points")


def pure(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a traceable function without mutations, its shapes noted."""
    return without_mutations(recorded(function, inputs), inputs)


def fold_batchnorm_in_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Batch norm in evaluation mode folded into its convolution, or written as one affine map where it has none.

    Raises ValueError for batch norm in training mode.
    """
    graph = module.graph
    for node in list(graph.nodes):
        # before the norms: what is folded into a convolution later finds it without its stride
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
    # a transposed one writes with its stride; padding would shift the samples that are taken
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
        # one number for each output channel, the weight's first axis
        scale_w = call(aten.view.default, (scale, [-1] + [1] * (len(w.meta["like"][0]) - 1)))
        if b is not None:
            shift = call(aten.add.Tensor, (shift, call(aten.mul.Tensor, (b, scale))))
        return call(aten.convolution.default, (inner, call(aten.mul.Tensor, (w, scale_w)), shift, *rest))
    # no convolution before it: one multiplication and one addition
    row = [1, -1] + [1] * (len(x.meta["like"][0]) - 2)
    stretched = call(aten.mul.Tensor, (x, call(aten.view.default, (scale, row))))
    return call(aten.add.Tensor, (stretched, call(aten.view.default, (shift, row))))
