# ruff: noqa: D103 -- each function is the rule of the operation after which it is named
"""Rules for convolutions and their transposes, direct and by Winograd's tiles; see `jvp_rules` for what a rule is.

For y = conv(x, w) + b the tangent is conv(tx, w) + conv(x, tw) + tb. For the backward operation, linear in the gradient
g and, apart from it, in w (for the gradient by x) and in x (for the gradient by w),

    gx = conv^T(g, w)      tangent  conv^T(tg, w) + conv^T(g, tw)
    gw = corr(x, g)        tangent  corr(x, tg) + corr(tx, g)
    gb = sum g             tangent  sum tg
"""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node

from lossmap.curvature.linearize import winograd
from lossmap.curvature.linearize.graph_builder import GraphBuilder, aten

Operands = tuple[Any, Any] | None  # of a product of tiled arrays; None where it is zero


def convolution(build: GraphBuilder, node: Node) -> Any:
    x, w, b, *rest = node.args
    tx, tw, tb = build.tangent(x), build.tangent(w), build.tangent(b)
    if tx is None and tw is None:
        return bias_image(build, tb, node)
    if build.uses_winograd(x, w, rest):
        return tiled_convolution(build, node)
    left, right, bias = None, None, tb
    if tx is not None:
        left = build.call(aten.convolution.default, tx, build.value(w), bias, *rest)
        bias = None  # added once, by whichever convolution comes first
    if tw is not None:
        right = build.call(aten.convolution.default, build.value(x), tw, bias, *rest)
    return build.sum_of(left, right)


def bias_image(build: GraphBuilder, tb: Any, node: Node) -> Any:
    """The tangent of a bias over the images, in the shape of the result."""
    shape = list(node.meta["like"][0])
    flat = build.call(aten.reshape.default, tb, [1, -1] + [1] * (len(shape) - 2))
    return build.call(aten.expand.default, flat, shape)


def tiled_convolution(build: GraphBuilder, node: Node) -> Any:
    x, w, b = node.args[:3]
    tx, tw, tb = build.tangent(x), build.tangent(w), build.tangent(b)
    first: Operands = None
    second: Operands = None
    # theta's own transforms are values, made once per theta; only the tangents' are made per vector
    if tx is not None:
        first = (build.transform(winograd.tiles, tx), build.value(build.once(winograd.weights, w)))
    if tw is not None:
        second = (build.value(build.once(winograd.tiles, x)), build.transform(winograd.weights, tw))
    product = sum_of_products(build, first, second)
    result = build.call(winograd.outputs, product, list(node.meta["like"][0]))
    if tb is None:
        return result
    return build.call(aten.add.Tensor, result, bias_image(build, tb, node))


def sum_of_products(build: GraphBuilder, first: Operands, second: Operands) -> Any:
    """The sum of up to two products of tiled arrays, matrix by matrix; None where both are zero."""
    operands = [pair for pair in (first, second) if pair is not None]
    if not operands:
        return None
    if len(operands) == 1:
        return build.call(aten.bmm.default, *operands[0])
    # one call adds the second product into the first, without a further array
    return build.call(winograd.two_products, *operands[0], *operands[1])


def convolution_backward(build: GraphBuilder, node: Node) -> Any:
    arguments: Any = node.args
    g, x, w, sizes, *rest, mask = arguments
    needed: list[bool] = list(mask)  # gradients by x, w and b that the trace asked for
    if build.uses_winograd(x, w, rest):
        return tiled_convolution_backward(build, node, needed)
    parts: list[Any] = [None, None, None]
    if build.tangent(g) is not None:
        # the gradient by x does not read x, and that by w does not read w: then only their shapes are passed
        inputs = build.value(x) if needed[1] else build.like(x)
        weights = build.value(w) if needed[0] else build.like(w)
        back = build.call(aten.convolution_backward.default, build.tangent(g), inputs, weights, sizes, *rest, needed)
        for i in (0, 1, 2):
            if needed[i]:
                parts[i] = build.call(operator.getitem, back, i)
    tx, tw = build.tangent(x), build.tangent(w)
    bent = [needed[0] and tw is not None, needed[1] and tx is not None, False]
    if any(bent):
        inputs = tx if bent[1] else build.like(x)
        weights = tw if bent[0] else build.like(w)
        back = build.call(aten.convolution_backward.default, build.value(g), inputs, weights, sizes, *rest, bent)
        for i in (0, 1):
            if bent[i]:
                parts[i] = build.sum_of(parts[i], build.call(operator.getitem, back, i))
    return tuple(parts)


def tiled_convolution_backward(build: GraphBuilder, node: Node, needed: list[bool]) -> Any:
    g, x, w = node.args[:3]
    tg = build.tangent(g)
    moved = None  # the tiles of the gradient's tangent, read by both parts below
    if tg is not None:
        moved = build.transform(winograd.outputs_back, tg)
    parts: list[Any] = [None, None, None]
    if needed[0]:
        product = _tiled_gradient_by_inputs(build, g, w, moved)
        parts[0] = build.apply(winograd.tiles_back, product, list(x.meta["like"][0]))  # type: ignore[union-attr]
    if needed[1]:
        parts[1] = build.apply(winograd.weights_back, _tiled_gradient_by_weights(build, g, x, moved))
    if needed[2]:
        parts[2] = build.apply(aten.sum.dim_IntList, tg, [0, 2, 3])
    return tuple(parts)


def _tiled_gradient_by_inputs(build: GraphBuilder, g: Any, w: Any, moved: Any) -> Any:
    """(36, tiles, C): tg W^T + g tW^T, in transformed tiles."""
    first: Operands = None
    second: Operands = None
    if moved is not None:
        # the transposed weights are copied once per theta, so that every product reads them in order
        first = (moved, build.value(build.once(winograd.turned, build.once(winograd.weights, w))))
    if build.tangent(w) is not None:
        tw = build.transform(winograd.weights, build.tangent(w))
        second = (build.value(build.once(winograd.outputs_back, g)), build.call(aten.transpose.int, tw, 1, 2))
    return sum_of_products(build, first, second)


def _tiled_gradient_by_weights(build: GraphBuilder, g: Any, x: Any, moved: Any) -> Any:
    """(36, C, K): X^T tg + tX^T g, in transformed tiles."""
    first: Operands = None
    second: Operands = None
    if moved is not None:
        tiles = build.value(build.once(winograd.tiles, x))
        first = (build.call(aten.transpose.int, tiles, 1, 2), moved)
    if build.tangent(x) is not None:
        tx = build.transform(winograd.tiles, build.tangent(x))
        second = (build.call(aten.transpose.int, tx, 1, 2), build.value(build.once(winograd.outputs_back, g)))
    return sum_of_products(build, first, second)
