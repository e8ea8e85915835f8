"""The problem: a model, a loss and the data over which the loss is a mean.

    L(theta) = 1/N sum_i loss(f(theta, x_i), y_i)        N samples, nats for cross entropy

A loss is asked for a batch's *sum* over samples, so that any cut into batches, and any shares among ranks,
give the same mean. The usual criteria of PyTorch are means over the batch and are multiplied by its samples.
A problem borrows its model: nothing changes parameters, buffers, mode or `.grad` but inside `temporary_parameters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data.batch_parts import inputs_of, targets_of, with_targets
from lossmap.data.batch_structure import as_arrays, in_own_containers, open_batch
from lossmap.data.batches import Batch, Batches, FixedBatches, copied, move_batch
from lossmap.data.borrow import evaluate_in_training, evaluated_in_training, temporary_parameters
from lossmap.data.criteria import (
    ACCURACY,
    CorrectClasses,
    Criterion,
    Metric,
    NoWeight,
    Outputs,
    SupervisedLoss,
    accuracy_over,
    criterion_and_unit,
    ignored_target,
    metric_of,
    module_form,
    refuse_criterion,
    refuse_no_module,
    summed_criterion,
    with_class_targets,
    with_each_batch,
    with_tensor_targets,
)
from lossmap.data.drawn_loss import ONE_DRAW, Draws
from lossmap.data.huggingface_pass import model_within
from lossmap.data.loaders import as_batches, check_no_pair, collated
from lossmap.data.model_entries import entries_of
from lossmap.data.one_precision import HALF, floating_dtypes, in_one_precision
from lossmap.data.outputs import logits_of
from lossmap.data.outside_state import accompany
from lossmap.data.preconditioner import Preconditioner
from lossmap.data.sample_count import samples_in
from lossmap.geometry.directions import move_point, origin_of
from lossmap.geometry.wrappers import within_ddp
from lossmap.keywords import checked_init, checked_keywords
from lossmap.seeding import same_random_state


def ignored_by(problem: Problem) -> int | None:
    """The target that a problem's loss ignores, as far as it says; None for none."""
    return ignored_target(problem.loss.loss) if isinstance(problem.loss, SupervisedLoss) else None


def _is_double(model: nn.Module) -> bool:
    """Whether a model is in float64."""
    return any(p.dtype == torch.float64 for p in model.parameters())


