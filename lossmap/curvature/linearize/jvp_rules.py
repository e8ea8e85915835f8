# ruff: noqa: D103 -- each function is the rule of the operation after which it is named
"""A rule per operation: how a tangent goes through it, read by `tangents`.

A rule is given the push, s, and the node of an operation y = op(x1, x2, ...); it asks s.t(x) for tangents (None where
zero) and s.v(x) for values, adds operations to the product by s.call, and returns the tangent of y. What follows from
values alone it asks for by s.once, so that it is computed once per theta.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.fx import Node

from lossmap.curvature.linearize import winograd
from lossmap.curvature.linearize.graph_builder import GraphBuilder, nodes_in, packet

aten = torch.ops.aten
Rule = Callable[
    [GraphBuilder, Node], Any
]  # -> the tangent of the node's result: a node of the product, or None for zero


def foreign(s: GraphBuilder, node: Node) -> Any:
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
                return forward_ad.make_dual(a, torch.zeros_like(a)) if a.is_floating_point() else a  # type: ignore[no-untyped-call]
            return forward_ad.make_dual(a, tangent)  # type: ignore[no-untyped-call]
        return a

    with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch builds its decompositions with its own jit
        result = op(*dual(args), **kwargs)
        several = isinstance(result, (tuple, list))
        parts = tuple(
            forward_ad.unpack_dual(r).tangent if isinstance(r, Tensor) else None  # type: ignore[no-untyped-call]
            for r in (result if several else [result])
        )
    return parts if several else parts[0]


def linear_in(*places: int) -> Rule:
    """The rule of an operation that is linear in one argument, or in several together; the others by value."""

    def rule(s: GraphBuilder, node: Node) -> Any:
        if all(s.t(node.args[i]) is None for i in places if i < len(node.args)):
            return None
        args = [s.filled(a) if i in places else s.v(a) for i, a in enumerate(node.args)]
        return s.call(node.target, *args, **{k: s.v(a) for k, a in node.kwargs.items()})

    return rule


def shaped_by(place: int, *shapes: int) -> Rule:
    """As `linear_in(place)`, where other arguments are asked for their shape alone."""

    def rule(s: GraphBuilder, node: Node) -> Any:
        if s.t(node.args[place]) is None:
            return None
        args = [
            s.t(a) if i == place else s.empty(a) if i in shapes and isinstance(a, Node) else s.v(a)
            for i, a in enumerate(node.args)
        ]
        return s.call(node.target, *args, **node.kwargs)

    return rule


def reshaped(s: GraphBuilder, node: Node) -> Any:
    # a tangent need not have its value's strides, so that a view of it may have to copy
    return s.call(aten.reshape.default, s.t(node.args[0]), node.args[1])


def same(s: GraphBuilder, node: Node) -> Any:
    return s.t(node.args[0])


def joined(s: GraphBuilder, node: Node) -> Any:
    tensors = [s.filled(a) for a in node.args[0]]  # type: ignore[union-attr]
    return s.call(node.target, tensors, *node.args[1:], **node.kwargs)


def widened(s: GraphBuilder, node: Node, tangent: Any, source: Any) -> Any:
    """A tangent of the shape of one operand, in the shape of the result."""
    shape = node.meta["like"][0]
    if isinstance(source, Node) and source.meta["like"] is not None and source.meta["like"][0] == shape:
        return tangent
    return s.call(aten.expand.default, tangent, list(shape))


def added(s: GraphBuilder, node: Node, sign: int = 1) -> Any:
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


def subtracted(s: GraphBuilder, node: Node) -> Any:
    return added(s, node, -1)


def sum_of(s: GraphBuilder, a: Any, b: Any) -> Any:
    """The sum of two tangents that are known to be of one shape."""
    result = s.add(a, b)
    if a is not None and b is not None:
        result.meta["same"] = True
    return result


def multiplied(s: GraphBuilder, node: Node) -> Any:
    a, b = node.args[:2]
    ta, tb = s.t(a), s.t(b)
    left = None if ta is None else s.call(aten.mul.Tensor, ta, s.v(b))
    right = None if tb is None else s.call(aten.mul.Tensor, s.v(a), tb)
    return sum_of(s, left, right)


def divided(s: GraphBuilder, node: Node) -> Any:
    a, b = node.args[:2]
    if len(node.args) > 2 or node.kwargs:
        return foreign(s, node)
    top, tb = s.t(a), s.t(b)
    if tb is not None:
        bent = s.call(aten.neg.default, s.call(aten.mul.Tensor, s.v(node), tb))
        top = bent if top is None else s.call(aten.add.Tensor, top, bent)
    return s.call(aten.div.Tensor, top, s.v(b))


def matrix_product(s: GraphBuilder, node: Node) -> Any:
    a, b = node.args[:2]
    ta, tb = s.t(a), s.t(b)
    left = None if ta is None else s.call(node.target, ta, s.v(b))
    right = None if tb is None else s.call(node.target, s.v(a), tb)
    return sum_of(s, left, right)


def affine(s: GraphBuilder, node: Node) -> Any:
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


def convolved(s: GraphBuilder, node: Node) -> Any:
    x, w, b, *rest = node.args
    tx, tw, tb = s.t(x), s.t(w), s.t(b)
    shape = list(node.meta["like"][0])
    if tx is None and tw is None:
        return spread(s, tb, shape)
    if s.by_tiles(x, w, rest):
        product = two(
            s,
            None if tx is None else (s.transform(winograd.tiles, tx), s.v(s.once(winograd.weights, w))),
            None if tw is None else (s.v(s.once(winograd.tiles, x)), s.transform(winograd.weights, tw)),
        )
        result = s.call(winograd.outputs, product, shape)
        return result if tb is None else s.call(aten.add.Tensor, result, spread(s, tb, shape))
    left = None if tx is None else s.call(aten.convolution.default, tx, s.v(w), tb, *rest)
    right = None if tw is None else s.call(aten.convolution.default, s.v(x), tw, None if tx is not None else tb, *rest)
    return sum_of(s, left, right)


def spread(s: GraphBuilder, tb: Any, shape: list[int]) -> Any:
    """A bias over the images."""
    flat = s.call(aten.reshape.default, tb, [1, -1] + [1] * (len(shape) - 2))
    return s.call(aten.expand.default, flat, shape)


def two(s: GraphBuilder, first: tuple[Any, Any] | None, second: tuple[Any, Any] | None) -> Any:
    """The sum of one or two products of tiled arrays."""
    if first is None or second is None:
        there = second if first is None else first
        return None if there is None else s.call(aten.bmm.default, *there)
    return s.call(winograd.two_products, *first, *second)


def convolved_back(s: GraphBuilder, node: Node) -> Any:
    args: Any = node.args
    g, x, w, sizes, *rest, mask = args
    tg, tx, tw = s.t(g), s.t(x), s.t(w)
    want: list[bool] = list(mask)
    if s.by_tiles(x, w, rest):
        return convolved_back_by_tiles(s, node, want)
    parts: list[Any] = [None, None, None]
    if tg is not None:
        seen = s.v(x) if want[1] else s.empty(x)
        by = s.v(w) if want[0] else s.empty(w)
        back = s.call(aten.convolution_backward.default, tg, seen, by, sizes, *rest, want)
        parts = [s.call(operator.getitem, back, i) if want[i] else None for i in range(3)]
    more = [want[0] and tw is not None, want[1] and tx is not None, False]
    if any(more):
        seen, by = tx if more[1] else s.empty(x), tw if more[0] else s.empty(w)
        back = s.call(aten.convolution_backward.default, s.v(g), seen, by, sizes, *rest, more)
        for i in (0, 1):
            if more[i]:
                parts[i] = sum_of(s, parts[i], s.call(operator.getitem, back, i))
    return tuple(parts)


def convolved_back_by_tiles(s: GraphBuilder, node: Node, want: list[bool]) -> Any:
    g, x, w = node.args[:3]
    tg, tx, tw = s.t(g), s.t(x), s.t(w)
    parts: list[Any] = [None, None, None]
    moved = None if tg is None else s.transform(winograd.outputs_back, tg)
    kept = s.once(winograd.outputs_back, g)
    if want[0]:
        first = second = None
        if moved is not None:
            first = (moved, s.v(s.once(winograd.turned, s.once(winograd.weights, w))))
        if tw is not None:
            second = (s.v(kept), s.call(aten.transpose.int, s.transform(winograd.weights, tw), 1, 2))
        product = two(s, first, second)
        shape = list(x.meta["like"][0])  # type: ignore[union-attr]
        parts[0] = None if product is None else s.call(winograd.tiles_back, product, shape)
    if want[1]:
        first = second = None
        if moved is not None:
            first = (s.call(aten.transpose.int, s.v(s.once(winograd.tiles, x)), 1, 2), moved)
        if tx is not None:
            second = (s.call(aten.transpose.int, s.transform(winograd.tiles, tx), 1, 2), s.v(kept))
        product = two(s, first, second)
        parts[1] = None if product is None else s.call(winograd.weights_back, product)
    if want[2] and tg is not None:
        parts[2] = s.call(aten.sum.dim_IntList, tg, [0, 2, 3])
    return tuple(parts)


def entry(s: GraphBuilder, node: Node) -> Any:
    of, index = node.args
    tangent = s.t(of)
    if isinstance(tangent, tuple):
        return tangent[index]  # type: ignore[index]
    return None if tangent is None else s.call(operator.getitem, tangent, index)


def rectified(s: GraphBuilder, node: Node) -> Any:
    return s.call(aten.threshold_backward.default, s.t(node.args[0]), s.v(node), 0)


def masked(s: GraphBuilder, node: Node) -> Any:
    tg = s.t(node.args[0])
    return None if tg is None else s.call(aten.threshold_backward.default, tg, s.v(node.args[1]), node.args[2])


def log_softmax(s: GraphBuilder, node: Node) -> Any:
    t, dim = s.t(node.args[0]), node.args[1]
    p = s.v(s.once(aten.exp.default, node))
    mean = s.call(aten.sum.dim_IntList, s.call(aten.mul.Tensor, p, t), [dim], True)
    return s.call(aten.sub.Tensor, t, mean)


def log_softmax_back(s: GraphBuilder, node: Node) -> Any:
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


def softmax(s: GraphBuilder, node: Node) -> Any:
    t, dim = s.t(node.args[0]), node.args[1]
    weighted = s.call(aten.mul.Tensor, s.v(node), t)
    total = s.call(aten.sum.dim_IntList, weighted, [dim], True)
    return s.call(aten.sub.Tensor, weighted, s.call(aten.mul.Tensor, s.v(node), total))


def sigmoid(s: GraphBuilder, node: Node) -> Any:
    slope = s.once(aten.sigmoid_backward.default, s.once(aten.ones_like.default, node), node)
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(slope))


def sigmoid_back(s: GraphBuilder, node: Node) -> Any:
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


def tanh(s: GraphBuilder, node: Node) -> Any:
    slope = s.once(aten.tanh_backward.default, s.once(aten.ones_like.default, node), node)
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(slope))


def tanh_back(s: GraphBuilder, node: Node) -> Any:
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


def mse_loss_back(s: GraphBuilder, node: Node) -> Any:
    """Linear in g, and in the two operands together."""
    g, a, b, *reduction = node.args
    tg = s.t(g)
    result = None if tg is None else s.call(node.target, tg, s.v(a), s.v(b), *reduction)
    if s.t(a) is not None or s.t(b) is not None:
        result = sum_of(s, result, s.call(node.target, s.v(g), s.filled(a), s.filled(b), *reduction))
    return result


def exponential(s: GraphBuilder, node: Node) -> Any:
    return s.call(aten.mul.Tensor, s.t(node.args[0]), s.v(node))


def power(s: GraphBuilder, node: Node) -> Any:
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
    aten.sigmoid: sigmoid, aten.sigmoid_backward: sigmoid_back, aten.tanh: tanh, aten.tanh_backward: tanh_back,
    aten.exp: exponential,
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
        aten.select_backward, aten.split, aten.unsafe_split, aten.split_with_sizes,
        aten.constant_pad_nd, aten._to_copy, aten.unbind,
        aten.embedding, aten.embedding_dense_backward, aten.index, aten.index_select, aten.gather, aten.flip,
        aten.upsample_nearest2d, aten.upsample_bilinear2d,
    )
}  # fmt: skip
