"""The spectrum of anybody's symmetric matrix, against NumPy's eigenvalues."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

import lossmap

N = 400
VALUES = np.concatenate([[-3.0, -0.5], np.linspace(0, 1, N - 5), [5.0, 8.0, 13.0]])


def matrix(dtype=np.float64):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))
    a = (q * VALUES) @ q.T
    return ((a + a.T) / 2).astype(dtype)


class ByMatvec(LinearOperator):
    """Products of vectors alone, as an operator that somebody wrote."""

    def __init__(self, a):
        super().__init__(a.dtype, a.shape)
        self.a = a

    def _matvec(self, v):
        return self.a @ v


class Foreign:
    """Of another library: with `to_scipy`."""

    def __init__(self, a):
        self.a = a

    def to_scipy(self):
        return aslinearoperator(self.a)


KINDS = {
    "array": lambda a: a,
    "sparse": scipy.sparse.csr_matrix,
    "linear operator": ByMatvec,
    "to_scipy": Foreign,
    "tensor": torch.from_numpy,
    "list of rows": lambda a: np.asarray(a.tolist()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_kind_of_matrix_has_its_eigenvalues_within_the_bars(kind, dtype):
    s = lossmap.spectrum(KINDS[kind](matrix(dtype)), top=3, bottom=2, density_error=0.1, tol=1e-4)
    truth = np.linalg.eigvalsh(matrix(dtype).astype(np.float64))
    for found, exact in ((s.top, truth[::-1]), (s.bottom, truth)):
        for value, bar, true in zip(found.values, found.residuals, exact, strict=False):
            assert abs(value - true) <= bar + 1e-12
    low, high = s.trace.interval()
    assert low <= truth.sum() <= high
    text = str(s)
    assert text.startswith("Spectrum of the matrix") and "400 rows" in text and "theta" not in text.split("cost")[0]
    assert s.unit == "1"


def test_small_matrices_are_read_whole_and_ours_are_taken():
    assert lossmap.spectrum(np.diag([3.0, 1.0, -2.0]), top=1).values.tolist() == pytest.approx([3.0, -2.0])
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
    ours = lossmap.spectrum(lossmap.hessian(problem), top=3)
    np.testing.assert_allclose(ours.values, lossmap.spectrum(problem, top=3).values, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (np.triu(np.ones((9, 9))), ValueError, "the matrix is not symmetric: v . A u = "),
        (matrix() + 1e-6 * np.triu(matrix()), ValueError, "the matrix is not symmetric"),
        (np.ones((3, 4)), ValueError, r"the matrix must be square, \(n, n\); its shape is \(3, 4\)"),
        (np.eye(3) * 1j, ValueError, "the matrix is complex"),
        (torch.eye(3).half(), ValueError, "must be in float32 or float64; it is in float16"),
        (object(), TypeError, "spectrum takes a Problem, or a symmetric matrix with products"),
        (SimpleNamespace(shape=(3, 3)), TypeError, r"wrap the products of other classes: LinearOperator\(\(n, n\)"),
        (np.ones(3), ValueError, r"the matrix must be square, \(n, n\); its shape is \(3,\)"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(value, error, said):
    with pytest.raises(error, match=said):
        lossmap.spectrum(value, top=1)


def test_symmetry_is_told_where_squares_leave_the_range():
    a = matrix()[:20, :20]
    truth = np.linalg.eigvalsh(a)[-1]
    assert lossmap.spectrum(1e-200 * a, top=1).values[0] == pytest.approx(1e-200 * truth, rel=1e-10)
    for scale in (1e-200, 1e200):
        with pytest.raises(ValueError, match="the matrix is not symmetric"):
            lossmap.spectrum(scale * (a + 0.1 * np.triu(a)), top=1)


def test_a_tensor_that_requires_a_gradient_is_taken():
    a = torch.diag(torch.tensor([3.0, 1.0, -2.0], requires_grad=True))
    assert lossmap.spectrum(a, top=1).values.tolist() == pytest.approx([3.0, -2.0])


def test_settings_of_a_problem_are_refused_beside_a_matrix():
    with pytest.raises(ValueError, match="are of a Problem: leave them out"):
        lossmap.spectrum(np.eye(3), parameters="all")
    with pytest.raises(FloatingPointError):
        lossmap.spectrum(np.diag([1.0, np.nan]), top=1)


class InFloat32(LinearOperator):
    """Of float64 in name alone, as curvlinops' `to_scipy()` of a float32 network: it multiplies in float32."""

    def __init__(self, a):
        super().__init__(np.float64, a.shape)
        self.a = a.astype(np.float32)

    def _matvec(self, v):
        return (self.a @ v.astype(np.float32)).astype(v.dtype)


