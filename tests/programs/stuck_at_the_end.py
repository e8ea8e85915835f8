"""stuck_at_the_end.py: rank 2 dies and rank 3 never says goodbye at the end of a complete survey; all others leave."""

import signal

from landscape import World, os, sys, time

world = World.start()
if world.rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
while not world.channel.dead_now():
    time.sleep(0.01)
if world.rank == 3:
    time.sleep(600)
print(f"rank {world.rank} leaves", flush=True)
sys.exit(world.leave(0))
