"""Persistence and merge trees against gudhi, Landscaper and the library that it uses (topopy), with times.

    pip install gudhi topopy nglpy pandas landscaper
    python benchmarks/topology.py [--landscaper] [SURFACE.h5 ...]

Random surfaces, with and without ties, smooth ones, and those of the files. gudhi: pairs of 0-dimensional sublevel
persistence of the cubical complex on vertices. topopy: edges of the merge tree over the graph that Landscaper 1.3
takes (empty region graph, beta 1), which on a grid is that of 4 neighbours; only without ties, which it breaks by an
order of its own. Prints the largest difference of a pair, what differs of the trees, and seconds (best of three).

--landscaper: Landscaper's own merge tree, `LossLandscape.get_sublevel_tree`, of 20 random surfaces, a rugged one and
those of the files: how many nodes and edges differ, and the largest difference of the heights of minima and saddles
that are read off its edges by the elder rule.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lossmap
from lossmap.topology.merge_tree import NONE, merge_tree

MAX_TOPOPY = 2601  # points: its graph takes a minute beyond


def surfaces(files: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values."""
    rng = np.random.default_rng(0)
    for n in (9, 51, 201):
        yield f"random {n}x{n}", rng.normal(size=(n, n))
        yield f"ties {n}x{n}", rng.integers(0, 6, size=(n, n)).astype(float)
        x = np.linspace(-1, 1, n)
        yield f"smooth {n}x{n}", np.add.outer(x**2, x**2) + 0.3 * np.outer(np.cos(9 * x), np.sin(11 * x + 0.3))
    for file in files:
        yield file.rpartition("/")[2], lossmap.read(file, lossmap.Surface)["train_loss"]


