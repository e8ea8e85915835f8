"""The seconds of a product, by a clock that is handed in."""

import itertools

import pytest
import torch
from torch import nn

from lossmap.curvature.autotune import prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.product_time import seconds_of_first, seconds_of_product
from lossmap.data.problem import Problem


def problem(samples=600):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return Problem.supervised(model, "crossentropy", (torch.randn(samples, 6), torch.arange(samples) % 3))


def clock_of(spans):
    """A clock on which the products take these spans, one after the other."""
    readings = itertools.accumulate(itertools.chain.from_iterable((0.0, span) for span in spans))
    return lambda: next(readings)


def test_the_smallest_product_after_the_first_counts_and_a_batch_stands_for_all_samples():
    operator = build_operator(problem().rebatched(100), "hessian", "weights")
    assert seconds_of_product(operator, clock_of([4.0, 0.1, 0.02, 0.03])) == pytest.approx(6 * 0.02)


def test_a_first_product_that_takes_long_is_the_only_one():
    operator = build_operator(problem().rebatched(300), "hessian", "weights")
    assert seconds_of_product(operator, clock_of([7.0])) == pytest.approx(7.0 * 600 / 256)  # a batch of at most 256


def test_a_linearized_product_is_timed_with_its_own_batches_and_leaves_its_traces():
    factory = prepare(problem(), backend="linearized", plan={"way": "linear", "batch": 150}, check=False)
    assert seconds_of_product(factory.at(), clock_of([1.0, 0.3, 0.2])) == pytest.approx(4 * 0.2)
    assert len(factory.programs) == 1


def test_what_a_point_takes_before_its_products_is_that_of_its_first_one():
    factory = prepare(problem(), backend="linearized", plan={"way": "linear", "batch": 150}, check=False)
    assert seconds_of_first(factory.at(), 1.2, clock_of([0.5])) == pytest.approx(4 * 0.5 - 1.2)
    assert seconds_of_first(factory.at(), 3.0, clock_of([0.5])) == 0.0
