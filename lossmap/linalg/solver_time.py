"""What a solver takes beside its products, for a price stated before the work: measured on this machine in some 50 ms.

    seconds_of_step(n, dtype, m)    of one of m steps of a search: orthogonalisation, Ritz values, the decision
    seconds_of_parts(parts, dtype)  of all that is computed of one operator
    density_seconds(steps, probes)  of a density's error band, where it is computed and once more where it is reported

With a small network these are most of the time: a product takes half a millisecond, and a step three. Symbols: n the
dimension; m the steps of a probe's run; s probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
import torch
from torch import Tensor

from lossmap.linalg.expected_products import SpectrumParts, ends_products, trace_products
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.quadrature import GAP_TICKS, MIN_CHOSEN_STEPS, STEPS_BETWEEN_CHECKS, LanczosRun
from lossmap.linalg.spectral_density import BAND_TICKS, REFINED_CELLS

CPU = torch.device("cpu")
Clock = Callable[[], float]

TIMED_STEPS = 24  # of a search: as many as a usual one has
MAX_TIMED_SIZE = 1 << 16  # of the operator that they are timed with; more entries take in proportion
MARGIN_TICKS = 15  # beside the band's, about
USUAL_STEPS = 56  # of a probe whose steps the error chooses, about
SMALL_SIZE = 256  # of an operator whose orthogonalisation takes next to no time
SPLIT_SHARE = 0.6  # of several eigenvalues' products, that one basis holds: what was found is taken out by another
SEARCH_BYTES, MIN_HELD = 1 << 30, 8  # of a search's basis at most; vectors that it holds at least


@dataclass(frozen=True)
class DiagonalOperator:
    """A diagonal matrix with entries from 0 to 1, whose product takes next to no time."""

    size: int
    dtype: torch.dtype
    device: torch.device = CPU

    def __matmul__(self, v: Tensor) -> Tensor:
        return v * torch.linspace(0.0, 1.0, self.size, dtype=self.dtype, device=self.device)


def seconds_of_step(
    n: int,
    dtype: torch.dtype,
    steps: int = TIMED_STEPS,
    device: torch.device = CPU,
    clock: Clock | None = None,
) -> float:
    """Seconds of one step of a search for eigenvalues of an operator of size n, without its product: their mean.

    steps  of the search: of a large operator the last ones, with the whole basis to orthogonalise to, are the dearest
    """
    small = timed_step(min(n, SMALL_SIZE), dtype, device, clock)
    if n <= SMALL_SIZE:
        return small
    size = min(n, MAX_TIMED_SIZE)
    held = min(steps, n, max(MIN_HELD, SEARCH_BYTES * 8 // (n * torch.finfo(dtype).bits)))
    growth = max(0.0, timed_step(size, dtype, device, clock) - small)
    return small + growth * n / size * held / TIMED_STEPS


@cache
def timed_step(size: int, dtype: torch.dtype, device: torch.device, clock: Clock | None = None) -> float:
    """Seconds of one of `TIMED_STEPS` steps of a search, as measured: the smallest of three means."""
    clock, taken = clock or time.perf_counter, []
    for _ in range(3):
        began = clock()
        pairs = lanczos(DiagonalOperator(size, dtype, device), "ends", tol=1e-12, max_products=min(TIMED_STEPS, size))
        taken.append((clock() - began) / max(1, pairs.products))
    return min(taken)


def steps_of_basis(kind: str, products: int, values: int = 1, steps: int | None = None) -> int:
    """The steps of the bases that so many products build, their mean weighted by length.

    kind    ends, trace or density
    values  eigenvalues of one end
    steps   of a density's probe, where they are stated
    """
    if kind == "density":
        return min(steps or USUAL_STEPS, products)
    if kind == "trace":
        return ceil(products / 2)  # the other half is of products with the basis
    if kind == "ends" and values > 1:
        return ceil(SPLIT_SHARE * products)
    return products


def seconds_by_part(
    parts: SpectrumParts, product: float, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, float]:
    """Seconds of a product and of the step that it is part of: of the `ends` (their longer search), trace and density.

    product  the seconds of one
    """
    if parts.is_whole:
        return dict.fromkeys(("ends", "trace", "density"), product)
    values = max(parts.top, parts.bottom)
    ends = ends_products(values, 0, parts.n, parts.tol, parts.max_products)
    steps = {
        "ends": steps_of_basis("ends", ends, values),
        "trace": steps_of_basis("trace", trace_products(parts.trace, parts.n)),
        "density": parts.density_steps or USUAL_STEPS,
    }
    return {kind: product + seconds_of_step(parts.n, dtype, max(1, count), device) for kind, count in steps.items()}


def weights_of_parts(seconds: Mapping[str, float]) -> dict[str, float]:
    """The same relative to those of the ends, as `fit_parts` takes them."""
    return {kind: each / max(seconds["ends"], 1e-12) for kind, each in seconds.items()}


def seconds_of_parts(parts: SpectrumParts, dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Seconds that solvers take beside the products of all that is computed of one operator."""
    if parts.is_whole:
        return 0.0
    counts, total = parts.by_part(), 0.0
    for values in (parts.top, parts.bottom):
        if values:
            products = ends_products(values, 0, parts.n, parts.tol, parts.max_products)
            steps = steps_of_basis("ends", products, values)
            total += products * seconds_of_step(parts.n, dtype, steps, device)
    for kind in ("trace", "density"):
        products = counts.get(kind, 0)
        steps = steps_of_basis(kind, products, steps=parts.density_steps)
        total += products * seconds_of_step(parts.n, dtype, steps, device)
    return total + sum(density_seconds(parts.n, counts.get("density", 0), parts.density_steps, parts.density_probes))


@cache
def seconds_of_bounds(steps: int, clock: Clock | None = None) -> float:
    """Seconds of the bounds of one probe of so many steps at one place: the smallest of three."""
    beta, clock = np.full(steps, 0.25), clock or time.perf_counter
    run = LanczosRun(np.linspace(0.0, 1.0, steps), beta, 1.0)
    run.bounds(0.3)
    taken = []
    for t in (0.31, 0.47, 0.63):
        began = clock()
        run.bounds(t)
        taken.append(clock() - began)
    return min(taken)


def density_seconds(n: int, products: int, steps: int | None = None, probes: int | None = None) -> tuple[float, float]:
    """Seconds that a density takes beside its products: (where it is computed, where it is reported).

    n         the dimension
    products  expected
    steps, probes  where they are stated
    """
    if not products:
        return 0.0, 0.0
    each = min(steps or USUAL_STEPS, n, products)
    count = probes or max(1, round(products / each))
    band = 2 * (BAND_TICKS + REFINED_CELLS + MARGIN_TICKS)
    gaps = 0
    if steps is None:
        gaps = GAP_TICKS * max(0, (each - MIN_CHOSEN_STEPS) // STEPS_BETWEEN_CHECKS)
    rounds = range(1, count + 1)  # probes are added until the error is met; the band is computed each time
    if probes is not None:
        rounds = range(count, count + 1)
    one = seconds_of_bounds(each)
    return one * (gaps + band * sum(rounds)), one * band * count


__all__ = [
    "density_seconds",
    "seconds_by_part",
    "seconds_of_bounds",
    "seconds_of_parts",
    "seconds_of_step",
    "steps_of_basis",
    "weights_of_parts",
]
