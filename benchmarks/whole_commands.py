"""Processor seconds of small jobs as whole programs, from their start to their end, imports included.

    python benchmarks/whole_commands.py [--baseline CHECKOUT] [--repeats 3] [--only lstm]

Each job runs as a program of its own with one thread, in turns with the same by the package in another checkout, where
one is given; the smallest of its repetitions counts. Networks have their initial weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLANE = "--x=-1:1:5 --y=-1:1:3"
JOBS = {
    "mlp, eigenmap of 15 points": f"eigenmap --model mlp {PLANE}",
    "lstm, eigenmap of 15 points": f"eigenmap --problem {HERE}/small_problems.py:lstm {PLANE}",
    "CNN with ReLU in place, eigenmap of 15 points": f"eigenmap --problem {HERE}/small_problems.py:in_place {PLANE}",
    "mlp, spectrum": "spectrum --model mlp",
    "mlp, surface of 15 points": f"surface --model mlp {PLANE}",
}


def seconds(arguments: str, package: Path) -> float:
    """Processor seconds of a command by the package in a checkout."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [*arguments.split(), "--surf-file", str(Path(folder, "result.h5")), "--threads", "1"]
        subprocess.run(
            [sys.executable, "-m", "lossmap", *command],
            env=os.environ | own, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row for each job."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--baseline", type=Path, help="a checkout of another version")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--only", default="", help="jobs whose names hold this")
    given = flags.parse_args()
    versions = {"seconds": HERE.parent, **({"baseline": given.baseline.resolve()} if given.baseline else {})}
    print(f"| job | {' | '.join(versions)} |{' ratio |' if given.baseline else ''}")
    for name, job in JOBS.items():
        if given.only not in name:
            continue
        taken = {version: float("inf") for version in versions}
        for _ in range(given.repeats):
            for version, package in versions.items():
                taken[version] = min(taken[version], seconds(job, package))
        ratio = f" {taken['baseline'] / taken['seconds']:.2f} |" if given.baseline else ""
        print(f"| {name} | {' | '.join(f'{t:.2f}' for t in taken.values())} |{ratio}", flush=True)


if __name__ == "__main__":
    main()
