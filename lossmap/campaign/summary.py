"""A result in a few numbers with their bars: what one row of a campaign's table says of it. NumPy alone.

Of a surface, for each field: NAME_center (at the point nearest to zero), NAME_min, NAME_max (over the grid); where the
field has errors, NAME_center_error. Of a spectrum: largest, smallest, trace, each with NAME_error. Of sharpness:
largest, trace, critical, and of each ball KIND_RADIUS_average, _sam and _worst, with NAME_error where there is one. Of
the line between two networks: SPLIT_barrier and SPLIT_midpoint with their errors, SPLIT_bump, losses at both ends. Of
an examination: each number with its error, and how many findings there are. Names of several groups are told apart by
their label.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

import numpy as np

from lossmap.io.group_layout import check_group
from lossmap.io.surface import Group, Surface

AUDIT = "audit"  # the measure that solves points again: counted by its misses alone
BARS = ("_error", "_limit", "_rounding", "_rounding_measured")  # endings of fields that are no numbers of their own
BESIDE = ("products",)  # fields that say what a point took


def numbers_of(surface: Surface) -> dict[str, float]:
    """The numbers of a result by name, in units of its fields; those that are not known are left out.

    Raises Damaged where a group does not hold what it must.
    """
    numbers: dict[str, float] = {}
    for measure, names in surface.measures.items():
        if measure == AUDIT:
            continue
        for name in names:
            numbers |= _numbers_of_field(surface, name)
    for name, group in surface.groups.items():
        kind, _, label = name.partition("/")
        check_group(name, group, kind, surface.source)
        if kind == "spectrum" and "strength" not in group:  # an L2 path is of no single matrix
            numbers |= _prefixed(_numbers_of_spectrum(group), label, _count(surface, kind))
        elif kind == "sharpness":
            numbers |= _prefixed(_numbers_of_sharpness(group), label, _count(surface, kind))
        elif name == "connection":
            numbers |= _numbers_of_connection(group)
        elif name == "health":
            numbers |= _numbers_of_health(group)
    misses = surface.attributes.get("audit_misses")
    if misses is not None:
        numbers |= {"audit_points": float(surface.attributes["audit_points"]), "audit_misses": float(misses)}
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def _numbers_of_field(surface: Surface, name: str) -> dict[str, float]:
    values = surface.fields[name]
    if name.endswith(BARS) or values.shape != surface.grid.shape or not np.isfinite(values).any():
        return {}
    if name in BESIDE:
        return {name: float(np.nansum(values))}
    center = _center(surface)
    numbers = {f"{name}_center": float(values[center])}
    error = surface.fields.get(f"{name}_error")
    if error is not None:
        numbers[f"{name}_center_error"] = float(error[center])
    finite = values[np.isfinite(values)]
    return numbers | {f"{name}_min": float(finite.min()), f"{name}_max": float(finite.max())}


def _center(surface: Surface) -> tuple[int, ...]:
    """The index of the point nearest to zero."""
    nearest = [int(np.abs(ticks).argmin()) for ticks in (surface.grid.y, surface.grid.x) if ticks is not None]
    return tuple(nearest)


def _numbers_of_spectrum(group: Group) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, array in (("largest", "top"), ("smallest", "bottom")):
        if array in group and len(group[array]):  # either end, both or none may have been asked for
            numbers[name] = float(group[array][0])
            if f"{array}_error" in group:
                numbers[f"{name}_error"] = float(group.arrays[f"{array}_error"][0])
    for name in ("trace", "trace_error", "loss", "loss_error", "gradient_norm", "gradient_norm_error", "products"):
        if name in group.attributes:
            numbers[name] = float(group.attributes[name])
    return numbers


def _numbers_of_sharpness(group: Group) -> dict[str, float]:
    at = group.attributes
    slopes = ("loss", "loss_error", "gradient_norm", "gradient_norm_error")
    names = ("largest", "largest_error", "trace", "trace_error", *slopes, "critical")
    numbers = {name: float(at[name]) for name in names if name in at}
    if "critical_high" in at:
        numbers["critical_error"] = (float(at["critical_high"]) - float(at["critical_low"])) / 2.0
    for i, kind in enumerate(group.arrays.get("ball", ())):
        ball = f"{kind}_{float(group.arrays['ball_radius'][i]):g}"
        for name in ("average", "average_error", "sam", "sam_error", "worst", "worst_error"):
            if f"ball_{name}" in group.arrays:
                numbers[f"{ball}_{name}"] = float(group.arrays[f"ball_{name}"][i])
    return numbers


def _numbers_of_connection(group: Group) -> dict[str, float]:
    names = {"barrier": "barrier", "error": "barrier_error", "at": "barrier_at", "midpoint": "midpoint"}
    names |= {"midpoint_error": "midpoint_error", "bump": "bump"}
    splits = [name.removesuffix("_loss") for name in group.arrays if name.endswith("_loss")]
    numbers = {
        f"{s}_{to}": float(group.attributes.get(f"{s}_{name}", np.nan)) for s in splits for name, to in names.items()
    }
    for name, values in group.arrays.items():
        if not name.endswith("_error") and name != "t":
            numbers |= {f"{name}_first": float(values[0]), f"{name}_last": float(values[-1])}
    return numbers


def _count(surface: Surface, kind: str) -> int:
    """The number of spectra, or of checkpoints whose sharpness was measured, in a file."""
    groups = [group for name, group in surface.groups.items() if name.startswith(f"{kind}/")]
    return sum("strength" not in group for group in groups)


def _prefixed(numbers: Mapping[str, float], label: str, count: int) -> dict[str, float]:
    """The numbers under their label, where the file holds several of their kind."""
    if count > 1:
        return {f"{label}_{name}": value for name, value in numbers.items()}
    return dict(numbers)


def _numbers_of_health(group: Group) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, pair in group.arrays.items():
        if pair.shape == (2,) and pair.dtype.kind == "f":
            numbers[name] = float(pair[0])
            if pair[1]:
                numbers[f"{name}_error"] = float(pair[1])
    with contextlib.suppress(KeyError, TypeError, ValueError):
        numbers["findings"] = float(len(json.loads(str(group.attributes["report"]))["findings"]))
    return numbers


def cost_of(surface: Surface) -> dict[str, float]:
    """Rank-seconds of all points and of examinations so far, and of the slowest one."""
    seconds = [surface.fields[f"{m}_seconds"] for m in surface.status if f"{m}_seconds" in surface.fields]
    if not seconds:  # an examination, whose group says what it took
        seconds = [np.array([g.attributes["seconds"]]) for g in surface.groups.values() if "seconds" in g.attributes]
    known = np.concatenate([s[np.isfinite(s)] for s in seconds]) if seconds else np.zeros(0)
    return {"seconds": float(known.sum()), "slowest": float(known.max(initial=0.0))}
