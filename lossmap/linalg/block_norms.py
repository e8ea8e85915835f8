"""How much of a symmetric matrix lies outside its diagonal blocks, estimated from products with random signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.krylov_space import SymmetricOperator
from lossmap.sums import norm


@dataclass(frozen=True)
class OffDiagonalEnergy:
    """What the block-diagonal picture leaves out.

    share     of the squared Frobenius norm of the whole matrix, what lies outside the blocks; error: its standard error
    by_block  for each block the share of its own columns that lies outside of it
    """

    share: float
    error: float
    by_block: Mapping[str, float]
    products: int

    def __repr__(self) -> str:
        return f"{100 * self.share:.1f}% +- {100 * self.error:.1g}% of the squared entries lie outside the blocks"


@dataclass(frozen=True, eq=False)
class Restricted:
    """The diagonal block of any symmetric matrix at these indices: a full product for each of its own."""

    matrix: SymmetricOperator
    indices: Tensor  # (size,)

    @property
    def size(self) -> int:
        """The dimension of the block."""
        return len(self.indices)

    @property
    def dtype(self) -> torch.dtype:
        """The whole matrix's precision."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are made."""
        return self.matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (size,) -> (size,)."""
        padded = torch.zeros(self.matrix.size, dtype=self.dtype, device=self.device)
        padded[self.indices] = v
        return (self.matrix @ padded)[self.indices]


def block_leakage(
    matrix: SymmetricOperator, name: str, indices: Tensor, probes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared lengths of products with random signs in one block: what stays inside, (probes,), and what leaves it."""
    inside, outside = np.zeros(probes), np.zeros(probes)
    for i in range(probes):
        v = torch.zeros(matrix.size, dtype=matrix.dtype, device=matrix.device)
        signs = seeding.signs(len(indices), "shortfall probe", seed, name, i)
        v[indices] = signs.to(matrix.device, matrix.dtype)
        image = matrix @ v
        inside[i] = norm(image[indices]) ** 2
        image[indices] = 0.0
        outside[i] = norm(image) ** 2
    return inside, outside


def off_diagonal_energy(
    matrix: SymmetricOperator, where: Mapping[str, Tensor], *, probes: int = 4, seed: int = 0
) -> OffDiagonalEnergy:
    """How much of a matrix lies outside its diagonal blocks, from products with random signs in one block at a time.

    where  the indices of each block
    """
    if probes < 2:
        raise ValueError(f"a share with a standard error wants 2 probes or more; got {probes}")
    return energy_from_leakage(
        {name: block_leakage(matrix, name, indices, probes, seed) for name, indices in where.items()}
    )


def energy_from_leakage(leaks: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> OffDiagonalEnergy:
    """The shares from what `block_leakage` saw of each block."""
    inside, outside = (np.array([pair[i] for pair in leaks.values()]) for i in (0, 1))  # (blocks, probes)
    both = inside + outside
    out, all_of = outside.sum(0), both.sum(0)
    share = float(out.sum() / all_of.sum()) if all_of.sum() > 0.0 else 0.0
    spread = (out - share * all_of) / (all_of.mean() or 1.0)  # the ratio's linear part
    own = {name: float(outside[b].sum() / (both[b].sum() or 1.0)) for b, name in enumerate(leaks)}
    return OffDiagonalEnergy(share, float(spread.std(ddof=1) / np.sqrt(len(out))), own, both.size)
