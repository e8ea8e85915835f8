"""Collectives among the ranks that are left after a death, made of messages by way of rank 0.

MPI's own collectives fail once a rank of their communicator has died. All survivors know who is left, from the END
message of the survey in which the others died. Price: rank 0 sends one message to each of them.
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

    Raises WorkerLost on rank 0 where one of them has died since.
    """
    if channel.rank != 0:
        return _receive(channel, others)[1]
    for rank in others:
        channel.send((_COLLECTIVE, value), rank)
    channel.flush()
    return value


def gather(channel: MpiChannel, others: Set[int], value: Any) -> list[Any]:
    """Every rank's value, on every rank that is left, in the order of the ranks; None for the others.

    Arguments and errors as for `broadcast`.
    """
    values: list[Any] = [None] * channel.size
    if channel.rank == 0:
        values[0] = value
        for _ in others:
            rank, values[rank] = _receive(channel, others)
    else:
        channel.send((_COLLECTIVE, value), 0)
    gathered: list[Any] = broadcast(channel, others, values)
    return gathered


def _receive(channel: MpiChannel, others: Set[int]) -> tuple[int, Any]:
    """The sender and the value of the next message of a collective; late messages of a survey are dropped."""
    backoff = PollBackoff()
    while (arrived := channel.receive()) is None or arrived[1][0] != _COLLECTIVE:
        # the other ranks leave by themselves where rank 0 has died: only rank 0 waits for several
        lost = others & channel.dead()
        if channel.rank == 0 and lost:
            raise WorkerLost(f"rank {', '.join(map(str, sorted(lost)))} has died")
        backoff.after(arrived is not None)
    return arrived[0], arrived[1][1]
