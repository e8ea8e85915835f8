"""A matrix small enough to be had whole: n products with the unit vectors, and then everything is exact.

What remains is rounding: eigenvalues are those of the symmetric part, within `ROUNDING` = 64 epsilons of the products'
precision times the largest absolute value, plus half the measured lack of symmetry. Price: n products, n^3
multiplications in float64, n^2 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import nan

import numpy as np
import torch

from lossmap.linalg.krylov_space import ROUNDING, SymmetricOperator
from lossmap.linalg.lanczos import EigenPairs, Which
from lossmap.linalg.spectral_density import Density
from lossmap.linalg.trace import Trace


@dataclass(frozen=True, eq=False)
class DenseMatrix:
    """All of a symmetric matrix.

    entries  (n, n) float64, its symmetric part
    lack     the spectral norm's bound of what was not symmetric, from rounding in the products
    epsilon  the rounding of the products
    """

    entries: np.ndarray
    lack: float
    epsilon: float
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, matrix: SymmetricOperator) -> DenseMatrix:
        """By n products with unit vectors. Raises FloatingPointError where one is not finite."""
        n = matrix.size
        measured = np.zeros((n, n))
        for j in range(n):
            unit = torch.zeros(n, dtype=matrix.dtype, device=matrix.device)
            unit[j] = 1.0
            measured[:, j] = (matrix @ unit).double().cpu().numpy()
        if not np.isfinite(measured).all():
            raise FloatingPointError("a product with the matrix is not finite: look at the loss here first")
        lack = float(np.linalg.norm(measured - measured.T)) / 2.0
        return cls(0.5 * (measured + measured.T), lack, float(torch.finfo(matrix.dtype).eps), matrix.dtype)

    @cached_property
    def decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ascending (n,) and vectors (n, n)."""
        values, vectors = np.linalg.eigh(self.entries)
        return values, vectors

    @property
    def error(self) -> float:
        """An eigenvalue of the true matrix lies within this distance of each."""
        return ROUNDING * self.epsilon * float(np.abs(self.decomposed[0]).max(initial=0.0)) + self.lack

    def pairs(self, which: str) -> EigenPairs:
        """The named ones, as a solver would give them, with nothing beyond them."""
        values, vectors = self.decomposed
        wanted = Which.parse(which)
        chosen = wanted.pick(values)
        rest = np.sort(np.delete(values, chosen))
        others = (
            nan if not len(rest) else float(rest[-1] + self.error if wanted.kind == "top" else rest[0] - self.error)
        )
        return EigenPairs(
            values=values[chosen],
            vectors=torch.from_numpy(vectors[:, chosen].copy()).to(self.dtype),
            residuals=np.full(len(chosen), self.error),
            limits=(float(values[-1]) + self.error, float(values[0]) - self.error),
            products=len(values),
            converged=True,
            tolerance=nan,
            scale=float(np.abs(values).max(initial=0.0)),
            confidence=1.0,
            others=others,
        )

    def trace(self) -> Trace:
        """The sum of the diagonal."""
        n = len(self.entries)
        return Trace(float(np.trace(self.entries)), np.sqrt(n) * self.error, n, n, "unit vectors", n)

    def density(self) -> Density:
        """All eigenvalues."""
        return Density((), len(self.entries), self.epsilon, known=self.decomposed[0])
