"""The cost model: what a survey will cost, estimated from a few of its points. Arithmetic alone, NumPy and no measure.

Sampled are the middle and the corners of the grid (of a line its ends) and, where points are quick, the sites halfway
between: each cold (from nothing), and then some of its neighbours warm, since a start from a neighbour's eigenvectors
is cheaper. Fitted to these samples by least squares is a cost a + b r^2 + c [cold], with r the distance from the
middle; its mean over the grid is the estimate. Seconds are those of one rank, or team. Accuracy:
benchmarks/estimate.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.report.price import size_text, span_text
from lossmap.special_files import plain_text

SECONDS_PER_SITE = 0.3  # after which no further neighbour of a site is sampled
MAX_NEIGHBOURS = 12  # of a site
SECONDS_FOR_HALFWAY = 60.0  # after which no site halfway between is sampled
LIMIT_MARGIN = 1.3  # factor by which a time limit exceeds the estimate
MIN_POINTS_PER_RANK = 8  # with fewer, ranks wait long for the last point


@dataclass(frozen=True)
class Sample:
    """One point that was sampled.

    index     flat index
    site      which of the sites it belongs to, in the order in which they were sampled
    warm      whether it was started from its neighbour
    seconds   that it took
    products  products with the matrix that it took; NaN where the measure counts none
    """

    index: int
    site: int
    warm: bool
    seconds: float
    products: float = math.nan


def sample_sites(shape: tuple[int, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """The middle and the corners of a grid of this shape, and the sites halfway between, each with its neighbours.

    Returns lists of flat indices: a site and its neighbours in the same row, inwards and within their half of the row,
    so that no point is sampled twice. A grid with one tick along an axis has fewer corners.
    """
    rows, columns = (1, *shape)[-2:]  # a line is one row
    middle = (rows // 2, columns // 2)
    corners = [(r, c) for r in (0, rows - 1) for c in (0, columns - 1)]
    halfway = [((r + middle[0]) // 2, (c + middle[1]) // 2) for r, c in corners]
    by_site: dict[int, list[int]] = {}
    for r, c in [middle, *corners, *halfway]:
        inwards = 1
        if c > columns // 2:
            inwards = -1
        steps = max(1, (columns - 1) // 4)
        indices = [r * columns + k for k in range(c, c + inwards * (steps + 1), inwards) if 0 <= k < columns]
        by_site.setdefault(indices[0], indices[: 1 + MAX_NEIGHBOURS])
    sites = list(by_site.values())
    outer = len({r * columns + c for r, c in [middle, *corners]})
    return sites[:outer], sites[outer:]


def sample_points(
    evaluate: Callable[[int], Mapping[str, Any]], shape: tuple[int, ...], clock: Callable[[], float]
) -> list[Sample]:
    """Evaluate the sites and their neighbours; those halfway only while that is quick.

    evaluate  flat index -> reading
    shape     of the grid
    clock     returns seconds

    Returns the samples in order; the first point comes again at the end, without its set-up. Raises what `evaluate`
    raises.
    """
    samples: list[Sample] = []
    start = clock()
    outer, halfway = sample_sites(shape)

    def sample(index: int, site: int, warm: bool) -> None:
        began = clock()
        reading = evaluate(index)
        products = float(reading.get("products", math.nan))
        samples.append(Sample(index, site, warm, clock() - began, products))

    for site, indices in enumerate([*outer[1:], outer[0], *halfway]):
        began = clock()
        if site >= len(outer) and began - start > SECONDS_FOR_HALFWAY:
            break
        for step, index in enumerate(indices):
            sample(index, site, warm=step > 0)
            if step and clock() - began > SECONDS_PER_SITE:
                break
    sample(samples[0].index, 0, warm=False)
    return samples


@dataclass(frozen=True)
class Estimate:
    """What a survey will cost. The names are those in the result file and in the JSON file beside it.

    points      how many
    seconds     mean seconds of a point over the grid; least and most: the smallest and largest of the samples
    first       mean seconds of a cold point
    setup       seconds that a rank needs before its first point is as quick as the others
    products    mean products of a point; NaN where none are counted
    memory      bytes of one rank, in main memory; gpu_memory on its GPU, 0 without one
    file_size   bytes
    again       points that are solved once more, cold (the audit), each at `again_cost` times `first`
    per_node    ranks on a node while `seconds` were measured
    looked_at   number of samples
    choice      the backend that a probe has chosen, if any
    beside      seconds before the first point and after the last that one rank works, and the others wait
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
    beside: float = 0.0

    @property
    def rank_seconds(self) -> float:
        """Seconds of computing for all points, over all ranks, without set-up."""
        return self.points * self.seconds + self.again * self.again_cost * self.first

    def wall(self, ranks: int) -> float:
        """Seconds from the first point to the last with so many ranks, set-up and what is beside them included.

        Each rank's first point is cold, and the last point may come late.
        """
        extra = max(0.0, self.first - self.seconds)
        return (
            self.beside + self.setup + extra + max(self.rank_seconds / ranks, self.most) + self.most * (ranks > 1) / 2
        )

    def node_hours(self, ranks: int) -> float:
        """Nodes times hours of such a job."""
        return math.ceil(ranks / self.per_node) * self.wall(ranks) / 3600

    def ranks_for(self, seconds: float) -> int:
        """The fewest ranks, in whole nodes beyond the first, that end within so many seconds, but no more than help."""
        useful = max(1, self.points // MIN_POINTS_PER_RANK)
        ranks = 1
        while ranks < useful and self.wall(ranks) * LIMIT_MARGIN > seconds:
            ranks += 1 if ranks < self.per_node else self.per_node
        return min(ranks, useful)

    def limit(self, ranks: int) -> int:
        """A time limit for sbatch, in minutes: the estimate and a third, start-up, in fives."""
        return 5 * math.ceil((self.wall(ranks) * LIMIT_MARGIN / 60 + 2) / 5)


def grid_means(
    samples: Sequence[Sample], value: Callable[[Sample], float], shape: tuple[int, ...]
) -> tuple[float, float]:
    """The mean over the grid of a value of the samples, for warm points and for cold ones.

    samples  at least one
    value    what is averaged, such as seconds
    shape    of the grid

    Returns both means of the fit a + b r^2 + c [cold], clipped to the range of the samples; NaN where a value is not
    finite.
    """
    values = np.array([value(s) for s in samples])
    squares = squared_distances(shape)
    at_samples = squares[[s.index for s in samples]]
    cold = np.array([not s.warm for s in samples], dtype=np.float64)
    # centred: with few samples, lstsq's smallest solution then keeps the level and drops what is not determined
    columns = [np.ones_like(values), at_samples - at_samples.mean(), cold - cold.mean()]
    if not np.isfinite(values).all():
        return math.nan, math.nan
    level, slope, extra = np.linalg.lstsq(np.stack(columns, axis=1), values, rcond=None)[0]
    mean = level + slope * (squares.mean() - at_samples.mean())
    warm_mean, cold_mean = np.clip(mean + extra * (np.array([0, 1]) - cold.mean()), values.min(), values.max())
    return float(warm_mean), float(cold_mean)


def squared_distances(shape: tuple[int, ...]) -> np.ndarray:
    """The squared distance of every point from the middle, (points,), each axis from -1 to 1."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    total: np.ndarray = sum(np.meshgrid(*(a**2 for a in axes), indexing="ij"))  # type: ignore[assignment]
    return total.reshape(-1)


def fit_estimate(samples: Sequence[Sample], shape: tuple[int, ...], **known: Any) -> Estimate:
    """The estimate from the samples.

    samples  of `sample_points`: the first point comes twice, first and last
    shape    of the grid
    known    memory, gpu_memory, file_size, again, per_node, choice, beside: see `Estimate`
    """
    first_sample, *others, repeated = samples
    # Set-up is what the first point took beyond its cost: that of its products elsewhere, or its own at the end.
    cost = repeated.seconds
    if not math.isnan(first_sample.products):
        per_product = float(np.median([s.seconds / s.products for s in (*others, repeated)]))
        cost = first_sample.products * per_product
    # counted apart, since each rank has it once
    setup = max(0.0, first_sample.seconds - cost)
    used = [replace(first_sample, seconds=first_sample.seconds - setup), *others]
    seconds, first = grid_means(used, lambda s: s.seconds, shape)
    known = {"memory": 0, "gpu_memory": 0, "file_size": 0} | known
    return Estimate(
        points=math.prod(shape),
        seconds=seconds,
        least=min(s.seconds for s in used),
        most=max(s.seconds for s in used),
        first=first,
        setup=setup,
        products=grid_means(used, lambda s: s.products, shape)[0],
        looked_at=len(samples),
        **known,
    )


def estimate_path(result: str | Path) -> Path:
    """The file beside a result that holds its estimates."""
    return Path(f"{result}.estimate.json")


def write_estimate(result: str | Path, measure: str, estimate: Estimate) -> Path:
    """Write the estimate of a measure beside the future result; those of other measures stay. Returns the file.

    Raises OSError where the folder cannot be written to.
    """
    path = estimate_path(result)
    # NaN is no JSON
    values = {k: v for k, v in asdict(estimate).items() if not (isinstance(v, float) and math.isnan(v))}
    path.write_text(json.dumps((stored_estimate(result) or {}) | {measure: values}, indent=1) + "\n")
    return path


def stored_estimate(result: str | Path) -> dict[str, Any] | None:
    """The estimates that lie beside a result, by measure; None where there are none that can be read."""
    try:
        estimates = json.loads(plain_text(estimate_path(result)))
    except (OSError, ValueError):
        return None
    return estimates if isinstance(estimates, dict) else None


def measured_cost(seconds: np.ndarray, products: np.ndarray | None, **known: Any) -> dict[str, Any]:
    """The actual cost of a measure, under the estimate's names.

    seconds   of each point, any shape; NaN where it is not done
    products  of each point, or None where none are counted
    known     further values: wall (seconds from start to end), ranks, audit (seconds), memory, file_size

    Returns an empty dict where no point is done.
    """
    seconds = seconds[np.isfinite(seconds)]
    if seconds.size == 0:
        return {}
    cost = {"points": int(seconds.size), "seconds": float(seconds.mean()), "least": float(seconds.min())}
    cost |= {"most": float(seconds.max()), "rank_seconds": float(seconds.sum())}
    if products is not None and np.isfinite(products).any():
        cost["products"] = float(products[np.isfinite(products)].mean())
    return cost | known


def decode_cost(value: Any) -> dict[str, Any]:
    """An estimate or an actual cost as a result file holds it: a dict, its JSON text, or None; empty for None."""
    if isinstance(value, str):
        value = json.loads(value)
    return dict(value or {})


def is_estimate(values: Mapping[str, Any]) -> bool:
    """Whether decoded values are those of an estimate: what it always has, and nothing that it has not."""
    names = {field.name: field.default is MISSING and field.name != "products" for field in fields(Estimate)}
    return set(values) <= set(names) and all(name in values for name, is_needed in names.items() if is_needed)


def side_by_side(estimated: Mapping[str, Any], took: Mapping[str, Any], whole: bool = True) -> list[str]:
    """Lines that compare the estimated with the actual cost, for values that both hold.

    estimated, took  estimate and actual cost, as `decode_cost` returns them
    whole            whether no point is left to do; else costs of all points are left out
    """
    known = Estimate(**{"products": math.nan, **estimated})
    predicted: dict[str, Any] = dict(estimated)
    if whole:
        predicted["rank_seconds"] = known.points * known.seconds
        predicted["audit"] = known.rank_seconds - predicted["rank_seconds"]
        predicted["wall"] = known.wall(int(took.get("ranks", 1)))
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("seconds", "seconds a point", lambda v: f"{v:.3g} s"),
        ("products", "products a point", lambda v: f"{v:.3g}"),
        ("rank_seconds", "all points, over all ranks", span_text),
        ("audit", "the audit, over all ranks", span_text),
        ("wall", f"from start to end, {took.get('ranks', 1)} ranks", span_text),
        ("memory", "memory of a rank", size_text),
        ("file_size", "file", size_text),
    ]
    return [
        f"{label:29} estimated {form(predicted[name]):>9}   took {form(took[name]):>9}"
        for name, label, form in rows
        if predicted.get(name) and took.get(name)
    ]
