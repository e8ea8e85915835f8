"""Notes below a figure: how sure the eigenvalues are, and what an audit found, from the file alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lossmap.io.methods import method_note
from lossmap.io.surface import Surface

ENDS = ("max_eig", "min_eig")
AUDIT_CONFIDENCE = 0.95  # of the bound that an audit writes


def accuracy_notes(surface: Surface) -> list[str]:
    """How sure the numbers are, one line each; empty where there is nothing to say."""
    notes = (_error_note(surface), audit_note(surface), noise_note(surface), method_note(surface))
    return [line for line in notes if line]


def noise_note(surface: Surface) -> str:
    """The largest standard errors over realisations of a random loss, in one line; empty where there was one alone."""
    repeats, parts = 0, []
    for measure in ("loss", "eigen"):
        own = surface.settings.get("measures", {}).get(measure, {}).get("noise_repeats")
        repeats = max(repeats, int(own or 0))
        suffix = {"loss": "_error", "eigen": "_noise_error"}[measure]
        for name in surface.measures.get(measure, ()) if own else ():
            known = surface[name][np.isfinite(surface[name])]
            if name.endswith(suffix) and known.size:
                parts.append(f"{name.removesuffix(suffix)} {known.max():.2g}")
    if not parts:
        return ""
    return f"largest standard error over {repeats} realisations of the noise: {', '.join(parts)}"


def _error_note(surface: Surface) -> str:
    """The largest error and limit of the two ends, relative to the larger end at each point; empty if not known."""
    if any(name not in surface for name in ENDS):
        return ""
    if not any(f"{name}_{what}" in surface for name in ENDS for what in ("error", "limit")):
        return "the file states no errors of its eigenvalues"
    size = np.fmax(*(np.abs(surface[name]) for name in ENDS))
    errors = [surface[f"{name}_error"] for name in ENDS if f"{name}_error" in surface]
    gaps = [np.abs(surface[f"{name}_limit"] - surface[name]) for name in ENDS if f"{name}_limit" in surface]
    notes = []
    error, _ = _largest_relative(errors, size)
    if error is not None:
        notes.append(f"an eigenvalue lies within {_percent(error)} of max |\N{GREEK SMALL LETTER LAMDA}| of each end")
    limit, points = _largest_relative(gaps, size)
    if limit is not None:
        notes.append(f"{_limits(surface)} within {_percent(limit)} at {points:,} points")
    return "; ".join(notes)


def _limits(surface: Surface) -> str:
    """What the limits are called, with their confidence where the file states it."""
    confidence = surface.settings.get("measures", {}).get("eigen", {}).get("confidence")
    if confidence is None:
        return "limits"
    return f"{_percent(float(confidence))} limits"


def _percent(share: float) -> str:
    digits = f"{100 * share:.2g}" if share < 1 else f"{100 * share:.0f}"
    return f"{digits}\N{NO-BREAK SPACE}%"  # a line never breaks before the sign


def _largest_relative(arrays: Sequence[np.ndarray], size: np.ndarray) -> tuple[float | None, int]:
    """The largest of the arrays' entries over `size`, and at how many points there is one; (None, 0) without any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = [values / np.where(size > 0, size, np.nan) for values in arrays]
    relative = [values for values in relative if np.isfinite(values).any()]
    if not relative:
        return None, 0
    both = np.fmax.reduce(relative)
    finite = both[np.isfinite(both)]
    return float(finite.max()), finite.size


def audit_note(surface: Surface) -> str:
    """What the audit found, in one line; empty where there was none.

    Reads the root attributes audit_points, audit_misses, audit_candidates (of how many points those were chosen), and
    audit_miss_bound (the 95 % upper bound of the share).
    """
    points = int(surface.attributes.get("audit_points") or 0)
    if not points:
        return ""
    misses, bound = int(surface.attributes.get("audit_misses", 0)), surface.attributes.get("audit_miss_bound")
    ceiling = ""
    if surface.attributes.get("audit_candidates") == points:
        ceiling = ", which are all that have eigenvalues"
    elif bound is not None:
        ceiling = f" ({_percent(AUDIT_CONFIDENCE)} bound: {_percent(float(bound))})"
    noun = {1: "miss"}.get(misses, "misses")
    return f"audit: {misses} {noun} at {points} points solved again{ceiling}"
