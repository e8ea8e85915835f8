"""The result file, read: see netcdf_write.py for its layout. Whatever is wrong with a file is one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.hdf5_open import Damaged, NotASurface, open_hdf5
from lossmap.io.netcdf_write import FORMAT, LARGE, OWN, VERSION, X, Y, group_names, is_dimension
from lossmap.io.surface import Failure, Group, Surface, indices_of

__all__ = ["Damaged", "NotASurface", "is_ours", "open_hdf5", "read_group_of", "read_surface"]

HIDDEN = ("_NC", "CLASS", "NAME", "REFERENCE_LIST")  # attributes of HDF5's and netCDF's own


def is_ours(file: h5py.File) -> bool:
    """Whether this file is of our format (not of the original tool, nor of anybody else)."""
    return bool(_plain(file.attrs.get("format", "")) == FORMAT)


def read_surface(file: h5py.File, path: Path) -> Surface:
    """The surface in an open file of ours; of large groups (directions, tasks) only the attributes.

    Raises NotASurface where the file was written by a newer version.
    """
    version = int(file.attrs.get("format_version", 0))
    if version > VERSION:
        raise NotASurface(
            f"{path} has format version {version}, and this lossmap reads up to {VERSION}: install a newer lossmap"
        )
    attributes = {name: _plain(value) for name, value in file.attrs.items() if not name.startswith("_NC")}
    settings = json.loads(attributes.pop("settings", "{}"))
    for name in OWN:
        attributes.pop(name, None)
    grid = Grid(file[X][()], file[Y][()] if Y in file else None)
    fields, about = _read_fields(file, grid)
    status, measures, parts = _read_statuses(file, grid)
    groups = _read_groups(file)
    failures = _read_failures(file)
    return Surface(grid, fields, about, status, measures, settings, failures, attributes, groups, parts)


def _over_grid(file: h5py.File, grid: Grid) -> dict[str, h5py.Dataset]:
    """The datasets at the root that have a number at each point."""
    return {
        name: item
        for name, item in file.items()
        if isinstance(item, h5py.Dataset) and not item.is_scale and item.shape[: grid.axes] == grid.shape
    }


def _read_fields(file: h5py.File, grid: Grid) -> tuple[dict[str, np.ndarray], dict[str, Field]]:
    fields, about = {}, {}
    for name, item in _over_grid(file, grid).items():
        if "flag_values" in item.attrs or item.dtype.kind not in "fiu":
            continue
        fields[name] = item[()].astype(np.float64)
        extra = None
        if item.ndim > grid.axes:
            scales = list(item.dims[grid.axes].keys())
            extra = (scales[0] if scales else f"{name}_index", int(item.shape[-1]))
        unit, long_name = _plain(item.attrs.get("units", "1")), _plain(item.attrs.get("long_name", name))
        about[name] = Field(name, str(unit), str(long_name), extra)
    return fields, about


def _read_statuses(
    file: h5py.File, grid: Grid
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]], dict[str, np.ndarray]]:
    """By measure: its status, the names of its fields, and its points where they are not all."""
    status, measures, parts = {}, {}, {}
    for name, item in _over_grid(file, grid).items():
        if "flag_values" not in item.attrs:
            continue
        measure = str(item.attrs.get("measure", name.removesuffix("_status")))
        status[measure] = item[()]
        measures[measure] = tuple(json.loads(item.attrs.get("fields", "[]")))
        if "points" in item.attrs:
            parts[measure] = indices_of(str(item.attrs["points"]))
    return status, measures, parts


def _read_groups(file: h5py.File) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for name in group_names(file):
        parent = name.rpartition("/")[0]
        if parent and parent not in groups and len(file[parent].attrs):
            groups[parent] = read_group_of(file, parent, arrays=False)
        if name != "failures":
            groups[name] = read_group_of(file, name, arrays=not name.startswith(LARGE))
    return groups


def _read_failures(file: h5py.File) -> tuple[Failure, ...]:
    if "failures" not in file:
        return ()
    group = read_group_of(file, "failures")
    if "point" not in group:
        return ()
    columns = [group[name] for name in ("point", "rank", "host", "text", "measure")]
    return tuple(
        Failure(int(point), int(rank), str(host), str(text), str(measure))
        for point, rank, host, text, measure in zip(*columns, strict=True)
    )


def read_group_of(file: h5py.File, name: str, arrays: bool = True) -> Group:
    """A group of an open file; text arrays as str. Without `arrays`, its attributes alone."""
    source = file[name]
    content: dict[str, np.ndarray] = {}
    for key, item in source.items():
        if not arrays or not isinstance(item, h5py.Dataset) or is_dimension(item):
            continue
        content[key] = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
    return Group(content, _attributes(source.attrs))


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in attributes.items() if not name.startswith(HIDDEN)}


def _plain(value: Any) -> Any:
    """An attribute as Python has it: text, a number, or an array."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value
