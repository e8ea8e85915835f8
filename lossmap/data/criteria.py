"""Losses and metrics of supervised problems, as sums over the samples of a batch.

    L = 1/N sum_i loss(f(x_i), y_i)            N samples, nats for cross entropy

PyTorch's criteria are means over a batch; their sums here give the same L for any cut into batches.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossmap.data.batch_parts import targets_of, with_targets
from lossmap.data.batches import Batch, Batches, FixedBatches, MappedFetch, Resident, Streamed
from lossmap.data.one_precision import floating_dtypes, in_one_precision
from lossmap.data.sample_count import samples_in
from lossmap.sums import in_float64

Outputs = Any
Criterion = Callable[[Outputs, Any], Tensor]  # (outputs, targets) -> mean over the batch
SummedCriterion = Callable[[Outputs, Any, int], Tensor]  # (outputs, targets, samples) -> sum over the batch
ELEMENTWISE = (  # PyTorch broadcasts these, with a warning or without
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss
)  # fmt: skip
ENTROPIES = (nn.CrossEntropyLoss, nn.NLLLoss)
BINARY = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)  # their targets are 0 and 1, floating-point


@dataclass(frozen=True)
class Metric:
    """A further mean over samples, such as the accuracy.

    total  (outputs, batch) -> its sum over the batch's samples, a scalar tensor
    whole  (outputs, targets) of all samples -> its value, where it is no mean over samples and `total` is not taken
    count  batch -> the samples over which it is a mean, where these are not all
    """

    total: Callable[[Outputs, Batch], Tensor]
    unit: str
    long_name: str
    whole: Criterion | None = None
    count: Callable[[Batch], int | Tensor] | None = None


@dataclass(frozen=True)
class CorrectClasses:
    """100 times the samples of a batch whose largest output is their target's; those without a class do not count.

    ignored  the target that the loss ignores; a negative one is no class either
    scale    all samples over those that have a class, so that the mean is over these; None: all have one, and a sample
             without makes the sum NaN
    """

    ignored: int | None = None
    scale: float | None = None

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """That number."""
        targets = targets_of(batch, outputs)
        if targets.dim() == outputs.dim():  # one-hot or probabilities
            targets = targets.argmax(-1)
        classes = are_classes(targets, self.ignored)
        percent: Tensor = 100.0 * ((largest_outputs(outputs, 1) == targets) & classes).sum()
        if self.scale is not None:
            return percent * self.scale
        return torch.where(classes.all(), percent, torch.nan)


def largest_outputs(outputs: Tensor, dim: int) -> Tensor:
    """Which output along a dimension is the largest; -1, no class, where one is NaN, whose place `argmax` gives."""
    values, places = outputs.max(dim)
    return torch.where(values.isnan(), -1, places)


@dataclass(frozen=True)
class WithClass:
    """The samples of a batch that have a class.

    ignored  the target that the loss ignores; a negative one is no class either
    """

    ignored: int | None

    def __call__(self, batch: Batch) -> int | Tensor:
        """Their number, which the host does not wait for."""
        targets = targets_of(batch)
        return are_classes(targets, self.ignored).sum() if targets.dim() == 1 else samples_in(batch)


ACCURACY = Metric(CorrectClasses(), "percent", "accuracy")


def are_classes(targets: Tensor, ignored: int | None) -> Tensor:
    """Which targets are classes: those that are neither negative nor ignored by the loss."""
    classes = targets >= 0
    return classes if ignored is None else classes & (targets != ignored)


def ignored_target(loss: str | Criterion) -> int | None:
    """The target that a loss ignores, as far as it says; None for none."""
    if loss == "crossentropy":
        return nn.CrossEntropyLoss().ignore_index
    if isinstance(loss, ENTROPIES):
        return int(loss.ignore_index)
    return None


def accuracy_over(data: Batches, loss: str | Criterion) -> dict[str, Metric]:
    """The accuracy over the samples that have a class, by its name `acc`; none where it means nothing, or none has."""
    if not has_class_labels(data, loss):
        return {}
    ignored = ignored_target(loss)
    if isinstance(data, Streamed):
        # who has a class is known when the last batch is read
        return {"acc": replace(ACCURACY, total=CorrectClasses(ignored, 1.0), count=WithClass(ignored))}
    all_classes = torch.cat([are_classes(targets_of(batch), ignored) for batch in data])
    count = int(all_classes.sum())
    if count == 0:
        return {}
    if count == len(all_classes):
        return {"acc": ACCURACY}
    scaled = CorrectClasses(ignored, len(all_classes) / count)
    return {"acc": Metric(scaled, "percent", "accuracy (samples without a class left out)")}


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """nn.MSELoss: mean over samples and outputs; whole-number targets: softmax against one-hot."""
    return F.mse_loss(*_compared(outputs, targets))


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared errors whose mean is the loss mse, entry by entry, in the outputs' shape."""
    return F.mse_loss(*_compared(outputs, targets), reduction="none")


