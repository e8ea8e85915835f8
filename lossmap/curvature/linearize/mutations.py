"""Operations that write into a tensor, each replaced by the one that returns its result.

Rules read a tensor's value after later nodes have run, so that nothing may have written into it by then. PyTorch's
`functionalize` does it for every graph, but its first use imports PyTorch's compiler and sympy, some three seconds,
and what it gives is recorded once more. Where memory that the graph itself has made is written to, and nothing else
that shares it is read later, as by `ReLU(inplace=True)` and the cells of an LSTM, the node alone is replaced.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.utils import _pytree as pytree

from lossmap.curvature.linearize.graph_builder import aten
from lossmap.curvature.linearize.record import is_composite, recorded

RESTRIDED = (aten.as_strided.default, aten.as_strided_.default)  # read memory by its order, which is another then


def without_mutations(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph with every operation that writes into a tensor replaced by one that does not, its shapes noted."""
    if any(writes(node) for node in graph.graph.nodes) and not _replaced(graph.graph):
        graph.recompile()
        graph = recorded(functionalize(graph, remove="mutations"), inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def writes(node: fx.Node) -> bool:
    """Whether a node may write into one of its arguments; of what is no single operation that is not known."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or bool(schema.is_mutable)


def _replaced(graph: fx.Graph) -> bool:
    """Whether all that write could be replaced in the graph; else some of them may have been."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    if any(node.target in RESTRIDED for node in order):
        return False
    memory: dict[fx.Node, set[fx.Node]] = {}  # nodes that share their memory, by each of them
    for node in order:
        sharing = {node}
        for source in _aliased(node):
            sharing |= memory[source]
        if writes(node):
            function = _returning(node)
            target = node.args[0] if node.args else None
            if function is None or not isinstance(target, fx.Node):
                return False
            if any(m.op != "call_function" for m in sharing):  # an input, or a constant
                return False
            others = sharing - {node, target}
            if any(order[user] > order[node] for m in others for user in m.users):
                return False
            for user in [user for user in target.users if order[user] > order[node]]:
                user.replace_input_with(target, node)
            node.target, sharing = function, {node}  # what it makes is its own
            memory[node] = sharing
            continue
        for shared in sharing:
            memory[shared] = sharing
    return True


def _aliased(node: fx.Node) -> list[fx.Node]:
    """The arguments whose memory a node's result shares, by the operation's own word."""
    if node.op != "call_function":
        return []
    if node.target is operator.getitem:
        source = node.args[0]
        return [source] if isinstance(source, fx.Node) and _aliased(source) else []  # else each result is its own
    if getattr(node.target, "_schema", None) is None:
        return node.all_input_nodes
    return [n for argument, n in _given(node) if argument.alias_info is not None]


def _given(node: fx.Node) -> Iterator[tuple[Any, fx.Node]]:
    """Each argument of an operation, as its schema has it, with each node that is given for it."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        yield from ((argument, leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node))


def _returning(node: fx.Node) -> Any:
    """The operation that returns what this one writes into its first argument; None where none is just like it."""
    own: Any = node.target
    if getattr(own, "_schema", None) is None:
        return None
    packet, _, overload = own.name().removeprefix("aten::").partition(".")
    if own.namespace != "aten" or not packet.endswith("_") or packet.endswith("__"):
        return None
    function = getattr(getattr(aten, packet[:-1], None), overload or "default", None)
    if function is None:
        return None
    ours, theirs = own._schema, function._schema
    if [(a.name, str(a.type)) for a in ours.arguments] != [(a.name, str(a.type)) for a in theirs.arguments]:
        return None
    written = [a.name for a in ours.arguments if a.alias_info is not None]
    returned = theirs.returns
    if written != [ours.arguments[0].name] or len(returned) != 1 or returned[0].alias_info is not None:
        return None
    likes: list[Any] = [n.meta.get("like") for _, n in _given(node)]
    if not likes or None in likes or is_composite(function, likes[0][2].type):
        return None
    dtype = likes[0][1]
    return function if all(torch.promote_types(dtype, like[1]) == dtype for like in likes) else None


__all__ = ["without_mutations"]
