"""Planes: an origin and k axes through parameter space, made from a seed, from models or from vectors.

A random axis is a normal vector of the shape of the parameters, drawn tensor by tensor from (seed, axis, tensor
name) and then scaled against the origin so that its length means something (Li et al. 2018, arXiv:1712.09913):

    filter   each filter d_i (a slice along the first dimension) to the norm of the origin's: d_i |w_i| / |d_i|
    layer    each tensor d to the norm of the origin's: d |w| / |d|
    weight   entry by entry: d * w
    dfilter  each filter to norm 1;   dlayer   each tensor to norm 1;   none   as drawn

`ignore="biasbn"` leaves tensors of dimension <= 1 (biases, batch norm) at the origin: the axis is 0 there. With
`ignore="none"` a random axis has a copy of the origin there, as in the original tool: two such axes share that part.
Tensors of the origin and of the axes are named as in the state dict; lengths are in units of theta. Where only some of
the parameters move (the trainable ones of a partly frozen model), the axes are 0 at the others.

Memory: the origin shares the model's own until either is written to, and a random axis of more than `MAX_HELD_ENTRIES`
is drawn tensor by tensor whenever it is read, to the same bits (`benchmarks/memory.py`). Where the origin is read again
from its file, the model itself is moved (`move_in_place`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lossmap.copies import lazy_copy
from lossmap.geometry.degenerate import lead_one_way, leads_nowhere
from lossmap.geometry.grid import BUT_STATISTICS, ENDS_AT, MODEL, PART, WEIGHTS, Point
from lossmap.geometry.parameter_vector import (
    Layout,
    movable_parameters,
    refuse_complex,
    selected,
    state_tensors,
    warn_of_frozen,
)
from lossmap.geometry.unregistered import explained, unregistered
from lossmap.geometry.wrappers import plain_names, within_ddp
from lossmap.keywords import checked_init, checked_keywords
from lossmap.memory import LARGE_MODEL, trim_heap
from lossmap.seeding import generator, normal
from lossmap.sums import ENTRIES_AT_ONCE, dot, float64_device, in_float64, norm
from lossmap.values import Result

Named = Mapping[str, Tensor]
NORMS = ("filter", "layer", "weight", "dfilter", "dlayer", "none")
IGNORES = ("biasbn", "none")
SUMMED_IN_FLOAT32 = (torch.bfloat16, torch.float16)  # precisions of which a point's sum is rounded once, at its end
DRAWN_AT_ONCE = 16  # normal numbers that PyTorch makes together, on the CPU
MAX_HELD_ENTRIES = 1 << 23  # of a random axis that is held; a larger one, on the CPU, is drawn anew at every point


@checked_init
@dataclass(frozen=True, eq=False)
class Plane(Result):
    """An origin and k = 1 or 2 axes through parameter space.

    Make one by `random_plane`, `line_between`, `plane_through` or `pca_plane`, or from tensors of your own.

    Attributes:
        origin: the tensors at point 0, by name, in the order of the state dict: a model's as they were when the plane
            was made. Of large ones the memory is shared until one is written to, which PyTorch sees; what is written
            through a NumPy array that was taken of a parameter before then, it does not see.
        axes: k mappings with the same names and shapes.
        recipes: k dicts that say how each axis was made: kind, norm, ignore, seed, source (JSON-able).

    Raises:
        ValueError: for another number of axes, axes of other names or shapes, and values that are not finite.

    Example:
        >>> import torch, lossmap
        >>> line = lossmap.Plane({"w": torch.zeros(2)}, ({"w": torch.ones(2)},), ({"kind": "own"},))
        >>> line.at((0.5,))["w"].tolist(), round(line.lengths[0], 3)
        ([0.5, 0.5], 1.414)

    """

    origin: Named
    axes: tuple[Named, ...]
    recipes: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        if len(self.axes) not in (1, 2):
            raise ValueError(f"a plane must have one axis or two; got {len(self.axes)}")
        for axis in self.axes:
            if isinstance(axis, DrawnAxis):  # whose shapes are the origin's
                continue
            _alike(self.origin, axis, "the axis")
            for name, tensor in axis.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise ValueError(f"the axis's tensor {name!r} holds values that are not finite; it leads nowhere")
        for name, tensor in () if getattr(self.origin, "read_again", False) else self.origin.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"the model's tensor {name!r} holds values that are not finite; no plane starts there")

    def at(self, point: Point) -> dict[str, Tensor]:
        """The tensors at a point: origin + sum_i point[i] * axes[i]; always from the origin, so without drift."""
        if len(point) != len(self.axes):
            raise ValueError(f"the point has {len(point)} coordinates; this plane has {len(self.axes)} axes")
        return move_point(self.origin, self.axes, point)

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """The Euclidean norm of each axis, in units of theta."""
        if any(isinstance(axis, DrawnAxis) for axis in self.axes):
            return tuple(_dot_of(axis, axis) ** 0.5 for axis in self.axes)
        return tuple(dot(a, a) ** 0.5 for a in self._flat)

    @cached_property
    def cosine(self) -> float | None:
        """The cosine between the two axes; None on a line, NaN where an axis has no length."""
        if len(self.axes) == 1:
            return None
        scale = self.lengths[0] * self.lengths[1]
        if scale <= 0:
            return float("nan")
        if any(isinstance(axis, DrawnAxis) for axis in self.axes):
            return _dot_of(*self.axes) / scale
        x, y = self._flat
        return dot(x, y) / scale

    @property
    def _flat(self) -> list[Tensor]:
        axes: Sequence[Named] = self.axes
        if len({t.device for axis in axes for t in axis.values()}) > 1:  # of a model that is spread over several
            axes = [{name: t.cpu() for name, t in axis.items()} for axis in axes]
        return [Layout.of(self.origin).flatten(axis) for axis in axes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over origin and axes, in their order, as float32 on the CPU: equal on every rank."""
        total = hashlib.sha256()
        for named in (self.origin, *self.axes):
            for name, tensor in named.items():
                total.update(name.encode() + b"\x1f")
                total.update(tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy().data)
        return total.hexdigest()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Plane:
        """The same plane on a device, in a precision; as it is where they are left out."""

        def move(named: Named) -> Named:
            if isinstance(named, DrawnAxis) and dtype is None and torch.device(device or "cpu").type == "cpu":
                return named
            return {k: t.to(device=device, dtype=dtype) for k, t in named.items()}

        return Plane(move(self.origin), tuple(move(a) for a in self.axes), self.recipes)

    def __repr__(self) -> str:
        kinds = ", ".join(str(r.get("kind", "own")) for r in self.recipes)
        n = sum(t.numel() for t in self.origin.values())
        text = f"{len(self.axes)} axes: {kinds}; {n:,} entries"
        if self.cosine is not None:
            text += f", cosine {self.cosine:.3f}"
        return f"Plane({text})"


