"""A clock that stands while its process is stopped: who counts seconds by it blames nobody for those.

A job may be suspended (SLURM's `scontrol suspend` and gang scheduling, Ctrl-Z, a debugger), for hours: a point that was
being evaluated then has not taken so long. The kernel does not say how long a process was stopped. So a thread looks
each TICK seconds, and what lies between two looks counts as MAX_STEP seconds at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TICK = 0.25  # seconds
MAX_STEP = 0.5  # seconds


class RunningClock:
    """Seconds since it was made, without those in which the process was stopped.

    now  another clock, in seconds
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = 0.0, now()  # the seconds at the last look, and when that was

    def __call__(self) -> float:
        """The seconds."""
        seconds, last = self._last
        return seconds + min(self._now() - last, MAX_STEP)

    def look(self) -> None:
        """Count what has passed since the last look; called by one thread, each TICK seconds."""
        now, (seconds, last) = self._now(), self._last
        self._last = seconds + min(now - last, MAX_STEP), now


@contextmanager
def running_clock() -> Iterator[RunningClock]:
    """A context with a clock at which a thread looks."""
    clock, is_over = RunningClock(), threading.Event()

    def look() -> None:
        while not is_over.wait(TICK):
            clock.look()

    threading.Thread(target=look, name="lossmap-clock", daemon=True).start()
    try:
        yield clock
    finally:
        is_over.set()
