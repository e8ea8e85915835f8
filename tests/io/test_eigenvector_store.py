"""Eigenvectors go to the disk as they come, whole or not at all, and come back by blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray

from lossmap.geometry.grid import Grid
from lossmap.io import read as surface_room
from lossmap.io.eigenvector_store import (
    RESULTS,
    VECTORS,
    VectorFolder,
    move_into_file,
    put_group,
    read_vectors,
    results_of,
)
from lossmap.io.read import Refused, read, read_group, write_surface
from lossmap.io.surface import Group, Surface


def vectors(seed, r=3, n=50):
    return np.random.default_rng(seed).standard_normal((r, n)).astype(np.float32)


def flat(steps):
    return Surface(Grid(np.array(steps)), {"loss": np.zeros(len(steps))})


def made(tmp_path, counts=(3, 2, 3)):
    folder, steps = VectorFolder(tmp_path / "v"), [10.0, 20.0, 120.0][: len(counts)]
    kept = [vectors(i, r) for i, r in enumerate(counts)]
    for step, rows in zip(steps, kept, strict=True):
        folder.keep(step, rows)
    file = tmp_path / "run.h5"
    write_surface(file, flat(steps))
    values = np.full((len(counts), 3), np.nan)
    for line, r in zip(values, counts, strict=True):
        line[:r] = np.arange(r, 0, -1)
    results = Group({"step": np.array(steps), "eigenvalue": values, "residual": values * 0}, {"verdict": "words"})
    return file, folder, steps, kept, results


@pytest.mark.parametrize("block", [1, 200, 10**9])
def test_blocks_are_the_columns_of_all_rows_stacked(tmp_path, block):
    _, folder, steps, kept, _ = made(tmp_path)
    found = list(folder.blocks(steps, block=block)())
    np.testing.assert_array_equal(np.concatenate(found, axis=1), np.concatenate(kept))
    assert all(b.nbytes <= max(block, 8 * 4) for b in found)


def test_a_snapshot_is_whole_or_not_there(tmp_path):
    folder = VectorFolder.beside(tmp_path / "run.h5")
    assert folder.path.name == "run.h5.vectors" and not folder.holds(3)
    folder.keep(3, vectors(0))
    folder.keep(3, vectors(1))
    np.testing.assert_array_equal(folder.snapshot(3), vectors(1))
    assert folder.shape(3) == (3, 50) and [f.name for f in folder.path.iterdir()] == ["00000003.npy"]
    folder.clear()
    assert not folder.path.exists()


def test_the_file_holds_vectors_and_results_and_gives_them_back_by_blocks(tmp_path):
    file, folder, steps, kept, results = made(tmp_path)
    move_into_file(file, folder, steps, results, 3)
    held = read_vectors(file, block=400)
    assert held.size == 50 and held.steps.tolist() == steps
    blocks = list(held.blocks())
    assert len(blocks) > 3
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), np.concatenate(kept))
    assert results_of(file).attributes["verdict"] == "words"
    assert "loss" in read(file).fields


def test_reading_the_file_does_not_bring_the_vectors(tmp_path):
    file, folder, steps, _, results = made(tmp_path)
    move_into_file(file, folder, steps, results, 3)
    assert not read(file).groups[VECTORS].arrays
    assert read_group(file, VECTORS)["eigenvector"].shape == (3, 3, 50)


def test_the_vectors_stay_when_the_file_is_written_anew(tmp_path):
    file, folder, steps, _, results = made(tmp_path)
    move_into_file(file, folder, steps, results, 3)
    with surface_room.SurfaceFile.open(file, Grid(np.array(steps))) as again:
        again.put("spectrum", Group({"top": np.ones(2)}))
    assert read_vectors(file).size == 50 and read(file).groups["spectrum"]["top"].tolist() == [1, 1]


def test_netcdf_readers_open_both_groups(tmp_path):
    file, folder, steps, _, results = made(tmp_path)
    move_into_file(file, folder, steps, results, 3)
    with xarray.open_dataset(file, engine="h5netcdf", group=VECTORS) as found:
        assert found["eigenvector"].dims == ("step", "pair", "theta")
    with xarray.open_dataset(file, engine="h5netcdf", group=RESULTS) as found:
        assert found["eigenvalue"].shape == (3, 3)


def test_folding_again_replaces_and_a_failure_changes_nothing(tmp_path):
    file, folder, steps, kept, results = made(tmp_path)
    move_into_file(file, folder, steps, results, 3)
    before = file.read_bytes()
    with pytest.raises(FileNotFoundError):
        move_into_file(file, folder, [*steps, 999.0], results, 3)
    assert file.read_bytes() == before and not file.with_name("run.h5.part").exists()
    folder.keep(steps[0], -kept[0])
    move_into_file(file, folder, steps, results, 3)
    np.testing.assert_array_equal(next(read_vectors(file).blocks())[:3], -kept[0])


def test_missing_snapshots_are_named(tmp_path):
    _, folder, steps, _, _ = made(tmp_path)
    with pytest.raises(FileNotFoundError, match="eigenvectors of step 7 are not in"):
        folder.blocks([*steps, 7.0])


def test_a_file_without_a_run_says_so(tmp_path):
    write_surface(tmp_path / "a.h5", flat([0.0, 1.0]))
    with pytest.raises(KeyError, match="holds no evolution along a run"):
        read_vectors(tmp_path / "a.h5")


def test_a_group_is_put_into_a_new_file_or_one_that_is_there(tmp_path):
    file = tmp_path / "a.h5"
    group = Group({"x": np.arange(4.0)}, {"report": json.dumps({"a": 1})})
    put_group(file, "health", group, lambda: flat([0.0]))
    put_group(file, "health", Group({"x": np.arange(2.0)}, group.attributes), lambda: flat([5.0]))
    found = read(file)
    assert found.groups["health"]["x"].tolist() == [0, 1] and found.grid.x.tolist() == [0.0]
    assert json.loads(found.groups["health"].attributes["report"]) == {"a": 1}


def test_a_file_that_a_survey_is_writing_is_left_alone(tmp_path):
    file = tmp_path / "a.h5"
    (tmp_path / "a.h5.journal").write_bytes(b"")
    with pytest.raises(Refused, match="a survey is writing"):
        put_group(file, "health", Group(), lambda: flat([0.0]))
    assert not file.exists()
