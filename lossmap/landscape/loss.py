"""The measure of losses made, and the fastest way through the data chosen: `losses`; the measure itself is `LossMap`.

A short probe times passes over some of the data at the origin: memory format, batch norm folded or not, batch size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap import accelerators, memory
from lossmap.curvature.moved_loss import refuse_unmoved
from lossmap.curvature.operators import Total, made_by_all, single_rank
from lossmap.data.batches import FixedBatches, Resident
from lossmap.data.criteria import NoWeight
from lossmap.data.loss_check import check_loss
from lossmap.data.moved_weights import stored_origin
from lossmap.data.problem import Problem
from lossmap.data.weight_check import refuse_moving_frozen
from lossmap.device_errors import loses_gpu, out_of_memory
from lossmap.geometry.directions import Plane
from lossmap.keywords import checked_keywords
from lossmap.landscape.fold_batchnorm import fold_batchnorm_modules
from lossmap.landscape.loss_map import ForwardPlan, LossMap
from lossmap.landscape.loss_sampling import SampledLossMap

logger = logging.getLogger("lossmap")

GAIN = 0.97  # a plan is taken where it needs less than this part of the time of the best so far


@checked_keywords
def losses(
    problem: Problem | Mapping[str, Problem],
    plane: Plane,
    *,
    plan: ForwardPlan | Mapping[str, Any] | None = None,
    way: Mapping[str, Any] | None = None,
    total: Total = single_rank,
    autocast: torch.dtype | None = None,
    settings: Mapping[str, Any] | None = None,
    noise_repeats: int | None = None,
    loss_error: float | None = None,
    sample_seed: int = 0,
    share: tuple[int, int] = (0, 1),
) -> LossMap:
    """The measure of losses and accuracies at points of a plane: `measure(point)` -> {train_loss: nats, train_acc:
    percent}.

    Args:
        problem: one problem (named `train`), or one for each split, {"train": ..., "test": ...}, over the same model.
        plane: origin and axes; a point is a tuple of its coordinates.
        plan: how to pass over the data (batch size, memory format, folding), as a value or as a file holds it; without
            it a probe of a second or two chooses the fastest.
        way: the name of `plan` in version 0.1.
        total: adds a float64 tensor over the ranks of a team, each holding its share of the data.
        autocast: a lower precision for the layers that bear it, such as torch.bfloat16.
        settings: to be stored with the readings.
        noise_repeats: of a loss that draws at random the number R >= 2 of fixed realisations at each point: the mean
            and, as train_loss_error, its standard error; without it one realisation.
        loss_error: fewer samples: a survey reads a random part of them, the same at every point, and grows it until the
            largest standard error of the differences from the point nearest the network, which is read over all
            samples, is at most this share of the range of the losses (of their logarithm, where they span a factor of
            20). The errors are train_loss_error and so on.
        sample_seed: of the order in which samples are taken for that.
        share: of a team whose problems hold a share of the samples each: this rank's place in it, and its size.

    Returns:
        A `LossMap`, to be given to `survey`; it can be pickled where the problem can.

    Raises:
        ValueError: where the problems are not over one model, where a loss cannot be evaluated repeatably, and with
            `noise_repeats` for a loss that draws nothing.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = lossmap.Problem.supervised(model, "mse", (torch.eye(2), torch.zeros(2, 1)))
        >>> line = lossmap.Plane({"weight": torch.zeros(1, 2)}, ({"weight": torch.ones(1, 2)},), ({"kind": "own"},))
        >>> lossmap.losses(problem, line)((2.0,))
        {'train_loss': 4.0}

    """
    problems = {"train": problem} if isinstance(problem, Problem) else dict(problem)
    with stored_origin(next(iter(problems.values())).model, plane.origin):
        problems = {split: check_loss(p, total=total) for split, p in problems.items()}
    for each in problems.values():
        refuse_moving_frozen(each, plane.axes)
    if len({id(p.model) for p in problems.values()}) != 1:
        raise ValueError("the problems of a survey must share one model; got several")
    has_whole = any(m.whole for p in problems.values() for m in p.metrics.values())
    if loss_error is not None and noise_repeats is not None:
        raise ValueError("--loss-error reads fewer samples, --noise-repeats each several times: leave one of them out")
    ranks, of_all = total(torch.tensor([1.0, float(has_whole)], dtype=torch.float64)).tolist()
    if ranks > 1 and of_all:
        raise ValueError("a metric that is no mean over samples cannot be shared by a team of ranks: --team 1")
    first = next(iter(problems.values()))
    if plan is None:
        plan = way
    former = ForwardPlan(**plan) if isinstance(plan, Mapping) else plan
    if getattr(plane.origin, "read_again", False):  # no layer has weights in another format beside its own
        former = ForwardPlan(first.data.batch_size if former is None else former.batch_size)

    def chosen() -> ForwardPlan:
        refuse_unmoved(first)
        return former or probe_forward_plan(first, plane, autocast=autocast, beside=list(problems.values())[1:])

    plan = made_by_all(total, next(iter(first.model.parameters())).device, chosen, "probe of the forward pass")
    if loss_error is not None:
        return SampledLossMap(
            problems, plane, plan, tolerance=loss_error, seed=sample_seed, share=share, total=total, autocast=autocast,
            settings=settings,
        )  # fmt: skip
    return LossMap(
        problems, plane, plan, total=total, autocast=autocast, settings=settings, noise_repeats=noise_repeats
    )


def plain_forward(problem: Problem) -> ForwardPlan:
    """The plan without any probe: the data's own batches, nothing folded."""
    return ForwardPlan(problem.data.batch_size)


