"""Which parameter tensors make a diagonal block together, and where they stand in the flat vector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lossmap.geometry.parameter_vector import Layout

WAYS = ("tensor", "module")
Groups = Mapping[str, tuple[str, ...]]  # label -> names of its tensors


def groups_of(names: Sequence[str], by: str = "tensor", patterns: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Which tensors make a block together: {label of the block: names of its tensors}.

    by        tensor (each alone), or module (those of one module together)
    patterns  regular expressions, searched in the names, each making a group of what it matches; `label=regex` names
              it. What none matches is left out

    Raises ValueError for a pattern that matches nothing, or a tensor that two patterns match.
    """
    if by not in WAYS:
        raise ValueError(f"layers are taken by {' or '.join(WAYS)}, or by regular expressions; got {by!r}")
    if patterns:
        return _groups_by_pattern(names, patterns)
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        label = name
        if by == "module":
            label = name.rpartition(".")[0] or "the model itself"
        groups[label] = (*groups.get(label, ()), name)
    return groups


def _groups_by_pattern(names: Sequence[str], patterns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for text in patterns:
        label, equals, expression = text.partition("=")
        if not equals:  # the expression is its own label
            expression = label
        members = _matches(expression, names)
        twice = next((name for name in members if name in owner), None)
        if twice is not None:
            raise ValueError(f"{twice} is matched by {owner[twice]!r} and by {label!r}; a tensor belongs to one block")
        owner |= dict.fromkeys(members, label)
        groups[label] = members
    return groups


def _matches(expression: str, names: Sequence[str]) -> tuple[str, ...]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from None
    members = tuple(name for name in names if pattern.search(name))
    if not members:
        more = ", ..." * (len(names) > 8)
        raise ValueError(f"no parameter matches {expression!r}; there are {', '.join(names[:8])}{more}")
    return members


def indices_of(layout: Layout, tensors: Sequence[str]) -> Tensor:
    """The indices (b,) of these tensors' entries in a flat vector, b of them."""
    starts = dict(zip(layout.names, np.concatenate([[0], np.cumsum(layout.sizes)[:-1]]).tolist(), strict=True))
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return torch.cat([torch.arange(starts[n], starts[n] + sizes[n]) for n in tensors])


def size_of(layout: Layout, tensors: Sequence[str]) -> int:
    """How many entries these tensors have together."""
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return sum(sizes[n] for n in tensors)
