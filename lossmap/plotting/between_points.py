"""A survey that was refined, as it is drawn: with what its file holds between the measured points.

The group `refinement` of a file says in which round a point was measured, and what each field is between them (see
`landscape.refinement`). NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossmap.geometry.grid import Field
from lossmap.io.field_errors import field_errors
from lossmap.io.refined import GROUP, LOG_FROM, ROUND, is_measured, is_refined, refinement_note
from lossmap.io.sampled import sampling_note
from lossmap.io.surface import DONE, FAILED, Surface
from lossmap.plotting.coarse_picture import coarse_note

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
    fields[MEASURED] = is_measured(surface).astype(float)
    about = {**surface.about, MEASURED: Field(MEASURED, "1", "1 where it was measured, 0 between measured points")}
    return replace(surface, fields=fields, about=about, status=status)


def measured_of(surface: Surface, values: np.ndarray) -> np.ndarray:
    """The values, NaN between the measured points."""
    return np.where(surface.groups[GROUP][ROUND] >= 0, values, np.nan) if is_refined(surface) else values


def errors_between(surface: Surface, name: str, values: np.ndarray) -> np.ndarray | None:
    """The bars of a refined field, of the grid's shape: at measured points its own, between them that of the picture.

    NaN where nothing is known; None for a field that was not refined by its error, as an accuracy.
    """
    if not is_refined(surface) or not name.endswith("loss") or name not in surface.groups[GROUP]:
        return None
    group = surface.groups[GROUP]
    between, share = group[ROUND] < 0, float(group.attributes.get("error", np.nan))
    known = values[~between & np.isfinite(values)]
    own, _ = field_errors(surface, name, values)
    if not known.size or not np.isfinite(share):
        return np.where(between, np.nan, own)
    if known.min() > 0 and known.max() / LOG_FROM > known.min():  # the logarithm was interpolated
        off = np.abs(values) * (10.0 ** (share * float(np.log10(known.max() / known.min()))) - 1.0)
    else:
        off = np.full(values.shape, share * float(np.ptp(known)))
    return np.where(between, off, own)


def refinement_notes(surfaces: Sequence[Surface]) -> list[str]:
    """Of each surface how many points were measured, or samples read, and how far the picture is off by that."""
    notes = (note(surface) for surface in surfaces for note in (refinement_note, sampling_note, coarse_note))
    return list(dict.fromkeys(note for note in notes if note is not None))
