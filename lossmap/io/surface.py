"""What a survey leaves behind, as values: a surface with its fields, statuses, failures and groups. NumPy alone.

A field is float64, (y, x) in 2-D and (x,) in 1-D, with one further dimension behind where it has one; NaN where
nothing is known. A status is uint8 of the same shape: 0 to do, 1 done, 2 failed. NaN with status 1 is a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid, shown_unit
from lossmap.keywords import checked_init
from lossmap.report.text import raised_error
from lossmap.values import DrawnResult, same_values

TO_DO, DONE, FAILED = 0, 1, 2
# What is known of the numbers of a surface that was read: see `Surface.integrity`.
VERIFIED, UNPROTECTED, REBUILT = "verified", "unprotected", "rebuilt from the journal"
CHANGED = "_changed"  # ending of the attribute that says of a measure how its loss changed during the run

AUDIT = ("audit", "audit_points", "audit_candidates", "audit_misses", "audit_miss_bound")  # root attributes: its report
EVALUATION = "evaluation of the loss"  # among a measure's settings: the sentences of `Problem.notes`
TRAINING_PROCESS = "training_process"  # attribute of a training's file while it goes on: its host and process id
# Fields whose name says it all: files of the original tool, and surfaces made by hand, carry no units.
KNOWN = {
    about.name: about
    for about in (
        Field("train_loss", "nats", "mean loss over the training samples"),
        Field("test_loss", "nats", "mean loss over the test samples"),
        Field("train_acc", "percent", "accuracy on the training samples"),
        Field("test_acc", "percent", "accuracy on the test samples"),
        Field("max_eig", "nats per squared unit of theta", "largest eigenvalue of the Hessian"),
        Field("min_eig", "nats per squared unit of theta", "smallest eigenvalue of the Hessian"),
    )
}


MADE_AS = "made_as"  # attribute of a direction that was read from a file: what kind it was made as
ON_PLANE = "on_plane"  # attribute of a path that was read from a file: digest of the plane that it was found to be of


@dataclass(frozen=True)
class Failure:
    """Why a point has no reading.

    index  the flat index of the point
    rank   the rank that tried, and host: its machine
    text   the error, with its traceback where there is one
    """

    index: int
    rank: int
    host: str
    text: str
    measure: str = ""

    @property
    def reason(self) -> str:
        """The line that says what happened: of a traceback, the first one of the error's message."""
        return raised_error(self.text) or "no reason was given"


