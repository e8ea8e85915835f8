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
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, fx
from torch.fx import Node

aten = torch.ops.aten
Pushed = Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[Tensor | None, ...]]
Rule = Callable[["Push", Node], Any]  # -> the tangent of the node's result: a node of the product, or None for zero


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
    module: fx.GraphModule, wishes: Sequence[tuple[Sequence[int], Sequence[int]]], results: Sequence[int] = ()
) -> Linear:
    """Splits a trace, whose nodes carry `meta["like"]` (see `note_likes`).

    wishes   pairs: which inputs have tangents, and whose tangents are wanted among what the trace returns
    results  which of the trace's own results `values` should return
    """
    values = fx.Graph()
    copies: dict[Node, Node] = {}  # nodes of the trace -> of values
    returned: Any = values.graph_copy(module.graph, copies)
    for node, copy in copies.items():
        copy.meta = dict(node.meta)
    returned = returned if isinstance(returned, (list, tuple)) else (returned,)
    kept: dict[Node, int] = {}
    pushes = [Push(values, list(copies.values()), moving, kept) for moving, _ in wishes]
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


class Push:
    """The product's graph while it is made. What rules may ask: t, v, once, call, add, empty and filled.

    values   the values' graph, to which rules may add what is to be computed once
    trace    its first nodes: those of the trace
    moving   which inputs have tangents
    kept     the values that rules read, numbered; shared by all pushes through one trace
    """

    def __init__(self, values: fx.Graph, trace: list[Node], moving: Sequence[int], kept: dict[Node, int]) -> None:
        self.values, self.trace, self.kept = values, trace, kept
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

    def once(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        """A further value, computed once per theta."""
        result = self.values.call_function(op, args, kwargs)
        like = next(nodes_in(args)).meta["like"]
        result.meta["like"] = like
        return result

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


# ---------------------------------------------------------------------------------------------------- the rules


def foreign(s: Push, node: Node) -> Any:
    """PyTorch's forward mode of one operation."""
    name = str(packet(node))
    s.foreign[name] = s.foreign.get(name, 0) + 1
    op = node.target
    assert callable(op)

    def forward_mode(args: Any, kwargs: dict[str, Any], tangents: Any) -> Any:
        return tangent_of(op, args, kwargs, tangents)

    tangents = tuple(s.t(n) for n in nodes_in(node.args))
    kwargs = {k: s.v(a) for k, a in node.kwargs.items()}
    return s.call(forward_mode, tuple(s.v(node.args)), kwargs, tangents)


def tangent_of(op: Callable[..., Any], args: Any, kwargs: dict[str, Any], tangents: Sequence[Tensor | None]) -> Any:
    """The tangent of one operation's result by PyTorch's forward mode; tangents in the order of tensor arguments."""
    rest = iter(tangents)

    def dual(a: Any) -> Any:
        if isinstance(a, (list, tuple)):
            return type(a)(dual(b) for b in a)
        if isinstance(a, Tensor):
            tangent = next(rest)
            if tangent is None:  # written out, for some operations stumble over PyTorch's immutable zeros
                return forward_ad.make_dual(a, torch.zeros_like(a)) if a.is_floating_point() else a
            return forward_ad.make_dual(a, tangent)
        return a

    with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch builds its decompositions with its own jit
        result = op(*dual(args), **kwargs)
        several = isinstance(result, (tuple, list))
        parts = tuple(
            forward_ad.unpack_dual(r).tangent if isinstance(r, Tensor) else None
            for r in (result if several else [result])
        )
    return parts if several else parts[0]


def linear_in(*places: int) -> Rule:
    """The rule of an operation that is linear in one argument, or in several together; the others by value."""

    def rule(s: Push, node: Node) -> Any:
        if all(s.t(node.args[i]) is None for i in places if i < len(node.args)):
            return None
        args = [s.filled(a) if i in places else s.v(a) for i, a in enumerate(node.args)]
        return s.call(node.target, *args, **{k: s.v(a) for k, a in node.kwargs.items()})

    return rule


def shaped_by(place: int, *shapes: int) -> Rule:
    """As `linear_in(place)`, where other arguments are asked for their shape alone."""

    def rule(s: Push, node: Node) -> Any:
        if s.t(node.args[place]) is None:
            return None
        args = [
            s.t(a) if i == place else s.empty(a) if i in shapes and isinstance(a, Node) else s.v(a)
            for i, a in enumerate(node.args)
        ]
        return s.call(node.target, *args, **node.kwargs)

    return rule


def reshaped(s: Push, node: Node) -> Any:
    # a tangent need not have its value's strides, so that a view of it may have to copy
    return s.call(aten.reshape.default, s.t(node.args[0]), node.args[1])


def same(s: Push, node: Node) -> Any:
    return s.t(node.args[0])


def joined(s: Push, node: Node) -> Any:
    tensors = [s.filled(a) for a in node.args[0]]  # type: ignore[union-attr]
    return s.call(node.target, tensors, *node.args[1:], **node.kwargs)


def widened(s: Push, node: Node, tangent: Any, source: Any) -> Any:
    """A tangent of the shape of one operand, in the shape of the result."""
    shape = node.meta["like"][0]
    if isinstance(source, Node) and source.meta["like"] is not None and source.meta["like"][0] == shape:
        return tangent
    return s.call(aten.expand.default, tangent, list(shape))


def added(s: Push, node: Node, sign: int = 1) -> Any:
    a, b = node.args[:2]
    factor = node.kwargs.get("alpha", 1) * sign  # type: ignore[operator]
    ta, tb = s.t(a), s.t(b)
    if tb is not None and factor != 1:
        tb = s.call(aten.mul.Tensor, tb, factor)
    if ta is None or tb is None:
        return widened(s, node, tb if ta is None else ta, b if ta is None else a)
    result = s.call(aten.add.Tensor, ta, tb)
    if a.meta["like"] == b.meta["like"]:  # type: ignore[union-attr]
        result.meta["same"] = True
    return result


def subtracted(s: Push, node: Node) -> Any:
    return added(s, node, -1)


def sum_of(s: Push, a: Any, b: Any) -> Any:
    """The sum of two tangents that are known to be of one shape."""
    result = s.add(a, b)
    if a is not None and b is not None:
        result.meta["same"] = True
    return result


def multiplied(s: Push, node: Node) -> Any:
    a, b = node.args[:2]
    ta, tb = s.t(a), s.t(b)
    left = None if ta is None else s.call(aten.mul.Tensor, ta, s.v(b))
    right = None if tb is None else s.call(aten.mul.Tensor, s.v(a), tb)
    return sum_of(s, left, right)


def divided(s: Push, node: Node) -> Any:
    a, b = node.args[:2]
    if len(node.args) > 2 or node.kwargs:
        return foreign(s, node)
    top, tb = s.t(a), s.t(b)
    if tb is not None:
        bent = s.call(aten.neg.default, s.call(aten.mul.Tensor, s.v(node), tb))
        top = bent if top is None else s.call(aten.add.Tensor, top, bent)
    return s.call(aten.div.Tensor, top, s.v(b))


def matrix_product(s: Push, node: Node) -> Any:
    a, b = node.args[:2]
    ta, tb = s.t(a), s.t(b)
    left = None if ta is None else s.call(node.target, ta, s.v(b))
    right = None if tb is None else s.call(node.target, s.v(a), tb)
    return sum_of(s, left, right)


def affine(s: Push, node: Node) -> Any:
    """addmm and baddbmm: beta c + alpha a b."""
    c, a, b = node.args[:3]
    product = aten.mm.default if packet(node) is aten.addmm else aten.bmm.default
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    tc, ta, tb = s.t(c), s.t(a), s.t(b)
    left = None if ta is None else s.call(product, ta, s.v(b))
    right = None if tb is None else s.call(product, s.v(a), tb)
    result = sum_of(s, left, right)
    if result is not None and alpha != 1:
        result = s.call(aten.mul.Tensor, result, alpha)
    if tc is not None and beta != 1:
        tc = s.call(aten.mul.Tensor, tc, beta)
    if tc is None:
        return result
    return widened(s, node, tc, c) if result is None else s.call(aten.add.Tensor, result, tc)


def convolved(s: Push, node: Node) -> Any:
    x, w, b, *rest = node.args
    tx, tw, tb = s.t(x), s.t(w), s.t(b)
    left = None if tx is None else s.call(aten.convolution.default, tx, s.v(w), tb, *rest)
    right = None if tw is None else s.call(aten.convolution.default, s.v(x), tw, None if tx is not None else tb, *rest)
    if left is None and right is None:
        shape = node.meta["like"][0]
        flat = s.call(aten.reshape.default, tb, [1, -1] + [1] * (len(shape) - 2))
        return s.call(aten.expand.default, flat, list(shape))
    return sum_of(s, left, right)


def convolved_back(s: Push, node: Node) -> Any:
    g, x, w, *rest, mask = node.args
    tg, tx, tw = s.t(g), s.t(x), s.t(w)
    parts: list[Any] = [None, None, None]
    if tg is not None:
        back = s.call(aten.convolution_backward.default, tg, s.v(x) if mask[1] else s.empty(x),  # type: ignore[index]
                      s.v(w) if mask[0] else s.empty(w), *rest, mask)  # type: ignore[index,arg-type] # fmt: skip
        parts = [s.call(operator.getitem, back, i) if mask[i] else None for i in range(3)]  # type: ignore[index]
    more = [bool(mask[0]) and tw is not None, bool(mask[1]) and tx is not None, False]  # type: ignore[index]
    if any(more):
        back = s.call(aten.convolution_backward.default, s.v(g), tx if more[1] else s.empty(x),  # type: ignore[arg-type]
                      tw if more[0] else s.empty(w), *rest, more)  # type: ignore[arg-type] # fmt: skip
        for i in (0, 1):
            if more[i]:
                parts[i] = sum_of(s, parts[i], s.call(operator.getitem, back, i))
    return tuple(parts)


def entry(s: Push, node: Node) -> Any:
    of, index = node.args
    tangent = s.t(of)
    if isinstance(tangent, tuple):
        return tangent[index]  # type: ignore[index]
    return None if tangent is None else s.call(operator.getitem, tangent, index)


def rectified(s: Push, node: Node) -> Any:
    return s.call(aten.threshold_backward.default, s.t(node.args[0]), s.v(node), 0)


def masked(s: Push, node: Node) -> Any:
    tg = s.t(node.args[0])
    return None if tg is None else s.call(aten.threshold_backward.default, tg, s.v(node.args[1]), node.args[2])


def log_softmax(s: Push, node: Node) -> Any:
    t, dim = s.t(node.args[0]), node.args[1]
    p = s.v(s.once(aten.exp.default, node))
    mean = s.call(aten.sum.dim_IntList, s.call(aten.mul.Tensor, p, t), [dim], True)
    return s.call(aten.sub.Tensor, t, mean)


def log_softmax_back(s: Push, node: Node) -> Any:
    g, y, dim = node.args[:3]
    tg, ty = s.t(g), s.t(y)
    p = s.once(aten.exp.default, y)
    result = None
    if tg is not None:
        total = s.call(aten.sum.dim_IntList, tg, [dim], True)
        result = s.call(aten.sub.Tensor, tg, s.call(aten.mul.Tensor, s.v(p), total))
    if ty is not None:
        slope = s.once(aten.mul.Tensor, p, s.once(aten.neg.default, s.once(aten.sum.dim_IntList, g, [dim], True)))
        result = sum_of(s, result, s.call(aten.mul.Tensor, s.v(slope), ty))
    return result


def softmax(s: Push, node: Node) -> Any:
    t, dim = s.t(node.args[0]), node.args[1]
    weighted = s.call(aten.mul.Tensor, s.v(node), t)
    total = s.call(aten.sum.dim_IntList, weighted, [dim], True)
    return s.call(aten.sub.Tensor, weighted, s.call(aten.mul.Tensor, s.v(node), total))


def sigmoid(s: Push, node: Node) -> Any:
    slope = s.once(aten.sigmoid_backward.default, s.once(aten.ones_like.default, node), node)
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(slope))


