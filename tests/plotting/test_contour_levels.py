"""Levels: round, ascending, enclosing what there is, geometric where it spans decades."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lossmap.geometry.grid import Grid
from lossmap.io.read import Surface
from lossmap.plotting.contour_levels import SMALLEST, even, geometric, labels, scale_of
from lossmap.plotting.figures import draw, save

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
    known[(known > 0) & (known < SMALLEST)] = 0.0  # beyond any level: see the test of values of any size
    scale = scale_of([known])
    if known.size and not scale.flat:
        smallest = known[known > 0].min() if scale.log else known.min()  # a zero lies below geometric levels
        assert (scale.levels[0] <= smallest and scale.levels[-1] >= known.max()) or np.ptp(known) < 1e-3
        below = ["neither", "min"] if scale.log and known.min() == 0 else ["neither"]
        assert scale.extend in below or np.ptp(known) < 1e-3


ANY_SIZE = st.floats(allow_nan=False, allow_infinity=False)  # denormals, and up to 1.8e308


@given(st.lists(ANY_SIZE, min_size=1, max_size=6), st.sampled_from([None, True, False]))
@example([0.0, 1.1125369292536007e-308], None)
@example([5e-324, 1e-323], True)
@example([2.0250890053264356e-107, 3.1226045101375714e-148], None)
@example([-1.7e308, 1.7e308], None)
@example([1e-308, 1e308], None)
@example([1.0, 1.0 + 2.1e-9], None)
@example([-5e-324], True)
@example([-3.0, -1.0], True)
@example([1.7976931348623157e308], False)
@np.errstate(over="raise", invalid="raise", divide="raise")
def test_values_of_any_size_have_finite_ascending_levels(values, log):
    known = np.array(values)
    scale = scale_of([known], log=log)
    assert 1 <= scale.levels.size <= 60 and np.isfinite(scale.levels).all() and (np.diff(scale.levels) > 0).all()
    assert np.isfinite([scale.low, scale.high]).all() and scale.low <= scale.high
    assert not scale.log or scale.low > 0
    if not scale.flat:
        assert scale.below == (known.min() < scale.low) and scale.above == (known.max() > scale.high)
        inside = np.clip(known, -1e50, 1e50)
        slack = 1e-6 * (scale.high - scale.low)
        if not (scale.log and known.min() < 1e-50):
            assert scale.low <= inside.min() + slack
        assert scale.high >= inside.max() - slack


@pytest.mark.parametrize("kind", ["filled", "contour", "map", "3d"])
@pytest.mark.parametrize("values", [(0.0, 1.1125369292536007e-308), (5e-324, 1e-100), (-1e200, 1e300), (3.0, 3.0)])
def test_values_of_any_size_are_drawn(kind, values, tmp_path):
    grid = Grid(np.arange(3.0), np.arange(2.0))
    field = np.linspace(0.0, 1.0, 6).reshape(2, 3) * (values[1] - values[0]) + values[0]
    surface = Surface(grid, {"train_loss": field}, {})
    assert save(draw(surface, kind), tmp_path / "a.png", dpi=40).stat().st_size > 1000


def test_losses_over_decades_get_geometric_levels_and_narrow_or_negative_ones_even():
    assert scale_of([np.array([0.01, 10.0])]).log
    assert list(scale_of([np.array([0.01, 10.0])]).levels) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert not scale_of([np.array([1.0, 10.0])]).log
    assert not scale_of([np.array([-1.0, 1000.0])]).log
    assert scale_of([np.array([1.0, 10.0])], log=True).log
    narrow = scale_of([np.array([1.8, 2.4])], log=True)  # 1.5 2 2.5 would be two colours
    assert narrow.log and narrow.levels.size > 8 and narrow.levels[0] > 0


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


@pytest.mark.parametrize("size", [1.0, 1e-20])
def test_rounding_is_not_beyond_an_end(size):
    for values in ((0.07, 5.0), (1.0, 2.0)):
        exact = size * np.linspace(*values, 40)
        for off in (-1e-15, 0.0, 1e-15):
            assert scale_of([exact * (1 + off)]).extend == "neither"
        assert scale_of([np.append(exact, 0.999 * exact[0])], low=float(exact[0])).extend == "min"


def test_impossible_ends_and_steps_are_refused():
    with pytest.raises(ValueError, match="--vmin must be below --vmax; got 3 and 2"):
        scale_of([np.ones(1)], low=3, high=2)
    with pytest.raises(ValueError, match="--vlevel must be > 0; got 0"):
        scale_of([np.ones(1)], step=0)
    with pytest.raises(ValueError, match="makes more than 1,000 levels between 0 and 10"):
        scale_of([np.array([0.0, 10.0])], step=1e-5)
    with pytest.raises(ValueError, match="--vlevel must be > 0; got nan"):
        scale_of([np.ones(1)], step=np.nan)
    for end in (np.nan, np.inf, 1e200):
        with pytest.raises(ValueError, match=r"--vmax must lie between -1e\+50 and 1e\+50; got"):
            scale_of([np.ones(1)], high=end)


def test_one_value_or_none_has_a_flat_scale():
    assert scale_of([np.full(3, 0.5)]).flat and scale_of([np.full(3, np.nan)]).flat and scale_of([]).flat
    assert scale_of([np.zeros(2)], log=True).flat
    assert scale_of([np.array([5.0, 9.0])], high=2.0).flat  # no value lies below the end


@given(st.lists(FINITE, min_size=1, max_size=8, unique=True))
def test_labels_tell_levels_apart(levels):
    assume(min((abs(a - b) for a in levels for b in levels if a != b), default=1) > 1e-6)
    assert len(set(labels(np.array(levels)))) == len(levels)
    assert labels(np.array([1e8, 1e8 + 1])) == ["100000000", "100000001"]
    # even steps look even; what is no short number stays short
    assert labels(np.array([2.125, 2.175, 2.225])) == ["2.125", "2.175", "2.225"]
    assert labels(np.geomspace(1, 2, 5)) == ["1", "1.19", "1.41", "1.68", "2"]


def test_a_zero_changes_no_scale():
    decades = np.geomspace(1e-3, 10, 30)
    with_zero = scale_of([np.append(decades, 0.0)])
    assert with_zero.log and list(with_zero.levels) == list(scale_of([decades]).levels)
    assert with_zero.below and with_zero.extend == "min"
    assert not scale_of([np.append(decades, -1.0)]).log and not scale_of([np.linspace(0, 1, 2)]).log


def test_few_values_far_from_all_others_do_not_stretch_the_colours():
    usual = np.linspace(0.5, 2.0, 99)
    spiked = scale_of([np.append(usual, 1e6)])
    assert not spiked.log and spiked.above and list(spiked.levels) == list(scale_of([usual]).levels)
    both = scale_of([np.concatenate([np.linspace(-1, 1, 98), [1e6, -1e6]])])
    assert both.extend == "both" and both.high <= 1.5
    assert scale_of([np.append(usual, 1e6)], high=1e6).high == 1e6  # the end that is set
    bowl = np.add.outer(np.linspace(-1, 1, 21) ** 2, np.linspace(-1, 1, 21) ** 2)
    for whole in (bowl, 10.0 ** (9 * bowl), np.exp(-30 * bowl), np.append(np.full(99, 2.3), 1e3)):
        assert scale_of([whole]).high >= whole.max()
    many = np.concatenate([usual, np.full(10, 1e6)])
    assert scale_of([many]).high >= 1e6  # a tenth of the points is no exception
