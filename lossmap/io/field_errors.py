"""The error of each number of a field: as the file holds it, or the least rounding of the precision it was computed in.

A file holds losses without the rounding within them, which is of the size of the terms that cancel in a loss: of
`logsumexp(f) - f[y]` a spacing of the logit f[y], which may be 1e5 times the loss's own. So what is returned of losses,
spacings at their own value, is a lower bound.
"""

from __future__ import annotations

import numpy as np

from lossmap.io.surface import Surface

# Relative spacing of numbers. The loss of a file that does not say (the original tool's) was computed in float32.
SPACINGS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ROUNDING = 8.0  # spacings by which two losses that are equal in exact arithmetic may differ; more where terms cancel
NOISE, BOUND, ROUNDED, EXACT = "standard error", "bound", "rounding", "exact"  # kinds of errors


def field_errors(surface: Surface, name: str, values: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """The errors of a field, of its shape and unit, and their kind: `bound`, `standard error`, `rounding`, `exact`.

    values  of the field, where they are not those of the file. Accuracies are counts, and exact. Rounding is at least
            what is returned.
    """
    values = surface[name] if values is None else values
    held = np.asarray(surface.fields.get(f"{name}_error", np.nan), dtype=float)
    if f"{name}_noise_error" in surface:  # of an eigenvalue: its bound is of one realisation
        return np.hypot(np.asarray(surface[f"{name}_noise_error"], dtype=float), np.nan_to_num(held)), NOISE
    if name.endswith("_loss"):
        spacings = ROUNDING * SPACINGS[precision_of(surface, name)] * np.abs(values)
        # realisations of its randomness may agree
        return np.fmax(held, spacings), NOISE if f"{name}_error" in surface else ROUNDED
    if f"{name}_error" in surface:
        return held, BOUND if name.endswith("_eig") else NOISE
    return np.zeros(np.shape(values)), EXACT


def precision_of(surface: Surface, name: str) -> str:
    """The coarsest precision that the settings of the field's measure name."""
    measure = next((m for m, names in surface.measures.items() if name in names), "loss")
    words = str(surface.settings.get("measures", {}).get(measure, {}).get("precision", "float32"))
    return max((word for word in SPACINGS if word in words), key=SPACINGS.__getitem__, default="float32")
