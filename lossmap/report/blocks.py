"""The report of a matrix's diagonal blocks: definiteness of each, what they say of the network, and the table.

Rendered from the arrays and attributes that `spectra.block_spectra.stored_layers` names and that a file's group
`layers/LABEL` holds. Eigenvalues are in the unit of the loss per squared unit of theta. Source of what blocks say of
the whole: Horn and Johnson, Matrix Analysis, 4.3 (Cauchy's interlacing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from lossmap.report.definiteness import ZERO_GAUSS_NEWTON
from lossmap.report.estimates import energy_text
from lossmap.report.layer_hessian import layer_hessian_lines
from lossmap.report.signals import signal_lines
from lossmap.report.stored import StoredReport, array_names, names_in_file, rows_of
from lossmap.report.text import (
    FISHER,
    GAUSS_NEWTON,
    MATRICES,
    MC_FISHER,
    WIDTH,
    cost,
    count,
    counts,
    filled,
    number,
    rough_number,
    some,
    table,
    titled,
    value_with_error,
    value_with_limit,
    wrapped,
)

HEAD = (
    "block", "n", "largest", "smallest", "spread", "condition", "beyond floor", "error", "+", "-", "0", "gradient",
    "definiteness",
)  # fmt: skip
LEGEND = (
    "+, -, 0: eigenvalues above, below and within the noise floor of each block (1e-6 of its largest, 64 roundings of "
    "the network's largest, or the block's own rounding as measured, whichever is more); a-b: a range, with 95% "
    "confidence. Blocks whose counts are single numbers were computed in full; of the others extreme eigenvalues and "
    "density are known. Condition: largest / smallest eigenvalue; beyond floor: |lambda|max / |lambda|min of those "
    "beyond the noise floor"
)
WITHOUT_NEGATIVE = ("zero", "positive definite", "positive semidefinite")


@dataclass(frozen=True)
class BlockSummary:
    """What a report says of one block.

    module        of its first tensor
    error         an eigenvalue lies within this distance of `largest`, and of `smallest`
    floor         below it an eigenvalue counts as zero
    positive, negative, zero   how many eigenvalues, (from, to)
    kind          the definiteness in a word or two
    why           of a zero block: why it is zero
    condition_beyond_floor   largest over smallest |eigenvalue| beyond the floor; NaN where not all are known, or none
    """

    name: str
    module: str
    size: int
    largest: float
    smallest: float
    spread: float
    condition: float
    error: float
    floor: float
    gradient_norm: float
    converged: bool
    positive: tuple[int, int]
    negative: tuple[int, int]
    zero: tuple[int, int]
    kind: str
    why: str
    condition_beyond_floor: float = nan
    gradient_norm_error: float = nan


ARRAYS = array_names(BlockSummary) | {"name": "block"}


def block_text(b: BlockSummary, matrix: str = "hessian") -> str:
    """One block's definiteness, with the numbers that it rests on."""
    flatness = "; no curvature by itself" * (matrix != GAUSS_NEWTON)
    high, low, floor = number(b.largest), number(b.smallest), f"{b.floor:.1e}"
    up, down, flat = (some(c, "eigenvalue") for c in (b.positive, b.negative, b.zero))
    text = f"from {value_with_error(b.smallest, b.error)} to {value_with_error(b.largest, b.error)}; "
    text += f"{counts(b.positive)} positive, {counts(b.negative)} negative beyond {floor}"
    if b.kind == "zero":
        text = f"all {b.size:,} eigenvalues are zero{flatness}"
        if b.largest > 0.0 or b.smallest < 0.0:
            text = (
                f"all {b.size:,} eigenvalues are within the noise floor of {floor}, so that they cannot be told from "
                f"zero in this precision{flatness}"
            )
        if b.why:
            text += f": {b.why}"
    elif b.kind == "positive definite":
        text = f"smallest eigenvalue {low}, largest {high}"
    elif b.kind == "positive semidefinite":
        text = f"{up} positive (largest {high}), {flat} zero (below {floor})"
    elif b.kind == "negative definite":
        text = f"negative curvature in every direction, from {low} to {high}; a maximum in these parameters"
    elif b.kind == "negative semidefinite":
        text = (
            f"{down} negative (smallest {low}), {flat} zero (below {floor}); no saddle in these parameters, since none "
            "is positive"
        )
    elif b.kind == "indefinite":
        smallest = f"smallest {low}, {_percent(b.smallest, b.largest)} of the largest"
        if b.smallest >= 0.0:
            smallest = f"the smallest found, {value_with_error(b.smallest, b.error)}, is not resolved from them"
        text = (
            f"{up} positive (largest {high}), {down} negative ({smallest}); a saddle in these parameters where the "
            "gradient is zero"
        )
    return f"{b.kind}: {text}"


