"""Spectra and layers as a file keeps them: groups `spectrum/LABEL` and `layers/LABEL` of arrays and attributes.

    spectrum/LABEL   top, top_error, bottom, bottom_error (m,); node, weight; tick, cumulative, cumulative_low,
                     cumulative_high; mass_at, mass_below and mass_above (t, [value, low, high]); share_by_tensor
                     (vector, tensor); entry_sum_of, diagonal_sum and square_sum (tensor,); on request top_vectors,
                     bottom_vectors (n, m), `diagonal:NAME` and `diagonal_error:NAME` for each tensor
    layers/LABEL     one row a block: block, size, largest, smallest, error, floor, positive, negative and zero
                     ([from, to]), gradient_norm, kind, verdict, outside; and for each block `eigenvalues:NAME`,
                     `matrix:NAME` where it was made whole, `nodes:NAME` and `weights:NAME` where it was not

Both carry their report as it was printed, in the attribute `report`. NumPy alone; the surface file does the writing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from lossmap.io.read import read
from lossmap.io.surface import Group

SPECTRUM, LAYERS, WEIGHTS = "spectrum", "layers", "weights"
MADE_BY = {SPECTRUM: "lossmap spectrum", LAYERS: "lossmap spectrum --layers tensor"}


class Stored(Protocol):
    """A value that says what a file keeps of it."""

    def stored(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Arrays and attributes by name."""


Source = str | os.PathLike[str] | Stored | Mapping[str, Any]


def group_of(value: Stored) -> Group:
    """What a file keeps of a spectrum or of layers."""
    arrays, attributes = value.stored()
    return Group(dict(arrays), {k: v for k, v in attributes.items() if v is not None})


def group_name(kind: str, label: str) -> str:
    """The group's name; a label with slashes stays one level deep."""
    return f"{kind}/{label.replace('/', '_') or 'whole'}"


def spectra_in(source: Source) -> dict[str, Group]:
    """The spectra by label: of a result file, of a value, or of a mapping of values.

    Raises ValueError where there is none.
    """
    return _groups(source, SPECTRUM, "top")


def layers_in(source: Source) -> dict[str, Group]:
    """The layer by layer readings by label. Raises ValueError where there is none."""
    return _groups(source, LAYERS, "block")


def _groups(source: Source, kind: str, required: str) -> dict[str, Group]:
    """The groups of a kind by label; of layers those alone that hold the required array."""
    groups, name = _labelled(source, kind)
    if kind == LAYERS:
        groups = {label: group for label, group in groups.items() if required in group}
    if not groups:
        raise ValueError(f"{name} holds no {kind} ({MADE_BY[kind]} makes them)")
    return groups


def _labelled(source: Source, kind: str) -> tuple[dict[str, Group], str]:
    """The groups by label, and what an error calls the source."""
    if isinstance(source, (str, os.PathLike)):
        stored = read(source).groups
        return {name.partition("/")[2]: g for name, g in stored.items() if name.startswith(kind + "/")}, str(source)
    if isinstance(source, Mapping):
        return {str(label): v if isinstance(v, Group) else group_of(v) for label, v in source.items()}, "the argument"
    group = group_of(source)
    return {str(group.attributes.get("label") or kind): group}, type(source).__name__
