"""Interrupts a command of lossmap 0.1.0 at a known point, so that it leaves an unfinished result.

    python interrupt.py kill 7 COMMAND ...     SIGKILL once the 7th point has been recorded
    python interrupt.py usr1 7 COMMAND ...     SIGUSR1 there: interrupted, resumable, exit code 75
    python interrupt.py term 7 COMMAND ...     SIGTERM in the next point, at its 4th product: its state is saved
    python interrupt.py kill-audit 7 ...       as kill, counting the points of the audit alone
    python interrupt.py kill-step 7 train ...  SIGKILL when a training run checks for the 7th time whether to stop

Nothing of what is written is changed. lossmap 0.1.0 must be on PYTHONPATH.
"""

import os
import signal
import sys
import time

from lossmap import commands  # isort: skip
from lossmap.farm.stop import Stop
from lossmap.store.writer import SurfaceFile

how, count = sys.argv[1], int(sys.argv[2])
record, is_stopped = SurfaceFile.record, Stop.__call__
state = {"recorded": 0, "checks": 0}


def recorded(self, measure, *rest, **named):
    record(self, measure, *rest, **named)
    state["recorded"] += how != "kill-audit" or measure == "audit"
    if state["recorded"] == count:
        if how.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "usr1":
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)


def products(self):
    if how == "kill-step" and sys._getframe(1).f_code.co_filename.endswith("train.py"):
        state["checks"] += 1
        if state["checks"] == count:
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "term" and state["recorded"] >= count and sys._getframe(1).f_code.co_filename.endswith("eigenmap.py"):
        state["checks"] += 1
        if state["checks"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
    return is_stopped(self)


SurfaceFile.record, Stop.__call__ = recorded, products
sys.argv = [os.path.join(os.path.dirname(commands.__file__), "__main__.py"), *sys.argv[3:]]

from lossmap.commands.__main__ import main  # noqa: E402

sys.exit(main())
