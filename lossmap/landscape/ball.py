"""Balls around a network's parameters, by whose radius the rise of a loss is measured.

    |T^-1 d| <= radius        d (n,) a displacement of theta, T (n, n) diagonal, z = T^-1 d the ball's own coordinates

    absolute   T = 1: a distance in units of theta
    adaptive   T = |theta|, entry by entry: a relative change of each weight (ASAM)
    filter     T = the norm of each entry's filter, a slice of its tensor along the first dimension, so that the entries
               of a tensor of dimension <= 1 are filters of their own

Where a network is rescaled layer by layer or filter by filter without changing its function, as ReLU networks can be,
the adaptive and the filter ball are rescaled with it, and the absolute one is not. Entries whose T is 0 stand still.
Sources: Kwon et al. (2021), arXiv:2102.11600 (adaptive, and element-wise against filter-wise); Li et al. (2018),
arXiv:1712.09913 (filter normalisation); Dinh et al. (2017), arXiv:1703.04933 (the rescaling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lossmap import seeding
from lossmap.sums import in_float64, norm

KINDS = ("filter", "adaptive", "absolute")
DEFAULT_RADII = {"filter": 0.5, "adaptive": 0.5, "absolute": 0.05}


@dataclass(frozen=True, eq=False)
class Ball:
    """A ball around parameters.

    kind    filter, adaptive or absolute
    radius  in the ball's own coordinates
    scale   (n,) float64: the diagonal of T
    """

    kind: str
    radius: float
    scale: Tensor

    @classmethod
    def around(cls, named: Mapping[str, Tensor], kind: str, radius: float) -> Ball:
        """The ball around these parameters, in their order. Raises ValueError for an unknown kind or radius."""
        check_ball(kind, radius)
        return cls(kind, radius, torch.cat([_scale_of(kind, p.detach()).reshape(-1) for p in named.values()]))

    @property
    def movable(self) -> int:
        """The number of entries that do not stand still."""
        return int((self.scale > 0).sum())

    def random_point(self, seed: int, purpose: str, index: int) -> Tensor:
        """(n,) uniform in the ball, in its own coordinates: the same for the same seed, purpose and index.

        The radius of a point uniform in a ball of m dimensions is u^(1/m) of the ball's, u uniform in [0, 1].
        """
        n = len(self.scale)
        z = in_float64(seeding.normal(n, "ball", purpose, seed, index)).to(self.scale.device)
        z = z * (self.scale > 0)
        share = float(torch.rand((), generator=seeding.generator("ball radius", purpose, seed, index)))
        length = norm(z)
        if length == 0.0:
            return z
        length_in_ball = self.radius * pow(share, 1.0 / self.movable)
        return z.mul_(length_in_ball / length)

    def inside(self, z: Tensor) -> Tensor:
        """The point of the ball that is nearest to z, in the ball's own coordinates."""
        length = norm(z)
        if length <= self.radius:
            return z
        return z * (self.radius / length)


def check_ball(kind: str, radius: float) -> None:
    """Raise ValueError for an unknown kind of ball, and for a radius that is none."""
    if kind not in KINDS:
        raise ValueError(f"a ball must be one of {', '.join(KINDS)}; got {kind!r}")
    if not 0.0 < radius < inf:
        raise ValueError(f"the radius of a ball must be > 0 and finite; got {radius:g}")


def _scale_of(kind: str, p: Tensor) -> Tensor:
    """The diagonal of T at one tensor, in float64."""
    values = in_float64(p)
    if kind == "absolute":
        return torch.ones_like(values)
    if kind == "adaptive" or p.dim() <= 1:
        return values.abs()
    norms: Tensor = values.reshape(values.shape[0], -1).norm(dim=1)
    return norms.reshape(-1, *[1] * (p.dim() - 1)).expand_as(values)