def _compared(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What the loss mse compares, both of one shape."""
    is_classifier = outputs.dim() > 1 and outputs.shape[1] > 1
    if is_classifier and not targets.is_floating_point() and targets.dim() < outputs.dim():
        return outputs.softmax(1), F.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype)
    if outputs.shape == (*targets.shape, 1):  # one output: a column beside a row would be broadcast to a table
        targets = targets.unsqueeze(-1)
    return outputs, targets


def _crossentropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """F.cross_entropy of two outputs or more."""
    if outputs.dim() > 1 and outputs.shape[1] == 1:
        raise ValueError("the cross entropy of one output is 0 everywhere; for regression take the loss mse")
    return F.cross_entropy(outputs, targets)


_CALLED = {"crossentropy": "F.cross_entropy", "mse": "F.mse_loss"}  # losses by name, as PyTorch's functions
# PyTorch's functions that are modules too, whose class weights and ignored targets are understood
_MODULE_OF = {F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss}


def module_form(loss: str | Criterion) -> str | Criterion:
    """`F.cross_entropy` or `F.nll_loss`, with constant keywords by `functools.partial` or without, as the module.

    Any other loss as it is.
    """
    function, keywords, positional = loss, {}, ()
    if isinstance(loss, partial):
        function, keywords, positional = loss.func, loss.keywords, loss.args
    kind = next((module for known, module in _MODULE_OF.items() if function is known), None)
    if kind is None or positional or not set(keywords) <= {"weight", "ignore_index", "reduction", "label_smoothing"}:
        return loss
    module: Criterion = kind(**keywords)
    return module


def refuse_class(function: Any, what: str) -> None:
    """Raise ValueError where a class stands for a function of outputs and targets: its instances may be one."""
    if isinstance(function, type):
        raise ValueError(
            f"the {what} {function.__name__} is a class, which outputs and targets would be arguments of; give an "
            f"instance, such as {what} = {function.__name__}()"
        )


def refuse_no_module(model: Any) -> None:
    """Raise ValueError where no network stands in a network's place, such as its class or a function that makes it.

    Nor may a program of `torch.export` be within it, or a copy of one: its mode is fixed.
    """
    if isinstance(model, nn.Module):
        kinds = {base.__module__ for module in model.modules() for base in type(module).__mro__}  # of copies, too
        if any(name.startswith("torch.export") for name in kinds):
            raise ValueError(
                "the model is a program of torch.export, in which training or evaluation mode is fixed; give the "
                "module that it was made from, with the program's state_dict()"
            )
        return
    if isinstance(model, type):
        raise ValueError(f"the model {model.__name__} is a class; give an instance, such as {model.__name__}()")
    name = getattr(model, "__name__", "")
    called = f"; is it {name}(), what it returns?" if callable(model) and name else ""
    raise ValueError(f"the model must be a torch.nn.Module; got {type(model).__name__}{called}")


def refuse_criterion(loss: Any) -> None:
    """Raise ValueError where a loss of outputs and targets stands for one of model and batch."""
    if isinstance(loss, (str, nn.modules.loss._Loss)) or not callable(loss):
        name = repr(loss) if isinstance(loss, str) else type(loss).__name__
        raise ValueError(
            f"the loss must be a function (model, batch); got {name}: a loss by name, or of outputs and targets, is "
            "for Problem.supervised(model, loss, data)"
        )


def first_argument(function: Any) -> str:
    """What a function calls the first thing that it is given; empty where that cannot be told."""
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):
        return ""


def criterion_and_unit(loss: str | Criterion) -> tuple[Criterion, str]:
    """The criterion of a name, or the function itself, and the unit of its values. Raises ValueError for a class."""
    refuse_class(loss, "loss")
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss, "nats"
    if not isinstance(loss, str):
        return loss, "1"
    if loss == "crossentropy":
        return _crossentropy, "nats"
    if loss == "mse":
        return _mse, "1"
    raise ValueError(f"unknown loss {loss!r}; there are crossentropy and mse, or a function of your own")


def has_class_labels(data: Batches, loss: str | Criterion) -> bool:
    """Whether an accuracy means something: whole-number class targets, one for each sample."""
    if isinstance(loss, nn.Module) and not isinstance(loss, ENTROPIES):
        return False
    targets = targets_of(next(iter(data)))
    whole = (torch.int64, torch.int32, torch.uint8)
    return isinstance(targets, Tensor) and targets.dtype in whole and targets.dim() == 1


class NoNumber(ValueError):
    """A metric is no number."""


class NoWeight(ValueError):
    """No sample of some data counts in the loss."""

    def __init__(
        self,
        message: str = "every batch has weight 0, as where all of its targets are ignored: the loss is undefined (in a "
        "team of ranks, every batch of one rank's share: take a smaller team, or another order of batches)",
    ) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class MeanMetric:
    """A function's mean over a batch, as the sum over its samples."""

    function: Criterion

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        value = torch.as_tensor(self.function(outputs, targets_of(batch, outputs)))
        if value.dim() != 0:
            raise NoNumber(f"a metric must be one number, the mean over the batch; got shape {tuple(value.shape)}")
        return value * samples_in(batch)


def metric_of(name: str, metric: Metric | Criterion) -> Metric:
    """A metric from a function (outputs, targets) -> mean over the batch's samples, or as it is."""
    if isinstance(metric, Metric):
        return metric
    refuse_class(metric, "metric")
    return Metric(MeanMetric(metric), "1", name.replace("_", " "))


def is_of(kinds: tuple[type[nn.Module], ...], loss: Any) -> bool:
    """Whether a loss is a module of these kinds of PyTorch, and computes what these do.

    A subclass, and a module with hooks, may compute something of its own.
    """
    if not isinstance(loss, kinds) or type(loss).__call__ is not nn.Module.__call__:
        return False
    own = getattr(loss.forward, "__func__", None)
    return own in {kind.forward for kind in kinds} and not (loss._forward_hooks or loss._forward_pre_hooks)


def is_of_pytorch(loss: str | Criterion) -> bool:
    """Whether a loss is one by name, or a module that computes what one of PyTorch's does."""
    if isinstance(loss, str):
        return True
    kinds = tuple(kind for kind in type(loss).__mro__ if kind.__module__.startswith("torch.nn.modules.loss"))
    return isinstance(loss, nn.Module) and is_of(kinds, loss)


def takes_class_labels(loss: str | Criterion) -> bool:
    """Whether a loss is PyTorch's cross entropy of classes, by name or as a module."""
    return loss == "crossentropy" or is_of(ENTROPIES, loss)


def with_tensor_targets(data: Batches, loss: str | Criterion) -> Batches:
    """The data with targets that are lists of numbers as tensors, for losses of PyTorch, which take no lists.

    So are those that are lists of tensors.

    Raises ValueError where the rows of such a list differ in length.
    """
    if not isinstance(loss, (str, nn.modules.loss._Loss)):
        return data
    return with_each_batch(data, _with_tensor_targets)


def with_each_batch(data: Batches, function: Callable[[Batch], Batch]) -> Batches:
    """The data with a function of every batch, cut as they were."""
    if isinstance(data, Resident):
        return replace(data, tensors=function(data.tensors))
    if isinstance(data, Streamed):
        return replace(data, fetch=MappedFetch(data.fetch, function))
    if isinstance(data, FixedBatches):
        return replace(data, batches=tuple(map(function, data.batches)))
    return data


def _with_tensor_targets(batch: Batch) -> Batch:
    targets = first = targets_of(batch)
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if first is targets:
        return batch
    are_tensors = isinstance(first, Tensor) and targets[0] is first
    if not are_tensors and not isinstance(first, Number):
        return batch
    try:
        return with_targets(batch, torch.stack(list(targets)) if are_tensors else torch.tensor(targets))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            "the targets of a batch are lists of numbers that make no tensor, as rows of unequal length do; PyTorch's "
            "losses take tensors: pad them, or give a loss of your own"
        ) from None


