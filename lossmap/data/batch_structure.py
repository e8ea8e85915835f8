"""Batches of any structure as trees of tensors: what they are made of is taken apart, and put together again.

`torch.utils._pytree` knows tuples, lists and dicts. Other classes that hold tensors, such as graphs, `UserDict`s and
their kin, dataclasses, and classes made of tuples, are registered there when they are first met: by the attributes that
an object holds, or by its entries where it is a mapping. So all that is done with a batch (moved to a device, traced,
hashed) reaches every tensor in it.
"""

from __future__ import annotations

import types
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, cached_property, partial
from traceback import walk_tb
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from lossmap.trees import UNCHANGING, rebuilt

TARGET_NAMES = ("labels", "targets", "target", "label", "y")
_OF_PYTHON = ("__dict__", "__weakref__")  # slots of its own
CLOSED = (type, types.ModuleType, types.FunctionType, types.MethodType, nn.Module)  # never taken apart


def open_batch(batch: Any) -> Any:
    """The batch, once every class in it that holds tensors is known to pytree.

    Raises ValueError for an object that refers to itself, which has no end as a tree.
    """
    with without_end_refused(type(batch).__name__):
        _open(batch)
        pytree.tree_leaves(batch)
    return batch


@contextmanager
def without_end_refused(name: str = "list, dict or object") -> Iterator[None]:
    """Raise ValueError, with this name, where something that refers to itself was to be taken apart."""
    try:
        yield
    except RecursionError as error:
        files = Counter(frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
        if files.most_common(1)[0][0] not in (pytree.__file__, __file__):
            raise  # of the user's own code
        raise ValueError(
            f"a batch holds a {name} that refers to itself; give what the loss needs of it: tensors, or an object "
            "without such a reference"
        ) from None


def in_own_containers(batch: Any) -> Any:
    """The same tensors in lists, dicts and objects of its own, so that who changes those changes no other's.

    In training every batch comes fresh from its loader, and a step may take entries out of it or put others in.
    """
    return rebuilt(lambda leaf: leaf, batch)


def as_arrays(batch: Any) -> Any:
    """The same with NumPy's arrays in the place of tensors, on the host."""
    return rebuilt(lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf, batch)


def _open(batch: Any) -> None:
    for leaf in pytree.tree_leaves(batch, is_leaf=_loses_attributes):
        if _loses_attributes(leaf):
            raise ValueError(
                f"a batch holds a {type(leaf).__name__}, a named tuple with attributes beside its fields "
                f"({', '.join(vars(leaf))}), which PyTorch leaves out where it moves it: make them fields"
            )
        if isinstance(leaf, (tuple, list, dict)):  # of a class of their own
            values = list(leaf.values()) if isinstance(leaf, dict) else list(leaf)
            parts = values + [part for part in getattr(leaf, "__dict__", {}).values() if part is not leaf]
            _open(parts)
            if any(map(holds_tensors, pytree.tree_leaves(parts))):
                key = pytree.MappingKey if isinstance(leaf, dict) else pytree.SequenceKey
                register(type(leaf), entries_and_rest, collection_of, key)
            continue
        if isinstance(leaf, Tensor) or not holds_tensors(leaf):
            continue
        kind = type(leaf)
        is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
        if not is_named_tuple and kind not in pytree.SUPPORTED_NODES:
            if _is_plain_mapping(leaf):
                register(kind, _items_of, _mapping_of, pytree.MappingKey)
            else:
                register(kind, _parts_and_names, _object_of, pytree.GetAttrKey)
        _open(_parts(leaf))


def register(kind: Any, parts_of: Any, made_of: Any, key: Any) -> None:
    """Let pytree take a class apart by one function, and make it anew by another of the class, parts and names."""
    with_keys = partial(_with_keys, parts_of, key)
    pytree.register_pytree_node(kind, parts_of, partial(made_of, kind), flatten_with_keys_fn=with_keys)


def _loses_attributes(value: Any) -> bool:
    """Whether a named tuple, which PyTorch makes anew of its fields, has attributes that it then has not."""
    kind, own = type(value), getattr(value, "__dict__", None)
    if not own or not isinstance(value, tuple) or not hasattr(kind, "_fields"):
        return False
    made = vars(kind(*value))
    kept = {n for n in own if n in made and (made[n] is own[n] or _are_plain_and_equal(made[n], own[n]))}
    return any(not isinstance(getattr(kind, name, None), cached_property) for name in own.keys() - kept)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values(), *getattr(value, "__dict__", {}).values()]
    if _is_plain_mapping(value):
        return list(value.values())
    return list(attributes_of(value).values())


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object holds: by its `__dict__`, by its slots, and by the fields of a dataclass, these first."""
    own = {name: getattr(value, name) for name in _names_in(cast(Any, type(value))) if hasattr(value, name)}
    return {**own, **getattr(value, "__dict__", {})}


@cache
def _names_in(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass, and the slots of a class and of those that it is made of."""
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return tuple(name for name in names if name not in _OF_PYTHON)


