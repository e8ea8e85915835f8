"""Files of the original tool: its samples, and the layouts that it is known to leave behind."""

import h5py
import numpy as np
import pytest

from lossmap.io import legacy
from lossmap.io.read import NotASurface, SurfaceFile, read


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name.replace("__", "/")] = value
    return path


def test_the_sample_surfaces_are_read(reference):
    folder = reference / "original_tool"
    plane = read(folder / "plane_surf.h5")
    assert plane.grid.shape == (7, 7) and plane.outcome == "complete"
    assert plane["train_loss"][3, 3] == pytest.approx(2.36523140e-03) and plane["train_acc"][3, 3] == 100.0
    assert plane["train_loss"][0, 1] == pytest.approx(15.5798754)
    assert plane.attributes["dir_file"] == "plane_dir.h5" and plane.about["train_loss"].unit == "nats"
    line = read(folder / "line_surf.h5")
    assert line.grid.axes == 1 and line.outcome == "complete"
    assert np.isnan(line["train_loss"][-2:]).all() and (line.status["loss"] == 1).all()


def test_the_sample_directions_come_in_the_order_of_the_state_dict(reference):
    found = legacy.directions(reference / "original_tool" / "line_dir.h5")
    assert list(found) == ["x"] and len(found["x"]) == 15
    assert found["x"][6].shape == (8, 6, 3, 3) and found["x"][5].shape == ()
    plane = legacy.directions(reference / "original_tool" / "plane_dir.h5")
    assert [a.shape for a in plane["y"]][:4] == [(6, 1, 3, 3), (6,), (6,), (8, 6, 3, 3)]


def test_a_grid_that_is_not_square_is_unscrambled(tmp_path):
    x, y = np.linspace(-1, 1, 4), np.linspace(0, 1, 3)
    across, up = np.meshgrid(x, y)
    truth = 5 + across + 10 * up  # (y, x)
    stored = np.empty((4, 3))  # the tool's array is (x, y), filled in the flat order of (y, x)
    stored.ravel()[:] = truth.ravel()
    path = write(tmp_path / "s.h5", xcoordinates=x, ycoordinates=y, train_loss=stored, train_acc=stored + 1)
    assert np.array_equal(read(path)["train_loss"], truth)


def test_minus_one_is_not_yet_computed_and_beside_an_accuracy_it_was_nan(tmp_path):
    path = write(
        tmp_path / "s.h5",
        xcoordinates=np.arange(4.0),
        train_loss=np.array([0.5, -1.0, -1.0, np.nan]),
        train_acc=np.array([90.0, -1.0, 10.0, 10.0]),
        max_eig=np.array([3.0, -1.0, 2.0, np.nan]),
        min_eig=np.array([-1.0, 1.0, 1.0, np.nan]),
    )
    surface = read(path)
    assert list(surface.status["loss"]) == [1, 0, 1, 1]
    assert np.isnan(surface["train_loss"][1:]).all() and surface["train_acc"][2] == 10.0
    assert list(surface.status["eigen"]) == [1, 0, 1, 1]
    assert surface["min_eig"][0] == -1.0 and np.isnan(surface["min_eig"][1]) and surface["min_eig"][2] == 1.0


def test_it_can_be_read_but_not_continued(tmp_path):
    path = write(tmp_path / "s.h5", xcoordinates=np.arange(3.0), train_loss=np.ones(3), train_acc=np.ones(3))
    with pytest.raises(NotASurface, match="a surface file of the original tool: it can be read and drawn, but not"):
        SurfaceFile.open(path, read(path).grid)


def test_other_files_are_called_what_they_are(tmp_path):
    path = write(tmp_path / "d.h5", xdirection__0=np.ones(3))
    with pytest.raises(NotASurface, match="it has no xcoordinates; it holds directions of the original tool"):
        read(path)
    path = write(tmp_path / "t.h5", proj_xcoord=np.arange(3.0), proj_ycoord=np.arange(3.0))
    with pytest.raises(NotASurface, match="it holds a training trajectory of the original tool"):
        read(path)
    with pytest.raises(NotASurface, match="holds no directions: neither xdirection nor ydirection is there"):
        legacy.directions(path)
    path = write(tmp_path / "s.h5", xcoordinates=np.arange(3.0), train_loss=np.ones(4))
    with pytest.raises(NotASurface, match="train_loss has 4 values for 3 points"):
        read(path)
    with pytest.raises(NotASurface, match="holds no trajectory: proj_xcoord is not there"):
        legacy.trajectory(path)


def test_a_trajectory_comes_with_the_shares_of_its_components(tmp_path):
    path = write(tmp_path / "t.h5", proj_xcoord=np.arange(3.0), proj_ycoord=-np.arange(3.0))
    shares = write(tmp_path / "d.h5", explained_variance_ratio_=np.array([0.8, 0.1]), xdirection__0=np.ones(1))
    found = legacy.trajectory(path, shares)
    assert list(found["y"]) == [0, -1, -2] and list(found["step"]) == [0, 1, 2]
    assert list(found["explained_variance_ratio"]) == [0.8, 0.1]
    assert "explained_variance_ratio" not in legacy.trajectory(path)
    only = write(tmp_path / "u.h5", proj_xcoord=np.arange(3.0))
    assert list(legacy.trajectory(only)["y"]) == [0, 0, 0]


PARAMETERS = {"conv.weight": (2, 1), "bn.weight": (2,)}
STATES = {**PARAMETERS, "bn.running_mean": (2,), "bn.num_batches_tracked": ()}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_direction_takes_the_names_of_the_model(count):
    arrays = [np.zeros(shape) for shape in list(STATES.values())[:count]]
    assert list(legacy.matched(arrays, PARAMETERS, STATES)) == list(STATES)[:count]


def test_a_direction_of_another_model_is_refused_by_its_first_tensor():
    with pytest.raises(ValueError, match="has 1 tensors; this model has 2 parameters and 4 entries in its state dict"):
        legacy.matched([np.zeros(1)], PARAMETERS, STATES)
    with pytest.raises(ValueError, match=r"tensor for 'bn.weight' has shape \(3,\); the model's has \(2,\)"):
        legacy.matched([np.zeros((2, 1)), np.zeros(3)], PARAMETERS, STATES)
