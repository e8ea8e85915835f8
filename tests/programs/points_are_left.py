"""points_are_left.py FILE SECONDS: points of many steps, left when time is over and taken up again with their state."""

import sys

from landscape import Bowl, Stop, World, run, time

from lossmap.interrupt import Interrupted

STEPS = 20


class Long(Bowl):
    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def __call__(self, point):
        return self.resume(point, {"step": 0, "sum": 0.0})

    def resume(self, point, state):
        step, total = int(state["step"]), float(state["sum"])
        while step < STEPS:
            if self.stop():
                print(f"rank {World.start().rank} leaves at step {step}", file=sys.stderr, flush=True)
                raise Interrupted({"step": step, "sum": total})
            time.sleep(0.01)
            step, total = step + 1, total + 1 / (step + 1)
        return super().__call__(point) | {"train_acc": total}


World.start()
stop = Stop(after=float(sys.argv[2]))
run(Long(stop), sys.argv[1], count=2, stop=stop)
