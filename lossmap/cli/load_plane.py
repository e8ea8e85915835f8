"""The plane and the grid that the settings name, built on every rank alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.cli.load_problem import logger, run_files
from lossmap.cli.setting_groups import ModelSettings, PlaneSettings
from lossmap.cli.settings import Settings, UsageError
from lossmap.data import checkpoints
from lossmap.geometry.directions import Named, Plane, difference, from_vector, normalised, origin_of, random_axis
from lossmap.geometry.grid import Grid
from lossmap.geometry.parameter_vector import Layout
from lossmap.geometry.training_path import principal_axes
from lossmap.io import legacy
from lossmap.io.read import read_group
from lossmap.parallel.world import World


def grid_of(plane: PlaneSettings) -> Grid:
    """The grid of the settings."""
    return Grid.parse(plane.x, plane.y)


def plane_and_ranks(settings: Settings, world: World, model: nn.Module, curved: Curved | None = None) -> Plane:
    """The plane on every rank: random axes are made from their seed by each, others by rank 0 and told.

    Every rank calls it; all raise as one, also where the ranks' planes differ.
    """

    def make() -> Plane | None:
        return plane_of(model, settings.model, settings.plane, curved)

    kinds = {settings.plane.xdir or "random", settings.plane.ydir or "random"}
    drawn = kinds == {"random"} and not (settings.model.model_file2 or settings.plane.dir_file)
    plane = world.together(lambda: make() if drawn or world.rank == 0 else None)
    if not drawn and world.size > 1:
        device = next(model.parameters()).device
        told = world.broadcast(plane.to("cpu") if plane is not None else None)
        plane = told.to(device)
    if plane is None:  # pragma: no cover
        raise RuntimeError("no plane was made")
    world.check_same(plane.digest)
    return plane


Curved = Callable[[str], tuple[Tensor, Layout]]  # gradient, hessian:max or hessian:min -> vector and its layout


def plane_of(model: nn.Module, of: ModelSettings, plane: PlaneSettings, curved: Curved | None = None) -> Plane:
    """The plane of the settings, its origin at the model's present tensors.

    curved  makes directions out of curvature; given by the doors, as nothing here may measure
    """
    states = plane.dir_type == "states"
    origin = origin_of(model, states)
    count = 1 if plane.y is None else 2
    if plane.ydir and count == 1:
        raise UsageError(f"--ydir {plane.ydir} wants ticks along y too, such as --y=-1:1:51")
    if plane.dir_file and Path(plane.dir_file).exists():
        return _from_file(model, plane, origin, count)
    kinds = [plane.xdir or (f"to:{of.model_file2}" if of.model_file2 else "random")]
    if count == 2:
        kinds.append(plane.ydir or (f"to:{of.model_file3}" if of.model_file3 else "random"))
    axes: list[Named] = []
    recipes: list[dict[str, Any]] = []
    for i, kind in enumerate(kinds):
        norm, ignore = ((plane.xnorm, plane.xignore), (plane.ynorm, plane.yignore))[i]
        drawn = kind == "random"
        norm, ignore = norm or ("filter" if drawn else "none"), ignore or ("biasbn" if drawn else "none")
        recipe: dict[str, Any] = {"kind": kind, "norm": norm, "ignore": ignore, "states": states}
        if drawn:
            seed = plane.seed if plane.idx == 0 else f"{plane.seed}/{plane.idx}"
            index = 0 if i == 1 and plane.same_dir else i
            axes.append(random_axis(origin, seed, index, norm=norm, ignore=ignore))
            recipe |= {"seed": plane.seed, "idx": plane.idx, "index": index}
        else:
            axis, more = _made(kind, model, origin, of, curved)
            axes.append(normalised(axis, origin, norm, ignore))
            recipe |= more
        recipes.append(recipe)
    return Plane(origin, tuple(axes), tuple(recipes))


def _made(
    kind: str, model: nn.Module, origin: Named, of: ModelSettings, curved: Curved | None
) -> tuple[Named, dict[str, Any]]:
    what, _, rest = kind.partition(":")
    if what == "to" and rest:
        state = checkpoints.load_state(rest, unsafe=of.unsafe_load)
        _running(model, origin, state, rest)
        return difference(origin, state), {"sha256": checkpoints.file_sha256(rest)}
    if what == "pca" and rest.isdigit() and int(rest) >= 1:
        files = run_files(of)
        states = [checkpoints.load_state(f, unsafe=of.unsafe_load) for f in files]
        found = principal_axes(origin, states, int(rest))
        return found.axes[-1], {"explained_variance_ratio": found.explained[-1], "checkpoints": len(files)}
    if what == "file" and ":" in rest:
        path, _, name = rest.rpartition(":")
        return _axis_in(path, name, model, origin), {"sha256": checkpoints.file_sha256(path)}
    if kind in ("gradient", "hessian:max", "hessian:min") and curved is not None:
        v, layout = curved(kind)
        return from_vector(v, layout, origin), {}
    raise UsageError(
        f"unknown direction {kind!r}; there are random, to:FILE, pca:1, hessian:max, hessian:min, gradient, and "
        "file:FILE:name"
    )


def _running(model: nn.Module, origin: Named, state: Mapping[str, Tensor], file: str) -> None:
    """Say that the line to a checkpoint does not arrive there, where the running statistics stay behind."""
    for name, buffer in model.named_buffers():
        there = state.get(name)
        if name in origin or there is None or not buffer.is_floating_point() or there.shape != buffer.shape:
            continue
        if not torch.equal(buffer.cpu(), there.to("cpu", buffer.dtype)):
            logger.warning(
                "at 1 are the weights of %s, but the running statistics of the model; --dir-type states moves both",
                file,
            )
            return


def _from_file(model: nn.Module, plane: PlaneSettings, origin: Named, count: int) -> Plane:
    path = str(plane.dir_file)
    digest = checkpoints.file_sha256(path)
    axes, recipes = [], []
    for name in ("x", "y")[:count]:
        axes.append(_axis_in(path, name, model, origin))
        recipes.append({"kind": f"file:{Path(path).name}:{name}", "norm": "none", "ignore": "none", "sha256": digest})
    return Plane(origin, tuple(axes), tuple(recipes))


def _axis_in(path: str, name: str, model: nn.Module, origin: Named) -> dict[str, Tensor]:
    """An axis of a result file, or of a direction file of the original tool, over the origin's tensors."""
    try:
        found: Mapping[str, Any] = read_group(path, f"directions/{name}").arrays
        if not found:
            raise UsageError(f"{path} holds the recipe of the direction {name} alone (--no-store-directions)")
    except KeyError:
        theirs = legacy.directions(path)
        if name not in theirs:
            raise UsageError(f"{path} holds no direction {name!r}; it has {', '.join(theirs)}") from None
        parameters = {k: tuple(p.shape) for k, p in model.named_parameters()}
        states = {k: tuple(t.shape) for k, t in model.state_dict().items()}
        found = legacy.matched(theirs[name], parameters, states)
    missing = [k for k in origin if k not in found]
    if missing and not any(k in found for k in origin):
        raise UsageError(f"{path}: the direction has no tensor named {missing[0]!r}; it belongs to another model")
    axis: dict[str, Tensor] = {}
    for k, w in origin.items():
        d = torch.as_tensor(found[k]) if k in found else torch.zeros(())
        if k in found and d.numel() != w.numel():
            raise UsageError(f"{path}: the direction of {k!r} has shape {tuple(d.shape)}; the model's {tuple(w.shape)}")
        axis[k] = d.to(w.device, w.dtype).reshape(w.shape) if k in found else torch.zeros_like(w)
    return axis
