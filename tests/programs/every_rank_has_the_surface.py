"""every_rank_has_the_surface.py [dies]: what each rank holds after a survey, with its values and without.

One point fails; with `dies`, rank 2 is killed at its second point.
"""

import json
import os
import signal
import sys

from landscape import Bowl, Grid, World, survey

world = World.start()
dies = sys.argv[1:] == ["dies"]


def act(number, point):
    if point == (-1.0, -1.0):
        raise ArithmeticError("no loss")
    if dies and world.rank == 2 and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def described(surface):
    return {
        "outcome": surface.outcome,
        "fields": sorted(surface.fields),
        "counts": surface.counts("loss"),
        "failures": [(f.index, f.reason) for f in surface.failures],
        "sum": [value.hex() for name in ("train_loss",) if name in surface for value in surface[name].ravel().tolist()],
    }


grid = Grid.square(count=4)
every = world.gather(described(survey(Bowl(0.005, act), grid, world=world)))
statuses = world.gather(described(survey(Bowl(0.002, act), grid, world=world, share_values=False)))
if world.rank == 0:
    print(json.dumps([every, statuses]), flush=True)
sys.exit(world.leave())
