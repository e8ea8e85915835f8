"""Extreme eigenpairs of any symmetric operator, by the search that suits the request: `eigenpairs`.

Both ends at once come from one Krylov space, the largest in absolute value from one and a search for copies that it
passed over (`solvers.extremes`); several at one end are found one after the other, so that multiple eigenvalues are
counted too (`deflation.successive_eigenpairs`).

Symbols: n the dimension, m the eigenpairs. Price: 10 to 40 products an end (benchmarks/spectrum.py).
"""

from __future__ import annotations

from lossmap.keywords import checked_keywords
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.eigenpairs import EigenPairs, Which, check_eigenvalue_request
from lossmap.linalg.foreign import as_operator
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.solvers import extremes

SUCCESSIVE = ("top", "bottom")  # kinds of requests whose eigenpairs are found one after the other


@checked_keywords
def eigenpairs(
    operator: SymmetricOperator,
    which: str = "ends",
    *,
    tol: float = 1e-3,
    solver: str = "auto",
    certify: bool = True,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    seed: int | str = 0,
) -> EigenPairs:
    """Extreme eigenvalues of a symmetric operator with their eigenvectors, error bars and limits.

    Args:
        operator: (n, n), symmetric, known by its products: that of `hessian` or `gauss_newton`, or anybody's
            matrix, as of `spectrum`.
        which: `ends` (the largest and the smallest), `top:k`, `bottom:k`, or `abs:k` (largest in absolute value).
        tol: accuracy of each, relative to the largest absolute eigenvalue.
        solver: `auto` or `lanczos`, or `eigsh` (SciPy's ARPACK, without limits).
        certify: of ends and abs: whether the search goes on until its limits are near.
        confidence: probability with which no eigenvalue lies beyond the limits.
        max_products: at most so many operator-vector products; by default unlimited.
        memory: bytes that the search space may take.
        seed: of the random start.

    Returns:
        `EigenPairs`: `values` (m,), `vectors` (n, m) of length one, `residuals` (m,) within which an eigenvalue lies,
        `limits` (upper, lower), in the operator's unit, and the `products` spent.

    Raises:
        ValueError: for a request that n rows cannot meet, and for an unknown solver.
        FloatingPointError: where a product is not finite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, torch.zeros(2, 1)))
        >>> lossmap.eigenpairs(lossmap.hessian(problem), "ends").values.round(3).tolist()
        [4.0, 1.0]

    """
    operator, request = as_operator(operator), Which.parse(which)
    check_eigenvalue_request(request, operator.size, tol, max_products, confidence)
    if request.kind in SUCCESSIVE:
        return successive_eigenpairs(
            operator,
            which,
            solver=solver,
            tol=tol,
            confidence=confidence,
            max_products=max_products,
            memory=memory,
            seed=seed,
        )
    return extremes(
        operator,
        which,
        solver=solver,
        tol=tol,
        seed=seed,
        certify=certify,
        confidence=confidence,
        max_products=max_products,
        memory=memory,
    )
