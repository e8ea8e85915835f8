"""Symmetric operators: what a solver needs to know of a matrix that is met only through its products `A @ v`.

    SymmetricOperator  the interface: size, dtype, device and `@`
    Rounding           how far rounding in the products may move an eigenvalue: the one place where that is decided
    MappedOperator     an operator made of another one by a function of the operator and the vector
    interruptible      raises `Interrupted` before a product where the caller is to stop
    noisy              the same operator, with a rounding that was measured from without
    deflated           B = (1 - V V^T) A (1 - V V^T) + sigma V V^T

Symbols: n the dimension; A in the unit of its eigenvalues. Price: that of the inner product; `deflated` adds 8 n k
multiplications for k vectors. Source of deflation: Saad, Numerical Methods for Large Eigenvalue Problems (2011), 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from operator import matmul
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lossmap.interrupt import Interrupted
from lossmap.seeding import signs
from lossmap.sums import norm

COLUMNS_READ = 32  # columns of a matrix that the host reads from a device at once
CHECKS = 2  # products by which a matrix made of columns is compared with its operator
LARGEST, SMALLEST = 1e140, 1e-140  # of a product with a vector of length one: beyond, its squares leave float64
ROUNDING_EPSILONS = 64.0  # the allowance where rounding was not measured, in epsilons of the largest |eigenvalue|


class SymmetricOperator(Protocol):
    """A real symmetric matrix, (n, n), known by its products.

    An operator may also have attributes `rounding` and `rounding_ratio`: floats, how far rounding in its products may
    move an eigenvalue, as measured for this operator, in the unit of the eigenvalues and relative to the largest of
    them; and `kinks`, see `Rounding`.
    """

    @property
    def size(self) -> int:
        """The dimension n."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the vectors that it takes and returns."""

    @property
    def device(self) -> torch.device:
        """The device of those vectors."""

    def __matmul__(self, v: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Rounding:
    """How far rounding in the products may move an eigenvalue.

    epsilon   unit roundoff of the products' precision, `torch.finfo(dtype).eps`
    measured  the operator's own measurement, in the unit of its eigenvalues; None where there is none, and
              `ROUNDING_EPSILONS` epsilons of the largest absolute eigenvalue are assumed
    ratio     what is measured is no less than this part of the largest absolute eigenvalue
    kinks     a further part of it, for a matrix that differs by as much on the two sides of a kink: it belongs to every
              error bar, and stops no search
    """

    epsilon: float
    measured: float | None = None
    ratio: float = 0.0
    kinks: float = 0.0

    @classmethod
    def of(cls, operator: SymmetricOperator) -> Rounding:
        """The rounding of an operator: its attribute `rounding` where it has one, else by its precision."""
        epsilon = float(torch.finfo(operator.dtype).eps)
        ratio, kinks = getattr(operator, "rounding_ratio", None), getattr(operator, "kinks", 0.0)
        return cls(epsilon, getattr(operator, "rounding", None), ratio or 0.0, kinks)

    def noise(self, scale: float) -> float:
        """What rounding alone may do, in the unit of the eigenvalues, where the largest absolute one is `scale`."""
        if self.measured is not None:
            return max(self.measured, self.ratio * scale)
        return ROUNDING_EPSILONS * self.epsilon * scale

    def stored(self, scale: float) -> float | None:
        """What a value made of many products keeps in place of its operator: None where nothing was measured."""
        return self.allowance(scale) if self.kinks else self.measured

    def allowance(self, scale: float) -> float:
        """The same with what kinks may do: how far an eigenvalue may be off."""
        return self.noise(scale) + self.kinks * scale


@dataclass(frozen=True, eq=False)
class MappedOperator:
    """An operator of the same size, precision and device as another one, with a product made from it.

    inner    the operator inside
    product  (inner, v) -> the product with v, of v's shape and precision. It must keep the operator symmetric, and
             move no eigenvalue of the inner operator further than rounding does
    """

    inner: SymmetricOperator
    product: Callable[[SymmetricOperator, Tensor], Tensor]

    @property
    def size(self) -> int:
        """The dimension n."""
        return self.inner.size

    @property
    def dtype(self) -> torch.dtype:
        """The inner operator's precision."""
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        """The inner operator's device."""
        return self.inner.device

    @property
    def rounding(self) -> float | None:
        """The inner operator's measured rounding, in the unit of its eigenvalues; None where none was measured."""
        return getattr(self.inner, "rounding", None)

    @property
    def rounding_ratio(self) -> float | None:
        """The inner operator's measured rounding relative to its largest absolute eigenvalue, at least."""
        return getattr(self.inner, "rounding_ratio", None)

    @property
    def kinks(self) -> float:
        """The inner operator's, see `Rounding`."""
        share: float = getattr(self.inner, "kinks", 0.0)
        return share

    def in_float64(self) -> MappedOperator:
        """The same with float64 products. Raises AttributeError where the inner operator has no such twin."""
        inner: SymmetricOperator = self.inner.in_float64()  # type: ignore[attr-defined]
        return MappedOperator(inner, self.product)

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,)."""
        return self.product(self.inner, v)


@dataclass(frozen=True, eq=False)
class NoisyOperator(MappedOperator):
    """An operator whose rounding was measured from without, in the unit of the eigenvalues."""

    noise: float = 0.0

    @property
    def rounding(self) -> float:
        """What was measured from without, or by the inner operator where that is more."""
        return max(self.noise, getattr(self.inner, "rounding", None) or 0.0)

    @property
    def rounding_ratio(self) -> float:
        """The inner operator's, or what is assumed where it measured nothing."""
        if getattr(self.inner, "rounding", None) is None:
            return ROUNDING_EPSILONS * float(torch.finfo(self.dtype).eps)
        return getattr(self.inner, "rounding_ratio", None) or 0.0


