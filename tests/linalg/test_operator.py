"""Operators made of others, and the one place where rounding comes from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lossmap.interrupt import Interrupted
from lossmap.linalg.operator import MappedOperator, Rounding, deflated, finite_product, interruptible


class Dense:
    def __init__(self, entries, dtype=torch.float64):
        self.entries = torch.as_tensor(entries).to(dtype)
        self.size, self.dtype, self.device = len(self.entries), dtype, torch.device("cpu")

    def __matmul__(self, v):
        return self.entries @ v


def twice(inner, v):
    return 2.0 * (inner @ v)


def test_a_mapped_operator_has_the_inner_ones_shape_and_the_functions_product():
    operator = MappedOperator(Dense(np.diag([1.0, 3.0]), torch.float32), twice)
    assert (operator.size, operator.dtype, operator.device.type) == (2, torch.float32, "cpu")
    assert (operator @ torch.ones(2)).tolist() == [2.0, 6.0]
    assert operator.rounding is None
    operator.inner.rounding = 0.5
    assert operator.rounding == 0.5 and Rounding.of(operator).allowance(100.0) == 0.5


def test_rounding_is_measured_or_64_epsilons_of_the_largest_eigenvalue():
    assert Rounding.of(Dense(np.eye(2))).allowance(3.0) == 64 * 2.0**-52 * 3.0
    assert Rounding.of(Dense(np.eye(2), torch.float32)).allowance(1.0) == 64 * 2.0**-23
    assert Rounding(1e-7, 0.0).allowance(3.0) == 0.0  # a measured zero is a measurement


def test_an_interruptible_operator_asks_before_every_product():
    answers = iter([False, True])
    operator = interruptible(Dense(np.eye(3)), lambda: next(answers))
    assert torch.equal(operator @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    with pytest.raises(Interrupted):
        operator @ torch.ones(3, dtype=torch.float64)


def test_a_deflated_operator_travels_to_another_process():
    q = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    operator = deflated(Dense(np.diag(np.arange(5.0))), q, -7.0)
    copy = pickle.loads(pickle.dumps(operator))
    v = torch.ones(5, dtype=torch.float64)
    assert torch.equal(operator @ v, copy @ v)
    assert torch.allclose(operator @ q[:, 0], -7.0 * q[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_product_that_is_not_finite_is_named(bad):
    operator = Dense(np.array([[1.0, 0.0], [0.0, bad]]))
    with pytest.raises(FloatingPointError, match="product 7 is not finite: look at the loss here first"):
        finite_product(operator, torch.ones(2, dtype=torch.float64), 7)
    with pytest.raises(FloatingPointError, match="a product with the operator is not finite"):
        finite_product(operator, torch.ones(2, dtype=torch.float64))
