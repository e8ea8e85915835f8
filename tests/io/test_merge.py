"""Merging shards: the same file as one job would have made, or a refusal that names the difference."""

import json

import h5py
import numpy as np
import pytest

from lossmap.geometry.grid import Field, Grid
from lossmap.io.merge import merge, missing
from lossmap.io.methods import method_note, method_of
from lossmap.io.read import Failure, Group, Refused, SurfaceFile, read, read_group

FIELDS = (Field("train_loss", "nats", "loss"), Field("top", "1", "top", extra=("k", 2)))
GRID = Grid(np.linspace(-1, 1, 4), np.linspace(0, 1, 3))


def shard(
    path,
    only,
    *,
    grid=GRID,
    identity=None,
    settings=None,
    skip=(),
    failing=(),
    chosen=64,
    digest="d",
    measure="loss",
    **more,
):
    settings = {"split": "train", "chosen": {"batch": chosen}} if settings is None else settings
    with SurfaceFile.open(
        path,
        grid,
        identity=identity or {"model": "m"},
        measures={measure: (FIELDS, settings)},
        groups={"directions/x": Group({"w": np.arange(3.0)}, {"norm": "filter"})},
        attributes={"directions_digest": digest, "resolved_surface": {"settings": {"shard": "1/3"}, "folder": "."}},
        only=only,
        **more,
    ) as store:
        for index in map(int, store.todo(measure)):
            if index in failing:
                store.fail(measure, index, Failure(index, 0, "h", "broke"))
            elif index not in skip:
                store.record(measure, index, {"train_loss": index / 3, "top": [index, -index]}, 0.5, 0)
    return path


def test_three_shards_make_the_file_of_one_job(tmp_path):
    paths = [shard(tmp_path / f"s{i}.h5", np.arange(i, 12, 3)) for i in range(3)]
    made = merge(paths, tmp_path / "all.h5")
    alone = read(shard(tmp_path / "alone.h5", None))
    assert missing(made) == [] and made.outcome == "complete"
    surface = read(tmp_path / "all.h5")
    assert surface.outcome == "complete" and surface.settings == alone.settings
    assert list(surface.fields) == list(alone.fields)
    for name in alone.fields:
        assert np.array_equal(surface[name], alone[name], equal_nan=True), name
    assert np.array_equal(surface.status["loss"], alone.status["loss"])
    assert "shard_points" not in surface.attributes and "merged 3 shards" in surface.attributes["history"]
    assert np.array_equal(read_group(tmp_path / "all.h5", "directions/x")["w"], np.arange(3.0))
    told = json.loads(surface.attributes["resolved_surface"])
    assert told["settings"] == {"shard": None, "surf_file": "all.h5"}
    assert "merge_note" not in surface.attributes and "end" in surface.attributes
    with SurfaceFile.open(
        tmp_path / "all.h5", GRID, identity={"model": "m"}, measures={"loss": (FIELDS, {"split": "train"})}
    ) as store:
        assert store.todo("loss").size == 0


def test_a_shard_of_another_method_gives_its_points_up(tmp_path):
    several = {"split": "train", "which": "top:2"}
    counted = {"eigen": method_of("eigen", several)}
    a, b = (
        shard(tmp_path / f"{name}.h5", np.arange(k, 12, 3), settings=several, measure="eigen", by_method=counted)
        for k, name in enumerate("ab")
    )
    c = shard(tmp_path / "c.h5", np.arange(2, 12, 3), settings=several, measure="eigen")
    assert merge([a, b], tmp_path / "two.h5").attributes["method_eigen"] == "copies counted"
    made = merge([a, b, c], tmp_path / "three.h5")
    assert made.outcome == "unfinished" and made.missing("eigen").tolist() == [2, 5, 8, 11]
    assert "c.h5: 4 points of 'eigen' were measured by an earlier version, which may" in made.attributes["merge_note"]
    assert method_note(made) is None
    with SurfaceFile.open(
        tmp_path / "three.h5", GRID, identity={"model": "m"}, measures={"eigen": (FIELDS, several)}, by_method=counted
    ) as store:
        assert store.todo("eigen").tolist() == [2, 5, 8, 11]
    old = [shard(tmp_path / f"{k}.h5", np.arange(k, 12, 2), settings=several, measure="eigen") for k in range(2)]
    assert "passed over copies" in method_note(merge(old, tmp_path / "old.h5"))


def test_points_that_no_shard_has_are_reported(tmp_path):
    one = shard(tmp_path / "a.h5", np.arange(6), skip=(2, 3), failing=(5,))
    two = shard(tmp_path / "b.h5", np.arange(6, 11))
    made = merge([one, two], tmp_path / "all.h5")
    (line,) = missing(made)
    assert line.startswith("loss: 3 points missing and 1 failed, of 12: by index 2-3,5,11 (the first at (0.333333, 0))")
    assert made.outcome == "unfinished"
    assert [f.index for f in made.failures] == [5]
    assert read(tmp_path / "all.h5").failures[0].text == "broke"


def test_a_point_that_one_shard_has_done_is_done(tmp_path):
    one = shard(tmp_path / "a.h5", None, failing=(5,))
    two = shard(tmp_path / "b.h5", None)
    made = merge([one, two], tmp_path / "all.h5")
    assert made.outcome == "complete" and made.failures == () and made["train_loss"][1, 1] == 5 / 3


