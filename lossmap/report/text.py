"""Words for spectra: numbers with their error bars as a person reads them, and what may be said of them.

A word is never stronger than its number: each verdict names the eigenvalue that it rests on, with its error, and says
`not known` where the error is larger than what would have to be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, isinf, isnan, log10

WIDTH = 110


def value_with_error(value: float, error: float) -> str:
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


def rounded(value: float, side: float) -> str:
    """A limit in four digits, rounded outwards: up where `side` is positive."""
    if value == 0.0:
        return "0"
    unit = 10.0 ** (floor(log10(abs(value))) - 3)
    return f"{(ceil(value / unit) if side > 0 else floor(value / unit)) * unit:.4g}"


def counts(pair: tuple[int, int]) -> str:
    """`3`, or `2-5` where it is known from and to."""
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,}-{pair[1]:,}"


def some(pair: tuple[int, int], noun: str) -> str:
    """`1 direction`, `2-5 directions`."""
    return f"{counts(pair)} {noun}" + ("" if pair == (1, 1) else "s")


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of equal length under each other; columns named in `right` stand flush right. The first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cut = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [cut[0].rstrip(), "-" * len(cut[0]), *(line.rstrip() for line in cut[1:])]
