"""How many times longer a rank computes while the others do: where they share cores, memory bandwidth or a GPU.

A price is measured by one rank while all others wait, and so is its own time, not that of the work. Two ranks on one
core take twice as long each.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Protocol

REPEATS = 3  # of the work, alone and together


class Ranks(Protocol):
    """The ranks of a world."""

    rank: int
    size: int

    def gather(self, value: float | None) -> list[float | None]:
        """Every rank's value, on every rank; None for the dead."""


def measured_crowding(ranks: Ranks, computing: frozenset[int], work: Callable[[], float]) -> float:
    """The time of the slowest rank while all compute, over that of one rank alone: from 1 to the number of ranks.

    computing  the ranks that do; of these the first is timed alone
    work       -> its own seconds

    All ranks call it, and get the same number.
    """
    if len(computing) < 2:
        return 1.0
    if ranks.rank in computing:
        work()  # what is made on first use
    ranks.gather(None)  # nobody computes any more
    alone = None
    if ranks.rank == min(computing):
        alone = min(work() for _ in range(REPEATS))
    alone = next((seconds for seconds in ranks.gather(alone) if seconds), None)
    together = fmean(work() for _ in range(REPEATS)) if ranks.rank in computing else None
    slowest = max((seconds for seconds in ranks.gather(together) if seconds is not None), default=0.0)
    return min(float(len(computing)), max(1.0, slowest / alone)) if alone else 1.0
