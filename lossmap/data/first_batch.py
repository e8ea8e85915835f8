"""What a model sets from the first batch that it is ever given: ActNorm's scales, a codebook, a running range.

Its first pass writes into parameters, buffers or attributes, and later passes read what stands there. At each point of
a survey it would be set anew, from whatever batch comes first, over the weights that were to be read. It is found by a
pass over one batch in front of another: the loss of the second is then not what it is by itself. Price: a pass
over at most 8 samples; where it leaves anything changed, ten more over at most 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch, FixedBatches, map_tensors
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.data.skipped_checks import skip
from lossmap.seeding import same_random_state


def set_by_first_batch(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The names of what the first batch sets and the loss depends on, such as `1.loc, 1.scale`; None where nothing is.

    tolerance  relative difference of two values that is rounding
    """
    try:
        return _set_by_first(problem, batch, tolerance)
    except Exception as error:  # user code may raise any exception, as on few samples
        skip("what the first batch sets", error, problem, batch)
        return None


def _set_by_first(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    others = other_samples(problem, batch)
    names = _changed_by_a_pass(problem, others[0])
    if not names:
        return None

    def losses(*batches: Batch) -> list[float]:
        """Of these batches one after the other, the first of which is the first ever."""
        with temporary_parameters(problem.model, {}), torch.enable_grad():
            values = []
            for each in batches:
                with same_random_state(20):
                    values.append(float(problem.total(each).detach()))
        return values

    alone, again = losses(batch, batch)
    if not _agree(alone, again, tolerance):  # it carries something, or is not repeatable
        return None
    for first in others:
        behind, repeated = (losses(first, batch)[1] for _ in range(2))
        if _agree(behind, repeated, tolerance) and not _agree(alone, behind, tolerance):
            return ", ".join(names)
    return None


def other_samples(problem: Problem, batch: Batch) -> list[Batch]:
    """Some other samples: both halves of these, or the last of batches that are not to be cut."""
    if isinstance(problem.data, FixedBatches) and len(problem.data.batches) > 1:
        return [problem.data.batches[-1]]
    half = samples_in(batch) // 2
    return [map_tensors(lambda t, cut=cut: t[cut] if t.dim() else t, batch) for cut in (slice(half), slice(half, None))]  # type: ignore[misc]


def _changed_by_a_pass(problem: Problem, batch: Batch) -> list[str]:
    """The names of tensors and other attributes of the model that the first pass leaves changed."""
    model = problem.model
    with temporary_parameters(model, {}), torch.enable_grad():
        before = marks_of(model)
        with same_random_state(20):
            problem.total(batch)
        return [name for name, mark in marks_of(model).items() if before.get(name, ()) != mark]


def marks_of(model: nn.Module) -> dict[str, Any]:
    """By which each tensor and each number of a model's modules is known: of tensors their sum and their norm."""
    return dict(_marks(model))


def _marks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in held.items():
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".lstrip("."), _sums(value)
            elif isinstance(value, (bool, int, float, type(None))):
                yield f"{prefix}.{name}".lstrip("."), value


def _sums(t: Tensor) -> tuple[Any, ...]:
    t = t.detach()
    if t.is_nested:  # which has no shape
        return (t.dtype,)
    if t.layout != torch.strided or not t.numel():
        return tuple(t.shape), t.dtype
    size = float(torch.linalg.vector_norm(t)) if t.is_floating_point() or t.is_complex() else 0.0
    return tuple(t.shape), t.dtype, complex(t.sum()), size


def _agree(a: float, b: float, tolerance: float) -> bool:
    """Whether two values are the same but for rounding; NaN is the same as NaN."""
    if a != a or b != b:
        return a != a and b != b
    gap = abs(a - b)
    return gap <= tolerance * max(abs(a), abs(b)) or a == b
