"""A result file read with suspicion: every link, type, size and digest is looked at, and damage is one sentence.

    with open_checked(path) as source:
        source.array("train_loss"), source.attributes("directions/x")

Nothing is followed out of the file (external and soft links, external and virtual datasets), no more is read than lies
in it, and what HDF5 says of a damaged file becomes `Damaged`, which names the object. Where the file has digests
(digests.py), what is read is compared with them. Price: SHA-256 of what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lossmap.io import digests
from lossmap.io.hdf5_open import Damaged, NotASurface, open_hdf5
from lossmap.io.printable import printable

# Whatever HDF5, h5py and NumPy raise of bytes that were changed.
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)
MAX_DEPTH = 16  # of groups within groups
COMPRESSION = 1_100  # times: more than deflate can
UNSTORED = 1 << 20  # bytes that a dataset may have without room in the file: HDF5 fills them in


class CheckedFile:
    """An open HDF5 file with what is needed to trust it.

    file  open for reading
    path  its name, for sentences
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path
        self._items: dict[str, h5py.HLObject] = {}
        self._attributes: dict[str, dict[str, Any]] = {}

    # ---- what is there

    def names(self, group: str = "") -> list[str]:
        """The names of what lies in a group. Raises Damaged for a link that leads elsewhere."""
        place = self._group(group)
        with self.explained(group):
            names = list(place)
        for name in names:
            if printable(name) != name or "\n" in name:
                raise self.damaged(f"the name {printable(name)!r} of an object has control characters")
            self.item(f"{group}/{name}" if group else name)
        return names

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def item(self, name: str) -> h5py.HLObject:
        """The dataset or group of this name. Raises Damaged where there is none, or a link out of the file."""
        item = self._find(name)
        if item is None:
            raise self.damaged(f"{name} is missing")
        return item

    def _find(self, name: str) -> h5py.HLObject | None:
        """The object of this name, each link on the way looked at once; None where there is none."""
        if not name:
            return self.file
        if name not in self._items:
            parent, _, part = name.rpartition("/")
            place = self._find(parent)
            if not isinstance(place, h5py.Group):
                return None
            with self.explained(name):
                is_there = part in place or place.get(part, getlink=True, default=None) is not None
            if not is_there:
                return None
            self._check_link(place, part, name)
            with self.explained(name):
                self._items[name] = place[part]
        return self._items[name]

    def is_group(self, name: str) -> bool:
        """Whether it is a group."""
        return isinstance(self.item(name), h5py.Group)

    def is_dataset(self, name: str) -> bool:
        """Whether it is a dataset with numbers or texts, and not the length of a dimension alone."""
        item = self.item(name)
        with self.explained(name):
            return isinstance(item, h5py.Dataset) and not digests.is_dimension(item)

    def leaf_groups(self, group: str = "", depth: int = 0) -> Iterator[str]:
        """The groups at any depth; where a group holds groups, those instead of it."""
        if depth > MAX_DEPTH:
            raise self.damaged(f"{group[:60]}... holds groups within groups without end")
        for name in self.names(group):
            path = f"{group}/{name}" if group else name
            if path == digests.GROUP or not self.is_group(path):
                continue
            if any(self.is_group(f"{path}/{inner}") for inner in self.names(path)):
                yield from self.leaf_groups(path, depth + 1)
            else:
                yield path

    # ---- what it holds

    def attributes(self, name: str = "") -> dict[str, Any]:
        """The attributes of a group or of the root, compared with their digest."""
        raw = self.raw_attributes(name)
        if name and self.is_group(name):
            self._compare(f"{name}/", lambda: digests.digest_of_attributes(raw))
        return {key: plain(value) for key, value in raw.items()}

    def raw_attributes(self, name: str = "") -> dict[str, Any]:
        """Attributes as h5py reads them, without those of HDF5 and netCDF themselves."""
        if name not in self._attributes:
            item = self.item(name)
            with self.explained(f"an attribute of {name or 'the file'}"):
                self._attributes[name] = digests.visible(item.attrs)
        return self._attributes[name]

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset that can be read: of numbers or texts, all of it within the file. Raises Damaged otherwise."""
        item = self.item(name)
        if not isinstance(item, h5py.Dataset):
            raise self.damaged(f"{name} must be an array; it is a group or a type")
        with self.explained(name):
            dtype, size, stored = item.dtype, item.nbytes, item.id.get_storage_size()
            outside, chunked = item.is_virtual or bool(item.external), item.chunks is not None
            is_text, is_null = h5py.check_string_dtype(dtype) is not None, item.shape is None
        if is_null:
            raise self.damaged(f"{name} has a type and no values")
        if outside:
            raise self.damaged(f"{name} refers to another file, which is not read")
        if dtype.kind not in "fiub" and not is_text:
            raise self.damaged(f"{name} must hold numbers or texts; its type is {dtype}")
        if size > max(UNSTORED, stored * (COMPRESSION if chunked else 1)):
            raise self.damaged(f"{name} says that it has {size:,} bytes ({item.shape}), of which {stored:,} are there")
        return item

    def array(self, name: str) -> np.ndarray:
        """A dataset's numbers, or texts as str, compared with its digest. Raises Damaged naming it."""
        dataset = self.dataset(name)
        with self.explained(name):
            values = np.asarray(dataset[()])
            is_text = h5py.check_string_dtype(dataset.dtype) is not None
        attributes = self.raw_attributes(name)
        if self.table is not None:
            dimensions = self._dimensions(dataset, name)
            self._compare(name, lambda: digests.digest_of_array(values, attributes, dimensions))
        if is_text:
            with self.explained(name):
                texts = [printable(str(plain(item))) for item in values.reshape(-1)]
                values = np.array(texts, dtype=object).reshape(values.shape)
        return values

    def check(self, name: str) -> None:
        """Compare a dataset with its digest, reading it in blocks: for those that are too large for memory."""
        dataset = self.dataset(name)
        with self.explained(name):
            self._compare(name, lambda: digests.digest_of_dataset(dataset, self._dimensions(dataset, name)))

    def _dimensions(self, dataset: h5py.Dataset, name: str) -> list[str]:
        with self.explained(f"a dimension of {name}"):
            return digests.dimensions_of(dataset, name)

    # ---- digests

    @cached_property
    def table(self) -> dict[str, str] | None:
        """The digests by object, checked themselves; None where the file has none.

        Raises Damaged where they, or the root attributes, are not as they were written.
        """
        raw = self.raw_attributes()
        with self.explained("its list of digests"):
            has_table = digests.GROUP in self.file
        if digests.CONTENT not in raw and not has_table:
            return None
        if digests.CONTENT not in raw or not has_table:
            raise self.damaged("its digests are not all there")
        table: dict[str, str] = {}
        with self.explained("its list of digests"):
            group = self._group(digests.GROUP)
            columns = [group[name].asstr()[()] for name in (digests.OBJECT, digests.SHA256)]
            table = dict(zip(*columns, strict=True))
            digest = digests.content_digest(raw, table)
        if digest != raw[digests.CONTENT]:
            raise self.damaged("its root attributes (settings, versions, ...) or its list of digests were changed")
        return table

    @property
    def is_protected(self) -> bool:
        """Whether the file has digests, so that damage to it is noticed."""
        return self.table is not None

    def listed(self, group: str = "") -> set[str]:
        """The names of the datasets that the digests know in a group, or at the root."""
        prefix = f"{group}/" if group else ""
        names = (path.removeprefix(prefix) for path in self.table or () if path.startswith(prefix))
        return {name for name in names if name and "/" not in name}

    def check_names(self, group: str = "") -> None:
        """Raise Damaged where a group does not hold the datasets that it was written with."""
        if self.table is None:
            return
        place = f"{group}/" if group else ""
        there = {name for name in self.names(group) if self.is_dataset(place + name)}
        for name in sorted(self.listed(group) - there):
            raise self.damaged(f"{place}{name} is missing")
        for name in sorted(there - self.listed(group)):
            raise self.damaged(f"{place}{name} has no digest: it was added by another program")

    def _compare(self, name: str, digest: Any) -> None:
        if self.table is None:
            return
        if name not in self.table:
            raise self.damaged(f"{name.rstrip('/')} has no digest: it was added by another program")
        if digest() != self.table[name]:
            what = "the attributes of " if name.endswith("/") else ""
            raise self.damaged(f"{what}{name.rstrip('/')} does not fit its digest: it was changed since it was written")

    # ---- sentences

    def damaged(self, what: str) -> Damaged:
        """The error for what is wrong in this file."""
        return Damaged(f"{self.path} is damaged: {what}")

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn whatever HDF5 raises into Damaged, naming what was read."""
        try:
            yield
        except NotASurface:
            raise
        except UNREADABLE:
            raise self.damaged(f"{name or 'its list of contents'} cannot be read") from None

    def _group(self, name: str) -> h5py.Group:
        place = self.item(name)
        if not isinstance(place, h5py.Group):
            raise self.damaged(f"{name} must be a group; it is an array")
        return place

    def _check_link(self, place: h5py.Group, part: str, name: str) -> None:
        with self.explained(name):
            link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise self.damaged(f"{name} is a link to another file, which is not followed")
        if isinstance(link, h5py.SoftLink):
            raise self.damaged(f"{name} is a link to another place, which no result has")


@contextmanager
def open_checked(path: Path) -> Iterator[CheckedFile]:
    """The file, open for reading, and closed again. Raises as `open_hdf5` does."""
    with open_hdf5(path) as file:
        yield CheckedFile(file, path)


def plain(value: Any) -> Any:
    """An attribute as Python has it: printable text, a number, or an array."""
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "replace"))
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, h5py.Empty):  # as netCDF writes a text of no letters
        return ""
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return np.array([plain(item) for item in value.reshape(-1)], dtype=object).reshape(value.shape)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value
