"""Forms of saturating functions whose values and derivatives do not cancel, put in the place of PyTorch's own.

    cross entropy, log softmax    y_c = d_c - log(1 + sum_{j != k} exp d_j), with d_c = x_c - x_k relative to the
                                  largest logit x_k, and d_k a true constant 0
    softmax, attention            p_c = exp(d_c) / (1 + sum_{j != k} exp d_j)
    logistic losses               log(1 + exp x) = max(x, 0) + log(1 + exp(-|x|))
    tanh, sigmoid                 by exp(-2 |x|) and exp(-|x|)

PyTorch computes derivatives of these from their results: 1 - p with p -> 1, 1 - y^2 with y -> 1. Where a network fits
its data such terms cancel, and what rounding leaves, of the order eps |x|^2 for a Hessian, may be larger than the
Hessian itself. It is systematic: neither noise nor another order of the samples shows it. Here every such term is made
of numbers as small as itself, so that float32 keeps five digits of value, gradient and Hessian down to a loss of 1e-20:
derivatives of softmax and log softmax along g are taken of g' = g - g_k, whose entry at the largest is a true 0, and a
vector that adds up to 0 gets its entry at the largest from the others.

`lossmap.stable.forms` puts them in place of PyTorch's. Price: some three passes more over what softmax reads;
linearized products cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lossmap.stable.chunked_entropy import cross_entropy, is_chunked

MEAN, SUM = 1, 2  # PyTorch's numbers of reductions; 0 is none
MAX_PLAIN_TANH, MAX_PLAIN_SIGMOID = 4.0, 7.0  # inputs below which the plain slopes keep four digits in float32
FULL_PRECISIONS = (torch.float32, torch.float64)

Form = Callable[..., Tensor]


def is_wrapped(x: Tensor) -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) looks on, which needs plain operations."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return wrapped


def leading(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """What softmax and its kin are made of: (mask of the largest entry, differences to it, sum of the others' exp).

    The differences are -inf at the largest itself, so that its exponential is a true 0. The sum keeps `dim`, and is NaN
    where PyTorch's softmax is: where the largest entry is not finite.
    """
    k = x.detach().argmax(dim, keepdim=True)
    shape = [1] * x.dim()
    shape[dim] = -1
    mask = torch.arange(x.shape[dim], device=x.device).view(shape) == k
    largest = x.gather(dim, k)
    differences = (x - largest).masked_fill(mask, -math.inf)
    others = differences.exp().sum(dim, keepdim=True)
    return mask, differences, others.masked_fill(~largest.detach().isfinite(), math.nan)


def log_softmax_values(x: Tensor, dim: int) -> Tensor:
    """log softmax by PyTorch's own, the largest entry by the others' probabilities: log(1 - q), right near 0 too."""
    logs = torch.log_softmax(x, dim)
    k = logs.argmax(dim, keepdim=True)
    q = logs.exp().scatter_(dim, k, 0.0).sum(dim, keepdim=True)
    return logs.scatter(dim, k, torch.where(q < 0.5, (-q).log1p(), logs.gather(dim, k)))


def relative_to(x: Tensor, k: Tensor, dim: int) -> Tensor:
    """x less its entry at k along `dim`."""
    return x - x.gather(dim, k)


def balanced(r: Tensor, k: Tensor, dim: int) -> Tensor:
    """r with its entry at k, along `dim`, such that all add up to 0."""
    others = r.scatter(dim, k, 0.0)
    return others.scatter(dim, k, -others.sum(dim, keepdim=True))


class LogSoftmax(Function):
    """log softmax with derivatives of any order that do not cancel; (x, dim) -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        """y = log softmax of x."""
        y = log_softmax_values(x, dim)
        ctx.dim = dim
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """g - exp(y) sum(g)."""
        (y,) = ctx.saved_tensors
        return apply(LogSoftmaxPullback, g, y, ctx.dim), None


class LogSoftmaxPullback(Function):
    """r = g - exp(y) sum(g), whose entry at the largest y is minus the sum of the others."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, dim: int) -> Tensor:
        """r, as above."""
        ctx.dim = dim
        ctx.save_for_backward(g, y)
        return balanced(g - y.exp() * g.sum(dim, keepdim=True), y.argmax(dim, keepdim=True), dim)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None]:
        """By g: h' - sum p h'; by y: -p sum(g) h', with h' = h - h_k."""
        (g, y), dim = ctx.saved_tensors, ctx.dim
        shifted = relative_to(h, y.detach().argmax(dim, keepdim=True), dim)
        weighted = y.exp() * shifted
        return shifted - weighted.sum(dim, keepdim=True), -weighted * g.sum(dim, keepdim=True), None


class Softmax(Function):
    """Softmax with derivatives of any order that do not cancel; (x, dim) -> p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        """p = softmax of x."""
        p = torch.softmax(x, dim)
        ctx.dim = dim
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """p (g' - sum p g'), with g' = g - g_k."""
        (p,) = ctx.saved_tensors
        return apply(SoftmaxPullback, g, p, ctx.dim), None


class SoftmaxPullback(Function):
    """p (g' - sum p g'), with g relative to its entry at the largest p."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, p: Tensor, dim: int) -> Tensor:
        """The pullback, as above."""
        ctx.dim = dim
        ctx.save_for_backward(g, p)
        shifted = relative_to(g, p.argmax(dim, keepdim=True), dim)
        return p * (shifted - (p * shifted).sum(dim, keepdim=True))

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None]:
        """By g: p (h' - sum p h'); by p: h' (g' - sum p g') - g' sum p h', which is 0 at the largest."""
        (g, p), dim = ctx.saved_tensors, ctx.dim
        k = p.detach().argmax(dim, keepdim=True)
        g, h = relative_to(g, k, dim), relative_to(h, k, dim)
        mean_g, mean_h = (p * g).sum(dim, keepdim=True), (p * h).sum(dim, keepdim=True)
        return p * (h - mean_h), h * (g - mean_g) - g * mean_h, None


def apply(function: type[Function], *args: Any) -> Tensor:
    """The result of an autograd function."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


def stable_log_softmax(x: Tensor, dim: int) -> Tensor:
    """log softmax of x along `dim`, in the unit of x (nats)."""
    if not x.requires_grad and not is_wrapped(x):
        return log_softmax_values(x, dim)
    if not is_wrapped(x):
        return apply(LogSoftmax, x, dim)
    mask, differences, others = leading(x, dim)
    return differences.masked_fill(mask, 0.0) - others.log1p()


def stable_softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax of x along `dim`."""
    if not is_wrapped(x):
        return apply(Softmax, x, dim)
    mask, differences, others = leading(x, dim)
    return differences.exp().masked_fill(mask, 1.0) / (1.0 + others)


def shrinking(x: Tensor) -> Tensor:
    """-|x|, with a derivative also at 0: that of x, which suits functions that are smooth there."""
    return torch.where(x > 0, -x, x)


def stable_softplus(x: Tensor) -> Tensor:
    """log(1 + exp x)."""
    return x.masked_fill(x <= 0, 0.0) + shrinking(x).exp().log1p()


def stable_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    small = shrinking(x).exp()
    return small.masked_fill(x > 0, 1.0) / (1.0 + small)


def stable_tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent: -expm1(-2 |x|) / (1 + exp(-2 |x|)), with its sign."""
    exponent = 2.0 * shrinking(x)
    size = torch.expm1(exponent) / (1.0 + exponent.exp())
    return torch.where(x > 0, -size, size)


# PyTorch's functions in their own arguments, each by the form above


def is_covered(x: Any) -> bool:
    """Whether an argument is a plain floating-point tensor, outside of autocast, whose precisions are its own."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0 or x.dim() == 0:
        return False
    if x.layout != torch.strided or x.is_nested:
        return False
    return not torch.is_autocast_enabled(x.device.type)


def precise(x: Tensor) -> Tensor:
    """A tensor in float32 at least, as PyTorch itself computes softmax in half precision."""
    return x if x.dtype in FULL_PRECISIONS else x.float()


def log_softmax_form(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """`log_softmax`, in its own precision or another."""
    x = input if dtype is None else input.to(dtype)
    return stable_log_softmax(precise(x), dim).to(x.dtype)


def softmax_form(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """`softmax`, in its own precision or another."""
    x = input if dtype is None else input.to(dtype)
    return stable_softmax(precise(x), dim).to(x.dtype)


def cross_entropy_form(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch._C._nn.cross_entropy_loss` over the stable log softmax; ATen/native/LossNLL.cpp in these terms."""
    if _is_chunked(input, target):
        return cross_entropy(precise(input), target, weight, reduction, ignore_index, label_smoothing).to(input.dtype)
    classes = 0 if input.dim() == 1 else 1
    logs = stable_log_softmax(precise(input), classes)
    if weight is not None:
        weight = weight.to(logs.dtype)
    if target.shape == input.shape:
        loss = _soft_cross_entropy(logs, target, weight, reduction, classes, label_smoothing)
    else:
        loss = F.nll_loss(logs, target, weight, ignore_index=ignore_index, reduction=("none", "mean", "sum")[reduction])
        if label_smoothing > 0.0:
            smooth = _smooth_part(logs, target, weight, reduction, ignore_index)
            loss = (1.0 - label_smoothing) * loss + smooth * (label_smoothing / logs.shape[classes])
    return loss.to(input.dtype)


def _is_chunked(input: Tensor, target: Tensor) -> bool:
    """Whether cross entropy is computed a few rows at a time."""
    return is_chunked(precise(input), target) and not (is_wrapped(input) or is_wrapped(target))


def traced_cross_entropy_form(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The same in a trace, whose rules see to log softmax: another form for many classes alone."""
    if _is_chunked(input, target):
        return cross_entropy(precise(input), target, weight, reduction, ignore_index, label_smoothing).to(input.dtype)
    plain: Any = torch._C._nn.cross_entropy_loss  # whose reduction is a number, unlike its stub's
    value: Tensor = plain(input, target, weight, reduction, ignore_index, label_smoothing)
    return value


def _soft_cross_entropy(
    logs: Tensor, target: Tensor, weight: Tensor | None, reduction: int, classes: int, label_smoothing: float
) -> Tensor:
    """The cross entropy with probabilities as targets; its mean is over samples, whatever the weights."""
    count = logs.shape[classes]
    if label_smoothing > 0.0:
        target = target * (1.0 - label_smoothing) + label_smoothing / count
    parts = -(logs * target)
    if weight is not None:
        parts = parts * _along(weight, logs, classes)
    if reduction == MEAN:
        return parts.sum() / (logs.numel() / count)
    return parts.sum() if reduction == SUM else parts.sum(classes)


def _smooth_part(logs: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Tensor:
    """The part of label smoothing: every class alike, of the targets that count."""
    classes = 0 if logs.dim() == 1 else 1
    weighted = logs if weight is None else logs * _along(weight, logs, classes)
    ignored = target == ignore_index
    parts = (-weighted.sum(classes)).masked_fill(ignored, 0.0)
    if reduction == MEAN:
        counted = torch.ones_like(parts)
        if weight is not None:
            counted = weight[target.masked_fill(ignored, 0)]
        return parts.sum() / counted.masked_fill(ignored, 0.0).sum()
    return parts.sum() if reduction == SUM else parts


def _along(weight: Tensor, like: Tensor, dim: int) -> Tensor:
    """Weights (C,) in the shape in which they multiply `like` along one dimension."""
    shape = [1] * like.dim()
    shape[dim] = -1
    return weight.view(shape)


def logistic_loss_form(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    """`binary_cross_entropy_with_logits`: (1 - y) log(1 + exp x) + w y log(1 + exp(-x)), w the weight of positives."""
    x = precise(input)
    positive = target if pos_weight is None else target * pos_weight.to(x.dtype)
    common = shrinking(x).exp().log1p()
    loss = (1.0 - target) * (x.masked_fill(x <= 0, 0.0) + common) + positive * ((-x).masked_fill(x > 0, 0.0) + common)
    if weight is not None:
        loss = loss * weight.to(x.dtype)
    if reduction == MEAN:
        loss = loss.mean()
    elif reduction == SUM:
        loss = loss.sum()
    return loss.to(input.dtype)


def log_sigmoid_form(input: Tensor) -> Tensor:
    """`logsigmoid`."""
    return -stable_softplus(-precise(input)).to(input.dtype)


def softplus_form(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """`softplus`: x itself above the threshold, as PyTorch's."""
    x = precise(input)
    return torch.where(x * beta > threshold, x, stable_softplus(x * beta) / beta).to(input.dtype)


def attention_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by its formula; rows of which all is masked give 0, as PyTorch's do."""
    factor = math.sqrt(1.0 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * factor) @ (key.transpose(-2, -1) * math.copysign(factor, 1.0 if scale is None else scale))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return softmax_form(scores, -1) @ value
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -math.inf)
    scores = scores + attn_mask
    empty = (scores.detach() == -math.inf).all(-1, keepdim=True)
    return softmax_form(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0) @ value


def _is_saturated(x: Tensor, limit: float) -> bool:
    """Whether an activation's derivative is read, and cancels somewhere.

    Under transforms it is taken to, and on any other device than a CPU: there a look would make the host wait.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return False
    if is_wrapped(x) or x.device.type != "cpu":
        return True
    return bool((x.detach().abs() > limit).any())


def tanh_form(input: Tensor) -> Tensor:
    """`tanh`, plain where it does not saturate."""
    if not _is_saturated(input, MAX_PLAIN_TANH):
        return torch.tanh(input)
    return stable_tanh(precise(input)).to(input.dtype)


def sigmoid_form(input: Tensor) -> Tensor:
    """`sigmoid`, plain where it does not saturate."""
    if not _is_saturated(input, MAX_PLAIN_SIGMOID):
        return torch.sigmoid(input)
    return stable_sigmoid(precise(input)).to(input.dtype)
