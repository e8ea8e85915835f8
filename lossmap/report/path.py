"""The report of a training path on a plane: what the plane shows of it, and how it descends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lossmap.report.text import count, number, table

MAX_ROWS = 16  # checkpoints in the table, spread over the run
AT_ORIGIN = 1e-6  # of the farthest checkpoint's distance, within which one is the origin
IN_TRAINING = "; the gradient is that of evaluation mode, and in training mode another, as by batch norm or dropout"
SHOWN_ROUNDING = 1e-3  # of the stored weights, as a part of the distances of a path
SHOWN_ERROR = 0.02  # of a cosine, by that rounding
DROP = 0.9  # a learning rate below this share of the last one is a drop
ROUNDED = 1e-6  # relative, of rates: one of exactly that share is none
FEW_DROPS = 2  # of so many it cannot be told that the rate falls all the time


def origin_on_path(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Which checkpoint of a path on a plane is the plane's origin; None where none is.

    arrays  of the path, as `trajectory` makes them
    """
    distances = np.sqrt(sum(arrays[name] ** 2 for name in ("x", "y", "residual") if name in arrays))
    if not distances.size:
        return None
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= AT_ORIGIN * distances.max() else None


def path_report(
    arrays: Mapping[str, np.ndarray],
    random_walk: Sequence[float],
    moving: str = "all",
    other_in_training: bool = False,
) -> str:
    """The report, of the arrays of a file's group `trajectory`.

    random_walk  the shares of the first axes that a random walk of as many checkpoints has
    moving       the parameters that move with the plane, of whose path its axes are
    other_in_training  whether the gradient in training mode is another than that of the cosines
    """
    path = "the path" if moving == "all" else f"the path of the parameters that move ({moving})"
    is_about_itself, lines = origin_on_path(arrays) is not None, []
    for i, (share, chance) in enumerate(zip(arrays["explained_variance_ratio"], random_walk, strict=False)):
        walk = f" (of a random walk of as many checkpoints: {100 * chance:.1f} %)" if np.isfinite(chance) else ""
        explained = f"axis {i + 1} explains {100 * share:.1f} % of {path}{walk}"
        if not is_about_itself:
            explained = (
                f"axis {i + 1} has {100 * share:.1f} % of the squared distances of {path} from the origin, which is no "
                "checkpoint of it"
            )
        lines.append(explained)
    size = len(arrays["residual"])
    farthest = f"{arrays['residual'].max():.4g}"
    lines.append(f"{count(size, 'checkpoint')} projected; the farthest lies {farthest} outside the plane")
    lines += _rounding(arrays) + _descent(arrays, other_in_training)
    shown = np.unique(np.linspace(0, size - 1, min(size, MAX_ROWS)).round().astype(int))
    lines += ["", *table(_rows(arrays, shown), right=range(7))]
    if len(shown) < size:
        lines.append(f"  {len(shown)} of {size} checkpoints; the file holds all")
    return "\n".join(lines)


def _rounding(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """How far the rounding of the stored weights may have moved the checkpoints, where that is a part of the path."""
    if "rounding" not in arrays:
        return []
    largest, distance = float(arrays["rounding"].max()), float(np.mean(arrays["distance"] ** 2)) ** 0.5
    if not largest > SHOWN_ROUNDING * distance:
        return []
    return [
        f"rounding of the stored weights may have moved a checkpoint by up to {largest:.2g}, also out of the plane; "
        f"the root mean square distance from the origin is {distance:.2g}"
    ]


def _descent(arrays: Mapping[str, np.ndarray], other_in_training: bool) -> list[str]:
    """How often the loss rises, how the steps lie to the gradient, and where the learning rate drops."""
    lines: list[str] = []
    if "loss" not in arrays:
        return lines
    rises = np.diff(arrays["loss"])
    uphill = rises[rises > 0]
    errors = arrays.get("cosine_error", np.full(len(arrays["loss"]), np.nan))
    is_lost = errors[:-1] >= 2  # a step, or a gradient, that may be rounding alone
    if rises.size:
        text = f"the loss rises at {len(uphill)} of {count(rises.size, 'step')}"
        text += f", by {number(float(uphill.sum()))} in all" if uphill.size else ""
        if is_lost.any():
            text += f"; {is_lost.sum()} of the steps have no cosine: rounding of the stored weights may be all there is"
        lines.append(text)
    cosines = arrays["cosine"][np.isfinite(arrays["cosine"])]
    if cosines.size:
        span = f"{np.median(cosines):.2g} in the median, {cosines.min():.2g} to {cosines.max():.2g}"
        largest = np.max(errors[errors < 2], initial=0.0)
        span += f"; by rounding of the stored weights wrong by up to {largest:.2g}" if largest > SHOWN_ERROR else ""
        span += IN_TRAINING if other_in_training else ""
        lines.append(f"cosine of a step and the negative gradient where it begins: {span}")
    drops = drops_of(arrays)
    if drops.size:
        steps = ", ".join(f"{step:g}" for step in arrays["step"][drops])
        lines.append(f"the learning rate drops before checkpoint {steps}")
    else:
        rate = np.asarray(arrays.get("learning_rate", ()), dtype=float)
        known = rate[np.isfinite(rate)]
        if known.size and known[-1] < DROP * known[0]:
            lines.append(f"the learning rate falls step by step, from {known[0]:.3g} to {known[-1]:.3g}")
    return lines


def drops_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The places of the checkpoints before which the learning rate drops; none where it falls all the time.

    Beside checkpoints without a rate the last one that is known counts.
    """
    falls = _falls(arrays)
    count = len(arrays.get("learning_rate", ())) - 1
    is_schedule = len(falls) > max(FEW_DROPS, count // 2)  # that falls all the time
    return np.empty(0, dtype=int) if is_schedule else falls


def _falls(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The places of the checkpoints whose learning rate is below a share `DROP` of the last one that is known."""
    rate = np.asarray(arrays.get("learning_rate", ()), dtype=float)
    known = np.flatnonzero(np.isfinite(rate))
    falls: np.ndarray = known[1:][rate[known[1:]] < DROP * (1 - ROUNDED) * rate[known[:-1]]]
    return falls


def _rows(arrays: Mapping[str, np.ndarray], shown: np.ndarray) -> list[tuple[str, ...]]:
    columns = {"step": "step", "x": "x", "y": "y", "outside": "residual", "loss": "loss", "on the plane": "plane_loss"}
    columns |= {"cosine": "cosine"}
    columns = {head: name for head, name in columns.items() if name in arrays}
    rows = [tuple(columns)]
    for i in shown:
        values = [float(arrays[name][i]) for name in columns.values()]
        rows.append(tuple("-" if np.isnan(v) else number(v + 0.0) for v in values))
    return rows
