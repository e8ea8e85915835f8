"""What a campaign costs beside its measures: seconds of one process a member, and of plan, status and collect.

python benchmarks/campaign.py [members]

Members of 25 points whose measure costs nothing; then `states` and the table of all, from the index and without it.
After that the commands as they are typed: a campaign of as many members (a line of 3 points of the digits MLP, ten
checkpoints by seeds) is run, then `plan`, `status` and `collect` are timed from start to end.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lossmap
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.table import collected
from lossmap.cli.__main__ import main as command
from lossmap.geometry.grid import Field, Grid
from lossmap.zoo import build


@dataclass(frozen=True)
class Free:
    """A measure that costs nothing."""

    number: int
    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"),)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"number": self.number}

    def __call__(self, point: Any = None) -> Any:
        if point is None:
            return self, Grid.square(count=5)
        return {"train_loss": float(self.number)}


def timed(what: str, act: Any, count: int) -> Any:
    """Call it, and print seconds of wall clock and processor for each member."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:28} {1e3 * wall / count:8.2f} ms {1e3 * cpu / count:8.2f} ms of the processor a member", flush=True)
    return value


def typed(count: int) -> None:
    """Run a campaign of so many members, and print what `plan`, `status` and `collect` take, each a process."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for number in range(10):
            torch.manual_seed(number)
            torch.save(build("mlp").state_dict(), f"net_{number}.pt")
        Path("big.toml").write_text(
            '[settings]\nmodel = "mlp"\n[over]\nmodel_file = {glob = "net_*.pt"}\n'
            f"seed = {list(range(count // 10))}\n[surface]\nx = '-1:1:3'\nsamples = 64\nprobe = false\n"
        )
        timed("campaign FILE run", lambda: command(["campaign", "big.toml", "run"]), count)
        for action in ("plan", "status", "collect"):
            wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            words = [sys.executable, "-m", "lossmap.cli", "campaign", "big.toml", action]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            wall = time.perf_counter() - wall
            print(f"lossmap campaign FILE {action:8} {wall:6.2f} s, {cpu:.2f} s of the processor", flush=True)


def main() -> None:
    """Run and print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("count", nargs="?", type=int, default=100, help="members")
    count = flags.parse_args().count
    members = [lossmap.Member(f"member {i}", Free(i), {"number": i}) for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = CampaignFolder(name)
        timed("run, 25 points each", lambda: lossmap.run_campaign(members, name, progress=False), count)
        timed("run again, all there", lambda: lossmap.run_campaign(members, name, progress=False), count)
        timed("table, by the index", lambda: collected(members, folder), count)
        folder.index.unlink()
        timed("table, by the results", lambda: collected(members, folder), count)
    typed(count)


if __name__ == "__main__":
    main()
