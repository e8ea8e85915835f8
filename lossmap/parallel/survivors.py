"""Collectives among the ranks that are left after a death, made of messages by way of rank 0.

MPI's own collectives fail once a rank of their communicator has died. All survivors know who is left, from the END
message of the survey in which the others died. Every rank counts the collectives that it begins: where one more dies,
rank 0 gives up the one that it is in and goes on to the next, and what it sends then must not be taken for the first.
Price: rank 0 sends one message to each of them.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from lossmap.parallel.messages import PollBackoff, WorkerLost
from lossmap.parallel.mpi_channel import MpiChannel

_COLLECTIVE = -1  # in place of a survey's number: a message that is part of a collective


def broadcast(channel: MpiChannel, others: Set[int], value: Any = None) -> Any:
    """Rank 0's value, on every rank that is left.

    others  the ranks beside 0 that are left

    Raises WorkerLost where one of them has died since: on rank 0, and on the others where rank 0 has given up for it.
    """
    channel.collectives += 1
    return _spread(channel, others, value)


def gather(channel: MpiChannel, others: Set[int], value: Any) -> list[Any]:
    """Every rank's value, on every rank that is left, in the order of the ranks; None for the others.

    Arguments and errors as for `broadcast`.
    """
    channel.collectives += 1
    values: list[Any] = [None] * channel.size
    if channel.rank == 0:
        values[0] = value
        for _ in others:
            rank, values[rank] = _receive(channel, others)
    else:
        channel.send((_COLLECTIVE, (channel.collectives, value)), 0)
    gathered: list[Any] = _spread(channel, others, values)
    return gathered


def _spread(channel: MpiChannel, others: Set[int], value: Any) -> Any:
    """Rank 0's value, on every rank that is left, as a part of the collective that has begun."""
    if channel.rank != 0:
        return _receive(channel, others)[1]
    for rank in others:
        channel.send((_COLLECTIVE, (channel.collectives, value)), rank)
    channel.flush()
    return value


def _receive(channel: MpiChannel, others: Set[int]) -> tuple[int, Any]:
    """The sender and the value of the next message of this collective; late ones and those of a survey are dropped."""
    backoff = PollBackoff()
    while (arrived := channel.receive()) is None or not _is_of(arrived[1], channel.collectives):
        # the other ranks leave by themselves where rank 0 has died: only rank 0 waits for several
        lost = others & channel.dead()
        if channel.rank == 0 and lost:
            raise WorkerLost(f"rank {', '.join(map(str, sorted(lost)))} has died")
        backoff.after(arrived is not None)
    number, value = arrived[1][1]
    if number > channel.collectives:
        raise WorkerLost("another rank has died, and rank 0 has gone on without this one")
    return arrived[0], value


def _is_of(message: Any, number: int) -> bool:
    """Whether a message is of the collective of this number or a later one."""
    return bool(message[0] == _COLLECTIVE and message[1][0] >= number)