def test_many_missing_points_are_not_all_listed(tmp_path):
    grid = Grid.line(count=500)
    one = shard(tmp_path / "a.h5", None, grid=grid, skip=range(0, 500, 2))
    (line,) = missing(merge([one], tmp_path / "all.h5"))
    assert "250 points missing" in line and ",..." in line and len(line) < 320


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"grid": Grid(np.linspace(-1, 1, 4), np.linspace(0, 2, 3))}, "y is 0:1:3 there, 0:2:3 here"),
        ({"identity": {"model": "other"}}, "model is m there, other here"),
        ({"settings": {"split": "test"}}, "loss: split is train there, test here"),
        ({"digest": "e"}, "directions is d there, e here"),
    ],
    ids=["grid", "model", "settings", "directions"],
)
def test_shards_that_do_not_belong_together_are_refused_by_the_difference(tmp_path, odd, text):
    one, two = shard(tmp_path / "a.h5", np.arange(6)), shard(tmp_path / "b.h5", np.arange(6, 12), **odd)
    with pytest.raises(Refused, match=f"a.h5 and .*b.h5 are not shards of one survey: {text}"):
        merge([one, two], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


def test_other_fields_of_a_measure_are_refused(tmp_path):
    one = shard(tmp_path / "a.h5", None)
    with SurfaceFile.open(
        tmp_path / "b.h5", GRID, identity={"model": "m"}, measures={"loss": (FIELDS[:1], {"split": "train"})},
        attributes={"directions_digest": "d"},
    ):  # fmt: skip
        pass
    with pytest.raises(Refused, match="loss: fields is train_loss, top there, train_loss here"):
        merge([one, tmp_path / "b.h5"], tmp_path / "all.h5")


def test_what_probes_chose_differently_is_noted(tmp_path):
    one, two = shard(tmp_path / "a.h5", np.arange(6)), shard(tmp_path / "b.h5", np.arange(6, 12), chosen=32)
    made = merge([one, two], tmp_path / "all.h5")
    assert "last bits may differ" in made.attributes["merge_note"] and '"batch":32' in made.attributes["merge_note"]


def test_an_audit_over_part_of_the_points_is_joined(tmp_path):
    audit = (Field("audit_top", "1", "audit"),)
    paths = []
    for i in range(2):
        path = shard(tmp_path / f"s{i}.h5", np.arange(i, 12, 2))
        with SurfaceFile.open(path, GRID, identity={"model": "m"}) as store:
            store.declare("audit", audit, {"cold": True}, points=np.array([i + 2]))
            store.record("audit", i + 2, {"audit_top": 1.0}, 0.1)
            store.note(audit={"audited": 1}, audit_points=1, audit_candidates=6, audit_misses=0, audit_miss_bound=0.5)
        paths.append(path)
    made = merge(paths, tmp_path / "all.h5")
    assert not [name for name in made.attributes if name.startswith("audit")]  # which would be those of the first alone
    assert "audited by themselves, as their own files say: " in made.attributes["merge_note"]
    assert list(made.parts["audit"]) == [2, 3] and made.outcome == "complete" and missing(made) == []


def test_merging_needs_shards_without_a_writer_and_a_free_path(tmp_path):
    with pytest.raises(ValueError, match="there are no shards to merge"):
        merge([], tmp_path / "all.h5")
    one = shard(tmp_path / "a.h5", None)
    with pytest.raises(FileExistsError, match=r"a.h5 exists; name another file with --output"):
        merge([one], one)
    with (
        SurfaceFile.open(tmp_path / "b.h5", GRID, measures={"loss": (FIELDS, {})}),
        pytest.raises(ValueError, match=r"b.h5 is still being written"),
    ):
        merge([tmp_path / "b.h5"], tmp_path / "all.h5")


def original(path, losses, accuracies):
    """A surface file as the original tool leaves it: -1 where it has not computed a point."""
    with h5py.File(path, "w") as file:
        file["xcoordinates"], file["train_loss"], file["train_acc"] = np.linspace(-1, 1, 4), losses, accuracies
    return path


def test_two_halves_of_the_original_tool_make_one_result(tmp_path):
    one = original(tmp_path / "a.h5", [0.5, 0.25, -1.0, -1.0], [90.0, 95.0, -1.0, -1.0])
    two = original(tmp_path / "b.h5", [-1.0, -1.0, 0.75, np.nan], [-1.0, -1.0, 80.0, 10.0])
    merge([one, two], tmp_path / "all.h5")
    surface = read(tmp_path / "all.h5")
    assert surface.outcome == "complete" and missing(surface) == []
    assert np.array_equal(surface["train_loss"], [0.5, 0.25, 0.75, np.nan], equal_nan=True)
    assert list(surface["train_acc"]) == [90.0, 95.0, 80.0, 10.0] and list(surface.status["loss"]) == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["plane_surf.h5", "line_surf.h5"])
def test_the_sample_results_of_the_original_tool_merge(reference, tmp_path, name):
    sample = reference / "original_tool" / name
    merge([sample], tmp_path / "all.h5")
    before, after = read(sample), read(tmp_path / "all.h5")
    assert after.outcome == "complete" and list(after.fields) == list(before.fields)
    for field in before.fields:
        assert np.array_equal(after[field], before[field], equal_nan=True), field
    with h5py.File(tmp_path / "all.h5") as file:
        assert file.attrs["format"] == "lossmap"