@dataclass(frozen=True, eq=False)
class DrawnAxis(Mapping[str, Tensor]):
    """A random axis that holds no tensor: each is drawn when it is read, the same at every reading.

    origin, seed, index, norm, ignore, names  as of `random_axis`; the origin's tensors are on the CPU
    """

    origin: Named
    seed: int | str
    index: int
    norm: str
    ignore: str
    names: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return _random_tensor(name, self.origin[name], self)

    def __contains__(self, name: object) -> bool:
        return name in self.origin  # a Mapping draws the tensor to answer

    def __iter__(self) -> Iterator[str]:
        return iter(self.origin)

    def __len__(self) -> int:
        return len(self.origin)


@checked_keywords
def random_plane(
    model: nn.Module,
    axes: int = 2,
    seed: int = 0,
    *,
    norm: str | Sequence[str] = "filter",
    ignore: str | Sequence[str] = "biasbn",
    states: bool = False,
    parameters: str = "all",
    origin: Named | None = None,
) -> Plane:
    """A plane (or line) through the model along random directions; the same for the same seed anywhere.

    Args:
        model: stands at the origin; it is not changed.
        axes: 1 for a line, 2 for a plane.
        seed: of the directions.
        norm: how each axis is scaled against the model's tensors: `filter`, `layer`, `weight`, `dfilter`, `dlayer` or
            `none`; one for all axes, or one for each.
        ignore: `biasbn` (tensors of dimension <= 1 stand still) or `none`; one for all axes, or one for each.
        states: whether floating-point buffers (batch norm's statistics) move too.
        parameters: that move: `all`, `trainable` (those that require a gradient), `weights` (of dimension > 1), or a
            regular expression on their names. Where some are frozen, and move, a warning is logged.
        origin: the model's tensors as a file holds them (`lossmap.data.stored_tensors.StoredTensors`): for a large
            model, they are read again, and not kept beside it; nor are the axes, drawn when they are needed. The model
            itself is moved, and put back to the last bit; one that has changed since is refused, and left alone.

    Returns:
        A `Plane`: the point (a, b) has the tensors origin + a x + b y.

    Raises:
        ValueError: for an unknown norm or ignore, where the model holds values that are not finite, and where no
            parameter matches or moves, as those of a model of zeros, or of biases alone, do not.

    Example:
        >>> import torch, lossmap
        >>> plane = lossmap.random_plane(torch.nn.Linear(3, 2), seed=0)
        >>> sorted(plane.at((0.5, -0.5)))
        ['bias', 'weight']

    """
    model = within_ddp(model)
    is_stored = origin is not None
    if is_stored and (states or parameters != "all"):
        raise ValueError("an origin that is read again is of all parameters, without buffers: leave it out")
    origin = origin_of(model, states) if origin is None else origin
    norms, ignores, names = _each(norm, axes), _each(ignore, axes), plain_names(model)
    directions = [
        random_or_drawn(origin, seed, i, norms[i], ignores[i], names, held=not is_stored) for i in range(axes)
    ]
    recipes = [
        {"kind": "random", "norm": norms[i], "ignore": ignores[i], "seed": seed, "states": states} for i in range(axes)
    ]
    for axis, scale, left_out in zip(directions, norms, ignores, strict=True):
        if not is_stored and leads_nowhere(axis):
            raise ValueError(nothing_moves(scale, left_out))
    warn_of_frozen(model, parameters, "move with the plane")
    return moving_only(Plane(origin, tuple(directions), tuple(recipes)), model, parameters)