def with_class_targets(data: Batches, loss: str | Criterion) -> Batches:
    """The data with targets as cross entropy takes them: whole labels as int64, probabilities as they are.

    Raises ValueError where floating-point targets are neither whole labels nor class probabilities; of streamed data
    each batch is asked as it is read.
    """
    if not takes_class_labels(loss):  # a subclass may have targets of its own form; F.cross_entropy within takes int64
        return with_each_batch(data, _with_labels_in_int64) if isinstance(loss, ENTROPIES) else data
    if isinstance(data, Resident):
        return replace(data, tensors=_batch_with_class_targets(data.tensors))
    if isinstance(data, Streamed):
        refuses = getattr(loss, "ignore_index", -100) == -100 and getattr(loss, "weight", None) is None
        return replace(data, fetch=MappedFetch(data.fetch, _StreamedTargets(refuses)))
    if isinstance(data, FixedBatches):
        return replace(data, batches=tuple(_batch_with_class_targets(batch) for batch in data))
    return data


@dataclass(frozen=True)
class _StreamedTargets:
    """A streamed batch with targets as cross entropy takes them; raises ValueError for one that is ignored by default.

    How many are ignored in all would take a pass over the stream, which is made only where the loss says that it
    ignores some, has class weights, or several targets a sample.

    refuses  whether ignored targets are not counted first
    """

    refuses: bool

    def __call__(self, batch: Batch) -> Batch:
        """The batch."""
        batch = _batch_with_class_targets(batch)
        targets = targets_of(batch)
        is_labels = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
        if self.refuses and is_labels and bool((targets == -100).any()):
            raise ValueError(
                "targets of -100, which cross entropy ignores, stand in data that are streamed: leave these samples "
                "out, or give all classes one weight (weight=torch.ones(classes)), with which they are counted first"
            )
        return batch


