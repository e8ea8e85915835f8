"""Curves of low loss between two networks: through one bend between them, which is trained.

    bezier    theta(t) = (1 - t)^2 A + 2 t (1 - t) C + t^2 B
    polygon   from A straight to C (t = 1/2), from there straight to B

The bend C starts halfway between A and B and minimises the mean loss over the curve, E_t L(theta(t)), t uniform in
0 ... 1: each step draws one t and one batch, and the gradient in C is that of the loss at theta(t) times C's share
there. Batch norms normalise by the batch meanwhile, as in training. Source: Garipov et al. (2018), arXiv:1802.10026.

Price: each step a forward and a backward pass over a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.curvature.operators import differentiated
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.data.random_batches import shuffled_batch
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Point
from lossmap.geometry.parameter_vector import Layout
from lossmap.io.disk import PathLike
from lossmap.io.read import read_group
from lossmap.io.surface import Group
from lossmap.landscape.batchnorm_statistics import norms_with_statistics
from lossmap.memory import memory_now
from lossmap.report.price import Price
from lossmap.report.text import count
from lossmap.seeding import generator
from lossmap.sums import dot

NONE, BEZIER, POLYGON = CURVES = ("none", "bezier", "polygon")
BEND = "directions/bend"  # the group of a file
TIMED_STEPS, MIN_TIMED_STEPS = 20, 3  # for the price, after one to warm up: at most, and at least
TIMED_SECONDS = 0.5  # after which those suffice
PIECES = 1000  # straight ones, by which a curve's length is summed


@dataclass(frozen=True)
class CurveRecipe:
    """How the bend of a curve is trained, by Adam.

    kind        bezier or polygon
    steps       in all
    rate        the learning rate at the start; it falls to 0 as a cosine
    batch_size  samples in a batch, of data that may be cut
    seed        of the order of samples, and of t

    Raises ValueError for values out of range.
    """

    kind: str = BEZIER
    steps: int = 1000
    rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (BEZIER, POLYGON):
            raise ValueError(f"a curve is one of {BEZIER}, {POLYGON}; got {self.kind!r}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"a curve needs at least one step and one sample a batch; got {self.steps}, {self.batch_size}"
            )
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"--curve-rate must be > 0; got {self.rate}")

    def as_settings(self) -> dict[str, Any]:
        """As plain values, to be stored and compared."""
        return asdict(self)


def place_on(kind: str, t: float) -> Point:
    """Where theta(t) lies on the plane whose axes lead from A to B and from A to the bend."""
    if kind == BEZIER:
        return t * t, 2.0 * t * (1.0 - t)
    return (0.0, 2.0 * t) if t < 0.5 else (2.0 * t - 1.0, 2.0 - 2.0 * t)


def curved_plane(line: Plane, bend: Mapping[str, Tensor], recipe: CurveRecipe) -> Plane:
    """The plane through A, B and the bend, from the line of A and B.

    bend  the step from A to it, of the tensors that it moves; the others stand still on this axis
    """
    axis = {name: bend.get(name, torch.zeros_like(step)) for name, step in line.axes[0].items()}
    return Plane(line.origin, (line.axes[0], axis), (line.recipes[0], {"kind": "bend", **recipe.as_settings()}))


def bend_group(plane: Plane) -> Group:
    """The bend as a file keeps it: the step from A to it, by tensor, and how it was made."""
    moving = {name: step for name, step in plane.axes[1].items() if bool(step.count_nonzero())}
    arrays = {name: step.detach().cpu().numpy() for name, step in moving.items()}
    return Group(arrays, {**plane.recipes[1], "length": plane.lengths[1], "digest": plane.digest})


def stored_bend(path: PathLike | None, line: Plane, recipe: CurveRecipe) -> dict[str, Tensor] | None:
    """The bend that an earlier run has left in the file, made alike; None where there is none, and it is trained."""
    if path is None or not Path(path).exists():
        return None
    try:
        group = read_group(path, BEND)
    except (KeyError, ValueError):  # of another kind, or no result: what is wrong with it is said when it is opened
        return None
    axis = line.axes[0]
    made = {name: group.attributes.get(name) for name in recipe.as_settings()}
    fits = all(name in axis and tuple(axis[name].shape) == array.shape for name, array in group.arrays.items())
    if made != recipe.as_settings() or not fits:
        return None
    return {name: torch.as_tensor(array).to(axis[name]) for name, array in group.arrays.items()}


def described(recipe: CurveRecipe) -> str:
    """What a curve is, in words."""
    ways = {BEZIER: "the Bezier curve", POLYGON: "the two straight pieces"}
    return f"{ways[recipe.kind]} through a bend trained in {count(recipe.steps, 'step')} of Adam at {recipe.rate:g}"


def length_of(plane: Plane, kind: str) -> float:
    """The length of the curve on its plane, in units of theta."""
    x, y = (Layout.of(plane.origin).flatten(axis) for axis in plane.axes)
    gram = np.array([[dot(x, x), dot(x, y)], [dot(x, y), dot(y, y)]])
    places = np.array([place_on(kind, t) for t in np.linspace(0.0, 1.0, PIECES + 1)])
    steps = np.array([after - before for before, after in pairwise(places)])
    return float(np.sqrt(np.einsum("ni,ij,nj->n", steps, gram, steps).clip(0.0)).sum())


def train_bend(
    problem: Problem,
    line: Plane,
    recipe: CurveRecipe,
    *,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor] | None:
    """The step from A to the trained bend, by parameter; None where `stop` said so first.

    line      from A to B: parameters in which these differ move, the others and buffers stay those of A
    stop      asked before each step
    progress  told how many steps are done

    Raises ValueError for a line whose buffers move or nothing moves, and FloatingPointError for a loss that is not
    finite.
    """
    names = moved_by_bend(problem, line)
    ends = {name: line.axes[0][name] for name in names}
    bend = {name: step / 2.0 for name, step in ends.items()}
    leaves = [step.requires_grad_(True) for step in bend.values()]
    optimizer = torch.optim.Adam(leaves, lr=recipe.rate)
    chance = generator("place on the curve", recipe.seed)
    for step in range(recipe.steps):
        if stop is not None and stop():
            return None
        t = float(torch.rand((), generator=chance, dtype=torch.float64))
        batch = shuffled_batch(problem.data, recipe.batch_size, step, "order of the curve", recipe.seed)
        of_b, of_c = place_on(recipe.kind, t)
        with torch.no_grad():
            steps = {n: of_b * ends[n] + of_c * bend[n] for n in names}
            here = {n: (line.origin[n] + step).to(line.origin[n].dtype) for n, step in steps.items()}
        value, gradient = _loss_and_gradient(problem, here, batch)
        if not isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step} of the curve's bend: take a smaller --curve-rate than "
                f"{recipe.rate:g}"
            )
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * 0.5 * (1.0 + cos(pi * step / recipe.steps))
        for leaf, slope in zip(leaves, gradient, strict=True):
            leaf.grad = slope.to(leaf.dtype) * of_c
        optimizer.step()
        if progress is not None:
            progress(step + 1)
    return {name: leaf.detach() for name, leaf in bend.items()}


def moved_by_bend(problem: Problem, line: Plane) -> list[str]:
    """The parameters that differ between both ends of a line, between which a curve bends.

    Raises ValueError for a line whose buffers move or nothing moves.
    """
    named = dict(problem.model.named_parameters())
    if any(name not in named and bool(step.count_nonzero()) for name, step in line.axes[0].items()):
        raise ValueError("a curve moves parameters alone; buffers, such as statistics of batch norm, cannot bend")
    names = [n for n, step in line.axes[0].items() if n in named and bool(step.count_nonzero())]
    if not names:
        raise ValueError(
            "both networks have the same parameters, so that there is no curve between them to train: leave it out "
            "(--curve none). Alignment comes to that where one network is the other with its units in another order"
        )
    return names


def price_of_bend(problem: Problem, line: Plane, recipe: CurveRecipe) -> Price:
    """The price of training a bend, from some of its first steps: their mean, as all of them are paid."""
    clock = [time.perf_counter()]

    def enough() -> bool:
        return len(clock) > MIN_TIMED_STEPS + 1 and clock[-1] - clock[0] > TIMED_SECONDS

    few = replace(recipe, steps=min(recipe.steps, TIMED_STEPS + 1))
    train_bend(problem, line, few, stop=enough, progress=lambda _: clock.append(time.perf_counter()))
    first, last = clock[min(1, len(clock) - 2)], clock[-1]  # the first step warms up
    each = (last - first) / max(1, len(clock) - 2)
    return Price(recipe.steps, recipe.steps * each, memory_now(problem.model), "step")


def _loss_and_gradient(problem: Problem, at: Mapping[str, Tensor], batch: Any) -> tuple[float, tuple[Tensor, ...]]:
    """The mean loss over a batch, and its gradient in these parameters."""
    named = dict(problem.model.named_parameters())
    with temporary_parameters(problem.model, at, copied=False):
        parameters = [named[name] for name in at]
        with differentiated(problem.model, parameters), _normalised_by_batch(problem.model):
            loss = problem.total(batch) / problem.count(batch)
            return float(loss.detach()), torch.autograd.grad(loss, parameters, materialize_grads=True)


@contextmanager
def _normalised_by_batch(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode, the rest as it is; the model is borrowed, so that its statistics return."""
    norms = norms_with_statistics(model)
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)
