"""How far rounding may move a barrier: the same rises on the way between two networks in two precisions.

    rounding = 3 max_t |R(t) - R64(t)|      R(t) = L(t) - (1 - t) L(0) - t L(1), of samples spread over all

t is the barrier's, 1/4, 1/2 and 3/4. The way itself is rounded too: what rounds a weight moves the losses of all
samples alike, which their standard error does not see. At least 8 spacings of each loss are taken, as for the minima of
a surface: sums of a batch are rounded, and may by chance be equal, as rises in bfloat16 may at one t. For float64
itself, and where a model runs in its own precision alone, these are all. Unit: the loss's. Price: twelve passes over a
few samples, or three uncut batches, for each way, and the model in float64 while they last, once: its points take the
place of its own weights. `seconds_of_rounding` reads one place in each precision beforehand.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from lossmap.curvature.rounding import SAFETY
from lossmap.io.field_errors import ROUNDING, SPACINGS
from lossmap.landscape.connection import Connection
from lossmap.landscape.connection_map import ConnectionMap

log = logging.getLogger("lossmap")

PLACES = (0.25, 0.5, 0.75)  # t beside the barrier's: at one of them a difference may be small by chance


def with_rounding(line: Connection, measure: ConnectionMap) -> Connection:
    """The line, and the ways beside it, with the rounding of their barriers. On one rank, with its share of the data.

    measure  that the losses were read by
    """
    ways: dict[str, Any] = {name: with_rounding(getattr(line, name), way) for name, way in measure.ways.items()}
    return replace(line, roundings=_roundings(line, measure), **ways)


def seconds_of_rounding(measure: ConnectionMap) -> float:
    """Seconds that `with_rounding` takes of a way, from a reading in each precision; 0 where nothing is measured."""
    if measure.is_double:
        return 0.0
    places, seconds = 2 + len(PLACES) + len(measure.problems), 0.0
    try:
        for wide in (False, True):
            began = time.perf_counter()
            few = measure.of_few(in_double=wide)
            made = time.perf_counter()
            few.alone(0.5)
            seconds += made - began + places * (time.perf_counter() - made)
    except Exception as failure:  # user code may raise any exception in another precision: then little is spent
        log.info("the rounding of barriers has no price (%s)", failure)
        return 0.0
    return seconds


def _roundings(line: Connection, measure: ConnectionMap) -> dict[str, float]:
    """By split, how far rounding may move the barrier; nothing of a split without a barrier."""
    tops = {
        split: line.barrier(split)
        for split, losses in line.losses.items()
        if isfinite(losses[0]) and isfinite(losses[-1])
    }
    places = sorted({*PLACES, *(top.at for top in tops.values() if isfinite(top.at))})
    precision, measured = measure.precision, dict.fromkeys(tops, 0.0)
    if not measure.is_double:
        try:
            measured = _measured(measure, places)
            precision = "float32"  # what rounds more is measured
        except Exception as failure:  # user code may raise any exception in another precision
            log.info("the rounding of barriers is not measured in another precision (%s)", failure)
    # of the loss at the barrier, and of the line below it, which is no higher than the higher end
    spacings = 2.0 * ROUNDING * SPACINGS.get(precision, SPACINGS["float32"])
    return {split: max(SAFETY * measured[split], spacings * _largest(line, split)) for split in tops}


def _largest(line: Connection, split: str) -> float:
    """The largest finite loss."""
    return max(abs(float(loss)) for loss in line.losses[split] if isfinite(loss))


def _measured(measure: ConnectionMap, places: list[float]) -> dict[str, float]:
    """By split, the largest finite difference of the rises between the measure's precision and float64."""
    single, double = (_rises(measure.of_few(in_double=wide), places) for wide in (False, True))
    apart = {split: [abs(a - b) for a, b in zip(single[split], double[split], strict=True)] for split in single}
    return {split: max((x for x in differences if isfinite(x)), default=0.0) for split, differences in apart.items()}


def _rises(measure: ConnectionMap, places: list[float]) -> Mapping[str, list[float]]:
    """By split, the rises above the line between both ends."""
    first, last, *between = (measure.alone(t) for t in (0.0, 1.0, *places))
    return {
        split: [
            reading[f"{split}_loss"] - (1.0 - t) * first[f"{split}_loss"] - t * last[f"{split}_loss"]
            for t, reading in zip(places, between, strict=True)
        ]
        for split in measure.problems
    }
