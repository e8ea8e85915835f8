"""Pipes, sockets and devices given where a file is meant: to read one may wait for ever, or never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

SPECIAL = "must be a file on a disk; it is a pipe, a socket or a device"


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
