"""The spectrum of anybody's symmetric matrix, against NumPy's eigenvalues."""

from dataclasses import replace
from functools import partial
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
        (object(), TypeError, "expected a symmetric matrix with products"),
        (SimpleNamespace(shape=(3, 3)), TypeError, r"wrap the products of other classes: LinearOperator\(\(n, n\)"),
        (np.ones(3), ValueError, r"the matrix must be square, \(n, n\); its shape is \(3,\)"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(value, error, said):
    with pytest.raises(error, match=said):
        lossmap.spectrum(value, top=1)


def test_trace_density_and_eigenpairs_take_anybodys_matrix_too():
    a = matrix()
    operator = ByMatvec(a)
    trace = lossmap.trace(operator, products=100)
    assert abs(trace.value - VALUES.sum()) <= 4 * trace.error
    pairs = lossmap.eigenpairs(operator, "ends", tol=1e-6)
    np.testing.assert_allclose(pairs.values, [13.0, -3.0], rtol=1e-5)
    density = lossmap.spectral_density(operator, steps=30, probes=3)
    low, high = density.range
    assert low <= -3.0 + 1e-3 and high >= 13.0 - 1e-3
    with pytest.raises(TypeError, match=r"lossmap.hessian\(problem\) is the matrix"):
        lossmap.trace(lossmap.Problem.supervised(nn.Linear(2, 1), "mse", (torch.zeros(3, 2), torch.zeros(3, 1))))


class OperatorLike:
    """Somebody's class that has what an operator of ours has."""

    device = torch.device("cpu")

    def __init__(self, a):
        self.a, self.size, self.dtype = torch.from_numpy(a), len(a), torch.float64

    def __matmul__(self, v):
        return self.a @ v


def test_what_looks_like_an_operator_of_ours_is_asked_whether_it_is_symmetric_too():
    a = matrix()
    assert lossmap.eigenpairs(OperatorLike(a), "top:1", solver="eigsh").values[0] == pytest.approx(13.0, rel=1e-3)
    skewed = OperatorLike(a + 0.1 * np.triu(a))
    for read in (lossmap.spectral_density, partial(lossmap.eigenpairs, which="top:2", solver="eigsh")):
        with pytest.raises(ValueError, match="the matrix is not symmetric"):
            read(skewed)


def test_products_that_do_not_repeat_or_are_not_linear_are_named_as_such():
    a, chance = matrix(), np.random.default_rng(0)
    noisy = LinearOperator(a.shape, matvec=lambda v: a @ v + 1e-4 * chance.normal(size=v.shape), dtype=float)
    with pytest.raises(ValueError, match="the product of the matrix with a vector does not repeat: two with one"):
        lossmap.spectrum(noisy, top=1)
    with pytest.raises(ValueError, match="the product of the matrix with a vector is not linear: that with 2 u"):
        lossmap.spectrum(LinearOperator(a.shape, matvec=lambda v: a @ v + 1.0, dtype=float), top=1)


def test_a_matrix_with_a_dtype_of_pytorch_multiplies_arrays_too():
    a = matrix()
    typed = SimpleNamespace(shape=a.shape, dtype=torch.float64, matvec=lambda v: a @ v)
    assert lossmap.eigenpairs(typed, "top:1").values[0] == pytest.approx(13.0, rel=1e-3)


def test_symmetry_is_told_where_squares_leave_the_range():
    a = matrix()[:20, :20]
    truth = np.linalg.eigvalsh(a)[-1]
    assert lossmap.spectrum(1e-200 * a, top=1).values[0] == pytest.approx(1e-200 * truth, rel=1e-10)
    for scale in (1e-200, 1e200):
        with pytest.raises(ValueError, match="the matrix is not symmetric"):
            lossmap.spectrum(scale * (a + 0.1 * np.triu(a)), top=1)


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize("power", [-300, -200, 200, 300])
def test_eigenvalues_whose_squares_leave_the_range_are_refused_by_name(power, solver):
    said = f"multiply the matrix, or the loss, by 1e{-power}, and the eigenvalues found by 1e{power}"
    with pytest.raises(FloatingPointError, match=said):
        lossmap.spectrum(10.0**power * matrix(), top=1, solver=solver)
    for method in ("xtrace", "hutch++", "hutchinson"):
        with pytest.raises(FloatingPointError, match=said):
            lossmap.spectrum(10.0**power * matrix(), top=0, bottom=0, density_error=None, trace_method=method)


def test_a_small_matrix_of_small_entries_has_all_but_its_squares():
    a = matrix()[:20, :20]
    found, own = (lossmap.spectrum(b, top=1, diagonal=True) for b in (2.0**-664 * a, a))
    assert found.trace.value * 2.0**664 == pytest.approx(own.trace.value, rel=1e-12)
    assert np.isnan(found.trace.sums.squares[0])
    assert "norm squared Frobenius norm not known: squares" in " ".join(repr(found).split())
    limits = [s.stored()[1]["step_limit"] for s in (own, found)]
    assert limits[1] * 2.0**-664 == pytest.approx(limits[0], rel=1e-12)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_a_loss_whose_curvature_leaves_the_range_is_refused_by_name(factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    data = (torch.randn(50, 10, dtype=torch.float64), torch.arange(50) % 3)
    loss = nn.CrossEntropyLoss()
    problem = lossmap.Problem.supervised(model, lambda outputs, targets: factor * loss(outputs, targets), data)
    with pytest.raises(FloatingPointError, match="whose squares are no numbers of float64: multiply the"):
        lossmap.spectrum(problem, parameters="all", top=1)


def test_a_small_matrix_of_large_entries_is_refused_too():
    with pytest.raises(FloatingPointError, match="whose squares are no numbers of float64"):
        lossmap.spectrum(1e200 * matrix()[:20, :20], top=1)


@pytest.mark.parametrize("exponent", [-430, 430])
def test_the_spectrum_of_a_scaled_matrix_is_the_scaled_spectrum(exponent):
    factor = 2.0**exponent
    for method in ("xtrace", "hutch++", "hutchinson"):
        how = {"top": 2, "trace_method": method, "diagonal": True, "density_error": 0.1}
        own, scaled = (lossmap.spectrum(a, **how) for a in (matrix(), factor * matrix()))
        np.testing.assert_allclose(scaled.values / factor, own.values, rtol=1e-12)
        np.testing.assert_allclose(scaled.errors / factor, own.errors, rtol=1e-6)
        assert scaled.trace.value / factor == pytest.approx(own.trace.value, rel=1e-12)
        assert scaled.trace.error / factor == pytest.approx(own.trace.error, rel=1e-9)
        np.testing.assert_allclose(scaled.trace.sums.squares_error / factor**2, own.trace.sums.squares_error, rtol=1e-9)
        np.testing.assert_allclose(scaled.trace.diagonal.errors / factor, own.trace.diagonal.errors, rtol=1e-6)
        np.testing.assert_allclose(np.array(scaled.density.range) / factor, own.density.range, rtol=1e-9)
        assert len(str(scaled).splitlines()) > 10


class Reusing(LinearOperator):
    """Writes every product into the same memory, and into what it is given."""

    def __init__(self, a):
        super().__init__(a.dtype, a.shape)
        self.a, self.image = a, np.empty(len(a), a.dtype)

    def _matvec(self, v):
        np.matmul(self.a, v.ravel(), out=self.image)
        v[:] = 7.0
        return self.image


class ReusingTensor:
    """The same for tensors, but for what it is given."""

    def __init__(self, a):
        self.a = torch.from_numpy(a)
        self.size, self.dtype, self.device = len(a), self.a.dtype, self.a.device
        self.image = torch.empty(len(a), dtype=self.dtype)

    def __matmul__(self, v):
        return torch.matmul(self.a, v, out=self.image)


@pytest.mark.parametrize("kind", [Reusing, ReusingTensor])
@pytest.mark.parametrize("method", ["xtrace", "hutch++", "hutchinson"])
def test_an_operator_may_use_its_memory_again(kind, method):
    how = {"top": 3, "diagonal": True, "density_error": 0.1, "trace_method": method}
    found, own = (lossmap.spectrum(a, **how) for a in (kind(matrix()), ByMatvec(matrix())))
    np.testing.assert_allclose(found.values, own.values, rtol=1e-12)
    assert found.trace.value == pytest.approx(own.trace.value, rel=1e-9)
    assert np.abs(found.values - np.linalg.eigvalsh(matrix())[[-1, -2, -3, 0]]).max() < 1e-2
    small = lossmap.spectrum(kind(matrix()[:20, :20]), top=3)
    np.testing.assert_allclose(small.values[:3], np.linalg.eigvalsh(matrix()[:20, :20])[::-1][:3], atol=1e-12)


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
