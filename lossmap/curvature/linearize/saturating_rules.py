# ruff: noqa: D103 -- each rule is named after its operation
"""Softmax, log softmax, tanh and sigmoid where they saturate: values and tangents that do not cancel.

PyTorch makes their derivatives of the results: 1 - p with p -> 1, 1 - y^2 with y -> 1. In a trace the argument is at
hand as well: `use_arguments` puts functions of it in the place of the operations whose values cancel, and the rules
here take tangents relative to the largest entry k, t' = t - t_k, whose own is a true 0:

    softmax        p (t' - sum p t')          entry k: -p_k sum_{j != k} p_j t'_j, a sum of small terms
    log softmax    t' - sum p t'
    their backward passes likewise; that of log softmax, r = g - p sum(g), sums to 0, so r_k = -sum_{c != k} r_c

What is computed per product is one pass over the tensor more than by PyTorch's formulas; all else once per theta. The
same forms for double backward: `lossmap.stable.losses`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from lossmap.curvature.linearize.graph_builder import GraphBuilder, aten, packet
from lossmap.stable.losses import balanced, log_softmax_values

VIEWS = (aten.detach, aten.alias, aten.clone)


def log_softmax_value(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """`aten._log_softmax`, right also at the largest entry near 0."""
    # half_to_float, on CUDA: the operation takes half precision and computes in float32, and so must this one
    return log_softmax_values(x.float() if half_to_float else x, dim)


def log_softmax_backward_value(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """`aten._log_softmax_backward_data`: g - exp(y) sum(g), the entry of the largest y from the others."""
    return balanced(g - y.exp() * g.sum(dim, keepdim=True), leader(y, dim), dim).to(dtype)


def softmax_backward_value(g: Tensor, p: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """`aten._softmax_backward_data`: p (g - sum p g), with g relative to its entry at the largest p."""
    # p sums to 1, so a constant added to g changes nothing; the one chosen makes the leader's own term a true 0
    relative = g - g.gather(dim, leader(p, dim))
    return (p * (relative - (p * relative).sum(dim, keepdim=True))).to(dtype)


def tanh_slope(x: Tensor) -> Tensor:
    """1 - tanh(x)^2, by w = exp(-2 |x|)."""
    # 1 - y^2 is 0 in float32 a little above |x| = 9; this form keeps all its digits until w underflows
    w = (-2.0 * x.abs()).exp_()
    return 4.0 * w / (1.0 + w).square_()


def sigmoid_slope(x: Tensor) -> Tensor:
    """s (1 - s) for s = sigmoid(x), by w = exp(-|x|)."""
    # of -|x|, so that exp never overflows; the slope is even in x
    w = x.abs().neg_().exp_()
    return w / (1.0 + w).square_()


def tanh_backward_value(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """`aten.tanh_backward`, of the argument x beside the result y."""
    return g * tanh_slope(x)


def sigmoid_backward_value(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """`aten.sigmoid_backward`, of the argument x beside the result y."""
    return g * sigmoid_slope(x)


def leader(y: Tensor, dim: int) -> Tensor:
    """The place of the largest entry along `dim`, kept."""
    return y.argmax(dim, keepdim=True)


def use_arguments(graph: fx.Graph) -> None:
    """Puts functions that do not cancel in the place of those operations of a trace whose values do."""
    for node in graph.nodes:
        kind = packet(node)
        if kind in BY_RESULT:
            node.target = BY_RESULT[kind]
        elif kind in BY_ARGUMENT:
            forward, function = BY_ARGUMENT[kind]
            source = node.args[1]
            # autograd saves the result through detach or alias; the argument is behind the operation that made it
            while isinstance(source, Node) and packet(source) in VIEWS:
                source = source.args[0]
            # a backward operation whose result came from elsewhere keeps PyTorch's formula: it has no argument to read
            if isinstance(source, Node) and packet(source) is forward:
                node.target, node.args = function, (*node.args, source.args[0])


BY_RESULT: dict[Any, Any] = {
    aten._log_softmax: log_softmax_value,
    aten._log_softmax_backward_data: log_softmax_backward_value,
    aten._softmax_backward_data: softmax_backward_value,
}
BY_ARGUMENT: dict[Any, Any] = {
    aten.tanh_backward: (aten.tanh, tanh_backward_value),
    aten.sigmoid_backward: (aten.sigmoid, sigmoid_backward_value),
}


def relative(build: GraphBuilder, tangent: Any, k: Node, dim: Any) -> Any:
    """A tangent less its entry at the leader."""
    return build.call(aten.sub.Tensor, tangent, build.call(aten.gather.default, tangent, dim, build.value(k)))


def total(build: GraphBuilder, tangent: Any, dim: Any) -> Any:
    return build.call(aten.sum.dim_IntList, tangent, [dim], True)


def softmax(build: GraphBuilder, node: Node) -> Any:
    dim = node.args[1]
    shifted = relative(build, build.tangent(node.args[0]), build.once(leader, node, dim), dim)
    weighted = build.call(aten.mul.Tensor, build.value(node), shifted)
    share = build.call(aten.mul.Tensor, build.value(node), total(build, weighted, dim))
    return build.call(aten.sub.Tensor, weighted, share)


def softmax_backward(build: GraphBuilder, node: Node) -> Any:
    """Of p (g' - m), m = sum p g': tp (g' - m) + p (tg' - tm), tm = sum(tp g' + p tg')."""
    g, p, dim = node.args[:3]
    tg, tp = build.tangent(g), build.tangent(p)
    k = build.once(leader, p, dim)
    shifted = build.once(aten.sub.Tensor, g, build.once(aten.gather.default, g, dim, k))
    # either tangent may be missing (zero): only the terms that exist become nodes
    product, weighted = None, None
    if tg is not None:
        weighted = build.call(aten.mul.Tensor, build.value(p), relative(build, tg, k, dim))
    if tp is not None:
        mean = build.once(aten.sum.dim_IntList, build.once(aten.mul.Tensor, p, shifted), (dim,), True)
        product = build.call(aten.mul.Tensor, tp, build.value(shifted))
        back = build.call(aten.sub.Tensor, product, build.call(aten.mul.Tensor, tp, build.value(mean)))
    else:
        back = None
    mean_tangent = total(build, product if weighted is None else _plus(build, product, weighted), dim)
    result = _plus(build, back, weighted)
    return build.call(aten.sub.Tensor, result, build.call(aten.mul.Tensor, build.value(p), mean_tangent))


def _plus(build: GraphBuilder, a: Any, b: Any) -> Any:
    """The sum of two tangents, written into neither: both may be read again."""
    if a is None or b is None:
        return b if a is None else a
    return build.call(aten.add.Tensor, a, b)


def log_softmax(build: GraphBuilder, node: Node) -> Any:
    dim = node.args[1]
    shifted = relative(build, build.tangent(node.args[0]), build.once(leader, node, dim), dim)
    # of the result, not of the argument: exp of a log softmax never overflows
    p = build.value(build.once(aten.exp.default, node))
    return build.call(aten.sub.Tensor, shifted, total(build, build.call(aten.mul.Tensor, p, shifted), dim))


def log_softmax_backward(build: GraphBuilder, node: Node) -> Any:
    """Of r = g - p sum(g), with p = exp(y): tg - p sum(tg) - p sum(g) ty, balanced at the leader."""
    g, y, dim = node.args[:3]
    tg, ty = build.tangent(g), build.tangent(y)
    p = build.once(aten.exp.default, y)
    result = None
    if tg is not None:
        result = build.call(aten.sub.Tensor, tg, build.call(aten.mul.Tensor, build.value(p), total(build, tg, dim)))
    if ty is not None:
        minus_total = build.once(aten.neg.default, build.once(aten.sum.dim_IntList, g, (dim,), True))
        slope = build.once(aten.mul.Tensor, p, minus_total)
        result = build.sum_of(result, build.call(aten.mul.Tensor, build.value(slope), ty))
    # r sums to 0 whatever g and y are, so its tangent does: the leader's entry is the one that would cancel
    return build.call(balanced, result, build.value(build.once(leader, y, dim)), dim)


def _by_slope(slope: Any) -> Any:
    def rule(build: GraphBuilder, node: Node) -> Any:
        # of the argument: a slope made of the result would cancel where the function saturates
        return build.call(aten.mul.Tensor, build.tangent(node.args[0]), build.value(build.once(slope, node.args[0])))

    return rule


def _chain(build: GraphBuilder, tg: Any, slope: Node, ty: Any, second: Node) -> Any:
    """The sum tg * slope + second * ty; derived values that no product reads are eliminated later."""
    left, right = build.apply(aten.mul.Tensor, tg, slope), None
    if ty is not None:
        right = build.call(aten.mul.Tensor, build.value(second), ty)
    return build.sum_of(left, right)


def tanh_backward(build: GraphBuilder, node: Node) -> Any:
    """Of g (1 - y^2): tg (1 - y^2) - 2 g y ty."""
    g, y, x = node.args
    second = build.once(aten.mul.Tensor, build.once(aten.mul.Tensor, g, y), -2)
    return _chain(build, build.tangent(g), build.once(tanh_slope, x), build.tangent(y), second)


def sigmoid_backward(build: GraphBuilder, node: Node) -> Any:
    """Of g y (1 - y): tg y (1 - y) + g (1 - 2 y) ty."""
    g, y, x = node.args
    second = build.once(aten.mul.Tensor, g, build.once(aten.add.Tensor, build.once(aten.mul.Tensor, y, -2), 1))
    return _chain(build, build.tangent(g), build.once(sigmoid_slope, x), build.tangent(y), second)


SATURATING_RULES: dict[Any, Any] = {
    log_softmax_value: log_softmax,
    log_softmax_backward_value: log_softmax_backward,
    aten._softmax: softmax,
    aten._safe_softmax: softmax,
    softmax_backward_value: softmax_backward,
    aten.tanh: _by_slope(tanh_slope),
    aten.sigmoid: _by_slope(sigmoid_slope),
    tanh_backward_value: tanh_backward,
    sigmoid_backward_value: sigmoid_backward,
}
