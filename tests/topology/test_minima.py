"""Minima of surfaces against closed forms: errors, edges, holes, curvature, coarse grids, files."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lossmap
from lossmap.report.stored import StoredReport
from lossmap.report.topology import counts_table
from lossmap.results import read as read_result

X = np.linspace(-2, 2, 41)
NONE = -1
# with ties and holes
VALUES = arrays(
    np.float64,
    st.one_of(st.tuples(st.integers(1, 16)), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    elements=st.sampled_from([0.0, 1.0, 1.5, 2.0, 2.25, 3.0, 4.0, np.nan]),
)


def line(values, x=X, **fields):
    return lossmap.Surface(lossmap.Grid(x), {"train_loss": values, **fields})


def wells(x=X, y=X):
    """Two wells at x = -1 and 1 along y = 0; the right one is higher by 0.2, the pass lies at about x = 0."""
    return lossmap.Surface(lossmap.Grid(x, y), {"train_loss": np.add.outer(y**2, (x**2 - 1) ** 2 + 0.1 * x + 1)})


def test_two_wells_have_the_numbers_of_their_formula():
    found = lossmap.find_minima(wells())
    assert found.count == 2 and not found.at_edge.any() and found.missing == 0
    assert [tuple(np.round(found.position(p), 9)) for p in found.minimum] == [(-1.0, 0.0), (1.0, 0.0)]
    top = 1.0 - 0.0  # of the pass: the largest of (x^2 - 1)^2 + x / 10 between the wells is at the tick 0
    assert found.persistence[1] == pytest.approx(top + 1 - 1.1)
    assert found.depth.tolist() == pytest.approx([top + 1 - 0.9, top + 1 - 1.1])
    assert found.error[1] == pytest.approx(8 * 2.0**-23 * (2.0 + 1.1))
    assert found.area.tolist() == pytest.approx([0.5, 0.5], abs=0.02) and found.area.sum() == pytest.approx(1.0)
    assert found.coarse == (2, 2) and "Every second tick gives 2 and 2 minima too" in repr(found)


def test_ripples_within_rounding_are_no_minima_and_their_basins_are_joined():
    rough = 2 + np.maximum(0, abs(X) - 1) ** 2 + 2e-7 * np.cos(40 * X)
    found = lossmap.find_minima(line(rough))
    assert found.count == 1 and len(found.minimum) > 1
    assert set(found.basin.tolist()) == {0} and found.area[0] == 1.0
    text = " ".join(repr(found).split())
    assert "1 minimum on 41 points" in text and "no deeper than 8 spacings of float32 numbers at these values" in text
    assert "rounding is at least" not in text  # nothing that counts rests on it
    surface = line(rough)
    exact = lossmap.Surface(surface.grid, surface.fields, settings={"measures": {"loss": {"precision": "float64"}}})
    assert lossmap.find_minima(exact).count == len(found.minimum)


def test_spacings_are_called_the_least_that_rounding_makes():
    values = (X**2 - 1) ** 2 + 0.1 * X + 1
    text = " ".join(repr(lossmap.find_minima(line(values))).split())
    assert "The errors are 8 spacings of float32 numbers at these values: rounding is at least that." in text
    assert "may be rounding alone. A survey with --precision float64 shows which" in text
    exact = {"measures": {"loss": {"precision": "float64"}}}
    found = lossmap.find_minima(lossmap.Surface(lossmap.Grid(X), {"train_loss": values}, settings=exact))
    text = " ".join(repr(found).split())
    assert found.precision == "float64" and "8 spacings of float64 numbers" in text and "--precision" not in text
    noisy = lossmap.find_minima(line(values, train_loss_error=np.full(X.shape, 0.01)))
    assert noisy.precision == "" and "rounding" not in repr(noisy)


def test_an_error_of_one_kind_hides_none_of_another():
    """Realisations that agree have a standard error of 0; an eigenvalue's bound is of one realisation."""
    rough = 2 + np.maximum(0, abs(X) - 1) ** 2 + 2e-7 * np.cos(40 * X)
    for agreed in (0.0, np.nan):
        assert lossmap.find_minima(line(rough, train_loss_error=np.full(X.shape, agreed))).count == 1
    values = 2 + X**2 + 0.1 * np.cos(30 * X)
    fields = {"max_eig": values, "max_eig_error": np.full(X.shape, 1e-3)}
    counts = []
    for noise in (1e-3, 0.2):
        beside = {**fields, "max_eig_noise_error": np.full(X.shape, noise)}
        counts.append(lossmap.find_minima(lossmap.Surface(lossmap.Grid(X), beside), field="max_eig"))
    assert counts[0].count > 1 == counts[1].count and counts[1].error_kind == "standard error"
    bounds = {**fields, "max_eig_error": np.full(X.shape, 0.2), "max_eig_noise_error": np.full(X.shape, 1e-3)}
    assert lossmap.find_minima(lossmap.Surface(lossmap.Grid(X), bounds), field="max_eig").count == 1


