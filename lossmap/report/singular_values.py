"""The table of the singular values of weights, rendered from each layer's values and what is derived from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lossmap.report.stored import StoredReport
from lossmap.report.text import number, table

HEAD = ("weight", "layer", "matrix", "norm", "smallest", "condition", "stable rank", "effective rank", "near zero")


@dataclass(frozen=True)
class WeightSummary:
    """What the table says of one weight, read as the matrix W (rows, columns).

    norm    its largest singular value, of W itself; near_zero of count lie near zero
    blocks  number of diagonal blocks that W consists of
    """

    name: str
    layer: str
    rows: int
    columns: int
    norm: float
    smallest: float
    condition: float
    stable_rank: float
    effective_rank: float
    near_zero: int
    count: int
    blocks: int = 1


def matrix_text(rows: int, columns: int, blocks: int) -> str:
    """`12 x 72`, or `12 x 72 in 4 blocks` of a block-diagonal matrix."""
    if blocks == 1:
        return f"{rows} x {columns}"
    return f"{rows} x {columns} in {blocks} blocks"


def summaries_text(summaries: Sequence[WeightSummary]) -> str:
    """The summaries as JSON, for one attribute: arrays of that group are singular values alone."""
    return json.dumps([asdict(s) for s in summaries])


def singular_values_report(stored: StoredReport) -> str:
    """The table, several lines."""
    rows: list[Sequence[str]] = [HEAD]
    for entry in json.loads(stored.text("layers", "[]")):
        w = WeightSummary(**entry)
        rows.append(
            (
                w.name,
                w.layer,
                matrix_text(w.rows, w.columns, w.blocks),
                f"{w.norm:.4g}",
                f"{w.smallest:.3g}",
                number(w.condition),
                f"{w.stable_rank:.3g}",
                f"{w.effective_rank:.3g}",
                f"{w.near_zero} of {w.count}",
            )
        )
    lines = ["Weights: singular values of each layer's matrix W", "  (norm: of W itself, not of W W^T)", ""]
    return "\n".join([*lines, *table(rows, right=range(2, 9))])
