"""A loss and its gradient's norm with what rounding may have moved them by, as a person reads them."""

from __future__ import annotations

from math import isfinite

from lossmap.report.stored import StoredReport
from lossmap.report.text import number, value_with_error


def loss_and_gradient_text(stored: StoredReport, unit: str = "") -> tuple[str, str]:
    """(loss, gradient norm) of a report; files of earlier versions know no errors of them.

    unit  of the loss, behind it
    """
    errors = stored.number("loss_error"), stored.number("gradient_norm_error")
    loss = told_from_zero(stored.number("loss"), errors[0], unit)
    slope = told_from_zero(stored.number("gradient_norm"), errors[1])
    if "loss_error" in stored.attributes and not all(map(isfinite, errors)):
        slope += " (rounding not measured)"
    return loss, slope


def told_from_zero(value: float, error: float, unit: str = "") -> str:
    """A number that is not negative, with its error of rounding, which may be all of it."""
    text = value_with_error(value, error) if isfinite(error) else number(value)
    if unit:
        text += f" {unit}"
    return text + ", not told from zero in this precision" * (0.0 < value <= error)
