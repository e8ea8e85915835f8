"""Samples that hold NaN, and make the loss NaN at the model's own weights: said before a whole map is NaN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batches import FixedBatches, Resident, map_tensors
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.seeding import same_random_state


def missing_values(problem: Problem) -> str | None:
    """A sentence on the samples in memory that hold NaN, where the loss of one of them is NaN; else None.

    A model may be made for missing values: that is no fault. Samples that are streamed are not looked through.
    """
    if isinstance(problem.data, Resident):
        return _of_samples(problem, problem.data)
    if isinstance(problem.data, FixedBatches):
        batches = [batch for batch in problem.data if any(map(_has_nan, pytree.tree_leaves(batch)))]
        if batches and _is_nan(problem, batches[0]):
            return f"NaN stands in {len(batches)} of the {len(problem.data.batches)} batches, and makes the loss NaN"
    return None


def _of_samples(problem: Problem, data: Resident) -> str | None:
    with_nan = [leaf for leaf in pytree.tree_leaves(data.tensors) if _has_nan(leaf)]
    if not with_nan:
        return None
    indices = sorted({row for t in with_nan for row in _rows_of(t.isnan())})
    batch = map_tensors(lambda t: t[indices[:1]], data.tensors)
    if not _is_nan(problem, batch):
        return None
    return (
        f"NaN stands in {len(indices):,} of the {data.samples:,} samples, the first of them sample {indices[0]}, and "
        "makes the loss NaN"
    )


def _rows_of(marks: Tensor) -> list[int]:
    """The rows with a mark, of (N, ...)."""
    rows: list[int] = marks.view(len(marks), -1).any(1).nonzero().flatten().tolist()
    return rows


def unusual_rows(data: Resident, most: int) -> list[int]:
    """Samples in memory with NaN or with a negative whole number, as ignored targets have: so many at most."""
    rows: list[int] = []
    for leaf in pytree.tree_leaves(data.tensors):
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or leaf.is_complex():
            continue
        if leaf.is_floating_point():
            marks = leaf.isnan() if _has_nan(leaf) else None
        else:
            marks = leaf < 0 if bool(leaf.min() < 0) else None
        if marks is not None:
            rows += _rows_of(marks)
    return sorted(set(rows))[:most]


def _has_nan(leaf: object) -> bool:
    """Whether a tensor holds NaN; its sum, which is cheap, says where there is none."""
    return (
        isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.sum().isnan()) and bool(leaf.isnan().any())
    )


def _is_nan(problem: Problem, batch: object) -> bool:
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(0):
        try:
            return bool(problem.total(batch).detach().isnan())
        except (ValueError, RuntimeError, IndexError):  # batch norm of a single sample
            return False
