"""How much of a symmetric operator lies outside its diagonal blocks, estimated from products with random signs.

For a vector w of independent signs in the columns of block b, E ||(A w)_rows||^2 is the squared Frobenius norm of the
entries A[rows, b] (Hutchinson's estimator of tr A^T A). Symbols: n the dimension. Price: one product for each probe and
block. Source: Hutchinson (1990), doi:10.1080/03610919008812866.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from scipy.special import expit, stdtrit
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.operator import SymmetricOperator
from lossmap.report.estimates import energy_text
from lossmap.sums import norm

Leakage = tuple[np.ndarray, np.ndarray]  # squared norms inside and outside of a block, (probes,) each


@dataclass(frozen=True)
class OffDiagonalEnergy:
    """What the block-diagonal picture leaves out.

    share     of the squared Frobenius norm of the whole operator, what lies outside the blocks
    error     its jackknife standard error
    by_block  for each block the share of its own columns that lies outside of it
    products  operator-vector products spent
    spread    the jackknife standard error of the log of the odds, log share / (1 - share)
    probes    for each block
    """

    share: float
    error: float
    by_block: Mapping[str, float]
    products: int
    spread: float = 0.0
    probes: int = 2

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high) between which the share lies with about this probability.

        Student's t on the log of the odds, with two degrees of freedom fewer than there are probes, one at least: the
        squared lengths of few products are skewed, most of all where one eigenvector outweighs all others.
        `benchmarks/coverage.py` counts how often it holds the truth.
        """
        if self.spread == 0.0:
            return self.share, self.share
        width = float(stdtrit(max(self.probes - 2, 1), 0.5 + 0.5 * confidence)) * self.spread
        odds = log(self.share) - log(1.0 - self.share)
        return float(expit(odds - width)), float(expit(odds + width))

    def __repr__(self) -> str:
        return energy_text(self.share, self.interval())


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
    """The shares from what `block_leakage` measured of each block, with their error by the jackknife.

    Each product is left out in turn, of one block after the other, since blocks are probed independently.
    """
    inside, outside = (np.array([pair[i] for pair in leakages.values()]) for i in (0, 1))  # (blocks, probes)
    both = inside + outside
    by_block = {name: float(outside[b].sum() / (both[b].sum() or 1.0)) for b, name in enumerate(leakages)}
    probes = both.shape[1]
    if not outside.any():
        return OffDiagonalEnergy(0.0, 0.0, by_block, both.size, probes=probes)
    share = float(outside.sum() / both.sum())
    if not inside.any():
        return OffDiagonalEnergy(1.0, 0.0, by_block, both.size, probes=probes)
    # By the log of the odds, so that the interval stays between 0 and 1, and is wide where one product has it all.
    left_out = probes / (probes - 1)
    inner, outer = (left_out * (part.sum(1, keepdims=True) - part) for part in (inside, outside))
    others = (part.sum() - part.sum(1, keepdims=True) for part in (inside, outside))
    inner, outer = (part + other for part, other in zip((inner, outer), others, strict=True))
    tiny = np.finfo(float).tiny
    odds = np.log(np.maximum(outer, tiny)) - np.log(np.maximum(inner, tiny))
    spread = float(np.sqrt((probes - 1) / probes * ((odds - odds.mean(1, keepdims=True)) ** 2).sum()))
    return OffDiagonalEnergy(share, share * (1.0 - share) * spread, by_block, both.size, spread, probes)
