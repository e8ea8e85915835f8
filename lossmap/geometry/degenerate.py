"""Axes that lead nowhere, and two axes that lead the same way: no line or plane is spanned by them.

Whether the axes x and y of a plane through three models differ is judged by the distance of y from the line along x,

    |y - c x| <= sqrt(2) u |(1 + |c|) |w| + |c x| + |y||      c = x.y / x.x, w the origin, u its unit roundoff

once over the entries that move along y, and once over those that move along x. The right side is twice to four times
what rounding alone makes of the left: tensors are rounded by u |w|, the differences between them again. Entries that do
not move have no part in it, as where models differ in a few weights, or in one layer.

The cosine would not do: it is 1 to six
digits for axes whose ends lie a thousandth of their length apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import hypot, sqrt

import torch
from torch import Tensor

from lossmap.sums import dot, norm

ROUNDINGS = sqrt(2.0)  # unit roundoffs of the lengths that the distance is made of


def leads_nowhere(axis: Mapping[str, Tensor]) -> bool:
    """Whether an axis is 0 at every tensor; small tensors are read first, as an axis may be drawn when it is read."""
    held = getattr(axis, "origin", axis)  # a drawn axis has its origin's shapes
    return not any(bool(axis[name].any()) for name in sorted(axis, key=lambda name: held[name].numel()))


def lead_one_way(origin: Mapping[str, Tensor], x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> bool:
    """Whether y lies on the line along x, which leads somewhere, but for rounding."""
    pairs = [(x[name].reshape(-1), y[name].reshape(-1)) for name in origin]
    c, square = 0.0, sum(dot(a, a) for a, _ in pairs)
    for _ in range(2):  # again with what is left, since the first sum is rounded more than a tensor in float64
        c += sum(dot(a, torch.sub(b, a, alpha=c)) for a, b in pairs) / square
    return all(_within_rounding(origin.values(), pairs, c, along) for along in (1, 0))


def _within_rounding(origin: Iterable[Tensor], pairs: Sequence[tuple[Tensor, Tensor]], c: float, along: int) -> bool:
    """Whether rounding explains how far y is from c x, over the entries that move along x (0) or y (1)."""
    apart, rounded = [], []
    for w, pair in zip(origin, pairs, strict=True):
        moved = pair[along] != 0.0
        a, b = (part[moved] for part in pair)
        around = w.reshape(-1)[moved].abs().to(a.dtype).mul_(1.0 + abs(c))
        around.add_(a.abs(), alpha=abs(c)).add_(b.abs())
        apart.append(norm(torch.sub(b, a, alpha=c)))
        rounded.append(float(torch.finfo(w.dtype).eps) / 2.0 * norm(around))
    return hypot(*apart) <= ROUNDINGS * hypot(*rounded)
