"""Axes of the caller's own: those that cannot show a picture are refused, the others keep their figure as it was."""

import warnings
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lossmap.geometry.grid import Grid
from lossmap.io.read import Surface
from lossmap.plotting.figures import draw

T = np.linspace(-1, 1, 7)
GRID = Grid(T, T.copy())
X, Y = np.meshgrid(T, T)
PLANE = Surface(GRID, {"train_loss": 0.1 + X**2 + Y**2})
EIGEN = Surface(GRID, {"train_loss": 0.1 + X**2 + Y**2, "max_eig": 3 + X, "min_eig": X})
LINE = Surface(Grid(T), {"train_loss": T**2 + 0.1, "train_acc": 90 - T**2})


@pytest.fixture
def panels():
    figure = plt.figure(figsize=(5.5, 2.6), layout="constrained")
    yield figure
    plt.close(figure)


@pytest.mark.parametrize("surface", [PLANE, EIGEN, LINE])
def test_axes_that_bend_or_cut_the_picture_are_refused(panels, surface):
    with pytest.raises(ValueError, match="rectilinear axes; got axes with projection='polar'"):
        draw(surface, ax=panels.add_subplot(projection="polar"))
    left, right = panels.subplots(1, 2)
    right.set_xscale("log")
    with pytest.raises(ValueError, match="linear axis x"):
        draw(surface, ax=right)
    with pytest.raises(ValueError, match="one Axes of matplotlib"):
        draw(surface, ax=np.array([left, right]))
    assert not left.has_data()
    assert not right.has_data()


def test_a_plane_is_not_drawn_over_a_twin(panels):
    with pytest.raises(ValueError, match="twins"):
        draw(PLANE, ax=panels.subplots().twinx())


@pytest.mark.parametrize("surface", [PLANE, EIGEN, LINE])
def test_a_part_of_a_figure_takes_a_picture_with_a_title_and_keeps_its_size(panels, surface):
    parts = panels.subfigures(1, 2)
    axes = parts[0].subplots()
    words = "a title of so many words that it stands in three lines"
    assert draw(surface, ax=axes, titles=[words]) is panels
    assert axes.get_title().count("\n") >= 1
    assert tuple(panels.get_size_inches()) == (5.5, 2.6)


@pytest.mark.parametrize("surface", [PLANE, EIGEN])
def test_the_colour_bar_stands_beside_its_map_in_a_tight_layout(surface):
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.5, 2.6))
    draw(surface, ax=left)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.tight_layout()
    figure.canvas.draw()
    bar = next(axes for axes in figure.axes if axes not in (left, right))
    assert left.get_window_extent().x1 < bar.get_window_extent().x0
    assert bar.get_tightbbox().x1 < right.get_window_extent().x0
    plt.close(figure)


@pytest.mark.parametrize("surface", [PLANE, EIGEN])
@pytest.mark.parametrize("size", [(6.75, 3), (5, 2.2)])
def test_a_colour_bar_and_its_label_stay_out_of_the_next_panel_without_a_layout(surface, size):
    figure, (left, right) = plt.subplots(1, 2, figsize=size)
    place = left.get_window_extent().frozen()
    draw(surface, ax=left)
    figure.canvas.draw()
    bar = next(axes for axes in figure.axes if axes not in (left, right))
    assert bar.yaxis.label.get_window_extent().x1 < place.x1 + 0.06 * figure.dpi
    assert bar.get_window_extent().x0 > left.get_window_extent().x1
    labels = [text.get_window_extent() for text in left.get_xticklabels() if text.get_text()]
    assert len(labels) >= 3 and not any(a.overlaps(b) for a, b in pairwise(labels))
    plt.close(figure)


