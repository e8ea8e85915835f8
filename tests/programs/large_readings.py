"""large_readings.py: readings of a megabyte, from a slow rank and a quick one; rank 0 only dispatches."""

import json
import sys

from landscape import Field, Grid, World, np, survey, time

world = World.start()


class Large:
    name = "loss"
    fields = (Field("spectrum", "1", "many numbers", extra=("node", 125_000)),)
    settings = {"kind": "large"}  # noqa: RUF012

    def __call__(self, point):
        time.sleep(0.4 if world.rank == 1 else 0.01)
        return {"spectrum": np.full(125_000, point[0])}


grid = Grid(np.arange(40.0))
surface = survey(Large(), grid, world=world, rank_0="deals")
if world.rank == 0:
    points = np.bincount(surface["loss_rank"].astype(int))[1:].tolist()
    sums = bool((surface["spectrum"] == grid.x[:, None]).all())
    print(json.dumps({"outcome": surface.outcome, "points": points, "sums": sums}), flush=True)
sys.exit(world.leave())