@pytest.mark.parametrize("n", [40, N])
def test_an_operator_that_multiplies_in_float32_under_another_name_is_read_in_float32(n):
    a = matrix()[:n, :n]
    found = lossmap.spectrum(InFloat32(a), top=3, density_error=None, tol=1e-4)
    assert found.precision == "float32"
    truth = np.linalg.eigvalsh(a)
    assert (np.abs(found.top.values - truth[::-1][:3]) <= found.top.residuals).all()
    assert abs(found.bottom.values[0] - truth[0]) <= found.bottom.residuals[0]
    assert found.bottom.residuals[0] > 1e-7  # of float64 the bars would be 1e-14
    for own in (ByMatvec(a), ByMatvec(np.eye(n)), np.eye(n), np.zeros((n, n))):
        assert lossmap.spectrum(own, top=3, density_error=None).precision == "float64"


def with_products(matvec, shape=(4, 4)):
    """An object with a shape and products, as somebody writes one."""
    return SimpleNamespace(shape=shape, matvec=matvec)


def raising(v):
    raise RuntimeError


class Late:
    """Raises at its fifth product, when the matrix has been taken."""

    shape, calls = (400, 400), 0

    def matvec(self, v):
        self.calls += 1
        if self.calls > 4:
            raise KeyError("x")
        return 2.0 * v


class Ours:
    """As an operator of ours."""

    size, dtype, device = 4, torch.float64, torch.device("cpu")

    def __init__(self, product):
        self.product = product

    def __matmul__(self, v):
        return self.product(v)


