"""The plane and the grid that the settings name, built on every rank alike."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.cli.announce import reported_by_rank_0
from lossmap.cli.grid_window import tick_texts
from lossmap.cli.load_model import read_checkpoint, run_files, selection_of
from lossmap.cli.load_preconditioner import preconditioner_from
from lossmap.cli.setting_groups import ModelSettings, PlaneSettings
from lossmap.cli.settings import Settings, UsageError, flag_of
from lossmap.data import checkpoints
from lossmap.data.problem import Problem
from lossmap.geometry.degenerate import lead_one_way, leads_nowhere
from lossmap.geometry.directions import (
    Named,
    Plane,
    axis_of_moving,
    difference,
    end_of,
    from_vector,
    moving_names,
    normalised,
    nothing_moves,
    origin_of,
    random_or_drawn,
    words_for_buffers,
)
from lossmap.geometry.grid import ENDS_AT, PART, Grid
from lossmap.geometry.parameter_vector import Layout, state_tensors, warn_of_frozen
from lossmap.geometry.training_path import principal_axes
from lossmap.geometry.wrappers import plain_names
from lossmap.landscape.curvature_directions import curved_direction
from lossmap.landscape.plane_in_file import axis_in_file, has_one_direction, plane_in_file
from lossmap.parallel.world import World

logger = logging.getLogger("lossmap")

PARALLEL = 1e-6  # by which the cosine of two axes that are one differs from 1 at most: rounding of float32
MAX_POINTS = 1_000_000  # of a grid that nobody has said yes to

CURVED = ("gradient", "sam", "hessian", "preconditioned")  # what directions of curvature begin with
# gradient, sam:KIND, hessian:max or hessian:min:2 -> the vector, its layout, and what is known of it
Curved = Callable[[str], tuple[Tensor, Layout, dict[str, float]]]


def grid_of(plane: PlaneSettings) -> Grid:
    """The grid of the settings. Raises UsageError for one of more than MAX_POINTS points, unless --yes allows it."""
    x, y = tick_texts(plane)
    counts = [int(text.rpartition(":")[2]) for text in (x, y) if text and re.search(r":\d+$", text)]
    if prod(counts) > MAX_POINTS and not plane.yes:
        raise UsageError(
            f"the grid has {prod(counts):,} points ({' x '.join(map(str, counts))}), and each field of the result "
            f"takes {8 * prod(counts) / 1e6:,.0f} MB; add --yes where this is meant"
        )
    return Grid.parse(x, y)


def curved_of(settings: Settings, problem: Problem) -> Curved:
    """What makes directions out of a problem's curvature, and of its optimizer's state where they need that."""

    def curved(kind: str) -> tuple[Tensor, Layout, dict[str, float]]:
        own = problem
        if kind.startswith("preconditioned:"):
            named = settings.plane.optimizer_state or settings.model.model_file
            if not named:
                raise UsageError(f"the direction {kind} needs an optimizer's state: --optimizer-state or --model-file")
            unsafe = settings.model.unsafe_load
            own = replace(problem, preconditioner=preconditioner_from(named, problem, unsafe, kind))
        return curved_direction(own, kind, parameters=settings.plane.parameters_of_directions)

    return curved


def plane_and_ranks(settings: Settings, world: World, model: nn.Module, curved: Curved | None = None) -> Plane:
    """The plane on every rank: random axes are drawn from their seed by each, others made and sent by rank 0.

    Every rank calls it; all raise as one, also where the ranks' planes differ.
    """
    kinds = {settings.plane.xdir or "random", settings.plane.ydir or "random"}
    is_random = kinds == {"random"} and not (settings.model.model_file2 or settings.plane.dir_file)

    def make() -> Plane | None:
        if not is_random and world.rank != 0:
            return None
        return plane_of(model, settings.model, settings.plane, curved)

    with reported_by_rank_0(world):
        plane = world.together(make)
    if not is_random and world.size > 1:
        device = next(model.parameters()).device
        if plane is not None:  # on rank 0
            plane = plane.to("cpu")
        plane = world.broadcast(plane).to(device)
    if plane is None:  # pragma: no cover
        raise RuntimeError("no plane was made")
    world.check_same(plane.digest)
    if world.rank == 0 and not settings.plane.dir_file:
        warn_of_frozen(model, settings.plane.moving, "move with the plane")
    return plane


def plane_of(model: nn.Module, files: ModelSettings, plane: PlaneSettings, curved: Curved | None = None) -> Plane:
    """The plane of the settings, its origin at the model's present tensors.

    files   the settings that name checkpoints
    curved  makes directions out of curvature

    Raises UsageError for a direction that is unknown, or that does not fit the model.
    """
    origin = origin_of(model, plane.dir_type == "states")
    file = plane.dir_file
    if plane.ydir and plane.y is None and not (file and (not Path(file).exists() or has_one_direction(file))):
        raise UsageError(f"--ydir {plane.ydir} needs ticks along y too, such as --y=-1:1:51")
    if plane.optimizer_state and not any(
        (kind or "").startswith("preconditioned:") for kind in (plane.xdir, plane.ydir)
    ):
        raise UsageError(
            "--optimizer-state is of preconditioned directions: add --xdir preconditioned:max, or leave it out"
        )
    names = ("x",) if plane.y is None else ("x", "y")
    if plane.dir_file:
        if not Path(plane.dir_file).exists():
            raise UsageError(
                f"there is no {plane.dir_file} to read directions of: a result that goes on needs it as it was; for a "
                f"new one lossmap plane --dir-file {plane.dir_file} writes it, or --dir-file takes a result that holds "
                "the directions; without --dir-file they are made anew"
            )
        _warn_of_idle(files, plane)
        return plane_in_file(plane.dir_file, model, origin, names)
    axes, recipes = zip(*(_axis(name, model, files, plane, origin, curved) for name in names), strict=True)
    made = Plane(origin, tuple(axes), tuple(recipes))
    if made.cosine is not None and _are_one(made):
        both = " and ".join(recipe["kind"] for recipe in recipes)
        raise UsageError(f"the directions {both} are one and the same (cosine {made.cosine:.6f}): they span no plane")
    return made


def _warn_of_idle(files: ModelSettings, plane: PlaneSettings) -> None:
    """Say which flags make directions, where these come from a file."""
    made_by = [n for n in ("model_file2", "model_file3") if getattr(files, n)]
    made_by += [n for n in ("xdir", "ydir", "xnorm", "ynorm", "xignore", "yignore", "same_dir") if getattr(plane, n)]
    if made_by:
        flags = ", ".join(map(flag_of, made_by))
        logger.warning("the directions are those of --dir-file %s, of which %s changes nothing", plane.dir_file, flags)


def _are_one(plane: Plane) -> bool:
    """Whether the two axes of a plane are one and the same, and not meant to be."""
    if all(recipe["kind"] == "random" for recipe in plane.recipes):  # --same-dir means it
        return False
    if all(recipe["kind"].startswith("to:") and recipe["norm"] == "none" for recipe in plane.recipes):
        return all(plane.lengths) and lead_one_way(plane.origin, *plane.axes)
    return abs(plane.cosine or 0.0) > 1 - PARALLEL


def _axis(
    name: str, model: nn.Module, files: ModelSettings, plane: PlaneSettings, origin: Named, curved: Curved | None
) -> tuple[Named, dict[str, Any]]:
    """The axis x or y, and the recipe that it is made by."""
    file = {"x": files.model_file2, "y": files.model_file3}[name]
    kind = getattr(plane, f"{name}dir") or (f"to:{file}" if file else "random")
    is_random, other = kind == "random", None
    default_norm, default_ignore = ("filter", "biasbn") if is_random else ("none", "none")
    norm = getattr(plane, f"{name}norm") or default_norm
    ignore = getattr(plane, f"{name}ignore") or default_ignore
    recipe: dict[str, Any] = {"kind": kind, "norm": norm, "ignore": ignore, "states": plane.dir_type == "states"}
    if is_random:
        seed = f"{plane.seed}/{plane.idx}" if plane.idx else plane.seed
        index = int(name == "y" and not plane.same_dir)
        axis = random_or_drawn(origin, seed, index, norm, ignore, plain_names(model))
        recipe |= {"seed": plane.seed, "idx": plane.idx, "index": index}
    else:
        if kind.startswith("to:") and kind != "to:":
            other = state_of(model, kind.removeprefix("to:"), files)
        names = moving_names(origin, model, plane.moving)
        computed, details = _computed_axis(kind, model, origin, files, curved, names, other)
        axis, recipe = normalised(computed, origin, norm, ignore), recipe | details
    if plane.moving != "all":
        axis = axis_of_moving(axis, model, plane.moving)
    elif leads_nowhere(axis):
        raise UsageError(nothing_moves(norm, ignore, "a random direction" if is_random else f"the direction {kind}"))
    if plane.parameters_of_directions:
        recipe["parameters"] = plane.moving
    if other is not None:
        recipe[ENDS_AT] = end_of(model, origin, axis, other)
        standing = [] if recipe["states"] else _other_buffers(model, origin, other)
        if standing:
            _warn_of_buffers(kind.removeprefix("to:"), recipe[ENDS_AT], words_for_buffers(model, standing))
    return axis, recipe


def _warn_of_buffers(file: str, end: str, buffers: str) -> None:
    """Say that buffers, by what they are called, stand still along the axis to a checkpoint; `end` stands at 1."""
    where, moved = (f"at 1 are the weights of {file}, but", "both")
    if end == PART:
        where, moved = f"all along the axis to {file} are", "them"
    logger.warning("%s the %s of the model; --dir-type states moves %s", where, buffers, moved)


def _computed_axis(
    kind: str,
    model: nn.Module,
    origin: Named,
    files: ModelSettings,
    curved: Curved | None,
    names: Sequence[str],
    other: Named | None,
) -> tuple[Named, dict[str, Any]]:
    """An axis that is not random, before its normalization, and what its recipe says of it.

    names  of the tensors that move: the path of a run is that of these
    other  the tensors of the checkpoint that it leads to
    """
    what, _, rest = kind.partition(":")
    if other is not None:
        axis = difference(origin, other)
        if leads_nowhere(axis):
            left_out = _other_buffers(model, origin, other)
            raise UsageError(
                f"{rest} has the weights of the model at the origin: there is no direction to it"
                + (
                    f"; its {words_for_buffers(model, left_out)} differ: --dir-type states moves them"
                    if left_out
                    else ""
                )
            )
        return axis, {"sha256": checkpoints.file_sha256(rest)}
    if what == "pca" and rest.isdigit() and int(rest) >= 1:
        run = run_files(files)
        states = [state_of(model, f, files, of_run=True) for f in run]
        principal = principal_axes(origin, states, int(rest), names)
        return principal.axes[-1], {"explained_variance_ratio": principal.explained[-1], "checkpoints": len(run)}
    if what == "file" and ":" in rest:
        path, _, name = rest.rpartition(":")
        return axis_in_file(path, name, model, origin), {"sha256": checkpoints.file_sha256(path)}
    if what in CURVED and curved is not None:
        v, layout, facts = curved(kind)
        return from_vector(v, layout, origin), facts
    raise UsageError(
        f"unknown direction {kind!r}; it must be random, to:FILE, pca:1, hessian:max, hessian:min:2, gradient, "
        "sam:adaptive, preconditioned:max, preconditioned:gradient or file:FILE:name"
    )


def state_of(model: nn.Module, path: str | Path, files: ModelSettings, of_run: bool = False) -> Mapping[str, Tensor]:
    """The tensors of another checkpoint by the model's names; what it lacks, such as an adapter's base, is its own.

    of_run  whether it is one of a run's, which all have the --state-key or are refused; of another file without it the
            only tensors that fit are read
    """
    own = {k: t.detach().clone() for k, t in state_tensors(model).items()}
    selection = replace(selection_of(files), or_the_only=not of_run)
    fit = read_checkpoint(files, path, model=model).fit(model, selection)
    for note in fit.notes:
        logger.warning("%s", note)
    return {**own, **fit.state}


def _other_buffers(model: nn.Module, origin: Named, state: Mapping[str, Tensor]) -> list[str]:
    """The buffers in which a checkpoint differs and that do not move on the line to it: it does not arrive there."""
    differ = []
    for name, buffer in model.named_buffers():
        target = state.get(name)
        if name in origin or target is None or not buffer.is_floating_point() or target.shape != buffer.shape:
            continue
        if not torch.equal(buffer.cpu(), target.to("cpu", buffer.dtype)):
            differ.append(name)
    return differ
