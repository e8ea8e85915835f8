"""Whether a copy of a model in another precision is the same function: its outputs over some samples are compared.

A model may ask for precisions (`x.dtype == torch.float32`, `torch.rand(3, dtype=x.dtype)`), compare its inputs with a
number that float32 rounds (`x == -9.9`), or make whole numbers of them (`(10 * x).long()`). Its copy is then another
function, whose Hessian is not the model's however small the rounding. Outputs are compared, not losses: rounding
changes them by a few epsilons, and in a loss that cancels it may be all.

Price: a pass in either precision over the first batch, of at most `MAX_SAMPLES` samples, of a large model a few.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.seeding import same_random_state

MAX_SAMPLES = 256
LARGE, FEW_SAMPLES = 1_000_000, 16  # parameters from which fewer samples are taken
MAX_DIFFERENCE = 0.05  # of outputs, relative to the largest: under autocast rounding in bfloat16 comes near to 0.02


def refuse_other_function(twin: Problem, problem: Problem, state: Mapping[str, Tensor] | None = None) -> None:
    """Raise ValueError where a problem over a copy in another precision has other outputs than over the model.

    state  tensors of the point, by name, at which the copy is; None: the model's own

    Nothing is said where outputs and loss are one step, or where the outputs hold no floating-point numbers.
    """
    if not problem.separable:
        return
    is_large = sum(p.numel() for p in problem.model.parameters()) >= LARGE
    size = min(FEW_SAMPLES if is_large else MAX_SAMPLES, problem.data.batch_size)
    own = _outputs(problem, next(iter(problem.rebatched(size).data)), state or {})
    other = _outputs(twin, next(iter(twin.rebatched(size).data)), {})
    for a, b in zip(own, other, strict=True):
        largest, difference = float(a.abs().max()), float((a - b).abs().max())
        if difference > MAX_DIFFERENCE * largest:
            raise ValueError(
                "the model is another function in that precision (its outputs differ by "
                f"{difference / (largest or 1.0):.2g} of the largest): it asks for the precision, or compares its "
                "inputs with numbers that are rounded in the other one (x == -9.9)"
            )


def _outputs(problem: Problem, batch: Batch, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The floating-point tensors that a model gives for a batch, in float64; those of no numbers left out."""
    with torch.inference_mode(False), torch.no_grad(), temporary_parameters(problem.model, state), same_random_state(0):
        leaves = pytree.tree_leaves(problem.forward(problem.model, batch))
    return [t.detach().double() for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
