"""Batches of any structure as trees of tensors: what they are made of is taken apart, and put together again.

`torch.utils._pytree` knows tuples, lists and dicts. Other classes that hold tensors, such as graphs, `UserDict`s and
their kin, dataclasses, and classes made of tuples, are registered there when they are first met: by the attributes that
an object holds, or by its entries where it is a mapping. So all that is done with a batch (moved to a device, traced,
hashed) reaches every tensor in it.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

TARGET_NAMES = ("labels", "targets", "target", "label", "y")
_CLOSED = (type, types.ModuleType, types.FunctionType, types.MethodType, nn.Module)  # never taken apart


def open_batch(batch: Any) -> Any:
    """The batch, once every class in it that holds tensors is known to pytree.

    Raises ValueError for an object that refers to itself, which has no end as a tree.
    """
    try:
        _open(batch)
        pytree.tree_leaves(batch)
    except RecursionError:
        raise ValueError(
            f"a batch holds a {type(batch).__name__} that refers to itself; give what the loss needs of it: tensors, "
            "or an object without such a reference"
        ) from None
    return batch


def in_own_containers(batch: Any) -> Any:
    """The same tensors in lists, dicts and objects of its own, so that who changes those changes no other's.

    In training every batch comes fresh from its loader, and a step may take entries out of it or put others in.
    """
    return pytree.tree_map(lambda leaf: leaf, batch)


def _open(batch: Any) -> None:
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, (tuple, list)):  # of a class of their own
            parts = [*leaf, *vars(leaf).values()] if hasattr(leaf, "__dict__") else list(leaf)
            _open(parts)
            if any(map(holds_tensors, pytree.tree_leaves(parts))):
                _register(type(leaf), entries_and_rest, sequence_of, pytree.SequenceKey)
            continue
        if isinstance(leaf, Tensor) or not holds_tensors(leaf):
            continue
        kind = type(leaf)
        is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
        if not is_named_tuple and kind not in pytree.SUPPORTED_NODES:
            if _is_plain_mapping(leaf):
                _register(kind, _items_of, _mapping_of, pytree.MappingKey)
            else:
                _register(kind, _parts_and_names, _object_of, pytree.GetAttrKey)
        _open(_parts(leaf))


def _register(kind: Any, parts_of: Any, made_of: Any, key: Any) -> None:
    with_keys = partial(_with_keys, parts_of, key)
    pytree.register_pytree_node(kind, parts_of, partial(made_of, kind), flatten_with_keys_fn=with_keys)


def _parts(value: Any) -> list[Any]:
    if _is_plain_mapping(value):
        return list(value.values())
    return list(attributes_of(value).values())


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object holds: by its `__dict__`, and by the fields of a dataclass with slots."""
    slots = (
        {f.name: getattr(value, f.name) for f in fields(value) if hasattr(value, f.name)} if is_dataclass(value) else {}
    )
    return {**slots, **getattr(value, "__dict__", {})}


def _is_plain_mapping(value: Any) -> bool:
    """Whether it is a mapping that holds its entries itself, as a subclass of dict does; a UserDict has them apart."""
    attributes = getattr(value, "__dict__", {}).values()
    return isinstance(value, Mapping) and not any(isinstance(v, Mapping) for v in attributes)


def is_one_batch(value: Any) -> bool:
    """Whether an object is a batch by itself though it can be iterated over, as a graph of PyG: by its attributes."""
    is_collection = isinstance(value, (Tensor, Mapping, tuple, list, Dataset, *_CLOSED))
    if is_collection or not callable(getattr(value, "to", None)) or not holds_tensors(value):
        return False
    try:
        first = next(iter(value), None) if hasattr(value, "__iter__") else None
    except NotImplementedError:  # of torch_geometric's graphs with several kinds of nodes
        return True
    match first:
        case (str() as name, _):
            return hasattr(value, name)
    return False


def holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether a value is a tensor, or an object or mapping with one in it."""
    if isinstance(value, Tensor):
        return True
    if depth > 4 or isinstance(value, _CLOSED):
        return False
    if not (isinstance(value, Mapping) or hasattr(value, "__dict__") or is_dataclass(value)):
        return False
    return any(holds_tensors(leaf, depth + 1) for part in _parts(value) for leaf in pytree.tree_leaves(part))


def strided_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors of plain numbers that a tensor is made of: itself, or the places and the values of a sparse one."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def _items_of(mapping: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    return list(mapping.values()), tuple(mapping)


def _parts_and_names(value: Any) -> tuple[list[Any], tuple[str, ...]]:
    attributes = attributes_of(value)
    return list(attributes.values()), tuple(attributes)


def _with_keys(parts_of: Any, key: Any, value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    """The parts with the keys that name them in a path."""
    parts, names = parts_of(value)
    return [(key(name), part) for name, part in zip(names, parts, strict=False)], names


def entries_and_rest(sequence: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """The entries of a tuple or list, then its attributes with tensors; the places, names, and the other attributes."""
    parts, rest = list(enumerate(sequence)), {}
    for name, value in getattr(sequence, "__dict__", {}).items():
        if any(map(holds_tensors, pytree.tree_leaves(value))):
            parts.append((name, value))
        else:
            rest[name] = value
    places = tuple(place for place, _ in parts)
    return [value for _, value in parts], (*places, _Rest(rest)) if rest else places


class _Rest(dict[str, Any]):
    """Attributes without tensors: a part of the structure, equal where they are the same or plain and equal."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Rest) or self.keys() != other.keys():
            return False
        pairs = ((value, other[name]) for name, value in self.items())
        return all(a is b or (type(a) is type(b) and type(a) in (str, int, float, bool) and a == b) for a, b in pairs)

    def __hash__(self) -> int:  # type: ignore[override]  # a structure is a key of tables
        return hash(tuple(self))


def sequence_of(kind: Any, parts: Any, places: tuple[Any, ...]) -> Any:
    """A tuple or list of this class with these entries and attributes, made without calling its `__init__`."""
    attributes = dict(places[-1]) if places and isinstance(places[-1], _Rest) else {}
    entries = []
    for place, part in zip(places, parts, strict=False):  # after the places may come the rest
        if isinstance(place, str):
            attributes[place] = part
        else:
            entries.append(part)
    if issubclass(kind, tuple):
        made = tuple.__new__(kind, entries)
    else:
        made = list.__new__(kind)
        list.extend(made, entries)
    if attributes:
        vars(made).update(attributes)
    return made


def _mapping_of(kind: Any, entries: Any, names: tuple[str, ...]) -> Any:
    """A mapping of this class with these entries."""
    return kind(dict(zip(names, entries, strict=True)))


def _object_of(kind: Any, attributes: Any, names: tuple[str, ...]) -> Any:
    """An object with these attributes, made without calling its `__init__`."""
    made = kind.__new__(kind)
    for name, attribute in zip(names, attributes, strict=True):
        if hasattr(made, "__dict__") and not isinstance(getattr(kind, name, None), types.MemberDescriptorType):
            made.__dict__[name] = attribute  # also behind a property that only reads it, as in PyG's storages
        else:
            object.__setattr__(made, name, attribute)  # of a frozen dataclass too
    for attribute in attributes:
        for part in attribute.values() if isinstance(attribute, dict) else [attribute]:
            _adopt(part, made)
    return made


def _adopt(part: Any, owner: Any) -> None:
    """Let a part that refers to its owner weakly, as the storage of a graph does, refer to the new one.

    The object that the old reference is to is another one, or gone.
    """
    for name, value in list(getattr(part, "__dict__", {}).items()):
        if isinstance(value, weakref.ref) and (value() is None or type(value()) is type(owner)):
            object.__setattr__(part, name, weakref.ref(owner))
