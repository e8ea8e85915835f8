"""Cross entropy over many classes, a few rows of the logits at a time: beside them no copy of their size is made.

    p_c = exp(d_c) / (1 + sum_{j != k} exp d_j)     probabilities, with d_c = x_c - x_k relative to the largest logit
    loss       a (log(1 + sum_{j != k} exp d_j) - d_y) + b sum_c w_c (log(1 + sum) - d_c)
    slope      r = g ((a + b W) p - a e_y - b w)
    curvature  along u: g (a + b W) p (u' - p u'), with u' = u - u_k

    x       (N, C)  logits                         y       (N,)    classes
    a, b    (N,)    the weight of a row's class, the share of label smoothing; 0 where the class is ignored
    g       (N,)    what the row's loss is multiplied by, over the sum of weights for a mean
    w, W            the classes' weights and their sum

All is made of the differences to the largest logit, so that nothing cancels, as in `losses`, whose forms take
some six arrays of the logits' size instead. Where classes are whole numbers and without label smoothing, the slope is
(a + b W) g p in all entries but one, so that curvature reads the slope and what its row's class should hold: a product
keeps no other array of that size.

`cross_entropy` and `cross_entropy_slope` are operations of PyTorch's dispatcher: a trace holds each as one node.
Price: benchmarks/vocabulary.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

MEAN, SUM = 1, 2  # PyTorch's numbers of reductions; 0 is none
MIN_CLASSES = 2048  # from which on it is worth the loop over rows
CHUNK_BYTES = {"cpu": 1 << 22}  # of the rows that are in work, which then stay in a CPU's cache
GPU_CHUNK_BYTES = 1 << 26  # of any other device, where each row of work has its launches


def is_chunked(x: Tensor, target: Tensor) -> bool:
    """Whether logits and targets are of the kind that is computed here: many classes, given as whole numbers."""
    if x.dim() != 2 or target.dim() != 1 or target.is_floating_point():
        return False
    return x.shape[1] >= MIN_CLASSES and x.dtype in (torch.float32, torch.float64)


def pieces(x: Tensor) -> Iterator[slice]:
    """The rows of (N, C), as many at a time as a chunk holds."""
    limit = CHUNK_BYTES.get(x.device.type, GPU_CHUNK_BYTES)
    rows = max(1, limit // max(1, x.shape[1] * x.element_size()))
    for start in range(0, x.shape[0], rows):
        yield slice(start, start + rows)


class Rows(NamedTuple):
    """What each row is multiplied by; see the module.

    target  (N, 1)  classes, 0 where ignored
    ignored (N, 1)  whether it is
    own     (N, 1)  a
    smooth  (N, 1)  b, None without label smoothing
    all_weights     W
    divisor         of the sum of losses
    """

    target: Tensor
    ignored: Tensor
    own: Tensor
    smooth: Tensor | None
    all_weights: Any
    divisor: Any

    def at(self, piece: slice) -> Rows:
        """Those of some rows."""
        smooth = None if self.smooth is None else self.smooth[piece]
        return self._replace(target=self.target[piece], ignored=self.ignored[piece], own=self.own[piece], smooth=smooth)

    def factor(self, g: Tensor) -> Tensor:
        """g over the divisor, (N, 1)."""
        factor: Tensor = (g / self.divisor).reshape(-1, 1).expand(self.target.shape)
        return factor

    def scale(self, g: Tensor) -> Tensor:
        """What p is multiplied by in the slope, g (a + b W), (N, 1)."""
        share = self.own if self.smooth is None else self.own + self.smooth * self.all_weights
        return self.factor(g) * share


@dataclass(frozen=True)
class Options:
    """The arguments of cross entropy beside logits and classes."""

    weight: Tensor | None
    reduction: int
    ignore_index: int
    label_smoothing: float

    def rows(self, x: Tensor, target: Tensor) -> Rows:
        """What each row is multiplied by."""
        ignored = target == self.ignore_index
        classes = target.long().masked_fill(ignored, 0)
        weights = torch.ones_like(classes, dtype=x.dtype)
        if self.weight is not None:
            weights = self.weight.to(x.dtype)[classes]
        weights = weights.masked_fill(ignored, 0.0)
        smooth = None
        if self.label_smoothing:
            counted = torch.ones_like(weights).masked_fill(ignored, 0.0)
            smooth = (counted * (self.label_smoothing / x.shape[1]))[:, None]
        return Rows(
            classes[:, None],
            ignored[:, None],
            (weights * (1.0 - self.label_smoothing))[:, None],
            smooth,
            x.shape[1] if self.weight is None else self.weight.to(x.dtype).sum(),
            weights.sum() if self.reduction == MEAN else 1.0,
        )


class Exponentials(NamedTuple):
    """Of some rows: the differences to the largest logit, its place, the others' exp (0 there), and their sum."""

    d: Tensor
    k: Tensor
    e: Tensor
    others: Tensor


