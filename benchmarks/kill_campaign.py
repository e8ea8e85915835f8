"""SIGKILLs random ranks of real surveys at random moments, and looks whether anything is lost.

    python benchmarks/kill_campaign.py [KILLS] [--without-ft] [--ranks 4] [--seed 0]

Each round surveys a grid into a file under mpirun (fault tolerance on, unless --without-ft) and kills one, two or three
random ranks at random moments, rank 0 among them; one job in twenty is shot at while it starts. A job that ends so is
started again until the file is complete; in the end every point must have the value that an undisturbed process gives
it, bit for bit. Between the attempts the file must open, and may only gain points. Prints kills, hangs, files that did
not open, points lost or wrong.
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
    "PYTHONFAULTHANDLER": "1",  # a rank that hangs says where
    "LOSSMAP_MPI_START": "60",
    "PYTHONPATH": str(ROOT),
}
EARLY = 0.05  # of the jobs are shot at while they start
HANG = 300.0  # seconds: an attempt takes one or two, and a busy machine is no hang


@dataclass
class Tally:
    """What a campaign has seen."""

    kills: int = 0
    of_rank_0: int = 0
    rounds: int = 0
    attempts: int = 0
    survived: int = 0  # attempts that lost a rank and completed all the same
    hangs: int = 0
    unopened: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, nothing hung, every file opened and nobody was left behind."""
        return not (self.hangs or self.unopened or self.lost or self.wrong or self.orphans)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.of_rank_0} of rank 0) in {self.rounds} surveys and {self.attempts} jobs, "
            f"{self.survived} of which went on after a death: {self.hangs} hangs, {self.unopened} files that did not "
            f"open, {self.lost} surveys with lost points, {self.wrong} with wrong ones, {self.orphans} orphans"
        )


def ranks_below(pid: int) -> dict[int, int]:
    """{rank: process id} of the Python processes below a launcher, by their environment."""
    found: dict[int, int] = {}
    look = [pid]
    while look:
        pid = look.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                look += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            told = dict(word.split("=", 1) for word in words if "=" in word)
            python = "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue
        if python and "OMPI_COMM_WORLD_RANK" in told:
            found[int(told["OMPI_COMM_WORLD_RANK"])] = pid
    return found


def known(path: Path) -> np.ndarray:
    """The points that the file knows."""
    return read(path).status["loss"] == 1 if path.exists() else np.zeros(0, dtype=bool)


def attempt(
    folder: Path, path: Path, ranks: int, ft: bool, victims: list[int], chance: random.Random, tally: Tally
) -> None:
    """One job, with these victims killed one after the other at random moments."""
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
    found: dict[int, int] = {}
    for victim in victims:
        time.sleep(chance.uniform(0, 0.35))
        found |= ranks_below(job.pid)
        if victim in found and os.path.exists(f"/proc/{found[victim]}"):
            try:
                os.kill(found[victim], signal.SIGKILL)
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
        tally.said.append(f"a job hung after the kills of {victims}:\n{out.decode(errors='replace')[-8000:]}")
    time.sleep(0.05)
    for pid in found.values():
        if os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            tally.orphans += 1
            os.kill(pid, signal.SIGKILL)


def survey_under_fire(ranks: int, ft: bool, truth: dict[str, bytes], chance: random.Random, tally: Tally) -> None:
    """One survey, until its file is complete; ranks are killed in its first attempts."""
    tally.rounds += 1
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "s.h5"
        before = known(path)
        for number in range(12):
            if not ft:
                victims = [chance.randrange(ranks)] if number < 3 else []
            else:
                victims = chance.sample(range(ranks), chance.randint(1, ranks - 1)) if number < 2 else []
            attempt(folder, path, ranks, ft, victims, chance, tally)
            try:
                now = known(path)
            except Exception as error:
                tally.unopened += 1
                tally.said.append(f"{type(error).__name__}: {error}")
                return
            if before.size and (before & ~now).any():
                tally.lost += 1
                tally.said.append(f"{int((before & ~now).sum())} points were known before and are not now")
            before = now
            if now.size and now.all():
                break
        else:
            tally.lost += 1
            tally.said.append(f"{int((~before).sum())} points are still to do after 12 jobs")
            return
        surface = read(path)
        if any(surface[name].tobytes() != bits for name, bits in truth.items()):
            tally.wrong += 1


def campaign(kills: int, *, ft: bool = True, ranks: int = 4, seed: int = 0, say: bool = False) -> Tally:
    """Surveys under fire until so many ranks have been killed."""
    chance, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s.h5"
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run([sys.executable, str(PROGRAM), str(path)], env=environment, check=True, capture_output=True)
        surface = read(path)
        truth = {field: surface[field].tobytes() for field in ("train_loss", "train_acc")}
    while tally.kills < kills:
        said = len(tally.said)
        survey_under_fire(ranks, ft, truth, chance, tally)
        if say and tally.said[said:]:
            print(*tally.said[said:], sep="\n", flush=True)
        if say and tally.rounds % 10 == 0:
            print(tally, flush=True)
    return tally


def main() -> int:
    """Run a campaign and say how it went; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument(
        "--without-ft", action="store_true", help="an MPI without fault tolerance: a death ends the job"
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    began = time.monotonic()
    tally = campaign(told.kills, ft=not told.without_ft, ranks=told.ranks, seed=told.seed, say=True)
    print(f"{tally}; {time.monotonic() - began:.0f} s")
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
