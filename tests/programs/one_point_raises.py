"""one_point_raises.py FILE: one point raises wherever it is tried, one on odd ranks alone, and one is NaN."""

import sys

from landscape import Bowl, World, run


class Faulty(Bowl):
    def __call__(self, point):
        reading = super().__call__(point)
        if point == (-1.0, -0.5):
            raise ArithmeticError("no loss at this corner")
        if point == (1.0, -0.5) and World.start().rank % 2:
            raise OSError("this rank cannot read its disk")
        if point == (-1.0, 0.5):
            return {"train_loss": float("nan"), "train_acc": float("inf")}
        return reading


run(Faulty(0.005), sys.argv[1])
