"""The report of a spectrum: ends, trace, density, condition and step size, with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isinf, isnan
from typing import Any

from lossmap.report.text import count, number, rounded, value_with_error, wrapped


def of_step(spectrum: Any) -> str:
    """What the largest eigenvalue means for a step size, and what it does not."""
    limit, error = spectrum.step_limit
    if isinf(limit):
        return "2/largest: none; the largest eigenvalue is not positive, so curvature sets no limit to a step here"
    return (
        f"2/largest = {value_with_error(limit, error)}: above it plain full-batch gradient descent grows along the "
        "sharpest direction of the quadratic model here. It is no limit for other places, for Adam (which rescales), "
        "or for small batches (whose noise lowers it); heavy-ball momentum b allows 1 + b times as much"
    )


def of_condition(spectrum: Any) -> str:
    """The condition number in words."""
    (high, _), (low, error) = spectrum.largest, spectrum.smallest
    value = spectrum.condition
    if isnan(value):
        return "not known: it needs both ends"
    if isinf(value):
        text = f"infinite: the least eigenvalue, {value_with_error(low, error)}, is not positive beyond its error"
        if low + error > 0.0 and high > 0.0:
            text += f" (if it is, the condition number is above {number(high / (low + error))})"
        return text + "; ill-conditioned"
    flag = "; ill-conditioned (above 1,000)" if spectrum.ill_conditioned else ""
    if spectrum.bottom is not None and spectrum.bottom.limits[1] <= 0.0:
        flag += "; at least, since the limit does not exclude a smaller eigenvalue"
    return f"{number(value)} = {high:.4g} / {low:.4g}{flag}"


def of_pairs(pairs: Any) -> str:
    """Eigenvalues with their errors, and whether they converged."""
    text = ", ".join(value_with_error(v, e) for v, e in zip(pairs.values, pairs.residuals, strict=True))
    if not pairs.converged:
        near = bool((pairs.residuals <= pairs.tolerance * pairs.scale).all())
        what = "not all are sure of their places" if near else "the errors here are not within"
        what += "" if near else f" {pairs.tolerance:g} of the largest"
        text += (
            f"  NOT CONVERGED after {count(pairs.products, 'product')}: {what}; allow more products, or a larger "
            "tolerance"
        )
    return text


def of_shares(shares: dict[str, float], most: int = 4) -> str:
    """`fc2.weight 61 %, fc1.weight 30 %, ...`: where a vector's mass lies, largest first."""
    order = sorted(shares.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in order[:most])
    return shown + (", ..." if len(order) > most else "")


def of_spectrum(s: Any) -> str:
    """The report of one spectrum."""
    kind = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}.get(s.matrix, s.matrix)
    head = f"Spectrum of the {kind}" + (f": {s.label}" if s.label else "")
    lines = [head]
    over = f" of the mean loss over {count(s.samples, 'sample')}" if s.samples else ""
    unit = f"; eigenvalues in {s.unit} per squared unit of theta" if s.unit not in ("", "1") else ""
    lines += wrapped("of", f"{count(s.size, 'parameter')}{over}, {s.precision}{unit}")
    if isfinite(s.loss):
        lines += wrapped("loss", f"{s.loss:.6g}; gradient norm {s.gradient_norm:.4g}")
    for name, pairs in (("largest", s.top), ("smallest", s.bottom)):
        if pairs is not None:
            lines += wrapped(name, of_pairs(pairs))
    limits = _limits(s)
    if limits:
        lines += wrapped("limits", limits)
    if s.trace is not None:
        lines += wrapped("trace", repr(s.trace) + ("" if s.trace.met else "; the wanted error was not reached"))
    if s.density is not None:
        text = repr(s.density).removeprefix("Density(").removesuffix(")")
        lines += wrapped("density", text + ("" if s.density.met else "; the wanted error was not reached"))
    for t, below, above in s.masses:
        lines += wrapped("mass", f"below -{t:g}: {below}; above {t:g}: {above}")
    if s.top is not None and s.bottom is not None:
        lines += wrapped("condition", of_condition(s))
    if s.top is not None:
        lines += wrapped("step size", of_step(s))
    for which, shares in _ends_of(s.shares):
        lines += wrapped("lies in", f"eigenvector {which}: {of_shares(shares)}")
    if s.top is not None and s.bottom is not None:
        lines += wrapped("verdict", s.verdict)
    lines += wrapped("cost", count(s.products, "product") + (f", {s.seconds:.2g} s" if isfinite(s.seconds) else ""))
    return "\n".join(lines)


def _limits(s: Any) -> str:
    """Beyond which no eigenvalue lies, and no other than those told, with which probability."""
    parts: list[str] = []
    sure = 0.0
    for pairs, side, word, i in ((s.top, 1.0, "above", 0), (s.bottom, -1.0, "below", 1)):
        if pairs is None or not isfinite(pairs.limits[i]):
            continue
        parts.append(f"none {word} {rounded(pairs.limits[i], side)}")
        if len(pairs.values) > 1 and isfinite(pairs.others):
            parts[-1] += f", no other {word} {rounded(pairs.others, side)}"
        sure = pairs.confidence
    if not parts:
        return ""
    how = "exactly, but for rounding" if sure == 1.0 else f"each with probability {sure:g}"
    return f"eigenvalues: {'; '.join(parts)}; {how}"


def _ends_of(shares: object) -> Sequence[tuple[str, dict[str, float]]]:
    """The extreme vectors' shares: the largest eigenvalue's and the smallest's."""
    table: dict[str, dict[str, float]] = dict(shares)  # type: ignore[call-overload]
    return [(name, table[name]) for name in ("top 1", "bottom 1") if name in table and len(table[name]) > 1]
