"""Extreme eigenpairs by the solver of a name: `extremes`, which starts warm and can be left.

    one of an end, or both ends   `lanczos.lanczos`: one Krylov space
    several of an end or abs:k    `several.several`: the same, and a search for the copies that it passed over
    eigsh                         SciPy's ARPACK; of several its vectors are checked for copies in the same way

`deflation.successive_eigenpairs` is the other way in, for many eigenvalues of one end from a cold start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.interrupt import Interrupted
from lossmap.linalg.arpack import MAX_DENSE_SIZE, eigsh
from lossmap.linalg.eigenpairs import EigenPairs, Which
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.operator import SymmetricOperator, noisy
from lossmap.linalg.probabilistic_bounds import NO_LIMITS
from lossmap.linalg.several import several
from lossmap.linalg.stopping import AsymmetricProducts

logger = logging.getLogger("lossmap")

SOLVERS = ("auto", "lanczos", "eigsh")
MAX_SHRUNK = 100.0  # rounding in float64 is at most so many times what the ratio of the precisions makes of float32's
NOISE_SAFETY = 10.0  # the noise seen is taken so many times, its entries being one draw


def extremes(
    operator: SymmetricOperator,
    which: str = "ends",
    *,
    solver: str = "auto",
    tol: float = 1e-3,
    start: Tensor | None = None,
    seed: int | str = 0,
    certify: bool = False,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    stop: Callable[[], bool] | None = None,
    state: dict[str, Any] | None = None,
) -> EigenPairs:
    """Extreme eigenpairs by the solver of that name, `auto` being lanczos.

    solver  auto, lanczos or eigsh; the other arguments are those of `lanczos`. Of them `eigsh` takes tol, seed,
            max_products and stop, and does without the rest: it starts cold and computes no limits

    Of two or more at one end, or of largest absolute value, every copy of a multiple eigenvalue counts: see `several`,
    of which each start vector is a start of its own, and whose places are certified whatever `certify` says. With an
    operator that has `in_float64` the search is made as `repeated_in_float64` says.

    Raises ValueError for an unknown solver, and what the solver raises.
    """
    check_solver(solver)
    request = Which.parse(which)
    options: dict[str, Any] = {"tol": tol, "seed": seed, "max_products": max_products, "stop": stop}
    if solver == "eigsh":
        return _eigsh(operator, request, which, memory=memory, confidence=confidence, state=state, **options)

    def search(products_of: SymmetricOperator) -> EigenPairs:
        left = state if products_of is operator else None
        shared: dict[str, Any] = {"start": start, "confidence": confidence, "memory": memory, "state": left, **options}
        if has_places(request):
            return several(products_of, which, **shared)
        return lanczos(products_of, which, certify=certify, **shared)

    return repeated_in_float64(search, operator)


def has_places(request: Which) -> bool:
    """Whether several eigenvalues are requested that are counted from one end, each copy of a multiple one."""
    return request.count > 1 and request.kind != "ends"


def _eigsh(
    operator: SymmetricOperator,
    request: Which,
    which: str,
    *,
    memory: int,
    confidence: float,
    state: dict[str, Any] | None,
    **options: Any,
) -> EigenPairs:
    """The eigenpairs of ARPACK; of several, which it may take one copy of, what `several` makes of them."""
    if state:  # left within the search for copies
        checked = several(operator, which, confidence=confidence, memory=memory, state=state, **options)
        return replace(checked, limits=NO_LIMITS, others=nan)
    pairs = eigsh(operator, which, **options)
    is_whole = operator.size <= max(MAX_DENSE_SIZE, request.count + 1)
    if not has_places(request) or is_whole or not bool(np.isfinite(pairs.values).all()):
        return pairs
    checked = several(
        operator,
        which,
        confidence=confidence,
        memory=memory,
        start=pairs.vectors,
        spent=pairs.products,
        **options,
    )
    return replace(checked, limits=NO_LIMITS, others=nan)


def repeated_in_float64(search: Callable[[SymmetricOperator], EigenPairs], operator: SymmetricOperator) -> EigenPairs:
    """What a search finds; begun anew with products in float64 where those in float32 are not symmetric.

    Such products may be noise, as where all terms cancel; where those in float64 are noise too, the eigenvalues are 0
    within a bar that holds it. Every rank of a team comes to the same decision, since their
    products are one sum.

    Raises what the search raises, AsymmetricProducts where products in float64 cannot be had, or are not symmetric.
    """
    try:
        return search(operator)
    except AsymmetricProducts as refusal:
        pairs = _by_float64(search, operator, refusal)
        if pairs is None:
            raise
        return pairs


def _by_float64(
    search: Callable[[SymmetricOperator], EigenPairs], operator: SymmetricOperator, refusal: AsymmetricProducts
) -> EigenPairs | None:
    """The same search with products in float64; None where they cannot be had, or are not symmetric either."""
    if operator.dtype == torch.float64 or not hasattr(operator, "in_float64"):
        return None
    spent = refusal.products
    try:
        double = operator.in_float64()
        try:
            pairs = search(double)
        except AsymmetricProducts as second:
            noise = noise_of(refusal, second)
            if noise is None:
                raise
            logger.info("products in float64 are noise too, up to %.2g", noise)
            spent += second.products
            pairs = search(noisy(double, noise))
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as failure:  # user code may raise any exception in another precision
        logger.info("the search is not repeated in float64: %s", failure)
        return None
    logger.info("products in float32 are noise here, and the search was repeated in float64: %s", refusal)
    return replace(pairs, vectors=pairs.vectors.to(operator.dtype), products=pairs.products + spent)


def noise_of(single: AsymmetricProducts, double: AsymmetricProducts) -> float | None:
    """How far rounding moves products in float64, of a matrix that is not symmetric there nor in float32.

    None where the asymmetry does not shrink by about the ratio of the precisions: then it is the operator's own. What
    shrinks so is rounding, be it the asymmetry alone or all entries, as those of a matrix that is 0.
    """
    ratio = MAX_SHRUNK * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    if not double.asymmetry <= ratio * single.asymmetry:
        return None
    if double.scale <= ratio * single.scale:
        return NOISE_SAFETY * max(double.asymmetry, double.scale)
    return NOISE_SAFETY * double.asymmetry


def check_solver(solver: str) -> None:
    """Raises ValueError for a solver that does not exist."""
    if solver not in SOLVERS:
        raise ValueError(f"--solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
