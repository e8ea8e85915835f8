"""The straight line between two networks of one architecture: losses, accuracies and the barrier on it: `connect`.

    theta(t) = (1 - t) theta_A + t theta_B,   t = 0 ... 1

Price: one pass over the data a point, two where statistics of batch norm are recomputed; both twice with an alignment;
see `connection_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from torch import Tensor, nn

from lossmap.data.problem import Problem
from lossmap.geometry.directions import line_to
from lossmap.geometry.grid import Grid
from lossmap.io.disk import PathLike
from lossmap.io.eigenvector_store import put_group
from lossmap.io.surface import Group
from lossmap.keywords import checked_keywords
from lossmap.landscape.alignment import ALIGNMENTS, NONE
from lossmap.landscape.alignment import align as aligned
from lossmap.landscape.barrier_rounding import with_rounding
from lossmap.landscape.connection import GROUP, Connection, connection_in
from lossmap.landscape.connection_map import (
    INTERPOLATE,
    RECOMPUTE,
    Way,
    connection_map,
    curve_recipe,
    fixed_batches,
    statistics_of,
)
from lossmap.landscape.curves import CurveRecipe, curved_plane, described, stored_bend, train_bend
from lossmap.landscape.loss import plain_forward
from lossmap.landscape.run_survey import survey
from lossmap.landscape.survey_recorder import Progress
from lossmap.parallel.world import World

MIN_POINTS = 3


def line_grid(points: int) -> Grid:
    """So many points from 0 to 1. Raises ValueError for fewer than three."""
    if points < MIN_POINTS:
        raise ValueError(f"--points must be >= {MIN_POINTS}, both ends and something between; got {points}")
    return Grid(np.linspace(0.0, 1.0, points))


@checked_keywords
def connect(
    problem: Problem | Mapping[str, Problem],
    other: Mapping[str, Tensor] | nn.Module,
    *,
    points: int = 25,
    bn: str = RECOMPUTE,
    parameters: str = "all",
    align: str = NONE,
    curve: str = NONE,
    curve_steps: int = CurveRecipe.steps,
    curve_rate: float = CurveRecipe.rate,
    seed: int = 0,
    noise_repeats: int | None = None,
    path: PathLike | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Progress], None] | None = None,
    labels: tuple[str, str] = ("A", "B"),
) -> Connection:
    """The line from a problem's model (t = 0) to another network of the same architecture (t = 1).

    Over all ranks that a launcher started, as `survey`; every rank calls it alike and gets the result.

    Args:
        problem: model, loss and data; or one for each split, {"train": ..., "test": ...}, over the same model.
        other: the other network: a module, or its tensors by name (a state dict).
        points: on the line, evenly spaced, both ends among them.
        bn: what the statistics of batch norm are at each point: `recompute`d from fixed batches of the training samples
            (of the first problem's, where there are none), `interpolate`d between both networks, or those of the first
            (`keep`). Where no batch norm keeps statistics it changes nothing.
        parameters: that move, as of `random_plane`; the others stay those of the first network.
        align: the units of the other network are permuted before, its function unchanged, so that its weights, or what
            its layers say, lie near those of the first: `weights` or `activations`, as of `align`. Both lines are
            read, so that the barrier is known before and after. `none`: it stays as it stands.
        curve: of low loss between both, measured beside the line: `bezier`, or `polygon`, two straight pieces, through
            one bend that is trained on the first problem's data; `none`: no curve.
        curve_steps: of that training.
        curve_rate: its learning rate, of Adam.
        seed: of its order of samples and its places on the curve.
        noise_repeats: of a loss that draws at random the number R >= 2 of fixed realisations at each point: means, and
            standard errors over them, of the barrier too. Without it one realisation, and no errors.
        path: of a result file, written as the points come; the same call resumes it, and `lossmap.read` gives its
            surface. None: in memory alone.
        overwrite: whether a file that is there is begun anew.
        progress: as of `survey`.
        labels: of both networks, in report and figure.

    Returns:
        A `Connection`: print it for the report; `losses`, `metrics`, `barrier("train")` with its standard error.

    Raises:
        ValueError: where names or shapes differ, where both have the same weights, for an unknown `bn`, `align` or
            `curve`, fewer than three points, a model whose permutations cannot be traced, a curve on which statistics
            would be interpolated, and as `survey`.
        FloatingPointError: where the loss on the curve is not finite while its bend is trained.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)) for _ in "ab")
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> line = lossmap.connect(lossmap.Problem.supervised(a, "crossentropy", data), b, points=5)
        >>> line.losses["train"].shape, line.metrics["train_acc"].shape, line.bn
        ((5,), (5,), 'none')

    """
    problems = {"train": problem} if isinstance(problem, Problem) else dict(problem)
    first = problems.get("train", next(iter(problems.values())))
    grid, done = line_grid(points), statistics_of(first.model, bn)
    if align not in ALIGNMENTS:
        raise ValueError(f"--align must be one of {', '.join(ALIGNMENTS)}; got {align!r}")
    recipe = curve_recipe(curve, curve_steps, curve_rate, seed, done)
    world = World.start()
    line = partial(line_to, first.model, states=done == INTERPOLATE, parameters=parameters)
    alignment, beside, plane = None, {}, line(other)
    if not plane.lengths[0]:
        raise ValueError("both networks have the same weights: there is no line between them")
    if align != NONE:
        alignment, beside["unaligned"] = aligned(first, other, method=align), Way(plane)
        plane = line(alignment.state)
    if recipe is not None:
        bend = stored_bend(None if overwrite else path, plane, recipe)
        if bend is None:
            bend = world.once(lambda: train_bend(first, plane, recipe))
        beside["curve"] = Way(curved_plane(plane, bend or {}, recipe), recipe.kind)
    statistics = fixed_batches(first.data) if done == RECOMPUTE else None
    settings = {"batch norm": done} | ({} if recipe is None else {"curve": recipe.as_settings()})
    measure = connection_map(
        problems, plane, plain_forward(first), statistics=statistics, beside=beside, settings=settings,
        noise_repeats=noise_repeats,
    )  # fmt: skip
    surface = survey(measure, grid, path=path, overwrite=overwrite, progress=progress, world=world)
    result = connection_in(
        surface,
        {name: way.length for name, way in beside.items()},
        bn=done,
        samples={split: p.sample_count for split, p in problems.items()},
        length=plane.lengths[0],
        labels=tuple(labels),
        alignment="" if alignment is None else alignment.describe(),
        curve_recipe="" if recipe is None else described(recipe),
        batches=measure.batches,
    )
    result = world.once(lambda: with_rounding(result, measure))
    if path is not None and world.rank == 0:
        put_group(path, GROUP, Group(*result.stored()), lambda: surface)
    return result
