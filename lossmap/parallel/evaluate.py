"""One try at a point, by all ranks of a team together; whatever comes of it is a message.

Where a rank of a team raises, the others would sum for ever: so each sum, and each end of a point, settles first
whether anybody has raised (`Team.settle`), and all leave the point as one. Lack of memory is no failure where the
measure can make do with less.
"""

from __future__ import annotations

import gc
import logging
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from lossmap.parallel.dispatcher import DONE, FAILED, UNFINISHED
from lossmap.parallel.team import PeerFailed, Team

logger = logging.getLogger("lossmap")

FINE, RAISED, LEFT, MEMORY = range(4)  # what a team settles about a point; the largest counts


class PointEvaluator:
    """One try at a point, by the whole team; what comes of it is a message to the dealer, and never an exception.

    measure   point -> reading
    point     the coordinates of the point with an index
    sizes     how many numbers each field of a reading has
    left      what the measure raises when it leaves a point; has a `state`
    patience  seconds after which the kernel ends this rank, since it answers no more; None: never
    """

    def __init__(
        self,
        measure: Callable[[Any], Mapping[str, Any]],
        point: Callable[[int], Any],
        sizes: Mapping[str, int],
        team: Team,
        left: type[Exception],
        patience: float | None = None,
    ) -> None:
        self.measure, self.point, self.sizes = measure, point, dict(sizes)
        self.team, self.left, self.patience = team, left, patience
        self.note: Callable[[str], None] = logger.warning

    def __call__(self, index: int, state: Any) -> tuple[Any, ...]:
        """Try the point; members of the team follow."""
        self.team.broadcast((index, state))
        return self.once(index, state)

    def follow(self) -> tuple[Any, ...]:
        """A member's part: try what the leader tries, until it says how the survey ended."""
        while True:
            index, told = self.team.broadcast()
            if index is None:
                return cast(tuple[Any, ...], told)
            self.once(index, told)

    def release(self, end: tuple[Any, ...]) -> None:
        """Tell the members how the survey ended."""
        self.team.broadcast((None, end))

    def once(self, index: int, state: Any) -> tuple[Any, ...]:
        """Try the point, again where memory ran out and the measure can do with less."""
        while True:
            began = time.perf_counter()
            code, value = self._measured(index, state)
            if code == FINE:
                return DONE, index, value, time.perf_counter() - began
            values = [value for value in self.team.gather(value) if value is not None]
            if code == LEFT:
                return UNFINISHED, index, next((v for v in values if isinstance(v, dict)), {})
            text = next((v for v in values if isinstance(v, str)), "no rank of the team says why")
            if code == RAISED or not self._smaller(value is not None, text):
                return FAILED, index, text

    def _measured(self, index: int, state: Any) -> tuple[int, Any]:
        """(what the team settled, this rank's part of it: the reading, the state, or the error as text)."""
        value: Any = None
        try:
            with _watched(self.patience):
                point = self.point(index)
                resume = getattr(self.measure, "resume", None) if state is not None else None
                value = self._checked(self.measure(point) if resume is None else resume(point, state))
            code = FINE
        except PeerFailed as fallen:  # settled already
            return fallen.code, fallen.why
        except self.left as left:
            code, value = LEFT, getattr(left, "state", {})
        except Exception as error:
            code = MEMORY if out_of_memory(error) and hasattr(self.measure, "smaller") else RAISED
            place = "" if self.team.size == 1 else f"on rank {self.team.rank} of the team:\n"
            value = place + traceback.format_exc()
        try:
            settled = self.team.settle(code)
        except PeerFailed as fallen:
            return fallen.code, fallen.why
        return settled, value if settled == code else None

    def _smaller(self, mine: bool, text: str) -> bool:
        """After memory ran out, here where `mine`: make do with less, on all ranks of the team or on none.

        On all, since a measure may keep something from point to point that must be the same on each of them.
        """
        gc.collect()  # what the failed try left in circles, before room is made anew
        try:
            said: str | None = self.measure.smaller()  # type: ignore[attr-defined]
        except Exception as error:  # there may not even be room to change anything
            logger.warning("after memory ran out: %s", error)
            said = None
        if self.team.settle(FINE if said is not None else RAISED) != FINE:
            return False
        if mine:
            self.note(f"memory ran out ({text.strip().splitlines()[-1]}); {said}")
        return True

    def _checked(self, reading: Mapping[str, Any]) -> dict[str, Any]:
        """The reading as numbers and arrays, with just the fields that were announced."""
        if set(reading) != set(self.sizes):
            raise ValueError(
                f"the measure announced the fields {', '.join(sorted(self.sizes))} and returned "
                f"{', '.join(sorted(reading)) or 'none'}"
            )
        checked: dict[str, Any] = {}
        for name, size in self.sizes.items():
            values = np.asarray(reading[name], dtype=np.float64)
            if values.size != size:
                raise ValueError(f"the field {name!r} takes {size} numbers a point; the measure returned {values.size}")
            checked[name] = float(values) if values.ndim == 0 else values
        return checked


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said no: CUDA's, the CPU's, or Python's own. Known by name, without torch."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or (
        isinstance(error, RuntimeError) and any(words in text for words in said)
    )


@contextmanager
def _watched(seconds: float | None) -> Iterator[None]:
    """The kernel ends this process where the block takes so long, even inside a call that never returns."""
    if seconds is None:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
