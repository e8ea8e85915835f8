"""The price of a command before its work: how many products or passes, seconds and bytes, in one line.

    about 2,300 products of 12 ms: 28 s, 140 MB
    about 380 products of 0.6 ms, and 4 s beside them: 4.2 s, 140 MB        where a solver's own work is a part of it
    ...; up to 350 more, 1.2 s, where eigenvalues spread out                where a density may need them

The number is an expectation (`linalg.expected_products`), the time of one was measured on this machine just before,
the memory is that of this process then, and what the work is known to add. Texts of spans and sizes stand here too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

MENTIONED_SHARE = 0.1  # of all seconds: so many that are not the products' own are mentioned
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Price:
    """What a command is expected to take.

    count    of products or passes, over all ranks
    seconds  of all of them on one rank
    memory   bytes of one rank
    unit     what is counted, in the singular
    workers  ranks, or teams of ranks, that share them
    longest  seconds of the longest part, which one of them does alone
    beside   seconds of all that are not the products' or passes' own
    fixed    seconds beside all that, before or after what is shared
    more     products that may be needed beyond `count`, which depends on the eigenvalues, and their seconds
    """

    count: float
    seconds: float
    memory: int
    unit: str = "product"
    workers: int = 1
    longest: float = 0.0
    beside: float = 0.0
    fixed: float = 0.0
    more: float = 0.0
    more_seconds: float = 0.0

    @property
    def wall(self) -> float:
        """Seconds from the first to the last."""
        return max(self.seconds / max(1, self.workers), self.longest) + self.fixed

    def slowed(self, factor: float) -> Price:
        """The price where everything takes so many times longer."""
        spans = ("seconds", "longest", "beside", "fixed", "more_seconds")
        return replace(self, **{name: factor * getattr(self, name) for name in spans})

    def __str__(self) -> str:
        count = rounded(self.count)
        unit = self.unit
        if count != 1:
            unit = f"{unit}es" if unit.endswith("s") else f"{unit}s"
        each = max(0.0, self.seconds - self.beside) / max(self.count, 1)
        text = f"about {count:,} {unit} of {short_span(each)}"
        beside = self.beside + self.fixed
        if beside > MENTIONED_SHARE * (self.seconds + self.fixed):
            text += f", and {span_text(beside)} beside them"
        text += f": {span_text(self.wall)}"
        if self.workers > 1:
            text += f" with {self.workers} at a time"
        text += f", {size_text(self.memory)}"
        if self.more > MENTIONED_SHARE * self.count:
            text += f"; up to {rounded(self.more):,} more, {span_text(self.more_seconds)}, where eigenvalues spread out"
        return text


def rounded(count: float) -> int:
    """A count to two digits, since it is an expectation."""
    return int(float(f"{count:.2g}"))


def short_span(seconds: float) -> str:
    """Seconds as text; milliseconds and microseconds where they are few."""
    for unit, length in (("ms", 1e-3), ("µs", 1e-6)):
        if 0 < seconds < 1000 * length and (unit == "µs" or seconds >= length):
            return f"{seconds / length:.3g} {unit}"
    return span_text(seconds)


def seconds_of(text: str) -> float:
    """The seconds of a span such as 90s, 10m, 2h, 1h30m or 90. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    whole = re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[smhd]\s*)+|\d+(?:\.\d+)?", text.strip().lower())
    total = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if whole is None or not total > 0:
        raise ValueError(f"--budget must be a time > 0, such as 90s, 10m, 2h or 1h30m; got {text!r}")
    return total


def span_text(seconds: float) -> str:
    """Seconds as text in a readable unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def size_text(size: float) -> str:
    """Bytes as text in a readable unit."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(size, 1)) / 3))
    return f"{size / 1000**power:.3g} {units[power]}"
