"""a_rank_is_killed.py FILE RANK: that rank dies of SIGKILL while it measures its tenth point."""

import os
import signal
import sys

from landscape import Bowl, World, run


def act(number, point):
    if World.start().rank == int(sys.argv[2]) and number == 10:
        os.kill(os.getpid(), signal.SIGKILL)


run(Bowl(0.005, act), sys.argv[1])
