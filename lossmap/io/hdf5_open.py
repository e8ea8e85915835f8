"""HDF5 files opened for reading, beside whoever else has them open. Whatever is wrong with a file is one sentence."""

from __future__ import annotations

import mmap
from pathlib import Path

import h5py

from lossmap.special_files import SPECIAL, is_special

SIGNATURE = b"\x89HDF\r\n\x1a\n"
COLLECTION, HEAD = b"GCOL\x01\0\0\0", 16  # the beginning of a global heap collection; bytes before its objects
MAX_SEARCHED = 1 << 28  # bytes of a file that are searched for them
# What HDF5 says of a file that this process has open already, with other locks or for writing.
OPEN_ELSEWHERE = ("file locking", "already open", "unable to lock file")
# What it says of a file whose content is not, or not wholly, HDF5.
DAMAGED = ("truncated", "bad ", "past end", "not aligned", "signature", "checksum", "overflowed", "deserialize")


class NotASurface(ValueError):
    """The file holds no surface that can be read."""


class Damaged(NotASurface):
    """A file that is not as it was written: its end is missing, a number was changed, or it leads out of itself."""


class _BytesOnDisk(h5py.File):  # type: ignore[misc]
    """An HDF5 file that is read through a Python file, which is closed with it."""

    def __init__(self, path: Path) -> None:
        self._bytes = open(path, "rb")  # noqa: SIM115  closed below
        try:
            super().__init__(self._bytes, "r")
        except BaseException:
            self._bytes.close()
            raise

    def close(self) -> None:
        super().close()
        self._bytes.close()


def open_hdf5(path: Path) -> h5py.File:
    """The HDF5 file, open for reading.

    Raises FileNotFoundError, IsADirectoryError, PermissionError or NotASurface with one sentence that says which.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a surface is a file, such as surface.h5")
    if is_special(path):
        raise NotASurface(f"{path} {SPECIAL}")
    try:
        with open(path, "rb") as file:
            start = file.read(len(SIGNATURE))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}") from None
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: you have no permission") from None
    if not start:
        raise NotASurface(f"{path} is empty (0 bytes): no surface was ever written there")
    if start != SIGNATURE:
        if sum(a == b for a, b in zip(start, SIGNATURE, strict=False)) >= len(SIGNATURE) // 2:
            raise Damaged(f"{path} is damaged: its first bytes are {start!r}; of HDF5 they must be {SIGNATURE!r}")
        raise NotASurface(f"{path} is no HDF5 file, so it holds no surface; it begins with {start!r}")
    check_texts(path)
    try:
        # No lock: these files appear whole, by renaming, so a reader never meets a half-written one.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        reason = str(error).splitlines()[0]
        if any(words in reason for words in OPEN_ELSEWHERE):
            return _open_beside(path)
        raise _unreadable(path, reason) from None
    except (RuntimeError, ValueError, TypeError, LookupError, MemoryError):
        raise _unreadable(path, DAMAGED[0]) from None


def check_texts(path: Path) -> None:
    """Raise Damaged where a list of texts in the file cannot be walked: HDF5 (1.14) would walk it without end.

    Texts lie in global heap collections (HDF5 file format specification, III.E): after a head of 16 bytes objects,
    each with its index (uint16), 6 bytes, its size (uint64) and its bytes, filled up to 8; index 0 is the free rest.
    They have no checksum. Price: one search through the file, up to `MAX_SEARCHED` bytes of it.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        searched = min(len(data), MAX_SEARCHED)
        at = data.find(COLLECTION, 0, searched)
        while at >= 0:
            if not _can_be_walked(data, at):
                raise Damaged(f"{path} is damaged: its texts cannot be read")
            at = data.find(COLLECTION, at + len(COLLECTION), searched)


def _can_be_walked(data: mmap.mmap, at: int) -> bool:
    """Whether the objects of the collection that begins here end where it does."""
    if at + HEAD > len(data):
        return True  # HDF5 sees to it
    end = at + int.from_bytes(data[at + 8 : at + HEAD], "little")
    if end > len(data):
        return True
    at += HEAD
    while at + HEAD <= end:
        index, size = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 8 : at + HEAD], "little")
        step = HEAD + -(-size // 8) * 8 if index else size
        if step == 0 or at + step > end:
            return False
        at += step
    return True


def _open_beside(path: Path) -> h5py.File:
    """The file as another program would see it, where this process has it open already: by the bytes on the disk.

    HDF5 refuses to open a file twice with different locking, or for reading while it is open for writing. Through a
    Python file it does not know it for the same one.
    """
    try:
        return _BytesOnDisk(path)
    except OSError as error:
        raise NotASurface(
            f"{path} is open in this process, and what is on the disk cannot be read ({str(error).splitlines()[0]}): "
            "close it there (such as `file.close()` or `dataset.close()`), then read it again"
        ) from None


def _unreadable(path: Path, reason: str) -> NotASurface:
    """What HDF5 says about a file that it cannot open, as one sentence: damaged, or whatever else it may be."""
    if any(words in reason for words in DAMAGED):
        return Damaged(
            f"{path} is damaged: HDF5 cannot open it, perhaps because its end is missing ({path.stat().st_size:,} "
            "bytes are there); restore it from a backup, or name another file"
        )
    return NotASurface(f"{path} cannot be opened by HDF5; the file was not changed")
