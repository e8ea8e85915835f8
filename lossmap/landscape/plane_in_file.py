"""Directions that lie in a file: of a result, or of the original tool."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data import checkpoints
from lossmap.geometry.directions import Named, Plane, precision_of_step, random_or_drawn, words_for_buffers
from lossmap.geometry.grid import ENDS_AT
from lossmap.geometry.parameter_vector import state_tensors
from lossmap.geometry.wrappers import plain_names
from lossmap.io import legacy
from lossmap.io.read import read, read_group
from lossmap.io.surface import MADE_AS
from lossmap.landscape.survey_file import DRAWN_INDEX, DRAWN_SEED

logger = logging.getLogger("lossmap")

SAME_LENGTH = 1e-5  # relative


def plane_in_file(path: str, model: nn.Module, origin: Named, names: tuple[str, ...]) -> Plane:
    """The plane of a result or direction file.

    origin  the tensors of the model by name, at which the plane begins
    names   x, or x and y

    Raises ValueError where the file has no such directions, or they belong to another model.
    """
    digest = checkpoints.file_sha256(path)
    axes, recipes = [], []
    for name in names:
        axes.append(axis_in_file(path, name, model, origin))
        recipe = {"kind": f"file:{Path(path).name}:{name}", "norm": "none", "ignore": "none", "sha256": digest}
        recipes.append(recipe | _made_as(path, name))
    plane = Plane(origin, tuple(axes), tuple(recipes))
    if any(ENDS_AT in recipe for recipe in recipes) and not _is_plane_of(path, plane, model):
        for recipe in recipes:  # from another origin it leads elsewhere
            recipe.pop(ENDS_AT, None)
    return plane


def _made_as(path: str, name: str) -> dict[str, str]:
    """What kind of direction it was where it was made, and what stood at its end: for the words at an axis."""
    with contextlib.suppress(KeyError, ValueError):
        attributes = read_group(path, f"directions/{name}").attributes
        kind = attributes.get(MADE_AS, attributes.get("kind"))
        if kind:
            end = {ENDS_AT: str(attributes[ENDS_AT])} if ENDS_AT in attributes else {}
            return {MADE_AS: str(kind), **end}
    return {}


def _is_plane_of(path: str, plane: Plane, model: nn.Module) -> bool:
    """Whether a plane, or line in one, along axes of a file begins at the model at which the file's plane began."""
    stated = read_group(path, "directions/x").attributes.get("digest")
    if len(plane.axes) == 1:
        with contextlib.suppress(KeyError):
            read_group(path, "directions/y")
            along = axis_in_file(path, "y", model, plane.origin)
            plane = Plane(plane.origin, (*plane.axes, along), (*plane.recipes, {}))
    return plane.digest == stated


def has_one_direction(path: str) -> bool:
    """Whether a file is a result of a line, or one of the original tool, whose only direction is x."""
    with contextlib.suppress(ValueError, OSError):
        return [name for name in read(path).groups if name.startswith("directions/")] == ["directions/x"]
    with contextlib.suppress(ValueError, OSError):
        return list(legacy.directions(path)) == ["x"]
    return False


def axis_in_file(path: str, name: str, model: nn.Module, origin: Named) -> Named:
    """An axis of a result file, or of a direction file of the original tool, over the origin's tensors."""
    drawn = _drawn_axis(path, name, model, origin)
    if drawn is not None:
        return drawn
    arrays = _arrays_of_axis(path, name, model)
    missing = [k for k in origin if k not in arrays]
    if len(missing) == len(origin):
        raise ValueError(f"{path}: the direction has no tensor named {missing[0]!r}; it belongs to another model")
    moving = [k for k in _standing_buffers(model, origin) if k in arrays and np.any(arrays[k])]
    if moving:
        what = words_for_buffers(model, moving)
        logger.warning("%s: along %s %s move too; --dir-type states moves them, weights none", path, name, what)
    axis: dict[str, Tensor] = {}
    for k, w in origin.items():
        if k not in arrays:  # the axis of another --dir-type or --parameters: nothing moves along this tensor
            axis[k] = torch.zeros_like(w)
            continue
        d = torch.as_tensor(arrays[k])
        if d.numel() != w.numel():
            raise ValueError(f"{path}: the direction of {k!r} has shape {tuple(d.shape)}; the model's {tuple(w.shape)}")
        axis[k] = d.to(w.device, precision_of_step(w)).reshape(w.shape)
    return axis


