"""How much of a training's time measurements may take, and whether the next one fits into that.

    a measurement is due and fits   while   spent + estimate <= share * (elapsed - spent)

Seconds of the clock: elapsed since the start, spent on measurements so far, and what the next one is expected to take:
what the last one took, at first a guess from a timed gradient. So the time spent stays within the share of the time
that training itself takes, but for the error of that guess. What prepares the first measurement counts alike, and waits
alike until it fits, but for what is asked for before training begins. A training that ends before it has made up for
this, or for a guess that was too low, has spent more than the share, which `excess` says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

logger = logging.getLogger("lossmap")


@dataclass
class Overhead:
    """A working state: the seconds spent, and what the next measurement will take.

    share     that measurements may take of the time of the training itself; None: as much as they take
    clock     seconds, such as time.perf_counter
    spent     seconds on measurements so far, with what prepared them
    prepared  the part of them that prepared the first one
    estimate  seconds of the next measurement
    skipped   how many were due and did not fit
    is_told   whether the log has said so
    """

    share: float | None = 0.05
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    prepared: float = 0.0
    estimate: float = 0.0
    skipped: int = 0
    is_told: bool = False
    start: float = field(init=False)

    def __post_init__(self) -> None:
        if self.share is not None and not self.share > 0:
            raise ValueError(f"max_overhead must be > 0, e.g. 0.05, or None for no limit; got {self.share}")
        self.start = self.clock()

    @property
    def training(self) -> float:
        """Seconds of the training itself so far."""
        return self.clock() - self.start - self.spent

    @property
    def ratio(self) -> float:
        """Seconds spent on measurements, relative to those of the training itself; 0 before it has begun."""
        training = self.training
        return self.spent / training if training > 0 else 0.0

    @property
    def left(self) -> float:
        """Seconds that may be spent now; infinite without a limit."""
        return inf if self.share is None else self.share * self.training - self.spent

    def fits(self, preparation: float = 0.0, is_known: bool = True) -> bool:
        """Whether a measurement fits now; the first time that one of a known price does not, the log says so.

        preparation  seconds that are expected of the next part of what prepares the first one, where that is due
        is_known     whether they say anything about the price of measurements
        """
        expected = preparation or self.estimate
        if self.share is None or expected <= self.left:
            return True
        self.skipped += 1
        if is_known and not self.is_told:
            self.is_told = True
            logger.warning(
                "%s curvature takes about %.2g s beside the %.2g s spent so far, and %.3g %% of the "
                "training time so far are %.2g s: it is left out where it does not fit; measure fewer samples, or "
                "raise max_overhead (None: no limit)",
                "the check before the first measurement of" if preparation else "a measurement of",
                expected,
                self.spent,
                100 * self.share,
                self.share * self.training,
            )
        return False

    def excess(self) -> str | None:
        """Where more than the share has been spent, a sentence that says so."""
        training = self.training
        if self.share is None or training <= 0 or self.spent <= self.share * training:
            return None
        percent = 100 * self.spent / training
        return (
            f"curvature took {self.spent:.2g} s, {percent:.3g} % of the training's {training:.2g} s: "
            f"more than max_overhead={self.share:g}; {self.prepared:.2g} s of it prepared the readings, which a "
            f"training of {self.prepared / self.share:.2g} s or more makes up for"
        )

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """What is done inside counts as spent on the preparation."""
        before = self.spent
        with self.spending():
            yield
        self.prepared += self.spent - before

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done inside counts as spent."""
        before = self.clock()
        try:
            yield
        finally:
            self.spent += self.clock() - before

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """The same for a whole measurement: what it takes, the next one is expected to take."""
        before = self.spent
        with self.spending():
            yield
        self.estimate = self.spent - before
