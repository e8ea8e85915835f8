"""Words for spectra: numbers with their error bars as a person reads them, and tables.

A word is never stronger than its number: each sentence names the eigenvalue that it rests on, with its error, and says
so where the error is larger than what would have to be resolved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil, floor, isfinite, isinf, isnan, log10

WIDTH = 80  # of a terminal; no line of a report is longer, but for a single word that is
GLUE = "\N{NO-BREAK SPACE}"  # between the parts of a number, while lines are filled
INNER_GAPS = re.compile(r" (?=\+- |%)|(?<= \+-) ")
INDENT = 16  # of the text beside its label
MAX_GAP_IN_ERRORS = 1.01  # a limit further out than its value's error, and than this share of it, is printed beside it
MAX_RELATIVE_GAP = 0.05
DIGITS_OF_ERRORS, MAX_DIGITS = 2, 10  # that are printed of an error, and of its value at most
MIN_ROUNDING_SHARE = 0.5  # of an error, from which on the precision, and not the number of products, sets it
FISHER = "fisher"
MC_FISHER = "mc-fisher"
PRECONDITIONED = "preconditioned"
GAUSS_NEWTON = "gauss-newton"
MATRICES = {"hessian": "Hessian", GAUSS_NEWTON: "Gauss-Newton matrix", FISHER: "empirical Fisher matrix",
    PRECONDITIONED: "preconditioned Hessian",
    MC_FISHER: "Monte-Carlo Fisher matrix",
}  # fmt: skip


def raised_error(traceback_text: str) -> str:
    """What was raised, of a traceback: the first line of its message, which may have many; "" of an empty text.

    A text without a traceback is taken to end with what matters.
    """
    lines = [line.rstrip() for line in traceback_text.splitlines() if line.strip()]
    if not lines:
        return ""
    frames = [i for i, line in enumerate(lines) if line.startswith("  File ")]
    if not frames:
        return lines[-1].strip()
    behind = lines[frames[-1] + 1 :] or lines[-1:]
    while len(behind) > 1 and behind[0].startswith(" "):  # the frame's own line of code
        del behind[0]
    is_heading = behind[0].endswith(":") and len(behind) > 1  # "RuntimeError: Error(s) in loading state_dict for Net:"
    return " ".join(line.strip() for line in behind[: 1 + is_heading])


def value_with_error(value: float, error: float) -> str:
    """`12.345 +- 0.012`: as many digits as the error leaves meaningful, of which it has two itself.

    With one, an error of 0.0149 would be printed as 0.01, and its value be off by a third of it.
    """
    if isnan(value):
        return "not found"
    bar = f" +- {_digits(error, DIGITS_OF_ERRORS)}" if isfinite(error) and error > 0.0 else ""
    return meaningful_digits(value, error) + bar


def meaningful_digits(value: float, error: float) -> str:
    """`12.345` of an error of 0.012, which is printed elsewhere: as `value_with_error` has the value."""
    if not (isfinite(error) and error > 0.0 and isfinite(value) and value):
        return f"{value:.6g}"
    digits = floor(log10(abs(value))) - floor(log10(error)) + DIGITS_OF_ERRORS
    return _digits(value, min(max(digits, 2), MAX_DIGITS))


def interval_text(low: float, high: float) -> str:
    """`4.25674 to 4.25677`: as many digits as its half width, taken for an error, leaves meaningful."""
    half = (high - low) / 2.0
    return f"{meaningful_digits(low, half)} to {meaningful_digits(high, half)}"


def value_with_limit(value: float, error: float, limit: float) -> str:
    """An extreme eigenvalue as `value_with_error` has it, and how far out it may lie where that is much further.

    limit  beyond which no eigenvalue lies, of an end; NaN where there is none
    """
    text = value_with_error(value, error)
    gap = abs(limit - value)
    if not isfinite(gap) or gap <= max(MAX_GAP_IN_ERRORS * error, MAX_RELATIVE_GAP * abs(value)):
        return text
    if limit < value:
        return f"{text} (may lie as low as {rounded(limit, -1.0)})"
    return f"{text} (may lie as high as {rounded(limit, 1.0)})"


def zero_clause(error: float, rounding: float) -> str:
    """What is said of an eigenvalue whose interval holds zero, behind its number.

    error     an eigenvalue lies within this distance; rounding: the part of it that allows for rounding, NaN where it
              is not known
    """
    if error == 0.0:
        return "is zero"
    if rounding >= MIN_ROUNDING_SHARE * error:
        return "cannot be told from zero in this precision"
    return "is zero within its error"


def _digits(value: float, digits: int) -> str:
    """The value with this many digits, and 40 rather than 4e+01."""
    text = f"{value:.{digits}g}"
    if "e+" in text and abs(value) < 1e7:
        return f"{float(text):.0f}"
    return text


def counted(unit: str) -> str:
    """What a loss of this unit is a mean over: `nats per token` of tokens; otherwise samples."""
    _, per, what = unit.rpartition(" per ")
    return what if per else "sample"


def behind(unit: str) -> str:
    """A unit as it stands behind a number; nothing where there is none (1), as of a loss of one's own."""
    return f" {unit}" if unit not in ("", "1") else ""


