"""How a survey shows itself on rank 0: a live bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from lossmap.landscape.survey_recorder import Progress as Event
from lossmap.parallel.world import World

EVERY = 5.0  # seconds between plain lines

Show = Callable[[Event], None]


def clock(seconds: float) -> str:
    """Seconds as people read them: 8 s, 3 min 20 s, 2 h 05 min, 4 days 3 h; a dash where unknown."""
    if seconds != seconds or seconds == float("inf"):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def line(event: Event, what: str) -> str:
    """One plain line: what, how far, how fast, how long still, what failed."""
    share = 100.0 * (event.done + event.failed) / event.total if event.total else 100.0
    failed = f", {event.failed:,} failed" if event.failed else ""
    rate = f"{event.rate:.3g} points/s" if event.rate >= 1 or event.rate == 0 else f"{1 / event.rate:.3g} s/point"
    left = f", {clock(event.left)} left" if event.done + event.failed < event.total else f" in {clock(event.seconds)}"
    if event.rate == 0 and event.total and event.done + event.failed == event.total:
        rate, left = "all known before", ""
    return f"{what}: {event.done:,} of {event.total:,} points ({share:.0f} %){failed}, {rate}{left}"


@contextmanager
def display(world: World, what: str, file: TextIO | None = None) -> Iterator[Show | None]:
    """A function for `survey(progress=...)`; None on other ranks than 0.

    what  the word before the numbers, such as `losses`
    """
    if world.rank != 0:
        yield None
        return
    file = sys.stderr if file is None else file
    if file.isatty():
        with _bar(what, file) as show:
            yield show
    else:
        yield _Lines(what, file)


class _Lines:
    """A line at the start, every few seconds, at the end, and for each thing that happened."""

    def __init__(
        self, what: str, file: TextIO, every: float = EVERY, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.file, self.every, self.now = what, file, every, now
        self.next, self.ended = now() + every, False

    def __call__(self, event: Event) -> None:
        if event.note:
            print(f"{self.what}: {event.note}", file=self.file, flush=True)
        over = event.done + event.failed >= event.total
        if self.now() >= self.next or (over and not self.ended):
            self.next, self.ended = self.now() + self.every, over
            print(line(event, self.what), file=self.file, flush=True)


@contextmanager
def _bar(what: str, file: TextIO) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(file=file), refresh_per_second=5) as bars:
        task = bars.add_task(what, total=None, text="")

        def show(event: Event) -> None:
            if event.note:
                bars.console.print(f"{what}: {event.note}", markup=False, highlight=False)
            text = line(event, what).partition(": ")[2]
            bars.update(task, completed=event.done + event.failed, total=event.total, text=text)

        yield show
