"""Per-layer output Hessians in words: each layer with its activation as a function by itself.

Not blocks of the loss Hessian: nothing behind the layer enters.
"""

from __future__ import annotations

from dataclasses import dataclass

from lossmap.report.stored import StoredReport, array_names, rows_of
from lossmap.report.text import WIDTH, count, filled, number, wrapped

NO_ACTIVATION = "none seen"


@dataclass(frozen=True)
class LayerHessianSummary:
    """What the report says of one layer with its activation.

    at            inputs or weights: what it is differentiated with respect to
    rank          the highest rank of a single sample's
    floor         below it an eigenvalue counts as zero
    smallest, largest   eigenvalues; NaN where it was skipped
    definiteness  in a word or two
    skipped       why it was not computed, or empty
    """

    name: str
    layer: str
    activation: str
    at: str
    size: int
    outputs: int
    rank: int
    is_piecewise_linear: bool
    floor: float
    smallest: float
    largest: float
    definiteness: str
    skipped: str


ARRAYS = array_names(LayerHessianSummary, "layer_hessian_")


def layer_hessian_text(p: LayerHessianSummary) -> str:
    """What one says, and what it does not."""
    if p.skipped:
        return f"not computed: {p.skipped}"
    name = p.activation
    if name == NO_ACTIVATION:
        name = "no activation module behind it"
    if p.is_piecewise_linear:
        return f"zero by construction: piecewise linear ({name}); this says nothing about dead units"
    if p.definiteness == "zero":
        return f"zero within {p.floor:.1e}, though {name} is curved: its inputs lie where it is linear"
    text = f"{p.definiteness}: from {number(p.smallest)} to {number(p.largest)}"
    if p.at == "inputs" and p.outputs < p.size:
        text += f"; of one sample, rank at most {p.outputs}, having {count(p.outputs, 'output')} (seen: {p.rank})"
    return text


def layer_hessian_lines(stored: StoredReport) -> list[str]:
    """The part of a report on blocks; empty where none was computed."""
    lines: list[str] = []
    summaries = rows_of(stored, LayerHessianSummary, ARRAYS)
    for at in ("inputs", "weights"):
        chosen = [p for p in summaries if p.at == at]
        if not chosen:
            continue
        head = f"Per-layer output Hessian: each layer with its activation as a function of its {at} "
        head += "(second derivative of its summed output, averaged over samples; not of the loss):"
        lines += ["", *(f"  {line}" for line in filled(head, WIDTH - 2))]
        for p in chosen:
            lines += wrapped(p.name, f"{p.layer} + {p.activation}: {layer_hessian_text(p)}", indent=20)
    return lines
