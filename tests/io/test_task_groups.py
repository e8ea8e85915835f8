"""Groups of a reading, such as the arrays of a task: kept as they come, whole with their point or not at all."""

import os
import signal
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from lossmap.geometry.grid import Field, Grid
from lossmap.io import journal as log
from lossmap.io import journal_replay
from lossmap.io.memory_store import MemoryStore
from lossmap.io.read import Refused, SurfaceFile, journal_of, read, read_group

GRID = Grid(np.arange(4.0))
MEASURES = {"spectrum": ((), {"top": 2})}


def opened(path, **more):
    return SurfaceFile.open(path, GRID, measures=MEASURES, **more)


def group_of(index):
    return f"tasks/train/block/layer{index}"


def reading(index):
    arrays = {
        "vectors": np.arange(12, dtype=np.float32).reshape(6, 2) + index,
        "matrix": np.full((2, 2), index / 7),
        "value": np.asarray(np.nan),
        "steps": np.array([index, 3]),
        "method": np.asarray("xtrace"),
        "converged": np.asarray(True),
    }
    return {group_of(index): arrays}


def same(stored, index):
    for name, array in reading(index)[group_of(index)].items():
        if array.dtype.kind == "U":
            assert str(stored[name]) == str(array), name
        else:
            assert np.array_equal(stored[name], array, equal_nan=True), name
    assert stored["vectors"].dtype == np.float32 and np.shape(stored["value"]) == ()


def test_arrays_come_back_with_their_shapes_and_types_from_memory_and_from_the_file(tmp_path):
    memory = MemoryStore(GRID, MEASURES)
    memory.record("spectrum", 2, reading(2), 0.5)
    same(memory.surface().groups[group_of(2)], 2)
    with opened(tmp_path / "s.h5") as store:
        store.record("spectrum", 2, reading(2), 0.5)
        same(read(tmp_path / "s.h5").groups[group_of(2)], 2)  # from the journal
        store.snapshot()
        assert not store.memory.groups[group_of(2)].arrays  # in the file, and no longer in memory
        same(store.group(group_of(2)), 2)
        store.record("spectrum", 0, reading(0), 0.5)  # the next snapshot takes the former arrays over
        assert set(store.arrays) == {group_of(0), group_of(2)} and "tasks/other" not in store.arrays
    for index in (0, 2):
        same(read_group(tmp_path / "s.h5", group_of(index)), index)
    with opened(tmp_path / "s.h5") as store:
        assert store.todo("spectrum").tolist() == [1, 3]
        same(store.arrays[group_of(2)], 2)
        for index in (1, 3):
            store.record("spectrum", index, reading(index), 0.5)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.h5"]
    surface = read(tmp_path / "s.h5")
    assert surface.outcome == "complete" and not surface.groups[group_of(1)].arrays  # large: read when asked for
    same(read_group(tmp_path / "s.h5", group_of(1)), 1)
    assert "  groups: tasks (4)" in repr(surface)


@pytest.mark.parametrize("snapshots", [1, 3])
def test_xarray_opens_the_file_and_each_group_without_being_told_how(tmp_path, snapshots):
    xarray = pytest.importorskip("xarray")
    path = tmp_path / "s.h5"
    with opened(path) as store:
        store.record("spectrum", 1, reading(1), 0.5)
        for _ in range(snapshots):
            store.snapshot()
    with xarray.open_dataset(path, engine="h5netcdf") as root:
        assert root.spectrum_status.dims == ("xcoordinates",)
    with xarray.open_dataset(path, engine="h5netcdf", group=group_of(1)) as group:
        assert group.vectors.dims == ("n6", "n2") and group.matrix.dims == ("n2", "n2_other")
        assert group.vectors.dtype == np.float32 and not group.coords
        assert np.array_equal(group.matrix, reading(1)[group_of(1)]["matrix"])


def test_a_dimension_takes_no_room(tmp_path):
    path = tmp_path / "s.h5"
    vectors = np.ones((100_000, 1), dtype=np.float32)
    with opened(path) as store:
        store.record("spectrum", 0, {"tasks/net/ends": {"top_vectors": vectors}}, 0.5)
    assert path.stat().st_size < vectors.nbytes + 60_000
    with h5py.File(path) as file:
        assert file["tasks/net/ends/n100000"].id.get_storage_size() == 0


def test_arrays_without_their_point_never_count(tmp_path):
    """The writer is killed between the records of a point's arrays and its own."""
    path = tmp_path / "s.h5"
    store = opened(path)
    store.record("spectrum", 1, reading(1), 0.5)
    whole = journal_of(path).read_bytes()
    store.record("spectrum", 2, reading(2), 0.5)
    kinds = [record.kind for record in log.parse(journal_of(path).read_bytes()).records]
    assert kinds == [b"O", *[b"A"] * 6, b"P", *[b"A"] * 6, b"P"]
    point = log.HEAD.size + len(log.parse(journal_of(path).read_bytes()).records[-1].payload)
    cut = journal_of(path).read_bytes()[:-point]
    assert len(cut) > len(whole)
    store._journal.close()
    journal_of(path).write_bytes(cut)
    with opened(path) as again:
        assert set(again.memory.groups) == {group_of(1)}
        assert again.todo("spectrum").tolist() == [0, 2, 3]
        again.record("spectrum", 2, {group_of(2): {"other": np.ones(1)}}, 0.5)
    assert set(read_group(path, group_of(2)).arrays) == {"other"}


