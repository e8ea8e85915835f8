"""Functions one after the other whose composition does not cancel, while each by itself would.

    log softmax(x)           log softmax, also of entries picked from it          log sigmoid(x)
    1 - sigmoid(x)           sigmoid(-x)
    x - logsumexp(x)         log softmax
    logsumexp(x) - x_y       - log softmax at y: a cross entropy that is written out
    binary cross entropy     of a sigmoid: of its argument, by the logistic loss; of a softmax: 1 - p is the sum of the
                             others' p at the largest
    squared error            of a sigmoid or softmax against 1: 1 - p likewise

What a function gives remembers what it was made of, in an attribute of the tensor, and so do views of it and entries
picked from it. A later function reads that, and takes the form above in its place; nothing is read where a tensor was
written into meanwhile, or where its derivative is another's (made without gradients, or a leaf). Values are those of
the exact functions: the logarithm of a softmax that underflows is finite, as its log softmax is. PyTorch's bound of
-100 on logarithms in binary cross entropy is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, finfo

from lossmap.stable.losses import (
    is_covered,
    leading,
    log_sigmoid_form,
    precise,
    stable_log_softmax,
    stable_sigmoid,
)

ATTRIBUTE = "_lossmap_origin"
MIN_LOG = -100.0  # of binary cross entropy in PyTorch
PICKS = ("gather", "__getitem__")
VIEWS = ("squeeze", "unsqueeze", "view", "reshape", "flatten", "select", "index_select", "contiguous", "transpose")

Step = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """What a tensor was made of.

    kind      sigmoid, softmax or logsumexp of x along dim; or entries of x itself (picked)
    steps     the views and picks since then
    versions  of the tensor and of x, which change where they are written into
    """

    kind: str
    x: Tensor
    dim: int = 0
    steps: tuple[Step, ...] = ()
    versions: tuple[int, int] = (0, 0)

    def after_steps(self, t: Tensor) -> Tensor:
        """The same views and picks of another tensor."""
        for name, args, kwargs in self.steps:
            t = getattr(t, name)(*args, **kwargs)
        return t

    def log(self) -> Tensor:
        """The logarithm of a sigmoid or a softmax."""
        if self.kind == "sigmoid":
            return log_sigmoid_form(self.after_steps(self.x))
        return self.after_steps(stable_log_softmax(precise(self.x), self.dim).to(self.x.dtype))

    def complement(self) -> Tensor:
        """1 less a sigmoid or a softmax."""
        if self.kind == "sigmoid":
            return stable_sigmoid(-self.after_steps(self.x))
        mask, differences, others = leading(self.x, self.dim)
        shares = 1.0 - differences.exp() / (1.0 + others)
        return self.after_steps(torch.where(mask, others / (1.0 + others), shares))

    def log_of_complement(self) -> Tensor:
        """The logarithm of 1 less a sigmoid or a softmax."""
        if self.kind == "sigmoid":
            return log_sigmoid_form(-self.after_steps(self.x))
        mask, differences, others = leading(self.x, self.dim)
        smallest = finfo(others.dtype).tiny
        largest = others.clamp(min=smallest).log() - others.log1p()
        return self.after_steps(torch.where(mask, largest, torch.log1p(-differences.exp() / (1.0 + others))))


def origin_of(t: Any, *kinds: str) -> Origin | None:
    """What a tensor was made of, where that is of these kinds and may be put in its place."""
    origin: Origin | None = getattr(t, ATTRIBUTE, None) if isinstance(t, Tensor) else None
    if origin is None or origin.kind not in kinds:
        return None
    if origin.versions != (t._version, origin.x._version):
        return None
    # made without gradients, or a leaf by which somebody differentiates: another derivative
    return origin if t.requires_grad == origin.x.requires_grad else None


def _remember(result: Any, kind: str, x: Tensor, dim: int = 0, steps: tuple[Step, ...] = ()) -> Any:
    if isinstance(result, Tensor) and not result.is_inference() and not x.is_inference():
        setattr(result, ATTRIBUTE, Origin(kind, x, dim, steps, (result._version, x._version)))
    return result


def is_composed(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a function makes, passes on or reads an origin; a fast answer for all others."""
    if name in MAKERS:
        return bool(args) and is_covered(args[0])
    if name in READERS:
        return any(hasattr(t, ATTRIBUTE) for t in args[:2])
    return False


def composed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    """A function that `is_composed`; `single` gives what it is by itself."""
    if kwargs.get("out") is not None:
        return single()
    return (MAKERS.get(name) or READERS[name])(name, args, kwargs, single)


Handler = Callable[[str, tuple[Any, ...], dict[str, Any], Callable[[], Any]], Any]


