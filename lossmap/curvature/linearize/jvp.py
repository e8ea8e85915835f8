"""The linear map from tangents to tangents through a traced program, made once, with all that it reads of the values.

A trace is a graph of ATen operations y = op(x1, x2, ...) at known shapes. Pushing tangents t(x) through it takes, for
each operation, a rule that is linear in them; what a rule reads of the values v(x) does not depend on the tangents and
is computed once per theta. So a trace is split into two graphs:

    values    inputs -> the values that some rule reads, and what the trace itself returns
    product   (values, tangents of the moving inputs) -> tangents of the chosen outputs

Operations without a rule take PyTorch's own forward mode, one operation at a time. Both graphs end up as plain Python
functions, in which a tensor is freed after its last use. After Radul, Paszke, Frostig, Johnson and Maclaurin (2022),
arXiv:2204.10923.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lossmap.curvature.linearize.graph_builder import GraphBuilder, aten
from lossmap.curvature.linearize.propagate import propagate
from lossmap.curvature.linearize.saturating_rules import use_arguments
from lossmap.stable.chunked_entropy import curvature, curvature_in_place

# (kept values, tangents of the moving inputs) -> tangents of the outputs, None where zero
Pushforward = Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[Tensor | None, ...]]


@dataclass(frozen=True, eq=False)
class Linearization:
    """A trace split in two.

    values             (*inputs) -> (kept values, (the trace's own results))
    products           for each requested map, its pushforward
    products_for_vmap  the same without writing into buffers, as `vmap` needs them
    forward_mode       operations that took PyTorch's forward mode, and how often
    own                for each of `products`, which of its results are memory that nothing else reads
    """

    values: Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]
    products: tuple[Pushforward, ...]
    products_for_vmap: tuple[Pushforward, ...]
    forward_mode: dict[str, int]
    own: tuple[tuple[bool, ...], ...]


def linearize(
    module: fx.GraphModule,
    maps: Sequence[tuple[Sequence[int], Sequence[int]]],
    results: Sequence[int] = (),
    winograd_channels: int = 0,
    own: Sequence[bool] = (),
) -> Linearization:
    """Splits a trace, whose nodes carry `meta["like"]` (see `record`).

    maps               pairs: which inputs have tangents, and whose tangents are returned among the trace's results
    results            which of the trace's own results `values` should return
    winograd_channels  3x3 convolutions of at least this many channels use tiles (see `winograd`); 0: none
    own                which tangents of the moving inputs nothing else reads, so that a product may overwrite them
    """
    use_arguments(module.graph)
    values = fx.Graph()
    copies: dict[Node, Node] = {}  # nodes of the trace -> of values
    returned: Any = values.graph_copy(module.graph, copies)
    for node, copy in copies.items():
        copy.meta = dict(node.meta)
    if not isinstance(returned, (list, tuple)):
        returned = (returned,)
    needed: dict[Node, int] = {}
    derived: dict[Any, Node] = {}
    trace = list(copies.values())  # before rules add nodes: tangents go through the trace alone
    builders = [GraphBuilder(values, trace, moving, needed, derived, winograd_channels) for moving, _ in maps]
    for builder, (_, outputs) in zip(builders, maps, strict=True):
        propagate(builder, [returned[i] for i in outputs])
    _number_readings(values, builders, needed, [returned[i] for i in results])
    forward_mode: Counter[str] = Counter()
    for builder in builders:
        forward_mode.update(builder.forward_mode)
    # compiled before buffers are reused: vmap cannot write a batched tensor into one that is not
    products_for_vmap = tuple(CompiledLater(module, copied(builder.product)) for builder in builders)
    for builder in builders:
        _mark_own(builder, own)
        reuse_buffers(builder.product)
    owned = tuple(_own_results(builder.product) for builder in builders)
    products = tuple(compiled(module, builder.product) for builder in builders)
    return Linearization(compiled(module, values), products, products_for_vmap, dict(forward_mode), owned)


def _mark_own(builder: GraphBuilder, own: Sequence[bool]) -> None:
    """Note of each tangent whether the product may overwrite it."""
    for node in builder.tangents_input.users:
        index = node.args[1]
        if isinstance(index, int) and index < len(own) and own[index]:
            node.meta["own"] = True


def _own_results(product: fx.Graph) -> tuple[bool, ...]:
    """Which results of a product are memory that nothing else reads."""
    results: Any = product.output_node().args[0]
    return tuple(_is_own(result) and results.count(result) == 1 for result in results)


def _number_readings(
    values: fx.Graph, builders: Sequence[GraphBuilder], needed: dict[Node, int], results: Sequence[Any]
) -> None:
    """Close the values' graph with what products still read of it, numbered anew: dead code has gone from them."""
    used = [node for node in needed if any(_reads(builder, node) for builder in builders)]
    for builder in builders:
        for index, node in enumerate(used):  # the position in the tuple that `values` returns
            if node in builder.readings:
                builder.readings[node].args = (builder.values_input, index)
    values.output((tuple(used), tuple(results)))
    values.eliminate_dead_code()


def _reads(builder: GraphBuilder, node: Node) -> bool:
    return node in builder.readings and bool(builder.readings[node].users)


def compiled(module: fx.GraphModule, graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function; PyTorch's own bindings where they are quicker than the operator's.

    The graph is changed by it.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target in QUICK_BINDINGS:
            node.target = QUICK_BINDINGS[node.target]
    return fx.GraphModule(module, graph).forward


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


class CompiledLater:
    """A graph as a Python function, compiled at the first call: most products are never asked of several vectors."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph
        self.function: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """What the graph returns."""
        if self.function is None:
            self.function = compiled(self.module, self.graph)
        return self.function(*args)


# a call through torch.ops has more overhead, which small layers feel
QUICK_BINDINGS = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.mul.Tensor: torch.mul,
    aten.add.Tensor: torch.add,
    aten.neg.default: torch.neg,
    aten.reshape.default: torch.reshape,
    aten.t.default: torch.t,
    aten.tanh.default: torch.tanh,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
    aten.expand.default: Tensor.expand,
    aten.add_.Tensor: Tensor.add_,
    aten.mul_.Tensor: Tensor.mul_,
}

# results that nothing else holds, into which a sum or a factor may be written
OWN_RESULTS = {aten.convolution.default, aten.mm.default, aten.bmm.default, aten.mul.Tensor, aten.add.Tensor,
               aten.threshold_backward.default, aten.add_.Tensor, aten.mul_.Tensor, aten.neg.default,
               aten.threshold_backward.grad_input, aten.addmm_.default}  # fmt: skip
SAME_MEMORY = {aten.reshape.default, aten.slice.Tensor}  # of what they are made of, or a copy


def reuse_buffers(graph: fx.Graph) -> None:
    """Sums and masks are written into an operand that is of no further use: fewer allocations, fewer page faults."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        # without `same` the sum may broadcast, and would not fit into an operand
        if node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2 and "same" in node.meta:
            _add_in_place(node)
            if "large" in node.meta:
                _multiply_into(node)
        elif node.target is aten.add.Tensor and "first" in node.meta and _is_reusable(node.args[0]):
            node.target = aten.add_.Tensor
        elif node.target is curvature and _is_own(node.args[0]):
            node.target = curvature_in_place
        elif node.target is aten.threshold_backward.default and _is_reusable(node.args[0]):
            node.target = aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": node.args[0]}


def _add_in_place(node: Node) -> None:
    """Write a sum of two tensors of one shape into the first operand that may be overwritten, if there is one."""
    a, b = node.args
    for target, other in ((a, b), (b, a)):
        if _is_reusable(target):
            node.target, node.args = aten.add_.Tensor, (target, other)
            return


def _multiply_into(node: Node) -> None:
    """Let a matrix product that is added to another be written into that, instead of memory of its own."""
    target, other = node.args
    if node.target is not aten.add_.Tensor or len(other.users) > 1 or other.target is not aten.mm.default:  # type: ignore[union-attr]
        return
    node.target, node.args = aten.addmm_.default, (target, *other.args)  # type: ignore[union-attr]
    node.graph.erase_node(other)  # type: ignore[arg-type]


def _is_own(node: Any) -> bool:
    """Whether a node's result is memory that this one user alone reads: a reusable one, or a view of one."""
    if not isinstance(node, Node) or len(node.users) != 1:
        return False
    if "own" in node.meta:
        return True
    return _is_own(node.args[0]) if node.target in SAME_MEMORY else _is_reusable(node)


def _is_reusable(node: Any) -> bool:
    """Whether a node's result is a tensor of its own that this one user alone reads."""
    if not isinstance(node, Node) or len(node.users) != 1:
        return False
    if node.target is operator.getitem:  # of an operation with several results: each is its own
        source = node.args[0]
        return isinstance(source, Node) and source.target is aten.convolution_backward.default
    return node.target in OWN_RESULTS
