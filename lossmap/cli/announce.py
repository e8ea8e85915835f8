"""The line that every measuring command prints before its work: what it will take; and what --budget makes of it.

The price stands on stderr, where the progress is. It never ends a command: where a product fails, the work itself says
so with the point or task that it belongs to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

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