def sigmoid_back(s: Push, node: Node) -> Any:
    """g y (1 - y)."""
    g, y = node.args[:2]
    tg, ty = s.t(g), s.t(y)
    result = None
    if tg is not None:
        slope = s.once(aten.sigmoid_backward.default, s.once(aten.ones_like.default, y), y)
        result = s.call(aten.mul.Tensor, tg, s.v(slope))
    if ty is not None:
        bend = s.once(aten.mul.Tensor, g, s.once(aten.add.Tensor, s.once(aten.mul.Tensor, y, -2), 1))
        result = sum_of(s, result, s.call(aten.mul.Tensor, s.v(bend), ty))
    return result


def tanh(s: Push, node: Node) -> Any:
    slope = s.once(aten.tanh_backward.default, s.once(aten.ones_like.default, node), node)
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(slope))


def tanh_back(s: Push, node: Node) -> Any:
    """g (1 - y^2)."""
    g, y = node.args[:2]
    tg, ty = s.t(g), s.t(y)
    result = None
    if tg is not None:
        slope = s.once(aten.tanh_backward.default, s.once(aten.ones_like.default, y), y)
        result = s.call(aten.mul.Tensor, tg, s.v(slope))
    if ty is not None:
        bend = s.once(aten.mul.Tensor, s.once(aten.mul.Tensor, g, y), -2)
        result = sum_of(s, result, s.call(aten.mul.Tensor, s.v(bend), ty))
    return result


