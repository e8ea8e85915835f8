"""many_surveys.py: one survey after the other, one of a few points, and with ranks that come late to each."""

import json
import sys

from landscape import Bowl, Grid, World, np, survey, time

world = World.start()
grid = Grid.square(count=5)
outcomes = []
for number in range(4):
    time.sleep(0.15 * ((world.rank + number) % world.size))
    points = [3, 7] if number == 2 else None
    surface = survey(Bowl(0.001), grid, world=world, points=points)
    outcomes.append([surface.outcome, int(np.isfinite(surface["train_loss"]).sum())])
every = world.gather(outcomes)
if world.rank == 0:
    print(json.dumps(every), flush=True)
sys.exit(world.leave())
