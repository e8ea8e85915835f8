"""A training run on a plane: the projection of its checkpoints, the loss at each and below it, and how it descends.

    loss        at the checkpoint itself, with its own running statistics
    plane_loss  at its projection, a point of the plane: what a map shows under the path
    cosine      between the step to the next checkpoint and the negative gradient where it begins (`step_cosines`)
    rounding    how far that of the stored weights may have moved the checkpoint (`training_path`)

The price is two passes over the data for each checkpoint, and a gradient; without losses none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lossmap.data.problem import Problem
from lossmap.geometry.directions import Named, Plane, difference, origin_of
from lossmap.geometry.grid import Grid, window_around
from lossmap.geometry.training_path import rounding_of_path, trajectory
from lossmap.io.surface import Group
from lossmap.landscape.checkpoint_steps import found_checkpoints, known_steps
from lossmap.landscape.loss import losses, plain_forward
from lossmap.landscape.step_cosines import is_other_in_training, step_cosines
from lossmap.sums import norm_of

PASSES = 4  # over the data at a checkpoint: two of losses, and a gradient, which takes about two


def project_run(
    plane: Plane,
    problem: Problem | None,
    files: Sequence[Path],
    states: Sequence[Named],
    rates: Sequence[float] = (),
    parameters: str = "all",
) -> Group:
    """The checkpoints of a run on the plane, as a file stores them.

    problem     of which the losses are; None: coordinates alone
    files       the checkpoints, in the order of the run
    states      their tensors, by the names of the plane's
    rates       the learning rate beside each, NaN where it is not known
    parameters  that move, of which the cosines are

    Returns the group `trajectory`: coordinates x and y, step, residual (distance from the plane), distance (from the
    origin), rounding (how far that of the stored weights may have moved a checkpoint), loss, plane_loss, cosine,
    cosine_error, and where known learning_rate, each (files,); NaN where a number is not known, as the last cosine.
    Its attribute other_in_training is there where the gradient in training mode is another than that of the cosines.
    """
    arrays, attributes = dict(trajectory(plane, states, _steps(files))), {}
    arrays["distance"] = np.array([norm_of(difference(plane.origin, state).values()) for state in states])
    arrays["rounding"] = rounding_of_path(plane.origin, states)
    if problem is not None:
        arrays |= _losses_of_run(plane, problem, states, arrays, parameters)
        if np.isfinite(arrays["cosine"]).any() and is_other_in_training(problem, parameters):
            attributes["other_in_training"] = True
    if np.isfinite(np.asarray(rates, dtype=float)).any():
        arrays["learning_rate"] = np.asarray(rates, dtype=float)
    shares = [r["explained_variance_ratio"] for r in plane.recipes if "explained_variance_ratio" in r]
    return Group({**arrays, "explained_variance_ratio": np.array(shares)}, attributes)


def _losses_of_run(
    plane: Plane, problem: Problem, states: Sequence[Named], at: Mapping[str, np.ndarray], parameters: str
) -> dict[str, np.ndarray]:
    """The losses at the checkpoints and below them, and the cosines of the steps, each (files,).

    at  the coordinates x and y of the checkpoints
    """
    arrays: dict[str, np.ndarray] = {}
    plan = plain_forward(problem)
    whole = origin_of(problem.model, states=True)  # running statistics too, which need not move with the plane
    lines = [Plane(whole, (difference(whole, state),), ({},)) for state in states]
    arrays["loss"] = np.array([losses(problem, line, plan=plan)((1.0,))["train_loss"] for line in lines])
    on_plane = losses(problem, plane, plan=plan)
    points = zip(*(at[axis] for axis in "xy" if axis in at), strict=True)
    arrays["plane_loss"] = np.array([on_plane(tuple(map(float, point)))["train_loss"] for point in points])
    arrays["cosine"], arrays["cosine_error"] = step_cosines(problem, whole, states, parameters)
    return arrays


def _steps(files: Sequence[Path]) -> list[float]:
    """The steps of a run's checkpoints; their positions in it where not all are known."""
    found: dict[float, Path] = {}
    with suppress(FileNotFoundError, ValueError):  # files that are gone since they were read have their names alone
        found = found_checkpoints(files)[0]
    if list(found.values()) == list(files):  # with the steps of a beginning and an end whose names have none
        return list(found)
    steps = [step for step in known_steps(files) if step is not None]
    return steps if len(steps) == len(files) else [float(i) for i in range(len(files))]


def grid_around(arrays: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> Grid:
    """Ticks that span the whole path with a margin.

    arrays  the coordinates of the path
    counts  of the ticks, by axis
    """
    ticks = {axis: np.linspace(*window_around(arrays[axis]), counts[axis]) for axis in ("x", "y") if axis in arrays}
    return Grid(ticks["x"], ticks.get("y"))
