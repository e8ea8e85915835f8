"""Losses and accuracies over a line or plane, drawn: `lossmap surface` from a checkout.

    python plot_surface.py --model resnet20-w8 --model-file net.pt --x=-1:1:51 --y=-1:1:51 --plot
    mpirun -n 4 python plot_surface.py ...          the ranks share the points

You get one HDF5 file with train_loss, train_acc and so on, and pictures with --plot; killed, the same command goes on.
"""

import sys

from lossmap.commands.surface import main
from lossmap.measure.loss import losses
from lossmap.space.directions import line_between, random_plane
from lossmap.space.grid import Grid
from lossmap.space.problem import Problem
from lossmap.survey import survey

__all__ = ["Grid", "Problem", "line_between", "losses", "main", "random_plane", "survey"]

if __name__ == "__main__":
    sys.exit(main())
