"""The result file, written: HDF5 that is also netCDF-4, read by xarray, ncdump, ParaView and h5py.

Root: dimension scales `xcoordinates` (x,) and in 2-D `ycoordinates` (y,); every field float64, (y, x) or (x,), with
its scales attached, `units` and `long_name`; `<measure>_status` uint8. Groups hold what belongs beside the fields:
directions, spectra, and under `tasks/` the arrays of each task of a measure without fields.
The layout follows the netCDF-4 format specification (Unidata, "Creating netCDF-4 files with HDF5").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lossmap.io.checked import CheckedFile, open_checked
from lossmap.io.digests import CONTENT, NO_VARIABLE, is_dimension
from lossmap.io.surface import Group, Surface, spans, to_plain
from lossmap.io.whole_file import write_hdf5

FORMAT, VERSION = "lossmap", 1
CONVENTIONS = "CF-1.11"
X, Y = "xcoordinates", "ycoordinates"
# Attributes that the file itself keeps; whatever else stands at the root was passed in by the writer.
OWN = ("format", "format_version", "Conventions", "settings", "settings_digest", CONTENT)
TASKS = "tasks/"
VALUES = "values/"
LARGE = (
    "directions/",
    "evolution/eigenvectors",
    TASKS,
    VALUES,
)  # their arrays stay in the file until they are asked for
SCALES = ("step", "point")  # arrays of a group that number its other arrays


def write_result(path: Path, surface: Surface, earlier: Path | None = None) -> None:
    """Write the file whole or not at all.

    earlier  a file whose groups are taken over where the surface has none of that name, or only attributes

    Raises OSError where that fails; the file in place is then as it was.
    """
    write_hdf5(path, lambda file: _write(file, surface, earlier))


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(to_plain(settings), sort_keys=True).encode()).hexdigest()


def _write(file: h5py.File, surface: Surface, earlier: Path | None) -> dict[str, str]:
    """Fill the file; the digests of what was taken over from the earlier one."""
    settings = surface.settings
    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "Conventions": CONVENTIONS,
        **{name: value for name, value in surface.attributes.items() if name not in OWN},
        "settings": json.dumps(to_plain(settings)),
        "settings_digest": digest(settings),
    }
    for name, value in root.items():
        _write_attribute(file, name, value)
    axes = _write_axes(file, surface)
    for name, values in surface.fields.items():
        _write_field(file, axes, name, values, surface)
    for measure, values in surface.status.items():
        _write_status(file, axes, measure, values, surface)
    return _write_groups(file, surface, earlier)


def _write_axes(file: h5py.File, surface: Surface) -> list[str]:
    """The ticks as dimension scales; their names, in the order of a field's axes."""
    axes = {X: surface.grid.x}
    if surface.grid.y is not None:
        axes = {Y: surface.grid.y, X: surface.grid.x}
    for name, ticks in axes.items():
        scale = file.create_dataset(name, data=ticks)
        scale.make_scale(name)
        scale.attrs.update({"units": "1", "long_name": f"{name[0]}, in lengths of the {name[0]} direction"})
    return list(axes)


def _write_field(file: h5py.File, axes: list[str], name: str, values: np.ndarray, surface: Surface) -> None:
    about = surface.about[name]
    field = file.create_dataset(name, data=values, dtype="f8", fillvalue=np.nan)
    attributes = {"units": about.unit, "long_name": about.long_name, "_FillValue": np.array([np.nan])}
    measure = next((m for m, fields in surface.measures.items() if name in fields), None)
    if measure is not None:
        attributes["measure"] = measure
        split = _split(name, surface.settings.get("measures", {}).get(measure, {}))
        if split:
            attributes["split"] = split
    field.attrs.update(attributes)
    _attach(file, field, axes)
    if values.ndim > len(axes):
        extra = about.extra[0] if about.extra else f"{name}_index"
        if extra not in file:
            file.create_dataset(extra, data=np.arange(values.shape[-1])).make_scale(extra)
        field.dims[len(axes)].attach_scale(file[extra])


def _split(field: str, settings: Mapping[str, Any]) -> str:
    """The part of the data that a field was read from, by its prefix, else the first of its measure's."""
    samples, split = settings.get("samples"), settings.get("split")
    splits = [split] if split else []
    if isinstance(samples, dict):
        splits = list(samples)
    prefixed = [split for split in splits if field.startswith(f"{split}_")]
    return next(iter(prefixed + splits), "")


def _write_status(file: h5py.File, axes: list[str], measure: str, values: np.ndarray, surface: Surface) -> None:
    status = file.create_dataset(f"{measure}_status", data=values)
    status.attrs.update(
        {
            "flag_values": np.array([0, 1, 2], "u1"),
            "flag_meanings": "todo done failed",
            "long_name": f"state of each point of the measure {measure}",
            "measure": measure,
            "fields": json.dumps(surface.measures[measure]),
        }
    )
    if measure in surface.parts:
        status.attrs["points"] = spans(surface.parts[measure])
    _attach(file, status, axes)


def _attach(file: h5py.File, dataset: h5py.Dataset, axes: list[str]) -> None:
    for axis, name in enumerate(axes):
        dataset.dims[axis].attach_scale(file[name])


