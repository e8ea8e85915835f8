"""How far rounding moves the products of one operator: measured, by the same products in another precision.

    rounding   SAFETY max_i |(H - H64) v_i|    v_1 random, v_2 ~ H64 v_1: towards the top eigenvector, and
                                               v_3 ~ (H - H64) v_2: towards the largest error

A product in float64 sees what noise and another order of samples do not: terms that cancel (1 - p with p -> 1) lose the
same digits in every sum. What is measured so bounds eigenvalues, noise floors, counts and traces (`linalg.Rounding`).
For float64 itself there is no such twin: the error of its float32 twin is scaled by the ratio of the precisions where
that has digits left, else eps |J^T J v| is allowed, J the Jacobian of the outputs: the order of what a loss cancels.
The same is allowed where products and gradient are 0 altogether: a loss below what its terms resolve gives such zeros.

Unit: that of the operator's eigenvalues. Price: `STEPS` products in either precision over some
`MAX_SAMPLES` samples, and a copy of the model. Symbols: H the operator, n its size, v vectors of length one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.copies import lazy_copy
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.operators import CurvatureOperator, Product, Total, gauss_newton, made_by_all
from lossmap.curvature.same_function import refuse_other_function
from lossmap.data.batches import Batch, FixedBatches, move_batch
from lossmap.data.borrow import copy_of, temporary_parameters, to_precision
from lossmap.data.held_model import refuse_held
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.linalg.operator import ROUNDING_EPSILONS, SymmetricOperator
from lossmap.memory import return_freed_memory
from lossmap.module_walks import named_tensors
from lossmap.seeding import normal
from lossmap.sums import in_float64, moved_from

log = logging.getLogger("lossmap")
_failures: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # why not, each of which is a warning once

STEPS = 3  # products in which rounding is looked for
SAFETY = 3.0  # the largest error seen is taken so many times
EXTRAPOLATED_SAFETY = 10.0  # the same where it was seen in float32: in float64 it is another draw, only of that order
MAX_SAMPLES = 512  # over which it is looked for
FLOOR_EPSILONS = 16.0  # of the largest eigenvalue: what a search adds in the operator's own precision
MAX_RELATIVE = 1e-2  # of the largest eigenvalue: more is allowed at no other point, but measured
MAX_EXTRAPOLATED = 0.1  # the relative error of a float32 twin beyond which it says nothing on float64


@dataclass(frozen=True)
class MeasuredRounding:
    """What was measured of one operator.

    rounding  how far rounding may move its eigenvalues, in their unit
    ratio     the same at least, relative to the largest absolute eigenvalue
    relative  what was measured, relative to the largest absolute eigenvalue there
    """

    rounding: float
    ratio: float
    relative: float

    @classmethod
    def elsewhere(cls, relative: float, epsilon: float) -> MeasuredRounding:
        """What is allowed at other points of a survey, before it is known whether it must be measured there too.

        Proportional to the eigenvalues alone: an absolute allowance from a point of large ones would drown small ones.

        relative  as measured at one point; epsilon  the unit roundoff of the products
        """
        return cls(0.0, max(ROUNDING_EPSILONS * epsilon, min(relative, MAX_RELATIVE)), relative)


# (a problem, a precision, the product) -> the operator in that precision, over a copy of the model at the point
TwinOperator = Callable[[Problem, torch.dtype, Product], SymmetricOperator]


@dataclass(frozen=True, eq=False)
class RoundingProbe:
    """Measures the rounding of an operator when called.

    problem    the operator's, at the model's own tensors
    operator   (problem over fewer samples) -> the operator over them
    state      tensors that the model has at the point, by name; None: its own
    samples    over about how many it is measured
    batch      samples of a batch there; None: as the data are cut
    twin       makes the operator in another precision; None: by double backward
    """

    problem: Problem
    parameters: str
    product: Product
    total: Total
    operator: Callable[[Problem], SymmetricOperator]
    state: Mapping[str, Tensor] | None = None
    samples: int = MAX_SAMPLES
    batch: int | None = None
    twin: TwinOperator | None = None

    def __call__(self) -> MeasuredRounding | None:
        """The rounding; None where the model runs in no other precision, and no Jacobian is to be had."""
        few, is_whole = first_samples(self.problem, self.samples, self.batch)
        single = self.operator(few)
        epsilon, floor = float(torch.finfo(single.dtype).eps), FLOOR_EPSILONS
        try:
            error, scale = self._compared(few, single)
        except Exception as failure:  # somebody's own forward may raise anything in another precision
            text = (str(failure).splitlines() or [type(failure).__name__])[0]
            known = _failures.setdefault(self.problem.model, set())
            log.log(
                logging.INFO if text in known else logging.WARNING,
                "rounding is not measured in another precision (%s): error bars allow for %g roundings of the largest "
                "eigenvalue, and for those of what the model's outputs cancel, which may be too little",
                text,
                ROUNDING_EPSILONS,
            )
            known.add(text)
            error, scale, floor = None, 0.0, ROUNDING_EPSILONS
        safety = SAFETY
        if single.dtype == torch.float64:
            safety = EXTRAPOLATED_SAFETY
        return_freed_memory(few.model)
        if error is None or (error == scale == 0.0 and self._is_flat(few)):
            error = self._cancelled(few, single)
        if error is None:
            return None
        ratio = floor * epsilon
        if not is_whole and scale > 0.0:  # others may have a larger scale: then rounding grows with it
            ratio = max(ratio, safety * error / scale)
        return MeasuredRounding(safety * error, ratio, safety * error / scale if scale > 0.0 else 0.0)

    def in_float64(self, kinks: float = 0.0) -> SymmetricOperator:
        """The operator over all samples in float64, by double backward where that is right.

        kinks  its own, see `linalg.Rounding`

        Raises what the model raises there.
        """
        operator = self.in_precision(self.problem, torch.float64)
        return replace(operator, kinks=kinks)  # type: ignore[type-var]

    def in_precision(self, problem: Problem, dtype: torch.dtype, product: Product | None = None) -> SymmetricOperator:
        """The operator over a copy of the model in another precision, at the point; see `in_precision`.

        Raises what the model raises there, and RuntimeError on the other ranks of a team, which all go without.
        """
        product = product or self.product
        device = next(iter(self.problem.model.parameters())).device
        twin = self.twin

        def make() -> SymmetricOperator:
            if twin is None:
                return in_precision(problem, dtype, self.parameters, product, self.total, self.state)
            return twin(problem, dtype, product)

        return made_by_all(self.total, device, make)

    def _compared(self, few: Problem, single: SymmetricOperator) -> tuple[float | None, float]:
        """(the largest difference of products in two precisions, their scale); without it where the twin drowns."""
        if single.dtype != torch.float64:
            return largest_difference(single, self.in_precision(few, torch.float64))[:2]
        twin = self.in_precision(few, torch.float32)
        error, scale, relative = largest_difference(twin, single)
        if relative > MAX_EXTRAPOLATED:
            return None, scale
        return error * float(torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps), scale

    def _is_flat(self, few: Problem) -> bool:
        """Whether the gradient is 0 too: a product of 0 is then one that underflowed, or that rounding took away."""
        with temporary_parameters(few.model, self.state or {}):
            return not bool(loss_and_gradient(few, self.parameters, self.total).gradient.any())

    def _cancelled(self, few: Problem, single: SymmetricOperator) -> float | None:
        """eps |J^T J v| over samples; None where the loss does not call the model, whose outputs are meant."""
        if not few.separable:
            few = replace(few, forward=OutputsWithin(few.forward), separable=True)
        squared = replace(few, loss=half_square)
        own: AbstractContextManager[object] = nullcontext()
        squares: SymmetricOperator
        try:
            squares = self.in_precision(squared, single.dtype, gauss_newton)
        except Exception as failure:  # the loss calls no model, or a copy is another function, or does not run
            if isinstance(few.forward, OutputsWithin):
                log.info("nor by the model's outputs: %s", failure)
                return None
            squares = CurvatureOperator(squared, gauss_newton, self.parameters, self.total)
            own = temporary_parameters(few.model, self.state or {})
        v, size = unit(in_float64(normal(single.size, "rounding"))), 0.0
        with own:
            for _ in range(STEPS):
                image = in_float64(squares @ v.to(single.device, single.dtype)).cpu()
                size = float(image.norm())
                if size == 0.0:
                    break
                v = image / size
        return float(torch.finfo(single.dtype).eps) * size


@dataclass(frozen=True)
class OutputsWithin:
    """(model, batch) -> all that the model returns while a loss of model and batch is computed, which calls it."""

    loss: Callable[[nn.Module, Batch], object]

    def __call__(self, model: nn.Module, batch: Batch) -> list[object]:
        """The outputs, of one call after the other."""
        seen: list[object] = []
        handle = model.register_forward_hook(lambda module, inputs, outputs: seen.append(_copied(outputs)))
        try:
            self.loss(model, batch)
        finally:
            handle.remove()
        return seen


def _copied(outputs: object) -> object:
    """The same with copies of its tensors, in their graph: a loss may write into its model's outputs."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, outputs)


