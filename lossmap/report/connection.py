"""The report of the line between two networks: loss and accuracy at its ends, barrier, monotone or not.

Rendered from the arrays and attributes that `landscape.connection` names and a file's group `connection` holds.
"""

from __future__ import annotations

from math import isfinite, isinf, isnan

import numpy as np

from lossmap.report.stored import StoredReport
from lossmap.report.text import (
    WIDTH,
    behind,
    count,
    counted,
    filled,
    number,
    numbers_apart,
    table,
    value_with_error,
    wrapped,
)

# other ways between both networks that may be measured beside the line, by what stands before their names
BESIDE = {"unaligned": "before alignment", "curve": "on the curve"}
IN_ROWS = {"unaligned": "not aligned", "curve": "on the curve"}
NO_BARRIER = "no barrier can be stated"
CLEAR = 2.0  # standard errors above which a barrier is said to be there, where they do not rest on a few terms
NOTED = 0.3  # of an error of which rounding is a part: from there on it is named
STATISTICS = {
    "recompute": "batch-norm statistics recomputed at every point, the ends too, from fixed batches of the samples",
    "interpolate": "batch-norm statistics interpolated between those of both networks",
    "keep": "batch-norm statistics of the first network at every point",
    "none": "no batch norm",
}


def splits_of(stored: StoredReport) -> list[str]:
    """The splits that were measured, in their order."""
    names = [name.removesuffix("_loss") for name in stored.arrays if name.endswith("_loss")]
    return [name for name in names if name.partition("_")[0] not in BESIDE]


def ways_beside(stored: StoredReport) -> list[str]:
    """The ways beside the line that were measured, by what stands before their names."""
    return [way for way in BESIDE if any(name.startswith(f"{way}_") for name in stored.arrays)]


def connection_report(stored: StoredReport) -> str:
    """The report of one line."""
    points = len(stored.arrays["t"])
    lines = [f"Line from {stored.text('first')} to {stored.text('end') or stored.text('other')}"]
    about = f"{points} points, length {number(stored.number('length'))}; {STATISTICS[stored.text('bn', 'none')]}"
    lines += [f"  {line}" for line in filled(about, WIDTH - 2)]
    if stored.text("alignment", ""):
        aligned = f"{stored.text('other')} {stored.text('alignment')}"
        lines += [f"  {line}" for line in filled(aligned, WIDTH - 2)]
    if stored.text("evaluation", ""):
        lines += wrapped("evaluation", stored.text("evaluation"), indent=20)
    for way, text in _ways_text(stored).items():
        about = f"{text}: length {number(stored.number(f'{way}_length'))}"
        lines += [f"  {line}" for line in filled(about, WIDTH - 2)]
    rows = [("", f"{counted(stored.text('unit', 'nats'))}s", "at 0", "at 1", "highest", "lowest")]
    for name in _measured(stored):
        samples = f"{int(stored.number(name.partition('_')[0] + '_samples', 0)):,}"
        rows.append((name.replace("_", " "), samples, *_range(stored.arrays[name])))
        for way in ways_beside(stored):
            rows.append((f"  {IN_ROWS[way]}", "", *_range(stored.arrays[f"{way}_{name}"])))
    lines += table(rows, right=(1, 2, 3, 4, 5))
    for split in splits_of(stored):
        lines += ["", *_split_lines(stored, split)]
    note = f"Of the {points} points that were measured; between them the loss may be higher."
    return "\n".join([*lines, f"  {note}"])


def _range(values: np.ndarray) -> tuple[str, str, str, str]:
    """At both ends, the highest and the lowest."""
    numbers = (float(values[0]), float(values[-1]), _extreme(values, 1), _extreme(values, -1))
    first, last, highest, lowest = map(number, numbers)
    return first, last, highest, lowest


def _measured(stored: StoredReport) -> list[str]:
    """The losses and metrics, split by split, the loss first."""
    names = []
    for split in splits_of(stored):
        own = [n for n in stored.arrays if n.startswith(f"{split}_") and not n.endswith("_error")]
        names += sorted(own, key=lambda name: not name.endswith("_loss"))
    return names


def _extreme(values: np.ndarray, sign: int) -> float:
    known = values[~np.isnan(values)]
    return float(sign * (sign * known).max()) if known.size else float("nan")


def _split_lines(stored: StoredReport, split: str) -> list[str]:
    """Barrier and monotonicity of one split."""
    if f"{split}_barrier" not in stored.attributes:
        return wrapped(split, f"{NO_BARRIER}: the loss at one of both ends is not known, or infinite")
    return [
        *_lines_without_loss(stored, split),
        *wrapped(f"{split} barrier", _barrier_text(stored, split), indent=20),
        *_lines_beside(stored, split),
        *wrapped("above the mean", _midpoint_text(stored, split), indent=20),
        *wrapped("monotone", monotone_text(stored, split), indent=20),
    ]


def _lines_without_loss(stored: StoredReport, split: str) -> list[str]:
    """How many points of the line and of the ways beside it have no loss, and between which t they lie."""
    lines = []
    for way in ("", *ways_beside(stored)):
        t = stored.arrays["t"][np.isnan(stored.arrays["_".join(filter(None, (way, split, "loss")))])]
        if t.size:
            where = f"at t = {t[0]:.3g}" + (f" to {t[-1]:.3g}" if t.size > 1 else "")
            text = f"{count(t.size, 'point')} {where}: not a number, or failed; left out below"
            lines += wrapped(IN_ROWS[way] if way else "without a loss", text, indent=20)
    return lines


def _ways_text(stored: StoredReport) -> dict[str, str]:
    """What the ways beside the line are, each in some words."""
    words = {"unaligned": f"the line to {stored.text('other')} as it stood", "curve": stored.text("curve", "")}
    return {way: words[way] for way in ways_beside(stored)}


