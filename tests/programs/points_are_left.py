"""points_are_left.py FILE AT_MOST: points of 20 steps, left after so many steps and taken up again with their state."""

import sys

from landscape import Bowl, Stop, World, run, time

from lossmap.interrupt import Interrupted

STEPS = 20


class Long(Bowl):
    def __init__(self, stop, at_most):
        super().__init__()
        self.stop, self.steps_left = stop, at_most

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
            self.steps_left -= 1
            if self.steps_left == 0:  # by count: a clock would stop between two points on some machines
                self.stop.request("enough steps", urgent=True)
        return super().__call__(point) | {"train_acc": total}


World.start()
stop = Stop()
run(Long(stop, int(sys.argv[2])), sys.argv[1], count=2, stop=stop)
