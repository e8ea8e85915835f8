"""The problem: a model, a loss and the data over which the loss is a mean.

    L(theta) = 1/N sum_i loss(f(theta, x_i), y_i)        N samples, nats for cross entropy

A loss is asked for a batch's *sum* over samples, so that any cut into batches, and any shares among ranks,
give the same mean. The usual criteria of PyTorch are means over the batch and are multiplied by its samples.
A problem borrows its model: nothing changes parameters, buffers, mode or `.grad` but inside `temporary_parameters`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap.data.batches import Batch, Batches, Resident, samples_in
from lossmap.data.loaders import as_batches
from lossmap.geometry.directions import move_point, origin_of

Outputs = Any
Criterion = Callable[[Outputs, Any], Tensor]  # (outputs, targets) -> mean over the batch


@dataclass(frozen=True)
class Metric:
    """A further mean over samples, such as the accuracy.

    total  (outputs, batch) -> its sum over the batch's samples, a scalar tensor
    """

    total: Callable[[Outputs, Batch], Tensor]
    unit: str
    long_name: str


@dataclass(frozen=True, eq=False)
class Problem:
    """Model, loss and data. Make one by `Problem.supervised` or `Problem.custom`.

    model      the network; the data follow to its device when the problem is made
    data       the samples of one split
    forward    (model, batch) -> outputs f
    loss       (outputs, batch) -> the loss summed over the batch's samples, a scalar
    count      batch -> its samples
    metrics    further means over samples, by name (`acc`)
    separable  whether outputs and loss are truly two steps, as Gauss-Newton needs
    """

    model: nn.Module
    data: Batches
    forward: Callable[[nn.Module, Batch], Outputs]
    loss: Callable[[Outputs, Batch], Tensor]
    count: Callable[[Batch], int]
    metrics: Mapping[str, Metric]
    separable: bool = True
    unit: str = "nats"

    @classmethod
    def supervised(
        cls,
        model: nn.Module,
        loss: str | Criterion,
        data: Any,
        *,
        batch_size: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> Problem:
        """A model that is called with inputs, and a loss of (outputs, targets), mean over the batch.

        loss   `crossentropy`, `mse`, or a callable such as `nn.CrossEntropyLoss()`; its class weights and the
               targets that it ignores count as in one batch of all samples, whatever the cut
        data   a DataLoader, a Dataset, a tuple (inputs, targets) of tensors or arrays, or anything that yields such
               batches, in memory where they fit, else streamed; floating-point numbers are taken in the model's
               precision; a batch's last entry is the target, what stands before it is given to the model (a tuple
               as several arguments, a dict as keywords); of a dict batch the target is `labels`, `targets`,
               `target`, `label` or `y`
        """
        criterion, unit = _criterion(loss)
        batches = as_batches(data, batch_size)
        own = {"acc": ACCURACY} if _classifies(batches, loss) else {}
        total = _summed(loss, criterion, batches)

        def summed(outputs: Outputs, batch: Batch) -> Tensor:
            targets = targets_of(batch)
            if isinstance(loss, _ELEMENTWISE) and outputs.shape != targets.shape:
                raise ValueError(
                    f"{type(loss).__name__} wants targets of the outputs' shape, {tuple(outputs.shape)}; they have "
                    f"{tuple(targets.shape)} and would be broadcast: reshape them, such as y[:, None]"
                )
            value = total(outputs, targets, samples_in(batch))
            if value.dim() != 0:
                raise ValueError(
                    f"the loss returned shape {tuple(value.shape)}; it wants one number, the mean over the batch "
                    "(PyTorch's criteria: reduction='mean')"
                )
            return value

        batches = _following(model, batches, cast=True)
        return cls(model, batches, _call, summed, samples_in, own if metrics is None else metrics, True, unit)

    @classmethod
    def custom(
        cls,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Any],
        data: Any,
        *,
        reduction: str = "mean",
        batch_size: int | None = None,
        unit: str = "1",
    ) -> Problem:
        """Any loss of model and batch: PINNs, language models, a regulariser inside.

        loss       (model, batch) -> a scalar, or (scalar, samples); without samples, the batch's first
                   dimension counts
        reduction  whether that scalar is the `mean` or the `sum` over the batch's samples
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is 'mean' or 'sum'; got {reduction!r}")

        def value_and_count(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            value = loss(model, batch)
            value, samples = value if isinstance(value, tuple) else (value, samples_in(batch))
            if not isinstance(value, Tensor) or value.dim() != 0:
                raise ValueError(
                    f"the loss returned {getattr(value, 'shape', type(value))}; it wants one number per batch"
                )
            return value, int(samples)

        def forward(model: nn.Module, batch: Batch) -> Tensor:
            value, samples = value_and_count(model, batch)
            return value * samples if reduction == "mean" else value

        def count(batch: Batch) -> int:
            return value_and_count(model, batch)[1]  # with gradients: the loss may differentiate by its inputs

        data = _following(model, as_batches(data, batch_size))
        return cls(model, data, forward, _itself, count, {}, False, unit)

    @cached_property
    def samples(self) -> int:
        """The samples N of this problem's data (this rank's share of them)."""
        if self.count is samples_in:
            return self.data.samples
        return sum(self.count(batch) for batch in self.data)

    def total(self, batch: Batch) -> Tensor:
        """The loss summed over a batch's samples, differentiable in the model's parameters."""
        return self.loss(self.forward(self.model, batch), batch)

    def with_data(self, data: Batches) -> Problem:
        """The same problem over other data."""
        return replace(self, data=data)

    def rebatched(self, size: int) -> Problem:
        """The same problem, its data cut into batches of this size."""
        return self.with_data(self.data.rebatched(size))

    def share(self, rank: int, size: int) -> Problem:
        """The same problem over one rank's share of the data."""
        return self.with_data(self.data.share(rank, size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The problem with its data there; the model, which is borrowed, is moved by its owner."""
        return self.with_data(self.data.to(device, dtype))

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return (
            f"Problem({type(self.model).__name__}, {n:,} parameters, {self.data.samples:,} samples, "
            f"metrics: {', '.join(self.metrics) or 'none'})"
        )


def _following(model: nn.Module, data: Batches, cast: bool = False) -> Batches:
    """The data on the model's device, where that is not the CPU; with `cast` in its precision, where it has one."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    precisions = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtype = precisions.pop() if cast and len(precisions) == 1 else None
    return data if device.type == "cpu" and dtype is None else data.to(device, dtype)


def _summed(loss: str | Criterion, criterion: Criterion, data: Batches) -> Callable[[Outputs, Any, int], Tensor]:
    """(outputs, targets, samples) -> the loss summed over a batch, so that any cut into batches gives one mean.

    A criterion's mean is multiplied by the samples. That of PyTorch's cross entropy is over the weights of the targets'
    classes, or over those targets that are not ignored, and so no mean over samples where there are such: its sum is
    taken then, times samples over weights of all data, which makes the mean that of a single batch.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        return lambda outputs, targets, samples: criterion(outputs, targets)
    entropy = loss if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) else None
    if loss == "crossentropy" or (entropy is not None and entropy.reduction == "mean"):
        weight = None if entropy is None else entropy.weight
        ignored = -100 if entropy is None else entropy.ignore_index
        scale = _scale(data, weight, ignored)
        if scale is not None:
            parts: Criterion = nn.CrossEntropyLoss(reduction="sum")
            if entropy is not None:
                parts = copy.copy(entropy)
                parts.reduction = "sum"
            return lambda outputs, targets, samples: parts(outputs, targets) * scale
    return lambda outputs, targets, samples: criterion(outputs, targets) * samples


def _scale(data: Batches, weight: Tensor | None, ignored: int) -> float | None:
    """Samples over the weights of all targets that count; None where every target counts for one.

    Of streamed data one pass is made where there are weights, or several targets a sample.
    """
    first = targets_of(next(iter(data.rebatched(1))))
    if not isinstance(first, Tensor) or first.is_floating_point():  # probabilities: their mean is over samples
        return None
    if not isinstance(data, Resident) and weight is None and first.dim() < 2 and ignored < 0:
        return None
    total, count = 0.0, 0
    for batch in data:
        targets = targets_of(batch)
        held = targets[targets != ignored]
        total += float(held.numel() if weight is None else weight.detach().cpu().double()[held.cpu()].sum())
        count += targets.numel()
    if weight is None and total == count:
        return None
    if total <= 0:
        raise ValueError("every target is ignored, or has weight 0: there is no loss to speak of")
    return data.samples / total


def _itself(outputs: Outputs, batch: Batch) -> Tensor:
    result: Tensor = outputs
    return result


_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)  # PyTorch broadcasts these with a warning

_TARGETS = ("labels", "targets", "target", "label", "y")


def targets_of(batch: Batch) -> Any:
    """The targets of a batch: its last entry, or of a dict the entry with a usual name."""
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if name in batch:
                return batch[name]
        raise ValueError(f"a dict batch wants its targets under one of {_TARGETS}; it has {tuple(batch)}")
    if isinstance(batch, Sequence) and len(batch) > 1:
        return batch[-1]
    raise ValueError(
        f"a batch wants inputs and targets; got {type(batch).__name__}. For other shapes see Problem.custom"
    )


def inputs_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a batch gives to the model: positional and keyword arguments."""
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k not in _TARGETS}
    *inputs, _ = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return (), dict(inputs[0])
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        return tuple(inputs[0]), {}
    return tuple(inputs), {}


def _call(model: nn.Module, batch: Batch) -> Outputs:
    positional, keywords = inputs_of(batch)
    return model(*positional, **keywords)


def _correct(outputs: Outputs, batch: Batch) -> Tensor:
    targets = targets_of(batch)
    if targets.dim() == outputs.dim():  # one-hot or probabilities
        targets = targets.argmax(-1)
    hits: Tensor = 100.0 * (outputs.argmax(1) == targets).sum()
    return hits


ACCURACY = Metric(_correct, "percent", "accuracy")


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """nn.MSELoss: mean over samples and outputs; whole-number targets: softmax against one-hot."""
    if not targets.is_floating_point() and targets.dim() < outputs.dim():
        return F.mse_loss(outputs.softmax(1), F.one_hot(targets, outputs.shape[1]).to(outputs.dtype))
    if outputs.shape == (*targets.shape, 1):  # one output: a column beside a row would be broadcast to a table
        targets = targets.unsqueeze(-1)
    return F.mse_loss(outputs, targets)


def _crossentropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.dim() > 1 and outputs.shape[1] == 1:
        raise ValueError("the cross entropy of one output is 0 everywhere; for regression take the loss mse")
    return F.cross_entropy(outputs, targets)


def _criterion(loss: str | Criterion) -> tuple[Criterion, str]:
    if not isinstance(loss, str):
        return loss, "nats" if isinstance(loss, nn.CrossEntropyLoss) else "1"
    if loss == "crossentropy":
        return _crossentropy, "nats"
    if loss == "mse":
        return _mse, "1"
    raise ValueError(f"unknown loss {loss!r}; there are crossentropy and mse, or a function of your own")


def _classifies(data: Batches, loss: str | Criterion) -> bool:
    """Whether an accuracy means something: whole-number class targets, one for each sample."""
    if isinstance(loss, nn.Module) and not isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return False
    targets = targets_of(next(iter(data)))
    whole = (torch.int64, torch.int32, torch.uint8)
    return isinstance(targets, Tensor) and targets.dtype in whole and targets.dim() == 1


@contextmanager
def temporary_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model at another place, in evaluation mode; given back untouched.

    tensors  values for parameters and buffers, by their names in the state dict; the others stay

    Parameters are pointed at the given values and pointed back afterwards, so that nothing is copied and the
    model's own values return to the last bit. Raises KeyError for a name that the model has not.
    """
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    unknown = [name for name in tensors if name not in own]
    if unknown:
        raise KeyError(f"the model has no tensor named {unknown[0]!r}")
    modes = [(module, module.training) for module in model.modules()]
    before = {name: own[name].data for name in tensors}
    model.eval()
    try:
        for name, value in tensors.items():
            own[name].data = value.detach()
        yield model
    finally:
        for name, value in before.items():
            own[name].data = value
        for module, training in modes:
            module.training = training


__all__ = [
    "ACCURACY",
    "Metric",
    "Problem",
    "inputs_of",
    "move_point",
    "origin_of",
    "targets_of",
    "temporary_parameters",
]