@checked_keywords
def line_between(
    model: nn.Module,
    other: Named | nn.Module,
    *,
    states: bool = False,
    ignore: str = "none",
    parameters: str = "all",
) -> Plane:
    """The line from the model (0) to another of the same architecture (1).

    Args:
        model: stands at 0; it is not changed.
        other: stands at 1: a module, or its tensors by name (a state dict).
        states: whether floating-point buffers (batch norm's statistics) move too.
        ignore: `none`, or `biasbn`: tensors of dimension <= 1 stay those of the first model.
        parameters: that move, as of `random_plane`; the others stay those of the first model.

    Returns:
        A `Plane` with one axis.

    Raises:
        ValueError: where names or shapes differ, and where both have the same weights.

    Example:
        >>> import torch, lossmap
        >>> a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> line = lossmap.line_between(a, b)
        >>> bool(torch.allclose(line.at((1.0,))["weight"], b.weight))
        True

    """
    plane = line_to(model, other, states=states, ignore=ignore, parameters=parameters)
    if leads_nowhere(plane.axes[0]):
        raise ValueError("both models have the same weights: there is no line between them")
    return plane


def line_to(
    model: nn.Module, other: Named | nn.Module, *, states: bool, ignore: str = "none", parameters: str = "all"
) -> Plane:
    """As `line_between`, also of length 0: to a permuted copy of the model, once its units are matched."""
    return _through(within_ddp(model), (other,), states, ignore, parameters)


