"""What is stated of a spectrum beside its eigenvalues: mass beyond thresholds, and where eigenvectors lie."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.spectral_density import Density, MassInterval
from lossmap.sums import norm

Masses = tuple[tuple[float, MassInterval, MassInterval], ...]  # for each t: the share below -t, and that above t


def masses_of(spread: Density | None, mass_at: Sequence[float]) -> Masses:
    """For each t the share of eigenvalues below -t and above t. Raises ValueError for a negative t."""
    if spread is None:
        return ()
    if any(t < 0.0 for t in mass_at):
        raise ValueError(f"the mass below -t and above t needs t >= 0; got {min(mass_at)}")
    stated = tuple(mass_at) or common_masses([spread])
    return tuple((t, spread.below(-t), spread.above(t)) for t in stated)


def common_masses(spreads: Sequence[Density | None]) -> tuple[float, ...]:
    """The t that are stated where none is requested: 1e-3 and 1e-2 of the largest absolute value, rounded.

    Where another spectrum's largest is less than a tenth of that, 1e-2 of it as well: each has an informative one.
    """
    reach = sorted(max(abs(end) for end in s.range) for s in spreads if s is not None)
    if not reach:
        return ()
    thresholds = {1e-3 * reach[-1], 1e-2 * reach[-1]}
    if reach[0] < 0.1 * reach[-1]:
        thresholds.add(1e-2 * reach[0])
    return tuple(sorted({float(f"{t:.1g}") for t in thresholds}))


def shares_of(ends: Sequence[tuple[str, EigenPairs | None]], layout: Layout) -> dict[str, dict[str, float]]:
    """The share of each eigenvector's squared norm in each tensor; each vector's shares add up to one.

    ends  (name, its eigenpairs); the shares are keyed by the name and a number from 1: `top 1`. Those of an eigenvalue
          that is zero within its error are NaN: its eigenvector is any vector of a null space
    """
    shares = {}
    for end, pairs in ends:
        if pairs is None:
            continue
        for i in range(len(pairs.values)):
            vector = pairs.vectors[:, i]
            if abs(pairs.values[i]) <= pairs.residuals[i]:
                vector = torch.zeros_like(vector)
            shares[f"{end} {i + 1}"] = share_by_tensor(vector, layout)
    return shares


def share_by_tensor(vector: Tensor, layout: Layout) -> dict[str, float]:
    """Where the mass of a vector (n,) lies: the share of its squared norm in each tensor; NaN for a zero vector."""
    parts = {name: norm(part) ** 2 for name, part in layout.unflatten(vector).items()}
    total = sum(parts.values())
    if not total > 0.0:
        return dict.fromkeys(parts, nan)
    return {name: part / total for name, part in parts.items()}
