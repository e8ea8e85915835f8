"""The merge tree of the sublevel sets of a function on a grid: minima, the saddles where they merge, persistence.

    f          (x,) or (y, x) values; points that are not finite are no part of the grid
    {f <= t}   the sublevel set at level t, of which the tree keeps the connected parts: one is born at each minimum,
               and where two meet, at a saddle, the one whose minimum is higher ends (elder rule)
    persistence = f(saddle) - f(minimum), how far that minimum must be climbed out of to reach a lower one

Points are ordered by value and, where these are equal, by flat index, so that ties are broken always alike; pairs of
persistence 0, which only ties make, are left out, and their basins joined. Every point runs down to its lowest
neighbour until it stands in a minimum: these basins are joined by their lowest passes in ascending order, which gives
the same pairs as the sublevel sets of single points, since each point is joined to its minimum within its own sublevel
set. Source: Edelsbrunner and Harer, Computational Topology (2010), chapters VI.3 and VII.

`counted_tree` is the tree of some of the minima, as it stands without the others: the basin of each other one is joined
across its lowest pass, in ascending order, until it belongs to one of them, so that basins stay connected (a minimum
spanning forest rooted in markers: Meyer, 1994); and minima merge where the first lower one of them is met.

Price: some 30 operations on arrays of the grid, and one step in Python for each pair of neighbouring basins; as many
steps for `counted_tree`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

NONE = -1  # no point, no row


@dataclass(frozen=True, eq=False)
class MergeTree:
    """Minima by ascending value, each with the saddle at which it ends. Points are flat indices in C order.

    minimum  (m,) the points
    saddle   (m,) where the minimum's part meets that of a lower one; -1: it meets none
    into     (m,) the row of the lower minimum that it joins there; -1: none
    exit     (m,) the lowest pass out of the minimum's own basin, a point; -1: there is no other basin beside it
    basin    (x,) or (y, x): the row of the minimum to which a point runs down; -1: not finite
    sides    (p, 2) rows of each two basins that touch, in ascending order of the lowest pass between them
    passes   (p,) these passes, points
    """

    minimum: np.ndarray
    saddle: np.ndarray
    into: np.ndarray
    exit: np.ndarray
    basin: np.ndarray
    sides: np.ndarray
    passes: np.ndarray


def merge_tree(values: np.ndarray, *, diagonal: bool = True) -> MergeTree:
    """The merge tree of values on a grid.

    values    (x,) or (y, x)
    diagonal  whether points that touch in a corner are neighbours: 8 in a plane, rather than 4
    """
    shape, flat = np.shape(values), np.asarray(values, dtype=float).reshape(-1)
    finite = np.isfinite(flat)
    order = np.argsort(np.where(finite, flat, np.inf), kind="stable")  # not finite: last
    rank = np.empty(flat.size, dtype=np.int64)
    rank[order] = np.arange(flat.size)
    rank[~finite] = flat.size
    pairs = list(_neighbours(shape, finite, diagonal))
    root = _bottoms(rank, order, pairs)
    passes = _lowest_passes(rank, root, pairs)
    tree = _joined(flat, order, root, passes)
    return replace(tree, basin=tree.basin.reshape(shape))


def counted_tree(tree: MergeTree, values: np.ndarray, counts: np.ndarray) -> MergeTree:
    """The tree of those minima that count, in the rows of the whole tree.

    values  of which it is the tree
    counts  (m,) whether a minimum counts; of each connected part of the grid the lowest has to

    Of a minimum that does not count, `into` is the one to whose basin its own is joined, `saddle` the pass there, and
    `exit` the lowest pass out of its own basin. What merges at one level merges into the lowest of all.
    """
    rows, flat = len(tree.minimum), np.asarray(values).reshape(-1)
    saddle, into, exits = np.full(rows, NONE), np.full(rows, NONE), np.where(counts, NONE, tree.exit)
    parts, basins = _Parts(counts), _Parts(counts)
    for (left, right), point in zip(tree.sides.tolist(), tree.passes.tolist(), strict=True):
        lower, higher = sorted((parts.lowest(left), parts.lowest(right)))
        if higher < rows and lower != higher:
            saddle[higher], into[higher] = point, lower
        parts.join(left, right)
        lower, higher = sorted((basins.lowest(left), basins.lowest(right)))
        if higher == rows:
            basins.join(left, right, at=point)
    row = np.array([basins.lowest(i) for i in range(rows)], dtype=np.int64)
    others = np.flatnonzero(~counts)
    into[others], saddle[others] = row[others], [basins.owned_at[i] for i in others.tolist()]
    _set_exits(exits, row[tree.sides], tree.passes)
    for i in np.flatnonzero(counts & (into != NONE)):  # ascending, so that the lower minimum is settled first
        if saddle[into[i]] != NONE and flat[saddle[into[i]]] == flat[saddle[i]]:
            into[i] = into[into[i]]
    basin = np.where(tree.basin == NONE, NONE, row[tree.basin])
    return replace(tree, saddle=saddle, into=into, exit=exits, basin=basin)


def _set_exits(exits: np.ndarray, sides: np.ndarray, points: np.ndarray) -> None:
    """Set those that are not set yet: (m,) the first of the ascending passes to another basin."""
    for (left, right), point in zip(sides.tolist(), points.tolist(), strict=True):
        for own in (left, right) if left != right else ():
            exits[own] = point if exits[own] == NONE else exits[own]


class _Parts:
    """Rows that are joined to parts, of which each knows its lowest row that counts."""

    def __init__(self, counts: np.ndarray) -> None:
        rows = len(counts)
        self._members = [[i] for i in range(rows)]
        self._part = list(range(rows))
        self._lowest = [i if c else rows for i, c in enumerate(counts)]
        self.owned_at = [NONE] * rows  # by row: the pass by which its part got a row that counts

    def lowest(self, row: int) -> int:
        """The lowest row that counts in this one's part; as many as there are rows where there is none."""
        return self._lowest[self._part[row]]

    def join(self, one: int, other: int, at: int = NONE) -> None:
        """Make one part of two, by a pass."""
        large, small = sorted((self._part[one], self._part[other]), key=lambda p: -len(self._members[p]))
        if large == small:
            return
        lowest = min(self._lowest[large], self._lowest[small])
        for part in (large, small):
            if lowest < len(self._part) == self._lowest[part]:
                for row in self._members[part]:
                    self.owned_at[row] = at
        for row in self._members[small]:
            self._part[row] = large
        self._members[large] += self._members[small]
        self._lowest[large] = lowest


