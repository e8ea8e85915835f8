"""Messages between the dispatcher on rank 0 and the workers, and the channels that carry them. No MPI here.

A *worker* is a team of ranks that evaluates points; its leader sends and receives for it, and worker 0's leader may be
rank 0 itself. A message is a tuple (survey id, kind, content...); the kinds and their contents:

    HELLO         host                          a worker is ready
    DONE          index, reading, seconds       a point was evaluated
    FAILED        index, text                   a point raised; text is the traceback
    INTERRUPTED   index, state                  a point was left before its end; state resumes it
    HALTED                                      the worker has stopped
    STOP_REQUEST  reason, urgent                a rank was asked to stop, by a signal say
    NOTE          text                          something for the log
    LOST          text, at_point                the worker can evaluate no more: one of its ranks has died, or its GPU
                                                is lost; at_point: at the point that it was at
    POINTS        [(index, state), ...]         from the dispatcher: points to evaluate
    HALT          urgent                        from the dispatcher: no further points; urgent: leave the current one
    END           content                       from the dispatcher: the survey is over
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

HELLO, DONE, FAILED, INTERRUPTED, HALTED, STOP_REQUEST, NOTE, LOST = range(8)  # from a worker to the dispatcher
POINTS, HALT, END = range(8, 11)  # from the dispatcher to a worker

Message = tuple[Any, ...]


class Channel(Protocol):
    """One end of the connection between dispatcher and workers. Neither call waits."""

    def send(self, message: Message, rank: int) -> None:
        """Send without waiting; a message to a dead rank is dropped silently."""

    def receive(self) -> tuple[int, Message] | None:
        """The sender's rank and the next message that has arrived, or None."""

    def dead(self) -> frozenset[int]:
        """The ranks that are known to have died."""


class WorkerLost(BaseException):
    """A rank has died, or lost its GPU, so that its team, or a collective, cannot go on.

    Not an Exception: a measure that catches every Exception at a point must not swallow it.

    at_point  whether it may have come by the point that is evaluated; not so where it was known before
    """

    def __init__(self, text: str, at_point: bool = True) -> None:
        super().__init__(text)
        self.at_point = at_point


class LocalChannel:
    """The dispatcher's end where rank 0 evaluates points too: messages to rank 0 stay within the process.

    remote  the channel to the other ranks, or None in a single process
    rank    the rank whose messages stay here
    """

    def __init__(self, remote: Channel | None = None, rank: int = 0) -> None:
        self.remote, self.rank = remote, rank
        # SimpleQueue, since on rank 0 the dispatcher runs in a thread of its own beside the worker
        self.to_dispatcher: SimpleQueue[Message] = SimpleQueue()
        self.to_worker: SimpleQueue[Message] = SimpleQueue()

    def send(self, message: Message, rank: int) -> None:
        if rank == self.rank:
            self.to_worker.put(message)
        elif self.remote is not None:
            self.remote.send(message, rank)

    def receive(self) -> tuple[int, Message] | None:
        try:
            return self.rank, self.to_dispatcher.get_nowait()
        except Empty:
            return None if self.remote is None else self.remote.receive()

    def dead(self) -> frozenset[int]:
        return frozenset() if self.remote is None else self.remote.dead()

    def worker_end(self) -> LocalWorkerEnd:
        """The end that rank 0's own worker uses."""
        return LocalWorkerEnd(self)


@dataclass(frozen=True)
class LocalWorkerEnd:
    """The end of a `LocalChannel` that rank 0's own worker uses."""

    channel: LocalChannel

    def send(self, message: Message, rank: int) -> None:
        self.channel.to_dispatcher.put(message)

    def receive(self) -> tuple[int, Message] | None:
        try:
            return self.channel.rank, self.channel.to_worker.get_nowait()
        except Empty:
            return None

    def dead(self) -> frozenset[int]:
        return frozenset()


class PollBackoff:
    """Sleeps between polls: 0.1 ms at first, doubling to 2 ms while nothing arrives. Waiting ranks use 2 % of a core.

    shortest, longest  seconds
    polls              of all waits of this process: one that polls does not hang, it waits for others
    """

    polls = 0

    def __init__(self, shortest: float = 1e-4, longest: float = 2e-3) -> None:
        self.shortest, self.longest, self.length = shortest, longest, shortest

    def after(self, progressed: bool) -> None:
        """Sleep where the last poll brought nothing; start short again where it did."""
        if progressed:
            self.length = self.shortest
        else:
            PollBackoff.polls += 1
            time.sleep(self.length)
            self.length = min(2 * self.length, self.longest)
