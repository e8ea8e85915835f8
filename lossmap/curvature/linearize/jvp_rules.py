# ruff: noqa: D103 -- each function is the rule of the operation after which it is named
"""A rule per operation: how a tangent goes through it, used by `propagate`.

A rule is given the builder and the node of an operation y = op(x1, x2, ...) that some moving input reaches. It asks
`build.tangent(x)` for tangents (None where zero) and `build.value(x)` for values, adds operations to the product by
`build.call`, and returns the tangent of y: a node of the product, a tuple of them for several results, or None where it
is zero. What follows from values alone it asks for by `build.once`, so that it is computed once per theta.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.fx import Node

from lossmap.curvature.linearize.convolution_rules import convolution, convolution_backward
from lossmap.curvature.linearize.entropy_rules import ENTROPY_RULES
from lossmap.curvature.linearize.graph_builder import GraphBuilder, aten, nodes_in, packet
from lossmap.curvature.linearize.saturating_rules import SATURATING_RULES

Rule = Callable[[GraphBuilder, Node], Any]
LARGE_RESULT = 1 << 22  # entries of a matrix product from which on a second one is added into it


def forward_mode(build: GraphBuilder, node: Node) -> Any:
    """PyTorch's own forward mode of one operation: for those without a rule."""
    name = str(packet(node))
    build.forward_mode[name] = build.forward_mode.get(name, 0) + 1
    op = node.target
    assert callable(op)

    # a node of the product may call any Python function; this one carries the operation
    def dual_call(args: Any, kwargs: dict[str, Any], tangents: Any) -> Any:
        return tangent_of(op, args, kwargs, tangents)

    tangents = tuple(build.tangent(n) for n in nodes_in(node.args))
    kwargs = {k: build.value(a) for k, a in node.kwargs.items()}
    return build.call(dual_call, tuple(build.value(node.args)), kwargs, tangents)


def tangent_of(op: Callable[..., Any], args: Any, kwargs: dict[str, Any], tangents: Sequence[Tensor | None]) -> Any:
    """The tangent of one operation's result by PyTorch's forward mode; tangents in the order of tensor arguments."""
    remaining = iter(tangents)

    def dual(a: Any) -> Any:
        if isinstance(a, (list, tuple)):
            return type(a)(dual(b) for b in a)
        if not isinstance(a, Tensor):
            return a
        tangent = next(remaining)
        if tangent is None and not a.is_floating_point():
            return a
        if tangent is None:  # written out, for some operations stumble over PyTorch's immutable zeros
            tangent = torch.zeros_like(a)
        return forward_ad.make_dual(a, tangent)  # type: ignore[no-untyped-call]

    def unpacked(result: Any) -> Any:
        if isinstance(result, Tensor):
            return forward_ad.unpack_dual(result).tangent  # type: ignore[no-untyped-call]
        return None

    with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch builds its decompositions with its own jit
        result = op(*dual(args), **kwargs)
        if isinstance(result, (tuple, list)):
            return tuple(unpacked(r) for r in result)
        return unpacked(result)


def linear_in(*positions: int) -> Rule:
    """The rule of an operation that is linear in one argument, or in several together; the others by value."""

    def rule(build: GraphBuilder, node: Node) -> Any:
        if all(build.tangent(node.args[i]) is None for i in positions if i < len(node.args)):
            return None
        # together: an argument without a tangent beside one with it takes part as zeros
        args = [build.dense_tangent(a) if i in positions else build.value(a) for i, a in enumerate(node.args)]
        return build.call(node.target, *args, **{k: build.value(a) for k, a in node.kwargs.items()})

    return rule


def shaped_by(position: int, *shapes: int) -> Rule:
    """As `linear_in(position)`, where of the arguments at `shapes` only shape, dtype and device are read."""

    def rule(build: GraphBuilder, node: Node) -> Any:
        if build.tangent(node.args[position]) is None:
            return None

        def argument(i: int, a: Any) -> Any:
            if i == position:
                return build.tangent(a)
            if i in shapes and isinstance(a, Node):
                return build.like(a)  # so that no value is kept for it
            return build.value(a)

        return build.call(node.target, *(argument(i, a) for i, a in enumerate(node.args)), **node.kwargs)

    return rule


def reshape(build: GraphBuilder, node: Node) -> Any:
    # a tangent need not have its value's strides, so that a view of it may have to copy
    return build.call(aten.reshape.default, build.tangent(node.args[0]), node.args[1])


def identity(build: GraphBuilder, node: Node) -> Any:
    return build.tangent(node.args[0])


