"""Fewer samples: losses from a random part of the samples, the same at every point, as large as the picture needs.

    L(p) = L(m) + mean over i in S of (l_i(p) - l_i(m))          m the middle: the point nearest the network
    error(p) = s_p / sqrt(|S|) * sqrt(1 - |S| / N) * w           s_p the standard deviation of these differences
    w = max over c of s_N(c) / s_S(c), or 1 up to 1.1            c the middle and the corners; s_N and s_S the standard
                                                                 deviation of the losses there, over all and over S

The loss of the middle is read over all N samples, once; what all points have in common, such as a hard sample, cancels
in the paired differences (a difference estimator, drawn without replacement: Cochran, Sampling Techniques, 1977,
sections 2.6 and 7.9). So the error is that of the loss, and of what a picture shows of it: the middle has none.

A few samples that outweigh all others are mostly not among those read, and then nothing in the differences tells of
them. But middle and corners do, whose losses are read over all samples: where these spread more than those read (w),
the errors of the loss are larger by as much. Samples that outweigh others elsewhere alone are not found by that.

S is the beginning of one order of the samples, made from a seed: it grows in rounds, each of which reads it at all
points anew, until the largest error is small enough of the range of the losses. Its next size follows from the
values of a round alone, so that the same samples are read for any number of ranks, in teams of any size, and after any
kill.

Price: the rounds together, and middle and corners once more in each round on each rank.
Letters: N samples, |S| of them read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.operators import Total, single_rank
from lossmap.data.batches import Batch, Batches, FixedBatches, shared_range
from lossmap.data.problem import Problem
from lossmap.data.random_batches import part_of
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Point
from lossmap.io.sampled import READ, SPREAD, checked_loss_error
from lossmap.landscape.loss_map import ForwardPlan, LossMap, counted
from lossmap.landscape.sample_losses import has_sample_losses, sample_correct, sample_losses
from lossmap.seeding import generator

AGREEMENT = 1e-3  # of the samples' sum with the loss itself, relative to the sum of their sizes
CHANCE = 1.1  # of two spreads, up to which a part of the samples differs from all, as five hundred without outliers do
LOSS_SUMS = 2  # sum of the losses, and of their squares


@dataclass(frozen=True)
class Step:
    """What is read next.

    points  flat indices
    reads   by split, how many samples at each; empty: all, at middle and corners
    middle  its coordinates
    base    by split, the means over all samples at the middle: loss, then metrics
    whole   the coordinates of middle and corners, and by split the standard deviation there over all samples
    """

    points: tuple[int, ...]
    reads: Mapping[str, int]
    middle: Point
    base: Mapping[str, tuple[float, ...]]
    whole: tuple[tuple[Point, Mapping[str, float]], ...] = ()


class SampledLossMap(LossMap):
    """The measure: as `LossMap`, from as many samples as its step says; from all without one.

    tolerance  relative to the range of the losses
    seed       of the order of the samples
    share      (this rank's place in its team, the team's size), where the problems hold its share of the samples
    """

    def __init__(
        self,
        problems: Mapping[str, Problem],
        plane: Plane,
        plan: ForwardPlan,
        *,
        tolerance: float,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        total: Total = single_rank,
        autocast: torch.dtype | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for problem in problems.values():
            _refuse_unfit(problem)
        self.tolerance = checked_loss_error(tolerance)
        self.seed, self._share = seed, share
        own = torch.tensor([float(p.data.samples) for p in problems.values()], dtype=torch.float64)
        self.samples = dict(zip(problems, (int(n) for n in total(own).tolist()), strict=True))
        self._step: Step | None = None
        # at the middle, of the samples read: by split each one's losses and metrics, (|S|, 1 + metrics), NaN where a
        # metric cannot be asked for single samples; and the sums of both
        self._middle: dict[str, tuple[Tensor, Tensor]] | None = None
        self._wider: dict[str, float] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows: list[Tensor] = []
        settings = {**(settings or {}), "order of samples": seed}
        super().__init__(problems, plane, plan, total=total, autocast=autocast, settings=settings)
        self.fields = tuple(f for split, p in problems.items() for f in _fields_of(split, p))

    def with_step(self, step: Step) -> SampledLossMap:
        """The measure that reads so many samples."""
        other = copy.copy(self)
        other._step = step if step.reads else None
        other._use(self.plan)
        return other

    def _use(self, plan: ForwardPlan) -> None:
        whole = self._problems
        if self._step is not None:
            self._problems = {s: (p[0].with_data(self._part(s, p[0], self._step.reads[s])),) for s, p in whole.items()}
        try:
            super()._use(plan)
        finally:
            self._problems = whole
        self._middle, self._seen, self._wider = None, {}, {}

    def _part(self, split: str, problem: Problem, count: int) -> Batches:
        """Of so many samples that are read the share of this rank, in their own order."""
        start, stop = shared_range(self.samples[split], *self._share)
        rows = np.sort(sample_order(self.samples[split], split, self.seed)[:count])
        return part_of(problem.data, rows[(rows >= start) & (rows < stop)] - start)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_middle": None, "_seen": {}, "_wider": {}, "_rows": []}

    def __call__(self, point: Point) -> dict[str, float]:
        """Read the losses at a point; the first time on a rank also those of middle and corners."""
        if self._step is not None and self._middle is None:
            super().__call__(self._step.middle)
            self._middle = dict(self._seen)
            self._wider = self._widths(self._step)
        return super().__call__(point)

    def _widths(self, step: Step) -> dict[str, float]:
        """By split, w: by how much more all losses spread than those read, where all are known; 1 at least."""
        readings = [(super(SampledLossMap, self).__call__(place), spread) for place, spread in step.whole]
        return {
            split: max((width_of(spread[split], read[f"{split}_{SPREAD}"]) for read, spread in readings), default=1.0)
            for split in self.samples
        }

    def remark(self, point: Point, reading: Mapping[str, Any]) -> str | None:
        """Nothing is remarked: the losses are no sums that could underflow."""
        return None

    def _width(self, problem: Problem) -> int:
        return super()._width(problem) + 3 * (1 + len(problem.metrics)) + LOSS_SUMS

    def _look_at(self, problem: Problem, outputs: Any, batch: Batch) -> None:
        losses = sample_losses(problem, outputs, batch)
        if losses is None:
            raise ValueError(NO_SAMPLES)
        columns = [losses.cpu()]
        for metric in problem.metrics.values():
            each = sample_correct(metric, outputs, batch)
            columns.append(torch.full_like(columns[0], nan) if each is None else each.cpu())
        self._rows.append(torch.stack(columns, 1))

    def _pass(self, problem: Problem) -> Tensor:
        """As of the base; behind it the differences from the middle: sums of the means' kind, sums by sample, and sums
        of squares; and behind these sum and sum of squares of the losses.
        """
        self._rows = []
        if problem.data.samples == 0:  # of a team, whose other ranks hold all that is read
            return torch.zeros(self._width(problem), dtype=torch.float64)
        sums = super()._pass(problem)
        rows = torch.cat(self._rows)
        apart = abs(float(rows[:, 0].sum()) - float(sums[1]))
        if isfinite(float(sums[1])) and apart > AGREEMENT * float(rows[:, 0].abs().sum()):
            raise ValueError(
                "the losses of single samples do not add up to the loss of their batch: leave --loss-error out"
            )
        split = next(name for name, planned in self._planned.items() if planned[0] is problem)
        totals = sums[1 : 2 + len(problem.metrics)]
        self._seen[split] = (rows, totals)
        rows_there, totals_there = (rows, totals) if self._middle is None else self._middle[split]
        differences = rows - rows_there
        # a metric's mean is known where its samples are not
        own = torch.stack([rows[:, 0].sum(), rows[:, 0].square().sum()])
        return torch.cat([sums, totals - totals_there, differences.sum(0), differences.square().sum(0), own])

    def _reading(self, sums: Sequence[Tensor]) -> dict[str, float]:
        reading: dict[str, float] = {}
        for (split, planned), row in zip(self._planned.items(), sums, strict=True):
            names = ("loss", *planned[0].metrics)
            count, every, width = float(row[0]), self.samples[split], len(names)
            counts = _counts(planned[0], row)
            means = (row[1 : 1 + width] / counts).tolist()
            errors = [0.0] * width
            *differences, of_losses = torch.split(row[-3 * width - LOSS_SUMS :], [width, width, width, LOSS_SUMS])
            if self._step is not None and count < every:
                totals, sums_by_sample, squares = differences
                means = [b + d for b, d in zip(self._step.base[split], (totals / counts).tolist(), strict=True)]
                errors = [
                    standard_error(n, every * n / count, t, q)
                    for n, t, q in zip(counts.tolist(), sums_by_sample.tolist(), squares.tolist(), strict=True)
                ]
                errors[0] = errors[0] * self._wider.get(split, 1.0) if errors[0] else 0.0
            for name, mean, error in zip(names, means, errors, strict=True):
                reading |= {f"{split}_{name}": mean, f"{split}_{name}_error": error}
            reading[f"{split}_{SPREAD}"] = standard_deviation(count, *of_losses.tolist())
            reading[f"{split}_{READ}"] = count
        return reading


def _counts(problem: Problem, row: Tensor) -> Tensor:
    """Over how many samples each mean is, (1 + metrics,): not over all, of a metric that counts its own."""
    names = list(problem.metrics)
    counts = row[:1].repeat(1 + len(names))
    for at, name in enumerate(counted(problem), start=2 + len(names)):
        counts[1 + names.index(name)] = row[at]
    return counts


NO_SAMPLES = (
    "--loss-error needs the loss of each sample: crossentropy, mse, and PyTorch's modules with reduction mean, without "
    "class weights or ignored targets, have one; this loss gives one number for a batch. Leave --loss-error out, or "
    "take fewer samples (--samples)"
)


def _refuse_unfit(problem: Problem) -> None:
    """Raises ValueError for a loss that is no mean over samples that may be chosen one by one."""
    if problem.noise_seed is not None:
        raise ValueError(
            "--loss-error is for losses that draw nothing at random, whose samples can be read in any batch; this one "
            "draws: its error is shown by --noise-repeats"
        )
    if isinstance(problem.data, FixedBatches):
        raise ValueError(
            "--loss-error chooses samples one by one, and these batches are kept as given, uncut (the loss couples the "
            "samples of a batch, or they cannot be cut): leave it out"
        )
    if not has_sample_losses(problem):
        raise ValueError(NO_SAMPLES)
    for name, metric in problem.metrics.items():
        if metric.whole is not None:
            raise ValueError(
                f"--loss-error estimates means over samples, and the metric {name} is none: leave one of them out"
            )


def _fields_of(split: str, problem: Problem) -> list[Field]:
    """The fields of one split: each mean with its standard error, and how many samples were read."""
    of = f"{'training' if split == 'train' else split} samples"
    fields = []
    named = [("loss", problem.unit, "mean loss")] + [(n, m.unit, m.long_name) for n, m in problem.metrics.items()]
    for name, unit, long_name in named:
        mean = f"{long_name} over the {of}"
        fields.append(Field(f"{split}_{name}", unit, mean))
        fields.append(Field(f"{split}_{name}_error", unit, f"standard error of the {mean}, by those that were read"))
    spread = Field(f"{split}_{SPREAD}", problem.unit, f"standard deviation of the loss over the {of} that were read")
    return [*fields, spread, Field(f"{split}_{READ}", "1", f"{of} that were read")]


def standard_deviation(count: float, total: float, squares: float) -> float:
    """Of `count` numbers, from their sum and sum of squares; 0 of a single one."""
    variance = (squares - total * total / count) / max(count - 1, 1)
    return sqrt(max(variance, 0.0)) if variance == variance else nan


def width_of(spread: float, spread_read: float) -> float:
    """How much wider all losses spread than those read; 1 where that is chance, infinite where those read are alike."""
    if not spread > CHANCE * spread_read:
        return 1.0
    return spread / spread_read if spread_read > 0 else inf


def standard_error(count: float, every: float, total: float, squares: float) -> float:
    """Of the mean of `count` numbers drawn from `every` without replacement, from their sum and sum of squares."""
    if not count > 1:
        return nan
    variance = (squares - total * total / count) / (count - 1)
    return sqrt(max(variance, 0.0) / count * (1 - count / every)) if variance == variance else nan


def sample_order(samples: int, split: str, seed: int) -> np.ndarray:
    """(samples,) the order in which samples are read, from the seed."""
    order: np.ndarray = torch.randperm(samples, generator=generator("order of samples", split, seed)).numpy()
    return order


__all__ = ["SampledLossMap", "Step"]
