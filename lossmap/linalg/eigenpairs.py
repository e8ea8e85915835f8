"""What is requested of an eigenvalue solver, and what it returns: eigenpairs with their error bars and their cost.

Symbols: n the dimension of the operator, m the eigenpairs. Eigenvalues, residuals and limits are in the operator's
unit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from math import isfinite, nan

import numpy as np
import torch
from torch import Tensor

from lossmap.interrupt import Interrupted
from lossmap.linalg.operator import ROUNDING_EPSILONS, SymmetricOperator, finite_product
from lossmap.linalg.probabilistic_bounds import least_component
from lossmap.values import Result

logger = logging.getLogger("lossmap")

MAX_ROUNDING_SHARE = 0.1  # of an error bar, that rounding may have before it is measured by float64 products
MAX_CANCELLATION = 0.1  # of the largest eigenvalue: from such a rounding on the pairs may be of other eigenvalues
KINDS = ("top", "bottom", "abs")  # of requests that bear a number


@dataclass(frozen=True)
class Which:
    """Which eigenvalues are requested.

    kind   ends (the largest and the smallest), top, bottom, or abs (largest in absolute value)
    count  number of them
    """

    kind: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Which:
        """From `ends`, `top:k`, `bottom:k` or `abs:k`. Raises ValueError for anything else."""
        kind, _, number = text.partition(":")
        if text == "ends":
            return cls("ends", 2)
        if kind in KINDS and number.isdigit() and int(number) > 0:
            return cls(kind, int(number))
        raise ValueError(f"--which must be ends, top:k, bottom:k or abs:k, e.g. top:5; got {text!r}")

    def pick(self, values: np.ndarray, count: int | None = None) -> np.ndarray:
        """Indices into ascending values, the most extreme first; for ends the largest, then the smallest, and inwards.

        values  (j,) ascending
        count   number of indices; None: as requested. Fewer come back where there are fewer values, but for ends
        """
        available = len(values)
        count = self.count if count is None else count
        if self.kind == "ends":
            steps = np.arange(count)
            return np.where(steps % 2 == 0, available - 1 - steps // 2, steps // 2)
        if self.kind == "abs":
            return np.argsort(-np.abs(values), kind="stable")[:count]
        ascending = np.arange(available)
        if self.kind == "bottom":
            return ascending[:count]
        return ascending[::-1][:count]


@dataclass(frozen=True, eq=False)
class EigenPairs(Result):
    """Eigenvalues with their error bars and their cost.

    values      (m,) the most extreme first; of `ends` the largest, then the smallest; NaN where none was found
    vectors     (n, m) of length one, in the operator's precision
    residuals   (m,) an eigenvalue lies within this distance: the residual's length and the allowance for rounding
    limits      (upper, lower): each with probability `confidence` no eigenvalue lies beyond; NaN where not computed
    products    operator-vector products spent
    converged   whether every residual is within the tolerance, and all that was requested has been found
    tolerance   relative to `scale`
    scale       max(abs(value)) over the whole spectrum, as far as it was seen
    confidence  of the limits, a probability
    others      with probability `confidence` no eigenvalue but these lies beyond: above those of top:k, below those of
                bottom:k; NaN where not computed
    rounding    what of the residuals is the allowance for rounding, the same for all; NaN where not known
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
    rounding: float = nan

    @classmethod
    def padded(
        cls,
        count: int,
        *,
        values: np.ndarray,
        vectors: Tensor,
        residuals: np.ndarray,
        limits: tuple[float, float],
        products: int,
        converged: bool,
        tolerance: float,
        scale: float,
        confidence: float = nan,
        others: float = nan,
        rounding: float = nan,
    ) -> EigenPairs:
        """`count` eigenpairs of which perhaps only the first q were found: the others are NaN, and not converged.

        values (q,), vectors (n, q) and residuals (q,); limits that are not finite become NaN; the rest as above.
        """
        missing = max(0, count - len(values))
        absent = np.full(missing, nan)
        upper, lower = (limit if isfinite(limit) else nan for limit in limits)
        return cls(
            values=np.concatenate([values, absent]),
            vectors=torch.cat([vectors, vectors.new_full((len(vectors), missing), nan)], 1),
            residuals=np.concatenate([residuals, absent]),
            limits=(upper, lower),
            products=products,
            converged=converged and missing == 0,
            tolerance=tolerance,
            scale=scale,
            confidence=confidence,
            others=others,
            rounding=rounding,
        )