def _write_groups(file: h5py.File, surface: Surface, earlier: Path | None) -> dict[str, str]:
    """All groups, those of the earlier file that the surface leaves there among them; their digests."""
    carried: dict[str, str] = {}
    groups = dict(surface.groups)
    if surface.failures:
        groups["failures"] = failures_group(surface)
    for name, group in groups.items():
        if group.arrays or not name.startswith(LARGE):
            _write_group(file, name, group)
    if earlier is not None and earlier.exists():
        with open_checked(earlier) as source:
            carried = _take_over(source, file, skip=set(groups) | {"failures"})
    for name, group in groups.items():
        if name not in file:  # a direction of which nothing but the recipe is stored
            _write_group(file, name, group)
    return carried


def failures_group(surface: Surface) -> Group:
    """The failures as a group of columns: point (flat index), x, y, rank, measure, host and text."""
    failures = surface.failures
    points = np.array([surface.grid.point(f.index) for f in failures], dtype=np.float64)
    arrays = {"point": np.array([f.index for f in failures], dtype=np.int64), "x": points[:, 0]}
    if surface.grid.y is not None:
        arrays["y"] = points[:, 1]
    arrays["rank"] = np.array([f.rank for f in failures], dtype=np.int64)
    for name in ("measure", "host", "text"):
        arrays[name] = np.array([getattr(f, name) for f in failures], dtype=object)
    return Group(arrays, {"long_name": "points without a reading, by flat index in C order, and why"})


def _write_group(file: h5py.File, name: str, group: Group) -> None:
    target = file[name] if name in file else file.create_group(name, track_order=True)
    for key, value in group.attributes.items():
        _write_attribute(target, key, value)
    for key, array in group.arrays.items():
        write_array(target, key, np.asarray(array))
    if name.startswith((TASKS, VALUES)):
        _name_dimensions(target)
        return
    scale = next((key for key in SCALES if key in group.arrays and np.ndim(group.arrays[key]) == 1), None)
    if scale is None:
        return
    target[scale].make_scale(scale)
    for key in group.arrays:
        if key != scale and target[key].shape[:1] == target[scale].shape:
            target[key].dims[0].attach_scale(target[scale])


def write_array(target: h5py.Group, name: str, array: np.ndarray) -> None:
    """An array in a type that netCDF knows: it has no booleans, no half floats, and text of any length."""
    if array.dtype.kind in "OU":
        target.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
    elif array.dtype.kind == "b":
        target.create_dataset(name, data=array.astype("u1"))
    elif array.dtype == np.float16:
        target.create_dataset(name, data=array.astype("f4"))
    else:
        target.create_dataset(name, data=array)


def _name_dimensions(target: h5py.Group) -> None:
    """Give every axis of a group's arrays a dimension, named after its length: `n256`.

    netCDF wants one for each axis, and xarray two names for two axes of one array. The scales have a length and no
    numbers, so that they take no room.
    """
    for dataset in [item for item in target.values() if not is_dimension(item)]:
        for axis, length in enumerate(dataset.shape):
            name = f"n{length}" + "_other" * dataset.shape[:axis].count(length)
            if name not in target:
                scale = target.create_dataset(name, (length,), dtype=">f4")
                scale.make_scale(f"{NO_VARIABLE}{length:10d}")
            dataset.dims[axis].attach_scale(target[name])


def _take_over(source: CheckedFile, file: h5py.File, skip: set[str]) -> dict[str, str]:
    """Copy the groups of an earlier file, by HDF5 itself: large directions never pass through memory as a whole.

    Returns the digests that they had there, by object.
    """
    table, carried = source.table or {}, dict[str, str]()
    for name in source.leaf_groups():
        if name in file or (name in skip and not name.startswith(LARGE)):
            continue
        for key in source.names(name):  # their links are looked at
            if source.is_dataset(f"{name}/{key}"):
                source.dataset(f"{name}/{key}")
        parent, _, leaf = name.rpartition("/")
        with source.explained(name):
            target = file.require_group(parent) if parent else file
            if name.startswith((TASKS, VALUES)):
                _copy_task(source.item(name), file.create_group(name, track_order=True))
            else:
                source.file.copy(name, target, name=leaf)
        carried |= {path: digest for path, digest in table.items() if path.startswith(f"{name}/")}
        if parent:
            attributes = source.raw_attributes(parent)
            for key in set(attributes) - set(target.attrs):
                target.attrs[key] = attributes[key]
    return carried


def _copy_task(source: h5py.Group, target: h5py.Group) -> None:
    """The arrays without their dimensions, which refer to the file that they stand in, and are made anew."""
    for key, value in source.attrs.items():
        target.attrs[key] = value
    for key, item in source.items():
        if not is_dimension(item):
            source.copy(item, target, name=key, without_attrs=True)
    _name_dimensions(target)


def _write_attribute(target: h5py.Group, name: str, value: Any) -> None:
    """An attribute as netCDF likes it: text, numbers and rows of them; anything else as JSON."""
    if not isinstance(value, (np.ndarray, np.generic)):
        value = to_plain(value)
    if value is None:
        value = "none"
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, (dict, list)):
        numbers = isinstance(value, list) and value and all(type(v) in (int, float) for v in value)
        value = np.array(value) if numbers else json.dumps(value)
    target.attrs[name] = value
