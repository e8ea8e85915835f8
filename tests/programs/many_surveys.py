"""many_surveys.py: one survey after the other, one of a few points, and with ranks that come late to each."""

import json
import sys

from landscape import Bowl, Grid, World, np, survey, time

world = World.start()
grid = Grid.square(count=5)
told = []
for number in range(4):
    time.sleep(0.15 * ((world.rank + number) % world.size))
    points = [3, 7] if number == 2 else None
    surface = survey(Bowl(0.001), grid, world=world, points=points)
    if world.rank == 0:
        told.append([surface.outcome, int(np.isfinite(surface["train_loss"]).sum())])
    else:
        told.append([surface.outcome])
every = world.gather(told)
if world.rank == 0:
    print(json.dumps(every), flush=True)
sys.exit(world.leave())
