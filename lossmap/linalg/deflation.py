"""Successive eigenvalues: the k largest or smallest of a symmetric operator, each in its place.

A residual says that an eigenvalue is near, not which one. A search from one start sees one copy of a multiple
eigenvalue, and may pass over another that comes in late: what follows then stands one place too far out. Two things
are done about that. The search goes on until the k values have settled, besides being near. And what was found, the
columns of V (n, k), is taken out, and the largest eigenvalue of what is left is sought from a fresh random start:

    B = (1 - V V^T) A (1 - V V^T) + sigma V V^T        sigma at the other end of the spectrum

However V came about, at most k eigenvalues of A lie above the largest of B's (Courant and Fischer; Horn and Johnson,
Matrix Analysis (2013), 4.2), and beyond B's limit none of B's lies, with the stated probability (see
`probabilistic_bounds`). Where B has one beyond the k-th, it is taken into the search, which goes on.

Price: some 2 k products where k is large, and for the second search 10 to 30 (`benchmarks/deflation.py`). Memory: the
basis, bounded by `memory` bytes, and as much again in the second search. Symbols: n the dimension, k as above.
"""

from __future__ import annotations

from math import isfinite, nan

import numpy as np

from lossmap import seeding
from lossmap.linalg.eigenpairs import EigenPairs, Which, check_eigenvalue_request
from lossmap.linalg.krylov_space import KrylovSpace, RitzPairs, basis_capacity
from lossmap.linalg.lanczos import lanczos, restart
from lossmap.linalg.operator import Rounding, SymmetricOperator, deflated
from lossmap.linalg.probabilistic_bounds import least_component
from lossmap.linalg.solvers import check_solver, extremes, repeated_in_float64
from lossmap.linalg.stopping import MAX_LIMIT_GAP, Criteria, Search, decide, not_contradicted, without_history

READING_SHARE = 16  # Ritz values are computed where the space has grown by one part in so many since the last time


def successive_eigenpairs(
    operator: SymmetricOperator,
    which: str,
    *,
    solver: str = "auto",
    tol: float = 1e-3,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    seed: int | str = 0,
) -> EigenPairs:
    """`top:k` or `bottom:k` by the solver of that name.

    solver  auto or lanczos: `successive`, whose arguments the others are, made as `repeated_in_float64` says; eigsh:
            SciPy's, whose copies `solvers.extremes` counts; without limits and confidence

    Raises ValueError for an unknown solver, and what the solver raises.
    """
    check_solver(solver)
    if solver == "eigsh":
        return extremes(operator, which, solver=solver, tol=tol, seed=seed, max_products=max_products, memory=memory)

    def search(products_of: SymmetricOperator) -> EigenPairs:
        return successive(
            products_of, which, tol=tol, confidence=confidence, max_products=max_products, memory=memory, seed=seed
        )

    return repeated_in_float64(search, operator)


def successive(
    operator: SymmetricOperator,
    which: str,
    *,
    tol: float = 1e-3,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    seed: int | str = 0,
) -> EigenPairs:
    """The eigenpairs `top:k` or `bottom:k`, and a limit on all others.

    operator      A (n, n), symmetric
    which         top:k or bottom:k
    tol           relative to the largest absolute eigenvalue: of every residual, and of every place
    confidence    of the limits, a probability
    max_products  spends no more; None: 10 n. Where it does not suffice, `converged` is False
    memory        bytes for the basis; when it is full, the search is restarted from its best vectors
    seed          of the random starts

    Raises ValueError for arguments out of range, FloatingPointError where a product is not finite, or where the whole
    space was used and the products turn out not to be symmetric.
    """
    request = Which.parse(which)
    if request.kind not in ("top", "bottom"):
        raise ValueError(f"successive eigenvalues must be top:k or bottom:k; got {which!r}")
    check_eigenvalue_request(request, operator.size, tol, max_products, confidence)
    if request.count == 1:  # the extreme one has no place to miss: its limit alone says what lies beyond
        return lanczos(
            operator,
            which,
            certify=True,
            seed=seed,
            tol=tol,
            confidence=confidence,
            max_products=max_products,
            memory=memory,
        )
    return SuccessiveSearch(operator, request, tol, confidence, max_products, memory, seed).run()