def _standing_buffers(model: nn.Module, origin: Named) -> list[str]:
    """The names of the buffers that a state would move and the origin's tensors do not."""
    return [k for k, b in model.named_buffers() if b.is_floating_point() and k not in origin]


def _drawn_axis(path: str, name: str, model: nn.Module, origin: Named) -> Named | None:
    """An axis that was not stored but is drawn, tensor by tensor; None for any other.

    Raises ValueError where its length is another than the file says: it was scaled against another model.
    """
    try:
        recipe = read_group(path, f"directions/{name}").attributes
    except (KeyError, ValueError):
        return None
    if DRAWN_SEED not in recipe:
        return None
    scaling = (str(recipe["norm"]), str(recipe["ignore"]))
    index, names = int(recipe[DRAWN_INDEX]), plain_names(model)
    axis = random_or_drawn(origin, str(recipe[DRAWN_SEED]), index, *scaling, names)
    length, stated = Plane(origin, (axis,), ({},)).lengths[0], float(recipe["length"])
    if not abs(length - stated) <= SAME_LENGTH * stated:
        standing = _standing_buffers(model, origin)
        if recipe.get("states") and standing:
            what = words_for_buffers(model, standing)
            raise ValueError(f"{path}: the direction {name} is drawn with the {what}: --dir-type states moves them")
        raise ValueError(
            f"{path}: the direction {name} is drawn for the model at hand with length {length:.6g}; there it was "
            f"{stated:.6g}: it belongs to another model"
        )
    return axis


def _arrays_of_axis(path: str, name: str, model: nn.Module) -> Mapping[str, Any]:
    """The arrays of an axis by the names of the model's tensors. Raises ValueError where the file has none."""
    try:
        arrays = read_group(path, f"directions/{name}").arrays
    except KeyError:
        if name != "x" and has_one_direction(path):
            raise ValueError(
                f"{path} holds one direction, along x, and none along {name}: leave --{name} out"
            ) from None
        directions = legacy.directions(path)
        if name not in directions:
            raise ValueError(f"{path} holds no direction {name!r}; it has {', '.join(directions)}") from None
        parameters = {k: tuple(p.shape) for k, p in model.named_parameters()}
        states = {k: tuple(t.shape) for k, t in state_tensors(model).items()}
        return legacy.matched(directions[name], parameters, states)
    if not arrays:
        raise ValueError(f"{path} holds only the recipe of the direction {name} (--no-store-directions)")
    return arrays


def is_plane_of_file(path: str, plane: Plane) -> bool:
    """Whether a plane is that of a file but for rounding of its axes, as of another precision or machine."""
    axes = []
    try:
        stated = read_group(path, "directions/x").attributes.get("digest")
        for name, axis in zip("xy", plane.axes, strict=False):
            arrays = read_group(path, f"directions/{name}").arrays
            if set(arrays) != set(axis):
                return False
            axes.append({key: torch.as_tensor(arrays[key]).reshape(tensor.shape) for key, tensor in axis.items()})
    except (KeyError, ValueError, RuntimeError):  # RuntimeError: of another shape
        return False
    if any(_differ(axis[key], made[key]) for axis, made in zip(plane.axes, axes, strict=True) for key in axis):
        return False
    return replace(plane, axes=tuple(axes)).digest == stated  # else it begins at another model


def _differ(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape differ by more than rounding."""
    own = tensor.detach().double().cpu()
    return float((own - other.double()).norm()) > SAME_LENGTH * float(own.norm())
