"""Anybody's symmetric matrix as an operator of ours: SciPy's LinearOperators, arrays, sparse matrices, tensors.

    operator = adopted(matrix)        whatever has products: with `@`, `matvec`, or `to_scipy()` as curvlinops' has

A matrix may be declared in float64, and multiply in float32: `to_scipy()` of curvlinops declares NumPy's default dtype,
whatever that of the network. Its precision is that of its products then, by which they round.

Letters: n the dimension. Price: that of the products; two more compare the matrix with its transpose. Between NumPy and
PyTorch a vector is copied both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from lossmap.device_errors import raise_if_of_device
from lossmap.linalg.operator import SymmetricOperator
from lossmap.seeding import normal
from lossmap.sums import norm

PRODUCT = "the product of the matrix with a vector"
REAL = "biuf"  # kinds of NumPy's real numbers
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
        if v.dim() == 2:  # not by matmat, which may hold the last product in all of its columns
            return torch.stack([self(column) for column in v.unbind(1)], 1)
        # copies: the operator may write into what it is given, and its next product into the memory of this one
        image = _image(self.operator.matvec, v.detach().cpu().numpy().copy())
        return torch.from_numpy(image.astype(str(v.dtype).removeprefix("torch."))).reshape(v.shape)


def _image(product: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """What somebody's product makes of x, (n,) or (n, b), as an array of real numbers with as many entries.

    Raises ValueError where it raises, and where it gives something else.
    """
    with _named(PRODUCT):
        value = product(x)
        image = np.asarray(value)
    if image.dtype.kind not in REAL:
        what = "complex numbers" if image.dtype.kind == "c" else f"{type(value).__name__}, {image.dtype}"
        raise ValueError(f"{PRODUCT} gives {what}; it must give real numbers")
    if image.size != x.size:
        raise ValueError(f"{PRODUCT} gives {image.size:,} numbers; for {x.size:,} it must give as many")
    return image


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Inside, what somebody's matrix raises becomes a ValueError that says where, and names the error."""
    try:
        yield
    except FloatingPointError:
        raise
    except Exception as error:  # user code may raise any exception
        raise_if_of_device(error)
        if str(error).startswith(PRODUCT):  # said within SciPy's operator
            raise
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(f"{what} fails: {reason}") from error


def is_operator(value: Any) -> bool:
    """Whether a value already is an operator of ours, or looks like one."""
    return (
        isinstance(getattr(value, "size", None), int)
        and isinstance(getattr(value, "dtype", None), torch.dtype)
        and hasattr(value, "device")
        and hasattr(value, "__matmul__")
    )


def as_operator(matrix: Any, *, asymmetric: bool = False) -> SymmetricOperator:
    """An operator of ours as it is, and anything else adopted.

    asymmetric  what looks like an operator of ours is taken as it is too, whether it is symmetric or not
    """
    is_own = asymmetric or type(matrix).__module__.startswith(f"{__package__.partition('.')[0]}.")
    return matrix if is_own and is_operator(matrix) else adopted(matrix)


def adopted(matrix: Any) -> SymmetricOperator:
    """The matrix as an operator.

    Raises TypeError for what has no products, ValueError for a matrix that is not square, real and symmetric.
    """
    if isinstance(matrix, type):
        raise TypeError(f"expected an object, and {matrix.__name__} is a class: make one, {matrix.__name__}(...)")
    if is_operator(matrix):
        operator: SymmetricOperator = matrix
        _size((operator.size, operator.size))
    elif isinstance(matrix, Tensor):
        matrix = matrix.detach()
        operator = AdoptedOperator(_size(matrix.shape), _precision(matrix.dtype), matrix.device, matrix.__matmul__)
    else:
        operator = _by_scipy(matrix)
    return _checked(operator)


def _by_scipy(matrix: Any) -> AdoptedOperator:
    if callable(getattr(matrix, "to_scipy", None)):
        with _named("to_scipy() of the matrix"):
            matrix = matrix.to_scipy()
    is_array = isinstance(matrix, np.ndarray) or issparse(matrix)
    if not (is_array or isinstance(matrix, LinearOperator) or (hasattr(matrix, "shape") and hasattr(matrix, "matvec"))):
        raise TypeError(
            "expected a symmetric matrix with products (or, for spectrum, a Problem, of which lossmap.hessian(problem) "
            "is the matrix): a SciPy LinearOperator, an array, a sparse matrix, a tensor, what has to_scipy(), or "
            "shape and matvec(); wrap the products of other classes: "
            f"LinearOperator((n, n), matvec=lambda v: matrix @ v, dtype=...); got {type(matrix).__name__}"
        )
    n = _size(matrix.shape)
    operator = aslinearoperator(matrix if is_array or isinstance(matrix, LinearOperator) else _by_matvec(matrix, n))
    kind = np.dtype(operator.dtype if operator.dtype is not None else np.float64)
    if kind.kind == "c":
        raise ValueError("the matrix is complex; the spectrum of a real symmetric matrix is read here")
    if kind.kind not in REAL:
        raise ValueError(f"the matrix must hold real numbers; its dtype is {kind}")
    dtype = torch.float32 if kind == np.float32 else torch.float64
    return AdoptedOperator(n, dtype, torch.device("cpu"), _ByNumPy(operator))