@dataclass(frozen=True, eq=False)
class Group:
    """Arrays that belong together beside the fields: a direction, a trajectory, a spectrum."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


@checked_init
@dataclass(frozen=True, eq=False)
class Surface(DrawnResult):
    """A surveyed line or plane: fields over the points of a grid, and what belongs to them. `survey` makes one.

    `surface["train_loss"]` is a field, (y, x) or (x,). It prints, draws itself in a notebook (also while its survey
    runs), can be saved, read, drawn (`draw`), pickled, and given to xarray.

    Attributes:
        grid: the ticks.
        fields: arrays by name, (y, x) or (x,), float64, NaN where not known.
        about: unit and long name of each field; those that are left out are looked up or named after themselves.
        status: by measure, uint8 of the grid's shape; one measure that is done where a field is not NaN, if left out.
        measures: the names of the fields that each measure reads.
        settings: {"file": {...}, "measures": {name: {...}}}: what the survey was asked for.
        failures: why points with status 2 have no reading.
        attributes: the root attributes of the file: versions, start, end, restarts, audit and so on.
        groups: trajectory, spectrum, ...; of `directions/x` the attributes alone (`read_group` brings the tensors).
        parts: by measure: the flat indices that it is to hold, where that is not the whole grid (an audit).
        recent: by measure: when its newest points came, seconds since the epoch; empty unless a journal lies beside.
        source: the file that it was read from, which holds the tensors of the directions; empty where there is none.
        integrity: of a surface that was read: `verified` (it fits its digests), `unprotected` (the file has none: of
            version 0.1, or of the original tool), or `rebuilt from the journal`, with what was damaged.

    Raises:
        ValueError: for a field or status whose shape is not the grid's, and for a field's name with a `/`.

    Example:
        >>> import numpy as np, lossmap
        >>> surface = lossmap.Surface(lossmap.Grid.line(-1, 1, 3), {"train_loss": np.array([2.0, 1.0, 2.0])})
        >>> surface.minimum("train_loss")
        (1.0, (0.0,))

    """

    grid: Grid
    fields: Mapping[str, np.ndarray]
    about: Mapping[str, Field] = field(default_factory=dict)
    status: Mapping[str, np.ndarray] = field(default_factory=dict)
    measures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    recent: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)
    integrity: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        shape = self.grid.shape
        fields = {name: np.asarray(a, dtype=np.float64) for name, a in self.fields.items()}
        for name, a in fields.items():
            if not name or "/" in name:
                raise ValueError(f"the name of a field must not be empty and must hold no '/'; got {name!r}")
            if a.shape[: len(shape)] != shape:
                raise ValueError(f"the field {name!r} has shape {a.shape}; of this grid it must be {shape} (y, x)")
        about = {
            name: self.about.get(name) or replace(KNOWN.get(name, Field(name, "1", name.replace("_", " "))))
            for name in fields
        }
        status = {name: np.asarray(a, dtype=np.uint8) for name, a in self.status.items()}
        for name, states in status.items():
            if states.shape != shape:
                raise ValueError(
                    f"the status of {name!r} has shape {states.shape}; of this grid it must be {shape} (y, x)"
                )
        measures = {name: tuple(self.measures.get(name, ())) for name in status}
        if not status and fields:
            known = np.zeros(shape, dtype=bool)
            for a in fields.values():
                known |= ~np.isnan(a).reshape(*shape, -1).all(axis=-1)
            status = {"loss": known.astype(np.uint8)}
            measures = {"loss": tuple(fields)}
        for name, value in (("fields", fields), ("about", about), ("status", status), ("measures", measures)):
            object.__setattr__(self, name, value)

    def __getitem__(self, name: str) -> np.ndarray:
        """The field of this name; raises KeyError with the names that there are."""
        if name not in self.fields:
            raise KeyError(f"no field {name!r} here; there are: {', '.join(sorted(self.fields)) or 'none'}")
        return self.fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def equals(self, other: object) -> bool:
        """Whether the other is a Surface with the same grid, fields, statuses, settings, failures and groups.

        NaN equals NaN; attributes are compared as a file holds them (a dict as its JSON text, for instance).
        """
        if not isinstance(other, Surface) or self.grid != other.grid:
            return False
        ours, theirs = (_comparable(surface) for surface in (self, other))
        return same_values(ours, theirs)

    def status_of(self, name: str) -> np.ndarray:
        """The status array behind a field: that of the measure that reads it.

        Of a field of no measure, as in files of the original tool, NaN is still to do; an infinite value is a result.
        """
        for measure, names in self.measures.items():
            if name in names:
                return self.status[measure]
        values = self[name].reshape(*self.grid.shape, -1)
        known: np.ndarray = (~np.isnan(values)).any(axis=-1)
        return known.astype(np.uint8)

    def planned_points(self, measure: str | None = None) -> np.ndarray:
        """The flat indices of the points to be measured here: all, or the part of a shard, or of an audit."""
        text = str(self.attributes.get("shard_points", ""))
        indices = np.arange(len(self.grid))
        if text:
            indices = indices_of(text)
        if measure is not None and measure in self.parts:
            indices = np.intersect1d(indices, self.parts[measure])
        return indices

    def outcome_of(self, measure: str) -> str:
        """How that measure stands: "complete", "unfinished", or "failed".

        That is complete but for failed points, or measured of a loss that changed during the run.
        """
        if measure not in self.status:
            return "unfinished"
        status = self.status[measure].reshape(-1)[self.planned_points(measure)]
        if (status == TO_DO).any():
            return "unfinished"
        return "failed" if (status == FAILED).any() or self.change_of(measure) else "complete"

    def change_of(self, measure: str) -> str:
        """What is said of a loss that changed while the measure ran; empty where it did not, as far as is known."""
        return str(self.attributes.get(f"{measure}{CHANGED}", ""))

    @property
    def outcome(self) -> str:
        """The worst over the measures: "unfinished", then "failed", then "complete"."""
        outcomes = {self.outcome_of(measure) for measure in self.status} or {"unfinished"}
        return next(word for word in ("unfinished", "failed", "complete") if word in outcomes)

    @property
    def evaluation(self) -> tuple[str, ...]:
        """How the loss is evaluated, a sentence each, where that is not as a mean over any samples."""
        sentences: dict[str, None] = {}
        for settings in self.settings.get("measures", {}).values():
            sentences |= dict.fromkeys(map(str, settings.get(EVALUATION, ())))
        return tuple(sentences)

    def counts(self, measure: str) -> dict[str, int]:
        """How many points are done, failed and left."""
        status = self.status[measure].reshape(-1)[self.planned_points(measure)]
        return {
            "done": int((status == DONE).sum()),
            "failed": int((status == FAILED).sum()),
            "left": int((status == TO_DO).sum()),
        }

    def missing(self, measure: str) -> np.ndarray:
        """The flat indices of planned points with no reading: to do, or failed."""
        planned = self.planned_points(measure)
        result: np.ndarray = planned[self.status[measure].reshape(-1)[planned] != DONE]
        return result

    def minimum(self, name: str) -> tuple[float, tuple[float, ...]] | None:
        """The least finite value of a field and its point; None where there is none."""
        values = self[name].reshape(len(self.grid), -1)[:, 0]
        if not np.isfinite(values).any():
            return None
        index = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
        return float(values[index]), self.grid.point(index)

    def __repr__(self) -> str:
        grid = self.grid
        span = f"x {grid.x[0]:g} to {grid.x[-1]:g}"
        if grid.y is not None:
            span += f", y {grid.y[0]:g} to {grid.y[-1]:g}"
        lines = [f"Surface of {' x '.join(str(n) for n in reversed(grid.shape))} points, {span}; {self.outcome}"]
        for measure in self.status:
            counts = ", ".join(f"{count:,} {word}" for word, count in self.counts(measure).items())
            lines.append(f"  {measure}: {counts}")
        lines.extend(f"  evaluation: {sentence}" for sentence in self.evaluation)
        bookkeeping = {f"{m}_{what}" for m in self.status for what in ("seconds", "rank")}
        for name in self.fields:
            if name in bookkeeping:
                continue
            about, least = self.about[name], self.minimum(name)
            unit = f" {shown_unit(about.unit)}".rstrip()
            if least is None:
                lines.append(f"  {name}: no finite value")
            else:
                place = ", ".join(f"{c:g}" for c in least[1])
                most = float(np.max(self.fields[name][np.isfinite(self.fields[name])]))
                lines.append(f"  {name}: {least[0]:.6g} at ({place}) to {most:.6g}{unit}")
        groups = [name for name in self.groups if not name.startswith("tasks/")]
        if len(groups) < len(self.groups):  # one group a task: too many to name
            groups.append(f"tasks ({len(self.groups) - len(groups):,})")
        if groups:
            lines.append(f"  groups: {', '.join(groups)}")
        return "\n".join(lines)


def _comparable(surface: Surface) -> dict[str, Any]:
    """What two equal surfaces have in common; the arrays of large groups may be in a file, and count where both are."""
    groups = {name: (dict(g.arrays), _attributes_text(g.attributes)) for name, g in surface.groups.items() if g.arrays}
    return {
        "fields": surface.fields,
        "about": surface.about,
        "status": surface.status,
        "measures": surface.measures,
        "settings": canonical(surface.settings),
        "failures": surface.failures,
        "attributes": _attributes_text(surface.attributes),
        "groups": {n: g for n, g in groups.items() if not n.startswith("directions/")},
        "parts": surface.parts,
    }


def _attributes_text(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as text: of numbers, lists of them, and what a file holds as JSON, one text for equal values."""
    texts = {}
    for name, value in attributes.items():
        if isinstance(value, str):
            texts[name] = value
            continue
        plain = to_plain(value)
        if isinstance(plain, bool):
            plain = int(plain)
        texts[name] = "none" if plain is None else json.dumps(plain)
    return texts


