"""Pushes tangents through a traced graph, operation by operation, each by its rule in `jvp_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from lossmap.curvature.linearize.graph_builder import GraphBuilder, nodes_in, packet
from lossmap.curvature.linearize.jvp_rules import CONSTANT, RULES, forward_mode


def propagate(build: GraphBuilder, outputs: Sequence[Any]) -> None:
    """Push the tangents through all that the outputs depend on, and close the product's graph.

    outputs  entries of the trace's result, most often nodes; the product returns the tangent of each, None where zero
    """
    # backwards first, so that no rule adds what no output reads
    live: set[Node] = set(nodes_in(outputs))
    for node in reversed(build.trace):
        if node in live and packet(node) not in CONSTANT:
            live.update(node.all_input_nodes)
    for node in build.trace:
        if node not in live or node.op != "call_function" or packet(node) in CONSTANT:
            continue
        like = node.meta["like"]  # None for operations with several results
        if like and not like[1].is_floating_point:
            continue  # indices and masks have no tangent
        if all(n not in build.tangents for n in node.all_input_nodes):
            continue
        tangent = RULES.get(packet(node), forward_mode)(build, node)
        if tangent is not None:
            build.tangents[node] = tangent
    build.product.output(tuple(build.tangent(node) for node in outputs))
    build.product.eliminate_dead_code()
