"""A survey that was refined: which points were measured, and what its file says of the points between.

    refinement/round          of the grid's shape: in which round a point was chosen, from 0 on; -1: it was not
    refinement/NAME           of the grid's shape: a field between the measured points
    refinement/@tolerance     that was asked for, relative to the range of the loss
    refinement/@error         estimated, at the worst point, relative to it; NaN before the second round, and where
                              nothing could be interpolated

`landscape.refinement` writes them. NumPy alone.
"""

from __future__ import annotations

import numpy as np

from lossmap.io.surface import TO_DO, Group, Surface

GROUP, ROUND = "refinement", "round"
MANY_ROUNDS = 8  # from which on the estimate was below half of the true error in 19 of 54 pictures, before in 1 of 26
LOG_FROM = 20.0  # largest over smallest loss from which levels, and what lies between points, are logarithmic


def is_refined(surface: Surface) -> bool:
    """Whether only some points were chosen to be measured."""
    group = surface.groups.get(GROUP)
    return group is not None and ROUND in group and group[ROUND].shape == surface.grid.shape


def is_measured(surface: Surface) -> np.ndarray:
    """Of the grid's shape: which points were chosen and are no longer to do; of a survey that was stopped not all."""
    to_do = [status == TO_DO for status in surface.status.values()]
    result: np.ndarray = (surface.groups[GROUP][ROUND] >= 0) & ~np.logical_and.reduce(to_do or [False])
    return result


def refinement_note(surface: Surface) -> str | None:
    """How many points were measured, and how far what lies between them is off; None where all were."""
    if not is_refined(surface):
        return None
    group, points = surface.groups[GROUP], len(surface.grid)
    measured, error = int(is_measured(surface).sum()), float(group.attributes.get("error", np.nan))
    waiting = int((group[ROUND] >= 0).sum()) - measured
    still = f", and {waiting:,} more chosen" if waiting else ""
    text = f"measured at {measured:,} of {points:,} points, where the picture needed them{still}; "
    if not _is_interpolated(group):
        return text + "too few of them have a finite value, so that nothing is known between them"
    text += "interpolated between them"
    if np.isfinite(error):
        text += f", off by some {error:.2%} of the range at the worst point by its own estimate"
        if (rounds := int(group[ROUND].max())) >= MANY_ROUNDS:
            text += f"; that took {rounds} rounds, as where a surface bends often, and may be several times too small"
    return text


def _is_interpolated(group: Group) -> bool:
    """Whether there is a number between measured points, or no point between them, or no telling yet."""
    between = group[ROUND] < 0
    fields = [values for name, values in group.arrays.items() if name != ROUND]
    return not fields or not between.any() or any(np.isfinite(values[between]).any() for values in fields)
