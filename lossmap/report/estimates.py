"""Estimates in words: a trace, a share of eigenvalues, a spectral density, each with its error."""

from __future__ import annotations

from collections.abc import Sequence

from lossmap.report.text import interval_text, meaningful_digits, value_with_error

SHOWN_ROUNDING = 5e-6  # of an exact trace, from which on rounding reaches the digits that are printed


def trace_text(value: float, error: float, interval: tuple[float, float], method: str, products: int) -> str:
    """A trace with its standard error and its 95 % interval, in the unit of the matrix.

    method  xtrace, hutch++, hutchinson, or `unit vectors` where the trace is exact but for rounding
    """
    if method == "unit vectors" and error > SHOWN_ROUNDING * abs(value):
        return f"{value_with_error(value, error)} (exact but for rounding: all unit vectors, {products} products)"
    if method == "unit vectors":
        return f"{value:.6g} (exact: all unit vectors, {products} products)"
    kind = "standard error"
    if method == "xtrace":
        kind = "jackknife standard error (conservative)"
    text = f"{value_with_error(value, error)} ({kind}; 95 % interval {interval_text(*interval)}"
    return f"{text}; {method}, {products} products)"


def diagonal_text(size: int, smallest: float, largest: float, error: float, method: str) -> str:
    """A diagonal of `size` entries: its smallest and its largest estimate, and the median of the errors."""
    kind = "standard error"
    if method == "unit vectors":
        kind = "exact but for rounding, error"
    low, high = meaningful_digits(smallest, error), meaningful_digits(largest, error)
    return f"{size:,} entries, estimates from {low} to {high}; {kind} {error:.2g} in the median"


def mass_text(shares: Sequence[float], size: int, confidence: float) -> str:
    """A share of the `size` eigenvalues with its interval, in percent; less than half an eigenvalue is none.

    shares  value, low, high
    """
    value, low, high = (share * (share * size >= 0.5) for share in shares)
    if f"{100 * low:.3g}" == f"{100 * high:.3g}":
        return f"{100 * value:.3g} %"
    return f"{100 * value:.3g} % ({100 * confidence:g} % interval {100 * low:.3g} to {100 * high:.3g} %)"


def energy_text(share: float, interval: tuple[float, float]) -> str:
    """What lies outside of the diagonal blocks, as a share of the squared entries, with its 95 % interval."""
    text = f"{100 * share:.1f}%"
    low, high = (f"{100 * end:.2g}" for end in interval)
    if low != high:
        text += f" (95 % interval {low} to {high}%)"
    return f"{text} of the squared entries lie outside the blocks"


def density_text(ends: tuple[float, float], size: int, effort: tuple[int, int, int], error: float, sure: float) -> str:
    """A spectral density: its range, what it cost, and how far its cumulative may be off.

    ends    the smallest and the largest node
    effort  probes, steps of the longest, products; no probes where all `size` eigenvalues are known
    error   of the cumulative density, as a share of the range, with confidence `sure`
    """
    low, high = ends
    probes, steps, products = effort
    if not probes:
        return f"from {low:.4g} to {high:.4g}; exact: all {size} eigenvalues"
    plural = "s" * (probes > 1)
    return (
        f"from {low:.4g} to {high:.4g}; {probes} probe{plural} of {steps} steps, {products} products; cumulative "
        f"density off by at most {100 * error:.2g} % of the range, averaged over it, at {100 * sure:g} % confidence"
    )
