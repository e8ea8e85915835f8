"""The space in which eigenvalues are sought: a basis, and the operator A as seen from it.

    V  (n, k)   orthonormal, in the operator's precision; j <= k of its vectors have been multiplied
    H  (k, j)   V^T A V[:, :j] in float64, so that A V[:, :j] = V H but for rounding

Each step multiplies the oldest vector not yet multiplied and appends what is new in the product. From one start that is
the Lanczos method with full reorthogonalisation (Lanczos 1950, doi:10.6028/jres.045.026); from several, the band
Lanczos method of Ruhe (1979), doi:10.2307/2006299; after `restart`, the thick restart of Wu and Simon (2000),
doi:10.1137/S0895479898334605. Because H is measured whole, they need no cases of their own, and rounding in the
products shows as a lack of symmetry that enters the residuals.

Price of a step: one product, and 8 n k multiplications; dot products accumulate in float64, every vector is
orthogonalised twice ("twice is enough": Giraud, Langou and Rozloznik (2005), doi:10.1016/j.camwa.2005.08.009).
Memory: n k numbers. Symbols: theta a Ritz value, s its coordinates in the basis, x = V s its Ritz vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.operator import SymmetricOperator, refuse_infinite, refuse_out_of_range

# Columns converted to float64 at a time: on a CPU so many that the copies stay in its cache, where they are read twice
# or three times as fast; elsewhere so many that the copies stay small beside n k.
COLUMNS_ON_CPU, COLUMNS_AT_ONCE = 1 << 14, 1 << 20
DEPENDENCE_EPSILONS = 16.0  # a remainder of at most so many epsilons of the whole vector is rounding, not a direction
MAX_DRAWS = 8  # random vectors tried before a space is said to have no outside
INITIAL_ROWS = 16  # vectors for which there is memory at first


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """The eigenpairs of the operator as seen from the space.

    values       theta (j,), ascending
    coordinates  (j, j), column i those of the vector of value i
    lengths      (j,) of the residuals A x - theta x, without an allowance for rounding
    seen         the largest absolute value that another space of the same operator has
    """

    values: np.ndarray
    coordinates: np.ndarray
    lengths: np.ndarray
    seen: float = 0.0

    @property
    def scale(self) -> float:
        """The largest absolute value."""
        return max(float(np.abs(self.values).max()), self.seen)


def basis_capacity(operator: SymmetricOperator, memory: int, minimum: int) -> int:
    """Vectors that a basis may hold within `memory` bytes: at least `minimum`, at most n."""
    bytes_per_vector = operator.size * torch.finfo(operator.dtype).bits // 8
    return min(operator.size, max(memory // bytes_per_vector, minimum))


class KrylovSpace:
    """The search space while it grows: a working state, of which solvers make frozen results.

    operator   A
    start      (n, b) first vectors, not zero and linearly independent
    capacity   most vectors that may be held

    filled         k, vectors in the basis; multiplied  j, those whose product is known
    projected      H, with room to grow
    lost           (j,) lengths of remainders that were taken for rounding and not appended
    products       operator-vector products spent
    draws          random vectors that were appended
    is_single_run  whether all vectors come from one start, without a restart: then H is tridiagonal but for rounding
    """

    def __init__(self, operator: SymmetricOperator, start: Tensor, capacity: int) -> None:
        n = operator.size
        self.operator = operator
        self.capacity = min(capacity, n)
        rows = min(INITIAL_ROWS, self.capacity)
        self.basis = torch.empty((rows, n), dtype=operator.dtype, device=operator.device)
        self.filled = 0
        self.multiplied = 0
        # One row more than columns: the last product's link to the vector that comes next.
        self.projected = np.zeros((rows + 1, rows))
        self.lost = np.zeros(rows)
        self.products = 0
        self.draws = 0
        self.is_single_run = start.shape[1] <= 1
        # In float64 and one after the other: dependent columns of a start are dropped, not normalised rounding.
        for column in start.unbind(1):
            self._append(column.to(device=operator.device, dtype=torch.float64))

    @property
    def epsilon(self) -> float:
        """The unit roundoff of the operator's precision."""
        return float(torch.finfo(self.operator.dtype).eps)

    @property
    def is_invariant(self) -> bool:
        """Whether A maps the space into itself: every vector is multiplied, and nothing new came."""
        return self.multiplied == self.filled

    @property
    def is_complete(self) -> bool:
        """Whether it is all of R^n, multiplied: nothing is left to be sought."""
        return self.multiplied == self.operator.size

    @property
    def is_full(self) -> bool:
        """Whether the memory is used up before the dimension is."""
        return self.filled >= self.capacity < self.operator.size

    @property
    def asymmetry(self) -> float:
        """The largest |u.Av - v.Au| over unit vectors of the multiplied space: the spectral norm of H - H^T."""
        square = self.projected[: self.multiplied, : self.multiplied]
        return float(np.linalg.norm(square - square.T, 2))

    def join(self, vector: Tensor) -> float:
        """Takes in what is new in a float64 vector, (n,); returns its length, 0 where nothing is."""
        # Whatever was chosen with the spectrum in view is no random start: the bounds no longer hold for the space.
        self.is_single_run = False
        return self._append(vector)

    def draw(self, *purpose: str | int) -> None:
        """Appends a random vector, orthogonal to the basis: the way on out of an invariant subspace.

        purpose  what the generator is seeded by. Raises FloatingPointError where no vector has anything new.
        """
        self.is_single_run = False
        for _ in range(MAX_DRAWS):
            self.draws += 1  # in the seed, so that a resumed search draws what it would have drawn
            vector = seeding.normal(self.operator.size, *purpose, "again", self.draws)
            if self._append(vector.to(self.operator.device).double()) > 0.0:
                return
        raise FloatingPointError(
            f"no direction outside of the {self.filled} basis vectors was found in {MAX_DRAWS} draws: the basis has "
            "lost its orthogonality"
        )

    def step(self) -> None:
        """Multiplies the next vector, of which there must be one. Raises FloatingPointError for a product that is
        not finite, or whose squares are not.

        One step of H: the coordinates of A v_j in the basis, and below them the length of what is new in it.
        """
        j = self.multiplied
        # In float64 from here on: a dot product in float32 is off by more than a residual at millions of entries.
        image = (self.operator @ self.basis[j]).double()
        if not self.products:
            refuse_out_of_range(image, 1.0)
        entries, size = image.sum(), image.norm()
        # The product is given up for its remainder, unless no conversion has made it a tensor of ours.
        remainder, part = self._remainder(image, in_place=self.operator.dtype != torch.float64)
        # All that is read of a step in one reading, for which the host waits once.
        *coefficients, total, size, length = torch.cat([part, torch.stack([entries, size, remainder.norm()])]).tolist()
        refuse_infinite(total, self.products + 1)
        self.products += 1
        self.projected[: self.filled, j] = coefficients
        self.multiplied += 1
        # A remainder of the size of rounding has a random direction: to append it would bring in ghosts. It is noted,
        # since as a part of the product it belongs to the residuals.
        scale = max(size, float(np.abs(self.projected).max()))
        if length <= DEPENDENCE_EPSILONS * self.epsilon * scale or self.filled == self.operator.size:
            self.lost[j] = length
            return
        self._reserve()
        self.basis[self.filled] = remainder.div_(length)
        self.projected[self.filled, j] = length
        self.filled += 1

    def ritz(self) -> RitzPairs:
        """The Ritz pairs, (H + H^T) / 2 s = theta s over the multiplied vectors.

        The residuals are those of the whole measured H, its lack of symmetry included: ||H s - theta s||, and what was
        lost, ||diag(lost) s||, at right angles to it.
        """
        measured = self.projected[: self.filled, : self.multiplied]
        square = measured[: self.multiplied]
        # The symmetric part, whose eigenvalues are real; what it leaves out enters the residuals below.
        values, coordinates = np.linalg.eigh(0.5 * (square + square.T))
        residuals = measured @ coordinates
        residuals[: self.multiplied] -= coordinates * values
        lost = self.lost[: self.multiplied, None] * coordinates
        return RitzPairs(values, coordinates, np.sqrt((residuals**2).sum(0) + (lost**2).sum(0)))

    def vectors(self, coordinates: np.ndarray) -> Tensor:
        """Coordinates (j, m) -> the vectors (n, m) of length one, in the operator's precision."""
        vectors = self._combine(coordinates)
        # The basis is orthonormal to its own precision only, and its combinations have length one no nearer.
        lengths = torch.linalg.vector_norm(vectors, dim=0, dtype=torch.float64)
        return vectors.div_(lengths.to(vectors.dtype))

    def tridiagonal(self) -> tuple[np.ndarray, np.ndarray]:
        """Diagonal alpha (j,) and subdiagonal beta (j,) of a single run; the last beta links to the next vector.

        No beta is below rounding: a limit made from a zero would claim more than the products can show.
        """
        j = self.multiplied
        alpha, beta = np.diag(self.projected)[:j].copy(), np.diag(self.projected, -1)[:j].copy()
        floor = DEPENDENCE_EPSILONS * self.epsilon * float(np.abs(self.projected).max(initial=0.0))
        return alpha, np.maximum(beta, np.maximum(self.lost[:j], floor))

    def restart(self, coordinates: np.ndarray, values: np.ndarray) -> None:
        """Keeps m Ritz vectors, by coordinates (j, m) and values (m,), and the vectors not yet multiplied.

        H becomes diag(values) with the links of the pending vectors below it: an arrow, whose further columns the next
        steps measure as always (thick restart).
        """
        k, j, m = self.filled, self.multiplied, len(values)
        # Vectors whose product is not known stay: the residuals of all Ritz vectors lie along them.
        pending = self.basis[j:k].clone()
        links = self.projected[j:k, :j] @ coordinates
        # What was lost lies at right angles to the basis in unknown directions: its parts add up by their squares.
        lost = np.sqrt(((self.lost[:j, None] * coordinates) ** 2).sum(0))
        weights = self._weights(coordinates)
        # in its own place: there may be no room for two
        for columns in torch.split(self.basis, self._columns_at_once, 1):
            columns[:m] = self._combined(columns[:j], weights).T
        self.basis[m : m + k - j] = pending
        self.projected[:] = 0.0
        self.projected[:m, :m] = np.diag(values)
        self.projected[m : m + k - j, :m] = links
        self.lost[:] = 0.0
        self.lost[:m] = lost
        self.filled, self.multiplied, self.is_single_run = m + k - j, m, False

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later, as arrays and plain values; the names are those of version 0.1's files."""
        return {
            "basis": self.basis[: self.filled].cpu().view(torch.uint8).numpy().copy(),
            "projected": self.projected[: self.filled, : self.multiplied].copy(),
            "lost": self.lost[: self.multiplied].copy(),
            "products": self.products,
            "shrunk": not self.is_single_run,
            "drawn": self.draws,
        }

    @classmethod
    def restored(cls, operator: SymmetricOperator, state: dict[str, Any], capacity: int) -> KrylovSpace:
        """The space that `state` was taken of. Raises ValueError where it belongs to another operator."""
        space = cls(operator, torch.empty((operator.size, 0)), capacity)
        # As bytes: the vectors go on bit by bit, and a precision that NumPy does not know is no obstacle.
        basis = torch.from_numpy(np.array(state["basis"], dtype=np.uint8)).view(operator.dtype)
        if basis.dim() != 2 or basis.shape[1] != operator.size:
            raise ValueError(
                f"the saved search space has vectors of {basis.shape[-1]} numbers; this operator takes {operator.size}"
            )
        for row in basis:
            space._reserve()
            space.basis[space.filled] = row.to(operator.device)
            space.filled += 1
        projected = np.asarray(state["projected"], dtype=np.float64)
        space.multiplied = projected.shape[1]
        space.projected[: space.filled, : space.multiplied] = projected
        space.lost[: space.multiplied] = state["lost"]
        space.products, space.draws = int(state["products"]), int(state["drawn"])
        # Version 0.1 stored restarts and draws apart; either ends a single run.
        space.is_single_run = not state["shrunk"] and space.draws == 0
        return space

    def _append(self, vector: Tensor) -> float:
        """Appends what is new in a float64 vector, (n,); returns its length, 0 where nothing is or may be appended."""
        remainder, _ = self._remainder(vector)
        length: float
        length, size = torch.stack([remainder.norm(), vector.norm()]).tolist()
        # Against the vector's own length, not the operator's: whatever its unit, it is a direction that counts.
        threshold = DEPENDENCE_EPSILONS * self.epsilon * size
        if length <= threshold or self.filled == self.capacity:
            return 0.0
        self._reserve()
        self.basis[self.filled] = remainder.div_(length)
        self.filled += 1
        return length

    def _remainder(self, vector: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
        """(1 - V V^T) v for a float64 vector (n,), and the coordinates V^T v, (k,); in place where v is given up."""
        remainder = vector if in_place else vector.clone()
        total = torch.zeros(self.filled, dtype=torch.float64, device=vector.device)
        # The first pass leaves rounding of the size of what it takes out; the second takes that out too.
        for _ in range(2):
            part = torch.zeros_like(total)
            for columns, x in self._blocks(remainder):
                part += columns.double() @ x
            for columns, x in self._blocks(remainder):
                x -= part @ columns.double()
            total += part
        return remainder, total

    def _blocks(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of columns of the basis, (k, c), with the same rows of a vector, (c,), as views."""
        basis = self.basis[: self.filled]
        count = self._columns_at_once
        return zip(torch.split(basis, count, 1), torch.split(vector, count), strict=True)

    @property
    def _columns_at_once(self) -> int:
        """Columns of the basis that are converted to float64 at a time."""
        return COLUMNS_ON_CPU if self.basis.device.type == "cpu" else COLUMNS_AT_ONCE

    def _combine(self, coordinates: np.ndarray) -> Tensor:
        """(j, m) -> (n, m) in the basis's precision, added up in float64."""
        weights = self._weights(coordinates)
        result = torch.empty((self.operator.size, weights.shape[1]), dtype=self.basis.dtype, device=self.basis.device)
        blocks = torch.split(self.basis[: self.multiplied], self._columns_at_once, 1)
        for rows, columns in zip(torch.split(result, self._columns_at_once), blocks, strict=True):
            rows.copy_(self._combined(columns, weights))
        return result

    def _weights(self, coordinates: np.ndarray) -> Tensor:
        """Coordinates as a tensor, float64."""
        return torch.from_numpy(np.ascontiguousarray(coordinates)).to(self.basis.device)

    @staticmethod
    def _combined(columns: Tensor, weights: Tensor) -> Tensor:
        """A block of columns of the basis, (j, c), times weights (j, m), added up in float64: (c, m)."""
        return (columns.double().T @ weights).to(columns.dtype)

    def _reserve(self) -> None:
        """Makes room for one more vector, doubling the memory up to the capacity; a restart needs one beyond it."""
        rows = len(self.basis)
        if self.filled < rows:
            return
        size = min(max(2 * rows, 1), max(self.capacity, self.filled + 1))
        basis = torch.empty((size, self.operator.size), dtype=self.basis.dtype, device=self.basis.device)
        basis[:rows] = self.basis
        projected = np.zeros((size + 1, size))
        projected[: rows + 1, :rows] = self.projected
        lost = np.concatenate([self.lost, np.zeros(size - rows)])
        self.basis, self.projected, self.lost = basis, projected, lost
