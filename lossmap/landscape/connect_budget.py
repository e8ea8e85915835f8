"""Fits a line between two networks into a time: fewer points on it, and fewer steps of the training of a curve's bend.

Both go down together, by one share, as far as each still says something. What fits is resolved once, by rank 0, and
stored: the points as the file's grid, the steps with the curve's recipe. The bend is trained by rank 0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lossmap.landscape.fitted_share import MARGIN, largest_share
from lossmap.report.price import span_text
from lossmap.report.text import count

MIN_POINTS = 7  # by which a barrier is found, with its sides
MIN_STEPS = 100  # of Adam, from a bend that starts halfway


@dataclass(frozen=True)
class FittedConnection:
    """How many points and steps fit, and in words what was cut."""

    points: int
    steps: int
    cuts: tuple[str, ...] = ()


def fit_connection(
    points: int, steps: int, *, point_seconds: float, step_seconds: float, seconds: float, beside: float = 0.0,
    workers: int = 1,
) -> FittedConnection:  # fmt: skip
    """How many of the points and steps so many seconds hold.

    steps          of the training; 0 for no curve
    point_seconds  of all that is read at a point; step_seconds: of a step of the training
    seconds        that are left; a part of them is kept in reserve
    beside         seconds that are spent whatever the points and steps are
    workers        ranks, or teams of ranks, that share the points
    """
    allowed = MARGIN * max(0.0, seconds)

    def reduced(share: float) -> tuple[int, int]:
        few = min(points, max(MIN_POINTS, int(share * points)))
        return few, min(steps, max(MIN_STEPS, int(share * steps)))

    def wall(share: float) -> float:
        few, fewer = reduced(share)
        return beside + ceil(few / workers) * point_seconds + fewer * step_seconds

    share = largest_share(lambda share: wall(share) <= allowed)
    few, fewer = reduced(share)
    cuts = []
    if fewer < steps:
        cuts.append(f"{count(fewer, 'step')} of the curve's training in place of {steps:,}")
    if few < points:
        cuts.append(f"{count(few, 'point')} in place of {points:,}")
    if wall(share) > allowed:
        cuts.append(f"that takes about {span_text(wall(share))}, longer than what is left")
    return FittedConnection(few, fewer, tuple(cuts))
