"""SIGKILLs random ranks of surveys at random times, and checks that nothing is lost.

    python benchmarks/kill_campaign.py [KILLS] [--without-ft] [--command] [--early 0.05] [--ranks 4] [--seed 0]

Each round surveys a grid into a file under mpirun (with fault tolerance, unless --without-ft) and kills one to three
random ranks at random times, including rank 0; one job in twenty is attacked while it is set up, or the share that
--early says. With --command the survey is `lossmap surface` of a net with a loss of the user's own, whose set-up has
torch's import, the problem's build and the fingerprint in it beside MPI_Init. A job that ends is started again until
the file is complete; finally every point must have the value of an undisturbed process, bit for bit. Between attempts
the file must open, and may only gain points. Prints kills, hangs, files that did not open, lost or wrong points, jobs
that ended with 0 before their file was complete, and jobs that printed a stack of Python's.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lossmap.io.read import read

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "programs" / "undisturbed.py"
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # a hanging rank prints its stack
    "LOSSMAP_MPI_START": "15",
    "PYTHONPATH": str(ROOT),
}
EARLY = 0.05  # share of the jobs that are attacked while they are set up
SETUP_SECONDS = 3.0  # of a set-up, for times to be drawn from until the first one was measured
MAX_JOBS = 12  # of a survey
LOSS = """\
import time

import torch


def loss(outputs, targets):
    time.sleep(0.012)
    return torch.nn.functional.cross_entropy(outputs, targets)
"""
STACKS = (b"Traceback (most recent call last)", b"(most recent call first)")
HANG = 300.0  # seconds: an attempt takes one or two; long enough for a busy machine


@dataclass(frozen=True)
class Attack:
    """How jobs are started and attacked.

    ranks    of each job
    ft       whether MPI tolerates the loss of a rank
    early    share of the jobs that are attacked while they are set up
    command  whether the survey is a command with torch, or a program with NumPy alone
    """

    ranks: int = 4
    ft: bool = True
    early: float = EARLY
    command: bool = False

    def words(self, folder: Path, path: Path) -> list[str]:
        """The survey into a file, as the words of a process."""
        if not self.command:
            return [sys.executable, str(PROGRAM), str(path), "0.012", "computes"]
        (folder / "slow.py").write_text(LOSS)
        subject = ["--model", "mlp", "--samples", "64", "--batch-size", "64", "--device", "cpu", "--threads", "1"]
        grid = ["--loss", f"{folder}/slow.py:loss", "--x=-1:1:10", "--y=-1:1:9"]
        return [sys.executable, "-m", "lossmap", "surface", *subject, *grid, "--surf-file", str(path)]


@dataclass
class Tally:
    """The counts of a campaign."""

    kills: int = 0
    of_rank_0: int = 0
    early: int = 0  # kills before the job had a point
    rounds: int = 0
    attempts: int = 0
    survived: int = 0  # attempts that lost a rank and completed
    hangs: int = 0
    unopened: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    silent: int = 0  # jobs that ended with 0, their file not complete
    stacks: int = 0
    setup: float = SETUP_SECONDS  # that the last measured set-up took
    messages: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost or hung, every file opened, no process remained, and every job said how it ended."""
        faults = (self.hangs, self.unopened, self.lost, self.wrong, self.orphans, self.silent, self.stacks)
        return not any(faults)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.of_rank_0} of rank 0, {self.early} before a point) in {self.rounds} surveys "
            f"and {self.attempts} jobs, {self.survived} of which survived the loss of a rank: {self.hangs} hangs, "
            f"{self.unopened} files that did not open, {self.lost} surveys with lost points, {self.wrong} with wrong "
            f"ones, {self.orphans} orphans, {self.silent} jobs ended with 0 too early, {self.stacks} with a stack"
        )


def ranks_below(pid: int) -> dict[int, int]:
    """{rank: process id} of the Python processes below a launcher, by their environment."""
    ranks: dict[int, int] = {}
    pending = [pid]
    while pending:
        pid = pending.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                pending += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            python = "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue
        if python and "OMPI_COMM_WORLD_RANK" in environment:
            # not its child, which watches over the start of MPI
            ranks.setdefault(int(environment["OMPI_COMM_WORLD_RANK"]), pid)
    return ranks


def completed(path: Path) -> np.ndarray:
    """The points that are complete in the file."""
    return read(path).status["loss"] == 1 if path.exists() else np.zeros(0, dtype=bool)