@pytest.mark.parametrize("size", [(6.75, 3), (5, 2.2)])
def test_both_sides_of_a_line_stay_in_their_room_without_a_layout(size):
    """The label of the accuracy lay over the next panel, and that of x below the figure."""
    figure, panels = plt.subplots(1, 2, figsize=size)
    rooms = [axes.get_window_extent().frozen() for axes in panels]
    for axes in panels:
        draw(LINE, ax=axes)
    figure.canvas.draw()
    for axes, room in zip(panels, rooms, strict=True):
        right = next(other for other in figure.axes if other is not axes and other.bbox.bounds == axes.bbox.bounds)
        assert right.get_tightbbox().x1 < room.x1 + 2
        assert axes.get_tightbbox().y0 > -2
        assert axes.get_window_extent().width > 0.5 * room.width
        assert axes.get_in_layout()
    assert figure.axes[2].get_tightbbox().x1 < panels[1].get_tightbbox().x0 + 2
    place = panels[0].get_position().bounds
    draw(LINE, ax=panels[0])
    assert panels[0].get_position().bounds[2] == place[2]  # drawn into twice, it shrinks once
    plt.close(figure)


@pytest.mark.parametrize("size", [(6.75, 3), (5, 2.2)])
def test_the_legend_leaves_a_small_map_alone_without_a_layout(size):
    figure, (left, right) = plt.subplots(1, 2, figsize=size)
    room = left.get_window_extent().frozen()
    draw(EIGEN, ax=left)
    figure.canvas.draw()
    legend, panel = left.get_legend().get_window_extent(), left.get_window_extent()
    assert legend.y0 > -2 and legend.y1 < left.xaxis.get_tightbbox().y0
    assert legend.x1 < room.x1 + 2 < right.get_window_extent().x0
    assert panel.height > 0.25 * room.height
    bar = next(axes for axes in figure.axes if axes not in (left, right))
    assert not legend.overlaps(bar.get_tightbbox())
    plt.close(figure)


@pytest.mark.parametrize("surface", [PLANE, LINE])
def test_labels_of_small_panels_stay_within_the_figure_and_ticks_apart(surface):
    figure, panels = plt.subplots(1, 2, figsize=(5, 2.2), layout="constrained")
    for axes in panels:
        draw(surface, ax=axes)
    figure.canvas.draw()
    for axes in figure.axes:
        label = axes.yaxis.label.get_window_extent()
        assert label.y0 > -0.02 * figure.dpi and label.y1 < figure.bbox.y1 + 0.02 * figure.dpi
    for axes in panels:
        labels = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert len(labels) >= 2 and not any(a.overlaps(b) for a, b in pairwise(labels))
    plt.close(figure)


def test_the_legend_stands_below_a_map_where_the_layout_makes_room(panels):
    axes = panels.subplots()
    draw(EIGEN, ax=axes)
    panels.canvas.draw()
    legend, below = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 <= below.y0 + 1


def test_the_label_of_a_small_relief_stands_at_its_bar(panels):
    axes = panels.add_subplot(121, projection="3d")
    draw(PLANE, "3d", ax=axes)
    assert axes.get_zlabel() == ""
    assert any("training loss" in other.get_ylabel().replace("\n", " ") for other in panels.axes)


def test_what_was_drawn_before_stays_in_sight(panels):
    wide = Surface(Grid(3 * T), {"train_loss": 1 + T**2})
    axes = panels.subplots()
    axes.set_yscale("log")
    draw(wide, ax=axes)
    draw(Surface(Grid(T), {"train_loss": 1 + T**2}), ax=axes)
    assert axes.get_xlim() == (-3, 3)
    assert axes.get_ylabel().replace("\n", " ") == "training loss (nats), log scale"


def test_maps_over_other_windows_in_axes_that_share_their_ranges_stay_whole(panels):
    left, right = panels.subplots(1, 2, sharex=True, sharey=True)
    far = Surface(Grid(T + 5, T), {"train_loss": 0.1 + X**2 + Y**2})
    draw(PLANE, ax=left)
    draw(far, ax=right)
    assert left.get_xlim() == (-1, 6)
