"""Whether a network computes the same when its units have changed places: its outputs on one batch are compared.

In float64, on a copy, where the model runs there, else in its own precision. How far rounding may move outputs is
measured: steps of one unit roundoff in every tensor do to them what sums in another order do, but for the length of
these sums. Price: `DRAWS` + 2 forward passes of the batch in float64, and what it takes to find that the copy is the
same function.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.curvature.rounding import problem_in
from lossmap.data.batches import Batch, FixedBatches, copied
from lossmap.data.borrow import temporary_parameters
from lossmap.data.one_precision import floating_dtypes
from lossmap.data.problem import Problem
from lossmap.device_errors import raise_if_of_device
from lossmap.numerics import is_tf32
from lossmap.seeding import same_random_state, signs
from lossmap.sums import in_float64

log = logging.getLogger("lossmap")

DRAWS = 3  # of steps in the parameters
SAFETY = 5.0  # so many times what they do is taken for rounding, and more for long sums
TF32 = 2.0**-10


class _Precisions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the precisions in which operations give their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped is to import PyTorch's compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`."""
        result = func(*args, **(kwargs or {}))
        self.found |= floating_dtypes(result)
        return result


@dataclass(frozen=True)
class _Outputs:
    """A problem over one batch, read at tensors of another network."""

    problem: Problem
    batch: Batch

    def read(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """What the model gives with these tensors, in float64; the loss where that is no tensor."""
        problem = self.problem
        with temporary_parameters(problem.model, tensors), torch.no_grad(), same_random_state(0):
            batch = copied(self.batch)  # a model or loss may write into it
            outputs = problem.forward(problem.model, batch)
            leaves = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
            if not any(t.numel() for t in leaves):
                leaves = [torch.as_tensor(problem.loss(outputs, batch))]
            return [in_float64(t.detach()) for t in leaves if t.numel()]

    def epsilon(self, tensors: Mapping[str, Tensor]) -> float:
        """The unit roundoff of the coarsest precision within."""
        seen = _Precisions()
        with seen:
            self.read(tensors)
        rounds_to_tf32 = is_tf32() and next(self.problem.model.parameters()).device.type == "cuda"
        epsilon = max(float(torch.finfo(dtype).eps) for dtype in {torch.float64, *seen.found})
        return max(epsilon, TF32) if rounds_to_tf32 and torch.float32 in seen.found else epsilon

    def allowed(self, tensors: Mapping[str, Tensor], outputs: list[Tensor]) -> list[float]:
        """How far rounding may move each of the outputs that these tensors give."""
        epsilon = self.epsilon(tensors)
        moved = [0.0] * len(outputs)
        for draw in range(DRAWS):
            stepped = {
                name: t + epsilon * t * signs(t.numel(), "a step of an alignment", draw, name).to(t).view(t.shape)
                for name, t in tensors.items()
                if t.is_floating_point()
            }
            moved = [max(m, _apart(a, b)) for m, a, b in zip(moved, outputs, self.read(stepped), strict=True)]
        # errors add up along a sum, which is in float32 at least, also of numbers in half precision
        longest = max((t[0].numel() for t in tensors.values() if t.dim() > 1 and len(t)), default=1)
        in_sums = sqrt(longest) * min(1.0, float(torch.finfo(torch.float32).eps) / epsilon)
        size = [float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) for a in outputs]
        return [SAFETY * max(1.0, in_sums) * (m + epsilon * s) for m, s in zip(moved, size, strict=True)]


def refuse_other_outputs(problem: Problem, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise ValueError where outputs on the first batch differ between two states by more than rounding.

    before, after  tensors by name, in the model's precision, of a network whose units have changed places
    """
    batch = next(iter(problem.data))
    twin = _in_float64(problem.with_data(FixedBatches((batch,))))
    own = {**dict(twin.model.named_parameters()), **dict(twin.model.named_buffers())}
    one, two = ({n: t.to(own[n].detach()) for n, t in state.items()} for state in (before, after))
    there = _Outputs(twin, next(iter(twin.data)))
    outputs = there.read(one)
    if any(bool(a.isnan().any()) for a in outputs) or not any(bool(a.isfinite().any()) for a in outputs):
        raise ValueError("the outputs of the network that is to be aligned are not finite")
    for a, b, allowed in zip(outputs, there.read(two), there.allowed(one, outputs), strict=True):
        if not _apart(a, b) <= allowed < inf:
            raise ValueError(
                f"{type(problem.model).__name__} does not compute what its trace says: its outputs change when units "
                f"change places (by {_apart(a, b):.2g}, of which rounding may be {allowed:.2g}), so that it cannot be "
                "aligned"
            )


def _in_float64(problem: Problem) -> Problem:
    """The problem over a copy in float64; itself where it is in float64, and where it does not run there."""
    if all(p.dtype == torch.float64 for p in problem.model.parameters() if p.is_floating_point()):
        return problem
    try:
        return problem_in(problem, torch.float64)
    except Exception as failure:  # user code may raise anything in another precision
        raise_if_of_device(failure)
        log.info("the aligned network is checked in the precision of the model: %s", failure)
        return problem


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, infinite where only one of two numbers is finite: scores may be masked by -inf."""
    if a.shape != b.shape:
        return inf
    difference = (a - b).abs()
    return float(torch.where(a == b, 0.0, difference).nan_to_num(nan=inf).max())


__all__ = ["refuse_other_outputs"]
