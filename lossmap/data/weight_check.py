"""Whether the weight that a loss returns beside its value is of the batch alone: a mean over it is of one loss then.

    L = sum_b w_b mean_b / sum_b w_b       w_b the weight of batch b, the same at every theta

Labels, tokens and masks are. Terms that count only while they are active (triplets of metric learning, hard examples)
and metrics are not: their sum was counted at one theta, and is another at every other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from math import nan
from typing import Any

import torch
from torch import nn

from lossmap.data.batches import Batch, FixedBatches
from lossmap.data.borrow import temporary_parameters
from lossmap.data.moved_weights import MovedWeights, is_moved_in_place
from lossmap.data.problem import CustomCount, Problem, gives_weight
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import same_random_state

MAX_BATCHES = 2  # of batches that are never cut, at which it is looked
SCALES = (0.05, 20.0)  # of all weights: ranks and margins stay or turn, and every number that is made of outputs moves
TOLERANCE = 1e-5  # relative, by which weights that are sums in floating point may differ


def refuse_moving_weight(problem: Problem, few: Batch) -> None:
    """Raises ValueError where the weight of a batch is another one at other weights of the model.

    few  the samples that are looked at, of data that are not kept in batches
    """
    count = problem.count
    if not isinstance(count, CustomCount):
        return
    batches = [few]
    if isinstance(problem.data, FixedBatches):
        batches = list(islice(problem.data, MAX_BATCHES))
    with temporary_parameters(count.model, {}), torch.enable_grad(), same_random_state(20):
        if not gives_weight(count.loss, count.model, batches[0]):
            return
    own = _weights(count, batches, temporary_parameters(count.model, {}))
    for moved in _elsewhere(count.model):
        there = _weights(count, batches, moved)
        for one, other in zip(own, there, strict=True):
            if abs(one - other) > TOLERANCE * max(one, other):  # of none that is NaN
                raise ValueError(
                    f"the weight that the loss returns beside its value depends on the parameters: of one batch it is "
                    f"{one:.6g} at the model's and {other:.6g} at others, so that the mean over it would be of another "
                    "loss at every point. A weight is of the batch alone, such as its number of labels; return the "
                    "loss alone where the second number is a metric, or where each batch's mean is to count alike"
                )


def _elsewhere(model: nn.Module) -> Iterator[AbstractContextManager[Any]]:
    """The model borrowed at other weights, one after the other."""
    yield MovedWeights(model).borrowed()
    if is_moved_in_place(model):  # nothing of its size is made beside it
        return
    for scale in SCALES:
        named = {name: scale * p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
        yield temporary_parameters(model, named)


def _weights(count: CustomCount, batches: list[Batch], borrowed: AbstractContextManager[Any]) -> list[float]:
    """The weights of these batches with the model borrowed so; NaN where the loss fails, as it may far away."""
    weights: list[float] = []
    with borrowed, torch.enable_grad():
        for batch in batches:
            try:
                with same_random_state(20):
                    weights.append(count(batch))
            except (ValueError, ArithmeticError, RuntimeError) as error:
                raise_if_of_device(error)
                weights.append(nan)
    return weights