def field_in_words(name: str) -> str:
    """A field as people say it: "training loss" of train_loss, "test accuracy" of test_acc."""
    samples, _, what = name.partition("_")
    samples, what = {"train": "training"}.get(samples, samples), {"acc": "accuracy"}.get(what, what)
    return f"{samples} {what}".replace("_", " ").strip()


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 layer`, `6 layers`, `3,392 parameters`."""
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {many or one + 's'}"


def number(value: float) -> str:
    """A number as people write it: 41,300 and 0.0012 rather than 4.13e+04."""
    if isinf(value):
        return "infinite"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def numbers_apart(first: float, second: float, digits: int = 4) -> tuple[str, str]:
    """Two numbers as people write them, with as many digits more as tell them apart where they differ.

    >>> numbers_apart(1.31623, 1.31624)
    ('1.31623', '1.31624')

    """
    texts = (number(first), number(second)) if digits == 4 else (f"{first:.{digits}g}", f"{second:.{digits}g}")
    while texts[0] == texts[1] and first != second and digits < 17:
        digits += 1
        texts = (f"{first:.{digits}g}", f"{second:.{digits}g}")
    return texts


def rough_number(value: float, relative: float) -> str:
    """A number as people write it; `~5e+05`, to one digit, where its relative error is more than a twentieth."""
    return f"~{value:.0e}" if relative > 0.05 and isfinite(value) else number(value)


def percent_with_error(share: float, error: float) -> str:
    """`25.0 +- 4.1 %` of a share of 1 and its error, to the error's second digit; never `1e+01`."""
    percent = 100.0 * error
    digits = 0
    if 0.0 < percent < 10.0:
        digits = min(6, 1 - floor(log10(percent)))
    return f"{100.0 * share:.{digits}f} +- {percent:.{digits}f} %"


def cost(products: int, seconds: float) -> str:
    """`107 products, 0.3 s`; without the time where it is not known."""
    if not isfinite(seconds):
        return count(products, "product")
    return f"{count(products, 'product')}, {seconds:.2g} s"


def titled(title: str, label: str) -> str:
    """`Spectrum of the Hessian: train`, or without the label where there is none."""
    if not label:
        return title
    return f"{title}: {label}"


def wrapped(label: str, text: str, *, indent: int = INDENT) -> list[str]:
    """A label and its text, broken into lines that stand under each other."""
    lines = filled(text, WIDTH - indent)
    if len(label) > indent - 4:  # no room beside it
        return [f"  {label}", *(" " * indent + line for line in lines)]
    return [f"  {label:<{indent - 2}}{lines[0]}", *(" " * indent + rest for rest in lines[1:])]


def filled(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters; a number stays together with its error and its percent sign."""
    lines: list[str] = []
    line = ""
    for word in INNER_GAPS.sub(GLUE, text).split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".lstrip(" ")
    return [line.replace(GLUE, " ") for line in (*lines, line)]


def rounded(value: float, side: float) -> str:
    """A limit in four digits, rounded outwards: up where `side` is positive."""
    if value == 0.0:
        return "0"
    unit = 10.0 ** (floor(log10(abs(value))) - 3)
    steps = floor(value / unit)
    if side > 0:
        steps = ceil(value / unit)
    return f"{steps * unit:.4g}"


def counts(pair: tuple[int, int]) -> str:
    """`3`, or `2-5` where it is known from and to."""
    low, high = pair
    if low == high:
        return f"{low:,}"
    return f"{low:,}-{high:,}"


def some(pair: tuple[int, int], noun: str) -> str:
    """`1 direction`, `2-5 directions`."""
    return f"{counts(pair)} {noun}" + "s" * (tuple(pair) != (1, 1))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), breaks: Sequence[int] = ()) -> list[str]:
    """Rows of equal length under each other, indented; columns named in `right` stand flush right.

    The first row is the head. Columns that find no room in a line go into a further table below, whose rows begin with
    the same first column.

    breaks  columns at which such a further table begins in any case
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines: list[str] = []
    for columns in _columns_by_part(widths, breaks):
        if lines:
            lines.append("")
        part = []
        for row in rows:
            cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in columns]
            part.append("  " + "  ".join(cells).rstrip())
        rule = "-" * (sum(widths[i] for i in columns) + 2 * len(columns) - 2)
        lines += [part[0], f"  {rule}", *part[1:]]
    return lines


def _columns_by_part(widths: Sequence[int], breaks: Sequence[int]) -> list[list[int]]:
    """The columns of each part of a table, so that a part is no wider than a line where that can be."""
    parts = [[0]]
    is_wide = sum(widths) + 2 * len(widths) > WIDTH
    for i in range(1, len(widths)):
        is_full = 2 + sum(widths[k] + 2 for k in parts[-1]) + widths[i] > WIDTH
        if len(parts[-1]) > 1 and (is_full or (is_wide and i in breaks)):
            parts.append([0])
        parts[-1].append(i)
    return parts
