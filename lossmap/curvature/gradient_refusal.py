"""Refusals of a gradient that is not that of the loss, with the cause where it is known.

A model that runs in float64 is judged by `product_check`. One that does not is judged here in its own precision,
coarsely: its gradient is refused where layers are known to have another (quantized ones), and where differences of the
loss with three large steps all differ from it by more than `MAX_ERROR` and rounding. Price: some ten passes over six
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, inf, isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.curvature.culprits import known_other_gradients, suspects
from lossmap.curvature.differences import FewSamples, random_part
from lossmap.curvature.operators import Product
from lossmap.curvature.overwritten import overwritten_result
from lossmap.data.problem import Problem
from lossmap.sums import in_float64, norm

SAMPLES = 6
STEPS = (1e-2, 3e-3, 1e-3)  # shares of theta
MAX_ERROR = 0.1  # of the derivative along a vector, relative to what the gradient and the loss have along such a one
HALVES = (torch.bfloat16, torch.float16)
STEP_OF_ONE = 0.1  # relative, of a tensor that is asked whether the loss follows it
MAX_NAMES = 3  # in a sentence
ROUNDING_EPSILONS = 64.0  # of the loss, in its own precision


def refuse_gradient(few: FewSamples, error: float) -> NoReturn:
    """Raise ValueError for a gradient that is not the loss's, and differs by so much; infinite where the loss jumps."""
    if error == inf:
        raise ValueError(
            "the loss jumps at these parameters: however small a step is, it changes by as much; it has no Hessian "
            "here. Look for a value that the model rounds or casts to whole numbers, as PyTorch's orthogonal "
            "parametrization does with orthogonal_map='householder', its default where a weight is not square; "
            "'cayley' and 'matrix_exp' do not"
        )
    known = known_other_gradients(few.problem.model)
    if known:
        raise ValueError(
            f"the gradient that PyTorch gives is not that of the loss (it differs by {error:.1g} from the loss's own "
            f"changes), so that its derivative is no Hessian: {known}"
        )
    cast = half_precision(few)
    if cast is not None:
        raise ValueError(
            f"the model casts to {cast} in its forward pass, so that its loss changes in steps of rounding (it differs "
            f"by {error:.1g} from what the gradient says): a curvature cannot be told from that rounding; leave the "
            "cast out, or take torch.autocast in its place, under which rounding is measured and part of the bars"
        )
    _refuse_cut_off(few)
    names = suspects(few, 1)
    through = f" through {names}" if names else ""
    raise ValueError(
        f"the gradient that PyTorch gives{through} is not that of the loss (it differs by {error:.1g} from the loss's "
        "own changes): a backward that is not its forward's derivative, as a straight-through estimator has, a stopped "
        "gradient (detach, .data, no_grad), or a value read from a parameter (.item(), NumPy); its derivative is no "
        f"Hessian, so write the loss in differentiable operations{_frozen_advice(few)}"
    )


def _refuse_cut_off(few: FewSamples) -> None:
    """Raise ValueError where tensors that the loss follows get no gradient at all, as those of a frozen backbone."""
    try:
        names = [name for name in without_gradient(few) if _moves_the_loss(few, name)]
    except Exception:  # user code may raise anything, and nothing is known then
        return
    if not names:
        return
    own, several = dict(few.problem.model.named_parameters()), len(names) > 1
    them = "them" if several else "it"
    shown = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    frozen = [name for name in names if name in own and not own[name].requires_grad]
    some = f"{len(names)} of the {len(few.names)} tensors that are counted" if several else "one tensor that is counted"
    text = (
        f"the loss follows {shown}, but passes no gradient to {them} ({some}; torch.no_grad, "
        "detach, .data or .item() in the forward pass), so that no Hessian is known there"
    )
    if len(names) == len(few.names):
        raise ValueError(f"{text}; let the loss be computed with gradients")
    if len(frozen) == len(names):
        way = "leave the frozen parameters out: parameters='trainable' (--parameters trainable)"
    else:
        way = (
            f"freeze {them} (requires_grad_(False)) and take parameters='trainable' (--parameters trainable), or name "
            "the others by a regular expression (--parameters REGEX)"
        )
    raise ValueError(f"{text}; {way}, or compute with gradients")


