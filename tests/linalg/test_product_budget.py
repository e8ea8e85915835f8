"""What of a spectrum fits into a number of products: the cut follows the order of use, and never takes more."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossmap.linalg.expected_products import SpectrumParts, density_products, ends_products
from lossmap.linalg.product_budget import fit_parts
from lossmap.linalg.spectral_density import spectral_density

PARTS = SpectrumParts(10_000, 5, 1)
ENDS = ends_products(5, 1, 10_000)


def test_with_time_enough_nothing_changes():
    fit = fit_parts(PARTS, 10_000)
    assert fit.parts == PARTS and not fit.cuts and not fit.exceeds


def test_the_density_is_cut_first_then_the_trace_then_the_ends():
    fine = replace(PARTS, density_error=0.002)
    some = fit_parts(fine, ENDS + 60 + 200)
    assert (some.parts.density_steps, some.parts.density_probes) == (64, 3) and some.parts.trace == 60
    assert some.cuts == ("3 probes of 64 steps for the density",)
    short = fit_parts(PARTS, ENDS + 60 + 20)
    assert (short.parts.density_steps, short.parts.density_probes) == (20, 1)
    less = fit_parts(PARTS, ENDS + 30)
    assert less.parts.trace == 30 and not less.parts.density
    assert less.cuts == ("30 products of the trace", "no density")
    least = fit_parts(PARTS, ENDS - 10)
    assert least.parts.max_products == 60 and least.parts.trace == 0 and not least.parts.density  # 60 and 26 products
    assert least.cuts[1:] == ("no trace", "no density") and not least.exceeds


def test_a_density_is_limited_where_the_most_that_it_may_take_does_not_fit():
    most = density_products(PARTS.density_error, PARTS.n) + PARTS.products_left
    assert fit_parts(PARTS, ENDS + 60 + most).parts == PARTS  # its error says when it ends
    close = fit_parts(PARTS, ENDS + 60 + most - 1).parts
    assert (close.density_steps, close.density_probes) == (64, 2) and close.products_left == 0


@pytest.mark.parametrize("spread", [True, False])
def test_a_density_takes_between_what_is_expected_and_the_most(spread):
    n = 5000
    values = torch.linspace(-1, 1, n) if spread else torch.cat([torch.zeros(n - 3), torch.tensor([1.0, 2.0, 3.0])])
    taken = spectral_density(torch.diag(values)).products
    parts = SpectrumParts(n, 1, 1)
    expected = density_products(parts.density_error, n)
    assert taken <= expected + parts.products_left
    assert (taken > expected) == spread


def test_dearer_products_of_a_part_leave_it_less():
    even = fit_parts(PARTS, ENDS + 70, weights={"trace": 1.0, "density": 1.0}).parts
    assert even.trace == 60
    dear = fit_parts(PARTS, ENDS + 70, weights={"trace": 2.0, "density": 8.0})
    assert dear.parts.trace == 35 and not dear.parts.density
    cheap = fit_parts(PARTS, ENDS + 70, weights={"trace": 0.5, "density": 2.0}).parts
    assert cheap.trace == 60 and cheap.density_steps == 20


def test_what_cannot_fit_is_said():
    fit = fit_parts(PARTS, 3)
    assert fit.exceeds and "more than the budget: the ends alone take 24 products, and it holds 3" in fit.cuts


def test_errors_that_are_asked_for_give_way():
    fit = fit_parts(replace(PARTS, trace_error=0.01, density=False), 500)
    assert fit.parts.trace == 60 and fit.parts.trace_error is None  # it might have been doubled up to 1,000


def test_a_small_matrix_is_whole_while_that_fits():
    small = SpectrumParts(200, 5, 1)
    assert fit_parts(small, 200).parts == small
    assert fit_parts(small, 150).parts.dense == 0


def test_what_one_rank_does_alone_is_bounded_too():
    fit = fit_parts(PARTS, 10_000, longest=120)
    assert (fit.parts.trace, fit.parts.density_steps, fit.parts.density_probes) == (60, 64, 1)


@given(
    st.integers(300, 10**6), st.integers(0, 20), st.integers(0, 3), st.integers(0, 100),
    st.sampled_from([(None, None), (30, None), (None, 4), (80, 2)]), st.floats(0, 3000),
)  # fmt: skip
def test_whatever_is_asked_for_no_more_is_spent_than_there_is(n, top, bottom, trace, density, products):
    asked = SpectrumParts(n, top, bottom, trace=trace, density_steps=density[0], density_probes=density[1])
    fit = fit_parts(asked, products)
    assert fit.exceeds or fit.parts.products <= max(products, 0)
    assert fit.parts.trace <= asked.trace
    if not fit.cuts:
        assert replace(fit.parts, max_products=None) == asked


@pytest.mark.parametrize("products", [0, 1, 5.5])
def test_the_smallest_budgets_raise_nothing(products):
    assert fit_parts(PARTS, products).parts.trace == 0


def test_a_density_takes_its_steps_for_each_probe():
    assert density_products(0.01, 10_000, 30, 4) == 120 and density_products(0.01, 10_000, probes=2) == 128
