"""A map of extreme eigenvalues in words: the sign of the smallest one, and where rounding was measured.

Made of the fields of a result, (points,) or (y, x) each, so that a file is reported again without torch. Eigenvalues
are in the unit of the loss per squared unit of theta.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lossmap.report.text import MIN_ROUNDING_SHARE, count

ROUNDING = "eigen_rounding"  # the field that holds the part of the errors that allows for rounding
MEASURED = "eigen_rounding_measured"  # 1 where it was measured at the point, 0 where it is estimated
# A few samples are looked at first, and all where rounding over these could exceed the bars.
HOW = "by float64 products (over 16 to 128 samples, or over all where these see more than the bars)"


def eigenmap_lines(fields: Mapping[str, np.ndarray]) -> list[str]:
    """What is to be said of a map beside its numbers, one sentence a line; files of version 0.1 hold less of it."""
    lines = []
    for prefix, title in (("", ""), ("test_", "test samples: ")):
        own = {name.removeprefix(prefix): np.asarray(v) for name, v in fields.items() if name.startswith(prefix)}
        lines += [title + line for line in (_signs(own), _rounding(own)) if line]
    return lines


def _signs(fields: Mapping[str, np.ndarray]) -> str:
    """At how many points the smallest eigenvalue is negative or positive beyond its error, and at how many neither."""
    if "min_eig" not in fields or "min_eig_error" not in fields:
        return ""
    low, error = fields["min_eig"], fields["min_eig_error"]
    known = np.isfinite(low) & np.isfinite(error)
    negative, positive = known & (low + error < 0.0), known & (low - error > 0.0)
    within = known & ~negative & ~positive
    rounding = fields.get(ROUNDING, np.full(low.shape, np.nan))
    with np.errstate(invalid="ignore"):
        by_precision = within & (rounding >= MIN_ROUNDING_SHARE * error)
    parts = [
        f"{verb} at {int(where.sum()):,}"
        for verb, where in (
            ("negative", negative),
            ("positive", positive),
            ("zero within its error", within & ~by_precision),
        )
        if where.any()
    ]
    if by_precision.any():
        parts.append(f"it cannot be told from zero in this precision at {int(by_precision.sum()):,}")
    if not parts:
        return ""
    return f"smallest eigenvalue: {', '.join(parts)} of {count(int(known.sum()), 'point')}"


def _rounding(fields: Mapping[str, np.ndarray]) -> str:
    """Where the rounding of the products was measured, and where it is estimated from the plan's own point."""
    if MEASURED not in fields:
        return ""
    measured = fields[MEASURED]
    known, here = int(np.isfinite(measured).sum()), int((measured == 1.0).sum())
    if not known:
        return ""
    if here == known:
        return f"rounding: measured at {'each of ' * (known > 1)}{count(known, 'point')} {HOW}"
    if not here:
        return f"rounding: estimated at all {known:,} points from what was measured where the products were planned"
    return (
        f"rounding: measured at {here:,} of {known:,} points {HOW}, estimated at the others from what was measured "
        "where the products were planned"
    )
