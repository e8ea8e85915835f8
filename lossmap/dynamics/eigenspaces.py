"""Rotation of the leading Hessian eigenspace during training: the eigenvectors of all snapshots, compared.

A run leaves s snapshots; the one at step t has r eigenvalues and eigenvectors. All vectors stacked are the rows of U
(m, n), read once for its Gram matrix G = U U^T, (m, m) (`snapshots`), on which all the rest is small algebra:

    PCA            eigenvalues of G (over m: explained variance) and projections of the rows. An eigenvector has no
                   sign, so its mean says nothing: by default variance is taken about zero, which no sign changes.
                   `centre=True` is the classic way, after signs were made to agree along the tracks
    overlaps       (s, s), and cosines of principal angles, between snapshots
    tracks         eigenvectors followed through crossings (`tracks`)
    participation  each vector's participation ratio over its n entries, 1 / (n sum v^4): 1/n for one weight alone, 1
                   for all alike, near 1/3 for a Gaussian vector

Levels of chance: `linalg.subspaces`. Source: Gur-Ari, Roberts and Dyer (2018), arXiv:1812.04754, for the question
whether the top subspace stays put.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossmap.dynamics.snapshots import Snapshots, row_statistics
from lossmap.dynamics.tracks import Tracks, follow_tracks
from lossmap.linalg import subspaces

Array = np.ndarray
CURVATURE = ("negative_mass", "lambda_max", "lambda_min", "effective_rank", "log_volume")


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

    gram    (m, m) scalar products of the rows
    centre  take the variance about the mean of the rows; by default about zero
    keep    components of the projection; all by default

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
        nonzero = np.nonzero(np.abs(column) > 1e-8)[0]
        if len(nonzero) and column[nonzero[0]] < 0:
            column *= -1.0
    return Components(values / (values.sum() or 1.0), projection, centre)


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
    """The leading eigenspaces of a run, compared. Its answers in words: `summary.summarize`."""

    steps: Array  # (s,)
    values: Array  # (s, r), NaN-padded
    residuals: Array | None  # (s, r)
    size: int  # n
    owner: Array  # (m,), the snapshot of each row
    gram: Array  # (m, m), cosines with their sign
    participation: Array  # (m,) participation ratio of each eigenvector over its entries
    pca: Components
    overlaps: Array  # (s, s)
    cosines: Array  # (s - 1, r), of the principal angles between successive snapshots
    tracks: Tracks
    limit: float  # the |cosine| that chance reaches between two snapshots with probability 1 %


def compare_eigenspaces(snapshots: Snapshots, *, centre: bool = False) -> EigenspaceDynamics:
    """Everything from one pass over the eigenvectors.

    centre  PCA about the mean, after signs were made to agree along the tracks; by default about zero

    Raises ValueError where the blocks are not the eigenvectors of these snapshots, or one is not finite.
    """
    statistics = row_statistics(snapshots)
    s, r = snapshots.present.shape
    limit = subspaces.chance_cosine_limit(snapshots.size, tries=r * r * max(s - 1, 1))
    followed = follow_tracks(snapshots, statistics.gram, limit)
    signed = statistics.gram * np.outer(followed.signs, followed.signs)
    overlaps, cosines = cosines_between(snapshots, statistics.gram)
    return EigenspaceDynamics(
        steps=snapshots.steps,
        values=snapshots.values,
        residuals=snapshots.residuals,
        size=snapshots.size,
        owner=snapshots.owner,
        gram=signed,
        participation=statistics.participation,
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
    rows = [_row_curvature(row[np.isfinite(row)]) for row in values]
    return {name: np.array([row[name] for row in rows]) for name in CURVATURE}


def _row_curvature(w: Array) -> dict[str, float]:
    """The same of one step's eigenvalues (k,), all finite."""
    size = np.abs(w)
    total = size.sum()
    share, negative = np.ones(1), 0.0
    if total > 0:
        share, negative = size[size > 0] / total, float(size[w < 0].sum() / total)
    with np.errstate(divide="ignore"):
        log_volume = float(np.log(size).sum())
    numbers = (negative, w.max(), w.min(), np.exp(-(share * np.log(share)).sum()), log_volume)
    return dict(zip(CURVATURE, map(float, numbers), strict=True))
