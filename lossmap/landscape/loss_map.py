"""Losses: the mean loss, and the accuracy, over all samples at points of a plane.

    point (k,) -> {train_loss: nats, train_acc: percent, ...}      evaluation mode, divided by samples

A point costs one forward pass over the data and a copy of the parameters. What is fastest differs by machine and model
by more than twofold (batch size, memory format, batch norm folded or not), so a short probe chooses it (`loss`), and
the choice is part of the measure's settings: the same choice gives the same bits. NaN and inf are results.

A loss that draws at random is read in one fixed realisation, or in R of them: then the reading is their mean, beside
its standard error, train_loss_error (see `lossmap.data.noise`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap import accelerators
from lossmap.copies import lazy_copy
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.batches import Batch, MappedFetch, Resident, Streamed, join_batches, largest_to_cut, map_tensors
from lossmap.data.criteria import NoWeight
from lossmap.data.noise import mean_and_error, realizations
from lossmap.data.problem import Problem, targets_of, temporary_parameters
from lossmap.device_errors import raise_if_of_device
from lossmap.geometry.directions import Plane, move_in_place
from lossmap.geometry.grid import Field, Point
from lossmap.interrupt import is_error_of_user_code
from lossmap.landscape.fold_batchnorm import FoldedLayer, fold_batchnorm_modules
from lossmap.landscape.rounding_remarks import RoundingRemarks
from lossmap.landscape.underflow_remarks import UnderflowRemarks
from lossmap.landscape.variance_remarks import VarianceRemarks
from lossmap.stable.forms import stable_forms
from lossmap.sums import in_float64, sums_in


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
    coarse_first = True  # no point needs another's answer

    def __init__(
        self,
        problems: Mapping[str, Problem],
        plane: Plane,
        plan: ForwardPlan,
        *,
        total: Total = single_rank,
        autocast: torch.dtype | None = None,
        settings: Mapping[str, Any] | None = None,
        noise_repeats: int | None = None,
    ) -> None:
        self.plane = plane
        self.total = total
        self.autocast = autocast
        self.noise_repeats = noise_repeats
        self._settings = dict(settings or {})
        self._problems: dict[str, tuple[Problem, ...]] = {split: (p,) for split, p in problems.items()}
        if noise_repeats is not None:
            self._problems = {split: realizations(p, noise_repeats) for split, p in problems.items()}
            self._settings["noise_repeats"] = noise_repeats
        self.model = next(iter(problems.values())).model
        self.fields = tuple(f for split, p in problems.items() for f in _fields(split, p, noise_repeats))
        self._gradients = not all(p.separable for p in problems.values())
        self._has_whole = any(m.whole for p in problems.values() for m in p.metrics.values())
        self._underflows, self._rounded, self._variances = UnderflowRemarks(), RoundingRemarks(), VarianceRemarks()
        self._use(plan)

    @property
    def problems(self) -> dict[str, Problem]:
        """The problems, by split, as they are evaluated."""
        return {split: problems[0] for split, problems in self._problems.items()}

    def with_choice(self, chosen: Mapping[str, Any]) -> LossMap:
        """The measure with a plan that was chosen in another process, as `settings` holds it under "chosen"."""
        if "way" not in chosen or ForwardPlan(**chosen["way"]) == self.plan:
            return self
        other = copy.copy(self)
        other._use(ForwardPlan(**chosen["way"]))
        return other

    def _use(self, plan: ForwardPlan) -> None:
        self.plan = plan
        self._format = torch.contiguous_format
        if plan.channels_last:
            self._format = torch.channels_last
        self._planned: dict[str, tuple[Problem, ...]] = {}
        for split, problems in self._problems.items():
            data = _formatted(problems[0].data, plan)  # the same of every realisation
            self._planned[split] = tuple(p.with_data(data) for p in problems)
        self._graph: nn.Module | None = None
        self._layers: list[FoldedLayer] = []
        if plan.fold:
            folded = fold_batchnorm_modules(self.model)
            if folded is not None:
                self._graph, self._layers = folded

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the plan: a traced graph does not travel to another process."""
        made = ("_planned", "_graph", "_layers", "_format")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use(self.plan)

    @property
    def settings(self) -> dict[str, Any]:
        """What is stored of it: the settings it was made with, and under "chosen" the plan of its passes."""
        return {**self._settings, "chosen": {"way": asdict(self.plan)}}

    def smaller(self) -> str | None:
        """Halve the batch, after memory ran out; what was done, or None where it is one sample, or must stay uncut."""
        data = [p[0].data for p in self._problems.values()]
        now = min(self.plan.batch_size, largest_to_cut(data))
        if now <= 1:
            return None
        self._planned = {}  # before memory is taken for the same data in other batches
        accelerators.release_cache()  # held for batches of the former size
        self._use(replace(self.plan, batch_size=now // 2))
        return f"batches of {self.plan.batch_size} samples from here on"

    def __call__(self, point: Point) -> dict[str, float]:
        """Read the losses at a point. Every rank of a team calls with the same point and gets the same reading."""
        if self._is_read_again:
            return self._moved_in_place(point)
        origin = self.plane.origin
        with torch.inference_mode(False), torch.no_grad():  # what is made here, the model may keep
            tensors = self.plane.at(point)
            # the model works on the point's own tensors; where these are the origin's they are copied
            tensors = {name: lazy_copy(t) if t is origin[name] else t for name, t in tensors.items()}
        if self.plan.channels_last:
            tensors = {k: t.contiguous(memory_format=self._format) if t.dim() == 4 else t for k, t in tensors.items()}
        borrowed = temporary_parameters(self.model, tensors, copied=False, differentiable=self._gradients)
        return self._read_within(borrowed)

    @property
    def _is_read_again(self) -> bool:
        """Whether the origin is not kept, but read again from its file."""
        return bool(getattr(self.plane.origin, "read_again", False))

    def _moved_in_place(self, point: Point) -> dict[str, float]:
        """The losses, of the model itself, moved and put back: nobody else may use it meanwhile."""
        origin: Any = self.plane.origin

        def move(values: Mapping[str, Tensor]) -> None:
            move_in_place(values, self.plane.axes, point)

        with (
            temporary_parameters(self.model, {}, differentiable=self._gradients, left=tuple(origin)),
            origin.moved(self.model, move),
        ):
            return self._read_within(nullcontext())

    def _read_within(self, borrowed: AbstractContextManager[Any]) -> dict[str, float]:
        """The reading of the model as it is in this context."""
        error: BaseException | None = None
        sums: list[Tensor] = []
        with borrowed, self._mode(), stable_forms("losses"):
            try:
                self._arrive()
            except Exception as raised:
                error = raised
            for layer in self._layers:
                layer.refresh(self._format)
            for problem in (p for realized in self._planned.values() for p in realized):
                try:
                    sums.append(self._pass(problem))
                except BaseException as raised:  # joins the team's total below, so that all its ranks raise as one
                    if not is_error_of_user_code(raised):
                        raise
                    error = raised
                    sums.append(torch.zeros(self._width(problem), dtype=torch.float64))
        flag = torch.tensor([float(error is not None)], dtype=torch.float64)
        sizes = [*(s.numel() for s in sums), 1]
        sums = list(torch.split(self.total(torch.cat([*sums, flag])), sizes))
        if error is not None:
            raise error
        if sums[-1] > 0:
            raise RuntimeError("another rank of this point's team failed; its report names the reason")
        return self._reading(sums[:-1])

    def remark(self, point: Point, reading: Mapping[str, Any]) -> str | None:
        """A sentence where a loss here underflows to 0, rounding takes its digits, or a variance is negative; of the
        first such point alone.

        None where the origin is read again: it would take memory for the model in float64.
        """
        if self._is_read_again:
            return None
        losses = {split: float(reading[f"{split}_loss"]) for split in self._planned}
        if (negative := self._variances.remark(losses.values(), self.plane, point)) is not None:
            return negative
        first = {split: realized[0] for split, realized in self._planned.items()}
        zero = [first[split] for split in first if losses[split] == 0]
        underflow = self._underflows.remark(zero, self.plane, point)
        if underflow is not None or self.is_double:
            return underflow
        return self._rounded.remark(first, losses, self.plane, point, self._lowered)

    @property
    def is_double(self) -> bool:
        """Whether the model is in float64, beside which there is no other precision."""
        return all(p.dtype == torch.float64 for p in self.model.parameters() if p.is_floating_point())

    def _arrive(self) -> None:
        """What is to be done with the model at a point before its losses are read: nothing here."""

    def _width(self, problem: Problem) -> int:
        """The entries of what `_pass` returns."""
        return 2 + len(problem.metrics) + len(counted(problem))

    def _reading(self, sums: Sequence[Tensor]) -> dict[str, float]:
        """The fields, from the sums of `_pass` over each split and, within it, each realisation."""
        reading: dict[str, float] = {}
        parts = iter(sums)
        for split, realized in self._planned.items():
            rows = torch.stack([next(parts) for _ in realized])
            if float(rows[0, 0]) == 0:
                raise NoWeight
            numbers = rows[:, :1].repeat(1, 1 + len(realized[0].metrics))  # over which each is a mean
            for k, name in enumerate(counted(realized[0]), start=numbers.shape[1] + 1):
                numbers[:, 1 + list(realized[0].metrics).index(name)] = rows[:, k]
            values, errors = (rows[:, 1 : numbers.shape[1] + 1] / numbers).numpy(), None
            means = values[0]
            if len(realized) > 1:
                means, errors = mean_and_error(values)
            for i, name in enumerate(("loss", *realized[0].metrics)):
                reading[f"{split}_{name}"] = float(means[i])
                if errors is not None:
                    reading[f"{split}_{name}_error"] = float(errors[i])
        return reading

    def _mode(self) -> AbstractContextManager[Any]:
        if self._gradients:  # the loss may differentiate by its inputs
            return nullcontext()
        return torch.no_grad()  # not inference mode: what modules or functions keep of a pass must serve training too

    def _pass(self, problem: Problem) -> Tensor:
        """(2 + metrics + counted,) float64: samples, loss sum, metric sums, and samples of metrics that are of some."""
        model = problem.model if self._graph is None else self._graph
        kept: list[Batch] = []
        sums = torch.stack([self._read(problem, model, batch, kept) for batch in problem.data])
        summed = self._fetched(in_float64(sums).sum(0))
        if kept:
            outputs, targets = join_batches(kept)
            for place, (name, metric) in enumerate(problem.metrics.items(), start=1):
                if metric.whole is None:
                    continue
                try:
                    summed[place] = float(metric.whole(outputs, targets)) * problem.weight
                except Exception as error:  # user code may raise any exception
                    raise_if_of_device(error)
                    raise ValueError(f"the metric {name} fails: {type(error).__name__}: {error}") from error
        return torch.cat([torch.tensor([float(problem.weight)], dtype=torch.float64), summed])

    def _fetched(self, sums: Tensor) -> Tensor:
        """What a pass summed, on the host: the one wait of a split at a point."""
        return sums.cpu()

    def _lowered(self, batch: Batch) -> AbstractContextManager[Any]:
        """The context of a forward pass in the lower precision, where there is one."""
        if self.autocast is None:
            return nullcontext()
        device = next(t.device for t in pytree.tree_leaves(batch) if isinstance(t, Tensor))
        return torch.autocast(device.type, dtype=self.autocast)

    def _look_at(self, problem: Problem, outputs: Any, batch: Batch) -> None:
        """What else is to be seen in the outputs of a batch: nothing here."""

    def _read(self, problem: Problem, model: nn.Module, batch: Batch, kept: list[Batch]) -> Tensor:
        """(1 + metrics + counted,) sums over a batch; outputs and targets go to `kept` for metrics of all samples."""
        with self._lowered(batch):
            outputs = problem.forward(model, batch)
            loss = problem.loss(outputs, batch)
            zero = loss.detach().new_zeros(())
            metrics = [zero if m.whole else m.total(outputs, batch) for m in problem.metrics.values()]
            for count in counted(problem).values():
                number = count(batch)
                number = number.to(zero.device) if isinstance(number, Tensor) else number
                metrics.append(zero.to(sums_in(zero.device)) + number)
            self._look_at(problem, outputs, batch)
        if self._has_whole:
            kept.append((map_tensors(lambda t: t.detach(), outputs), targets_of(batch, outputs)))
        return torch.stack([t.detach().to(loss.device, sums_in(loss.device)) for t in (loss, *metrics)])


def counted(problem: Problem) -> dict[str, Callable[[Batch], int | Tensor]]:
    """How the samples of those metrics are counted that are not means over all."""
    return {name: m.count for name, m in problem.metrics.items() if m.count is not None and m.whole is None}


def _formatted(data: Any, plan: ForwardPlan) -> Any:
    """The data in the plan's batches and memory format."""
    data = data.rebatched(plan.batch_size)
    if not plan.channels_last:
        return data
    if isinstance(data, Resident):
        return replace(data, tensors=_channels_last(data.tensors))
    if isinstance(data, Streamed):
        return replace(data, fetch=MappedFetch(data.fetch, _channels_last))
    return data


def _channels_last(batch: Batch) -> Batch:
    """A batch whose 4-d tensors are in channels-last format."""
    return map_tensors(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, batch)


def _fields(split: str, problem: Problem, noise_repeats: int | None = None) -> list[Field]:
    """The fields of one split, each with its standard error where there are several realisations."""
    samples = f"{'training' if split == 'train' else split} samples"
    if noise_repeats is not None:
        samples += f" and {noise_repeats} realisations of the noise"
    fields = [Field(f"{split}_loss", problem.unit, f"mean loss over the {samples}")]
    for name, metric in problem.metrics.items():
        fields.append(Field(f"{split}_{name}", metric.unit, f"{metric.long_name} over the {samples}"))
    if noise_repeats is None:
        return fields
    errors = [Field(f"{f.name}_error", f.unit, f"standard error of the {f.long_name}") for f in fields]
    return [f for pair in zip(fields, errors, strict=True) for f in pair]
