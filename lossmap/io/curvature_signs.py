"""Where the Hessian surely has a negative eigenvalue, and where it surely has none, by a surface. NumPy alone."""

from __future__ import annotations

import numpy as np

from lossmap.io.surface import DONE, Surface

ROUNDING = 64.0 * float(np.finfo(np.float32).eps)  # of the larger end, where a file states no errors
NEGATIVE, UNDECIDED, POSITIVE = "negative", "undecided", "positive"


def signs_of(surface: Surface) -> dict[str, np.ndarray]:
    """Masks, (ny, nx), of the points where the smallest eigenvalue is surely negative, undecided, surely positive.

    An eigenvalue lies within the error of the reading, so that one below 0 by more is proof; that none is negative
    takes the limit beyond which there is no eigenvalue, where the file has one. A reading whose error is not known (NaN
    or infinite) is undecided, unless its limit is above 0. In a file that has no errors at all, as the original tool's,
    an eigenvalue is taken as it stands but for the rounding of float32 products, which is as large as the larger end
    makes it: one whose other end is not known is judged by the largest of the file, and undecided if it has none.
    """
    low = surface["min_eig"]
    error = surface.fields.get("min_eig_error")
    if error is None:
        high = np.abs(surface.fields.get("max_eig", np.full_like(low, np.nan)))
        is_known = np.isfinite(high)
        largest = high[is_known].max() if is_known.any() else np.inf
        error = ROUNDING * np.fmax(np.abs(low), np.where(is_known, high, largest))
    known = (surface.status_of("min_eig") == DONE) & np.isfinite(low)
    low = np.where(known, low, np.nan)
    limit = surface.fields.get("min_eig_limit", low - error)
    negative = known & (low + error < 0)
    positive = known & (np.fmin(limit, low - error) > 0)  # of a NaN and a number the number
    return {NEGATIVE: negative, UNDECIDED: known & ~negative & ~positive, POSITIVE: positive}
