"""Real jobs under a real SLURM with two virtual nodes: signalled, requeued, chained, cut into shards, mis-started."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(240)]

# A job that is to be signalled takes longer at its first attempt, so that it cannot be done by then. Only points
# take time: what is checked before them takes fewer samples.
LOSS = """\
import os
import time
import torch

again = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
SECONDS = 0.1

def loss(outputs, targets):
    time.sleep(SECONDS if "SLURM_JOB_ID" in os.environ and len(outputs) == 32 else 0.0)
    return torch.nn.functional.cross_entropy(outputs, targets)
"""
LOSSMAP = str(Path(sys.executable).with_name("lossmap"))


class Farm:
    """The cluster, and a folder with an awkward name in which its jobs run."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder / 'it\'s a "test" 5%'
        self.folder.mkdir()
        (self.folder / "slow loss.py").write_text(LOSS)

    def lossmap(self, *words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "lossmap.cli", *words],
            cwd=self.folder,
            env=self.cluster.environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr * (code == 2)

    def survey(self, result, count=5, *more, probe="--no-probe"):
        span = f"-1:1:{count}"
        subject = ["--model", "mlp", "--samples", "32", "--batch-size", "32", "--loss", "slow loss.py:loss", probe]
        return ["surface", *subject, "--x", span, f"--y={span}", "--surf-file", result, *more]

    def submit(self, *flags, work, check="--no-check"):
        told = self.lossmap("submit", check, "--time", "10", *flags, "--", *work)
        numbers = told.splitlines()[0].removeprefix("submitted as ").split(" by ")[0].split()
        assert f"scancel {' '.join(numbers)}" in told
        return numbers

    def site(self, **values):
        path = self.folder / "the site.toml"
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        return "--site", str(path)

    def fields(self, result):
        with h5py.File(self.folder / result) as file:
            names = [n for n in file if isinstance(file[n], h5py.Dataset) and not n.endswith(("_seconds", "_rank"))]
            return {name: file[name][()] for name in names}

    def status(self, result):
        environment = self.cluster.environment
        done = subprocess.run(
            [LOSSMAP, "status", "--json", result], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        return json.loads(done.stdout) if done.returncode in (0, 3, 75) else None

    def until_begun(self, result, points=3, seconds=60, measure="loss"):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.status(result)
            if told and told["measures"][measure]["done"] >= points:
                return told
            time.sleep(0.2)
        raise AssertionError("no point was done: " + "".join(p.read_text() for p in self.folder.glob("*.log")))

    def log(self, name):
        logs = [p for p in self.folder.iterdir() if p.name.startswith(f"{name}.") and p.suffix == ".log"]
        return "".join(log.read_text() for log in sorted(logs))


@pytest.fixture
def farm(cluster, tmp_path):
    return Farm(cluster, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """What one process reads, of an 8 x 8 plane."""
    farm = Farm(cluster, tmp_path_factory.mktemp("alone"))
    farm.lossmap(*farm.survey("alone.h5", 8))
    return farm.fields("alone.h5")


def same(a, b):
    assert a.keys() == b.keys()
    assert {"train_loss", "train_acc", "loss_status"} <= a.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_signaled_job_is_requeued_and_completes_as_if_undisturbed(farm, undisturbed):
    result = 'the "result".h5'
    (farm.folder / "slow loss.py").write_text(LOSS.replace("= 0.1", "= 0.1 if again else 2.5"))
    mail = ("--mail-type", "BEGIN,END,FAIL,REQUEUE", "--mail-user", "somebody@localhost")
    (job,) = farm.submit("--nodes", "2", "--requeue", *mail, work=farm.survey(result, 8), check="--check")
    after = farm.cluster.ask(
        "sbatch", "--parsable", f"--dependency=afterok:{job}", "--output=/dev/null", "--wrap", "true"
    ).strip()
    meanwhile = farm.until_begun(result)
    assert meanwhile["outcome"] == "unfinished"
    assert meanwhile["running"] and meanwhile["queue"] == [f"job {job} is running"]
    refused = farm.lossmap("submit", "--", *farm.survey(result, 8), code=2)
    assert f"is in the queue already: job {job} is running" in refused
    # one that gets there by sbatch all the same finds the result busy: it ends at once, and is not requeued
    second = farm.cluster.ask("sbatch", "--parsable", f"{farm.folder}/{result}.sbatch").strip()
    farm.cluster.wait(second)
    assert (farm.cluster.job(second)["Restarts"], farm.cluster.job(second)["JobState"]) == ("0", "FAILED")
    log = (farm.folder / f"{result}.{second}.log").read_text()
    assert "another process is writing" in log and "not requeued: " in log
    assert farm.cluster.job(job)["JobState"] == "RUNNING"
    farm.cluster.ask("scancel", "--batch", "--signal=USR1", job)
    farm.cluster.wait(job)
    assert farm.cluster.job(job)["JobState"] == "COMPLETED"
    assert farm.cluster.job(job)["Restarts"] == "1"
    same(farm.fields(result), undisturbed)
    told = farm.status(result)
    assert (told["outcome"], told["restarts"], told["measures"]["loss"]["ranks"]) == ("complete", 1, 2)
    farm.cluster.wait(after)  # which the first attempt's end did not let go
    assert farm.cluster.job(after)["JobState"] == "COMPLETED"
    assert [mail.split(",")[0].split(" ")[-1] for mail in farm.cluster.mails(job)] == [
        "Began",
        "Requeued",
        "Began",
        "Ended",
    ]
    log = farm.log(result)
    assert "interrupted" in log and "SLURM requeued" not in log
    assert not list(farm.folder.glob("*.restarts-*"))
    assert f"attempt 2 of job {job}" in log


def test_eigenvalues_agree_within_their_bounds_after_a_requeue(farm):
    (farm.folder / "slow loss.py").write_text(LOSS.replace("= 0.1", "= 0.01 if again else 0.05"))
    work = ["eigenmap", *farm.survey("e.h5", 5)[1:-2], "--way", "double", "--certify", "each"]
    farm.lossmap(*work, "--surf-file", "alone.h5")
    (job,) = farm.submit("--nodes", "2", "--requeue", work=[*work, "--surf-file", "e.h5"])
    farm.until_begun("e.h5", measure="eigen")
    farm.cluster.ask("scancel", "--batch", "--signal=USR1", job)
    farm.cluster.wait(job)
    assert farm.cluster.job(job)["Restarts"] == "1"
    assert farm.status("e.h5")["outcome"] == "complete"
    one, other = farm.fields("alone.h5"), farm.fields("e.h5")
    for end in ("max_eig", "min_eig"):
        bound = one[f"{end}_error"] + other[f"{end}_error"]
        assert (np.abs(one[end] - other[end]) <= bound).all(), end


def test_an_array_of_three_shards_merges_to_the_file_of_one_job(farm, undisturbed):
    (job,) = farm.submit("--array", "3", work=farm.survey("whole.h5", 8))
    farm.cluster.wait(job)
    farm.lossmap("merge", "whole.h5")
    same(farm.fields("whole.h5"), undisturbed)


def test_an_array_of_a_campaign_computes_members_of_its_own_and_comes_back_for_the_rest(farm):
    """Three jobs, two at a time, one member each; the first is signalled, requeued, and goes on."""
    quick = 'again or os.environ.get("SLURM_ARRAY_TASK_ID") == "3"'
    (farm.folder / "slow loss.py").write_text(LOSS.replace("= 0.1", f"= 0.05 if {quick} else 1.0"))
    (farm.folder / "sweep.toml").write_text(
        '[settings]\nmodel = "mlp"\nsamples = 32\nbatch_size = 32\nprobe = false\nloss = "slow loss.py:loss"\n'
        '[over]\nseed = [0, 1, 2]\n[surface]\nx = "-1:1:12"\n'
    )
    said = farm.lossmap("campaign", "sweep.toml", "submit", "--array", "3%2", "--time", "10", "--requeue")
    job = said.splitlines()[0].split(" as ")[1].split(" by ")[0]
    end = time.monotonic() + 120
    while time.monotonic() < end:
        told = json.loads(farm.lossmap("campaign", "sweep.toml", "status", "--json", code=75))
        if told["points"]["done"] >= 3:
            break
    farm.cluster.ask("scancel", "--batch", "--signal=USR1", f"{job}_1")
    farm.cluster.wait(job)
    told = json.loads(farm.lossmap("campaign", "sweep.toml", "status", "--json"))
    assert told["counts"]["complete"] == 3 and told["points"] == {"done": 36, "failed": 0, "total": 36}
    logs = {p.name: p.read_text() for p in (farm.folder / "sweep" / "submissions").glob("*.log")}
    assert len(logs) == 3, logs
    assert "attempt 2 of job" in logs[f"1.shard-1-of-3.{job}.log"], logs


def test_a_chain_of_short_jobs_finishes_a_long_survey(farm, undisturbed):
    for _ in range(6):  # one chain is enough on an idle machine; on a busy one, a user would submit another
        jobs = farm.submit("--chain", "3", work=farm.survey("long.h5", 8, "--stop-after", "5"))
        assert len(jobs) == 3
        farm.cluster.wait(*jobs)
        if farm.status("long.h5")["measures"]["loss"]["done"] == 64:
            break
    same(farm.fields("long.h5"), undisturbed)
    assert farm.status("long.h5")["restarts"] >= 1  # how many depends on the machine's speed, but one job is too short


def test_mpirun_starts_the_ranks_inside_a_job(farm, undisturbed):
    (job,) = farm.submit(
        *farm.site(launcher="wheel"), "--nodes", "2", work=farm.survey("by mpirun.h5", 8, probe="--probe")
    )
    farm.cluster.wait(job)
    same(farm.fields("by mpirun.h5"), undisturbed)
    assert farm.status("by mpirun.h5")["measures"]["loss"]["ranks"] == 2


def test_a_wrong_kind_of_mpi_is_one_clear_sentence(farm):
    (job,) = farm.submit(*farm.site(mpi="none"), "--nodes", "2", work=farm.survey("wrong.h5", 8))
    farm.cluster.wait(job)
    lines = [line for line in farm.log("wrong.h5").splitlines() if line.startswith("lossmap:")]
    assert "MPI sees one" in lines[0]
    assert "Traceback" not in farm.log("wrong.h5")
    assert not (farm.folder / "wrong.h5").exists()
    assert farm.cluster.job(job)["JobState"] == "FAILED"


def test_a_job_that_is_cancelled_or_gets_nothing_done_does_not_come_back(farm):
    (job,) = farm.submit("--requeue", work=farm.survey("cancelled.h5", 20))
    farm.until_begun("cancelled.h5")
    farm.cluster.ask("scancel", job)
    farm.cluster.wait(job)
    assert farm.cluster.job(job)["JobState"] == "CANCELLED"
    assert "not requeued: the job was cancelled" in farm.log("cancelled.h5")
    done = farm.status("cancelled.h5")["measures"]["loss"]["done"]
    (farm.folder / "slow loss.py").unlink()
    refused = farm.lossmap("submit", "--requeue", "--", "resume", "cancelled.h5", code=2)
    assert "there is no file slow loss.py" in refused
    (job,) = farm.submit("--requeue", work=["resume", "cancelled.h5"])
    farm.cluster.wait(job)
    assert "not requeued: the command was refused" in farm.log("cancelled.h5")
    assert farm.cluster.job(job)["Restarts"] == "0"
    assert farm.status("cancelled.h5")["measures"]["loss"]["done"] == done


def test_a_job_that_another_takes_the_place_of_goes_on_later_and_says_why(farm, undisturbed):
    (farm.folder / "slow loss.py").write_text(LOSS.replace("= 0.1", "= 0.02 if again else 0.6"))
    work = farm.survey("p.h5", 8)
    (job,) = farm.submit("--nodes", "2", "--requeue", "--sbatch", "--exclusive", work=work)
    farm.until_begun("p.h5")
    other = farm.cluster.ask(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
    ).strip()
    farm.cluster.wait(other)
    farm.cluster.start_now(job)
    farm.cluster.wait(job)
    assert farm.cluster.job(job)["JobState"] == "COMPLETED"
    log = farm.log("p.h5")
    assert "SLURM requeued this job: another one took its place (preemption)" in log
    assert "another job takes its place (preemption), and SLURM sees to it" in log and "cancelled" not in log
    same(farm.fields("p.h5"), undisturbed)
    assert "started again by SLURM: preempted, or a node failed" in farm.lossmap("status", "p.h5")


def test_why_a_job_waits_is_said_by_submit_and_by_status(farm):
    told = farm.lossmap("submit", "--no-check", "--partition", "closed", "--", *farm.survey("w.h5"))
    number = told.splitlines()[0].split()[2]
    assert f"in the queue: job {number} is pending (PartitionDown): the partition is down" in told
    assert f"no file w.h5; job {number} is pending (PartitionDown)" in farm.lossmap("status", "w.h5", code=2)
    farm.cluster.ask("scancel", number)


def test_a_spectrum_is_a_job_that_resumes_too(farm):
    work = ["spectrum", "--model", "mlp", "--samples", "32", "--trace-products", "20", "--no-density"]
    (job,) = farm.submit("--requeue", work=[*work, "--surf-file", "c.h5"])
    farm.cluster.wait(job)
    assert farm.cluster.job(job)["JobState"] == "COMPLETED"
    assert farm.status("c.h5")["outcome"] == "complete"


def test_what_sbatch_refuses_is_said_in_its_own_lines(farm):
    done = subprocess.run(
        [LOSSMAP, "submit", *farm.site(partition="nowhere"), "--", *farm.survey("a.h5")],
        cwd=farm.folder,
        env=farm.cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    first, *others = done.stderr.splitlines()
    assert first.startswith("lossmap: sbatch refused ") and first.endswith("; it says:")
    assert others == [
        "  sbatch: error: invalid partition specified: nowhere",
        "  sbatch: error: Batch job submission failed: Invalid partition name specified",
    ]
    assert not list(farm.folder.glob("*.sbatch"))
    assert os.environ.get("SLURM_JOB_ID") is None
