"""The progress of a survey on rank 0: a live bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TextIO

from lossmap.keywords import in_notebook
from lossmap.landscape.survey_recorder import Progress as Event
from lossmap.parallel.pace import duration_text
from lossmap.parallel.world import World

LINE_INTERVAL = 5.0  # seconds between plain lines
MAX_NOTES_SHOWN = 5  # below the bar of a notebook, the newest ones
PRE = '<pre style="margin: 0; white-space: pre-wrap">{code}</pre>'

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


@contextmanager
def progress_display(
    world: World, what: str, progress: bool | Show | None = None, file: TextIO | None = None, unit: str = "point"
) -> Iterator[Show | None]:
    """What a survey reports its progress to: a function of the caller's, a bar in a terminal or notebook, or nothing.

    what      the word before the numbers, such as `losses`
    unit      what is counted, in the singular
    progress  None: a bar where there is a terminal or notebook; True: that, or plain lines; False: nothing
    file      where to; by default stderr
    """
    if callable(progress):
        yield progress
        return
    if world.rank != 0 or progress is False:
        yield None
        return
    if in_notebook():
        with _notebook_bar(what, unit) as show:
            yield show
        return
    file = file or sys.stderr
    if progress or file.isatty():
        with display(world, what, file, unit) as show:
            yield show
        return
    yield None


@contextmanager
def _notebook_bar(what: str, unit: str) -> Iterator[Show]:
    """A bar of rich in the output of a cell, drawn anew as the survey goes on."""
    from io import StringIO

    from rich.console import Console, Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    front: Any = import_module("IPython.display")
    notes: list[str] = []

    def picture(event: Event | None) -> Any:
        settled = 0 if event is None else event.done + event.failed
        text = what if event is None else progress_line(event, what, unit)
        bar = ProgressBar(total=event.total if event else None, completed=settled, width=60)
        console = Console(record=True, file=StringIO(), width=100, force_jupyter=False)
        console.print(Group(Text(text), bar, *map(Text, notes[-MAX_NOTES_SHOWN:])))
        return front.HTML(console.export_html(inline_styles=True, code_format=PRE))

    handle = front.display(picture(None), display_id=True)

    def show(event: Event) -> None:
        if event.note:
            notes.append(event.note)
        handle.update(picture(event))

    yield show


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
