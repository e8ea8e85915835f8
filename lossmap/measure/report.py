"""Words for spectra: numbers with their error bars as a person reads them, and what may be said of them.

A word is never stronger than its number: each verdict names the eigenvalue that it rests on, with its error, and says
`not known` where the error is larger than what would have to be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, isinf, isnan, log10, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossmap.measure.eigen import EigenPairs
    from lossmap.measure.layers import Block, Layers
    from lossmap.measure.pieces import Piece
    from lossmap.measure.spectrum import Spectrum
    from lossmap.measure.weights import Weights

WIDTH = 110


def with_error(value: float, error: float) -> str:
    """`12.345 +- 0.012`: as many digits as the error leaves meaningful."""
    if isnan(value):
        return "not found"
    if not isfinite(error) or error <= 0.0 or value == 0.0:
        return f"{value:.6g}" + (f" +- {_digits(error, 1)}" if isfinite(error) and error > 0.0 else "")
    digits = 1
    while digits < 9 and abs(value) * 10.0 ** (1 - digits) > error:
        digits += 1
    return f"{_digits(value, max(digits, 2))} +- {_digits(error, 1)}"


def _digits(value: float, digits: int) -> str:
    """So many digits, and 40 rather than 4e+01."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e7 else text


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


def verdict_of_ends(largest: tuple[float, float], smallest: tuple[float, float], lowest: float = nan) -> str:
    """The shape of a matrix from its extreme eigenvalues (value, error).

    lowest  the limit below which no eigenvalue lies; NaN where there is none
    """
    (high, high_error), (low, low_error) = largest, smallest
    if not (isfinite(high) and isfinite(low)):
        return "not known: the verdict needs both ends"
    upper, lower = with_error(high, high_error), with_error(low, low_error)
    if high == low == 0.0:
        return "zero: no curvature at all"
    if low + low_error < 0.0 < high - high_error:
        ratio = abs(low) / high
        return (
            f"indefinite: the loss bends down somewhere (least eigenvalue {lower}), {100 * ratio:.3g} % as strongly as "
            f"it bends up ({upper}); no minimum, to second order"
        )
    if low - low_error > 0.0 >= lowest:
        return (
            f"positive definite as far as is known: the least eigenvalue found is {lower}, but the limit, "
            f"{lowest:.4g}, does not exclude one below zero"
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
        "small batches (whose noise lowers it); heavy-ball momentum b allows 1 + b times as much"
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
    if spectrum.bottom is not None and spectrum.bottom.limits[1] <= 0.0:
        flag += "; at least, since the limit does not exclude a smaller eigenvalue"
    return f"{number(value)} = {high:.4g} / {low:.4g}{flag}"


def of_pairs(pairs: EigenPairs) -> str:
    """Eigenvalues with their errors, and whether they converged."""
    text = ", ".join(with_error(v, e) for v, e in zip(pairs.values, pairs.residuals, strict=True))
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


def of_spectrum(s: Spectrum) -> str:
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


def _limits(s: Spectrum) -> str:
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


def rounded(value: float, side: float) -> str:
    """A limit in four digits, rounded outwards: up where `side` is positive."""
    if value == 0.0:
        return "0"
    unit = 10.0 ** (floor(log10(abs(value))) - 3)
    return f"{(ceil(value / unit) if side > 0 else floor(value / unit)) * unit:.4g}"


def _ends_of(shares: object) -> Sequence[tuple[str, dict[str, float]]]:
    """The extreme vectors' shares: the largest eigenvalue's and the smallest's."""
    table: dict[str, dict[str, float]] = dict(shares)  # type: ignore[call-overload]
    return [(name, table[name]) for name in ("top 1", "bottom 1") if name in table and len(table[name]) > 1]


def kind_of(positive: tuple[int, int], negative: tuple[int, int], zero: tuple[int, int], size: int) -> str:
    """The shape from how many eigenvalues are positive, negative and zero, each from and to."""
    (p, most_p), (q, most_q) = positive, negative
    if p and q:
        return "indefinite"
    if most_p == most_q == 0:
        return "zero"
    if p:
        if p == size:
            return "positive definite"
        return "positive semidefinite" if most_q == 0 else "positive, as far as is known"
    if q:
        if q == size:
            return "negative definite"
        return "negative semidefinite" if most_p == 0 else "negative, as far as is known"
    return "not known"


def counts(pair: tuple[int, int]) -> str:
    """`3`, or `2-5` where it is known from and to."""
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,}-{pair[1]:,}"


def some(pair: tuple[int, int], noun: str) -> str:
    """`1 direction`, `2-5 directions`."""
    return f"{counts(pair)} {noun}" + ("" if pair == (1, 1) else "s")


