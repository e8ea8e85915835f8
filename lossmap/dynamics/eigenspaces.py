"""How curvature turns along a run: the eigenvectors of all snapshots, compared.

A run leaves s snapshots; the one at step t has r eigenvalues and eigenvectors. All vectors stacked are the
rows of U, (m, n). U may be far larger than memory: it is read once, by blocks of columns, for its Gram
matrix G = U U^T, (m, m), on which all the rest is small algebra:

    PCA         eigenvalues of G (over m: explained variance) and projections of the rows. An eigenvector
                has no sign, so its mean says nothing: by default variance is taken about zero, which no sign
                changes. `centre=True` is the classic way, after signs were made to agree along the tracks
    overlaps    (s, s), and cosines of principal angles, between snapshots
    tracks      eigenvectors followed through crossings by an assignment on |cosine| that remembers the
                snapshot before: at a crossing two vectors mix, and the one before tells them apart
    spread      each vector's participation ratio over its n entries, 1 / (n sum v^4): 1/n for one weight
                alone, 1 for all alike, near 1/3 for a Gaussian vector

Price: m^2 n multiplications and one reading of U; memory m^2 and one block. Levels of chance: `subspaces`.
Sources: Kuhn (1955), doi:10.1002/nav.3800020109, for the assignment; Gur-Ari, Roberts and Dyer (2018),
arXiv:1812.04754, for the question whether the top subspace stays put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from lossmap.linalg import subspaces

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
    """

    steps: Array
    values: Array
    size: int
    blocks: Callable[[], Iterable[Array]]
    residuals: Array | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.steps) != len(self.values):
            raise ValueError(f"{len(self.steps)} steps want as many rows of eigenvalues; got shape {self.values.shape}")
        if not len(self.steps) or not np.isfinite(self.values).any(axis=1).all():
            raise ValueError("a run wants one snapshot at least, and each an eigenpair at least")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError(f"the steps of a run ascend; got {list(self.steps)}")

    @classmethod
    def of(
        cls,
        steps: Sequence[float],
        values: Sequence[Array],
        vectors: Sequence[Array],
        residuals: Sequence[Array] | None = None,
    ) -> Snapshots:
        """Snapshots from memory: for each step its eigenvalues (r,) and eigenvectors as columns (n, r)."""
        if not len(steps) == len(values) == len(vectors):
            raise ValueError(f"{len(steps)} steps, {len(values)} sets of eigenvalues, {len(vectors)} of eigenvectors")
        for step, w, v in zip(steps, values, vectors, strict=True):
            if v.ndim != 2 or v.shape[1] != len(w) or v.shape[0] != vectors[0].shape[0]:
                raise ValueError(
                    f"step {step}: {len(w)} eigenvalues want eigenvectors ({vectors[0].shape[0]}, {len(w)}); "
                    f"got {v.shape}"
                )
        rows = np.concatenate([np.asarray(v).T for v in vectors])
        kept = padded(residuals) if residuals is not None else None
        return cls(np.asarray(steps), padded(values), rows.shape[1], lambda: _cut(rows), kept)

    @cached_property
    def present(self) -> Array:
        """(s, r) which pairs there are."""
        there: Array = np.isfinite(self.values)
        return there

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


def _cut(rows: Array, width: int = 8192) -> Iterator[Array]:
    for start in range(0, rows.shape[1], width):
        yield rows[:, start : start + width]


@dataclass(frozen=True, eq=False)
class Products:
    """What the one reading of U leaves: scalar products of unit rows, and each row's spread."""

    gram: Array  # (m, m), ones on the diagonal
    spread: Array  # (m,), 1 / (n sum v^4)
    length: Array  # (m,), the norms that the rows had


