"""nobody_catches.py: rank 1 raises before the survey begins, after the death of rank DIES; nobody must wait for it."""

import signal

from landscape import Bowl, Grid, World, os, survey, time

world = World.start()
dies = os.environ.get("DIES")
if dies == str(world.rank):
    os.kill(os.getpid(), signal.SIGKILL)
if world.rank == 1:
    while dies and not world.channel.dead_now():
        time.sleep(0.01)
    raise RuntimeError("a fault of the program's own")
survey(Bowl(), Grid.line(), world=world)