class SuccessiveSearch:
    """The search while it grows from one start, and from what was passed over: a working state, not a result.

    `settle` and `second_search` take turns until nothing is left beyond the k-th value.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        request: Which,
        tol: float,
        confidence: float,
        max_products: int | None,
        memory: int,
        seed: int | str,
    ) -> None:
        n = operator.size
        self.operator, self.memory, self.confidence, self.seed = operator, memory, confidence, seed
        start = seeding.normal(n, "eigen start", seed, 0).double()
        capacity = basis_capacity(operator, memory, 2 * request.count + 16)
        self.space = KrylovSpace(operator, (start / start.norm())[:, None].to(operator.device), capacity)
        self.criteria = Criteria(
            request=request,
            tolerance=tol,
            rounding=Rounding.of(operator),
            max_products=10 * n if max_products is None else max_products,
            component=least_component(n, confidence),
            certify=True,  # nothing may be missed beyond the first value: the others are counted from it
            track_limits=True,  # its readings are few
            seek_copies=True,
        )
        self.search = Search()
        self.ritz = RitzPairs(np.zeros(0), np.zeros((0, 0)), np.zeros(0))
        # Products on the deflated operator are products with A too, and count against the same limit.
        self.second_searches = 0
        self.second_products = 0
        self.is_converged = False

    @property
    def sign(self) -> float:
        """+1 where the largest are requested, -1 where the smallest: sign * value falls from place to place."""
        return {"top": 1.0, "bottom": -1.0}[self.criteria.request.kind]

    @property
    def products(self) -> int:
        """All products so far."""
        return self.space.products + self.second_products

    @property
    def chosen(self) -> np.ndarray:
        """Indices of the requested Ritz values, the most extreme first."""
        return self.criteria.request.pick(self.ritz.values)

    def run(self) -> EigenPairs:
        """The eigenpairs, and in `others` the limit on all that are not among them."""
        others = nan
        while self.settle():
            if self.space.is_complete:  # the next value is known itself; no bound is needed
                others = self.next_value()
                break
            remaining = self.second_search()
            last, slack = float(self.ritz.values[self.chosen[-1]]), self.criteria.slack(self.ritz)
            # The limit of B bounds all eigenvalues of A but at most k, however good the vectors taken out are.
            bound = remaining.limits[0 if self.sign > 0 else 1]
            is_beyond = self.sign * remaining.values[0] > self.sign * last + slack
            if not (isfinite(bound) and is_beyond):
                # Nothing of what is left lies beyond the last place; it is proven where the bound is near, too.
                gap = self.sign * (bound - last)
                self.is_converged = isfinite(bound) and gap <= (1.0 + MAX_LIMIT_GAP) * slack + self.criteria.kinks(
                    self.ritz
                )
                others = bound
                break
            self.take_in(remaining, last)
        return self.result(others)

    def settle(self) -> bool:
        """Goes on until the requested values are near and do not move; False where the products did not suffice."""
        space, request = self.space, self.criteria.request
        # Vectors that were joined have changed the values: the history from before them proves nothing.
        self.search, self.is_converged = without_history(self.search), False
        last_reading = 0
        while True:
            # The Ritz values of j vectors cost j^3: computed at every step they would outweigh the products.
            due = last_reading + max(1, space.multiplied // READING_SHARE)
            is_due = space.multiplied >= min(due, self.operator.size)
            is_spent = self.products >= self.criteria.max_products
            if space.multiplied and (is_due or is_spent or space.is_full):
                last_reading = space.multiplied
                self.read()
                if self.search.is_finished:
                    return self.is_converged
                if space.is_full:
                    restart(space, request, (space.capacity + request.count) // 2, self.ritz)
                    # What moved before says nothing of the restarted space, which counts its products anew.
                    self.search, last_reading = without_history(self.search), space.multiplied
            if space.is_invariant:  # what it hides, such as copies, comes from a fresh start
                space.draw("successive")
            space.step()

    def read(self) -> None:
        """Computes the Ritz values, and decides whether the search may stop."""
        self.ritz = self.space.ritz()
        self.search = decide(
            self.criteria,
            self.search,
            self.space,
            self.ritz,
            products=self.products,
            progress=self.space.multiplied,
        )
        self.is_converged = self.search.is_met

    def next_value(self) -> float:
        """Of a complete space, the eigenvalue behind the requested ones with its allowance; NaN where there is none."""
        k, request = self.criteria.request.count, self.criteria.request
        # The allowance is added outwards, so that the value bounds all eigenvalues that were not requested.
        order = request.pick(self.ritz.values, k + 1)
        if len(order) == k:
            return nan
        return float(self.ritz.values[order[k]] + self.sign * self.criteria.allowance(self.ritz))

    def second_search(self) -> EigenPairs:
        """The most extreme of what is left, from a fresh start; each search requests twice as many as the last."""
        request = self.criteria.request
        found = self.space.vectors(self.ritz.coordinates[:, self.chosen])
        remaining = deflated(self.operator, found, -self.sign * self.ritz.scale)
        # One is enough where nothing was passed over, the usual case; many copies would take as many rounds.
        count = min(2**self.second_searches, request.count, self.operator.size)
        self.second_searches += 1
        pairs = lanczos(
            remaining,
            f"{request.kind}:{count}",
            tol=self.criteria.tolerance,
            # A start that knows nothing of the first one: what that did not contain, this one does.
            seed=f"{self.seed} others {self.second_searches}",
            certify=True,
            confidence=self.confidence,
            max_products=max(1, self.criteria.max_products - self.products),
            memory=self.memory,
        )
        self.second_products += pairs.products
        return pairs

    def take_in(self, remaining: EigenPairs, last: float) -> None:
        """Joins to the space the vectors of all values that lie beyond the last one."""
        # Joined and not substituted: the space finds by itself which of its values they displace.
        for value, vector in zip(remaining.values, remaining.vectors.unbind(1), strict=True):
            if self.sign * value > self.sign * last:
                self.space.join(vector.double())

    def result(self, others: float) -> EigenPairs:
        """The requested eigenpairs as they stand."""
        chosen = self.chosen
        return EigenPairs.padded(
            self.criteria.request.count,
            values=self.ritz.values[chosen],
            vectors=self.space.vectors(self.ritz.coordinates[:, chosen]),
            residuals=self.ritz.lengths[chosen] + self.criteria.allowance(self.ritz),
            limits=not_contradicted(self.search.limits, self.ritz, self.criteria.allowance(self.ritz)),
            products=self.products,
            converged=self.is_converged,
            tolerance=self.criteria.tolerance,
            scale=self.ritz.scale,
            confidence=self.confidence,
            others=others,
            rounding=self.criteria.allowance(self.ritz),
        )
