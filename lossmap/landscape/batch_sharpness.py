"""Batch sharpness: the mean over random batches of the curvature of a batch's loss along its own gradient.

    E_B [ g_B^T H_B g_B / |g_B|^2 ]      g_B and H_B gradient and Hessian of the mean loss of the batch B

Of stochastic gradient descent it, and not the largest eigenvalue of the whole Hessian, is seen to settle at 2 over the
learning rate (Andreyev and Beneventano 2024, arXiv:2412.20553: the mean of the quotients, as in the authors' code).
Batches are drawn without replacement within each, by the seed; batches that are never cut are taken as given. The loss
of each is the mean over its own weights, where classes have some or targets are ignored. The error is the standard
error over batches and rounding together; that is measured at one batch, by its quotient in another precision. Price: a
gradient and a product of each batch, and two of one batch beside a copy of the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import hypot, nan, sqrt

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_rounding import FLOOR_EPSILONS
from lossmap.curvature.hvp_plan import ProductCheck
from lossmap.curvature.product_check import check_product
from lossmap.curvature.rounding import EXTRAPOLATED_SAFETY, MAX_SAMPLES, SAFETY, first_samples, problem_in
from lossmap.data.batches import Batches, FixedBatches, Resident, Streamed, map_tensors
from lossmap.data.criteria import NoWeight
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import selected
from lossmap.seeding import generator
from lossmap.sums import in_float64

log = logging.getLogger("lossmap")


@dataclass(frozen=True)
class BatchSharpness:
    """Of batches of so many samples.

    value    the mean, in the unit of the loss per squared unit of theta; NaN where no batch has a gradient
    error    its standard error over batches and rounding together; NaN of a single one
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
    quotients: list[float] = []
    rounding = 0.0
    for data in _batches(problem, size, count, seed):
        try:
            own = problem.over_part(data)
            quotient = _quotient(own, parameters, check)
        except NoWeight:
            continue
        if quotient is None:
            continue
        if not quotients:
            rounding = _rounding(own, parameters, check)
        quotients.append(quotient)
    values = np.array(quotients)
    if isinstance(problem.data, FixedBatches):
        size = problem.data.batch_size
    if not len(values):
        return BatchSharpness(nan, nan, 0, size)
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else nan
    return BatchSharpness(float(values.mean()), hypot(error, rounding * float(abs(values).mean())), len(values), size)


def _quotient(problem: Problem, parameters: str, check: bool | ProductCheck) -> float | None:
    """The curvature along the gradient over all of a problem's data; None where that is 0."""
    gradient = loss_and_gradient(problem, parameters).gradient
    length = float(gradient.norm())
    if length == 0.0:
        return None
    operator = build_operator(replace(problem, checked=True), "hessian", parameters, check=check)
    v = (gradient / length).to(operator.dtype)
    return float((in_float64(v) * in_float64(operator @ v)).sum() / in_float64(v).square().sum())


def _rounding(problem: Problem, parameters: str, check: bool | ProductCheck) -> float:
    """The share of a quotient by which rounding may move it; 0 where it cannot be measured in another precision."""
    own = next(iter(selected(problem.model, parameters).values())).dtype
    if own not in (torch.float32, torch.float64):
        return 0.0
    other, safety = (torch.float64, SAFETY) if own == torch.float32 else (torch.float32, EXTRAPOLATED_SAFETY)
    few, _ = first_samples(problem, MAX_SAMPLES)
    try:
        here, there = _quotient(few, parameters, check), _quotient(problem_in(few, other), parameters, False)
    except Exception as failure:  # somebody's own forward may raise anything in another precision
        text = (str(failure).splitlines() or [type(failure).__name__])[0]
        log.info("the rounding of batch sharpness is not measured in another precision (%s)", text)
        return 0.0
    if not here or there is None:
        return 0.0
    ratio = 1.0 if own == torch.float32 else torch.finfo(own).eps / torch.finfo(other).eps
    return safety * ratio * min(1.0, abs(here - there) / abs(here)) + FLOOR_EPSILONS * torch.finfo(own).eps


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
