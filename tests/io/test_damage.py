"""Files at rest: whatever is changed in a result is named, or taken from the journal; no link is followed."""

import importlib.util
import json
import os
import random
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lossmap import find_minima, results
from lossmap.cli.draw import main as draw
from lossmap.cli.status import main as status
from lossmap.geometry.grid import Field, Grid
from lossmap.io import digests, journal
from lossmap.io.checked import open_checked
from lossmap.io.eigenvector_store import VectorFolder, put_group
from lossmap.io.merge import merge
from lossmap.io.read import (
    Damaged,
    Group,
    NotASurface,
    SurfaceFile,
    journal_of,
    read,
    read_group,
    write_surface,
)
from lossmap.io.surface import REBUILT, UNPROTECTED, VERIFIED, Surface
from lossmap.io.verify import verify

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "damage.py"
FIELDS = (Field("train_loss", "nats", "mean loss"), Field("train_acc", "percent", "accuracy"))
GRID = Grid(np.linspace(-1, 1, 5), np.array([0.0, 0.3, 1.0]))
GROUPS = {
    "directions/x": Group({"w": np.arange(6.0).reshape(2, 3)}, {"norm": "filter", "seed": 3}),
    "trajectory": Group({"step": np.arange(3), "x": np.arange(3.0), "y": np.zeros(3)}),
}


def written(path, points=range(15), groups=GROUPS, attributes=None):
    """A result with these points; without all of them its journal stays beside it, as after a SIGKILL."""
    measures = {"loss": (FIELDS, {"split": "train"})}
    with SurfaceFile.open(path, GRID, measures=measures, groups=groups, attributes=attributes) as store:
        for index in points:
            store.record("loss", index, {"train_loss": index / 7, "train_acc": 100.0 - index}, 0.25)
    return path


def without_digests(path):
    """The same file as version 0.1 wrote it."""
    with h5py.File(path, "r+") as file:
        del file.attrs[digests.CONTENT]
        del file[digests.GROUP]
    return path


def test_a_file_that_was_read_says_how_far_it_can_be_trusted(tmp_path, capsys):
    path = written(tmp_path / "s.h5")
    assert read(path).integrity == VERIFIED
    assert status([str(path)]) == 0 and "unprotected" not in capsys.readouterr().out
    assert status([str(path), "--verify"]) == 0
    assert "all 14 arrays and groups fit their digests" in capsys.readouterr().out
    without_digests(path)
    assert read(path).integrity == UNPROTECTED
    assert status([str(path)]) == 0 and "unprotected: the file has no digests" in capsys.readouterr().out
    assert status([str(path), "--verify"]) == 0 and "unprotected" in capsys.readouterr().out