def mse_loss_back(s: Push, node: Node) -> Any:
    """Linear in g, and in the two operands together."""
    g, a, b, *reduction = node.args
    tg = s.t(g)
    result = None if tg is None else s.call(node.target, tg, s.v(a), s.v(b), *reduction)
    if s.t(a) is not None or s.t(b) is not None:
        result = sum_of(s, result, s.call(node.target, s.v(g), s.filled(a), s.filled(b), *reduction))
    return result


def exponential(s: Push, node: Node) -> Any:
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(node))


def power(s: Push, node: Node) -> Any:
    x, exponent = node.args
    if not isinstance(exponent, (int, float)):
        return foreign(s, node)
    if exponent == 2:
        slope = s.once(aten.mul.Tensor, x, 2)
    else:
        slope = s.once(aten.mul.Tensor, s.once(aten.pow.Tensor_Scalar, x, exponent - 1), exponent)
    return s.call(aten.mul.Tensor, s.t(x), s.v(slope))


# indices, masks, steps, and tensors of which only the shape is used: the derivative is zero almost everywhere
CONSTANT = {
    aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.sign, aten.sgn, aten.argmax, aten.argmin,
    aten.empty_like, aten.scalar_tensor, aten.full, aten.arange, aten.isnan, aten.isinf, aten.floor, aten.ceil,
    aten.round, aten.logical_not, aten.logical_and, aten.logical_or, aten.bitwise_not,
}  # fmt: skip

