"""The linear map from tangents to tangents through a traced program, made once, with all that it reads of the values.

A trace is a graph of ATen operations y = op(x1, x2, ...) at known shapes. Pushing tangents t(x) through it takes, for
each operation, a rule that is linear in them; what a rule reads of the values v(x) does not depend on the tangents and
is computed once per theta. So a trace is split into two graphs:

    values    inputs -> the values that some rule reads, and what the trace itself returns
    product   (values, tangents of the moving inputs) -> tangents of the chosen outputs

Operations without a rule take PyTorch's own forward mode, one operation at a time. Both graphs end up as plain Python
functions, in which a tensor is let go after its last use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lossmap.measure import winograd
from lossmap.measure.rules import CONSTANT, RULES, foreign, nodes_in, packet

aten = torch.ops.aten
Pushed = Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[Tensor | None, ...]]


@dataclass(frozen=True, eq=False)
class Linear:
    """A trace split in two.

    values    (*inputs) -> (kept values, (the trace's own results))
    products  for each wish, (kept values, tangents of the moving inputs) -> tangents of the outputs, None where zero
    pure      the same without writing into buffers, as `vmap` wants them
    foreign   operations that took PyTorch's forward mode, and how often
    """

    values: Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]
    products: tuple[Pushed, ...]
    pure: tuple[Pushed, ...]
    foreign: dict[str, int]


def linear(
    module: fx.GraphModule,
    wishes: Sequence[tuple[Sequence[int], Sequence[int]]],
    results: Sequence[int] = (),
    tiled: int = 0,
) -> Linear:
    """Splits a trace, whose nodes carry `meta["like"]` (see `note_likes`).

    wishes   pairs: which inputs have tangents, and whose tangents are wanted among what the trace returns
    results  which of the trace's own results `values` should return
    tiled    3x3 convolutions with so many channels or more are done by tiles (see `winograd`); 0: none
    """
    values = fx.Graph()
    copies: dict[Node, Node] = {}  # nodes of the trace -> of values
    returned: Any = values.graph_copy(module.graph, copies)
    for node, copy in copies.items():
        copy.meta = dict(node.meta)
    returned = returned if isinstance(returned, (list, tuple)) else (returned,)
    kept: dict[Node, int] = {}
    made: dict[Any, Node] = {}
    pushes = [Push(values, list(copies.values()), moving, kept, made, tiled) for moving, _ in wishes]
    for push, (_, outputs) in zip(pushes, wishes, strict=True):
        push.finish([returned[i] for i in outputs])
    used = [node for node in kept if any(node in push.reading and push.reading[node].users for push in pushes)]
    for push in pushes:
        for index, node in enumerate(used):
            if node in push.reading:
                push.reading[node].args = (push.given, index)
    values.output((tuple(used), tuple(returned[i] for i in results)))
    values.eliminate_dead_code()
    foreign: dict[str, int] = {}
    for push in pushes:
        for name, count in push.foreign.items():
            foreign[name] = foreign.get(name, 0) + count
    pure = tuple(compiled(module, push.product) for push in pushes)
    for push in pushes:
        reuse_buffers(push.product)
    products = tuple(compiled(module, push.product) for push in pushes)
    return Linear(compiled(module, values), products, pure, foreign)


def note_likes(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Runs the trace once and notes of each node's result shape, dtype and device, in `meta["like"]`."""

    class Noting(fx.Interpreter):
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            node.meta["like"] = (
                (tuple(result.shape), result.dtype, result.device) if isinstance(result, Tensor) else None
            )
            return result

    with torch.no_grad():
        Noting(module).run(*inputs)


class Push:
    """The product's graph while it is made. What rules may ask: t, v, once, call, add, empty and filled.

    values   the values' graph, to which rules may add what is to be computed once
    trace    its first nodes: those of the trace
    moving   which inputs have tangents
    kept     the values that rules read, numbered; shared by all pushes through one trace
    made     further values, by operation and arguments; shared as well
    tiled    the least channels of convolutions that are done by tiles
    """

    def __init__(
        self,
        values: fx.Graph,
        trace: list[Node],
        moving: Sequence[int],
        kept: dict[Node, int],
        made: dict[Any, Node],
        tiled: int,
    ) -> None:
        self.values, self.trace, self.kept, self.made, self.tiled = values, trace, kept, made, tiled
        self.transformed: dict[Any, Node] = {}
        self.product = fx.Graph()
        self.given = self.product.placeholder("values")
        self.entering = self.product.placeholder("tangents")
        self.reading: dict[Node, Node] = {}
        self.foreign: dict[str, int] = {}
        self.tangents: dict[Node, Any] = {}
        holders = [n for n in trace if n.op == "placeholder"]
        for i, index in enumerate(moving):
            self.tangents[holders[index]] = self.product.call_function(operator.getitem, (self.entering, i))

    # what the rules ask for

    def t(self, argument: Any) -> Any:
        """The tangent of an argument; None where it is zero."""
        return self.tangents.get(argument) if isinstance(argument, Node) else None

    def v(self, argument: Any) -> Any:
        """The value of an argument, kept for the products."""
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.v(a) for a in argument)
        if not isinstance(argument, Node):
            return argument
        if argument not in self.reading:
            index = self.kept.setdefault(argument, len(self.kept))
            self.reading[argument] = self.product.call_function(operator.getitem, (self.given, index))
        return self.reading[argument]

    def once(self, op: Any, *args: Any) -> Node:
        """A further value, computed once per theta."""
        key = (op, *(tuple(a) if isinstance(a, list) else a for a in args))
        if key not in self.made:
            result = self.values.call_function(op, args)
            result.meta["like"] = next(nodes_in(args)).meta["like"]
            self.made[key] = result
        return self.made[key]

    def transform(self, op: Any, tangent: Node) -> Node:
        """A transform of a tangent, made once for all that read it."""
        if (op, tangent) not in self.transformed:
            self.transformed[op, tangent] = self.call(op, tangent)
        return self.transformed[op, tangent]

    def by_tiles(self, x: Any, w: Any, rest: Sequence[Any]) -> bool:
        """Whether a convolution is one that is done by tiles; `rest` from the stride on."""
        stride, padding, dilation, transposed, _, groups = rest[:6]
        (x_shape, dtype, _), (w_shape, _, _) = x.meta["like"], w.meta["like"]
        if not self.tiled or min(w_shape[:2]) < self.tiled or transposed or groups != 1:
            return False
        wide = dtype in (torch.float32, torch.float64)
        return wide and winograd.fits(x_shape, w_shape, stride, padding, dilation)

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        """An operation of the product."""
        return self.product.call_function(op, args, kwargs)

    def add(self, a: Any, b: Any) -> Any:
        """The sum of two tangents, either of which may be zero."""
        if a is None or b is None:
            return b if a is None else a
        return self.call(aten.add.Tensor, a, b)

    def empty(self, node: Node) -> Node:
        """A tensor of which only shape, dtype and device are asked: one number, expanded."""
        shape, dtype, device = node.meta["like"]
        return self.call(aten.expand.default, self.call(torch.zeros, (), dtype=dtype, device=device), list(shape))

    def filled(self, node: Any) -> Any:
        """The tangent of an argument, zeros written out."""
        tangent = self.t(node)
        if tangent is not None:
            return tangent
        if not isinstance(node, Node):
            return 0 if isinstance(node, (int, float)) else node
        shape, dtype, device = node.meta["like"]
        return self.call(torch.zeros, list(shape), dtype=dtype, device=device)

    # the making

    def finish(self, wanted: Sequence[Any]) -> None:
        """Pushes the tangents through all that the wanted outputs depend on."""
        live: set[Node] = set(nodes_in(wanted))
        for node in reversed(self.trace):
            if node in live and packet(node) not in CONSTANT:
                live.update(node.all_input_nodes)
        for node in self.trace:
            if node not in live or node.op != "call_function" or packet(node) in CONSTANT:
                continue
            like = node.meta["like"]
            if (like and not like[1].is_floating_point) or all(n not in self.tangents for n in node.all_input_nodes):
                continue
            tangent = RULES.get(packet(node), foreign)(self, node)
            if tangent is not None:
                self.tangents[node] = tangent
        self.product.output(tuple(self.t(node) for node in wanted))
        self.product.eliminate_dead_code()


def compiled(module: fx.GraphModule, graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function; PyTorch's own bindings where they are quicker than the operator's."""
    quick = fx.Graph()
    quick.output(quick.graph_copy(graph, {}))
    for node in quick.nodes:
        if node.op == "call_function" and node.target in QUICK:
            node.target = QUICK[node.target]
    return fx.GraphModule(module, quick).forward


QUICK = {
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
FRESH = {aten.convolution.default, aten.mm.default, aten.bmm.default, aten.mul.Tensor, aten.add.Tensor,
         aten.threshold_backward.default, aten.add_.Tensor, aten.mul_.Tensor, aten.neg.default,
         aten.threshold_backward.grad_input}  # fmt: skip


def reuse_buffers(graph: fx.Graph) -> None:
    """Sums and masks are written into an operand that is of no further use: fewer allocations, fewer page faults."""

    def fresh(node: Any, shape_of: Node) -> bool:
        if not isinstance(node, Node) or len(node.users) != 1:
            return False
        if node.target is operator.getitem:  # of an operation with several results: each is its own
            maker = node.args[0]
            return isinstance(maker, Node) and maker.target is aten.convolution_backward.default
        return node.target in FRESH

    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2 and "same" in node.meta:
            a, b = node.args
            for first, second in ((a, b), (b, a)):
                if fresh(first, node):
                    node.target, node.args = aten.add_.Tensor, (first, second)
                    break
        elif node.target is aten.threshold_backward.default and fresh(node.args[0], node):
            node.target = aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": node.args[0]}
