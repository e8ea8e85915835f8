"""The surface file: what was recorded is there, whoever dies; what does not belong is refused by name."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from lossmap.geometry.grid import Field, Grid
from lossmap.io import journal as log
from lossmap.io import netcdf_read, netcdf_write, whole_file
from lossmap.io.methods import Method
from lossmap.io.read import (
    Busy,
    DiskFull,
    Failure,
    Group,
    NotASurface,
    Refused,
    Surface,
    SurfaceFile,
    is_being_written,
    journal_of,
    read,
    read_group,
    write_surface,
)

FIELDS = (
    Field("train_loss", "nats", "mean loss over the training samples"),
    Field("train_acc", "percent", "accuracy on the training samples"),
)
TOP = (Field("top_eig", "nats", "largest eigenvalues", extra=("eigen_index", 3)), Field("products", "1", "products"))
GRID = Grid(np.linspace(-1, 1, 5), np.array([0.0, 0.3, 1.0]))
SETTINGS = {"split": "train", "samples": None, "chosen": {"batch": 64}}
IDENTITY = {"model": "mlp", "plane": {"seed": 0, "norm": "filter"}}


def opened(path, *, grid=GRID, identity=IDENTITY, measures=None, **more):
    measures = {"loss": (FIELDS, SETTINGS)} if measures is None else measures
    return SurfaceFile.open(path, grid, identity=identity, measures=measures, **more)


def reading(index):
    return {"train_loss": index / 7, "train_acc": 100.0 - index}


def filled(path, indices=range(15), **more):
    with opened(path, **more) as store:
        for index in indices:
            store.record("loss", index, reading(index), 0.25, index % 3)
    return path


def test_a_complete_survey_is_one_file_without_a_journal(tmp_path):
    path = filled(tmp_path / "s.h5", command="lossmap surface --x=-1:1:5")
    assert os.listdir(tmp_path) == ["s.h5"]
    surface = read(path)
    assert surface.outcome == "complete" and surface.grid == GRID
    assert surface["train_loss"][2, 4] == 14 / 7 and surface["train_acc"].dtype == np.float64
    assert surface.minimum("train_loss") == (0.0, (-1.0, 0.0))
    assert surface["loss_seconds"][0, 0] == 0.25 and surface["loss_rank"][0, 2] == 2
    assert surface.attributes["restarts"] == 0
    assert surface.attributes["history"].endswith("lossmap surface --x=-1:1:5")
    assert surface.attributes["start"] <= surface.attributes["end"]
    assert surface.settings == {"file": IDENTITY, "measures": {"loss": SETTINGS}}


def test_row_and_column_are_y_and_x_on_a_grid_that_is_not_square(tmp_path):
    surface = read(filled(tmp_path / "s.h5"))
    for index in range(15):
        x, y = GRID.point(index)
        row, column = list(GRID.y).index(y), list(GRID.x).index(x)
        assert surface["train_loss"][row, column] == index / 7


def test_the_file_is_netcdf_with_scales_units_and_fill_values(tmp_path):
    path = filled(tmp_path / "s.h5", range(4), attributes={"versions": {"torch": "2"}, "gpu": True, "note": None})
    with h5py.File(path) as file:
        assert file.attrs["format"] == "lossmap" and file.attrs["format_version"] == 1
        assert file.attrs["Conventions"] == "CF-1.11"
        assert json.loads(file.attrs["settings"])["file"] == IDENTITY
        assert file.attrs["settings_digest"] == netcdf_write.digest({"file": IDENTITY, "measures": {"loss": SETTINGS}})
        assert json.loads(file.attrs["versions"]) == {"torch": "2"}
        assert file.attrs["gpu"] == 1 and file.attrs["note"] == "none"
        loss = file["train_loss"]
        assert loss.attrs["units"] == "nats" and np.isnan(loss.attrs["_FillValue"][0])
        assert loss.attrs["split"] == "train" and loss.attrs["measure"] == "loss"
        assert [loss.dims[i][0].name for i in (0, 1)] == ["/ycoordinates", "/xcoordinates"]
        assert np.isnan(loss[2, 4])
        status = file["loss_status"]
        assert status.dtype == np.uint8 and "_FillValue" not in status.attrs
        assert list(status.attrs["flag_values"]) == [0, 1, 2] and status.attrs["flag_meanings"] == "todo done failed"


def test_each_field_names_the_part_of_the_data_that_it_was_read_from(tmp_path):
    path, names = tmp_path / "s.h5", ("max_eig", "test_max_eig")
    fields = tuple(Field(name, "nats", name) for name in names)
    with opened(path, measures={"eigen": (fields, {"samples": {"train": 200, "test": 50}})}):
        pass
    with h5py.File(path) as file:
        assert [file[name].attrs["split"] for name in names] == ["train", "test"]


def test_xarray_opens_the_file_with_its_coordinates(tmp_path):
    xarray = pytest.importorskip("xarray")
    groups = {"trajectory": Group({"step": np.arange(3), "x": np.arange(3.0), "y": np.zeros(3)})}
    path = filled(tmp_path / "s.h5", groups=groups)
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert data.train_loss.dims == ("ycoordinates", "xcoordinates")
        assert float(data.train_loss.sel(xcoordinates=0.5, ycoordinates=0.3)) == 8 / 7
        assert data.loss_status.dtype == np.uint8
    with xarray.open_dataset(path, engine="h5netcdf", group="trajectory") as data:
        assert data.x.dims == ("step",)
    made = read(path).to_xarray()
    assert float(made.train_loss.sel(xcoordinates=0.5, ycoordinates=0.3)) == 8 / 7


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_the_file(tmp_path):
    path = filled(tmp_path / "s.h5")
    told = subprocess.run(["h5dump", "-d", "/train_loss", str(path)], capture_output=True, text=True, check=True)
    assert "( 5 ) / ( 5 )" not in told.stdout and "DIMENSION_LIST" in told.stdout and "1.42857" in told.stdout


def test_a_line_and_a_further_dimension_come_back(tmp_path):
    path, grid = tmp_path / "s.h5", Grid(np.linspace(0, 1, 4))
    with opened(path, grid=grid, measures={"eigen": (TOP, {})}) as store:
        store.record("eigen", 2, {"top_eig": np.array([3.0, 2.0, 1.0]), "products": 12}, 1.0)
    surface = read(path)
    assert surface["top_eig"].shape == (4, 3) and list(surface["top_eig"][2]) == [3, 2, 1]
    assert surface.about["top_eig"].extra == ("eigen_index", 3)
    with opened(path, grid=grid, measures={"eigen": (TOP, {})}) as store:
        assert list(store.todo("eigen")) == [0, 1, 3]
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert data.top_eig.dims == ("xcoordinates", "eigen_index")


def test_an_interrupted_survey_is_resumed(tmp_path):
    path = filled(tmp_path / "s.h5", range(6))
    assert journal_of(path).exists() and read(path).outcome == "unfinished"
    with opened(path) as store:
        assert list(store.todo("loss")) == list(range(6, 15))
        for index in store.todo("loss"):
            store.record("loss", int(index), reading(index), 0.25, 0)
    surface = read(path)
    assert surface.outcome == "complete" and not journal_of(path).exists()
    assert surface.attributes["restarts"] == 1
    assert np.array_equal(surface["train_loss"].reshape(-1), np.arange(15) / 7)


def test_readers_see_the_points_that_are_only_in_the_journal(tmp_path):
    path = tmp_path / "s.h5"
    store = opened(path)
    for index in range(5):
        store.record("loss", index, reading(index), 0.25, 0)
    with h5py.File(path) as file:
        assert np.isnan(file["train_loss"]).all()  # no snapshot yet
    assert is_being_written(path)
    surface = read(path)
    assert surface.counts("loss") == {"done": 5, "failed": 0, "left": 10}
    assert len(surface.recent["loss"]) == 5
    store.close()
    store.close()
    assert not is_being_written(path)


def test_the_journal_alone_is_enough(tmp_path):
    path = filled(tmp_path / "s.h5", range(6))
    path.unlink()
    assert read(path).counts("loss")["done"] == 6
    with opened(path) as store:
        assert list(store.todo("loss")) == list(range(6, 15))
    assert path.exists()


def test_a_nan_is_a_result_and_a_negative_loss_too(tmp_path):
    path = tmp_path / "s.h5"
    with opened(path) as store:
        store.record("loss", 0, {"train_loss": np.nan, "train_acc": np.inf}, 0.1)
        store.record("loss", 1, {"train_loss": -1.0, "train_acc": 0.0}, 0.1)
    surface = read(path)
    assert list(surface.status["loss"].reshape(-1)[:3]) == [1, 1, 0]
    assert np.isnan(surface["train_loss"][0, 0]) and surface["train_acc"][0, 0] == np.inf
    with opened(path) as store:
        assert list(store.todo("loss")) == list(range(2, 15))


def test_a_failure_is_kept_with_its_reason_until_the_point_succeeds(tmp_path):
    path = tmp_path / "s.h5"
    with opened(path) as store:
        for index in range(14):
            store.record("loss", index, reading(index), 0.25)
        text = "Traceback (most recent call last):\n  here\nValueError: the input is odd\n"
        store.fail("loss", 14, Failure(14, 3, "node7", text))
    surface = read(path)
    assert surface.outcome == "failed" and not journal_of(path).exists()
    (failure,) = surface.failures
    assert (failure.index, failure.rank, failure.host, failure.measure) == (14, 3, "node7", "loss")
    assert failure.reason == "ValueError: the input is odd" and failure.text == text
    with h5py.File(path) as file:
        assert file["failures/x"][0] == 1.0 and file["failures/y"][0] == 1.0
    with opened(path) as store:
        assert store.todo("loss").size == 0
        assert list(store.todo("loss", retry_failed=True)) == [14]
        store.record("loss", 14, reading(14), 0.25)
    assert read(path).failures == () and read(path).outcome == "complete"
    assert Failure(0, 0, "h", " ").reason == "no reason was given"


def test_each_difference_is_refused_by_its_name(tmp_path):
    path = filled(tmp_path / "s.h5")
    before = path.read_bytes()
    with pytest.raises(Refused, match="holds another survey: ") as refusal:
        opened(
            path,
            grid=Grid(np.linspace(-1, 1, 5), np.array([0.0, 0.4, 1.0])),
            identity={"model": "cnn", "plane": {"seed": 1, "norm": "filter"}},
            measures={"loss": (FIELDS[:1], {**SETTINGS, "samples": 100, "chosen": {"batch": 9}})},
        )
    text = str(refusal.value)
    assert "y is 0:1:3 in the file, 0:1:3, with other ticks between asked for" in text
    assert "model is mlp in the file, cnn asked for" in text
    assert "plane.seed is 0 in the file, 1 asked for" in text
    assert "loss: samples is null in the file, 100 asked for" in text
    assert "loss: fields is train_loss, train_acc in the file, train_loss asked for" in text
    assert "norm" not in text and "batch" not in text
    assert [d[0] for d in refusal.value.differences] == ["y", "model", "plane.seed", "loss: samples", "loss: fields"]
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.h5"]


def test_a_plane_is_no_line_and_long_values_are_shortened(tmp_path):
    path = filled(tmp_path / "s.h5", identity={"digest": "a" * 64})
    with pytest.raises(Refused, match=r"y is 0:1:3 in the file, \(none\) asked for") as refusal:
        opened(path, grid=Grid(GRID.x), identity={"digest": "b" * 64})
    assert "a" * 28 + "..." in str(refusal.value) and "a" * 40 not in str(refusal.value)


def test_what_a_probe_chose_is_taken_up_from_the_file(tmp_path):
    path = filled(tmp_path / "s.h5", range(3))
    with opened(path, measures={"loss": (FIELDS, {"split": "train", "samples": None})}) as store:
        assert store.settings("loss")["chosen"] == {"batch": 64}


def test_losses_and_eigenvalues_share_a_file_and_are_compared_apart(tmp_path):
    path = filled(tmp_path / "s.h5")
    eigen = {"eigen": (TOP, {"samples": 512})}
    with opened(path, measures=eigen) as store:
        assert store.todo("eigen").size == 15 and store.todo("loss").size == 0
        store.record("eigen", 3, {"top_eig": [3, 2, 1], "products": 12}, 1.0)
    surface = read(path)
    assert surface.outcome_of("loss") == "complete" and surface.outcome_of("eigen") == "unfinished"
    assert surface.outcome == "unfinished" and surface.outcome_of("nothing") == "unfinished"
    assert surface["train_loss"][2, 4] == 2.0
    with pytest.raises(Refused, match="eigen: samples is 512 in the file, 256 asked for"):
        opened(path, measures={"eigen": (TOP, {"samples": 256})})
    with opened(path) as store:  # the losses again: nothing to do, and the eigenvalues stay
        assert store.todo("loss").size == 0
    assert read(path)["top_eig"][0, 3, 0] == 3


def test_two_measures_cannot_read_the_same_field(tmp_path):
    with pytest.raises(ValueError, match="both read train_acc, train_loss"):
        opened(tmp_path / "s.h5", measures={"loss": (FIELDS, {}), "other": (FIELDS, {})})
    assert os.listdir(tmp_path) == []


def test_a_measure_of_part_of_the_points_can_come_later(tmp_path):
    path = tmp_path / "s.h5"
    with opened(path) as store:
        for index in range(15):
            store.record("loss", index, reading(index), 0.25)
        store.declare("audit", TOP, {"cold": True}, points=np.array([7, 3]))
        assert list(store.todo("audit")) == [3, 7]
        store.record("audit", 3, {"top_eig": [3, 2, 1], "products": 12}, 1.0)
    assert read(path).counts("audit") == {"done": 1, "failed": 0, "left": 1}
    path.unlink()  # the journal knows the measure too
    with opened(path) as store:
        assert list(store.todo("audit")) == [7]
        with pytest.raises(Refused, match="audit: cold is true in the file, false asked for"):
            store.declare("audit", TOP, {"cold": False})
        store.record("audit", 7, {"top_eig": [3, 2, 1], "products": 12}, 1.0)
    surface = read(path)
    assert surface.outcome == "complete" and not journal_of(path).exists()
    assert list(surface.parts["audit"]) == [3, 7] and surface.missing("audit").size == 0


def test_overwriting_starts_anew(tmp_path):
    path = filled(tmp_path / "s.h5", range(6), groups={"spectrum": Group({"values": np.ones(1)})})
    old = read(path).attributes["file_id"]
    with opened(path, grid=Grid.square(count=3), overwrite=True) as store:
        assert store.todo("loss").size == 9
    surface = read(path)
    assert surface.grid == Grid.square(count=3) and surface.attributes["file_id"] != old
    assert surface.counts("loss")["done"] == 0 and surface.attributes["restarts"] == 0 and not surface.groups


def test_what_is_no_surface_is_not_overwritten(tmp_path):
    path = tmp_path / "thesis.pdf"
    path.write_text("years of work")
    with pytest.raises(NotASurface, match=r"thesis.pdf is not a surface file, so it is not overwritten"):
        opened(path, overwrite=True)
    with pytest.raises(NotASurface, match="is no HDF5 file"):
        opened(path)
    assert path.read_text() == "years of work" and os.listdir(tmp_path) == ["thesis.pdf"]
    empty = tmp_path / "empty.h5"
    empty.touch()
    with opened(empty, overwrite=True):
        pass
    assert read(empty).counts("loss")["left"] == 15


def test_hdf5_of_somebody_else_is_not_overwritten_but_what_is_damaged_is(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["layer"] = np.arange(5.0)
    before = path.read_bytes()
    with pytest.raises(NotASurface, match=r"weights.h5 is not a surface file, so it is not overwritten"):
        opened(path, overwrite=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["weights.h5"]
    path.write_bytes(before[:200])
    with opened(path, overwrite=True):
        pass
    assert read(path).counts("loss")["left"] == 15


def test_a_second_writer_learns_who_the_first_is(tmp_path):
    path = tmp_path / "s.h5"
    with opened(path), pytest.raises(Busy, match=rf"another process is writing .*s.h5 \(process {os.getpid()} on "):
        opened(path)
    empty = tmp_path / "t.h5"
    held = log.Journal(journal_of(empty))
    with pytest.raises(Busy, match=r"another process is writing .*t.h5; wait for it"):
        opened(empty)
    held.close()


def test_without_locks_the_writer_reports_it_and_continues(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(log.fcntl, "flock", flock)
    assert read(filled(tmp_path / "s.h5")).outcome == "complete"
    assert "knows no locks" in caplog.text


def test_a_journal_of_another_file_is_not_mixed_in(tmp_path):
    path = filled(tmp_path / "s.h5", range(6))
    stale = journal_of(path).read_bytes()
    with opened(path, overwrite=True):
        pass
    journal_of(path).write_bytes(stale)
    assert read(path).counts("loss")["done"] == 0
    with pytest.raises(NotASurface, match=r"s.h5.journal belongs to another file than .*s.h5: move one of them away"):
        opened(path)


def test_groups_stay_through_snapshots_and_measures(tmp_path):
    path = tmp_path / "s.h5"
    weight = np.arange(6, dtype="f4").reshape(2, 3)
    groups = {
        "directions/x": Group({"conv1.weight": weight, "bn.num_batches_tracked": np.array(3)}, {"norm": "filter"}),
        "directions/y": Group({"conv1.weight": -weight}, {"norm": "layer"}),
        "spectrum": Group({"values": np.ones(1), "half": np.ones(2, "f2"), "yes": np.array([True])}, {"k": [1, 2]}),
    }
    with opened(path, groups=groups) as store:
        store.record("loss", 0, reading(0), 0.1)
        store.snapshot()
        assert store.memory.groups["directions/x"].arrays == {}  # not held in memory any longer
        store.put("evolution", Group({"step": np.arange(2), "names": np.array(["a", "b"])}))
    with opened(path) as store:
        store.record("loss", 1, reading(1), 0.1)
    surface = read(path)
    assert surface.groups["directions/x"].attributes == {"norm": "filter"}
    assert not surface.groups["directions/x"].arrays
    assert list(surface.groups["evolution"]["names"]) == ["a", "b"] and "step" in surface.groups["evolution"]
    assert list(surface.groups["spectrum"].attributes["k"]) == [1, 2]
    x = read_group(path, "directions/x")
    assert list(x.arrays) == ["conv1.weight", "bn.num_batches_tracked"]
    assert np.array_equal(x["conv1.weight"], weight) and x["conv1.weight"].dtype == np.float32
    assert int(x["bn.num_batches_tracked"]) == 3
    assert np.array_equal(read_group(path, "directions/y")["conv1.weight"], -weight)
    with pytest.raises(KeyError, match="holds no group 'layers'; there are: spectrum, evolution, directions/x"):
        read_group(path, "layers")


def test_directions_may_be_a_recipe_alone(tmp_path):
    recipe = Group({}, {"kind": "random", "seed": 4})
    path = filled(tmp_path / "s.h5", groups={"directions/x": recipe})
    assert read(path).groups["directions/x"].attributes["seed"] == 4


def test_notes_survive_the_death_of_the_writer(tmp_path):
    path = tmp_path / "s.h5"
    store = opened(path)
    store.note(audit_points=52, audit_misses=0)
    store.flush()
    assert read(path).attributes["audit_points"] == 52
    store.close()
    assert read(path).attributes["audit_misses"] == 0


def test_long_settings_and_histories_fit(tmp_path):
    path = tmp_path / "s.h5"
    identity = {"indices": list(range(40_000))}
    with opened(path, identity=identity, command="x" * 30_000):
        pass
    with opened(path, identity=identity, command="y" * 30_000):
        pass
    surface = read(path)
    assert surface.settings["file"] == identity and len(surface.attributes["history"]) == 20_000


def test_an_unfinished_point_is_saved_until_it_is_done(tmp_path):
    path = tmp_path / "s.h5"
    store = opened(path)
    state = {"space": np.ones((4, 2), "f4"), "step": 3, "names": ["a"], "value": 0.1}
    store.save_unfinished("loss", 4, state)
    store.save_unfinished("loss", 5, {})
    store.close()
    with opened(path) as store:
        kept = store.unfinished("loss")
        assert sorted(kept) == [4, 5] and len(kept) == 2 and 4 in kept and 6 not in kept and kept.get(9) is None
        assert np.array_equal(kept[4]["space"], state["space"]) and kept[4]["space"].dtype == np.float32
        assert kept[4]["step"] == 3 and kept[4]["names"] == ["a"] and kept[4]["value"] == 0.1
        assert dict(store.unfinished("other")) == {}
        store.record("loss", 4, reading(4), 0.1)
        store.fail("loss", 5, Failure(5, 0, "h", "broke"))
        assert dict(store.unfinished("loss")) == {}
    folder = path.with_name("s.h5.unfinished")
    assert not folder.exists()
    with opened(path) as store:
        store.save_unfinished("loss", 6, state)
        (folder / "loss-7.npz").write_bytes(b"torn")
        assert list(store.unfinished("loss")) == [6]
    with opened(path, overwrite=True) as store:
        assert list(store.unfinished("loss")) == []


def test_a_state_of_another_file_is_not_taken_up(tmp_path):
    one, two = opened(tmp_path / "a.h5"), opened(tmp_path / "b.h5")
    one.save_unfinished("loss", 4, {"k": 1})
    shutil.copytree(tmp_path / "a.h5.unfinished", tmp_path / "b.h5.unfinished")
    assert dict(two.unfinished("loss")) == {}
    one.close()
    two.close()


@pytest.mark.parametrize("points", [0, 1])
def test_a_state_that_another_function_left_is_not_taken_up(tmp_path, points):
    """Where no point is done any code may go on; a search of another function would then end at a wrong value."""

    def code(value):
        return {"loss": {"values": {"loss at the origin": value}, "eps": 1e-7, "sources": {}, "environment": {}}}

    path = tmp_path / "s.h5"
    with opened(path, codes=code(1.0)) as store:
        store.save_unfinished("loss", 4, {"k": 1})
        for index in range(points):
            store.record("loss", index, reading(index), 0.1)
    with opened(path, codes=code(1.0 + 1e-9)) as store:
        assert dict(store.unfinished("loss")) == {4: {"k": 1}}
    with opened(path, codes=code(1.5), accept_change=True) as store:
        assert dict(store.unfinished("loss")) == {}
    assert read(path).counts("loss")["done"] == points


def test_a_shard_is_complete_when_its_own_points_are(tmp_path):
    path = tmp_path / "s.h5"
    with opened(path, only=np.array([4, 0, 1])) as store:
        assert list(store.todo("loss")) == [0, 1, 4] == list(store.only)
        store.record("loss", 0, reading(0), 0.1)
    with opened(path) as store:  # its part is known from the file
        assert list(store.todo("loss")) == [1, 4]
    with opened(path, only=np.array([0, 1, 4])) as store:
        for index in (1, 4):
            store.record("loss", index, reading(index), 0.1)
    surface = read(path)
    assert surface.outcome == "complete" and not journal_of(path).exists()
    assert surface.attributes["shard_points"] == "0-1,4"


def test_readings_must_fit_their_fields(tmp_path):
    with opened(tmp_path / "s.h5") as store:
        with pytest.raises(ValueError, match="the fields train_loss, train_acc; missing: train_acc; unknown: los"):
            store.record("loss", 0, {"train_loss": 1.0, "los": 2.0}, 0.1)
        with pytest.raises(ValueError, match="'train_acc' takes 1 numbers a point; got 2"):
            store.record("loss", 0, {"train_loss": 1.0, "train_acc": [1, 2]}, 0.1)
        with pytest.raises(IndexError, match="point 15 of a grid of 15"):
            store.record("loss", 15, reading(0), 0.1)
        with pytest.raises(IndexError, match="point -1 of a grid of 15"):
            store.fail("loss", -1, Failure(-1, 0, "h", "t"))
        assert store.todo("loss").size == 15


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda p: None, FileNotFoundError, "there is no file .*s.h5"),
        (lambda p: p.mkdir(), IsADirectoryError, "s.h5 is a folder; a surface is a file"),
        (lambda p: p.touch(), NotASurface, r"s.h5 is empty \(0 bytes\): no surface was ever written there"),
        (lambda p: p.write_text("%PDF-1.4 and so on"), NotASurface, "s.h5 is no HDF5 file, so it holds no surface"),
        (lambda p: filled(p) and os.truncate(p, 3000), NotASurface, r"s.h5 is damaged: .*end is missing \(3,000 byte"),
        (lambda p: h5py.File(p, "w").close(), NotASurface, "s.h5 is an HDF5 file, but no surface: it has no xcoordi"),
    ],
    ids=["missing", "folder", "empty", "foreign", "truncated", "other HDF5"],
)
def test_each_kind_of_wrong_file_has_its_sentence(tmp_path, make, error, text):
    path = tmp_path / "s.h5"
    make(path)
    with pytest.raises(error, match=text):
        read(path)


def test_an_unreadable_file_has_its_sentence(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.h5")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"s.h5 cannot be read: you have no permission"):
        netcdf_read.open_hdf5(path)


def test_a_newer_format_asks_for_a_newer_lossmap(tmp_path):
    path = filled(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(NotASurface, match="has format version 9, and this lossmap reads up to 1: install a newer"):
        read(path)


def test_a_path_that_cannot_be_written_is_reported_before_anything_is_computed(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        opened(tmp_path / "nowhere" / "s.h5")
    with pytest.raises(IsADirectoryError, match="is a folder; a surface is a file"):
        opened(tmp_path)

    def refuse(code, text):
        def attempt(*args, **kwargs):
            raise OSError(code, text)

        return attempt

    monkeypatch.setattr(log.os, "open", refuse(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError, match=r"s.h5 cannot be written: no permission in .*nothing was changed"):
        opened(tmp_path / "s.h5")
    monkeypatch.setattr(log.os, "open", refuse(errno.EROFS, "Read-only file system"))
    with pytest.raises(PermissionError, match="cannot be written: no permission"):
        opened(tmp_path / "s.h5")
    monkeypatch.setattr(log.os, "open", refuse(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match=r"s.h5 cannot be written \(Input/output error\): nothing was changed"):
        opened(tmp_path / "s.h5")


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_the_survey_is_resumed_later(tmp_path):
    grid = Grid.square(count=20)
    with small_disk(tmp_path / "disk", "400k") as disk:
        path = disk / "s.h5"
        store = opened(path, grid=grid)
        ballast = disk / "ballast"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(b"x" * (free - 8192))
        recorded = []
        with pytest.raises(DiskFull, match=r"the disk that holds .*s.h5 is full: \d+ points are safe") as full:
            for index in range(400):
                store.record("loss", index, reading(index), 0.1)
                recorded.append(index)
        assert full.value.errno == errno.ENOSPC and 0 < len(recorded) < 400
        with pytest.raises(DiskFull, match=f"is full: {len(recorded)} points are safe"):
            store.snapshot()
        with pytest.raises(DiskFull, match="points are safe"):
            store.save_unfinished("loss", 399, {"space": np.ones(10_000)})
        with pytest.raises(DiskFull):
            store.close()
        assert sorted(p.name for p in disk.iterdir()) == ["ballast", "s.h5", "s.h5.journal", "s.h5.unfinished"]
        assert read(path).counts("loss")["done"] == len(recorded)
        with pytest.raises(DiskFull, match=r"is full \(the survey needs about 1 MB\): nothing was changed"):
            opened(path, grid=grid)
        ballast.unlink()
        with opened(path, grid=grid) as store:
            assert list(store.todo("loss")) == list(range(len(recorded), 400))
            for index in store.todo("loss"):
                store.record("loss", int(index), reading(index), 0.1)
        assert read(path).outcome == "complete"
        assert np.array_equal(read(path)["train_loss"].reshape(-1), np.arange(400) / 7)


def test_a_snapshot_that_fails_does_not_end_the_survey(tmp_path, monkeypatch, caplog):
    store = opened(tmp_path / "s.h5")
    store._snapshots.every = 0.0
    store._snapshots._cost = 0.0

    def full(*args, **kwargs):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(whole_file.os, "fsync", full)
    store.record("loss", 0, reading(0), 0.1)
    assert "is full: 1 points are safe" in caplog.text
    monkeypatch.undo()
    store.close()
    assert read(tmp_path / "s.h5").counts("loss")["done"] == 1


def test_a_write_that_fails_inside_hdf5_is_reported_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.h5")
    before = path.read_bytes()
    calls = []

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            calls.append(len(data))
            if len(calls) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    real = whole_file._Sink
    monkeypatch.setattr(whole_file, "_Sink", lambda file: real(Full(file)))
    with pytest.raises(DiskFull, match="is full: nothing was changed"):
        write_surface(path, read(path), overwrite=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.h5"]


def test_an_error_of_hdf5_itself_is_not_swallowed(tmp_path):
    bad = Surface(GRID, {"train_loss": np.zeros(GRID.shape)}, attributes={"bad": np.array([object()])})
    with pytest.raises(TypeError):
        write_surface(tmp_path / "s.h5", bad)
    assert os.listdir(tmp_path) == []


def test_snapshots_take_no_more_than_a_twentieth_of_the_time(tmp_path, monkeypatch):
    store = opened(tmp_path / "s.h5")
    drawn = []
    monkeypatch.setattr(store, "snapshot", lambda: drawn.append(1))
    store._snapshots.every, store._snapshots._cost = 0.0, 1.0
    store.record("loss", 0, reading(0), 0.1)
    assert not drawn
    store._snapshots._ended -= 20.5
    store.tick()
    assert drawn
    monkeypatch.undo()
    store.close()
    store.tick()


def test_a_surface_is_written_as_a_value_and_read_back(tmp_path):
    path = tmp_path / "s.h5"
    z = np.arange(15.0).reshape(3, 5)
    write_surface(path, Surface(GRID, {"train_loss": z, "mine": -z}))
    surface = read(path)
    assert np.array_equal(surface["mine"], -z) and surface.outcome == "complete"
    assert surface.about["train_loss"].unit == "nats" and surface.about["mine"].long_name == "mine"
    with pytest.raises(FileExistsError, match=r"s.h5 exists; name another file, or say overwrite"):
        write_surface(path, surface)
    write_surface(path, surface, overwrite=True)


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "s.h5"
    link.symlink_to(tmp_path / "there" / "real.h5")
    filled(link)
    assert link.is_symlink() and read(link).outcome == "complete"


def test_points_may_come_from_several_threads(tmp_path):
    store = opened(tmp_path / "s.h5", grid=Grid.line(count=400))

    def work(first):
        for index in range(first, 400, 4):
            store.record("loss", index, reading(index), 0.0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert np.array_equal(read(tmp_path / "s.h5")["train_loss"], np.arange(400) / 7)


def test_the_journal_takes_the_same_few_bytes_for_each_point(tmp_path):
    store = opened(tmp_path / "s.h5", grid=Grid.square(count=100))
    sizes = []
    for index in range(10_000):
        store.record("loss", index, reading(index), 0.1)
        sizes.append(journal_of(tmp_path / "s.h5").stat().st_size if index % 1000 == 0 else 0)
    steps = np.diff([s for s in sizes if s])
    assert len(set(steps)) == 1 and steps[0] / 1000 < 64
    store.close()


def test_a_reader_looks_again_where_the_writer_ended_between_its_looks(tmp_path, monkeypatch):
    path = tmp_path / "s.h5"
    store = opened(path)
    real, calls = log.read, []

    def slow(journal):
        contents = real(journal)
        if not calls:
            for index in range(15):
                store.record("loss", index, reading(index), 0.1)
            store.close()
        calls.append(1)
        return contents

    monkeypatch.setattr(log, "read", slow)
    assert read(path).outcome == "complete" and len(calls) == 2


@pytest.mark.slow
def test_sixty_kills_at_random_moments_lose_no_recorded_point(tmp_path):
    program = Path(__file__).parent / "programs" / "killed_writer.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "60", "1"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 kills" in done.stdout and ", 0 lost" in done.stdout


COUNTED = Method("copies counted", "may have passed over copies")


def test_points_of_another_method_are_to_do_again_and_their_numbers_stay_until_they_are(tmp_path, caplog):
    path = filled(tmp_path / "s.h5", range(4))
    with opened(path, by_method={"loss": COUNTED}) as store:
        assert store.todo("loss").size == 15
        store.record("loss", 0, reading(0), 0.25)
    said = "4 points of 'loss' were measured by an earlier version, which may have passed over copies; they are "
    assert said in caplog.text
    assert read(path)["train_loss"].reshape(-1)[3] == 3 / 7
    caplog.clear()
    with opened(path, by_method={"loss": COUNTED}) as store:
        assert store.todo("loss").size == 14
    assert not caplog.text
    assert filled(path, by_method={"loss": COUNTED}) == path and read(path).outcome == "complete"


def test_a_complete_file_of_another_method_is_left_and_told(tmp_path, caplog):
    path = filled(tmp_path / "s.h5")
    for _ in range(2):
        caplog.clear()
        with opened(path, by_method={"loss": COUNTED}) as store:
            assert store.todo("loss").size == 0
        assert "15 points" in caplog.text and "left as they are" in caplog.text


def test_a_process_that_dies_before_the_method_is_kept_opens_its_points_again(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.h5", range(4))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SurfaceFile, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(path, by_method={"loss": COUNTED})
    with opened(path, by_method={"loss": COUNTED}) as store:
        assert store.todo("loss").size == 15


def test_a_search_that_another_method_began_is_begun_anew(tmp_path):
    with opened(tmp_path / "s.h5") as store:
        store.save_unfinished("loss", 2, {"vector": np.arange(3.0)})
    with opened(tmp_path / "s.h5") as store:
        assert list(store.unfinished("loss")) == [2]
    with opened(tmp_path / "s.h5", by_method={"loss": COUNTED}) as store:
        assert not list(store.unfinished("loss"))


def test_where_an_audit_is_left_all_points_that_it_judges_are_of_one_method(tmp_path):
    audit = (Field("audit_loss", "nats", "again"),)
    measures = {"loss": (FIELDS, SETTINGS), "audit": (audit, {})}
    path, both = filled(tmp_path / "s.h5"), {"loss": COUNTED, "audit": COUNTED}
    with opened(path) as store:
        store.note(audit={"audited": 15}, audit_points=15)
    with opened(path, measures=measures, by_method=both) as store:
        assert store.todo("loss").size == 15
    assert "audit_points" not in read(path).attributes  # a report on other numbers
