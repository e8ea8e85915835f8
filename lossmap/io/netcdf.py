"""The result file: HDF5 that is also netCDF-4, written whole and read by xarray, ncdump, ParaView and h5py.

Root: dimension scales `xcoordinates` (x,) and in 2-D `ycoordinates` (y,); every field float64, (y, x) or (x,), with
its scales attached, `units` and `long_name`; `<measure>_status` uint8. Groups hold what belongs beside the fields.
The layout follows the netCDF-4 format specification (Unidata, "Creating netCDF-4 files with HDF5").
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.surface import Failure, Group, Surface, indices_of, spans, to_plain

FORMAT, VERSION = "lossmap", 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONVENTIONS = "CF-1.11"
X, Y = "xcoordinates", "ycoordinates"
# Attributes that the file itself keeps; whatever else stands at the root was given by the one who wrote it.
OWN = ("format", "format_version", "Conventions", "settings", "settings_digest")
LARGE = ("directions/", "evolution/eigenvectors")  # groups whose arrays stay in the file until they are asked for
SCALES = ("step", "point")  # arrays of a group that number its other arrays


class NotASurface(ValueError):
    """The file holds no surface that can be read."""


class Damaged(NotASurface):
    """An HDF5 file that HDF5 itself cannot open: its end is missing, for instance."""


class _Sink:
    """A file for HDF5 to write into, which keeps a failed write to itself until HDF5 has closed.

    HDF5 does not survive a full disk in good order: its handles stay open, and it fails again at exit.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                written, view = 0, memoryview(data).cast("B")
                while written < len(view):
                    written += self.file.write(view[written:])
            except OSError as error:
                self.error = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                return self.file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass


def write_whole(path: Path, surface: Surface, keep: Path | None = None) -> None:
    """Write the file beside its place, bring it to the disk and rename it over: it appears whole or not at all.

    keep  an earlier file whose groups are taken over where the surface has none of that name, or only attributes

    Raises OSError where that fails; the file in place is then as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w+b", buffering=0) as raw:
            sink = _Sink(raw)
            try:
                # From 1.8 on attributes may be larger than 64 kB: long settings, long histories.
                with h5py.File(sink, "w", track_order=True, libver=("v108", "v110")) as file:
                    _write(file, surface, keep)
            except Exception:
                if sink.error is None:
                    raise
            if sink.error is not None:
                raise sink.error
            os.fsync(raw.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(handle)


def _write(file: h5py.File, surface: Surface, keep: Path | None) -> None:
    grid, settings = surface.grid, surface.settings
    text = json.dumps(to_plain(settings))
    given = {name: value for name, value in surface.attributes.items() if name not in OWN}
    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "Conventions": CONVENTIONS,
        **given,
        "settings": text,
        "settings_digest": digest(settings),
    }
    for name, value in root.items():
        _put(file, name, value)
    names = [X] if grid.y is None else [Y, X]
    for name, ticks in zip(names, (grid.x,) if grid.y is None else (grid.y, grid.x), strict=True):
        scale = file.create_dataset(name, data=ticks)
        scale.make_scale(name)
        scale.attrs.update({"units": "1", "long_name": f"{name[0]}, in lengths of the {name[0]} direction"})
    for name, values in surface.fields.items():
        _write_field(file, names, name, values, surface)
    for measure, values in surface.status.items():
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
        _attach(file, status, names)
    groups = dict(surface.groups)
    if surface.failures:
        groups["failures"] = _failures_group(surface)
    for name, group in groups.items():
        if group.arrays or not name.startswith(LARGE):
            _write_group(file, name, group)
    if keep is not None and keep.exists():
        with h5py.File(keep, "r", locking=False) as earlier:
            _take_over(earlier, file, skip=set(groups) | {"failures"})
    for name, group in groups.items():
        if name not in file:  # a direction of which nothing but the recipe is stored
            _write_group(file, name, group)


def _write_field(file: h5py.File, names: list[str], name: str, values: np.ndarray, surface: Surface) -> None:
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
    _attach(file, field, names)
    if values.ndim > len(names):
        extra = about.extra[0] if about.extra else f"{name}_index"
        if extra not in file:
            file.create_dataset(extra, data=np.arange(values.shape[-1])).make_scale(extra)
        field.dims[len(names)].attach_scale(file[extra])


def _split(field: str, told: Mapping[str, Any]) -> str:
    """The part of the data that a field was read from, by its prefix, else the first of its measure's."""
    samples = told.get("samples")
    splits = list(samples) if isinstance(samples, dict) else [told["split"]] if told.get("split") else []
    return next((split for split in splits if field.startswith(f"{split}_")), splits[0] if splits else "")


