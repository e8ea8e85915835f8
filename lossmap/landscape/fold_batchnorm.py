"""Batch norm modules in evaluation mode folded into the layer before them: fewer passes over memory.

In evaluation mode batch norm is an affine map with fixed numbers, so that conv -> batch norm is one convolution with
weight w * s and bias (b - mean) * s + beta, s = gamma / sqrt(var + eps), per output channel. Exact but for rounding.
On the level of ATen operations, where weights stay inputs, `curvature.linearize.trace.fold_batchnorm_in_graph` does it.
The model is traced once by torch.fx; at each point the folded weights are computed anew from its present tensors.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from lossmap.data.borrow import temporary_parameters

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CARRIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class FoldedLayer(nn.Module):
    """A convolution or linear layer and the batch norm after it, as one layer. `refresh` before use."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        # in a tuple, so that the modules are not registered a second time under another name
        self.pair: tuple[Any, Any] = (layer, norm)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    @torch.no_grad()
    def refresh(self, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        """Compute the folded weight and bias from the layer's present tensors."""
        layer, norm = self.pair
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
        bias = bias * scale
        self.bias = bias if norm.bias is None else bias + norm.bias
        weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
        self.weight = weight.contiguous(memory_format=memory_format) if weight.dim() == 4 else weight

    def forward(self, x: Tensor) -> Tensor:
        layer = self.pair[0]
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        folded: Tensor = layer._conv_forward(x, self.weight, self.bias)
        return folded


def fold_batchnorm_modules(model: nn.Module) -> tuple[fx.GraphModule, list[FoldedLayer]] | None:
    """The model with every pair folded that can be, and the folded layers; None where nothing can be.

    The result shares the model's tensors. None as well where torch.fx cannot trace the model (branches on data).
    """
    if not any(isinstance(m, _NORMS) for m in model.modules()):
        return None
    try:
        with temporary_parameters(model, {}):  # traced as it is evaluated: modes decide branches
            traced = fx.symbolic_trace(model)
    except Exception:  # user code may raise any exception under a tracer: then it is run as it is
        return None
    modules = dict(traced.named_modules())
    calls = Counter(n.target for n in traced.graph.nodes if n.op == "call_module")
    layers: list[FoldedLayer] = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not _folds(modules[node.target]) or calls[node.target] > 1:
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        carrier = modules.get(before.target)  # none where that layer is a folded one itself
        if not isinstance(carrier, _CARRIERS) or calls[before.target] > 1 or _hooked(carrier, modules[node.target]):
            continue
        layer = FoldedLayer(carrier, modules[node.target])
        name = f"folded_{len(layers)}"
        traced.add_module(name, layer)
        with traced.graph.inserting_after(before):
            new = traced.graph.call_module(name, before.args)
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
        traced.graph.erase_node(before)
        layers.append(layer)
    if not layers:
        return None
    traced.graph.lint()
    traced.recompile()
    return traced, layers


def _folds(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module.running_mean is not None


def _hooked(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)
