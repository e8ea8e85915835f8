"""`lossmap campaign`, as a person types it: plan, run, status, collect, report, submit. MPI is in tests/campaign."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lossmap
from lossmap import zoo
from lossmap.campaign.folder import CampaignFolder, MemberState, _index_line
from lossmap.campaign.table import collected
from lossmap.cli.__main__ import main
from lossmap.cli.campaign_members import Campaign
from lossmap.io.read import read
from lossmap.parallel import slurm_queue

SWEEP = """
folder = "sweep"
[settings]
model = "mlp"
samples = 32
batch_size = 32
probe = false
[over]
model_file = {glob = "run/net_*.pt"}
[surface]
x = "-1:1:3"
y = "-1:1:2"
[eigenmap]
x = "-1:1:3"
hvp_backend = "double-backward"
[spectrum]
top = 2
trace = "none"
density = false
hvp_backend = "double-backward"
[health]
examinations = ["weights"]
held_out = false
"""
SHARP = """
[settings]
model = "mlp"
model_file = "run/net_1.pt"
samples = 32
[sharpness]
draws = 2
ascent_steps = 1
radius = ["filter:0.5"]
trace_products = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A campaign of two nets and four measures, computed."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "run").mkdir()
    for number in (1, 2):
        torch.manual_seed(number)
        torch.save(zoo.build("mlp").state_dict(), folder / "run" / f"net_{number}.pt")
    (folder / "sweep.toml").write_text(SWEEP)
    before = Path.cwd()
    assert main(["campaign", str(folder / "sweep.toml"), "run", "--device", "cpu", "--threads", "1"]) == 0
    os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LOSSMAP_SITE", raising=False)


def rows(folder):
    campaign = Campaign.read(str(folder / "sweep.toml"))
    return {row["name"]: row for row in collected(campaign.members, campaign.folder).rows}


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("surface", ["--x=-1:1:3", "--y=-1:1:2"]),
        ("eigenmap", ["--x=-1:1:3", "--hvp-backend", "double-backward"]),
        ("spectrum", ["--top", "2", "--trace", "none", "--no-density", "--hvp-backend", "double-backward"]),
    ],
)
def test_a_member_has_the_bits_of_the_command_alone(folder, tmp_path, measure, words, capsys):
    row = rows(folder)[f"{measure}: run/net_1"]
    alone = tmp_path / "alone.h5"
    subject = ["--model", "mlp", "--model-file", "run/net_1.pt", "--samples", "32", "--batch-size", "32", "--no-probe"]
    assert main([measure, *subject, *words, "--device", "cpu", "--threads", "1", "--surf-file", str(alone)]) == 0
    one, other = read(row["file"]), read(alone)
    assert one.status.keys() == other.status.keys()
    for name in other.fields:
        if not name.endswith(("_seconds", "_rank")):
            assert np.array_equal(one[name], other[name], equal_nan=True), name
    assert one.settings == other.settings
    assert one.attributes.get("audit") == other.attributes.get("audit")
    reports = {name: group.attributes["report"] for name, group in other.groups.items() if "report" in group.attributes}
    assert {name: one.groups[name].attributes["report"] for name in reports} == reports
    assert main(["resume", row["file"]]) == 0  # with no flags: it stands in the file how it was made


def test_the_numbers_have_their_bars_and_each_row_its_settings(folder):
    table = rows(folder)
    assert len(table) == 8 and all(row["outcome"] == "complete" for row in table.values())
    surface, spectrum = table["surface: run/net_2"], table["spectrum: run/net_2"]
    result = read(surface["file"])
    assert surface["train_loss_min"] == result["train_loss"].min() and surface["done"] == 6
    assert surface["model_file"] == "run/net_2.pt" and surface["y"] == "-1:1:2"
    group = read(spectrum["file"]).groups["spectrum/train"]
    assert (spectrum["largest"], spectrum["largest_error"]) == (group["top"][0], group["top_error"][0])
    assert 0 < table["health: run/net_2"]["seconds"] < 600 and table["health: run/net_2"]["done"] == 0
    eigen = table["eigenmap: run/net_2"]
    assert eigen["max_eig_center_error"] > 0 and eigen["audit_points"] == 3