@checked_keywords
def plane_through(
    model: nn.Module,
    x: Named | nn.Module,
    y: Named | nn.Module,
    *,
    states: bool = False,
    ignore: str = "none",
    parameters: str = "all",
) -> Plane:
    """The plane through three models of one architecture: the first at (0, 0), `x` at (1, 0), `y` at (0, 1).

    Args:
        model: the origin; it is not changed.
        x: a module, or its tensors by name (a state dict).
        y: another one.
        states: whether floating-point buffers (batch norm's statistics) move too.
        ignore: `none`, or `biasbn`: tensors of dimension <= 1 stay those of the first model.
        parameters: that move, as of `random_plane`; the others stay those of the first model.

    Returns:
        A `Plane` with two axes, which need be neither orthogonal nor of one length (`plane.cosine`, `plane.lengths`).

    Raises:
        ValueError: where names or shapes differ, and where the three span no plane: two have the same weights, or all
            lie on one line, but for rounding.

    Example:
        >>> import torch, lossmap
        >>> a, b, c = (torch.nn.Linear(2, 1) for _ in range(3))
        >>> plane = lossmap.plane_through(a, b, c)
        >>> bool(torch.allclose(plane.at((0.0, 1.0))["weight"], c.weight))
        True

    """
    model = within_ddp(model)
    plane = _through(model, (x, y), states, ignore, parameters)
    for name, axis in zip("xy", plane.axes, strict=True):
        if leads_nowhere(axis):
            raise ValueError(f"{name} has the weights of the model at the origin: there is no direction to it")
    if lead_one_way(plane.origin, *plane.axes):
        raise ValueError(
            f"the three models lie on one line, but for the rounding of their tensors (cosine {plane.cosine:.6f}): "
            "they span no plane"
        )
    return plane


def _through(
    model: nn.Module, others: Sequence[Named | nn.Module], states: bool, ignore: str, parameters: str
) -> Plane:
    """The plane from a model to others, each the end of an axis as far as the selected parameters move."""
    origin = origin_of(model, states)
    named = [state_tensors(within_ddp(other)) if isinstance(other, nn.Module) else other for other in others]
    axes = tuple(normalised(difference(origin, other), origin, "none", ignore) for other in named)
    recipe = {"kind": "to", "norm": "none", "ignore": ignore, "states": states}
    plane = moving_only(Plane(origin, axes, (recipe,) * len(axes)), model, parameters)
    ends = [end_of(model, origin, axis, other) for axis, other in zip(plane.axes, named, strict=True)]
    return Plane(origin, plane.axes, tuple({**plane.recipes[0], ENDS_AT: end} for end in ends))


def end_of(model: nn.Module, origin: Named, axis: Named, other: Named) -> str:
    """What of another model stands at 1 of an axis to it: MODEL, BUT_STATISTICS, WEIGHTS or PART of `geometry.grid`."""
    parameters, buffers = left_behind(model, origin, axis, other)
    if parameters:
        return PART
    if set(buffers) <= _running_statistics(model):
        return BUT_STATISTICS if buffers else MODEL
    return WEIGHTS


def _running_statistics(model: nn.Module) -> set[str]:
    """The names of the running statistics of batch and instance norms."""
    norms = [name for name, module in model.named_modules() if isinstance(module, _NormBase)]
    return {f"{name}.{of}".removeprefix(".") for name in norms for of in ("running_mean", "running_var")}


def words_for_buffers(model: nn.Module, buffers: Sequence[str]) -> str:
    """What these buffers are called in a sentence: running statistics where they are, else buffers such as one."""
    others = [name for name in buffers if name not in _running_statistics(model)]
    return f"buffers such as {others[0]!r}" if others else "running statistics"


