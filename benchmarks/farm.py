"""A campaign whose members' costs spread 1 to 20: how busy its ranks are, and what a killed rank 0 costs.

    python benchmarks/farm.py [--quick] [--ranks 4] [--members 60] [--unit 0.02] [--kills 10]

The points, 25 of each member, only sleep, so that few cores measure many ranks (tests/programs/campaign.py, which logs
each evaluation that is begun). Busy is, by the files, the seconds of all points over ranks times the time of the whole
campaign on rank 0, with its files and its table, but not the start of Python and MPI. Then the same campaign in a new
folder: rank 0 is killed at random times, each time resumed by the same command, until this many kills; repeated are the
points whose evaluation was begun twice: the one in flight, and those that the rank holds to come (one to three).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.io.read import read

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "programs" / "campaign.py"
POINTS = 25  # of a member
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_btl": "^ofi",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """The campaign under mpirun."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    program = [sys.executable, str(PROGRAM), str(folder), str(options.unit), str(options.members)]
    return subprocess.Popen(
        [str(mpirun), "-n", str(options.ranks), *program],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report_of(job: subprocess.Popen[str]) -> dict[str, Any]:
    """What rank 0 says at the end of a campaign that nobody disturbs."""
    out, err = job.communicate(timeout=600)
    if job.returncode or not out.strip():
        raise SystemExit(f"exit code {job.returncode}: {err}")
    report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return report


def evaluations(folder: Path) -> Counter[str]:
    """How often the evaluation of each point was begun."""
    log = folder / "log"
    return Counter(log.read_text().splitlines() if log.exists() else [])


def rank_0_below(pid: int) -> int | None:
    """The process id of rank 0 below a launcher."""
    pending = [pid]
    while pending:
        pid = pending.pop()
        try:
            pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"OMPI_COMM_WORLD_RANK=0" in words:
            return pid
    return None


def efficiency(options: argparse.Namespace) -> float:
    """The share of the ranks' time in which they measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = report_of(start(folder, options))
        files = list((folder / "members").glob("*.h5"))
        measured = sum(float(np.sum(read(path)["loss_seconds"])) for path in files)
        points, count = options.members * POINTS, evaluations(folder)
        if report["done"] != points or len(count) != points or set(count.values()) != {1}:
            raise SystemExit(f"{report}: not every point was evaluated once")
    share = measured / (options.ranks * report["wall"])
    print(
        f"{options.members} members of {POINTS} points, costs 1 to 20 times {1e3 * options.unit:g} ms, "
        f"{options.ranks} ranks: {measured:.1f} rank-seconds of measuring in {report['wall']:.2f} s = {share:.1%}",
        flush=True,
    )
    return share


def kill_rank_0(folder: Path, options: argparse.Namespace, chance: random.Random) -> bool:
    """Start the campaign, and kill its rank 0 at a random time after its first new point; whether it was alive."""
    before, job = sum(evaluations(folder).values()), start(folder, options)
    while job.poll() is None and sum(evaluations(folder).values()) == before:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.8 * options.members * POINTS * 10.5 * options.unit / options.ranks / options.kills))
    rank_0 = rank_0_below(job.pid)
    if rank_0 is not None and job.poll() is None:
        os.kill(rank_0, signal.SIGKILL)
    job.communicate(timeout=600)
    return rank_0 is not None and job.returncode != 0


def repeated(options: argparse.Namespace) -> int:
    """The largest number of points that one kill of rank 0 had repeated."""
    chance, per_kill, kills = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as name:
        folder, total = Path(name), 0
        while kills < options.kills:
            kills += kill_rank_0(folder, options, chance)
            again = sum(count - 1 for count in evaluations(folder).values())
            per_kill.append(again - total)
            total = again
        report = report_of(start(folder, options))
        count = evaluations(folder)
        per_kill.append(sum(count.values()) - len(count) - total)
        done = len(count)
    print(
        f"rank 0 killed {kills} times: {done} of {options.members * POINTS} points, outcomes {report['outcomes']}; "
        f"repeated {sum(per_kill)}, at most {max(per_kill)} after a kill",
        flush=True,
    )
    if done != options.members * POINTS or report["outcomes"] != ["complete"]:
        raise SystemExit("points are missing")
    return max(per_kill)


def main() -> int:
    """Print both; 1 where ranks measure below 90 % of the time, or a kill repeats more than the points in flight."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="12 members, two kills")
    flags.add_argument("--ranks", type=int, default=4)
    flags.add_argument("--members", type=int, default=60)
    flags.add_argument("--unit", type=float, default=0.02, help="seconds of the cheapest points")
    flags.add_argument("--kills", type=int, default=10)
    options = flags.parse_args()
    if options.quick:
        options.members, options.kills = 12, 2
    share, again = efficiency(options), repeated(options)
    return int(not options.quick and (share < 0.9 or again > 2 * options.ranks))


if __name__ == "__main__":
    sys.exit(main())
