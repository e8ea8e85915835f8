"""Every kind of file is drawn as what it holds."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.cli import draw, health, plane, spectrum, status, train
from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting.dispatch import figures_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A result of each draw, as a person makes them."""
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("files")
        patch.chdir(here)
        torch.manual_seed(0)
        (here / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(6, 3)\n")
        x = torch.randn(40, 6)
        np.savez("data.npz", x=x.numpy(), y=(x[:, :3].argmax(1)).numpy())
        torch.save(nn.Linear(6, 3).state_dict(), "net.pt")
        own = ["--model", "net.py:net", "--dataset", "npz:data.npz"]
        assert train.main([*own, "--folder", "run", "--epochs", "3", "--batch-size", "20"]) == 0
        axes = ["--xdir", "pca:1", "--ydir", "pca:2"]
        assert plane.main([*own, "--model-folder", "run", *axes, "--proj-file", "path.h5"]) == 0
        assert plane.main([*own, "--model-file", "net.pt", "--dir-file", "plane.h5"]) == 0
        given = [*own, "--model-file", "net.pt"]
        assert spectrum.main([*given, "--layers", "tensor", "--surf-file", "spectrum.h5"]) == 0
        assert spectrum.main([*own, "--along", "run", "--top", "2", "--surf-file", "evolution.h5"]) == 0
        assert health.main([*given, "--surf-file", "health.h5"]) == 0
    return here


def words(figure):
    import matplotlib

    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("path", ["path"], "distance from the plane"),
        ("spectrum", ["spectrum_train", "spectrum_layers_train"], "density, smoothed"),
        ("evolution", ["evolution"], "dimension:"),
        ("health", ["health"], "net.pt"),
    ],
)
def test_draw_shows_what_a_file_holds(files, name, made, said, capsys):
    assert draw.main([str(files / f"{name}.h5")]) == 0
    expected = [f"picture: {files / stem}{end}" for stem in made for end in (".pdf", ".png")]
    assert capsys.readouterr().out.splitlines() == expected
    assert said in words(lossmap.draw(files / f"{name}.h5"))


def test_a_plane_alone_is_named_and_not_drawn(files, capsys):
    assert draw.main([str(files / "plane.h5")]) == 2
    assert "it holds: directions (see lossmap plane FILE)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plane", "path", "health"])
def test_a_file_without_a_survey_has_nothing_left_to_do(files, name, capsys):
    assert status.main([str(files / f"{name}.h5")]) == 0
    assert f"{name}.h5: not a survey, so there is nothing to do; it holds " in capsys.readouterr().out


def test_the_loss_along_a_path_is_that_of_its_checkpoints(files):
    held = lossmap.read(files / "path.h5", Surface).groups["trajectory"]
    right = lossmap.draw(files / "path.h5").axes[1]
    assert np.array_equal(right.lines[0].get_xdata(), held["step"])
    assert np.array_equal(right.lines[0].get_ydata(), held["loss"])


def test_layers_and_labels_are_selected_by_name(files, tmp_path, capsys):
    picture = ["-o", str(tmp_path / "a.png")]
    assert draw.main([str(files / "spectrum.h5"), "--kind", "layers", "--field", "train", *picture]) == 0
    assert draw.main([str(files / "spectrum.h5"), "--field", "valid", "--kind", "spectrum", *picture]) == 2
    assert "there is no spectrum 'valid'; there are train" in capsys.readouterr().err
    assert draw.main([str(files / "health.h5"), "--kind", "layers", *picture]) == 2
    assert "this file holds no layers; it holds: health" in capsys.readouterr().err
    assert draw.main([str(files / "health.h5"), "--vtk"]) == 2
    assert "this file holds no surface; it holds: health" in capsys.readouterr().err


def test_spectra_of_several_files_are_compared_and_reports_are_not(files, tmp_path):
    figure = lossmap.draw([files / "spectrum.h5"] * 2, "spectrum", titles=["one", "two"])
    assert {"one", "two"} <= {t.get_text() for t in figure.axes[1].get_yticklabels()}
    with pytest.raises(ValueError, match="a picture of the kind health shows one file; got 2"):
        lossmap.draw([files / "health.h5"] * 2, "health")


def test_a_surface_that_holds_more_says_so_and_is_drawn_as_a_surface(files, tmp_path, capsys):
    group = lossmap.read(files / "health.h5", Surface).groups["health"]
    grid = Grid(np.linspace(-1, 1, 5))
    write_surface(tmp_path / "s.h5", Surface(grid, {"train_loss": grid.x**2}, groups={"health": group}))
    assert draw.main([str(tmp_path / "s.h5")]) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/s.h5 holds health too: --kind health draws that" in told and "s.png" in told


def test_a_path_of_the_original_tool_is_drawn_without_a_surface(tmp_path, capsys):
    import h5py

    with h5py.File(tmp_path / "proj.h5", "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = [3.0, 1.0, 0.0], [0.5, -1.0, 0.0]
    assert draw.main([str(tmp_path / "proj.h5")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["proj.h5", "proj.pdf", "proj.png"]


def test_several_contents_of_one_file_have_a_name_each(files):
    path = Group({"x": np.arange(3.0), "step": np.arange(3)})
    held = lossmap.read(files / "spectrum.h5", Surface).groups | {"trajectory": path}
    assert list(figures_of(Surface(Grid(np.zeros(1)), {}, groups=held))) == ["_train", "_layers_train", "_path"]


def test_labels_that_differ_in_a_space_or_a_dash_have_a_picture_each(files):
    held = lossmap.read(files / "spectrum.h5", Surface).groups
    groups = {f"layers/{label}": held["layers/train"] for label in ("a b", "a-b", "c", "C", "é")}
    figures = figures_of(Surface(Grid(np.zeros(1)), {}, groups=groups))
    assert list(figures) == ["_layers_a-b", "_layers_a-b-2", "_layers_c", "_layers_C-2", "_layers_é"]


def test_the_loss_in_the_plane_and_drops_of_the_learning_rate_stand_in_the_legend():
    columns = {"x": np.arange(6.0), "step": np.arange(6), "loss": np.arange(6.0, 0.0, -1), "plane_loss": np.ones(6)}
    columns["learning_rate"] = np.array([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    figure = lossmap.draw(Surface(Grid(np.zeros(1)), {}, groups={"trajectory": Group(columns)}))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["loss in the plane", "learning rate drops"]
    lines = [x.get_xdata()[0] for x in figure.axes[1].lines if x.get_linestyle() == ":"]
    assert lines == [1.5, 3.5]


def test_a_path_without_a_surface_shows_itself_in_a_notebook():
    """It has a figure, and no field whose values could all be missing."""
    path = Group({"x": np.array([1.0, 0.5, 0.0]), "y": np.array([0.2, 0.4, 0.0])})
    png = Surface(Grid(np.zeros(1)), {}, groups={"trajectory": path})._repr_png_()
    assert png is not None and png.startswith(b"\x89PNG")
    assert Surface(Grid(np.zeros(1)), {"train_loss": np.full(1, np.nan)})._repr_png_() is None
