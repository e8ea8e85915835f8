"""Files for ParaView, read back with an XML parser of another make."""

import base64
from xml.etree import ElementTree

import numpy as np
import pytest

from lossmap.geometry.grid import Grid
from lossmap.io.read import Group, Surface, write_surface
from lossmap.plotting.vtk import vtk

GRID = Grid(np.linspace(-1, 1, 5), np.linspace(0, 1, 3))
X, Y = np.meshgrid(GRID.x, GRID.y)


def arrays(path):
    made = {}
    for item in ElementTree.parse(path).iter("DataArray"):
        raw = base64.b64decode(item.text)
        kind = {"Float64": "<f8", "Int64": "<i8", "UInt8": "u1"}[item.get("type")]
        assert int(np.frombuffer(raw[:8], "<u8")[0]) == len(raw) - 8
        made[item.get("Name")] = np.frombuffer(raw[8:], kind)
    return made


def surface():
    z = 1 + X**2 + Y
    z[1, 2] = np.nan
    return Surface(GRID, {"train_loss": z}, groups={"trajectory": Group({"x": np.array([1.0, 0]), "y": np.zeros(2)})})


def test_a_structured_grid_holds_every_point_and_hides_those_without_a_height(tmp_path):
    write_surface(tmp_path / "s.h5", surface())
    made = vtk(tmp_path / "s.h5", tmp_path / "s.vts")
    assert [p.name for p in made] == ["s.vts", "s_trajectory.vtp"]
    found = arrays(made[0])
    points = found["Points"].reshape(-1, 3)
    assert np.array_equal(points[:, 0], X.ravel()) and np.array_equal(points[:, 1], Y.ravel())
    assert np.array_equal(found["train_loss"], surface()["train_loss"].ravel(), equal_nan=True)
    assert list(np.flatnonzero(found["vtkGhostType"])) == [7] and found["loss_status"][7] == 0
    known = np.delete(np.arange(15), 7)
    # The losses span 2 nats, the plane is 2 wide: half a unit of height for each nat.
    assert np.allclose(points[known, 2], 0.5 * (found["train_loss"][known] - 1))
    assert ElementTree.parse(made[0]).find(".//Piece").get("Extent") == "0 4 0 2 0 0"


def test_the_path_lies_on_the_surface_with_its_own_losses(tmp_path):
    x, y = np.array([1.0, 0.1, 0.0]), np.array([1.0, 0.3, 0.2])
    path = Group({"x": x, "y": y, "loss": np.array([3.0, 1.5, 1.25]), "residual": np.zeros(3)})
    bowl = Surface(GRID, {"train_loss": 1 + X**2 + Y}, groups={"trajectory": path})
    made = vtk(bowl, tmp_path / "s.vts")
    surface_data, found = arrays(made[0]), arrays(made[1])
    factor, offset = surface_data["height_factor"][0], surface_data["height_offset"][0]
    assert surface_data["height_is_log"][0] == 0
    assert np.allclose(surface_data["Points"][2::3], factor * (surface_data["train_loss"] - offset))
    at = np.flatnonzero(np.isfinite(found["loss"]))
    assert list(found["loss"][at]) == [3, 1.5, 1.25] and list(found["step"][at]) == [0, 1, 2]
    points = found["Points"].reshape(-1, 3)
    true = factor * (1 + points[:, 0] ** 2 + points[:, 1] - offset)
    assert np.all(points[:, 2] > true - 1e-9) and np.abs(points[:, 2] - true).max() < 0.02
    assert found["height_factor"] == factor


def test_a_path_ends_with_the_surface_and_names_of_any_kind_are_read_back(tmp_path):
    path = Group({"x": np.array([3.0, 0.5, 0.5, -1.0]), "y": np.full(4, 0.25), "loss": np.array([9.0, 2.0, 1.5, 1.0])})
    name = "<b>\"&'損$x"
    made = vtk(Surface(GRID, {name: 1 + X**2 + Y}, groups={"trajectory": path}), tmp_path / "s.vts", name)
    assert ElementTree.parse(made[0]).find(".//PointData").get("Scalars") == name
    assert np.array_equal(arrays(made[0])[name], (1 + X**2 + Y).ravel())
    found = arrays(made[1])
    points, lines = found["Points"].reshape(-1, 3), ElementTree.parse(made[1]).find(".//Piece").get("NumberOfLines")
    assert points[:, 0].max() <= 1 and points[:, 2].max() < 0.64  # none outside
    assert int(lines) == len(points) - 1 and list(found["loss"][np.isfinite(found["loss"])]) == [2.0, 1.5, 1.0]


