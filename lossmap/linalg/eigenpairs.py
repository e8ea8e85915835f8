"""What is asked of a solver, and what it answers: eigenpairs with their error bars and their cost.

Letters: n the dimension of the matrix, m the eigenpairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan

import numpy as np
from torch import Tensor

from lossmap.linalg.probabilistic_bounds import least_component


@dataclass(frozen=True)
class Which:
    """Which eigenvalues are asked for: `kind` is ends, top, bottom or abs; `count` of them."""

    kind: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Which:
        """From `ends`, `top:k`, `bottom:k` or `abs:k`. Raises ValueError for anything else."""
        kind, _, number = text.partition(":")
        if text == "ends":
            return cls("ends", 2)
        if kind in ("top", "bottom", "abs") and number.isdigit() and int(number) > 0:
            return cls(kind, int(number))
        raise ValueError(f"--which wants ends, top:k, bottom:k or abs:k, such as top:5; got {text!r}")

    def pick(self, values: np.ndarray, count: int | None = None) -> np.ndarray:
        """Indices into ascending values, the most extreme first; for ends the largest, then the smallest."""
        have, wanted = len(values), self.count if count is None else count
        if self.kind == "ends":
            return np.array([have - 1 - i // 2 if i % 2 == 0 else i // 2 for i in range(wanted)])
        if self.kind == "abs":
            return np.argsort(-np.abs(values), kind="stable")[:wanted]
        ascending = np.arange(have)
        return ascending[:wanted] if self.kind == "bottom" else ascending[::-1][:wanted]


@dataclass(frozen=True, eq=False)
class EigenPairs:
    """Eigenvalues with their error bars and their cost.

    values     (m,) the most extreme first; of `ends` the largest, then the smallest; NaN where none was found
    vectors    (n, m) of length one, in the matrix's precision
    residuals  (m,) an eigenvalue lies within this distance: the residual's length and the allowance for rounding
    limits     (upper, lower): each with probability `confidence` no eigenvalue lies beyond; NaN where not computed
    products   matrix-vector products spent
    converged  whether every residual is at most tolerance * scale, and all that was asked has been found
    scale      max(abs(value)) over the whole spectrum, as far as it was seen
    others     with probability `confidence` no eigenvalue but these lies beyond: above those of top:k, below those of
               bottom:k; NaN where not computed
    """

    values: np.ndarray
    vectors: Tensor = field(repr=False)
    residuals: np.ndarray
    limits: tuple[float, float]
    products: int
    converged: bool
    tolerance: float
    scale: float
    confidence: float = nan
    others: float = nan


def check(wanted: Which, n: int, tol: float, max_products: int | None, confidence: float = 0.99) -> None:
    """Raises ValueError where what is asked of a matrix of n rows makes no sense."""
    if not tol > 0.0:
        raise ValueError(f"--tol wants a number above 0, such as 1e-3; got {tol}")
    if wanted.kind != "ends" and wanted.count > n:
        raise ValueError(f"{wanted.kind}:{wanted.count} of a matrix of {n} rows: it has no more eigenvalues")
    if max_products is not None and max_products < 1:
        raise ValueError(f"--max-products wants 1 or more; got {max_products}")
    least_component(n, confidence)