def _lines_beside(stored: StoredReport, split: str) -> list[str]:
    """The barriers on the ways beside the line."""
    return [
        line
        for way in ways_beside(stored)
        if f"{way}_{split}_barrier" in stored.attributes
        for line in wrapped(IN_ROWS[way], _barrier_text(stored, f"{way}_{split}"), indent=20)
    ]


def _barrier_text(stored: StoredReport, split: str) -> str:
    height, error = stored.number(f"{split}_barrier"), stored.number(f"{split}_error")
    unit, at = stored.text("unit"), stored.number(f"{split}_at")
    in_unit = behind(unit)
    if isinf(height):
        return f"infinite at t = {at:.3g}"
    if height == 0.0:
        middle = stored.number(f"{split}_middle")
        there = "the middle has no loss" if isnan(middle) else f"at the middle {number(middle)}{in_unit}"
        return f"none: no point lies above the line between both ends; {there}"
    rounding = rounding_of(stored, split)
    if height <= rounding:
        return (
            f"none beyond rounding: {number(height)}{in_unit} above the line between both ends, at t = {at:.3g}, where "
            f"rounding of the losses may make {rounding:.2g}"
        )
    text = f"{value_with_error(height, error)}{in_unit} above the line between both ends, at t = {at:.3g}"
    if isnan(error):
        return f"{text}; its error is not known: that takes several batches, or of a loss that draws --noise-repeats"
    kinds, repeats = _terms_of(stored, split), int(stored.number("noise_repeats", 0))
    terms = f"the {kinds}"
    if repeats:
        terms = f"{repeats} realisations of the noise"
    elif stored.number(f"{split}_batches", 0):
        terms = count(int(stored.number(f"{split}_batches")), "batch", "batches")
    beside = ", and rounding" if rounding > NOTED * error else ""
    known = f"standard error over {terms}, paired, at that point{beside}"
    if height <= stored.number(f"{split}_clear", CLEAR) * error:
        return f"{text} ({known}); it cannot be told from none by these {kinds}"
    return f"{text} ({known})"


def rounding_of(stored: StoredReport, split: str) -> float:
    """By which rounding of the losses may move a rise; 0 where it is not known, as of files of earlier versions."""
    rounding = stored.number(f"{split}_rounding", 0.0)
    return rounding if isfinite(rounding) else 0.0


def _terms_of(stored: StoredReport, split: str) -> str:
    """Of what the standard errors are: samples, tokens, batches or realisations."""
    if stored.number("noise_repeats", 0):
        return "realisations"
    return "batches" if stored.number(f"{split}_batches", 0) else f"{counted(stored.text('unit', ''))}s"


def _midpoint_text(stored: StoredReport, split: str) -> str:
    height, error = stored.number(f"{split}_midpoint"), stored.number(f"{split}_midpoint_error")
    if not isfinite(height):
        return "infinite"
    at = stored.number(f"{split}_midpoint_at")
    return f"{value_with_error(height, error)}{behind(stored.text('unit'))} of both ends, at t = {at:.3g}"


def monotone_text(stored: StoredReport, split: str) -> str:
    """Whether the loss turns on the way, with the numbers that say so."""
    direction, steps = stored.text(f"{split}_direction"), int(stored.number(f"{split}_steps"))
    turns, bump = int(stored.number(f"{split}_turns")), stored.number(f"{split}_bump")
    losses, rounding = stored.arrays[f"{split}_loss"], rounding_of(stored, split)
    first, last = numbers_apart(float(losses[0]), float(losses[-1]))
    low, high = _extreme(losses, -1), _extreme(losses, 1)
    if 0.0 < high - low <= rounding:
        return f"the same at both ends and between them, {number(low)}, but for rounding"
    if direction != "stays" and abs(float(losses[-1] - losses[0])) <= rounding:
        reached = " to ".join(numbers_apart(low, high))
        return f"the ends are equal but for rounding, {number(float(losses[0]))}; between them the loss is {reached}"
    if direction == "stays":
        steady = "and nowhere above" if not turns else f"but rises at {count(turns, 'step')} of {steps}"
        return f"the ends are equal, {first}, {steady}"
    against = "rises" if direction == "falls" else "falls"
    way = f"{direction} from {first} to {last}"
    if stored.flag(f"{split}_is_monotone"):
        return f"yes: {way}, and {against} at none of {count(steps, 'step')}"
    start, end = stored.number(f"{split}_bump_from"), stored.number(f"{split}_bump_to")
    between = " and ".join(numbers_apart(start, end, 3))
    size = "infinitely" if isinf(bump) else f"by {number(bump)} in all"
    text = f"no: {way}, but {against} at {turns} of {count(steps, 'step')}, {size} between t = {between}"
    if bump <= rounding:
        return f"{text}; rounding of the losses may make as much"
    clear = stored.number(f"{split}_clear", CLEAR)
    # of losses on both sides of the line's middle the errors may be opposite: their sum bounds that of the difference
    if bump <= clear * (_paired_error(stored, split, start) + _paired_error(stored, split, end)) + rounding:
        return f"{text}; that cannot be told from none by these {_terms_of(stored, split)}"
    return text


def _paired_error(stored: StoredReport, split: str, t: float) -> float:
    """The larger error of the loss at a point, against the line between the ends and their mean; 0: not known."""
    at = int(np.abs(stored.arrays["t"] - t).argmin())
    kept = [
        stored.arrays[name] for kind in ("barrier", "midpoint") if (name := f"{split}_{kind}_error") in stored.arrays
    ]
    return max((float(errors[at]) for errors in kept if isfinite(errors[at])), default=0.0)
