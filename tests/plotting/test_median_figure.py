"""Lines of several seeds as median and band."""

import numpy as np
import pytest

from lossmap.geometry.grid import Grid
from lossmap.io.read import Surface
from lossmap.plotting.figures import draw

X = np.linspace(-1, 1, 5)


def seed(factor, **more):
    return Surface(Grid(X), {"train_loss": factor * (1 + X**2), "train_acc": 90 - factor + 0 * X, **more})


def test_the_line_is_the_median_and_the_band_reaches_to_the_extremes():
    figure = draw([seed(1), seed(5), seed(2)], "median")
    left, right = figure.axes
    median = next(line for line in left.lines if line.get_label() == "train")
    assert np.allclose(median.get_ydata(), 2 * (1 + X**2))
    (band,) = left.collections
    corners = band.get_paths()[0].vertices
    assert np.isclose(corners[:, 1].min(), 1) and np.isclose(corners[:, 1].max(), 10)
    accuracy = next(line for line in right.lines if line.get_label() == "train")
    assert np.allclose(accuracy.get_ydata(), 88) and len(left.lines) == 5  # three seeds, their median, the model
    assert figure.get_supxlabel() == "line: median of 3 files; band: from the smallest to the largest"


def test_a_point_that_a_file_lacks_is_left_to_the_others_and_counted():
    holed = seed(100)
    holed["train_loss"][1], holed["train_loss"][2] = np.nan, np.inf
    figure = draw([seed(1), seed(3), holed], "median", "train_loss")
    median = next(line for line in figure.axes[0].lines if line.get_label() == "train")
    assert np.allclose(median.get_ydata() / (1 + X**2), [3, 2, 2, 3, 3])
    assert "at 2 points a file has no finite value" in figure.get_supxlabel().replace("\n", " ")


def test_one_file_or_other_points_make_no_median():
    with pytest.raises(ValueError, match="a median is of several files"):
        draw(seed(1), "median")
    other = Surface(Grid(X + 0.1), {"train_loss": X})
    with pytest.raises(ValueError, match="these have different ticks"):
        draw([seed(1), other], "median")
    with pytest.raises(ValueError, match="--vlevel changes nothing of"):
        draw([seed(1), seed(2)], "median", vlevel=1)
    with pytest.raises(ValueError, match="no field 'max_eig' here"):
        draw([seed(1), seed(2)], "median", "max_eig")
