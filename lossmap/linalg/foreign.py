"""Anybody's symmetric matrix as an operator of ours: SciPy's LinearOperators, arrays, sparse matrices, tensors.

    operator = adopted(matrix)        whatever has products: with `@`, `matvec`, or `to_scipy()` as curvlinops' has

A matrix may be declared in float64, and multiply in float32: `to_scipy()` of curvlinops declares NumPy's default dtype,
whatever that of the network. Its precision is that of its products then, by which they round.

Letters: n the dimension. Price: that of the products; two more compare the matrix with its transpose. Between NumPy and
PyTorch nothing is copied on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from lossmap.linalg.operator import SymmetricOperator
from lossmap.seeding import normal
from lossmap.sums import norm

MAX_ASYMMETRY = 300.0  # unit roundoffs of u . A v, relative to |A u| |v| + |A v| |u|


@dataclass(frozen=True, eq=False)
class AdoptedOperator:
    """A matrix (n, n) by its products.

    product  tensor (n,) or (n, b) -> tensor of this shape
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    product: Callable[[Tensor], Tensor]

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) or (n, b)."""
        return self.product(v)


@dataclass(frozen=True, eq=False)
class _ByNumPy:
    """The products of a SciPy operator, for tensors."""

    operator: LinearOperator

    def __call__(self, v: Tensor) -> Tensor:
        of = self.operator.matvec if v.dim() == 1 else self.operator.matmat
        image = np.asarray(of(v.detach().cpu().numpy()), dtype=str(v.dtype).removeprefix("torch."))
        return torch.from_numpy(image).reshape(v.shape)


def is_operator(value: Any) -> bool:
    """Whether a value already is an operator of ours, or looks like one."""
    return (
        isinstance(getattr(value, "size", None), int)
        and isinstance(getattr(value, "dtype", None), torch.dtype)
        and hasattr(value, "device")
        and hasattr(value, "__matmul__")
    )


def adopted(matrix: Any) -> SymmetricOperator:
    """The matrix as an operator.

    Raises TypeError for what has no products, ValueError for a matrix that is not square, real and symmetric.
    """
    if is_operator(matrix):
        operator: SymmetricOperator = matrix
    elif isinstance(matrix, Tensor):
        matrix = matrix.detach()
        operator = AdoptedOperator(_size(matrix.shape), _precision(matrix.dtype), matrix.device, matrix.__matmul__)
    else:
        operator = _by_scipy(matrix)
    return _checked(operator)


def _by_scipy(matrix: Any) -> AdoptedOperator:
    if hasattr(matrix, "to_scipy"):
        matrix = matrix.to_scipy()
    if not _has_products(matrix):
        raise TypeError(
            "spectrum takes a Problem, or a symmetric matrix with products: a SciPy LinearOperator, an array, a sparse "
            "matrix, a tensor, what has to_scipy(), or shape and matvec(); wrap the products of other classes: "
            f"LinearOperator((n, n), matvec=lambda v: matrix @ v, dtype=...); got {type(matrix).__name__}"
        )
    n = _size(matrix.shape)
    operator = aslinearoperator(matrix)
    kind = np.dtype(operator.dtype if operator.dtype is not None else np.float64)
    if kind.kind == "c":
        raise ValueError("the matrix is complex; the spectrum of a real symmetric matrix is read here")
    dtype = torch.float32 if kind == np.float32 else torch.float64
    return AdoptedOperator(n, dtype, torch.device("cpu"), _ByNumPy(operator))


def _has_products(matrix: Any) -> bool:
    """Whether SciPy knows how to multiply by it."""
    is_array = isinstance(matrix, (np.ndarray, LinearOperator)) or issparse(matrix)
    return is_array or (hasattr(matrix, "shape") and hasattr(matrix, "matvec"))


def _size(shape: Any) -> int:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"the matrix must be square, (n, n); its shape is {tuple(shape)}")
    return int(shape[0])


def _precision(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the matrix must be in float32 or float64; it is in {str(dtype).removeprefix('torch.')}")
    return dtype


def _checked(operator: SymmetricOperator) -> SymmetricOperator:
    """The operator, in float32 where it is one of float64 in name alone: both images of random vectors are float32.

    Raises ValueError where u . A v differs from v . A u by more than rounding, u and v random.
    """
    # thirds, so that the identity's images are no numbers of float32
    u, v = (normal(operator.size, "symmetry", name).to(operator.device, operator.dtype) / 3.0 for name in "uv")
    images = [(operator @ x).double() for x in (u, v)]
    one, other = float(v.double() @ images[0]), float(u.double() @ images[1])
    both = torch.stack(images)
    if isinstance(operator, AdoptedOperator) and both.any() and torch.equal(both.float().double(), both):
        operator = replace(operator, dtype=torch.float32)
    allowed = MAX_ASYMMETRY * (norm(images[0]) * norm(v) + norm(images[1]) * norm(u))
    if abs(one - other) > allowed * float(torch.finfo(operator.dtype).eps):
        raise ValueError(
            f"the matrix is not symmetric: v . A u = {one:.6g} and u . A v = {other:.6g}, "
            f"{abs(one - other):.2g} apart, which is more than rounding in {str(operator.dtype).removeprefix('torch.')}"
        )
    return operator