def _attach(file: h5py.File, dataset: h5py.Dataset, names: list[str]) -> None:
    for axis, name in enumerate(names):
        dataset.dims[axis].attach_scale(file[name])


def _failures_group(surface: Surface) -> Group:
    failures = surface.failures
    points = np.array([surface.grid.point(f.index) for f in failures], dtype=np.float64)
    arrays = {
        "point": np.array([f.index for f in failures], dtype=np.int64),
        "x": points[:, 0],
        **({} if surface.grid.y is None else {"y": points[:, 1]}),
        "rank": np.array([f.rank for f in failures], dtype=np.int64),
        "measure": np.array([f.measure for f in failures], dtype=object),
        "host": np.array([f.host for f in failures], dtype=object),
        "text": np.array([f.text for f in failures], dtype=object),
    }
    return Group(arrays, {"long_name": "points without a reading, by flat index in C order, and why"})


def _write_group(file: h5py.File, name: str, group: Group) -> None:
    place = file[name] if name in file else file.create_group(name, track_order=True)
    for key, value in group.attributes.items():
        _put(place, key, value)
    for key, array in group.arrays.items():
        array = np.asarray(array)
        if array.dtype.kind in "OU":
            place.create_dataset(key, data=array.astype(object), dtype=h5py.string_dtype())
        elif array.dtype.kind == "b":
            place.create_dataset(key, data=array.astype("u1"))  # netCDF knows no booleans
        elif array.dtype == np.float16:
            place.create_dataset(key, data=array.astype("f4"))  # nor half floats
        else:
            place.create_dataset(key, data=array)
    scale = next((key for key in SCALES if key in group.arrays and np.ndim(group.arrays[key]) == 1), None)
    if scale is None:
        return
    place[scale].make_scale(scale)
    for key in group.arrays:
        if key != scale and place[key].shape[:1] == place[scale].shape:
            place[key].dims[0].attach_scale(place[scale])


def _take_over(earlier: h5py.File, file: h5py.File, skip: set[str]) -> None:
    """Copy the groups of an earlier file, by HDF5 itself: large directions never pass through memory as a whole."""
    for name in group_names(earlier):
        if name in skip and not (name.startswith(LARGE) and name not in file):
            continue
        if name not in file:
            parent, _, leaf = name.rpartition("/")
            place = file.require_group(parent) if parent else file
            earlier.copy(name, place, name=leaf)
            if parent:
                for key in set(earlier[parent].attrs) - set(place.attrs):
                    place.attrs[key] = earlier[parent].attrs[key]


def group_names(file: h5py.File) -> Iterator[str]:
    """The groups of an open file; where a group holds groups, those."""
    for name, item in file.items():
        if not isinstance(item, h5py.Group):
            continue
        inner = [key for key, value in item.items() if isinstance(value, h5py.Group)]
        if inner:
            yield from (f"{name}/{key}" for key in inner)
        else:
            yield name


def _put(place: h5py.Group, name: str, value: Any) -> None:
    """An attribute as netCDF likes it: text, numbers and rows of them; anything else as JSON."""
    value = to_plain(value) if not isinstance(value, (np.ndarray, np.generic)) else value
    if value is None:
        value = "none"
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, (dict, list)):
        flat = isinstance(value, list) and value and all(type(v) in (int, float) for v in value)
        value = np.array(value) if flat else json.dumps(value)
    place.attrs[name] = value


def _got(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return value.item() if value.size == 1 and value.ndim == 0 else value
    return value.item() if isinstance(value, np.generic) else value


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(to_plain(settings), sort_keys=True).encode()).hexdigest()


