"""Records which ATen operations a function of tensors runs, as a graph of them.

A dispatch mode sees every operation below autograd and torch.func, with plain tensors in place of theirs; each becomes
a node, and a tensor that no earlier node made is a constant of the graph. What PyTorch's make_fx does in its mode of
real tensors, without the fake twin of every result, the symbolic shapes and the import of PyTorch's compiler that it
pays for: on small networks these were nine tenths of a trace.

Price: some 20 microseconds for each operation, beside the operation itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from lossmap.curvature.linearize.graph_builder import aten

METADATA = (torch.ops.prim.device.default, aten.size.default, aten.stride.default, aten.storage_offset.default)


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a function of tensors; every node that is a tensor carries (shape, dtype, device) in `meta["like"]`.

    Raises RuntimeError where the function reads a number off a tensor (`.item()`, a branch on it) that depends on the
    inputs: a graph would hold it for all points; and what the function raises.
    """
    recorder = Recorder(inputs)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cast from the cache would be a tensor that no node made
    try:
        with recorder:
            results = function(*inputs)
    finally:
        torch.set_autocast_cache_enabled(cached)
    return recorder.finished(results)


@cache
def is_composite(func: Any, device: str) -> bool:
    """Whether an operation is made of others on a kind of device, and has no kernel of its own there."""
    kernel_for = partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())
    key = torch._C._dispatch_key_for_device(device)
    return bool(kernel_for("CompositeImplicitAutograd")) and not kernel_for(key)


def devices_of(args: Sequence[Any]) -> set[str]:
    """The kinds of device on which the tensors among an operation's arguments are."""
    return {a.device.type for a in args if isinstance(a, Tensor)}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The graph while it is recorded."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root, self.graph = nn.Module(), fx.Graph()
        # weak, so that what the function lets go of is freed while it runs
        self.nodes: Any = WeakTensorKeyDictionary()
        self.constants: set[fx.Node] = set()  # whose values do not depend on the inputs
        for i, tensor in enumerate(inputs):
            self._note(tensor, self.graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        kwargs = kwargs or {}
        if func in METADATA:
            return func(*args, **kwargs)
        if any(is_composite(func, kind) for kind in devices_of(args)):
            # autograd takes these apart; under inference mode, which it sits out, nobody else does
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        node_args, node_kwargs = pytree.tree_map_only(Tensor, self.node, (tuple(args), kwargs))
        reads = [n for n in pytree.tree_leaves((node_args, node_kwargs)) if isinstance(n, fx.Node)]
        is_constant = all(n in self.constants for n in reads)
        if torch.Tag.data_dependent_output in func.tags:
            if not is_constant:
                raise RuntimeError(f"a number is read off a tensor that depends on the inputs, through {func}")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        # what is lifted may be written into afterwards, and the graph's constant must stay as it is
        target = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        node = self.graph.call_function(target, node_args, node_kwargs)
        node.meta["like"] = None
        self._note_results(result, node, is_constant and torch.Tag.nondeterministic_seeded not in func.tags)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped is to import PyTorch's compiler first, which takes a second."""
        return False

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that made a tensor; a constant of the graph where none did."""
        node: fx.Node | None = self.nodes.get(tensor)
        if node is None:
            name = f"constant_{len(self.constants)}"
            self.root.register_buffer(name, tensor.detach())
            node = self.graph.get_attr(name)
            self.constants.add(node)
            self._note(tensor, node)
        return node

    def _note_results(self, result: Any, node: fx.Node, is_constant: bool) -> None:
        """Remember which node made a result, or each of several."""
        if is_constant:
            self.constants.add(node)
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, (list, tuple)):
            for i, part in enumerate(result):
                if isinstance(part, (Tensor, list, tuple)):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    item.meta["like"] = None
                    self._note_results(part, item, is_constant)

    def _note(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["like"] = (tuple(tensor.shape), tensor.dtype, tensor.device)
        self.nodes[tensor] = node

    def finished(self, results: Any) -> fx.GraphModule:
        """The graph, which returns what the function did."""
        self.graph.output(pytree.tree_map_only(Tensor, self.node, results))
        with _use_lazy_graph_module(True):  # code is made when a graph runs: most are edited first
            return _make_graph_module(self.root, self.graph)