@dataclass(frozen=True)
class InterruptibleProduct:
    """The product of `interruptible`."""

    stop: Callable[[], bool]

    def __call__(self, inner: SymmetricOperator, v: Tensor) -> Tensor:
        """The inner product with v, (n,) or (n, b). Raises Interrupted where `stop` says so."""
        if self.stop():
            raise Interrupted
        return inner @ v


@dataclass(frozen=True, eq=False)
class DeflatedProduct:
    """The product of `deflated`."""

    vectors: Tensor
    sigma: float

    def __call__(self, inner: SymmetricOperator, v: Tensor) -> Tensor:
        """((1 - V V^T) A (1 - V V^T) + sigma V V^T) v for v (n,), added up in float64."""
        inside = self.projection(v.double())
        outside = v.double() - inside
        image = (inner @ outside.to(v.dtype)).double()
        return (image - self.projection(image) + self.sigma * inside).to(v.dtype)

    def projection(self, v: Tensor) -> Tensor:
        """V V^T v for a float64 vector (n,), column by column: no float64 copy of all columns is made."""
        part = torch.zeros_like(v)
        for column in self.vectors.unbind(1):
            double = column.double()
            part += (double @ v) * double
        return part


def interruptible(operator: SymmetricOperator, stop: Callable[[], bool]) -> MappedOperator:
    """The same operator, but for asking `stop` before every product; where it is true, Interrupted is raised."""
    return MappedOperator(operator, InterruptibleProduct(stop))


def noisy(operator: SymmetricOperator, noise: float) -> NoisyOperator:
    """The same operator, whose products are known to be off by as much as `noise`, in the unit of its eigenvalues."""
    return NoisyOperator(operator, matmul, noise)


def deflated(operator: SymmetricOperator, vectors: Tensor, sigma: float) -> MappedOperator:
    """The operator with some directions taken out, which get the eigenvalue sigma instead.

    vectors  V (n, k), orthonormal but for rounding, in the operator's precision
    sigma    in the unit of the eigenvalues; at the other end of the spectrum it is out of a search's way
    """
    return MappedOperator(operator, DeflatedProduct(vectors, sigma))


def finite_product(operator: SymmetricOperator, v: Tensor, number: int | None = None) -> Tensor:
    """The product with v, (n,) -> (n,) in float64. Raises FloatingPointError where it is not finite.

    number  which product of the search it is, for the message
    """
    image = (operator @ v).to(torch.float64, copy=True)  # an operator may use its memory again
    refuse_infinite(float(image.sum()), number)
    return image


def columns_of(operator: SymmetricOperator) -> Iterator[Tensor]:
    """The columns of the matrix in order, each (n,) float64 on the host, by n products with unit vectors.

    Several are read at once, so that the host does not wait for each. Raises FloatingPointError as `finite_product`.
    """
    columns: list[Tensor] = []
    for j in range(operator.size):
        unit = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        unit[j] = 1.0
        columns.append((operator @ unit).to(torch.float64, copy=True))  # an operator may use its memory again
        if len(columns) == COLUMNS_READ or j + 1 == operator.size:
            for column in torch.stack(columns).cpu():
                refuse_infinite(float(column.sum()))
                if float(column.abs().max()) > LARGEST:
                    refuse_out_of_range(column, 1.0)
                yield column
            columns = []


def check_vectors(n: int) -> list[Tensor]:
    """The vectors of signs, (n,), by which products with unit vectors are compared with others."""
    return [signs(n, "columns", i) for i in range(CHECKS)]


def error_of_columns(operator: SymmetricOperator, images: Sequence[np.ndarray]) -> float:
    """How far a matrix made column by column is from its operator, in the Frobenius norm; by `CHECKS` products.

        |E v|^2 is |E|^2 in the mean over signs v, E the error

    A product with a unit vector may round far more than others, by which rounding is measured: where the terms of a sum
    are all alike, as those of a convolution's bias, what each loses adds up (1.3e-5 of an entry in the place of 1e-7).

    images  the matrix times each of `check_vectors`
    """
    largest = 0.0
    for v, image in zip(check_vectors(operator.size), images, strict=True):
        product = (operator @ v.to(operator.device, operator.dtype)).to("cpu", torch.float64)
        largest = max(largest, float(np.linalg.norm(image - product.numpy())))
    return largest


def refuse_out_of_range(image: Tensor, length: float) -> None:
    """Raise FloatingPointError where products are so large or small that squares of their entries leave float64.

    image   (n,) a product with a vector of this length that is like any other: random, and no eigenvector
    """
    size = norm(image) / length
    if size == 0.0 or SMALLEST <= size <= LARGEST or not isfinite(size):
        return
    power = round(log10(size))
    raise FloatingPointError(
        f"the eigenvalues are of the size of 1e{power}, whose squares are no numbers of float64: multiply the matrix, "
        f"or the loss, by 1e{-power}, and the eigenvalues found by 1e{power}"
    )


def refuse_infinite(total: float, number: int | None = None) -> None:
    """Raise FloatingPointError where the sum of a product's entries is not finite; `number` as in `finite_product`."""
    if isfinite(total):
        return
    subject = f"product {number}"
    if number is None:
        subject = "a product with the operator"
    raise FloatingPointError(f"{subject} is not finite: look at the loss here first")
