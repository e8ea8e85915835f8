"""The end of a program of several ranks: together where all are alive, without MPI_Finalize where one is not.

MPI_Finalize waits for every rank, for ever where one has died or is stuck; so the ranks say goodbye to rank 0 by
message first.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Set
from typing import NoReturn

from lossmap.parallel.messages import PollBackoff
from lossmap.parallel.mpi_channel import BYE, MpiChannel

FLUSH_SECONDS = 5.0  # for messages that are still on their way
GOODBYE_SECONDS = 5.0  # that rank 0 waits for the others after a death
STUCK_GOODBYE_SECONDS = 1.0  # where only stuck ranks are missing
CONFIRM_SECONDS = 1.0  # that rank 0 waits for the others to confirm its answer
LONGEST_GOODBYE = 60.0  # that another rank waits for it where all went well; rank 0 may have a large file to close
FINALIZE_SECONDS = 10.0  # for MPI_Finalize
LAST_WORDS_SECONDS = 0.05  # for a goodbye, and for what was printed, to get out
# The same before MPI_Abort, after which MPICH's mpirun drops what its proxies have not yet passed on.
FORWARD_SECONDS = 0.3


def all_at_end(channel: MpiChannel) -> bool:
    """Wait until every rank is here; whether nobody died meanwhile."""
    backoff = PollBackoff()
    if channel.rank == 0:
        waiting = set(range(1, channel.size))
    else:
        channel.send((), 0, BYE)
        waiting = {0}
    while waiting:
        arrived = channel.receive(BYE)
        if arrived is not None:
            waiting.discard(arrived[0])
        if waiting and channel.dead():  # with nobody to wait for, the others are ending MPI too
            return False
        backoff.after(arrived is not None)
    if channel.rank == 0:
        for rank in range(1, channel.size):
            channel.send((), rank, BYE)
        channel.flush(FLUSH_SECONDS)
    return True


def finalize(channel: MpiChannel, code: int) -> None:
    """MPI_Finalize, which a rank that is killed between the goodbye and here makes wait for ever, or fail.

    All is done by then, so the process leaves with its exit code either way.
    """
    done = threading.Event()

    def exit_if_late() -> None:
        if not done.wait(FINALIZE_SECONDS):
            os._exit(code)

    _flush_output()
    threading.Thread(target=exit_if_late, name="lossmap-end", daemon=True).start()
    try:
        channel.mpi.Finalize()
    except channel.mpi.Exception:
        os._exit(code)
    done.set()


def exit_without_finalize(channel: MpiChannel, stuck: Set[int], code: int) -> None:
    """Leave the process, after an exchange of goodbyes with rank 0. Never returns.

    stuck  the ranks that do not answer: where one does not say goodbye, rank 0 ends the job
    code   the exit code
    """
    _flush_output()
    if channel.rank != 0:
        _say_goodbye(channel, code)
    others = set(range(1, channel.size))
    limit = STUCK_GOODBYE_SECONDS if others - channel.dead() <= stuck else GOODBYE_SECONDS
    missing = _without_goodbye(channel, others, limit)
    for rank in others - channel.dead():
        channel.send((), rank, BYE)
    # A short message counts as sent before it has arrived, and MPI moves it on only while it is called: so the others
    # confirm it. One that it does not reach would wait, for a rank that left with 0 is no death to Open MPI, nor is
    # MPI_Abort with 0 the end of the others.
    _without_goodbye(channel, others - missing, CONFIRM_SECONDS)
    if missing - channel.dead():
        mpi_abort(channel, code)  # a rank that answers no more would keep the launcher waiting
    time.sleep(LAST_WORDS_SECONDS)
    os._exit(code)


def _without_goodbye(channel: MpiChannel, ranks: Set[int], seconds: float) -> set[int]:
    """Of these ranks those that are alive and have not said goodbye within so many seconds."""
    backoff, until = PollBackoff(), time.monotonic() + seconds
    waiting = set(ranks) - channel.dead()
    while waiting and time.monotonic() < until:
        arrived = channel.receive(BYE)
        waiting -= channel.dead()
        if arrived is not None:
            waiting.discard(arrived[0])
        backoff.after(arrived is not None)
    return waiting


def _say_goodbye(channel: MpiChannel, code: int) -> NoReturn:
    """Leave a process that is not rank 0 once rank 0 has answered its goodbye.

    An exit code other than 0 makes the launcher end the job: not before rank 0 has closed its file. With 0 nothing ends
    a rank that rank 0's answer has not reached, so it waits no longer than LONGEST_GOODBYE.
    """
    backoff, began = PollBackoff(), time.monotonic()
    channel.send((), 0, BYE)
    while channel.receive(BYE) is None:
        if code == 0 and time.monotonic() >= began + LONGEST_GOODBYE:
            os._exit(code)
        backoff.after(False)
    channel.send((), 0, BYE)
    channel.flush(CONFIRM_SECONDS)
    time.sleep(LAST_WORDS_SECONDS)
    os._exit(code)


def abort(channel: MpiChannel, code: int) -> NoReturn:
    """End all ranks that are left, without a goodbye. Never returns.

    code  the exit code, not 0

    The last rank that is left leaves by itself: after deaths, MPI_Abort of a single rank makes Open MPI's launcher, if
    it tolerates them, end with 0.
    """
    _flush_output()
    if len(channel.dead_now()) < channel.size - 1:
        mpi_abort(channel, code)
    os._exit(code)


def mpi_abort(channel: MpiChannel, code: int) -> None:
    """MPI_Abort, once what was printed has had the time to get out."""
    time.sleep(FORWARD_SECONDS)
    channel.comm.Abort(code)


def _flush_output() -> None:
    # os._exit does not
    sys.stdout.flush()
    sys.stderr.flush()
