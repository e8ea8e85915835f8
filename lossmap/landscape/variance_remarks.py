"""Remarks on points where the loss is NaN since a running variance is negative: a plane that moves buffers leads there.

A straight line through two positive variances goes below 0 beyond them. Price: a copy of the point's tensors at such a
point, until one has been remarked on.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan

from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Point

VARIANCE = "running_var"  # of batch and instance norms
MAX_NAMED = 3  # variances in a sentence


class VarianceRemarks:
    """What is said of such points by one measure: a sentence at the first of them."""

    def __init__(self) -> None:
        self.is_done = False

    def remark(self, losses: Iterable[float], plane: Plane, point: Point) -> str | None:
        """The sentence, where one of these losses is NaN and a running variance negative; None else, and later."""
        variances = [name for name in plane.origin if name.rpartition(".")[2] == VARIANCE]
        if self.is_done or not variances or not any(map(isnan, losses)):
            return None
        tensors = plane.at(point)
        negative = [name for name in variances if bool((tensors[name] < 0.0).any())]
        if not negative:
            return None
        self.is_done = True
        coordinates = ", ".join(f"{c:g}" for c in point)
        names = ", ".join(negative[:MAX_NAMED]) + ", ..." * (len(negative) > MAX_NAMED)
        return (
            f"at ({coordinates}) the loss is NaN, as variances of norms that move along the plane are negative there "
            f"({names}), which they are nowhere between models. Other points may be alike: they are not looked at "
            "again; take a window about the models, or a plane of weights alone (--dir-type weights, states=False)"
        )
