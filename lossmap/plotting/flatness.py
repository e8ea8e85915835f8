"""Whether the points of a picture differ at all: by more than their errors, or than the rounding of their precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lossmap.io.field_errors import field_errors
from lossmap.io.surface import Surface
from lossmap.plotting.contour_levels import noise_of
from lossmap.plotting.quantities import eigenvalues, quantity, values_of

FLAT_NOTE = "no point differs from another by more than rounding or its error: shown as one value"


def noise_in(surfaces: Sequence[Surface], name: str) -> float:
    """The largest difference that errors alone explain, where one value fits all points of all surfaces; else 0.

    name  a quantity that all of them hold. Its errors are those of the file; of a loss without, rounding. Accuracies
          are counts.
    """
    arrays = [values_of(surface, quantity(surface, name).name)[0] for surface in surfaces]
    errors = [_errors(surface, name, values) for surface, values in zip(surfaces, arrays, strict=True)]
    return noise_of(*(np.concatenate([a.reshape(-1) for a in part]) for part in (arrays, errors)))


def _errors(surface: Surface, name: str, values: np.ndarray) -> np.ndarray:
    if name == "ratio":
        return ratio_errors(surface, values)
    return field_errors(surface, name, values)[0]


def ratio_errors(surface: Surface, ratio: np.ndarray) -> np.ndarray:
    """To first order, from the errors of the two ends."""
    high, low = (np.asarray(surface.fields.get(f"{end}_error", 0.0)) for end in eigenvalues(surface))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((low + np.abs(ratio) * high) / np.abs(surface["max_eig"]) * np.ones(ratio.shape))