RULES: dict[Any, Rule] = {
    aten.view: reshaped, aten._unsafe_view: reshaped, aten.reshape: reshaped,
    aten.detach: same, aten.alias: same, aten.lift_fresh_copy: same,
    aten.cat: joined, aten.stack: joined,
    aten.add: added, aten.sub: subtracted, aten.mul: multiplied, aten.div: divided,
    aten.mm: matrix_product, aten.bmm: matrix_product, aten.mv: matrix_product, aten.dot: matrix_product,
    aten.addmm: affine, aten.baddbmm: affine,
    aten.convolution: convolved, aten.convolution_backward: convolved_back,
    aten.relu: rectified, aten.threshold_backward: masked,
    aten._log_softmax: log_softmax, aten._log_softmax_backward_data: log_softmax_back, aten._softmax: softmax,
    aten.sigmoid: sigmoid, aten.sigmoid_backward: sigmoid_back, aten.tanh: tanh, aten.tanh_backward: tanh_back, aten.exp: exponential,
    aten.mse_loss_backward: mse_loss_back, aten.pow: power,
    operator.getitem: entry,
    aten.nll_loss_forward: linear_in(0), aten.nll_loss_backward: shaped_by(0, 1),
    aten.avg_pool2d_backward: shaped_by(0, 1), aten._adaptive_avg_pool2d_backward: shaped_by(0, 1),
    aten.max_pool2d_with_indices_backward: shaped_by(0, 1), aten.index_put: linear_in(0, 2),
    aten.where: linear_in(1, 2),
}  # fmt: skip
RULES |= {
    op: linear_in(0)
    for op in (
        aten.t, aten.transpose, aten.permute, aten.expand, aten.unsqueeze, aten.squeeze, aten.clone, aten.neg, aten.sum,
        aten.mean, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.slice, aten.select, aten.slice_backward,
        aten.select_backward, aten.split, aten.unsafe_split, aten.split_with_sizes, aten.constant_pad_nd, aten._to_copy, aten.unbind,
        aten.embedding, aten.embedding_dense_backward, aten.index, aten.index_select, aten.gather, aten.flip,
        aten.upsample_nearest2d, aten.upsample_bilinear2d,
    )
}  # fmt: skip