def half_square(outputs: object, batch: Batch) -> Tensor:
    """Half the sum of the squared outputs, whose Gauss-Newton matrix is J^T J."""
    leaves = [f for f in pytree.tree_leaves(outputs) if isinstance(f, Tensor) and f.is_floating_point()]
    return 0.5 * torch.stack([f.square().sum() for f in leaves]).sum()


def unit(v: Tensor) -> Tensor:
    """A vector divided by its length, in its own place."""
    length: Tensor = v.norm()
    return v.div_(length)


def largest_difference(single: SymmetricOperator, double: SymmetricOperator) -> tuple[float, float, float]:
    """(the largest |(A - B) v|, the largest |B v|, the largest ratio of the two), v as the module's first lines say."""
    v = unit(in_float64(normal(single.size, "rounding")))
    error, scale, relative = 0.0, 0.0, 0.0
    worst: Tensor | None = None  # the direction of the largest difference; power iteration needs few of its digits
    for step in range(STEPS):
        # of a large model a vector in float64 is two copies of the weights: few at a time, changed in their own places
        v = in_float64(v.to(single.dtype))
        reference = in_float64(double @ v.to(double.device, double.dtype)).cpu()
        v = v.to(single.dtype)
        difference = in_float64(single @ v.to(single.device)).cpu()
        size, error_here = float(reference.norm()), float(difference.sub_(reference).norm())
        if error_here > error:
            error, worst = error_here, difference.div_(error_here).bfloat16()
        del difference  # by this name it would stay through the next product
        if step < STEPS - 1:
            relative = max(relative, error_here / size) if size else 0.0
        scale = max(scale, size)
        # the last step is one of power iteration on the difference itself, whose errors may lie in a few directions
        if worst is not None and (step == STEPS - 2 or size == 0.0):
            v, worst = unit(in_float64(worst)), None
        elif size > 0.0:
            v = reference.div_(size)
        else:
            break
        del reference
    return error, scale, relative


