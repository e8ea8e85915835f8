"""A training run on a plane: the projection of its checkpoints, the loss at each and below it, and how it descends.

    loss        at the checkpoint itself, with its own running statistics
    plane_loss  at its projection, a point of the plane: what a map shows under the path
    cosine      between the step to the next checkpoint and the negative gradient, over the tensors that the step moves:
                1 straight downhill, 0 across, < 0 uphill to first order

A tensor that stands still from one checkpoint to the next, to the last bit, was not trained: its gradient is not what
the step follows, as of a body that is frozen while its head is trained.

The price is two passes over the data for each checkpoint, and a gradient; without losses none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import nan
from pathlib import Path

import numpy as np
import torch

from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import Named, Plane, difference, origin_of
from lossmap.geometry.grid import Grid, window_around
from lossmap.geometry.training_path import trajectory
from lossmap.io.surface import Group
from lossmap.landscape.checkpoint_steps import known_steps
from lossmap.landscape.loss import losses, plain_forward
from lossmap.sums import in_float64

PASSES = 4  # over the data at a checkpoint: two of losses, and a gradient, which takes about two

log = logging.getLogger("lossmap")


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

    Returns the group `trajectory`: coordinates x and y, step, residual (distance from the plane), loss, plane_loss,
    cosine, and where known learning_rate, each (files,); NaN where a number is not known, as the last cosine.
    """
    arrays = dict(trajectory(plane, states, _steps(files)))
    if problem is not None:
        arrays |= _losses_of_run(plane, problem, states, arrays, parameters)
    if np.isfinite(np.asarray(rates, dtype=float)).any():
        arrays["learning_rate"] = np.asarray(rates, dtype=float)
    shares = [r["explained_variance_ratio"] for r in plane.recipes if "explained_variance_ratio" in r]
    return Group({**arrays, "explained_variance_ratio": np.array(shares)})


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
    arrays["cosine"] = _cosines(problem, whole, states, parameters)
    return arrays


def _cosines(problem: Problem, whole: Named, states: Sequence[Named], parameters: str) -> np.ndarray:
    """Between each step and the negative gradient where it begins; NaN of the last, and where there is no gradient."""
    cosines = np.full(len(states), nan)
    still: dict[str, None] = {}  # tensors that have a gradient, and do not move in some step that moves others
    for t, (here, there) in enumerate(pairwise(states)):
        own = {name: here[name].to(w.device, w.dtype).view(w.shape) for name, w in whole.items()}
        try:
            with temporary_parameters(problem.model, own):
                if t == 0:
                    check_gradient(problem, parameters)
                found = loss_and_gradient(problem, parameters)
        except (FloatingPointError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            log.warning("no cosines of steps and gradients: at checkpoint %d there is no gradient: %s", t, reason)
            return np.full(len(states), nan)
        step = difference(own, {name: there[name].to(w.device, w.dtype) for name, w in own.items()})
        gradient = found.layout.unflatten(found.gradient)
        moved = [name for name in found.layout.names if step[name].any()]
        if moved:  # of the same checkpoint twice nothing was trained
            still |= {name: None for name, part in gradient.items() if name not in moved and part.any()}
            s = torch.cat([in_float64(step[name].reshape(-1)) for name in moved])
            g = torch.cat([gradient[name].reshape(-1) for name in moved])
            lengths = float(s.norm()) * float(g.norm())
            cosines[t] = -float(s @ g) / lengths if lengths else nan
    if still and np.isfinite(cosines).any():
        log.warning(
            "cosines are over the tensors that a step moves; %d of %d stand still in some, such as %s",
            len(still), len(found.layout.names), next(iter(still)),
        )  # fmt: skip
    return cosines


def _steps(files: Sequence[Path]) -> list[float]:
    """The steps of a run's checkpoints; their positions in it where not all are known."""
    steps = [step for step in known_steps(files) if step is not None]
    return steps if len(steps) == len(files) else [float(i) for i in range(len(files))]


def grid_around(arrays: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> Grid:
    """Ticks that span the whole path with a margin.

    arrays  the coordinates of the path
    counts  of the ticks, by axis
    """
    ticks = {axis: np.linspace(*window_around(arrays[axis]), counts[axis]) for axis in ("x", "y") if axis in arrays}
    return Grid(ticks["x"], ticks.get("y"))
