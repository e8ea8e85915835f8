"""after_a_death.py [stuck]: rank 2 dies, or is stuck, in the first survey; the others survey again, and hear from 0."""

import json
import os
import signal
import sys
import time

from landscape import Bowl, Grid, World, survey

world, stuck = World.start(), "stuck" in sys.argv


def act(number, point):
    if world.rank == 2 and number == 3:
        if stuck:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)


surface = survey(Bowl(0.005, act), Grid.square(count=8), world=world, point_timeout=0.5 if stuck else None)
word = world.broadcast("go on")
again = survey(Bowl(0.005), Grid.square(count=6), world=world)
every = world.gather(world.rank)
total = world.sum(1.5), world.together(lambda: 7), world.once_per_node(lambda: 8)
if world.rank == 0:
    gone = sorted(world.dead_ranks | world.stuck_ranks)
    print(json.dumps([surface.outcome, again.outcome, word, gone, every, total]), flush=True)
elif word != "go on":
    sys.exit(world.leave(1))
sys.exit(world.leave())
