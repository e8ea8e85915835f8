"""Results written by version 0.1.0 are read, drawn, resumed and merged (their commands: version_0_1_0/README.md)."""

import json
import lzma
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lossmap.cli.__main__ import main
from lossmap.io import journal
from lossmap.io.read import journal_of, read, read_group

RESULTS = Path(__file__).parent / "version_0_1_0"
EXPECTED = json.loads((RESULTS / "expected.json").read_text())
COMPLETE, INTERRUPTED, MERGED = EXPECTED["complete"], EXPECTED["interrupted"], EXPECTED["merged"]


def commands() -> dict[str, dict[str, list[str]]]:
    """The README's commands: {section: {file: [command, ...]}}; those after "completed by" where there are any."""
    table: dict[str, dict[str, list[str]]] = {}
    for section in (RESULTS / "README.md").read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        entries = table.setdefault(title, {})
        for entry in re.split(r"^- `", text, flags=re.M)[1:]:
            lines = re.split(r"(?:completed|merged) by\n", entry)[-1]
            entries[entry.split("`")[0]] = [line.strip() for line in lines.splitlines() if line.startswith(" " * 6)]
    return table


COMMANDS = commands()


def unpack(folder: Path) -> None:
    """All files of version_0_1_0, as 0.1.0 left them, in a folder in which the README's commands run."""
    for path in (p for p in RESULTS.rglob("*") if p.is_file()):
        target = folder / path.relative_to(RESULTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copy(path, target)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with all of them, which is the current one."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    """The exit code of a command of lossmap, in this process."""
    return main(shlex.split(command))


def check_array(array, expected, rtol: float, name: str, atol: float = 0.0) -> None:
    """An array against its numbers, or against its shape, number of finite entries, sum, min and max."""
    array = np.asarray(array)
    if isinstance(expected, list):
        if array.dtype.kind not in "fiub":
            assert array.astype(str).tolist() == expected, name
            return
        np.testing.assert_allclose(array, np.array(expected, dtype=float), rtol=rtol, atol=atol, err_msg=name)
        return
    finite = array[np.isfinite(array)]
    assert list(array.shape) == expected["shape"] and finite.size == expected["finite"], name
    if finite.size:
        assert finite.min() == pytest.approx(expected["min"], rel=rtol, abs=atol), name
        assert finite.max() == pytest.approx(expected["max"], rel=rtol, abs=atol), name
        scale = float(rtol * np.abs(finite).sum() + atol * finite.size)
        assert finite.sum() == pytest.approx(expected["sum"], rel=rtol, abs=scale), name


def check_attributes(attributes, expected, rtol: float, name: str, skip: tuple[str, ...] = ()) -> None:
    """Attributes of a group against theirs; texts that are only summarised there are left out."""
    for key, reference in expected.items():
        if key in ("report", *skip):
            continue
        value = attributes[key]
        if reference is None:
            assert np.isnan(value), f"{name}: {key}"
        elif isinstance(reference, (int, float)) or reference == "inf":
            assert float(value) == pytest.approx(float(reference), rel=rtol), f"{name}: {key}"
        else:
            assert str(value) == str(reference), f"{name}: {key}"


def check_counts(surface, expected) -> None:
    """How many points each measure has done, and which."""
    for measure, counts in expected.get("counts", {}).items():
        states, part = surface.status[measure].ravel(), surface.parts.get(measure)
        states = states if part is None else states[part]
        assert {"done": int((states == 1).sum()), "failed": int((states == 2).sum())} == {
            key: counts[key] for key in ("done", "failed")
        }, measure
    for measure, states in expected.get("status", {}).items():
        assert surface.status[measure].tolist() == states, measure


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_file_is_read_as_0_1_0_read_it(folder, name):
    surface, expected = read(name), COMPLETE[name]
    assert surface.outcome == expected["outcome"]
    for axis in ("x", "y"):
        if axis in expected:
            np.testing.assert_allclose(getattr(surface.grid, axis), expected[axis], rtol=1e-7)
    check_counts(surface, expected)
    for field, values in expected.get("fields", {}).items():
        check_array(surface[field], values, 1e-6, field)
    for key in ("audit_points", "audit_misses", "audit_miss_bound", "restarts"):
        if key in expected:
            assert float(surface.attributes[key]) == pytest.approx(expected[key], rel=1e-6)
    assert len(surface.failures) == len(expected.get("failures", ()))
    for group, content in expected["groups"].items():
        found = read_group(name, group)
        for array, values in content["arrays"].items():
            check_array(found[array], values, 1e-6, f"{group}/{array}")
        check_attributes(found.attributes, content["attributes"], 1e-6, group)


def test_reports_are_read_as_0_1_0_wrote_them(folder):
    reports = json.loads((folder / "reports.json").read_text())
    assert len(reports) > 10
    for name, texts in reports.items():
        for place, text in texts.items():
            group, _, key = place.rpartition(": ")
            if group:  # not "printed", which is what the command wrote to its terminal
                assert read_group(name, group).attributes[key] == text, f"{name}: {place}"


def exit_codes(name: str) -> dict[str, int]:
    """What the commands of 0.1.0 exited with on this file."""
    expected = COMPLETE[name] if name in COMPLETE else INTERRUPTED[name]["interrupted"]
    return expected["exit codes"]


@pytest.mark.parametrize("name", [*COMPLETE, *INTERRUPTED])
def test_status_exits_as_it_did(folder, name):
    assert run(f"status {name}") == exit_codes(name)["status"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPLETE, *INTERRUPTED])
def test_draw_writes_what_it_did(folder, capsys, name):
    before = set(folder.iterdir())
    assert run(f"draw {name}") == exit_codes(name)["draw"]
    assert "Traceback" not in capsys.readouterr().err
    suffixes = {path.suffix for path in set(folder.iterdir()) - before}
    assert suffixes == ({".pdf", ".png"} if exit_codes(name)["draw"] == 0 else set())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLETE)
def test_the_same_command_on_a_complete_file_finds_nothing_to_do(folder, capsys, name):
    lines = [line for line in COMMANDS["Complete"].get(name, []) if not line.startswith("estimate")]
    assert lines
    before = read(name)
    for line in lines:
        assert run(line.removeprefix("mpirun -n 2 ")) == COMPLETE[name]["exit codes"]["same command again"]
    assert "Traceback" not in capsys.readouterr().err
    for field, values in before.fields.items():
        if field == "spectrum_result":  # an intermediate store, which is in groups now
            assert field not in read(name)
            continue
        np.testing.assert_array_equal(read(name)[field], values, err_msg=field)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_file_is_read_with_its_journal(folder, name):
    surface, expected = read(name), INTERRUPTED[name]["interrupted"]
    assert surface.outcome == expected["outcome"] == "unfinished"
    check_counts(surface, expected)
    for field, values in expected["fields"].items():
        check_array(surface[field], values, 1e-6, field)


def errors_of(surface, field: str) -> float:
    """The largest stated error of an eigenvalue field."""
    error = f"{field.removeprefix('audit_')}_error"
    return float(np.nanmax(surface[error])) if error in surface else 0.0


def check_completed(path: str, expected) -> None:
    """A file that has been completed: losses to rounding, eigenvalues within their errors, spectra by their arrays."""
    surface = read(path)
    assert surface.outcome == "complete"
    check_counts(surface, expected)
    for field, values in expected["fields"].items():
        if field in surface and field != "spectrum_result":  # an intermediate store, read below as groups
            if re.search("error|limit|products", field):  # these depend on which neighbors came first
                assert np.isfinite(surface[field]).sum() == (
                    values["finite"] if isinstance(values, dict) else len(values)
                )
            else:
                check_array(surface[field], values, 1e-5, field, atol=2 * errors_of(surface, field))
    assert int(surface.attributes["restarts"]) == expected["restarts"]
    for group, content in expected["groups"].items():
        found = read_group(path, group)
        for array, values in content["arrays"].items():
            if array.endswith("vectors"):  # signs and rotations within clusters are free
                assert list(found[array].shape) == values["shape"]
            elif array in ("top", "bottom"):
                error = np.max(found[f"{array}_error"])
                check_array(found[array], values, 1e-5, f"{group}/{array}", atol=2 * error)
            elif array.startswith("mass_") and array.rpartition("_")[2] in ("below", "above"):
                # version 0.1 did not keep a share within its own interval, of whole numbers of eigenvalues
                check_array(found[array], values, 1e-3, f"{group}/{array}", atol=0.5 / found.attributes["size"])
            elif not array.endswith("error"):
                check_array(found[array], values, 1e-3, f"{group}/{array}", atol=1e-5)
        check_attributes(
            found.attributes, content["attributes"], 1e-4, group, skip=("products", "trace_error", "digest")
        )


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_file_is_completed_by_the_same_command(folder, name):
    (line,) = COMMANDS["Interrupted"][name]
    before = read(name)
    assert run(line) == 0
    check_completed(name, INTERRUPTED[name]["completed"])
    assert not list(folder.glob(f"{name}.*")), "the journal and what lay beside it are gone"
    after = read(name)
    for measure, states in before.status.items():
        for field in before.measures[measure]:
            if measure == "loss":  # points that were recorded are not measured again
                np.testing.assert_array_equal(after[field][states == 1], before[field][states == 1])


def move(name: str, folder: Path) -> None:
    """Enters another folder for the one in which a result was begun, in the file and in its journal."""
    with h5py.File(name, "r") as file:
        resolved = [json.loads(value) for key, value in file.attrs.items() if key.startswith("resolved_")]
    begun = [json.dumps(resolved[0]["folder"]), json.dumps(str(folder))]
    with h5py.File(name, "a") as file:
        for key in [key for key in file.attrs if key.startswith("resolved_")]:
            assert begun[0] in file.attrs[key]
            file.attrs[key] = file.attrs[key].replace(*begun)
    if journal_of(name).exists():
        changed = [
            r.payload.replace(begun[0].encode(), begun[1].encode()) for r in journal.read(journal_of(name)).records
        ]
        kinds = [record.kind for record in journal.read(journal_of(name)).records]
        journal_of(name).write_bytes(b"".join(map(journal.packed, kinds, changed)))


@pytest.mark.parametrize("name", ["half-surface-stopped.h5", "half-eigenmap.h5", "half-spectrum.h5", "half-along.h5"])
def test_an_interrupted_file_is_resumed_with_no_flags(folder, name):
    move(name, folder)
    assert run(f"resume {name}") == 0
    check_completed(name, INTERRUPTED[name]["completed"])


def test_resume_refuses_where_the_folder_is_missing(folder, capsys):
    move("half-surface.h5", folder / "elsewhere")
    before = Path("half-surface.h5").read_bytes()
    assert run("resume half-surface.h5") == 2
    error = capsys.readouterr().err
    assert str(folder / "elsewhere") in error and "half-surface.h5" in error and "Traceback" not in error
    assert Path("half-surface.h5").read_bytes() == before


@pytest.mark.parametrize("name", ["sharded.h5", "sharded-eigen.h5"])
def test_shards_are_merged(folder, name):
    for shard in (1, 2):
        part = name.replace(".h5", f".shard-{shard}-of-2.h5")
        check_counts(read(part), MERGED[part])
    assert run(f"merge {name}") == 0
    surface, expected = read(name), MERGED[name]
    assert surface.outcome == "complete"
    check_counts(surface, expected)
    for field, values in expected["fields"].items():
        check_array(surface[field], values, 1e-6, field)
    # 0.1.0 kept the report of the first shard's audit as that of all
    assert "audit_points" not in surface.attributes
    assert ("audit_points" in expected) == ("audited by themselves" in surface.attributes.get("merge_note", ""))


def test_an_interrupted_training_run_is_completed(folder):
    (line,) = COMMANDS["Interrupted"]["run-half/"]
    assert run(line) == 0
    last = torch.load("run-half/step_000016.pt", weights_only=True)["state_dict"]
    undisturbed = torch.load("run/step_000016.pt", weights_only=True)["state_dict"]
    assert list(last) == list(undisturbed)
    for key, tensor in undisturbed.items():
        torch.testing.assert_close(last[key], tensor, rtol=1e-4, atol=1e-6)