SQUARE = r"the matrix must be square, \(n, n\); its shape is "
GIVES = "the product of the matrix with a vector gives "


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (with_products(np.copy, None), ValueError, SQUARE + "None"),
        (with_products(np.copy, 4), ValueError, SQUARE + "4"),
        (with_products(np.copy, "44"), ValueError, SQUARE + "44"),
        (with_products(np.copy, (4.0, 4.0)), ValueError, SQUARE),
        (with_products(np.copy, (0, 0)), ValueError, SQUARE),
        (Late, TypeError, r"Late is a class: make one, Late\(\.\.\.\)"),
        (Ours, TypeError, "Ours is a class"),
        (with_products(3), TypeError, "the matrix's matvec must be a function; it is int"),
        (with_products(lambda v: v[:3]), ValueError, GIVES + "3 numbers; for 4 it must give as many"),
        (with_products(lambda v: None), ValueError, GIVES + "NoneType, object; it must give real numbers"),
        (with_products(lambda v: "abc"), ValueError, GIVES + "str"),
        (with_products(lambda v: 1j * v), ValueError, GIVES + "complex numbers"),
        (LinearOperator((4, 4), lambda v: 1j * v, dtype=float), ValueError, GIVES + "complex numbers"),
        (with_products(raising), ValueError, "the product of the matrix with a vector fails: RuntimeError$"),
        (
            LinearOperator((4, 4), lambda v: v[:3], dtype=float),
            ValueError,
            "with a vector fails: ValueError: cannot resh",
        ),
        (Late(), ValueError, "the product of the matrix with a vector fails: KeyError: 'x'"),
        (SimpleNamespace(to_scipy=lambda: raising(0)), ValueError, r"to_scipy\(\) of the matrix fails: RuntimeError"),
        (np.array([[1, None], [None, 1]], dtype=object), ValueError, "must hold real numbers; its dtype is object"),
        (Ours(raising), ValueError, "the product of the matrix with a vector fails: RuntimeError"),
        (Ours(lambda v: v[:3]), ValueError, GIVES + r"torch.float64 of shape \(3,\)"),
        (Ours(lambda v: None), ValueError, GIVES + "NoneType"),
        (
            with_products(lambda v: np.nan * v),
            FloatingPointError,
            "the product of the matrix with a vector is not finite",
        ),
    ],
)
def test_what_has_no_products_as_a_matrix_has_them_is_refused_by_name(value, error, said):
    with pytest.raises(error, match=said):
        lossmap.spectrum(value)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_eigenvalue_far_below_the_tolerance_is_said_to_lie_perhaps_further_out(sign):
    """An eigenvalue is within the bar of each; whether it has the place in which it stands is another matter."""
    values = sign * np.concatenate([[1e12], np.linspace(0.0, 3.96, 999)])
    u = np.random.default_rng(0).standard_normal(1000)
    u /= np.linalg.norm(u)

    def product(v):  # of a reflection, the diagonal, and the reflection
        v = v - 2.0 * u * (u @ v)
        v = values * v
        return v - 2.0 * u * (u @ v)

    matrix = LinearOperator((1000, 1000), lambda v: product(v.ravel()), dtype=float)
    found = lossmap.spectrum(matrix, top=3, bottom=3, density_error=None)
    end = found.top if sign > 0 else found.bottom
    truth = np.sort(values)[::-1] if sign > 0 else np.sort(values)
    assert all(abs(values - v).min() <= e for v, e in zip(end.values, end.residuals, strict=True))
    line = " ".join(str(found).split())
    word = "high" if sign > 0 else "low"
    for value, error, true in list(zip(end.values, end.residuals, truth, strict=False))[1:]:
        if abs(value - true) > error:
            assert sign * true <= sign * end.others
            assert f"+- {error:.2g} (may lie as {word} as {sign * np.ceil(sign * end.others * 100) / 100:.4g}" in line
    assert f"(may lie as {word} as" in line


@pytest.mark.parametrize(("end", "word", "direction"), [("top", "high", "above"), ("bottom", "low", "below")])
def test_no_eigenvalue_is_said_to_lie_beyond_where_all_end(end, word, direction):
    """A second search that was cut short knows less of the others than is known of all."""
    found = lossmap.spectrum(np.diag([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]), top=3, bottom=3, density_error=None)
    sign = 1.0 if end == "top" else -1.0
    limits = (3.01, np.nan) if sign > 0 else (np.nan, -3.01)
    pairs = replace(getattr(found, end), limits=limits, others=sign * 76.92, confidence=0.99, converged=False)
    text = " ".join(str(replace(found, **{end: pairs})).split())
    assert "76.92" not in text and f"none {direction} {sign * 3.01:g}" in text
    assert text.count(f"(may lie as {word} as {sign * 3.01:g})") >= 2


def test_a_matrix_of_fewer_rows_than_eigenvalues_by_default_is_read_whole():
    for value in (np.array([[2.0]]), torch.tensor([[2.0]]), with_products(lambda v: 2.0 * v, (1, 1))):
        found = lossmap.spectrum(value)
        assert found.values.tolist() == [2.0] and "1 row" in str(found)
    assert lossmap.spectrum(np.diag([3.0, 1.0])).top.values.tolist() == pytest.approx([3.0, 1.0])
    with pytest.raises(ValueError, match="top 6: the matrix has 2 rows"):
        lossmap.spectrum(np.eye(2), top=6)
    model = nn.Linear(2, 1)
    problem = lossmap.Problem.supervised(model, "mse", (torch.randn(9, 2), torch.randn(9, 1)))
    assert len(lossmap.spectrum(problem).top.values) == 2