def best(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the shortest of three times."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


def gudhi_pairs(values: np.ndarray) -> np.ndarray:
    """Its pairs of positive persistence, sorted."""
    import gudhi

    complex_ = gudhi.CubicalComplex(vertices=values)
    complex_.compute_persistence(homology_coeff_field=2, min_persistence=0)
    pairs = complex_.persistence_intervals_in_dimension(0)
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    return pairs[np.lexsort(pairs.T)]


def our_pairs(values: np.ndarray) -> np.ndarray:
    """Ours, alike."""
    tree, flat = merge_tree(values, diagonal=False), values.reshape(-1)
    pairs = np.stack([flat[tree.minimum], np.where(tree.saddle == NONE, np.inf, flat[tree.saddle])], axis=1)
    return pairs[np.lexsort(pairs.T)]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two diagrams; infinite where their numbers of pairs differ."""
    if a.shape != b.shape or not np.array_equal(np.isinf(a), np.isinf(b)):
        return np.inf
    finite = np.isfinite(a)
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def edges_of(values: np.ndarray) -> set[tuple[int, int]]:
    """The edges of our merge tree between minima, saddles and the highest point."""
    tree, flat = merge_tree(values, diagonal=False), values.reshape(-1)
    top = {int(m): int(m) for m in tree.minimum}  # a lowest minimum -> the highest node of its part
    edges = set()
    rows = np.argsort(np.where(tree.saddle == NONE, np.inf, flat[tree.saddle]))
    for row in rows:
        minimum, saddle = int(tree.minimum[row]), int(tree.saddle[row])
        if saddle == NONE:
            edges.add((top[minimum], int(flat.argmax())))
            continue
        lower = int(tree.minimum[tree.into[row]])
        edges |= {(top[m], saddle) for m in (minimum, lower) if top[m] != saddle}
        top[lower] = saddle
    return edges


def landscaper_tree(values: np.ndarray) -> Any:
    """Landscaper's tree of the sublevel sets of values (y, x)."""
    from landscaper import LossLandscape

    ranges = [np.linspace(-1, 1, n) for n in values.shape[::-1]]
    return LossLandscape(values, ranges).get_sublevel_tree()


def pairs_of_edges(values: np.ndarray, edges: list[tuple[int, int]]) -> np.ndarray:
    """The pairs of minima and saddles of a merge tree that is given by its edges, (k, 2), sorted by both heights."""
    flat = values.reshape(-1)
    below: dict[int, list[int]] = {}  # a node -> those that hang from it
    for a, b in edges:
        low, high = sorted((a, b), key=lambda i: flat[i])
        below.setdefault(high, []).append(low)
    lowest: dict[int, int] = {}  # a node -> the lowest minimum below it
    pairs = []
    nodes = sorted({i for edge in edges for i in edge}, key=lambda i: flat[i])
    for node in nodes:
        minima = sorted((lowest[i] for i in below.get(node, [])), key=lambda i: flat[i]) or [node]
        lowest[node] = minima[0]
        pairs += [(flat[minimum], flat[node]) for minimum in minima[1:]]
    pairs.append((flat[lowest[nodes[-1]]], np.inf))
    result = np.array(pairs)
    return result[np.lexsort(result.T)]


def against_landscaper(files: list[str]) -> bool:
    """Print a row for each surface; whether all heights agree to 1e-12."""
    print(f"Landscaper {importlib.metadata.version('landscaper')}, 4 neighbours")
    x = np.linspace(-1, 1, 41)
    xs, ys = np.meshgrid(x, x)
    rugged = 2 + xs**2 + ys**2 + 0.4 * np.sin(9 * xs) * np.cos(7 * ys) + 0.2 * np.sin(17 * xs + 11 * ys)
    subjects = [("rugged 41x41", rugged)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = tuple(int(n) for n in rng.integers(5, 30, size=2))
        subjects.append((f"random {shape[0]}x{shape[1]}, seed {seed}", rng.normal(size=shape)))
    for file in files:
        subjects.append((file.rpartition("/")[2], lossmap.read(file, lossmap.Surface)["train_loss"]))
    agree = True
    for name, values in subjects:
        began = time.perf_counter()
        theirs = landscaper_tree(values)
        seconds = time.perf_counter() - began
        edges = {tuple(sorted(e)) for e in theirs.edges}
        own = {tuple(sorted(e)) for e in edges_of(values)}
        off = difference(our_pairs(values), pairs_of_edges(values, list(theirs.edges)))
        agree &= off <= 1e-12
        ties = values.size - np.unique(values).size
        print(
            f"{name:28} {len(our_pairs(values)):4} pairs, heights differ by {off:.1e}, {len(edges ^ own)} of "
            f"{len(edges)} edges differ, {ties} ties, {seconds:.2f} s",
            flush=True,
        )
    return agree


def main() -> int:
    """Print a row for each surface."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--landscaper", action="store_true", help="Landscaper's own merge tree, and nothing else")
    args = parser.parse_args()
    missing = [n for n in ("gudhi", "nglpy", "topopy", "landscaper") if importlib.util.find_spec(n) is None]
    if not args.landscaper and missing == ["landscaper"]:
        missing = []
    if missing:
        print(f"skipped: {', '.join(missing)} is not installed (pip install {' '.join(missing)})")
        return 0
    if args.landscaper:
        return 0 if against_landscaper(args.files) else 1
    import nglpy
    import topopy

    for name, values in surfaces(args.files):
        theirs, gudhi_seconds = best(lambda v=values: gudhi_pairs(v))
        ours, seconds = best(lambda v=values: our_pairs(v))
        row = f"{name:18} {len(ours):6} pairs  off gudhi by {difference(ours, theirs):.1e}"
        row += f"  {seconds:.4f} s, gudhi {gudhi_seconds:.4f} s"
        if values.size <= MAX_TOPOPY and np.unique(values).size == values.size:
            points = np.argwhere(np.ones(values.shape)).astype(float)
            began = time.perf_counter()
            tree = topopy.MergeTree(graph=nglpy.EmptyRegionGraph(beta=1.0, relaxed=False, p=2.0))
            tree.build(points, values.reshape(-1))
            taken = time.perf_counter() - began
            own = edges_of(values)
            differing = {tuple(sorted(e)) for e in own} ^ {tuple(sorted(e)) for e in tree.edges}
            row += f"; topopy {len(tree.edges)} edges, {len(differing)} differ, {taken:.3f} s"
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
