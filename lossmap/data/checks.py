"""Checks of a problem before anything is computed: finite weights, and one sample through the model and the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batch_writes import copied
from lossmap.data.batches import Batch, FixedBatches, samples_in
from lossmap.data.criteria import SupervisedLoss, takes_class_labels
from lossmap.data.datasets import labels_within
from lossmap.data.problem import Problem, temporary_parameters

FEW = 3  # samples that are put through model and loss together


def check_finite(model: nn.Module, where: str) -> None:
    """Raise ValueError where a parameter or buffer has values that are not finite, or none at all (meta tensors)."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"{where}: {name} holds no values (its device is meta); make the model on the CPU, such as by "
                "to_empty(device='cpu') and load_state_dict"
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: {name} has values that are not finite; a landscape around it is undefined")


def check_one_sample(problem: Problem, split: str) -> None:
    """Put one sample and then a few through model and loss, so that a misfit is reported before a thousand points fail.

    Raises ValueError with the shapes of the samples.
    """
    _check_labels(problem)
    try:
        with temporary_parameters(problem.model, {}):
            value = _total_of_a_sample(problem)
    except Exception as error:  # user code may raise any exception
        raise _misfit(error, f"one {split} sample", next(iter(problem.data.rebatched(1)))) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise ValueError(f"the loss must return one number per batch; got {_described(value)}")
    if problem.data.samples < 2 or isinstance(problem.data, FixedBatches):
        return
    few = next(iter(problem.data.rebatched(FEW)))
    try:
        with temporary_parameters(problem.model, {}):
            problem.total(copied(few))
    except Exception as error:  # where shapes of one sample alone can be broadcast
        raise _misfit(error, f"{samples_in(few)} {split} samples, and not on one", few) from error


def _misfit(error: Exception, samples: str, batch: Batch) -> ValueError:
    """What is raised where model or loss fail on some samples."""
    shapes = [tuple(t.shape) for t in _tensors(batch)]
    text = str(error).splitlines()[0].rstrip(".") if str(error) else "no message"
    return ValueError(
        f"the model or the loss fails on {samples} (a batch of shapes {shapes}): {type(error).__name__}: {text}; does "
        "the data set fit the model?"
    )


def _total_of_a_sample(problem: Problem) -> Tensor:
    """The loss of one sample; of several where one alone fails, as batch norm without running statistics does."""
    try:
        return problem.total(copied(next(iter(problem.data.rebatched(1)))))
    except (ValueError, RuntimeError, IndexError):
        if problem.data.samples == 1:
            raise
        return problem.total(copied(next(iter(problem.data))))


def _check_labels(problem: Problem) -> None:
    """Raise ValueError where a label has no output of the model."""
    if not isinstance(problem.loss, SupervisedLoss) or not takes_class_labels(problem.loss.loss):
        return
    try:
        with temporary_parameters(problem.model, {}):
            outputs = problem.forward(problem.model, copied(next(iter(problem.data))))
    except Exception:  # said with its shapes where the loss is tried
        return
    if isinstance(outputs, Tensor) and outputs.dim() > 1:
        labels_within(problem.data, outputs.shape[1], getattr(problem.loss.loss, "ignore_index", -100))


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
