"""Levels: round, ascending, enclosing what there is, geometric where it spans decades."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lossmap.plotting.contour_levels import even, geometric, labels, scale_of

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
POSITIVE = st.floats(1e-8, 1e8)


@given(POSITIVE, st.floats(21, 1e12))
def test_geometric_levels_are_round_ascending_and_enclose(low, factor):
    levels = geometric(low, low * factor)
    assert (np.diff(levels) > 0).all() and 3 <= levels.size <= 22
    assert levels[0] <= low * (1 + 1e-9) and levels[-1] >= low * factor * (1 - 1e-9)
    mantissas = levels / 10.0 ** np.floor(np.log10(levels) + 1e-9)
    assert np.allclose(mantissas * 4, np.round(mantissas * 4), atol=1e-6)


@given(FINITE, st.floats(1e-3, 1e6))
def test_even_levels_are_round_ascending_and_enclose(low, span):
    levels = even(low, low + span)
    assert (np.diff(levels) > 0).all() and 6 <= levels.size <= 22
    slack = 1e-6 * span + 2e-12 * abs(low)  # ticks beside a large offset are round to so many digits only
    assert levels[0] <= low + slack and levels[-1] >= low + span - slack
    assert np.allclose(np.diff(levels), np.diff(levels)[0])


@given(st.lists(FINITE | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=9))
def test_any_numbers_have_a_scale(values):
    scale = scale_of([np.array(values)])
    assert scale.low <= scale.high and (np.diff(scale.levels) > 0).all()
    known = np.array(values)[np.isfinite(values)]
    if known.size and not scale.flat:
        assert (scale.levels[0] <= known.min() and scale.levels[-1] >= known.max()) or np.ptp(known) < 1e-3
        assert scale.extend == "neither" or np.ptp(known) < 1e-3


def test_losses_over_decades_get_geometric_levels_and_narrow_or_negative_ones_even():
    assert scale_of([np.array([0.01, 10.0])]).log
    assert list(scale_of([np.array([0.01, 10.0])]).levels) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert not scale_of([np.array([1.0, 10.0])]).log
    assert not scale_of([np.array([-1.0, 1000.0])]).log
    assert scale_of([np.array([1.0, 10.0])], log=True).log


def test_several_surfaces_have_common_levels():
    both = scale_of([np.array([1.0, 2.0]), np.array([3.0, 4.0])])
    assert both.low <= 1 and both.high >= 4


def test_a_person_may_set_ends_and_step():
    scale = scale_of([np.array([0.01, 25.0])], low=0.1, high=10, step=0.5)
    assert scale.levels[0] == 0.1 and scale.levels[1] == 0.6 and scale.levels[-1] == 10
    assert scale.extend == "both" and not scale.log
    assert scale_of([np.array([0.01, 25.0])], high=10).extend == "max"
    assert scale_of([np.array([0.01, 25.0])], low=0.1).extend == "min"
    assert list(scale_of([np.array([0.0, 1.0])], step=5).levels) == [0, 1]
    cut = scale_of([np.array([-1.0, 0.5, 100.0])], log=True)
    assert cut.log and cut.low <= 0.5 and cut.below


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="--vmin wants to be below --vmax; got 3 and 2"):
        scale_of([np.ones(1)], low=3, high=2)
    with pytest.raises(ValueError, match="--vlevel wants a step above 0; got 0"):
        scale_of([np.ones(1)], step=0)
    with pytest.raises(ValueError, match="makes more than 1,000 levels between 0 and 10"):
        scale_of([np.array([0.0, 10.0])], step=1e-5)


def test_one_value_or_none_has_a_flat_scale():
    assert scale_of([np.full(3, 0.5)]).flat and scale_of([np.full(3, np.nan)]).flat and scale_of([]).flat
    assert scale_of([np.zeros(2)], log=True).flat


@given(st.lists(FINITE, min_size=1, max_size=8, unique=True))
def test_labels_tell_levels_apart(levels):
    assume(min((abs(a - b) for a in levels for b in levels if a != b), default=1) > 1e-6)
    assert len(set(labels(np.array(levels)))) == len(levels)
    assert labels(np.array([1e8, 1e8 + 1])) == ["100000000", "100000001"]
