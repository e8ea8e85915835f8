"""The space in which eigenvalues are sought: a basis, and the matrix as seen from it.

    V  (n, k)   orthonormal, in the matrix's precision; j <= k of its vectors have been multiplied
    H  (k, j)   V^T A V[:, :j] in float64, so that A V[:, :j] = V H but for rounding

Each step multiplies the oldest vector not yet multiplied and appends what is new in the answer. From one start that is
the Lanczos method with full reorthogonalisation; from several, the band Lanczos of Ruhe (1979), doi:10.2307/2006299;
after `shrink`, the thick restart of Wu and Simon (2000), doi:10.1137/S0895479898334605. Because H is measured whole,
they need no cases of their own, and rounding in the products shows as a lack of symmetry that enters the residuals.

Price of a step: one product, and 8 n k multiplications; dots accumulate in float64, every vector is orthogonalised
twice ("twice is enough": Giraud, Langou and Rozloznik 2005). Memory: n k numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding

CHUNK = 1 << 20  # columns converted to float64 at a time
ROUNDING = 64.0  # the allowance for rounding in products, in units of the precision's epsilon


class SymmetricOperator(Protocol):
    """A real symmetric matrix known by its products."""

    @property
    def size(self) -> int:
        """The dimension n."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the vectors it takes and gives."""

    @property
    def device(self) -> torch.device:
        """Where those vectors live."""

    def __matmul__(self, v: Tensor, /) -> Tensor: ...