def _percent(part: float, of: float) -> str:
    return f"{100 * abs(part) / of:.3g}%"


def network_text(stored: StoredReport) -> str:
    """What the blocks together say of the network."""
    blocks = rows_of(stored, BlockSummary, ARRAYS)
    zero = [b for b in blocks if b.kind == "zero"]
    # where counts know of negative eigenvalues, the smallest found may still be above 0, within its error
    fisher = stored.text("matrix") in (FISHER, MC_FISHER)  # whose eigenvalues are no curvature, and never negative
    low = min([b for b in blocks if b.negative[0]] or blocks, key=lambda b: b.smallest)
    high = max(blocks, key=lambda b: b.largest)
    parts = [_zero_blocks_text(zero, len(blocks))]
    if len(zero) == len(blocks) and stored.text("matrix") == GAUSS_NEWTON:
        parts = [f"Every block is zero: {ZERO_GAUSS_NEWTON}"]
    if low.negative[0]:
        parts.append(_negative_text(low, high))
    elif len(zero) < len(blocks) and not fisher:
        opening = "No block is known to have negative curvature"
        if all(b.kind in WITHOUT_NEGATIVE for b in blocks):
            opening = "No block has negative curvature beyond its noise floor"
        parts.append(f"{opening}; whether blocks have it together only the whole matrix can say")
    if high.largest > high.floor:
        top = number(high.largest)
        text = f"The largest eigenvalue of a block is {top}, in {high.name}"
        if not fisher:
            threshold = number(2 / high.largest)
            text += f": for it alone the stability threshold of plain gradient descent is 2/{top} = {threshold}"
        parts.append(text)
    parts += _whole_matrix_texts(stored, low, high)
    if "outside" in stored.attributes:
        parts.append(f"Off-diagonal energy, which the block-diagonal picture leaves out: {_energy_text(stored)}")
    return ". ".join(parts) + "."


def _negative_text(low: BlockSummary, high: BlockSummary) -> str:
    """The block with the most negative curvature, and what it means for the whole."""
    if low.smallest >= 0.0:
        return (
            f"Block {low.name} has negative curvature: {counts(low.negative)} eigenvalues below -{low.floor:.1e}, by "
            "its density with 95 % confidence. The whole matrix then has negative eigenvalues too (interlacing): not a "
            "minimum, to second order"
        )
    beside = ""
    if high.largest > high.floor:
        share = _percent(low.smallest, high.largest)
        beside = f", {share} of the largest eigenvalue, {number(high.largest)} in {high.name}"
    return (
        f"Block {low.name} has negative curvature ({number(low.smallest)}{beside}). The whole matrix then has an "
        "eigenvalue at or below that (interlacing): not a minimum, to second order, and gradient descent can still "
        "decrease the loss"
    )


def _whole_matrix_texts(stored: StoredReport, low: BlockSummary, high: BlockSummary) -> Iterator[str]:
    """The range of the whole matrix beside that of the blocks."""
    if "whole_largest" not in stored.attributes:
        return
    top, bottom = stored.number("whole_largest"), stored.number("whole_smallest")
    top_error, bottom_error = stored.number("whole_largest_error"), stored.number("whole_smallest_error")
    lowest = 0.0
    if low.negative[0]:
        lowest = min(0.0, low.smallest)
    lower = value_with_limit(bottom, bottom_error, stored.number("whole_lowest"))
    upper = value_with_limit(top, top_error, stored.number("whole_highest"))
    yield (
        f"The whole matrix, over all parameters of the blocks, goes from {lower} to {upper}, the blocks from "
        f"{number(lowest)} to {number(high.largest)}"
    )
    if bottom + bottom_error < 0.0 and not low.negative[0]:
        yield "So the blocks have negative curvature together, which none of them shows by itself"


def _energy_text(stored: StoredReport) -> str:
    return energy_text(stored.number("outside"), (stored.number("outside_low"), stored.number("outside_high")))