def _sigmoid(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    return _remember(single(), "sigmoid", args[0])


def _along_one(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    """Softmax and logsumexp."""
    result, dim = single(), kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int) or result.dtype != args[0].dtype:
        return result
    return _remember(result, "logsumexp" if name == "logsumexp" else "softmax", args[0], dim)


def _pick(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    """Entries of a tensor, which remember it; of one that has an origin, that."""
    origin, step = origin_of(args[0], "sigmoid", "softmax", "picked"), (name, args[1:], kwargs)
    if origin is not None:
        return _remember(single(), origin.kind, origin.x, origin.dim, (*origin.steps, step))
    return _remember(single(), "picked", args[0], 0, (step,)) if args[0].dim() > 1 else single()


def _view(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    origin = origin_of(args[0], "sigmoid", "softmax", "picked")
    if origin is None:
        return single()
    return _remember(single(), origin.kind, origin.x, origin.dim, (*origin.steps, (name, args[1:], kwargs)))


def _log(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    origin = origin_of(args[0], "sigmoid", "softmax")
    return single() if origin is None else origin.log()


def _one_less(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    """1 - sigmoid(x), which is sigmoid(-x) of its own origin; of a softmax not, which has entries of either kind."""
    origin = origin_of(args[0], "sigmoid")
    one = args[1] if len(args) > 1 else None
    if origin is None or kwargs or isinstance(one, Tensor) or one != 1:
        return single()
    x = -origin.after_steps(origin.x)
    return _remember(stable_sigmoid(x), "sigmoid", x)


def _difference(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    """x less its logsumexp, and logsumexp less entries of its x."""
    a, b = args[:2]
    if kwargs or len(args) != 2 or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return single()
    total = origin_of(b, "logsumexp")
    if total is not None and total.x is a and b.dim() == a.dim() and b.shape[total.dim] == 1:
        return stable_log_softmax(precise(a), total.dim).to(a.dtype)
    total, picked = origin_of(a, "logsumexp"), origin_of(b, "picked")
    if total is not None and picked is not None and total.x is picked.x and _is_one_each(a, b, total, picked):
        return -picked.after_steps(stable_log_softmax(precise(total.x), total.dim).to(total.x.dtype))
    return single()


def _is_one_each(a: Tensor, b: Tensor, total: Origin, picked: Origin) -> bool:
    """Whether each sum meets an entry of its own row: of (N, C) along C, one column to a row, in order."""
    name, args, _ = picked.steps[0]
    if a.shape != b.shape or total.x.dim() != 2 or total.dim not in (1, -1) or len(total.x) != a.numel():
        return False
    if name == "gather":
        return args[:1] in ((1,), (-1,)) and len(args) == 2 and args[1].shape == (len(total.x), 1)
    index = args[0]
    if not isinstance(index, tuple) or len(index) != 2:
        return False
    rows = index[0]
    if isinstance(rows, range):
        return rows == range(len(total.x))
    return isinstance(rows, Tensor) and torch.equal(rows.cpu(), torch.arange(len(total.x)))


def _binary_cross_entropy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    origin = origin_of(args[0], "sigmoid", "softmax")
    if origin is None or len(args) != 2 or not _is_plain(args, kwargs, "weight"):
        return single()
    target, weight = args[1], kwargs.get("weight")
    logs, others = (t.clamp(min=MIN_LOG) for t in (origin.log(), origin.log_of_complement()))
    loss = -(target * logs + (1.0 - target) * others)
    if weight is not None:
        loss = loss * weight
    return _reduced(loss, kwargs)


def _squared_error(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], single: Callable[[], Any]) -> Any:
    origin = origin_of(args[0], "sigmoid", "softmax")
    if origin is None or len(args) != 2 or not _is_plain(args, kwargs):
        return single()
    p, target = args
    return _reduced(torch.where(target == 1, origin.complement(), p - target).square(), kwargs)


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any], *known: str) -> bool:
    """Whether a loss is called in the present way, with targets of the outputs' shape that want no gradient."""
    if {name for name, value in kwargs.items() if value is not None} - {"reduction", *known}:
        return False
    p, target = args
    return isinstance(target, Tensor) and target.shape == p.shape and not target.requires_grad


def _reduced(loss: Tensor, kwargs: dict[str, Any]) -> Tensor:
    reduction = kwargs.get("reduction", "mean")
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


MAKERS: dict[str, Handler] = {
    "sigmoid": _sigmoid, "special_expit": _sigmoid,
    "softmax": _along_one, "special_softmax": _along_one, "logsumexp": _along_one, "special_logsumexp": _along_one,
    **dict.fromkeys(PICKS, _pick),
}  # fmt: skip
READERS: dict[str, Handler] = {
    "log": _log, "__rsub__": _one_less, "rsub": _one_less, "sub": _difference,
    "binary_cross_entropy": _binary_cross_entropy, "mse_loss": _squared_error,
    **dict.fromkeys(VIEWS, _view),
}  # fmt: skip
NAMES = frozenset((*MAKERS, *READERS))  # of functions that `is_composed` may be true of
