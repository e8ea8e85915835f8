"""Losses and accuracies over a line or plane, drawn: `lossmap surface` from a checkout.

    python plot_surface.py --model resnet20-w8 --model-file net.pt --x=-1:1:51 --y=-1:1:51 --plot
    mpirun -n 4 python plot_surface.py ...          the ranks share the points

You get one HDF5 file with train_loss, train_acc and so on, and pictures with --plot; killed, the same command resumes.
As in the original tool, -m is --mpi and -c is --cuda here.
"""

import sys

from lossmap.parallel.command_clock import start_clock
from lossmap.parallel.shutdown import keep_signals

if __name__ == "__main__":
    start_clock()
    keep_signals()  # from here on: the imports below take seconds

from lossmap.cli.original_flags import with_original_letters
from lossmap.cli.surface import main
from lossmap.data.problem import Problem
from lossmap.geometry.directions import line_between, random_plane
from lossmap.geometry.grid import Grid
from lossmap.landscape.loss import losses
from lossmap.landscape.run_survey import survey

__all__ = ["Grid", "Problem", "line_between", "losses", "main", "random_plane", "survey"]

if __name__ == "__main__":
    sys.exit(main(with_original_letters(sys.argv[1:])))
