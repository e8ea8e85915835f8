"""How far a loss rises in a ball around a network: on average, after SAM's step, and at worst.

    average   the mean of L(theta + d) - L(theta) over d uniform in the ball, from pairs of opposite points d and -d, in
              which what is linear in d cancels; of a quadratic radius^2 tr(T H T) / (2 (m + 2)), m entries that move
    SAM's     at d = radius T^2 g / |T g|, one step up the gradient g to the edge of the ball
    worst     the largest rise that projected gradient ascent meets: a lower bound of the largest in the ball, since no
              number of passes excludes a higher place elsewhere in it

Symbols: d (n,), z = T^-1 d, see `ball`. Price: two passes a pair; a gradient a step of ascent.
Sources: Foret et al. (2021), arXiv:2010.01412 (SAM); Kwon et al. (2021), arXiv:2102.11600 (in other balls);
Andriushchenko et al. (2023), arXiv:2302.07011 (average and worst case, and which of them goes with generalisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
import torch
from torch import Tensor

from lossmap.landscape.ball import Ball
from lossmap.landscape.shifted_loss import ShiftedLoss
from lossmap.sums import norm

FIRST_STEP = 8.0  # radii: so long that the first step, from the middle, ends at SAM's point
SHORTEST_STEP = 1e-3  # radii: an ascent whose steps had to become shorter has arrived


@dataclass(frozen=True, eq=False)
class AverageRise:
    """The mean rise in a ball: its standard error over the draws, and the rises (draws,) of the pairs.

    rounding  how far the first rise is from that in float64; NaN where that was not measured
    """

    value: float
    error: float
    rises: np.ndarray
    rounding: float


@dataclass(frozen=True)
class WorstRise:
    """The largest rise that an ascent met, and SAM's, with the number of gradients that they took.

    rounding   how far the largest is from that in float64 at the same point; NaN where that was not measured
    sam_error  how far SAM's is from that of SAM's step in float64, whose gradient may point elsewhere; NaN as well
    """

    value: float
    sam: float
    gradients: int
    rounding: float = nan
    sam_error: float = nan


def average_rise(shifted: ShiftedLoss, ball: Ball, draws: int, seed: int) -> AverageRise:
    """The mean rise over pairs of random opposite points. Raises ValueError for fewer than two pairs,
    FloatingPointError where the loss is not finite in the middle.

    An infinite or undefined loss somewhere makes the mean infinite.
    """
    if draws < 2:
        raise ValueError(f"an average needs two draws at least, for its standard error; got {draws}")
    with shifted.borrowed():
        base = shifted.base()
        rises, rounding = np.empty(draws), nan
        for i in range(draws):
            d = ball.scale * ball.random_point(seed, "average", i)
            first = shifted.at(d)
            rises[i] = _rise((first + shifted.at(-d)) / 2.0, base)
            if i == 0:
                rounding = shifted.rounding_at(d, first - base)
    if not np.isfinite(rises).all():
        return AverageRise(inf, nan, rises, rounding)
    return AverageRise(float(rises.mean()), float(rises.std(ddof=1)) / sqrt(draws), rises, rounding)


def worst_rise(shifted: ShiftedLoss, ball: Ball, steps: int, starts: int, seed: int) -> WorstRise:
    """The largest rise that ascents of so many steps meet, from the middle of the ball and from random points of it.

    The first step from the middle ends at SAM's point, so that the worst rise is never below SAM's, nor below 0. Raises
    ValueError where there is no step or no start, FloatingPointError where the loss is not finite in the middle.
    """
    if steps < 1 or starts < 1:
        raise ValueError(f"an ascent needs one step and one start at least; got {steps} and {starts}")
    with shifted.borrowed():
        before = shifted.spent["gradients"]
        shifted.base()
        ascent = _Ascent(shifted, ball, shifted.gradient_at(shifted.zero))
        ascent.climb(shifted.zero, *ascent.origin, steps)
        sam = ascent.sam
        for i in range(1, starts):
            z = ball.random_point(seed, "start", i)
            ascent.climb(z, *shifted.gradient_at(ball.scale * z), steps)
        rounding = shifted.rounding_at(ascent.best_at, ascent.best)
        sam_error = shifted.distance_to_float64(sam, lambda double: _sam_rise(double, ball))
        return WorstRise(ascent.best, sam, shifted.spent["gradients"] - before, rounding, sam_error)


def _sam_rise(shifted: ShiftedLoss, ball: Ball) -> float:
    """The rise after SAM's step."""
    base, slope = shifted.gradient_at(shifted.zero)
    z = _first_step(ball, slope)
    return 0.0 if z is None else _rise(shifted.at(ball.scale * z), base)


def _first_step(ball: Ball, slope: Tensor) -> Tensor | None:
    """Where the first step from the middle ends, z (n,); None where the gradient is 0."""
    direction = ball.scale * slope
    length = norm(direction)
    return ball.inside(direction * (FIRST_STEP * ball.radius / length)) if length else None


class _Ascent:
    """Ascents in one ball, and the best that they met.

    origin  loss and gradient in the middle
    sam     the rise after the very first step; 0 where the gradient is 0
    best_at where the best is, d (n,)
    """

    def __init__(self, shifted: ShiftedLoss, ball: Ball, origin: tuple[float, Tensor]) -> None:
        self.shifted, self.ball, self.origin = shifted, ball, origin
        self.best, self.sam, self._is_first = 0.0, 0.0, True
        self.best_at = shifted.zero

    def climb(self, z: Tensor, loss: float, slope: Tensor, steps: int) -> None:
        """Go up from z, where loss and gradient are known, along the gradient by z and back into the ball.

        A long step followed by the projection turns z towards the gradient, as a power iteration does; a step that does
        not rise is halved.
        """
        base, step = self.origin[0], FIRST_STEP
        self._note(_rise(loss, base), z)
        for _ in range(steps):
            direction = self.ball.scale * slope
            length = norm(direction)
            if length == 0.0 or step < SHORTEST_STEP or self.best == inf:
                return
            trial = self.ball.inside(z + direction * (step * self.ball.radius / length))
            trial_loss, trial_slope = self._look(self.ball.scale * trial)
            rise = _rise(trial_loss, base)
            if self._is_first:
                self.sam, self._is_first = rise, False
            self._note(rise, trial)
            if trial_loss > loss:
                z, loss, slope, step = trial, trial_loss, trial_slope, min(2.0 * step, FIRST_STEP)
            else:
                step /= 2.0

    def _note(self, rise: float, z: Tensor) -> None:
        """Keep the best rise, and where it is."""
        if rise > self.best:
            self.best, self.best_at = rise, self.ball.scale * z

    def _look(self, d: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient at d; where the loss is finite and its gradient is not, no further step is made."""
        try:
            return self.shifted.gradient_at(d)
        except FloatingPointError:
            return self.shifted.at(d), torch.zeros_like(d)


def _rise(loss: float, base: float) -> float:
    """loss - base; infinite where the loss is not a number."""
    difference = loss - base
    return inf if difference != difference else difference
