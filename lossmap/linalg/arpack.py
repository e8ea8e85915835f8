"""SciPy's ARPACK on a matrix known by its products: the reference, and the fallback.

Price: never fewer than 21 products, whatever the tolerance, and one for each residual. Source: Lehoucq, Sorensen and
Yang (1998), doi:10.1137/1.9780898719628. Letters: n the dimension, q the eigenpairs that were found.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import numpy as np
import scipy.sparse.linalg as sparse
import torch

from lossmap import seeding
from lossmap.interrupt import Interrupted
from lossmap.linalg.eigenpairs import EigenPairs, Which, check
from lossmap.linalg.krylov_space import ROUNDING, SymmetricOperator
from lossmap.linalg.probabilistic_bounds import NONE

DENSE = 24  # up to this dimension eigsh multiplies with every unit vector instead


def eigsh(
    matrix: SymmetricOperator,
    which: str = "ends",
    *,
    tol: float = 1e-3,
    seed: int | str = 0,
    max_products: int | None = None,
    stop: Callable[[], bool] | None = None,
    state: dict[str, Any] | None = None,
    **unused: Any,
) -> EigenPairs:
    """Extreme eigenpairs by SciPy's ARPACK, from a seeded random start; small matrices are made dense.

    ARPACK measures its tolerance against each value, not against the largest. What it holds when it gives up is
    returned with `converged` False, the missing ones NaN. The residuals are measured, by one product each.
    A stop raises Unfinished with an empty state: ARPACK begins again. Computes no limits; further settings of
    `lanczos` are accepted and change nothing. Raises ValueError and FloatingPointError as `lanczos` does.
    """
    wanted = Which.parse(which)
    check(wanted, matrix.size, tol, max_products)
    n = matrix.size
    precision = matrix.dtype if matrix.dtype == torch.float64 else torch.float32
    seen = {"products": 0, "longest": 0.0}

    def product(v: np.ndarray) -> np.ndarray:
        if stop is not None and stop():
            raise Interrupted
        image = matrix @ torch.from_numpy(np.array(v).reshape(n)).to(matrix.device, matrix.dtype)
        seen["products"] += 1
        length = float(image.double().norm())
        if not isfinite(length):
            raise FloatingPointError(f"product {int(seen['products'])} is not finite: look at the loss here first")
        seen["longest"] = max(seen["longest"], length / max(float(np.linalg.norm(v)), 1e-30))
        return image.to(precision).cpu().numpy()

    if n <= max(DENSE, wanted.count + 1):
        dense = np.stack([product(row) for row in np.eye(n)], 1).astype(np.float64)
        values, vectors = np.linalg.eigh(0.5 * (dense + dense.T))
        chosen = wanted.pick(values)
        values, vectors = values[chosen], vectors[:, chosen]
        lengths = np.linalg.norm(dense @ vectors - vectors * values, axis=0)
    else:
        values, vectors = _arpack(product, n, wanted, tol, seed, max_products, seen, precision)
        images = np.stack([product(v) for v in vectors.T], 1) if len(values) else np.zeros((n, 0))
        lengths = np.linalg.norm(images.astype(np.float64) - vectors * values, axis=0)
    scale = max(float(np.abs(values).max(initial=0.0)), seen["longest"])
    missing = wanted.count - len(values)
    errors = lengths + ROUNDING * float(torch.finfo(matrix.dtype).eps) * scale
    return EigenPairs(
        values=np.concatenate([values, np.full(missing, nan)]),
        vectors=torch.from_numpy(np.pad(vectors, ((0, 0), (0, missing)), constant_values=nan)).to(
            matrix.device, matrix.dtype
        ),
        residuals=np.concatenate([errors, np.full(missing, nan)]),
        limits=NONE,
        products=int(seen["products"]),
        converged=missing == 0 and bool((errors <= tol * scale).all()),
        tolerance=tol,
        scale=scale,
    )


def _arpack(
    product: Callable[[np.ndarray], np.ndarray],
    n: int,
    wanted: Which,
    tol: float,
    seed: int | str,
    max_products: int | None,
    seen: dict[str, float],
    precision: torch.dtype,
) -> tuple[np.ndarray, np.ndarray]:
    """What ARPACK finds: values (q,) and vectors (n, q) in float64, q <= count."""
    dtype = np.float64 if precision == torch.float64 else np.float32
    operator = sparse.LinearOperator((n, n), matvec=product, dtype=dtype)
    held = min(n, max(2 * wanted.count + 1, 20))
    restarts = None if max_products is None else max(1, (max_products - held) // max(1, held - wanted.count))
    kind = {"ends": "BE", "top": "LA", "bottom": "SA", "abs": "LM"}[wanted.kind]
    first = seeding.normal(n, "eigen start", seed, 0).numpy().astype(dtype)
    try:
        values, vectors = sparse.eigsh(
            operator, k=wanted.count, which=kind, tol=tol, v0=first, ncv=held, maxiter=restarts
        )
    except sparse.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        values = np.full(0, nan) if wanted.kind == "ends" else values  # one of two ends: which one, it does not say
        vectors = vectors[:, : len(values)]
    except sparse.ArpackError:
        if seen["longest"] > 0.0:
            return np.zeros(0), np.zeros((n, 0))
        values, vectors = np.zeros(wanted.count), np.eye(n, wanted.count)  # the matrix is zero
    order = np.argsort(values)
    chosen = order[wanted.pick(values[order])] if len(values) else order
    return values[chosen].astype(np.float64), vectors[:, chosen].astype(np.float64)
