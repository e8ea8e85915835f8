"""Successive eigenvalues: the k largest or smallest of a symmetric matrix, each in its place.

A residual says that an eigenvalue is near, not which one. A search from one start sees one copy of a multiple
eigenvalue, and may pass over another that comes in late: what follows then stands one place too far out. Two things
are done about that. The search goes on until the k values have settled, besides being near. And what was found, the
columns of V (n, k), is taken out, and the largest eigenvalue of what is left is sought from a fresh random start:

    B = (1 - V V^T) A (1 - V V^T) + sigma V V^T        sigma at the other end of the spectrum

However V came about, at most k eigenvalues of A lie above the largest of B's (Courant and Fischer; Horn and Johnson,
Matrix Analysis, 4.2), and beyond B's limit none of B's lies, with the stated probability (see `limits`). Where B has
one beyond the k-th, it is taken into the search, which goes on.

Price: some 2 k products where k is large, and for the second look 10 to 30 (`benchmarks/deflation.py`). Memory: the
basis, bounded by `memory` bytes, and as much again while looking a second time. Letters: n the dimension, k as above.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.krylov_space import ROUNDING, KrylovSpace, SymmetricOperator
from lossmap.linalg.lanczos import LIMIT_TOLERANCES, SOLVERS, EigenPairs, Which, check, extremes, lanczos
from lossmap.linalg.probabilistic_bounds import least_component, lower_limit, upper_limit


def successive(
    matrix: SymmetricOperator,
    which: str,
    *,
    tol: float = 1e-3,
    confidence: float = 0.99,
    max_products: int | None = None,
    memory: int = 1 << 30,
    seed: int | str = 0,
) -> EigenPairs:
    """The eigenpairs `top:k` or `bottom:k`, and a limit on all others.

    tol           relative to max(abs(eigenvalue)): of every residual, and of every place
    max_products  spends no more; None: 10 n. Where it does not suffice, `converged` is False
    memory        bytes for the basis; when it is full, the search is restarted from its best vectors

    Raises ValueError for what makes no sense, FloatingPointError where a product is not finite.
    """
    wanted = Which.parse(which)
    if wanted.kind not in ("top", "bottom"):
        raise ValueError(f"successive eigenvalues are top:k or bottom:k; got {which!r}")
    check(wanted, matrix.size, tol, max_products, confidence)
    if wanted.count == 1:
        told = {"tol": tol, "confidence": confidence, "max_products": max_products, "memory": memory}
        return lanczos(matrix, which, certify=True, seed=seed, **told)  # type: ignore[arg-type]
    search = _Search(matrix, wanted, tol, confidence, max_products, memory, seed)
    sign, other = 1.0 if wanted.kind == "top" else -1.0, nan
    while search.settle():
        if search.whole:
            other = sign * search.next
            break
        left = search.second_look(seed)
        last, slack = search.values[search.chosen[-1]], search.slack
        other = sign * left.limits[0 if sign > 0 else 1]
        if not isfinite(other) or sign * left.values[0] <= sign * last + slack:
            search.met &= isfinite(other) and other <= sign * last + (1.0 + LIMIT_TOLERANCES) * slack
            break
        other = nan
        for value, vector in zip(left.values, left.vectors.unbind(1), strict=True):
            if sign * value > sign * last:
                search.space.append(vector.double())
    return search.found(sign * other)


def successive_eigenpairs(matrix: SymmetricOperator, which: str, *, solver: str = "auto", **told: Any) -> EigenPairs:
    """`top:k` or `bottom:k` by the named solver: `successive`, or SciPy's eigsh, which tells no limits."""
    if solver == "eigsh":
        return extremes(matrix, which, solver=solver, **told)
    if solver not in SOLVERS:
        raise ValueError(f"--solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    return successive(matrix, which, **told)


@dataclass(frozen=True, eq=False)
class Remaining:
    """What is left of a matrix when some directions are taken out; those get the eigenvalue `sigma`.

    taken  (n, k) orthonormal but for rounding, in the matrix's precision
    """

    matrix: SymmetricOperator
    taken: Tensor
    sigma: float

    @property
    def size(self) -> int:
        """The dimension n."""
        return self.matrix.size

    @property
    def dtype(self) -> torch.dtype:
        """The whole matrix's precision."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are made."""
        return self.matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,)."""
        inside = self.inside(v.double())
        outside = v.double() - inside
        image = (self.matrix @ outside.to(v.dtype)).double()
        return (image - self.inside(image) + self.sigma * inside).to(v.dtype)

    def inside(self, v: Tensor) -> Tensor:
        """The part of a float64 vector in the directions taken out, (n,); no copy of all of them is made."""
        part = torch.zeros_like(v)
        for column in self.taken.unbind(1):
            double = column.double()
            part += (double @ v) * double
        return part


class _Search:
    """The search space while it grows from one start, and from what was passed over. Not a result."""

    def __init__(
        self,
        matrix: SymmetricOperator,
        wanted: Which,
        tol: float,
        confidence: float,
        max_products: int | None,
        memory: int,
        seed: int | str,
    ) -> None:
        n, item = matrix.size, torch.finfo(matrix.dtype).bits // 8
        self.matrix, self.wanted, self.tol, self.confidence, self.memory = matrix, wanted, tol, confidence, memory
        self.capacity = min(n, max(memory // (n * item), 2 * wanted.count + 16))
        start = seeding.normal(n, "eigen start", seed, 0).double()
        self.space = KrylovSpace(matrix, (start / start.norm())[:, None].to(matrix.device), self.capacity)
        self.delta = least_component(n, confidence)
        self.most = 10 * n if max_products is None else max_products
        self.spent = 0  # products of second looks
        self.looks = 0
        self.limits = (inf, -inf)
        self.met = False
        self.values = self.lengths = self.coordinates = np.zeros(0)
        self.chosen = np.zeros(0, dtype=int)

    @property
    def products(self) -> int:
        """All products so far."""
        return self.space.products + self.spent

    @property
    def scale(self) -> float:
        """max(abs(value)) as far as it was seen."""
        return float(np.abs(self.values).max())

    @property
    def rounding(self) -> float:
        """The allowance for rounding in the products."""
        return ROUNDING * self.space.epsilon * self.scale

    @property
    def slack(self) -> float:
        """What counts as near: the tolerance, no less than rounding allows."""
        return max(self.tol * self.scale, 2.0 * self.rounding)

    @property
    def whole(self) -> bool:
        """Whether all n eigenvalues are known."""
        return self.space.multiplied == self.matrix.size

    @property
    def next(self) -> float:
        """The eigenvalue behind the wanted ones where all are known, with its allowance; NaN where there is none."""
        if self.wanted.count == self.matrix.size:
            return nan
        at = -1 - self.wanted.count if self.wanted.kind == "top" else self.wanted.count
        return float(self.values[at] + (self.rounding if self.wanted.kind == "top" else -self.rounding))

    def settle(self) -> bool:
        """Goes on until the wanted values are near and do not move; False where the products did not suffice."""
        space, k, n = self.space, self.wanted.count, self.matrix.size
        seen: list[tuple[int, np.ndarray]] = []
        self.met = False
        looked = 0
        while True:
            full, spent = space.filled >= self.capacity < n, self.products >= self.most
            due = space.multiplied >= min(looked + max(1, space.multiplied // 16), n)
            if space.multiplied and (due or full or spent):
                looked = space.multiplied
                self.read()
                near = len(self.chosen) == k and bool((self.lengths[self.chosen] + self.rounding <= self.slack).all())
                before = [v for m, v in seen if m <= 0.75 * space.multiplied and len(v) == k]
                now = self.values[self.chosen]
                still = bool(before) and bool((np.abs(now - before[-1]) <= 0.5 * self.slack).all())
                seen.append((space.multiplied, now))
                self.met = near and (self.whole or (still and self.certain()))
                if self.met or spent or self.whole:
                    return self.met
                if full:
                    keep = self.wanted.pick(self.values, (self.capacity + k) // 2)
                    space.shrink(self.coordinates[:, keep], self.values[keep])
                    seen, looked = [], space.multiplied
            if space.multiplied == space.filled:  # an invariant subspace: what it hides comes from a fresh start
                space.draw("successive")
            space.step()

    def read(self) -> None:
        """Takes the Ritz values, and the limits where there is one start and the space was not shrunk."""
        space = self.space
        self.values, self.coordinates, self.lengths = space.ritz()
        self.chosen = self.wanted.pick(self.values)
        if space.shrunk or space.drawn or space.filled > space.multiplied + 1 or self.looks:
            return
        alpha, beta = space.tridiagonal()
        upper = upper_limit(alpha, beta, self.delta) + self.rounding
        lower = lower_limit(alpha, beta, self.delta) - self.rounding
        self.limits = (min(self.limits[0], upper), max(self.limits[1], lower))

    def certain(self) -> bool:
        """Whether the limit of the end is near its value, as far as it can be told."""
        if self.space.shrunk or self.space.drawn or self.looks:
            return True
        top = self.wanted.kind == "top"
        gap = self.limits[0] - self.values[-1] if top else self.values[0] - self.limits[1]
        return bool(gap <= LIMIT_TOLERANCES * self.slack)

    def second_look(self, seed: int | str) -> EigenPairs:
        """The most extreme of what is left, from a fresh start; each look asks for twice as many as the one before."""
        k, kind = self.wanted.count, self.wanted.kind
        taken = self.space.vectors(self.coordinates[:, self.chosen])
        rest = Remaining(self.matrix, taken, -self.scale if kind == "top" else self.scale)
        count = min(2**self.looks, k, self.matrix.size)
        self.looks += 1
        left = lanczos(
            rest, f"{kind}:{count}", tol=self.tol, seed=f"{seed} others {self.looks}", certify=True,
            confidence=self.confidence, max_products=max(1, self.most - self.products), memory=self.memory,
        )  # fmt: skip
        self.spent += left.products
        return left

    def found(self, others: float) -> EigenPairs:
        """The answer."""
        k, chosen = self.wanted.count, self.chosen
        missing = k - len(chosen)
        vectors = self.space.vectors(self.coordinates[:, chosen])
        upper, lower = self.limits
        return EigenPairs(
            values=np.concatenate([self.values[chosen], np.full(missing, nan)]),
            vectors=torch.cat([vectors, vectors.new_full((len(vectors), missing), nan)], 1),
            residuals=np.concatenate([self.lengths[chosen] + self.rounding, np.full(missing, nan)]),
            limits=(upper if isfinite(upper) else nan, lower if isfinite(lower) else nan),
            products=self.products,
            converged=self.met and missing == 0,
            tolerance=self.tol,
            scale=self.scale,
            confidence=self.confidence,
            others=others,
        )