def probe_forward_plan(
    problem: Problem,
    plane: Plane,
    *,
    autocast: torch.dtype | None = None,
    seconds: float = 2.0,
    batch_size: int | None = None,
    beside: Sequence[Problem] = (),
) -> ForwardPlan:
    """The fastest plan among those that can be tried in about this time: first the form, then the batch size.

    problem     whose data are passed over; a pass may be over a part of them
    plane       the losses are read at its origin
    autocast    a lower precision, as in `losses`
    seconds     after which no further batch size is tried
    batch_size  where it is given, only memory format and folding are chosen
    beside      the other splits, which are read by the same plan: their images are copied to its memory format, too

    A plan with folding is taken only if its loss agrees with the plain one to 1e-4 at the origin.
    """
    deadline = time.perf_counter() + seconds
    problem = check_loss(problem)
    if isinstance(problem.data, FixedBatches):
        batch_size = problem.data.batch_size
    trial = _Trial(problem, plane, autocast)
    best = ForwardPlan(min(batch_size or 64, problem.data.samples))
    fastest = trial.seconds_that_fit(best)
    while fastest is None and best.batch_size > 1 and not isinstance(problem.data, FixedBatches):
        best = replace(best, batch_size=best.batch_size // 2)
        fastest = trial.seconds_that_fit(best)
    if fastest is None:
        fastest = trial.seconds(best)  # raises what it is
    for form in _forms(problem, trial, best, [problem, *beside]):
        taken = trial.seconds_that_fit(form)
        if taken is not None and taken < GAIN * fastest:
            best, fastest = form, taken
    if trial.full_at is not None:
        best, fastest = _with_room(trial, best, fastest, best.batch_size)
    elif batch_size is None:
        best, fastest = _with_best_batch_size(trial, best, fastest, deadline)
    logger.info("the probe chose %s, %.3g s a pass", best, fastest * problem.data.samples)
    return best


def seconds_of_pass(problem: Problem, plane: Plane, plan: ForwardPlan, autocast: torch.dtype | None = None) -> float:
    """Seconds of a pass over all samples at the plane's origin, from a few over about one batch.

    Raises what the model or the loss raises.
    """
    return _Trial(problem, plane, autocast).seconds(plan) * problem.data.samples


def _forms(problem: Problem, trial: _Trial, plain: ForwardPlan, splits: Sequence[Problem]) -> list[ForwardPlan]:
    """The other memory format, folding, and both: those that apply to this problem."""
    images = any(
        isinstance(t, Tensor) and t.dim() == 4 and t.is_floating_point()
        for t in pytree.tree_leaves(next(iter(problem.data.rebatched(1))))
    )
    last, folded = replace(plain, channels_last=True), replace(plain, fold=True)
    foldable = problem.separable and fold_batchnorm_modules(problem.model) is not None and trial.agrees(folded, plain)
    forms = []
    images = images and _has_room_for_copy(splits)
    if images:
        forms.append(last)
    if foldable:
        forms.append(folded)
    if foldable and images:
        forms.append(replace(last, fold=True))
    return forms


def _has_room_for_copy(splits: Sequence[Problem]) -> bool:
    """Whether a second copy of the images of all splits, in another memory format, is within the memory for samples.

    The data stay beside it, for measures that need them as they are. What is streamed is never there as a whole.
    """
    leaves = [pytree.tree_leaves(p.data.tensors) for p in splits if isinstance(p.data, Resident)]
    images = [t for of_split in leaves for t in of_split if isinstance(t, Tensor) and t.dim() == 4]
    copied = [t for t in images if not t.is_contiguous(memory_format=torch.channels_last)]
    size = sum(t.nbytes for t in copied)
    if not copied or size <= memory.sample_budget(copied[0].device):
        return True
    logger.info("the images stay in their memory format: a copy of %d MiB is too large", size // memory.MIB)
    return False


def _with_best_batch_size(
    trial: _Trial, best: ForwardPlan, fastest: float, deadline: float
) -> tuple[ForwardPlan, float]:
    """Larger batches, then smaller ones, each until two in a row are slower or memory or time runs out."""
    first, samples = best.batch_size, trial.problem.data.samples
    sizes = {samples} | {2**i for i in range(3, 14) if 2**i < samples}
    for ladder in (sorted(s for s in sizes if s > first), sorted((s for s in sizes if s < first), reverse=True)):
        slower, fitting = 0, first
        for size in ladder:
            if time.perf_counter() > deadline or slower == 2:
                break
            taken = trial.seconds_that_fit(replace(best, batch_size=size), "runs")
            if taken is None and trial.full_at == size:
                return _with_room(trial, best, fastest, fitting)
            if taken is None:
                break
            fitting = size
            slower = 0 if taken < fastest else slower + 1
            if taken < GAIN * fastest:
                best, fastest = replace(best, batch_size=size), taken
    return best, fastest


def _with_room(trial: _Trial, best: ForwardPlan, fastest: float, fitting: int) -> tuple[ForwardPlan, float]:
    """The plan with at most half of the largest batch that fitted, where memory ran out with a larger one.

    That one may have left no room at all, and others allocate beside it.
    """
    size = max(1, fitting // 2)
    if best.batch_size <= size or isinstance(trial.problem.data, FixedBatches):
        return best, fastest
    roomy = replace(best, batch_size=size)
    return roomy, trial.seconds(roomy)


class _Trial:
    """Times a pass over some of the data by a given plan, at the plane's origin."""

    def __init__(self, problem: Problem, plane: Plane, autocast: torch.dtype | None) -> None:
        self.problem, self.plane, self.autocast = problem, plane, autocast
        self.origin = (0.0,) * len(plane.axes)
        self.full_at: int | None = None  # samples of the batch with which memory ran out
        self.takes_all = False

    def measure(self, plan: ForwardPlan) -> LossMap:
        """The losses over about one batch of the data, or over all where no sample of that one counts."""
        data = self.problem.data
        if not self.takes_all and plan.batch_size < data.samples:
            data = data.share(0, max(1, data.samples // plan.batch_size))
        # a metric of all samples at once may fail on a part of them
        metrics = {name: m for name, m in self.problem.metrics.items() if m.whole is None}
        few = replace(self.problem, data=data, metrics=metrics)
        return LossMap({"train": few}, self.plane, plan, autocast=self.autocast)

    def seconds(self, plan: ForwardPlan) -> float:
        """Per sample: the smallest of three passes after one to warm up; of one where it takes half a second."""
        try:
            return self._seconds(plan)
        except NoWeight:
            if self.takes_all:
                raise
            self.takes_all = True
            return self._seconds(plan)

    def _seconds(self, plan: ForwardPlan) -> float:
        measure = self.measure(plan)
        samples = sum(p[0].data.samples for p in measure._planned.values())
        smallest = float("inf")
        for i in range(4):
            start = time.perf_counter()
            measure(self.origin)
            taken = time.perf_counter() - start
            if i or taken > 0.5:
                smallest = min(smallest, taken)
            if taken > 0.5:
                break
        return smallest / samples

    def seconds_that_fit(self, plan: ForwardPlan, needed: str = "fits") -> float | None:
        """As `seconds`; None where memory does not suffice, and with `runs` also where a pass fails otherwise."""
        try:
            return self.seconds(plan)
        except (MemoryError, RuntimeError) as error:
            is_full = out_of_memory(error)
            if loses_gpu(error) or not (is_full or needed == "runs"):
                raise
            logger.info("batches of %d samples do not fit: %s", plan.batch_size, error)
        if is_full:
            self.full_at = plan.batch_size
            accelerators.release_cache()  # outside of the handler, whose error holds what was computed
        return None

    def agrees(self, plan: ForwardPlan, other: ForwardPlan) -> bool:
        """Whether two plans give the same loss to 1e-4, or both NaN; not where the first one fails.

        A model that torch.fx has traced may fail: it takes arguments as given that have defaults (`labels=None`).
        """
        theirs = self.measure(other)(self.origin)["train_loss"]
        try:
            ours = self.measure(plan)(self.origin)["train_loss"]
        except Exception as error:  # user code may raise any exception
            if loses_gpu(error) or out_of_memory(error):
                raise
            return False
        return abs(ours - theirs) <= 1e-4 * max(abs(theirs), 1e-3) or (isnan(ours) and isnan(theirs))


__all__ = ["ForwardPlan", "LossMap", "losses", "plain_forward", "probe_forward_plan", "seconds_of_pass"]
