"""The spectrum of one diagonal block of a matrix: a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np

from lossmap.linalg.operator import Rounding
from lossmap.linalg.spectral_density import Density
from lossmap.report.blocks import BlockSummary, block_text
from lossmap.report.definiteness import kind_of

RELATIVE = 1e-6


@dataclass(frozen=True, eq=False)
class Block:
    """One diagonal block.

    tensors    the parameters that it is made of
    values     all eigenvalues, ascending, where the block is `whole`; else the smallest and the largest
    error      an eigenvalue lies within this distance of each
    entries    the matrix (n, n) where it is whole, else None
    density    of a block that is not whole
    epsilon    rounding of the precision it was computed in
    floor      below it an eigenvalue counts as zero
    gradient_norm  of the loss by these parameters; gradient_norm_error: how far rounding may have moved it
    why        of a zero block: why it is zero
    kinks      by how much it differs on the two sides of a kink, as a share of its size: part of error and floor
    """

    name: str
    tensors: tuple[str, ...]
    size: int
    values: np.ndarray
    error: float
    entries: np.ndarray | None = None
    density: Density | None = None
    epsilon: float = float(np.finfo(np.float32).eps)
    floor: float = 0.0
    gradient_norm: float = nan
    gradient_norm_error: float = nan
    products: int = 0
    seconds: float = nan
    converged: bool = True
    why: str = ""
    kinks: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether all of its eigenvalues are known."""
        return len(self.values) == self.size

    @property
    def rounding(self) -> float:
        """How far rounding may have moved an eigenvalue, as it was measured; 0 where that is not known."""
        if self.entries is not None:
            return self.error  # of a block that is known whole it is the whole error
        if self.density is not None:
            return self.density.allowance
        return 0.0

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue."""
        return float(self.values[0])

    @property
    def spread(self) -> float:
        """largest - smallest."""
        return self.largest - self.smallest

    @property
    def scale(self) -> float:
        """The largest absolute value."""
        return float(np.abs(self.values).max())

    @property
    def condition(self) -> float:
        """largest / smallest; inf where the smallest is not positive beyond its error and the noise floor."""
        return self.largest / self.smallest if self.smallest > max(self.floor, self.error) else inf

    @property
    def condition_beyond_floor(self) -> float:
        """The largest over the smallest |eigenvalue| beyond the noise floor; NaN where not all are known, or none."""
        if not self.whole:
            return nan
        return condition_beyond(self.values, self.floor)

    @property
    def positive(self) -> tuple[int, int]:
        """How many eigenvalues are above the noise floor, from and to."""
        return self._count(1.0)

    @property
    def negative(self) -> tuple[int, int]:
        """How many are below minus the noise floor, from and to."""
        return self._count(-1.0)

    @property
    def zero(self) -> tuple[int, int]:
        """How many are within the noise floor, from and to."""
        (p, most_p), (q, most_q) = self.positive, self.negative
        return max(self.size - most_p - most_q, 0), max(self.size - p - q, 0)

    @property
    def kind(self) -> str:
        """The shape in a word or two: zero, positive definite, ..., indefinite."""
        kind = kind_of(self.positive, self.negative, self.zero, self.size)
        if kind == "zero" and self.kinks and self.scale > self.floor - self.kinks * self.scale:
            return "not known"  # it may be zero on the other side of a kink, and is not on this one
        return kind

    @property
    def verdict(self) -> str:
        """The shape in words, with the numbers it rests on."""
        return block_text(self.summary())

    def summary(self) -> BlockSummary:
        """What a report says of it, and a file keeps as one row."""
        return BlockSummary(
            name=self.name,
            module=self.tensors[0].rpartition(".")[0],
            size=self.size,
            largest=self.largest,
            smallest=self.smallest,
            spread=self.spread,
            condition=self.condition,
            error=float(self.error),
            floor=self.floor,
            gradient_norm=self.gradient_norm,
            gradient_norm_error=self.gradient_norm_error,
            converged=self.converged,
            positive=self.positive,
            negative=self.negative,
            zero=self.zero,
            kind=self.kind,
            why=self.why,
            condition_beyond_floor=self.condition_beyond_floor,
        )

    def _count(self, sign: float) -> tuple[int, int]:
        values = sign * self.values
        if self.whole:
            count = int((values > self.floor).sum())
            return count, count
        least = int((values - self.error > self.floor).any())  # the ends alone know of one
        if self.density is None:
            return least, self.size - least
        share = self.density.above(self.floor) if sign > 0 else self.density.below(-self.floor)
        low, high = share.count
        return max(low, least), max(high, least)

    def __repr__(self) -> str:
        return f"Block({self.name}, {self.size} parameters: {self.verdict})"


def condition_beyond(values: np.ndarray, floor: float) -> float:
    """The largest over the smallest absolute value of those beyond the floor, values (m,); NaN where none is."""
    beyond = np.abs(values)[np.abs(values) > floor]
    if not len(beyond):
        return nan
    return float(beyond.max() / beyond.min())


def with_noise_floor(blocks: Sequence[Block], scale: float = 0.0) -> tuple[Block, ...]:
    """The blocks with their noise floors, which need the network's largest absolute eigenvalue: theirs, or `scale`."""
    top = max([scale, *(b.scale for b in blocks)])
    measured = [b.rounding for b in blocks]
    return tuple(
        replace(b, floor=max(RELATIVE * b.scale, Rounding(b.epsilon).allowance(top), rounding))
        for b, rounding in zip(blocks, measured, strict=True)
    )