def to_plain(value: Any) -> Any:
    """The value as JSON would give it back: tuples become lists, NumPy scalars numbers, the rest text."""
    return json.loads(json.dumps(value, default=_plain, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def canonical(value: Any) -> str:
    """The JSON text of a value with its keys sorted: equal for equal settings."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, here, there) for each entry that differs, names of nested settings joined by dots.

    What stands under "chosen" (by a probe) is no difference: it is taken up again, not asked for.
    """
    left, right = dict(_leaves(to_plain(dict(ours)))), dict(_leaves(to_plain(dict(theirs))))
    absent = "(not set)"
    for name in sorted(left.keys() | right.keys()):
        here, there = left.get(name, absent), right.get(name, absent)
        if canonical(here) != canonical(there):
            yield name, here, there


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if name == "chosen":
            continue
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def spans(indices: np.ndarray) -> str:
    """Indices as text, runs drawn together: 0-4,7,9-11."""
    indices = np.unique(np.asarray(indices, dtype=np.int64))
    if indices.size == 0:
        return ""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return ",".join(str(run[0]) if run.size == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def indices_of(text: str) -> np.ndarray:
    """The indices behind such a text."""
    parts: list[np.ndarray] = []
    for run in text.split(","):
        if run:
            low, _, high = run.partition("-")
            parts.append(np.arange(int(low), int(high or low) + 1))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
