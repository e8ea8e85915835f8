"""Words for spectra: numbers with their error bars as a person reads them, and what may be said of them.

A word is never stronger than its number: each verdict names the eigenvalue that it rests on, with its error, and says
`not known` where the error is larger than what would have to be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isinf, isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossmap.measure.eigen import EigenPairs
    from lossmap.measure.spectrum import Spectrum

WIDTH = 110


def with_error(value: float, error: float) -> str:
    """`12.345 +- 0.012`: as many digits as the error leaves meaningful."""
    if isnan(value):
        return "not found"
    if not isfinite(error) or error <= 0.0 or value == 0.0:
        return f"{value:.6g}" + (f" +- {error:.1g}" if isfinite(error) and error > 0.0 else "")
    digits = 1
    while digits < 9 and abs(value) * 10.0 ** (1 - digits) > error:
        digits += 1
    return f"{value:.{max(digits, 2)}g} +- {error:.1g}"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 layer`, `6 layers`, `3,392 parameters`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def number(value: float) -> str:
    """A number as people write it: 41,300 and 0.0012 rather than 4.13e+04."""
    if isinf(value):
        return "infinite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def wrapped(label: str, text: str, *, indent: int = 13) -> list[str]:
    """A label and its text, broken into lines that stand under each other."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDTH - indent - 2:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    return [f"  {label:<{indent - 2}}{lines[0]}", *(" " * indent + rest for rest in lines[1:])]


def verdict_of_ends(largest: tuple[float, float], smallest: tuple[float, float]) -> str:
    """The shape of a matrix from its extreme eigenvalues (value, error)."""
    (high, high_error), (low, low_error) = largest, smallest
    if not (isfinite(high) and isfinite(low)):
        return "not known: the verdict needs both ends"
    upper, lower = with_error(high, high_error), with_error(low, low_error)
    if high == low == 0.0:
        return "zero: no curvature at all"
    if low + low_error < 0.0 < high - high_error:
        ratio = abs(low) / high
        return (
            f"indefinite: the loss bends down somewhere (least eigenvalue {lower}), {100 * ratio:.2g} % as strongly as "
            f"it bends up ({upper}); no minimum, to second order"
        )
    if low - low_error > 0.0:
        return f"positive definite: the loss bends up in every direction (least eigenvalue {lower})"
    if high + high_error < 0.0:
        return f"negative definite: the loss bends down in every direction (largest eigenvalue {upper})"
    if high - high_error > 0.0:
        return (
            f"positive semidefinite as far as is known: the least eigenvalue, {lower}, cannot be told from zero; flat "
            f"or nearly flat directions, the strongest upward bend {upper}"
        )
    if low + low_error < 0.0:
        return f"negative semidefinite as far as is known: {lower} to {upper}, nothing bends up beyond the error"
    return f"zero as far as is known: no eigenvalue, {lower} to {upper}, can be told from zero"


def of_step(spectrum: Spectrum) -> str:
    """What the largest eigenvalue means for a step size, and what it does not."""
    limit, error = spectrum.step_limit
    if isinf(limit):
        return "2/largest: none; the largest eigenvalue is not positive, so curvature sets no limit to a step here"
    return (
        f"2/largest = {with_error(limit, error)}: above it plain full-batch gradient descent grows along the sharpest "
        "direction of the quadratic model here. It is no limit for other places, for Adam (which rescales), or for "
        "small batches (whose noise lowers it); momentum b raises it by 1 + b; training often runs at this edge"
    )


def of_condition(spectrum: Spectrum) -> str:
    """The condition number in words."""
    (high, _), (low, error) = spectrum.largest, spectrum.smallest
    value = spectrum.condition
    if isnan(value):
        return "not known: it needs both ends"
    if isinf(value):
        text = f"infinite: the least eigenvalue, {with_error(low, error)}, is not positive beyond its error"
        if low + error > 0.0 and high > 0.0:
            text += f" (if it is, the condition number is above {number(high / (low + error))})"
        return text + "; ill-conditioned"
    flag = "; ill-conditioned (above 1,000)" if spectrum.ill_conditioned else ""
    return f"{number(value)} = {high:.4g} / {low:.4g}{flag}"


def of_pairs(pairs: EigenPairs) -> str:
    """Eigenvalues with their errors, and whether they converged."""
    text = ", ".join(with_error(v, e) for v, e in zip(pairs.values, pairs.residuals, strict=True))
    if not pairs.converged:
        text += (
            f"  NOT CONVERGED after {count(pairs.products, 'product')}: the residuals above are not within "
            f"{pairs.tolerance:g} of the largest; allow more products, or a larger tolerance"
        )
    return text


def of_shares(shares: dict[str, float], most: int = 4) -> str:
    """`fc2.weight 61 %, fc1.weight 30 %, ...`: where a vector's mass lies, largest first."""
    order = sorted(shares.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in order[:most])
    return shown + (", ..." if len(order) > most else "")


def of_spectrum(s: Spectrum) -> str:
    """The report of one spectrum."""
    kind = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}.get(s.matrix, s.matrix)
    head = f"Spectrum of the {kind}" + (f" of {s.label}" if s.label else "")
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
        lines += wrapped("mass", f"share below -{t:g}: {below}; above {t:g}: {above}")
    if s.top is not None and s.bottom is not None:
        lines += wrapped("condition", of_condition(s))
    if s.top is not None:
        lines += wrapped("step size", of_step(s))
    for which, shares in _ends_of(s.shares):
        lines += wrapped("mass of", f"eigenvector {which}: {of_shares(shares)}")
    if s.top is not None and s.bottom is not None:
        lines += wrapped("verdict", s.verdict)
    lines += wrapped("cost", count(s.products, "product") + (f", {s.seconds:.2g} s" if isfinite(s.seconds) else ""))
    return "\n".join(lines)


def _limits(s: Spectrum) -> str:
    """Beyond which no eigenvalue lies, with which probability."""
    parts: list[str] = []
    sure = 0.0
    if s.top is not None and isfinite(s.top.limits[0]):
        parts.append(f"above {s.top.limits[0]:.4g}")
        sure = s.top.confidence
    if s.bottom is not None and isfinite(s.bottom.limits[1]):
        parts.append(f"below {s.bottom.limits[1]:.4g}")
        sure = s.bottom.confidence
    return f"no eigenvalue {', none '.join(parts)}, each with probability {sure:g}" if parts else ""


def _ends_of(shares: object) -> Sequence[tuple[str, dict[str, float]]]:
    """The extreme vectors' shares: the largest eigenvalue's and the smallest's."""
    table: dict[str, dict[str, float]] = dict(shares)  # type: ignore[call-overload]
    return [(name, table[name]) for name in ("top 1", "bottom 1") if name in table and len(table[name]) > 1]