def _is_plain_mapping(value: Any) -> bool:
    """Whether it is a mapping that holds its entries itself; a UserDict, and a dataclass of some, have them apart."""
    attributes = list(attributes_of(value).values()) if isinstance(value, Mapping) else []
    leaves = [*attributes, *pytree.tree_leaves(attributes)]
    return isinstance(value, Mapping) and not any(isinstance(leaf, (Tensor, Mapping)) for leaf in leaves)


def is_one_batch(value: Any) -> bool:
    """Whether an object is a batch by itself though it can be iterated over, as a graph of PyG: by its attributes."""
    is_collection = isinstance(value, (Tensor, Mapping, tuple, list, Dataset, *CLOSED))
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
    if depth > 4 or isinstance(value, CLOSED):
        return False
    if not (isinstance(value, Mapping) or hasattr(value, "__dict__") or hasattr(type(value), "__slots__")):
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


def entries_and_rest(values: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """The entries of a tuple, list or dict of a class of its own, then its attributes with tensors; where they stand.

    Of an attribute that is an entry too, as where these can be had by either, only the name is kept.
    """
    items = values.items() if isinstance(values, dict) else enumerate(values)
    parts, rest = list(items), {}
    attributes = getattr(values, "__dict__", {})
    if attributes is values:  # `self.__dict__ = self`
        attributes = {"__dict__": _Entry}
    elif isinstance(values, defaultdict):
        attributes = {"default_factory": values.default_factory, **attributes}
    for name, value in attributes.items():
        if isinstance(values, dict) and value is not None and values.get(name) is value:
            rest[name] = _Entry
        elif type(value) in UNCHANGING or isinstance(value, CLOSED) or name == "default_factory":
            rest[name] = value
        else:
            parts.append((_Attribute(name), value))
    places = tuple(place for place, _ in parts)
    return [value for _, value in parts], (*places, _Rest(rest)) if rest else places


class _Attribute(str):
    """The name of an attribute, and no key."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Attribute) and str(self) == str(other)

    __hash__ = str.__hash__


class _Entry:
    """For an attribute that is the entry of its name."""


class _Rest(dict[str, Any]):
    """Attributes without tensors: a part of the structure, equal where they are the same or plain and equal."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Rest) or self.keys() != other.keys():
            return False
        return all(value is other[name] or _are_plain_and_equal(value, other[name]) for name, value in self.items())

    def __hash__(self) -> int:  # type: ignore[override]  # a structure is a key of tables
        return hash(tuple(self))


def _are_plain_and_equal(a: Any, b: Any) -> bool:
    return bool(type(a) is type(b) and type(a) in (str, int, float, bool) and a == b)


def collection_of(kind: Any, parts: Any, places: tuple[Any, ...]) -> Any:
    """A tuple, list or dict of this class with these entries and attributes, made without calling its `__init__`."""
    base: Any = next(base for base in (OrderedDict, defaultdict, dict, tuple, list) if issubclass(kind, base))
    rest: Any = places[-1] if places and isinstance(places[-1], _Rest) else {}
    held = list(zip(places, parts, strict=False))  # after the places may come the rest
    attributes: dict[str, Any] = {**rest, **{place: part for place, part in held if isinstance(place, _Attribute)}}
    entries = {place: part for place, part in held if not isinstance(place, _Attribute)}
    made = base.__new__(kind, entries.values()) if base is tuple else base.__new__(kind)
    if base is list:
        list.extend(made, entries.values())
    elif base is not tuple:
        for key, part in entries.items():
            base.__setitem__(made, key, part)
    if attributes.pop("__dict__", None):
        made.__dict__ = made
    if base is defaultdict:
        made.default_factory = attributes.pop("default_factory", None)
    own = {str(name): entries[name] if value is _Entry else value for name, value in attributes.items()}
    if own:
        vars(made).update(own)
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