def concatenation(build: GraphBuilder, node: Node) -> Any:
    # zeros for those without a tangent, which take up their place
    tensors = [build.dense_tangent(a) for a in node.args[0]]  # type: ignore[union-attr]
    return build.call(node.target, tensors, *node.args[1:], **node.kwargs)


def expanded(build: GraphBuilder, node: Node, tangent: Any, source: Any) -> Any:
    """The tangent of one operand, where the other has none, in the shape of the result."""
    shape = node.meta["like"][0]
    if isinstance(source, Node) and source.meta["like"] is not None and source.meta["like"][0] == shape:
        return tangent
    return build.call(aten.expand.default, tangent, list(shape))


def addition(build: GraphBuilder, node: Node, sign: int = 1) -> Any:
    a, b = node.args[:2]
    factor = node.kwargs.get("alpha", 1) * sign  # type: ignore[operator]
    ta, tb = build.tangent(a), build.tangent(b)
    if tb is not None and factor != 1:
        tb = build.call(aten.mul.Tensor, tb, factor)
    if tb is None:
        return expanded(build, node, ta, a)
    if ta is None:
        return expanded(build, node, tb, b)
    if a.meta["like"] == b.meta["like"]:  # type: ignore[union-attr]
        return build.sum_of(ta, tb)
    return build.call(aten.add.Tensor, ta, tb)  # broadcasts: the sum cannot be written into an operand


def subtraction(build: GraphBuilder, node: Node) -> Any:
    return addition(build, node, -1)


def multiplication(build: GraphBuilder, node: Node) -> Any:
    return build.bilinear(aten.mul.Tensor, *node.args[:2])


def matrix_product(build: GraphBuilder, node: Node) -> Any:
    return _noted(build.bilinear(node.target, *node.args[:2]), node)


def _noted(result: Any, node: Node) -> Any:
    """A sum of matrix products, noted as large where a second array of its size is worth saving."""
    if isinstance(result, Node) and math.prod(node.meta["like"][0]) >= LARGE_RESULT:
        result.meta["large"] = True
    return result


def division(build: GraphBuilder, node: Node) -> Any:
    """For y = a / b: (ta - y tb) / b."""
    a, b = node.args[:2]
    if len(node.args) > 2 or node.kwargs:  # rounding
        return forward_mode(build, node)
    numerator, tb = build.tangent(a), build.tangent(b)
    if tb is not None:
        by_b = build.call(aten.neg.default, build.call(aten.mul.Tensor, build.value(node), tb))
        # the operands may broadcast, so that this is no `sum_of`
        numerator = by_b if numerator is None else build.call(aten.add.Tensor, numerator, by_b)
    return build.call(aten.div.Tensor, numerator, build.value(b))


def affine(build: GraphBuilder, node: Node) -> Any:
    """addmm and baddbmm: beta c + alpha a b."""
    c, a, b = node.args[:3]
    product = aten.mm.default if packet(node) is aten.addmm else aten.bmm.default
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    result, tc = _noted(build.bilinear(product, a, b), node), build.tangent(c)
    if alpha != 1:
        result = build.apply(aten.mul.Tensor, result, alpha)
    if beta != 1:
        tc = build.apply(aten.mul.Tensor, tc, beta)
    if tc is None:
        return result
    if result is None:
        return expanded(build, node, tc, c)
    whole = build.call(aten.add.Tensor, result, tc)
    whole.meta["first"] = True  # has the shape of the sum, which `reuse_buffers` may write into it
    return whole


def entry(build: GraphBuilder, node: Node) -> Any:
    source, index = node.args
    tangent = build.tangent(source)
    if isinstance(tangent, tuple):  # of a rule that returns one tangent per result
        return tangent[index]  # type: ignore[index]
    return build.apply(operator.getitem, tangent, index)


def relu(build: GraphBuilder, node: Node) -> Any:
    # by the result, which the next layer keeps anyhow, not by the argument
    return build.call(aten.threshold_backward.default, build.tangent(node.args[0]), build.value(node), 0)


def threshold_backward(build: GraphBuilder, node: Node) -> Any:
    g, x, threshold = node.args
    return build.apply(aten.threshold_backward.default, build.tangent(g), x, threshold)


def sigmoid_backward(build: GraphBuilder, node: Node) -> Any:
    """Of g y (1 - y): tg y (1 - y) + g (1 - 2 y) ty."""
    g, y = node.args[:2]
    slope = build.once(aten.sigmoid_backward.default, build.once(aten.ones_like.default, y), y)
    second = build.once(aten.mul.Tensor, g, build.once(aten.add.Tensor, build.once(aten.mul.Tensor, y, -2), 1))
    return _chain(build, build.tangent(g), slope, build.tangent(y), second)


