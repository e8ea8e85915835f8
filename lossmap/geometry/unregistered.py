"""Trainable tensors that a model does not know as its parameters, because they lie in a Python list or dictionary.

`model.parameters()` does not list them, so that no plane moves them and no derivative is taken by them. That may be
meant (a teacher network that is not to be trained); where nothing else moves the loss it is a mistake, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def unregistered(model: nn.Module) -> list[str]:
    """The names of trainable tensors in lists, tuples and dictionaries of a model's modules, or in modules there."""
    own = {id(p) for p in model.parameters()}
    registered = {id(m) for m in model.modules()}
    standard = set(nn.Module().__dict__)
    names: list[str] = []
    for title, module in model.named_modules():
        for attribute, value in module.__dict__.items():
            if attribute in standard or not isinstance(value, (list, tuple, dict, Tensor)):
                continue
            for name, tensor in _tensors(value, f"{title}.{attribute}".lstrip("."), registered):
                if tensor.is_leaf and tensor.requires_grad and id(tensor) not in own:
                    names.append(name)
    return names


def _tensors(value: Any, name: str, registered: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a list, tuple or dictionary, and those of modules that are in it alone, by name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        if id(value) not in registered:
            yield from ((f"{name}.{inner}", p) for inner, p in value.named_parameters())
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value[:1000]):
            yield from _tensors(entry, f"{name}[{i}]", registered)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}[{key!r}]", registered)


def explained(names: list[str]) -> str:
    """What is wrong with these tensors, and what to do."""
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"it keeps trainable tensors where PyTorch does not find them ({some}); put them into an nn.ParameterList, "
        "nn.ModuleList or nn.ParameterDict, so that they are parameters of the model"
    )


def quantized(model: nn.Module) -> str:
    """The layers whose weights are whole numbers, as the end of a sentence with advice; empty where there are none."""
    names = [f"{type(m).__name__} {k!r}" for k, m in model.named_modules() if ".quantized." in type(m).__module__]
    layers = [name for name in names if "PackedParams" not in name]
    if not layers:
        return ""
    some = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return f"its quantized layers ({some}) have no parameters and no gradient; survey the network before quantization"
