"""Axes that lead nowhere, and two axes that lead the same way: no line or plane is spanned by them.

Whether the axes x and y of a plane through three models differ is judged by the distance of y from the line along x,

    |y - c x| <= 4 u ((1 + |c|) |w| + |c x| + |y|)      c = x.y / x.x, w the origin, u its unit roundoff

where the right side bounds what rounding alone makes of it: the tensors of the models are rounded by u |w|, and the
differences between them again. Tensors that do not move have no part in it. The cosine would not do: it is 1 to six
digits for axes whose ends lie a thousandth of their length apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot

import torch
from torch import Tensor

from lossmap.sums import dot, norm, norm_of

ROUNDINGS = 4.0  # unit roundoffs of the lengths that the distance is made of


def leads_nowhere(axis: Mapping[str, Tensor]) -> bool:
    """Whether an axis is 0 at every tensor; small tensors are read first, as an axis may be drawn when it is read."""
    held = getattr(axis, "origin", axis)  # a drawn axis has its origin's shapes
    return not any(bool(axis[name].any()) for name in sorted(axis, key=lambda name: held[name].numel()))


def lead_one_way(origin: Mapping[str, Tensor], x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> bool:
    """Whether y lies on the line along x, which leads somewhere, but for rounding."""
    pairs = [(x[name].reshape(-1), y[name].reshape(-1)) for name in origin]
    c = sum(dot(a, b) for a, b in pairs) / sum(dot(a, a) for a, _ in pairs)
    apart = norm_of(torch.sub(b, a, alpha=c) for a, b in pairs)
    rounded = []
    for w, (a, b) in zip(origin.values(), pairs, strict=True):
        moved = abs(c) * norm(a) + norm(b)
        if moved:
            rounded.append(float(torch.finfo(w.dtype).eps) / 2.0 * ((1.0 + abs(c)) * norm(w) + moved))
    return apart <= ROUNDINGS * hypot(*rounded)
