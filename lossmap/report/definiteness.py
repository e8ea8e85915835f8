"""The definiteness of a matrix in words, each with the eigenvalue that it rests on and its error."""

from __future__ import annotations

from math import isfinite, nan

from lossmap.report.text import GAUSS_NEWTON, value_with_error, value_with_limit, zero_clause

ZERO_GAUSS_NEWTON = (
    "the loss is linear in the model's outputs here, as NLLLoss is in log-probabilities and L1Loss in numbers, or they "
    "do not follow these parameters. The loss may be curved all the same, which the Hessian shows; for a classifier's "
    "Gauss-Newton matrix give out logits, and take CrossEntropyLoss"
)
SURE = 10.0  # times its rounding a Ritz value is at least below 0, where that is taken for sure


def definiteness_of_ends(
    largest: tuple[float, float],
    smallest: tuple[float, float],
    lowest: float = nan,
    highest: float = nan,
    rounding: float = nan,
    seen: float = nan,
    matrix: str = "",
) -> str:
    """The definiteness of a matrix from its extreme eigenvalues (value, error), in one sentence.

    lowest, highest  the limits below and above which no eigenvalue lies; NaN where there is none
    rounding         the part of the errors that allows for rounding; NaN where it is not known
    seen             the smallest Ritz value of another search, as of a density; the smallest eigenvalue is
                     not above it, but for rounding
    matrix           its name
    """
    (high, high_error), (low, low_error) = largest, smallest
    if not (isfinite(high) and isfinite(low)):
        return "unknown: it requires both ends of the spectrum"
    upper, lower = value_with_limit(high, high_error, highest), value_with_limit(low, low_error, lowest)
    if high == low == high_error == low_error == 0.0:
        return "zero: " + (ZERO_GAUSS_NEWTON if matrix == GAUSS_NEWTON else "no curvature at all")
    if low + low_error < 0.0 < high - high_error:
        return (
            f"indefinite: negative curvature (smallest eigenvalue {lower}), {100 * abs(low) / high:.3g} % of the "
            f"largest eigenvalue ({upper}); not a minimum, to second order"
        )
    if seen + max(low_error, SURE * rounding) < 0.0 < high - high_error:
        return (
            f"indefinite: negative curvature, for the smallest eigenvalue is at most {seen:.4g}, the lower end of the "
            f"density, {100 * abs(seen) / high:.3g} % of the largest ({upper}); not a minimum, to second order"
        )
    if low - low_error > 0.0:
        if lowest <= 0.0:
            value = value_with_error(low, low_error)
            return (
                f"positive definite as far as is known: the smallest eigenvalue found is {value}, but the limit, "
                f"{lowest:.4g}, does not exclude a negative one"
            )
        return f"positive definite: positive curvature in every direction (smallest eigenvalue {lower})"
    if high + high_error < 0.0:
        return f"negative definite: negative curvature in every direction (largest eigenvalue {upper})"
    if high - high_error > 0.0:
        clause = zero_clause(low_error, rounding)
        return (
            f"positive semidefinite as far as is known: the smallest eigenvalue, {lower}, {clause}; "
            f"flat or nearly flat directions; largest eigenvalue {upper}"
        )
    if low + low_error < 0.0:  # and the largest eigenvalue's interval holds zero
        return f"negative semidefinite as far as is known: {lower} to {upper}, no positive curvature beyond the error"
    clause = zero_clause(max(low_error, high_error), rounding)
    return f"zero as far as is known: every eigenvalue, {lower} to {upper}, {clause}"


def kind_of(positive: tuple[int, int], negative: tuple[int, int], zero: tuple[int, int], size: int) -> str:
    """The definiteness in a word or two, from how many of `size` eigenvalues are positive, negative and zero.

    Each count is a range, (from, to), equal where it is known.
    """
    if positive[0] and negative[0]:
        return "indefinite"
    if positive[1] == negative[1] == 0:
        return "zero"
    if positive[0]:
        return _one_sign("positive", positive[0], negative[1], size)
    if negative[0]:
        return _one_sign("negative", negative[0], positive[1], size)
    return "not known"


def _one_sign(word: str, count: int, most_others: int, size: int) -> str:
    if count == size:
        return f"{word} definite"
    if most_others == 0:
        return f"{word} semidefinite"
    return f"{word}, as far as is known"