def tanh_backward(build: GraphBuilder, node: Node) -> Any:
    """Of g (1 - y^2): tg (1 - y^2) - 2 g y ty."""
    g, y = node.args[:2]
    slope = build.once(aten.tanh_backward.default, build.once(aten.ones_like.default, y), y)
    second = build.once(aten.mul.Tensor, build.once(aten.mul.Tensor, g, y), -2)
    return _chain(build, build.tangent(g), slope, build.tangent(y), second)


def _chain(build: GraphBuilder, tg: Any, slope: Node, ty: Any, second: Node) -> Any:
    """The sum tg * slope + second * ty; derived values that no product reads are eliminated later."""
    left, right = build.apply(aten.mul.Tensor, tg, slope), None
    if ty is not None:
        right = build.call(aten.mul.Tensor, build.value(second), ty)
    return build.sum_of(left, right)


def log1p(build: GraphBuilder, node: Node) -> Any:
    slope = build.once(aten.reciprocal.default, build.once(aten.add.Tensor, node.args[0], 1))
    return build.call(aten.mul.Tensor, build.tangent(node.args[0]), build.value(slope))


def mse_loss_backward(build: GraphBuilder, node: Node) -> Any:
    """Linear in g, and in the two operands together."""
    g, a, b, *reduction = node.args
    result = build.apply(node.target, build.tangent(g), a, b, *reduction)
    if build.tangent(a) is not None or build.tangent(b) is not None:
        operands = build.dense_tangent(a), build.dense_tangent(b)
        result = build.sum_of(result, build.call(node.target, build.value(g), *operands, *reduction))
    return result


def exponential(build: GraphBuilder, node: Node) -> Any:
    # its own derivative
    return build.call(aten.mul.Tensor, build.tangent(node.args[0]), build.value(node))


def power(build: GraphBuilder, node: Node) -> Any:
    x, exponent = node.args
    if not isinstance(exponent, (int, float)):
        return forward_mode(build, node)
    if exponent == 2:  # squares are common, and need no power
        slope = build.once(aten.mul.Tensor, x, 2)
    else:
        slope = build.once(aten.mul.Tensor, build.once(aten.pow.Tensor_Scalar, x, exponent - 1), exponent)
    return build.call(aten.mul.Tensor, build.tangent(x), build.value(slope))


# indices, masks, steps, and tensors of which only the shape is used: the derivative is zero almost everywhere
CONSTANT = {
    aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.sign, aten.sgn, aten.argmax, aten.argmin,
    aten.empty_like, aten.scalar_tensor, aten.full, aten.arange, aten.isnan, aten.isinf, aten.floor, aten.ceil,
    aten.round, aten.logical_not, aten.logical_and, aten.logical_or, aten.bitwise_not,
}  # fmt: skip

# by overload packet; what is missing takes PyTorch's forward mode, which is right but slower
RULES: dict[Any, Rule] = {
    aten.view: reshape, aten._unsafe_view: reshape, aten.reshape: reshape,
    aten.detach: identity, aten.alias: identity, aten.lift_fresh_copy: identity,
    aten.cat: concatenation, aten.stack: concatenation,
    aten.add: addition, aten.sub: subtraction, aten.mul: multiplication, aten.div: division,
    aten.mm: matrix_product, aten.bmm: matrix_product, aten.mv: matrix_product, aten.dot: matrix_product,
    aten.addmm: affine, aten.baddbmm: affine,
    aten.convolution: convolution, aten.convolution_backward: convolution_backward,
    aten.relu: relu, aten.threshold_backward: threshold_backward,
    aten.sigmoid_backward: sigmoid_backward, aten.tanh_backward: tanh_backward,
    aten.exp: exponential, aten.log1p: log1p,
    aten.mse_loss_backward: mse_loss_backward, aten.pow: power,
    operator.getitem: entry,
    aten.nll_loss_forward: linear_in(0), aten.nll_loss_backward: shaped_by(0, 1),
    aten.avg_pool2d_backward: shaped_by(0, 1), aten._adaptive_avg_pool2d_backward: shaped_by(0, 1),
    aten.max_pool2d_with_indices_backward: shaped_by(0, 1), aten.index_put: linear_in(0, 2),
    aten.where: linear_in(1, 2),
}  # fmt: skip
RULES |= SATURATING_RULES | ENTROPY_RULES
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
