"""Trees of tensors, as of `torch.utils._pytree`, made anew; what stands in one under two names stays one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import NoneType
from typing import Any

from torch import Tensor, arange, strided
from torch.utils import _pytree as pytree

UNCHANGING = (tuple, str, bytes, int, float, bool, complex, NoneType)  # a tuple by itself, not what it holds


class NotJoined(ValueError):
    """Trees that cannot be put together into one; the message says why."""


def rebuilt(function: Callable[..., Any], tree: Any, *others: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The tree with a function applied to each leaf, beside which come those at the same place of other trees.

    What stands in it under two names, a tensor or what holds some, is one thing in the result too, as `copy.deepcopy`
    keeps it: a loss may write through one name and read through the other.

    Raises NotJoined where that is not alike in all trees.
    """
    made: dict[tuple[int, ...], tuple[Any, Any]] = {}  # with what it was made of, so that no id is given twice
    places: dict[tuple[int, int], tuple[int, ...]] = {}

    def of(*parts: Any) -> Any:
        if type(parts[0]) in UNCHANGING:
            return anew(parts)
        place = tuple(map(id, parts))
        if others and any(places.setdefault(each, place) != place for each in enumerate(place)):
            raise NotJoined("in some of them a part stands under two names")
        if place not in made:
            made[place] = anew(parts), parts
        return made[place][0]

    def anew(parts: tuple[Any, ...]) -> Any:
        if isinstance(parts[0], Tensor) or (is_leaf is not None and is_leaf(parts[0])):
            return function(*parts)
        columns, (structure, *_) = zip(*map(_one_level, parts), strict=True)
        if columns[0] is None:
            return function(*parts)
        return pytree.tree_unflatten([of(*column) for column in zip(*columns, strict=True)], structure)

    return of(tree, *others)


def first_places(tree: Any) -> tuple[int, ...]:
    """For each part of a tree, but plain values, the place where it was first met: equal for trees of one sharing."""
    met: dict[int, tuple[int, Any]] = {}

    def of(part: Any) -> Iterator[int]:
        if type(part) not in UNCHANGING:
            yield met.setdefault(id(part), (len(met), part))[0]
        entries, _ = _one_level(part)
        for entry in entries or ():
            yield from of(entry)

    return tuple(of(tree))


def _one_level(part: Any) -> tuple[list[Any] | None, Any]:
    """What stands directly in a part of a tree, None for a leaf, and how it is put together."""
    if type(part) is Tensor or type(part) in UNCHANGING[1:]:
        return None, None
    entries, structure = pytree.tree_flatten(part, is_leaf=lambda each: each is not part)
    return None if len(entries) == 1 and entries[0] is part else entries, structure


def clones(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Copies of tensors by their ids; those of views of one memory are views of one copy of it."""
    made: dict[int, Tensor] = {}
    for group in _of_one_memory(tensors):
        if len(group) == 1:
            made[id(group[0])] = group[0].detach().clone()
            continue
        offsets = [t.storage_offset() for t in group]
        whole = group[0].detach().as_strided((max(map(_end, group)) - min(offsets),), (1,), min(offsets)).clone()
        for t, offset in zip(group, offsets, strict=True):
            made[id(t)] = whole.as_strided(t.size(), t.stride(), offset - min(offsets))
    return made


def has_views(tree: Any) -> bool:
    """Whether two tensors of a tree share numbers in memory."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return any(len(group) > 1 and _overlap(group) for group in _of_one_memory(tensors))


def _overlap(group: Sequence[Tensor]) -> bool:
    """Whether a number belongs to two tensors of one memory."""
    first = min(t.storage_offset() for t in group)
    numbers = arange(int(max(map(_end, group)) - first))
    taken = numbers < 0
    for t in group:
        own = numbers.as_strided(t.size(), t.stride(), t.storage_offset() - first).flatten()
        if bool(taken[own].any()):
            return True
        taken[own] = True
    return False


def _of_one_memory(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors, each once, those of one type that lie in one stretch of memory together.

    Two that lie apart in a large memory, as rows of a data set's table do, have nothing in common.
    """
    groups: dict[Any, dict[int, Tensor]] = {}
    for t in tensors:
        groups.setdefault((_memory_of(t), t.dtype), {})[id(t)] = t
    return [stretch for group in groups.values() for stretch in _stretches(list(group.values()))]


def _stretches(group: list[Tensor]) -> list[list[Tensor]]:
    """Tensors of one memory, those together from whose first to whose last number the memory has no gap."""
    if len(group) == 1:
        return [group]
    made: list[list[Tensor]] = []
    end = 0
    for t in sorted(group, key=Tensor.storage_offset):
        if not made or t.storage_offset() >= end:
            made.append([])
        made[-1].append(t)
        end = max(end, _end(t))
    return made


def _memory_of(t: Tensor) -> int:
    """What tensors of one memory have in common; of one that has none to be seen, as within vmap, its own id."""
    if t.layout != strided or t.is_nested or t.is_meta or not t.numel() or type(t) is not Tensor:
        return id(t)
    try:
        return int(t.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(t)


def _end(t: Tensor) -> int:
    """One past the place in memory of a tensor's last number."""
    extent = sum((n - 1) * step for n, step in zip(t.size(), t.stride(), strict=True))
    return int(t.storage_offset() + extent) + 1
