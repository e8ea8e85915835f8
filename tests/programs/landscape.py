"""What the programs share: a cheap measure, and its survey into a file. NumPy alone, so that it starts fast."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import SurfaceFile
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.team import Team
from lossmap.parallel.world import World

WAVES = np.random.default_rng(0).normal(size=(50, 3))


class Bowl:
    """A rough bowl; its cost varies tenfold from point to point.

    seconds  mean cost of a point
    act      called with the point's number among this rank's own, and the point, before it is measured
    """

    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"), Field("train_acc", "percent", "accuracy"))

    def __init__(self, seconds: float = 0.0, act=lambda number, point: None) -> None:
        self.seconds, self.act, self.number = seconds, act, 0
        self.settings = {"waves": 50}

    def __call__(self, point):
        self.number += 1
        self.act(self.number, point)
        rough = np.cos(WAVES @ np.array([*point, 1.0])).mean()
        time.sleep(self.seconds * (0.18 + 1.64 * abs(np.sin(40 * point[0] + 7 * point[-1]))))
        return {"train_loss": float(np.dot(point, point) + rough), "train_acc": float(50 - 10 * rough)}


def run(measure, path, count=12, stop=None, **settings):
    """Survey into the file, say on rank 0 how it ended, and leave with the contract's exit code."""
    world = World.start()
    grid = Grid(np.linspace(-1, 1, count), np.linspace(-0.5, 0.5, count + 1))
    measures = {measure.name: (measure.fields, measure.settings)}
    store = SurfaceFile.open(path, grid, measures=measures) if world.rank == 0 else None
    notes = []
    with stop or Stop() as stop:
        surface = survey(
            measure,
            grid,
            store=store,
            world=world,
            stop=stop,
            progress=lambda event: notes.append(event.note) if event.note else None,
            **settings,
        )
    code = {"complete": 0, "failed": 3, "unfinished": 75}[surface.outcome]
    if world.rank == 0:
        store.close()
        ranks = surface.fields["loss_rank"]
        print(
            json.dumps(
                {
                    "outcome": surface.outcome,
                    **surface.counts("loss"),
                    "ranks": sorted({int(r) for r in ranks[np.isfinite(ranks)]}),
                    "notes": notes,
                    "measured": measure.number,
                    "asked": stop.reason,
                }
            ),
            flush=True,
        )
    sys.exit(world.leave(code))


__all__ = ["Bowl", "Field", "Grid", "Stop", "SurfaceFile", "Team", "World", "np", "os", "run", "survey", "sys", "time"]
