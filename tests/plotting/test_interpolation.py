"""The spline between measured points: SciPy's, exact where it must be, nothing invented beside holes and spikes."""

import numpy as np
import pytest
from matplotlib.contour import ContourSet
from scipy.interpolate import CubicSpline

from lossmap.geometry.grid import Grid
from lossmap.io.surface import Surface
from lossmap.plotting.contour_levels import scale_of
from lossmap.plotting.figures import draw
from lossmap.plotting.interpolation import checked_interp, factor_of, refine, refine_ticks, spline_matrix
from lossmap.plotting.maps import fine_heights

X, Y = np.linspace(-1, 1, 9), np.linspace(-0.5, 1, 7)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_the_spline_is_scipys_on_uneven_and_descending_ticks(n):
    chance = np.random.default_rng(n)
    ticks = np.cumsum(0.2 + chance.random(n))
    for t in (ticks, -ticks):
        values, at = chance.normal(size=n), refine_ticks(t, 5)
        order = np.argsort(t)
        theirs = CubicSpline(t[order], values[order], bc_type="not-a-knot")(at)
        assert np.allclose(spline_matrix(t, 5) @ values, theirs, rtol=0, atol=1e-12)
        assert np.array_equal(at[::5], t)


def test_a_bicubic_is_met_exactly_and_measured_values_stand():
    def z(x, y):
        return 1 + x**2 + 0.5 * y**2 + 0.3 * x * y

    values = z(X, Y[:, None])
    fine = refine(X, Y, values, 4)
    assert np.array_equal(fine[::4, ::4], values)
    assert np.allclose(fine, z(refine_ticks(X, 4), refine_ticks(Y, 4)[:, None]), rtol=0, atol=1e-12)


def test_a_hole_leaves_out_its_cells_and_lends_no_value():
    values = np.exp(X + Y[:, None])
    for hole in (np.nan, np.inf):
        values[2, 3] = hole
        fine = refine(X, Y, values, 4)
        missing = np.isnan(fine)
        assert missing[5:12, 9:16].all() and missing.sum() == 7 * 7  # the inside of the four cells around it
        true = np.exp(refine_ticks(X, 4) + refine_ticks(Y, 4)[:, None])
        assert np.nanmax(abs(fine / true - 1)) < 0.02
    assert np.isnan(refine(X, Y, values * np.nan, 4)).all()
    corner = np.full((7, 9), np.nan)
    corner[0, 0] = 1.0
    assert np.isfinite(refine(X, Y, corner, 3)).sum() == 1


def test_a_spike_a_step_and_noise_make_no_valley_that_was_not_measured():
    spike = np.ones((7, 9))
    spike[3, 4] = 1e6
    assert refine(X, Y, spike, 4).min() == 1 and refine(X, Y, spike, 4).max() == 1e6
    step = np.where(X > 0.1, 100.0, 0.0) * np.ones((7, 1))
    assert refine(X, Y, step, 4).min() == 0 and refine(X, Y, step, 4).max() == 100
    noise = np.random.default_rng(0).normal(size=(31, 31))
    fine = refine(np.arange(31.0), np.arange(31.0), noise, 4)
    assert np.ptp(fine) < 1.1 * np.ptp(noise)


@pytest.mark.parametrize("log", [False, True])
def test_a_spike_of_a_million_and_a_floor_of_zeros_leave_the_rest_of_a_map_as_it_is(log):
    grid = Grid.square(-1, 1, 21)
    x, y = np.meshgrid(grid.x, grid.y)
    smooth = 0.5 + x**2 + 2 * y**2
    spiked = np.where((x == grid.x[12]) & (y == 0), 1e6, smooth)
    scale = scale_of([spiked], log=log)
    assert scale.high < 10
    (across, up, with_it), (_, _, without) = (fine_heights(grid, v, scale, 4) for v in (spiked, smooth))
    far = np.hypot(*np.meshgrid(across - grid.x[12], up)) > 0.4
    assert np.abs(with_it - without)[far].max() < 0.02 * np.ptp(without)
    floored = np.maximum(smooth - 1, 0)
    fine = fine_heights(grid, floored, scale_of([floored], log=log), 4)[2]
    above = np.hypot(*np.meshgrid(across, 2**0.5 * up)) > 1.1
    true = across[None, :] ** 2 + 2 * up[:, None] ** 2 - 0.5
    expected = np.log10(np.maximum(true, 0.1)) if log else true
    assert np.abs(fine - expected)[above].max() < 0.02


def test_levels_lie_closer_to_the_true_ones_than_straight_lines_do():
    def loss(x, y):  # a narrow valley that turns, over four decades
        return 1e-3 + 8 * (y - 0.4 * np.sin(3 * x)) ** 2 + 0.05 * (x - 0.2) ** 2

    ticks = np.linspace(-1, 1, 25)
    values = np.log10(loss(ticks, ticks[:, None]))
    at = refine_ticks(ticks, 8)
    true = np.log10(loss(at, at[:, None]))
    smooth = abs(refine(ticks, ticks, values, 8) - true)
    ix = np.arange(25)
    rows = np.array([np.interp(np.arange(193) / 8, ix, row) for row in values])
    straight = abs(np.array([np.interp(np.arange(193) / 8, ix, column) for column in rows.T]).T - true)
    assert np.median(smooth) < 0.2 * np.median(straight) and smooth.max() < straight.max()


def test_points_to_an_interval():
    assert [factor_of((n, 5), None) for n in (6, 25, 51, 201, 1001)] == [8, 8, 4, 1, 1]
    assert factor_of((51, 51), 3) == 3 and factor_of((1, 51), 3) == 1
    assert [checked_interp(v) for v in (None, "none", 1, "12")] == [None, 1, 1, 12]
    for bad in (0, "0", -2, 65, "many", 2.5):
        with pytest.raises(ValueError, match="--interp must be a whole number from 1 to 64, or none; got"):
            checked_interp(bad)


def test_a_valley_of_the_spline_alone_leaves_no_gap_and_no_line_in_a_map():
    grid = Grid(np.array([-1, -0.9, -0.5, 0, 0.05, 0.1, 1.0]), np.array([-1, 0, 0.1, 0.2, 1.0]))
    x, y = np.meshgrid(grid.x, grid.y)
    loss = 0.1 + (x - 0.5) ** 2 + 3 * (y + 0.3) ** 2  # its minimum lies in a cell with large losses at all corners
    scale = scale_of([loss])
    assert refine(grid.x, grid.y, loss, 8).min() < scale.low < loss.min() and scale.extend == "neither"
    assert fine_heights(grid, loss, scale, 8)[2].min() == scale.low
    axes = draw(Surface(grid, {"train_loss": loss}), "filled").axes[0]
    bands, lines = (s for s in axes.collections if isinstance(s, ContourSet))
    assert bands.filled and scale.low not in lines.levels and scale.levels[1] in lines.levels
    lowest = bands.get_paths()[0]
    assert lowest.contains_point((0.5, -0.3))  # a band there: nothing of the cells below is seen
    log = fine_heights(grid, loss, scale_of([loss], log=True), 8)[2]
    assert log.min() == pytest.approx(np.log10(scale_of([loss], log=True).low))
    cut = scale_of([loss], low=1.0)  # measured values lie below: it is a cut, and seen as one
    assert cut.below and fine_heights(grid, loss, cut, 8)[2].min() < cut.low
