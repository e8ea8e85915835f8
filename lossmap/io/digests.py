"""Digests of a result file: one for each dataset and group, and one over the small parts, written last.

    digests/object, digests/sha256   (objects,) text: the path of a dataset (`train_loss`, `directions/x/fc.weight`) or,
                                     with a slash behind it, of a group, whose attributes are meant; and its digest
    root attribute content_digest    over all root attributes and over that list

A digest is the SHA-256 of type, shape, numbers in C order and attributes; of a field also of the names of its
dimensions. What HDF5 and netCDF enter for themselves (dimension lists, scales without numbers) is left out, so that
copying a group from file to file keeps its digests. Price: one pass over what is new since the snapshot before, see
benchmarks/damage.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

GROUP, CONTENT = "digests", "content_digest"
OBJECT, SHA256 = "object", "sha256"
HIDDEN = ("_NC", "_Netcdf4", "CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST")  # HDF5's and netCDF's own attributes
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # the format's own words
BLOCK = 1 << 26  # bytes that are read at a time


def is_dimension(item: h5py.HLObject) -> bool:
    """Whether a dataset is the length of a dimension and nothing else."""
    if not isinstance(item, h5py.Dataset) or not item.is_scale:
        return False
    name = item.attrs.get("NAME", b"")
    return bytes(name).startswith(NO_VARIABLE.encode()) if isinstance(name, bytes) else False


def visible(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes without those of HDF5 and netCDF themselves."""
    return {name: attributes[name] for name in attributes if not name.startswith(HIDDEN)}


def digest_of_attributes(attributes: Mapping[str, Any], more: Iterable[str] = ()) -> str:
    """SHA-256 of attributes, as h5py reads them, and of further texts."""
    sha = hashlib.sha256()
    for name in sorted(attributes):
        _add_text(sha, name)
        _add_value(sha, attributes[name])
    for text in more:
        _add_text(sha, text)
    return sha.hexdigest()


def digest_of_array(array: np.ndarray, attributes: Mapping[str, Any], dimensions: Iterable[str] = ()) -> str:
    """SHA-256 of a dataset that was read whole: text as bytes, numbers in the file's type."""
    sha = hashlib.sha256(_head(array.dtype, array.shape).encode())
    _add_block(sha, array)
    return _with_attributes(sha, attributes, dimensions)


def digest_of_dataset(dataset: h5py.Dataset, dimensions: Iterable[str] = ()) -> str:
    """The same of a dataset in a file, read in blocks along its first axis."""
    sha = hashlib.sha256(_head(dataset.dtype, dataset.shape).encode())
    for block in blocks_of(dataset):
        _add_block(sha, block)
    return _with_attributes(sha, visible(dataset.attrs), dimensions)


def blocks_of(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """The content of a dataset, in blocks along its first axis of about `BLOCK` bytes."""
    if dataset.ndim == 0 or dataset.nbytes <= BLOCK:
        yield np.asarray(dataset[()])
        return
    rows = max(1, BLOCK // max(1, dataset.nbytes // dataset.shape[0]))
    for start in range(0, dataset.shape[0], rows):
        yield np.asarray(dataset[start : start + rows])


def dimensions_of(dataset: h5py.Dataset, path: str) -> list[str]:
    """The names of the dimensions of a field; none of what lies in groups, where nobody reads them."""
    if "/" in path or dataset.is_scale:
        return []
    return [",".join(axis.keys()) for axis in dataset.dims]


def objects_in(place: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.HLObject]]:
    """(path, object) of each dataset and group in a file that lossmap wrote; a group's path ends in a slash."""
    for name, item in place.items():
        path = f"{prefix}{name}"
        if isinstance(item, h5py.Group):
            if path != GROUP:
                yield f"{path}/", item
                yield from objects_in(item, f"{path}/")
        elif not is_dimension(item):
            yield path, item


def digest_of(path: str, item: h5py.HLObject) -> str:
    """The digest of a dataset, or of a group's attributes."""
    if isinstance(item, h5py.Group):
        return digest_of_attributes(visible(item.attrs))
    return digest_of_dataset(item, dimensions_of(item, path))


def content_digest(attributes: Mapping[str, Any], table: Mapping[str, str]) -> str:
    """The digest over the small parts: root attributes, and the list of all other digests."""
    own = {name: value for name, value in visible(attributes).items() if name != CONTENT}
    return digest_of_attributes(own, (f"{name} {table[name]}" for name in sorted(table)))


def seal(file: h5py.File, known: Mapping[str, str] | None = None) -> None:
    """Enter the digests of all that a file holds; the last thing that is written.

    known  digests of what was copied from an earlier file, which are carried over: damage there stays noticeable
    """
    table = {path: (known or {}).get(path) or digest_of(path, item) for path, item in objects_in(file)}
    if GROUP in file:
        del file[GROUP]
    group = file.create_group(GROUP)
    group.attrs["long_name"] = "SHA-256 of each dataset, and of each group's attributes"
    for name, texts in ((OBJECT, table.keys()), (SHA256, table.values())):
        group.create_dataset(name, data=np.array(list(texts), dtype=object), dtype=h5py.string_dtype())
    group[OBJECT].make_scale(OBJECT)
    group[SHA256].dims[0].attach_scale(group[OBJECT])
    file.attrs[CONTENT] = content_digest(file.attrs, table)


def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    kind = "text" if dtype.kind in "OSU" else dtype.newbyteorder("<").str
    return f"{kind} {shape};"


def _with_attributes(sha: Any, attributes: Mapping[str, Any], dimensions: Iterable[str]) -> str:
    sha.update(digest_of_attributes(attributes, dimensions).encode())
    digest: str = sha.hexdigest()
    return digest


def _add_block(sha: Any, block: np.ndarray) -> None:
    if block.dtype.kind in "OSU":
        for item in block.reshape(-1):
            _add_text(sha, item)
        return
    if block.dtype.byteorder == ">":
        block = block.astype(block.dtype.newbyteorder("<"))
    sha.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8))


def _add_text(sha: Any, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")
    sha.update(len(data).to_bytes(8, "little"))
    sha.update(data)


def _add_value(sha: Any, value: Any) -> None:
    if isinstance(value, (str, bytes)):
        _add_text(sha, value)
        return
    if isinstance(value, h5py.Empty):
        _add_text(sha, "empty")
        return
    array = np.asarray(value)
    sha.update(_head(array.dtype, array.shape).encode())
    _add_block(sha, array)
