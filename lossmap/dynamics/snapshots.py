"""The eigenpairs of a run's snapshots, and what one pass over all eigenvectors leaves of them.

Letters: s snapshots, r eigenpairs each, m = s r eigenvectors stacked as the rows of U (m, n). U may be far larger than
memory and is read once, by blocks of columns. Price: m^2 n multiplications; memory m^2 and one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Snapshots:
    """The eigenpairs of a run.

    steps    (s,) where in the run each was taken, ascending
    values   (s, r) eigenvalues, NaN where a snapshot has fewer than r
    size     n, the length of an eigenvector
    blocks   () -> (m, b) blocks of columns of U, in order; rows are the pairs that are not NaN, snapshot by
             snapshot
    residuals (s, r) norms |A v - lambda v|, NaN where not known

    Raises ValueError where steps do not ascend, or shapes do not fit.
    """

    steps: Array
    values: Array
    size: int
    blocks: Callable[[], Iterable[Array]]
    residuals: Array | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.steps) != len(self.values):
            raise ValueError(
                f"{len(self.steps)} steps require an array of eigenvalues with as many rows; got {self.values.shape}"
            )
        if not len(self.steps) or not np.isfinite(self.values).any(axis=1).all():
            raise ValueError("a run must have at least one snapshot, and each snapshot at least one eigenpair")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"the steps of a run must ascend; got {list(self.steps)}")

    @classmethod
    def of(
        cls,
        steps: Sequence[float],
        values: Sequence[Array],
        vectors: Sequence[Array],
        residuals: Sequence[Array] | None = None,
    ) -> Snapshots:
        """Snapshots from memory: for each step its eigenvalues (r,) and eigenvectors as columns (n, r).

        residuals  of each step (r,), where known

        Raises ValueError where the shapes do not fit each other.
        """
        if not len(steps) == len(values) == len(vectors):
            raise ValueError(f"{len(steps)} steps, {len(values)} sets of eigenvalues, {len(vectors)} of eigenvectors")
        for step, w, v in zip(steps, values, vectors, strict=True):
            if v.ndim != 2 or v.shape[1] != len(w) or v.shape[0] != vectors[0].shape[0]:
                raise ValueError(
                    f"step {step}: {len(w)} eigenvalues require eigenvectors of shape "
                    f"({vectors[0].shape[0]}, {len(w)}); got {v.shape}"
                )
        rows = np.concatenate([np.asarray(v).T for v in vectors])
        errors = None
        if residuals is not None:
            errors = padded(residuals)
        return cls(np.asarray(steps), padded(values), rows.shape[1], lambda: _column_blocks(rows), errors)

    @cached_property
    def present(self) -> Array:
        """(s, r) which pairs there are."""
        finite: Array = np.isfinite(self.values)
        return finite

    @cached_property
    def owner(self) -> Array:
        """(m,) the snapshot that each row of U belongs to."""
        return np.nonzero(self.present)[0]

    @property
    def count(self) -> int:
        """The rows m of U."""
        return int(self.present.sum())


def padded(rows: Sequence[Array]) -> Array:
    """Rows of different lengths as one array, (s, r), NaN where there is nothing."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def _column_blocks(rows: Array, width: int = 8192) -> Iterator[Array]:
    for start in range(0, rows.shape[1], width):
        yield rows[:, start : start + width]


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """What one pass over U leaves: scalar products of unit rows, and each row's participation ratio."""

    gram: Array  # (m, m), ones on the diagonal
    participation: Array  # (m,), 1 / (n sum v^4)
    length: Array  # (m,), the norms that the rows had


def row_statistics(snapshots: Snapshots) -> RowStatistics:
    """Reads U once, block by block.

    Raises ValueError where the blocks are not U, or a vector is zero or not finite.
    """
    m, n = snapshots.count, snapshots.size
    gram, fourth, columns = np.zeros((m, m)), np.zeros(m), 0
    for block in snapshots.blocks():
        if block.shape[0] != m:
            raise ValueError(f"a block of U has {block.shape[0]} rows; the snapshots have {m} eigenpairs")
        gram += block @ block.T
        square = np.square(block, dtype=np.float64)
        fourth += np.einsum("ij,ij->i", square, square)
        columns += block.shape[1]
    if columns != n:
        raise ValueError(f"the blocks of U have {columns} columns together; the vectors have {n} entries")
    length = np.sqrt(np.diag(gram))
    if not np.isfinite(gram).all() or not (length > 0).all():
        row = int(np.argmin(np.isfinite(length) & (length > 0)))
        raise ValueError(f"an eigenvector of step {snapshots.steps[snapshots.owner[row]]} is zero or not finite")
    gram /= np.outer(length, length)
    np.fill_diagonal(gram, 1.0)
    return RowStatistics(gram, length**4 / (n * fourth), length)
