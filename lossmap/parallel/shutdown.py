"""Orderly shutdown: a stop requested by a signal, by the clock, or by the program.

    INT, TERM         no new points; a point in progress is left where its measure can do so (mpirun kills a
                      quarter of a second after TERM). A second time, a second or more later: immediate exit
                      with 130 or 143
    USR1, USR2, HUP   no new points; those in progress may end, for `grace` seconds. They may repeat
    the clock         no point that cannot end in time, by what points have cost so far

Python runs its signal handlers between two steps of the main thread, which may sit in one long product; so the
signal's number is written to a pipe (signal.set_wakeup_fd), at once, and a small thread reads it there.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType

from lossmap.parallel.launcher import rank_in

URGENT_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ORDERLY_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
WRAP_UP_SECONDS = 15.0  # before the end of a batch job, kept for closing the file and the launcher
REPEAT_SECONDS = 1.0  # launchers and fingers send the same signal twice within this time: that counts once

_installed: Stop | None = None  # only one at a time can own the process's signals
_early: list[int] = []  # signals that came before there was a Stop, in order
_early_urgent: list[float] = []  # when the first INT or TERM of these came


def keep_signals() -> None:
    """Keep the signals that come from now on for the first `Stop`, such as while torch is imported.

    Python's own handlers would end the process then, though a launcher only asks it to stop. A second INT or TERM ends
    it, as later too. Called again, or after a Stop, or in another thread than the main one, it does nothing.
    """
    if _installed is not None or threading.current_thread() is not threading.main_thread():
        return
    for number in (*URGENT_SIGNALS, *ORDERLY_SIGNALS):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # none of the program's own
            signal.signal(number, _keep)


def _keep(number: int, frame: object) -> None:
    if number in URGENT_SIGNALS:
        now = time.monotonic()
        if _early_urgent and now - _early_urgent[0] >= REPEAT_SECONDS:
            os._exit(128 + number)
        _early_urgent.append(now)
    _early.append(number)


class Stop:
    """Whether a stop is requested. Calling it answers a measure inside a point: must the point be left now?

    after   seconds from now at which everything must have ended
    until   the end of the batch job as a time of day (time.time()); everything ends WRAP_UP_SECONDS before
    grace   seconds that points in progress are given after USR1, USR2 or HUP where no end is known
    reason  why a stop was requested: there are no new points from then on; None before

    As a context manager it handles the process's signals, and restores the former handlers where no stop was requested;
    else it keeps them, since they may come again while the program ends. May be called from any thread.

    Raises ValueError for a negative `after`.
    """

    def __init__(self, *, after: float | None = None, until: float | None = None, grace: float = 30.0) -> None:
        if after is not None and after < 0:
            raise ValueError(f"--stop-after must be >= 0 seconds; got {after:g}")
        ends = [time.monotonic() + after] if after is not None else []
        if until is not None:
            ends.append(time.monotonic() + until - time.time() - WRAP_UP_SECONDS)
        self._end = min(ends, default=float("inf"))  # on the monotonic clock
        self._grace = grace
        self._leave_at = float("inf")
        self._first_urgent: float | None = None  # of the first INT or TERM
        self._listeners: list[Callable[[], object]] = []
        self._former_handlers: dict[int, object] = {}
        self._is_over = False  # the `with` is over, yet the signals are kept
        self.reason: str | None = None

    def __call__(self) -> bool:
        """Whether a point in progress must be left now."""
        for listener in tuple(self._listeners):
            listener()
        now = time.monotonic()
        return now >= self._leave_at or now >= self._end

    def seconds_left(self) -> float:
        """Seconds to the end, infinite where none is known."""
        return self._end - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so many seconds may begin; requests a stop where it would not end in time."""
        if self.seconds_left() < seconds:
            self.request("the time limit")
        return self.reason is None

    def request(self, reason: str, urgent: bool = False) -> None:
        """Request a stop from within the program; `urgent`: points in progress are left too."""
        if self.reason is None:  # the first reason is the one to report
            self.reason = reason
        now = time.monotonic()
        self._leave_at = min(self._leave_at, now if urgent else now + self._grace)

    @property
    def urgent(self) -> bool:
        """Whether points in progress must be left, without asking the listeners."""
        now = time.monotonic()
        return now >= self._leave_at or now >= self._end

    def add_listener(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener` whenever the stop is called, so that it can request one; returns what removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def handle_signal(self, number: int) -> None:
        """Request the stop that a signal means."""
        if number in URGENT_SIGNALS:
            now = time.monotonic()
            if self._first_urgent is not None and now - self._first_urgent >= REPEAT_SECONDS:
                os._exit(128 + number)
            self._first_urgent = now if self._first_urgent is None else self._first_urgent
        name, first = signal.Signals(number).name, self.reason is None
        self.request(name, urgent=number in URGENT_SIGNALS)
        if first and rank_in(os.environ) == 0:  # at once: a launcher may kill before anything else can be printed
            os.write(2, f"{name}: no new points; what has been measured is safe\n".encode())

    def __enter__(self) -> Stop:
        global _installed
        if threading.current_thread() is not threading.main_thread():
            return self  # signals belong to the main thread; the clock works all the same
        if _installed is not None and _installed is not self:
            if not _installed._is_over:
                return self  # within another one, which has the signals
            _installed.close()
        _installed, self._is_over = self, False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (*URGENT_SIGNALS, *ORDERLY_SIGNALS):
            self._former_handlers[number] = signal.signal(number, _ignore)
        self._thread = threading.Thread(target=self._read, name="lossmap-signals", daemon=True)
        self._thread.start()
        while _early:
            self.handle_signal(_early.pop(0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if self.reason is None:  # else the same signal may come again while the program closes its files
            self.close()

    def close(self) -> None:
        """Restore the former signal handlers."""
        global _installed
        if _installed is not self:
            return
        for number, handler in self._former_handlers.items():
            former = _default_of(number) if handler is _keep else handler
            signal.signal(number, former)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writing, b"\0")
        self._thread.join()
        os.close(self._writing)
        os.close(self._reading)
        _installed = None

    def _read(self) -> None:
        while (number := os.read(self._reading, 1)[0]) != 0:
            if number in self._former_handlers:
                self.handle_signal(number)


def _default_of(number: int) -> object:
    """What a signal does in a Python that nobody has told otherwise."""
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


def _ignore(number: int, frame: object) -> None:
    """A handler must be there, or the signal would end the process; the thread does the work."""


def _in_child() -> None:
    """A forked child (a data loader's worker) must neither swallow signals nor report them to its parent."""
    global _installed
    if _installed is not None:
        signal.set_wakeup_fd(-1)
        for number in _installed._former_handlers:
            signal.signal(number, signal.SIG_DFL)
        _installed = None


def _at_exit() -> None:
    """Python resets its handlers before MPI_Finalize runs; a late USR1 must not kill a program that has ended well."""
    if _installed is not None and _installed.reason is not None:
        for number in ORDERLY_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)


def job_end(environ: Mapping[str, str], run: Callable[[list[str]], str] | None = None) -> float | None:
    """When the batch job ends (as time.time()), from SLURM's variable or from scontrol; None without SLURM.

    environ  the process's variables
    run      runs a command and returns what it prints

    Of many ranks only the first calls scontrol, so that a thousand do not; the others follow rank 0.
    """
    known = environ.get("SLURM_JOB_END_TIME", "")
    if known.isdigit():
        return float(known)
    job = environ.get("SLURM_JOB_ID")
    if not job or rank_in(environ) != 0:
        return None
    try:
        text = (run or _output_of)(["scontrol", "show", "job", job])
        value = next(word[8:] for word in text.split() if word.startswith("EndTime="))
        return datetime.fromisoformat(value).timestamp()
    except (OSError, subprocess.SubprocessError, StopIteration, ValueError):
        return None  # no scontrol here, or a job without an end: no clock, then


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
