"""Losses by their formulas, of those that PyTorch cannot differentiate twice: margins, CTC.

Each takes PyTorch's arguments and gives PyTorch's value. x are outputs (N, C) or (C,), y their labels.

    multi margin          sum_{j != y} w_y max(0, m - x_y + x_j)^p / C
    multilabel margin     sum_{y in Y, j not in Y} max(0, 1 - x_y + x_j) / C
    CTC                   - log of the sum over alignments, by the forward recursion (Graves et al. 2006,
                          doi:10.1145/1143844.1143891), in logarithms
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IMPOSSIBLE = -1e30  # the logarithm of an alignment's probability that is 0: finite, so that derivatives are


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The loss of each sample, their mean or their sum."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Hinge of a label's lead over every other class."""
    if size_average is not None or reduce is not None or p not in (1, 2):
        return F.multi_margin_loss(input, target, p, margin, weight, size_average, reduce, reduction)
    y = target.reshape(-1, 1)
    rows = input if input.dim() == 2 else input.reshape(1, -1)
    hinge = (margin - rows.gather(1, y) + rows).clamp(min=0)
    if p == 2:
        hinge = hinge.square()
    if weight is not None:
        hinge = hinge * weight[y]
    loss = hinge.scatter(1, y, 0.0).sum(1) / rows.shape[1]
    return reduced(loss if target.dim() else loss.squeeze(0), reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Hinge of every label's lead over every class that is none; the labels of a row end at its first -1."""
    if size_average is not None or reduce is not None:
        return F.multilabel_margin_loss(input, target, size_average, reduce, reduction)
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1, input.shape[-1])
    is_label = (y >= 0).long().cumprod(1)
    y = y.clamp(min=0)
    others = torch.zeros_like(y).scatter_add(1, y, is_label) == 0
    hinge = (1 - x.gather(1, y)[:, :, None] + x[:, None, :]).clamp(min=0)
    counted = (is_label[:, :, None] * others[:, None, :]).to(x.dtype)
    loss = (hinge * counted).sum((1, 2)) / x.shape[1]
    return reduced(loss if input.dim() == 2 else loss.squeeze(0), reduction)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Of log_probs (T, N, C) or (T, C); one step of the recursion for each of T."""
    device = log_probs.device
    rows = log_probs if log_probs.dim() == 3 else log_probs[:, None]
    steps = torch.as_tensor(input_lengths, device=device).reshape(-1)
    counts = torch.as_tensor(target_lengths, device=device).reshape(-1)
    labels = _padded_labels(targets, counts, rows.shape[1], blank)
    n, states = labels.shape[0], 2 * labels.shape[1] + 1
    # blanks between labels and at both ends: states 0, 2, 4, ... are blanks
    extended = labels.new_full((n, states), blank)
    extended[:, 1::2] = labels
    # a blank between two labels may be left out where they differ
    skips = torch.zeros(n, states, dtype=torch.bool, device=device)
    skips[:, 2:] = (extended[:, 2:] != blank) & (extended[:, 2:] != extended[:, :-2])
    emitted = rows.clamp(min=IMPOSSIBLE).gather(2, extended.expand(rows.shape[0], n, states))
    start = torch.arange(states, device=device) < 2
    alpha = emitted[0].masked_fill(~start, IMPOSSIBLE)
    for t in range(1, rows.shape[0]):
        one = F.pad(alpha, (1, 0), value=IMPOSSIBLE)[:, :-1]
        two = F.pad(alpha, (2, 0), value=IMPOSSIBLE)[:, :states].masked_fill(~skips, IMPOSSIBLE)
        following = torch.logsumexp(torch.stack([alpha, one, two]), 0) + emitted[t]
        alpha = torch.where((t < steps)[:, None], following, alpha)
    last = 2 * counts[:, None]
    ends = torch.cat([alpha.gather(1, last), alpha.gather(1, (last - 1).clamp(min=0))], 1)
    ends = torch.stack([ends[:, 0], ends[:, 1].masked_fill(counts == 0, IMPOSSIBLE)], 1)
    loss = -torch.logsumexp(ends, 1)
    loss = loss.masked_fill(loss.detach() > -0.1 * IMPOSSIBLE, 0.0 if zero_infinity else torch.inf)
    if reduction == "mean":
        return (loss / counts.clamp(min=1)).mean()
    return reduced(loss if log_probs.dim() == 3 else loss.squeeze(0), reduction)


def _padded_labels(targets: Tensor, counts: Tensor, samples: int, blank: int) -> Tensor:
    """(N, S) labels: those of one sequence after the other, or (N, S) already; what is behind a row's end is blank."""
    targets = targets.to(counts.device).long()
    width = int(counts.max()) if len(counts) else 0
    places = torch.arange(width, device=counts.device)
    if targets.dim() == 1:
        starts = counts.cumsum(0) - counts
        index = (starts[:, None] + places).clamp(max=max(0, len(targets) - 1))
        labels = targets[index] if len(targets) else targets.new_full((samples, width), blank)
    else:
        labels = targets[:, :width]
    return labels.masked_fill(places >= counts[:, None], blank)
