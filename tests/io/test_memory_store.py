"""The ledger: the points of a survey in memory, in the same words as a file."""

import numpy as np
import pytest

from lossmap.geometry.grid import Field, Grid
from lossmap.io.memory_store import MemoryStore, Store
from lossmap.io.read import Failure, Group, SurfaceFile

FIELDS = (Field("train_loss", "nats", "loss"), Field("top", "1", "top", extra=("k", 2)))
GRID = Grid(np.linspace(0, 1, 4), np.array([0.0, 1.0]))


def ledger(**more):
    return MemoryStore(GRID, {"loss": (FIELDS, {"split": "train"})}, **more)


def reading(index):
    return {"train_loss": float(index), "top": [index, -index]}


def test_a_ledger_and_a_file_are_used_alike(tmp_path):
    def survey(store: Store):
        for index in store.todo("loss"):
            store.record("loss", int(index), reading(index), 0.5, 1)
        store.fail("loss", 3, Failure(3, 2, "h", "broke"))
        store.save_unfinished("loss", 4, {"step": 1})
        assert dict(store.unfinished("loss")) == {4: {"step": 1}}
        store.record("loss", 4, reading(4), 0.5)
        assert dict(store.unfinished("loss")) == {}
        store.declare("audit", (Field("again", "1", "again"),), {}, points=np.array([2]))
        assert list(store.todo("audit")) == [2] and store.only.size == 8
        store.note(found=1)
        store.put("spectrum", Group({"values": np.ones(1)}))
        store.tick()
        store.close()
        return store.surface()

    memory = survey(ledger())
    file = survey(SurfaceFile.open(tmp_path / "s.h5", GRID, measures={"loss": (FIELDS, {"split": "train"})}))
    for name in memory.fields:
        assert np.array_equal(memory[name], file[name], equal_nan=True), name
    assert np.array_equal(memory.status["loss"], file.status["loss"])
    assert memory.failures == file.failures and memory.attributes["found"] == file.attributes["found"] == 1
    assert memory.settings["measures"] == file.settings["measures"] and "spectrum" in memory.groups


def test_a_surface_is_a_copy_that_later_points_leave_alone():
    store = ledger()
    before = store.surface()
    store.record("loss", 0, reading(0), 0.1)
    assert np.isnan(before["train_loss"]).all() and not before.status["loss"].any()
    assert store.surface()["top"].shape == (2, 4, 2)


def test_a_failed_point_has_no_numbers():
    store = ledger()
    store.record("loss", 2, reading(2), 0.1)
    store.fail("loss", 2, Failure(9, 1, "h", "broke"))
    surface = store.surface()
    assert np.isnan(surface["train_loss"][0, 2]) and surface.failures[0].index == 2
    store.record("loss", 2, reading(2), 0.1)
    assert store.surface().failures == () and store.status("loss")[2] == 1


def test_a_measure_may_need_only_some_of_the_points():
    store = ledger(only=np.array([5, 1]))
    assert list(store.todo("loss")) == [1, 5]
    for index in (1, 5):
        store.record("loss", index, reading(index), 0.1)
    assert store.complete()
    store.only = np.arange(8)
    assert not store.complete()


def test_a_store_continues_from_a_surface():
    store = ledger()
    store.record("loss", 0, reading(0), 0.1, 3)
    store.fail("loss", 1, Failure(1, 1, "h", "broke"))
    again = MemoryStore.of(store.surface())
    assert list(again.todo("loss", retry_failed=True)) == list(range(1, 8))
    assert again.surface()["loss_rank"][0, 0] == 3 and again.surface().failures == store.surface().failures
    assert again.settings("loss") == {"split": "train"}


def test_what_does_not_fit_is_refused():
    store = ledger()
    with pytest.raises(IndexError, match="point 8 of a grid of 8"):
        store.record("loss", 8, reading(0), 0.1)
    with pytest.raises(ValueError, match="the measures 'loss' and 'other' both read train_loss"):
        store.declare("other", FIELDS[:1], {})