def _with_labels_in_int64(batch: Batch) -> Batch:
    targets = targets_of(batch)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype in (torch.int64, torch.bool):
        return batch  # bool: a mask
    return with_targets(batch, targets.long())


def _batch_with_class_targets(batch: Batch) -> Batch:
    targets = targets_of(batch)
    labels = as_class_targets(targets)
    if labels is targets:
        return batch
    return with_targets(batch, labels)


def as_class_targets(targets: Any) -> Any:
    """Class labels as int64; class probabilities, floating-point rows that sum to 1 along dimension 1, as they are."""
    if not isinstance(targets, Tensor) or targets.dtype == torch.int64:
        return targets
    if not targets.is_floating_point():
        return targets.long()
    if targets.dim() > 1:
        sums = in_float64(targets).sum(1)
        if bool((targets >= 0).all()) and bool(((sums - 1.0).abs() <= 1e-3).all()):
            return targets
    if bool((targets == targets.round()).all()):
        return targets.long()
    raise ValueError(
        f"the targets, {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}, are neither class "
        "labels (whole numbers) nor class probabilities (rows >= 0 that sum to 1), as cross entropy needs; for "
        "regression take the loss 'mse' (--loss mse)"
    )


def _are_no_probabilities(outputs: Outputs, targets: Any) -> bool:
    """Whether targets of classes have the shape of the outputs, which would make them probabilities, but are whole."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.dim() < 2:
        return False
    return outputs.shape == targets.shape and not targets.is_floating_point()


def _is_column(outputs: Outputs, targets: Any) -> bool:
    """Whether class labels have the outputs' dimensions, and one entry in the place of the classes."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return False
    if outputs.dim() != targets.dim() or outputs.dim() < 2:
        return False
    return targets.shape[1] == 1 and outputs.shape[1] > 1


