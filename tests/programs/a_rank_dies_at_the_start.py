"""a_rank_dies_at_the_start.py FILE: ranks 0 and 1 die of SIGKILL before they join MPI; the others are on their way."""

import os
import signal
import sys

from landscape import Bowl, run

if os.environ["OMPI_COMM_WORLD_RANK"] in ("0", "1"):
    os.kill(os.getpid(), signal.SIGKILL)
run(Bowl(0.0), sys.argv[1])
