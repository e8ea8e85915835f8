"""A surface with all that belongs to it as an xarray.DataTree: fields at the root, groups as nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossmap.io.netcdf_write import SCALES, X, Y, failures_group
from lossmap.io.surface import Group, Surface, spans, to_plain


def tree_of(surface: Surface) -> Any:
    """The fields, statuses and settings at the root; groups, and failures where there are any, as nodes.

    Raises ImportError, with one sentence, where xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise ImportError("to_xarray needs xarray, which is not installed: pip install 'lossmap[xarray]'") from None
    nodes = {"/": xarray.Dataset(_variables(surface), coords=_coordinates(surface), attrs=_root_attributes(surface))}
    groups = dict(surface.groups)
    if surface.failures:
        groups["failures"] = failures_group(surface)
    for name, group in groups.items():
        content = {key: (_dimensions(group, key), np.asarray(array)) for key, array in group.arrays.items()}
        nodes[f"/{name}"] = xarray.Dataset(content, attrs=_plain_attributes(group.attributes))
    return xarray.DataTree.from_dict(nodes)


def _coordinates(surface: Surface) -> dict[str, Any]:
    coordinates = {X: surface.grid.x}
    if surface.grid.y is not None:
        coordinates[Y] = surface.grid.y
    return coordinates


def _variables(surface: Surface) -> dict[str, Any]:
    """The fields with unit and long name, and the statuses with their flags, each over the grid's dimensions."""
    dims = (X,) if surface.grid.y is None else (Y, X)
    content: dict[str, Any] = {}
    for name, values in surface.fields.items():
        about = surface.about[name]
        behind = (about.extra[0],) if about.extra else ()
        content[name] = ((*dims, *behind), values, {"units": about.unit, "long_name": about.long_name})
    for measure, states in surface.status.items():
        attributes: dict[str, Any] = {
            "flag_values": [0, 1, 2],
            "flag_meanings": "todo done failed",
            "measure": measure,
            "fields": list(surface.measures[measure]),
        }
        if measure in surface.parts:
            attributes["points"] = spans(surface.parts[measure])
        content[f"{measure}_status"] = (dims, states, attributes)
    return content


def _root_attributes(surface: Surface) -> dict[str, Any]:
    return {**_plain_attributes(surface.attributes), "settings": json.dumps(to_plain(surface.settings))}


def _plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as they are; NumPy's numbers as Python's."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in attributes.items()}


def _dimensions(group: Group, name: str) -> tuple[str, ...]:
    """A name for each axis of an array: that of the group's scale where it has its length, else after its length."""
    shape = np.shape(group.arrays[name])
    scale = next((s for s in SCALES if s in group.arrays and np.ndim(group.arrays[s]) == 1), None)
    names: list[str] = []
    for axis, length in enumerate(shape):
        own = f"n{length}" + "_other" * shape[:axis].count(length)
        if axis == 0 and scale is not None and length == len(group.arrays[scale]):
            own = scale
        names.append(own)
    return tuple(names)
