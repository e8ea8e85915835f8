"""The eigenvectors of a run, kept while they come, and at the end in the file: never all in memory.

    FILE.vectors/000120.npy    while the run is measured: one snapshot's eigenvectors, (r, n) float32, written whole by
                               the rank that measured it. A gigabyte does not travel to rank 0 and through its journal;
                               the reading that does is sent when the vectors are safe, so what is done has its vectors
    group evolution/eigenvectors   in the end: `eigenvector` (step, pair, theta) float32, NaN where a snapshot has fewer
    group evolution/results    what was made of them: overlaps, tracks, principal components, and the words

Memory: one block of columns, `BLOCK` bytes, and one snapshot while the file is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lossmap.io.checked import open_checked
from lossmap.io.digests import seal
from lossmap.io.hdf5_open import Damaged
from lossmap.io.netcdf_write import write_array
from lossmap.io.read import Refused, journal_of, read, write_surface
from lossmap.io.surface import Group, Surface
from lossmap.io.whole_file import sync_folder
from lossmap.special_files import is_special

VECTORS, RESULTS = "evolution/eigenvectors", "evolution/results"
BLOCK = 1 << 25  # bytes of a block of columns
SEAL = b"SHA-256:"  # behind a snapshot's numbers, before the digest of all that lies before it
Blocks = Callable[[], Iterator[np.ndarray]]


def file_digest(path: Path, size: int | None = None) -> Any:
    """SHA-256 of a file, or of its first `size` bytes, read in blocks."""
    sha, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while left > 0:
            block = file.read(min(left, BLOCK))
            if not block:
                break
            sha.update(block)
            left -= len(block)
    return sha


@dataclass(frozen=True)
class VectorFolder:
    """Where eigenvectors lie while a run is measured."""

    path: Path

    @classmethod
    def beside(cls, file: str | os.PathLike[str]) -> VectorFolder:
        """The folder that belongs to a result file."""
        return cls(Path(f"{os.fspath(file)}.vectors"))

    def keep(self, step: float, vectors: np.ndarray) -> None:
        """Writes one snapshot's eigenvectors, (r, n); they are on the disk when this returns."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self._file(step)
        part = target.with_name(target.name + ".part")
        with open(part, "wb") as file:
            np.save(file, np.ascontiguousarray(vectors, dtype=np.float32))
            file.flush()
            file.write(SEAL + file_digest(part).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(self.path)

    def holds(self, step: float) -> bool:
        """Whether a snapshot is there."""
        return self._file(step).exists()

    def check(self, step: float) -> None:
        """Raise Damaged where a snapshot is not as it was written. Files of version 0.1 have no digest: by their size.

        Price: one pass of SHA-256 over the file.
        """
        path = self._file(step)
        damaged = Damaged(f"{path} is damaged: it does not fit its digest; --overwrite measures all checkpoints again")
        if is_special(path):
            raise damaged
        try:
            vectors = np.load(path, mmap_mode="r")
            end = vectors.offset + vectors.nbytes
            with open(path, "rb") as file:
                file.seek(end)
                footer = file.read()
        except (OSError, ValueError, TypeError, EOFError, SyntaxError):
            raise damaged from None
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise damaged
        if footer and footer != SEAL + file_digest(path, end).digest():
            raise damaged

    def shape(self, step: float) -> tuple[int, int]:
        """(r, n) of a snapshot."""
        r, n = np.load(self._file(step), mmap_mode="r").shape
        return int(r), int(n)

    def snapshot(self, step: float) -> np.ndarray:
        """One snapshot's eigenvectors, (r, n)."""
        vectors: np.ndarray = np.load(self._file(step))
        return vectors

    def blocks(self, steps: Sequence[float], block: int = BLOCK) -> Blocks:
        """Blocks of columns of all these snapshots' rows stacked, (m, b) each, as `measure.evolution` reads them.

        Raises FileNotFoundError where a snapshot is missing, Damaged where one is not as it was written.
        """
        for step in steps:
            if not self.holds(step):
                raise FileNotFoundError(f"the eigenvectors of step {step:g} are not in {self.path}; measure it again")
            self.check(step)
        rows = sum(self.shape(step)[0] for step in steps)
        n = self.shape(steps[0])[1]
        width = max(1, block // (4 * rows))

        def read_blocks() -> Iterator[np.ndarray]:
            for start in range(0, n, width):
                parts = [self._columns(step, start, min(start + width, n)) for step in steps]
                yield np.concatenate(parts)

        return read_blocks

    def fill(self, file: Path) -> None:
        """Takes back from a result file the snapshots that it holds and the folder does not, one at a time."""
        with open_checked(file) as source:
            source.check(f"{VECTORS}/eigenvector")
            stored = source.dataset(f"{VECTORS}/eigenvector")
            for i, step in enumerate(source.array(f"{VECTORS}/step")):
                if not self.holds(float(step)):
                    rows = stored[i]
                    self.keep(float(step), rows[np.isfinite(rows[:, 0])])

    def clear(self) -> None:
        """Removes all snapshots."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _columns(self, step: float, start: int, stop: int) -> np.ndarray:
        """Read by seeking, not mapped: mapped pages count as memory of the process."""
        with open(self._file(step), "rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            (rows, n), _, dtype = reader[version](file)
            first = file.tell()
            out = np.empty((rows, stop - start), dtype=dtype)
            for row in range(rows):
                file.seek(first + (row * n + start) * dtype.itemsize)
                out[row] = np.fromfile(file, dtype=dtype, count=stop - start)
        return out

    def _file(self, step: float) -> Path:
        return self.path / f"{step:012.3f}.npy".replace(".000.npy", ".npy")


def move_into_file(file: Path, folder: VectorFolder, steps: Sequence[float], results: Group, pairs: int) -> None:
    """Writes the eigenvectors of these steps, and what was made of them, into the result file: whole or not at all.

    pairs  the most that a snapshot has; others are filled up with NaN
    """
    with _rewritten(file, (VECTORS, RESULTS)) as out:
        _write_vectors(out.create_group(VECTORS, track_order=True), folder, steps, pairs)
        _write_results(out.create_group(RESULTS, track_order=True), results)


@contextmanager
def _rewritten(file: Path, groups: Sequence[str]) -> Iterator[h5py.File]:
    """A copy of the file without these groups, to be changed; it takes the file's place when all is written.

    Raises Damaged where the file's list of digests is not as it was written.
    """
    with open_checked(file) as source:
        table = source.table or {}
    changed = tuple(f"{name}/" for name in groups)
    beside = file.with_name(file.name + ".part")
    shutil.copyfile(file, beside)
    try:
        with h5py.File(beside, "r+", track_order=True, libver=("v108", "v110")) as out:
            for name in groups:
                if name in out:
                    del out[name]
            yield out
            seal(out, {path: digest for path, digest in table.items() if not path.startswith(changed)})
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def _write_vectors(target: h5py.Group, folder: VectorFolder, steps: Sequence[float], pairs: int) -> None:
    n = folder.shape(steps[0])[1]
    vectors = target.create_dataset("eigenvector", (len(steps), pairs, n), dtype="f4", fillvalue=np.nan)
    vectors.attrs.update({"units": "1", "long_name": "eigenvectors of unit length, in the order of the eigenvalues"})
    scales = {"step": np.asarray(steps, dtype=np.float64), "pair": np.arange(pairs), "theta": np.arange(n, dtype="i4")}
    for axis, (name, ticks) in enumerate(scales.items()):
        target.create_dataset(name, data=ticks).make_scale(name)
        vectors.dims[axis].attach_scale(target[name])
    for i, step in enumerate(steps):
        rows = folder.snapshot(step)
        vectors[i, : len(rows)] = rows
        if len(rows) < pairs:
            vectors[i, len(rows) :] = np.nan


def _write_results(target: h5py.Group, results: Group) -> None:
    scales: set[str] = set()
    for name, value in results.attributes.items():
        target.attrs[name] = value
    for name, array in results.arrays.items():
        write_array(target, name, np.asarray(array))
        dataset = target[name]
        for axis, length in enumerate(array.shape):
            scale = f"n{length}" + "_other" * (length in array.shape[:axis])  # xarray needs two names
            if scale not in scales:
                target.create_dataset(scale, data=np.arange(length)).make_scale(scale)
                scales.add(scale)
            dataset.dims[axis].attach_scale(target[scale])


@dataclass(frozen=True, eq=False)
class StoredEigenpairs:
    """The eigenpairs of a run as a file holds them."""

    steps: np.ndarray  # (s,)
    values: np.ndarray  # (s, r)
    residuals: np.ndarray  # (s, r)
    size: int  # n
    blocks: Blocks


def read_vectors(path: str | os.PathLike[str], block: int = BLOCK) -> StoredEigenpairs:
    """The eigenpairs in a result file; the vectors are read by blocks on demand.

    Raises KeyError where the file holds none.
    """
    path = Path(path)
    results = results_of(path)
    values = results["eigenvalue"]
    present = np.isfinite(values)
    name = f"{VECTORS}/eigenvector"
    with open_checked(path) as source:
        source.check(name)
        shape = source.dataset(name).shape
        if len(shape) != 3 or shape[:2] != values.shape:
            raise source.damaged(f"{name} has the shape {shape}; for these eigenvalues it must be {values.shape} and n")
        n = int(shape[-1])
    width = max(1, block // (4 * values.size))

    def read_blocks() -> Iterator[np.ndarray]:
        with open_checked(path) as source:
            vectors = source.dataset(name)
            for start in range(0, n, width):
                yield vectors[:, :, start : min(start + width, n)][present]

    return StoredEigenpairs(results["step"], values, results["residual"], n, read_blocks)


def results_of(path: str | os.PathLike[str]) -> Group:
    """What was made of a run. Raises KeyError where the file holds none."""
    groups = read(path).groups
    if RESULTS not in groups:
        raise KeyError(f"{os.fspath(path)} holds no evolution along a run (lossmap spectrum --along makes it)")
    return groups[RESULTS]


def put_group(path: str | os.PathLike[str], name: str, group: Group, fresh: Callable[[], Surface]) -> None:
    """Writes a group into a result file, which is made where it is not there; all else in it stays.

    fresh  makes the rest of a new file

    Raises Refused where a survey is writing the file, or is not complete.
    """
    path = Path(path)
    if journal_of(path).exists():
        raise Refused(f"a survey is writing {path}, or is not complete; finish it first, or name another file")
    if not path.exists():
        write_surface(path, fresh())
    with _rewritten(path, (name,)) as out:
        _write_results(out.create_group(name, track_order=True), group)