def test_sharpness_is_a_measure_with_its_bars_in_the_table(folder, capsys):
    (folder / "sharp.toml").write_text(SHARP)
    assert main(["campaign", "sharp.toml", "run", "--device", "cpu", "--threads", "1"]) == 0
    campaign = Campaign.read("sharp.toml")
    (row,) = collected(campaign.members, campaign.folder).rows
    result = lossmap.read(row["file"], lossmap.Sharpness)
    assert (row["outcome"], row["done"]) == ("complete", 6) and result.samples == 32
    assert (row["largest"], row["largest_error"]) == (result.largest, result.largest_error)
    ball = result.ball("filter")
    assert (row["filter_0.5_average"], row["filter_0.5_average_error"]) == (ball.average, ball.average_error)
    assert (row["filter_0.5_sam"], row["filter_0.5_worst"]) == (ball.sam, ball.worst)
    assert row["critical_error"] == (result.critical.high - result.critical.low) / 2
    assert row["trace_error"] == result.trace.error > 0
    alone = ["--model-file", "run/net_1.pt", "--radius", "filter:0.5", "--draws", "2", "--ascent-steps", "1"]
    words = [*alone, "--model", "mlp", "--samples", "32", "--trace-products", "8", "--surf-file", "alone-sharp.h5"]
    assert main(["sharpness", *words, "--device", "cpu", "--threads", "1"]) == 0
    assert lossmap.read("alone-sharp.h5", lossmap.Sharpness).equals(result)
    assert main(["campaign", "sharp.toml", "report"]) == 0


LINES = """
[settings]
model = "mlp"
samples = 32
probe = false
[over]
model_file = ["run/net_1.pt"]
[connect]
points = 4
over = {other = ["run/net_2.pt"]}
"""


def test_the_line_to_another_checkpoint_is_a_measure_with_its_barrier_in_the_table(folder, capsys):
    (folder / "lines.toml").write_text(LINES)
    assert main(["campaign", "lines.toml", "run", "--device", "cpu", "--threads", "1"]) == 0
    campaign = Campaign.read("lines.toml")
    (row,) = collected(campaign.members, campaign.folder).rows
    line = lossmap.read(row["file"], lossmap.Connection)
    assert (row["name"], row["outcome"], row["done"]) == ("connect: run/net_1, to run/net_2", "complete", 4)
    found = line.barrier()
    assert (row["train_barrier"], row["train_midpoint"]) == (found.height, found.midpoint)
    assert row["train_midpoint_error"] == found.midpoint_error > 0
    assert (row["train_loss_first"], row["train_acc_last"]) == (line.losses["train"][0], line.metrics["train_acc"][-1])
    torch.save(zoo.build("mlp", seed=7).state_dict(), folder / "moved.pt")
    (folder / "moved.toml").write_text(LINES.replace("run/net_2.pt", "moved.pt"))
    assert Campaign.read("moved.toml").members[0].digest != campaign.members[0].digest
    assert main(["campaign", "lines.toml", "report"]) == 0


