"""The diagonal entry by entry, from the trace's products: covered by its bars, exact where the trace is."""

from dataclasses import dataclass
from math import inf

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import lossmap
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.trace import METHODS, trace
from lossmap.report.spectrum import spectrum_report
from lossmap.spectra import task_arrays
from lossmap.spectra.spectrum_result import _report_of

N = 120
LAYOUT = Layout(("a", "b"), ((4, 5), (100,)))
SEEDS = 30


@dataclass
class Dense:
    """A matrix that counts its products."""

    entries: Tensor
    layout: Layout | None = LAYOUT
    products: int = 0

    size = property(lambda self: len(self.entries))
    dtype = property(lambda self: self.entries.dtype)
    device = property(lambda self: self.entries.device)

    def __matmul__(self, v):
        self.products += 1
        return self.entries @ v


def matrix(kind):
    """(120, 120): falling as of networks, one above all, alike of either sign, pairs alone, or rows apart."""
    numbers = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(N, N, generator=numbers, dtype=torch.float64))[0]
    small = torch.randn(N, generator=numbers, dtype=torch.float64)
    if kind == "pairs":  # no row has more than one entry, and no diagonal
        return torch.kron(torch.eye(N // 2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).double()
    if kind == "rows apart":  # of scales from 1e-3 to 1e3
        rows = torch.randn(N, 4, generator=numbers, dtype=torch.float64) * torch.exp(2.0 * small)[:, None]
        return rows @ rows.T
    values = {
        "falling": 1.0 / (1.0 + torch.arange(N, dtype=torch.float64)) ** 1.5,
        "one": torch.cat([torch.ones(1, dtype=torch.float64), 1e-3 * small[1:]]),
        "alike": small,
    }[kind]
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["falling", "one", "alike", "pairs", "rows apart"])
@pytest.mark.parametrize("products", [12, 36])
def test_intervals_hold_95_percent_of_the_entries(kind, method, products):
    a = matrix(kind)
    true, held, off = a.diagonal().numpy(), 0, np.zeros((SEEDS, N))
    for seed in range(SEEDS):
        diagonal = trace(Dense(a), method, products=products, seed=seed, diagonal=True).diagonal
        low, high = diagonal.interval()
        held, off[seed] = held + ((low <= true) & (true <= high)), diagonal.values - true
    # of all entries together, 93.4 % for signs where all that a row adds is one of +-1; and no entry is left out
    assert held.sum() >= 0.925 * SEEDS * N, held.sum() / (SEEDS * N)
    assert held.min() >= binom.ppf(1e-4 / N, SEEDS, 0.95), held.min()
    spread = off.std(0, ddof=1) / np.sqrt(SEEDS)
    assert (np.abs(off.mean(0)) < 5.5 * spread + 1e-12).all()  # unbiased


def test_it_takes_no_product_and_leaves_the_trace_as_it_is():
    a = matrix("alike")
    for method in METHODS:
        counted, plain = Dense(a), trace(Dense(a), method, products=24, seed=3)
        with_diagonal = trace(counted, method, products=24, seed=3, diagonal=True)
        assert counted.products == 24
        assert (with_diagonal.value, with_diagonal.error) == (plain.value, plain.error)
        np.testing.assert_array_equal(with_diagonal.sums.squares, plain.sums.squares)
        assert plain.diagonal is None
    without_sums = trace(Dense(a), products=24, seed=3, sums=False, diagonal=True)
    assert without_sums.sums is None
    assert without_sums.diagonal.equals(trace(Dense(a), products=24, seed=3, diagonal=True).diagonal)


def test_probes_that_were_added_for_a_requested_error_serve_it():
    a = matrix("falling")
    grown = trace(Dense(a), products=6, error=0.02, seed=1, diagonal=True)
    assert grown.products > 12
    np.testing.assert_allclose(
        grown.diagonal.values, trace(Dense(a), products=grown.products, seed=1, diagonal=True).diagonal.values,
        rtol=1e-6, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_it_is_exact_of_unit_vectors_of_a_diagonal_matrix_and_of_low_rank(method):
    a = matrix("alike")
    exact = trace(Dense(a), method, products=N, diagonal=True).diagonal
    np.testing.assert_array_equal(exact.values, a.diagonal().numpy())
    assert exact.errors.max() < 1e-11
    own = torch.diag(torch.linspace(-3.0, 5.0, N, dtype=torch.float64))
    found = trace(Dense(own), method, products=36, diagonal=True).diagonal
    np.testing.assert_allclose(found.values, own.diagonal().numpy(), atol=1e-12)
    assert found.errors.max() < 1e-10
    if method == "hutchinson":
        return
    values, vectors = torch.linalg.eigh(a)
    low = vectors[:, -3:] @ torch.diag(values[-3:]) @ vectors[:, -3:].T
    found = trace(Dense(low), method, products=36, diagonal=True).diagonal
    np.testing.assert_allclose(found.values, low.diagonal().numpy(), atol=1e-9)
    low_end, high_end = found.interval()
    assert ((low_end <= low.diagonal().numpy()) & (low.diagonal().numpy() <= high_end)).mean() > 0.95


def test_few_signs_have_no_error_and_a_zero_matrix_is_zero():
    a = matrix("pairs")  # two signs have the same product in every second row: no spread, and off by 1
    for method, products in (("hutch++", 6), ("hutchinson", 9)):
        assert (trace(Dense(a), method, products=products, diagonal=True).diagonal.errors == inf).all()
    zero = trace(Dense(torch.zeros(N, N, dtype=torch.float64)), products=12, diagonal=True).diagonal
    assert not zero.values.any() and not zero.errors.any()


def test_tasks_and_files_keep_it_by_tensor(tmp_path):
    a = matrix("falling")
    for layout in (LAYOUT, None):
        own = trace(Dense(a, layout), products=12, diagonal=True)
        assert task_arrays.to_trace(task_arrays.of_trace(own)).equals(own)
    whole = lossmap.spectrum(a, dense=0, top=1, density_error=None, diagonal=True)
    assert list(whole.trace.diagonal.stored()) == ["diagonal:all", "diagonal_error:all"]
    own = trace(Dense(a), products=12, diagonal=True).diagonal
    values, errors = own.by_tensor()["a"]
    np.testing.assert_array_equal(values, own.values[:20].reshape(4, 5))
    np.testing.assert_array_equal(errors, own.errors[:20].reshape(4, 5))
    assert lossmap.read(whole.save(tmp_path / "s.h5")).equals(whole)


def test_a_network_s_is_that_of_its_hessian(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3)).double()
    data = (torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3)
    problem = lossmap.Problem.supervised(model, "crossentropy", data)
    hessian = lossmap.hessian(problem, parameters="all")
    true = (hessian @ torch.eye(hessian.size, dtype=torch.float64)).diagonal().numpy()
    how = {"parameters": "all", "density_error": None, "diagonal": True}
    estimated = lossmap.spectrum(problem, dense=10, **how)
    low, high = estimated.trace.diagonal.interval()
    assert ((low <= true) & (true <= high)).mean() > 0.93
    exact = lossmap.spectrum(problem, **how)
    assert (np.abs(exact.trace.diagonal.values - true) <= exact.trace.diagonal.errors).all()
    values, _ = exact.trace.diagonal.by_tensor()["2.weight"]
    np.testing.assert_allclose(values, true[180:270].reshape(3, 30), atol=1e-12)
    assert exact.trace.diagonal.values.sum() == pytest.approx(exact.trace.value)
    text = " ".join(spectrum_report(_report_of(exact)).split())
    assert f"diagonal {len(true)} entries, estimates from" in text and "exact but for rounding" in text
    back = lossmap.read(exact.save(tmp_path / "s.h5"))
    assert back.equals(exact) and repr(back) == repr(exact)
    assert "diagonal_error:2.weight" in back.stored()[0]
    with pytest.raises(ValueError, match="trace's products"):
        lossmap.spectrum(problem, diagonal=True, trace_products=0)