def _zero_blocks_text(zero: Sequence[BlockSummary], of: int) -> str:
    """What it means that some blocks are zero."""
    if not zero:
        return f"None of {count(of, 'block')} is zero"
    verb = {1: "is"}.get(len(zero), "are")
    text = f"{len(zero)} of {count(of, 'block')} {verb} zero"
    if len(zero) == of:
        text = "Every block is zero"
    text += f" ({_names(zero)}): second order says nothing about these parameters by themselves; a Newton step "
    text += "requires damping there"
    at_rest = [b for b in zero if b.gradient_norm <= _rounding(b)]
    moving = [b for b in zero if b.gradient_norm > _rounding(b)]
    if at_rest:
        text += f". The gradient is zero too for {_names(at_rest)}: these parameters do not train at this point"
    if moving:
        text += f". The gradient still moves {_names(moving)}"
    return text


def _rounding(b: BlockSummary) -> float:
    """Below which a gradient is none; 0 where that is not known."""
    return b.gradient_norm_error if isfinite(b.gradient_norm_error) else 0.0


def _names(blocks: Sequence[BlockSummary]) -> str:
    return ", ".join(b.name for b in blocks)


def blocks_report(stored: StoredReport, *, matrices: int = 6) -> str:
    """The report layer by layer, several lines. Matrices up to `matrices` rows are printed."""
    blocks = rows_of(stored, BlockSummary, ARRAYS)
    matrix = stored.text("matrix")
    head = f"Layer by layer: the diagonal blocks of the {MATRICES.get(matrix, matrix)}"
    rows = [HEAD, *(_row(b) for b in blocks)]
    lines = [titled(head, stored.text("label")), ""]
    lines += table(rows, right=range(1, 12), breaks=[HEAD.index("+")])
    lines += ["", *(f"  {line}" for line in filled(LEGEND, WIDTH - 2))]
    own = names_in_file(b.name for b in blocks)
    for b in blocks:
        if b.size <= matrices:
            lines += _matrix_lines(stored, b, own[b.name])
    lines.append("")
    indent = max(14, min(26, max(len(b.name) for b in blocks) + 4))
    for b in blocks:
        lines += wrapped(b.name, block_text(b, stored.text("matrix")), indent=indent)
    if any(b.kind == "zero" for b in blocks):
        lines += signal_lines(stored, {b.module for b in blocks})
    lines += layer_hessian_lines(stored)
    lines += [""]
    for note in stored.texts("note"):
        lines += wrapped("note", note)
    lines += wrapped("network", network_text(stored))
    lines += wrapped("cost", cost(int(stored.number("products")), stored.number("seconds")))
    return "\n".join(lines)


def _row(b: BlockSummary) -> tuple[str, ...]:
    """A block's row of the table."""
    cells = []
    for value in (b.largest, b.smallest, b.spread):
        text = number(value)
        if abs(value) <= b.floor:
            text = f"{value:.1e}"
        cells.append(text)
    gradient = "-"
    if isfinite(b.gradient_norm):
        gradient = f"{b.gradient_norm:.2g}"
        if 0.0 < b.gradient_norm <= b.gradient_norm_error:  # nothing but rounding
            gradient = f"<{b.gradient_norm_error:.0e}"
    signs = [counts(c) for c in (b.positive, b.negative, b.zero)]
    kind = b.kind + " NOT CONVERGED" * (not b.converged)
    beyond = "-"
    if isfinite(b.condition_beyond_floor):
        largest = max(abs(b.largest), abs(b.smallest))
        beyond = rough_number(b.condition_beyond_floor, b.floor * b.condition_beyond_floor / largest)
    return (b.name, f"{b.size:,}", *cells, number(b.condition), beyond, f"{b.error:.0e}", *signs, gradient, kind)


def _matrix_lines(stored: StoredReport, b: BlockSummary, own: str) -> list[str]:
    """A small block's entries and eigenvalues, where it was computed in full; own: its name in those of arrays."""
    if f"matrix:{own}" not in stored:
        return []
    lines = ["", f"  {b.name}: matrix and eigenvalues"]
    for row in stored.arrays[f"matrix:{own}"]:
        lines.append("    " + "  ".join(f"{v: .4e}" for v in row))
    lines.append("    eigenvalues " + "  ".join(f"{v: .4e}" for v in stored.arrays[f"eigenvalues:{own}"]))
    return lines
