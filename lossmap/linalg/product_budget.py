"""Fits the reading of a spectrum into a number of products: ends first, then trace, then density.

What is first is most of use, and is cut last: the ends to fewer Lanczos steps (they may then not have converged, which
their error bars say), the trace to fewer probes, the density to fewer probes and steps. What is too small to be worth
its name is left out. The same numbers give the same cut, on every rank. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lossmap.linalg.expected_products import (
    DEFAULT_STEPS,
    MAX_DENSITY_PRODUCTS,
    MIN_END_PRODUCTS,
    MIN_STEPS,
    MIN_TRACE_PRODUCTS,
    SpectrumParts,
    density_products,
    ends_products,
)

MAX_TRACE_PRODUCTS = 1000  # where its error is asked for
SLACK = 3  # a search may take so many times what is expected: with less to spend than that, its products are limited


@dataclass(frozen=True)
class Fit:
    """What fits: the parts, and in words what was cut; nothing where all fits."""

    parts: SpectrumParts
    cuts: tuple[str, ...] = ()

    @property
    def exceeds(self) -> bool:
        """Whether even what cannot be cut takes more."""
        return any(cut.startswith(EXCEEDS) for cut in self.cuts)


EXCEEDS = "more than the budget: "


def fit_parts(
    parts: SpectrumParts, products: float, longest: float | None = None, weights: Mapping[str, float] | None = None
) -> Fit:
    """The parts that so many products hold.

    products  for all parts
    longest   for one part, which one rank does alone; None: as many
    weights   of a product of the `trace` and of the `density`, where one of the ends is 1
    """
    of_trace, of_density = ((weights or {}).get(kind, 1.0) for kind in ("trace", "density"))
    longest = products if longest is None else min(products, longest)
    if parts.is_whole:
        if parts.n <= longest:
            return Fit(parts)
        parts = replace(parts, dense=0)  # by products with a few vectors instead of all unit vectors
    cuts: list[str] = []
    parts, spent = _ends(parts, longest, cuts)
    parts, more = _trace(parts, min(products - spent, longest) / of_trace, cuts)
    parts = _density(parts, min(products - spent - more * of_trace, longest) / of_density, cuts)
    return Fit(parts, tuple(cuts))


def _ends(parts: SpectrumParts, products: float, cuts: list[str]) -> tuple[SpectrumParts, int]:
    """The ends within so many products, and how many they are expected to take."""
    ends = bool(parts.top) + bool(parts.bottom)
    expected = ends_products(parts.top, parts.bottom, parts.n, parts.tol, parts.max_products)
    if not ends or SLACK * expected <= products:
        return parts, expected
    limit = max(MIN_END_PRODUCTS, int(products // ends))
    if expected <= products:
        limit = max(limit, expected)  # what the longer of two ends may need is never taken from it
    else:
        while ends_products(parts.top, parts.bottom, parts.n, parts.tol, limit + 1) <= products:
            limit += 1  # the shorter one leaves something
        cuts.append(f"at most {min(limit, parts.max_products or limit)} products at each end")
    if parts.max_products is not None:
        limit = min(limit, parts.max_products)
    parts = replace(parts, max_products=limit)
    least = ends_products(parts.top, parts.bottom, parts.n, parts.tol, limit)
    if least > products:
        cuts.append(f"{EXCEEDS}the ends alone take {least} products, and it holds {max(0, int(products))}")
    return parts, least


def _trace(parts: SpectrumParts, products: float, cuts: list[str]) -> tuple[SpectrumParts, int]:
    """The trace within so many products."""
    if not parts.trace:
        return parts, 0
    most = parts.trace if parts.trace_error is None else max(parts.trace, MAX_TRACE_PRODUCTS)
    if min(most, parts.n) <= products:
        return parts, min(parts.trace, parts.n)
    fitting = min(int(products), parts.trace) if products >= MIN_TRACE_PRODUCTS else 0
    cuts.append(f"{fitting} products of the trace" if fitting else "no trace")
    return replace(parts, trace=fitting, trace_error=None), fitting


def _density(parts: SpectrumParts, products: float, cuts: list[str]) -> SpectrumParts:
    """The density within so many products."""
    if not parts.density:
        return parts
    expected = density_products(parts.density_error, parts.n, parts.density_steps, parts.density_probes)
    most = expected
    if parts.density_steps is None and parts.density_probes is None:
        most = MAX_DENSITY_PRODUCTS
    if most <= products:
        return parts
    steps = min(parts.density_steps or DEFAULT_STEPS, int(max(0.0, products)))
    if steps < min(MIN_STEPS, parts.density_steps or MIN_STEPS):
        cuts.append("no density")
        return replace(parts, density=False)
    probes = min(int(products // steps), max(1, SLACK * expected // steps))  # the rest is for layers
    if parts.density_probes is not None:
        probes = min(probes, parts.density_probes)
    cuts.append(f"{probes} probe{'s' * (probes > 1)} of {steps} steps for the density")
    return replace(parts, density_steps=steps, density_probes=probes)
