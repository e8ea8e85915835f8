# ruff: noqa: D103 -- each rule is named after its operation
"""Cross entropy over many classes: curvature p u - p (p . u) a few rows at a time, beside the slope no copy of logits.

The operations of `stable.chunked_entropy`. What a product keeps of the logits' size is the slope, which the layer
below reads anyhow, and with label smoothing the probabilities; the tangent is written into the logits' own, where
nothing else reads that (`curvature_in_place`, put in by `jvp.reuse_buffers`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from lossmap.curvature.linearize.graph_builder import GraphBuilder
from lossmap.stable.chunked_entropy import curvature, kept_beside_slope, loss_tangent, scaled_probabilities

KEPT = 4  # tensors of `chunked_entropy.Kept`


def cross_entropy(build: GraphBuilder, node: Node) -> Any:
    return build.apply(loss_tangent, build.tangent(node.args[0]), *_arguments(node, 0))


def cross_entropy_slope(build: GraphBuilder, node: Node) -> Any:
    tg, tx = build.tangent(node.args[0]), build.tangent(node.args[1])
    arguments = _arguments(node, 1)
    of_g = None
    if tg is not None:
        of_g = build.call(node.target, tg, *(build.value(a) for a in arguments))
    if tx is None:
        return of_g
    facts = build.once(kept_beside_slope, node.args[0], *arguments)
    kept = tuple(build.value(build.once(operator.getitem, facts, i)) for i in range(KEPT))
    smoothing = arguments[-1]
    scaled = build.once(scaled_probabilities, node.args[0], *arguments) if smoothing else node
    return build.sum_of(of_g, build.call(curvature, tx, build.value(scaled), kept))


def _arguments(node: Node, start: int) -> tuple[Any, ...]:
    """The logits and what follows them, up to label smoothing."""
    return tuple(node.args[start : start + 6])


ENTROPY_RULES: dict[Any, Any] = {
    torch.ops.lossmap.cross_entropy: cross_entropy,
    torch.ops.lossmap.cross_entropy_slope: cross_entropy_slope,
}
