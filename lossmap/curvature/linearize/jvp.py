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

from lossmap.curvature.linearize.graph_builder import GraphBuilder, aten
from lossmap.curvature.linearize.propagate import propagate

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
    pushes = [GraphBuilder(values, list(copies.values()), moving, kept, made, tiled) for moving, _ in wishes]
    for push, (_, outputs) in zip(pushes, wishes, strict=True):
        propagate(push, [returned[i] for i in outputs])
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
