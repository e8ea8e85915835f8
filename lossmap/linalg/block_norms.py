"""How much of a symmetric operator lies outside its diagonal blocks, estimated from products with random signs.

For a vector w of independent signs in the columns of block b, E ||(A w)_rows||^2 is the squared Frobenius norm of the
entries A[rows, b] (Hutchinson's estimator of tr A^T A). Symbols: n the dimension. Price: one product for each probe and
block. Source: Hutchinson (1990), doi:10.1080/03610919008812866.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.operator import SymmetricOperator
from lossmap.sums import norm

Leakage = tuple[np.ndarray, np.ndarray]  # squared norms inside and outside of a block, (probes,) each


@dataclass(frozen=True)
class OffDiagonalEnergy:
    """What the block-diagonal picture leaves out.

    share     of the squared Frobenius norm of the whole operator, what lies outside the blocks
    error     its standard error
    by_block  for each block the share of its own columns that lies outside of it
    products  operator-vector products spent
    """

    share: float
    error: float
    by_block: Mapping[str, float]
    products: int

    def __repr__(self) -> str:
        return f"{100 * self.share:.1f}% +- {100 * self.error:.1g}% of the squared entries lie outside the blocks"


def block_leakage(operator: SymmetricOperator, name: str, indices: Tensor, probes: int, seed: int) -> Leakage:
    """Squared lengths of products with random signs in one block: what stays inside, (probes,), and what leaves it.

    name     of the block, by which the signs are seeded
    indices  (size,) of the block's rows
    """
    inside, outside = np.zeros(probes), np.zeros(probes)
    for i in range(probes):
        v = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        signs = seeding.signs(len(indices), "shortfall probe", seed, name, i)
        v[indices] = signs.to(operator.device, operator.dtype)
        image = operator @ v
        inside[i] = norm(image[indices]) ** 2
        image[indices] = 0.0
        outside[i] = norm(image) ** 2
    return inside, outside


def off_diagonal_energy(
    operator: SymmetricOperator, blocks: Mapping[str, Tensor], *, probes: int = 4, seed: int = 0
) -> OffDiagonalEnergy:
    """How much of an operator lies outside its diagonal blocks.

    blocks  the indices of each block, (size,), by name
    probes  products for each block

    Raises ValueError for fewer than 2 probes, which have no standard error.
    """
    if probes < 2:
        raise ValueError(f"the number of probes must be >= 2 for a standard error; got {probes}")
    return energy_from_leakage(
        {name: block_leakage(operator, name, indices, probes, seed) for name, indices in blocks.items()}
    )


def energy_from_leakage(leakages: Mapping[str, Leakage]) -> OffDiagonalEnergy:
    """The shares from what `block_leakage` measured of each block; the error by the linear part of the ratio."""
    inside, outside = (np.array([pair[i] for pair in leakages.values()]) for i in (0, 1))  # (blocks, probes)
    both = inside + outside
    numerators, denominators = outside.sum(0), both.sum(0)
    share = 0.0
    if denominators.sum() > 0.0:
        share = float(numerators.sum() / denominators.sum())
    spread = (numerators - share * denominators) / (denominators.mean() or 1.0)
    by_block = {name: float(outside[b].sum() / (both[b].sum() or 1.0)) for b, name in enumerate(leakages)}
    return OffDiagonalEnergy(share, float(spread.std(ddof=1) / np.sqrt(len(numerators))), by_block, both.size)
