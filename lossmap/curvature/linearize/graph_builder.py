"""The graph of a linearised product while it is made: what the rules of `jvp_rules` ask for and add to."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from lossmap.curvature.linearize import winograd

aten = torch.ops.aten


class GraphBuilder:
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


def nodes_in(argument: Any) -> Iterator[Node]:
    """The nodes among an operation's arguments, in order."""
    if isinstance(argument, Node):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for entry in argument:
            yield from nodes_in(entry)
    elif isinstance(argument, dict):
        yield from nodes_in(list(argument.values()))


def packet(node: Node) -> Any:
    """An operation whatever its overload."""
    return getattr(node.target, "overloadpacket", node.target)
