"""SIGKILLs random ranks of surveys at random times, and checks that nothing is lost.

    python benchmarks/kill_campaign.py [KILLS] [--without-ft] [--ranks 4] [--seed 0]

Each round surveys a grid into a file under mpirun (with fault tolerance, unless --without-ft) and kills one to three
random ranks at random times, including rank 0; one job in twenty is attacked at its start. A job that ends is started
again until the file is complete; finally every point must have the value of an undisturbed process, bit for bit.
Between attempts the file must open, and may only gain points. Prints kills, hangs, files that did not open, and lost or
wrong points.
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
    "LOSSMAP_MPI_START": "60",
    "PYTHONPATH": str(ROOT),
}
EARLY = 0.05  # share of the jobs that are attacked while they start
HANG = 300.0  # seconds: an attempt takes one or two; long enough for a busy machine


@dataclass
class Tally:
    """The counts of a campaign."""

    kills: int = 0
    of_rank_0: int = 0
    rounds: int = 0
    attempts: int = 0
    survived: int = 0  # attempts that lost a rank and completed
    hangs: int = 0
    unopened: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    messages: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, nothing hung, every file opened and no process remained."""
        return not (self.hangs or self.unopened or self.lost or self.wrong or self.orphans)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.of_rank_0} of rank 0) in {self.rounds} surveys and {self.attempts} jobs, "
            f"{self.survived} of which survived the loss of a rank: {self.hangs} hangs, {self.unopened} files that did "
            f"not open, {self.lost} surveys with lost points, {self.wrong} with wrong ones, {self.orphans} orphans"
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
            ranks[int(environment["OMPI_COMM_WORLD_RANK"])] = pid
    return ranks


def completed(path: Path) -> np.ndarray:
    """The points that are complete in the file."""
    return read(path).status["loss"] == 1 if path.exists() else np.zeros(0, dtype=bool)


def attempt(
    folder: Path, path: Path, ranks: int, ft: bool, victims: list[int], chance: random.Random, tally: Tally
) -> None:
    """One job, whose victims are killed one after the other at random times."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [str(mpirun), *(["--with-ft", "ulfm"] if ft else []), "-n", str(ranks)]
    journal = path.with_name(path.name + ".journal")
    journal_before = journal.stat().st_size if journal.exists() else 0
    job = subprocess.Popen(
        [*command, sys.executable, str(PROGRAM), str(path), "0.012", "computes"],
        env={**os.environ, **ENVIRONMENT, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    tally.attempts += 1
    early = chance.random() < EARLY
    until = time.monotonic() + (chance.uniform(0, 3) if early else HANG)
    while time.monotonic() < until and job.poll() is None:
        if not early and journal.exists() and journal.stat().st_size > journal_before:
            break
        time.sleep(0.01)
    processes: dict[int, int] = {}
    for victim in victims:
        time.sleep(chance.uniform(0, 0.35))
        processes |= ranks_below(job.pid)
        if victim in processes and os.path.exists(f"/proc/{processes[victim]}"):
            try:
                os.kill(processes[victim], signal.SIGKILL)
            except ProcessLookupError:
                continue
            tally.kills += 1
            tally.of_rank_0 += victim == 0
    try:
        out, _ = job.communicate(timeout=HANG)
        tally.survived += bool(victims) and b'"outcome": "complete"' in out and b"has died" in out
    except subprocess.TimeoutExpired:
        tally.hangs += 1
        for pid in ranks_below(job.pid).values():
            os.kill(pid, signal.SIGABRT)
        time.sleep(1.0)
        os.killpg(job.pid, signal.SIGKILL)
        out, _ = job.communicate()
        tally.messages.append(f"a job hung after the kills of {victims}:\n{out.decode(errors='replace')[-8000:]}")
    time.sleep(0.05)
    for pid in processes.values():
        if os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            tally.orphans += 1
            os.kill(pid, signal.SIGKILL)


def survey_under_attack(ranks: int, ft: bool, truth: dict[str, bytes], chance: random.Random, tally: Tally) -> None:
    """One survey, until its file is complete; ranks are killed in its first attempts."""
    tally.rounds += 1
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "s.h5"
        before = completed(path)
        for number in range(12):
            if not ft:
                victims = [chance.randrange(ranks)] if number < 3 else []
            else:
                victims = chance.sample(range(ranks), chance.randint(1, ranks - 1)) if number < 2 else []
            attempt(folder, path, ranks, ft, victims, chance, tally)
            try:
                now = completed(path)
            except Exception as error:
                tally.unopened += 1
                tally.messages.append(f"{type(error).__name__}: {error}")
                return
            if before.size and (before & ~now).any():
                tally.lost += 1
                tally.messages.append(f"{int((before & ~now).sum())} points were complete before and are not now")
            before = now
            if now.size and now.all():
                break
        else:
            tally.lost += 1
            tally.messages.append(f"{int((~before).sum())} points are pending after 12 jobs")
            return
        surface = read(path)
        if any(surface[name].tobytes() != bits for name, bits in truth.items()):
            tally.wrong += 1


def campaign(kills: int, *, ft: bool = True, ranks: int = 4, seed: int = 0, verbose: bool = False) -> Tally:
    """Surveys under attack until this number of ranks has been killed."""
    chance, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s.h5"
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run([sys.executable, str(PROGRAM), str(path)], env=environment, check=True, capture_output=True)
        surface = read(path)
        truth = {field: surface[field].tobytes() for field in ("train_loss", "train_acc")}
    while tally.kills < kills:
        count = len(tally.messages)
        survey_under_attack(ranks, ft, truth, chance, tally)
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
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    tally = campaign(options.kills, ft=not options.without_ft, ranks=options.ranks, seed=options.seed, verbose=True)
    print(f"{tally}; {time.monotonic() - began:.0f} s")
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
