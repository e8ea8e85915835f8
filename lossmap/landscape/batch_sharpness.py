"""Batch sharpness: the mean over random batches of the curvature of a batch's loss along its own gradient.

    E_B [ g_B^T H_B g_B / |g_B|^2 ]      g_B and H_B gradient and Hessian of the mean loss of the batch B

Of stochastic gradient descent it, and not the largest eigenvalue of the whole Hessian, is seen to settle at 2 over the
learning rate (Andreyev and Beneventano 2024, arXiv:2412.20553: the mean of the quotients, as in the authors' code).
Batches are drawn without replacement within each, by the seed; batches that are never cut are taken as given. The loss
of each is the mean over its own weights, where classes have some or targets are ignored. The error is the standard
error over batches. Price: a gradient and a product of each batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.product_check import check_product
from lossmap.data.batches import Batches, FixedBatches, Resident, Streamed, map_tensors
from lossmap.data.criteria import NoWeight
from lossmap.data.problem import Problem
from lossmap.seeding import generator
from lossmap.sums import in_float64


@dataclass(frozen=True)
class BatchSharpness:
    """Of batches of so many samples.

    value    the mean, in the unit of the loss per squared unit of theta; NaN where no batch has a gradient
    error    its standard error over batches; NaN of a single one
    batches  whose gradient is not 0, over which it is the mean; one of ignored targets alone has none
    size     samples of a batch; of batches that are never cut, of the largest
    """

    value: float
    error: float
    batches: int
    size: int


def batch_sharpness(
    problem: Problem, size: int, count: int = 30, *, parameters: str = "weights", seed: int = 0
) -> BatchSharpness:
    """Batch sharpness over `count` random batches of `size` samples of the problem's data.

    Raises ValueError for sizes and counts out of range, and as `hessian` does; FloatingPointError where a gradient or
    a product is not finite.
    """
    if count < 2 or size < 1:
        raise ValueError(f"batch sharpness needs >= 2 batches of >= 1 samples; got {count} of {size}")
    if size > problem.data.samples:
        raise ValueError(f"a batch of {size} samples is more than the {problem.data.samples} that there are")
    check = check_product(problem, parameters, distant=False)
    quotients = []
    for data in _batches(problem, size, count, seed):
        try:
            own = problem.over_part(data)
            gradient = loss_and_gradient(own, parameters).gradient
        except NoWeight:
            continue
        length = float(gradient.norm())
        if length == 0.0:
            continue
        operator = build_operator(replace(own, checked=True), "hessian", parameters, check=check)
        v = (gradient / length).to(operator.dtype)
        quotients.append(float((in_float64(v) * in_float64(operator @ v)).sum() / in_float64(v).square().sum()))
    values = np.array(quotients)
    if isinstance(problem.data, FixedBatches):
        size = problem.data.batch_size
    if not len(values):
        return BatchSharpness(nan, nan, 0, size)
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else nan
    return BatchSharpness(float(values.mean()), error, len(values), size)


def _batches(problem: Problem, size: int, count: int, seed: int) -> list[Batches]:
    """The data of each of the batches."""
    data, made = problem.data, list[Batches]()
    if isinstance(data, FixedBatches):
        order = torch.randperm(len(data.batches), generator=generator("batch sharpness", seed))[:count].tolist()
        return [FixedBatches((data.batches[i],)) for i in order]
    for number in range(count):
        chosen = torch.randperm(data.samples, generator=generator("batch sharpness", seed, number))[:size]
        if isinstance(data, Streamed):
            made.append(replace(data, indices=[data.indices[i] for i in chosen.tolist()]))
        elif isinstance(data, Resident):
            made.append(Resident(_rows(data.tensors, chosen), min(size, data.batch_size)))
        else:
            raise ValueError(f"batch sharpness is not measured over {type(data).__name__}")
    return made


def _rows(tensors: object, chosen: Tensor) -> object:
    return map_tensors(lambda t: t[chosen.to(t.device)], tensors)
