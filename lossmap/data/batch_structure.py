"""Batches of any structure as trees of tensors: what they are made of is taken apart, and put together again.

`torch.utils._pytree` knows tuples, lists and dicts. Other classes that hold tensors, such as graphs, `UserDict`s and
their kin, and dataclasses, are registered there when they are first met: by the attributes that an object holds, or by
its entries where it is a mapping. So all that is done with a batch (moved to a device, traced, hashed) reaches every
tensor in it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

_CLOSED = (type, types.ModuleType, types.FunctionType, types.MethodType, nn.Module)  # never taken apart


def open_batch(batch: Any) -> Any:
    """The batch, once every class in it that holds tensors is known to pytree."""
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) or not _holds_tensors(leaf, 0):
            continue
        kind = type(leaf)
        if not pytree.is_namedtuple_class(kind) and kind not in pytree.SUPPORTED_NODES:
            if _is_plain_mapping(leaf):
                pytree.register_pytree_node(kind, _items_of, _MappingFrom(kind))
            else:
                pytree.register_pytree_node(kind, _attributes_of, _ObjectFrom(kind))
        open_batch(_parts(leaf))
    return batch


def _parts(value: Any) -> list[Any]:
    if _is_plain_mapping(value):
        return list(value.values())
    return list(vars(value).values())


def _is_plain_mapping(value: Any) -> bool:
    """Whether it is a mapping that holds its entries itself, as a subclass of dict does; a UserDict has them apart."""
    attributes = getattr(value, "__dict__", {}).values()
    return isinstance(value, Mapping) and not any(isinstance(v, Mapping) for v in attributes)


def _holds_tensors(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth > 4 or isinstance(value, _CLOSED) or not (isinstance(value, Mapping) or hasattr(value, "__dict__")):
        return False
    return any(_holds_tensors(leaf, depth + 1) for part in _parts(value) for leaf in pytree.tree_leaves(part))


def _items_of(mapping: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    return list(mapping.values()), tuple(mapping)


def _attributes_of(value: Any) -> tuple[list[Any], tuple[str, ...]]:
    return list(vars(value).values()), tuple(vars(value))


class _MappingFrom:
    """Puts a mapping of one class together; every class needs a function of its own in pytree's table."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __call__(self, values: Any, names: tuple[str, ...]) -> Any:
        """The mapping with these entries."""
        return self.kind(dict(zip(names, values, strict=True)))


class _ObjectFrom:
    """Puts an object of one class together from its attributes, without calling its `__init__`."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __call__(self, values: Any, names: tuple[str, ...]) -> Any:
        """The object with these attributes."""
        made = self.kind.__new__(self.kind)
        made.__dict__.update(zip(names, values, strict=True))
        return made
