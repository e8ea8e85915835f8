"""A survey that was refined, as it is drawn: with what its file holds between the measured points.

The group `refinement` of a file says in which round a point was measured, and what each field is between them (see
`landscape.refinement`). NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossmap.geometry.grid import Field
from lossmap.io.refined import GROUP, ROUND, is_refined, refinement_note
from lossmap.io.surface import DONE, FAILED, Surface

MEASURED = "measured"


def with_points_between(surface: Surface) -> Surface:
    """The surface with its fields between the measured points too, and a field that tells these apart.

    A point between counts as done, one that failed stays failed; any other surface is returned as it is.
    """
    if not is_refined(surface) or MEASURED in surface.fields:
        return surface
    group, status = surface.groups[GROUP], dict(surface.status)
    between = group[ROUND] < 0
    fields = dict(surface.fields)
    for measure, names in surface.measures.items():
        filled = [name for name in names if name in group and fields[name].shape == between.shape]
        for name in filled:
            fields[name] = np.where(between, group[name], fields[name])
        if filled and measure in status:
            status[measure] = np.where(between & (status[measure] != FAILED), DONE, status[measure]).astype(np.uint8)
    fields[MEASURED] = np.where(between, 0.0, 1.0)
    about = {**surface.about, MEASURED: Field(MEASURED, "1", "1 where it was measured, 0 between measured points")}
    return replace(surface, fields=fields, about=about, status=status)


def measured_of(surface: Surface, values: np.ndarray) -> np.ndarray:
    """The values, NaN between the measured points."""
    return np.where(surface.groups[GROUP][ROUND] >= 0, values, np.nan) if is_refined(surface) else values


def refinement_notes(surfaces: Sequence[Surface]) -> list[str]:
    """Of each surface how many points were measured, and how far the picture between them is off."""
    notes = (refinement_note(surface) for surface in surfaces)
    return list(dict.fromkeys(note for note in notes if note is not None))
