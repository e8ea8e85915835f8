"""Tensors that a model or its loss keeps in the memory of a parameter, and reads: `self.tail = self.weight.data[2:]`.

A step of an optimizer in place changes them too. A survey gives the parameters other memory and leaves them behind, and
no gradient follows them: the loss would be another one at every point but the origin. Price: a look at what is kept;
two passes over a few samples for each that lies in such memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.memos import memos_of
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import memory_of
from lossmap.seeding import same_random_state


def refuse_aliases(problem: Problem, batch: Batch, tolerance: float) -> None:
    """Raise ValueError where the loss of a batch reads such a tensor.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    memory = {name: memory_of(p) for name, p in model.named_parameters() if _is_plain(p)}
    kept = [(memo.name, t) for memo in memos_of(model) for t in pytree.tree_leaves(memo.value)]
    for name, t in [*kept, *model.named_buffers()]:
        if not _is_plain(t):
            continue
        storage, begin, end = memory_of(t)
        below = (n for n, (other, first, last) in memory.items() if other == storage and first < end and begin < last)
        parameter = next(below, None)
        if parameter is not None and _is_read(problem, batch, t, tolerance):
            raise ValueError(
                f"{name} lies in the memory of the parameter {parameter!r}, as after .data or .detach(): a step of an "
                "optimizer changes both, a survey moves the parameter alone, and no gradient follows it; compute it "
                "from the parameter in every pass, or keep a clone() of it"
            )


def _is_read(problem: Problem, batch: Batch, t: Tensor, tolerance: float) -> bool:
    """Whether the loss follows what stands in a tensor, which is as before afterwards."""
    data = t.data
    try:
        with torch.enable_grad(), temporary_parameters(problem.model, {}):
            values = []
            for changed in (data, 1.5 * data + 0.1):
                t.data = changed
                with same_random_state(20):
                    values.append(float(problem.total(batch).detach()))
    except Exception:  # user code may raise any exception at other values
        return False
    finally:
        t.data = data
    return abs(values[1] - values[0]) > tolerance * max(map(abs, values))


def _is_plain(t: Any) -> bool:
    plain = isinstance(t, Tensor) and t.layout == torch.strided and t.device.type != "meta"
    return plain and t.is_floating_point() and t.numel() > 0


__all__ = ["refuse_aliases"]
