"""setup_hangs.py RANK ...: a command whose problem is set up for ever on these ranks; the others wait for them."""

import os
import sys
import threading

from lossmap.cli.entry_point import guarded
from lossmap.parallel.launcher import rank_in
from lossmap.parallel.world import World


def net():
    """Nothing at all, but not before a lock that nobody gives back."""
    lock = threading.Lock()
    lock.acquire()
    if str(rank_in(os.environ)) in sys.argv:
        lock.acquire()


def main():
    """What every command does first."""
    world = World.start()
    world.together(net)
    return world.leave(0)


if __name__ == "__main__":
    sys.exit(guarded(main)())