def attempt(
    folder: Path, path: Path, attack: Attack, victims: list[int], chance: random.Random, tally: Tally
) -> int | None:
    """One job, whose victims are killed one after the other at random times; its exit code, None where it hung."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    launcher = [str(mpirun), *(["--with-ft", "ulfm"] if attack.ft else []), "-n", str(attack.ranks)]
    journal = path.with_name(path.name + ".journal")
    journal_before = journal.stat().st_size if journal.exists() else 0

    def has_points() -> bool:
        return journal.exists() and journal.stat().st_size > journal_before

    job = subprocess.Popen(
        [*launcher, *attack.words(folder, path)],
        env={**os.environ, **ENVIRONMENT, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    tally.attempts += 1
    early = bool(victims) and chance.random() < attack.early
    began, is_set_up = time.monotonic(), False
    until = began + (chance.uniform(0, 1.2 * tally.setup) if early else HANG)
    while time.monotonic() < until and job.poll() is None:
        if has_points():
            is_set_up, tally.setup = True, time.monotonic() - began
            break
        time.sleep(0.01)
    processes: dict[int, int] = {}
    for victim in victims:
        time.sleep(chance.uniform(0, 0.35))
        processes |= ranks_below(job.pid)
        if victim in processes and os.path.exists(f"/proc/{processes[victim]}"):
            is_set_up = is_set_up or has_points()
            try:
                os.kill(processes[victim], signal.SIGKILL)
            except ProcessLookupError:
                continue
            tally.kills += 1
            tally.of_rank_0 += victim == 0
            tally.early += not is_set_up
    try:
        out, _ = job.communicate(timeout=HANG)
        is_complete = b'"outcome": "complete"' in out or b"(100 %)" in out
        tally.survived += bool(victims) and is_complete and b"has died" in out
    except subprocess.TimeoutExpired:
        tally.hangs += 1
        for pid in ranks_below(job.pid).values():
            os.kill(pid, signal.SIGABRT)
        time.sleep(1.0)
        os.killpg(job.pid, signal.SIGKILL)
        out, _ = job.communicate()
        tally.messages.append(f"a job hung after the kills of {victims}:\n{out.decode(errors='replace')[-8000:]}")
        return None
    if any(stack in out for stack in STACKS):
        tally.stacks += 1
        tally.messages.append(f"a stack after the kills of {victims}:\n{out.decode(errors='replace')[-4000:]}")
    time.sleep(0.5)
    for pid in processes.values():
        if os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            tally.orphans += 1
            os.kill(pid, signal.SIGKILL)
    return job.returncode


def survey_under_attack(attack: Attack, truth: dict[str, bytes], chance: random.Random, tally: Tally) -> None:
    """One survey, until its file is complete; ranks are killed in its first attempts."""
    tally.rounds += 1
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "s.h5"
        before = completed(path)
        for number in range(MAX_JOBS):
            code = attempt(folder, path, attack, victims_of(number, attack, chance), chance, tally)
            try:
                now = completed(path)
            except Exception as error:
                tally.unopened += 1
                tally.messages.append(f"{type(error).__name__}: {error}")
                return
            if before.size and (before & ~now).any():
                tally.lost += 1
                tally.messages.append(f"{int((before & ~now).sum())} points were complete before and are not now")
            before, is_complete = now, bool(now.size and now.all())
            if code == 0 and not is_complete:
                tally.silent += 1
                tally.messages.append(f"a job ended with 0, {int(now.sum())} points complete")
            if is_complete:
                break
        else:
            tally.lost += 1
            tally.messages.append(f"{int((~before).sum())} points are pending after {MAX_JOBS} jobs")
            return
        surface = read(path)
        if any(surface[name].tobytes() != bits for name, bits in truth.items()):
            tally.wrong += 1


def victims_of(number: int, attack: Attack, chance: random.Random) -> list[int]:
    """The ranks that are killed in this job of a survey: none after its first ones."""
    if not attack.ft:
        return [chance.randrange(attack.ranks)] if number < 3 else []
    return chance.sample(range(attack.ranks), chance.randint(1, attack.ranks - 1)) if number < 2 else []


def undisturbed(attack: Attack) -> dict[str, bytes]:
    """The fields of a survey in one process, as bytes."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s.h5"
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run(attack.words(Path(name), path), env=environment, check=True, capture_output=True)
        surface = read(path)
        return {field: surface[field].tobytes() for field in ("train_loss", "train_acc")}


def campaign(
    kills: int,
    *,
    ft: bool = True,
    ranks: int = 4,
    seed: int = 0,
    early: float = EARLY,
    command: bool = False,
    verbose: bool = False,
) -> Tally:
    """Surveys under attack until this number of ranks has been killed."""
    chance, tally = random.Random(seed), Tally()
    attack = Attack(ranks, ft, early, command)
    truth = undisturbed(attack)
    while tally.kills < kills:
        count = len(tally.messages)
        survey_under_attack(attack, truth, chance, tally)
        if verbose and tally.messages[count:]:
            print(*tally.messages[count:], sep="\n", flush=True)
        if verbose and tally.rounds % 10 == 0:
            print(tally, flush=True)
    return tally


def main() -> int:
    """Run a campaign and print its counts; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument(
        "--without-ft", action="store_true", help="MPI without fault tolerance: the loss of a rank ends the job"
    )
    parser.add_argument("--command", action="store_true", help="`lossmap surface`, with torch, in place of a program")
    parser.add_argument(
        "--early", type=float, default=EARLY, help="share of the jobs that are attacked in their set-up"
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    tally = campaign(
        options.kills,
        ft=not options.without_ft,
        ranks=options.ranks,
        seed=options.seed,
        early=options.early,
        command=options.command,
        verbose=True,
    )
    print(f"{tally}; {time.monotonic() - began:.0f} s")
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
