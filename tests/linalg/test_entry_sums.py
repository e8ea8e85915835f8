"""Sums over entries, by tensor, from the trace's products: exact where they are, unbiased and covered where not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import lossmap
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.entry_sums import EVERYTHING
from lossmap.linalg.trace import METHODS, trace
from lossmap.spectra import task_arrays

SIZES = (11, 1, 28)
LAYOUT = Layout(("a", "b", "c"), tuple((s,) for s in SIZES))
N = sum(SIZES)
SEEDS = 200
PRODUCTS = 16


@dataclass
class Dense:
    """A matrix that counts its products; `layout` says which rows are which tensor's."""

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
    """(40, 40): eigenvalues that fall off like those of networks, one that outweighs all, or alike of either sign."""
    numbers = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(N, N, generator=numbers, dtype=torch.float64))[0]
    values = {
        "falling": 1.0 / (1.0 + torch.arange(N, dtype=torch.float64)) ** 1.5,
        "one": torch.cat([torch.ones(1), 1e-3 * torch.randn(N - 1, generator=numbers)]).double(),
        "alike": torch.randn(N, generator=numbers, dtype=torch.float64),
    }[kind]
    return basis @ torch.diag(values) @ basis.T


def truth(a):
    """(whole and tensors,) sums of the diagonal and of the squares."""
    parts = [slice(0, N), *(slice(sum(SIZES[:i]), sum(SIZES[: i + 1])) for i in range(3))]
    entries = a.numpy()
    return (
        np.array([np.trace(entries[p, p]) for p in parts]),
        np.array([(entries[p] ** 2).sum() for p in parts]),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["falling", "one", "alike"])
def test_estimates_are_unbiased_and_their_intervals_hold_the_truth(kind, method):
    a = matrix(kind)
    diagonal, squares = truth(a)
    found = [trace(Dense(a), method, products=PRODUCTS, seed=seed) for seed in range(SEEDS)]
    for what, true in (("diagonal", diagonal), ("squares", squares)):
        values = np.stack([getattr(f.sums, what) for f in found])
        error = values.std(0, ddof=1) / np.sqrt(SEEDS)
        allowed = 4.5 * error + 1e-12 * np.abs(true).max()
        assert (np.abs(values.mean(0) - true) < allowed).all(), (what, values.mean(0), true, error)
        held = np.stack([(lo <= true) & (true <= hi) for lo, hi in (f.sums.interval(what) for f in found)])
        # 95 % are stated: fewer than 181 of 200 would be seen in one of 1,000 experiments
        assert (held.sum(0) >= 181).all(), (what, held.mean(0))
    assert {f.sums.names for f in found} == {(EVERYTHING, "a", "b", "c")}
    whole = np.array([f.sums.diagonal[0] for f in found])
    np.testing.assert_allclose(whole, [f.value for f in found], rtol=1e-10, atol=1e-12)  # the trace itself
    parts = np.array([f.sums.diagonal[1:].sum() for f in found])
    np.testing.assert_allclose(parts, whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_they_take_no_product_and_are_exact_with_n_products_or_of_low_rank(method):
    a = matrix("alike")
    counted = Dense(a)
    assert trace(counted, method, products=24).products == counted.products == 24
    exact = trace(Dense(a), method, products=N)
    for what, true in zip(("diagonal", "squares"), truth(a), strict=True):
        np.testing.assert_allclose(getattr(exact.sums, what), true, rtol=1e-10)
        assert (getattr(exact.sums, f"{what}_error") < 1e-10).all()
    if method == "hutchinson":
        return
    low = matrix("one")
    values, vectors = torch.linalg.eigh(low)
    low = vectors[:, -3:] @ torch.diag(values[-3:]) @ vectors[:, -3:].T
    for what, true in zip(("diagonal", "squares"), truth(low), strict=True):
        sums = trace(Dense(low), method, products=24).sums
        np.testing.assert_allclose(getattr(sums, what), true, rtol=1e-8, atol=1e-10)


def test_of_no_tensors_there_is_the_whole_and_of_a_zero_matrix_zero():
    a = matrix("falling")
    assert trace(Dense(a, None), products=12).sums.names == (EVERYTHING,)
    sums = trace(Dense(torch.zeros(N, N, dtype=torch.float64)), products=12).sums
    assert not sums.diagonal.any() and not sums.squares.any() and not sums.squares_error.any()
    kept = task_arrays.to_trace(task_arrays.of_trace(trace(Dense(a), products=12)))
    own = trace(Dense(a), products=12)
    assert kept.equals(own)
    old = {k: v for k, v in task_arrays.of_trace(own).items() if not k.startswith("sums_")}
    assert task_arrays.to_trace(old).equals(replace(own, sums=None))


def test_a_network_has_them_by_tensor_and_a_file_keeps_them(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    data = (torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3)
    problem = lossmap.Problem.supervised(model, "crossentropy", data)
    hessian = lossmap.hessian(problem, parameters="all")
    entries = (hessian @ torch.eye(hessian.size, dtype=torch.float64)).numpy()
    bias = slice(30, 36)
    found = lossmap.spectrum(problem, parameters="all", density_error=None)
    i = found.trace.sums.names.index("0.bias")
    assert found.trace.sums.diagonal[i] == pytest.approx(np.trace(entries[bias, bias]), rel=1e-9)
    assert found.trace.sums.squares[i] == pytest.approx((entries[bias] ** 2).sum(), rel=1e-9)
    assert found.trace.sums.squares[0] == pytest.approx((entries**2).sum(), rel=1e-9)
    estimated = lossmap.spectrum(problem, parameters="all", density_error=None, dense=10, trace_products=40)
    low, high = estimated.trace.sums.interval("squares", 0.999)
    assert low[i] <= (entries[bias] ** 2).sum() <= high[i]
    text = " ".join(repr(estimated).split())
    assert "squared Frobenius norm" in text and "0.bias" in text
    assert lossmap.read(estimated.save(tmp_path / "s.h5")).equals(estimated)
