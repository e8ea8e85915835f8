"""What is given where a file is meant: pipes, sockets and devices, whose reading may never end; pointers of Git LFS."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

SPECIAL = "must be a file on a disk; it is a pipe, a socket or a device"

POINTER = "is a pointer of Git LFS and not the file itself, which `git lfs pull` in its folder fetches"
_POINTER_START = b"version https://git-lfs.github.com/spec/"


def not_a_file(path: str | os.PathLike[str]) -> str:
    """Why data or weights cannot stand at this path, to be put behind it; empty where they can."""
    if is_special(path):
        return SPECIAL
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        return POINTER if file.read(len(_POINTER_START)) == _POINTER_START else ""


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at this path that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # to open it says what is wrong
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def plain_text(path: str | os.PathLike[str]) -> str:
    """The text of a file on a disk, in UTF-8. Raises OSError for what cannot be read, pipes too; ValueError."""
    if is_special(path):
        raise OSError(errno.EINVAL, f"{path} {SPECIAL}")
    return Path(path).read_text(encoding="utf-8")