@dataclass(frozen=True, eq=False)
class _Passes:
    """The lowest pass between each two basins that touch: the minima on both sides (k, 2), and its rank (k,)."""

    sides: np.ndarray
    rank: np.ndarray


def _neighbours(shape: tuple[int, ...], finite: np.ndarray, diagonal: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of neighbours that are finite, as two arrays of flat indices for each kind of step."""
    index = np.arange(finite.size).reshape(shape)
    for step in product((-1, 0, 1), repeat=len(shape)):
        if step <= (0,) * len(shape) or (sum(map(abs, step)) > 1 and not diagonal):
            continue  # of two opposite steps one is enough
        own = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
        other = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
        a, b = index[own].reshape(-1), index[other].reshape(-1)
        both = finite[a] & finite[b]
        yield a[both], b[both]


def _bottoms(rank: np.ndarray, order: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The minimum to which each point runs down, (points,)."""
    lowest = rank.copy()
    for a, b in pairs:  # within one kind of step no point stands twice on one side
        lowest[a] = np.minimum(lowest[a], rank[b])
        lowest[b] = np.minimum(lowest[b], rank[a])
    root = np.arange(rank.size)
    finite = rank < rank.size
    root[finite] = order[lowest[finite]]
    while not np.array_equal(root, further := root[root]):
        root = further
    return root


def _lowest_passes(rank: np.ndarray, root: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> _Passes:
    """The lowest pass between each two basins that touch, in ascending order."""
    sides, height = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for a, b in pairs:
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
        sides.append(np.sort(np.stack([root[a], root[b]], axis=1), axis=1))
        height.append(np.maximum(rank[a], rank[b]))
    both, heights = np.concatenate(sides), np.concatenate(height)
    by_sides = np.lexsort((heights, both[:, 1], both[:, 0]))
    both, heights = both[by_sides], heights[by_sides]
    is_first = np.ones(len(both), dtype=bool)
    is_first[1:] = (both[1:] != both[:-1]).any(axis=1)
    both, heights = both[is_first], heights[is_first]
    ascending = np.argsort(heights, kind="stable")
    return _Passes(both[ascending], heights[ascending])


def _joined(flat: np.ndarray, order: np.ndarray, root: np.ndarray, passes: _Passes) -> MergeTree:
    """Join the basins by their passes in ascending order; what ties alone made goes into the basin across the pass."""
    finite = np.isfinite(flat)
    minima = np.unique(root[finite])
    lowest = {int(m): int(m) for m in minima}  # of a joined part: a minimum -> on the way to its lowest
    place = {int(m): i for i, m in enumerate(minima[np.lexsort((minima, flat[minima]))])}
    saddles, into, tied = {}, {}, {}

    def lowest_of(minimum: int) -> int:
        while lowest[minimum] != minimum:
            lowest[minimum] = lowest[lowest[minimum]]
            minimum = lowest[minimum]
        return minimum

    for (left, right), height in zip(passes.sides.tolist(), passes.rank.tolist(), strict=True):
        ends = {lowest_of(left): right, lowest_of(right): left}  # lowest of a part -> minimum across the pass
        if len(ends) == 1:
            continue
        lower, higher = sorted(ends, key=place.__getitem__)
        saddle = int(order[height])
        lowest[higher] = lower
        if flat[saddle] == flat[higher]:
            tied[higher] = ends[higher]
        else:
            saddles[higher], into[higher] = saddle, lower

    def kept(minimum: int) -> int:
        while minimum in tied:
            minimum = tied[minimum]
        return minimum

    real = [m for m in place if m not in tied]
    row = {m: i for i, m in enumerate(real)}
    row |= {m: row[kept(m)] for m in tied}
    basin = np.full(flat.size, NONE)
    table = np.full(flat.size, NONE)
    table[list(row)] = list(row.values())
    basin[finite] = table[root[finite]]
    sides, points = table[passes.sides], order[passes.rank]
    exits = np.full(len(real), NONE)
    _set_exits(exits, sides, points)
    return MergeTree(
        minimum=np.array(real, dtype=np.int64),
        saddle=np.array([saddles.get(m, NONE) for m in real], dtype=np.int64),
        into=np.array([row[into[m]] if m in into else NONE for m in real], dtype=np.int64),
        exit=exits,
        basin=basin,
        sides=sides,
        passes=points,
    )
