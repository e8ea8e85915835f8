"""The start of MPI, watched from outside: no rank waits for ever, crashes in silence, or is counted as a success.

In MPI_Init ranks wait for each other, and neither Python's threads nor its signal handlers run. A launcher that
tolerates deaths (ULFM, Open MPI 5: `mpirun --with-ft ulfm`) goes on after one in there. Then either the others wait for
the dead rank for ever, or its loss crashes them too (in Open MPI's PMIx client); and the launcher, which tolerates any
death by a signal, ends with 0 though nothing was computed. So a child process of each rank speaks for it, and a crash
becomes an exit code.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from lossmap.parallel.launcher import claimed, launched, rank_in

START_TIMEOUT = 600  # seconds for the start of MPI, unless LOSSMAP_MPI_START says otherwise
LAST_WORDS_SECONDS = 0.3  # for the sentence, before the rank ends
MAX_GOODBYE_SECONDS = 60.0  # that a launcher may take to end the other ranks
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
_SIGACTION_BYTES = 512  # more than a struct sigaction of any system has


@contextmanager
def start_watchdog(environ: Mapping[str, str]) -> Iterator[None]:
    """A context for the start of MPI, in which ranks wait for each other: no rank stays there for ever.

    environ  the process's variables

    Where the launcher tolerates deaths: after LOSSMAP_MPI_START seconds one rank (on each machine) says so in a
    sentence, and they end with 1, upon which the launcher ends the job. A rank that is killed or crashes meanwhile is
    reported likewise, at once, and after a crash its exit code is the signal's number. Every rank dies with its
    launcher.
    """
    if launched(environ) > 1:
        _die_with_parent()
    if environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("1", "true"):
        yield
        return
    limit = float(environ.get("LOSSMAP_MPI_START", START_TIMEOUT))
    who = f"lossmap: rank {rank_in(environ)} on {socket.gethostname()}"
    waits = (
        f"{who}: MPI has not started within {limit:g} s, as where another rank has died meanwhile; nothing is lost: "
        "run the same command again (LOSSMAP_MPI_START=SECONDS waits longer)"
    )
    ended = f"{who} was killed, or crashed, while MPI was starting; nothing is lost: run the same command again"
    with _speaker(waits, limit, ended), _crash_as_exit(), open(os.devnull, "w") as nowhere:
        # its thread needs no interpreter; the stack that it prints says nothing to anybody
        faulthandler.dump_traceback_later(limit + LAST_WORDS_SECONDS, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def _speaker(waits: str, seconds: float, ended: str) -> Iterator[None]:
    """A context with a child process that prints a sentence when the context has lasted too long, or its process ends.

    waits    the sentence after this many seconds
    seconds  that the context may last
    ended    the sentence where this process has ended within the context

    Another process, because MPI_Init holds the interpreter, so that no thread of this one could speak.
    """
    reading, writing = os.pipe()
    launcher = os.getppid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of threads: the child uses none
        child = os.fork()
    if child == 0:
        os.setsid()  # the launcher's signals are for the rank
        os.close(writing)
        is_over = select.select([reading], [], [], seconds)[0]  # the pipe ends with the rank, since nobody writes
        _speak_for_all(ended if is_over else waits, launcher)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        with suppress(OSError):  # a program may have its children collected by the system
            os.kill(child, signal.SIGKILL)  # before the pipe ends
            os.waitpid(child, 0)
        os.close(writing)


@contextmanager
def _crash_as_exit() -> Iterator[None]:
    """A context in which a signal that means a crash ends this process with the signal's number as its exit code.

    The handler is the C library's _exit itself: one in Python would not run within MPI_Init. Open MPI, which prints a
    stack after a crash, does not replace a handler; so Python's faulthandler prints one for crashes after the context.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    leave = ctypes.cast(libc._exit, ctypes.c_void_p)
    former = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in _CRASHES}
    for number, action in former.items():
        libc.sigaction(number, None, action)
        libc.signal(number, leave)
    try:
        yield
    finally:
        for number, action in former.items():
            libc.sigaction(number, action, None)
        if not faulthandler.is_enabled():
            faulthandler.enable(2)


def _speak_for_all(sentence: str, launcher: int) -> None:
    """Print a sentence, unless another rank's child of this launcher has; return when the launcher has ended."""
    with claimed("start", launcher) as is_first:
        if not is_first:
            return
        os.write(2, f"{sentence}\n".encode())
        os.closerange(0, 3)  # the launcher waits for their ends
        deadline = time.monotonic() + MAX_GOODBYE_SECONDS
        while time.monotonic() < deadline and os.path.exists(f"/proc/{launcher}"):
            time.sleep(0.1)


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher dies (Linux; elsewhere launchers see to it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
