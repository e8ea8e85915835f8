"""The progress of a survey on rank 0: a live bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from lossmap.landscape.survey_recorder import Progress as Event
from lossmap.parallel.pace import duration_text
from lossmap.parallel.world import World

LINE_INTERVAL = 5.0  # seconds between plain lines

Show = Callable[[Event], None]


def progress_line(event: Event, what: str, unit: str = "point") -> str:
    """One plain line: how far, how fast, how long still, what failed.

    what  the word before the numbers, such as `losses`
    unit  what is counted, in the singular
    """
    settled = event.done + event.failed
    share = 100.0 * settled / event.total if event.total else 100.0
    failed = f", {event.failed:,} failed" if event.failed else ""
    return f"{what}: {event.done:,} of {event.total:,} {unit}s ({share:.0f} %){failed}, {_pace(event, unit)}"


def _pace(event: Event, unit: str) -> str:
    settled = event.done + event.failed
    if event.rate == 0 and event.total and settled == event.total:
        return "all known before"
    rate = f"{event.rate:.3g} {unit}s/s"
    if 0 < event.rate < 1:
        rate = f"{1 / event.rate:.3g} s/{unit}"
    if settled < event.total:
        return f"{rate}, {duration_text(event.left)} left"
    return f"{rate} in {duration_text(event.seconds)}"


@contextmanager
def display(world: World, what: str, file: TextIO | None = None, unit: str = "point") -> Iterator[Show | None]:
    """A function for `survey(progress=...)`; None on other ranks than 0.

    what  the word before the numbers, such as `losses`
    file  where to; by default stderr
    unit  what is counted, in the singular
    """
    if world.rank != 0:
        yield None
        return
    file = file or sys.stderr
    if file.isatty():
        with _bar(what, file, unit) as show:
            yield show
    else:
        yield _Lines(what, file, unit=unit)


class _Lines:
    """A line every few seconds, one at the end, and one for each note of an event."""

    def __init__(
        self,
        what: str,
        file: TextIO,
        every: float = LINE_INTERVAL,
        now: Callable[[], float] = time.monotonic,
        unit: str = "point",
    ) -> None:
        self.what, self.file, self.every, self.now, self.unit = what, file, every, now, unit
        self.next, self.ended = now() + every, False

    def __call__(self, event: Event) -> None:
        if event.note:
            print(f"{self.what}: {event.note}", file=self.file, flush=True)
        over = event.done + event.failed >= event.total
        if self.now() >= self.next or (over and not self.ended):
            self.next, self.ended = self.now() + self.every, over
            print(progress_line(event, self.what, self.unit), file=self.file, flush=True)


@contextmanager
def _bar(what: str, file: TextIO, unit: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(file=file), refresh_per_second=5) as bars:
        task = bars.add_task(what, total=None, text="")

        def show(event: Event) -> None:
            if event.note:
                bars.console.print(f"{what}: {event.note}", markup=False, highlight=False)
            text = progress_line(event, what, unit).partition(": ")[2]
            bars.update(task, completed=event.done + event.failed, total=event.total, text=text)

        yield show
