"""Eigenpairs followed from snapshot to snapshot, through crossings of their eigenvalues.

An assignment on |cosine| that remembers the snapshot before: at a crossing two vectors mix, and the one before tells
them apart. Source: Kuhn (1955), doi:10.1002/nav.3800020109, for the assignment. Letters: s snapshots, r pairs each, m
eigenvectors in all, the rows of U.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from lossmap.dynamics.snapshots import Snapshots

Array = np.ndarray
MEMORY = 0.5  # weight of the cosine with the snapshot before the last


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


def follow_tracks(snapshots: Snapshots, gram: Array, limit: float) -> Tracks:
    """Follows eigenvectors by assignment on |cosine|; where no cosine exceeds `limit` a track ends.

    gram   (m, m) scalar products of the unit rows of U
    limit  the |cosine| that chance may reach, `subspaces.chance_cosine_limit`
    """
    present = snapshots.present
    s, r = present.shape
    row_of = np.cumsum(present.ravel()).reshape(s, r) - 1  # (s, r) row of U of each pair that there is
    member = np.full((s, r), -1)
    rows: dict[int, list[int]] = {}  # track -> its rows of U, newest last
    links: list[tuple[int, int, int]] = []  # track, its row one snapshot earlier, its row
    alive: list[int] = []  # the tracks of the snapshot before
    for t in range(s):
        columns = np.nonzero(present[t])[0]
        new_rows = row_of[t, columns]
        continued = _assigned(gram, [rows[k] for k in alive], new_rows, limit)
        tracks = []
        for j, (column, row) in enumerate(zip(columns, new_rows.tolist(), strict=True)):
            if j in continued:
                track = alive[continued[j]]
                links.append((track, rows[track][-1], row))
                rows[track].append(row)
            else:
                track = len(rows)
                rows[track] = [row]
            member[t, column] = track
            tracks.append(track)
        alive = tracks
    return _tracks_of(snapshots, gram, member, links, len(rows))


def _assigned(gram: Array, earlier: Sequence[Sequence[int]], rows: Array, limit: float) -> Mapping[int, int]:
    """Which of the earlier tracks (their rows of U) each of these rows continues: {place of the row: place of a track}.

    A track's vector at a crossing is a mixture, so the one before it counts too, with less weight.
    """
    if not earlier:
        return {}
    last = np.array([track[-1] for track in earlier])
    last_but_one = np.array([track[-2:][0] for track in earlier])  # the last where there is but one
    newest = np.abs(gram[np.ix_(last, rows)])
    before = np.abs(gram[np.ix_(last_but_one, rows)])
    pairs = zip(*linear_sum_assignment(-(newest + MEMORY * before)), strict=True)
    return {int(j): int(i) for i, j in pairs if max(newest[i, j], before[i, j]) > limit}


def _tracks_of(
    snapshots: Snapshots, gram: Array, member: Array, links: Sequence[tuple[int, int, int]], count: int
) -> Tracks:
    """Values, cosines and signs along the tracks."""
    s = len(member)
    values, cosine = np.full((count, s), np.nan), np.full((count, s), np.nan)
    signs = np.ones(snapshots.count)
    for t, column in zip(*np.nonzero(snapshots.present), strict=True):
        values[member[t, column], t] = snapshots.values[t, column]
    for track, old, new in links:  # in the order of the snapshots, so that signs carry on
        cosine[track, snapshots.owner[new]] = abs(gram[old, new])
        signs[new] = signs[old]
        if gram[old, new] < 0.0:
            signs[new] = -signs[old]
    return Tracks(member, values, cosine, signs, tuple(_crossings(snapshots.steps, values)))


def _crossings(steps: Array, values: Array) -> Iterator[tuple[float, float, int, int]]:
    """Pairs of tracks whose order by eigenvalue changed, with the steps between which it did."""
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
