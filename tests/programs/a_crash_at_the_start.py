"""a_crash_at_the_start.py FILE: rank 0 dies of SIGKILL before it joins MPI, and the others crash inside MPI_Init."""

import os
import signal
import sys
import time

from landscape import Bowl, run

from lossmap.parallel import world

load_mpi = world.load_mpi


def crash_while_it_loads(environ):
    rank = os.getpid()
    if os.fork() == 0:
        time.sleep(0.8)
        os.kill(rank, signal.SIGSEGV)
        os._exit(0)
    return load_mpi(environ)


if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
world.load_mpi = crash_while_it_loads
run(Bowl(0.0), sys.argv[1])