def test_status_says_how_it_stands_and_exits_so(folder, capsys):
    assert main(["campaign", "sweep.toml", "status"]) == 0
    assert "sweep.toml: 8 members; 8 complete" in capsys.readouterr().out
    assert main(["campaign", "sweep.toml", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"complete": 8, "failed": 0, "unfinished": 0, "new": 0} and told["failures"] == []
    assert main(["campaign", "sweep.toml", "status", "--fingerprint"]) == 0
    assert capsys.readouterr().out == "30 steps: 8 members, 22 points\n"


def test_a_changed_setting_is_a_new_member_and_nothing_else_is(folder, capsys):
    text = SWEEP.replace('x = "-1:1:3"\ny', 'x = "-1:1:4"\ny')
    (folder / "more.toml").write_text(text)
    assert main(["campaign", "more.toml", "plan", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"complete": 6, "failed": 0, "unfinished": 0, "new": 2}
    assert {one["measure"] for one in told["all"] if one["outcome"] == "new"} == {"surface"}
    assert main(["campaign", "more.toml", "status"]) == 75
    assert "cost: surface" not in capsys.readouterr().out
    assert main(["campaign", "more.toml", "plan", "--rehearse", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cost: surface, 2 left, about .* of one rank \(by 1 rehearsed", out), out
    kept = json.loads((folder / "sweep" / "estimates.json").read_text())
    assert len(kept) == 1 and next(iter(kept.values()))["points"] == 8


def test_collect_writes_a_table_that_csv_and_xarray_read(folder, tmp_path, capsys):
    assert main(["campaign", "sweep.toml", "collect"]) == 0
    with open(folder / "sweep" / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 and list(lines[0])[:4] == ["name", "measure", "outcome", "model"]
    largest = {line["name"]: line["largest"] for line in lines}
    assert float(largest["spectrum: run/net_1"]) == rows(folder)["spectrum: run/net_1"]["largest"]
    assert main(["campaign", "sweep.toml", "collect", "--output", str(tmp_path / "table.nc")]) == 0
    import xarray

    with xarray.open_dataset(tmp_path / "table.nc", engine="h5netcdf") as dataset:
        assert dataset.sizes["member"] == 8
        assert np.isfinite(dataset["largest"].values).sum() == 2
        assert list(dataset["measure"].values[:4]) == ["surface", "eigenmap", "spectrum", "health"]
    assert main(["campaign", "sweep.toml", "collect", "--output", "table.xls"]) == 2


def test_the_page_holds_every_member_and_loads_nothing(folder, capsys):
    assert main(["campaign", "sweep.toml", "report"]) == 0
    page = (folder / "sweep" / "report.html").read_text()
    for row in rows(folder).values():
        assert f'href="members/{row["digest"]}.h5"' in page
        assert f'href="#{row["digest"]}"' in page
        assert row["measure"] == "health" or page.count(f'id="{row["digest"]}"') == 1
    assert page.count("one scale for all") == 4  # loss, accuracy, and both eigenvalues
    assert " 1 per squared unit" not in page and " per squared unit of theta, one scale" in page
    assert not re.search(r"(src|href)=\"(?!data:|#|members/)|https?:", page)
    assert page.count('<img alt="mean loss over the training samples, ') == 2 and page.count("<polyline") == 4


def test_a_file_that_changes_after_the_plan_is_a_failure_with_its_name(folder, tmp_path):
    (tmp_path / "net.pt").write_bytes((folder / "run" / "net_1.pt").read_bytes())
    (tmp_path / "one.toml").write_text(
        '[settings]\nmodel = "mlp"\nmodel_file = "net.pt"\nsamples = 8\n[surface]\nx = "-1:1:2"\n'
    )
    (member,) = lossmap.campaign_members(tmp_path / "one.toml")
    (tmp_path / "net.pt").write_bytes((folder / "run" / "net_2.pt").read_bytes())
    table = lossmap.run_campaign([member], tmp_path / "one", progress=False)
    assert table["outcome"] == ["failed"] and "net.pt has changed since the campaign was planned" in table["reason"][0]
    (again,) = lossmap.campaign_members(tmp_path / "one.toml")
    assert again.digest != member.digest
    assert lossmap.run_member(again, tmp_path / "one")["outcome"] == "complete"


def test_results_are_shown_where_a_file_of_a_member_is_gone(folder, tmp_path, monkeypatch, capsys):
    """Status, table and page; the member is named with its file, and what would compute it refuses."""
    for number in (1, 2):
        (tmp_path / f"net_{number}.pt").write_bytes((folder / "run" / f"net_{number}.pt").read_bytes())
    (tmp_path / "two.toml").write_text(
        '[settings]\nmodel = "mlp"\nsamples = 8\nprobe = false\n[over]\nmodel_file = ["net_1.pt", "net_2.pt"]\n'
        '[surface]\nx = "-1:1:2"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["campaign", "two.toml", "run", "--device", "cpu", "--threads", "1"]) == 0
    assert main(["campaign", "two.toml", "collect"]) == 0
    before = (tmp_path / "two" / "table.csv").read_text()
    (tmp_path / "net_2.pt").unlink()
    capsys.readouterr()
    sentence = "a file is gone: surface: net_2: model_file: net_2.pt: No such file or directory"
    for action in ("status", "collect", "report"):
        assert main(["campaign", "two.toml", action]) == 0
        assert sentence in capsys.readouterr().out
    assert (tmp_path / "two" / "table.csv").read_text() == before and "net_2.pt" in before
    assert main(["campaign", "two.toml", "status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["missing"]) == 1
    assert main(["campaign", "two.toml", "run"]) == 2
    assert "net_2.pt: No such file" in capsys.readouterr().err
    (tmp_path / "two" / "inputs.json").unlink()  # as of a campaign of an earlier version
    assert main(["campaign", "two.toml", "status"]) == 75
    assert "net_2.pt: No such file or directory; no earlier command has seen that file" in capsys.readouterr().out


def test_members_run_under_submitit(folder, tmp_path):
    """And under `concurrent.futures`: docs/campaigns.md, which the tests run."""
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    member = lossmap.campaign_members(folder / "sweep.toml")[0]
    row = executor.submit(lossmap.run_member, member, str(tmp_path / "results")).result()
    assert row["outcome"] == "complete"
    assert row["train_loss_min"] == rows(folder)["surface: run/net_1"]["train_loss_min"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "sweep.toml"], "the file must come first: lossmap campaign FILE.toml run"),
        (["sweep.toml", "plan", "--watch"], "--watch is a flag of status; not of plan"),
        (["sweep.toml", "run", "--nodes", "2"], "--nodes is a flag of submit; not of run"),
        (["sweep.toml", "walk"], "the action must be one of plan, run"),
        (["none.toml", "plan"], "the campaign .*none.toml: No such file"),
        (["sweep.toml", "submit"], "sweep.toml is complete: nothing is left to submit"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, capsys):
    assert main(["campaign", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.count("\n") == 1, error


# ---- submission


@pytest.fixture
def more(folder):
    (folder / "more.toml").write_text(SWEEP.replace("samples = 32", "samples = 31"))
    return folder


def test_an_array_has_a_throttle_and_each_job_members_of_its_own(more, capsys, monkeypatch):
    monkeypatch.setattr(slurm_queue, "submit", lambda *_, **__: slurm_queue.Submission(("7",)))
    monkeypatch.setattr(slurm_queue, "largest_array", lambda: 1000)
    assert main(["campaign", "more.toml", "submit", "--array", "3%2", "--time", "30", "--requeue"]) == 0
    assert "submitted 8 members as 7" in capsys.readouterr().out
    script = (more / "sweep" / "submissions" / "1.sbatch").read_text()
    assert "#SBATCH --array=1-3%2" in script and '--part "$SLURM_ARRAY_TASK_ID/3"' in script
    batch = str(more / "sweep" / "submissions" / "1.json")
    whole = Campaign.read("more.toml")
    parts = [whole.part(batch, f"{i}/3").members for i in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 3, 2]
    assert {m.digest for part in parts for m in part} == {m.digest for m in whole.members}
    assert main(["campaign", "more.toml", "status", "--batch", batch, "--part", "1/3"]) == 75
    assert "3 members; 3 new" in capsys.readouterr().out
    monkeypatch.setattr(slurm_queue, "largest_array", lambda: 2)
    assert main(["campaign", "more.toml", "submit", "--array", "3"]) == 2
    assert "--array must be <= 2 on this cluster (MaxArraySize); got 3" in capsys.readouterr().err


def test_why_a_campaigns_jobs_wait_is_said_when_it_is_submitted_and_by_its_status(more, capsys, monkeypatch):
    queue = []
    monkeypatch.setattr(slurm_queue, "queued_jobs", lambda: queue)
    script = str(more / "sweep" / "submissions" / "1.sbatch")
    job = slurm_queue.QueuedJob("7", "PENDING", "PartitionDown", script)

    def submit(*_, **__):
        queue.append(job)
        return slurm_queue.Submission(("7",), ("low on hours",))

    monkeypatch.setattr(slurm_queue, "submit", submit)
    why = "in the queue: job 7 is pending (PartitionDown): the partition is down"
    assert main(["campaign", "more.toml", "submit"]) == 0
    said = capsys.readouterr().out
    assert why in said and "sbatch says: low on hours" in said
    assert main(["campaign", "more.toml", "status"]) == 75
    assert why in capsys.readouterr().out
    assert main(["campaign", "more.toml", "status", "--json"]) == 75
    assert json.loads(capsys.readouterr().out)["queue"] == [job.sentence]
    queue.append(replace(job, number="8"))
    queue.append(replace(job, number="9", script="/elsewhere/1.sbatch"))
    assert main(["campaign", "more.toml", "submit"]) == 2
    assert "scancel 7 8 ends that, --dependency afterany:7:8 waits for it" in capsys.readouterr().err


def test_without_an_array_one_job_takes_all_and_what_is_added(more, capsys):
    assert main(["campaign", "more.toml", "submit", "--ranks-per-node", "4", "--chain", "2", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "--batch" not in script and "campaign more.toml status --fingerprint" in script
    assert "--ntasks-per-node=4" in script


def test_each_makes_a_campaign_of_a_command_and_a_pattern(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pattern = str(folder / "run" / "net_*.pt")
    command = ["--", "surface", "--model", "mlp", "--model-file", "{}", "--x=-1:1:3", "--metric", "a.py:f"]
    (tmp_path / "a.py").write_text("")
    assert main(["submit", "--each", pattern, "--dry-run", *command]) == 0
    assert "#SBATCH --array=1-2\n" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.toml"))  # --dry-run writes nothing
    monkeypatch.setattr(slurm_queue, "submit", lambda *_, **__: slurm_queue.Submission(("7",)))
    assert main(["submit", "--each", pattern, "--name", "nets", *command]) == 0
    members = lossmap.campaign_members("nets.toml")
    assert [Path(m.settings["model_file"]).name for m in members] == ["net_1.pt", "net_2.pt"]
    assert members[0].settings["metric"] == ["a.py:f"] and members[0].settings["x"] == "-1:1:3"
    for words, sentence in [
        (["--each", "no*.pt", *command], "no file fits"),
        (["--each", pattern, "--", "surface", "--model", "mlp"], "needs {} where the file belongs"),
        (["--each", pattern, "--", "train", "--model-file", "{}"], "--each is for surface"),
        (["--each", pattern, "--name", "nets", *command, "--samples", "9"], "nets.toml is there and says something"),
    ]:
        assert main(["submit", *words]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["surface", "health"])
def test_a_result_that_was_copied_over_another_members_is_not_taken_for_its_own(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    own = "x = '-1:1:3'" if kind == "surface" else ""
    (tmp_path / "c.toml").write_text(
        f'[settings]\nmodel = "mlp"\nsamples = 16\n[over]\nseed = [0, 1]\n[{kind}]\n{own}\n'
    )
    assert main(["campaign", "c.toml", "run"]) == 0
    one, two = (tmp_path / "c" / "members" / member.digest for member in Campaign.read("c.toml").members)
    for ending in ("h5", "done.json"):  # the second time with its mark
        capsys.readouterr()
        shutil.copy(f"{one}.{ending}", f"{two}.{ending}")
        assert main(["campaign", "c.toml", "status"]) == 3
        assert f"{two.name}.h5 is not the file that was computed for this member" in capsys.readouterr().out
        _, row = collected(*members_and_folder("c.toml")).rows
        assert row["outcome"] == "failed" and row.get("train_loss_center", row.get("loss")) is None  # another's
    Path(f"{two}.h5").unlink()
    assert main(["campaign", "c.toml", "run"]) == 0
    assert main(["campaign", "c.toml", "status"]) == 0


# ---- a thousand members


def test_a_thousand_members_are_planned_watched_and_collected_in_two_seconds_each(tmp_path, monkeypatch, capsys):
    """Of the processor, since the tests share the machine; the index says what the results say."""
    monkeypatch.chdir(tmp_path)
    for number in range(100):
        (tmp_path / f"net_{number}.pt").write_bytes(os.urandom(1000))
        os.utime(tmp_path / f"net_{number}.pt", (1e9, 1e9))
    (tmp_path / "big.toml").write_text(
        '[settings]\nmodel = "mlp"\n[over]\nmodel_file = {glob = "net_*.pt"}\n'
        f"seed = {list(range(10))}\n[surface]\nx = '-1:1:25'\n"
    )
    assert main(["campaign", "big.toml", "plan"]) == 0
    campaign = Campaign.read("big.toml")
    folder = CampaignFolder(campaign.folder.path)
    folder.create()
    state = MemberState("complete", 25, 0, 25, 1.0, 0.1, "", {"train_loss_min": 0.5, "train_loss_max": 2.0})
    lines = []
    for member in campaign.members:
        folder.result(member.digest).write_bytes(b"")
        folder.finish(member.digest)
        lines.append(_index_line(member.digest, folder._stamps(member.digest)[member.digest], state))
    folder.index.write_text("\n".join(lines) + "\n")
    for action in ("plan", "status", "collect"):
        began = time.process_time()
        assert main(["campaign", "big.toml", action]) == 0
        took = time.process_time() - began
        assert took < 2.0, (action, took)
    assert "1000 members" in capsys.readouterr().out
    changed = replace(campaign.members[0], digest=campaign.members[0].digest)
    folder.fail(changed.digest, "lost")  # one file has changed: it alone is read
    states = folder.states(campaign.members)
    assert states[changed.digest].outcome == "failed"
    assert sum(s.outcome == "complete" for s in states.values()) == 999


NET = """\
import torch

COUNT = 0


class Net(torch.nn.Sequential):
    made = 0


def net():
    global COUNT
    COUNT, Net.made = COUNT + 1, Net.made + 1
    torch.manual_seed(10 * COUNT + Net.made)
    return Net(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_members_do_not_see_what_others_set_for_the_whole_process(tmp_path, monkeypatch):
    """A default type, at the top of a file or in a factory, numbers in globals and classes, a network in a global."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.py").write_text("import torch\n\ntorch.set_default_dtype(torch.float64)\n" + NET)
    (tmp_path / "late.py").write_text(
        NET.replace("    torch.manual", "    torch.set_default_dtype(torch.float64)\n    torch.manual")
    )
    (tmp_path / "narrow.py").write_text(NET)
    (tmp_path / "shared.py").write_text(
        "import torch\n\nNETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n\n"
        "def net():\n    with torch.no_grad():\n        NETWORK[1].weight.mul_(2)\n    return NETWORK\n"
    )
    x, y = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32), np.arange(16) % 10
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "c.toml").write_text(
        '[settings]\ndataset = "npz:data.npz"\n[over]\nmodel = ["wide.py:net", "late.py:net", "narrow.py:net", '
        '"shared.py:net"]\nseed = [0, 1]\n[surface]\nx = "0:1:2"\n'
    )
    assert main(["campaign", "c.toml", "run"]) == 0
    assert torch.get_default_dtype() == torch.float32
    assert main(["campaign", "c.toml", "collect"]) == 0
    rows = list(csv.DictReader((tmp_path / "c" / "table.csv").read_text().splitlines()))
    centers = {(row["model"], row["seed"]): float(row["train_loss_center"]) for row in rows}
    for model, dtype in (("wide", torch.float64), ("late", torch.float64), ("narrow", torch.float32)):
        torch.manual_seed(11)
        layer = torch.nn.Linear(64, 10, dtype=dtype).float()
        loss = torch.nn.functional.cross_entropy(layer(torch.tensor(x)), torch.tensor(y)).item()
        assert centers[f"{model}.py:net", "0"] == pytest.approx(loss, rel=1e-6)
        assert centers[f"{model}.py:net", "1"] == pytest.approx(loss, rel=1e-6)  # each probe chooses its batch size
    assert centers["shared.py:net", "1"] == pytest.approx(centers["shared.py:net", "0"], rel=1e-6)


@pytest.mark.parametrize("damage", ["null", '{"%s": 3}', '{"%s": {"seconds": "x"}}', '{"members": 5}', "\x00"])
def test_damaged_files_beside_the_results_are_a_sentence_or_made_anew(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text('[settings]\nmodel = "mlp"\nsamples = 16\n[surface]\nx = "0:1:2"\n')
    (member,) = Campaign.read("c.toml").members
    (tmp_path / "c").mkdir()
    for name in ("estimates.json", "digests.json", "inputs.json", "index.jsonl", "batch.json"):
        (tmp_path / "c" / name).write_text(damage.replace("%s", member.digest))
    assert main(["campaign", "c.toml", "plan"]) == 0
    assert "nothing is known yet" in capsys.readouterr().out
    assert main(["campaign", "c.toml", "status", "--batch", "c/batch.json"]) == 2
    assert capsys.readouterr().err == "lossmap: --batch c/batch.json is no list of members as submit writes it\n"


def test_a_full_disk_ends_a_campaign_in_one_sentence_and_makes_no_member_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here without being root")
    try:
        (tmp_path / "c.toml").write_text(
            'folder = "disk/c"\n[settings]\nmodel = "mlp"\nsamples = 16\n[over]\nseed = [0, 1, 2]\n'
            '[surface]\nx = "0:1:4"\n[spectrum]\ntop = 1\ndensity = false\ntrace = "none"\n'
        )
        assert main(["campaign", "c.toml", "run"]) == 2
        said = capsys.readouterr().err
        assert re.search(r"^lossmap: the disk that holds .* is full", said, re.MULTILINE), said
        assert main(["campaign", "c.toml", "status"]) == 75
        assert "failed:" not in capsys.readouterr().out
        subprocess.run(["mount", "-o", "remount,size=4M", disk], check=True)
        assert main(["campaign", "c.toml", "run"]) == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_changed_digit_of_the_index_does_not_get_into_the_table(tmp_path, monkeypatch):
    """The index is no result: nobody looks there for damage, while `collect` takes its numbers from it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(
        '[settings]\nmodel = "mlp"\nsamples = 16\n[over]\nseed = [0]\n[surface]\nx = "0:1:2"\n'
    )
    assert main(["campaign", "c.toml", "run"]) == 0
    assert main(["campaign", "c.toml", "collect"]) == 0
    table = (tmp_path / "c" / "table.csv").read_text()
    index = tmp_path / "c" / "index.jsonl"
    whole = index.read_text()
    at = whole.rindex('"train_loss_center": 2.') + len('"train_loss_center": 2.')
    index.write_text(whole[:at] + chr(ord(whole[at]) ^ 1) + whole[at + 1 :])  # one bit, and still a digit
    assert main(["campaign", "c.toml", "collect"]) == 0
    assert (tmp_path / "c" / "table.csv").read_text() == table


def test_a_file_that_members_import_and_that_changes_between_them_is_named(tmp_path, monkeypatch, capsys):
    """Its name is made while the code runs, so that its content is in no member's digest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "factor_of_loss.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "own.py").write_text(
        "import importlib\nimport torch\n\nfactor_of_loss = importlib.import_module('factor' + '_of_loss')\n\n"
        "def loss(outputs, targets):\n"
        "    return factor_of_loss.FACTOR * torch.nn.functional.cross_entropy(outputs, targets)\n"
    )
    sweep = tmp_path / "sweep.toml"
    text = '[settings]\nmodel = "mlp"\nsamples = 8\nbatch_size = 8\nloss = "own.py:loss"\nprobe = false\n'
    text += '[over]\nseed = [SEEDS]\n[surface]\nx = "-1:1:2"\n'
    run = ["campaign", "sweep.toml", "run", "--device", "cpu", "--threads", "1"]
    sweep.write_text(text.replace("SEEDS", "0"))
    assert main(run) == 0
    capsys.readouterr()
    assert main(["campaign", "sweep.toml", "collect"]) == 0
    assert "was changed" not in capsys.readouterr().out
    (tmp_path / "factor_of_loss.py").write_text("FACTOR = 1.5  # edited\n")
    importlib.reload(importlib.import_module("factor_of_loss"))  # as the next process imports it
    sweep.write_text(text.replace("SEEDS", "0, 1"))
    assert main(run) == 0
    capsys.readouterr()
    sentence = (
        r"factor_of_loss\.py was changed while the campaign was computed: of its results 1 by version \w{8}, 1 by"
    )
    for action in ("status", "collect", "report"):
        assert main(["campaign", "sweep.toml", action]) == 0
        assert re.search(sentence, capsys.readouterr().out), action
    assert re.search(sentence, (tmp_path / "sweep" / "report.html").read_text())
    with open(tmp_path / "sweep" / "table.csv") as file:
        first, second = csv.DictReader(file)
    assert first["code"] != second["code"] and first["code"] and second["code"]
    sys.modules.pop("factor_of_loss", None)


NET_OF_CONFIG = """\
import torch
from config_of_run import WIDTH


def net():
    import late_of_run

    torch.manual_seed(late_of_run.SEED)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, WIDTH), torch.nn.Linear(WIDTH, 10))
"""


def test_the_same_file_beside_other_neighbours_is_another_member_and_finds_its_own(tmp_path, monkeypatch, capsys):
    """As in folders of runs that hold a copy of the code each; of two modules of one name Python imports one."""
    monkeypatch.chdir(tmp_path)
    for run, (width, seed) in {"a": (4, 1), "b": (5, 1), "c": (5, 2), "d": (4, 1)}.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "net.py").write_text(NET_OF_CONFIG)
        (tmp_path / run / "config_of_run.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / run / "late_of_run.py").write_text(f"SEED = {seed}\n")
    (tmp_path / "pack").mkdir()  # without __init__.py
    shutil.copy(tmp_path / "a" / "late_of_run.py", tmp_path / "pack" / "part.py")
    (tmp_path / "pack" / "net.py").write_text(
        NET_OF_CONFIG.replace("from config_of_run import WIDTH", "WIDTH = 6").replace(
            "import late_of_run", "from . import part as late_of_run"
        )
    )
    x, y = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32), np.arange(16) % 10
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "c.toml").write_text(
        '[settings]\ndataset = "npz:data.npz"\n[over]\nmodel = ["a/net.py:net", "b/net.py:net", "c/net.py:net", '
        '"d/net.py:net", "pack.net:net"]\n[surface]\nx = "0:1:2"\n'
    )
    assert main(["campaign", "c.toml", "run"]) == 0
    assert "5 members, 4 of them different; 4 complete" in capsys.readouterr().out
    centers = {row["model"][0]: row["train_loss_center"] for row in collected(*members_and_folder("c.toml")).rows}
    for run, width, seed in (("a", 4, 1), ("b", 5, 1), ("c", 5, 2), ("d", 4, 1), ("p", 6, 1)):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.Linear(width, 10))
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).item()
        assert centers[run] == pytest.approx(loss, rel=1e-6), run
    (tmp_path / "b" / "config_of_run.py").write_text("WIDTH = 7\n")  # which this process has imported
    assert main(["campaign", "c.toml", "run"]) == 75
    said = " ".join(capsys.readouterr())
    assert "b/config_of_run.py was changed after this process had imported it" in said
    (tmp_path / "pack" / "part.py").write_text("SEED = 3\n")
    assert main(["campaign", "c.toml", "status"]) == 75
    assert "2 complete, 2 new" in capsys.readouterr().out


def members_and_folder(file):
    campaign = Campaign.read(file)
    return campaign.members, campaign.folder


def test_code_that_was_edited_after_its_import_computes_no_member_of_the_edited_one(tmp_path, monkeypatch, capsys):
    """A member that is added to a running campaign has the digest of the new file, and the process the old code."""
    monkeypatch.chdir(tmp_path)
    text = "import torch\n\ndef loss(outputs, targets):\n"
    text += "    return FACTOR * torch.nn.functional.cross_entropy(outputs, targets)\n"
    own, sweep = tmp_path / "own_loss.py", tmp_path / "sweep.toml"
    sweep.write_text(
        '[settings]\nmodel = "mlp"\nsamples = 8\nbatch_size = 8\nloss = "own_loss.py:loss"\nprobe = false\n'
        '[surface]\nx = "-1:1:2"\n'
    )
    run = ["campaign", "sweep.toml", "run", "--device", "cpu", "--threads", "1"]
    changed = own.write_text(text.replace("FACTOR", "1.0")) and own.stat()
    assert main(run) == 0
    (before,) = collected(Campaign.read("sweep.toml").members, CampaignFolder("sweep")).rows
    own.write_text(text.replace("FACTOR", "3.0"))
    os.utime(own, ns=(changed.st_atime_ns, changed.st_mtime_ns))  # as a copy of equal age: no bytecode may be taken
    capsys.readouterr()
    assert main(run) == 75
    text = " ".join(capsys.readouterr())
    assert "own_loss.py was changed after this process had imported it" in text
    for name in [name for name in sys.modules if name.startswith("own_loss_")]:  # as in the next process
        del sys.modules[name]
    assert main(run) == 0
    (after,) = collected(Campaign.read("sweep.toml").members, CampaignFolder("sweep")).rows
    assert after["train_loss_max"] == pytest.approx(3 * before["train_loss_max"], rel=1e-6)


def test_a_member_whose_code_ends_the_program_is_a_failure_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_leaves.py").write_text(
        "import sys\nfrom torch import nn\n\ndef net():\n    sys.exit('no licence')\n\n"
        "def loss(outputs, targets):\n    mean = nn.functional.cross_entropy(outputs, targets)\n"
        "    if mean > 2.6:\n        sys.exit(0)\n    return mean\n\n"
        "def keys():\n    raise KeyboardInterrupt\n\n"
        "def dies():\n    import os\n    os._exit(7)\n"
    )
    sweep = tmp_path / "sweep names.toml"
    sweep.write_text(
        "[settings]\nsamples = 8\nbatch_size = 8\nprobe = false\n[over]\n"
        'model = ["own_leaves.py:net", "mlp", "own_leaves.py:keys", "own_leaves.py:dies"]\n'
        '[[surface]]\nx = "-1:1:2"\n[[surface]]\nloss = "own_leaves.py:loss"\nx = "-9:0:2"\n'
    )
    assert main(["campaign", "sweep names.toml", "plan"]) == 0
    assert "to compute: lossmap campaign 'sweep names.toml' run" in capsys.readouterr().out
    assert main(["campaign", "sweep names.toml", "run", "--device", "cpu", "--threads", "1"]) == 3
    rows = collected(Campaign.read("sweep names.toml").members, CampaignFolder("sweep names")).rows
    assert [(row["outcome"], row["done"], row["failed"]) for row in rows] == [
        ("failed", 0, 0), ("failed", 0, 0), ("complete", 2, 0), ("failed", 0, 0), ("failed", 0, 0),
        ("failed", 0, 0), ("failed", 0, 0), ("failed", 0, 0),
    ]  # fmt: skip
