"""A training run on a plane: the projection of its checkpoints, with the true loss at each.

The price is one pass over the data for each checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lossmap.data.problem import Problem
from lossmap.geometry.directions import Named, Plane, difference
from lossmap.geometry.grid import Grid, window_around
from lossmap.geometry.training_path import trajectory
from lossmap.io.surface import Group
from lossmap.landscape.loss import losses, plain_forward


def project_run(plane: Plane, problem: Problem, files: Sequence[Path], states: Sequence[Named]) -> Group:
    """The checkpoints of a run on the plane, with the true loss at each, as a file stores them.

    files   the checkpoints, in the order of the run
    states  their tensors, by the names of the plane's

    Returns the group `trajectory`: coordinates x and y, step, residual (distance from the plane), loss, each (files,).
    """
    arrays = dict(trajectory(plane, states, [_step(f, i) for i, f in enumerate(files)]))
    plan = plain_forward(problem)
    lines = [Plane(plane.origin, (difference(plane.origin, state),), ({},)) for state in states]
    arrays["loss"] = np.array([losses(problem, line, plan=plan)((1.0,))["train_loss"] for line in lines])
    shares = [r["explained_variance_ratio"] for r in plane.recipes if "explained_variance_ratio" in r]
    return Group({**arrays, "explained_variance_ratio": np.array(shares)})


def _step(file: Path, position: int) -> float:
    """The last number in a checkpoint's name, or its position in the run."""
    numbers = re.findall(r"\d+", file.stem)
    return float(numbers[-1]) if numbers else float(position)


def grid_around(arrays: Mapping[str, np.ndarray]) -> Grid:
    """Ticks that span the whole path with a margin."""
    x = np.linspace(*window_around(arrays["x"]), 25)
    if "y" not in arrays:
        return Grid(x)
    return Grid(x, np.linspace(*window_around(arrays["y"]), 25))
