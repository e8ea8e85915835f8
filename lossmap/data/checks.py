"""Checks of a problem before anything is computed: finite weights, and one sample through the model and the loss."""

from __future__ import annotations

from dataclasses import replace
from traceback import walk_tb
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lossmap.data.batch_parts import targets_of
from lossmap.data.batches import Batch, FixedBatches, Resident, copied
from lossmap.data.criteria import SupervisedLoss, first_argument, takes_class_labels
from lossmap.data.datasets import labels_within
from lossmap.data.problem import CustomLoss, Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.device_errors import out_of_memory
from lossmap.geometry.parameter_vector import state_tensors
from lossmap.module_walks import kinds_of
from lossmap.seeding import same_random_state
from lossmap.weak import reference

FEW = 3  # samples that are put through model and loss together
OF_MODEL = ("model", "net", "network", "module")  # what a loss of model and batch calls its first argument
OF_OUTPUTS = ("input", "inputs", "output", "outputs", "logits", "pred", "preds", "prediction", "y_hat", "y_pred")


def check_finite(model: nn.Module, where: str) -> None:
    """Raise ValueError where a parameter or buffer has values that are not finite, or none at all (meta tensors)."""
    for name, tensor in state_tensors(model).items():
        if tensor.is_meta:
            raise ValueError(
                f"{where}: {name} holds no values (its device is meta); make the model on the CPU, such as by "
                "to_empty(device='cpu') and load_state_dict"
            )
    for name, tensor in state_tensors(model).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: {name} has values that are not finite; a landscape around it is undefined")


def tried_on_samples(problem: Problem, split: str) -> Problem:
    """The problem, when one sample and then a few have been put through model and loss: misfits are reported early.

    With its batches as given, where model or loss bear no part of them. Raises ValueError with the shapes of the
    samples.
    """
    _check_labels(problem)
    problem = uncut_where_parts_fail(problem)
    try:
        with temporary_parameters(problem.model, {}):
            value = _total_of_a_sample(problem)
    except Exception as error:  # user code may raise any exception
        raise _misfit(error, f"one {split} sample", next(iter(problem.data.rebatched(1))), problem) from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise ValueError(f"the loss must return one number per batch; got {_described(value)}")
    if problem.data.samples < 2 or isinstance(problem.data, FixedBatches):
        return problem
    few = next(iter(problem.data.rebatched(FEW)))
    try:
        with temporary_parameters(problem.model, {}):
            problem.total(copied(few))
    except Exception as error:  # where shapes of one sample alone can be broadcast
        raise _misfit(error, f"{samples_in(few)} {split} samples, and not on one", few, problem) from error
    return problem


def uncut_where_parts_fail(problem: Problem) -> Problem:
    """The problem with its batches as given, or as one batch, where model or loss bear that but no part of it.

    So it is with one full graph and its dense matrix of edges: the matrix has as many rows as there are nodes, but a
    part of the rows fits no part of the nodes. Else the problem as it is. Price: two passes over a few samples, of one
    model, loss and data once.
    """
    data, model = problem.data, problem.model
    looked_at = (data, problem.forward, problem.loss, kinds_of(model))
    former = _with_parts.get(model)
    if not isinstance(data, Resident) or (former is not None and _is_same_look(former, looked_at)):
        return problem
    # as many may be one sample by chance: rows that were given one by one, images whose channels were taken for samples
    reasons = (_failure(problem, next(iter(data.rebatched(few)))) for few in (FEW, FEW + 1))
    reason = next(filter(None, reasons), None)
    if reason is None:
        _with_parts[model] = (*map(reference, looked_at[:3]), looked_at[3])
        return problem
    for own in (data.uncut(), FixedBatches((data.tensors,))):
        if _failure(problem, own.batches[0]) is None:
            number = f"the {len(own.batches)} batches as given" if len(own.batches) > 1 else "all samples as one batch"
            note = f"the model or the loss fails on a part of a batch ({reason}): it is evaluated on {number}, uncut"
            return replace(problem, data=own, notes=(*problem.notes, note))
    return problem


def _is_same_look(former: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether data, forward, loss and classes of modules are those that were looked at before."""
    return all(then() is value for then, value in zip(former[:3], now[:3], strict=True)) and former[3] == now[3]


# by model the data and functions, as references, of which parts of a batch were borne, and the classes of its modules
_with_parts: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()


def _failure(problem: Problem, batch: Batch) -> str | None:
    """Why model or loss fail on a batch; None where they do not."""
    try:
        with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
            problem.total(copied(batch))
    except Exception as error:  # user code may raise any exception
        return None if out_of_memory(error) else _first_line(error)  # memory says nothing of the samples
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else "no message"


def _misfit(error: Exception, samples: str, batch: Batch, problem: Problem) -> ValueError:
    """What is raised where model or loss fail on some samples."""
    shapes = [tuple(t.shape) for t in _tensors(batch)]
    *_, (frame, _) = walk_tb(error.__traceback__)
    raised_in = frame.f_globals.get("__name__", "")
    is_ours = isinstance(error, ValueError) and raised_in.startswith(("lossmap.data.", "lossmap.stable."))
    guess = "" if is_ours else "does the data set fit the model?"  # ours says itself what to do
    if shapes and len(shapes[0]) == 4 and shapes[0][3] in (1, 3) and shapes[0][1] not in (1, 3):
        guess = "are these images whose channels come last? x.permute(0, 3, 1, 2) puts them first"
    if isinstance(problem.forward, CustomLoss) and first_argument(problem.forward.loss) in OF_OUTPUTS:
        guess = "the loss is called with model and batch; one of outputs and targets is for Problem.supervised (--loss)"
    if isinstance(problem.loss, SupervisedLoss) and first_argument(problem.loss.loss) in OF_MODEL:
        guess = "the loss is called with outputs and targets; one of model and batch is for Problem.custom (--problem)"
    if out_of_memory(error):
        guess = "memory ran out"
    return ValueError(
        f"the model or the loss fails on {samples} (a batch of shapes {shapes}): {type(error).__name__}: "
        f"{_first_line(error)}{'; ' if guess else ''}{guess}"
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
    """Raise ValueError where the loss does not take what the model returns, or a label has no output."""
    if not isinstance(problem.loss, SupervisedLoss) or not isinstance(problem.loss.loss, (str, nn.Module)):
        return
    batch = copied(next(iter(problem.data)))
    try:
        with temporary_parameters(problem.model, {}):
            outputs = problem.forward(problem.model, batch)
    except Exception:  # said with its shapes where the loss is tried
        return
    problem.loss.refuse(outputs, targets_of(batch))
    if takes_class_labels(problem.loss.loss) and isinstance(outputs, Tensor) and outputs.dim() > 1:
        labels_within(problem.data, outputs.shape[1], getattr(problem.loss.loss, "ignore_index", -100))


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
