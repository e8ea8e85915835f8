"""How many operator-vector products an answer is expected to take, and what of it fits into a number of products.

The numbers are those of one rehearsal on an MLP and a ResNet-20 of width 8; on other networks a search may well take
twice or half as many. They serve to state a price before the work, and to fit work into a budget of time; no result
depends on them. Symbols: n the dimension; k eigenvalues of one end; m Lanczos steps; s probes. No torch is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log10

FIRST_OF_AN_END, FURTHER_OF_AN_END = 15, 11  # products of a search at --tol 1e-3: of its first steps, of each value
CERTIFIED_ENDS = 32  # both extreme eigenvalues from a cold start, with limits
MIN_DENSITY_PRODUCTS, MAX_DENSITY_PRODUCTS = 48, 400  # where steps and probes are chosen by the error
ONE_PROBE_ERROR = 0.4  # of a density from one probe's first steps, times the root of n: a mean over n directions
DEFAULT_STEPS = 64  # of a probe whose steps are not stated
BLOCK_DENSITY_ERROR = 0.05
MIN_TRACE_PRODUCTS = 6  # fewer leave no standard error
MIN_STEPS = 16  # of a density that is worth its name
MIN_END_PRODUCTS = 12  # that the search for an end is given at least


def ends_products(top: int, bottom: int, n: int, tol: float = 1e-3, max_products: int | None = None) -> int:
    """Products of the `top` largest and the `bottom` smallest eigenvalues of an operator of size n."""
    accuracy = min(2.0, max(0.4, -log10(tol) / 3))
    total = 0
    for count in (top, bottom):
        if count:
            end = min(n, ceil(accuracy * (FIRST_OF_AN_END + FURTHER_OF_AN_END * count)))
            total += min(end, max_products or end)
    return total


def trace_products(products: int, n: int, error: float | None = None) -> int:
    """Products of a trace; where an error is asked for, one doubling is expected."""
    if error is not None:
        products *= 2
    return min(products, n)


def density_products(error: float, n: int, steps: int | None = None, probes: int | None = None) -> int:
    """Products of a spectral density."""
    if steps or probes:
        return min(steps or DEFAULT_STEPS, n) * (probes or 1)
    needed = ceil((ONE_PROBE_ERROR / error) ** 2 / n)  # the error falls as the root of the probes
    return min(MAX_DENSITY_PRODUCTS, MIN_DENSITY_PRODUCTS * max(1, needed))


def density_products_left(error: float, n: int, steps: int | None = None, probes: int | None = None) -> int:
    """Products that a density may take beyond those expected: of eigenvalues that are spread out.

    Those of a trained network stand close to 0 but for a few, those of an untrained one do not.
    """
    if steps and probes:
        return 0
    return max(0, MAX_DENSITY_PRODUCTS - density_products(error, n, steps, probes))


def block_products(n: int, dense: int, tol: float = 1e-3) -> int:
    """Products of one diagonal block of size n: all of it up to the size `dense`, else its ends and its density."""
    if n <= dense:
        return n
    return ends_products(1, 1, n, tol) + density_products(BLOCK_DENSITY_ERROR, n)


@dataclass(frozen=True)
class SpectrumParts:
    """What is computed of one operator of size n: `top` and `bottom` eigenvalues, trace and density.

    trace     products of the trace; 0: none
    density   whether there is one; steps and probes: None where the error chooses them
    dense     up to this size the whole matrix is computed, by n products
    """

    n: int
    top: int
    bottom: int
    tol: float = 1e-3
    max_products: int | None = None
    trace: int = 60
    trace_error: float | None = None
    density: bool = True
    density_error: float = 0.01
    density_steps: int | None = None
    density_probes: int | None = None
    dense: int = 256

    @property
    def is_whole(self) -> bool:
        """Whether the matrix is computed entry by entry."""
        return self.n <= self.dense

    def by_part(self) -> dict[str, int]:
        """The products expected of each part."""
        if self.is_whole:
            return {"whole": self.n}
        parts = {"ends": ends_products(self.top, self.bottom, self.n, self.tol, self.max_products)}
        if self.trace:
            parts["trace"] = trace_products(self.trace, self.n, self.trace_error)
        if self.density:
            parts["density"] = density_products(self.density_error, self.n, self.density_steps, self.density_probes)
        return parts

    @property
    def products(self) -> int:
        """The products expected of all parts."""
        return sum(self.by_part().values())

    @property
    def products_left(self) -> int:
        """Products that the density may take beyond those."""
        if self.is_whole or not self.density:
            return 0
        return density_products_left(self.density_error, self.n, self.density_steps, self.density_probes)
