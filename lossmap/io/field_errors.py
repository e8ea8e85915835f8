"""The error of each number of a field: as the file holds it, or the rounding of the precision it was computed in."""

from __future__ import annotations

import numpy as np

from lossmap.io.surface import Surface

# Relative spacing of numbers. The loss of a file that does not say (the original tool's) was computed in float32.
SPACINGS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ROUNDING = 8.0  # spacings by which two losses that are equal in exact arithmetic may differ
NOISE, BOUND, ROUNDED, EXACT = "standard error", "bound", "rounding", "exact"  # kinds of errors


def field_errors(surface: Surface, name: str, values: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """The errors of a field, of its shape and unit, and their kind: `bound`, `standard error`, `rounding`, `exact`.

    values  of the field, where they are not those of the file. Accuracies are counts, and exact.
    """
    values = surface[name] if values is None else values
    if f"{name}_error" in surface:
        kind = BOUND if name.endswith("_eig") else NOISE  # of a loss: over realisations of its randomness
        return np.asarray(surface[f"{name}_error"], dtype=float), kind
    if f"{name}_noise_error" in surface:
        return np.asarray(surface[f"{name}_noise_error"], dtype=float), NOISE
    if name.endswith("_loss"):
        return ROUNDING * _spacing(surface, name) * np.abs(values), ROUNDED
    return np.zeros(np.shape(values)), EXACT


def _spacing(surface: Surface, name: str) -> float:
    """The spacing of the coarsest precision that the settings of the field's measure name."""
    measure = next((m for m, names in surface.measures.items() if name in names), "loss")
    words = str(surface.settings.get("measures", {}).get(measure, {}).get("precision", "float32"))
    return max((size for word, size in SPACINGS.items() if word in words), default=SPACINGS["float32"])
