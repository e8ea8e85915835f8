"""Several quantities of several files on one sheet: rows are fields, columns are files."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet

from lossmap.cli import draw as command
from lossmap.geometry.grid import Grid
from lossmap.io.read import Surface, write_surface
from lossmap.plotting.figures import draw

GRID = Grid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7))
X, Y = np.meshgrid(GRID.x, GRID.y)
FIELDS = ["train_loss", "test_loss", "gap", "accuracy"]


def plane(scale=1.0):
    loss = scale * (0.01 + X**2 + Y**2)
    return Surface(GRID, {"train_loss": loss, "test_loss": 2 * loss - 0.3, "train_acc": 100 / (1 + loss)})


def test_rows_are_fields_and_columns_are_files_with_common_levels_in_a_row():
    figure = draw([plane(), plane(3)], field=FIELDS, titles=["A", "B"])
    panels, bars = np.array(figure.axes[:8]).reshape(4, 2), figure.axes[8:]
    assert [axes.get_title() for axes in panels[0]] == ["A", "B"]
    assert [bar.get_ylabel().split(" (")[0] for bar in bars] == [
        "training loss", "test loss", "test $-$ training loss", "training accuracy",
    ]  # fmt: skip
    for row in panels[[0, 3]]:
        one, other = (next(c for c in axes.collections if isinstance(c, QuadContourSet)).levels for axes in row)
        assert np.array_equal(one, other)
    gaps = [next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in panels[2]]
    assert np.allclose(gaps[1].get_array().reshape(7, 9), 3 * (0.01 + X**2 + Y**2) - 0.3)
    assert gaps[0].norm.vmin == -gaps[0].norm.vmax == gaps[1].norm.vmin  # white at 0 in both
    assert [axes.get_xlabel() for axes in panels[3]] == ["x", "x"] and not panels[2, 0].get_xlabel()
    assert "A: Mean loss over the training samples" in figure.get_label()


def test_the_command_takes_fields_before_and_behind_the_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_surface("a.h5", plane())
    assert command.main(["a.h5", "--field", "train_loss", "gap", "--output", "a.png"]) == 0
    assert command.main(["--field", "test_loss", "a.h5", "--output", "b.png"]) == 0
    assert capsys.readouterr().out.split() == ["picture:", "a.png", "picture:", "b.png"]
    for line, words in (
        (["a.h5", "--field", "train_loss", "gap", "--vmax", "1"], "--vmax is of one field"),
        (["a.h5", "--field", "train_loss", "gap", "--kind", "3d"], "several fields make a sheet of maps"),
        (["a.h5", "--field", "train_loss", "gap", "--output", "a.html"], "a.html shows one field"),
    ):
        assert command.main(line) == 2
        assert words in capsys.readouterr().err


def test_a_gap_needs_both_losses_and_a_line_no_sheet():
    alone = Surface(GRID, {"train_loss": X**2})
    with pytest.raises(ValueError, match="a gap needs train_loss and test_loss in one file"):
        draw(alone, field=["train_loss", "gap"])
    with pytest.raises(ValueError, match="no field 'accuracy' here; there are: train_loss"):
        draw(alone, field="accuracy")
    with pytest.raises(ValueError, match="several fields make a sheet of planes"):
        draw(Surface(Grid(GRID.x), {"train_loss": GRID.x**2, "test_loss": GRID.x}), field=["train_loss", "test_loss"])
