"""CIFAR-10, CIFAR-100 and CIFAR-10-C from their files, as published.

CIFAR (Krizhevsky 2009) comes in a binary format, records of labels and then 3,072 bytes in plane order, and as
Python pickles, which are read without running code. CIFAR-10-C (Hendrycks and Dietterich 2019,
arXiv:1903.12261) holds one array a corruption, 10,000 test images at each of five severities; it is mapped,
not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lossmap import safe_unpickle

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]

# what a user may have unpacked, where; the first that is there is read
_FILES = {
    ("cifar10", "train"): ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)]),
    ("cifar10", "test"): ("cifar-10-batches-bin", ["test_batch.bin"]),
    ("cifar100", "train"): ("cifar-100-binary", ["train.bin"]),
    ("cifar100", "test"): ("cifar-100-binary", ["test.bin"]),
}
_PICKLES = {
    ("cifar10", "train"): ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)]),
    ("cifar10", "test"): ("cifar-10-batches-py", ["test_batch"]),
    ("cifar100", "train"): ("cifar-100-python", ["train"]),
    ("cifar100", "test"): ("cifar-100-python", ["test"]),
}
_IMAGE = 3 * 32 * 32
_LABELS_IN_RECORD = {"cifar10": 1, "cifar100": 2}  # of CIFAR-100 coarse and fine; the fine one is read
_LABEL_KEYS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_USUAL = (".", "data", "cifar10/data", "cifar100/data")  # searched where no folder is given


def images(name: str, split: str, data_path: str | Path | None = None) -> tuple[Bytes, Labels]:
    """The images (N, 3, 32, 32) and labels (N,) of `cifar10` or `cifar100`, from either format.

    Raises FileNotFoundError where neither is found, ValueError for a file that is damaged.
    """
    folders = _folders(data_path, _USUAL)
    for folder in folders:
        for table, read in ((_FILES, _binary), (_PICKLES, _pickled)):
            inside, files = table[name, split]
            for parent in (folder, folder / inside):
                if all((parent / file).is_file() for file in files):
                    parts = [read(parent / file, name) for file in files]
                    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    needed = " or ".join(f"{table[name, split][0]}/{table[name, split][1][0]}" for table in (_FILES, _PICKLES))
    raise FileNotFoundError(
        f"{name} is not in {', '.join(map(str, folders))}: needed {needed}; unpack it there, or see --data-path"
    )


def _folders(data_path: str | Path | None, usual: Sequence[str]) -> list[Path]:
    """Where to look for files: in the folder that is given alone, else in the usual ones."""
    if data_path is not None:
        return [Path(data_path)]
    return [Path(folder) for folder in usual]


def _binary(path: Path, name: str) -> tuple[Bytes, Labels]:
    labels = _LABELS_IN_RECORD[name]
    raw = np.fromfile(path, np.uint8)
    record = labels + _IMAGE
    if raw.size == 0 or raw.size % record:
        raise ValueError(f"{path} holds {raw.size} bytes, no whole number of records of {record}: it is cut off")
    rows = raw.reshape(-1, record)
    return rows[:, labels:].reshape(-1, 3, 32, 32), _checked(path, name, rows[:, labels - 1].astype(np.int64))


def _pickled(path: Path, name: str) -> tuple[Bytes, Labels]:
    try:
        with path.open("rb") as file:
            content = safe_unpickle.read(file, encoding="bytes")
    except Exception as error:  # a damaged pickle may raise any
        raise ValueError(f"{path} is no batch of {name}: {str(error) or type(error).__name__}") from None
    key = _LABEL_KEYS[name]
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no batch of {name}: it holds a {type(content).__name__}")
    content = {k.encode() if isinstance(k, str) else k: v for k, v in content.items()}
    data, labels = content.get(b"data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _IMAGE:
        raise ValueError(f"{path} is no batch of {name}: its data must have shape (N, {_IMAGE}) of bytes")
    try:
        y = np.asarray([] if labels is None else labels)
        if y.size and y.dtype.kind not in "iu":
            raise ValueError(f"they are of dtype {y.dtype}")
        if y.size and y.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{y.max()} is among them")
        y = y.astype(np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is no batch of {name}: its {key.decode()} are no classes: {error}") from None
    if y.shape != (len(data),):
        labels = f"{y.size} {key.decode()}" if y.ndim == 1 else f"{key.decode()} of shape {y.shape}"
        raise ValueError(f"{path} is no batch of {name}: {len(data)} images and {labels}")
    return data.reshape(-1, 3, 32, 32), _checked(path, name, y)


def _checked(path: Path, name: str, labels: Labels) -> Labels:
    classes = _CLASSES[name]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{path} holds the label {labels.max()}; {name} has {classes} classes: it is damaged")
    return labels


def corrupted(corruption: str, level: int, data_path: str | Path | None = None) -> tuple[Bytes, Labels]:
    """CIFAR-10-C's images (N, 32, 32, 3) at one severity, mapped from the file, and their labels.

    Raises FileNotFoundError where the files are not found, with the corruptions that are; ValueError for a
    severity that is not 1 to 5, and for arrays of other shapes.
    """
    if not 1 <= level <= 5:
        raise ValueError(f"the severity of CIFAR-10-C must be 1 to 5; got {level}")
    folders = _folders(data_path, (".", "data"))
    candidates = [parent for folder in folders for parent in (folder, folder / "CIFAR-10-C")]
    parent = next((parent for parent in candidates if (parent / "labels.npy").is_file()), None)
    if parent is None:
        raise FileNotFoundError(
            f"CIFAR-10-C is not in {', '.join(map(str, folders))}: needed labels.npy and {corruption}.npy; "
            "say where they are by --data-path"
        )
    path = parent / f"{corruption}.npy"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in parent.glob("*.npy") if p.stem != "labels"))
        raise FileNotFoundError(f"there is no {path}; the folder holds {names or 'no corruption'}")
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
        y = np.load(parent / "labels.npy", allow_pickle=False).astype(np.int64)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} or the labels beside it cannot be read: {error}") from None
    if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or len(x) % 5 or len(y) not in (len(x), len(x) // 5):
        raise ValueError(
            f"{path} has shape {x.shape} of {x.dtype}, its labels {y.shape}; CIFAR-10-C has (50000, 32, 32, 3) of uint8"
        )
    each = len(x) // 5
    rows = slice((level - 1) * each, level * each)
    if len(y) == len(x):
        y = y[rows]
    return x[rows], y
