"""A rank that does nothing while all ranks set the problem up: it ends the job with a sentence that names it.

There the ranks wait for each other, so one that hangs in a person's code (a lock, a socket, a sleep) would hold the job
until its time limit. A slow rank must not be taken for one, however long it reads, computes or waits for another: so a
thread looks at what the kernel has counted for the process and its children. A rank hangs where its main thread was not
scheduled once for IDLE_SECONDS, or where it was but used hardly any processor, read nothing and waited for no other
rank for IDLE_FACTOR times as long, as in a loop that sleeps; neither counts while it waits for a disk. It costs about a
millisecond each ten seconds. Linux alone; a loop that computes for ever looks like work, and C code that hangs with the
interpreter's lock held lets no thread look.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lossmap.interrupt import place_in_own_file
from lossmap.parallel.launcher import claimed, launched, rank_in
from lossmap.parallel.messages import PollBackoff

VARIABLE = "LOSSMAP_SETUP_TIMEOUT"  # seconds instead of IDLE_SECONDS; inf: never
IDLE_SECONDS = 1800.0  # a blocking lock, held by a rank that prepares the data for all, may take long
IDLE_FACTOR = 4.0
BUSY_SHARE = 0.002  # of a core: who uses more works
BUSY_SECONDS = 0.02  # of a core, that are no work: two of the kernel's ticks
MAX_INTERVAL = 10.0  # seconds between looks
LOOKS = 15  # at least, before a rank counts as one that hangs
NOTHING, HARDLY = "has done nothing for", "has done hardly anything for"
SPEECH_SECONDS = 2.0  # for the rank that speaks for all to end this one
_FAULTS, _CPU = slice(7, 11), slice(11, 13)  # of the words of /proc/.../stat behind the name

_watch: IdleWatch | None = None


@dataclass(frozen=True)
class Activity:
    """What the kernel has counted so far.

    switches  how often the main thread has left a processor
    cpu       seconds of a core, of the process and its children
    other     bytes read and written, page faults, and waits for other ranks
    waiting   whether the main thread waits for a disk now
    """

    switches: int
    cpu: float
    other: int
    waiting: bool


def activity(without: int) -> Activity:
    """Of this process and its children, but for one thread of it. Raises OSError where the kernel does not say."""
    main = os.getpid()
    words = Path(f"/proc/self/task/{main}/status").read_text().split()
    switches = sum(int(words[words.index(f"{kind}voluntary_ctxt_switches:") + 1]) for kind in ("", "non"))
    waiting = words[words.index("State:") + 1] == "D"
    cpu, other = 0, PollBackoff.polls
    for folder in _counted(main, without):
        try:
            fields = Path(folder, "stat").read_text().rpartition(")")[2].split()
            counts = Path(folder, "io").read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        cpu += sum(map(int, fields[_CPU]))
        other += sum(map(int, fields[_FAULTS])) + int(counts[1]) + int(counts[3])
    return Activity(switches, cpu / os.sysconf("SC_CLK_TCK"), other, waiting)


def _counted(main: int, without: int) -> Iterator[str]:
    """The folders of the threads of this process, but for one, and of the processes below it."""
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    yield from (f"/proc/self/task/{thread}" for thread in threads if thread != without)
    pending = _children(main)
    while pending:
        child = pending.pop()
        yield f"/proc/{child}"
        pending += _children(child)


def _children(process: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{process}/task")
        return [int(c) for t in threads for c in Path(f"/proc/{process}/task/{t}/children").read_text().split()]
    except OSError:
        return []


class Stillness:
    """How long nothing has happened, from look to look.

    `still` are the seconds in which the main thread was not scheduled once, `idle` those in which hardly anything was
    done.
    """

    def __init__(self, first: Activity) -> None:
        self._last = self._mark = first
        self.still = self.idle = 0.0

    def look(self, now: Activity, seconds: float) -> None:
        """Take in what the kernel says so many seconds after the last look."""
        self.idle += seconds
        self.still += seconds
        used = now.cpu - self._mark.cpu
        works = not 0 <= used <= BUSY_SECONDS + BUSY_SHARE * self.idle  # less than before: a thread has ended
        if works or now.other != self._last.other or now.waiting:
            self.idle, self._mark = 0.0, now
        if self.idle == 0.0 or now.switches != self._last.switches:
            self.still = 0.0
        self._last = now


class IdleWatch:
    """The watch of this rank, in a thread.

    environ  the process's variables
    end      ends the job; called once, in that thread

    Raises ValueError where the variable is no number of seconds.
    """

    def __init__(self, environ: Mapping[str, str], end: Callable[[], NoReturn]) -> None:
        self.rank, self.end_job = rank_in(environ), end
        self.limit = limit_in(environ)
        self.paused = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lossmap-idle", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()

    def _run(self) -> None:
        own, interval = threading.get_native_id(), min(MAX_INTERVAL, self.limit / LOOKS)
        try:
            stillness = Stillness(activity(own))
            while not self._over.wait(interval):
                # one interval, however long it took: a job may be suspended, and C code may keep this thread waiting
                stillness.look(activity(own), interval)
                if self.paused:
                    stillness = Stillness(activity(own))
                elif stillness.still >= self.limit or stillness.idle >= IDLE_FACTOR * self.limit:
                    self._speak(NOTHING if stillness.still >= self.limit else HARDLY, stillness.idle)
        except (OSError, ValueError, IndexError):  # a kernel that does not say: no watch, then
            return

    def _speak(self, what: str, seconds: float) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        where = None if frame is None else place_in_own_file(traceback.extract_stack(frame))
        at = f" at {where}" if where else ""
        with claimed("idle") as is_first:  # of several that hang one speaks
            if is_first:
                sentence = (
                    f"lossmap: rank {self.rank} on {socket.gethostname()} {what} {seconds:.0f} s{at}, "
                    "while the other ranks wait for it; what has been measured is safe: run the same command again "
                    f"({VARIABLE}=SECONDS waits longer)\n"
                )
                os.write(2, sentence.encode())
            else:
                time.sleep(SPEECH_SECONDS)
            self.end_job()


def limit_in(environ: Mapping[str, str]) -> float:
    """Seconds after which a rank that does nothing counts as one that hangs. Raises ValueError for no such number."""
    text = environ.get(VARIABLE) or str(IDLE_SECONDS)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise ValueError(f"{VARIABLE} must be a number of seconds > 0, or inf for never; got {text!r}")
    return limit


@contextmanager
def idle_watch(environ: Mapping[str, str], end: Callable[[], NoReturn]) -> Iterator[None]:
    """A context in which a rank that does nothing ends the job; without a launcher, or within another, nothing happens.

    Arguments and errors as for `IdleWatch`.
    """
    global _watch
    if _watch is not None or launched(environ) < 2 or sys.platform != "linux" or math.isinf(limit_in(environ)):
        yield
        return
    _watch = IdleWatch(environ, end)
    _watch.start()
    try:
        yield
    finally:
        _watch.end()
        _watch = None


@contextmanager
def not_watched() -> Iterator[None]:
    """A context in which this rank may wait: at a point, of which rank 0 knows when it should end, and within MPI."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.paused += 1
    try:
        yield
    finally:
        watch.paused -= 1
