"""An operator small enough to be had whole: n products with the unit vectors, and then everything is exact.

What remains is rounding: eigenvalues are those of the symmetric part, within the allowance for rounding in the products
(see `operator.Rounding`) and half the measured lack of symmetry (Weyl's inequality). Where rounding was measured to be
large, as under autocast or where terms cancel, the entries are those of the same operator in float64.

Products with unit vectors are themselves compared with others (`operator.error_of_columns`), which are not counted, as
others that measure rounding.

Price: n + `CHECKS` products, in float64 as many more, n^3 multiplications in float64, n^2 numbers. Symbols: n the
dimension.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan

import numpy as np
import torch

from lossmap.interrupt import Interrupted
from lossmap.linalg.diagonal import located
from lossmap.linalg.eigenpairs import EigenPairs, Which
from lossmap.linalg.entry_sums import exact_sums
from lossmap.linalg.operator import Rounding, SymmetricOperator, check_vectors, columns_of, error_of_columns
from lossmap.linalg.spectral_density import Density
from lossmap.linalg.trace import Trace

logger = logging.getLogger("lossmap")
MAX_ROUNDING = 1e-4  # of the largest absolute eigenvalue, beyond which entries are made in float64
MAX_EXTRAPOLATED = 0.1  # the same, beyond which what was measured says nothing on float64
CHECK_SAFETY = 2.0  # the error of the entries that they show is taken so many times
EXTRAPOLATED_SAFETY = 10.0  # what float64 would do of it by the ratio of the precisions is taken so many times


@dataclass(frozen=True, eq=False)
class DenseMatrix:
    """All entries of a symmetric operator.

    entries    (n, n) float64, its symmetric part
    asymmetry  a bound of the spectral norm of the antisymmetric part, from rounding in the products
    epsilon    the unit roundoff of the products
    dtype      the precision of eigenvectors
    rounding   the operator's measured rounding, in the unit of its eigenvalues; None where none was measured
    """

    entries: np.ndarray
    asymmetry: float
    epsilon: float
    dtype: torch.dtype = torch.float64
    rounding: float | None = None

    @classmethod
    def of(cls, operator: SymmetricOperator) -> DenseMatrix:
        """By n products with unit vectors and `CHECKS` more, in float64 too where rounding shows.

        Raises FloatingPointError where a product is not finite.
        """
        whole = cls._by_products(operator)
        shown = 0.0 if whole.rounding is None else whole.rounding - Rounding.of(operator).kinks * whole.scale
        is_coarse = MAX_ROUNDING * whole.scale < shown <= MAX_EXTRAPOLATED * whole.scale
        if operator.dtype == torch.float64 or not is_coarse or not hasattr(operator, "in_float64"):
            return whole
        try:
            double = cls._by_products(operator.in_float64())
        except Interrupted:
            raise
        except Exception as failure:  # user code may raise any exception in another precision
            logger.info("the matrix is not made in float64: %s", failure)
            return whole
        left = EXTRAPOLATED_SAFETY * shown * double.epsilon / whole.epsilon
        own = Rounding(double.epsilon, double.rounding).allowance(double.scale)
        return replace(double, dtype=whole.dtype, rounding=max(own, left))

    @classmethod
    def _by_products(cls, operator: SymmetricOperator) -> DenseMatrix:
        n = operator.size
        measured = np.zeros((n, n))
        for j, column in enumerate(columns_of(operator)):
            measured[:, j] = column.numpy()
        asymmetry = float(np.linalg.norm(measured - measured.T)) / 2.0
        rounding = Rounding.of(operator)
        entries = 0.5 * (measured + measured.T)
        usual = rounding.allowance(float(np.linalg.norm(entries, 2)))
        error = CHECK_SAFETY * error_of_columns(operator, [measured @ v.double().numpy() for v in check_vectors(n)])
        allowance = usual if rounding.measured is not None or rounding.kinks else None
        if error > usual:
            allowance = error
        return cls(entries, asymmetry, rounding.epsilon, operator.dtype, allowance)

    @cached_property
    def eigendecomposition(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ascending (n,) and vectors (n, n), in columns."""
        values, vectors = np.linalg.eigh(self.entries)
        return values, vectors

    @property
    def scale(self) -> float:
        """The largest absolute eigenvalue."""
        return float(np.abs(self.eigendecomposition[0]).max(initial=0.0))

    @property
    def error(self) -> float:
        """An eigenvalue of the true matrix lies within this distance of each."""
        return Rounding(self.epsilon, self.rounding).allowance(self.scale) + self.asymmetry

    def pairs(self, which: str) -> EigenPairs:
        """The eigenpairs of `ends`, `top:k`, `bottom:k` or `abs:k`, as a solver returns them, and what lies beyond.

        Raises ValueError for another `which`.
        """
        values, vectors = self.eigendecomposition
        request = Which.parse(which)
        chosen = request.pick(values)
        return EigenPairs(
            values=values[chosen],
            vectors=torch.from_numpy(vectors[:, chosen].copy()).to(self.dtype),
            residuals=np.full(len(chosen), self.error),
            limits=(float(values[-1]) + self.error, float(values[0]) - self.error),
            products=len(values),
            converged=True,
            tolerance=nan,
            scale=self.scale,
            confidence=1.0,
            others=self._others(request, np.delete(values, chosen)),
            rounding=self.error,
        )

    def trace(self, layout: object = None, diagonal: bool = False) -> Trace:
        """The sum of the diagonal; layout: of the tensors whose sums are kept beside it; diagonal: its entries too."""
        n, sums, entries = len(self.entries), exact_sums(self.entries, self.error, layout), None
        if diagonal:
            entries = located(np.diag(self.entries).copy(), np.full(n, self.error), n, "unit vectors", layout)
        value, error = float(np.trace(self.entries)), np.sqrt(n) * self.error
        return Trace(value, error, n, n, "unit vectors", n, sums=sums, diagonal=entries)

    def density(self) -> Density:
        """All eigenvalues."""
        values = self.eigendecomposition[0]
        return Density((), len(values), self.epsilon, eigenvalues=values, rounding=self.rounding)

    def _others(self, request: Which, rest: np.ndarray) -> float:
        """Beyond which none of the eigenvalues that were not requested lies; NaN where there are none."""
        if not len(rest):
            return nan
        if request.kind == "top":
            return float(rest.max() + self.error)
        return float(rest.min() - self.error)
