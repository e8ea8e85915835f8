"""The estimate: what a survey will cost, from a few of its points. Arithmetic alone, NumPy and no measure.

Looked at are the middle and the corners of the grid (of a line its ends), and where points are quick the places
halfway between: each is met from afar, and then its near neighbours, since a start from a neighbour's eigenvectors is
cheaper. Fitted to what was seen is a cost a + b r^2 (+ c for a point met from afar), with r the distance from the
middle; its mean over the grid is the estimate. Seconds are those of one rank, or team. How near it comes:
benchmarks/estimate.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ENOUGH = 0.3  # seconds that are spent on the neighbours of a place, where points are quick
STEPS = 12  # neighbours of a place at most
QUICK = 60.0  # seconds after which no further places are looked at
SPARE = 1.3  # what a time limit allows for beyond the estimate
BREAK_EVEN = 8  # points that a rank should have at least, so that none waits long for the last


@dataclass(frozen=True)
class Sample:
    """One point that was looked at.

    place     which of the places it belongs to, in the order in which they were looked at
    near      whether it was reached from its neighbour
    products  products with the matrix that it took; NaN where the measure counts none
    """

    index: int
    place: int
    near: bool
    seconds: float
    products: float = math.nan


def places(shape: tuple[int, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """The middle and the corners, and the places halfway between: each with its neighbours in the same row.

    Flat indices, in the order of a walk inwards that stays within its half of the row, so that no point is met twice.
    A grid with one tick along an axis has fewer corners.
    """
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    middle = (rows // 2, columns // 2)
    corners = [(r, c) for r in (0, rows - 1) for c in (0, columns - 1)]
    halfway = [((r + middle[0]) // 2, (c + middle[1]) // 2) for r, c in corners]
    found: dict[int, list[int]] = {}
    for r, c in [middle, *corners, *halfway]:
        inwards = -1 if c > columns // 2 else 1
        steps = max(1, (columns - 1) // 4)
        walk = [r * columns + k for k in range(c, c + inwards * (steps + 1), inwards) if 0 <= k < columns]
        found.setdefault(walk[0], walk[: 1 + STEPS])
    known = list(found.values())
    outer = len({r * columns + c for r, c in [middle, *corners]})
    return known[:outer], known[outer:]


def look(
    measured: Callable[[int], Mapping[str, Any]], shape: tuple[int, ...], clock: Callable[[], float]
) -> list[Sample]:
    """Measure the places and their neighbours; those halfway only while that is quick.

    The first of all is measured again at the end, without its set-up.

    measured  flat index -> reading; raises where the point fails
    """
    samples: list[Sample] = []
    begin = clock()
    outer, halfway = places(shape)

    def one(index: int, place: int, near: bool) -> None:
        start = clock()
        reading = measured(index)
        products = float(reading.get("products", math.nan))
        samples.append(Sample(index, place, near, clock() - start, products))

    for place, walk in enumerate([*outer[1:], outer[0], *halfway]):
        if place >= len(outer) and clock() - begin > QUICK:
            break
        spent = clock()
        for step, index in enumerate(walk):
            one(index, place, step > 0)
            if step and clock() - spent > ENOUGH:
                break
    one(samples[0].index, 0, False)
    return samples


@dataclass(frozen=True)
class Estimate:
    """What a survey will cost.

    points      how many
    seconds     of a point, in the mean over the grid, and its spread: the least and the most that were seen
    first       seconds of a point that is met from afar
    setup       seconds that a rank needs before its first point is as quick as the others
    products    of a point, in the mean; NaN where none are counted
    memory      bytes of one rank, in main memory; gpu_memory on its GPU, 0 without one
    file_size   bytes
    again       points that are solved once more, from afar (the audit), each at `again_cost` times `first`
    per_node    ranks on a node, on which `seconds` were measured
    """

    points: int
    seconds: float
    least: float
    most: float
    first: float
    setup: float
    products: float
    memory: int
    gpu_memory: int
    file_size: int
    again: int = 0
    again_cost: float = 1.0
    per_node: int = 1
    looked_at: int = 0
    choice: str = ""

    @property
    def rank_seconds(self) -> float:
        """Seconds of computing for all points, over all ranks, without set-up."""
        return self.points * self.seconds + self.again * self.again_cost * self.first

    def wall(self, ranks: int) -> float:
        """Seconds from the first point to the last with so many ranks, set-up included.

        Shared out evenly, each rank meets its first point from afar, and the last point may come late.
        """
        extra = max(0.0, self.first - self.seconds)
        return self.setup + extra + max(self.rank_seconds / ranks, self.most) + self.most * (ranks > 1) / 2

    def node_hours(self, ranks: int) -> float:
        """Nodes times hours of such a job."""
        return math.ceil(ranks / self.per_node) * self.wall(ranks) / 3600

    def ranks_for(self, seconds: float) -> int:
        """The fewest ranks, in whole nodes beyond the first, that end within so long; no more than are of use."""
        useful = max(1, self.points // BREAK_EVEN)
        ranks = 1
        while ranks < useful and self.wall(ranks) * SPARE > seconds:
            ranks = ranks + 1 if ranks < self.per_node else ranks + self.per_node
        return min(ranks, useful)

    def limit(self, ranks: int) -> int:
        """A time limit for sbatch, in minutes: the estimate and a third, start-up, in fives."""
        return 5 * math.ceil((self.wall(ranks) * SPARE / 60 + 2) / 5)


def over_grid(
    samples: Sequence[Sample], value: Callable[[Sample], float], shape: tuple[int, ...]
) -> tuple[float, float]:
    """The mean over the grid of what `value` says, for points met from their neighbours and for those met from afar.

    a + b r^2 + c [met from afar] is fitted to the samples; neither mean leaves the span of what was seen.
    """
    values = np.array([value(s) for s in samples])
    squares = squared(shape)
    seen = squares[[s.index for s in samples]]
    far = np.array([not s.near for s in samples], dtype=np.float64)
    columns = [np.ones_like(values), seen - seen.mean(), far - far.mean()]
    if not np.isfinite(values).all():
        return math.nan, math.nan
    level, slope, more = np.linalg.lstsq(np.stack(columns, axis=1), values, rcond=None)[0]
    middle = level + slope * (squares.mean() - seen.mean())
    near, afar = (float(np.clip(middle + more * (f - far.mean()), values.min(), values.max())) for f in (0, 1))
    return near, afar


def squared(shape: tuple[int, ...]) -> np.ndarray:
    """The squared distance of every point from the middle, each axis from -1 to 1."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    total: np.ndarray = sum(np.meshgrid(*(a**2 for a in axes), indexing="ij"))  # type: ignore[assignment]
    return total.reshape(-1)


