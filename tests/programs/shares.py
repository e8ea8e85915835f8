"""shares.py SIZE [WHAT]: a team shares 1,000 numbers; WHAT says what happens to one of its members."""

import json
import os
import signal
import sys

import numpy as np
from landscape import Field, Grid, World, survey, time

size, what = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "nothing"
world = World.start()
team = world.team(size)
NUMBERS = np.random.default_rng(1).integers(-1000, 1000, size=1001).astype(float)  # sums of whole numbers are exact
mine = NUMBERS[1001 * team.rank // team.size : 1001 * (team.rank + 1) // team.size]
WEIGHTS = np.arange(200.0)


class Shared:
    """The mean of x * number over all numbers, and the sum of a vector too long for one message."""

    name = "loss"
    fields = (Field("train_loss", "nats", "mean"), Field("test_loss", "nats", "norm"))
    settings = {"numbers": 1001}  # noqa: RUF012
    calls = 0
    batch = 4

    def __call__(self, point):
        self.calls += 1
        member = team.rank == team.size - 1
        if what == "raises" and member and point == (0.0,):
            raise ArithmeticError("only this member sees it")
        if what == "killed" and member and self.calls == 3 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "memory" and member and self.batch > 1:
            raise MemoryError
        if what == "uneven" and team.leads and point == (0.0,):
            team.sum(np.zeros(3))
        total = team.sum(np.array([(point[0] * mine).sum(), float(mine.size)]))
        vector = team.sum(WEIGHTS * mine.sum())
        time.sleep(0.002)
        return {"train_loss": total[0] / total[1], "test_loss": float(vector @ vector)}

    def smaller(self):
        self.batch //= 2
        return f"batches of {self.batch}"


measure = Shared()
surface = survey(measure, Grid(np.arange(-10.0, 11.0)), world=world, team=team)
if world.rank == 0:
    print(
        json.dumps(
            {
                "outcome": surface.outcome,
                "train_loss": surface["train_loss"].tolist(),
                "test_loss": surface["test_loss"].tolist(),
                "ranks": sorted({int(r) for r in surface["loss_rank"][np.isfinite(surface["loss_rank"])]}),
                "failures": [(f.index, f.text) for f in surface.failures],
                "batch": measure.batch,
                "notes": surface.attributes.get("loss_notes", "").splitlines(),
            }
        ),
        flush=True,
    )
sys.exit(world.leave({"complete": 0, "failed": 3, "unfinished": 75}[surface.outcome]))
