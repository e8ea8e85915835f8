"""Extreme eigenvalues of any symmetric matrix known by its products, with their error bars and their cost.

    lanczos   one Krylov space for all that is asked, both ends at once; starts warm from given vectors
    eigsh     SciPy's ARPACK: the reference, and the fallback

Both take `which`: `ends` (the largest and the smallest), `top:k`, `bottom:k`, `abs:k` (largest in absolute value), and
stop when every residual ||A x - value x|| is at most tol * max(abs(value)).

What is known of an answer, and kept apart: an eigenvalue lies within `residuals[i]` of `values[i]` (a theorem, with an
allowance of `ROUNDING` = 64 epsilons of max(abs(value)) for rounding in the products). That it is the extreme one no
number of products can prove; beyond `limits` none lies, each with the stated probability. An eigenvalue that is
multiple counts once where the start is one vector (its copies come in by rounding, late); `block` starts see so many.

Price: one product a step, 10-20 for both ends at tol 1e-3 from a cold start and about half of it from a neighbour's
vectors (`benchmarks/eigenmap.py`); memory: the basis, bounded by `memory` bytes. Letters: n the dimension, m the
eigenpairs. Sources: Lanczos (1950); the others in `krylov` and `limits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import scipy.sparse.linalg as sparse
import torch
from torch import Tensor

from lossmap.measure.krylov import ROUNDING, Space, Symmetric
from lossmap.measure.limits import NONE, least_component, lower_limit, upper_limit
from lossmap.space import chance
from lossmap.space.grid import Unfinished

SOLVERS = ("auto", "lanczos", "eigsh")
LIMIT_TOLERANCES = 10.0  # with `certify`, how near a limit must come to its value, in tolerances
NOISE = 0.1  # length of the random part of a warm start, beside a warm part of length one
SAVED = 1 << 28  # bytes of a search space that is left to be resumed; of a larger one its best vectors are kept


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


def extremes(matrix: Symmetric, which: str = "ends", *, solver: str = "auto", **told: Any) -> EigenPairs:
    """The eigenpairs by the named solver, `auto` being lanczos; `told` as those two take it.

    Raises ValueError for a solver that is not there.
    """
    if solver not in SOLVERS:
        raise ValueError(f"--solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    return eigsh(matrix, which, **told) if solver == "eigsh" else lanczos(matrix, which, **told)


def lanczos(
    matrix: Symmetric,
    which: str = "ends",
    *,
    tol: float = 1e-3,
    start: Tensor | None = None,
    noise: float = NOISE,
    seed: int | str = 0,
    block: int = 1,
    again: int = 1,
    certify: bool = False,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    stop: Callable[[], bool] | None = None,
    state: dict[str, Any] | None = None,
) -> EigenPairs:
    """Extreme eigenpairs from one Krylov space with full reorthogonalisation.

    start         (n, q) vectors to start from, such as a neighbour's extreme ones, weighted by their lengths; a random
                  part of length `noise` beside them lets what they do not contain come in. None: at random
    block         independent starts; more than one sees multiple eigenvalues, and computes no limits
    again         further steps at which the residuals must still be small: an end that comes in late shows then
    certify       goes on until the limits, too, are within ten tolerances, instead of `again`
    max_products  spends no more; None: 10 n
    memory        bytes for the basis; when it is full, the search is restarted from its best vectors
    stop          asked between products; where it says so, Unfinished is raised, whose state resumes the search

    Raises ValueError for what makes no sense, FloatingPointError where a product is not finite.
    """
    wanted = Which.parse(which)
    check(wanted, matrix.size, tol, max_products, confidence)
    n = matrix.size
    epsilon = float(torch.finfo(matrix.dtype).eps)
    item = torch.finfo(matrix.dtype).bits // 8
    capacity = min(n, max(memory // (n * item), 2 * wanted.count + 8 + block))
    delta = least_component(n, confidence) if block == 1 else 0.0
    if state is None:
        first, share = _start(matrix, start, noise, seed, block)
        space, limits, held = Space(matrix, first, capacity), (inf, -inf), 0
    else:
        space = Space.restored(matrix, state, capacity)
        share, limits, held = float(state["share"]), (float(state["upper"]), float(state["lower"])), int(state["held"])
    most = 10 * n if max_products is None else max_products

    while True:
        if space.multiplied:
            values, coordinates, lengths = space.ritz()
            chosen = wanted.pick(values)
            scale = float(np.abs(values).max())
            rounding = ROUNDING * epsilon * scale
            whole = space.multiplied == space.filled  # an invariant subspace: nothing more comes from these starts
            enough = space.multiplied >= wanted.count or (whole and wanted.kind == "ends")
            met = enough and bool((lengths[chosen] + rounding <= max(tol * scale, 2.0 * rounding)).all())
            held = held + 1 if met else 0
            spent = space.products >= most
            asked = stop is not None and stop()
            full = space.filled >= capacity < n
            if met or spent or full or whole:
                limits = _limits(space, limits, share * delta, rounding)
            sure = held > again or whole or space.multiplied == n
            if certify and not space.shrunk and not space.drawn:
                sure = _near(wanted, limits, values, LIMIT_TOLERANCES * max(tol * scale, rounding))
            if spent or (met and sure):
                break
            if asked:
                if space.filled * n * item > SAVED:
                    limits = _limits(space, limits, share * delta, rounding)
                    _shrink(space, wanted, max(SAVED // (n * item), wanted.count + 2), values, coordinates)
                told = {"share": share, "upper": limits[0], "lower": limits[1], "held": held}
                raise Unfinished({**space.state(), **told})
            if full:
                _shrink(space, wanted, (capacity + wanted.count) // 2, values, coordinates)
        if space.multiplied == space.filled:
            space.draw(seed)
        space.step()

    return _pairs(space, wanted, chosen, values, coordinates, lengths + rounding, limits, tol, confidence, met)


def _shrink(space: Space, wanted: Which, count: int, values: np.ndarray, coordinates: np.ndarray) -> None:
    """Restarts the search from its so many best vectors."""
    keep = wanted.pick(values, min(len(values), count))
    space.shrink(coordinates[:, keep], values[keep])


def check(wanted: Which, n: int, tol: float, max_products: int | None, confidence: float = 0.99) -> None:
    """Raises ValueError where what is asked of a matrix of n rows makes no sense."""
    if not tol > 0.0:
        raise ValueError(f"--tol wants a number above 0, such as 1e-3; got {tol}")
    if wanted.kind != "ends" and wanted.count > n:
        raise ValueError(f"{wanted.kind}:{wanted.count} of a matrix of {n} rows: it has no more eigenvalues")
    if max_products is not None and max_products < 1:
        raise ValueError(f"--max-products wants 1 or more; got {max_products}")
    least_component(n, confidence)


def _start(matrix: Symmetric, start: Tensor | None, noise: float, seed: int | str, block: int) -> tuple[Tensor, float]:
    """The first vectors (n, block), and the weight of the random part in the (one) vector of length one."""
    n = matrix.size
    drawn = torch.stack([chance.normal(n, "eigen start", seed, i) for i in range(block)], 1).double()
    drawn /= drawn.norm(dim=0)
    drawn = drawn.to(matrix.device)
    if start is None or not bool(start.isfinite().all()):
        return drawn, 1.0
    if start.dim() != 2 or start.shape[0] != n:
        raise ValueError(f"the start vectors have shape {tuple(start.shape)}; this matrix wants ({n}, q)")
    warm = start.to(device=matrix.device, dtype=torch.float64).sum(1)
    length = float(warm.norm())
    if length == 0.0:
        return drawn, 1.0
    mixed = noise * drawn
    mixed[:, 0] += warm / length
    return mixed, noise / float(mixed[:, 0].norm())


def _limits(space: Space, before: tuple[float, float], delta: float, rounding: float) -> tuple[float, float]:
    """The limits at this step where they are tighter than those before; from a single unshrunk run alone."""
    if delta == 0.0 or space.shrunk or space.drawn:
        return before
    alpha, beta = space.tridiagonal()
    return (
        min(before[0], upper_limit(alpha, beta, delta) + rounding),
        max(before[1], lower_limit(alpha, beta, delta) - rounding),
    )


def _near(wanted: Which, limits: tuple[float, float], values: np.ndarray, distance: float) -> bool:
    """Whether the limits of the ends that were asked for are this near."""
    above = wanted.kind == "bottom" or limits[0] - values[-1] <= distance
    below = wanted.kind == "top" or values[0] - limits[1] <= distance
    return bool(above and below)


def _pairs(
    space: Space,
    wanted: Which,
    chosen: np.ndarray,
    values: np.ndarray,
    coordinates: np.ndarray,
    errors: np.ndarray,
    limits: tuple[float, float],
    tol: float,
    confidence: float,
    met: bool,
) -> EigenPairs:
    scale = float(np.abs(values).max())
    missing = wanted.count - len(chosen)
    found, errors = values[chosen], errors[chosen]
    vectors = space.vectors(coordinates[:, chosen])
    if missing > 0:
        found = np.concatenate([found, np.full(missing, nan)])
        errors = np.concatenate([errors, np.full(missing, nan)])
        vectors = torch.cat([vectors, vectors.new_full((len(vectors), missing), nan)], 1)
    upper, lower = limits
    return EigenPairs(
        values=found,
        vectors=vectors,
        residuals=errors,
        limits=(upper if isfinite(upper) else nan, lower if isfinite(lower) else nan),
        products=space.products,
        converged=met and missing <= 0 and bool((errors <= tol * scale).all()),
        tolerance=tol,
        scale=scale,
        confidence=confidence,
    )


DENSE = 24  # up to this dimension eigsh multiplies with every unit vector instead


def eigsh(
    matrix: Symmetric,
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
            raise Unfinished
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
    first = chance.normal(n, "eigen start", seed, 0).numpy().astype(dtype)
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