def extrapolated_rounding(single: SymmetricOperator, double: SymmetricOperator) -> float:
    """How far rounding may move the eigenvalues of products in float64, by what it does to those of another precision.

    Their difference times the ratio of the precisions: all that is known of a matrix that is 0 but for rounding.
    """
    ratio = float(torch.finfo(double.dtype).eps / torch.finfo(single.dtype).eps)
    return EXTRAPOLATED_SAFETY * ratio * largest_difference(single, double)[0]


def first_samples(problem: Problem, samples: int = MAX_SAMPLES, batch: int | None = None) -> tuple[Problem, bool]:
    """The problem over its first samples, about so many in whole batches of this size, and whether these are all."""
    data = problem.data
    if data.samples < 2 * samples or isinstance(data, FixedBatches):
        return problem, True
    size = min(batch or data.batch_size, samples)
    first = tuple(islice(data.rebatched(size), samples // size))
    return problem.with_data(FixedBatches(first)), False


def in_precision(
    problem: Problem,
    dtype: torch.dtype,
    parameters: str,
    product: Product,
    total: Total,
    state: Mapping[str, Tensor] | None = None,
) -> CurvatureOperator:
    """The operator over a copy of the model in another precision, by double backward; the model itself is not touched.

    state  tensors of the point, by name; None: the model's own
    """
    twin = problem_in(problem, dtype, state)
    return CurvatureOperator(twin, product, parameters, total)


def problem_in(problem: Problem, dtype: torch.dtype, state: Mapping[str, Tensor] | None = None) -> Problem:
    """The same problem in another precision, over a copy of its model.

    Raises what the model's forward raises there, and ValueError for a loss that holds the model itself, and for a model
    that is another function in the other precision.
    """
    own = next(p for p in problem.model.parameters() if p.is_floating_point())

    def count(batch: Batch) -> float:  # a problem may count with its own model, which stays as it is
        return problem.count(move_batch(batch, moved_from(own.device), own.dtype))

    model = copy_of(problem.model)
    tensors = named_tensors(model)
    for name, tensor in (state or {}).items():
        tensors[name].data = lazy_copy(tensor)
    twin = replace(problem.over(to_precision(model, dtype)), data=problem.data.to(dtype=dtype))
    if twin.count is problem.count is not samples_in:
        twin = replace(twin, count=count)
    refuse_held(twin, problem.model)
    refuse_other_function(twin, problem, state)
    return twin


__all__ = ["MeasuredRounding", "RoundingProbe", "extrapolated_rounding", "in_precision", "problem_in"]
