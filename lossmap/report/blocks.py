"""Reports of diagonal blocks, of layers by themselves, and of the singular values of weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from lossmap.report.text import count, counts, number, some, table, value_with_error, wrapped


def of_block(b: Any) -> str:
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


def of_network(found: Any) -> str:
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
            f"The whole matrix, over all parameters of the blocks, goes from {value_with_error(least, least_error)} to "
            f"{value_with_error(top, error)}, the blocks from {alone}"
        )
        if least + least_error < 0.0 and not low.negative[0]:
            parts.append("So blocks bend down together, which none of them shows by itself")
    if found.off_diagonal_energy is not None:
        parts.append(f"What the block-diagonal picture leaves out: {found.off_diagonal_energy}")
    return ". ".join(parts) + "."


def _of_zero(zero: Sequence[Any], of: int) -> str:
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


def of_weights(found: Any) -> str:
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


def of_piece(p: Any) -> str:
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


def of_layers(found: Any, *, matrices: int = 6) -> str:
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
        mine = [p for p in found.layer_hessians if p.at == at]
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