def test_an_array_longer_than_a_record_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_replay, "PIECE", 7)  # bytes: pieces end within numbers
    store = opened(tmp_path / "s.h5")
    store.record("spectrum", 3, reading(3), 0.5)
    same(read(tmp_path / "s.h5").groups[group_of(3)], 3)
    assert max(len(r.payload) for r in store._journal.contents.records + log.read(journal_of(store.path)).records) > 7
    assert sum(r.kind == b"A" for r in log.read(journal_of(store.path)).records) > 20
    store.close()


def test_a_writer_killed_at_any_moment_loses_no_task(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from test_task_groups import opened, reading
        store = opened(sys.argv[1])
        for count, index in enumerate(store.todo("spectrum").tolist()):
            store.record("spectrum", index, reading(index), 0.1)
            print(index, flush=True)
            if count == 0:
                store.snapshot()
        """
    )
    path, reported = tmp_path / "s.h5", set()
    for _ in range(8):
        arguments = [sys.executable, "-c", program, str(path), os.path.dirname(__file__)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            reported.add(int(writer.stdout.readline() or -1))
            writer.send_signal(signal.SIGKILL)
            reported |= {int(line) for line in writer.stdout.read().split()}
        reported.discard(-1)
        surface = read(path)
        assert reported <= set(np.flatnonzero(surface.status["spectrum"] == 1).tolist())
        with opened(path) as store:
            for index in reported:
                same(store.arrays[group_of(index)], index)
    assert reported == {0, 1, 2, 3}


FORMER = (Field("row", "1", "a row as long as the longest", extra=("value", 3)),)


def former(path):
    """A survey that an earlier version left, its readings in a field of fixed length."""
    store = SurfaceFile.open(path, GRID, measures={"spectrum": (FORMER, {"top": 2})})
    store.record("spectrum", 0, {"row": np.array([1.0, 5.0, np.nan])}, 0.5, 1)
    store.snapshot()
    store.record("spectrum", 2, {"row": np.array([2.0, 6.0, 7.0])}, 0.25, 0)
    store._journal.close()  # as a death leaves it: point 2 in the journal alone


def convert(index, fields):
    length = int(fields["row"][0])
    return {group_of(index): {"numbers": fields["row"][1 : 1 + length]}}


def test_readings_in_fields_of_an_earlier_version_are_converted_on_opening(tmp_path):
    path = tmp_path / "s.h5"
    former(path)
    with opened(path, upgrades={"spectrum": convert}) as store:
        assert store.todo("spectrum").tolist() == [1, 3]
        assert store.arrays[group_of(0)]["numbers"].tolist() == [5.0]
        assert store.arrays[group_of(2)]["numbers"].tolist() == [6.0, 7.0]
        store.record("spectrum", 1, reading(1), 0.5)
    surface = read(path)  # through the old run's records, which stand in the journal still
    assert "row" not in surface.fields and surface.counts("spectrum")["done"] == 3
    assert surface.fields["spectrum_seconds"][[0, 2]].tolist() == [0.5, 0.25]
    with opened(path) as store:
        assert store.arrays[group_of(2)]["numbers"].tolist() == [6.0, 7.0]
        same(store.arrays[group_of(1)], 1)


@pytest.mark.parametrize("step", ["_begin", "snapshot"])
def test_a_death_during_the_conversion_loses_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "s.h5"
    former(path)

    def death(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SurfaceFile, step, death)
        with pytest.raises(KeyboardInterrupt):
            opened(path, upgrades={"spectrum": convert})
    with opened(path, upgrades={"spectrum": convert}) as store:
        assert store.todo("spectrum").tolist() == [1, 3]
        assert store.arrays[group_of(0)]["numbers"].tolist() == [5.0]
        assert store.arrays[group_of(2)]["numbers"].tolist() == [6.0, 7.0]


def test_other_settings_are_refused_before_anything_is_converted(tmp_path):
    path = tmp_path / "s.h5"
    former(path)
    before = path.read_bytes(), journal_of(path).read_bytes()
    with pytest.raises(Refused, match="spectrum: top is 2 in the file, 3 asked for"):
        SurfaceFile.open(path, GRID, measures={"spectrum": ((), {"top": 3})}, upgrades={"spectrum": convert})
    with pytest.raises(Refused, match=r"spectrum: fields is row\[3\] in the file"):
        opened(path)  # without a conversion
    assert (path.read_bytes(), journal_of(path).read_bytes()) == before
