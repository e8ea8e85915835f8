"""How fast a survey goes, from when its points came and what they took."""

from __future__ import annotations

import math

import numpy as np


def means_by_rank(seconds: np.ndarray, ranks: np.ndarray) -> list[tuple[float, int, int]]:
    """(mean seconds of a point, rank, points) of each rank, the slowest first; points of no known rank are left out."""
    own = {int(r): seconds[ranks == r] for r in np.unique(ranks[np.isfinite(ranks)])}
    return sorted(((float(values.mean()), r, values.size) for r, values in own.items()), reverse=True)


def rate_of(times: np.ndarray, seconds: np.ndarray, ranks: int) -> float | None:
    """Points a second: from when the newest ones came, pauses between attempts left out; else by what points cost.

    times    when the newest points were recorded, in seconds of any clock
    seconds  what each known point took
    ranks    that computed
    """
    gaps = np.diff(np.sort(times))
    if seconds.size:
        gaps = gaps[gaps <= 10 * seconds.max() + 1.0]
    if gaps.size >= 3 and gaps.sum() > 0:
        return float(gaps.size / gaps.sum())
    if seconds.size and seconds.mean() > 0:
        return float(ranks / seconds.mean())
    return None


def duration_text(seconds: float) -> str:
    """Seconds as people read them: 8 s, 3 min 20 s, 2 h 05 min, 4 days 3 h; a dash where unknown."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"
