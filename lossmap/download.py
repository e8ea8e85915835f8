"""Fetching a file of data and checking it, for those who have a network; nothing is fetched unasked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

CIFAR10C = "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1"
CIFAR10C_MD5 = "56bf5dcef84df0e2308c6dcbcbbd8499"


def fetch(
    url: str,
    folder: str | Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file that an address holds, in a folder; what is there already, and right, is not fetched again.

    md5, sha256  its checksum, in hexadecimal: at least one
    progress     called with the bytes that came and the bytes in all, None where that is not known

    The file appears whole: it is written beside, checked, then renamed. Raises ConnectionError, with what to do,
    where the address cannot be reached, and ValueError for a wrong checksum, in which case nothing is left.
    """
    if not md5 and not sha256:
        raise ValueError("a file is fetched only with its checksum: md5 or sha256")
    folder = Path(folder)
    name = Path(urllib.parse.urlparse(url).path).name
    target = folder / name
    if target.exists() and not _wrong(target, md5, sha256):
        return target
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{name}.{os.getpid()}"
    try:
        _copy(url, beside, progress)
        wrong = _wrong(beside, md5, sha256)
        if wrong:
            raise ValueError(f"what came from {url} is not the file: {wrong}; nothing was saved")
        os.replace(beside, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be reached ({reason}); fetch it on a machine with a network and put it into {folder}"
        ) from None
    finally:
        beside.unlink(missing_ok=True)
        if new:
            with contextlib.suppress(OSError):  # it is not empty: the file came
                folder.rmdir()
    return target


def _copy(url: str, target: Path, progress: Callable[[int, int | None], None] | None) -> None:
    with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as file:
        length = answer.headers.get("Content-Length")
        total, came = int(length) if length else None, 0
        while block := answer.read(1 << 20):
            file.write(block)
            came += len(block)
            if progress is not None:
                progress(came, total)
        if total is not None and came != total:
            raise ConnectionError(f"the connection ended after {came} of {total} bytes")
        file.flush()
        os.fsync(file.fileno())


def _wrong(path: Path, md5: str | None, sha256: str | None) -> str:
    """What is wrong with a file; empty where it is the one that was asked for."""
    for kind, expected in (("md5", md5), ("sha256", sha256)):
        if expected is None:
            continue
        digest = hashlib.new(kind, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != expected.lower():
            return f"its {kind} is {digest.hexdigest()}, expected {expected}"
    return ""


def fetch_cifar10c(folder: str | Path, *, url: str = CIFAR10C, md5: str = CIFAR10C_MD5) -> Path:
    """Fetch CIFAR-10-C, 2.9 GB, check and unpack it; returns the folder of its .npy files. Raises as `fetch`."""
    archive = fetch(url, folder, md5=md5)
    target = Path(folder) / "CIFAR-10-C"
    with tempfile.TemporaryDirectory(prefix=".CIFAR-10-C.", dir=folder) as beside, tarfile.open(archive) as tar:
        tar.extractall(beside, filter="data")
        if target.exists():  # unpacked in part by other hands
            shutil.copytree(Path(beside) / target.name, target, dirs_exist_ok=True)
        else:
            os.replace(Path(beside) / target.name, target)  # appears whole, or not at all
    return target
