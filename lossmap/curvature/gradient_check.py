"""Whether the gradient is that of the loss, where no product is compared: by differences of the loss.

    g . v = (L(theta + h v) - L(theta - h v)) / 2h        v the gradient itself, and one at random

On a few samples, in float64, over a copy of the model (see `differences`). A straight-through estimator, a stopped
gradient or a value read from a parameter give another function's. Price: two gradients and some eight forward passes
over six samples; where the loss has a kink here, twice that.
"""

from __future__ import annotations

from math import inf, isfinite

from lossmap.curvature.culprits import custom_functions
from lossmap.curvature.differences import FewSamples, Parts, random_part
from lossmap.curvature.gradient_refusal import refuse_gradient, refuse_in_own_precision, refuse_overwritten
from lossmap.curvature.operators import hessian
from lossmap.curvature.product_check import (
    ASIDE,
    SAMPLES,
    LossAlong,
    as_long,
    is_of_one_side,
    refuse_changing_loss,
)
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import selected
from lossmap.memory import return_freed_memory

FEW_SAMPLES = 2  # of a model of more parameters than that
LARGE = 1_000_000
REPEATS = 4  # evaluations of the loss that must agree before anything is refused


def check_gradient(problem: Problem, parameters: str = "weights") -> None:
    """Raise ValueError, naming the cause where it is known, where the gradient is not that of the loss.

    parameters  `weights` (dimension > 1), `all`, `trainable`, or a regular expression

    A model that does not run in float64 is judged in its own precision, coarsely. Nothing is said where the loss is not
    finite.
    """
    chosen = selected(problem.model, parameters)
    samples = SAMPLES if sum(p.numel() for p in chosen.values()) < LARGE else FEW_SAMPLES
    try:
        few = FewSamples.of(problem, tuple(chosen), hessian, samples)
        error = _error(few)
    except Exception as failure:  # user code may raise anything in float64, or in a copy
        refuse_overwritten(failure)
        refuse_in_own_precision(problem, tuple(chosen), hessian)
        return
    finally:
        return_freed_memory(problem.model)
    if not error:
        return
    refuse_changing_loss(few.repeated(REPEATS))
    # at a kink a difference is the mean of both sides; beside it the loss has a gradient
    beside = few.moved(lambda i, _, t: t + ASIDE * random_part(t, "beside a kink", i))
    if error == inf or (_error(beside) and not is_of_one_side(few, [_whole(few)])):
        refuse_gradient(few, error)


def has_custom_functions(problem: Problem, parameters: str = "weights") -> bool:
    """Whether the loss is differentiated through functions whose derivatives somebody wrote by hand.

    Their first one may be right and their second one wrong in silence: one kept an intermediate on `ctx`, one is marked
    `once_differentiable`. Price: a forward pass over a sample.
    """
    chosen = selected(problem.model, parameters)
    try:
        return bool(custom_functions(FewSamples.of(problem, tuple(chosen), hessian, 1)))
    except Exception:  # user code may raise anything in float64, or in a copy
        return True  # it is the check that says what is wrong


def _whole(few: FewSamples) -> Parts:
    """A random vector over all of theta."""
    return few.parts(lambda i, t: random_part(t, "whole", i))


def _error(few: FewSamples) -> float:
    """The relative error of the gradient along itself and along a vector at random, the larger; 0 for none."""
    loss, gradient = few.loss_and_gradient()
    if not isfinite(loss) or not all(bool(g.isfinite().all()) for g in gradient):
        return 0.0
    along = (few.parts(lambda i, t: as_long(gradient[i], t)), _whole(few))
    return max(LossAlong.along(few, v, gradient, loss).judge_gradient() or 0.0 for v in along)