@dataclass(frozen=True)
class SupervisedLoss:
    """(outputs, batch) -> the loss summed over the batch, a scalar.

    loss   as it was given
    total  (outputs, targets, samples) -> that sum
    """

    loss: str | Criterion
    total: SummedCriterion

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Raises ValueError for targets that would be broadcast, and for a loss that is no scalar."""
        targets = targets_of(batch, outputs)
        self.refuse(outputs, targets)
        if is_of(BINARY, self.loss) and isinstance(targets, Tensor) and not targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        if is_of(ELEMENTWISE, self.loss) and outputs.shape != targets.shape:
            raise ValueError(
                f"the targets of {type(self.loss).__name__} must have the outputs' shape, {tuple(outputs.shape)}; they "
                f"have {tuple(targets.shape)} and would be broadcast: reshape them, such as y[:, None]"
            )
        if takes_class_labels(self.loss) and _are_no_probabilities(outputs, targets):
            raise ValueError(
                f"targets of the outputs' shape, {tuple(targets.shape)}, are class probabilities, whose rows must be "
                ">= 0 and sum to 1; these do not, or are no floating-point numbers: divide them by their sum, or give "
                "the classes as whole numbers, such as y.argmax(1)"
            )
        if takes_class_labels(self.loss) and _is_column(outputs, targets):
            raise ValueError(
                f"class labels must have one dimension less than the outputs of shape {tuple(outputs.shape)}; got "
                f"{tuple(targets.shape)}: leave the second one out, as y.squeeze(1) does (of arrays y[:, 0])"
            )
        double = torch.float64 in floating_dtypes(outputs)
        value = in_one_precision(self.total, double, outputs, targets, samples_in(batch))
        if value.dim() != 0:
            raise ValueError(
                f"the loss must be one number, the mean over the batch; got shape {tuple(value.shape)} "
                "(PyTorch's criteria: reduction='mean')"
            )
        return value

    def refuse(self, outputs: Outputs, targets: Any) -> None:
        """Raises ValueError for outputs that PyTorch's losses do not take: several, or with the classes at the end."""
        is_own = not isinstance(self.loss, str) and not str(getattr(self.loss, "__module__", "")).startswith(
            "torch.nn."
        )
        name = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", type(self.loss).__name__)
        if not is_own and not isinstance(outputs, Tensor):
            what, one = f"a {type(outputs).__name__}", ""
            if isinstance(outputs, Mapping) and outputs:
                what, one = f"{what} of {', '.join(map(str, outputs))}", f"[{next(iter(outputs))!r}]"
            elif isinstance(outputs, (tuple, list)):
                what, one = f"{what} ({', '.join(type(entry).__name__ for entry in outputs)})", "[0]"
            raise ValueError(
                f"the model returns {what}, where the loss {name} takes one tensor; give a loss of outputs and targets "
                f"of your own, such as lambda outputs, y: {_CALLED.get(name, 'loss')}(outputs{one}, y) (in "
                "Problem.supervised, or by --loss file.py:function)"
            )
        if takes_class_labels(self.loss) and _are_classes_along(outputs, targets) == [-1]:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} have their classes along the last dimension, beside targets "
                f"of shape {tuple(targets.shape)}, where {name} takes them along dimension 1, as PyTorch does; give a "
                "loss of your own: lambda outputs, y: F.cross_entropy(outputs.movedim(-1, 1), y)"
            )

    def note_on(self, outputs: Outputs, targets: Any) -> tuple[str, ...]:
        """A sentence where the classes may stand along either of two dimensions of the outputs; else none."""
        if not takes_class_labels(self.loss) or _are_classes_along(outputs, targets) != [-1, 1]:
            return ()
        return (
            f"the classes of outputs of shape {tuple(outputs.shape)} are taken along dimension 1, as PyTorch's cross "
            "entropy does; where they stand along the last one, give a loss of your own: lambda outputs, y: "
            "F.cross_entropy(outputs.movedim(-1, 1), y)",
        )


