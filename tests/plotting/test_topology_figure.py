"""The figure of minima: what its artists show."""

import dataclasses

import numpy as np
import pytest

import lossmap
from lossmap.plotting.topology import _order_of

X = np.linspace(-2, 2, 41)


def figure_of(values, grid):
    found = lossmap.find_minima(lossmap.Surface(grid, {"train_loss": values}))
    return found, lossmap.draw(found)


def test_numbers_stand_at_the_minima_and_crosses_at_the_saddles():
    values = np.add.outer(X**2, (X**2 - 1) ** 2 + 0.1 * X + 1)
    _, figure = figure_of(values, lossmap.Grid(X, X))
    first, diagram, tree = figure.axes[:3]
    at = {text.get_text(): text.get_position() for text in first.texts}
    assert at["1"] == pytest.approx((-1.0, 0.0)) and at["2"] == pytest.approx((1.0, 0.0))
    crosses = [line for line in first.lines if line.get_marker() == "x"]
    assert crosses and np.allclose(crosses[0].get_xydata(), [[0.0, 0.0]])
    assert first.get_title() == "2 minima" and tree.get_title() == "merge tree"
    points = {tuple(np.round(p, 9)) for line in diagram.lines for p in line.get_xydata()}
    assert (1.1, 2.0) in points  # minimum and pass of the higher well
    assert "nats" in diagram.get_xlabel() and len(figure.axes) == 4


def test_of_a_line_the_curve_bears_them_and_errors_leave_minima_out():
    found, figure = figure_of(2 + np.maximum(0, abs(X) - 1) ** 2 + 2e-7 * np.cos(40 * X), lossmap.Grid(X))
    title = figure.axes[0].get_title()
    assert title == f"1 minimum, {len(found.minimum) - 1} within error"
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len(dots) == 1 and abs(dots[0].get_xdata()[0]) < 1.0


def test_points_of_the_diagram_at_one_place_bear_their_number_and_the_field_is_in_words():
    """Five wells, the deepest in the middle, the others two and two alike."""
    x = np.linspace(0, 8, 81)
    values = 2 - np.cos(np.pi * x) - 0.5 * np.exp(-((x - 4) ** 2))
    _, figure = figure_of(values, lossmap.Grid(x))
    diagram = figure.axes[1]
    assert [text.get_text() for text in diagram.texts] == ["\N{MULTIPLICATION SIGN}2"] * 2
    assert diagram.get_xlabel() == "minimum: training loss (nats)"


def test_no_line_of_the_tree_crosses_another():
    parents = {0: None, 1: 0, 2: 1, 3: 0}
    deaths = np.array([9.0, 5.0, 3.0, 7.0])
    order = _order_of(parents, deaths)
    place = {row: k for k, row in enumerate(order)}
    for row, parent in parents.items():
        if parent is None:
            continue
        between = range(min(place[row], place[parent]) + 1, max(place[row], place[parent]))
        assert all(deaths[order[k]] < deaths[row] for k in between)  # they have ended below


def test_the_tree_joins_minima_that_count_where_they_meet():
    """The third minimum meets the second, which does not count, at 2, and the first one at 3."""
    values = np.array([5, 0, 3, 1, 2.0, 1.5, 2.5, 4.0, 6, 7.0])
    errors = np.where(np.arange(10) == 2, 9.0, 0.0)
    surface = lossmap.Surface(lossmap.Grid(np.arange(10.0)), {"train_loss": values, "train_loss_error": errors})
    first, _, tree = lossmap.draw(lossmap.find_minima(surface)).axes
    across = [
        line.get_ydata().tolist() for line in tree.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0
    ]
    assert across == [[3.0, 3.0]]
    assert sorted(text.get_text() for text in tree.texts) == ["1", "3"]
    crosses = [line.get_xydata().tolist() for line in first.lines if line.get_marker() == "x"]
    assert crosses == [[[2.0, 3.0]]]


def test_the_tree_passes_over_minima_that_it_has_no_room_for(monkeypatch):
    """The third minimum merges into the second at 2, and both of them into the first at 3."""
    monkeypatch.setattr("lossmap.plotting.topology.MAX_NUMBERED", 2)
    values = np.array([5, 0, 3, 1, 2.0, 1.5, 2.5, 4.0, 6, 7.0])
    found = lossmap.find_minima(lossmap.Surface(lossmap.Grid(np.arange(10.0)), {"train_loss": values}))
    persistence = np.array([np.inf, 0.4, 0.5])  # as where the second one also meets a minimum that does not count
    tree = lossmap.draw(dataclasses.replace(found, persistence=persistence)).axes[2]
    across = [
        line.get_ydata().tolist() for line in tree.lines if len(line.get_ydata()) == 2 and np.ptp(line.get_ydata()) == 0
    ]
    assert across == [[3.0, 3.0]]
