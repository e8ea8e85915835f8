"""a_job_is_suspended.py FILE: at its third point the process is stopped, and goes on 3 s later; 2 s are allowed."""

import os
import signal
import subprocess
import sys
import time

from landscape import Bowl, run


def act(number, point):
    if number == 3:
        subprocess.Popen(["/bin/sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)  # for who looks at the clock


run(Bowl(0, act), sys.argv[1], point_timeout=2.0)
