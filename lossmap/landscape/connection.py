"""The line between two networks: losses along it, its barrier, and whether it is monotone. NumPy alone.

    barrier    max_t [L(t) - ((1 - t) L(0) + t L(1))]       above the line between both ends
    midpoint   max_t L(t) - (L(0) + L(1)) / 2               above the mean of both ends
    bump       max_{t1 < t2} [L(t2) - L(t1)], of a loss that falls from 0 to 1 (of one that rises, downwards): 0 where
               it is monotone

t runs over the points that were measured: what lies between them may be higher. A loss that is not finite somewhere is
an infinite barrier. Sources: Frankle et al. (2020), arXiv:1912.05671 (above the mean of both ends); Entezari et al.
(2022), arXiv:2110.06296 (above the line); Goodfellow et al. (2015), arXiv:1412.6544, and Lucas et al. (2021),
arXiv:2012.06898 (monotone interpolation, and its bump).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import hypot, inf, nan
from typing import Any

import numpy as np

from lossmap.geometry.grid import BUT_STATISTICS, ENDS_AT, MODEL, PART, WEIGHTS
from lossmap.io.surface import Group, Surface
from lossmap.keywords import checked_init
from lossmap.report.connection import BESIDE, connection_report
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.values import DrawnResult

GROUP = "connection"


@dataclass(frozen=True)
class Barrier:
    """How far a loss rises on the line between two networks, in its unit.

    height          above the line between both ends; 0 where no point lies above it
    error           of the rise at that point: standard error, from paired losses of the samples, and rounding together;
                    NaN where not known
    at              t of that point; NaN where there is no barrier
    midpoint        above the mean of both ends; midpoint_error, midpoint_at: the same of it
    middle          rise above the line at the point nearest to t = 1/2; NaN where its loss has no number
    is_monotone     whether the loss never turns from one measured point to the next
    direction       falls, rises, or stays: from the first to the last point
    turns           number of steps against that direction, of `steps`
    bump            the largest rise (of a loss that rises: fall) between any two points, 0 where monotone
    bump_from, bump_to  between which t it lies; NaN where it is 0
    rounding        by which rounding of the losses may move such rises: a smaller one says nothing
    """

    height: float
    error: float
    at: float
    midpoint: float
    midpoint_error: float
    midpoint_at: float
    middle: float
    is_monotone: bool
    direction: str
    turns: int
    steps: int
    bump: float
    bump_from: float
    bump_to: float
    rounding: float = 0.0


@checked_init
@dataclass(frozen=True, eq=False)
class Connection(DrawnResult):
    """The straight line between two networks: the result of `connect`. Print it for the report.

    Attributes:
        t: (points,) from 0, the first network, to 1, the other.
        losses: by split, each (points,); NaN where a point failed.
        metrics: by name, such as `train_acc` in percent.
        barrier_errors: by split, the standard error of the rise above the line at each point; NaN where not known.
        midpoint_errors: by split, that of the rise above the mean of both ends.
        bn: what was done with the statistics of batch norm: recompute, interpolate, keep; none where there are none.
        samples: by split.
        unit: of the loss.
        length: of the line, in units of theta.
        labels: of both networks.
        end: what of the other network stands at 1, where that is not all of it; empty where it is.
        alignment: what permutations of the other network's units did before; empty where it stands as it was.
        unaligned: the line to the other network as it stood, where it was aligned.
        curve: the curve of low loss between both, where one was trained.
        curve_recipe: what it is and how its bend was trained, in words; empty where there is none.
        notes: how the loss is evaluated, a sentence each, where that is not as a mean over any samples.
        noise_repeats: realisations of a random loss, of which the errors are; 0 where they are of the samples.
        batches: by split, on how many batches the errors rest; 0 where they rest on single samples, or realisations.
        roundings: by split, how far rounding of the losses may move a barrier.

    Example:
        >>> import torch, lossmap
        >>> a, b = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
        >>> problem = lossmap.Problem.supervised(a, "mse", (torch.eye(2), torch.zeros(2, 1)))
        >>> line = lossmap.connect(problem, b, points=5)  # of a convex loss there is no barrier
        >>> line.t.size, line.barrier("train").height
        (5, 0.0)

    """

    t: np.ndarray
    losses: Mapping[str, np.ndarray]
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    barrier_errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    midpoint_errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    bn: str = "none"
    samples: Mapping[str, int] = field(default_factory=dict)
    unit: str = "1"
    length: float = nan
    labels: tuple[str, str] = ("A", "B")
    end: str = ""
    alignment: str = ""
    unaligned: Connection | None = None
    curve: Connection | None = None
    curve_recipe: str = ""
    notes: tuple[str, ...] = ()
    noise_repeats: int = 0
    batches: Mapping[str, int] = field(default_factory=dict)
    roundings: Mapping[str, float] = field(default_factory=dict)

    def barrier(self, split: str = "train") -> Barrier:
        """The barrier of one split. Raises KeyError for a split that was not measured."""
        if split not in self.losses:
            raise KeyError(f"no split {split!r} here; there are: {', '.join(self.losses)}")
        unknown = np.full(self.t.shape, nan)
        return barrier_of(
            self.t,
            self.losses[split],
            self.barrier_errors.get(split, unknown),
            self.midpoint_errors.get(split, unknown),
            self.roundings.get(split, 0.0),
        )

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        report = _report_of(self)
        return dict(report.arrays), {**report.attributes, "report": repr(self)}

    def __repr__(self) -> str:
        return connection_report(_report_of(self))


def barrier_of(
    t: np.ndarray, losses: np.ndarray, errors: np.ndarray, midpoint_errors: np.ndarray, rounding: float = 0.0
) -> Barrier:
    """The barrier of losses at ascending t; all (points,). Points without a number (failures) are left out.

    errors, midpoint_errors  standard errors at each point, of the rises above the line and above the mean of both ends
    rounding                 by which rounding may move a rise

    Raises ValueError where one of both ends is not known, or infinite: no line leads there.
    """
    if t[0] != 0.0 or t[-1] != 1.0 or not np.isfinite(losses[[0, -1]]).all():
        raise ValueError("a barrier needs the loss at both ends of the line; one of them failed or is no finite number")
    known = ~np.isnan(losses)
    middle, nearest = nan, t[np.abs(t - 0.5).argmin()]
    t, losses, errors, midpoint_errors = t[known], losses[known], errors[known], midpoint_errors[known]
    with np.errstate(invalid="ignore"):
        rises = losses - ((1.0 - t) * losses[0] + t * losses[-1])
        above = losses - (losses[0] + losses[-1]) / 2.0
    rises, above = (np.where(np.isnan(r), inf, r) for r in (rises, above))
    rises[[0, -1]] = 0.0  # both ends lie on the line, whatever rounding says
    top, over = int(rises.argmax()), int(above.argmax())
    is_barrier = bool(rises[top] > 0.0)
    if nearest in t:
        middle = float(rises[t == nearest][0])
    sign, direction = _direction(losses)
    # the lowest value so far (of what is to fall), and how far each later point lies above it
    fallen = np.minimum.accumulate(sign * losses)
    with np.errstate(invalid="ignore"):  # from infinity to infinity
        steps = sign * np.diff(losses)
        climbs = np.where(sign * losses == fallen, 0.0, sign * losses - fallen)
    end = int(climbs.argmax())
    start = int((sign * losses)[: end + 1].argmin())
    bump = float(climbs[end])
    return Barrier(
        height=float(rises[top]) if is_barrier else 0.0,
        error=hypot(float(errors[top]), rounding) if is_barrier else nan,
        at=float(t[top]) if is_barrier else nan,
        midpoint=float(above[over]),
        midpoint_error=hypot(float(midpoint_errors[over]), rounding),
        midpoint_at=float(t[over]),
        middle=middle,
        is_monotone=bool((steps <= 0.0).all()),
        direction=direction,
        turns=int((steps > 0.0).sum()),
        steps=int(steps.size),
        bump=bump,
        bump_from=float(t[start]) if bump > 0.0 else nan,
        bump_to=float(t[end]) if bump > 0.0 else nan,
        rounding=rounding,
    )


def _direction(losses: np.ndarray) -> tuple[float, str]:
    """The sign by which losses are multiplied so that they fall from the first to the last, and what they do."""
    if losses[-1] > losses[0]:
        return -1.0, "rises"
    return 1.0, "falls" if losses[-1] < losses[0] else "stays"


def connection_in(surface: Surface, lengths: Mapping[str, float], **about: Any) -> Connection:
    """The connection whose losses a surface holds, over t from 0 to 1.

    lengths  of the ways beside the line, by their names: unaligned, curve
    about    bn, samples, length, labels, alignment, curve_recipe and batches
    """
    plain = {n: v for n, v in surface.fields.items() if n.partition("_")[0] not in lengths}
    beside: dict[str, Any] = {}
    for way, length in lengths.items():
        fields = {n.removeprefix(f"{way}_"): v for n, v in surface.fields.items() if n.startswith(f"{way}_")}
        without = {"alignment": ""} if way == "unaligned" else {}
        beside[way] = _line_in(surface, fields, **{**about, "length": length, "curve_recipe": "", **without})
    return replace(_line_in(surface, plain, **about), **beside)


def _end_of(recipe: Mapping[str, Any], other: str, bn: str) -> str:
    """What stands at 1 of a line of this recipe to another network; empty where that is the network."""
    end, moving = recipe.get(ENDS_AT, MODEL), str(recipe.get("parameters", "all"))
    if end == PART:
        words = {"weights": "weights", "trainable": "trainable parameters"}.get(moving, f"parameters {moving!r}")
        return f"{other} in its {words} alone"
    # recomputed statistics are those of the weights, as they are at 0
    has_left_out = end == WEIGHTS or (end == BUT_STATISTICS and bn != "recompute")
    return f"the weights of {other}" if has_left_out else ""


def _line_in(surface: Surface, fields: Mapping[str, np.ndarray], **about: Any) -> Connection:
    splits = [name.removesuffix("_loss") for name in fields if name.endswith("_loss")]
    beside = ("_loss", "_error", "_seconds", "_rank")
    recipe = surface.groups.get("directions/x", Group({})).attributes
    return Connection(
        end=_end_of(recipe, about["labels"][1], about["bn"]),
        t=surface.grid.x,
        losses={split: fields[f"{split}_loss"] for split in splits},
        metrics={name: v for name, v in fields.items() if not name.endswith(beside)},
        barrier_errors={split: fields[f"{split}_barrier_error"] for split in splits},
        midpoint_errors={split: fields[f"{split}_midpoint_error"] for split in splits},
        unit=surface.about[f"{splits[0]}_loss"].unit,
        notes=surface.evaluation,
        noise_repeats=int(surface.settings.get("measures", {}).get("loss", {}).get("noise_repeats") or 0),
        **about,
    )


def _terms_of(c: Connection, split: str) -> dict[str, Any]:
    """Where errors do not rest on samples: on how many batches, and how many of them an interval of 95 % is wide."""
    batches = c.batches.get(split, 0)
    own: dict[str, Any] = {f"{split}_batches": batches} if batches else {}
    terms = c.noise_repeats or batches
    if terms > 1:
        from scipy.special import stdtrit  # loading it takes long, and reading a result does without

        own[f"{split}_clear"] = float(stdtrit(terms - 1.0, 0.975))  # Student's t
    return own


def _report_of(c: Connection) -> StoredReport:
    """What the report is rendered from: t and what was measured as arrays; barriers as attributes SPLIT_NAME."""
    arrays: dict[str, np.ndarray] = {"t": c.t, **c.metrics}
    attributes: dict[str, Any] = {
        "bn": c.bn, "unit": c.unit, "length": c.length, "first": c.labels[0], "other": c.labels[1],
        "report_version": REPORT_VERSION,
    }  # fmt: skip
    if c.notes:
        attributes["evaluation"] = "; ".join(c.notes)
    if c.noise_repeats:
        attributes["noise_repeats"] = c.noise_repeats
    if c.end:
        attributes["end"] = c.end
    if c.alignment:
        attributes["alignment"] = c.alignment
    if c.curve_recipe:
        attributes["curve"] = c.curve_recipe
    for way in BESIDE:
        beside = getattr(c, way)
        if beside is None:
            continue
        other = _report_of(beside)
        ends = ("first", "other", "end")
        of_all = ("t", "bn", "unit", *ends, "alignment", "evaluation", "noise_repeats", "report_version")
        arrays |= {f"{way}_{name}": v for name, v in other.arrays.items() if name not in of_all}
        attributes |= {f"{way}_{name}": v for name, v in other.attributes.items() if name not in of_all}
    for split, losses in c.losses.items():
        arrays[f"{split}_loss"] = losses
        for name, errors in (("barrier", c.barrier_errors), ("midpoint", c.midpoint_errors)):
            if split in errors:
                arrays[f"{split}_{name}_error"] = errors[split]
        attributes[f"{split}_samples"] = int(c.samples.get(split, 0))
        attributes |= _terms_of(c, split)
        if not np.isfinite(losses[[0, -1]]).all():
            continue  # there is no barrier to state
        barrier = c.barrier(split)
        attributes |= {f"{split}_{name.replace('height', 'barrier')}": v for name, v in vars(barrier).items()}
    return StoredReport(arrays, attributes)
