"""The report of how sharp a checkpoint is, the table of several, and which numbers survive a rescaling.

Rendered from the arrays and attributes that `landscape.sharpness_result` names and a file's group `sharpness/LABEL`
holds. Rises are in the unit of the loss; eigenvalues, trace and critical sharpness in that per squared unit of theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

from lossmap.report.estimates import trace_text
from lossmap.report.loss_text import loss_and_gradient_text
from lossmap.report.stored import StoredReport
from lossmap.report.text import (
    PRECONDITIONED,
    WIDTH,
    behind,
    count,
    counted,
    filled,
    number,
    table,
    titled,
    value_with_error,
    value_with_limit,
    wrapped,
)

SURVIVAL = 0.01  # relative change up to which a number counts as unchanged
DIFFERENT = 2.0  # bars of both together by which numbers differ that are told apart; some are standard errors
LOWER_BOUND = (
    "The worst rise is a lower bound: it is the largest that gradient ascent met, and the ball may hold a larger one."
)


@dataclass(frozen=True)
class SharpnessNumber:
    """One number of a checkpoint: its error bar, 0 where it has none."""

    name: str
    value: float
    error: float = 0.0
    is_rise: bool = False  # of the loss in a ball; the others are curvatures

    def __str__(self) -> str:
        if isnan(self.value):
            return "-"
        return value_with_error(self.value, self.error) if self.error else number(self.value)

    @property
    def short(self) -> str:
        """As a table has room for it: six digits alone, where the error is at most one of the last."""
        six = f"{self.value:.5e}"
        last = 10.0 ** (int(six.partition("e")[2]) - 5) if isfinite(self.value) else 0.0
        return f"{float(six):.6g}" if 0.0 < self.error <= last else str(self)


def sharpness_numbers(stored: StoredReport) -> list[SharpnessNumber]:
    """All numbers of a checkpoint by name, in the order of the tables; NaN for those that were not measured."""
    low, high = stored.number("critical_low"), stored.number("critical_high")
    half = (high - low) / 2.0 if isfinite(high - low) else 0.0
    numbers = [
        SharpnessNumber("largest eigenvalue", stored.number("largest"), stored.number("largest_error", 0.0)),
        SharpnessNumber("trace", stored.number("trace"), stored.number("trace_error", 0.0)),
        SharpnessNumber("critical sharpness", stored.number("critical"), half),
    ]
    if "batch_sharpness" in stored.attributes:
        error = _known(stored.number("batch_sharpness_error"))
        numbers.append(SharpnessNumber("batch sharpness", stored.number("batch_sharpness"), error))
    if PRECONDITIONED in stored.attributes:
        error = _known(stored.number("preconditioned_error"))
        numbers.append(SharpnessNumber("preconditioned eigenvalue", stored.number(PRECONDITIONED), error))
    for ball in _balls(stored):
        name = f"{ball['kind']} {ball['radius']:g}"
        numbers += [
            SharpnessNumber(f"{name}: average", ball["average"], ball["error"], True),
            SharpnessNumber(f"{name}: SAM", ball["sam"], _known(ball.get("sam_error", 0.0)), True),
            SharpnessNumber(f"{name}: worst", ball["worst"], _known(ball.get("worst_error", 0.0)), True),
        ]
    return numbers


def sharpness_rows(reports: Mapping[str, StoredReport]) -> dict[str, list[SharpnessNumber]]:
    """The numbers of several checkpoints, the same names for each: NaN where one was not measured, or has failed."""
    each = {label: {n.name: n for n in sharpness_numbers(stored)} for label, stored in reports.items()}
    fullest = max(each.values(), key=len, default={})
    names = dict.fromkeys([*fullest, *(name for numbers in each.values() for name in numbers)])
    kinds = {name: n.is_rise for numbers in each.values() for name, n in numbers.items()}
    return {
        label: [numbers.get(name, SharpnessNumber(name, nan, 0.0, kinds[name])) for name in names]
        for label, numbers in each.items()
    }


def sharpness_report(stored: StoredReport) -> str:
    """The report of one checkpoint."""
    unit = stored.text("unit")
    lines = [titled("Sharpness", stored.text("label"))]
    named = behind(unit).strip()
    loss, slope = loss_and_gradient_text(stored, named)
    about = (
        f"{count(int(stored.number('size')), 'parameter')} ({stored.text('parameters')}), "
        f"{count(int(stored.number('samples')), counted(unit))}, {stored.text('precision')}; "
        f"loss {loss}, gradient norm {slope}"
    )
    if stored.number("rescaled", 1.0) != 1.0:
        about += f"; {_rescaled_text(stored)}"
    lines += [f"  {line}" for line in filled(about, WIDTH - 2)]
    if stored.text("evaluation"):
        lines += wrapped("evaluation", stored.text("evaluation"))
    lines += wrapped("largest", _largest_text(stored))
    lines += wrapped("trace", _trace_text(stored))
    lines += wrapped("critical", _critical_text(stored))
    if "batch_sharpness" in stored.attributes:
        lines += wrapped("batch", _batch_text(stored))
    if PRECONDITIONED in stored.attributes:
        lines += wrapped(PRECONDITIONED, _preconditioned_text(stored))
    balls = list(_balls(stored))
    if not balls:
        return "\n".join(lines)
    rows = [("ball", "radius", "average rise", "SAM's rise", "worst rise found")]
    for ball in balls:
        average = SharpnessNumber("", ball["average"], ball["error"])
        cells = [
            str(SharpnessNumber("", ball[name], _known(ball.get(f"{name}_error", 0.0)))) for name in ("sam", "worst")
        ]
        rows.append((ball["kind"], f"{ball['radius']:g}", str(average), *cells))
    lines += ["", f"  Rise of the loss{', ' * bool(named)}{named}:", *table(rows, right=(1,))]
    lines += [f"  {line}" for line in filled(_ball_notes(balls, int(stored.number("seed", 0.0))), WIDTH - 2)]
    return "\n".join(lines)


def sharpness_table(reports: Mapping[str, StoredReport]) -> str:
    """Several checkpoints side by side, one row each."""
    head: tuple[str, ...] = ()
    rows = []
    for label, numbers in sharpness_rows(reports).items():
        stored = reports[label]
        head = ("", "n", "loss", *(n.name for n in numbers))
        rows.append(
            (label, f"{int(stored.number('size')):,}", number(stored.number("loss")), *(n.short for n in numbers))
        )
    return "\n".join(["Sharpness, side by side", *table([head, *rows]), f"  {LOWER_BOUND.split(':')[0]}."])


def survival_table(before: StoredReport, after: StoredReport) -> str:
    """Which numbers survive a rescaling that leaves the function alone: before, after, and whether they agree.

    Both are of the same draws, so that a number that depends on the function alone agrees far better than its bar.
    """
    rows = [("", "before", "after", "survives")]
    for one, two in zip(*sharpness_rows({"before": before, "after": after}).values(), strict=True):
        if isnan(one.value) and isnan(two.value):
            continue
        ratio = two.value / one.value if one.value else nan
        is_known = not isnan(one.value) and not isnan(two.value)
        word = {True: "yes", False: "no", None: "unclear"}[survives(one, two)] if is_known else "-"
        rows.append((one.name, one.short, two.short, word if isnan(ratio) else f"{word}, {ratio:.4g}"))
    note = (
        f"Of the copy, {_rescaled_text(after)}; the loss was {before.number('loss'):.6g} before and "
        f"{after.number('loss'):.6g} after. A number survives where both agree within {100 * SURVIVAL:g} %, and does "
        f"not where they differ by more than {DIFFERENT:g} times their bars together; between these it is unclear. "
        "Behind it the ratio of after to before."
    )
    title = titled("Under a rescaling of the network", before.text("label"))
    return "\n".join([title, *table(rows), *(f"  {line}" for line in filled(note, WIDTH - 2))])


def survives(before: SharpnessNumber, after: SharpnessNumber) -> bool | None:
    """Whether two numbers agree within `SURVIVAL`; None where they do not, and their bars do not tell them apart."""
    apart = abs(after.value - before.value)
    if apart <= SURVIVAL * abs(before.value):
        return True
    return None if apart <= DIFFERENT * (before.error + after.error) else False


def _rescaled_text(stored: StoredReport) -> str:
    """Which layers were rescaled, and by what; older files do not name them."""
    first, _, second = stored.text("rescaled_layers").partition(" and ")
    one, next_one = (f"layer {first}", f"layer {second}") if second else ("one layer", "the next")
    return f"{one} was multiplied by {stored.number('rescaled'):g} and {next_one} divided by it"


def _balls(stored: StoredReport) -> list[dict[str, Any]]:
    """The rises in each ball, as plain values."""
    if "ball" not in stored:
        return []
    names = (
        "radius", "average", "rounding", "sam", "sam_error", "worst", "worst_error", "draws", "starts", "steps",
        "movable",
    )  # fmt: skip
    columns = {name: f"ball_{name}" for name in names if f"ball_{name}" in stored}  # some are of later versions
    return list(stored.rows(kind="ball", error="ball_average_error", **columns))


def _known(error: float) -> float:
    """An error bar; 0, which is none, where it was not measured."""
    return error if isfinite(error) else 0.0


def _largest_text(stored: StoredReport) -> str:
    value, error = stored.number("largest"), stored.number("largest_error")
    if isnan(value):
        return "not measured"
    return f"eigenvalue {value_with_limit(value, error, stored.number('largest_limit'))}"


def _trace_text(stored: StoredReport) -> str:
    if "trace" not in stored.attributes:
        return "not measured"
    interval = (stored.number("trace_low"), stored.number("trace_high"))
    products, method = int(stored.number("trace_products")), stored.text("trace_method")
    return trace_text(stored.number("trace"), stored.number("trace_error"), interval, method, products)


def _critical_text(stored: StoredReport) -> str:
    if "critical_passes" not in stored.attributes:
        return "not measured"
    value, low, high = (stored.number(name) for name in ("critical", "critical_low", "critical_high"))
    passes = count(int(stored.number("critical_passes")), "forward pass", "forward passes")
    if isnan(value):
        below = f"; it is below {number(high)}" if isfinite(high) else ""
        return f"sharpness not found: {stored.text('critical_reason')}{below}"
    return f"sharpness {value:.4g}, between {number(low)} and {number(high)}: 2 / step, {passes}"


def _batch_text(stored: StoredReport) -> str:
    number_of, size = int(stored.number("batch_sharpness_batches")), int(stored.number("batch_sharpness_size"))
    if not number_of:
        return "sharpness unknown: no batch has a gradient"
    value = value_with_error(stored.number("batch_sharpness"), stored.number("batch_sharpness_error"))
    return (
        f"sharpness {value}: mean curvature of a batch's loss along its own gradient, {number_of} batches of "
        f"{count(size, 'sample')}, with standard error and rounding; stochastic gradient descent settles near "
        "2 / learning rate"
    )


def _preconditioned_text(stored: StoredReport) -> str:
    """The eigenvalue, of which optimizer, and its distance from where that one's steps diverge."""
    value, error = stored.number(PRECONDITIONED), stored.number("preconditioned_error")
    of = stored.text("optimizer") or "a given diagonal"
    text = f"eigenvalue {value_with_limit(value, error, stored.number('preconditioned_limit'))}: of P of {of}"
    threshold = stored.number("threshold")
    if isfinite(threshold):
        text += f", whose full-batch steps diverge above {number(threshold)}"
    return text


def _ball_notes(balls: list[dict[str, Any]], seed: int) -> str:
    first = balls[0]
    notes = []
    if first["draws"]:
        notes.append(
            f"Averages: {count(int(first['draws']), 'pair')} of opposite random points, uniform in the ball, seed "
            f"{seed}, with standard error."
        )
    if first["starts"]:
        starts, steps = count(int(first["starts"]), "start"), count(int(first["steps"]), "step")
        notes.append(f"Worst: ascent from {starts}, {steps} each. {LOWER_BOUND}")
    still = [b["kind"] for b in balls if b.get("movable") == 0]
    moving = [b for b in balls if b.get("movable") != 0]
    hidden = [b["kind"] for b in moving if isfinite(b["rounding"]) and abs(b["average"]) <= b["rounding"]]
    if any(isfinite(b.get("sam_error", nan)) for b in balls):
        notes.append("Bars of SAM's and the worst rise are of rounding, as measured against float64.")
    if hidden:
        notes.append(f"The average cannot be told from zero in this precision: {', '.join(map(str, hidden))}.")
    if still:
        notes.append(
            "All weights are 0, which these balls do not move, so that the rises are exactly 0: "
            f"{', '.join(map(str, still))}."
        )
    return " ".join(notes)
