"""estimate, submit, status, resume and merge, as a person types them. The real SLURM is in tests/slurm."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from lossmap import cli, zoo
from lossmap.cli import output as results
from lossmap.cli.__main__ import STOPPABLE
from lossmap.cli.__main__ import main as lossmap
from lossmap.geometry.grid import Field, Grid
from lossmap.io.memory_store import MemoryStore
from lossmap.io.read import Failure, SurfaceFile, read
from lossmap.linalg.expected_products import SpectrumParts
from lossmap.parallel import slurm_queue

SUBJECT = ["--model", "mlp", "--samples", "16", "--batch-size", "16", "--no-probe", "--device", "cpu"]
PLANE = ["--x=-1:1:4", "--y=-1:1:3"]
LOSS = Field("train_loss", "nats", "mean loss")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOSSMAP_SITE", raising=False)


def survey(*more):
    return ["surface", *SUBJECT, *PLANE, *more]


def written(path, done=range(5), failed=(), close=True):
    """A result of 4 x 3 points as a survey would leave it."""
    file = SurfaceFile.open(path, Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})})
    for i in done:
        file.record("loss", i, {"train_loss": float(i)}, 0.1 * (i + 1), i % 2)
    for i in failed:
        file.fail("loss", i, Failure(i, 1, "node7", "Traceback ...\nValueError: too steep"))
    if close:
        file.close()
    return file


# ---- status


@pytest.mark.parametrize(
    ("done", "failed", "code", "words"),
    [
        (range(12), (), 0, "complete"),
        (range(11), (11,), 3, "completed with failed points"),
        (range(5), (5,), 75, "unfinished"),
    ],
)
def test_status_exits_by_what_the_file_says(tmp_path, capsys, done, failed, code, words):
    written("s.h5", done, failed)
    assert lossmap(["status", "s.h5"]) == code
    assert capsys.readouterr().out.splitlines()[0] == f"s.h5: 4 x 3 points, {words}"


def test_status_of_no_file_is_a_usage_error(capsys):
    assert lossmap(["status", "s.h5"]) == 2
    assert capsys.readouterr().err == "lossmap: there is no file s.h5\n"


def test_status_reports_failures_slow_points_slow_ranks_and_a_running_writer(capsys):
    file = written("s.h5", range(5), (5,), close=False)
    assert lossmap(["status", "s.h5"]) == 75
    out = capsys.readouterr().out
    assert "loss: 5 of 12 done, 1 failed, 6 left" in out
    assert "slowest points: (-1, 0) 0.5 s; (1, -1) 0.4 s" in out
    assert re.search(r"slowest of 2 ranks, seconds a point: rank \d 0.3 s; rank \d 0.3 s", out)
    assert "failed: (-0.333333, 0) on rank 1, node7: ValueError: too steep" in out
    assert "a process is writing it" in out
    file.close()
    lossmap(["status", "s.h5"])
    assert "no process is writing it: lossmap resume continues it" in capsys.readouterr().out


def test_status_as_json_is_complete(capsys):
    written("s.h5", range(5), (5,))
    assert lossmap(["status", "--json", "s.h5"]) == 75
    told = json.loads(capsys.readouterr().out)
    assert (told["outcome"], told["restarts"], told["running"], told["shape"]) == ("unfinished", 0, False, [3, 4])
    loss = told["measures"]["loss"]
    assert (loss["done"], loss["failed"], loss["left"], loss["ranks"]) == (5, 1, 6, 2)
    assert loss["slowest_points"][0] == {"index": 4, "point": [-1.0, 0.0], "seconds": 0.5}
    assert loss["failures"][0]["reason"] == "ValueError: too steep"
    assert loss["took"]["rank_seconds"] == pytest.approx(1.5)
    assert loss["rate"] > 0
    assert loss["seconds_left"] == pytest.approx(6 / loss["rate"])


def test_the_mark_changes_with_every_point_and_every_saved_state_and_with_nothing_else(capsys):
    def mark():
        assert lossmap(["status", "s.h5", "--mark"]) == 0
        return capsys.readouterr().out

    written("s.h5", (), close=True)
    marks = [mark(), mark()]
    assert marks == ["nothing\n"] * 2
    file = SurfaceFile.open("s.h5", Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})})
    assert mark() == "nothing\n"
    file.record("loss", 3, {"train_loss": 1.0}, 0.1)
    marks.append(mark())
    file.fail("loss", 4, Failure(4, 0, "here", "no"))
    marks.append(mark())
    file.save_unfinished("loss", 5, {"a": np.zeros(3)})
    marks.append(mark())
    file.save_unfinished("loss", 5, {"a": np.ones(3)})
    marks.append(mark())
    file.close()
    assert len(set(marks)) == 5
    assert mark() == marks[-1]


def test_watching_ends_with_the_survey(monkeypatch, capsys):
    written("s.h5", range(5))

    def finish(seconds):
        file = SurfaceFile.open("s.h5", Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})})
        for i in range(5, 12):
            file.record("loss", i, {"train_loss": float(i)}, 0.1)
        file.close()

    monkeypatch.setattr("lossmap.cli.status.time.sleep", finish)
    assert lossmap(["status", "s.h5", "--watch"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loss")]
    assert lines[0].startswith("loss: 5 of 12 done, 0 failed, 7 left")
    assert lines[1] == "loss: 12 of 12 done, 0 failed, 0 left"


def test_watch_needs_a_positive_interval(capsys):
    written("s.h5")
    assert lossmap(["status", "s.h5", "--watch", "--every", "0"]) == 2
    assert "--interval must be > 0; got 0" in capsys.readouterr().err


def test_pauses_between_attempts_do_not_slow_the_rate():
    from lossmap.parallel.pace import rate_of

    times = np.concatenate([np.arange(10.0), 5000 + np.arange(10.0)])
    assert rate_of(times, np.full(20, 1.0), 1) == pytest.approx(1.0)
    assert rate_of(np.zeros(0), np.full(4, 2.0), 4) == pytest.approx(2.0)
    assert rate_of(np.zeros(0), np.zeros(0), 0) is None


def test_status_merge_and_submit_need_no_torch(tmp_path):
    written("s.h5", range(12))
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['mpi4py'] = None\n"
        "from lossmap.cli.__main__ import main\n"
        "codes = [main(['status', 's.h5']), main(['merge', 's.h5', '--output', 't.h5'])]\n"
        "codes.append(main(['submit', '--dry-run', '--', 'resume', 's.h5']))\n"
        "sys.exit(codes != [0, 0, 0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- signals


@pytest.mark.parametrize("number", [10, 15])
def test_a_signal_while_torch_is_imported_leaves_a_result_to_resume(number, tmp_path):
    program = (
        "import os, sys\nimport lossmap.cli.__main__ as cli\nload = cli.import_module\n"
        f"cli.import_module = lambda name: (os.kill(os.getpid(), {number}), load(name))[1]\n"
        f"sys.exit(cli.main({survey('--surf-file', 's.h5')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90)
    assert done.returncode == 75, done.stderr
    assert read("s.h5").counts("loss") == {"done": 0, "failed": 0, "left": 12}


def test_every_command_that_a_signal_asks_to_stop_keeps_those_that_come_while_torch_is_imported():
    folder = Path(cli.__path__[0])
    files = {command: folder / f"{module.rpartition('.')[2]}.py" for command, (module, *_) in cli.COMMANDS.items()}
    stop = {command for command, file in files.items() if "with Stop(" in file.read_text()}
    assert {"surface", "connect", "sharpness", "train"} < stop
    assert stop - {"campaign"} == set(STOPPABLE) - {"resume"}


# ---- resume


def test_resume_without_flags_from_any_folder_ends_with_the_same_bits(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom lossmap import zoo\n\ndef net():\n    return zoo.build('mlp', seed=1)\n"
    )
    work = survey("--model", "own.py:net")
    assert lossmap([*work, "--surf-file", "whole.h5"]) == 0
    assert lossmap([*work, "--surf-file", "part.h5", "--stop-after", "0"]) == 75
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert lossmap(["resume", str(tmp_path / "part.h5")]) == 2  # its code does not lie below this folder
    assert "--trust" in capsys.readouterr().err
    assert lossmap(["resume", str(tmp_path / "part.h5"), "--trust"]) == 0
    a, b = read(tmp_path / "whole.h5"), read(tmp_path / "part.h5")
    np.testing.assert_array_equal(a["train_loss"], b["train_loss"])
    assert b.attributes["restarts"] == 1


def test_an_interruption_is_reported_with_the_next_command_and_under_a_launcher_with_its_exit_code(monkeypatch):
    surface = MemoryStore(Grid.line(count=3), {"loss": ((Field("train_loss", "nats", "mean loss"),), {})}).surface()
    said = []
    assert results.report_end(Path("two words.h5"), surface, "loss", said.append) == 75
    assert said == [
        "interrupted: 0 points done, 3 left; run the same command again to resume, or lossmap resume 'two words.h5'",
        "result: two words.h5",
    ]
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    results.report_end(Path("two words.h5"), surface, "loss", said.append)
    assert said[-1].startswith("exit code 75") and "the launcher calls it an error" in said[-1]


def test_resume_continues_a_shard(tmp_path):
    assert lossmap([*survey("--surf-file", "s.h5", "--shard", "2/3"), "--stop-after", "0"]) == 75
    assert lossmap(["resume", "s.shard-2-of-3.h5"]) == 0
    assert read("s.shard-2-of-3.h5").counts("loss") == {"done": 4, "failed": 0, "left": 0}
    assert [p.name for p in tmp_path.glob("*.h5")] == ["s.shard-2-of-3.h5"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--retry-failed", "s.h5"], "the result must come first: lossmap resume FILE --retry-failed"),
        (["s.h5"], "does not say how it was made"),
        (["none.h5"], "there is no file"),
    ],
)
def test_resume_says_what_is_wrong(words, said, capsys):
    written("s.h5")
    assert lossmap(["resume", *words]) == 2
    assert said in capsys.readouterr().err


def test_resume_says_where_a_survey_was_begun_if_that_is_gone(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lossmap([*survey("--surf-file", str(tmp_path / "s.h5")), "--stop-after", "0"])
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    assert lossmap(["resume", "s.h5"]) == 2
    assert f"was started in {folder}, which does not exist here" in capsys.readouterr().err


def test_resume_without_a_file_shows_how(capsys):
    assert lossmap(["resume"]) == 2
    assert lossmap(["resume", "--help"]) == 0
    assert "usage: lossmap resume FILE" in capsys.readouterr().out


# ---- merge


def test_shards_merge_to_the_file_of_one_job(capsys):
    assert lossmap(survey("--surf-file", "whole.h5")) == 0
    for i in (1, 2, 3):
        assert lossmap(survey("--surf-file", "s.h5", "--shard", f"{i}/3")) == 0
    assert lossmap(["merge", "s.h5"]) == 0
    assert "merged 3 shards into s.h5: complete" in capsys.readouterr().out
    with h5py.File("whole.h5") as a, h5py.File("s.h5") as b:
        fields = {n for n in a if isinstance(a[n], h5py.Dataset)}
        assert fields == {n for n in b if isinstance(b[n], h5py.Dataset)}
        for name in fields - {"loss_seconds"}:
            np.testing.assert_array_equal(a[name][()], b[name][()], err_msg=name)


def test_merge_says_which_points_and_which_files_are_missing(capsys):
    for i in (1, 3):
        lossmap(survey("--surf-file", "s.h5", "--shard", f"{i}/3"))
    assert lossmap(["merge", "s.shard-1-of-3.h5", "s.shard-3-of-3.h5"]) == 75
    out = capsys.readouterr().out
    assert "4 points missing and 0 failed, of 12: by index 4-7" in out
    assert "missing files: s.shard-2-of-3.h5" in out
    lossmap(survey("--surf-file", "s.h5", "--shard", "2/3"))
    assert lossmap(["merge", "s.h5", "--overwrite"]) == 0


def test_an_array_that_is_not_merged_is_shown_drawn_and_watched_as_a_whole(tmp_path, capsys, queue):
    for i, more in ((1, []), (3, ["--stop-after", "0"])):
        lossmap([*survey("--surf-file", "s.h5", "--shard", f"{i}/3"), *more])
    queue.jobs.append(f"7 RUNNING None {tmp_path}/s.h5.sbatch")
    capsys.readouterr()
    assert lossmap(["status", "s.h5"]) == 75
    out = capsys.readouterr().out
    assert "s.h5: 4 x 3 points, unfinished\n3 shards, by points done: 1 4 of 4; 2 not begun; 3 0 of 4\n" in out
    assert "loss: 4 of 12 done, 0 failed, 8 left" in out and "in the queue: job 7 is running" in out
    queue.jobs.clear()
    lossmap(["resume", "s.shard-3-of-3.h5"])
    lossmap(survey("--surf-file", "s.h5", "--shard", "2/3"))
    capsys.readouterr()
    assert lossmap(["status", "s.h5"]) == 0
    assert "lossmap merge s.h5 joins the shards" in capsys.readouterr().out
    assert lossmap(["status", "s.h5", "--json"]) == 0
    assert [s["done"] for s in json.loads(capsys.readouterr().out)["shards"]] == [4, 4, 4]
    assert lossmap(["draw", "s.h5", "--output", "whole.png"]) == 0
    assert lossmap(["watch", "s.h5"]) == 0
    assert (tmp_path / "whole.png").stat().st_size > 1e4 and (tmp_path / "s.png").exists()
    assert not (tmp_path / "s.h5").exists()
    written("t.shard-1-of-2.h5")
    written("t.shard-1-of-3.h5")
    assert lossmap(["status", "t.h5"]) == 2
    assert "shards of 2 and 3 lie beside t.h5" in capsys.readouterr().err


def test_merge_refuses_shards_that_do_not_belong_together(capsys):
    lossmap(survey("--surf-file", "s.h5", "--shard", "1/2"))
    lossmap(survey("--surf-file", "s.h5", "--shard", "2/2", "--seed", "1"))
    assert lossmap(["merge", "s.h5"]) == 2
    assert "are not shards of one survey: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the result whose shards are to be merged"),
        (["s.h5"], "no shards of s.h5 lie beside it, such as s.shard-1-of-3.h5"),
        (
            ["a.shard-1-of-2.h5", "b.shard-2-of-2.h5"],
            "these are shards of a.h5, b.h5; name the merged file with --output FILE",
        ),
    ],
)
def test_merge_reports_what_it_needs(words, said, capsys):
    assert lossmap(["merge", *words]) == 2
    assert said in capsys.readouterr().err


# ---- submit


def test_dry_run_shows_the_script_and_does_nothing(tmp_path, capsys):
    assert lossmap(["submit", "--dry-run", "--nodes", "2", "--time", "2:00:00", "--", *survey()]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/usr/bin/env bash\n# lossmap surface, 2 ranks on 2 nodes, for mlp_random_s0_")
    assert "#SBATCH --time=02:00:00\n" in out
    assert '"$result" --measure loss; state=$?' in out
    assert "    --surf-file mlp_random_s0_-1to1x4_-1to1x3.h5\n" in out
    assert list(tmp_path.iterdir()) == []


def test_the_name_that_submit_gives_is_the_one_that_the_survey_would_choose(capsys):
    assert lossmap(survey("--dry-run")) == 0
    own = re.search(r"result +(\S+)", capsys.readouterr().out)[1]
    lossmap(["submit", "--dry-run", "--", *survey()])
    assert f"--surf-file {own}\n" in capsys.readouterr().out


def test_submit_sends_the_script_that_it_keeps_and_says_how_to_cancel(tmp_path, capsys, monkeypatch):
    answers = {"sbatch": "sbatch: warning: the debug QOS is slow\n41\n", "scontrol": "MaxArraySize = 9"}
    answers["squeue"] = "41 PENDING PartitionDown /else/where.sbatch\n"
    monkeypatch.setattr(slurm_queue, "_output_of", lambda command: answers[command[0]])
    assert lossmap(["submit", "--array", "3", "--", *survey("--surf-file", "a b.h5")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"submitted as 41 by {tmp_path}/a b.h5.sbatch",
        "to cancel:  scancel 41",
        f"to look at: lossmap status '{tmp_path}/a b.h5'",
        f"at the end: lossmap merge '{tmp_path}/a b.h5'",
        "sbatch says: sbatch: warning: the debug QOS is slow",
        "in the queue: job 41 is pending (PartitionDown): the partition is down",
    ]
    text = (tmp_path / "a b.h5.sbatch").read_text()
    assert "#SBATCH --array=1-3" in text
    assert lossmap(["submit", "--array", "9", "--", *survey()]) == 2
    assert "--array must be <= 8 on this cluster (MaxArraySize); got 9" in capsys.readouterr().err


def test_one_rank_per_gpu_and_more_only_on_request(capsys):
    lossmap(["submit", "--dry-run", "--gpus-per-node", "4", "--", *survey()])
    out = capsys.readouterr().out
    assert "--ntasks-per-node=4" in out
    assert "#SBATCH --gpus-per-node=4" in out
    assert "--ranks-per-gpu" not in out
    lossmap(["submit", "--dry-run", "--gpus-per-node", "4", "--ranks-per-gpu", "2", "--", *survey()])
    out = capsys.readouterr().out
    assert "--ntasks-per-node=8" in out
    assert "    --ranks-per-gpu 2\n" in out
    assert lossmap(["submit", "--dry-run", "--gpus-per-node", "2", "--ranks-per-node", "3", "--", *survey()]) == 2
    assert "3 ranks on 2 GPUs of a node: some would share a GPU" in capsys.readouterr().err


def test_the_site_file_is_named_or_found_in_the_environment(tmp_path, capsys, monkeypatch):
    (tmp_path / "site.toml").write_text('partition = "long"\n')
    lossmap(["submit", "--dry-run", "--site", "site.toml", "--", *survey()])
    assert "#SBATCH --partition=long" in capsys.readouterr().out
    monkeypatch.setenv("LOSSMAP_SITE", str(tmp_path / "site.toml"))
    lossmap(["submit", "--dry-run", "--", *survey()])
    assert "#SBATCH --partition=long" in capsys.readouterr().out


def test_a_command_without_a_survey_is_run_without_a_status(capsys):
    assert lossmap(["submit", "--dry-run", "--", "health", "--model", "mlp"]) == 0
    out = capsys.readouterr().out
    assert "result=''" in out and "/mlp_health.%j.log" in out
    assert "work=(\n    health\n    --model mlp\n)" in out


@pytest.mark.parametrize(
    ("work", "result", "measure"),
    [
        (["spectrum", "--model", "mlp"], "mlp_spectrum.h5", "spectrum"),
        (["dynamics", "run", "--model", "mlp"], "dynamics.h5", "along"),
    ],
)
def test_spectra_and_runs_can_be_requeued_and_chained(work, result, measure, capsys, tmp_path):
    assert lossmap(["submit", "--dry-run", "--requeue", "--chain", "2", "--", *work]) == 0
    out = capsys.readouterr().out
    assert f"result={tmp_path}/{result}\n" in out and f"    --surf-file {result}\n" in out
    assert f'"$result" --measure {measure}; state=$?' in out and "#SBATCH --requeue\n" in out


def test_the_flags_of_sbatch_are_lines_of_the_script(capsys):
    flags = ["--partition", "gpu", "--account", "abc", "--qos", "long", "--mail-user", "a@b.org", "--mail-type", "END"]
    flags += ["--exclude", "node[3,7]", "--gpus", "a100:4", "--nodes", "2", "--tmp", "10G"]
    flags += ["--sbatch", "--exclusive", "--sbatch", "--comment='two words' --nice"]
    assert lossmap(["submit", "--dry-run", *flags, "--", *survey()]) == 0
    lines = {line.removeprefix("#SBATCH ") for line in capsys.readouterr().out.splitlines()}
    assert lines >= {"--partition=gpu", "--account=abc", "--qos=long", "--mail-user=a@b.org", "--mail-type=END"}
    assert lines >= {'--exclude="node[3,7]"', "--gpus-per-node=a100:2", "--tmp=10G", "--exclusive"}
    assert lines >= {"--nodes=2 --ntasks-per-node=2", "--comment='two words' --nice"}


# ---- submit, with a queue


@pytest.fixture
def queue(monkeypatch):
    """A queue that holds the jobs of a list, and takes every script."""
    jobs, scripts = [], []

    def answer(command):
        if command[0] == "sbatch":
            scripts.append(command[-1])
            return f"{40 + len(scripts)}\n"
        return "\n".join(jobs) if command[0] == "squeue" else ""

    monkeypatch.setattr(slurm_queue, "_output_of", answer)
    return SimpleNamespace(jobs=jobs, scripts=scripts)


def test_a_result_that_is_in_the_queue_is_not_queued_again(queue, tmp_path, capsys):
    queue.jobs.append(f"7 PENDING Priority {tmp_path}/s.h5.sbatch")
    work = ["--no-check", "--", *survey("--surf-file", "s.h5")]
    assert lossmap(["submit", *work]) == 2
    assert capsys.readouterr().err == (
        "lossmap: s.h5 is in the queue already: job 7 is pending (Priority): jobs of higher priority are before it; "
        "scancel 7 ends it, --dependency afterany:7 queues a job behind it\n"
    )
    assert lossmap(["submit", "--dependency", "afterany:71", *work]) == 2  # another job
    assert lossmap(["submit", "--dependency", "afterany:7", *work]) == 0
    assert lossmap(["submit", "--no-check", "--", *survey("--surf-file", "t.h5")]) == 0
    capsys.readouterr()
    assert lossmap(["status", "s.h5"]) == 2
    assert "there is no file s.h5; job 7 is pending (Priority)" in capsys.readouterr().err
    written("s.h5", range(5))
    assert lossmap(["status", "s.h5"]) == 75
    out = capsys.readouterr().out
    assert "in the queue: job 7 is pending (Priority)" in out and "no process is writing it" not in out


@pytest.mark.parametrize(
    ("flags", "work", "said"),
    [
        ([], survey("--model-file", "none.pt"), "none.pt"),
        ([], survey("--model", "nonet"), "nonet"),
        ([], ["health", "--model", "mlp", "--model-file", "none.pt"], "none.pt"),
        ([], survey("--team", "2"), "teams of 2 do not divide 1 computing ranks"),
        (["--array", "13"], survey(), "--shard 13/13 holds no point: the grid has only 12"),
        ([], survey("--surf-file", "s.h5", "--seed", "3"), "s.h5"),
    ],
)
def test_what_a_dry_run_refuses_is_not_queued(flags, work, said, queue, tmp_path, capsys):
    if "s.h5" in work:
        assert lossmap([*survey("--surf-file", "s.h5"), "--stop-after", "0"]) == 75
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    assert lossmap(["submit", *flags, "--", *work]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("lossmap: ") == 1 and "Traceback" not in err
    assert not queue.scripts and sorted(tmp_path.iterdir()) == before


def test_what_is_being_written_is_not_queued(queue, capsys):
    file = written("s.h5", range(5), close=False)
    assert lossmap(["submit", "--", "resume", "s.h5"]) == 2
    assert lossmap(["submit", "--", *survey("--surf-file", "s.h5")]) == 2
    assert "s.h5 now; wait for it, or end it" in capsys.readouterr().err
    file.close()


def test_a_command_that_fits_is_tried_and_queued(queue, tmp_path, capsys):
    assert lossmap(["submit", "--nodes", "4", "--", *survey("--surf-file", "s.h5", "--team", "2")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("submitted as 41") and "would compute" not in out
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.sbatch"]


def test_teams_of_several_sizes_in_one_file_are_noted(capsys):
    def attempt(team, points):
        file = SurfaceFile.open(
            "s.h5", Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})}, attributes={"team": team}
        )
        for i in points:
            file.record("loss", i, {"train_loss": float(i)}, 0.1)
        file.close()

    def text():
        lossmap(["status", "s.h5"])
        return capsys.readouterr().out

    attempt(1, [0, 1])
    attempt(2, [])
    assert "teams" not in text()
    attempt(2, [2])
    assert "its points were measured by teams of 1 rank and of 2 ranks: last bits may differ between them" in text()


def test_an_attempt_that_was_killed_took_at_least_what_its_points_took(capsys):
    """Its file was written when it began, so that its time stood there as nothing."""

    def begin():
        about = {"ranks": 2, "nodes": 1}
        return SurfaceFile.open(
            "s.h5", Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})}, attributes=about
        )

    def used():
        assert lossmap(["status", "s.h5", "--json"]) == 75
        return [attempt["seconds"] for attempt in json.loads(capsys.readouterr().out)["attempts"]]

    file = begin()
    for i in range(3):
        file.record("loss", i, {"train_loss": float(i)}, 40.0)
    file.flush()
    after_kill = {path: Path(path).read_bytes() for path in ("s.h5", "s.h5.journal")}
    file.close()
    for path, content in after_kill.items():
        Path(path).write_bytes(content)
    assert used() == [60.0]  # 3 points of 40 seconds on 2 ranks
    file = begin()
    assert used() == [60.0, 0.0]
    file.record("loss", 3, {"train_loss": 3.0}, 10.0)
    file.flush()
    assert used() == [60.0, 5.0]
    file.close()
    first, second = used()
    assert first == 60.0 and second == 5.0


def test_a_job_counts_what_it_got_done_itself(monkeypatch, capsys):
    def mark(job):
        assert lossmap(["status", "s.h5", "--fingerprint", "--job", job]) == 0
        return capsys.readouterr().out.strip()

    def attempt(job, points):
        about = {"slurm_job_id": job} if job else {}
        file = SurfaceFile.open(
            "s.h5", Grid.parse("-1:1:4", "-1:1:3"), measures={"loss": ([LOSS], {})}, attributes=about
        )
        for i in points:
            file.record("loss", i, {"train_loss": float(i)}, 0.1)
        return file

    attempt("7", [0, 1]).close()
    running = attempt("8", [2, 3, 4])
    assert mark("7") == "2 points by job 7"  # whatever the other one does
    assert mark("8") == "3 points by job 8"
    running.close()
    attempt("", [5]).close()
    attempt("7", [6]).close()
    assert (mark("7"), mark("8"), mark("9")) == (
        "3 points by job 7",
        "3 points by job 8",
        "0 points by job 9",
    )
    made = read("s.h5").attributes["attempts"]
    assert [a.get("slurm_job_id") for a in made] == ["7", "8", None, "7"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "the command to run must stand behind two dashes"),
        (["--"], "no command stands behind the two dashes"),
        (["--nodes", "0", "--", *survey()], "--nodes must be >= 1; got 0"),
        (["--cpus-per-rank", "0", "--", *survey()], "--cpus-per-rank must be >= 1; got 0"),
        (["--time", "soon", "--", *survey()], "--time must be M, M:S"),
        (["--", *survey("--overwrite")], "--overwrite would start anew at each restart"),
        (["--", *survey("--shard", "1/2")], "--shard is set by submit itself; use --array N"),
        (["--", *survey("--modle", "x")], "unknown flag --modle; did you mean --model"),
        (["--", "surfaces"], "unknown command 'surfaces'; did you mean surface"),
        (["--", "resume"], "resume needs the result to go on with"),
        (["--array", "2", "--", "health"], "--array is for surveys, which can be cut; health cannot"),
        (["--array", "2", "--", "spectrum"], "--array is for surveys, which can be cut; spectrum cannot"),
        (["--array", "2", "--", "dynamics", "run"], "--array is for surveys, which can be cut; dynamics cannot"),
        (["--gpus", "a100", "--", *survey()], "--gpus must be a number >= 1, or TYPE:NUMBER such as a100:4"),
        (["--gpus", "3", "--nodes", "2", "--", *survey()], "--gpus 3 cannot be shared evenly by 2 nodes"),
        (["--gpus", "2", "--gpus-per-node", "2", "--", *survey()], "give one of them"),
        (["--sbatch", "exclusive", "--", *survey()], "--sbatch must be options of sbatch in one line"),
        (["--site", "none.toml", "--", *survey()], "there is no site file none.toml"),
    ],
)
def test_submit_reports_invalid_options_and_writes_nothing(words, said, capsys, tmp_path):
    assert lossmap(["submit", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- estimate


def test_an_estimate_is_printed_stored_and_compared_with_the_measured_cost(tmp_path, capsys):
    assert lossmap(["estimate", "--ranks-per-node", "2", "--", *survey("--surf-file", "s.h5")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^s\.h5: 12 points, estimated from \d+ measurements$", out, re.MULTILINE)
    for word in (
        "a point  ",
        "memory  ",
        "file  ",
        "all points  ",
        "node-hours",
        "to run it:  lossmap submit --nodes 1",
    ):
        assert word in out
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.estimate.json"]
    assert lossmap(survey("--surf-file", "s.h5")) == 0
    assert "seconds a point" in capsys.readouterr().out
    surface = read("s.h5")
    assert json.loads(surface.attributes["loss_estimate"])["points"] == 12
    assert json.loads(surface.attributes["loss_took"])["points"] == 12
    (tmp_path / "s.h5.estimate.json").unlink()
    assert lossmap(["status", "s.h5"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"from start to end, 1 ranks +estimated .* took ", out)
    assert re.search(r"file +estimated .* took ", out)


def test_an_estimate_that_cannot_be_stored_is_printed_all_the_same(capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "s.h5.estimate.json")

    monkeypatch.setattr("lossmap.parallel.cost_model.write_estimate", refuse)
    assert lossmap(["estimate", "--", *survey("--surf-file", "s.h5")]) == 2
    text = capsys.readouterr()
    assert "node-hours" in text.out and text.err.endswith("lossmap: s.h5.estimate.json: Permission denied\n")


def test_an_estimate_of_eigenvalues_counts_products_and_the_audit(capsys):
    work = ["eigenmap", *SUBJECT, *PLANE, "--surf-file", "e.h5"]
    assert lossmap(["estimate", "--json", "--", *work]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["products"] > 1
    assert (told["points"], told["again"]) == (12, 12)
    assert told["memory"] > 1e7
    assert told["file_size"] > 1e4


def test_an_estimate_of_a_spectrum_rehearses_its_parts(capsys):
    work = ["spectrum", *SUBJECT[:-3], "--no-density", "--trace-products", "20", "--hvp-backend", "double-backward"]
    work += ["--surf-file", "s.h5"]
    assert lossmap(["estimate", "--", *work]) == 0
    out = capsys.readouterr().out
    assert "s.h5: 3 tasks, all rehearsed over few samples" in out and "all tasks" in out
    assert lossmap(work) == 0
    assert lossmap(["status", "s.h5"]) == 0
    assert re.search(r"seconds a point +estimated .* took ", capsys.readouterr().out)


@pytest.mark.parametrize("words", [["dynamics"], ["spectrum", "--along"]])
def test_an_estimate_of_a_run_measures_three_of_its_checkpoints(words, capsys, tmp_path):
    for step in range(5):
        torch.save(zoo.build("mlp", seed=step).state_dict(), tmp_path / f"step{step}.pt")
    work = [*words, *(f"step{step}.pt" for step in range(5)), "--model", "mlp", "--samples", "32", "--top", "1"]
    work += ["--tol", "0.1", "--hvp-backend", "double-backward", "--device", "cpu", "--surf-file", "run.h5"]
    assert lossmap(["estimate", "--", *work]) == 0
    out = capsys.readouterr().out
    assert "run.h5: 5 checkpoints, of which 3 were measured" in out and re.search(r"products +\d", out)
    assert json.loads((tmp_path / "run.h5.estimate.json").read_text())["along"]["points"] == 5
    assert not (tmp_path / "run.h5").exists()


def test_an_estimate_of_an_examination_times_products_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("lossmap.health.price.seconds_of_product", lambda operator: 1000.0)
    work = ["health", "--model", "mlp", "--samples", "40", "--device", "cpu", "--threads", "1"]
    assert lossmap(["estimate", "--json", "--", *work]) == 0
    estimate = json.loads(capsys.readouterr().out.splitlines()[-1])
    hessian = SpectrumParts(3392, 5, 1, density_error=0.05).products
    assert estimate["points"] == 1 and estimate["products"] == hessian + 5
    assert estimate["seconds"] == pytest.approx(1000.0 * hessian, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "spectrum", "--along", "runs", "--density-probes", "3"], "leave --density-probes out"),
        (
            ["--", "train"],
            "train does not measure; an estimate needs one of surface, eigenmap, spectrum, sharpness, connect",
        ),
        (["--ranks-per-node", "0", "--", *survey()], "--ranks-per-node must be >= 1; got 0"),
        (["--within", "soon", "--", *survey()], "--time must be M"),
        (["--", *survey("--dataset", "none")], "none"),
    ],
)
def test_estimate_reports_invalid_options(words, said, capsys, tmp_path):
    assert lossmap(["estimate", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_is_made_by_one_process(monkeypatch, capsys):
    monkeypatch.setattr("lossmap.cli.estimate.World.start", lambda: SimpleNamespace(size=2))
    assert lossmap(["estimate", "--", *survey()]) == 2
    assert "an estimate is made by one process; this one was started with 2 ranks" in capsys.readouterr().err


def test_a_command_that_ends_without_a_survey_writes_no_estimate(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("lossmap.cli.estimate.module_of", lambda command: SimpleNamespace(run=lambda *a, **k: 0))
    assert lossmap(["estimate", "--", *survey()]) == 2
    assert "surface ended before a point was measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_for_a_team_shares_the_seconds_of_a_point(capsys):
    lossmap(["estimate", "--json", "--ranks-per-node", "4", "--", *survey("--team", "2", "--threads", "1")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["per_node"] == 2