def left_behind(model: nn.Module, origin: Named, axis: Named, other: Named) -> tuple[list[str], list[str]]:
    """The names of parameters and of buffers that are not the other model's at 1 of an axis to it.

    other  its tensors by name; what is not among them is no part of it, nor is the count of batch norm's batches
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    apart: dict[str, Tensor] = {}
    for name, own in {**parameters, **buffers}.items():
        end = other.get(name)
        if end is None or name.rpartition(".")[2] == "num_batches_tracked":
            continue
        if name in origin:
            apart[name] = (axis[name] != difference({name: origin[name]}, other)[name]).any()
        elif own.shape == end.shape:
            apart[name] = (own != end.to(own.device, own.dtype)).any()
        else:
            apart[name] = torch.tensor(True)
    devices = {t.device for t in apart.values()}  # of one the host waits once
    known = torch.stack([t if len(devices) == 1 else t.cpu() for t in apart.values()]).tolist() if apart else []
    names = [name for name, is_apart in zip(apart, known, strict=True) if is_apart]
    return [name for name in names if name in parameters], [name for name in names if name not in parameters]


def moving_only(plane: Plane, model: nn.Module, parameters: str) -> Plane:
    """The plane along which only the selected parameters of the model move, with a word of it in the recipes.

    parameters  `all`, for the plane as it is; `trainable`, `weights` or a regular expression, see `selected`. A buffer
                moves where a parameter of its own module does.

    Raises ValueError where no parameter matches, or nothing moves along an axis.
    """
    if parameters == "all":
        return plane
    axes = tuple(axis_of_moving(axis, model, parameters) for axis in plane.axes)
    return Plane(plane.origin, axes, tuple({**recipe, "parameters": parameters} for recipe in plane.recipes))


def axis_of_moving(axis: Named, model: nn.Module, parameters: str) -> dict[str, Tensor]:
    """The axis with 0 for all but the selected parameters, and the buffers of their modules; see `moving_only`."""
    names = moving_names(axis, model, parameters)
    if not any(bool(axis[name].any()) for name in names):
        raise ValueError(
            f"nothing moves along this direction: it is 0 at the parameters {parameters!r} ({', '.join(names[:5])}); "
            "biases and batch norm move with ignore 'none' alone"
        )
    return {name: d if name in names else torch.zeros_like(d) for name, d in axis.items()}


def nothing_moves(norm: str, ignore: str, what: str = "a random direction") -> str:
    """Why an axis is 0 at every tensor."""
    text = f"nothing moves along {what} of norm {norm!r} and ignore {ignore!r}: it is 0 at every parameter"
    if ignore == "biasbn":
        return f"{text}; tensors of one dimension, such as biases, move with ignore 'none' alone"
    return f"{text}, as it is scaled to where a model is 0" if norm in ("filter", "layer", "weight") else text


def moving_names(origin: Named, model: nn.Module, parameters: str) -> list[str]:
    """The names of the origin's tensors that move where these parameters do, see `moving_only`."""
    chosen = selected(model, parameters)
    modules = {name.rpartition(".")[0] for name in chosen}
    known = dict(model.named_parameters())
    return [k for k in origin if k in chosen or (k not in known and k.rpartition(".")[0] in modules)]


