"""Walks through the modules of a model, many times cheaper than those that make a name for each.

A model is borrowed hundreds of times while it is checked, and each time its modules and tensors are looked up. Where a
class has walks of its own, as wrappers do that hide something, those are taken.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

WALKS = ("modules", "named_modules", "named_parameters", "named_buffers", "_named_members")  # through a model


@functools.cache
def _is_walked_plainly(cls: type) -> bool:
    """Whether a class of modules has PyTorch's own walks through what is in it."""
    return all(getattr(cls, name) is getattr(nn.Module, name) for name in WALKS)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives, without making a name for each."""
    found: dict[nn.Module, None] = {}

    def enter(module: nn.Module) -> None:
        found[module] = None
        for inner in module._modules.values():
            if inner is not None and inner not in found:
                enter(inner)

    enter(model)
    return list(found) if all(map(_is_walked_plainly, set(map(type, found)))) else list(model.modules())


def kinds_of(model: nn.Module) -> tuple[type, ...]:
    """The classes of a model's modules: those of another model, or of one that was changed since, are others."""
    return tuple(map(type, modules_of(model)))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers, by name: those of `named_parameters` and `named_buffers`, in one walk."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[int, tuple[str, Tensor]] = {}  # by identity
    known: set[nn.Module] = set()
    held: set[int] = set()  # identities of parameters

    def enter(module: nn.Module, prefix: str) -> None:
        known.add(module)
        for name, p in module._parameters.items():
            if p is not None and id(p) not in held:
                held.add(id(p))
                parameters[prefix + name] = p
        for name, b in module._buffers.items():
            if b is not None:
                buffers.setdefault(id(b), (prefix + name, b))
        for name, inner in module._modules.items():
            if inner is not None and inner not in known:
                enter(inner, f"{prefix}{name}.")

    enter(model, "")
    if all(map(_is_walked_plainly, set(map(type, known)))):
        return parameters | dict(buffers.values())
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


__all__ = ["kinds_of", "modules_of", "named_tensors"]
