"""Whether a copy of a model in another precision is the same function: outputs and loss over some samples are compared.

A model or its loss may ask for precisions (`x.dtype == torch.float32`), compare what it is given with a number that
float32 rounds (`x == -9.9`), or make whole numbers of it (`(10 * x).long()`). Its copy is then another function, whose
Hessian is not the model's however small the rounding.

Both are compared at weights of a common size, +-1/sqrt(fan in): at the model's own a loss may be all rounding (1 - p
with p -> 1), there it is not. A difference is taken for rounding where it is below `FLOOR` of the largest, or where the
model rounds as much by itself: then steps in the parameters do what those of a smooth function do not. Where tensors
are in bfloat16 it is below `COARSE`. What does not run at such weights is compared at the model's own, by `COARSE`.

Price: a pass in either precision over the first batch, of at most `MAX_SAMPLES` samples, of a large model a few; where
these differ, some four passes for each of `DRAWS` more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log2
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.data.batches import Batch, copied
from lossmap.data.borrow import copy_of, temporary_parameters
from lossmap.data.held_model import HELD, holds
from lossmap.data.one_precision import floating_dtypes
from lossmap.data.problem import Problem
from lossmap.device_errors import raise_if_of_device
from lossmap.numerics import is_tf32
from lossmap.seeding import same_random_state, signs
from lossmap.sums import in_float64

MAX_SAMPLES = 256
LARGE, FEW_SAMPLES = 1_000_000, 16  # parameters from which fewer samples are taken
FLOOR = 3e-5  # of outputs or loss, relative to the largest: the rounding of most models in float32 stays below
COARSE = 0.05  # the same where something is rounded to bfloat16, which comes near to 0.02
DRAWS = 3  # of steps in the parameters
SAFETY, ULPS = 5.0, 30.0  # how many times what they do is taken for rounding: as long as differences, a unit roundoff
MAX_COMMON = 1_000_000  # entries that are given a common size: those of the last tensors


@dataclass(frozen=True)
class _Side:
    """A problem in one precision: its first batch, and the tensors at which it is, by name."""

    problem: Problem
    batch: Batch
    state: Mapping[str, Tensor]

    @property
    def epsilon(self) -> float:
        """The unit roundoff of the model's first floating-point parameter."""
        return float(next(torch.finfo(p.dtype).eps for p in self.problem.model.parameters() if p.is_floating_point()))

    def read(self, tensors: Mapping[str, Tensor], *, loss: bool = True) -> list[Tensor]:
        """The floating-point tensors that the model gives with these tensors, and the loss, in float64."""
        problem = self.problem
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(not problem.separable),  # a loss of the model may differentiate by its inputs
            temporary_parameters(problem.model, {**self.state, **tensors}),
            same_random_state(0),
        ):
            batch = copied(self.batch)  # a model or loss may write into it
            outputs = problem.forward(problem.model, batch)
            values = [outputs, problem.loss(outputs, batch)] if loss else [outputs]
            leaves = [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
            return [in_float64(t.detach()) for t in leaves if t.is_floating_point() and t.numel()]

    @property
    def common(self) -> dict[str, Tensor]:
        """The last tensors of two dimensions and more with entries of +-1/sqrt(fan in), a power of two: the same in any
        precision.
        """
        made: dict[str, Tensor] = {}
        entries = 0
        for name, p in reversed(list(self.problem.model.named_parameters())):
            if p.dim() < 2 or not p.is_floating_point() or not p.numel():
                continue
            entries += p.numel()
            if made and entries > MAX_COMMON:
                break
            size = 2.0 ** round(-0.5 * log2(p[0].numel()))
            made[name] = signs(p.numel(), "weights of a common size", name).mul_(size).to(p.detach()).view(p.shape)
        return made

    def in_its_precision(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name, as those of the model."""
        own = dict(self.problem.model.named_parameters())
        return {name: t.to(own[name].detach()) for name, t in tensors.items()}

    def rounding(self, step: float) -> float:
        """How far what twice a step in the parameters does is from twice what one does, relative to the largest.

        Of a smooth function by the step's square, of one that rounds by as much as its rounding; root mean square.
        """
        common = self.common
        tensors = {**dict(self.problem.model.named_parameters()), **self.state, **common}
        read, largest = self.read(common), 0.0
        for draw in range(DRAWS):
            signed = {
                name: (t.detach(), t.detach() * signs(t.numel(), "a step", draw, name).to(t).view(t.shape))
                for name, t in tensors.items()
                if t.is_floating_point()
            }
            once, twice = (self.read({k: t + i * step * d for k, (t, d) in signed.items()}) for i in (1, 2))
            bent = [a + (c - 2 * b) for a, b, c in zip(read, once, twice, strict=True)]
            largest = max(largest, _mean_difference(read, [a - d for a, d in zip(read, bent, strict=True)]))
        return largest

    def is_coarse(self) -> bool:
        """Whether something in a pass is rounded more coarsely than its tensors."""
        seen = _Precisions()  # type: ignore[no-untyped-call]
        with seen:
            self.read(self.common)
        return seen.is_half or (is_tf32() and next(self.problem.model.parameters()).device.type == "cuda")


class _Precisions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operation gives bfloat16 or float16, as under autocast."""

    is_half = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`."""
        result = func(*args, **(kwargs or {}))
        self.is_half |= bool({torch.float16, torch.bfloat16} & floating_dtypes(result))
        return result


def over_a_copy(problem: Problem) -> Problem:
    """The problem over a copy of its model, in the same precision, which is the same function.

    Raises ValueError where the copy is another one, or does not run where the model does, and where the loss or the
    model's own code holds the model itself; what both raise is passed on.
    """
    twin = problem.over(copy_of(problem.model))
    try:
        is_held = holds(twin, problem.model)
    except Exception as failure:  # the model's own code may raise anything over a copy
        raise_if_of_device(failure)
        if not _runs(problem):
            raise
        reason = (str(failure).splitlines() or [""])[0]
        raise ValueError(
            "a copy of the model, as copy.deepcopy makes it, does not run where the model does "
            f"({type(failure).__name__}: {reason}): {_NOT_FOLLOWED}"
        ) from failure
    if is_held:
        raise ValueError(HELD)
    refuse_other_function(twin, problem)
    return twin


def _runs(problem: Problem) -> bool:
    """Whether the loss of the first batch can be computed."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), temporary_parameters(problem.model, {}):
            problem.total(copied(next(iter(problem.data))))
    except Exception:  # then the model's own failure is the one to be told
        return False
    return True


_NOT_FOLLOWED = (
    "it keeps something that copies do not follow, such as a table by id() or by weak references, or its __deepcopy__ "
    "or __setstate__ leaves something out; let copies keep it"
)


def refuse_other_function(twin: Problem, problem: Problem, state: Mapping[str, Tensor] | None = None) -> None:
    """Raise ValueError where a problem over a copy, in another precision or the same, is another function than over the
    model.

    state  tensors of the point, by name, at which the copy is; None: the model's own
    """
    largest = _excess(problem, state or {}, twin, {})
    if not largest:
        return
    # a copy that is no copy has another cause than the precision
    plain = twin if _precision(twin) == _precision(problem) else replace(problem, model=copy_of(problem.model))
    if plain is twin or _excess(problem, state or {}, plain, state or {}):
        raise ValueError(
            "a copy of the model, as copy.deepcopy makes it, is another function (its outputs or its loss differ by "
            f"{largest:.2g} of the largest): {_NOT_FOLLOWED}"
        )
    raise ValueError(
        f"the model is another function in that precision (its outputs or its loss differ by {largest:.2g} of the "
        "largest): it asks for the precision, or compares its inputs or targets with numbers that are rounded in "
        "the other one (x == -9.9)"
    )


def _precision(problem: Problem) -> torch.dtype | None:
    return next((p.dtype for p in problem.model.parameters() if p.is_floating_point()), None)


def _excess(problem: Problem, state: Mapping[str, Tensor], twin: Problem, twin_state: Mapping[str, Tensor]) -> float:
    """By how much outputs or loss of two problems differ, relative to the largest; 0 where that may be rounding."""
    is_large = sum(p.numel() for p in problem.model.parameters()) >= LARGE
    size = min(FEW_SAMPLES if is_large else MAX_SAMPLES, problem.data.batch_size)
    here, there = (
        _Side(one, next(iter(one.rebatched(size).data)), tensors)
        for one, tensors in ((problem, state), (twin, twin_state))
    )
    try:
        common = here.common
        own, other = here.read(common), there.read(there.in_its_precision(common))
        largest, is_finite = _largest_difference(own, other)
    except Exception:  # user code may raise anything at weights for which it was not made
        is_finite = False
    if is_finite:
        allowed = FLOOR
        if largest > FLOOR:
            coarser, mean = max(here, there, key=lambda side: side.epsilon), _mean_difference(own, other)
            if ULPS * coarser.rounding(coarser.epsilon) >= mean:
                allowed = inf
            elif largest <= COARSE and (coarser.is_coarse() or SAFETY * coarser.rounding(2 * mean) >= mean):
                allowed = COARSE
    else:  # at its own weights a loss may be all rounding: it is read where there is nothing else
        alone = not problem.separable
        (largest, _), allowed = _largest_difference(here.read({}, loss=alone), there.read({}, loss=alone)), COARSE
    return largest if largest > allowed else 0.0


def _mean_difference(own: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The same as a root mean square over the tensor where that is largest; infinite where shapes differ."""
    if [t.shape for t in own] != [t.shape for t in other]:
        return inf
    largest = 0.0
    for a, b in zip(own, other, strict=True):
        difference = float((a - b).square().mean().sqrt())
        if difference:
            largest = max(largest, difference / (float(a.abs().max()) or 1.0))
    return largest


def _largest_difference(own: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, bool]:
    """The largest |a - b| relative to the largest of its tensor, infinite where shapes differ; whether all is finite.

    The host waits once.
    """
    if not own or not other:
        return (0.0 if len(own) == len(other) else inf), True
    sizes = [t.abs().max() for t in (*own, *other)]
    are_alike = [t.shape for t in own] == [t.shape for t in other]
    apart = [(a - b).abs().max() for a, b in zip(own, other, strict=True)] if are_alike else []
    device = sizes[0].device
    values = torch.stack([v.to(device) for v in (*sizes, *apart)]).tolist()
    values, differences = values[: len(sizes)], values[len(sizes) :]
    is_finite = all(map(isfinite, values))
    if not are_alike:
        return inf, is_finite
    pairs = zip(differences, values, values[len(own) :], strict=False)
    return max((d / max(a, b) for d, a, b in pairs if d), default=0.0), is_finite


__all__ = ["over_a_copy", "refuse_other_function"]
