"""What a solver takes beside its products, for a price stated before the work: measured on this machine in some 50 ms.

    seconds_of_step(n, dtype)       of one step of a search: orthogonalisation, Ritz values, the decision
    density_seconds(steps, probes)  of a density's error band, where it is computed and once more where it is reported

With a small network these are most of the time: a product takes half a millisecond, and a step three. Symbols: n the
dimension; m the steps of a probe's run; s probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.quadrature import GAP_TICKS, MIN_CHOSEN_STEPS, STEPS_BETWEEN_CHECKS, LanczosRun
from lossmap.linalg.spectral_density import BAND_TICKS, REFINED_CELLS

Clock = Callable[[], float]

TIMED_STEPS = 24  # of a search: as many as a usual one has
MAX_TIMED_SIZE = 1 << 16  # of the operator that they are timed with; more entries take in proportion
MARGIN_TICKS = 15  # beside the band's, about
USUAL_STEPS = 100  # of a probe whose steps the error chooses, about


@dataclass(frozen=True)
class DiagonalOperator:
    """A diagonal matrix with entries from 0 to 1, whose product takes next to no time."""

    size: int
    dtype: torch.dtype

    device = torch.device("cpu")

    def __matmul__(self, v: Tensor) -> Tensor:
        return v * torch.linspace(0.0, 1.0, self.size, dtype=self.dtype)


@cache
def seconds_of_step(n: int, dtype: torch.dtype, clock: Clock | None = None) -> float:
    """Seconds of one step of a search for eigenvalues of an operator of size n, without its product."""
    size, clock = min(n, MAX_TIMED_SIZE), clock or time.perf_counter
    began = clock()
    pairs = lanczos(DiagonalOperator(size, dtype), "ends", tol=1e-12, max_products=min(TIMED_STEPS, size))
    return (clock() - began) / max(1, pairs.products) * n / size


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


__all__ = ["density_seconds", "seconds_of_bounds", "seconds_of_step"]
