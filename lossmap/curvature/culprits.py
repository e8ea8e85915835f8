"""Which operation has no right second derivative: names for the sentence that refuses it.

First the custom autograd Functions in the graph of the loss whose own derivatives are wrong; then, module by module,
the leaf whose own second derivative by its inputs and parameters disagrees with differences of its first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.curvature.differences import FewSamples
from lossmap.curvature.function_replay import is_product_wrong, wrong_functions
from lossmap.geometry.unregistered import quantized
from lossmap.seeding import generator
from lossmap.stable import chunked_entropy
from lossmap.stable import losses as stable_losses

SPARSE = "operations on sparse tensors"
NESTED = "nested tensors"
MAX_NAMES = 3  # in a sentence
NEAR_BOUND = 1e-3  # relative: a row of an embedding this near to its `max_norm` is rescaled within a survey


def suspects(few: FewSamples, order: int = 2) -> str:
    """The operations to name, as the subject of a sentence; empty where nothing was found.

    order  of the derivative that is not right, 1 or 2
    """
    own = [_described(f) for f in wrong_functions(few, custom_functions(few), order)] or nested_inputs(few)
    names = own or wrong_modules(few) or sparse_operations(few)
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:MAX_NAMES]) + (", ..." if len(unique) > MAX_NAMES else "")


def advice_for(names: str) -> str:
    """What to do about operations without a second derivative."""
    if names.startswith("CrossMapLRN2d"):
        return "replace nn.CrossMapLRN2d by nn.LocalResponseNorm, which is differentiable"
    if names.startswith(NESTED):
        return "take padded tensors with a mask in their place, or only the values() of those with layout=torch.jagged"
    if names.startswith(SPARSE):
        return "take index_add, or a dense matrix, in their place"
    return "write its backward in differentiable operations on tensors from save_for_backward, or replace it"


def rescaled_table(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The embedding with `max_norm` whose rows reach that norm, with advice; empty where all stay within.

    A pass divides such a row by its norm, which no gradient knows. Right after a pass all rows lie just within, so that
    differences with the smallest steps do not see it.
    """
    for name, module in model.named_modules():
        table = state.get(f"{name}.weight" if name else "weight")
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or module.max_norm is None or table is None:
            continue
        if float(table.norm(module.norm_type, dim=1).max()) > (1 - NEAR_BOUND) * module.max_norm:
            return _rescaling(module, name)
    return ""


def _rescaling(module: nn.Embedding | nn.EmbeddingBag, name: str) -> str:
    table = f"{type(module).__name__} {name!r}"
    return f"{table} rescales its own rows in every pass; set max_norm={module.max_norm:g} to None"