def with_residuals(pairs: EigenPairs, double: SymmetricOperator) -> EigenPairs:
    """The pairs with their residuals ||A x - theta x|| measured by products in float64, one for each pair found.

    double  the same operator with products in float64. What the pairs' own precision makes of x is a vector like any
            other: the theorem holds for it, and what rounding added to the former residuals is seen, not estimated

    The limits move out by what the residuals grew. Where rounding is a tenth of the largest eigenvalue the pairs are
    hardly those of the true matrix's ends, and the former residuals stay where they are larger: by them the ends
    themselves may have moved. Raises what the operator raises.
    """
    residuals = pairs.residuals.copy()
    kinks: float = getattr(double, "kinks", 0.0)  # which no precision resolves
    floor = (ROUNDING_EPSILONS * float(torch.finfo(torch.float64).eps) + kinks) * pairs.scale
    for i in np.flatnonzero(np.isfinite(pairs.values)):
        x = pairs.vectors[:, i].double()
        x = (x / x.norm()).to(double.device)
        residuals[i] = float((finite_product(double, x) - pairs.values[i] * x).norm()) + floor
    if pairs.rounding > MAX_CANCELLATION * pairs.scale:
        residuals = np.fmax(residuals, pairs.residuals)
    searched = pairs.residuals - pairs.rounding  # the residual that the search itself has seen
    rounding = max(float(np.nanmax(residuals - searched, initial=0.0)), floor)
    growth = max(float(np.nanmax(residuals - pairs.residuals, initial=0.0)), 0.0)
    upper, lower = pairs.limits
    converged = pairs.converged or bool((residuals <= pairs.tolerance * pairs.scale).all())
    limits, others = (upper + growth, lower - growth), pairs.others
    if isfinite(others):
        others += growth * float(np.sign(others - pairs.values[-1]))
    return replace(pairs, residuals=residuals, limits=limits, others=others, rounding=rounding, converged=converged)


def with_rounding_measured(operator: SymmetricOperator, pairs: EigenPairs) -> EigenPairs:
    """The pairs with residuals by float64 products, where rounding is more than a tenth of some error bar.

    Elsewhere the residuals stay: a search's own are linear combinations of products that it has made. So they do where
    the operator has no `in_float64`, or that fails: then the bars rest on the rounding as measured for the operator.
    Price: one float64 product for each pair. Every rank of a team comes to the same decision.
    """
    matters = bool((pairs.rounding > MAX_ROUNDING_SHARE * pairs.residuals[np.isfinite(pairs.residuals)]).any())
    if operator.dtype == torch.float64 or not matters or not hasattr(operator, "in_float64"):
        return pairs
    try:
        measured = with_residuals(pairs, operator.in_float64())
    except Interrupted:
        raise
    except Exception as failure:  # user code may raise any exception in another precision
        logger.info("residuals are not measured in float64: %s", failure)
        return pairs
    return replace(measured, products=pairs.products + len(pairs.values))


def check_eigenvalue_request(
    request: Which, n: int, tol: float, max_products: int | None, confidence: float = 0.99
) -> None:
    """Raises ValueError where a request cannot be met by an operator of n rows, or an option is out of range."""
    if not tol > 0.0:
        raise ValueError(f"--tol must be > 0, e.g. 1e-3; got {tol}")
    if request.kind != "ends" and request.count > n:
        raise ValueError(
            f"{request.kind}:{request.count} requested of an operator of {n} rows, which has {n} eigenvalues; "
            f"request at most {request.kind}:{n}"
        )
    if max_products is not None and max_products < 1:
        raise ValueError(f"--max-products must be >= 1; got {max_products}")
    least_component(n, confidence)  # raises where the confidence is no probability