def of_block(b: Block) -> str:
    """One block's verdict, with the numbers that it rests on."""
    up, down, flat = (some(c, "direction") for c in (b.positive, b.negative, b.zero))
    high, low, floor = number(b.largest), number(b.smallest), f"{b.floor:.1e}"
    kind = b.kind
    if kind == "zero":
        text = f"zero: all {b.size:,} eigenvalues are within the noise floor of {floor}; no curvature by itself"
        return text + (f": {b.why}" if b.why else "")
    if kind == "positive definite":
        return f"positive definite: bends up in every direction, least {low}, largest {high}"
    if kind == "positive semidefinite":
        return f"positive semidefinite: bends up along {up} (largest {high}), flat along {flat} (below {floor})"
    if kind == "negative definite":
        return f"negative definite: bends down in every direction, from {low} to {high}; a maximum in these parameters"
    if kind == "negative semidefinite":
        return (
            f"negative semidefinite: bends down along {down} (least {low}), flat along {flat} (below {floor}); no "
            "saddle in these parameters, since nothing bends up"
        )
    if kind == "indefinite":
        return (
            f"indefinite: bends up along {up} (largest {high}) and down along {down} (least {low}, "
            f"{100 * abs(b.smallest) / b.largest:.3g}% of the largest); a saddle in these parameters where the "
            "gradient is zero"
        )
    return f"{kind}: from {low} to {high}, each +- {b.error:.1g}; {up} up, {down} down beyond {floor}"


def of_network(found: Layers) -> str:
    """What the blocks together say of the network."""
    blocks = found.blocks
    zero = [b for b in blocks if b.kind == "zero"]
    low = min(blocks, key=lambda b: b.smallest)
    high = max(blocks, key=lambda b: b.largest)
    parts = [_of_zero(zero, len(blocks))]
    if low.negative[0]:
        share = abs(low.smallest) / high.largest if high.largest > high.floor else 0.0
        beside = (
            f", {100 * share:.3g}% of the largest upward bend, {number(high.largest)} in {high.name}" if share else ""
        )
        parts.append(
            f"Block {low.name} bends down ({number(low.smallest)}{beside}). The whole matrix then has an eigenvalue at "
            "or below that (interlacing): to second order this is no minimum, and gradient descent can still go down"
        )
    elif len(zero) < len(blocks):
        known = all(b.kind in ("zero", "positive definite", "positive semidefinite") for b in blocks)
        parts.append(
            ("No block bends down beyond its noise floor" if known else "No block is known to bend down")
            + "; only the whole matrix can say whether blocks do so together"
        )
    if high.largest > high.floor:
        parts.append(
            f"The strongest bend of a block is {number(high.largest)}, in {high.name}: steps of plain gradient descent "
            f"above 2/{number(high.largest)} = {number(2 / high.largest)} are too large for it alone"
        )
    if found.whole is not None:
        (top, least), (error, least_error) = found.whole.values.tolist(), found.whole.residuals.tolist()
        alone = f"{number(min(0.0, low.smallest) if low.negative[0] else 0.0)} to {number(high.largest)}"
        parts.append(
            f"The whole matrix, over all parameters of the blocks, goes from {with_error(least, least_error)} to "
            f"{with_error(top, error)}, the blocks from {alone}"
        )
        if least + least_error < 0.0 and not low.negative[0]:
            parts.append("So blocks bend down together, which none of them shows by itself")
    if found.shortfall is not None:
        parts.append(f"What the block-diagonal picture leaves out: {found.shortfall}")
    return ". ".join(parts) + "."


def _of_zero(zero: Sequence[Block], of: int) -> str:
    """What it means that some blocks are zero."""
    if not zero:
        return f"None of {count(of, 'block')} is zero"
    names = ", ".join(b.name for b in zero)
    some = f"{len(zero)} of {count(of, 'block')} {'is' if len(zero) == 1 else 'are'} zero"
    text = (
        f"{'Every block is zero' if len(zero) == of else some} ({names}): second order says nothing about these "
        "parameters by themselves; a Newton step needs damping there"
    )
    still = [b for b in zero if b.gradient_norm == 0.0]
    moved = [b for b in zero if b.gradient_norm > 0.0]
    if still:
        text += (
            f". The gradient is zero too for {', '.join(b.name for b in still)}: nothing is learnt there as it stands"
        )
    if moved:
        text += f". The gradient still moves {', '.join(b.name for b in moved)}"
    return text


