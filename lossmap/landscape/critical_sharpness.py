"""Critical sharpness: 2 / eta_c, where eta_c is the step along the negative gradient beyond which the loss rises.

    f(eta) = L(theta - eta g) - L(theta),   f(eta_c) = 0, eta_c > 0       g the gradient, (n,)

Of a quadratic loss eta_c = 2 |g|^2 / g^T H g, so that 2 / eta_c is the curvature along the gradient; full-batch
gradient descent with a step above eta_c goes up. The line search interpolates f(eta) / eta, which is -|g|^2 at 0 and
linear in eta for a quadratic, and looks on both sides of the root: it ends with a step that falls and a longer one that
rises, and its number lies between the two. A crossing below the shortest step that was seen to rise is not excluded.
Price: at most `PASSES` forward passes, beside one gradient and the measure of rounding.
Source: Kalra et al. (2026), arXiv:2601.16979 (critical sharpness, in fewer than 10 forward passes).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt

from lossmap.landscape.shifted_loss import ShiftedLoss
from lossmap.sums import dot

PASSES = 10  # forward passes at most, that at the origin among them
FIRST_STEP = 1.0  # where the loss itself says nothing of the scale of a step
MIN_GROWTH, MAX_GROWTH = 1.5, 10.0  # of a step, while no step was seen to rise
FAR = 4.0  # the ratio of the two ends above which they are far apart
MARGIN = 0.004  # on both sides of an interpolated root, relative to it
WIDTH = 0.01  # of eta's interval, relative to it, at which the search ends


@dataclass(frozen=True)
class CriticalSharpness:
    """2 / eta_c, in the loss's unit per squared unit of theta.

    value      NaN where no step was seen to rise
    low, high  between which it lies, by the shortest step that rose and the longest below it that fell
    passes     forward passes spent
    rounding   of the first rise, as measured against float64; smaller rises and falls count as neither
    reason     why there is no value; empty where there is one
    """

    value: float
    low: float
    high: float
    passes: int
    rounding: float = nan
    reason: str = ""


def critical_sharpness(shifted: ShiftedLoss) -> CriticalSharpness:
    """Search the step along the negative gradient at which the loss begins to rise above its value here.

    Raises FloatingPointError where loss or gradient are not finite.
    """
    with shifted.borrowed():
        before = shifted.spent["passes"]
        base = shifted.base()
        _, slope = shifted.gradient_at(shifted.zero)
        square = dot(slope, slope)
        if square == 0.0:
            return CriticalSharpness(nan, nan, nan, 1, reason="the gradient is zero: no direction to search")
        search = _Search(square)
        step = base / square if base > 0.0 else FIRST_STEP
        rounding = 0.0
        while shifted.spent["passes"] - before < PASSES and not search.is_narrow:
            rise = shifted.at(slope * -step) - base
            if shifted.spent["passes"] - before == 2:
                rounding = shifted.rounding_at(slope * -step, rise)
            search.enter(step, rise, 0.0 if rounding != rounding else rounding)
            step = search.next_step(step)
        return search.result(shifted.spent["passes"] - before, rounding)


class _Search:
    """The longest step that fell below all that rose, the shortest that rose, and f(eta) / eta at both.

    square  |g|^2
    """

    def __init__(self, square: float) -> None:
        self.square = square
        self.low, self.low_slope = 0.0, -square
        self.high, self.high_slope = inf, nan
        self._sides: list[bool] = []

    @property
    def is_narrow(self) -> bool:
        """Whether the interval is as narrow as it need be."""
        return isfinite(self.high) and self.high - self.low <= WIDTH * self.high

    def enter(self, step: float, rise: float, rounding: float) -> None:
        """Take up f(step). What is within its rounding is neither a rise nor a fall: the interval stays."""
        if not rise <= rounding and step < self.high:  # not a number: it does rise
            self.high, self.high_slope = step, rise / step if isfinite(rise) else nan
            self._sides.append(True)
        elif rise < -rounding and self.low < step < self.high:
            self.low, self.low_slope = step, rise / step
            self._sides.append(False)

    @property
    def root(self) -> float:
        """Where the line through f(eta) / eta at both ends is 0; the middle where that is not known."""
        return self._interpolated(1.0, 1.0)

    def _interpolated(self, low_weight: float, high_weight: float) -> float:
        """The root of the line, the heights at its ends multiplied by the weights."""
        low, high = low_weight * self.low_slope, high_weight * self.high_slope
        if not high > low:  # or not a number
            return (self.low + self.high) / 2.0
        return self.low - low / (high - low) * (self.high - self.low)

    def _extrapolated(self) -> float:
        """Where the line through f(eta) / eta at 0 and at the longest step that fell is 0; infinite where it is not."""
        flattening = self.square + self.low_slope
        if not flattening > 0.0:
            return inf
        return (1.0 + MARGIN) * self.low * self.square / flattening

    def next_step(self, step: float) -> float:
        """The step to try next: a little beyond the root, on the side of the end that is farther off.

        The weight of an end that stays is halved (the Illinois method), so that a curved f does not hold it for ever;
        ends that are far apart are brought together by their geometric mean first.
        """
        if not isfinite(self.high):
            return step * min(max(self._extrapolated() / step, MIN_GROWTH), MAX_GROWTH)
        if self.low and self.high > FAR * self.low:
            return sqrt(self.low * self.high)
        if self.high_slope != self.high_slope:  # the loss is infinite there
            return (self.low + self.high) / 2.0 if self.low else self.high / MAX_GROWTH
        stays = len(self._sides) >= 2 and self._sides[-1] == self._sides[-2]
        low_weight = 0.5 if stays and self._sides[-1] else 1.0
        high_weight = 0.5 if stays and not self._sides[-1] else 1.0
        root = self._interpolated(low_weight, high_weight)
        sign = 1.0 if self.high - root > root - self.low else -1.0
        inner = 0.01 * (self.high - self.low)
        return min(max(root * (1.0 + sign * MARGIN), self.low + inner), self.high - inner)

    def result(self, passes: int, rounding: float) -> CriticalSharpness:
        """What is known at the end."""
        highest = 2.0 / self.low if self.low else inf
        if not isfinite(self.high):
            reason = f"the loss still falls, or does not clearly rise, at the longest of {passes - 1} steps tried"
            return CriticalSharpness(nan, 0.0, highest, passes, rounding, reason)
        return CriticalSharpness(2.0 / self.root, 2.0 / self.high, highest, passes, rounding)
