"""A finding, and what could be tried: values."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, log

SERIOUS, MODERATE, NOTE = 3, 2, 1


CHANCE = "no better than chance"


LEVELS = {SERIOUS: "serious", MODERATE: "moderate", NOTE: "note"}


@dataclass(frozen=True)
class Suggestion:
    """Something that could be tried: what, who says so, and what speaks against it."""

    what: str
    source: str
    doubt: str


@dataclass(frozen=True)
class Finding:
    """One number beyond its threshold.

    error   its standard error; 0 where the number is exact
    sense   whether it is above or below its threshold
    """

    rule: str
    where: str
    value: float
    error: float
    threshold: float
    sense: str
    level: int
    evidence: str
    means: str
    source: str
    tries: tuple[Suggestion, ...] = field(default=(), repr=False)

    @property
    def severity(self) -> str:
        """`serious`, `moderate` or `note`."""
        return LEVELS[self.level]

    @property
    def beyond(self) -> float:
        """How far the number is beyond its threshold, in its own direction."""
        return self.value - self.threshold if self.sense == "above" else self.threshold - self.value

    @property
    def sure(self) -> bool:
        """Whether it is beyond by two standard errors."""
        return not self.beyond < 2 * self.error

    @property
    def rank(self) -> tuple[int, float]:
        """What findings are sorted by: the gravest first, then how many times beyond the threshold."""
        if self.value <= 0 or self.threshold <= 0 or not isfinite(self.value):
            return (-self.level, -inf)
        return (-self.level, -abs(log(self.value / self.threshold)))
