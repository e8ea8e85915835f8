"""What a picture shows: the fields, their short and long names, their colours, and what is to be said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.surface import Surface
from lossmap.plotting.style import ACCURACY, LOSS, RATIO

Array = np.ndarray
PARTS = ("spectrum", "along")  # measures that are dealt like points, but over no line or plane


@dataclass(frozen=True)
class Quantity:
    """One thing to draw.

    name    a field, or "ratio" for |min_eig / max_eig|
    symbol  short, for a column's head
    label   with its unit, for an axis or a colour bar
    cmap    its colours
    signed  centred on 0
    even    never on geometric levels
    """

    name: str
    symbol: str
    label: str
    cmap: str = LOSS
    signed: bool = False
    even: bool = False


def quantity(surface: Surface, name: str) -> Quantity:
    """How to draw the field of this name. Raises ValueError with the names that there are."""
    if name == "ratio":
        eigenvalues(surface)
        return Quantity(
            name, r"$|\lambda_\min / \lambda_\max|$", r"$|\lambda_\min / \lambda_\max|$, red: $\lambda_\min < 0$",
            RATIO, True,
        )  # fmt: skip
    base, _, index = name.partition(":")
    if base not in surface:
        known = [n for n in surface.fields if not n.endswith(("_seconds", "_rank"))]
        raise ValueError(f"no field {name!r} here; there are: {', '.join(known) or 'none'}")
    about = surface.about[base]
    label = f"{about.long_name} ({about.unit})" if about.unit not in ("", "1") else about.long_name
    if about.extra is not None:
        if not index.isdigit() or int(index) >= about.extra[1]:
            raise ValueError(f"the field {base!r} holds {about.extra[1]} numbers a point: name one, {base}:0 and so on")
        label = f"{label}, {index}"
    if base.endswith("max_eig"):
        return Quantity(name, r"$\lambda_\max$", r"$\lambda_\max$" + _unit(about))
    if base.endswith("min_eig"):
        return Quantity(name, r"$\lambda_\min$", r"$\lambda_\min$" + _unit(about), "RdBu", True)
    split, _, what = base.partition("_")
    samples = {"train": "training", "test": "test"}.get(split)
    if samples and what == "acc":
        return Quantity(name, "accuracy", f"{samples} accuracy ({about.unit})", ACCURACY, even=True)
    if samples and what == "loss":
        return Quantity(name, "loss", f"{samples} loss ({about.unit})")
    return Quantity(name, base, label)


def short_unit(about: Field) -> str:
    """A field's unit as it stands at an axis, curvature's in signs; empty where it has none."""
    unit = about.unit.replace(" per squared unit of theta", r" / $\|\theta\|^2$")
    return "" if unit == "1" else unit


def _unit(about: Field) -> str:
    unit = short_unit(about)
    return f" ({unit})" if unit else ""


def values_of(surface: Surface, name: str) -> tuple[Array, Array]:
    """The numbers of a quantity and the statuses of its points, both of the grid's shape.

    The ratio is |min/max|, with a minus where the smallest eigenvalue is positive: so negative curvature is red.
    """
    if name == "ratio":
        high, low = (surface[n] for n in eigenvalues(surface))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = -np.sign(low) * np.abs(low / high)
        return np.where((low == 0) & (high == 0), 0.0, ratio), surface.status_of("max_eig")
    base, _, index = name.partition(":")
    values = surface[base]
    return (values[..., int(index)] if index else values), surface.status_of(base)


def eigenvalues(surface: Surface) -> tuple[str, str]:
    """The names of the two ends. Raises ValueError where they are not there."""
    if "max_eig" not in surface or "min_eig" not in surface:
        raise ValueError("this file holds no eigenvalues max_eig and min_eig; lossmap eigenmap computes them")
    return "max_eig", "min_eig"


def other_kinds(surface: Surface) -> tuple[str, ...]:
    """What there is to draw beside a surface: spectrum, layers, evolution, health, path."""
    groups = surface.groups
    there = {
        "spectrum": any(n.startswith("spectrum/") and ("top" in g or "node" in g) for n, g in groups.items()),
        "layers": any(n.startswith("layers/") and "block" in g for n, g in groups.items()),
        "evolution": "evolution/results" in groups,
        "health": "health" in groups,
        "path": "trajectory" in groups,
    }
    return tuple(kind for kind, held in there.items() if held)


def _of_points(surface: Surface) -> list[str]:
    """The fields that are readings at points: no book-keeping, and nothing of the parts of a spectrum or a run."""
    parts = {name for measure in PARTS for name in surface.measures.get(measure, ())}
    kept = ("_seconds", "_rank", "_error", "_limit")
    return [name for name in surface.fields if name not in parts and not name.endswith(kept)]


def holds_points(surface: Surface) -> bool:
    """Whether there is a surface to draw: readings over a line or a plane."""
    return bool(_of_points(surface))


def best_field(surface: Surface) -> str:
    """The field that a picture shows if nothing is said. Raises ValueError where there is none."""
    names = _of_points(surface)
    for wanted in ("train_loss", "test_loss", "max_eig"):
        if wanted in names:
            return wanted
    if not names:
        raise ValueError(f"this file holds no surface; it holds: {', '.join(held(surface)) or 'nothing'}")
    about = surface.about[names[0]]
    return names[0] if about.extra is None else f"{names[0]}:0"


def held(surface: Surface) -> list[str]:
    """All that a file holds, in words."""
    plane = any(name.startswith("directions/") for name in surface.groups)
    points = ["a surface"] if holds_points(surface) else []
    return [*points, *other_kinds(surface), *(["directions (lossmap plane FILE tells of them)"] if plane else [])]


def axis_labels(surface: Surface) -> tuple[str, str]:
    """What the axes of the plane are, as far as the file knows."""
    return _axis(surface, "x"), _axis(surface, "y")


def _axis(surface: Surface, name: str) -> str:
    group = surface.groups.get(f"directions/{name}")
    told = dict(group.attributes) if group is not None else {}
    kind = str(told.get("kind", ""))
    if kind == "random":
        return f"{name}, random direction"
    if kind.startswith("to:"):
        return f"{name}, 0: model, 1: {Path(kind[3:]).name}"
    if kind.startswith("pca"):
        which = int("".join(c for c in kind if c.isdigit()) or told.get("component", 1))
        path = surface.groups.get("trajectory")
        share = ""
        if path is not None and "explained_variance_ratio" in path:
            ratio = np.atleast_1d(path["explained_variance_ratio"])
            share = f" ({100 * float(ratio[which - 1]):.0f} %)" if which <= ratio.size else ""
        return f"{name}, principal component {which}{share}"
    return f"{name}, {kind.replace(':', ' ')}" if kind else name


def as_line(surface: Surface) -> Surface:
    """A plane with one tick along an axis, as the line that it is; a line as it is."""
    grid = surface.grid
    if grid.y is None:
        return surface
    ticks = grid.x if grid.y.size == 1 else grid.y
    n, groups = ticks.size, dict(surface.groups)
    if grid.y.size > 1 and "directions/y" in groups:
        groups["directions/x"] = groups["directions/y"]
    return replace(
        surface,
        grid=Grid(ticks),
        fields={name: a.reshape(n, *a.shape[2:]) for name, a in surface.fields.items()},
        status={name: a.reshape(n) for name, a in surface.status.items()},
        groups=groups,
    )


def is_line(surface: Surface) -> bool:
    """Whether there is but one axis with more than one tick."""
    return surface.grid.y is None or 1 in surface.grid.shape


def remarks(surface: Surface) -> list[str]:
    """How sure the eigenvalues are, one line each; none where there is nothing to say."""
    lines = []
    if "max_eig" in surface and "min_eig" in surface:
        size = np.fmax(np.abs(surface["max_eig"]), np.abs(surface["min_eig"]))
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = _worst(surface, ("max_eig_error", "min_eig_error"), size, from_value=False)
            limit = _worst(surface, ("max_eig_limit", "min_eig_limit"), size, from_value=True)
        told = []
        if worst is not None:
            told.append(
                f"an eigenvalue lies within {_share(worst[0])} of max |\N{GREEK SMALL LETTER LAMDA}| of each end"
            )
        if limit is not None:
            sure = surface.settings.get("measures", {}).get("eigen", {}).get("confidence")
            share = f"{_share(float(sure))} limits" if sure is not None else "limits"
            told.append(f"{share} within {_share(limit[0])} at {limit[1]:,} points")
        if told:
            lines.append("; ".join(told))
    audit = audited(surface)
    return lines + ([audit] if audit else [])


def _share(value: float) -> str:
    return f"{100 * value:.2g}\N{NO-BREAK SPACE}%"  # a line never breaks before the sign


def _worst(surface: Surface, names: Sequence[str], size: Array, from_value: bool) -> tuple[float, int] | None:
    found = []
    for name in names:
        if name in surface:
            values = surface[name]
            if from_value:
                values = np.abs(values - surface[name.removesuffix("_limit")])
            relative = values / np.where(size > 0, size, np.nan)
            if np.isfinite(relative).any():
                found.append(relative)
    if not found:
        return None
    both = np.fmax.reduce(found)
    return float(np.nanmax(np.where(np.isfinite(both), both, np.nan))), int(np.isfinite(both).sum())


def audited(surface: Surface) -> str:
    """What the audit found, in one line; empty where there was none.

    Reads the root attributes audit_points, audit_misses and audit_miss_bound (the 95 % upper bound of the share).
    """
    told = surface.attributes
    points = told.get("audit_points")
    if points is None or not int(points):
        return ""
    misses, bound = int(told.get("audit_misses", 0)), told.get("audit_miss_bound")
    ceiling = f" ({_share(0.95)} bound: {_share(float(bound))})" if bound is not None else ""
    return f"audit: {misses} {'miss' if misses == 1 else 'misses'} at {int(points)} points solved again{ceiling}"