def test_minima_of_rounding_alone_are_not_vouched_for():
    """Cross entropy of logits of about 60 rounds by their spacing, not by that of the loss."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    x = torch.randn(50, 5)
    labels = net(x).argmax(1)
    with torch.no_grad():
        net[2].weight.mul_(300)
        net[2].bias.mul_(300)
    steps = [torch.randn_like(p) * p.norm() / p.numel() ** 0.5 for p in net.parameters()]
    found = {}
    for dtype in (torch.float32, torch.float64):
        start = copy.deepcopy(net).to(dtype)
        end = copy.deepcopy(start)
        with torch.no_grad():
            for p, step in zip(end.parameters(), steps, strict=True):
                p.add_(step.to(dtype))
        problem = lossmap.Problem.supervised(start, "crossentropy", (x.to(dtype), labels))
        surface = lossmap.survey(
            lossmap.losses(problem, lossmap.line_between(start, end)), lossmap.Grid(np.linspace(-1e-6, 1e-6, 51))
        )
        found[dtype] = lossmap.find_minima(surface)
    assert found[torch.float32].count > 1 == found[torch.float64].count
    assert "rounding is at least that" in " ".join(repr(found[torch.float32]).split())


def test_standard_errors_and_a_least_persistence_decide_what_counts():
    values = (X**2 - 1) ** 2 + 0.1 * X
    noisy = line(values, train_loss_error=np.full(X.shape, 0.4))  # the right well is 0.9 deep: 2 x sqrt(2) x 0.4 = 1.13
    assert lossmap.find_minima(noisy).count == 1
    assert lossmap.find_minima(line(values, train_loss_error=np.full(X.shape, 0.3))).count == 2
    assert lossmap.find_minima(line(values), least=0.91).count == 1
    assert lossmap.find_minima(line(values), least=0.89).count == 2


def test_edges_and_holes_are_told():
    found = lossmap.find_minima(line(X))
    assert found.at_edge.tolist() == [True] and found.real_at_edge == 1
    assert "-2 *" in repr(found) and "on the edge of the window" in repr(found)
    values = wells()["train_loss"].copy()
    values[20, 11] = np.nan  # beside the left minimum, at column 10
    values[0, :3] = np.inf
    found = lossmap.find_minima(lossmap.Surface(wells().grid, {"train_loss": values}))
    assert found.at_edge.tolist() == [True, False] and found.missing == 4
    assert "4 points without a finite value" in repr(found)


def test_a_grid_that_is_too_coarse_is_named():
    found = lossmap.find_minima(line(X**2 / 50 + np.cos(10 * np.pi * X)))  # a minimum at every second tick
    assert found.count != found.coarse[0] and "too coarse for this count" in repr(found)
    small = lossmap.find_minima(line(np.array([1.0, 0.0, 1.0]), x=np.arange(3.0)))
    assert small.coarse == () and "too small to count on every second tick" in repr(small)


def test_the_hessian_of_the_network_is_read_at_minima_and_saddles():
    surface = wells()
    shape = surface.grid.shape
    low = np.where(surface.grid.x < 0, -0.5, 0.2) * np.ones(shape)
    fields = {**surface.fields, "max_eig": np.ones(shape), "min_eig": low, "min_eig_error": np.full(shape, 0.01)}
    fields["min_eig_limit"] = low - 0.1
    found = lossmap.find_minima(lossmap.Surface(surface.grid, fields))
    assert found.sign == ("negative", "positive") and found.index.tolist() == [1, 0]
    assert "index >= 1" in repr(found) and "is none of the loss" in repr(found).replace("\n  ", " ")
    fields["bottom_eig"] = np.stack([low, low + 0.3, low + 1], axis=-1)
    fields["bottom_eig_error"] = np.full((*shape, 3), 0.01)
    assert lossmap.find_minima(lossmap.Surface(surface.grid, fields)).index.tolist() == [2, 0]
    del fields["max_eig"]  # of a map of the lower end alone
    assert lossmap.find_minima(lossmap.Surface(surface.grid, fields)).index.tolist() == [2, 0]
    fields["min_eig_error"] = np.full(shape, 1.0)
    del fields["bottom_eig"]
    assert lossmap.find_minima(lossmap.Surface(surface.grid, fields)).sign == ("undecided", "undecided")


def test_uneven_and_descending_ticks_weigh_basins_by_their_size():
    x = np.concatenate([np.linspace(2, 0, 21), np.linspace(-0.05, -2, 40)])
    found = lossmap.find_minima(line((x**2 - 1) ** 2 + 0.1 * x, x=x))
    assert found.count == 2 and found.area.tolist() == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"field": "test_loss"}, "no field 'test_loss'"),
        ({"field": "top_eig"}, "several numbers at a point"),
        ({"least": -1.0}, "least must be >= 0"),
        ({"field": "train_acc"}, "no point of the field 'train_acc' has a finite value"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(keywords, sentence):
    surface = line(X, top_eig=np.ones((41, 2)), train_acc=np.full(41, np.nan))
    with pytest.raises((KeyError, ValueError), match=sentence):
        lossmap.find_minima(surface, **keywords)
    with pytest.raises(ValueError, match=r"holds no loss; name a field\. There are: other"):
        lossmap.find_minima(lossmap.Surface(lossmap.Grid(X), {"other": X}))


def test_it_is_saved_read_back_equal_and_counted_beside_others(tmp_path):
    found = lossmap.find_minima(wells(), label="seed 1")
    path = found.save(tmp_path / "minima.h5")
    again = read_result(path)
    assert again.equals(found) and repr(again) == repr(found)
    other = lossmap.find_minima(line(X**2 + 1), label="seed 2")
    text = counts_table([StoredReport(*t.stored()) for t in (found, other)])
    assert "median  " in text and "1.5" in text and "seed 2" in text


def touching(shape, diagonal):
    """Pairs of flat indices that touch, found point by point."""
    points = [np.unravel_index(i, shape) for i in range(int(np.prod(shape)))]
    for i, j in product(range(len(points)), repeat=2):
        apart = [abs(int(a) - int(b)) for a, b in zip(points[i], points[j], strict=True)]
        if i < j and max(apart) == 1 and (diagonal or sum(apart) == 1):
            yield i, j


def flooded(flat, level, pairs):
    """The part of {f <= level} in which each point lies, by the lowest index in it; -1 above the level."""
    part = np.where(flat <= level, np.arange(flat.size), NONE)
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            if part[i] != part[j] and min(part[i], part[j]) >= 0:
                part[part == max(part[i], part[j])] = min(part[i], part[j])
                changed = True
    return part


def check_by_flooding(found):
    """Every number of the minima that count, by sublevel sets flooded afresh and by all pairs of touching points."""
    flat, basin = found.values.reshape(-1), found.basin.reshape(-1)
    pairs = [p for p in touching(found.values.shape, found.diagonal) if np.isfinite(flat[list(p)]).all()]
    counted = np.flatnonzero(found.is_real)
    assert set(basin[np.isfinite(flat)].tolist()) == set(counted.tolist())
    assert (basin[~np.isfinite(flat)] == NONE).all()
    for row in counted:
        own = found.minimum[row]
        assert basin[own] == row
        piece = flooded(np.where(basin == row, 0.0, np.nan), 0.0, pairs)
        assert len(set(piece[basin == row].tolist())) == 1  # the basin is connected
        passes = [flat[[i, j]].max() for i, j in pairs if (basin[i] == row) != (basin[j] == row)]
        assert found.depth[row] == min(passes, default=np.inf) - flat[own]
        if passes:
            assert flat[found.exit[row]] == min(passes)
        else:
            assert found.exit[row] == NONE
        lower = [r for r in counted if r < row]
        for level in np.unique(flat[np.isfinite(flat)]):
            part = flooded(flat, level, pairs)
            met = [r for r in lower if part[own] >= 0 and part[found.minimum[r]] == part[own]]
            if met:
                assert found.into[row] == met[0]
                assert flat[found.saddle[row]] == level
                assert part[found.saddle[row]] == part[own]
                break
        else:
            assert found.into[row] == NONE and found.saddle[row] == NONE and found.persistence[row] == np.inf
    for row in np.flatnonzero(~found.is_real):
        assert found.into[row] == basin[found.minimum[row]]  # the minimum to whose basin its own was joined


@settings(max_examples=200, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([0.0, 0.3, 0.6, 1.1, 2.0]))
def test_numbers_are_those_of_the_joined_basins_where_small_minima_do_not_count(values, diagonal, least):
    if np.isnan(values).all():
        return
    grid = lossmap.Grid(*(np.arange(float(n)) for n in values.shape[::-1]))
    found = lossmap.find_minima(lossmap.Surface(grid, {"train_loss": values}), diagonal=diagonal, least=least)
    check_by_flooding(found)
    flat = found.values.reshape(-1)
    for row in np.flatnonzero(found.is_real):  # one error for all: what is lower has the larger persistence
        assert flat[found.basin.reshape(-1) == row].min() == flat[found.minimum[row]]
        if found.saddle[row] != NONE:
            assert found.persistence[row] == flat[found.saddle[row]] - flat[found.minimum[row]]


@settings(max_examples=200, deadline=None)
@given(VALUES, st.booleans(), st.integers(0, 2**32 - 1))
def test_numbers_are_those_of_the_joined_basins_under_unequal_errors(values, diagonal, seed):
    if np.isnan(values).all():
        return
    errors = np.random.default_rng(seed).choice([0.0, 0.0, 0.2, 0.5, 3.0, np.inf], size=values.shape)
    grid = lossmap.Grid(*(np.arange(float(n)) for n in values.shape[::-1]))
    surface = lossmap.Surface(grid, {"train_loss": values, "train_loss_error": errors})
    check_by_flooding(lossmap.find_minima(surface, diagonal=diagonal))


def test_a_pit_beside_the_lowest_minimum_leaves_the_depth_of_the_well():
    x = np.linspace(-2, 2, 401)
    values = (x**2 - 1) ** 2 + 0.1 * x + 1
    lowest, top = int(np.argmin(values)), float(values[150:250].max())
    values[lowest + 5] -= 0.02
    found = lossmap.find_minima(line(values, x=x), least=0.05)
    assert found.count == 2
    assert found.depth[found.is_real].tolist() == pytest.approx((top - values[found.minimum[found.is_real]]).tolist())


def test_a_ripple_on_the_outer_slope_goes_to_the_basin_beside_it():
    values = np.array([9.0, 0.0, 5.0, 1.0, 6.0, 5.9, 9.0])
    found = lossmap.find_minima(line(values, x=np.arange(7.0)), least=1.0)
    assert found.basin.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.into[found.basin[5]] == 0 and found.depth[found.is_real].tolist() == [5.0, 4.0]


def test_a_minimum_merges_into_one_that_counts_where_both_meet():
    """The second minimum is lower than the third, but its pass to the first one has a large error."""
    values = np.array([5, 0, 3, 1, 2.0, 1.5, 2.5, 4.0, 6, 7.0])
    errors = np.where(np.arange(10) == 2, 9.0, 0.0)
    found = lossmap.find_minima(line(values, x=np.arange(10.0), train_loss_error=errors))
    assert found.is_real.tolist() == [True, False, True]
    assert found.into.tolist() == [NONE, 2, 0] and found.saddle.tolist() == [NONE, 4, 2]
    assert found.basin.tolist() == [0, 0, 0] + [2] * 7 and found.depth.tolist() == [3.0, 1.0, 1.5]
    assert found.persistence[2] == 0.5 and found.error[2] < 1e-5  # up to the second, which no error explains
    text = " ".join(repr(found).split())
    assert "persistence of 3 ends where a lower minimum is met that is not counted" in text
    check_by_flooding(found)


def test_the_lowest_minimum_counts_whatever_its_error():
    found = lossmap.find_minima(line(X**2, train_loss_error=np.full(X.shape, np.inf)))
    assert found.count == 1 and "1 minimum on 41 points" in repr(found)
    assert lossmap.find_minima(line(X**2), least=np.inf).count == 1


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 7), "7 x 1 points with 2 neighbours each"), ((1, 1), "1 minimum on 1 point;")]
)
def test_a_plane_of_one_row_has_the_neighbours_of_a_line(shape, words):
    grid = lossmap.Grid(np.arange(float(shape[1])), np.zeros(1))
    found = lossmap.find_minima(lossmap.Surface(grid, {"train_loss": np.ones(shape)}))
    assert words in repr(found)
    column = lossmap.Grid(np.zeros(1), np.arange(5.0))
    found = lossmap.find_minima(lossmap.Surface(column, {"train_loss": np.ones((5, 1))}), diagonal=False)
    assert "1 x 5 points with 2 neighbours each" in repr(found)
