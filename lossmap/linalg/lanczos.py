"""Extreme eigenvalues of any symmetric operator, with their error bars and their cost.

    lanczos  one Krylov space for all that is requested, both ends at once; starts warm from given vectors

It takes `which`: `ends` (the largest and the smallest), `top:k`, `bottom:k`, `abs:k` (largest in absolute value), and
stops when every residual ||A x - theta x|| is at most tol * max(abs(theta)); `stopping` has the rules. That each of
several is in its place, with a probability, is what `several.several` and `deflation.successive` show; `solvers` calls
what suits a request.

What is known of a result, and kept apart: an eigenvalue lies within `residuals[i]` of `values[i]` (a theorem, with an
allowance for rounding in the products, see `operator.Rounding`). That it is the extreme one no number of products can
prove; beyond `limits` none lies, each with the stated probability. An eigenvalue that is multiple counts once where the
start is one vector (its copies come in by rounding, late); a block of b starts sees b copies.

Price: one product a step, 10-20 for both ends at tol 1e-3 from a cold start and about half of it from a neighbour's
vectors (`benchmarks/eigenmap.py`); memory: the basis, bounded by `memory` bytes. Symbols: n the dimension, m the
eigenpairs. Sources: Lanczos (1950), doi:10.6028/jres.045.026; the others in `krylov_space` and `probabilistic_bounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lossmap import seeding
from lossmap.interrupt import Interrupted
from lossmap.linalg.eigenpairs import EigenPairs, Which, check_eigenvalue_request
from lossmap.linalg.krylov_space import KrylovSpace, RitzPairs, basis_capacity
from lossmap.linalg.operator import Rounding, SymmetricOperator
from lossmap.linalg.probabilistic_bounds import least_component
from lossmap.linalg.stopping import Criteria, Search, decide, tightened

WARM_NOISE = 0.1  # length of the random part of a warm start, beside a warm part of length one
MAX_SAVED_BYTES = 1 << 28  # of a search space that is saved to be resumed; of a larger one its best vectors are kept


def lanczos(
    operator: SymmetricOperator,
    which: str = "ends",
    *,
    tol: float = 1e-3,
    start: Tensor | None = None,
    noise: float = WARM_NOISE,
    seed: int | str = 0,
    block: int = 1,
    extra_steps: int = 1,
    certify: bool = False,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    stop: Callable[[], bool] | None = None,
    state: dict[str, Any] | None = None,
) -> EigenPairs:
    """Extreme eigenpairs from one Krylov space with full reorthogonalisation.

    operator      A (n, n), symmetric
    which         ends, top:k, bottom:k or abs:k
    tol           relative to the largest absolute eigenvalue: of every residual
    start         (n, q) vectors to start from, such as a neighbour's extreme ones, weighted by their lengths; a random
                  part of length `noise` beside them lets what they do not contain come in. None: at random
    seed          of the random vectors
    block         number of independent starts; more than one sees multiple eigenvalues, and computes no limits
    extra_steps   further steps at which the residuals must still be small: an end that comes in late shows then
    certify       goes on until the limits, too, are within ten tolerances, instead of the extra steps
    confidence    of the limits, a probability
    max_products  the search ends where so many are spent; None: 10 n
    memory        bytes for the basis; when it is full, the search is restarted from its best vectors
    stop          called after every product; where it returns true, the search is left
    state         of an `Interrupted` that left a search with the same arguments: it goes on to the same bits

    Returns the eigenpairs, and whether they converged. A search that has used the whole space has: its values are those
    of the dense matrix to rounding.
    Raises ValueError for arguments out of range, FloatingPointError where a product is not finite, or where the whole
    space was used and the products turn out not to be symmetric; Interrupted, with the state, where `stop` says so.
    """
    request = Which.parse(which)
    n = operator.size
    check_eigenvalue_request(request, n, tol, max_products, confidence)
    # Fewer vectors than this could not hold a restart from the best ones and make progress. Where memory has room for
    # no more, it makes little of it: a product is then followed by a restart.
    capacity = basis_capacity(operator, memory, 2 * request.count + 2 + block)
    rounding = Rounding.of(operator)  # measured, if need be, before start and basis take their memory
    # A resumed search draws no start: the saved space holds it, and the saved share says how much of it was random.
    if state is None:
        vectors, random_share = start_vectors(operator, start, noise, seed, block)
        space, search = KrylovSpace(operator, vectors, capacity), Search()
        del vectors  # two copies of the weights of a large model
    else:
        space, search = KrylovSpace.restored(operator, state, capacity), Search.restored(state)
        random_share = float(state["share"])
    component = 0.0  # of a block of starts no limit is known
    if block == 1:
        component = random_share * least_component(n, confidence)
    # n products suffice in exact arithmetic; ten times as many end a search that rounding keeps from converging.
    criteria = Criteria(
        request=request,
        tolerance=tol,
        rounding=rounding,
        max_products=10 * n if max_products is None else max_products,
        component=component,
        extra_steps=extra_steps,
        certify=certify,
    )

    while True:
        if space.multiplied:  # before the first product there is nothing to decide on
            ritz = space.ritz()
            before = search
            search = decide(criteria, before, space, ritz, products=space.products, progress=space.products)
            if search.is_finished:
                return result_of(criteria, search, space, ritz, confidence)
            if stop is not None and stop():
                # The state before this step's decision: the resumed search takes the decision again, not twice.
                raise Interrupted({**saved_state(criteria, before, space, ritz), "share": random_share})
            if space.is_full:
                # Half way between what is requested and what fits: fewer forget too much, more restart too often.
                restart(space, request, (capacity + request.count) // 2, ritz)
        if space.is_invariant:  # nothing more comes from these starts: what they do not see comes from a random one
            space.draw(seed)
        # One product whatever is requested: both ends, and all k values, are read off the same space.
        space.step()


def start_vectors(
    operator: SymmetricOperator, start: Tensor | None, noise: float, seed: int | str, block: int
) -> tuple[Tensor, float]:
    """The first vectors (n, block) in float64, and the weight of the random part in the first one, at most 1.

    A component of the start along any eigenvector is at least that weight times one of a random unit vector, with at
    least the same probability: so the limits hold for warm starts too (`probabilistic_bounds`).
    Raises ValueError for start vectors of another length.
    """
    n = operator.size
    # Drawn on the CPU from what it is for, then moved: the same start on every device and rank.
    random = torch.stack([seeding.normal(n, "eigen start", seed, i) for i in range(block)], 1).double()
    random /= random.norm(dim=0)
    random = random.to(operator.device)
    # A neighbour's vectors may be NaN where its own search failed; that costs the warm start, not this point.
    if start is None or not bool(start.isfinite().all()):
        return random, 1.0
    if start.dim() != 2 or start.shape[0] != n:
        raise ValueError(f"the start vectors must have shape ({n}, q); got {tuple(start.shape)}")
    # One vector that holds all of them: a single run finds each, and keeps its limits.
    warm = start.to(device=operator.device, dtype=torch.float64).sum(1)
    # Vectors may cancel in the sum, as v and -v do: then there is nothing to start from.
    length = float(warm.norm())
    if length == 0.0:
        return random, 1.0
    # Only the first start is warm; the others of a block stay random, to see further copies.
    mixed = noise * random
    mixed[:, 0] += warm / length
    return mixed, noise / float(mixed[:, 0].norm())


def restart(space: KrylovSpace, request: Which, count: int, ritz: RitzPairs) -> None:
    """Restarts the search from its `count` best vectors, or as many as there are."""
    # Beside the requested ones further Ritz vectors stay: without them their directions are multiplied again.
    best = request.pick(ritz.values, min(len(ritz.values), count))
    space.restart(ritz.coordinates[:, best], ritz.values[best])


def saved_state(criteria: Criteria, search: Search, space: KrylovSpace, ritz: RitzPairs) -> dict[str, Any]:
    """What resumes the search, as arrays and plain values; of a space too large to save its best vectors."""
    request, operator = criteria.request, space.operator
    bytes_per_vector = operator.size * torch.finfo(operator.dtype).bits // 8
    if space.filled * bytes_per_vector > MAX_SAVED_BYTES:
        # A restarted space gives no more limits: the last ones are taken from it now.
        limits = tightened(search.limits, space, criteria.component, criteria.allowance(ritz))
        search = replace(search, limits=limits)
        restart(space, request, max(MAX_SAVED_BYTES // bytes_per_vector, request.count + 2), ritz)
    return {**space.state(), **search.saved(request.count)}


def result_of(criteria: Criteria, search: Search, space: KrylovSpace, ritz: RitzPairs, confidence: float) -> EigenPairs:
    """The requested eigenpairs of a finished search."""
    chosen = criteria.request.pick(ritz.values)
    residuals = ritz.lengths[chosen] + criteria.allowance(ritz)
    # A tolerance below rounding is met by no number of products, and said so; the whole space leaves nothing to meet.
    is_met = space.is_complete or bool((residuals <= criteria.tolerance * ritz.scale).all())
    return EigenPairs.padded(
        criteria.request.count,
        values=ritz.values[chosen],
        vectors=space.vectors(ritz.coordinates[:, chosen]),
        residuals=residuals,
        limits=search.limits,
        products=space.products,
        converged=search.is_near and is_met,
        tolerance=criteria.tolerance,
        scale=ritz.scale,
        confidence=confidence,
        rounding=criteria.allowance(ritz),
    )