def estimated(samples: Sequence[Sample], shape: tuple[int, ...], **known: Any) -> Estimate:
    """The estimate from what was seen.

    known  memory, gpu_memory, file_size, again, per_node, choice
    """
    begun, *rest, again = samples
    # Set-up is what the first point took beyond its due: what its products took elsewhere, or it itself at the end.
    cost = again.seconds
    if begun.products == begun.products:
        cost = begun.products * float(np.median([s.seconds / s.products for s in (*rest, again)]))
    setup = max(0.0, begun.seconds - cost)
    seen = [replace(begun, seconds=begun.seconds - setup), *rest]
    seconds, first = over_grid(seen, lambda s: s.seconds, shape)
    known = {"memory": 0, "gpu_memory": 0, "file_size": 0} | known
    return Estimate(
        points=math.prod(shape),
        seconds=seconds,
        least=min(s.seconds for s in seen),
        most=max(s.seconds for s in seen),
        first=first,
        setup=setup,
        products=over_grid(seen, lambda s: s.products, shape)[0],
        looked_at=len(samples),
        **known,
    )


def file_of(result: str | Path) -> Path:
    """Where the estimate of a result is kept."""
    return Path(f"{result}.estimate.json")


def keep(result: str | Path, measure: str, estimate: Estimate) -> Path:
    """Write the estimate of a measure beside the result-to-be; those of other measures stay."""
    path = file_of(result)
    known = {k: v for k, v in asdict(estimate).items() if not (isinstance(v, float) and math.isnan(v))}
    path.write_text(json.dumps((stored_estimate(result) or {}) | {measure: known}, indent=1) + "\n")
    return path


def stored_estimate(result: str | Path) -> dict[str, Any] | None:
    """The estimates that lie beside a result, by measure; None where there are none that can be read."""
    try:
        found = json.loads(file_of(result).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def measured_cost(seconds: np.ndarray, products: np.ndarray | None, **known: Any) -> dict[str, Any]:
    """What a measure really took, in the estimate's words: from the seconds (and products) of the points that are done.

    known  what those do not say: wall (seconds from begin to end), ranks, audit (seconds), memory, file_size
    """
    seconds = seconds[np.isfinite(seconds)]
    if seconds.size == 0:
        return {}
    took = {"points": int(seconds.size), "seconds": float(seconds.mean()), "least": float(seconds.min())}
    took |= {"most": float(seconds.max()), "rank_seconds": float(seconds.sum())}
    if products is not None and np.isfinite(products).any():
        took["products"] = float(products[np.isfinite(products)].mean())
    return took | known


def table(value: Any) -> dict[str, Any]:
    """An estimate, or what was taken, as a result holds it: a dict, or its JSON text; empty where there is none."""
    return dict(json.loads(value) if isinstance(value, str) else value or {})


def side_by_side(estimated: Mapping[str, Any], took: Mapping[str, Any], whole: bool = True) -> list[str]:
    """Lines that set what was estimated beside what it took, for whatever both know.

    whole  whether no point is left to do; else what all of them take is left out
    """
    known = Estimate(**{"products": math.nan, **estimated})
    told: dict[str, Any] = dict(estimated)
    if whole:
        told["rank_seconds"] = known.points * known.seconds
        told["audit"] = known.rank_seconds - told["rank_seconds"]
        told["wall"] = known.wall(int(took.get("ranks", 1)))
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("seconds", "seconds a point", lambda v: f"{v:.3g} s"),
        ("products", "products a point", lambda v: f"{v:.3g}"),
        ("rank_seconds", "all points, over all ranks", span_text),
        ("audit", "the audit, over all ranks", span_text),
        ("wall", f"from begin to end, {took.get('ranks', 1)} ranks", span_text),
        ("memory", "memory of a rank", size_text),
        ("file_size", "file", size_text),
    ]
    return [
        f"{words:29} estimated {form(told[name]):>9}   took {form(took[name]):>9}"
        for name, words, form in rows
        if told.get(name) and took.get(name)
    ]


def span_text(seconds: float) -> str:
    """A span of time as people say it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def size_text(size: float) -> str:
    """A number of bytes as people say it."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(size, 1)) / 3))
    return f"{size / 1000**power:.3g} {units[power]}"
