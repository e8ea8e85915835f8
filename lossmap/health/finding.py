"""A finding, and what could be tried: values."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, log

SERIOUS, MODERATE, NOTE = 3, 2, 1
LEVELS = {SERIOUS: "serious", MODERATE: "moderate", NOTE: "note"}
CHANCE_LEVEL = "chance-level"  # the rule that comes before all others


@dataclass(frozen=True)
class Suggestion:
    """Something that could be tried.

    what    in a few words
    source  who proposed or examined it; - for none
    caveat  what speaks against it; - for nothing
    """

    what: str
    source: str
    caveat: str


@dataclass(frozen=True)
class Finding:
    """One number beyond its threshold.

    rule       its name
    where      the layer, tensor or data that it is about
    value      the number, with its standard `error`; 0 where it is exact
    threshold  with its `source`
    sense      `above` or `below`: on which side of the threshold it is a finding
    level      SERIOUS, MODERATE or NOTE
    evidence   the number in one sentence; `means`: what it may mean
    tries      what could be tried
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
    def excess(self) -> float:
        """How far the number is beyond its threshold, in its own direction; negative where it is not."""
        if self.sense == "above":
            return self.value - self.threshold
        return self.threshold - self.value

    @property
    def is_significant(self) -> bool:
        """Whether it is beyond by two standard errors; an unknown error (NaN) does not make it undecided."""
        return not self.excess < 2 * self.error

    @property
    def sort_key(self) -> tuple[int, float]:
        """The most severe first, then how many times beyond the threshold."""
        if self.value <= 0 or self.threshold <= 0 or not isfinite(self.value):
            return (-self.level, -inf)
        return (-self.level, -abs(log(self.value / self.threshold)))
