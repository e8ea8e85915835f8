"""A campaign of 60 members on a real SLURM with two virtual nodes that loses, in turn, its place, a node and its code.

    python benchmarks/campaign_on_slurm.py [--folder campaign_on_slurm] [--seconds 0.01]

It needs root, slurm-wlm, munge and libpmix2, as tests/slurm does, whose cluster it starts. Sixty members (five
checkpoints of a run, three seeds, four measures) with a loss of the user's own, which sleeps and takes a factor from a
second file, are submitted as one job over both nodes. Meanwhile

1. a job of a higher partition takes their place; SLURM requeues the campaign;
2. slurmd, slurmstepd and all ranks of a node are killed by SIGKILL; the node comes back later;
3. before it does, the factor is edited, so that the same settings are another function.

The campaign goes on by itself until it is at its end, and says which members failed and that factor.py was changed.
Then the file is put back, the results of its other version are deleted, failed members are tried again, and every
number of the table must be that of a campaign that one process computed undisturbed, bit for bit (of eigenvalues from
warm starts: within the tolerance). Left in the folder are both campaigns and the report pages.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOSS = """\
import os
import time

import torch

import factor

SECONDS = {seconds} if "SLURM_JOB_ID" in os.environ else 0.0


def loss(outputs, targets):
    time.sleep(SECONDS)
    return factor.FACTOR * torch.nn.functional.cross_entropy(outputs, targets)
"""
FACTOR = "FACTOR = {}\n"
CAMPAIGN = """\
[settings]
model = "mlp"
samples = 64
batch_size = 64

[over]
model_file = {glob = "run/step_*.pt"}
seed = [0, 1, 2]

[[surface]]
loss = "loss.py:loss"
x = "-1:1:7"
y = "-1:1:5"

[[surface]]
loss = "loss.py:loss"
x = "-1:1:41"

[eigenmap]
loss = "loss.py:loss"
x = "-1:1:9"
certify = "none"
hvp_backend = "double-backward"

