"""The report of the minima of a surface, and the table that counts them over several.

Rendered from the arrays and attributes that `topology.result` names and a file's group `topology` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf
from typing import Any

import numpy as np

from lossmap.report.stored import StoredReport
from lossmap.report.text import WIDTH, behind, count, field_in_words, filled, number, table, titled, value_with_error

MAX_ROWS = 12  # minima that the table shows, the most persistent ones
ROUNDED = "rounding"  # the kind of errors of which only a lower bound is known
ERRORS = {
    "bound": "the bounds of their errors",
    "standard error": "two standard errors",
    "exact": "nothing: these numbers are exact",
}


def topology_report(stored: StoredReport) -> str:
    """The report of one surface."""
    arrays = stored.arrays
    real = np.flatnonzero(arrays["is_real"])
    lines = [titled(f"Minima of {field_in_words(stored.text('field'))}", stored.text("label"))]
    lines += [f"  {line}" for line in filled(_about(stored, len(real)), WIDTH - 2)]
    if not real.size:
        return "\n".join(lines)
    order = real[np.argsort(-arrays["persistence"][real], kind="stable")]
    shown = np.sort(order[:MAX_ROWS])
    lines += ["", *table(_rows(stored, shown), right=(0,))]
    if len(order) > MAX_ROWS:
        more = len(order) - MAX_ROWS
        lines.append(f"  and {more} less persistent one{'' if more == 1 else 's'}")
    notes = _notes(stored, real)
    if notes:
        lines += ["", *(f"  {line}" for note in notes for line in filled(note, WIDTH - 2))]
    return "\n".join(lines)


def _about(stored: StoredReport, real: int) -> str:
    """How many there are, of what, and what does not count."""
    values = stored.arrays["values"]
    size = " x ".join(str(n) for n in values.shape[::-1])
    grid = f"{size} points" if values.size > 1 else "1 point"
    if values.ndim > 1 and values.size > 1:
        grid += f" with {_neighbours(values.shape, stored.flag('diagonal'))} neighbours each"
    low, high = (number(float(f(values))) for f in (np.nanmin, np.nanmax))
    unit = stored.text("unit", "1")
    parts = [f"{count(real, 'minimum', 'minima')} on {grid}; values from {low} to {high}"]
    parts[0] += behind(unit)
    left_out = len(stored.arrays["minimum"]) - real
    if not real:
        parts.append(f"no point differs from another by more than {_errors(stored)}")
    elif left_out:
        least = stored.number("least", 0.0)
        why = _errors(stored) + (f" or {number(least)}" if least else "")
        parts.append(f"{left_out} more {'is' if left_out == 1 else 'are'} no deeper than {why}, and not counted")
    if missing := int(stored.number("missing", 0)):
        parts.append(f"{count(missing, 'point')} without a finite value")
    return "; ".join(parts)


def _errors(stored: StoredReport) -> str:
    """What a minimum has to be deeper than."""
    kind = stored.text("error_kind")
    return _spacings(stored) if kind == ROUNDED else ERRORS[kind]


def _spacings(stored: StoredReport) -> str:
    return " ".join(["8 spacings of", *stored.text("precision").split(), "numbers at these values"])


def _neighbours(shape: tuple[int, ...], diagonal: bool) -> int:
    """Of a point inside a plane, which may have a single row."""
    if min(shape) == 1:
        return 2
    return 8 if diagonal else 4


def _rows(stored: StoredReport, shown: np.ndarray) -> list[tuple[str, ...]]:
    arrays = stored.arrays
    head = ["", "at", "value", "persistence", "merges at", "into", "depth", "basin"]
    has_sign = "sign" in arrays
    rows = [tuple(head + (["Hessian: at it", "at the saddle"] if has_sign else []))]
    flat = arrays["values"].reshape(-1)
    for i in shown:
        saddle, into = int(arrays["saddle"][i]), int(arrays["into"][i])
        at = place(stored, int(arrays["minimum"][i])) + (" *" if arrays["at_edge"][i] else "")
        row = [str(i + 1), at, number(float(flat[arrays["minimum"][i]]))]
        row += [_rise(arrays["persistence"][i], arrays["error"][i]), place(stored, saddle) if saddle >= 0 else "-"]
        row += [str(into + 1) if into >= 0 else "-", number(float(arrays["depth"][i])).replace("infinite", "-")]
        row.append(f"{100 * arrays['area'][i]:.3g} %")
        if has_sign:
            row += [_index_text(arrays, i), _index_text(arrays, i, "saddle_") if saddle >= 0 else "-"]
        rows.append(tuple(row))
    return rows


def _rise(value: float, error: float) -> str:
    return "lowest" if isinf(value) else value_with_error(float(value), float(error))


def place(stored: StoredReport, point: int) -> str:
    """The coordinates of a point as text."""
    x = stored.arrays["x"]
    if "y" not in stored.arrays:
        return f"{x[point]:.3g}"
    row, column = divmod(point, x.size)
    return f"{x[column]:.3g}, {stored.arrays['y'][row]:.3g}"


def _index_text(arrays: Any, i: int, which: str = "") -> str:
    """How many negative eigenvalues the Hessian has there, as far as is known."""
    sign, index = str(arrays[f"{which}sign"][i]), int(arrays[f"{which}index"][i])
    if not sign:
        return "not known"
    if sign == "positive":
        return "index 0"
    return f"index >= {index}" if index else "undecided"


def _notes(stored: StoredReport, real: np.ndarray) -> list[str]:
    arrays, notes = stored.arrays, []
    if arrays["at_edge"][real].any():
        notes.append(
            "* on the edge of the window, or beside a point without a value: the loss may fall further beyond it."
        )
    if stored.text("error_kind") == ROUNDED and np.isfinite(arrays["persistence"][real]).any():
        notes.append(
            f"The errors are {_spacings(stored)}: rounding is at least that. What is rounded within a loss is not "
            "known: where terms cancel, as in a network that fits its data, it may be far more, and minima of small "
            "persistence may be rounding alone." + _advice(stored.text("precision"))
        )
    if (hidden := _met_before_saddle(stored, real)).size:
        rows = ", ".join(str(i + 1) for i in hidden)
        notes.append(
            f"The persistence of {rows} ends where a lower minimum is met that is not counted, as it is itself within "
            "its error; the saddle is where one that is counted is met."
        )
    coarse = [int(n) for n in stored.text("coarse").split(",") if n]
    if coarse and any(n != real.size for n in coarse):
        notes.append(
            f"The grid is too coarse for this count: every second tick gives {' and '.join(map(str, coarse))} "
            f"(from the first and from the second tick on), all of them {real.size}."
        )
    elif coarse:
        notes.append(f"Every second tick gives {' and '.join(map(str, coarse))} minima too.")
    else:
        notes.append("The grid is too small to count on every second tick whether it is fine enough.")
    if "sign" in arrays and (arrays["sign"][real] == "negative").any():
        notes.append(
            "Index: negative eigenvalues of the network's own Hessian. A minimum of the picture with one is none of "
            "the loss: off the plane it falls further."
        )
    return notes


def _advice(precision: str) -> str:
    """How to see which minima are of rounding; nothing where there is no finer precision."""
    return " A survey with --precision float64 shows which stay." if precision != "float64" else ""


def _met_before_saddle(stored: StoredReport, real: np.ndarray) -> np.ndarray:
    """Those of the real minima that meet a lower one, which is none of them, before the saddle."""
    arrays = stored.arrays
    flat, ends = arrays["values"].reshape(-1), real[arrays["saddle"][real] >= 0]
    rise = flat[arrays["saddle"][ends]] - flat[arrays["minimum"][ends]]
    met: np.ndarray = ends[arrays["persistence"][ends] < rise]
    return met


def counts_table(stored: Sequence[StoredReport]) -> str:
    """How many minima each of several surfaces has: one row a surface, and their median."""
    rows = [("", "minima", "inside", "lowest", "most persistent", "every second tick")]
    counts = []
    for one in stored:
        real = one.arrays["is_real"].astype(bool)
        counts.append(int(real.sum()))
        finite = one.arrays["persistence"][real & np.isfinite(one.arrays["persistence"])]
        inside = int((real & (one.arrays["at_edge"] == 0)).sum())
        lowest = float(np.nanmin(one.arrays["values"]))
        coarse = ", ".join(n for n in one.text("coarse").split(",") if n) or "-"
        deepest = number(float(finite.max())) if finite.size else "-"
        rows.append((one.text("label"), str(counts[-1]), str(inside), number(lowest), deepest, coarse))
    if len(counts) > 1:
        rows.append(("median", f"{np.median(counts):g}", "", "", "", ""))
    return "\n".join(["Minima of each surface", *table(rows, right=(1, 2, 3, 4))])