def random_axis(
    origin: Named,
    seed: int | str,
    index: int,
    *,
    norm: str = "filter",
    ignore: str = "biasbn",
    names: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """One random direction, made on the CPU in float32 from (seed, axis index, tensor name), then normalised.

    names  by the origin's names those that are drawn from, where a wrapper has written into them (`plain_names`)
    """
    _check_scaling(norm, ignore)
    drawn = DrawnAxis(origin, seed, index, norm, ignore, names or {})
    return {name: drawn[name] for name in drawn}


def random_or_drawn(
    origin: Named, seed: int | str, index: int, norm: str, ignore: str, names: Mapping[str, str], *, held: bool = True
) -> Named:
    """A random axis, held where it is small, and not at all unless `held`; arguments as of `random_axis`."""
    on_cpu = not held or all(w.device.type == "cpu" for w in origin.values())
    if on_cpu and (not held or sum(w.numel() for w in origin.values()) > MAX_HELD_ENTRIES):
        _check_scaling(norm, ignore)
        return DrawnAxis(origin, seed, index, norm, ignore, names)
    return random_axis(origin, seed, index, norm=norm, ignore=ignore, names=names)


def _random_tensor(name: str, w: Tensor, axis: DrawnAxis) -> Tensor:
    """One tensor of a random axis, where the origin has w."""
    if w.dim() <= 1 and axis.ignore == "none":
        return w.clone()
    if w.dim() <= 1:
        return torch.zeros_like(w)
    d = normal(w.numel(), "direction", axis.seed, axis.index, axis.names.get(name, name))
    return _scaled(d.view(w.shape).to(w.device, w.dtype), w, axis.norm, axis.ignore, in_place=True)


def _dot_of(one: Named, other: Named) -> float:
    """The scalar product of two axes, tensor by tensor."""
    return sum(dot(one[name].reshape(-1), other[name].reshape(-1)) for name in one)


def difference(origin: Named, other: Named) -> dict[str, Tensor]:
    """Other - origin, over the origin's names. Raises ValueError naming what is missing or of another shape.

    Of coarse precisions in float32: rounded to them it would lead past the other model.
    """
    _alike(origin, other, "the other model")
    ends = ((k, other[k].detach().to(w.device, w.dtype), w) for k, w in origin.items())
    return {k: end.to(precision_of_step(w)) - w for k, end, w in ends}


def precision_of_step(w: Tensor) -> torch.dtype:
    """In which a step from a tensor is kept: its own, or float32 where that is coarse."""
    return torch.float32 if w.dtype in SUMMED_IN_FLOAT32 else w.dtype


def normalised(axis: Named, origin: Named, norm: str, ignore: str) -> dict[str, Tensor]:
    """The axis scaled against the origin; norm and ignore as at the head of this module."""
    _check_scaling(norm, ignore)
    return {name: _scaled(axis[name], w, norm, ignore) for name, w in origin.items()}


def _check_scaling(norm: str, ignore: str) -> None:
    """Raises ValueError for a norm or a part to ignore that does not exist."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if ignore not in IGNORES:
        raise ValueError(
            f"ignore must be one of {', '.join(IGNORES)}; got {ignore!r}: biasbn leaves out biases and the parameters "
            "of norms; other parts stand still where parameters names those that move"
        )


def _scaled(d: Tensor, w: Tensor, how: str, ignore: str, *, in_place: bool = False) -> Tensor:
    """An axis's tensor d scaled against the origin's w; `in_place` says that d may be overwritten."""
    if ignore == "biasbn" and w.dim() <= 1:
        return torch.zeros_like(w)
    if how == "none":
        return d
    if how == "weight":
        return d * w
    if how == "layer":
        return d * (norm(w) / (norm(d) + 1e-10))
    if how == "dlayer":
        return d / (norm(d) + 1e-10)
    if w.dim() <= 1:  # its filters are single entries, whose direction is their sign
        if how == "filter":
            return torch.sign(d) * w.abs()
        return torch.sign(d)
    return _with_scaled_filters(d, w, how, d if in_place else torch.empty_like(d))


def _with_scaled_filters(d: Tensor, w: Tensor, how: str, result: Tensor) -> Tensor:
    """Filters, slices along the first dimension, scaled into `result`, which may be d itself.

    Their norms are taken in float64, so that no rounding shows in the scale, of some filters at a time.
    """
    if d.numel() == 0:
        return result
    count = max(2, ENTRIES_AT_ONCE // d[0].numel())
    for part, like, out in zip(torch.split(d, count), torch.split(w, count), torch.split(result, count), strict=True):
        target: Tensor | float = 1.0
        if how == "filter":  # before `rows` are there, so that there is one block in float64 at a time
            target = in_float64(like.reshape(like.shape[0], -1)).norm(dim=1)
        rows = part.reshape(part.shape[0], -1).to(float64_device(part.device))
        rows = rows.to(torch.float64, copy=True)
        lengths = rows.norm(dim=1) + 1e-10
        out.copy_(rows.mul_((target / lengths)[:, None]).view(part.shape))
    return result


def from_vector(v: Tensor, layout: Layout, origin: Named) -> dict[str, Tensor]:
    """A flat vector over some of the origin's tensors (an eigenvector, a gradient) as an axis; 0 elsewhere."""
    parts = layout.unflatten(v)
    axis = {name: torch.zeros_like(w) for name, w in origin.items()}
    for name, part in parts.items():
        if name in axis:
            axis[name] = part.to(axis[name].device, axis[name].dtype).view(axis[name].shape)
    return axis


def projected(plane: Plane, tensors: Named) -> tuple[tuple[float, ...], float]:
    """The coordinates of a model in the plane by least squares, and its distance from there, in units of theta.

    Axes need be neither orthogonal nor of length one.
    """
    layout = Layout.of(plane.origin)
    offset = in_float64(layout.flatten(difference(plane.origin, tensors)))  # (n,)
    axes = torch.stack([in_float64(layout.flatten(axis)) for axis in plane.axes], 1)  # (n, k)
    coordinates = torch.linalg.lstsq(axes.T @ axes, axes.T @ offset[:, None]).solution[:, 0]
    return tuple(coordinates.tolist()), float((offset - axes @ coordinates).norm())


def _each(value: str | Sequence[str], axes: int) -> list[str]:
    values = [value] * axes if isinstance(value, str) else list(value)
    if len(values) != axes:
        raise ValueError(f"settings must be one for each of {axes} axes; got {values}")
    return values


def _alike(origin: Named, other: Named, what: str) -> None:
    missing = [k for k in origin if k not in other]
    if missing:
        raise ValueError(f"{what} has no tensor named {', '.join(map(repr, missing[:5]))}")
    for name, w in origin.items():
        if other[name].shape != w.shape:
            raise ValueError(
                f"{what}'s tensor {name!r} has shape {tuple(other[name].shape)}; the model's has {tuple(w.shape)}"
            )


def origin_of(model: nn.Module, states: bool = False) -> dict[str, Tensor]:
    """The model's parameters, and with `states` its floating-point buffers: clones, by name, in its order.

    Parameters of whole numbers or truth values stand still. Raises ValueError for a complex parameter, for a lazy one
    without a shape, and where the model keeps all its parameters in Python lists.
    """
    named: dict[str, Tensor] = dict(movable_parameters(model))
    refuse_complex(named)
    lost = [] if named else unregistered(model)
    if lost:
        raise ValueError(f"the model has no parameter that a plane could move; {explained(lost)}")
    if states:
        named |= {k: b for k, b in model.named_buffers() if b.is_floating_point()}
        order = list(model.state_dict())
        named = {k: named[k] for k in order if k in named}
    return {k: lazy_copy(t) for k, t in named.items()}


def move_point(origin: Mapping[str, Tensor], axes: Sequence[Mapping[str, Tensor]], point: Point) -> dict[str, Tensor]:
    """origin + sum_i point[i] * axes[i], tensor by tensor. Zero coordinates add nothing, exactly.

    Where nothing asks for one tensor at a time, each axis is one operation on all of them: on a GPU one launch in place
    of one for each tensor.
    """
    moving = [(c, axis) for c, axis in zip(point, axes, strict=True) if c != 0.0]
    if moving and all(type(axis) is dict for _, axis in moving) and _are_alike(origin):
        (first, axis), *others = moving
        together = torch._foreach_add(list(origin.values()), [axis[name] for name in origin], alpha=first)
        for coordinate, axis in others:
            torch._foreach_add_(together, [axis[name] for name in origin], alpha=coordinate)
        return dict(zip(origin, together, strict=True))
    tensors: dict[str, Tensor] = {}
    drawn = 0  # bytes, between which glibc may keep what was freed
    for name, start in origin.items():
        value = start
        coarse = start.dtype in SUMMED_IN_FLOAT32 and sum(c != 0.0 for c in point) > 1
        for coordinate, axis in zip(point, axes, strict=True):
            if coordinate != 0.0:
                step = axis[name]
                out = step if isinstance(axis, DrawnAxis) and not coarse else None  # drawn for this reading alone
                value = torch.add(value.float() if coarse else value, step, alpha=coordinate, out=out)
                drawn += 0 if out is None else out.nbytes
        value = value.to(start.dtype)  # rounded once
        if drawn >= LARGE_MODEL:
            trim_heap()
            drawn = 0
        tensors[name] = value
    return tensors


def _are_alike(origin: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are of one precision, in which they are summed, and on one device."""
    kinds = {(t.dtype, t.device) for t in origin.values()}
    return len(kinds) == 1 and next(iter(kinds))[0] not in SUMMED_IN_FLOAT32


def move_in_place(tensors: Mapping[str, Tensor], axes: Sequence[Named], point: Point) -> None:
    """Add to tensors, which are those of the origin, what `move_point` adds, to the same bits, some filters at a time.

    axes  drawn ones, of which no tensor is held
    """
    drawn = 0
    moving = [(c, axis) for c, axis in zip(point, axes, strict=True) if c != 0.0]
    for name, value in tensors.items():
        # all axes' steps before the first is added: they are scaled against the origin, which the tensor is until then
        for parts in zip(*(_drawn_in_parts(name, value, axis) for _, axis in moving), strict=True):
            part = parts[0][0]
            steps = [(c, step) for (c, _), (_, step) in zip(moving, parts, strict=True)]
            total = part.float() if value.dtype in SUMMED_IN_FLOAT32 and len(steps) > 1 else part
            for c, step in steps:
                total.add_(step, alpha=c)
            if total is not part:
                part.copy_(total)
            drawn += sum(step.nbytes for _, step in steps)
            if drawn >= LARGE_MODEL // 16:  # within a tensor, too: an embedding is a third of a language model
                del parts, part, steps, total
                trim_heap()
                drawn = 0


def _drawn_in_parts(name: str, w: Tensor, axis: Named) -> Iterator[tuple[Tensor, Tensor]]:
    """A view of some filters of w, and the axis's tensor there: together the bits of the whole, see `_random_tensor`.

    PyTorch draws normal numbers sixteen at a time, so that parts of a multiple of sixteen continue each other.
    """
    if not isinstance(axis, DrawnAxis):
        yield w, axis[name]
        return
    rows = _rows_at_once(w) if axis.norm in ("filter", "dfilter", "weight", "none") else 0
    if w.dim() <= 1 or not rows or not w.is_contiguous():
        yield w, _random_tensor(name, w, axis)
        return
    draws = generator("direction", axis.seed, axis.index, axis.names.get(name, name))
    starts = list(range(0, len(w), rows))
    if len(starts) > 1 and w[starts[-1] :].numel() < DRAWN_AT_ONCE:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(w)], strict=True):
        part = w[start:stop]
        d = torch.randn(part.numel(), generator=draws, dtype=torch.float32)
        yield part, _scaled(d.view(part.shape).to(w.dtype), part, axis.norm, axis.ignore, in_place=True)


def _rows_at_once(w: Tensor) -> int:
    """How many filters are drawn and scaled together: as many as `_with_scaled_filters` takes, or a multiple."""
    if w.dim() <= 1 or w.numel() == 0:
        return 0
    count = max(2, ENTRIES_AT_ONCE // w[0].numel())
    return count * (DRAWN_AT_ONCE // gcd(DRAWN_AT_ONCE, count * w[0].numel()))