def exponentials(x: Tensor) -> Exponentials:
    """See `Exponentials`. The sum is NaN where the largest logit is not finite, as PyTorch's softmax is."""
    largest, k = x.max(1, keepdim=True)
    d = x - largest
    e = d.exp().scatter_(1, k, 0.0)
    return Exponentials(d, k, e, e.sum(1, keepdim=True).masked_fill(~largest.isfinite(), math.nan))


def loss_of_rows(x: Tensor, rows: Rows, weight: Tensor | None) -> Tensor:
    """The loss of some rows, not yet divided, (n, 1)."""
    parts = exponentials(x)
    log_sum = parts.others.log1p()
    loss = rows.own * (log_sum - parts.d.gather(1, rows.target))
    if rows.smooth is not None:
        weighted = parts.d if weight is None else parts.d * weight
        loss = loss + rows.smooth * (rows.all_weights * log_sum - weighted.sum(1, keepdim=True))
    return loss.masked_fill(rows.ignored, 0.0)


def slope_of_rows(g: Tensor, x: Tensor, rows: Rows, weight: Tensor | None) -> Tensor:
    """The gradient of some rows' loss times g (n, 1), (n, C); its entries sum to 0, by that at the largest logit."""
    parts = exponentials(x)
    share = rows.own if rows.smooth is None else rows.own + rows.smooth * rows.all_weights
    r = parts.e.mul_(g * share / (1.0 + parts.others))
    if rows.smooth is not None:
        r = r - g * rows.smooth * (1.0 if weight is None else weight)
    r = r.scatter_add_(1, rows.target, -g * rows.own).scatter_(1, parts.k, 0.0)
    return r.scatter_(1, parts.k, -r.sum(1, keepdim=True)).masked_fill_(rows.ignored, 0.0)


