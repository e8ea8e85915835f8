"""after_a_death.py: rank 2 dies in the first survey; the others survey again, and hear from rank 0."""

import json
import os
import signal
import sys

from landscape import Bowl, Grid, World, survey

world = World.start()


def act(number, point):
    if world.rank == 2 and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


surface = survey(Bowl(0.005, act), Grid.square(count=8), world=world)
word = world.broadcast("go on")
again = survey(Bowl(0.005), Grid.square(count=6), world=world)
every = world.gather(world.rank)
total = world.sum(1.5), world.together(lambda: 7), world.once_per_node(lambda: 8)
if world.rank == 0:
    print(json.dumps([surface.outcome, again.outcome, word, sorted(world.dead_ranks), every, total]), flush=True)
elif word != "go on":
    sys.exit(world.leave(1))
sys.exit(world.leave())