def products(snapshots: Snapshots) -> Products:
    """Reads U once, block by block. Raises ValueError where the blocks are not U, or a vector is not finite."""
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
    return Products(gram, length**4 / (n * fourth), length)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of the rows of U."""

    explained: Array  # (m,), shares of the variance, descending, sum 1
    projection: Array  # (m, m'), each row's coordinates on the components, by variance
    centred: bool

    @property
    def cumulative(self) -> Array:
        """(m,) the share of the first k components together."""
        return np.cumsum(self.explained)

    def needed(self, share: float = 0.9) -> int:
        """How many components hold this share of the variance."""
        return int(np.searchsorted(self.cumulative, share - 1e-12) + 1)


def components(gram: Array, *, centre: bool = False, keep: int | None = None) -> Components:
    """PCA of rows known by their Gram matrix.

    The projection's entry (i, k) is row i's scalar product with the k-th component, whose sign is chosen so
    that the first row that is not at right angles to it lies on its positive side.
    """
    m = len(gram)
    if centre:
        mean = gram.mean(axis=0)
        gram = gram - mean[None, :] - mean[:, None] + mean.mean()
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    projection = (vectors * np.sqrt(values))[:, : keep or m]
    for column in projection.T:
        seen = np.nonzero(np.abs(column) > 1e-8)[0]
        if len(seen) and column[seen[0]] < 0:
            column *= -1.0
    total = values.sum()
    return Components(values / total if total > 0 else values, projection, centre)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Eigenpairs followed from snapshot to snapshot.

    member   (s, r) the track of each pair, -1 where there is none; tracks are numbered as they begin
    values   (tracks, s) eigenvalues along each track, NaN where it has none
    cosine   (tracks, s) |cosine| with the track's vector one snapshot earlier, NaN where there is none
    signs    (m,) +-1 that make vectors agree along their tracks
    crossings (step before, step after, track, track): pairs whose order by eigenvalue changed
    """

    member: Array
    values: Array
    cosine: Array
    signs: Array
    crossings: tuple[tuple[float, float, int, int], ...]


def tracks(snapshots: Snapshots, gram: Array, limit: float) -> Tracks:
    """Follows eigenvectors by assignment on |cosine|; where no cosine exceeds `limit` a track ends.

    limit  the |cosine| that chance may reach, `subspaces.chance_cosine_limit`
    """
    there, place = snapshots.present, np.cumsum(snapshots.present.ravel()).reshape(snapshots.present.shape) - 1
    s, r = there.shape
    member = np.full((s, r), -1)
    last: dict[int, list[int]] = {}  # track -> its rows of U, newest last
    begun = int(there[0].sum())
    for k, column in enumerate(np.nonzero(there[0])[0]):
        member[0, column], last[k] = k, [int(place[0, column])]
    alive = list(last)
    links: list[tuple[int, int, int, float]] = []
    for t in range(1, s):
        columns = np.nonzero(there[t])[0]
        rows = place[t, columns]
        newest = np.abs(gram[np.ix_([last[k][-1] for k in alive], rows)])
        before = np.abs(gram[np.ix_([last[k][max(-2, -len(last[k]))] for k in alive], rows)])
        pairs = linear_sum_assignment(-(newest + 0.5 * before))
        taken: dict[int, int] = {}
        for i, j in zip(*pairs, strict=True):
            if max(newest[i, j], before[i, j]) > limit:
                taken[int(j)] = alive[i]
        alive = []
        for j, column in enumerate(columns):
            track = taken.get(j, begun)
            if track == begun:
                begun += 1
                last[track] = []
            else:
                links.append((track, last[track][-1], int(rows[j]), float(gram[last[track][-1], rows[j]])))
            last[track].append(int(rows[j]))
            member[t, column] = track
            alive.append(track)
    values, cosine, signs = np.full((begun, s), np.nan), np.full((begun, s), np.nan), np.ones(snapshots.count)
    for t, column in zip(*np.nonzero(there), strict=True):
        values[member[t, column], t] = snapshots.values[t, column]
    for track, old, new, product in links:
        cosine[track, snapshots.owner[new]] = abs(product)
        signs[new] = signs[old] * (1.0 if product >= 0 else -1.0)
    return Tracks(member, values, cosine, signs, tuple(_crossings(snapshots.steps, values)))


def _crossings(steps: Array, values: Array) -> Iterator[tuple[float, float, int, int]]:
    ahead: dict[tuple[int, int], tuple[float, float]] = {}  # pair -> which was larger last, and at which step
    for t, step in enumerate(steps):
        here = np.nonzero(np.isfinite(values[:, t]))[0]
        for i, j in combinations(here.tolist(), 2):
            now = float(np.sign(values[i, t] - values[j, t]))
            if now == 0.0:
                continue
            before, when = ahead.get((i, j), (now, step))
            if before != now:
                yield float(when), float(step), i, j
            ahead[i, j] = (now, float(step))