def without_gradient(few: FewSamples) -> list[str]:
    """The tensors of theta that no gradient of the loss reaches."""
    with few.moving() as parameters, torch.enable_grad():
        loss = few.problem.total(few.batch)
        if not loss.requires_grad:
            return list(few.names)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [name for name, gradient in zip(few.names, gradients, strict=True) if gradient is None]


def _moves_the_loss(few: FewSamples, name: str) -> bool:
    """Whether the loss is another one where a tensor is moved by a tenth of its size."""
    here = few.state[name]
    size = STEP_OF_ONE * (norm(here) or 1.0)
    v = random_part(here, "whole", 0)
    there = few.moved(lambda i, _, t: t + size / (norm(v) or 1.0) * v, [name])
    first, again = few.repeated(2)
    return first == again != there.repeated(1)[0]


def _frozen_advice(few: FewSamples) -> str:
    """What to do where frozen parameters are counted, as those of a teacher that is called without gradients."""
    own = dict(few.problem.model.named_parameters())
    frozen = [name for name in few.names if name in own and not own[name].requires_grad]
    if not frozen:
        return ""
    return (
        f"; or leave out the frozen parameters ({frozen[0]}{', ...' if len(frozen) > 1 else ''}), which the "
        "loss may pass no gradient to: parameters='trainable' (--parameters trainable)"
    )


def refuse_overwritten(error: Exception) -> None:
    """Raise ValueError where an error comes of results that are overwritten in place, in whatever precision."""
    sentence = overwritten_result(error)
    if sentence is not None:
        raise ValueError(sentence) from error


class _Halves(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the precision of the first cast from a higher to a half one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped is to import PyTorch's compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`, with the mode itself off."""
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        is_cast = isinstance(given, Tensor) and given.dtype in (torch.float32, torch.float64)
        if self.found is None and is_cast and isinstance(result, Tensor) and result.dtype in HALVES:
            self.found = str(result.dtype).removeprefix("torch.")
        return result


def half_precision(few: FewSamples) -> str | None:
    """The half precision that a pass casts to, by name; None where it casts to none."""
    halves = _Halves()
    try:
        with few.moving(), halves:
            few.problem.total(few.batch)
    except Exception:  # an operation that bears no such look
        return None
    return halves.found


def refuse_in_own_precision(problem: Problem, names: Sequence[str], product: Product) -> None:
    """Raise ValueError where a gradient in the model's own precision is clearly not the loss's; see the module."""
    known = known_other_gradients(problem.model)
    if known:
        raise ValueError(
            f"the gradient that PyTorch gives is not that of the loss, so that its derivative is no Hessian: {known}"
        )
    try:
        few = FewSamples.in_own_precision(problem, names, product, SAMPLES)
        loss, gradient = few.loss_and_gradient()
        whole = [random_part(t, "whole", i) for i, t in enumerate(few.theta)]
        along = [g * ((norm(t) or 1.0) / (norm(g) or 1.0)) for g, t in zip(gradient, few.theta, strict=True)]
        error = max(_gradient_error(few, v, gradient, loss) for v in (whole, along))
    except Exception:  # user code may raise anything, and nothing is known then
        return
    if error:
        refuse_gradient(few, error)


def _gradient_error(few: FewSamples, v: Sequence[Tensor], gradient: Sequence[Tensor], loss: float) -> float:
    """The smallest relative error of the derivative along a vector over some steps; 0 where one is within bounds."""
    slope = sum(float((in_float64(g) * in_float64(d)).sum()) for g, d in zip(gradient, v, strict=True))
    usual = hypot(*(norm(g) * norm(d) / max(g.numel(), 1) ** 0.5 for g, d in zip(gradient, v, strict=True)))
    epsilon = max(float(torch.finfo(t.dtype).eps) for t in few.theta)
    errors = []
    for h in STEPS:
        change = (few.loss(v, h) - few.loss(v, -h)) / (2 * h)
        size = max(abs(change), abs(slope) + usual)
        difference = abs(change - slope)
        if not isfinite(difference) or difference <= MAX_ERROR * size + ROUNDING_EPSILONS * epsilon * abs(loss) / h:
            return 0.0
        errors.append(difference / size)
    return min(errors)
