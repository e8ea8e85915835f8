"""Losses: the mean loss, and the accuracy, over all samples at points of a plane.

    point (k,) -> {train_loss: nats, train_acc: percent, ...}      evaluation mode, divided by samples

A point costs one forward pass over the data and a copy of the parameters. What is fastest differs by machine and
model by more than twofold (batch size, memory format, batch norm folded or not), so a short probe chooses it, and
the choice is part of the measure's settings: the same choice gives the same bits. NaN and inf are results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch, Resident, Streamed
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Point
from lossmap.landscape.fold_batchnorm import FoldedLayer, fold_batchnorm

logger = logging.getLogger("lossmap")


def alone(tensor: Tensor) -> Tensor:
    """The total over a team of one."""
    return tensor


@dataclass(frozen=True)
class ForwardPlan:
    """How a pass over the data is made: what the probe chooses, and the file records.

    batch_size     samples per pass
    channels_last  4-d tensors in channels-last memory format
    fold           batch norm folded into the layer before it
    """

    batch_size: int
    channels_last: bool = False
    fold: bool = False


class LossMap:
    """The measure: `losses(point)` -> reading. Made by `losses(...)`.

    Raises ValueError where the model or the loss do not fit the data; what a model's forward raises is passed on.
    """

    name = "loss"

    def __init__(
        self,
        problems: Mapping[str, Problem],
        plane: Plane,
        way: ForwardPlan,
        *,
        total: Callable[[Tensor], Tensor] = alone,
        autocast: torch.dtype | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.plane = plane
        self.total = total
        self.autocast = autocast
        self._told = dict(settings or {})
        self._problems = dict(problems)
        self.model = next(iter(problems.values())).model
        self.fields = tuple(f for split, p in problems.items() for f in _fields(split, p))
        self._gradients = not all(p.separable for p in problems.values())
        self._set(way)

    def _set(self, way: ForwardPlan) -> None:
        self.way = way
        self._format = torch.channels_last if way.channels_last else torch.contiguous_format
        self._ready = {s: p.with_data(_formatted(p.data, way)) for s, p in self._problems.items()}
        self._graph: nn.Module | None = None
        self._layers: list[FoldedLayer] = []
        made = fold_batchnorm(self.model) if way.fold else None
        if made is not None:
            self._graph, self._layers = made

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told, and the way that the probe chose."""
        return {**self._told, "chosen": {"way": asdict(self.way)}}

    def smaller(self) -> str | None:
        """Halve the batch, after memory ran out; what was done, or None where a batch is one sample already."""
        now = min(self.way.batch_size, max(p.data.samples for p in self._problems.values()))
        if now <= 1:
            return None
        self._ready = {}  # before room is taken for the same data in another cut
        torch.cuda.empty_cache()  # what its allocator holds for batches of the former size; without CUDA nothing
        self._set(replace(self.way, batch_size=now // 2))
        return f"batches of {self.way.batch_size} samples from here on"

    def __call__(self, point: Point) -> dict[str, float]:
        """Read the losses at a point. Every rank of a team calls with the same point and gets the same reading."""
        tensors = self.plane.at(point)
        if self.way.channels_last:
            tensors = {k: t.contiguous(memory_format=self._format) if t.dim() == 4 else t for k, t in tensors.items()}
        error: BaseException | None = None
        sums: list[Tensor] = []
        with temporary_parameters(self.model, tensors), self._mode():
            for layer in self._layers:
                layer.refresh(self._format)
            for problem in self._ready.values():
                try:
                    sums.append(self._pass(problem))
                except Exception as raised:  # asked of the team's total below, so that all its ranks raise as one
                    error = raised
                    sums.append(torch.zeros(2 + len(problem.metrics), dtype=torch.float64))
        flag = torch.tensor([float(error is not None)], dtype=torch.float64)
        sizes = [*(s.numel() for s in sums), 1]
        sums = list(torch.split(self.total(torch.cat([*sums, flag])), sizes))
        if error is not None:
            raise error
        if sums[-1] > 0:
            raise RuntimeError("another rank of this point's team failed; its report names the reason")
        reading: dict[str, float] = {}
        for (split, problem), part in zip(self._ready.items(), sums, strict=False):
            samples, values = float(part[0]), (part[1:] / part[0]).tolist()
            if samples == 0:
                raise ValueError("the data hold no sample")
            reading[f"{split}_loss"] = values[0]
            reading |= {f"{split}_{m}": v for m, v in zip(problem.metrics, values[1:], strict=True)}
        return reading

    def _mode(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._gradients else torch.inference_mode()

    def _pass(self, problem: Problem) -> Tensor:
        """(2 + metrics,) float64: samples, loss sum, metric sums; one pass over the data."""
        model = problem.model if self._graph is None else self._graph
        summed = torch.stack([self._read(problem, model, batch) for batch in problem.data]).sum(0).cpu()
        return torch.cat([torch.tensor([float(problem.samples)], dtype=torch.float64), summed])

    def _read(self, problem: Problem, model: nn.Module, batch: Batch) -> Tensor:
        context: AbstractContextManager[Any] = nullcontext()
        if self.autocast is not None:
            device = next(t.device for t in pytree.tree_leaves(batch) if isinstance(t, Tensor))
            context = torch.autocast(device.type, dtype=self.autocast)
        with context:
            outputs = problem.forward(model, batch)
            loss = problem.loss(outputs, batch)
            metrics = [m.total(outputs, batch) for m in problem.metrics.values()]
        return torch.stack([loss.detach().double(), *(m.double() for m in metrics)])


def losses(
    problem: Problem | Mapping[str, Problem],
    plane: Plane,
    *,
    way: ForwardPlan | Mapping[str, Any] | None = None,
    total: Callable[[Tensor], Tensor] = alone,
    autocast: torch.dtype | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LossMap:
    """The measure of losses on a plane.

    problem   one problem (read as `train`), or one per split: {"train": ..., "test": ...}, over the same model
    way       how to pass over the data; chosen by a probe of a second or two when not given
    total     adds a float64 tensor over the ranks of a team, each holding its share of the data
    autocast  a lower precision for the layers that bear it, such as torch.bfloat16
    """
    problems = {"train": problem} if isinstance(problem, Problem) else dict(problem)
    if len({id(p.model) for p in problems.values()}) != 1:
        raise ValueError("the problems of a survey want one model between them")
    if isinstance(way, Mapping):
        way = ForwardPlan(**way)
    if way is None:
        way = probe_forward_plan(next(iter(problems.values())), plane, autocast=autocast)
    return LossMap(problems, plane, way, total=total, autocast=autocast, settings=settings)


def plain_forward(problem: Problem) -> ForwardPlan:
    """The way without any device: the data's own batches, nothing folded."""
    return ForwardPlan(problem.data.batch_size)


def probe_forward_plan(
    problem: Problem,
    plane: Plane,
    *,
    autocast: torch.dtype | None = None,
    seconds: float = 2.0,
    batch_size: int | None = None,
) -> ForwardPlan:
    """The fastest way found by trying some for about so many seconds: first the form, then the batch size.

    batch_size  where it is given, only the form is chosen

    A folded way is taken only if its loss agrees with the plain one to 1e-4 at the origin.
    """
    began = time.perf_counter()
    samples = problem.data.samples
    start = min(batch_size or 64, samples)
    images = any(
        isinstance(t, Tensor) and t.dim() == 4 and t.is_floating_point()
        for t in pytree.tree_leaves(next(iter(problem.data.rebatched(1))))
    )
    first = _Trial(problem, plane, autocast)
    best = ForwardPlan(start)
    best_time = first.seconds(best)
    forms = [(False, True)] if images else []
    if problem.separable and fold_batchnorm(problem.model) is not None and first.agrees(replace(best, fold=True), best):
        forms += [(True, False)] + ([(True, True)] if images else [])
    for fold, last in forms:
        way = replace(best, fold=fold, channels_last=last)
        taken = first.seconds(way)
        if taken < 0.97 * best_time:
            best, best_time = way, taken
    sizes = set() if batch_size else {samples} | {2**i for i in range(3, 14) if 2**i < samples}
    for ladder in (sorted(s for s in sizes if s > start), sorted((s for s in sizes if s < start), reverse=True)):
        worse = 0
        for size in ladder:
            if time.perf_counter() - began > seconds or worse == 2:
                break
            try:
                taken = first.seconds(replace(best, batch_size=size))
            except (MemoryError, RuntimeError) as error:
                logger.info("batches of %d samples do not fit: %s", size, error)
                break
            worse = 0 if taken < best_time else worse + 1
            if taken < 0.97 * best_time:
                best, best_time = replace(best, batch_size=size), taken
    logger.info("the probe chose %s, %.3g s a pass", best, best_time * samples)
    return best


class _Trial:
    """Seconds per sample of one pass in a given way, the least of a few."""

    def __init__(self, problem: Problem, plane: Plane, autocast: torch.dtype | None) -> None:
        self.problem, self.plane, self.autocast = problem, plane, autocast
        self.origin = (0.0,) * len(plane.axes)

    def measure(self, way: ForwardPlan, samples: int) -> LossMap:
        data = self.problem.data
        part = data.share(0, max(1, data.samples // samples)) if samples < data.samples else data
        return LossMap({"train": self.problem.with_data(part)}, self.plane, way, autocast=self.autocast)

    def seconds(self, way: ForwardPlan) -> float:
        measure = self.measure(way, way.batch_size)
        counted = sum(p.data.samples for p in measure._ready.values())
        least = float("inf")
        for i in range(4):
            start = time.perf_counter()
            measure(self.origin)
            taken = time.perf_counter() - start
            if i:  # the first one warms up
                least = min(least, taken)
            if taken > 0.5:
                least = min(least, taken)
                break
        return least / counted

    def agrees(self, way: ForwardPlan, other: ForwardPlan) -> bool:
        ours = self.measure(way, way.batch_size)(self.origin)["train_loss"]
        theirs = self.measure(other, other.batch_size)(self.origin)["train_loss"]
        return abs(ours - theirs) <= 1e-4 * max(abs(theirs), 1e-3) or (ours != ours and theirs != theirs)


def _formatted(data: Any, way: ForwardPlan) -> Any:
    data = data.rebatched(way.batch_size)
    if not way.channels_last:
        return data

    def last(batch: Batch) -> Batch:
        return pytree.tree_map(
            lambda t: t.contiguous(memory_format=torch.channels_last) if isinstance(t, Tensor) and t.dim() == 4 else t,
            batch,
        )

    if isinstance(data, Resident):
        return replace(data, tensors=last(data.tensors))
    if isinstance(data, Streamed):
        fetch = data.fetch
        return replace(data, fetch=lambda indices: last(fetch(indices)))
    return data


def _fields(split: str, problem: Problem) -> list[Field]:
    over = {"train": "training", "test": "test"}.get(split, split)
    own = [Field(f"{split}_loss", problem.unit, f"mean loss over the {over} samples")]
    return own + [
        Field(f"{split}_{name}", metric.unit, f"{metric.long_name} over the {over} samples")
        for name, metric in problem.metrics.items()
    ]
