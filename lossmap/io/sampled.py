"""A survey that read a part of the samples alone: how many, and how well its picture is known by that.

    SPLIT_samples_read      how many samples of the split were read at a point
    SPLIT_loss_error        standard error of the loss against that of the middle, which is known of all samples
    SPLIT_loss_spread       standard deviation of the loss over the samples that were read
    sampling/@error         the largest of these at any point, relative to the range of the losses
    sampling/@tolerance     that was asked for
    sampling/@SPLIT_samples_read, @SPLIT_samples       of how many

Relative to the range of the picture: of log10 of the loss where its range suits a log scale, as for `refined`.
`landscape.loss_sampling` writes them. NumPy alone.
"""

from __future__ import annotations

import numpy as np

from lossmap.io.refined import LOG_FROM
from lossmap.io.surface import Surface

SAMPLING, READ, SPREAD = "sampling", "samples_read", "loss_spread"
MIN_ERROR, MAX_ERROR = 1e-4, 0.5  # that may be asked for
_SAMPLES = {"train": "training", "test": "test"}


def checked_loss_error(tolerance: float) -> float:
    """The tolerance, relative to the range of the losses. Raises ValueError where it is none."""
    if not MIN_ERROR <= tolerance <= MAX_ERROR:
        raise ValueError(
            f"--loss-error must be >= {MIN_ERROR:g} and <= {MAX_ERROR:g} of the range of the losses; got {tolerance:g}"
        )
    return tolerance


def relative_error(losses: np.ndarray, errors: np.ndarray) -> float:
    """The largest standard error at any point, relative to the range of the losses; both of one shape.

    Where the largest loss is over `LOG_FROM` times the smallest, that of log10 of the loss, relative to the range of
    log10. Points without a finite loss do not count; 0 where all errors are 0, infinite where all losses are equal or
    an error is infinite.
    """
    finite = np.isfinite(losses) & ~np.isnan(errors)
    if not finite.any():
        return float("nan")
    losses, errors = losses[finite], errors[finite]
    if not errors.any():
        return 0.0
    if np.isinf(errors).any():
        return float("inf")
    low, high = float(losses.min()), float(losses.max())
    if low > 0 and high / LOG_FROM > low:
        return float((errors / losses).max() / np.log(high / low))
    return float(errors.max()) / (high - low) if high > low else float("inf")


def is_sampled(surface: Surface) -> bool:
    """Whether a part of the samples was read alone, or was to be."""
    return SAMPLING in surface.groups


def sampling_note(surface: Surface) -> str | None:
    """How many samples were read, and how well the picture is known by that; None where all were, at every point."""
    if not is_sampled(surface):
        return None
    about = surface.groups[SAMPLING].attributes
    read = {
        split: (int(about[f"{split}_{READ}"]), int(about[f"{split}_samples"]))
        for split in ("train", "test")
        if f"{split}_{READ}" in about
    }
    if not read or all(some == every for some, every in read.values()):
        return None
    parts = [
        f"{some:,} of {every:,} {_SAMPLES[split]} samples ({some / every:.2g})" for split, (some, every) in read.items()
    ]
    text = f"read at each point: {' and '.join(parts)}, the same at all, chosen at random"
    wholes = [
        int((surface[f"{split}_{READ}"] > some).sum())
        for split, (some, _) in read.items()
        if f"{split}_{READ}" in surface
    ]
    if any(wholes):
        text += f", but for {max(wholes)} points, as the middle and the corners, where all were read"
    error = float(about.get("error", np.nan))
    if np.isfinite(error):
        text += f"; standard errors are at most {error:.2%} of the range of the losses"
    return text
