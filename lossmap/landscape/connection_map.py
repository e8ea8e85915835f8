"""The measure of `connect`: losses on the line between two networks, and how well barriers on it are known.

    point (t,) -> {train_loss, train_acc, train_barrier_error, train_midpoint_error, ...}     0 at the first network

With l_i(t) the loss of sample i and w_i its weight (1, but for weights of classes, and targets that are ignored), the
rise above the straight line between both ends is a ratio of sums over the samples, of paired differences:

    R = sum_i d_i / sum_i w_i      d_i = w_i (l_i(t) - (1 - t) l_i(0) - t l_i(1))
    error of R = sqrt(n / (n - 1) sum_i (d_i - R w_i)^2) / sum_i w_i      n samples (Cochran, 1977, section 6.4)

What all three losses have in common, such as a hard sample, cancels. Likewise above the mean of both ends. Where the
loss cannot be asked for single samples (`landscape.sample_losses`) i runs over batches, each with the sum of its losses
and the weight that the loss gives it, of at most a 64th of the samples where these may be cut; the errors are NaN where
there is one batch alone. Of a loss that draws at random, read in R fixed realisations, they are those of R paired
differences instead: of the realisations' rises, whose random numbers are the same at all points.

At every point the statistics of batch norm are those of the interpolated network, where they are to be recomputed: from
fixed batches, the same on every rank, also of a team whose ranks share the samples. Beside the line other ways between
both networks can be read at the same t: the line to the other one before it was aligned (unaligned_train_loss, ...) and
a curve of low loss (curve_train_loss, ...).
Price: one pass a point for each realisation, one more for statistics; two points more on each rank, for the losses at
both ends, and one pass for the weights of batches; all that for each way.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lossmap import accelerators
from lossmap.curvature.operators import Total, single_rank
from lossmap.curvature.rounding import problem_in
from lossmap.data.batches import Batch, Batches, FixedBatches, move_batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.data.random_batches import rows_of
from lossmap.data.weight_check import refuse_moving_frozen
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Point
from lossmap.io.surface import Group
from lossmap.landscape.batchnorm_statistics import norms_with_statistics, recompute_statistics
from lossmap.landscape.curves import BEND, CURVES, CurveRecipe, bend_group, length_of, place_on
from lossmap.landscape.loss import ForwardPlan, LossMap
from lossmap.landscape.sample_losses import has_weighted_sample_losses, weighted_sample_losses
from lossmap.module_walks import named_tensors
from lossmap.report.connection import BESIDE
from lossmap.sums import in_float64

RECOMPUTE, INTERPOLATE, KEEP = STATISTICS = ("recompute", "interpolate", "keep")
NONE = "none"  # what is stored where no batch norm keeps statistics
STATISTICS_BATCH = 128  # samples of a batch of which statistics are made, fixed so that they hang on nothing else
ERRORS = ("barrier", "midpoint")
Samples = dict[str, Tensor | None]
PAIRED = 3 + 3 * len(ERRORS)  # n, sums of w and w^2; of each rise, sums of d, d^2 and d w
MIN_BATCHES = 64  # by which errors are known, of data that may be cut: with fewer they are less certain than a tenth
FEW_SAMPLES = 16  # of each split, in which rounding is looked for
FEW_BATCHES = 3  # of those that are not to be cut
ROUNDING = 2.0**-52  # of a sum in float64, times its terms
AGREEMENT = 1e-3  # relative, of the samples' mean with the loss itself


def _spread(data: Batches) -> FixedBatches:
    """A few samples from all over the data, which may be sorted by class; batches where these are not to be cut."""
    number, most = (len(data.batches), FEW_BATCHES) if isinstance(data, FixedBatches) else (data.samples, FEW_SAMPLES)
    places = torch.linspace(0, number - 1, min(number, most), dtype=torch.float64).round().long()
    if isinstance(data, FixedBatches):
        return FixedBatches(tuple(data.batches[i] for i in places.tolist()))
    return FixedBatches((rows_of(data, places),))


@dataclass(frozen=True)
class Way:
    """A way from one network to the other.

    plane  a line from the one (0) to the other (1); of a curve, its plane
    curve  bezier or polygon; None: straight
    """

    plane: Plane
    curve: str | None = None

    @property
    def length(self) -> float:
        """In units of theta."""
        return self.plane.lengths[0] if self.curve is None else length_of(self.plane, self.curve)


@dataclass(frozen=True, eq=False)
class _InFloat64(Mapping[str, Tensor]):
    """Tensors by name in float64, each converted when it is read: none is held beside the model's."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return in_float64(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class ConnectionMap(LossMap):
    """The measure: `connection(point)` -> reading. Made by `connection_map`."""

    def __init__(
        self,
        problems: Mapping[str, Problem],
        plane: Plane,
        plan: ForwardPlan,
        *,
        statistics: Batches | Sequence[Batch] | None = None,
        beside: Mapping[str, Way] | None = None,
        curve: str | None = None,
        total: Total = single_rank,
        autocast: torch.dtype | None = None,
        settings: Mapping[str, Any] | None = None,
        noise_repeats: int | None = None,
    ) -> None:
        self.groups: dict[str, Group] = {}  # what a file keeps beside the plane
        self._statistics = statistics
        self._curve = curve
        self._beside: dict[str, ConnectionMap] = {}
        # by split each sample's or batch's sum of losses and weight (n, 2), or of a random loss each realisation's loss
        # (R,), at both ends and at the present point; None where they are not to be had
        self._ends: tuple[Samples, Samples] | None = None
        self._seen: Samples = {}
        self._rows: list[Tensor | None] = []  # of the batches of a pass
        self._each: Tensor | None = None  # of a pass, on the host: the numbers of each sample or batch
        self._weights: dict[str, Tensor] = {}  # by split those of its batches, where they are needed
        self._t = nan
        self._of_all = _sizes(problems, total)
        super().__init__(
            problems, plane, plan, total=total, autocast=autocast, settings=settings, noise_repeats=noise_repeats
        )
        self.fields = (*self.fields, *(f for split, p in problems.items() for f in _error_fields(split, p)))
        for name, way in (beside or {}).items():
            self._beside[name] = ConnectionMap(
                problems, way.plane, plan, statistics=statistics, curve=way.curve, total=total, autocast=autocast,
                noise_repeats=noise_repeats,
            )  # fmt: skip
            self.fields = (*self.fields, *(_field_of(name, field) for field in self._beside[name].fields))
            if way.curve is not None:
                self.groups[BEND] = bend_group(way.plane)

    def __call__(self, point: Point) -> dict[str, float]:
        """Read the losses at a point; the first time on a rank also each sample's at both ends."""
        if self._ends is None:
            ends = []
            for t in (0.0, 1.0):
                self.alone(t)
                ends.append(dict(self._seen))
            self._ends = (ends[0], ends[1])
        self._t = point[0]
        reading = self.alone(point[0])
        for name, way in self._beside.items():
            reading |= {f"{name}_{field}": value for field, value in way(point).items()}
        return reading

    def alone(self, t: float) -> dict[str, float]:
        """The reading at t without the ways beside; before the ends were read, without its errors."""
        return super().__call__(self._place(t))

    @property
    def ways(self) -> dict[str, ConnectionMap]:
        """The measures of the ways beside the line, by their names."""
        return dict(self._beside)

    @property
    def precision(self) -> str:
        """That losses are computed in."""
        own = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        return str(self.autocast or own).removeprefix("torch.")

    def of_few(self, *, in_double: bool) -> ConnectionMap:
        """The measure of this way alone over a few samples of each split, and statistics of a few; on this rank alone.

        in_double  in float64, and not in the measure's own precision
        """
        problems, statistics, plane, autocast = {}, None, self.plane, self.autocast
        dtype = torch.float64 if in_double else None
        for split, problem in self.problems.items():
            problems[split] = problem.over_part(_spread(problem.data))
        if self._statistics is not None:
            statistics = FixedBatches((move_batch(next(iter(self._statistics)), None, dtype),))
        if in_double:
            origin, *axes = (_InFloat64(named) for named in (plane.origin, *plane.axes))
            plane, autocast, model = Plane(origin, tuple(axes), plane.recipes), None, None
            for split, problem in problems.items():
                twin = problem_in(problem, torch.float64)
                model = model or twin.model  # all are over one
                problems[split] = twin.over(model)
            own = {} if model is None else named_tensors(model)
            for name in origin:  # every point brings these
                own[name].data = own[name].new_zeros(()).expand(own[name].shape)
        plan = ForwardPlan(FEW_SAMPLES)
        return ConnectionMap(problems, plane, plan, statistics=statistics, curve=self._curve, autocast=autocast)

    def seconds_of_statistics(self) -> float:
        """Seconds that the statistics of a point take, from two passes over their first batch."""
        data = self._statistics
        if data is None:
            return 0.0
        few = copy.copy(self)
        few._statistics = (next(iter(data)),)
        device = next(self.model.parameters()).device
        with temporary_parameters(self.model, {}), self._mode():
            few._arrive()
            accelerators.synchronize(device)
            began = time.perf_counter()
            few._arrive()
            accelerators.synchronize(device)
            return (time.perf_counter() - began) * number_of_batches(data)

    def _place(self, t: float) -> Point:
        """Where theta(t) lies on the plane."""
        return (t,) if self._curve is None else place_on(self._curve, t)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: v for name, v in super().__getstate__().items() if name not in ("_ends", "_seen")}
        return state | {"_rows": [], "_each": None, "_weights": {}}

    @property
    def batches(self) -> dict[str, int]:
        """By split, on how many batches of all ranks its errors rest, about; 0 where they rest on single samples."""
        numbers = {}
        for split, (problem, *_) in self._planned.items():
            samples, fixed = self._of_all[split]
            numbers[split] = fixed or -(-samples // problem.data.batch_size)
            if self.noise_repeats is not None or has_weighted_sample_losses(problem):
                numbers[split] = 0
        return numbers

    def _use(self, plan: ForwardPlan) -> None:
        super()._use(plan)
        if self.noise_repeats is None:
            for split, (problem,) in self._planned.items():
                size = size_of_batches(problem, self._of_all[split][0], plan.batch_size)
                self._planned[split] = (problem.rebatched(size),)
        self._ends, self._seen, self._weights = None, {}, {}  # of the former batches
        # copies: the measure that this one may be a copy of keeps its own
        self._beside = {name: copy.copy(way) for name, way in self._beside.items()}
        for way in self._beside.values():
            way._use(plan)

    def _arrive(self) -> None:
        if self._statistics is None:
            return
        problem = next(iter(self._planned.values()))[0]

        def forward(model: nn.Module, batch: Batch) -> None:
            with self._lowered(batch):
                problem.forward(model, batch)

        recompute_statistics(self.model, self._statistics, forward)

    def _width(self, problem: Problem) -> int:
        return super()._width(problem) + PAIRED

    def _look_at(self, problem: Problem, outputs: Any, batch: Batch) -> None:
        if self.noise_repeats is None and has_weighted_sample_losses(problem):
            self._rows.append(weighted_sample_losses(problem, outputs, batch))

    def _read(self, problem: Problem, model: nn.Module, batch: Batch, kept: list[Batch]) -> Tensor:
        sums = super()._read(problem, model, batch, kept)
        if problem.noise_seed is None and not has_weighted_sample_losses(problem):
            self._rows.append(sums[0].reshape(1, 1))
        return sums

    def _pass(self, problem: Problem) -> Tensor:
        """As of the base, and behind it sums over the paired differences and their weights."""
        self._rows, self._each = [], None
        sums = super()._pass(problem)
        if self.noise_repeats is not None:  # what is paired are the realisations, see `_reading`
            return torch.cat([sums, torch.full((PAIRED,), nan, dtype=torch.float64)])
        split = next(name for name, planned in self._planned.items() if planned[0] is problem)
        rows, self._each = self._each, None
        if rows is not None and not has_weighted_sample_losses(problem):
            rows = torch.stack([rows, self._weights_of(split, problem)], 1)
        elif rows is not None:
            rows = rows.reshape(-1, 2)
        if rows is not None and not abs(float(rows[:, 0].sum()) - float(sums[1])) <= AGREEMENT * abs(float(sums[1])):
            rows = None
        self._seen[split] = rows
        return torch.cat([sums, self._paired(split, rows)])

    def _weights_of(self, split: str, problem: Problem) -> Tensor:
        """(batches,) the weights of the batches of a split."""
        if split not in self._weights:
            weights = [float(problem.count(batch)) for batch in problem.data]
            self._weights[split] = torch.tensor(weights, dtype=torch.float64)
        return self._weights[split]

    def _fetched(self, sums: Tensor) -> Tensor:
        """As of the base, and in the same copy the numbers of the samples or batches."""
        rows, self._rows = self._rows, []
        known = [in_float64(row.reshape(-1)).to(sums.device) for row in rows if row is not None]
        if not known or len(known) < len(rows):
            return super()._fetched(sums)
        fetched = super()._fetched(torch.cat([sums, *known]))
        self._each = fetched[len(sums) :]
        return fetched[: len(sums)]

    def _paired(self, split: str, rows: Tensor | None) -> Tensor:
        """(PAIRED,) sums for the errors of the rises above the line and above the mean of both ends.

        rows  (n, 2) sums of losses and weights; NaN where they, or those at the ends, are not known
        """
        ends = (None, None) if self._ends is None else (self._ends[0][split], self._ends[1][split])
        if rows is None or ends[0] is None or ends[1] is None:
            return torch.full((PAIRED,), nan, dtype=torch.float64)
        here, a, b = rows[:, 0], ends[0][:, 0], ends[1][:, 0]
        weights = rows[:, 1]
        sums = [(weights > 0).sum().double(), weights.sum(), weights.square().sum()]
        for rise in (here - (1.0 - self._t) * a - self._t * b, here - (a + b) / 2.0):
            sums += [rise.sum(), rise.square().sum(), (rise * weights).sum()]
        return torch.stack(sums)

    def _reading(self, sums: Sequence[Tensor]) -> dict[str, float]:
        reading = super()._reading(sums)
        if self.noise_repeats is not None:
            return reading | self._errors_of_realisations(sums)
        for split, row in zip(self._planned, sums, strict=True):
            of_weights, rises = row[-PAIRED:].tolist()[:3], row[-PAIRED + 3 :].reshape(-1, 3)
            for name, of_rise in zip(ERRORS, rises.tolist(), strict=True):
                reading[f"{split}_{name}_error"] = _error_of_ratio(*of_weights, *of_rise)
        return reading

    def _errors_of_realisations(self, sums: Sequence[Tensor]) -> dict[str, float]:
        """The standard errors of both rises over the realisations of a random loss."""
        errors: dict[str, float] = {}
        parts = iter(sums)
        for split, realized in self._planned.items():
            rows = torch.stack([next(parts) for _ in realized])
            self._seen[split] = losses = rows[:, 1] / rows[:, 0]  # (R,)
            if self._ends is None:
                errors |= {f"{split}_{name}_error": nan for name in ERRORS}
                continue
            a, b = (end[split] for end in self._ends)
            if a is None or b is None:  # pragma: no cover
                continue
            rises = (losses - (1.0 - self._t) * a - self._t * b, losses - (a + b) / 2.0)
            for name, rise in zip(ERRORS, rises, strict=True):
                errors[f"{split}_{name}_error"] = float(rise.std()) / sqrt(len(rise))
        return errors


def size_of_batches(problem: Problem, samples: int, size: int) -> int:
    """Samples in a batch, `size` or fewer, so that there are enough for errors where these rest on batches."""
    if problem.noise_seed is not None or has_weighted_sample_losses(problem):
        return size
    return min(size, max(1, samples // MIN_BATCHES))


def plan_for_errors(problems: Mapping[str, Problem], plan: ForwardPlan) -> ForwardPlan:
    """The plan in batches as small as some split's errors need them, by which passes are timed."""
    sizes = [size_of_batches(p, p.data.samples, plan.batch_size) for p in problems.values()]
    return replace(plan, batch_size=min(sizes))


def _sizes(problems: Mapping[str, Problem], total: Total) -> dict[str, tuple[int, int]]:
    """By split, over all ranks: how many samples there are, and how many batches that cannot be cut."""
    own = [(p.data.samples, len(p.data.batches) if isinstance(p.data, FixedBatches) else 0) for p in problems.values()]
    summed = total(torch.tensor(own, dtype=torch.float64)).tolist()
    return {split: (int(n), int(fixed)) for split, (n, fixed) in zip(problems, summed, strict=True)}


def _error_of_ratio(n: float, w: float, ww: float, d: float, dd: float, dw: float) -> float:
    """The standard error of sum d / sum w, from the number of pairs and the sums of w, w^2, d, d^2 and d w."""
    if not n > 1:
        return nan
    ratio = d / w
    squares = dd - 2.0 * ratio * dw + ratio * ratio * ww
    if squares <= ROUNDING * n * dd:  # all pairs have one ratio, as of a loss in which no sample has a part
        return 0.0
    return sqrt(squares * n / (n - 1)) / w


def _error_fields(split: str, problem: Problem) -> Iterator[Field]:
    samples = "training" if split == "train" else split
    above = {"barrier": "the line between both ends", "midpoint": "the mean of both ends"}
    for name in ERRORS:
        long_name = f"standard error of the rise of the {samples} loss above {above[name]}"
        yield Field(f"{split}_{name}_error", problem.unit, long_name)


def _field_of(way: str, field: Field) -> Field:
    """The same field on a way beside the line."""
    return replace(field, name=f"{way}_{field.name}", long_name=f"{field.long_name}, {BESIDE[way]}")


def statistics_of(model: nn.Module, bn: str) -> str:
    """What is done with the statistics of batch norm: `bn`, or none where no batch norm keeps any.

    Raises ValueError for what is none of `STATISTICS`.
    """
    if bn not in STATISTICS:
        raise ValueError(f"--bn must be one of {', '.join(STATISTICS)}; got {bn!r}")
    return bn if norms_with_statistics(model) else NONE


def curve_recipe(curve: str, steps: int, rate: float, seed: int, done: str) -> CurveRecipe | None:
    """How the bend of a curve is trained; None for no curve.

    done  with the statistics of batch norm, as of `statistics_of`

    Raises ValueError for an unknown curve, values out of range, and statistics that would be interpolated.
    """
    if curve not in CURVES:
        raise ValueError(f"--curve must be one of {', '.join(CURVES)}; got {curve!r}")
    if curve == NONE:
        return None
    if done == INTERPOLATE:
        raise ValueError(
            "on a curve there is nothing between which statistics of batch norm could be interpolated: --bn recompute, "
            "or keep"
        )
    return CurveRecipe(curve, steps, rate, seed=seed)


def fixed_batches(data: Batches, samples: int | None = None) -> Batches | tuple[Batch, ...]:
    """The batches of which statistics are made: of the first samples of the data, or of all, in their order."""
    if samples is None or samples >= data.samples:
        return data.rebatched(statistics_batch(data.samples))
    count = -(-samples // STATISTICS_BATCH)  # batches of one size, together as many samples, or up to `count` fewer
    return tuple(islice(data.rebatched(samples // count), count))


def number_of_batches(data: Batches | Sequence[Batch]) -> int:
    """As of `fixed_batches`."""
    if isinstance(data, FixedBatches):
        return len(data.batches)
    return len(data) if isinstance(data, Sequence) else -(-data.samples // data.batch_size)


def statistics_batch(samples: int) -> int:
    """Samples of a batch: as many as may be, such that the last batch is no less than half of one.

    All count alike in the average, so that one of few samples would outweigh those; of one sample alone there is no
    variance, and a batch norm of vectors refuses it.
    """
    if samples <= STATISTICS_BATCH:
        return STATISTICS_BATCH
    sizes = range(STATISTICS_BATCH, STATISTICS_BATCH // 2, -1)
    return next((size for size in sizes if not 0 < 2 * (samples % size) < size), STATISTICS_BATCH)


def connection_map(
    problems: Mapping[str, Problem],
    plane: Plane,
    plan: ForwardPlan,
    *,
    statistics: Any = None,
    beside: Mapping[str, Way] | None = None,
    total: Total = single_rank,
    autocast: torch.dtype | None = None,
    settings: Mapping[str, Any] | None = None,
    noise_repeats: int | None = None,
) -> ConnectionMap:
    """The measure on a line, its losses checked. Arguments as of `losses`.

    statistics  the batches of which the statistics of batch norm are made at every point; None: they are the plane's
    beside      other ways between both networks, read too, by their names: unaligned, curve

    Raises ValueError where a loss cannot be evaluated repeatably.
    """
    checked = {split: check_loss(p, total=total) for split, p in problems.items()}
    for way in (plane, *(each.plane for each in (beside or {}).values())):
        for problem in checked.values():
            refuse_moving_frozen(problem, way.axes)
    return ConnectionMap(
        checked, plane, plan, statistics=statistics, beside=beside, total=total, autocast=autocast,
        settings=settings, noise_repeats=noise_repeats,
    )  # fmt: skip