class KrylovSpace:
    """The search space while it grows. Not a result: `eigen` makes frozen values of it.

    capacity  vectors that may be held at most
    start     (n, b) first vectors, not zero and linearly independent
    """

    def __init__(self, matrix: SymmetricOperator, start: Tensor, capacity: int) -> None:
        n = matrix.size
        self.matrix = matrix
        self.capacity = min(capacity, n)
        self.basis = torch.empty((min(16, self.capacity), n), dtype=matrix.dtype, device=matrix.device)
        self.filled = 0  # k
        self.multiplied = 0  # j
        self.projected = np.zeros((len(self.basis) + 1, len(self.basis)))
        self.lost = np.zeros(len(self.basis))  # lengths of what was taken for rounding and not appended
        self.products = 0
        self.shrunk = False
        self.drawn = 0
        for column in start.unbind(1):
            self.append(column.to(device=matrix.device, dtype=torch.float64))

    @property
    def epsilon(self) -> float:
        """The rounding of the matrix's precision."""
        return float(torch.finfo(self.matrix.dtype).eps)

    def append(self, vector: Tensor) -> float:
        """Takes in what is new in a vector, (n,); returns its length, 0 where nothing is."""
        before = float(vector.norm())
        rest, _ = self._new_part(vector)
        length = float(rest.norm())
        if length <= 16 * self.epsilon * before or self.filled == self.capacity:
            return 0.0
        self._room()
        self.basis[self.filled] = rest / length
        self.filled += 1
        return length

    def draw(self, *purpose: str | int) -> None:
        """Appends a random vector, orthogonal to the basis: the way on out of an invariant subspace."""
        self.drawn += 1
        self.append(seeding.normal(self.matrix.size, *purpose, "again", self.drawn).to(self.matrix.device).double())

    def step(self) -> None:
        """Multiplies the next vector. Raises FloatingPointError where the product is not finite."""
        j = self.multiplied
        image = (self.matrix @ self.basis[j]).to(torch.float64)
        self.products += 1
        before = float(image.norm())
        if not np.isfinite(before):
            raise FloatingPointError(f"product {self.products} is not finite: look at the loss here first")
        rest, coefficients = self._new_part(image)
        length = float(rest.norm())
        self.projected[: self.filled, j] = coefficients
        self.multiplied += 1
        scale = max(before, float(np.abs(self.projected).max()))
        if length <= 16 * self.epsilon * scale or self.filled == self.matrix.size:
            self.lost[j] = length
            return
        self._room()
        self.basis[self.filled] = rest / length
        self.projected[self.filled, j] = length
        self.filled += 1

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values ascending (j,), their coordinates (j, j) and the lengths of their residuals (j,).

        The residuals are those of the whole measured H, its lack of symmetry included, not of its symmetric part.
        """
        k, j = self.filled, self.multiplied
        measured = self.projected[:k, :j]
        square = measured[:j]
        values, coordinates = np.linalg.eigh(0.5 * (square + square.T))
        missing = measured @ coordinates
        missing[:j] -= coordinates * values
        squares = (missing**2).sum(0) + ((self.lost[:j, None] * coordinates) ** 2).sum(0)
        return values, coordinates, np.sqrt(squares)

    def vectors(self, coordinates: np.ndarray) -> Tensor:
        """Coordinates (j, m) -> the vectors (n, m) of length one."""
        found = self._combine(coordinates)
        lengths = torch.linalg.vector_norm(found, dim=0, dtype=torch.float64)
        return found.div(lengths.to(found.dtype))

    def tridiagonal(self) -> tuple[np.ndarray, np.ndarray]:
        """alpha (j,) and beta (j,) of a run from one start that was not shrunk."""
        j = self.multiplied
        alpha, below = np.diag(self.projected)[:j].copy(), np.diag(self.projected, -1)[:j].copy()
        floor = 16 * self.epsilon * float(np.abs(self.projected).max(initial=0.0))
        return alpha, np.maximum(below, np.maximum(self.lost[:j], floor))

    def shrink(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Keeps these Ritz vectors (j, m) and the vectors not yet multiplied, and drops the rest."""
        k, j, m = self.filled, self.multiplied, len(values)
        pending = self.basis[j:k].clone()
        links = self.projected[j:k, :j] @ coordinates
        lost = np.sqrt(((self.lost[:j, None] * coordinates) ** 2).sum(0))
        kept = self._combine(coordinates)
        self.basis[:m] = kept.T
        self.basis[m : m + k - j] = pending
        self.projected[:] = 0.0
        self.projected[:m, :m] = np.diag(values)
        self.projected[m : m + k - j, :m] = links
        self.lost[:] = 0.0
        self.lost[:m] = lost
        self.filled, self.multiplied, self.shrunk = m + k - j, m, True

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later, as arrays and plain values."""
        return {
            "basis": self.basis[: self.filled].cpu().view(torch.uint8).numpy().copy(),
            "projected": self.projected[: self.filled, : self.multiplied].copy(),
            "lost": self.lost[: self.multiplied].copy(),
            "products": self.products,
            "shrunk": self.shrunk,
            "drawn": self.drawn,
        }

    @classmethod
    def restored(cls, matrix: SymmetricOperator, state: dict[str, Any], capacity: int) -> KrylovSpace:
        """The space that `state` was taken of. Raises ValueError where it belongs to another matrix."""
        space = cls(matrix, torch.empty((matrix.size, 0)), capacity)
        basis = torch.from_numpy(np.array(state["basis"], dtype=np.uint8)).view(matrix.dtype)
        if basis.dim() != 2 or basis.shape[1] != matrix.size:
            raise ValueError(
                f"the saved search space has vectors of {basis.shape[-1]} numbers; this matrix takes {matrix.size}"
            )
        for row in basis:
            space._room()
            space.basis[space.filled] = row.to(matrix.device)
            space.filled += 1
        projected = np.asarray(state["projected"], dtype=np.float64)
        space.multiplied = projected.shape[1]
        space.projected[: space.filled, : space.multiplied] = projected
        space.lost[: space.multiplied] = state["lost"]
        space.products, space.shrunk, space.drawn = int(state["products"]), bool(state["shrunk"]), int(state["drawn"])
        return space

    def _new_part(self, vector: Tensor) -> tuple[Tensor, np.ndarray]:
        """A float64 vector minus its part in the basis, and the coordinates of that part, (k,)."""
        held = self.basis[: self.filled]
        rest = vector.clone()
        total = torch.zeros(self.filled, dtype=torch.float64, device=vector.device)
        for _ in range(2):
            part = torch.zeros_like(total)
            for columns, x in zip(torch.split(held, CHUNK, 1), torch.split(rest, CHUNK), strict=True):
                part += columns.double() @ x
            for columns, x in zip(torch.split(held, CHUNK, 1), torch.split(rest, CHUNK), strict=True):
                x -= part @ columns.double()
            total += part
        return rest, total.cpu().numpy()

    def _combine(self, coordinates: np.ndarray) -> Tensor:
        """(j, m) -> (n, m) in the basis's precision, added up in float64."""
        weights = torch.from_numpy(np.ascontiguousarray(coordinates)).to(self.basis.device)
        held = self.basis[: self.multiplied]
        return torch.cat([(columns.double().T @ weights).to(held.dtype) for columns in torch.split(held, CHUNK, 1)])

    def _room(self) -> None:
        """Makes room for one more vector."""
        have = len(self.basis)
        if self.filled < have:
            return
        size = min(max(2 * have, 1), max(self.capacity, self.filled + 1))
        basis = torch.empty((size, self.matrix.size), dtype=self.basis.dtype, device=self.basis.device)
        basis[:have] = self.basis
        projected = np.zeros((size + 1, size))
        projected[: have + 1, :have] = self.projected
        self.basis, self.projected, self.lost = basis, projected, np.concatenate([self.lost, np.zeros(size - have)])