def test_a_file_of_the_original_tool_is_unprotected(tmp_path, capsys):
    path = tmp_path / "original.h5"
    with h5py.File(path, "w") as file:
        file["xcoordinates"], file["train_loss"] = np.linspace(-1, 1, 3), np.arange(3.0)
    assert read(path).integrity == UNPROTECTED and verify(path).unprotected
    assert status([str(path), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unprotected"] is True


def edit_number(file):
    file["train_loss"][1, 2] = 0.5


def edit_tick(file):
    file["xcoordinates"][2] = 0.01


def edit_status(file):
    file["loss_status"][0, 0] = 2


def edit_unit(file):
    file["train_loss"].attrs["units"] = "percent"


def edit_settings(file):
    file.attrs["settings"] = file.attrs["settings"].replace("train", "test")


def edit_history(file):
    file.attrs["history"] = "never"


def edit_recipe(file):
    file["directions/x"].attrs["seed"] = 4


def edit_trajectory(file):
    file["trajectory/x"][1] = 5.0


def add_a_field(file):
    file["test_loss"] = np.zeros((3, 5))


def remove_a_field(file):
    del file["train_acc"]


def remove_the_digests(file):
    del file[digests.GROUP]


def edit_a_digest(file):
    file[digests.GROUP]["sha256"][0] = "0" * 64


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit_number, "train_loss does not fit its digest"),
        (edit_tick, "xcoordinates does not fit its digest"),
        (edit_status, "loss_status does not fit its digest"),
        (edit_unit, "train_loss does not fit its digest"),
        (edit_settings, "root attributes"),
        (edit_history, "root attributes"),
        (edit_recipe, "the attributes of directions/x"),
        (edit_trajectory, "trajectory/x does not fit its digest"),
        (add_a_field, "test_loss has no digest"),
        (remove_a_field, "train_acc is missing"),
        (remove_the_digests, "its digests are not all there"),
        (edit_a_digest, "its list of digests"),
    ],
)
def test_what_was_changed_is_named(tmp_path, capsys, change, named):
    path = written(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(Damaged, match=named):
        read(path)
    assert status([str(path), "--verify"]) == 2 and named in capsys.readouterr().out
    assert status([str(path)]) == 2 and named in capsys.readouterr().err


def test_a_large_group_is_checked_when_it_is_read_and_by_verify(tmp_path):
    path = written(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        file["directions/x/w"][0, 0] = 7.0
    assert read(path).integrity == VERIFIED  # which leaves the tensors in the file
    with pytest.raises(Damaged, match="directions/x/w does not fit"):
        read_group(path, "directions/x")
    (line,) = verify(path).damage
    assert "directions/x/w does not fit" in line


def test_damage_to_what_a_snapshot_takes_over_stays_noticeable(tmp_path):
    path = written(tmp_path / "s.h5", range(4))
    with h5py.File(path, "r+") as file:
        file["directions/x/w"][0, 0] = 7.0
    written(path, range(4, 15), groups={})
    with pytest.raises(Damaged, match="directions/x/w"):
        read_group(path, "directions/x")


def links(file, folder):
    file["train_acc_link"] = h5py.ExternalLink(str(folder / "other.h5"), "train_acc")


def soft_link(file, folder):
    file["test_acc"] = h5py.SoftLink("/train_acc")


def raw_storage_elsewhere(file, folder):
    file.create_dataset("test_acc", (3, 5), "f8", external=[(str(folder / "numbers.bin"), 0, 120)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((3, 5), "f8")
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "train_acc", (3, 5))
    file.create_virtual_dataset("test_acc", layout)


def far_too_large(file, folder):
    file.create_dataset("test_acc", (3, 5, 1 << 41), "f8")


def compound(file, folder):
    file["test_acc"] = np.zeros((3, 5), [("a", "f8"), ("b", "i4")])


def texts(file, folder):
    del file["train_acc"]
    file.create_dataset("train_acc", data=np.full((3, 5), "x", object), dtype=h5py.string_dtype())


def misshapen(file, folder):
    del file["train_acc"]
    file["train_acc"] = np.zeros((5, 3))


def missing_ticks(file, folder):
    del file["xcoordinates"]


def so_many_ticks(file, folder):
    del file["xcoordinates"]
    file.create_dataset("xcoordinates", (1 << 36,), "f8")


def ticks_of_text(file, folder):
    del file["xcoordinates"]
    file.create_dataset("xcoordinates", data=np.array(["a"] * 5, object), dtype=h5py.string_dtype())


def status_out_of_range(file, folder):
    file["loss_status"][0, 0] = 3


def missing_field(file, folder):
    del file["train_acc"]


def fields_that_are_no_list(file, folder):
    file["loss_status"].attrs["fields"] = '["train_loss"'


def settings_that_are_no_table(file, folder):
    file.attrs["settings"] = "{"


def points_beyond_the_grid(file, folder):
    file["loss_status"].attrs["points"] = "0-99999999999"


def shard_beyond_the_grid(file, folder):
    file.attrs["shard_points"] = "3-4000000000"


def group_within_itself(file, folder):
    file["trajectory/again"] = file["trajectory"]


def group_for_ticks(file, folder):
    del file["xcoordinates"]
    file.create_group("xcoordinates")


def no_format(file, folder):
    del file.attrs["format"]


def other_format(file, folder):
    file.attrs["format"] = "lossmaq"


HOSTILE = {
    links: "train_acc_link is a link to another file",
    soft_link: "test_acc is a link to another place",
    raw_storage_elsewhere: "test_acc refers to another file",
    virtual: "test_acc refers to another file",
    far_too_large: "test_acc says that it has 263,882,790,666,240 bytes",
    compound: "test_acc must hold numbers or texts",
    texts: "train_acc must hold numbers",
    misshapen: r"train_acc has the shape \(5, 3\)",
    missing_ticks: "xcoordinates, the ticks, are missing",
    so_many_ticks: "xcoordinates says that it has 549,755,813,888 bytes",
    ticks_of_text: "xcoordinates must be a row of finite numbers",
    status_out_of_range: "loss_status must be 0, 1 or 2; got 3",
    missing_field: "train_acc, a field of the measure loss, is missing",
    fields_that_are_no_list: "the list of fields of loss_status cannot be read",
    settings_that_are_no_table: "its settings",
    points_beyond_the_grid: "the points of loss_status",
    shard_beyond_the_grid: "shard_points",
    group_within_itself: "without end",
    group_for_ticks: "xcoordinates must be an array",
    no_format: "its format must be 'lossmap'; got ''",
    other_format: "its format must be 'lossmap'; got 'lossmaq'",
}


@pytest.mark.parametrize("change", HOSTILE)
def test_what_cannot_be_in_a_result_is_one_sentence_also_without_digests(tmp_path, capsys, change):
    written(tmp_path / "other.h5")
    path = without_digests(written(tmp_path / "s.h5"))
    with h5py.File(path, "r+") as file:
        change(file, tmp_path)
    with pytest.raises(Damaged, match=HOSTILE[change]) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert status([str(path)]) == 2
    said = capsys.readouterr().err
    assert "damaged" in said and not any(word in said for word in ("Traceback", "KeyError", "Unable to", "Expecting"))


def test_a_figure_of_what_does_not_fit_together_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "s.h5"
    groups = {"trajectory": Group({"x": np.arange(3.0), "y": np.arange(3.0), "step": np.arange(3)})}
    without_digests(written(path, groups=groups))
    with h5py.File(path, "r+") as file:
        del file["trajectory/x"]
    assert draw([str(path), "--kind", "path", "--output", str(tmp_path / "p.png")]) == 2
    said = capsys.readouterr().err
    assert "is damaged: trajectory has no array 'x'" in said and "KeyError" not in said


def test_a_list_of_texts_without_end_is_refused(tmp_path):
    path = written(tmp_path / "s.h5")
    data = bytearray(path.read_bytes())
    at = data.find(b"GCOL")
    first = int.from_bytes(data[at + 24 : at + 32], "little")
    assert data[at + 4] == 1 and 0 < first < 4096
    for size in (2**64 - 16, 1 << 20):  # a step of 0, which HDF5 repeats for ever; a step out of the list
        data[at + 24 : at + 32] = size.to_bytes(8, "little")
        path.write_bytes(data)
        with pytest.raises(Damaged, match="its texts cannot be read"):
            read(path)


def test_only_what_the_original_tool_writes_is_read_as_its_file(tmp_path):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file["xcoordinates"], file["train_loss"] = np.linspace(-1, 1, 3), np.zeros(3)
        file["loss_status"] = np.zeros(3, "u1")
    with pytest.raises(Damaged, match="its format must be"):
        read(path)
    with h5py.File(path, "w") as file:
        file["xcoordinates"] = np.linspace(-1, 1, 3)
        file.create_dataset("train_loss", (3, 1 << 40), "f8")
    with pytest.raises(Damaged, match="train_loss says that it has"):
        read(path)


def test_a_pipe_and_a_device_are_no_results(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", Path("/dev/zero")):
        with pytest.raises(NotASurface, match="must be a file on a disk"):
            read(path)
    os.mkfifo(tmp_path / "s.h5.journal")
    written(tmp_path / "other.h5").rename(tmp_path / "s.h5")
    assert status([str(tmp_path / "s.h5")]) == 2 and "must be a file on a disk" in capsys.readouterr().err


def test_a_grid_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match="a count of 16,777,216 at most"):
        Grid.parse("-1:1:68719476736")
    with pytest.raises(ValueError, match="a grid must have <= 2,147,483,648 points; got 1,099,511,627,776"):
        Grid.parse("-1:1:1048576", "-1:1:1048576")


@pytest.mark.parametrize("change", [edit_settings, edit_number, edit_status, remove_a_field, edit_tick])
def test_a_damaged_half_done_file_is_rebuilt_from_its_whole_journal(tmp_path, capsys, change):
    path = written(tmp_path / "s.h5", range(6))
    with h5py.File(path, "r+") as file:
        change(file)
    surface = read(path)
    assert surface.integrity.startswith(REBUILT) and surface.outcome == "unfinished"
    assert surface.counts("loss") == {"done": 6, "failed": 0, "left": 9}
    assert np.array_equal(surface["train_loss"].reshape(-1)[:6], np.arange(6) / 7)
    assert status([str(path)]) == 75 and "rebuilt from the journal" in capsys.readouterr().out
    assert status([str(path), "--verify"]) == 2
    written(path, range(6, 15))
    again = read(path)
    assert again.integrity == VERIFIED and again.outcome == "complete"
    assert np.array_equal(again["train_loss"].reshape(-1), np.arange(15) / 7)
    assert read_group(path, "directions/x")["w"][1, 2] == 5.0


@pytest.mark.parametrize("lost", ["begins later", "damaged"])
def test_a_journal_that_does_not_hold_all_rebuilds_nothing(tmp_path, lost):
    path = written(tmp_path / "s.h5", range(6) if lost == "damaged" else range(15))
    if lost == "damaged":
        data = bytearray(journal_of(path).read_bytes())
        data[len(data) // 2] ^= 4
        journal_of(path).write_bytes(data)
    else:  # the file was complete, and a further measure went into it
        measures = {"loss": (FIELDS, {"split": "train"}), "eigen": ((Field("max_eig", "1", "x"),), {})}
        with SurfaceFile.open(path, GRID, measures=measures) as store:
            store.record("eigen", 0, {"max_eig": 1.0}, 0.1)
    with h5py.File(path, "r+") as file:
        edit_number(file)
    with pytest.raises(Damaged, match="train_loss"):
        read(path)
    with pytest.raises(Damaged, match="train_loss"):
        written(path, ())


def test_a_point_whose_array_lies_in_a_damaged_stretch_is_computed_again(tmp_path):
    path, grid = tmp_path / "s.h5", Grid(np.arange(3.0))
    measures = {"spectrum": ((), {})}
    with SurfaceFile.open(path, grid, measures=measures) as store:
        for index in range(2):
            store.record("spectrum", index, {f"tasks/{index}": {"a": np.full(50, index), "b": np.full(50, 9)}}, 0.1)
    data = bytearray(journal_of(path).read_bytes())
    records = journal.parse(bytes(data)).records
    assert [record.kind for record in records] == [b"O", b"A", b"A", b"P", b"A", b"A", b"P"]
    first = data.find(records[1].payload[-100:])
    data[first + 50] ^= 1
    journal_of(path).write_bytes(data)
    path.unlink()  # as before the first snapshot
    surface = read(path)
    assert surface.status["spectrum"].tolist() == [0, 1, 0]
    assert surface.groups["tasks/1"]["a"].tolist() == [1] * 50


def test_every_writer_leaves_digests(tmp_path):
    whole = written(tmp_path / "s.h5")
    surface = read(whole)
    surface.save(tmp_path / "saved.h5")
    write_surface(tmp_path / "written.h5", surface, tensors_from=whole)
    put_group(whole, "health", Group({"a": np.arange(3.0)}, {"report": "fine"}), lambda: surface)
    for shard, points in ((1, range(7)), (2, range(7, 15))):
        with SurfaceFile.open(
            tmp_path / f"m.shard-{shard}-of-2.h5", GRID, measures={"loss": (FIELDS, {})}, only=np.array(points)
        ) as store:
            for index in points:
                store.record("loss", index, {"train_loss": 1.0, "train_acc": 2.0}, 0.1)
    merge([tmp_path / f"m.shard-{shard}-of-2.h5" for shard in (1, 2)], tmp_path / "m.h5")
    for name in ("s.h5", "saved.h5", "written.h5", "m.h5"):
        checked = verify(tmp_path / name)
        assert not checked.damage and not checked.unprotected and checked.objects > 5, name
    assert read_group(whole, "health")["a"].tolist() == [0, 1, 2]
    assert verify(tmp_path / "written.h5").objects == verify(tmp_path / "saved.h5").objects


def test_a_file_of_version_0_1_gets_digests_when_it_is_continued(tmp_path):
    path = without_digests(written(tmp_path / "s.h5", range(4)))
    written(path, range(4, 15))
    assert read(path).integrity == VERIFIED and not verify(path).damage


def test_a_value_of_results_is_checked_when_it_is_read(tmp_path):
    from lossmap.linalg.power_law import PowerLawTail

    fields = dict.fromkeys(PowerLawTail.__dataclass_fields__, 1.5)
    path = tmp_path / "value.h5"
    results.save(PowerLawTail(**fields), path)
    assert results.read(path) == PowerLawTail(**fields)
    with h5py.File(path, "r+") as file:
        group = file["values/result"]
        group.attrs["structure"] = group.attrs["structure"].replace("1.5", "2.5", 1)
    with pytest.raises(Damaged, match="values/result"):
        results.read(path)


def test_eigenvectors_of_a_run_that_were_changed_on_the_disk_are_refused(tmp_path):
    folder = VectorFolder(tmp_path / "vectors")
    vectors = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    folder.keep(1.0, vectors)
    assert np.array_equal(next(folder.blocks([1.0])()), vectors)
    (file,) = (tmp_path / "vectors").iterdir()
    data = bytearray(file.read_bytes())
    for at in (200, len(data) - 3):
        changed = data.copy()
        changed[at] ^= 16
        file.write_bytes(changed)
        with pytest.raises(Damaged, match="does not fit its digest"):
            folder.blocks([1.0])
    file.write_bytes(data[:150])
    with pytest.raises(Damaged, match="does not fit its digest"):
        folder.blocks([1.0])
    file.write_bytes(data[:-40])  # as version 0.1 wrote it
    assert np.array_equal(next(folder.blocks([1.0])()), vectors)


def test_an_array_that_is_read_in_blocks_has_the_same_digest(tmp_path, monkeypatch):
    path = written(tmp_path / "s.h5")
    monkeypatch.setattr(digests, "BLOCK", 16)
    assert not verify(path).damage
    with open_checked(path) as source:
        source.check("train_loss")


@pytest.fixture(scope="module")
def benchmark_and_files(tmp_path_factory):
    specification = importlib.util.spec_from_file_location("damage", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    sys.modules["damage"] = module
    specification.loader.exec_module(module)
    return module, module.make(tmp_path_factory.mktemp("damage"), ("surface", "spectrum"))


@pytest.mark.skipif(h5py.version.hdf5_version_tuple < (2,), reason="HDF5 before 2.0 crashes on some damaged files")
def test_no_flipped_bit_and_no_missing_end_gives_a_wrong_number(benchmark_and_files):
    module, made = benchmark_and_files
    assert len(made) == 4
    for name, path in made.items():
        for times, change in ((40, module.flip), (10, module.cut)):
            counts, notes = module.damage(path, times, change, random.Random(f"{name} {times}"))
            assert not counts["wrong"] and not counts["crash"], notes
            assert sum(counts.values()) == times and counts["refused"] + counts["fewer"] > times / 4


def test_the_benchmark_notices_a_wrong_number_where_there_are_no_digests(benchmark_and_files):
    module, made = benchmark_and_files
    path = module.unprotected(made["surface"])
    counts, _ = module.damage(path, 40, module.flip, random.Random(1))
    assert counts["wrong"] > 3
    shutil.rmtree(path.parent)


def null_dataset(file):
    del file["train_loss"]
    file.create_dataset("train_loss", data=h5py.Empty("f8"))


ROOT = {  # what is changed of the root, and what the sentence says
    "a dataset without values": (null_dataset, "train_loss has a type and no values"),
    "restarts in words": (lambda f: f.attrs.__setitem__("restarts", "often"), "restarts must be a number of times"),
    "two versions": (lambda f: f.attrs.__setitem__("lossmap_version", [1, 2]), "lossmap_version must be one value"),
    "a cost in words": (lambda f: f.attrs.__setitem__("loss_took", '{"seconds": "x"}'), "loss_took must be a table"),
    "a cost cut off": (lambda f: f.attrs.__setitem__("loss_estimate", '{"sec'), "loss_estimate must be a table"),
    "a run in words": (lambda f: f.attrs.__setitem__("attempts", '[{"seconds": "x"}]'), "attempts must be a list"),
}


@pytest.mark.parametrize("case", ROOT)
def test_a_root_that_status_cannot_read_is_damaged_by_name(tmp_path, case, capsys):
    """Each ended in a TypeError of Python."""
    change, words = ROOT[case]
    path = without_digests(written(tmp_path / "s.h5"))
    with h5py.File(path, "r+") as file:
        change(file)
    for command in (status, draw):
        assert command([str(path)]) == 2
        assert f"{path} is damaged: " in (said := capsys.readouterr().err) and words in said


def test_an_estimate_with_parts_of_another_version_is_left_out(tmp_path, capsys):
    path = without_digests(written(tmp_path / "s.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["loss_estimate"] = '{"seconds": 1.0, "most": 2.0, "of_later": 3}'
    assert status([str(path)]) == 0
    assert "15 of 15 done" in capsys.readouterr().out


def minima(folder):
    """A file with the value that `find_minima` returns."""
    x = np.linspace(-1, 1, 9)
    return find_minima(Surface(Grid(x), {"train_loss": np.cos(7 * x) + 2})).save(folder / "t.h5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.attrs.__setitem__("structure", "{"), "values/result: the stored Topology cannot be put"),
        (lambda g: g.attrs.__setitem__("encoding", 2), "written by a newer version of lossmap: install that one"),
        (lambda g: g.__delitem__("saddle"), "the stored Topology cannot be put together"),
    ],
)
def test_a_stored_value_is_damaged_in_words_of_ours(tmp_path, change, words):
    """The sentence ended with what JSON, or Python, says of it."""
    path = without_digests(minima(tmp_path))
    with h5py.File(path, "r+") as file:
        change(file["values/result"])
    with pytest.raises(Damaged, match=words) as raised:
        results.read(path)
    assert str(path) in str(raised.value)
    assert not {"Error", "Expecting"} & set(str(raised.value).replace(":", " ").split())


def test_a_stored_value_of_which_a_part_does_not_fit_is_damaged(tmp_path):
    """It was read, and ended in an IndexError where it was printed."""
    path = without_digests(minima(tmp_path))
    with h5py.File(path, "r+") as file:
        short = file["values/result/saddle"][:0]
        del file["values/result/saddle"]
        file["values/result/saddle"] = short
    with pytest.raises(Damaged, match="the parts of values/result do not fit together"):
        results.read(path)