def known_other_gradients(model: nn.Module) -> str:
    """Which layer of a model is known to have a gradient that is not that of what it computes; with advice."""
    layers = quantized(model)
    if layers:
        return layers
    for name, module in model.named_modules():
        if type(module).__name__.startswith("Dora"):
            return (
                f"{type(module).__name__} {name!r} takes the norm of its weight for a constant in the backward pass, "
                "as DoRA does (Liu et al. 2024, arXiv:2402.09353); survey what merge_and_unload() returns"
            )
        if bool(getattr(module, "fake_quant_enabled", False)):
            return (
                f"{type(module).__name__} {name!r} rounds, which its gradient ignores (a straight-through estimator); "
                "survey the network before quantization, or with disable_fake_quant"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            table = f"{type(module).__name__} {name!r}"
            if module.max_norm is not None:
                return _rescaling(module, name)
            if module.scale_grad_by_freq:
                return f"{table} divides gradients by how often a row occurs; set scale_grad_by_freq=False"
    return ""


def custom_functions(few: FewSamples) -> list[type]:
    """The classes of custom autograd Functions through which the loss is differentiated, each once."""
    with few.moving():
        loss = few.problem.total(few.batch)
        functions = [getattr(type(node), "_forward_cls", None) for node in graph_nodes(loss)]
    # our own softmax and cross entropy stand in the place of PyTorch's, and have their derivatives tested
    own = (stable_losses.__name__, chunked_entropy.__name__)
    return list(dict.fromkeys(f for f in functions if f is not None and f.__module__ not in own))


def sparse_operations(few: FewSamples) -> list[str]:
    """The operations on sparse tensors through which the loss is differentiated: of some PyTorch has no second one."""
    with few.moving():
        nodes = {node.name() for node in graph_nodes(few.problem.total(few.batch)) if "Sparse" in node.name()}
    return [f"{SPARSE} ({', '.join(sorted(nodes))})"] if nodes else []


def graph_nodes(loss: Tensor) -> Iterator[Any]:
    """The nodes of a tensor's autograd graph, each once."""
    visited: set[Any] = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node
        pending += [following for following, _ in node.next_functions]


def _described(function: type) -> str:
    backward = getattr(function, "backward", None)
    once = getattr(getattr(backward, "__wrapped__", None), "__code__", None) is not None
    kind = "marked once_differentiable" if once else "a custom autograd Function"
    return f"{function.__name__} ({kind})"


def nested_inputs(few: FewSamples) -> list[str]:
    """`nested tensors` where a module is given some: many of their operations have no second derivative."""
    seen: list[bool] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        seen.append(any(isinstance(t, Tensor) and t.is_nested for t in leaves))

    modules = [m for m in few.problem.model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in modules]
    try:
        with few.moving():
            few.problem.total(few.batch)
    finally:
        for handle in handles:
            handle.remove()
    return [NESTED] if any(seen) else []


def wrong_modules(few: FewSamples) -> list[str]:
    """The leaf modules whose second derivative is missing or wrong, as `Type 'name'`."""
    calls: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not all(map(_has_memory, pytree.tree_leaves((args, kwargs, list(module.parameters()))))):
                return  # inside a transform of torch.func, outside of which such a call cannot be repeated
            calls.setdefault(name, (module, pytree.tree_map(_detached, args), pytree.tree_map(_detached, kwargs)))

        return hook

    leaves = [
        (name, m)
        for name, m in few.problem.model.named_modules()
        if name and not any(m.children()) and not isinstance(m, torch.jit.ScriptModule)  # which bears no such hooks
    ]
    handles = [m.register_forward_pre_hook(remember(name), with_kwargs=True) for name, m in leaves]
    required = [(p, p.requires_grad) for p in few.problem.model.parameters()]
    try:
        with few.moving():
            few.problem.total(few.batch)
            return [
                f"{type(module).__name__} {name!r}"
                for name, (module, args, kwargs) in calls.items()
                if _is_wrong(module, args, kwargs)
            ]
    finally:
        for handle in handles:
            handle.remove()
        for p, before in required:
            p.requires_grad_(before)


def _has_memory(leaf: Any) -> bool:
    """Whether a value is no tensor, or one with memory of its own, as those inside `torch.func.vmap` have none."""
    try:
        return not isinstance(leaf, Tensor) or leaf.layout != torch.strided or leaf.untyped_storage() is not None
    except (NotImplementedError, RuntimeError):
        return False


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _is_wrong(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a module's second derivative along a random direction disagrees with differences of its first."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    at = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    own = [p for p in module.parameters() if p.is_floating_point()]
    base = [flat[i] for i in at] + [p.detach().clone() for p in own]
    if not base:
        return False
    directions = [
        torch.randn(t.shape, generator=generator("module", i), dtype=torch.float64) for i, t in enumerate(base)
    ]
    v = [d.to(t) for d, t in zip(directions, base, strict=True)]

    def gradient(h: float, create: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        values = [(t + h * d).requires_grad_(True) for t, d in zip(base, v, strict=True)]
        for i, value in zip(at, values, strict=False):
            flat[i] = value
        with torch.no_grad():
            for p, t, d in zip(own, base[len(at) :], v[len(at) :], strict=True):
                p.copy_(t + h * d)
        leaves = values[: len(at)] + own
        for p in own:
            p.requires_grad_(True)
        a, k = pytree.tree_unflatten(flat, spec)
        outputs = [f for f in pytree.tree_leaves(module(*a, **k)) if isinstance(f, Tensor) and f.requires_grad]
        total = sum((f * torch.linspace(0.3, 1.1, f.numel(), device=f.device).view(f.shape)).sum() for f in outputs)
        if not isinstance(total, Tensor):
            return leaves, [torch.zeros_like(t) for t in base]
        return leaves, list(torch.autograd.grad(total, leaves, create_graph=create, materialize_grads=True))

    try:
        leaves, slope = gradient(0.0, create=True)
        return is_product_wrong(leaves, slope, v, lambda h: gradient(h)[1])
    except RuntimeError:  # no second derivative at all
        return True
    finally:
        with torch.no_grad():
            for p, t in zip(own, base[len(at) :], strict=True):
                p.copy_(t)
