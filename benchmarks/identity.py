"""What a survey of 1,000 points pays for knowing its code and for noticing damage: fingerprint and digests.

    python benchmarks/identity.py [--quick] [--repeats 3] [--points 1000]

Each job is a command on a line of so many points, with a source file of the user's own (so that its SHA-256 and the
two calls of git are in it), run in this process with one thread. All times are processor seconds, those of git
included; digests are those of every snapshot that the survey writes. Reading the result back and checking all that it
holds is beside it. The smallest of some runs counts. Imports are paid before, by a run that is not counted; the same
command as it is typed, in a process of its own that imports PyTorch, is measured beside it. The goal is a share of
this.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lossmap.cli.__main__ import main as lossmap
from lossmap.io import whole_file
from lossmap.io.read import read
from lossmap.io.verify import verify
from lossmap.landscape import fingerprint

GOAL = 0.01  # of a survey
JOBS = {
    "mlp, surface": "surface --model net.py:mlp",
    "cnn, surface": "surface --model net.py:cnn",
    "resnet20-w8, surface": "surface --model net.py:resnet --samples 512",
    "mlp, eigenmap": "eigenmap --model net.py:mlp --samples 512 --certify none",
}
NET = """
from lossmap import zoo

def mlp():
    return zoo.build("mlp")

def cnn():
    return zoo.build("cnn")

def resnet():
    return zoo.build("resnet20-w8")
"""
PARTS = {"fingerprint": (fingerprint, "code_of"), "digests": (whole_file, "seal")}


def processor() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def timed(seconds: Counter[str]) -> Iterator[None]:
    """Inside, the processor seconds of each part are added up."""

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = processor()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += processor() - start

        return call

    with ExitStack() as stack:
        for part, (module, name) in PARTS.items():
            stack.enter_context(mock.patch.object(module, name, clocked(part, getattr(module, name))))
        yield


def survey(job: str, points: int) -> tuple[float, Counter[str]]:
    """Processor seconds of a command without its imports, and those of its parts."""
    path, seconds = Path("result.h5"), Counter[str]()
    with timed(seconds), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = processor()
        code = lossmap(
            [*job.split(), f"--x=-1:1:{points}", "--threads", "1", "--device", "cpu", "--surf-file", str(path)]
        )
        whole = processor() - start
    if code or set(seconds) != set(PARTS):
        raise SystemExit(f"exit code {code}, parts {sorted(seconds)}: {job}")
    start = processor()
    read(path)
    seconds["reading"] = processor() - start
    start = processor()
    verify(path)
    seconds["verifying"] = processor() - start
    path.unlink()
    return whole, seconds


def typed(job: str, points: int) -> float:
    """Processor seconds of the command in a process of its own, with its imports."""
    words = [*job.split(), f"--x=-1:1:{points}", "--threads", "1", "--device", "cpu", "--surf-file", "typed.h5"]
    start = processor()
    subprocess.run([sys.executable, "-m", "lossmap", *words], check=True, capture_output=True)
    Path("typed.h5").unlink()
    return processor() - start


def row(name: str, job: str, points: int, repeats: int) -> tuple[str, float]:
    """A job's row of the table, and the share of the survey as it is typed."""
    runs = [survey(job, points) for _ in range(repeats)]
    whole = min(seconds for seconds, _ in runs)
    process = min(typed(job, points) for _ in range(repeats))
    part = {name: min(parts[name] for _, parts in runs) for name in (*PARTS, "reading", "verifying")}
    paid = part["fingerprint"] + part["digests"]
    figures = " | ".join(f"{1e3 * part[name]:.1f}" for name in part)
    line = (
        f"| {name} | {points} | {whole:.2f} | {process:.2f} | {figures} | {paid / whole:.2%} | {paid / process:.2%} |"
    )
    return line, paid / process


def main() -> int:
    """Print the table; 1 where a job pays more than the goal."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="one repetition of the small net")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--points", type=int, default=1000)
    options = flags.parse_args()
    torch.set_num_threads(1)
    jobs, repeats = JOBS, options.repeats
    if options.quick:
        jobs, repeats = {"mlp, surface": JOBS["mlp, surface"]}, 1
    shares, here = {}, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("net.py").write_text(NET)
        for words in (["init", "-q"], ["add", "net.py"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qma"]):
            subprocess.run(["git", *words], check=True)
        for job in jobs.values():
            survey(job, 3)
        print(
            "| survey | points | seconds without imports | as typed | fingerprint, ms | digests, ms | reading, ms "
            "| verifying, ms | share without imports | share |"
        )
        print(f"|{'---|' * 10}", flush=True)
        for name, job in jobs.items():
            line, shares[name] = row(name, job, options.points, repeats)
            print(line, flush=True)
        os.chdir(here)
    return int(not options.quick and max(shares.values()) > GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
