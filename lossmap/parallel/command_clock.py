"""When the command began that a process was started for: --budget covers what is imported and prepared, too.

`lossmap` starts the clock before PyTorch is imported, which takes seconds; the first measuring function of that command
takes its time, and what follows in the same process, as the members of a campaign do, begins when it is called.
"""

from __future__ import annotations

import time

IMPORTED = time.monotonic()  # this module is among the first that a command imports
_started: list[float] = []


def start_clock(at: float | None = None) -> None:
    """A command begins: now, or at this time by time.monotonic."""
    _started[:] = [time.monotonic() if at is None else at]


def stop_clock() -> None:
    """The command has ended."""
    _started.clear()


def command_began() -> float:
    """When the command began, by time.monotonic: asked for once; else, and without a command, now."""
    return _started.pop() if _started else time.monotonic()
