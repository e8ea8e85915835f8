"""Pushes tangents through a traced graph, operation by operation, each by its rule in `jvp_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from lossmap.curvature.linearize.graph_builder import GraphBuilder, nodes_in, packet
from lossmap.curvature.linearize.jvp_rules import CONSTANT, RULES, foreign


def propagate(push: GraphBuilder, wanted: Sequence[Any]) -> None:
    """Push the tangents through all that the wanted outputs depend on, and close the product's graph."""
    live: set[Node] = set(nodes_in(wanted))
    for node in reversed(push.trace):
        if node in live and packet(node) not in CONSTANT:
            live.update(node.all_input_nodes)
    for node in push.trace:
        if node not in live or node.op != "call_function" or packet(node) in CONSTANT:
            continue
        like = node.meta["like"]
        if (like and not like[1].is_floating_point) or all(n not in push.tangents for n in node.all_input_nodes):
            continue
        tangent = RULES.get(packet(node), foreign)(push, node)
        if tangent is not None:
            push.tangents[node] = tangent
    push.product.output(tuple(push.t(node) for node in wanted))
    push.product.eliminate_dead_code()