def _is_finer(batch: Batch, model: nn.Module) -> bool:
    """Whether a batch holds float64 for a model in float32."""
    single = {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    return single and torch.float64 in floating_dtypes(batch)


def _value_and_weight(loss: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    """The number that a user's loss returns for a batch, and the batch's weight: its samples, where it gives none."""
    try:
        value, weight = _returned(loss, model, batch), None
    except RuntimeError as error:
        if type(error) is RuntimeError and "dtype" in str(error) and _is_finer(batch, model):
            raise RuntimeError(
                f"{error}; the batches hold float64 and go to the loss as they are, the model is in float32: give "
                "x.float(), or of NumPy's arrays x.astype('float32')"
            ) from error
        raise
    value = _loss_within(value)
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"the loss must return one number per batch, or (mean, weight); got {len(value)} values")
        value, weight = value
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise ValueError(f"the loss must return one number per batch; got {_named(value)}")
    if weight is None:
        return value, samples_in(batch)
    return value, _checked_weight(weight)


def gives_weight(loss: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch) -> bool:
    """Whether a user's loss gives a batch's weight beside its value."""
    return isinstance(_loss_within(_returned(loss, model, batch)), tuple)


def _returned(loss: Callable[[nn.Module, Batch], Any], model: nn.Module, batch: Batch) -> Any:
    """What a user's loss returns for a batch; one that takes NumPy's arrays, as its loader gives them, gets arrays."""
    try:
        return in_one_precision(loss, _is_double(model), model, in_own_containers(batch))
    except (TypeError, AttributeError) as error:
        if not _asks_for_arrays(error):
            raise
    return in_one_precision(loss, _is_double(model), model, as_arrays(batch))


def _asks_for_arrays(error: TypeError | AttributeError) -> bool:
    """Whether code failed since it got a tensor in the place of an array, as `torch.from_numpy(batch[0])` does."""
    if isinstance(error, TypeError):
        return "np.ndarray (got Tensor)" in str(error)
    return isinstance(error.obj, Tensor) and hasattr(np.ndarray, str(error.name))


def _named(value: Any) -> str:
    """What a loss returned that is no number, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} without the entry loss, but {', '.join(map(str, value)) or 'none'}"
    return f"a {type(value).__name__}" + (": return the tensor itself, not its .item()" if value is not None else "")


def _loss_within(value: Any) -> Any:
    """The loss of what a training step or a model returned: its entry `loss`, as a trainer takes it; else the value."""
    if isinstance(value, Mapping) and "loss" in value:  # also the outputs of Hugging Face's models
        return value["loss"]
    return value


def _checked_weight(weight: Any) -> float:
    """A batch's weight as a number, an int where it is whole. Raises ValueError where it is no weight."""
    if not any(isinstance(weight, kind) for kind in (Tensor, np.ndarray, np.generic, Number)):
        raise ValueError(
            f"beside the loss may stand the batch's weight alone, a number; got a {type(weight).__name__}: "
            "metrics go to Problem.supervised(..., metrics={name: function of outputs and targets})"
        )
    size = weight.numel() if isinstance(weight, Tensor) else np.size(weight)
    if size != 1:
        raise ValueError(f"the weight of a batch must be one number; got {size} of them: their sum is the weight")
    number = float(weight.detach() if isinstance(weight, Tensor) else weight)
    if not (np.isfinite(number) and number >= 0):
        raise ValueError(f"the weight of a batch must be finite and >= 0; got {number:g}")
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class CustomLoss:
    """A loss of model and batch as `Problem.forward`: (model, batch) -> the loss summed over the batch's samples.

    loss       (model, batch) -> a scalar, or (scalar, weight)
    reduction  whether that scalar is the `mean` or the `sum` over the batch's samples
    """

    loss: Callable[[nn.Module, Batch], Any]
    reduction: str

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss; 0 of a batch without weight, whose own mean may be NaN."""
        value, weight = _value_and_weight(self.loss, model, batch)
        if self.reduction == "sum":
            return value
        if weight == 0 and not value.isfinite():
            return torch.zeros_like(value)
        return value * weight


@dataclass(frozen=True, eq=False)
class CustomCount:
    """The samples of a batch, or its weight, as a loss of model and batch reports them."""

    loss: Callable[[nn.Module, Batch], Any]
    model: nn.Module

    def __call__(self, batch: Batch) -> float:
        """The number of samples, or the weight; the loss runs with gradients, since it may differentiate by its inputs.

        The model is borrowed here as well: a problem over a copy of it counts with this one, which may be in training.
        """
        with temporary_parameters(self.model, {}):
            return _value_and_weight(self.loss, self.model, batch)[1]


@partial(checked_init, instead="make it by Problem.supervised(model, loss, data) or Problem.custom(model, loss, data)")
@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a loss and the data over which the loss is a mean. Make one by `Problem.supervised` or `Problem.custom`.

    The model is borrowed: after any call its parameters, buffers, mode and gradients are as before. A problem can be
    pickled where its model, loss and data can: with `pickle` where the loss is a name, a module of PyTorch, or
    a function that stands in a module; with `cloudpickle` also where it is a lambda or a function within a function.

    Attributes:
        model: the network; the data follow to its device when the problem is made.
        data: the samples of one split, in batches.
        forward: (model, batch) -> outputs f.
        loss: (outputs, batch) -> the loss summed over the batch's samples, a scalar.
        count: batch -> its samples, or its weight where the loss gives one.
        metrics: further means over samples, by name (`acc`).
        separable: whether outputs and loss are truly two steps, as Gauss-Newton needs.
        unit: of the loss, such as nats.
        noise_seed: a random loss starts from this seed at every evaluation; None where the loss draws nothing.
        notes: how the loss is evaluated, a sentence each, where that is not as a mean over any samples.
        checked: whether `loss_check.check_loss` has seen it.
        draws: how targets are drawn for the Monte-Carlo Fisher matrix: `Draws(seed, count)`.
        preconditioner: of the preconditioned Hessian.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(4, 3)
        >>> lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
        Problem(Linear, 15 parameters, 20 samples, metrics: acc)

    """

    model: nn.Module
    data: Batches
    forward: Callable[[nn.Module, Batch], Outputs]
    loss: Callable[[Outputs, Batch], Tensor]
    count: Callable[[Batch], float]
    metrics: Mapping[str, Metric]
    separable: bool = True
    unit: str = "nats"
    noise_seed: int | None = None
    notes: tuple[str, ...] = ()
    checked: bool = False
    draws: Draws = ONE_DRAW
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        functions = (self.forward, self.loss, *(metric.total for metric in self.metrics.values()))
        object.__setattr__(self, "_company", accompany(self.model, functions))

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name != "_company"}
        return own | {"_in_training": evaluated_in_training(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = state.pop("_in_training", ())
        self.__dict__.update(state)
        evaluate_in_training(self.model, names)
        self.__post_init__()

    @classmethod
    @checked_keywords
    def supervised(
        cls,
        model: nn.Module,
        loss: str | Criterion,
        data: Any,
        *,
        batch_size: int | None = None,
        metrics: Mapping[str, Metric | Criterion] | None = None,
    ) -> Problem:
        """A model that is called with inputs, and a loss of (outputs, targets), mean over the batch.

        Args:
            model: the network, on any device, in any mode; it is evaluated in evaluation mode. Of one wrapped by
                DistributedDataParallel the module within is taken, whose passes concern no other process.
            loss: `crossentropy` (nats), `mse`, or a callable such as `nn.CrossEntropyLoss()`; its class weights and the
                targets that it ignores count as in one batch of all samples, whatever the cut, also where they are
                keywords of a `functools.partial` of `F.cross_entropy`.
            data: a DataLoader, a Dataset, (inputs, targets) as tensors or arrays, or anything that yields such
                batches, in memory where they fit, else streamed; floating-point numbers are taken in the model's
                precision, but targets in float32 where that is lower. A batch's last entry is the target, what stands
                before it is given to the model (a tuple as several arguments, a dict as keywords); of a dict batch, or
                any mapping such as a `BatchEncoding`, the target is `labels`, `targets`, `target`, `label` or `y`, and
                what the model does not take is left out and reported (`path`, `index`). Of what the model returns,
                `crossentropy`, `mse` and PyTorch's modules take the `logits` where there are some (Hugging Face's
                models).
            batch_size: samples in a batch; by default the loader's.
            metrics: by name, each a `Metric` or a function (outputs, targets) -> mean over the batch's samples; without
                them the accuracy, where the targets are class labels and the outputs are (N, C > 1).

        Returns:
            The problem.

        Raises:
            ValueError: where targets are no labels or probabilities for a cross entropy, and where batches do not fit
                together.

        Example:
            >>> import torch, lossmap
            >>> model = torch.nn.Linear(4, 1)
            >>> lossmap.Problem.supervised(model, "mse", (torch.randn(20, 4), torch.randn(20, 1))).samples
            20

        """
        refuse_no_module(model)
        model, loss = within_ddp(model), module_form(loss)
        criterion, unit = criterion_and_unit(loss)
        read = as_batches(collated(data), batch_size, prepare=entries_of(model))
        batches = with_class_targets(_with_targets(with_tensor_targets(read, loss)), loss)
        if metrics is None:
            metrics = accuracy_over(batches, loss)
        own = {name: metric_of(name, metric) for name, metric in metrics.items()}
        total = SupervisedLoss(loss, summed_criterion(loss, criterion, batches))
        batches = _on_device_of(model, batches, cast=True)
        forward = _call_for_logits if isinstance(loss, (str, nn.Module)) else _call  # other losses take all outputs
        return cls(model, batches, forward, total, samples_in, own, True, unit)

    @classmethod
    @checked_keywords
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

        Args:
            model: the network; of one wrapped by DistributedDataParallel the module within.
            loss: (model, batch) -> a scalar, or (scalar, weight), the weight being any number >= 0 of the batch alone,
                such as its tokens; without it its samples count: its first dimension, or what a DataLoader put into it.
            data: as of `supervised`, but that batches go to the loss as they are, and those in a list are batches each.
            reduction: whether that scalar is the `mean` or the `sum` over the batch's samples.
            batch_size: samples in a batch; by default the loader's.
            unit: of the loss.

        Returns:
            The problem; it does not keep outputs and loss apart, so that there is no Gauss-Newton matrix of it.

        Raises:
            ValueError: for another reduction, and where batches do not fit together.

        Example:
            >>> import torch, lossmap
            >>> model = torch.nn.Linear(2, 1)
            >>> def energy(model, batch):
            ...     return (model(batch) ** 2).mean()
            >>> lossmap.Problem.custom(model, energy, torch.randn(10, 2)).samples
            10

        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum'; got {reduction!r}")

        refuse_no_module(model)
        refuse_criterion(loss)
        model = within_ddp(model)
        check_no_pair(data)
        data = _on_device_of(model, as_batches(data, batch_size))
        return cls(model, data, CustomLoss(loss, reduction), _itself, CustomCount(loss, model), {}, False, unit)

    @property
    def samples(self) -> float:
        """The samples N of this problem's data (of this rank's share), or their weight; ValueError where it is 0."""
        if self.weight == 0:
            raise NoWeight
        return self.weight

    @cached_property
    def weight(self) -> float:
        """The same, 0 where no sample counts: of a rank's share that may be, where those of other ranks do."""
        if self.count is samples_in:
            return self.data.samples
        with temporary_parameters(self.model, {}):  # to count may mean to run the loss
            return sum(self.count(copied(batch)) for batch in self.data)

    def first_that_counts(self, batches: Iterable[Batch]) -> Batch:
        """The first batch whose weight is not 0; the first of all where that is every one's, or not to be had."""
        batches = iter(batches)
        first = next(batches)
        if self.count is not samples_in:
            with suppress(Exception), torch.enable_grad(), same_random_state(20):  # user code may raise any exception
                return next(batch for batch in chain([first], batches) if self.count(copied(batch)))
        return first

    @property
    def sample_count(self) -> int:
        """What a report counts: the samples or tokens N; where these have a broken weight, the data's samples."""
        if self.samples == int(self.samples):
            return int(self.samples)
        return self.data.samples

    def total(self, batch: Batch) -> Tensor:
        """The loss summed over a batch's samples, differentiable in the model's parameters."""
        return self.loss(self.forward(self.model, batch), batch)

    def with_data(self, data: Batches) -> Problem:
        """The same problem over other data."""
        return replace(self, data=data)

    def over_part(self, data: Batches) -> Problem:
        """The problem of a part of its data by itself: loss and accuracy are means over the weights of that part.

        A rank's share is none: `with_data` leaves the weights those of all samples, so that shares add up. Raises
        NoWeight where every target of the part is ignored, or has weight 0.
        """
        if data is self.data or not isinstance(self.loss, SupervisedLoss):
            return self.with_data(data)
        loss = self.loss.loss
        total = summed_criterion(loss, criterion_and_unit(loss)[0], data)
        own = {name: m for name, m in self.metrics.items() if not isinstance(m.total, CorrectClasses)}
        if len(own) < len(self.metrics):
            own |= accuracy_over(data, loss)
        return replace(self, data=data, loss=replace(self.loss, total=total), metrics=own)

    def rebatched(self, size: int) -> Problem:
        """The same problem, its data cut into batches of this size."""
        return self.with_data(self.data.rebatched(size))

    def share(self, rank: int, size: int) -> Problem:
        """The same problem over one rank's share of the data."""
        return self.with_data(self.data.share(rank, size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The problem with its data there; the model, which is borrowed, is moved by its owner."""
        return self.with_data(self.data.to(device, dtype))

    def over(self, model: nn.Module) -> Problem:
        """The same problem over another model, by which samples are counted too where the loss counts them."""
        count = self.count
        if isinstance(count, CustomCount):
            count = CustomCount(count.loss, model)
        return replace(self, model=model, count=count)

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return (
            f"Problem({type(self.model).__name__}, {n:,} parameters, {self.data.samples:,} samples, "
            f"metrics: {', '.join(self.metrics) or 'none'})"
        )


def _with_targets(data: Batches) -> Batches:
    """The data; raises ValueError where they are inputs and targets of different numbers."""
    for batch in data.batches if isinstance(data, FixedBatches) else ():
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch):
            lengths = sorted((*t.shape, 0)[0] for t in batch)
            if batch[1].dim() == 0 and batch[0].dim() > 0:
                raise ValueError(
                    "a batch must hold several samples; got a target without a first dimension, beside inputs of "
                    f"shape {tuple(batch[0].shape)}: give single samples, as of an IterableDataset, through "
                    "torch.utils.data.DataLoader(data, batch_size=64)"
                )
            is_time_first = batch[0].dim() > 1 and batch[1].dim() > 0 and batch[0].shape[1] == len(batch[1])
            if lengths[0] != lengths[1] and not is_time_first:
                raise ValueError(
                    f"inputs and targets must have the same number of samples; got first dimensions {lengths}; single "
                    "samples become batches by torch.utils.data.DataLoader(data, batch_size=64)"
                )
    return data


def _on_device_of(model: nn.Module, data: Batches, cast: bool = False) -> Batches:
    """The data on the model's device, where that is not the CPU; with `cast` in its precision, where it has one."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    precisions = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtype = precisions.pop() if cast and len(precisions) == 1 else None
    if dtype in HALF:
        data, dtype = with_each_batch(data, _InputsIn(dtype)), None
    if device.type == "cpu" and dtype is None:
        return data
    return data.to(device, dtype)


@dataclass(frozen=True)
class _InputsIn:
    """A batch with its inputs in half precision, and targets as the loss takes them, which is computed in float32."""

    dtype: torch.dtype

    def __call__(self, batch: Batch) -> Batch:
        """That batch."""
        return with_targets(move_batch(batch, None, self.dtype), move_batch(targets_of(batch), None, torch.float32))


def _itself(outputs: Outputs, batch: Batch) -> Tensor:
    result: Tensor = outputs
    return result


def _call(model: nn.Module, batch: Batch) -> Outputs:
    positional, keywords = inputs_of(in_own_containers(batch))
    try:
        outputs = in_one_precision(lambda: model(*positional, **keywords), _is_double(model))
    except RuntimeError as error:
        inputs = [t for t in (*positional, *keywords.values()) if isinstance(t, Tensor)]
        kinds = {t.dtype for t in inputs if not t.is_floating_point() and not t.is_complex()}
        if type(error) is not RuntimeError or " type" not in str(error).replace("dtype", " type") or not kinds:
            raise
        advice = "give x.float()"
        if torch.uint8 in kinds:
            advice = "where they are images, give x.float() / 255, or as the network was trained"
        names = ", ".join(sorted(map(str, kinds)))
        raise RuntimeError(f"{error}; the inputs are whole numbers ({names}): {advice}") from error
    except TypeError as error:
        if "forward() " not in str(error):
            raise
        names = ", ".join(keywords) or f"{len(positional)} of its entries by position"
        raise TypeError(
            f"{error}: the model is called with all of a batch but its targets ({names}); where it takes others, say "
            "so by lossmap.Problem.custom(model, loss, data), with loss(model, batch) -> the mean over the batch"
        ) from error
    if not isinstance(outputs, Tensor):
        open_batch(outputs)  # of a class that is not known yet, such as a dataclass
    return outputs


DECODER = (
    "the model's decoder reads the labels, shifted by one, which are no input here: take lossmap.huggingface(model, "
    "data), which has the model's own loss, the mean over tokens"
)


def _call_for_logits(model: nn.Module, batch: Batch) -> Outputs:
    """The outputs, or their logits. Raises ValueError for one row of logits a token, whose labels may be shifted."""
    lacks_inputs = _reads_labels(model) and "decoder_input_ids" not in inputs_of(batch)[1]
    try:
        outputs = _call(model, batch)
    except (TypeError, ValueError) as error:
        if not lacks_inputs:
            raise
        raise ValueError(f"{DECODER} ({error})") from error
    logits = logits_of(outputs)
    if logits is outputs or logits.dim() < 3:
        return logits
    labels = targets_of(batch)
    if lacks_inputs and isinstance(labels, Tensor) and labels.dim() == 2:  # a decoder that reads its encoder's input
        raise ValueError(DECODER)
    if logits.shape[:-1] == getattr(labels, "shape", None):
        raise ValueError(
            f"the model gives logits for every token, of shape {tuple(logits.shape)}: take lossmap.huggingface(model, "
            "data), which has the model's own loss, the mean over tokens, shifted by one where the model predicts"
        )
    return logits


def _reads_labels(model: nn.Module) -> bool:
    """Whether its decoder does, as those of Hugging Face that are trained from sequence to sequence."""
    return bool(getattr(getattr(model_within(model), "config", None), "is_encoder_decoder", False))


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
