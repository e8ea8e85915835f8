"""The line that every measuring command prints before its work: what it will take; and what --budget makes of it.

The price stands on stderr, where the progress is. It never ends a command: where a product fails, the work itself says
so with the point or task that it belongs to.

What all ranks do alike, such as making the problem, is reported by one of them (`reported_by_rank_0`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lossmap.parallel.world import World
from lossmap.report.price import Price


def announce(world: World, title: str, price: Callable[[], Price]) -> Price | None:
    """Print the price on rank 0, which alone measures it; None elsewhere, and where it cannot be measured.

    While it does, the others wait: what they will take from each other is counted as `world.crowding` says.

    title  of the progress, such as `losses`
    """
    if world.rank != 0:
        return None
    try:
        measured = price().slowed(world.crowding or 1.0)
    except Exception as error:  # a model's own code may raise anything; the work that follows reports it
        print(f"{title}: the price could not be measured: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    if measured.count:  # else all is known before
        print(f"{title}: {measured}", file=sys.stderr, flush=True)
    return measured


@contextmanager
def reported_by_rank_0(world: World) -> Iterator[None]:
    """What lossmap logs while all ranks do the same, such as read the same samples, is logged by rank 0 alone.

    Errors are logged by every rank: one alone may meet them.
    """
    if world.rank == 0:
        yield
        return
    logger = logging.getLogger("lossmap")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)
