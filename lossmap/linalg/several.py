"""Several eigenvalues of one end, or of largest absolute value, from given vectors or at random, each in its place.

A search from one start sees one copy of a multiple eigenvalue, and no residual shows that others were passed over, as
`deflation` says. So what was found, the columns of V (n, k), is taken out, and the rest is searched from a fresh random
start at right angles to them:

    B = (1 - V V^T) A (1 - V V^T) + sigma V V^T        sigma at the other end of the spectrum; of abs:k it is 0

What lies beyond the k-th value joins the first search, which goes on, until nothing more does: until the limit beyond
which B has no eigenvalue, with the stated probability, comes near the k-th value. However V came about, at most k
eigenvalues of A lie beyond that limit (Courant and Fischer; Horn and Johnson, Matrix Analysis (2013), 4.2), and none is
further than |A V - V theta| from both the values found and those of B (Weyl, 4.3).

The first search starts from given vectors as a block: that of a neighbour's eigenvectors holds its copies. Where they
have none, one vector that holds all of them is the cheaper start. The search can be left and resumed at every product.

Price: beside the first search some 6 to 20 products, and another search where copies were passed over
(`benchmarks/several.py`).
Memory: both bases, within `memory` bytes together where these hold the least that a search needs. Symbols: n the
dimension, k as above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.interrupt import Interrupted
from lossmap.linalg.eigenpairs import EigenPairs, Which, check_eigenvalue_request
from lossmap.linalg.krylov_space import KrylovSpace, RitzPairs, basis_capacity
from lossmap.linalg.lanczos import WARM_NOISE, restart, result_of, saved_state, start_vectors
from lossmap.linalg.operator import DeflatedProduct, MappedOperator, Rounding, SymmetricOperator
from lossmap.linalg.probabilistic_bounds import least_component
from lossmap.linalg.stopping import MAX_LIMIT_GAP, Criteria, Search, decide, tightened, without_history

REST = "rest_"  # what the names of the second search begin with, in a state that is saved
MAX_GAP = 0.03  # of the scale, that a limit is beyond the last place at most: of loose tolerances
MISSED_SHARE = 0.5  # of the slack, by which a value has to lie beyond the last place to belong before it
ENDS = {"top": (1.0,), "bottom": (-1.0,), "abs": (1.0, -1.0)}  # where the largest sign * value are sought


class SeveralSearch:
    """The search while it grows: a working state, not a result. Arguments as of `lanczos.lanczos`.

    start  (n, q) vectors to start from, each a start of its own; None: one at random
    spent  products that were spent on them, and are counted
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        which: str,
        *,
        tol: float = 1e-3,
        start: Tensor | None = None,
        seed: int | str = 0,
        confidence: float = 0.99,
        max_products: int | None = None,
        memory: int = 1 << 30,
        stop: Callable[[], bool] | None = None,
        state: dict[str, Any] | None = None,
        spent: int = 0,
    ) -> None:
        self.request, n = Which.parse(which), operator.size
        check_eigenvalue_request(self.request, n, tol, max_products, confidence)
        self.operator, self.seed, self.confidence, self.memory, self.stop = operator, seed, confidence, memory, stop
        count, state = self.request.count, state or {}
        rounding = Rounding.of(operator)  # measured, if need be, before start and basis take their memory
        # Room for the best vectors, as many that are pending, as many that join, and a few to make progress.
        capacity = basis_capacity(operator, memory, 3 * count + 4)
        share = 0.0  # of a block of starts no limit is known
        if "basis" in state:
            self.space, self.search = KrylovSpace.restored(operator, state, capacity), Search.restored(state)
            share = float(state["share"])
        else:
            self.search = Search()
            if start is None or start.shape[1:] == (1,) or not bool(start.isfinite().all()):
                start, share = start_vectors(operator, start, WARM_NOISE, seed, 1)
            elif start.dim() != 2 or len(start) != n:
                raise ValueError(f"the start vectors must have shape ({n}, q); got {tuple(start.shape)}")
            # Vectors of a block get no random part: what they do not contain, the second search finds.
            self.space = KrylovSpace(operator, start[:, :count], capacity)
        del start  # a copy of the weights of a large model
        self.share = share
        self.component = least_component(n, confidence)
        self.criteria = Criteria(
            request=self.request,
            tolerance=tol,
            rounding=rounding,
            max_products=10 * n if max_products is None else max_products,
            component=share * self.component,
            # Values from one start have to settle, as a crowd of them is ordered by no residual; what a block holds, or
            # what joins, is in its place at once.
            is_checked=share == 0.0 or int(state.get("checks", 0)) > 0,
        )
        self.ritz = RitzPairs(np.zeros(0), np.zeros((0, 0)), np.zeros(0))
        self.checks = int(state.get("checks", 0))  # second searches that are over
        self.due = int(state.get("due", 0))  # vectors that have to be multiplied before the values are looked at
        self.spent = int(state.get("spent", spent))  # products besides those of the space
        self.rest_state = {k.removeprefix(REST): v for k, v in state.items() if k.startswith(REST)}
        self.scale = float(state.get("scale", 0.0))  # the largest absolute value that a second search has seen
        self.is_counted = False
        self.bounds = (inf, -inf)  # beyond which what is left has no eigenvalue

    @property
    def products(self) -> int:
        """All products so far, those of a second search once it is over."""
        return self.space.products + self.spent

    def run(self) -> EigenPairs:
        """The eigenpairs, and the limits beyond which there are no others."""
        while self.grow() and self.look():
            pass
        return self.result()

    def grow(self) -> bool:
        """Goes on until the requested values are near; whether something may have been passed over, to be looked for.

        Raises Interrupted where `stop` says so.
        """
        space = self.space
        while True:
            if space.multiplied:
                self.ritz = replace(space.ritz(), seen=self.scale)
                if space.multiplied >= self.due or self.products >= self.criteria.max_products:
                    before = self.search
                    self.search = decide(
                        self.criteria, before, space, self.ritz, products=self.products, progress=space.products
                    )
                    if self.search.is_finished:
                        self.is_counted = space.is_complete and self.search.is_near
                        is_spent = self.products >= self.criteria.max_products
                        return self.search.is_met and not self.is_counted and not is_spent
                if self.stop is not None and self.stop():
                    raise Interrupted(self.state())
                if space.is_full:
                    pending = space.filled - space.multiplied
                    self.make_room((space.capacity - pending + self.request.count) // 2)
            if space.is_invariant:
                space.draw(self.seed)
            space.step()

    def make_room(self, count: int) -> None:
        """Restarts the space from its `count` best vectors; those that are not multiplied stay."""
        filled = self.space.filled
        restart(self.space, self.request, count, self.ritz)
        self.due = max(0, self.due + self.space.filled - filled)

    def look(self) -> bool:
        """Looks at what is left; whether something lies beyond the last place, which then joins the space."""
        ritz, space, request = self.ritz, self.space, self.request
        found = space.vectors(ritz.coordinates[:, request.pick(ritz.values)])
        sigma = 0.0 if request.kind == "abs" else -ENDS[request.kind][0] * ritz.scale
        product = DeflatedProduct(found, sigma)
        used = space.filled * self.operator.size * torch.finfo(self.operator.dtype).bits // 8
        rest = self.rest(MappedOperator(self.operator, product), product, max(0, self.memory - used))
        bounds = float(self.rest_state.pop("upper", inf)), float(self.rest_state.pop("lower", -inf))
        repeats = int(self.rest_state.pop("repeats", 0))
        self.rest_state = {}
        while True:
            if rest.multiplied:
                seen = replace(rest.ritz(), seen=ritz.scale)
                before = (bounds, repeats)
                bounds = tightened(bounds, rest, self.component, self.criteria.allowance(seen))
                beyond = self.beyond(seen)
                outer = beyond if beyond.size else self.ends_of(seen.values)
                slack, noise = self.criteria.slack(seen), self.criteria.noise(seen)
                is_near = bool((seen.lengths[outer] + noise <= slack).all())
                repeats = repeats + 1 if is_near else 0
                if beyond.size and is_near:
                    vectors = rest.vectors(seen.coordinates[:, beyond])
                    self.end_check(rest, seen)
                    self.take_in(vectors)
                    return True
                if not beyond.size and (rest.is_complete or self.is_excluded(bounds, seen, repeats)):
                    self.is_counted, self.bounds = True, bounds
                    self.end_check(rest, seen)
                    return False
                # Without a limit, as of a space that memory made begin anew, the residuals have to do.
                if not beyond.size and not rest.is_single_run and repeats > 2:
                    self.is_counted = True
                    self.end_check(rest, seen)
                    return False
                if self.products + rest.products >= self.criteria.max_products:
                    self.end_check(rest, seen)
                    return False
                if self.stop is not None and self.stop():
                    raise Interrupted(self.state(rest, *before))
                if rest.is_full:
                    # of abs both ends are asked for, however small one of them is
                    kept = Which.parse("ends") if request.kind == "abs" else request
                    restart(rest, kept, (rest.capacity + len(outer)) // 2, seen)
            if rest.is_invariant:
                rest.draw(f"{self.seed} others {self.checks}")
            rest.step()

    def rest(self, remaining: MappedOperator, product: DeflatedProduct, memory: int) -> KrylovSpace:
        """The space of the second search: as it was left, or from a start that knows nothing of the first."""
        n, count = remaining.size, self.request.count
        capacity = basis_capacity(remaining, memory, 2 * count + 6)
        if self.rest_state:
            return KrylovSpace.restored(remaining, self.rest_state, capacity)
        start = seeding.normal(n, "eigen start", f"{self.seed} others {self.checks}", 0).double().to(remaining.device)
        # At right angles to V the start has a component along each eigenvector of B that is no smaller.
        return KrylovSpace(remaining, (start - product.projection(start))[:, None], capacity)

    def beyond(self, seen: RitzPairs) -> np.ndarray:
        """Indices of what was seen of those that belong before the last place, at most k, the outermost first."""
        values, last = seen.values, float(self.ritz.values[self.request.pick(self.ritz.values)[-1]])
        if self.request.kind == "abs":
            sizes, least = np.abs(values), abs(last)
        else:
            sign = ENDS[self.request.kind][0]
            sizes, least = sign * values, sign * last
        picked = self.request.pick(values)
        outside: np.ndarray = picked[sizes[picked] > least + MISSED_SHARE * self.criteria.slack(seen)]
        return outside

    def ends_of(self, values: np.ndarray) -> np.ndarray:
        """Indices into ascending values of those at the ends where eigenvalues are requested."""
        return np.unique([len(values) - 1 if sign > 0 else 0 for sign in ENDS[self.request.kind]])

    def is_excluded(self, bounds: tuple[float, float], seen: RitzPairs, repeats: int) -> bool:
        """Whether the bounds (upper, lower) of what is left are within the slack of the last place, or near to it.

        The latter counts where the outermost value of what is left, which is not beyond it, is known: of `repeats`.
        """
        last = float(self.ritz.values[self.request.pick(self.ritz.values)[-1]])
        gap = MISSED_SHARE * self.criteria.slack(seen) + self.criteria.kinks(seen)
        if repeats > 1:
            resolution = self.criteria.resolution(seen)
            gap += max(resolution, min(MAX_LIMIT_GAP * resolution, MAX_GAP * seen.scale))
        if self.request.kind == "abs":
            return max(bounds[0], -bounds[1]) <= abs(last) + gap
        sign = ENDS[self.request.kind][0]
        return sign * bounds[0 if sign > 0 else 1] <= sign * last + gap

    def end_check(self, rest: KrylovSpace, seen: RitzPairs) -> None:
        """Counts the second search, which is over."""
        self.scale = seen.scale
        self.spent += rest.products
        self.checks += 1

    def take_in(self, vectors: Tensor) -> None:
        """Joins vectors (n, m) to the space: it finds by itself which of its values they displace."""
        if self.space.filled + vectors.shape[1] >= self.space.capacity:
            self.make_room(self.request.count)
        for vector in vectors.unbind(1):
            self.space.join(vector.double())
        self.due = self.space.filled
        self.criteria = replace(self.criteria, is_checked=True)
        self.search = without_history(self.search)

    def state(
        self, rest: KrylovSpace | None = None, bounds: tuple[float, float] = (inf, -inf), repeats: int = 0
    ) -> dict[str, Any]:
        """What resumes the search, as arrays and plain values."""
        filled = self.space.filled
        state = saved_state(self.criteria, self.search, self.space, self.ritz) | {"share": self.share}
        due = max(0, self.due + self.space.filled - filled)
        state |= {"checks": self.checks, "due": due, "spent": self.spent, "scale": self.scale}
        if rest is not None:
            inner = rest.state() | {"upper": bounds[0], "lower": bounds[1], "repeats": repeats}
            state |= {REST + name: value for name, value in inner.items()}
        return state

    def result(self) -> EigenPairs:
        """The requested eigenpairs as they stand."""
        self.ritz = replace(self.ritz, seen=self.scale)
        pairs = result_of(self.criteria, self.search, self.space, self.ritz, self.confidence)
        pairs = replace(pairs, products=self.products, converged=pairs.converged and self.is_counted)
        if not self.is_counted or not isfinite(pairs.residuals.sum()):
            return pairs
        allowance, values = self.criteria.allowance(self.ritz), self.ritz.values
        if self.space.is_complete:  # every eigenvalue is known
            return replace(pairs, limits=(float(values[-1]) + allowance, float(values[0]) - allowance))
        # The bar of all values together: no eigenvalue is further from these and from those of what is left.
        error = float(np.linalg.norm(pairs.residuals))
        limits, others = list(pairs.limits), nan
        for sign in ENDS[self.request.kind]:
            place = 0 if sign > 0 else 1
            bound = self.bounds[place]
            if isfinite(bound):
                limits[place] = sign * (max(sign * bound, float((sign * pairs.values).max())) + error)
                others = bound if self.request.kind != "abs" else nan
        return replace(pairs, limits=(limits[0], limits[1]), others=others)


def several(operator: SymmetricOperator, which: str, **options: Any) -> EigenPairs:
    """The eigenpairs `top:k`, `bottom:k` or `abs:k`, every copy counted; options as of `SeveralSearch`.

    Raises what `lanczos.lanczos` raises.
    """
    return SeveralSearch(operator, which, **options).run()
