"""Formulas of operations that PyTorch cannot differentiate twice, or differentiates wrongly.

Weight norm's fused kernel has a wrong second derivative, without a word; hardsigmoid and embedding bags have none;
sparse gradients of embeddings can be used in none; distances between rows and reductions of segments have none; Huber's
loss cannot be linearized. Each is computed here as PyTorch documents it; more losses in `loss_formulas`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lossmap.curvature.loss_formulas import ctc_loss, multi_margin_loss, multilabel_margin_loss, reduced

_as_in_training: ContextVar[bool] = ContextVar("as in training", default=False)


@contextmanager
def padding_still() -> Iterator[None]:
    """Inside, the row of a table that `padding_idx` names has no gradient, as in training."""
    token = _as_in_training.set(True)
    try:
        yield
    finally:
        _as_in_training.reset(token)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim`; over all for -1. The kernel's second derivative is wrong."""
    if dim == -1:
        scale: Tensor = g / v.square().sum().sqrt()
        return v * scale
    others = [i for i in range(v.dim()) if i != dim % v.dim()]
    if not others:  # one dimension: every entry by itself
        return v * (g / v.abs())
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6; in place it is written into x, since the caller may go on with that."""
    result = F.hardtanh(input + 3, 0.0, 6.0) / 6
    if not inplace:
        return result
    return input.copy_(result)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """With dense gradients, also of the row that `padding_idx` holds still in training: it counts where it is read."""
    padding = padding_idx if _as_in_training.get() else None
    return F.embedding(input, weight, padding, max_norm, norm_type, scale_grad_by_freq, False)


def embedding_of_weight(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The same as `torch.embedding` takes it."""
    padding = padding_idx if _as_in_training.get() else -1
    return torch.embedding(weight, indices, padding, scale_grad_by_freq, False)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of the table looked up, then their sum, mean or maximum by bag, (bags, dim)."""
    if input.dim() == 2:
        bags, width = input.shape
        bag = torch.arange(bags, device=input.device).repeat_interleave(width)
    else:
        if offsets is None:
            raise ValueError("offsets has to be a 1D Tensor but got None")
        starts = offsets[:-1] if include_last_offset else offsets
        bags = len(starts)
        bag = torch.searchsorted(starts, torch.arange(len(input), device=input.device), right=True) - 1
    index = input.reshape(-1)
    rows = F.embedding(index, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    counts = torch.ones_like(index, dtype=weight.dtype)
    if padding_idx is not None:
        counts = (index != padding_idx % len(weight)).to(weight.dtype)
    if mode == "max":
        low = rows.masked_fill(counts[:, None] == 0, -torch.inf)
        spread = bag[:, None].expand_as(low)
        largest = low.new_full((bags, weight.shape[1]), -torch.inf).scatter_reduce(0, spread, low, "amax")
        return largest.masked_fill(largest == -torch.inf, 0.0)
    scale = counts if per_sample_weights is None else counts * per_sample_weights.reshape(-1)
    sums = rows.new_zeros(bags, weight.shape[1]).index_add(0, bag, rows * scale[:, None])
    if mode == "sum":
        return sums
    return sums / counts.new_zeros(bags).index_add(0, bag, counts).clamp(min=1)[:, None]


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """d^2 / 2 within delta, delta (|d| - delta / 2) beyond, d = x - y: c (d - c / 2), where c is d clamped."""
    d = input - target
    c = d.clamp(-delta, delta)
    loss = c * (d - 0.5 * c)
    if weight is not None:
        loss = loss * weight
    return reduced(loss, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Huber's loss divided by beta; |d| for 0."""
    if beta <= 0 or size_average is not None or reduce is not None:
        return F.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
    return huber_loss(input, target, reduction, beta) / beta


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Distances between rows, (..., P, M) and (..., R, M) -> (..., P, R), of their differences: nothing cancels."""
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances between the rows i < j of (N, M), one row after the other."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[i] - input[j], p)


def _length(d: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension, with derivatives 0 where they do not exist, as PyTorch's distances have."""
    if p == 0:
        return (d != 0).to(d.dtype).sum(-1) + 0.0 * d.sum(-1)  # with a derivative of 0, as PyTorch's
    if p == torch.inf:
        return d.abs().amax(-1)
    if p == 1:
        return d.abs().sum(-1)
    # an entry of 0 is kept out of the powers, whose second derivative at 0 is infinite for p < 2
    zero = d == 0
    powers = d.square() if p == 2 else d.abs().masked_fill(zero, 1.0).pow(p).masked_fill(zero, 0.0)
    total = powers.sum(-1)
    none = zero.all(-1)
    total = total.masked_fill(none, 1.0)
    return (total.sqrt() if p == 2 else total.pow(1.0 / p)).masked_fill(none, 0.0)


EMPTY = {"sum": 0.0, "mean": 0.0, "max": -torch.inf, "min": torch.inf, "prod": 1.0}  # what a segment starts from


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> Tensor:
    """Sums and their like over segments along `axis`, of (*batch, L, *rest) -> (*batch, S, *rest)."""
    if lengths is None and offsets is not None:
        lengths = offsets.diff(dim=-1)
    if lengths is None or indices is not None:
        return torch.segment_reduce(data, reduce, lengths=lengths, indices=indices, offsets=offsets, axis=axis)
    batch, rest, segments = data.shape[:axis], data.shape[axis + 1 :], lengths.shape[-1]
    x = data.reshape(-1, data.shape[axis], rest.numel())
    lengths = lengths.reshape(-1, segments)
    ends = lengths.cumsum(1)
    places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1).contiguous()
    # what stands behind the last segment goes into one more, which is cut off
    segment = torch.searchsorted(ends, places, right=True)
    start = EMPTY[reduce] if initial is None else float(initial)
    if reduce == "prod":
        belongs = segment[:, None, :] == torch.arange(segments, device=x.device)[:, None]
        result = start * torch.where(belongs[..., None], x[:, None], 1.0).prod(2)
    else:
        kind = {"sum": "sum", "mean": "sum", "max": "amax", "min": "amin"}[reduce]
        target = x.new_full((len(x), segments + 1, x.shape[2]), start)
        result = target.scatter_reduce(1, segment[..., None].expand_as(x), x, kind)[:, :segments]
    if reduce == "mean":
        counts = lengths[..., None].to(x.dtype)
        result = result / counts if initial is None else result / counts.clamp(min=1)
    return result.reshape(*batch, segments, *rest)


TABLES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.embedding: embedding,
    torch.embedding: embedding_of_weight,
    torch.ops.aten.embedding: embedding_of_weight,
    torch.ops.aten.embedding.default: embedding_of_weight,
}
FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.hardsigmoid: hardsigmoid,
    **TABLES,
    F.embedding_bag: embedding_bag,
    F.huber_loss: huber_loss,
    F.smooth_l1_loss: smooth_l1_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
    torch.cdist: cdist,
    torch.pdist: pdist,
    torch.segment_reduce: segment_reduce,
}


class ByFormula(TorchFunctionMode):
    """Calls of what has no second derivative are answered by its formula."""

    formulas: Mapping[Any, Callable[..., Any]] = FORMULAS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.formulas.get(func, func)(*args, **(kwargs or {}))


class PlainTables(ByFormula):
    """Embeddings alone, so that the first derivative is that of the loss also where `padding_idx` stands in a text."""

    formulas: Mapping[Any, Callable[..., Any]] = TABLES
