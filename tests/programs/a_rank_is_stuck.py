"""a_rank_is_stuck.py FILE SECONDS RANK: that rank sits at its third point for so long; half a second is allowed."""

import sys
import time

from landscape import Bowl, World, run


def act(number, point):
    if World.start().rank == int(sys.argv[3]) and number == 3:
        time.sleep(float(sys.argv[2]))


run(Bowl(0.01, act), sys.argv[1], point_timeout=0.5)
