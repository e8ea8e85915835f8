"""Digests of the contents of files and folders, cached by size and times of change, in a JSON file of the campaign.

A cached digest counts as long as size, inode and both times (ns) are those of the file: that of its contents, which
`cp -p`, `rsync` and `touch -r` set back, and that of its inode, which nobody can set. A file that was changed less than
RACY_SECONDS before it was read is not cached: it could change again within the same tick of its clock.
Price: one `stat` a file where the cache knows it, else one reading of the file. Standard library alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lossmap.special_files import SPECIAL, is_special, plain_text

RACY_SECONDS = 2.0
CHUNK = 1 << 20  # bytes read at a time


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises OSError where it cannot be read."""
    sha = hashlib.sha256()
    if is_special(path):
        raise OSError(errno.EINVAL, f"{os.fspath(path)} {SPECIAL}")
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def text_digest(value: Any) -> str:
    """The SHA-256 of plain values (numbers, text, lists, mappings), which does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class DigestCache:
    """Digests of files by path.

    path  the JSON file that keeps them from one command to the next; None: in memory alone
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        if path is not None:
            self._entries = _read(path)

    def of(self, path: str | os.PathLike[str]) -> str:
        """The digest of a file, or of a folder: that of the names and digests of the files in it.

        Raises FileNotFoundError where there is none, OSError where it cannot be read.
        """
        name = os.path.abspath(path)
        if os.path.isdir(name):
            files = sorted(entry.name for entry in os.scandir(name) if entry.is_file())
            return text_digest([[file, self.of(os.path.join(name, file))] for file in files])
        status = os.stat(name)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = self._entries.get(name)
        if entry is not None and entry[:-1] == stamp:
            return str(entry[-1])
        digest = file_digest(name)
        if time.time() - max(status.st_mtime, status.st_ctime) > RACY_SECONDS:
            self._entries[name] = [*stamp, digest]
            self._changed = True
        return digest

    def of_all(self, paths: Iterable[str]) -> dict[str, str]:
        """The digests of several files, by path."""
        return {path: self.of(path) for path in paths}

    def save(self) -> None:
        """Write the cache, whole, where it has changed; a folder that cannot be written to is no error."""
        if self.path is None or not self._changed:
            return
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self._entries))
            part.replace(self.path)
        except OSError:
            return
        self._changed = False


def _read(path: Path) -> dict[str, list[Any]]:
    """The entries of a cache; none where it cannot be read, since all of them can be made again."""
    try:
        entries = json.loads(plain_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, Mapping):
        return {}
    return {k: v for k, v in entries.items() if isinstance(v, list) and len(v) == 5}
