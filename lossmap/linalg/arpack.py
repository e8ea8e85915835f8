"""SciPy's ARPACK on an operator known by its products: the reference, and the fallback.

Price: never fewer than 21 products, whatever the tolerance, and one for each residual. Symbols: n the dimension, q the
eigenpairs that were found. Source: Lehoucq, Sorensen and Yang (1998), doi:10.1137/1.9780898719628.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg as sparse
import torch

from lossmap import seeding
from lossmap.interrupt import Interrupted
from lossmap.linalg.eigenpairs import EigenPairs, Which, check_eigenvalue_request
from lossmap.linalg.operator import Rounding, SymmetricOperator, finite_product, refuse_out_of_range
from lossmap.linalg.probabilistic_bounds import NO_LIMITS

MAX_DENSE_SIZE = 24  # up to this dimension every unit vector is multiplied instead
MIN_ARNOLDI_VECTORS = 20  # the smallest number of vectors that SciPy works with
ARPACK_NAMES = {"ends": "BE", "top": "LA", "bottom": "SA", "abs": "LM"}


def eigsh(
    operator: SymmetricOperator,
    which: str = "ends",
    *,
    tol: float = 1e-3,
    seed: int | str = 0,
    max_products: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> EigenPairs:
    """Extreme eigenpairs by SciPy's ARPACK, from a seeded random start; small operators are made dense.

    operator      A (n, n), symmetric
    which         ends, top:k, bottom:k or abs:k
    tol           ARPACK measures it against each value, not against the largest
    seed          of the start
    max_products  about so many are spent; None: as many as SciPy allows
    stop          called before every product; where it returns true, the search is left

    Returns what ARPACK found; when it gives up, what it holds, `converged` False and the missing ones NaN. The
    residuals are measured, by one product each. No limits are computed.
    Raises ValueError for arguments out of range, FloatingPointError where a product is not finite, Interrupted with an
    empty state where `stop` says so: ARPACK begins again.
    """
    request = Which.parse(which)
    check_eigenvalue_request(request, operator.size, tol, max_products)
    n = operator.size
    product = CountedProduct(operator, stop)
    if n <= max(MAX_DENSE_SIZE, request.count + 1):
        dense = np.stack([product(row) for row in np.eye(n)], 1).astype(np.float64)
        values, vectors = np.linalg.eigh(0.5 * (dense + dense.T))
        chosen = request.pick(values)
        values, vectors = values[chosen], vectors[:, chosen]
        images = dense @ vectors
    else:
        values, vectors = arpack(product, request, tol, seed, max_products)
        images = np.zeros(vectors.shape)
        for i, v in enumerate(vectors.T):
            images[:, i] = product(v)
    lengths = np.linalg.norm(images - vectors * values, axis=0)
    scale = max(float(np.abs(values).max(initial=0.0)), product.growth)
    rounding = Rounding.of(operator).allowance(scale)
    residuals = lengths + rounding
    return EigenPairs.padded(
        request.count,
        values=values,
        vectors=torch.from_numpy(vectors.copy()).to(operator.device, operator.dtype),
        residuals=residuals,
        limits=NO_LIMITS,
        products=product.number,
        converged=bool((residuals <= tol * scale).all()),
        tolerance=tol,
        scale=scale,
        rounding=rounding,
    )


class CountedProduct:
    """The operator's product for NumPy vectors, (n,) -> (n,), counted: a working state.

    number  of products so far
    growth  the largest ||A v|| / ||v|| so far: a lower bound of max(abs(eigenvalue))
    dtype   float64 for float64 operators, else float32: what ARPACK computes in
    """

    def __init__(self, operator: SymmetricOperator, stop: Callable[[], bool] | None) -> None:
        self.operator, self.stop = operator, stop
        self.number = 0
        self.growth = 0.0
        self.dtype = np.dtype(np.float64 if operator.dtype == torch.float64 else np.float32)

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """A v. Raises Interrupted where `stop` says so, FloatingPointError where the product is not finite."""
        if self.stop is not None and self.stop():
            raise Interrupted
        flat = torch.from_numpy(np.array(v).reshape(self.operator.size))
        image = finite_product(self.operator, flat.to(self.operator.device, self.operator.dtype), self.number + 1)
        if not self.number and self.operator.size > MAX_DENSE_SIZE:
            refuse_out_of_range(image, float(np.linalg.norm(v)))
        self.number += 1
        self.growth = max(self.growth, float(image.norm()) / max(float(np.linalg.norm(v)), 1e-30))
        return image.cpu().numpy().astype(self.dtype)


def arpack(
    product: CountedProduct, request: Which, tol: float, seed: int | str, max_products: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """What ARPACK finds: values (q,), the most extreme first, and vectors (n, q), both in float64; q <= count."""
    n, count = product.operator.size, request.count
    size = min(n, max(2 * count + 1, MIN_ARNOLDI_VECTORS))
    restarts = None
    if max_products is not None:  # each restart costs as many products as vectors are dropped
        restarts = max(1, (max_products - size) // max(1, size - count))
    try:
        values, vectors = sparse.eigsh(
            sparse.LinearOperator((n, n), matvec=product, dtype=product.dtype),
            k=count,
            which=ARPACK_NAMES[request.kind],
            tol=tol,
            v0=seeding.normal(n, "eigen start", seed, 0).numpy().astype(product.dtype),
            ncv=size,
            maxiter=restarts,
        )
    except sparse.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        if request.kind == "ends":  # one of two ends: which one, it does not say
            values = np.zeros(0)
        vectors = vectors[:, : len(values)]
    except sparse.ArpackError:
        if product.growth > 0.0:
            return np.zeros(0), np.zeros((n, 0))
        values, vectors = np.zeros(count), np.eye(n, count)  # the operator is zero, for which ARPACK has no start
    order = np.argsort(values)
    if len(values):
        order = order[request.pick(values[order])]
    return values[order].astype(np.float64), vectors[:, order].astype(np.float64)