def cosines_between(snapshots: Snapshots, gram: Array) -> tuple[Array, Array]:
    """Overlaps (s, s) of all snapshots, and principal cosines (s - 1, r) of successive ones, NaN-padded."""
    s, r = snapshots.present.shape
    rows = [np.nonzero(snapshots.owner == t)[0] for t in range(s)]
    roots = [subspaces.inverse_root(gram[np.ix_(k, k)]) for k in rows]
    overlaps, successive = np.eye(s), np.full((max(s - 1, 0), r), np.nan)
    for i in range(s):
        for j in range(i + 1, s):
            between = roots[i] @ gram[np.ix_(rows[i], rows[j])] @ roots[j].T
            cosines = np.clip(np.linalg.svd(between, compute_uv=False), 0.0, 1.0)
            overlaps[i, j] = overlaps[j, i] = subspaces.overlap_of(cosines)
            if j == i + 1:
                successive[i, : len(cosines)] = cosines
    return overlaps, successive


@dataclass(frozen=True, eq=False)
class EigenspaceDynamics:
    """What became of the eigenvectors along a run. Its answer in words: `verdict.verdict(evolution)`."""

    steps: Array  # (s,)
    values: Array  # (s, r), NaN-padded
    residuals: Array | None  # (s, r)
    size: int  # n
    owner: Array  # (m,), the snapshot of each row
    gram: Array  # (m, m), cosines with their sign
    spread: Array  # (m,)
    pca: Components
    overlaps: Array  # (s, s)
    cosines: Array  # (s - 1, r), of the principal angles between successive snapshots
    tracks: Tracks
    limit: float  # the |cosine| that chance reaches between two snapshots with probability 1 %


def compare_eigenspaces(snapshots: Snapshots, *, centre: bool = False) -> EigenspaceDynamics:
    """Everything from one reading of the eigenvectors."""
    seen = products(snapshots)
    s, r = snapshots.present.shape
    limit = subspaces.chance_cosine_limit(snapshots.size, tries=r * r * max(s - 1, 1))
    followed = tracks(snapshots, seen.gram, limit)
    signed = seen.gram * np.outer(followed.signs, followed.signs)
    overlaps, cosines = cosines_between(snapshots, seen.gram)
    return EigenspaceDynamics(
        steps=snapshots.steps,
        values=snapshots.values,
        residuals=snapshots.residuals,
        size=snapshots.size,
        owner=snapshots.owner,
        gram=signed,
        spread=seen.spread,
        pca=components(signed, centre=centre),
        overlaps=overlaps,
        cosines=cosines,
        tracks=followed,
        limit=limit,
    )


def curvature_along(values: Array) -> dict[str, Array]:
    """Curvature by step, of the eigenvalues that were measured, (s, r) -> (s,) each.

    negative_mass    share of sum |lambda| that is negative (of the pairs measured, not of the whole spectrum)
    lambda_max, lambda_min   the largest and the smallest measured
    effective_rank   exp of the entropy of |lambda| / sum |lambda| (Roy and Vetterli, 2007)
    log_volume       sum of log |lambda|, nats; -inf where one is 0
    """
    found: dict[str, list[float]] = {
        k: [] for k in ("negative_mass", "lambda_max", "lambda_min", "effective_rank", "log_volume")
    }
    for row in values:
        w = row[np.isfinite(row)]
        size = np.abs(w)
        total = size.sum()
        share = size[size > 0] / total if total > 0 else np.ones(1)
        found["negative_mass"].append(float(size[w < 0].sum() / total) if total > 0 else 0.0)
        found["lambda_max"].append(float(w.max()))
        found["lambda_min"].append(float(w.min()))
        found["effective_rank"].append(float(np.exp(-(share * np.log(share)).sum())))
        with np.errstate(divide="ignore"):
            found["log_volume"].append(float(np.log(size).sum()))
    return {name: np.array(column) for name, column in found.items()}
