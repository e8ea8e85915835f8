"""one_point_kills.py FILE: every rank but 0 that measures the point at (-1, .5) dies of it."""

import os
import signal
import sys

from landscape import Bowl, World, run


def act(number, point):
    if point == (-1.0, -0.5) and World.start().rank:
        os.kill(os.getpid(), signal.SIGKILL)


run(Bowl(0.005, act), sys.argv[1], rank_0="deals")