def test_of_a_refined_surface_the_measured_points_alone_are_called_so(tmp_path):
    turn = np.where((X + 2 * Y) % 1 == 0, 0.0, -1.0)
    loss = 1 + X**2 + Y
    group = Group({"round": turn, "train_loss": loss})
    own = np.where(turn == 0, loss, np.nan)
    refined = Surface(
        GRID, {"train_loss": own}, measures={"loss": ("train_loss",)}, status={"loss": (turn == 0).astype("u1")},
        groups={"refinement": group},
    )  # fmt: skip
    for interp, points in ((None, 15), (4, 17 * 9)):
        found = arrays(vtk(refined, tmp_path / "s.vts", interp=interp)[0])
        assert found["measured"].size == points and found["measured"].sum() == (turn == 0).sum() < 15
        assert np.isfinite(found["train_loss"]).all()


def test_points_between_follow_the_spline_and_say_that_they_were_not_measured(tmp_path):
    z = 10.0 ** (2 * X + Y)
    fields = {"train_loss": z, "max_eig": 2 + X, "min_eig": -0.5 + 0 * X, "loss_seconds": z}
    smooth = Surface(GRID, fields, measures={"loss": ("train_loss",)}, status={"loss": np.ones(GRID.shape)})
    found = arrays(vtk(smooth, tmp_path / "s.vts", interp=4)[0])
    points = found["Points"].reshape(-1, 3)
    assert len(points) == 17 * 9 and found["height_is_log"][0] == 1
    assert np.allclose(found["train_loss"], 10.0 ** (2 * points[:, 0] + points[:, 1]), rtol=1e-9)
    assert np.allclose(found["max_eig"], 2 + points[:, 0]) and found["measured"].sum() == 15
    assert np.isfinite(found["loss_seconds"]).sum() == found["loss_status"].sum() == 15
    assert np.allclose(found["ratio"][found["measured"] == 1], (0.5 / (2 + X)).ravel())
    spiked = Grid.square(-1, 1, 11)
    values = np.where(np.arange(121).reshape(11, 11) == 60, 1e6, 1 + np.add.outer(spiked.y, spiked.x) ** 2)
    found = arrays(vtk(Surface(spiked, {"train_loss": values}), tmp_path / "s.vts", log=False, interp=3)[0])
    height = found["Points"][2::3]
    by_formula = found["height_factor"] * (found["train_loss"] - found["height_offset"])
    assert np.allclose(height[found["measured"] == 1], by_formula[found["measured"] == 1])
    with pytest.raises(ValueError, match="--interp must be a whole number"):
        vtk(smooth, tmp_path / "s.vts", interp=0)


def test_polygons_leave_out_the_cells_around_a_missing_point(tmp_path):
    found = arrays(vtk(surface(), tmp_path / "s.vtp")[0])
    assert found["Points"].size == 14 * 3
    quads = found["connectivity"].reshape(-1, 4)
    assert len(quads) == 8 - 4 and quads.max() == 13
    assert list(found["offsets"]) == [4, 8, 12, 16]


def test_heights_may_be_logarithms_and_cut(tmp_path):
    z = 10.0 ** (2 * X)
    found = arrays(vtk(Surface(GRID, {"train_loss": z}), tmp_path / "s.vts")[0])
    assert np.allclose(found["Points"].reshape(-1, 3)[:5, 2], [0, 0.25, 0.5, 0.75, 1])
    cut = arrays(vtk(Surface(GRID, {"train_loss": z}), tmp_path / "s.vts", vmax=1.0)[0])
    assert np.allclose(cut["Points"].reshape(-1, 3)[:5, 2], [0, 0.5, 1, 1, 1])
    flat = arrays(vtk(Surface(GRID, {"train_loss": X * 0}), tmp_path / "s.vts", "train_loss")[0])
    assert (flat["Points"].reshape(-1, 3)[:, 2] == 0).all()
    none = arrays(vtk(Surface(GRID, {"train_loss": X * np.nan}), tmp_path / "s.vts")[0])
    assert (none["vtkGhostType"] == 2).all()


def test_lines_and_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a file for ParaView ends in .vts or .vtp; got '.*s.obj'"):
        vtk(surface(), tmp_path / "s.obj")
    with pytest.raises(ValueError, match="a line has no surface for ParaView"):
        vtk(Surface(Grid(GRID.x), {"train_loss": GRID.x}), tmp_path / "s.vts")


def test_a_spike_does_not_make_the_rest_of_a_surface_swing(tmp_path):
    grid = Grid.square(-1, 1, 21)
    x, y = np.meshgrid(grid.x, grid.y)
    smooth = 0.5 + x**2 + 2 * y**2
    spiked = np.where((x == grid.x[12]) & (y == 0), 1e6, smooth)
    fields = []
    for values in (spiked, smooth):
        vtk(Surface(grid, {"train_loss": values}), tmp_path / "s.vts", interp=4)
        fields.append(arrays(tmp_path / "s.vts")["train_loss"].reshape(81, 81))
    ticks = np.linspace(-1, 1, 81)
    far = np.hypot(*np.meshgrid(ticks - grid.x[12], ticks)) > 0.4
    assert np.abs(fields[0] - fields[1])[far].max() < 0.06 and fields[0].max() == 1e6
