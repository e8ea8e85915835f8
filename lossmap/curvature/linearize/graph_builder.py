"""The graph of a linearized product while it is built: what the rules of `jvp_rules` ask for and add to.

Two graphs grow together. The *values* graph is the trace, to which rules may add what depends on theta alone; it is run
once per theta. The *product* graph reads some of those values and the tangents, and is run once per vector.
"""

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
    """One product's graph while it is built. What rules may use: the methods from `tangent` on.

    values             the values' graph, to which rules may add what is to be computed once
    trace              its first nodes: those of the trace
    moving             which inputs have tangents
    needed             the values that products read, numbered; shared by all builders over one trace
    derived            further values, by operation and arguments; shared as well
    winograd_channels  3x3 convolutions of at least this many channels use tiles; 0: none
    """

    def __init__(
        self,
        values: fx.Graph,
        trace: list[Node],
        moving: Sequence[int],
        needed: dict[Node, int],
        derived: dict[Any, Node],
        winograd_channels: int,
    ) -> None:
        self.values, self.trace, self.needed, self.derived = values, trace, needed, derived
        self.winograd_channels = winograd_channels
        self.product = fx.Graph()
        # two inputs, each a tuple: how many values there are is known only when all rules have asked
        self.values_input = self.product.placeholder("values")
        self.tangents_input = self.product.placeholder("tangents")
        self.readings: dict[Node, Node] = {}  # of the values' graph -> where the product reads it
        self.forward_mode: dict[str, int] = {}  # operations without a rule, and how often
        self.tangents: dict[Node, Any] = {}  # nodes of the trace -> of the product
        self._transformed: dict[Any, Node] = {}
        inputs = [n for n in trace if n.op == "placeholder"]
        for i, index in enumerate(moving):
            self.tangents[inputs[index]] = self.product.call_function(operator.getitem, (self.tangents_input, i))

    def tangent(self, argument: Any) -> Any:
        """The tangent of an argument, a node of the product; None where it is zero."""
        return self.tangents.get(argument) if isinstance(argument, Node) else None

    def value(self, argument: Any) -> Any:
        """The value of an argument in the product; a node of the trace is kept for it, anything else is itself."""
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.value(a) for a in argument)
        if not isinstance(argument, Node):
            return argument
        if argument not in self.readings:
            # numbered over all builders, so that a value that two products read is computed and held once
            index = self.needed.setdefault(argument, len(self.needed))
            self.readings[argument] = self.product.call_function(operator.getitem, (self.values_input, index))
        return self.readings[argument]

    def once(self, op: Any, *args: Any) -> Node:
        """A further value, computed once per theta: a node of the values' graph."""
        # lists are no dictionary keys
        key = (op, *(tuple(a) if isinstance(a, list) else a for a in args))
        if key not in self.derived:
            node = self.values.call_function(op, args)
            # the first argument's: of derived values only the dtype is read
            node.meta["like"] = next(nodes_in(args)).meta["like"]
            self.derived[key] = node
        return self.derived[key]

    def transform(self, op: Any, tangent: Node) -> Node:
        """A transform of a tangent, made once for all that read it: forwards and backwards."""
        if (op, tangent) not in self._transformed:
            self._transformed[op, tangent] = self.call(op, tangent)
        return self._transformed[op, tangent]

    def uses_winograd(self, x: Any, w: Any, rest: Sequence[Any]) -> bool:
        """Whether a convolution uses tiles; `rest` are its arguments from the stride on."""
        stride, padding, dilation, transposed, _, groups = rest[:6]
        (x_shape, dtype, _), (w_shape, _, _) = x.meta["like"], w.meta["like"]
        threshold = self.winograd_channels
        if not threshold or min(w_shape[:2]) < threshold or transposed or groups != 1:
            return False
        # tiles round some ten times more than a direct convolution: too much in half precision
        precise = dtype in (torch.float32, torch.float64)
        return precise and winograd.fits(x_shape, w_shape, stride, padding, dilation)

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        """An operation of the product."""
        return self.product.call_function(op, args, kwargs)

    def apply(self, op: Any, tangent: Any, *arguments: Any) -> Any:
        """An operation linear in its first argument: of a tangent, and the values of others; None where it is zero."""
        if tangent is None:  # and no value is kept for what would not be read
            return None
        return self.call(op, tangent, *(self.value(a) for a in arguments))

    def bilinear(self, op: Any, a: Any, b: Any) -> Any:
        """The tangent of a bilinear operation: op(tangent of a, b) + op(a, tangent of b)."""
        left, right = self.apply(op, self.tangent(a), b), None
        if self.tangent(b) is not None:
            right = self.call(op, self.value(a), self.tangent(b))
        return self.sum_of(left, right)

    def sum_of(self, a: Any, b: Any) -> Any:
        """The sum of two tangents of one shape, either of which may be zero."""
        if a is None:
            return b
        if b is None:
            return a
        result = self.call(aten.add.Tensor, a, b)
        result.meta["same"] = True  # no broadcasting: `reuse_buffers` may write the sum into an operand
        return result

    def like(self, node: Node) -> Node:
        """A tensor of which only shape, dtype and device are read: one number, expanded."""
        shape, dtype, device = node.meta["like"]  # noted when the trace was taken
        return self.call(aten.expand.default, self.call(torch.zeros, (), dtype=dtype, device=device), list(shape))

    def dense_tangent(self, argument: Any) -> Any:
        """The tangent of an argument, zeros written out; of what is no node, its zero."""
        tangent = self.tangent(argument)
        if tangent is not None:
            return tangent
        if isinstance(argument, Node):
            shape, dtype, device = argument.meta["like"]
            return self.call(torch.zeros, list(shape), dtype=dtype, device=device)
        # a number has the tangent 0; None and flags stay what they are
        return 0 if isinstance(argument, (int, float)) else argument


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
    """An operation whatever its overload: aten.add for aten.add.Tensor and aten.add.Scalar."""
    return getattr(node.target, "overloadpacket", node.target)