def opened(path: Path) -> h5py.File:
    """The HDF5 file, open for reading.

    Raises FileNotFoundError, IsADirectoryError, PermissionError or NotASurface with one sentence that says which.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a surface is a file, such as surface.h5")
    try:
        with open(path, "rb") as file:
            start = file.read(len(SIGNATURE))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: you have no permission") from None
    if not start:
        raise NotASurface(f"{path} is empty (0 bytes): no surface was ever written there")
    if start != SIGNATURE:
        raise NotASurface(f"{path} is no HDF5 file, so it holds no surface; it begins with {start!r}")
    try:
        # No lock: these files appear whole, by renaming, so a reader never meets a half-written one.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        size = path.stat().st_size
        raise Damaged(
            f"{path} is damaged: HDF5 cannot open it, perhaps because its end is missing ({size:,} bytes are there); "
            f"take a backup, or run with --overwrite ({str(error).splitlines()[0]})"
        ) from None


def is_ours(file: h5py.File) -> bool:
    """Whether this file is of our format (not of the original tool, nor of anybody else)."""
    return bool(_got(file.attrs.get("format", "")) == FORMAT)


def read_file(file: h5py.File, path: Path) -> Surface:
    """The surface in an open file of ours; of directions only the attributes."""
    version = int(file.attrs.get("format_version", 0))
    if version > VERSION:
        raise NotASurface(
            f"{path} has format version {version}, and this lossmap reads up to {VERSION}: install a newer lossmap"
        )
    attributes = {name: _got(value) for name, value in file.attrs.items() if not name.startswith("_NC")}
    settings = json.loads(attributes.pop("settings", "{}"))
    for name in OWN:
        attributes.pop(name, None)
    grid = Grid(file[X][()], file[Y][()] if Y in file else None)
    fields, about, status, measures, parts = {}, {}, {}, {}, {}
    for name, item in file.items():
        if not isinstance(item, h5py.Dataset) or item.is_scale or item.shape[: grid.axes] != grid.shape:
            continue
        if "flag_values" in item.attrs:
            measure = str(item.attrs.get("measure", name.removesuffix("_status")))
            status[measure] = item[()]
            measures[measure] = tuple(json.loads(item.attrs.get("fields", "[]")))
            if "points" in item.attrs:
                parts[measure] = indices_of(str(item.attrs["points"]))
        elif item.dtype.kind in "fiu":
            fields[name] = item[()].astype(np.float64)
            extra = None
            if item.ndim > grid.axes:
                scales = list(item.dims[grid.axes].keys())
                extra = (scales[0] if scales else f"{name}_index", int(item.shape[-1]))
            about[name] = Field(
                name, str(_got(item.attrs.get("units", "1"))), str(_got(item.attrs.get("long_name", name))), extra
            )
    failures, groups = _read_failures(file), {}
    for name in group_names(file):
        parent = name.rpartition("/")[0]
        if parent and parent not in groups and len(file[parent].attrs):
            groups[parent] = read_group_of(file, parent, arrays=False)
        if name != "failures":
            groups[name] = read_group_of(file, name, arrays=not name.startswith(LARGE))
    return Surface(grid, fields, about, status, measures, settings, failures, attributes, groups, parts)


def _read_failures(file: h5py.File) -> tuple[Failure, ...]:
    if "failures" not in file:
        return ()
    group = read_group_of(file, "failures")
    n = len(group["point"]) if "point" in group else 0
    return tuple(
        Failure(
            int(group["point"][i]),
            int(group["rank"][i]),
            str(group["host"][i]),
            str(group["text"][i]),
            str(group["measure"][i]),
        )
        for i in range(n)
    )


def read_group_of(file: h5py.File, name: str, arrays: bool = True) -> Group:
    """A group of an open file; text arrays as str."""
    place = file[name]
    content = {}
    for key, item in place.items():
        if arrays and isinstance(item, h5py.Dataset):
            content[key] = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
    hidden = ("_NC", "CLASS", "NAME", "REFERENCE_LIST")
    return Group(content, {k: _got(v) for k, v in place.attrs.items() if not k.startswith(hidden)})