def _are_classes_along(outputs: Outputs, targets: Any) -> list[int]:
    """The dimensions, of the last one and 1, along which outputs (N, ..., ...) may have classes of whole targets."""
    is_whole = isinstance(targets, Tensor) and not targets.is_floating_point()
    if not is_whole or not isinstance(outputs, Tensor) or outputs.dim() < 3:
        return []
    return [dim for dim in (-1, 1) if targets.shape == outputs.select(dim, 0).shape]


@dataclass(frozen=True)
class ScaledCriterion:
    """A criterion's value times a factor: (outputs, targets, samples) -> the loss summed over the batch.

    scale    the factor; None: the number of the batch's samples, which makes a mean a sum
    counted  the share of all samples that have a target which counts
    """

    criterion: Criterion
    scale: float | None = None
    counted: float = 1.0

    def __call__(self, outputs: Outputs, targets: Any, samples: int) -> Tensor:
        """The criterion's value, scaled. Raises ValueError where it is no tensor."""
        value = self.criterion(outputs, targets)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the loss must return one number, the mean over the batch, as a tensor; got {_kind_of(value)}"
            )
        return value * (samples if self.scale is None else self.scale)


def _kind_of(value: Any) -> str:
    """What a loss returned, for a person."""
    if isinstance(value, tuple):
        kinds = ", ".join(type(entry).__name__ for entry in value)
        return f"a tuple ({kinds}); (mean, weight) is for the loss(model, batch) of Problem.custom (--problem)"
    return f"a {type(value).__name__}, without a gradient" if isinstance(value, float) else f"a {type(value).__name__}"


def summed_criterion(loss: str | Criterion, criterion: Criterion, data: Batches) -> SummedCriterion:
    """The loss summed over a batch, so that any cut into batches gives one mean.

    A criterion's mean is multiplied by the samples. That of PyTorch's cross entropy is over the weights of the targets'
    classes, or over those targets that are not ignored, and so no mean over samples where there are such: its sum is
    taken then, times samples over weights of all data, which makes the mean that of a single batch.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        return ScaledCriterion(criterion, 1)
    entropy: Any = nn.CrossEntropyLoss() if loss == "crossentropy" else loss
    if is_of(ENTROPIES, entropy) and entropy.reduction == "mean":  # of others, `reduction` may do nothing
        weighed = _samples_per_weight(data, entropy.weight, entropy.ignore_index)
        if weighed is not None:
            sum_of = copy.copy(entropy)
            sum_of.reduction = "sum"
            return ScaledCriterion(sum_of, *weighed)
    return ScaledCriterion(criterion)


def _samples_per_weight(data: Batches, weight: Tensor | None, ignored: int) -> tuple[float, float] | None:
    """Samples over the weights of all targets that count, and the share with such; None where all samples count alike.

    Of streamed data one pass is made where there are weights, or several targets a sample.
    """
    first = targets_of(next(iter(data.rebatched(1))))
    if not isinstance(first, Tensor):
        return None
    is_soft = first.is_floating_point()
    if isinstance(data, Streamed) and first.dim() < 2 + is_soft and (is_soft or (weight is None and ignored == -100)):
        return None
    sums: list[Tensor] = []
    count, each, are_weighed = 0, set(), False  # targets of a sample
    own = None if weight is None else weight.detach().cpu()
    for batch in data:
        targets = targets_of(batch)
        if targets.is_floating_point():  # probabilities (N, C, ...): a mean over all but the classes, weighted or not
            places = targets[:, 0].shape if targets.dim() > 1 else targets.shape
            weights = torch.ones(places, device="cpu" if own is not None else targets.device)
        else:
            weights = targets != ignored  # on the device: the host waits for no batch
            if own is not None:
                known, are_weighed = weights.cpu(), True
                weights = in_float64(own)[torch.where(known, targets.cpu(), 0)] * known
        sums.append(torch.stack([weights.sum(), (weights[..., None].flatten(1) != 0).any(1).sum()]))
        count += weights.numel()
        each.add(weights.numel() / max(samples_in(batch), 1))
    total, counted = torch.stack(sums).sum(0).tolist()
    if not are_weighed and total == count and len(each) == 1:
        return None
    if total <= 0:
        raise NoWeight("every target is ignored, or has weight 0: the loss is undefined")
    return data.samples / total, counted / data.samples
