"""The merge tree against sublevel sets that are flooded afresh at every level, ties and holes included."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lossmap.topology.merge_tree import NONE, merge_tree

VALUES = arrays(
    np.float64,
    st.one_of(st.tuples(st.integers(1, 12)), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    elements=st.sampled_from([0.0, 1.0, 2.0, 2.5, 3.0, np.nan, np.inf]),
)


def neighbours(values, point, diagonal):
    at = np.unravel_index(point, values.shape)
    for step in product((-1, 0, 1), repeat=values.ndim):
        to = tuple(np.add(at, step))
        inside = all(0 <= i < n for i, n in zip(to, values.shape, strict=True))
        if any(step) and inside and (diagonal or sum(map(abs, step)) == 1) and np.isfinite(values[to]):
            yield int(np.ravel_multi_index(to, values.shape))


def flooded(values, level, diagonal):
    """The connected parts of {f <= level}, as sets of points."""
    left = {int(i) for i in np.flatnonzero(values.reshape(-1) <= level)}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            part.add(edge[-1])
            more = [n for n in neighbours(values, edge.pop(), diagonal) if n in left]
            left -= set(more)
            edge += more
        parts.append(part)
    return parts


def pairs_by_flooding(values, diagonal):
    """(birth, death) of each part that lives longer than a level: where two meet the one born later ends."""
    flat, alive, pairs = values.reshape(-1), [], []  # alive: (birth, any point)
    for level in np.unique(flat[np.isfinite(flat)]):
        parts = flooded(values, level, diagonal)
        still = []
        for part in parts:
            inside = sorted((birth, point) for birth, point in alive if point in part)
            pairs += [(birth, level) for birth, _ in inside[1:]]
            still.append(inside[0] if inside else (level, min(part)))
        alive = still
    return sorted([*pairs, *((birth, np.inf) for birth, _ in alive)])


def pairs_of(values, diagonal):
    tree, flat = merge_tree(values, diagonal=diagonal), values.reshape(-1)
    deaths = [flat[s] if s != NONE else np.inf for s in tree.saddle]
    return sorted(zip(flat[tree.minimum].tolist(), map(float, deaths), strict=True))


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans())
def test_pairs_are_those_of_flooded_sublevel_sets(values, diagonal):
    assert pairs_of(values, diagonal) == pairs_by_flooding(values, diagonal)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.booleans())
def test_each_basin_is_one_piece_that_holds_its_minimum_and_nothing_lower(values, diagonal):
    tree = merge_tree(values, diagonal=diagonal)
    flat, basin = values.reshape(-1), tree.basin.reshape(-1)
    assert np.array_equal(basin != NONE, np.isfinite(flat))
    assert np.array_equal(basin[tree.minimum], np.arange(len(tree.minimum)))
    for row, minimum in enumerate(tree.minimum):
        own = np.where(tree.basin == row, 0.0, np.nan)
        assert len(flooded(own, 0.0, diagonal)) == 1
        assert flat[basin == row].min() == flat[minimum]
    assert (np.diff(flat[tree.minimum]) >= 0).all()
    assert all(into < row for row, into in enumerate(tree.into))


def test_a_saddle_belongs_to_the_tree_of_a_double_well():
    x = np.linspace(-1.5, 1.5, 31)
    values = np.add.outer((x / 2) ** 2, (x**2 - 1) ** 2 + 0.1 * x)  # rows are y
    tree = merge_tree(values)
    at = [(float(x[p % 31]), float(x[p // 31])) for p in (*tree.minimum, tree.saddle[1], tree.exit[0])]
    assert np.round(at, 6).tolist() == [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert tree.into.tolist() == [NONE, 0] and tree.saddle[0] == NONE


def test_neighbours_in_a_corner_count_or_not():
    values = np.array([[0.0, 5.0], [6.0, 1.0]])
    assert len(merge_tree(values).minimum) == 1
    tree = merge_tree(values, diagonal=False)
    assert tree.minimum.tolist() == [0, 3] and values.reshape(-1)[tree.saddle[1]] == 5.0


def test_a_small_change_of_the_values_moves_no_pair_by_more():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(30, 30))
    moved = values + 0.01 * rng.uniform(-1, 1, size=values.shape)
    for persistence in (0.3, 0.6):  # of pairs that are no longer than this on either side, the numbers agree
        counts = []
        for v, more in ((values, 0.02), (moved, 0.0), (values, -0.02)):
            counts.append(sum(d - b > persistence + more for b, d in pairs_of(v, True)))
        assert counts[0] <= counts[1] <= counts[2]


@pytest.mark.parametrize("shape", [(), (0,)])
def test_there_may_be_nothing(shape):
    tree = merge_tree(np.full(shape or (2, 3), np.nan))
    assert tree.minimum.size == 0 and (tree.basin == NONE).all()
