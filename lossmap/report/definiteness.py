"""The definiteness of a matrix in words, each with the eigenvalue that it rests on and its error."""

from __future__ import annotations

from math import isfinite, nan

from lossmap.report.text import value_with_error


def verdict_of_ends(largest: tuple[float, float], smallest: tuple[float, float], lowest: float = nan) -> str:
    """The shape of a matrix from its extreme eigenvalues (value, error).

    lowest  the limit below which no eigenvalue lies; NaN where there is none
    """
    (high, high_error), (low, low_error) = largest, smallest
    if not (isfinite(high) and isfinite(low)):
        return "not known: the verdict needs both ends"
    upper, lower = value_with_error(high, high_error), value_with_error(low, low_error)
    if high == low == 0.0:
        return "zero: no curvature at all"
    if low + low_error < 0.0 < high - high_error:
        ratio = abs(low) / high
        return (
            f"indefinite: the loss bends down somewhere (least eigenvalue {lower}), {100 * ratio:.3g} % as strongly as "
            f"it bends up ({upper}); no minimum, to second order"
        )
    if low - low_error > 0.0 >= lowest:
        return (
            f"positive definite as far as is known: the least eigenvalue found is {lower}, but the limit, "
            f"{lowest:.4g}, does not exclude one below zero"
        )
    if low - low_error > 0.0:
        return f"positive definite: the loss bends up in every direction (least eigenvalue {lower})"
    if high + high_error < 0.0:
        return f"negative definite: the loss bends down in every direction (largest eigenvalue {upper})"
    if high - high_error > 0.0:
        return (
            f"positive semidefinite as far as is known: the least eigenvalue, {lower}, cannot be told from zero; flat "
            f"or nearly flat directions, the strongest upward bend {upper}"
        )
    if low + low_error < 0.0:
        return f"negative semidefinite as far as is known: {lower} to {upper}, nothing bends up beyond the error"
    return f"zero as far as is known: no eigenvalue, {lower} to {upper}, can be told from zero"


def kind_of(positive: tuple[int, int], negative: tuple[int, int], zero: tuple[int, int], size: int) -> str:
    """The shape from how many eigenvalues are positive, negative and zero, each from and to."""
    (p, most_p), (q, most_q) = positive, negative
    if p and q:
        return "indefinite"
    if most_p == most_q == 0:
        return "zero"
    if p:
        if p == size:
            return "positive definite"
        return "positive semidefinite" if most_q == 0 else "positive, as far as is known"
    if q:
        if q == size:
            return "negative definite"
        return "negative semidefinite" if most_p == 0 else "negative, as far as is known"
    return "not known"