[spectrum]
loss = "loss.py:loss"
top = 3
bottom = 1
density = false
trace_products = 10
hvp_backend = "double-backward"
"""
MEMBERS, CHECKPOINTS = 60, 5


def slurm() -> ModuleType:
    """The cluster of the tests."""
    spec = importlib.util.spec_from_file_location("slurm_of_tests", ROOT / "tests" / "slurm" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


class Trial:
    """The folder of a trial, and its cluster."""

    def __init__(self, folder: Path, environment: dict[str, str], top: Path) -> None:
        self.folder, self.top = folder, top
        self.environment = environment | {"PYTHONPATH": str(ROOT)}
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Print what happens, and when."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def ask(self, *command: str) -> str:
        """The output of a program of SLURM."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def lossmap(self, *words: str) -> tuple[int, str]:
        """A command of lossmap in the folder: exit code and output."""
        done = subprocess.run(
            [sys.executable, "-m", "lossmap", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """How the campaign stands."""
        status: dict[str, Any] = json.loads(self.lossmap("campaign", "sweep.toml", "status", "--json")[1])
        return status

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.ask("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Any, what: str, seconds: float = 240) -> None:
        """Wait for something; ends the trial where it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"not within {seconds:g} s: {what}\n{self.ask('squeue', '-l')}\n{self.status()}")
            time.sleep(0.5)

    def at_end(self) -> int:
        """How many members are at their end, by what lies beside their files; asking the command would take cores."""
        members = self.folder / "sweep" / "members"
        return len(list(members.glob("*.done.json"))) + len(list(members.glob("*.failed.json")))


def prepare(folder: Path, environment: dict[str, str], seconds: float) -> None:
    """A run of training, the user's files, and the campaign."""
    folder.mkdir(parents=True)
    (folder / "loss.py").write_text(LOSS.format(seconds=seconds))
    (folder / "factor.py").write_text(FACTOR.format(1.0))
    (folder / "sweep.toml").write_text(CAMPAIGN)
    train = ["train", "--model", "mlp", "--epochs", "2", "--save-every", "4", "--folder", "run"]
    subprocess.run(
        [sys.executable, "-m", "lossmap", *train], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    checkpoints = sorted((folder / "run").glob("step_*.pt"))
    if len(checkpoints) < CHECKPOINTS:
        raise SystemExit(f"the run has {len(checkpoints)} checkpoints")
    for extra in checkpoints[CHECKPOINTS:]:
        extra.unlink()


def kill_node(top: Path, node: str) -> int:
    """Kill slurmd, slurmstepd and all that runs below them on a node, as a power cut would; how many processes."""
    daemon = int((top / "run" / f"slurmd.{node}.pid").read_text())
    steps: set[int] = set()
    tasks: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if f"SLURM_CONF={top}/slurm.conf".encode() in words and f"SLURMD_NODENAME={node}".encode() in words:
            tasks.add(int(entry.name))
            steps.add(parent)
    steps = {pid for pid in steps if _command(pid).startswith("slurmstepd")}
    for pid in (daemon, *steps, *tasks):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return 1 + len(steps) + len(tasks)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def revive_node(trial: Trial, node: str) -> None:
    """Start slurmd of a node again with empty folders, as after a reboot, and let the controller use it."""
    # what PMIx's steps leave there when they are killed lets SLURM 22.05 launch no step of the same number again
    for name in ("spool", "tmp"):
        shutil.rmtree(trial.top / name / node)
        (trial.top / name / node).mkdir()
    command = ["unshare", "--uts", "sh", "-c", f"hostname {node} && exec slurmd -N {node}"]
    subprocess.run(command, env=trial.environment, check=True)
    # a node that the controller has not found down yet cannot be told to resume; one that has come back need not be
    trial.until(lambda: _is_up(trial, node), f"{node} to come back")


def _is_up(trial: Trial, node: str) -> bool:
    command = ["scontrol", "update", f"nodename={node}", "state=resume"]
    if subprocess.run(command, env=trial.environment, capture_output=True).returncode == 0:
        return True
    state = trial.ask("sinfo", "--noheader", "--format=%t", f"--nodes={node}")
    return state in ("idle", "mix", "alloc")


def disturbed(trial: Trial) -> None:
    """The campaign under SLURM, with all that happens to it."""
    submit = ["submit", "--nodes", "2", "--ranks-per-node", "2", "--time", "20", "--requeue"]
    code, said = trial.lossmap("campaign", "sweep.toml", *submit)
    if code:
        raise SystemExit(said)
    job = said.splitlines()[0].split(" as ")[1].split(" by ")[0]
    trial.say(said.splitlines()[0])
    trial.until(lambda: trial.at_end() >= 9, "9 members")
    trial.say(f"{trial.at_end()} members at their end; a job of a higher partition comes")
    wrap = ["-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2"]
    trial.ask("sbatch", "--parsable", *wrap)
    trial.until(lambda: trial.job(job)["Restarts"] == "1", "a requeue")
    trial.say(f"{trial.at_end()} members at their end; the campaign is {trial.job(job)['JobState']}, requeued")
    # SLURM lets a job wait for two minutes that it has requeued
    trial.until(lambda: trial.job(job)["JobState"] == "RUNNING", "the second attempt")
    before = trial.at_end()
    trial.until(lambda: trial.at_end() >= before + 6, "6 members more")
    killed = kill_node(trial.top, "node2")
    trial.say(f"{trial.at_end()} members at their end; {killed} processes of node2 killed")
    trial.ask("scontrol", "update", "nodename=node2", "state=down", "reason=killed")
    (trial.folder / "factor.py").write_text(FACTOR.format(1.5))
    trial.say("factor.py edited")
    trial.until(lambda: trial.job(job)["JobState"] != "RUNNING", "the end of the second attempt")
    trial.say(f"the campaign is {trial.job(job)['JobState']}, restarts {trial.job(job)['Restarts']}")
    revive_node(trial, "node2")
    trial.until(lambda: trial.job(job)["JobState"] not in ("RUNNING", "PENDING", "COMPLETING"), "the job's end", 500)
    trial.say(f"the job is {trial.job(job)['JobState']}, restarts {trial.job(job)['Restarts']}")
    print(trial.lossmap("campaign", "sweep.toml", "status")[1])


def put_back(trial: Trial) -> None:
    """Put the edited file back, compute again what was refused or measured by the other version, collect and report."""
    (trial.folder / "factor.py").write_text(FACTOR.format(1.0))
    edited = hashlib.sha256(FACTOR.format(1.5).encode()).hexdigest()[:8]
    others = [d for d, row in rows(trial.folder / "before.csv").items() if edited in row.get("code", "").split()]
    for digest in others:
        for file in (trial.folder / "sweep" / "members").glob(f"{digest}.*"):
            file.unlink()
    trial.say(f"factor.py put back, the files of {len(others)} members of the other version deleted")
    code, said = trial.lossmap("campaign", "sweep.toml", "retry")
    trial.say(f"retry ends with {code}: {said.strip().splitlines()[-1]}")
    trial.lossmap("campaign", "sweep.toml", "collect", "--output", "table.csv")
    trial.lossmap("campaign", "sweep.toml", "report", "--output", "report.html")


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a collected table by digest."""
    with open(path) as file:
        return {row["digest"]: row for row in csv.DictReader(file)}


def compare(disturbed: Path, undisturbed: Path) -> tuple[int, int, int]:
    """Numbers that are equal bit for bit, equal within their bars or the tolerance of the solver, and different."""
    equal = close = wrong = 0
    one, other = rows(disturbed), rows(undisturbed)
    if one.keys() != other.keys():
        raise SystemExit(f"members differ: {len(one)} and {len(other)}")
    left_out = {"seconds", "file", "products", "name", "code"}
    for digest, row in one.items():
        for name, value in row.items():
            if name in left_out or name.endswith(("_error", "_limit", "_products")):
                continue
            truth = other[digest].get(name, "")
            if value == truth:
                equal += bool(value)
            elif row["measure"] in ("eigenmap", "spectrum") and _is_close(value, truth):
                close += 1
            else:
                wrong += 1
                print(f"{row['name']}: {name} is {value}, undisturbed {truth}")
    return equal, close, wrong


def _is_close(a: str, b: str) -> bool:
    try:
        return abs(float(a) - float(b)) <= 2e-3 * max(abs(float(a)), abs(float(b)), 1.0)
    except ValueError:
        return False


def main() -> int:
    """Run the trial, and print what happened; 1 where a number is another than without any disturbance."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, default=Path("campaign_on_slurm"))
    flags.add_argument("--seconds", type=float, default=0.01, help="that each evaluation of the loss sleeps")
    flags.add_argument("--truth", type=Path, help="folder of an undisturbed campaign that is there already")
    options = flags.parse_args()
    folder = options.folder.resolve()
    module, top = slurm(), Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    try:
        trial = Trial(folder / "disturbed", module._up(top), top)
        prepare(trial.folder, trial.environment, options.seconds)
        calm_folder = options.truth or folder / "undisturbed"
        if options.truth is None:
            shutil.copytree(trial.folder, calm_folder)
        disturbed(trial)
        trial.lossmap("campaign", "sweep.toml", "collect", "--output", "before.csv")
        trial.lossmap("campaign", "sweep.toml", "report", "--output", "before.html")
        put_back(trial)
        calm = Trial(calm_folder.resolve(), trial.environment, top)
        calm.lossmap("campaign", "sweep.toml", "run")
        calm.lossmap("campaign", "sweep.toml", "collect", "--output", "table.csv")
    finally:
        module._down(top)
    equal, close, wrong = compare(folder / "disturbed" / "table.csv", calm_folder / "table.csv")
    print(f"{MEMBERS} members: {equal} values equal, {close} within the solver's tolerance, {wrong} different")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
