"""Extreme eigenvalues of any symmetric matrix known by its products, with their error bars and their cost.

    lanczos   one Krylov space for all that is asked, both ends at once; starts warm from given vectors
    eigsh     SciPy's ARPACK: the reference, and the fallback

Both take `which`: `ends` (the largest and the smallest), `top:k`, `bottom:k`, `abs:k` (largest in absolute value), and
stop when every residual ||A x - value x|| is at most tol * max(abs(value)); of several at one end also when none has
moved in the last quarter of the products, as a residual says that an eigenvalue is near and not which one. That each is
in its place, with a probability, is what `successive` finds.

What is known of an answer, and kept apart: an eigenvalue lies within `residuals[i]` of `values[i]` (a theorem, with an
allowance of `ROUNDING` = 64 epsilons of max(abs(value)) for rounding in the products). That it is the extreme one no
number of products can prove; beyond `limits` none lies, each with the stated probability. An eigenvalue that is
multiple counts once where the start is one vector (its copies come in by rounding, late); `block` starts see so many.

Price: one product a step, 10-20 for both ends at tol 1e-3 from a cold start and about half of it from a neighbour's
vectors (`benchmarks/eigenmap.py`); memory: the basis, bounded by `memory` bytes. Letters: n the dimension, m the
eigenpairs. Sources: Lanczos (1950); the others in `krylov` and `limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.interrupt import Interrupted
from lossmap.linalg.arpack import eigsh
from lossmap.linalg.eigenpairs import EigenPairs, Which, check
from lossmap.linalg.krylov_space import ROUNDING, KrylovSpace, SymmetricOperator
from lossmap.linalg.probabilistic_bounds import least_component, lower_limit, upper_limit

__all__ = ["EigenPairs", "SymmetricOperator", "Which", "check", "eigsh", "extremes", "lanczos"]

SOLVERS = ("auto", "lanczos", "eigsh")
LIMIT_TOLERANCES = 10.0  # with `certify`, how near a limit must come to its value, in tolerances
NOISE = 0.1  # length of the random part of a warm start, beside a warm part of length one
SAVED = 1 << 28  # bytes of a search space that is left to be resumed; of a larger one its best vectors are kept


def extremes(matrix: SymmetricOperator, which: str = "ends", *, solver: str = "auto", **told: Any) -> EigenPairs:
    """The eigenpairs by the named solver, `auto` being lanczos; `told` as those two take it.

    Raises ValueError for a solver that is not there.
    """
    if solver not in SOLVERS:
        raise ValueError(f"--solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    return eigsh(matrix, which, **told) if solver == "eigsh" else lanczos(matrix, which, **told)


def lanczos(
    matrix: SymmetricOperator,
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
        space, limits, held = KrylovSpace(matrix, first, capacity), (inf, -inf), 0
        seen: list[tuple[int, np.ndarray]] = []
    else:
        space = KrylovSpace.restored(matrix, state, capacity)
        share, limits, held = float(state["share"]), (float(state["upper"]), float(state["lower"])), int(state["held"])
        seen = [(int(row[0]), row[1:][np.isfinite(row[1:])]) for row in np.asarray(state["seen"])]
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
            if wanted.count > 1 and wanted.kind != "ends":  # what comes in late pushes the others out by a place
                seen.append((space.products, values[chosen]))
                still = _settled(seen, 0.5 * max(tol * scale, rounding))
                sure = sure and (still or whole or space.multiplied == n)
            if spent or (met and sure):
                break
            if asked:
                if space.filled * n * item > SAVED:
                    limits = _limits(space, limits, share * delta, rounding)
                    _shrink(space, wanted, max(SAVED // (n * item), wanted.count + 2), values, coordinates)
                rows = [[m, *np.pad(v, (0, wanted.count - len(v)), constant_values=nan)] for m, v in seen]
                told = {"share": share, "upper": limits[0], "lower": limits[1], "held": held, "seen": np.array(rows)}
                raise Interrupted({**space.state(), **told})
            if full:
                _shrink(space, wanted, (capacity + wanted.count) // 2, values, coordinates)
        if space.multiplied == space.filled:
            space.draw(seed)
        space.step()

    return _pairs(space, wanted, chosen, values, coordinates, lengths + rounding, limits, tol, confidence, met)


def _shrink(space: KrylovSpace, wanted: Which, count: int, values: np.ndarray, coordinates: np.ndarray) -> None:
    """Restarts the search from its so many best vectors."""
    keep = wanted.pick(values, min(len(values), count))
    space.shrink(coordinates[:, keep], values[keep])


def _start(
    matrix: SymmetricOperator, start: Tensor | None, noise: float, seed: int | str, block: int
) -> tuple[Tensor, float]:
    """The first vectors (n, block), and the weight of the random part in the (one) vector of length one."""
    n = matrix.size
    drawn = torch.stack([seeding.normal(n, "eigen start", seed, i) for i in range(block)], 1).double()
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


def _limits(space: KrylovSpace, before: tuple[float, float], delta: float, rounding: float) -> tuple[float, float]:
    """The limits at this step where they are tighter than those before; from a single unshrunk run alone."""
    if delta == 0.0 or space.shrunk or space.drawn:
        return before
    alpha, beta = space.tridiagonal()
    return (
        min(before[0], upper_limit(alpha, beta, delta) + rounding),
        max(before[1], lower_limit(alpha, beta, delta) - rounding),
    )


def _settled(seen: Sequence[tuple[int, np.ndarray]], distance: float) -> bool:
    """Whether values moved no further than that in the last quarter of the products; `seen`: (products, values)."""
    products, now = seen[-1]
    before = [values for at, values in seen if at <= 0.75 * products and len(values) == len(now)]
    return bool(before) and bool((np.abs(now - before[-1]) <= distance).all())


def _near(wanted: Which, limits: tuple[float, float], values: np.ndarray, distance: float) -> bool:
    """Whether the limits of the ends that were asked for are this near."""
    above = wanted.kind == "bottom" or limits[0] - values[-1] <= distance
    below = wanted.kind == "top" or values[0] - limits[1] <= distance
    return bool(above and below)


def _pairs(
    space: KrylovSpace,
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
