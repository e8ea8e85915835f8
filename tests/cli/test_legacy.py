"""The drawing scripts of the original tool by their own command lines, on files in its format."""

from pathlib import Path

import h5py
import matplotlib
import numpy as np
import pytest
import torch

import lossmap
from lossmap.cli.__main__ import main
from lossmap.landscape.refine import refined
from lossmap.zoo import build

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "original_tool"


def line(path, shift=0.0, test=True):
    """A line as the original tool stores it."""
    with h5py.File(path, "w") as file:
        x = np.linspace(-1, 1, 5)
        file["xcoordinates"] = x
        for split in ("train", "test") if test else ("train",):
            file[f"{split}_loss"] = (x - shift) ** 2 + 0.1
            file[f"{split}_acc"] = 100 - 50 * x**2
    return path


def plane(path):
    """A plane as the original tool stores it: shape (x, y), here square, -1 where nothing was computed."""
    with h5py.File(path, "w") as file:
        x = np.linspace(-1, 1, 5)
        file["xcoordinates"], file["ycoordinates"] = x, x
        file["train_loss"] = x[:, None] ** 2 + 2 * x[None, :] ** 2 + 0.2
        file["train_acc"] = np.full((5, 5), 80.0)
    return path


def path_on_plane(folder):
    with h5py.File(folder / "proj.h5", "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = np.linspace(-1, 0, 6), np.linspace(0.5, 0, 6) ** 2
    with h5py.File(folder / "dir.h5", "w") as file:
        file["explained_variance_ratio_"] = np.array([0.8, 0.15])
    return folder / "proj.h5", folder / "dir.h5"


def new_files(folder, before):
    return {p.name for p in folder.iterdir()} - before


def test_plot_1d_writes_the_pictures_of_the_original_under_its_names(tmp_path, capsys):
    path = line(tmp_path / "line.h5")
    assert main(["legacy", "plot_1D.py", "--surf_file", str(path), "--loss_max", "3", "--xmin", "-0.5", "--log"]) == 0
    names = {"line.h5_1d_loss_acc_log.pdf", "line.h5_1d_train_loss_log.pdf", "line.h5_1d_train_err.pdf"}
    assert new_files(tmp_path, {"line.h5"}) == names
    assert capsys.readouterr().out.count("picture: ") == 3


def test_the_ends_of_the_axes_are_those_asked_for(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("lossmap.cli.legacy.save", lambda figure, path: drawn.append(figure) or path)
    path = str(line(tmp_path / "line.h5"))
    assert main(["legacy", "plot_1D", "-f", path, "--xmin=-0.5", "--loss_max", "3"]) == 0
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == (-0.5, 1.0) and axes.get_ylim()[1] == 3
    error = drawn[2].axes[0]
    assert error.get_ylabel() == "training error (percent)"
    np.testing.assert_allclose(error.lines[0].get_ydata(), 50 * np.linspace(-1, 1, 5) ** 2)


def test_several_lines_go_into_one_picture(tmp_path, capsys):
    for i in (2, 3, 4):
        line(tmp_path / f"net_{i}.h5", 0.1 * i)
    prefix = str(tmp_path / "net")
    assert main(["legacy", "plot_1D", "--prefix", prefix, "--idx_min", "2", "--idx_max", "4"]) == 0
    assert (tmp_path / "net_1d_loss_err_repeat.pdf").exists() and (tmp_path / "net_1d_test_err_repeat.pdf").exists()
    assert main(["legacy", "plot_1D", "--prefix", prefix]) == 2  # --idx_min 1, as there
    assert "net_1.h5" in capsys.readouterr().err
    assert main(["legacy", "plot_1D", "--prefix", prefix, "--idx_min", "5", "--idx_max", "4"]) == 2
    assert "--idx_max must be >= --idx_min; got 4 and 5" in capsys.readouterr().err


def test_plot_2d_draws_contours_cells_and_3d_with_the_levels_of_the_original(tmp_path, monkeypatch):
    path = plane(tmp_path / "plane.h5")
    words = ["legacy", "plot_2D", "--surf_file", str(path), "--surf_name", "train_loss"]
    assert main(words) == 0
    ends = ("2dcontour", "2dcontourf", "2dheat", "3dsurface")
    assert new_files(tmp_path, {"plane.h5"}) == {f"plane.h5_train_loss_{end}.pdf" for end in ends}
    drawn = []
    monkeypatch.setattr("lossmap.cli.legacy.save", lambda figure, path: drawn.append(figure) or path)
    assert main([*words, "--vmin", "0.2", "--vmax", "2.2", "--vlevel", "0.5"]) == 0
    contours = next(c for c in drawn[0].axes[0].get_children() if isinstance(c, matplotlib.contour.ContourSet))
    assert contours.levels == pytest.approx([0.7, 1.2, 1.7, 2.2])  # 0.2 is the minimum


def test_a_training_path_is_drawn_over_a_plane_and_alone(tmp_path):
    surface = plane(tmp_path / "plane.h5")
    path, directions = path_on_plane(tmp_path)
    words = ["legacy", "plot_2D", "--proj_file", str(path), "--dir_file", str(directions)]
    assert main(words) == 0
    assert (tmp_path / "proj.h5.pdf").exists()
    assert main([*words, "--surf_file", str(surface)]) == 0
    assert (tmp_path / "proj.h5_train_loss_2dcontour_proj.pdf").exists()


def test_h52vtp_writes_polygons(tmp_path):
    path = plane(tmp_path / "plane.h5")
    assert main(["legacy", "h52vtp", "--file", str(path), "--zmax", "2", "--log", "--interp", "9"]) == 0
    text = (tmp_path / "plane.h5_train_loss_zmax=2.0_log.vtp").read_text()
    assert 'NumberOfPoints="81"' in text and 'NumberOfPolys="64"' in text
    assert main(["legacy", "h52vtp", "-f", str(path), "--surf_name", "train_err"]) == 0
    assert 'NumberOfPoints="25"' in (tmp_path / "plane.h5_train_err.vtp").read_text()


def test_a_refined_surface_goes_through_its_points_and_is_that_of_a_cubic():
    x, y = np.linspace(-1, 1, 6), np.linspace(0, 2, 5)
    cubic = x[None, :] ** 3 - 2 * x[None, :] * y[:, None] ** 2
    surface = lossmap.Surface(lossmap.Grid(x, y), {"train_loss": cubic})
    fine = refined(surface, "train_loss", 11)
    expected = fine.grid.x[None, :] ** 3 - 2 * fine.grid.x[None, :] * fine.grid.y[:, None] ** 2
    np.testing.assert_allclose(fine["train_loss"], expected, atol=1e-12)
    cubic[0, 0] = np.nan
    with pytest.raises(ValueError, match="of train_loss 1 of 30 points are missing"):
        refined(lossmap.Surface(lossmap.Grid(x, y), {"train_loss": cubic}), "train_loss", 11)


def test_plot_trajectory_projects_the_checkpoints_that_it_names(tmp_path, capsys, caplog):
    run = tmp_path / "run"
    run.mkdir()
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((20, 1, 8, 8)).astype("f4"), y=np.arange(20) % 10)
    model, generator = build("mlp", seed=0), torch.Generator().manual_seed(0)
    for epoch in range(4):
        torch.save({"state_dict": model.state_dict()}, run / f"net{epoch}.t7")
        for p in model.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
    words = ["legacy", "plot_trajectory", "--model", "mlp", "--dataset", f"npz:{tmp_path / 'data.npz'}"]
    words += ["--model_folder", str(run), "--prefix", "net", "--max_epoch", "3"]
    before = {p.name for p in run.iterdir()}
    assert main([*words, "--start_epoch", "1"]) == 0
    name = "PCA_weights_save_epoch=1_proj.h5"
    assert new_files(run, before) == {name, f"{name}.pdf"}
    trajectory = lossmap.read(run / name).groups["trajectory"]
    assert len(trajectory["x"]) == 3  # net0 is left out
    assert main(words) == 0
    assert "nothing is projected unless it is deleted" in capsys.readouterr().out
    path, nets = str(run / name), ["--model-file", str(run / "net3.t7"), "--x=0:1:2", "--y=0:1:2", "--proj-file"]
    surface, file = ["surface", *words[2:6], *nets, path, "--surf-file"], tmp_path / "random.h5"
    assert main([*surface, str(file)]) == 2
    refusal = capsys.readouterr().err
    assert "was projected onto another plane, with other directions, another --dir-type or another origin" in refusal
    assert f"--dir-file {path} takes those directions" in refusal
    assert not file.exists()
    assert main([*surface, str(tmp_path / "path.h5"), "--dir-file", path]) == 0
    assert "trajectory" in lossmap.read(tmp_path / "path.h5").groups
    assert main([*surface[:-3], "--surf-file", str(file)]) == 0
    assert main([*surface, str(file)]) == 0  # continued
    assert "was projected onto another plane: its path is left out" in caplog.text
    assert "trajectory" not in lossmap.read(file).groups
    assert main([*words, "--start_epoch", "1", "--save_epoch", "2", "--dir_file", str(tmp_path / "no.h5")]) == 2
    assert f"there is no {tmp_path / 'no.h5'}, whose plane --proj-file would take" in capsys.readouterr().err
    assert main([*words, "--max_epoch", "5"]) == 2
    assert "there is no" in (text := capsys.readouterr().err) and "net4.t7" in text


@pytest.mark.parametrize("data", [[], ["--dataset", "cifar10"]])
def test_plot_trajectory_needs_no_data_as_in_the_original(tmp_path, capsys, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    model = build("mlp", seed=0)
    for epoch in range(3):
        torch.save({"state_dict": model.state_dict()}, tmp_path / f"model_{epoch}.t7")
        for p in model.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(epoch))
    words = ["legacy", "plot_trajectory", "--model", "mlp", *data, "--model_folder", str(tmp_path), "--max_epoch", "2"]
    assert main(words) == 0
    result = lossmap.read(tmp_path / "PCA_weights_save_epoch=1_proj.h5")
    assert {"x", "y", "residual"} <= set(result.groups["trajectory"].arrays)
    assert "loss" not in result.groups["trajectory"].arrays
    assert (tmp_path / "PCA_weights_save_epoch=1_proj.h5.pdf").exists()
    assert "explains" in capsys.readouterr().out


def test_what_a_script_does_not_have_is_named(tmp_path, capsys):
    path = str(line(tmp_path / "line.h5", test=False))
    for words, sentence in (
        (["plot_1D", "--zmax", "3"], "plot_1D has no --zmax; it has --idx_max"),
        (["plot_3D"], "must be one of plot_1D, plot_2D, plot_trajectory, h52vtp; got 'plot_3D'"),
        (["plot_2D", "--surf_file", path], "holds a line, too little for contours"),
        (["plot_1D"], "plot_1D needs --surf_file"),
        (["plot_trajectory"], "needs --model_folder"),
        (["plot_1D", "--surf_file", str(plane(tmp_path / "plane.h5"))], "legacy plot_2D draws it"),
        (["h52vtp", "--file", str(tmp_path / "plane.h5"), "--surf_name", "test_loss"], "there is no test_loss"),
    ):
        assert main(["legacy", *words]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(not (REFERENCE / "plane_surf.h5").exists(), reason="the original tool's files are not there")
def test_files_of_the_original_tool_are_drawn(tmp_path):
    for name in ("line_surf.h5", "plane_surf.h5"):
        (tmp_path / name).write_bytes((REFERENCE / name).read_bytes())
    assert main(["legacy", "plot_1D", "--surf_file", str(tmp_path / "line_surf.h5")]) == 0
    assert main(["legacy", "plot_2D", "--surf_file", str(tmp_path / "plane_surf.h5")]) == 0
    assert main(["legacy", "h52vtp", "--file", str(tmp_path / "plane_surf.h5"), "--zmax", "10"]) == 0
    assert len(list(tmp_path.iterdir())) == 2 + 3 + 4 + 1
