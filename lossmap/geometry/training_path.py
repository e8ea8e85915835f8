"""The path of a training run through parameter space: its principal axes, and its projection on a plane.

With T checkpoints theta_t, (n,), and the last one as origin, the axes are the first right singular vectors of the
matrix of theta_t - theta_T, (T, n) (Li et al. 2018, arXiv:1712.09913, section 7). They come from the (T, T) Gram
matrix, one tensor at a time, so that memory holds the checkpoints once, and no n x n matrix ever.
A random walk, too, has most of its variance in its first components (Antognini and Sohl-Dickstein 2018,
arXiv:1806.08805). Theirs are about the mean of the walk; about its end, as here, a long one has 8/pi^2 = 81 % and
8/(9 pi^2) = 9 % in the first two.

A stored weight lies within half a spacing of its precision from the one that was trained, e_t in all. The matrix of
e_t - e_T has a norm of at most max |e_t| + sqrt(T) |e_T|, the e_t being at right angles, and |e_t|^2 is a third of
its bound: principal axes are those that are longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.geometry.directions import (
    Named,
    Plane,
    difference,
    moving_names,
    moving_only,
    origin_of,
    projected,
)
from lossmap.geometry.parameter_vector import state_tensors, warn_of_frozen
from lossmap.geometry.wrappers import within_ddp
from lossmap.keywords import checked_keywords
from lossmap.sums import in_float64

FEW_VALUES = 16  # of a tensor that may lie in a coarser precision by chance, or as layers begin: 0 and 1


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """The principal axes of a path.

    axes       k mappings of tensors, each of Euclidean length 1
    explained  (k,) share of the sum of squares about the origin that each axis carries
    """

    axes: tuple[dict[str, Tensor], ...]
    explained: tuple[float, ...]


def principal_axes(
    origin: Named, path: Sequence[Named], count: int = 2, names: Iterable[str] | None = None
) -> PrincipalAxes:
    """The first principal axes of a path about an origin.

    Raises ValueError where it spans fewer dimensions, and for checkpoints that are not finite.

    path   T mappings of tensors with the origin's names and shapes
    count  the number of axes k
    names  of the tensors whose path it is; the axes are 0 at the others. By default all
    """
    offsets = [difference(origin, state) for state in path]
    if names is not None:
        names = set(names)
        still = set(origin) - names
        offsets = [{k: torch.zeros_like(d) if k in still else d for k, d in offset.items()} for offset in offsets]
    gram = torch.zeros(len(offsets), len(offsets), dtype=torch.float64)
    for name in origin:
        rows = torch.stack([in_float64(d[name].reshape(-1)).cpu() for d in offsets])
        gram += rows @ rows.T
    infinite = (~gram.diagonal().isfinite()).nonzero().reshape(-1).tolist()
    if infinite:
        raise ValueError(
            f"checkpoint {infinite[0] + 1} of {len(offsets)} on the path holds values that are not finite, or whose "
            "squares are not; leave it out"
        )
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rounded = float(rounding_of_path(origin, path, names).max(initial=0.0)) ** 2 * (1 + len(offsets) ** 0.5) ** 2 / 3
    least = max(1e-12 * float(values[0]), rounded, 1e-312) if len(offsets) else 0.0
    rank = int((values > least).sum())
    if rank < count:
        raise ValueError(
            f"the path has {len(offsets)} checkpoints that span {rank} dimension{'s' * (rank != 1)} beyond rounding; "
            f"it has no more principal axes than that; got {count}"
        )
    axes = []
    for i in range(count):
        weights = vectors[:, i] / values[i].sqrt()
        if weights.sum() > 0:  # an arbitrary sign, fixed: the start of the path lies on the negative side
            weights = -weights
        axes.append(_combination(weights.tolist(), offsets, origin))
    return PrincipalAxes(tuple(axes), tuple((values[:count] / values.sum()).tolist()))


def rounding_of_path(origin: Named, path: Sequence[Named], names: Iterable[str] | None = None) -> np.ndarray:
    """How far the rounding to the precision that they are stored in may have moved the checkpoints, (T,), as theta.

    Over the entries that move somewhere; the arguments are those of `principal_axes`.
    """
    squares, stored = np.zeros(len(path)), stored_precisions(path)
    for name in origin if names is None else names:
        own = {name: origin[name]}
        moved = sum(in_float64(difference(own, state)[name]) != 0 for state in path) > 0
        spacings = (half_spacings(state[name], origin[name], at[name]) for state, at in zip(path, stored, strict=True))
        squares += [float(each[moved].square().sum()) for each in spacings]
    return np.sqrt(squares)


def half_spacings(t: Tensor, like: Tensor, stored: torch.dtype) -> Tensor:
    """How far rounding may have moved each entry of a stored tensor at most, in float64, of its shape.

    like    the model's own, on whose device they are, and to whose precision it is rounded where that is coarser
    stored  the precision that its values lie in, see `stored_precisions`
    """
    finest = [stored] if stored.is_floating_point else []
    about = max((torch.finfo(dtype) for dtype in (*finest, like.dtype)), key=lambda each: each.eps)
    return 0.5 * about.eps * in_float64(t.detach().to(like.device)).abs().clamp_min(about.smallest_normal)


def stored_precisions(path: Sequence[Named]) -> list[dict[str, torch.dtype]]:
    """The precision that each tensor's values lie in at each checkpoint: a coarser one where they were converted.

    It is believed where it holds for half of the other checkpoints at least: a model that was published in bfloat16 and
    trained on in float32 was rounded in front of the first step, and not behind it. Tensors of few values, which may
    lie there by chance or because layers begin with 0 and 1, are judged with the others.
    """
    stored = [{name: t.dtype for name, t in state.items()} for state in path]
    for dtype in (torch.float16, torch.bfloat16):  # which has less digits, and is taken where both hold
        converted = _converted(path, dtype)
        for found, at in zip(converted, stored, strict=True):
            for name in found:
                if 2 * (sum(name in other for other in converted) - 1) >= len(path) - 1:
                    at[name] = dtype
    return stored


def _converted(path: Sequence[Named], dtype: torch.dtype) -> list[set[str]]:
    """Of each checkpoint the tensors that have a finer precision than this one, and whose values lie in this all."""
    finer = [
        {n for n, t in state.items() if t.is_floating_point() and torch.finfo(t.dtype).eps < torch.finfo(dtype).eps}
        for state in path
    ]
    values = {name: _values_of(name, path) for name in set().union(*finer)}
    many = {name for name, some in values.items() if len(some) > FEW_VALUES}
    few = values.keys() - many
    are_many = len(many) > 0 or (len(few) > 0 and len(torch.unique(torch.cat([values[n] for n in few]))) > FEW_VALUES)
    found = []
    for state, names in zip(path, finer, strict=True):
        lying = {name for name in names if torch.equal(state[name].to(dtype).to(state[name].dtype), state[name])}
        found.append(lying if are_many and lying == names else lying & many)
    return found


def _values_of(name: str, path: Sequence[Named]) -> Tensor:
    """Some different values of a tensor along a path, in float64."""
    values: Tensor = torch.unique(torch.cat([in_float64(_some(state[name])) for state in path if name in state]))
    return values


def _some(t: Tensor, count: int = 4096) -> Tensor:
    """Some values of a tensor, evenly taken."""
    values = t.detach().reshape(-1).cpu()
    return values[:: max(1, len(values) // count)]


def random_walk_shares(checkpoints: int, count: int = 2, origin: int | None = -1) -> tuple[float, ...]:
    """The shares that the first principal axes explain of a random walk of as many checkpoints.

    origin  the checkpoint about which the axes are; None for a point that is none of them, about which nothing is known

    In high dimensions the steps of a walk are orthogonal and of one length, so that its Gram matrix is known: of two
    checkpoints on one side of the origin it has the steps that both are from there at least, of others 0. NaN where
    there are too few.
    """
    if origin is None or not checkpoints:
        return (float("nan"),) * count
    steps = np.arange(checkpoints) - range(checkpoints)[origin]
    is_one_side = np.multiply.outer(steps, steps) > 0
    gram = np.where(is_one_side, np.minimum.outer(np.abs(steps), np.abs(steps)), 0.0)
    values = np.sort(np.linalg.eigvalsh(gram))[::-1]
    shares = values / values.sum() if values.sum() else np.full(values.shape, np.nan)
    return tuple(float(shares[i]) if i < len(shares) - 1 else float("nan") for i in range(count))


@checked_keywords
def pca_plane(
    model: nn.Module,
    path: Sequence[Named | nn.Module],
    *,
    axes: int = 2,
    states: bool = False,
    parameters: str = "all",
) -> Plane:
    """The plane of the principal axes of a training run, about the model that it ended at.

    Args:
        model: the origin, such as the last checkpoint; it is not changed.
        path: the checkpoints of the run in their order: modules, or their tensors by name (state dicts).
        axes: 1 or 2.
        states: whether floating-point buffers (batch norm's statistics) move too.
        parameters: that move, as of `random_plane`: the axes are those of the path of these alone.

    Returns:
        A `Plane` whose axes have length 1 in units of theta; each recipe has its `explained_variance_ratio`.
        `trajectory(plane, path)` of this module projects the checkpoints.

    Raises:
        ValueError: where the path spans fewer dimensions, where names or shapes differ, and for checkpoints that are
            not finite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> run = [{"weight": model.weight.detach() + t * torch.tensor([[3.0, 4.0]])} for t in (2.0, 1.0, 0.0)]
        >>> line = lossmap.pca_plane(model, run, axes=1)
        >>> line.axes[0]["weight"].abs().tolist() == torch.tensor([[0.6, 0.8]]).tolist()
        True

    """
    model = within_ddp(model)
    origin = origin_of(model, states)
    named = [state_tensors(within_ddp(state)) if isinstance(state, nn.Module) else state for state in path]
    warn_of_frozen(model, parameters, "move with the plane")
    principal = principal_axes(origin, named, axes, moving_names(origin, model, parameters))
    recipes = [
        {"kind": f"pca:{i + 1}", "norm": "none", "ignore": "none", "states": states, "checkpoints": len(named)}
        | {"explained_variance_ratio": share}
        for i, share in enumerate(principal.explained)
    ]
    return moving_only(Plane(origin, principal.axes, tuple(recipes)), model, parameters)


def _combination(weights: Sequence[float], tensors: Sequence[Named], like: Named) -> dict[str, Tensor]:
    """sum_t weights[t] * tensors[t], added in float64; (T,) weights, shapes and dtypes as in `like`."""
    combination = {}
    for name, w in like.items():
        terms = (c * in_float64(t[name]) for c, t in zip(weights, tensors, strict=True))
        combination[name] = sum(terms, torch.zeros(())).to(w.device, w.dtype).view(w.shape)
    return combination


def trajectory(plane: Plane, path: Iterable[Named], steps: Sequence[float] | None = None) -> Mapping[str, np.ndarray]:
    """Where the checkpoints of a path fall on a plane: arrays (T,) `x`, `y`, `step`, `residual`.

    residual  the distance from the checkpoint to its point in the plane, units of theta: what the plane does not show
    """
    projections = [projected(plane, state) for state in path]
    coordinates = np.array([c for c, _ in projections], dtype=np.float64).reshape(-1, len(plane.axes))  # (T, k)
    arrays = {"x": coordinates[:, 0], "residual": np.array([r for _, r in projections], dtype=np.float64)}
    if len(plane.axes) == 2:
        arrays["y"] = coordinates[:, 1]
    arrays["step"] = np.asarray(range(len(projections)) if steps is None else steps, np.float64)
    return arrays