def of_weights(found: Weights) -> str:
    """The table of singular values."""
    rows = [("weight", "layer", "matrix", "norm", "least", "condition", "stable rank", "effective rank", "near zero")]
    for w in found:
        rows.append(
            (
                w.name,
                w.kind,
                f"{w.shape[0]} x {w.shape[1]}",
                f"{w.spectral_norm:.4g}",
                f"{w.values[-1]:.3g}",
                number(w.condition),
                f"{w.stable_rank:.3g}",
                f"{w.effective_rank:.3g}",
                f"{w.near_zero} of {len(w.values)}",
            )
        )
    lines = ["Weights: singular values of each layer's matrix W (norm: of W itself, not of W W^T)", ""]
    return "\n".join([*lines, *("  " + line for line in table(rows, right=range(2, 9)))])


def of_piece(p: Piece) -> str:
    """What a layer with its activation, by itself, says."""
    if p.skipped:
        return f"not computed: {p.skipped}"
    name = p.activation if p.activation != "none seen" else "no activation module behind it"
    if p.flat:
        return f"zero by construction: piecewise linear ({name}); this says nothing about dead units"
    if p.kind_of == "zero":
        return f"zero within {p.floor:.1e}, though {name} is curved: its inputs lie where it is straight"
    bound = ""
    if p.at == "inputs" and p.outputs < p.size:
        bound = f"; one sample's has rank {p.outputs} at most, having {count(p.outputs, 'output')} (seen: {p.ranks})"
    return f"{p.kind_of}: from {number(float(p.values[0]))} to {number(float(p.values[-1]))}{bound}"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of equal length under each other; columns named in `right` stand flush right. The first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cut = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [cut[0].rstrip(), "-" * len(cut[0]), *(line.rstrip() for line in cut[1:])]


def of_layers(found: Layers, *, matrices: int = 6) -> str:
    """The report layer by layer. Matrices up to `matrices` rows are printed."""
    kind = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}.get(found.matrix, found.matrix)
    head = f"Layer by layer: the diagonal blocks of the {kind}" + (f": {found.label}" if found.label else "")
    rows: list[tuple[str, ...]] = [
        ("block", "n", "largest", "smallest", "spread", "condition", "error", "+", "-", "0", "gradient", "shape")
    ]
    for b in found.blocks:
        values = (b.largest, b.smallest, b.spread, b.condition)
        shown = [number(v) if abs(v) > b.floor else f"{v:.1e}" for v in values[:3]] + [number(values[3])]
        gradient = f"{b.gradient_norm:.2g}" if isfinite(b.gradient_norm) else "-"
        how = "" if b.converged else " NOT CONVERGED"
        shown.append(f"{b.error:.0e}")
        signs = [counts(c) for c in (b.positive, b.negative, b.zero)]
        rows.append((b.name, f"{b.size:,}", *shown, *signs, gradient, b.kind + how))
    lines = [head, "", *("  " + line for line in table(rows, right=range(1, 11))), ""]
    lines.append(
        "  +, -, 0: eigenvalues above, below and within the noise floor of each block (1e-6 of its largest, or"
    )
    lines.append("  64 roundings beside the network's largest); a-b: from and to, with 95% confidence. Blocks whose")
    lines.append("  counts are single numbers were made whole; of the others the ends and the density are known")
    for b in found.blocks:
        if b.entries is not None and b.size <= matrices:
            lines += ["", f"  {b.name}: matrix and eigenvalues"]
            lines += ["    " + "  ".join(f"{v: .4e}" for v in row) for row in b.entries]
            lines.append("    eigenvalues " + "  ".join(f"{v: .4e}" for v in b.values))
    lines.append("")
    for b in found.blocks:
        lines += wrapped(b.name, b.verdict, indent=max(14, min(34, max(len(x.name) for x in found.blocks) + 4)))
    shown_signals = [s for m, s in found.signals.items() if any(_module(b.tensors[0]) == m for b in found.blocks)]
    if shown_signals and any(b.kind == "zero" for b in found.blocks):
        lines += ["", "  What passes through the layers:"]
        lines += [f"    {s.module or 'the model'}  {s}" for s in shown_signals]
    for at in ("inputs", "weights"):
        mine = [p for p in found.pieces if p.at == at]
        if mine:
            lines += ["", f"  Second reading: each layer with its activation as a function by itself, by its {at}"]
            lines.append("  (second derivative of its summed output, averaged over samples; not the loss's Hessian):")
            for p in mine:
                lines += wrapped(p.name, f"{p.kind} + {p.activation}: {p.verdict}", indent=20)
    lines += [""]
    for note in found.notes:
        lines += wrapped("note", note)
    lines += wrapped("verdict", found.verdict)
    lines += wrapped(
        "cost", count(found.products, "product") + (f", {found.seconds:.2g} s" if isfinite(found.seconds) else "")
    )
    return "\n".join(lines)


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]