def cross_entropy_values(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    """PyTorch's cross entropy of (N, C): a number, or (N,) without a reduction."""
    rows = Options(weight, reduction, ignore_index, label_smoothing).rows(x, target)
    weight = None if weight is None else weight.to(x.dtype)
    losses = [loss_of_rows(x[piece], rows.at(piece), weight)[:, 0] for piece in pieces(x)]
    loss = torch.cat(losses) if losses else x.new_zeros(0)
    return loss if reduction not in (MEAN, SUM) else loss.sum() / rows.divisor


def slope_values(
    g: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient of `cross_entropy_values` times g by the logits, (N, C)."""
    rows = Options(weight, reduction, ignore_index, label_smoothing).rows(x, target)
    factor = rows.factor(g)
    weight = None if weight is None else weight.to(x.dtype)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for piece in pieces(x):
        out[piece] = slope_of_rows(factor[piece], x[piece], rows.at(piece), weight)
    return out


class Kept(NamedTuple):
    """What curvature reads beside the slope, (N, 1) each.

    leader  the place of the largest logit
    scale   g (a + b W), by which p is multiplied
    target  the class of the row, 0 where it is ignored
    entry   scale p there
    """

    leader: Tensor
    scale: Tensor
    target: Tensor
    entry: Tensor


def kept_beside_slope(
    g: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Kept:
    """See `Kept`; arguments as of `slope_values`."""
    rows = Options(weight, reduction, ignore_index, label_smoothing).rows(x, target)
    scale = rows.scale(g)
    leaders, entries = [], []
    for piece in pieces(x):
        parts = exponentials(x[piece])
        top = torch.ones_like(parts.others)
        p = torch.where(parts.k == rows.target[piece], top, parts.e.gather(1, rows.target[piece])) / (1 + parts.others)
        leaders.append(parts.k)
        entries.append(scale[piece] * p)
    return Kept(torch.cat(leaders), scale.contiguous(), rows.target, torch.cat(entries))


def scaled_probabilities(
    g: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """g (a + b W) p, (N, C), which a slope with label smoothing does not hold; arguments as of `slope_values`."""
    scale = Options(weight, reduction, ignore_index, label_smoothing).rows(x, target).scale(g)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for piece in pieces(x):
        parts = exponentials(x[piece])
        out[piece] = parts.e.scatter_(1, parts.k, 1.0).mul_(scale[piece] / (1.0 + parts.others))
    return out


def curvature_of_rows(u: Tensor, scaled: Tensor, kept: Kept) -> Tensor:
    """Of some rows: s p (u' - p u'), with s p given, or all of it but the entry at the row's class."""
    scaled = scaled.scatter(1, kept.target, kept.entry)
    shifted = u - u.gather(1, kept.leader)
    mean = (scaled * shifted).sum(1, keepdim=True) / torch.where(kept.scale == 0, 1.0, kept.scale)
    return scaled * (shifted - mean)


def curvature(u: Tensor, scaled: Tensor, kept: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The tangent of the slope along the logits' tangent u, (N, C)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(u):  # vmap writes into no buffer
        return curvature_of_rows(u, scaled, Kept(*kept))
    return _curvature_into(torch.empty_like(u, memory_format=torch.contiguous_format), u, scaled, kept)


def curvature_in_place(u: Tensor, scaled: Tensor, kept: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The same, written into u."""
    return _curvature_into(u, u, scaled, kept)


def _curvature_into(out: Tensor, u: Tensor, scaled: Tensor, kept: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    for piece in pieces(u):
        out[piece] = curvature_of_rows(u[piece], scaled[piece], Kept(*(t[piece] for t in kept)))
    return out


def loss_tangent(
    u: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The tangent of the loss along the logits' tangent u, (N, C)."""
    arguments = (x, target, weight, reduction, ignore_index, label_smoothing)
    tangent = (slope_values(x.new_ones(()), *arguments) * u).sum(1)
    return tangent if reduction not in (MEAN, SUM) else tangent.sum()


# as operations of PyTorch's dispatcher

_ARGUMENTS = "Tensor x, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing"
_LIBRARY: Any = torch.library.Library("lossmap", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"cross_entropy({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"cross_entropy_slope(Tensor g, {_ARGUMENTS}) -> Tensor")


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, weight: Tensor | None, *others: Any) -> Tensor:
        ctx.save_for_backward(x, target, weight)
        ctx.others = others
        with torch._C._AutoDispatchBelowAutograd():
            value: Tensor = ENTROPY(x, target, weight, *others)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return SLOPE(g, *ctx.saved_tensors, *ctx.others), None, None, None, None, None


class _CrossEntropySlope(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, *others: Any) -> Tensor:
        ctx.others = others
        with torch._C._AutoDispatchBelowAutograd():
            r: Tensor = SLOPE(g, x, target, weight, *others)
        ctx.save_for_backward(g, x, target, weight, r)
        return r

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        """By g: the loss's tangent along h. By x: the curvature along h, a symmetric matrix."""
        g, x, target, weight, r = ctx.saved_tensors
        arguments = (g, x, target, weight, *ctx.others)
        by_g, by_x = None, None
        if ctx.needs_input_grad[0]:
            by_g = loss_tangent(h, *arguments[1:])
        if ctx.needs_input_grad[1]:
            scaled = r if not ctx.others[2] else scaled_probabilities(*arguments)
            by_x = curvature(h, scaled, kept_beside_slope(*arguments))
        return by_g, by_x, None, None, None, None, None


def _kernel(function: type[Function], operation: Callable[..., Tensor]) -> Any:
    def kernel(*args: Any) -> Tensor:
        if not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            with torch._C._AutoDispatchBelowAutograd():
                return operation(*args)
        result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
        return result

    return kernel


ENTROPY = torch.ops.lossmap.cross_entropy.default
SLOPE = torch.ops.lossmap.cross_entropy_slope.default
_LIBRARY.impl("cross_entropy", cross_entropy_values, "CompositeExplicitAutograd")
_LIBRARY.impl("cross_entropy_slope", slope_values, "CompositeExplicitAutograd")
_LIBRARY.impl("cross_entropy", _kernel(_CrossEntropy, ENTROPY), "Autograd")
_LIBRARY.impl("cross_entropy_slope", _kernel(_CrossEntropySlope, SLOPE), "Autograd")


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross entropy of logits that `is_chunked`, twice differentiable."""
    result: Tensor = ENTROPY(x, target, weight, reduction, ignore_index, label_smoothing)
    return result
