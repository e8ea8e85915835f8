"""When a Krylov search for eigenvalues may stop, and beyond which limits no eigenvalue lies: one rule for all solvers.

`decide` looks at the Ritz pairs of a step and returns the state of the search after it. A search is

    near       where each requested residual, ||A x - theta x|| with its allowance for rounding, is within the slack
               max(tol |theta|max, 2 rounding): no tolerance below what rounding allows can be met
    settled    where none of several requested values moved by half the resolution, max(tol |theta|max, rounding), in
               the last quarter of the products: one that comes in late pushes all behind it out by a place, and no
               residual shows that
    certified  where the limit beyond the requested end lies within `MAX_LIMIT_GAP` resolutions of its value; known of
               a search from one start that was not restarted (see `probabilistic_bounds`)
    complete   where the whole space was used: all n eigenvalues are known, and only rounding separates them from those
               of the dense matrix. Where a residual is larger than that, the products are not symmetric

and finished where it is near and the rest holds as far as it was requested, where it is complete, or where the products
are spent. Residuals bound the distance to an eigenvalue (Parlett, The Symmetric Eigenvalue Problem (1998), 4.5).

Symbols: n the dimension, j the products in the space, theta (j,) the Ritz values. Price: for the limits two symmetric
eigenvalue problems of dimension j, as a rule at those steps alone that may be the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

import numpy as np

from lossmap.linalg.eigenpairs import Which
from lossmap.linalg.krylov_space import KrylovSpace, RitzPairs
from lossmap.linalg.operator import Rounding
from lossmap.linalg.probabilistic_bounds import lower_limit, upper_limit

MAX_LIMIT_GAP = 10.0  # how near a limit must come to its value where it is to certify it, in resolutions
SETTLED_SHARE = 0.75  # values must not have moved since this share of the products

History = tuple[tuple[int, np.ndarray], ...]  # (products, the requested values then, (m,))


@dataclass(frozen=True)
class Criteria:
    """What a search must reach.

    request       which eigenvalues
    tolerance     relative to the largest absolute Ritz value
    rounding      of the operator's products
    max_products  the search ends where so many are spent
    component     what the start's component along any eigenvector exceeds, with the confidence of the limits
    extra_steps   further steps at which the residuals must still be small: an end that comes in late shows then
    certify       whether the limits must be near as well, instead of the extra steps, where they are known
    track_limits  whether the limits are computed at every decision: tighter, and dear where that is at every step
    seek_copies   whether the search goes on beyond an invariant subspace, which holds one copy of each eigenvalue
    is_checked    whether a second search looks for what was passed over, so that values need not have settled
    """

    request: Which
    tolerance: float
    rounding: Rounding
    max_products: int
    component: float
    extra_steps: int = 0
    certify: bool = False
    track_limits: bool = False
    seek_copies: bool = False
    is_checked: bool = False

    @property
    def orders_values(self) -> bool:
        """Whether several eigenvalues of one end are requested, and this search alone puts each in its place."""
        return self.request.count > 1 and self.request.kind != "ends" and not self.is_checked

    def allowance(self, ritz: RitzPairs) -> float:
        """What rounding, and kinks, may add to a residual, in the unit of the eigenvalues."""
        return self.rounding.allowance(ritz.scale)

    def noise(self, ritz: RitzPairs) -> float:
        """What rounding alone may add: no number of products gets below it."""
        return self.rounding.noise(ritz.scale)

    def kinks(self, ritz: RitzPairs) -> float:
        """What kinks may add, which widens limits and bars and is no reason to stop or to go on."""
        return self.allowance(ritz) - self.noise(ritz)

    def slack(self, ritz: RitzPairs) -> float:
        """The largest residual that counts as near, allowance included, in the unit of the eigenvalues."""
        return max(self.tolerance * ritz.scale, 2.0 * self.noise(ritz))

    def resolution(self, ritz: RitzPairs) -> float:
        """The smallest distance that matters between values and limits, in the unit of the eigenvalues."""
        return max(self.tolerance * ritz.scale, self.noise(ritz))


@dataclass(frozen=True)
class Search:
    """The state of a search after a step.

    limits       (upper, lower), the tightest so far: beyond each no eigenvalue lies; infinite where not computed
    repeats      consecutive steps at which the search was near
    history      the requested values at former steps, where they have an order
    is_near      whether the requested residuals are within the slack
    is_met       whether, besides, all else holds that the criteria ask
    is_finished  whether the search may stop
    """

    limits: tuple[float, float] = (inf, -inf)
    repeats: int = 0
    history: History = field(default=(), repr=False)
    is_near: bool = False
    is_met: bool = False
    is_finished: bool = False

    def saved(self, count: int) -> dict[str, Any]:
        """As plain values and one array, (steps, 1 + count); the names are those of version 0.1's files."""
        rows = [[m, *np.pad(v, (0, count - len(v)), constant_values=nan)] for m, v in self.history]
        return {"upper": self.limits[0], "lower": self.limits[1], "held": self.repeats, "seen": np.array(rows)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Search:
        """The search that `saved` was taken of."""
        history = tuple((int(row[0]), row[1:][np.isfinite(row[1:])]) for row in np.asarray(state["seen"]))
        return cls((float(state["upper"]), float(state["lower"])), int(state["held"]), history)


def decide(
    criteria: Criteria, search: Search, space: KrylovSpace, ritz: RitzPairs, *, products: int, progress: int
) -> Search:
    """The state of the search after a step.

    search    the state before it
    space     the search space, and ritz its Ritz pairs
    products  spent so far, in all
    progress  the products by which it is judged whether values have settled

    Raises AsymmetricProducts where the whole space was used and the products turn out not to be symmetric.
    """
    chosen = criteria.request.pick(ritz.values)
    is_near = is_near_enough(criteria, space, ritz)
    is_spent = products >= criteria.max_products
    repeats = 0
    if is_near:
        repeats = search.repeats + 1
    # Before the limits: of products that are not symmetric nothing below would be true.
    if space.is_complete and not is_near:
        refuse_asymmetry(space, criteria.allowance(ritz))

    limits = search.limits
    may_be_last = is_near or is_spent or space.is_full or space.is_invariant
    if may_be_last or criteria.track_limits:
        limits = tightened(limits, space, criteria.component, criteria.allowance(ritz))

    # The whole space holds every eigenvalue; an invariant part of it all that this start can see.
    is_closed = space.is_complete or (space.is_invariant and not criteria.seek_copies)
    # An end that comes in late disturbs the residuals within a step or two: it is waited for.
    is_sure = is_closed or repeats > criteria.extra_steps
    # A space that was restarted or joined gives no limits to wait for: the residuals must do.
    if criteria.certify and space.is_single_run and not space.is_complete:
        gap = MAX_LIMIT_GAP * criteria.resolution(ritz) + criteria.kinks(ritz)
        is_sure = limits_are_near(criteria.request, limits, ritz.values, gap)
    history = search.history
    if criteria.orders_values:
        history = (*history, (progress, ritz.values[chosen]))
        is_sure = is_sure and (is_closed or is_settled(history, 0.5 * criteria.resolution(ritz)))
    return Search(
        limits=limits,
        repeats=repeats,
        history=history,
        is_near=is_near,
        is_met=is_near and is_sure,
        is_finished=is_spent or space.is_complete or (is_near and is_sure),
    )


def is_near_enough(criteria: Criteria, space: KrylovSpace, ritz: RitzPairs) -> bool:
    """Whether as many Ritz values as requested are there, each with a residual within the slack."""
    # Of both ends a single value is enough only where it is known to be the whole of what the start sees.
    if space.multiplied < criteria.request.count and not (space.is_invariant and criteria.request.kind == "ends"):
        return False
    chosen = criteria.request.pick(ritz.values)
    return bool((ritz.lengths[chosen] + criteria.noise(ritz) <= criteria.slack(ritz)).all())


def is_settled(history: History, distance: float) -> bool:
    """Whether no value of the last row has moved further than `distance` in the last quarter of the products."""
    products, values = history[-1]
    # Only rows of as many values count: with fewer, the places were others.
    earlier = [v for m, v in history if m <= SETTLED_SHARE * products and len(v) == len(values)]
    return bool(earlier) and bool((np.abs(values - earlier[-1]) <= distance).all())


def limits_are_near(request: Which, limits: tuple[float, float], values: np.ndarray, distance: float) -> bool:
    """Whether the limits (upper, lower) of the requested ends are within `distance` of the ascending Ritz values."""
    above = request.kind == "bottom" or limits[0] - values[-1] <= distance
    below = request.kind == "top" or values[0] - limits[1] <= distance
    return bool(above and below)


def tightened(
    limits: tuple[float, float], space: KrylovSpace, component: float, allowance: float
) -> tuple[float, float]:
    """The limits (upper, lower) at this step where they are tighter than those before.

    The bounds rest on one event, that the start has a component of at least this size, for all steps of a run: so the
    tightest of all holds with the same probability. A run that was restarted or joined gives none.
    """
    if component == 0.0 or not space.is_single_run:
        return limits
    # The bound is that of the measured matrix; the true one may differ by rounding, outwards.
    alpha, beta = space.tridiagonal()
    return (
        min(limits[0], upper_limit(alpha, beta, component) + allowance),
        max(limits[1], lower_limit(alpha, beta, component) - allowance),
    )


def not_contradicted(limits: tuple[float, float], ritz: RitzPairs, allowance: float) -> tuple[float, float]:
    """The limits (upper, lower), each moved out to the bar of the outermost Ritz value where that lies beyond it.

    A Ritz value is within the spectrum: one beyond a limit, found from another start, shows that the start of the run
    had a smaller component than the confidence allows for.
    """
    upper, lower = limits
    if len(ritz.values) and ritz.values[-1] > upper:
        upper = float(ritz.values[-1] + ritz.lengths[-1]) + allowance
    if len(ritz.values) and ritz.values[0] < lower:
        lower = float(ritz.values[0] - ritz.lengths[0]) - allowance
    return upper, lower


def without_history(search: Search) -> Search:
    """The search where its progress begins anew, as after a restart; the limits, which stay true, are kept."""
    return replace(search, history=(), repeats=0, is_near=False, is_met=False, is_finished=False)


class AsymmetricProducts(FloatingPointError):
    """The whole space was used, and the products are not those of a symmetric matrix.

    products   that were spent
    asymmetry  the spectral norm of A - A^T
    scale      the largest entry of A as the space has it
    """

    def __init__(self, text: str, products: int, asymmetry: float, scale: float) -> None:
        super().__init__(text)
        self.products, self.asymmetry, self.scale = products, asymmetry, scale


def refuse_asymmetry(space: KrylovSpace, allowance: float) -> None:
    """Raises AsymmetricProducts: in a complete space only a lack of symmetry leaves residuals beyond rounding."""
    asymmetry, scale = space.asymmetry, float(np.abs(space.projected).max(initial=0.0))
    raise AsymmetricProducts(
        f"the products are not symmetric: u.Av and v.Au differ by up to {asymmetry:.2g} for unit vectors, of which "
        f"rounding explains {allowance:.2g} (largest entry {scale:.2g}); check the operator, or use another backend "
        "for its products",
        space.products,
        asymmetry,
        scale,
    )
