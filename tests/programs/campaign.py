"""campaign.py FOLDER SECONDS COUNT: members of 25 points whose costs spread 1 to 20; each evaluation is logged beside.

FOLDER   of the campaign; evaluations are logged in FOLDER/log, one line a point, before it is measured, and
         in FOLDER/log.seconds, process and seconds of each, after it
SECONDS  of the cheapest member's points; the dearest ones take twenty times as long
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from landscape import Field, Grid, World, np, os, time

from lossmap.campaign.member import Member
from lossmap.campaign.run import run_campaign


@dataclass(frozen=True)
class Costly:
    """A bowl of its own depth and cost."""

    depth: float
    seconds: float
    log: str

    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"),)

    @property
    def settings(self):
        return {"depth": self.depth}

    def __call__(self, point):
        line = f"{self.depth:g} {point[0]:g} {point[1]:g}\n"
        with open(self.log, "a") as log:
            log.write(line)
        began = time.monotonic()
        time.sleep(self.seconds)
        with open(f"{self.log}.seconds", "a") as log:
            log.write(f"{os.getpid()} {time.monotonic() - began:g}\n")
        return {"train_loss": self.depth + float(np.dot(point, point))}


@dataclass(frozen=True)
class Build:
    measure: Costly

    def __call__(self):
        return self.measure, Grid.square(count=5)


def members(folder, unit, count=60):
    costs = unit * np.linspace(1, 20, count)[np.random.default_rng(0).permutation(count)]
    log = str(Path(folder) / "log")
    return [
        Member(f"depth {i}", Build(Costly(float(i), float(seconds), log)), {"depth": float(i)})
        for i, seconds in enumerate(costs)
    ]


if __name__ == "__main__":
    world = World.start()
    folder = sys.argv[1]
    began = time.monotonic()
    table = run_campaign(members(folder, float(sys.argv[2]), int(sys.argv[3])), folder, world=world, progress=False)
    if world.rank == 0:
        said = {"wall": time.monotonic() - began, "seconds": sum(table["seconds"]), "ranks": world.size}
        print(json.dumps({**said, "outcomes": sorted(set(table["outcome"])), "done": sum(table["done"])}), flush=True)
    sys.exit(world.leave(0))


__all__ = ["Build", "Costly", "members", "os"]