def _by_matvec(matrix: Any, n: int) -> LinearOperator:
    """The operator of an object with matvec(), and perhaps matmat(), whose products are looked at before SciPy does."""
    for name in ("matvec", "matmat"):
        if not callable(getattr(matrix, name, _image)):
            raise TypeError(f"the matrix's {name} must be a function; it is {type(getattr(matrix, name)).__name__}")
    products = {name: partial(_image, getattr(matrix, name)) for name in ("matvec", "matmat") if hasattr(matrix, name)}
    dtype = getattr(matrix, "dtype", None)
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.").replace("bfloat16", "float32")
    return LinearOperator((n, n), dtype=dtype, **products)


def _size(shape: Any) -> int:
    """The n of a shape (n, n). Raises ValueError for any other."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 2 or not all(isinstance(s, Integral) for s in sizes) or sizes[0] != sizes[1] or sizes[0] < 1:
        raise ValueError(
            f"the matrix must be square, (n, n); its shape is {shape if shape is None or not sizes else sizes}"
        )
    return int(sizes[0])


def _precision(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the matrix must be in float32 or float64; it is in {str(dtype).removeprefix('torch.')}")
    return dtype


def _product(operator: SymmetricOperator, x: Tensor) -> Tensor:
    """(n,) the product with x. Raises ValueError where it fails, or is no such vector."""
    if isinstance(operator, AdoptedOperator):
        return operator @ x
    with _named(PRODUCT):
        image = operator @ x
    if not isinstance(image, Tensor) or image.shape != x.shape or image.is_complex():
        what = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{PRODUCT} gives {what}; it must give a real vector of shape ({len(x)},)")
    return image


def _checked(operator: SymmetricOperator) -> SymmetricOperator:
    """The operator, in float32 where it is one of float64 in name alone: both images of random vectors are float32.

    Raises ValueError where u . A v differs from v . A u by more than rounding, u and v random.
    """
    # thirds, so that the identity's images are no numbers of float32
    u, v = (normal(operator.size, "symmetry", name).to(operator.device, operator.dtype) / 3.0 for name in "uv")
    # copies: an operator may use its memory again
    images = [_product(operator, x).to(torch.float64, copy=True) for x in (u, v)]
    one, other = float(v.double() @ images[0]), float(u.double() @ images[1])
    both = torch.stack(images)
    if not both.isfinite().all():
        raise FloatingPointError(f"{PRODUCT} is not finite")
    if isinstance(operator, AdoptedOperator) and both.any() and torch.equal(both.float().double(), both):
        operator = replace(operator, dtype=torch.float32)
    allowed = MAX_ASYMMETRY * (norm(images[0]) * norm(v) + norm(images[1]) * norm(u))
    if abs(one - other) > allowed * float(torch.finfo(operator.dtype).eps):
        _refuse_what_is_no_matrix(operator, u, images[0])
        raise ValueError(
            f"the matrix is not symmetric: v . A u = {one:.6g} and u . A v = {other:.6g}, "
            f"{abs(one - other):.2g} apart, which is more than rounding in {str(operator.dtype).removeprefix('torch.')}"
        )
    return operator


def _refuse_what_is_no_matrix(operator: SymmetricOperator, u: Tensor, image: Tensor) -> None:
    """Raise ValueError where products do not repeat, or are not linear: asymmetry is not the reason then.

    image  the product with u, in float64
    """
    allowed = MAX_ASYMMETRY * float(torch.finfo(operator.dtype).eps) * norm(image)
    apart = norm(_product(operator, u).to(torch.float64) - image)
    if apart > allowed:
        raise ValueError(
            f"{PRODUCT} does not repeat: two with one vector differ by {apart / norm(image):.2g} of their length; "
            "draw the same random numbers in each"
        )
    apart = norm(_product(operator, 2.0 * u).to(torch.float64) - 2.0 * image)
    if apart > 2.0 * allowed:
        raise ValueError(
            f"{PRODUCT} is not linear: that with 2 u differs from twice that with u by {apart / norm(image):.2g} of "
            "its length"
        )
