"""Whether the weight that a loss returns beside its value is of the batch alone: a mean over it is of one loss then.

    L = sum_b w_b mean_b / sum_b w_b       w_b the weight of batch b, the same at every theta

Labels, tokens and masks are. Terms that count only while they are active (triplets of metric learning, hard examples)
and metrics are not: their sum was counted at one theta, and is another at every other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch, FixedBatches
from lossmap.data.borrow import temporary_parameters
from lossmap.data.moved_weights import MovedWeights, is_moved_in_place
from lossmap.data.problem import CustomCount, Problem, gives_weight
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import normal, same_random_state

MAX_BATCHES = 2  # of batches that are never cut, at which it is looked
SCALES = (0.05, 20.0)  # of all weights: margins turn, and every number that is made of outputs moves
DRAWS = 3  # of all weights at random, at which a classifier is right by chance alone
TOLERANCE = 1e-5  # relative, by which weights that are sums in floating point may differ


OF_FROZEN = "the weight that the loss returns beside its value depends on frozen parameters"  # a note begins so


def with_weight_checked(problem: Problem, few: Batch) -> Problem:
    """The problem; with a note where its batches' weights depend on parameters that are frozen.

    few  the samples that are looked at, of data that are not kept in batches

    Raises ValueError where the weight of a batch is another one at other values of the trainable parameters.
    """
    count = problem.count
    if not isinstance(count, CustomCount):
        return problem
    batches = [few]
    if isinstance(problem.data, FixedBatches):
        batches = list(islice(problem.data, MAX_BATCHES))
    with temporary_parameters(count.model, {}), torch.enable_grad(), same_random_state(20):
        if not gives_weight(count.loss, count.model, batches[0]):
            return problem
    named = {name: p for name, p in count.model.named_parameters() if p.is_floating_point()}
    trainable = {name: p for name, p in named.items() if p.requires_grad} or named
    seen = _differing(count, batches, trainable)
    if seen is not None:
        raise ValueError(
            f"the weight that the loss returns beside its value depends on the parameters: of one batch it is "
            f"{seen[0]:.6g} at the model's and {seen[1]:.6g} at others, so that the mean over it would be of another "
            "loss at every point. A weight is of the batch alone, such as its number of labels; return the loss alone "
            "where the second number is a metric, or where each batch's mean is to count alike"
        )
    frozen = {name: p for name, p in named.items() if name not in trainable}
    if not frozen or _differing(count, batches, frozen) is None:
        return problem
    return replace(problem, notes=(*problem.notes, f"{OF_FROZEN}; these stay at the model's own"))


def refuse_moving_frozen(problem: Problem, moving: Iterable[str | Mapping[str, Tensor]]) -> None:
    """Raise ValueError where frozen parameters, or buffers, on which a batch's weight depends move.

    moving  names of parameters, or directions by these and by buffers, along which the model is moved or differentiated
    """
    if not isinstance(problem.count, CustomCount):
        return
    moving, model = list(moving), problem.model
    depends = any(note.startswith(OF_FROZEN) for note in problem.notes)
    frozen = [name for name, p in model.named_parameters() if depends and not p.requires_grad]
    axes = [axis for axis in moving if not isinstance(axis, str)]
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point() and _moves(axes, name)}
    if any(name in moving or _moves(axes, name) for name in frozen):
        what, advice = OF_FROZEN, "leave them where they are: --parameters trainable (parameters='trainable')"
    elif buffers and _differing(problem.count, list(islice(problem.data, MAX_BATCHES)), buffers) is not None:
        what = "the weight that the loss returns beside its value depends on buffers"
        advice = "leave them where they are: without --dir-type states (states=True), or --bn recompute"
    else:
        return
    raise ValueError(
        f"{what}, which move here, so that the mean over it would be of another loss at every point; {advice}"
    )


def _moves(axes: Sequence[Mapping[str, Tensor]], name: str) -> bool:
    """Whether a tensor moves along one of the directions."""
    return any(name in axis and bool(axis[name].any()) for axis in axes)


def _differing(
    count: CustomCount, batches: Sequence[Batch], moving: Mapping[str, Tensor]
) -> tuple[float, float] | None:
    """The weight of a batch at the model's own parameters and at others, where they differ; None where none does."""
    own = _weights(count, batches, temporary_parameters(count.model, {}))
    for moved in _elsewhere(count.model, moving):
        for one, other in zip(own, _weights(count, batches, moved), strict=True):
            if abs(one - other) > TOLERANCE * max(one, other):  # of none that is NaN
                return one, other
    return None


def _elsewhere(model: nn.Module, moving: Mapping[str, Tensor]) -> Iterator[AbstractContextManager[Any]]:
    """The model borrowed at other values of these parameters, one after the other."""
    if is_moved_in_place(model):  # nothing of its size is made beside it
        yield MovedWeights(model).borrowed()
        return
    for scale in SCALES:
        yield temporary_parameters(model, {name: scale * p.detach() for name, p in moving.items()})
    for draw in range(DRAWS):
        yield temporary_parameters(model, {name: _drawn(name, p.detach(), draw) for name, p in moving.items()})


def _drawn(name: str, p: Tensor, draw: int) -> Tensor:
    """Normal numbers of about a parameter's size; 0 where some of its entries are, of which a mask may be read."""
    drawn = normal(p.numel(), "a weight beside a loss", draw, name).view(p.shape).to(p)
    if not bool(p.any()):
        return 0.1 * drawn
    return drawn * p.abs().mean() * (p != 0)


def _weights(count: CustomCount, batches: Sequence[Batch], borrowed: AbstractContextManager[Any]) -> list[float]:
    """The weights of these batches with the model borrowed so; NaN where the loss fails, as it may far away."""
    weights: list[float] = []
    with borrowed, torch.enable_grad():
        for batch in batches:
            try:
                with same_random_state(20):
                    weights.append(count(batch))
            except Exception as error:  # somebody's own loss may raise anything far away
                raise_if_of_device(error)
                weights.append(nan)
    return weights
